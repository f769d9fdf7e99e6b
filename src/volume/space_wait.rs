//! Waiting for the space of a file.
//!
//! A thread that waits polls: the one that has the space may wait for its I/O.

use std::time::{Duration, Instant};

use super::Io;
use super::inodes::CoreInode;
use super::space_lock::{ExclusiveSpace, SharedSpace};
use crate::block::Queue;

/// Locks the space of a file exclusively. Operations of the calling thread go on meanwhile.
pub(super) fn lock_space<'i>(io: &mut Io, inode: &'i CoreInode) -> ExclusiveSpace<'i> {
    let space = inode.space();
    if let Some(guard) = space.try_exclusive() {
        return guard;
    }
    let _wanted = space.want();
    poll_for(io, || space.try_exclusive())
}

/// As [`lock_space`], unless that takes longer.
pub(super) fn lock_space_in<'i>(
    io: &mut Io,
    inode: &'i CoreInode,
    patience: Duration,
) -> Option<ExclusiveSpace<'i>> {
    let space = inode.space();
    if let Some(guard) = space.try_exclusive() {
        return Some(guard);
    }
    let _wanted = space.want();
    let start = Instant::now();
    poll_for(io, || match space.try_exclusive() {
        None if start.elapsed() < patience => None,
        found => Some(found),
    })
}

/// As [`lock_space`], shared with other buffered writes.
pub(super) fn share_space<'i>(io: &mut Io, inode: &'i CoreInode) -> SharedSpace<'i> {
    let space = inode.space();
    match space.try_shared() {
        Some(guard) => guard,
        None => poll_for(io, || space.try_shared()),
    }
}

/// Waits until no direct operation on a file is in flight that began before a change of this
/// number, at most so long without progress of the calling thread's own. Whether there is none.
pub(super) fn wait_quiet(io: &mut Io, inode: &CoreInode, number: u64, patience: Duration) -> bool {
    let start = Instant::now();
    while !inode.is_quiet(number) {
        if !progress_or_yield(io) && start.elapsed() > patience {
            return false;
        }
    }
    true
}

fn poll_for<T>(io: &mut Io, mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(guard) = attempt() {
            return guard;
        }
        progress_or_yield(io);
    }
}

/// Goes on with operations of the calling thread; whether there was progress. Otherwise other
/// threads have the processor.
fn progress_or_yield(io: &mut Io) -> bool {
    let progress = io.core.direct.progress(&mut io.core.queue);
    if io.end_writes() + progress > 0 {
        return true;
    }
    io.core.queue.relax();
    std::thread::yield_now();
    false
}

//! The lock of a file's space, as the kernel's `i_rwsem`.
//!
//! Held exclusively by an operation that adds, moves or frees blocks or changes the length; held
//! shared by a buffered write that asked for blocks, until its data is in the page cache. Those
//! that wait for it poll, because the thread that has it may wait for I/O of theirs.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

/// The lock.
#[derive(Debug, Default)]
pub(super) struct SpaceLock {
    lock: RwLock<()>,
    /// Operations that wait to have it exclusively: no other is let in before them.
    wanted: AtomicUsize,
}

/// The right to add, move and free blocks.
pub(super) type ExclusiveSpace<'l> = RwLockWriteGuard<'l, ()>;
/// The right to write to blocks that were asked for, through the page cache.
pub(super) type SharedSpace<'l> = RwLockReadGuard<'l, ()>;

/// A wish to have the space exclusively.
#[derive(Debug)]
pub(super) struct WantedSpace<'l>(&'l SpaceLock);

impl Drop for WantedSpace<'_> {
    fn drop(&mut self) {
        self.0.wanted.fetch_sub(1, Relaxed);
    }
}

impl SpaceLock {
    pub(super) fn try_exclusive(&self) -> Option<ExclusiveSpace<'_>> {
        match self.lock.try_write() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// While the result exists none is let in shared.
    pub(super) fn want(&self) -> WantedSpace<'_> {
        self.wanted.fetch_add(1, Relaxed);
        WantedSpace(self)
    }

    pub(super) fn try_shared(&self) -> Option<SharedSpace<'_>> {
        if self.wanted.load(Acquire) > 0 {
            return None;
        }
        match self.lock.try_read() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

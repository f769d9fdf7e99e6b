//! Buffered writes.
//!
//! A write to pages that are dirty, or were before, asks for nothing and locks nothing. All other
//! writes lock the space of the file: shared to write to blocks that are there, exclusively to have
//! blocks allocated or to make the file longer. Blocks are allocated when data is written, so that
//! it is this write that hears of a full disk; those inside the file are unwritten until the data
//! is on the device, and those past its end are no part of the file until then.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::super::Io;
use super::super::file_shared::FileShared;
use super::super::inodes::{CoreInode, locked};
use super::super::ranges::outward;
use super::super::shared::VolumeShared;
use super::super::space_lock::{ExclusiveSpace, SharedSpace};
use super::super::space_wait::{lock_space, share_space, wait_quiet};
use super::ops::check_growth;
use super::{PATIENCE, write_others_back};
use crate::cache::{BoundedWait, FileCache};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::buffered::Written;
use crate::iomap::{IterFlags, Ops};
use crate::mem::pages::PAGE_BYTES;
use crate::sys::light_barrier;
use crate::xfs::MapChange;

/// Writes through the cache: all of it, but where something stops it behind its first byte.
#[inline]
pub(in super::super) fn write(
    file: &FileShared,
    io: &mut Io,
    data: &[u8],
    offset: u64,
) -> Result<usize> {
    let pages = file.pages()?;
    if file.inode.has_privileges() && !data.is_empty() {
        io.remove_privileges(&file.inode)?;
    }
    let (done, is_enough) = io.buffered()?.inner.write_hit(pages, offset, data);
    let written = match is_enough {
        true => Ok(done),
        false => write_asked(file, io, data, offset, done),
    };
    // The data is in the cache before the mark is looked at.
    light_barrier();
    if !data.is_empty() {
        file.inode.mark_written();
    }
    if file.options.dsync {
        let done = match &written {
            Ok(done) => *done,
            // What a failed write did is durable as well, for it counts as done.
            Err(error) => usize::try_from(error.bytes_done().unwrap_or(0)).unwrap_or(0),
        };
        if done > 0 {
            let durable = make_durable(file, io, offset..offset.saturating_add(done as u64));
            return written.and_then(|done| durable.map(|()| done));
        }
    }
    written
}

#[cold]
fn make_durable(file: &FileShared, io: &mut Io, range: Range<u64>) -> Result<()> {
    let pages = file.pages()?;
    let (buffered, mut ops) = io.cached(file.core())?;
    let written = buffered.inner.write_back(pages, &mut ops, range);
    if written.is_err() {
        // This call tells it.
        let _ = pages.check_errors(&mut locked(&file.heard));
        return written;
    }
    buffered.inner.commit(&mut ops)
}

/// Goes on with a write whose first bytes are in the cache.
#[inline(never)]
fn write_asked(
    file: &FileShared,
    io: &mut Io,
    data: &[u8],
    offset: u64,
    mut done: usize,
) -> Result<usize> {
    let end = offset.saturating_add(data.len() as u64);
    if !data.is_empty() {
        io.volume_shared().fs.check_file_len(end)?;
    }
    let mut needs_blocks = false;
    let mut patience = BoundedWait::new(PATIENCE);
    loop {
        let at = offset.saturating_add(done as u64);
        let step = step(file, io, &data[done..], at..end, needs_blocks);
        let written = match step {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::NotOverwrite && !needs_blocks => {
                needs_blocks = true;
                continue;
            }
            Err(error) => return stopped(error, done),
        };
        done += written.bytes;
        if written.throttled {
            if let Err(error) = throttle(io, &mut patience) {
                return stopped(error, done);
            }
        } else if done == data.len() {
            return Ok(done);
        } else if written.bytes == 0 && needs_blocks {
            return stopped(no_blocks(at), done);
        } else {
            // It stopped where blocks are missing.
            needs_blocks = true;
        }
    }
}

#[cold]
fn no_blocks(pos: u64) -> Error {
    Error::new(ErrorKind::Busy, "the blocks that were allocated are gone").at_offset(pos)
}

/// One step of a write, with the lock that it needs: fewer bytes where too much is dirty, or where
/// blocks are missing.
fn step(
    file: &FileShared,
    io: &mut Io,
    data: &[u8],
    range: Range<u64>,
    needs_blocks: bool,
) -> Result<Written> {
    let (pages, inode) = (file.pages()?, file.core());
    let (mut _exclusive, mut shared) = (None, None);
    let mut room = Ok(());
    if !needs_blocks && range.end <= pages.size_bytes() {
        // The file may have become shorter meanwhile.
        shared = Some(share_space(io, inode))
            .filter(|_| range.end <= pages.size_bytes() && !has_unsettled(inode, &range));
    }
    if shared.is_none() {
        let (space, result) = lock_room(io, inode, &range)?;
        (_exclusive, room) = (Some(space), result);
        // Bytes behind the end in the last block are zeroed.
        let size = pages.size_bytes();
        io.load_pages(inode, &(size.saturating_sub(1)..size))?;
    } else {
        io.load_pages(inode, &range)?;
    }
    let (buffered, mut ops) = io.cached(inode)?;
    let written = buffered.inner.write(pages, &mut ops, range.start, data);
    match (room, written) {
        // As much as there are blocks for.
        (Err(error), Ok(written)) if written.bytes == 0 && !written.throttled => Err(error),
        (Err(error), Err(stop)) if stop.kind() == ErrorKind::NotOverwrite => {
            let done = usize::try_from(stop.bytes_done().unwrap_or(0)).unwrap_or(0);
            match done {
                0 => Err(error),
                bytes => Ok(Written {
                    bytes,
                    throttled: false,
                }),
            }
        }
        (_, written) => written,
    }
}

/// Locks the space of a file and has blocks allocated for all of a range. Where there are none,
/// blocks that files have in reserve are freed first.
fn lock_room<'i>(
    io: &mut Io,
    inode: &'i Arc<CoreInode>,
    range: &Range<u64>,
) -> Result<(ExclusiveSpace<'i>, Result<()>)> {
    io.free_spare();
    let mut is_last = false;
    loop {
        let space = lock_space(io, inode);
        io.load_pages(inode, range)?;
        match make_room(io, inode, range) {
            Err(error) if error.kind() == ErrorKind::NoSpace && !is_last => {}
            room => return Ok((space, room)),
        }
        is_last = true;
        drop(space);
        io.free_all_spare();
    }
}

/// Has blocks allocated for all of a range, while the space of the file is locked.
fn make_room(io: &mut Io, inode: &Arc<CoreInode>, range: &Range<u64>) -> Result<()> {
    if has_unsettled(inode, range) {
        settle(io, inode, range)?;
    }
    let (map, _) = inode.maps().now();
    map.check_unshared(range)?;
    let has_blocks = map.has_blocks(range);
    if has_blocks && range.end <= map.size_bytes() {
        return Ok(());
    }
    check_growth(&io.volume_shared().fs)?;
    if has_blocks {
        return Ok(());
    }
    let volume = Arc::clone(io.volume_shared());
    allocate(&volume, io, inode, range)
}

/// Whether a write through the cache could undo a direct one that is in flight, or whose blocks are
/// not changed yet: both write to blocks without data, which are larger than a page and are zeroed
/// when a part of them is written back; or behind the end of the file, where its last block is
/// zeroed. A direct write that begins later has these pages written back first. The space of the
/// file is locked.
fn has_unsettled(inode: &CoreInode, range: &Range<u64>) -> bool {
    if !inode.maps().has_operations() {
        return false;
    }
    let (map, _) = inode.maps().now();
    let block = inode.pages().map_or(0, FileCache::whole_block_bytes);
    let is_large = block > PAGE_BYTES as u64;
    range.start > map.size_bytes() || is_large && !map.is_written(&outward(range, block))
}

/// Waits for direct operations in flight, while the space of the file is locked: then no other one
/// begins that needs blocks.
#[cold]
fn settle(io: &mut Io, inode: &Arc<CoreInode>, range: &Range<u64>) -> Result<()> {
    let volume = Arc::clone(io.volume_shared());
    let block = u64::from(volume.block_bytes()).max(1);
    let start = range.start.min(inode.size_bytes());
    let affected = outward(&(start..range.end), block);
    let number = inode.begin_change(MapChange {
        frozen: affected.clone(),
        gone: 0..0,
    });
    let patience = io.core.patience();
    let is_quiet = wait_quiet(io, inode, number, patience);
    let (core, id) = (&mut io.core, inode.id());
    inode.update(true, || volume.fs.file_state(core, id, &affected))?;
    match is_quiet {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Busy,
            "direct reads or writes of the file are in flight, and do not end",
        )),
    }
}

fn allocate(
    volume: &VolumeShared,
    io: &mut Io,
    inode: &CoreInode,
    range: &Range<u64>,
) -> Result<()> {
    volume.is_written.store(true, Relaxed);
    let (core, id) = (&mut io.core, inode.id());
    let allocated = volume.fs.allocate_for_cached(core, id, range);
    if !matches!(allocated, Ok(false)) {
        inode.note_spare();
    }
    // Whether all of it or a part.
    let updated = inode.update(false, || volume.fs.file_state(core, id, range));
    allocated.and(updated)
}

/// The result of an operation that stopped after so many bytes. What has no blocks ends a write
/// early; a failure is an error.
#[cold]
pub(super) fn stopped(error: Error, done: usize) -> Result<usize> {
    let ends_early = matches!(error.kind(), ErrorKind::NotOverwrite | ErrorKind::NoSpace);
    if done > 0 && ends_early {
        return Ok(done);
    }
    Err(error.after_bytes(done))
}

/// Too much is dirty: waits until less is, or sees to that.
#[cold]
pub(super) fn throttle(io: &mut Io, patience: &mut BoundedWait) -> Result<()> {
    if write_others_back(io)? || patience.wait() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        "too much of the page cache is dirty, and others do not get it written back",
    ))
}

/// Sees to it that not too much is dirty, before more becomes so.
pub(super) fn make_way(file: &FileShared, io: &mut Io) -> Result<()> {
    let pages = file.pages()?;
    let mut patience = BoundedWait::new(PATIENCE);
    loop {
        let (buffered, mut ops) = io.cached(file.core())?;
        if !buffered.inner.write(pages, &mut ops, 0, &[])?.throttled {
            return Ok(());
        }
        throttle(io, &mut patience)?;
    }
}

/// Has blocks for a range, and keeps them there: the space stays locked. For writes to pages that
/// are lent.
pub(super) fn lock_blocks<'i>(
    io: &mut Io,
    inode: &'i Arc<CoreInode>,
    range: &Range<u64>,
) -> Result<SharedSpace<'i>> {
    loop {
        let space = share_space(io, inode);
        io.load_pages(inode, range)?;
        match ask(io, inode, range) {
            Ok(()) if !has_unsettled(inode, range) => return Ok(space),
            Ok(()) => drop(space),
            Err(error) if error.kind() == ErrorKind::NotOverwrite => drop(space),
            Err(error) => return Err(error),
        }
        let (_space, room) = lock_room(io, inode, range)?;
        room?;
        ask(io, inode, range)?;
    }
}

/// Asks for all mappings of a range that is going to be written.
fn ask(io: &mut Io, inode: &Arc<CoreInode>, range: &Range<u64>) -> Result<()> {
    let (_, mut ops) = io.cached(inode)?;
    let mut at = range.start;
    while at < range.end {
        let (mapping, _) = ops.begin(at, range.end - at, IterFlags::WRITE)?;
        at = mapping.end();
    }
    Ok(())
}

/// As [`write()`], and an error where not all of it can be written.
pub(in super::super) fn write_all(
    file: &FileShared,
    io: &mut Io,
    data: &[u8],
    offset: u64,
) -> Result<()> {
    let mut done = 0;
    while done < data.len() {
        // What stopped it is told by the next call.
        done += write(file, io, &data[done..], offset.saturating_add(done as u64))
            .map_err(|error| error.after_bytes(done))?;
    }
    Ok(())
}

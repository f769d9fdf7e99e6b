//! Direct writes to where a file has no written blocks of its own: into holes, to preallocated
//! blocks, past the end.
//!
//! Blocks are allocated first; then the data is written, as in an overwrite, and then the file is
//! changed: its blocks are written ones, and its length follows. An operation counts as in flight
//! until all of that is done, so that blocks are not freed under it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::core::{IoCore, no_slot};
use super::file_shared::FileShared;
use super::inodes::CoreInode;
use super::noting::note_written;
use super::ranges::outward;
use super::shared::VolumeShared;
use super::space_lock::ExclusiveSpace;
use super::space_wait::{lock_space, lock_space_in, wait_quiet};
use super::{DmaBuf, File, Io};
use crate::cache::FileCache;
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::{Ended, OperationToken, Rejected, WrittenData};
use crate::xfs::{CommitTicket, InodeId, MapChange, needs_extents};

/// How long the space of a file and its operations are waited for when blocks that it has in
/// reserve are wanted by another.
const TRIM_PATIENCE: Duration = Duration::from_millis(200);

/// How often a write is tried whose blocks another thread takes away.
const TRIES: u32 = 1000;

/// How the end of a write is handed over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Handing {
    /// By [`Io::poll`], with this user data.
    Polled(u64),
    /// By [`Io::wait`].
    Kept,
}

impl Io {
    /// Starts a write to where the file has no written blocks of its own; `end` is the end of the
    /// data, where the memory has more to fill the last block. Waits for metadata.
    pub(super) fn start_allocating(
        &mut self,
        file: &File,
        mut buf: DmaBuf,
        (offset, end): (u64, u64),
        handing: Handing,
    ) -> Result<OperationToken, Rejected> {
        let behind = offset.saturating_add(buf.len() as u64);
        let range = offset..end.min(behind);
        let Ok(filler_bytes) = u16::try_from(behind.saturating_sub(end)) else {
            let detail = "more than a block behind the data";
            return Err(Rejected::error(
                Error::new(ErrorKind::InvalidInput, detail),
                buf,
            ));
        };
        let (kept, user_data) = match handing {
            Handing::Polled(user_data) => (false, user_data),
            Handing::Kept => (true, 0),
        };
        for _ in 0..TRIES {
            // Until the operation counts as in flight no block of it is taken away.
            let _space = match file.make_room(self, &range) {
                Ok(space) => space,
                Err(error) => return Err(Rejected::error(error, buf)),
            };
            let request = self.request(file, file.plain_write(), offset, buf, user_data);
            let IoCore { direct, queue, .. } = &mut self.core;
            match direct.submit_allocated(queue, request, filler_bytes, kept) {
                Err(Rejected {
                    buf: memory,
                    error: Some(error),
                    ..
                }) if error.kind() == ErrorKind::NotOverwrite || needs_extents(&error) => {
                    buf = memory;
                }
                Err(rejected) if kept && rejected.error.is_none() => {
                    return Err(Rejected::error(no_slot(), rejected.buf));
                }
                other => return other,
            }
        }
        let error = Error::new(
            ErrorKind::Busy,
            "other threads take the blocks of the range away again and again",
        );
        Err(Rejected::error(error, buf))
    }

    /// Waits for a kept operation, which may be a write that needs blocks.
    pub(super) fn wait(&mut self, kept: OperationToken) -> Result<Ended> {
        let mut idle = 0;
        loop {
            if let Some(ended) = self.core.look_after(kept, &mut idle)? {
                return Ok(ended);
            }
            self.end_writes();
        }
    }

    /// Changes the files of writes whose data is on the device. Returns how many there were.
    pub(super) fn end_writes(&mut self) -> usize {
        if !self.core.direct.has_written() {
            return 0;
        }
        let volume = Arc::clone(&self.volume);
        end_writes(&volume, &mut self.core)
    }

    /// Frees the blocks past the ends of closed files that were allocated for them to grow. They
    /// are legal where they are; a failure is only logged.
    pub(super) fn free_spare(&mut self) {
        let volume = Arc::clone(&self.volume);
        for id in volume.inodes.take_spare() {
            if let Err(error) = free_spare(&volume, self, id) {
                note_spare_left(&volume, &error);
            }
        }
    }

    /// After an operation found no space: frees the blocks that files, open ones too, have past
    /// their ends for them to grow, as xfs_blockgc_free_space(). The caller has locked the space of
    /// no file, and tries again once. Waits for operations on other files, for a short while each.
    #[cold]
    pub(super) fn free_all_spare(&mut self) {
        self.free_spare();
        let volume = Arc::clone(&self.volume);
        for inode in volume.inodes.with_spare() {
            // A thread that has the space of the file may wait for this one.
            let Some(_one_at_a_time) = lock_space_in(self, &inode, TRIM_PATIENCE) else {
                continue;
            };
            // Before it is trimmed: blocks that are allocated from now on are noted again.
            inode.take_spare();
            if let Err(error) = trim(&volume, self, &inode) {
                volume.inodes.keep_spare(&inode);
                note_spare_left(&volume, &error);
            }
        }
    }

    /// Runs an operation that locks the space of a file itself. Where it finds no space it is
    /// repeated once, when blocks that files have in reserve were freed.
    pub(super) fn with_reserves<T>(
        &mut self,
        mut operation: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        match operation(self) {
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                self.free_all_spare();
                operation(self)
            }
            result => result,
        }
    }

    /// Before a write with `dsync` ends: makes durable what other writes changed of the file so
    /// that this one could overwrite it.
    pub(super) fn log_file(&mut self, file: &FileShared) -> Result<()> {
        match file.inode.newest_change() {
            Some(ticket) => self.volume.fs.force(&mut self.core, ticket),
            None => Ok(()),
        }
    }
}

impl Drop for Io {
    /// Waits for requests in flight, and ends writes that needed blocks: what was completed on the
    /// device is in the file.
    fn drop(&mut self) {
        if self.core.direct.outstanding() == 0 {
            return;
        }
        self.core.poll_to_end();
        self.end_writes();
    }
}

/// Tells of blocks in reserve that could not be freed.
#[cold]
fn note_spare_left(volume: &VolumeShared, error: &Error) {
    tracing::warn!(
        target_name = &*volume.target.name,
        %error,
        "blocks past the end of a file, which were allocated for it to grow, could not be freed: they stay"
    );
}

/// A write whose data is on the device.
type NotedWrite = WrittenData<Arc<FileShared>>;

fn end_writes(volume: &VolumeShared, core: &mut IoCore) -> usize {
    let Some(first) = core.direct.next_written() else {
        return 0;
    };
    let mut durable = Vec::new();
    if !core.direct.has_written() && !first.dsync {
        end_group(volume, core, std::slice::from_ref(&first), &mut durable);
        return 1;
    }
    let mut written: Vec<NotedWrite> = vec![first];
    written.extend(std::iter::from_fn(|| core.direct.next_written()));
    let count = written.len();
    written.sort_unstable_by_key(|write| (write.source.id, write.range.start));
    // Those that lie side by side in a file are one change of it.
    let is_one = |write: &NotedWrite, next: &NotedWrite| {
        next.source.id == write.source.id && next.range.start == write.range.end
    };
    let mut last = None;
    for group in written.chunk_by(is_one) {
        let ticket = end_group(volume, core, group, &mut durable);
        last = last.max(ticket);
    }
    if let Some(ticket) = last.filter(|_| !durable.is_empty()) {
        let forced = volume.fs.force(core, ticket);
        for operation in durable {
            let result = match &forced {
                Ok(()) => Ok(()),
                Err(error) => Err(Error::new(error.kind(), error.to_string())),
            };
            core.direct.end_written(operation, result);
        }
    }
    count
}

/// Changes a file whose writes lie side by side. Those that are to be durable are left in
/// `durable`, the others end. Returns the newest transaction.
fn end_group(
    volume: &VolumeShared,
    core: &mut IoCore,
    group: &[NotedWrite],
    durable: &mut Vec<OperationToken>,
) -> Option<CommitTicket> {
    let ([first, ..], [.., last]) = (group, group) else {
        return None;
    };
    let range = first.range.start..last.range.end;
    match note_written(&volume.fs, core, &first.source.inode, &range) {
        Ok(ticket) => {
            for write in group {
                match write.dsync {
                    true => durable.push(write.operation),
                    false => core.direct.end_written(write.operation, Ok(())),
                }
            }
            Some(ticket)
        }
        Err(error) if group.len() == 1 => {
            core.direct.end_written(first.operation, Err(error));
            None
        }
        // Each by itself: there may be space for some of them.
        Err(_) => group
            .iter()
            .filter_map(|write| end_group(volume, core, std::slice::from_ref(write), durable))
            .max(),
    }
}

/// Frees the blocks past the end of a file that is closed.
fn free_spare(volume: &Arc<VolumeShared>, io: &mut Io, id: InodeId) -> Result<()> {
    let read = volume.fs.read_inode(&mut io.core, id.ino)?;
    if read.generation != id.generation {
        return Ok(());
    }
    let inode = volume.core_inode(io, &read)?;
    if inode.users().load(Relaxed) > 0 {
        // It was opened again, and may grow.
        volume.inodes.keep_spare(&inode);
        return Ok(());
    }
    let _one_at_a_time = lock_space(io, &inode);
    trim(volume, io, &inode)
}

/// Frees the blocks that a file has past its end for it to grow, while its space is locked, unless
/// operations that may use them stay in flight. Those of the calling thread go on meanwhile.
fn trim(volume: &VolumeShared, io: &mut Io, inode: &CoreInode) -> Result<()> {
    let end = inode.size_bytes();
    let block = u64::from(volume.block_bytes()).max(1);
    let number = inode.begin_change(MapChange {
        frozen: 0..0,
        gone: end.next_multiple_of(block)..u64::MAX,
    });
    let freed = match wait_quiet(io, inode, number, TRIM_PATIENCE) {
        true => volume
            .fs
            .free_spare(&mut io.core, inode.id(), inode.size_bytes()),
        false => {
            volume.inodes.keep_spare(inode);
            Ok(())
        }
    };
    let reread = volume.reread(io, inode);
    freed.and(reread)
}

impl File {
    /// Has blocks allocated for all of a range that is going to be written. They stay while the
    /// space of the file is locked.
    pub(super) fn make_room(&self, io: &mut Io, range: &Range<u64>) -> Result<ExclusiveSpace<'_>> {
        let (volume, inode) = (&self.volume, self.shared.inode.core());
        if let Err(error) = volume.fs.check_changeable() {
            return Err(Error::new(
                ErrorKind::NotOverwrite,
                format!("the write needs blocks: {}", error.detail()),
            ));
        }
        let block = u64::from(volume.block_bytes()).max(1);
        let space = lock_space(io, inode);
        if !inode.is_longer_in_core() && self.has_room(io, range, block)? {
            return Ok(space);
        }
        drop(space);
        io.free_spare();
        let mut is_last = false;
        loop {
            let space = lock_space(io, inode);
            self.write_pages_back(io, range)?;
            let Err(error) = self.allocate_room(io, inode, range, block) else {
                return Ok(space);
            };
            // A part of the blocks may have been allocated.
            inode.note_spare();
            if is_last || error.kind() != ErrorKind::NoSpace {
                return Err(error);
            }
            is_last = true;
            drop(space);
            io.free_all_spare();
        }
    }

    /// Writes back what the page cache has of the blocks that a direct write begins or ends in, and
    /// of those between the end of the file on disk and the write.
    fn write_pages_back(&self, io: &mut Io, range: &Range<u64>) -> Result<()> {
        let inode = self.shared.inode.core();
        let Some(pages) = inode.pages().filter(|pages| pages.may_be_dirty()) else {
            return Ok(());
        };
        let whole = match inode.is_longer_in_core() {
            true => 0..u64::MAX,
            // With the last block of the file, of which a part may be zeroed.
            false => range.start.min(inode.size_bytes().saturating_sub(1))..range.end,
        };
        let whole = outward(&whole, pages.whole_block_bytes());
        let (buffered, mut ops) = io.cached(inode)?;
        buffered.write_back(pages, &mut ops, whole)
    }

    /// Whether the file has the blocks, and nothing is to be zeroed.
    fn has_room(&self, io: &mut Io, range: &Range<u64>, block: u64) -> Result<bool> {
        let inode = &self.shared.inode;
        let whole = outward(range, block);
        self.volume.load_locked(&mut io.core, inode, &whole)?;
        let (map, _) = self.shared.inode.maps().now();
        let is_whole = range.start.is_multiple_of(block) && range.end.is_multiple_of(block);
        if is_whole && range.start <= map.size_bytes() && map.is_written(range) {
            return Ok(true);
        }
        map.check_unshared(range)?;
        let size = map.size_bytes();
        let is_gap = range.start > size && !size.is_multiple_of(block);
        Ok(!is_gap && map.is_allocated(range, block))
    }

    fn allocate_room(
        &self,
        io: &mut Io,
        inode: &CoreInode,
        range: &Range<u64>,
        block: u64,
    ) -> Result<()> {
        let volume = &self.volume;
        if self.has_room(io, range, block)? {
            return Ok(());
        }
        volume.is_written.store(true, Relaxed);
        let start = range.start.min(inode.size_bytes());
        let affected = outward(&(start..range.end), block);
        for is_alone in [false, true] {
            if is_alone {
                let number = inode.begin_change(MapChange {
                    frozen: affected.clone(),
                    gone: 0..0,
                });
                let quiet = self.await_quiet(io, number);
                // Pages that were mapped before; those that are not yet wait for the change.
                if let Err(error) = quiet.and_then(|()| await_writeback(inode)) {
                    volume.reread(io, inode)?;
                    return Err(error);
                }
            }
            let (core, id) = (&mut io.core, inode.id());
            let allocated = volume.fs.allocate_for_write(core, id, range, is_alone);
            // Whether all of it or a part.
            let updated = inode.update(is_alone, || volume.fs.file_state(core, id, &affected));
            let allocated = allocated?;
            updated?;
            if let Some(has_spare) = allocated {
                if has_spare {
                    inode.note_spare();
                }
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            "the blocks of the range could not be made ready",
        ))
    }
}

/// Waits for pages of a file that are written back now.
fn await_writeback(inode: &CoreInode) -> Result<()> {
    match inode.pages().is_none_or(FileCache::await_writeback) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Timeout,
            "another thread writes cached pages of the file back, and does not get on",
        )),
    }
}

//! Length and space of an open file: ftruncate(2) and fallocate(2).
//!
//! The map of the file first loses the blocks that are going to be freed, and those that are
//! changed otherwise are frozen: reads go on, writes wait. Operations in flight are waited for. So
//! no read or write meets blocks that are freed, and no write a block that is zeroed in part or
//! moved.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::clock::now;
use super::core::IoCore;
use super::inodes::CoreInode;
use super::shared::VolumeShared;
use super::space_wait::{lock_space, wait_quiet};
use super::{File, Io, Metadata, cached};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::format::inode::InodeTimestamp;
use crate::xfs::{Fs, Ino, InodeId, MapChange};

impl File {
    /// Sets the length of the file, as ftruncate(2) and [`std::fs::File::set_len`]: blocks behind
    /// the new end are freed, a longer file has a hole there. In memory when this returns, and
    /// durable after a sync. Waits for direct I/O in flight behind the lower of both ends.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a file that was not opened for writing, or an impossible
    /// length; [`ErrorKind::NotOverwrite`] where the block of the end is shared with another file
    /// and would have to be zeroed in part; [`ErrorKind::ReadOnly`] where metadata may not be
    /// changed; [`ErrorKind::Busy`] when I/O in flight does not end; those of the device.
    ///
    /// ```no_run
    /// # use xtent::volume::{OpenOptions, Volume};
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let file = OpenOptions::new().write(true).open(&volume, &mut io, "/data")?;
    /// file.set_len(&mut io, 4096)?;
    /// file.sync_all(&mut io)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_len(&self, io: &mut Io, len_bytes: u64) -> Result<()> {
        let old_len = Cell::new(0);
        let affected = |len: u64| {
            old_len.set(len);
            Affected {
                frozen: len.min(len_bytes)..u64::MAX,
                gone: len_bytes..u64::MAX,
                new_len: Some(len_bytes),
            }
        };
        self.change_space(io, "set length", affected, |fs, core, id, now| {
            // The page cache may have been longer than the disk: blocks of what it had go as well.
            let was_longer = (self.shared.inode.disk_bytes()..old_len.get()).contains(&len_bytes);
            fs.set_len(core, id, len_bytes, now)?;
            match was_longer {
                true => fs.set_len(core, id, len_bytes, now),
                false => Ok(()),
            }
        })
    }

    /// Allocates blocks for the holes of a range, as fallocate(2): they read as zeroes, and writes
    /// to them will not run out of space. A range behind the end makes the file longer, unless
    /// `keep_size` says that it stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: a part of the range may have blocks then, and the length is as
    /// before. Otherwise as [`File::set_len`].
    pub fn allocate(&self, io: &mut Io, range: Range<u64>, keep_size: bool) -> Result<()> {
        let affected = |len: u64| Affected {
            frozen: len..u64::MAX,
            gone: 0..0,
            new_len: None,
        };
        self.change_space(io, "allocate", affected, |fs, core, id, now| {
            fs.allocate_range(core, id, range.clone(), keep_size, now)
        })
    }

    /// Frees the blocks of a range and zeroes those that it covers in part, as fallocate(2) with
    /// `FALLOC_FL_PUNCH_HOLE`. The length stays.
    ///
    /// # Errors
    /// As [`File::set_len`].
    pub fn punch_hole(&self, io: &mut Io, range: Range<u64>) -> Result<()> {
        let affected = Affected {
            frozen: range.clone(),
            gone: range.clone(),
            new_len: None,
        };
        self.change_space(
            io,
            "punch a hole",
            |_| affected.clone(),
            |fs, core, id, now| fs.punch_hole(core, id, range.clone(), now),
        )
    }

    /// Makes a range read as zeroes, with blocks for all of it, as fallocate(2) with
    /// `FALLOC_FL_ZERO_RANGE`. A range behind the end makes the file longer, unless `keep_size`
    /// says that it stays as it is.
    ///
    /// # Errors
    /// As [`File::allocate`].
    pub fn zero_range(&self, io: &mut Io, range: Range<u64>, keep_size: bool) -> Result<()> {
        let (start, gone) = (range.start, range.clone());
        let affected = |len: u64| Affected {
            frozen: len.min(start)..u64::MAX,
            gone: gone.clone(),
            new_len: None,
        };
        self.change_space(io, "zero a range", affected, |fs, core, id, now| {
            fs.zero_range(core, id, range.clone(), keep_size, now)
        })
    }

    /// Removes a range from the file, as fallocate(2) with `FALLOC_FL_COLLAPSE_RANGE`: the data
    /// behind it moves to its place. After a crash half-way a part may have moved, as with the
    /// kernel.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a range that is not of whole filesystem blocks, or not
    /// before the end of the file; otherwise as [`File::set_len`].
    pub fn collapse_range(&self, io: &mut Io, range: Range<u64>) -> Result<()> {
        let affected = Affected {
            frozen: range.start..u64::MAX,
            gone: range.clone(),
            new_len: None,
        };
        self.move_blocks(io, "collapse a range", affected, |fs, core, id, now| {
            fs.collapse_range(core, id, range, now)
        })
    }

    /// Makes a hole of a range, as fallocate(2) with `FALLOC_FL_INSERT_RANGE`: the data from its
    /// start on moves behind it. After a crash half-way a part may have moved, as with the kernel.
    ///
    /// # Errors
    /// As [`File::collapse_range`].
    pub fn insert_range(&self, io: &mut Io, range: Range<u64>) -> Result<()> {
        let affected = Affected {
            frozen: range.start..u64::MAX,
            gone: 0..0,
            new_len: None,
        };
        self.move_blocks(io, "insert a range", affected, |fs, core, id, now| {
            fs.insert_range(core, id, range, now)
        })
    }

    /// Runs an operation that changes blocks; `affected` says which bytes, for a file of so many.
    /// Without space it is repeated once, when blocks that files have in reserve were freed.
    fn change_space(
        &self,
        io: &mut Io,
        operation: &'static str,
        affected: impl Fn(u64) -> Affected,
        change: impl Fn(&Fs, &mut IoCore, InodeId, InodeTimestamp) -> Result<()>,
    ) -> Result<()> {
        self.check_change(io)
            .and_then(|()| io.with_reserves(|io| self.change_blocks(io, &affected, &change)))
            .map_err(|error| self.explain(error, operation, 0))
    }

    /// As [`File::change_space`], of an operation that moves blocks: it is not repeated, for some
    /// may have been moved.
    fn move_blocks(
        &self,
        io: &mut Io,
        operation: &'static str,
        affected: Affected,
        change: impl FnOnce(&Fs, &mut IoCore, InodeId, InodeTimestamp) -> Result<()>,
    ) -> Result<()> {
        self.check_change(io)
            .and_then(|()| self.change_blocks(io, |_| affected, change))
            .map_err(|error| self.explain(error, operation, 0))
    }

    pub(super) fn check_change(&self, io: &Io) -> Result<()> {
        io.check_write(self)?;
        self.volume.check_writable()
    }

    fn change_blocks(
        &self,
        io: &mut Io,
        affected: impl FnOnce(u64) -> Affected,
        change: impl FnOnce(&Fs, &mut IoCore, InodeId, InodeTimestamp) -> Result<()>,
    ) -> Result<()> {
        let inode = &self.shared.inode;
        let _one_at_a_time = lock_space(io, inode);
        let block = u64::from(self.volume.block_bytes()).max(1);
        let affected = affected(inode.size_bytes());
        let new_len = affected.new_len;
        self.prepare_change(io, new_len)?;
        self.change_locked(io, affected.in_blocks(block), new_len, change)
    }

    /// Before the space of the file is changed, and before anything is given up for that: checks
    /// that it may be, takes privileges away and notes marked times.
    pub(super) fn prepare_change(&self, io: &mut Io, new_len: Option<u64>) -> Result<()> {
        let (volume, inode) = (&self.volume, &self.shared.inode);
        volume.is_written.store(true, Relaxed);
        volume.fs.check_change(&mut io.core, inode.id(), new_len)?;
        io.remove_privileges(inode)?;
        volume.note_times(&mut io.core, inode)
    }

    /// Runs a change of blocks while the space of the file is locked: nothing of what it changes is
    /// in flight or cached then, and nothing that was read from it before is cached afterwards.
    pub(super) fn change_locked(
        &self,
        io: &mut Io,
        map_change: MapChange,
        new_len: Option<u64>,
        change: impl FnOnce(&Fs, &mut IoCore, InodeId, InodeTimestamp) -> Result<()>,
    ) -> Result<()> {
        let (volume, inode) = (&self.volume, &self.shared.inode);
        let frozen = map_change.frozen.clone();
        cached::clear_pages(io, inode.core(), &frozen, new_len)?;
        let number = inode.begin_change(map_change);
        let quiet = self.await_quiet(io, number);
        let changed = quiet.and_then(|()| change(&volume.fs, &mut io.core, inode.id(), now()));
        // Whether it was changed or not: the file is as the filesystem has it.
        let reread = volume.reread(io, inode);
        let settled = cached::settle_pages(inode, &frozen);
        changed.and(reread).and(settled)
    }

    /// Waits until nothing is in flight that began before the map was changed.
    pub(super) fn await_quiet(&self, io: &mut Io, number: u64) -> Result<()> {
        let patience = io.core.patience();
        match wait_quiet(io, &self.shared.inode, number, patience) {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Busy,
                "reads or writes of the range are in flight, and do not end",
            )),
        }
    }
}

/// Bytes that an operation changes.
#[derive(Debug, Clone)]
struct Affected {
    /// They can be read meanwhile.
    frozen: Range<u64>,
    /// Of these, the ones that are freed.
    gone: Range<u64>,
    /// The length that the file gets, where pages behind it need not be written back.
    new_len: Option<u64>,
}

impl Affected {
    /// All blocks that have any of the bytes; and those to be freed, as a whole.
    fn in_blocks(&self, block: u64) -> MapChange {
        let up = |at: u64| at.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        let down = |at: u64| match at {
            u64::MAX => u64::MAX,
            at => at - at % block,
        };
        let start = up(self.gone.start);
        MapChange {
            frozen: down(self.frozen.start)..up(self.frozen.end),
            gone: start..down(self.gone.end).max(start),
        }
    }
}

impl VolumeShared {
    /// Takes metadata and map of a file from the filesystem again, while its space is locked.
    pub(super) fn reread(&self, io: &mut Io, inode: &CoreInode) -> Result<()> {
        inode.read_again(|| {
            let read = self.fs.read_inode(&mut io.core, Ino(inode.ino))?;
            if read.generation != inode.generation {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "the file was removed meanwhile",
                ));
            }
            // Of a file that is open for writing it stays known.
            let knew_sharing = read.may_share() && !inode.maps().now().0.needs_sharing();
            let map = if knew_sharing {
                let map = self.fs.file_map(&mut io.core, &read)?;
                self.fs.learn_sharing(&mut io.core, &map)?;
                map
            } else {
                self.fs.file_map_at_open(&mut io.core, &read)?
            };
            Ok((Metadata::of(&read, self.block_bytes()), map))
        })
    }
}

//! Length and space of files: the kernel's xfs_setattr_size() and the modes of fallocate(2) that
//! leave data where it is.
//!
//! An operation on many extents is a chain of transactions. After each of them the filesystem is
//! consistent; blocks behind the end of a file, which a crash may leave, are legal and belong to
//! it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::alloc::{self, AllocRequest, RmapOwner};
use super::super::bmap::{self, ForkId};
use super::super::extents::{Extent, FoundExtent};
use super::super::format::btree::MAX_EXTENT_BLOCKS;
use super::super::format::inode::{self as layout, InodeCore, InodeTimestamp};
use super::super::geometry::{FsBlock, Geometry};
use super::super::overwrite::{PROTECTED, check_flags};
use super::super::trans::Trans;
use super::super::tree::ForkKind;
use super::super::{Fs, MetaIo};
use super::core::{InodeId, changed_core, core_of, logged_core_in};
use super::hint::{self, hint_of};
use crate::error::{Error, ErrorKind, Result};

/// Extents that one transaction of a chain adds, removes or moves at most. Each changes the paths
/// to its records in up to five btrees; a checkpoint of several such transactions fits into the
/// smallest log.
pub(super) const MOST_EXTENTS: usize = 4;

impl Fs {
    /// Sets the length of a file, as ftruncate(2). Blocks behind the new end are freed, also those
    /// that were allocated there, unless the file grows: then it has a hole there. In memory only,
    /// until [`Fs::sync`], but for zeroes in the block of the end. No data of the file may be in
    /// flight or cached from the lower of both ends on.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] for an immutable or append-only file;
    /// [`ErrorKind::InvalidInput`] for an impossible length, or for other than ordinary files;
    /// [`ErrorKind::NotOverwrite`] where the block of the end is shared and would have to be zeroed
    /// in part; [`ErrorKind::NoSpace`] where a btree has to grow for that and cannot: then the file
    /// has the new length, and some of the blocks behind it; [`ErrorKind::ReadOnly`] where metadata
    /// may not be changed; those of the device.
    pub fn set_len(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        len_bytes: u64,
        now: InodeTimestamp,
    ) -> Result<()> {
        let core = self.changeable(io, file, Change::Any)?;
        check_len(len_bytes)?;
        let old = core.size.get();
        match len_bytes < old {
            true => self.zero_bytes(io, file, len_bytes..self.block_end(len_bytes))?,
            false => self.hide_behind_end(io, file, old..len_bytes)?,
        }
        self.note_size(io, file, Some(len_bytes), now)?;
        // With the length as it was, too: blocks that were allocated behind the end.
        if len_bytes <= old {
            let first = self.blocks_for(len_bytes);
            self.unmap_all(io, file, first..self.geometry().limit_blocks())?;
        }
        Ok(())
    }

    /// Allocates blocks for the holes of a range, as fallocate(2) without a mode, or with
    /// `FALLOC_FL_KEEP_SIZE`. They read as zeroes. Without `keep_size` a range behind the end makes
    /// the file longer.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: then blocks for a part of the range may have been allocated, and the
    /// length is as before. Otherwise as [`Fs::set_len`].
    pub fn allocate_range(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: Range<u64>,
        keep_size: bool,
        now: InodeTimestamp,
    ) -> Result<()> {
        let core = self.changeable(io, file, Change::Grow)?;
        check_range(&range)?;
        let blocks = self.outer_blocks(&range);
        self.allocate_blocks(io, file, blocks)?;
        self.note_allocated(io, file, &core, &range, keep_size, now)
    }

    /// Frees the blocks of a range, and zeroes those that it covers in part, as fallocate(2) with
    /// `FALLOC_FL_PUNCH_HOLE`. The length stays. No data of the range may be in flight or cached.
    ///
    /// # Errors
    /// As [`Fs::set_len`]. Without space the end of the range may be a hole already.
    pub fn punch_hole(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: Range<u64>,
        now: InodeTimestamp,
    ) -> Result<()> {
        self.changeable(io, file, Change::Any)?;
        check_range(&range)?;
        self.note_size(io, file, None, now)?;
        self.punch(io, file, &range)
    }

    /// Makes a range read as zeroes, with blocks for all of it, as fallocate(2) with
    /// `FALLOC_FL_ZERO_RANGE`. Without `keep_size` a range behind the end makes the file longer. No
    /// data of the range may be in flight or cached.
    ///
    /// # Errors
    /// As [`Fs::allocate_range`]. Without space the end of the range may read as zeroes already.
    pub fn zero_range(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: Range<u64>,
        keep_size: bool,
        now: InodeTimestamp,
    ) -> Result<()> {
        let core = self.changeable(io, file, Change::Any)?;
        check_range(&range)?;
        self.note_size(io, file, None, now)?;
        self.punch(io, file, &range)?;
        self.allocate_blocks(io, file, self.outer_blocks(&range))?;
        self.note_allocated(io, file, &core, &range, keep_size, now)
    }

    /// Frees whole blocks of a range and zeroes the rest of it.
    fn punch(&self, io: &mut impl MetaIo, file: InodeId, range: &Range<u64>) -> Result<()> {
        let first = self.blocks_for(range.start);
        let end = range.end >> self.geometry().block_log;
        if first >= end {
            return self.zero_bytes(io, file, range.clone());
        }
        let geometry = self.geometry();
        self.zero_bytes(io, file, range.start..geometry.bytes(first))?;
        self.zero_bytes(io, file, geometry.bytes(end)..range.end)?;
        self.unmap_all(io, file, first..end)
    }

    /// After blocks were allocated: the end of the file, and the flag that keeps blocks behind it.
    fn note_allocated(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        core: &InodeCore,
        range: &Range<u64>,
        keep_size: bool,
        now: InodeTimestamp,
    ) -> Result<()> {
        let old = core.size.get();
        let grows = !keep_size && range.end > old;
        if grows {
            self.hide_behind_end(io, file, old..range.end)?;
        }
        self.transact(io, |trans| {
            let core = set_size(trans, file, grows.then_some(range.end), now)?;
            core.flags = (core.flags.get() | layout::FLAG_PREALLOCATED).into();
            Ok(())
        })?;
        Ok(())
    }

    /// [`set_size`] in a transaction of its own.
    pub(super) fn note_size(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        len_bytes: Option<u64>,
        now: InodeTimestamp,
    ) -> Result<()> {
        let set = |trans: &mut Trans<'_>| set_size(trans, file, len_bytes, now).map(|_| ());
        self.transact(io, set).map(|_| ())
    }

    /// The core of a file that may be changed so.
    pub(super) fn changeable(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        change: Change,
    ) -> Result<InodeCore> {
        let core = self.look(io, |trans| core_of(trans, file))?;
        let mode = core.mode.get() & layout::S_IFMT;
        if mode != layout::S_IFREG || self.is_internal(file.ino) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{} is no ordinary file", file.ino),
            ));
        }
        let flags = core.flags.get();
        match change {
            Change::Grow => check_flags(flags, &[layout::FLAG_IMMUTABLE])?,
            Change::Any => check_flags(flags, &PROTECTED)?,
        }
        if flags & layout::FLAG_REALTIME != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "files of the realtime section are not changed",
            ));
        }
        Ok(core)
    }

    /// Checks that space and length of a file may be changed, to `new_len` where there is one.
    ///
    /// # Errors
    /// As [`Fs::set_len`].
    pub fn check_change(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        new_len: Option<u64>,
    ) -> Result<()> {
        new_len.map_or(Ok(()), check_len)?;
        let change = match new_len {
            Some(_) => Change::Any,
            None => Change::Grow,
        };
        self.changeable(io, file, change).map(drop)
    }

    /// Checks the length of a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it is more than a file can have.
    pub fn check_file_len(&self, len_bytes: u64) -> Result<()> {
        check_len(len_bytes)
    }

    /// Frees all blocks of a range of the file, the last first.
    pub(super) fn unmap_all(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        blocks: Range<u64>,
    ) -> Result<()> {
        self.in_parts(io, file, blocks, |trans, rest| {
            let id = ForkId::data(file.ino);
            Ok(bmap::unmap(trans, id, rest, MOST_EXTENTS)?.rest)
        })
    }

    /// Works on a range of blocks of the file in as many transactions as that takes: `part` returns
    /// the rest of the range.
    pub(super) fn in_parts(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        blocks: Range<u64>,
        mut part: impl FnMut(&mut Trans<'_>, Range<u64>) -> Result<Range<u64>>,
    ) -> Result<()> {
        let mut rest = blocks;
        while !rest.is_empty() {
            (rest, _) = self.transact(io, |trans| {
                core_of(trans, file)?;
                part(trans, rest.clone())
            })?;
        }
        Ok(())
    }

    fn allocate_blocks(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        blocks: Range<u64>,
    ) -> Result<()> {
        let core = self.look(io, |trans| core_of(trans, file))?;
        let wanted = blocks.end.saturating_sub(blocks.start);
        self.check_free(io, wanted.saturating_sub(core.nblocks.get()))?;
        self.fill_unwritten(io, file, blocks, hint_of(&core))
    }

    /// Checks that so many blocks are free, before any is allocated where it cannot end well.
    pub(super) fn check_free(&self, io: &mut impl MetaIo, wanted: u64) -> Result<()> {
        let free = self.look(io, |trans| Ok(alloc::count_space(trans)?.free))?;
        if wanted <= free {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!("no space left on the filesystem: {wanted} blocks are wanted, {free} are free"),
        ))
    }

    /// Allocates unwritten blocks for the holes of a range.
    pub(super) fn fill_unwritten(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        blocks: Range<u64>,
        hint: Option<u64>,
    ) -> Result<()> {
        self.in_parts(io, file, blocks, |trans, rest| {
            let fill = HoleFill {
                blocks: rest,
                spare: 0,
                unwritten: true,
                hint,
            };
            Ok(allocate_some(trans, file, &fill)?..fill.blocks.end)
        })
    }

    /// The first byte behind the block that has the byte before this one.
    pub(super) fn block_end(&self, bytes: u64) -> u64 {
        self.geometry().bytes(self.blocks_for(bytes))
    }

    /// The blocks that have any byte of a range.
    pub(super) fn outer_blocks(&self, range: &Range<u64>) -> Range<u64> {
        range.start >> self.geometry().block_log..self.blocks_for(range.end)
    }
}

/// The kind of a change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Blocks are added, the file may become longer.
    Grow,
    /// Data may go.
    Any,
}

/// Blocks to be allocated for the holes of a range.
#[derive(Debug, Clone)]
pub(super) struct HoleFill {
    pub(super) blocks: Range<u64>,
    /// Blocks behind the range that may come with its last ones.
    pub(super) spare: u64,
    pub(super) unwritten: bool,
    /// The extent size hint of the file in blocks.
    pub(super) hint: Option<u64>,
}

/// Allocates blocks for holes of a range, for a few of them. The block from which on it is to be
/// continued; it may lie behind the range.
pub(super) fn allocate_some(trans: &mut Trans<'_>, file: InodeId, fill: &HoleFill) -> Result<u64> {
    let id = ForkId::data(file.ino);
    let range = &fill.blocks;
    let mut at = range.start;
    let mut before: Option<Extent> = match at.checked_sub(1) {
        Some(last) => match bmap::lookup(trans, id, last)? {
            FoundExtent::Extent(extent) => Some(extent),
            FoundExtent::Hole { .. } => None,
        },
        None => None,
    };
    for _ in 0..MOST_EXTENTS {
        if at >= range.end {
            break;
        }
        let extent = match bmap::lookup(trans, id, at)? {
            FoundExtent::Extent(extent) => extent,
            FoundExtent::Hole {
                start_blocks,
                end_blocks,
            } => {
                let near = before.map(|extent| extent.block_at(extent.end_blocks()));
                allocate_in(trans, file, fill, (at, start_blocks..end_blocks), near)?
            }
        };
        at = extent.end_blocks();
        before = Some(extent);
    }
    Ok(at)
}

/// Allocates one extent for a hole, which has block `at`.
fn allocate_in(
    trans: &mut Trans<'_>,
    file: InodeId,
    fill: &HoleFill,
    (at, hole): (u64, Range<u64>),
    near: Option<FsBlock>,
) -> Result<Extent> {
    let limit = trans.geometry().limit_blocks();
    let end = fill.blocks.end.saturating_add(fill.spare).min(hole.end);
    let wanted = at..end.min(limit).min(at.saturating_add(MAX_EXTENT_BLOCKS));
    let aligned = match fill.hint {
        None => wanted.clone(),
        Some(hint) => hint::align(hint, &wanted, &hole),
    };
    let most = aligned.end.min(limit).saturating_sub(aligned.start);
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    let owner = |from| RmapOwner::fork(file.ino, ForkKind::Data, from, fill.unwritten);
    let request = AllocRequest {
        near,
        ..AllocRequest::new(owner(aligned.start), 1, most)
    };
    let got = alloc::allocate(trans, &request)?;
    let offset_blocks = hint::place(&aligned, &wanted, got.blocks.into());
    if offset_blocks != aligned.start {
        let (start, blocks) = (got.start, got.blocks);
        alloc::unmap_owner(trans, start, blocks, owner(aligned.start))?;
        alloc::map_owner(trans, start, blocks, owner(offset_blocks))?;
    }
    let extent = Extent {
        offset_blocks,
        start_block: got.start,
        blocks: got.blocks.into(),
        unwritten: fill.unwritten,
    };
    bmap::add(trans, ForkId::data(file.ino), &extent)?;
    Ok(extent)
}

/// Notes a change of the content, at this time where the times are to change, and of the length if
/// there is a new one.
pub(super) fn set_size_at<'t>(
    trans: &'t mut Trans<'_>,
    file: InodeId,
    len_bytes: Option<u64>,
    now: Option<InodeTimestamp>,
) -> Result<&'t mut InodeCore> {
    if let Some(now) = now {
        return set_size(trans, file, len_bytes, now);
    }
    let features = *trans.features();
    let (core, _) = logged_core_in(trans.edit_inode(file.ino)?, &features, file)?;
    if let Some(len) = len_bytes {
        core.size = len.into();
    }
    Ok(core)
}

/// Notes a change of the content, and of the length if there is a new one.
pub(super) fn set_size<'t>(
    trans: &'t mut Trans<'_>,
    file: InodeId,
    len_bytes: Option<u64>,
    now: InodeTimestamp,
) -> Result<&'t mut InodeCore> {
    let (core, bigtime) = changed_core(trans, file, now)?;
    core.mtime = now.encode(bigtime).into();
    if let Some(len) = len_bytes {
        core.size = len.into();
    }
    Ok(core)
}

pub(super) fn check_len(len_bytes: u64) -> Result<()> {
    if len_bytes <= Geometry::MAX_FILE_BYTES {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "a file of {len_bytes} bytes would be larger than the largest possible one ({} bytes)",
            Geometry::MAX_FILE_BYTES
        ),
    ))
}

pub(super) fn check_range(range: &Range<u64>) -> Result<()> {
    if range.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "the range is empty"));
    }
    check_len(range.end)
}

//! Writes to where a file has no written blocks: blocks are allocated before the data is written,
//! and the file is changed afterwards, as xfs_direct_write_iomap_begin() and
//! xfs_dio_write_end_io().
//!
//! Blocks inside the file are allocated unwritten, so that a crash before the data is there leaves
//! zeroes. Those past the end are allocated written, and more of them than are needed: they are no
//! part of the file until its size, which follows the data, says so. A size that passes blocks
//! whose data is not there makes them unwritten in the same transaction or before. Those of a file
//! with an extent size hint are unwritten anywhere.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::alloc;
use super::super::bmap::{self, ForkId};
use super::super::extents::FoundExtent;
use super::super::format::inode::{self as layout, InodeCore, InodeTimestamp};
use super::super::iomap::FileState;
use super::super::trans::{CommitTicket, Trans};
use super::super::{Fs, MetaIo};
use super::core::{InodeId, changed_core_in, core_of, logged_core_in};
use super::hint::hint_of;
use super::space::{
    Change, HoleFill, MOST_EXTENTS, allocate_some, check_len, check_range, set_size_at,
};
use crate::error::Result;

/// Least bytes that are allocated past the end of a file that grows, as the kernel's m_allocsize.
const LEAST_SPARE_BYTES: u64 = 64 << 10;
/// Most of them.
const MOST_SPARE_BYTES: u64 = 1 << 30;
/// Of the free space, the part that one file gets at most: 1 / 64.
const SPARE_SHIFT: u32 = 6;

impl Fs {
    /// Allocates blocks for a write of a range of bytes. Returns whether blocks past the end of the
    /// file were allocated that the write does not need.
    ///
    /// Where the range begins or ends inside a block that has no data of the file, that block is
    /// zeroed on the device and becomes a written one; and when it begins behind the end of the
    /// file, what the file's last block has behind the end is zeroed. For that no other write of
    /// these blocks may be in flight: where it has to be done and the caller is not alone, nothing
    /// is done, and `None` returned.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`]: then blocks for a part of the range may have been allocated.
    /// Otherwise as [`Fs::set_len`].
    pub fn allocate_for_write(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: &Range<u64>,
        is_alone: bool,
    ) -> Result<Option<bool>> {
        check_range(range)?;
        let core = self.changeable(io, file, Change::Grow)?;
        let size = core.size.get();
        if range.start > size && self.block_end(size) != size {
            if !is_alone {
                return Ok(None);
            }
            let end = self.block_end(size).min(range.start);
            self.zero_bytes(io, file, size..end)?;
        }
        let has_spare = self.fill_holes(io, file, range, size)?;
        for edge in self.edges(range) {
            if !self.has_data(io, file, edge)? {
                if !is_alone {
                    return Ok(None);
                }
                self.zero_new_block(io, file, edge)?;
            }
        }
        Ok(Some(has_spare))
    }

    /// Allocates blocks for a write of a range of bytes through a page cache, as
    /// [`Fs::allocate_for_write`]: all that has no data of the file yet must be zeroes in the
    /// cached pages, and blocks past the end as the disk has it read as zeroes.
    ///
    /// # Errors
    /// As [`Fs::allocate_for_write`].
    pub fn allocate_for_cached(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: &Range<u64>,
    ) -> Result<bool> {
        check_range(range)?;
        let core = self.changeable(io, file, Change::Grow)?;
        self.fill_holes(io, file, range, core.size.get())
    }

    /// Allocates blocks for the holes of a range of bytes. Returns whether there are more than that
    /// past the end.
    fn fill_holes(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: &Range<u64>,
        size_bytes: u64,
    ) -> Result<bool> {
        let spare = self.spare_blocks(io, size_bytes, range.end)?;
        let whole = self.outer_blocks(range);
        let mut blocks = whole.clone();
        let mut has_spare = false;
        while !blocks.is_empty() {
            let ((at, is_behind), _) = self.transact(io, |trans| {
                // Other writes may end meanwhile, and the file be longer.
                let core = core_of(trans, file)?;
                let behind = self.blocks_for(core.size.get());
                if let Some(hint) = hint_of(&core) {
                    let fill = hinted_fill(trans, file, &blocks, (hint, behind))?;
                    return Ok((allocate_some(trans, file, &fill)?, false));
                }
                let is_behind = blocks.start >= behind;
                let fill = HoleFill {
                    blocks: match is_behind {
                        true => blocks.clone(),
                        false => blocks.start..blocks.end.min(behind),
                    },
                    spare: if is_behind { spare } else { 0 },
                    unwritten: !is_behind,
                    hint: None,
                };
                Ok((allocate_some(trans, file, &fill)?, is_behind))
            })?;
            has_spare |= at > whole.end || is_behind && spare > 0;
            blocks.start = at;
        }
        Ok(has_spare)
    }

    /// Whether a block of a file has data of the file.
    fn has_data(&self, io: &mut impl MetaIo, file: InodeId, block: u64) -> Result<bool> {
        self.look(io, |trans| {
            let behind = self.blocks_for(core_of(trans, file)?.size.get());
            let found = bmap::lookup(trans, ForkId::data(file.ino), block)?;
            let is_written = matches!(found, FoundExtent::Extent(extent) if !extent.unwritten);
            Ok(is_written && block < behind)
        })
    }

    /// The blocks in which a range begins or ends, but not with them.
    fn edges(&self, range: &Range<u64>) -> impl Iterator<Item = u64> {
        let geometry = self.geometry();
        let is_inside = |at: u64| geometry.bytes(at >> geometry.block_log) != at;
        let first = is_inside(range.start).then_some(range.start >> geometry.block_log);
        let last = is_inside(range.end).then_some(range.end >> geometry.block_log);
        first
            .into_iter()
            .chain(last.filter(|last| first != Some(*last)))
    }

    /// Blocks to be allocated past the end of a file that grows: fewer where space is scarce, as
    /// xfs_iomap_prealloc_size().
    fn spare_blocks(&self, io: &mut impl MetaIo, size_bytes: u64, end_bytes: u64) -> Result<u64> {
        if end_bytes <= size_bytes {
            return Ok(0);
        }
        let free = self.look(io, |trans| Ok(alloc::count_space(trans)?.free))?;
        let bytes = end_bytes.clamp(LEAST_SPARE_BYTES, MOST_SPARE_BYTES);
        let most = (bytes >> self.geometry().block_log).min(free >> SPARE_SHIFT);
        // A quarter where less than 5 % is free, an eighth where less than 4 %, and so on.
        let percent = self.geometry().data_blocks / 100;
        let full = (1..=5).filter(|count| free < percent.saturating_mul(*count));
        let shift = match full.count() {
            0 => 0,
            count => count.saturating_add(1),
        };
        Ok(most >> shift)
    }

    /// Zeroes a block of the file on the device that has no data of it yet, and makes it a written
    /// one.
    fn zero_new_block(&self, io: &mut impl MetaIo, file: InodeId, block: u64) -> Result<()> {
        let id = ForkId::data(file.ino);
        let found = self.look(io, |trans| {
            core_of(trans, file)?;
            bmap::lookup(trans, id, block)
        })?;
        let FoundExtent::Extent(extent) = found else {
            return Ok(());
        };
        let geometry = self.geometry();
        let zeroes = vec![0; usize::try_from(geometry.block_bytes).unwrap_or(0)];
        io.write_at(geometry.block_addr(extent.block_at(block)), &zeroes)?;
        if extent.unwritten {
            self.transact(io, |trans| {
                core_of(trans, file)?;
                bmap::convert(
                    trans,
                    id,
                    block..block.saturating_add(1),
                    false,
                    MOST_EXTENTS,
                )
            })?;
        }
        Ok(())
    }

    /// Notes that a range of a file has data: its blocks become written ones, the file as long as
    /// that at least, and the time of the change is `now`, if it is to be noted: not for data of
    /// the page cache, which was changed before. The data is on the device, which may
    /// still have it in its write cache. Returns what the file has there now; the ticket is for
    /// [`Fs::force`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::NoSpace`] when the btree of the file has to grow and cannot; those of
    /// reading and of the log.
    pub fn note_written(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: &Range<u64>,
        now: Option<InodeTimestamp>,
    ) -> Result<(FileState, CommitTicket)> {
        check_range(range)?;
        let id = ForkId::data(file.ino);
        let log = self.geometry().block_log;
        let blocks = self.outer_blocks(range);
        let mut rest = blocks.clone();
        loop {
            let (state, ticket) = self.transact(io, |trans| {
                let size = core_of(trans, file)?.size.get();
                if range.start > size {
                    // Data of other writes that are in flight, or nothing at all.
                    let gap = self.blocks_for(size)..range.start >> log;
                    let left = bmap::convert(trans, id, gap, true, MOST_EXTENTS)?;
                    if !left.is_empty() {
                        return Ok(None);
                    }
                }
                let left = bmap::convert(trans, id, rest.clone(), false, MOST_EXTENTS)?;
                if !left.is_empty() {
                    rest = left;
                    return Ok(None);
                }
                let len = (range.end > size).then_some(range.end);
                let core = *set_size_at(trans, file, len, now)?;
                let first = blocks.start.min(self.blocks_for(size));
                self.state_in(trans, file, &core, first..blocks.end)
                    .map(Some)
            })?;
            if let Some(state) = state {
                return Ok((state, ticket));
            }
        }
    }

    /// As [`Fs::note_written`], for a range that has written blocks of the file already and begins
    /// inside of it or at its end: the length and the times alone. What it returns has no blocks.
    ///
    /// # Errors
    /// As [`Fs::note_written`].
    pub fn note_grown(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        end_bytes: u64,
        now: Option<InodeTimestamp>,
    ) -> Result<(FileState, CommitTicket)> {
        check_len(end_bytes)?;
        self.transact_on_inode(io, file.ino, |raw, features| {
            let core = match now {
                Some(now) => {
                    let (core, bigtime) = changed_core_in(raw, features, file, now)?;
                    core.mtime = now.encode(bigtime).into();
                    core
                }
                None => logged_core_in(raw, features, file)?.0,
            };
            if core.size.get() < end_bytes {
                core.size = end_bytes.into();
            }
            Ok(FileState::new(self.geometry(), core, &(0..0), &[]))
        })
    }

    /// What a file has now in a range of bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when it is not the same file any more; those of reading.
    pub fn file_state(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: &Range<u64>,
    ) -> Result<FileState> {
        let blocks = self.outer_blocks(range);
        self.look(io, |trans| {
            let core = core_of(trans, file)?;
            // What may have been allocated around it.
            let around = hint_of(&core).map_or(0, |hint| hint.saturating_mul(2));
            let end = blocks.end.saturating_add(around);
            let blocks =
                blocks.start.saturating_sub(around)..end.min(self.geometry().limit_blocks());
            self.state_in(trans, file, &core, blocks)
        })
    }

    fn state_in(
        &self,
        trans: &mut Trans<'_>,
        file: InodeId,
        core: &InodeCore,
        blocks: Range<u64>,
    ) -> Result<FileState> {
        let extents = bmap::extents_in(trans, ForkId::data(file.ino), &blocks)?;
        Ok(FileState::new(self.geometry(), core, &blocks, &extents))
    }

    /// Frees blocks past the end of a file that were allocated for it to grow, unless they are
    /// meant to stay; the end is at `len_bytes` at least, where a page cache has more than the
    /// disk. No writes of these blocks may be in flight. As xfs_free_eofblocks().
    ///
    /// # Errors
    /// As [`Fs::set_len`].
    pub fn free_spare(&self, io: &mut impl MetaIo, file: InodeId, len_bytes: u64) -> Result<()> {
        let core = self.look(io, |trans| core_of(trans, file))?;
        let kept = layout::FLAG_PREALLOCATED | layout::FLAG_APPEND;
        if core.flags.get() & kept != 0 {
            return Ok(());
        }
        let behind = self.blocks_for(core.size.get().max(len_bytes));
        self.unmap_all(io, file, behind..self.geometry().limit_blocks())
    }

    /// Makes bytes that come into a file by a new size read as zeroes: in its last block they are
    /// zeroed, blocks behind that become unwritten.
    pub(super) fn hide_behind_end(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: Range<u64>,
    ) -> Result<()> {
        let end = self.block_end(range.start).min(range.end);
        self.zero_bytes(io, file, range.start..end)?;
        let behind = self.blocks_for(range.start)..self.blocks_for(range.end);
        self.in_parts(io, file, behind, |trans, rest| {
            bmap::convert(trans, ForkId::data(file.ino), rest, true, MOST_EXTENTS)
        })
    }
}

/// The blocks to be allocated for a write of a file with an extent size hint, whose size ends
/// before block `behind`: all of them unwritten, past its end as far as the hint goes, as
/// xfs_iomap_eof_align_last_fsb().
fn hinted_fill(
    trans: &mut Trans<'_>,
    file: InodeId,
    blocks: &Range<u64>,
    (hint, behind): (u64, u64),
) -> Result<HoleFill> {
    let aligned = blocks.end.checked_next_multiple_of(hint);
    let aligned = aligned.filter(|_| blocks.end > behind).unwrap_or(0);
    let last = bmap::last_extent(trans, ForkId::data(file.ino))?;
    let spare = match last.is_none_or(|last| aligned >= last.end_blocks()) {
        true => aligned.saturating_sub(blocks.end),
        false => 0,
    };
    Ok(HoleFill {
        blocks: blocks.clone(),
        spare,
        unwritten: true,
        hint: Some(hint),
    })
}

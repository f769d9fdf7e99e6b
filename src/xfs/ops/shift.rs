//! Data moved inside a file: fallocate(2) with `FALLOC_FL_COLLAPSE_RANGE` and
//! `FALLOC_FL_INSERT_RANGE`.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::bmap::{self, ForkId};
use super::super::format::inode::InodeTimestamp;
use super::super::{Fs, MetaIo};
use super::core::{InodeId, core_of};
use super::space::{Change, MOST_EXTENTS, check_len, check_range, set_size};
use crate::error::{Error, ErrorKind, Result};

impl Fs {
    /// Removes a range from a file: the data behind it moves to its place, and the file becomes
    /// shorter. No data from its start on may be in flight or cached. A crash may leave a part of
    /// the extents moved, as with the kernel.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a range that is not of whole blocks, or not before the end
    /// of the file; otherwise as [`Fs::set_len`]. Without space a part of the extents may have been
    /// moved, as after a crash.
    pub fn collapse_range(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: Range<u64>,
        now: InodeTimestamp,
    ) -> Result<()> {
        let core = self.changeable(io, file, Change::Any)?;
        let blocks = self.whole_blocks(&range)?;
        let old = core.size.get();
        if range.end >= old {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the range ends at or behind the end of the file ({old} bytes): truncate it"
                ),
            ));
        }
        let count = blocks.end.saturating_sub(blocks.start);
        self.note_size(io, file, None, now)?;
        // Until the size is the new one, what lies behind the end comes before it.
        let len = range.end.saturating_sub(range.start);
        self.hide_behind_end(io, file, old..old.saturating_add(len))?;
        self.unmap_all(io, file, blocks.clone())?;
        let mut next = Some(blocks.end);
        while let Some(from) = next {
            (next, _) = self.transact(io, |trans| {
                core_of(trans, file)?;
                bmap::collapse(trans, ForkId::data(file.ino), from, count, MOST_EXTENTS)
            })?;
        }
        self.note_size(io, file, Some(old.saturating_sub(len)), now)?;
        Ok(())
    }

    /// Makes a hole of a range: the data from its start on moves behind it, and the file becomes
    /// longer. Otherwise as [`Fs::collapse_range`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a range that is not of whole blocks, does not begin before
    /// the end of the file, or would make it too long; otherwise as [`Fs::collapse_range`].
    pub fn insert_range(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: Range<u64>,
        now: InodeTimestamp,
    ) -> Result<()> {
        let core = self.changeable(io, file, Change::Any)?;
        let blocks = self.whole_blocks(&range)?;
        let old = core.size.get();
        if range.start >= old {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("the range begins at or behind the end of the file ({old} bytes)"),
            ));
        }
        let len = old.saturating_add(range.end.saturating_sub(range.start));
        check_len(len)?;
        // Until all is moved, what lies behind the end comes before it.
        self.hide_behind_end(io, file, old..len)?;
        let id = ForkId::data(file.ino);
        let count = blocks.end.saturating_sub(blocks.start);
        let (last, _) = self.transact(io, |trans| {
            // Blocks behind the end are moved as well.
            let last = bmap::last_extent(trans, id)?.map_or(0, |last| last.end_blocks());
            if last.saturating_add(count) > self.geometry().limit_blocks() {
                return check_len(u64::MAX).map(|()| last);
            }
            bmap::split_at(trans, id, blocks.start)?;
            set_size(trans, file, Some(len), now)?;
            Ok(last)
        })?;
        let mut below = (last > blocks.start).then_some(last);
        while let Some(end) = below {
            (below, _) = self.transact(io, |trans| {
                core_of(trans, file)?;
                bmap::make_room(trans, id, (blocks.start, end), count, MOST_EXTENTS)
            })?;
        }
        Ok(())
    }

    fn whole_blocks(&self, range: &Range<u64>) -> Result<Range<u64>> {
        check_range(range)?;
        let geometry = self.geometry();
        let block = u64::from(geometry.block_bytes);
        let is_whole = |bytes: u64| bytes.checked_rem(block) == Some(0);
        if is_whole(range.start) && is_whole(range.end) {
            return Ok(range.start >> geometry.block_log..range.end >> geometry.block_log);
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("offset and length must be multiples of the block size ({block} bytes)"),
        ))
    }
}

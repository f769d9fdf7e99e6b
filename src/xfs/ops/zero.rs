//! Zeroes in the data of a file: where an operation covers a block in part.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::{ControlFlow, Range};

use super::super::bmap::{self, ForkId};
use super::super::extents::Extent;
use super::super::{Fs, MetaIo, corrupt};
use super::core::{InodeId, core_of};
use crate::error::{Error, ErrorKind, Result};

/// Blocks that are read and written at once.
const PIECE_BLOCKS: u64 = 64;

impl Fs {
    /// Writes zeroes over the written blocks of a range of a file, as iomap_zero_range(). Holes and
    /// unwritten blocks read as zeroes already. In place, and not durable before the next flush.
    ///
    /// # Errors
    /// [`ErrorKind::NotOverwrite`] where blocks are shared with another file; those of the device.
    pub(super) fn zero_bytes(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: Range<u64>,
    ) -> Result<()> {
        let geometry = self.geometry();
        let mut at = range.start >> geometry.block_log;
        let end = self.blocks_for(range.end);
        while !range.is_empty() && at < end {
            let next = self.look(io, |trans| {
                core_of(trans, file)?;
                bmap::next_extent(trans, ForkId::data(file.ino), at)
            })?;
            let Some(extent) = next.filter(|extent| extent.offset_blocks < end) else {
                break;
            };
            let from = extent.offset_blocks.max(at);
            let to = extent
                .end_blocks()
                .min(end)
                .min(from.saturating_add(PIECE_BLOCKS));
            if !extent.unwritten {
                self.zero_piece(io, &extent, from..to, &range)?;
            }
            at = to;
        }
        Ok(())
    }

    fn zero_piece(
        &self,
        io: &mut impl MetaIo,
        extent: &Extent,
        blocks: Range<u64>,
        range: &Range<u64>,
    ) -> Result<()> {
        let geometry = self.geometry();
        let block = extent.block_at(blocks.start);
        let count = blocks.end.saturating_sub(blocks.start);
        let addr = geometry.block_addr(block);
        let mut is_shared = false;
        self.for_each_shared(io, block, count, |_| {
            is_shared = true;
            ControlFlow::Break(())
        })?;
        let len = usize::try_from(geometry.bytes(count)).unwrap_or(usize::MAX);
        let mut content = vec![0; len];
        io.read_at(addr, &mut content)?;
        let start = geometry.bytes(blocks.start);
        let into = |pos: u64| usize::try_from(pos.saturating_sub(start)).unwrap_or(usize::MAX);
        let zeroed = into(range.start)..into(range.end).min(len);
        let part = content
            .get_mut(zeroed)
            .ok_or_else(|| corrupt(addr, "a range that does not lie in its extent"))?;
        if part.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        if is_shared {
            return Err(Error::new(
                ErrorKind::NotOverwrite,
                format!(
                    "the blocks from byte {start} are shared with another file: zeroing a part of \
                     them needs copy-on-write, which xtent cannot do yet"
                ),
            )
            .at_offset(start));
        }
        part.fill(0);
        io.write_at(addr, &content)
    }
}

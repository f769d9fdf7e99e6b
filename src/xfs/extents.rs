//! The extents of a fork: sorted, checked, searchable.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::corrupt;
use super::format::btree::BmbtRecord;
use super::geometry::{FsBlock, Geometry};
use crate::error::Result;

/// A run of a fork's blocks that lie side by side in one allocation group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block of the fork.
    pub offset_blocks: u64,
    /// First block of the filesystem.
    pub start_block: FsBlock,
    /// Length in blocks, at least 1 and less than 2^21.
    pub blocks: u64,
    /// Allocated, but reads as zeroes.
    pub unwritten: bool,
}

impl Extent {
    /// First block of the fork behind it.
    #[inline]
    pub fn end_blocks(&self) -> u64 {
        self.offset_blocks.saturating_add(self.blocks)
    }

    /// The extent of a record, checked against the geometry. `addr` is where on the device it was
    /// found, for the error.
    pub(crate) fn checked(geometry: &Geometry, record: &BmbtRecord, addr: u64) -> Result<Self> {
        let extent = Self {
            offset_blocks: record.offset_blocks(),
            start_block: FsBlock(record.start_block()),
            blocks: record.blocks(),
            unwritten: record.unwritten(),
        };
        if let Err(why) = geometry.check_extent(extent.start_block, extent.blocks) {
            return Err(corrupt(
                addr,
                format!(
                    "the extent of {} blocks at {} is {why}",
                    extent.blocks, extent.start_block
                ),
            ));
        }
        if extent.end_blocks() > geometry.limit_blocks() {
            return Err(corrupt(
                addr,
                "an extent lies beyond the largest file offset",
            ));
        }
        Ok(extent)
    }

    /// The filesystem block of a fork block inside it.
    #[inline]
    pub fn block_at(&self, offset_blocks: u64) -> FsBlock {
        let into = offset_blocks.saturating_sub(self.offset_blocks);
        FsBlock(self.start_block.0.saturating_add(into))
    }
}

/// What a lookup finds at a fork block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundExtent {
    /// The extent that covers the block.
    Extent(Extent),
    /// A hole: from the end of the extent before (or 0), to the start of the next (`u64::MAX` when
    /// there is none).
    Hole {
        /// First block of the hole.
        start_blocks: u64,
        /// First block behind the hole.
        end_blocks: u64,
    },
}

/// All extents of a fork, by offset. Every one was checked against the geometry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtentMap {
    extents: Vec<Extent>,
}

impl ExtentMap {
    /// All of them, sorted.
    pub fn as_slice(&self) -> &[Extent] {
        &self.extents
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether the fork has no block.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// The extent that covers a block, or the hole it lies in. O(log n).
    pub fn lookup(&self, offset_blocks: u64) -> FoundExtent {
        let index = self
            .extents
            .partition_point(|extent| extent.end_blocks() <= offset_blocks);
        let end_blocks = match self.extents.get(index) {
            Some(extent) if extent.offset_blocks <= offset_blocks => {
                return FoundExtent::Extent(*extent);
            }
            Some(next) => next.offset_blocks,
            None => u64::MAX,
        };
        let start_blocks = index
            .checked_sub(1)
            .and_then(|before| self.extents.get(before))
            .map_or(0, Extent::end_blocks);
        FoundExtent::Hole {
            start_blocks,
            end_blocks,
        }
    }

    /// The last extent that begins before a block.
    pub fn last_before(&self, before: u64) -> Option<Extent> {
        let index = self
            .extents
            .partition_point(|extent| extent.offset_blocks < before);
        self.extents.get(index.checked_sub(1)?).copied()
    }

    /// Appends a record, checked against the geometry and the one before. `addr` is where on the
    /// device it was found, for the error.
    pub(crate) fn push(
        &mut self,
        geometry: &Geometry,
        record: &BmbtRecord,
        addr: u64,
    ) -> Result<()> {
        let extent = Extent::checked(geometry, record, addr)?;
        if let Some(last) = self.extents.last()
            && last.end_blocks() > extent.offset_blocks
        {
            return Err(corrupt(addr, "extents overlap or are out of order"));
        }
        self.extents.push(extent);
        Ok(())
    }
}

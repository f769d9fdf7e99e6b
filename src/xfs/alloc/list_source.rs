//! The free list of a group as the source of blocks for its btrees of free space and of reverse
//! mappings.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::geometry::FsBlock;
use super::super::trans::{Trans, no_space};
use super::super::tree::BlockSource;
use super::agf::{list_give, list_take};
use super::denial::SpaceDenial;
use crate::error::Result;

/// The free list of a group.
#[derive(Debug)]
pub(super) struct ListSource {
    ag: u32,
    /// Blocks of the tree are missing in the free blocks of a user: those of free space.
    is_withheld: bool,
}

impl ListSource {
    /// For both btrees of free space.
    pub(super) fn free_space(ag: u32) -> Self {
        Self {
            ag,
            is_withheld: true,
        }
    }

    /// For the reverse mapping btree, whose space is reserved.
    pub(super) fn rmapbt(ag: u32) -> Self {
        Self {
            ag,
            is_withheld: false,
        }
    }
}

impl BlockSource for ListSource {
    fn take(&mut self, t: &mut Trans<'_>) -> Result<FsBlock> {
        if SpaceDenial::next() {
            return Err(no_space());
        }
        let block = list_take(t, self.ag)?.ok_or_else(no_space)?;
        t.withhold(self.is_withheld.into());
        Ok(t.geometry().fs_block(self.ag, block))
    }

    fn give(&mut self, t: &mut Trans<'_>, block: FsBlock) -> Result<()> {
        let (_, ag_block) = t.geometry().split(block);
        t.withhold(i64::from(self.is_withheld).saturating_neg());
        // In place the block belongs to the tree until the checkpoint is durable.
        t.note_freed(self.ag, ag_block..ag_block.saturating_add(1));
        list_give(t, self.ag, ag_block)
    }
}

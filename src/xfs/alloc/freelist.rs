//! The free list of a group is filled before its btrees are changed, so that they find blocks for
//! their splits: xfs_alloc_fix_freelist().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::format::ag::Agf;
use super::super::format::btree::MAX_LEVELS;
use super::super::trans::Trans;
use super::agf::{list_give, list_slots, list_take, read_agf};
use super::denial::SpaceDenial;
use super::rmap::{self, RmapOwner};
use super::space;
use crate::error::Result;

/// Blocks that the free list needs before an operation: two splits of each level of each btree
/// that takes its blocks from it, as xfs_alloc_min_freelist() since Linux 6.7.
pub(super) fn least_list_blocks(t: &Trans<'_>, agf: &Agf) -> u32 {
    let rmap_level = match t.features().rmapbt() {
        true => agf.rmap_level.get(),
        false => 0,
    };
    [agf.bno_level.get(), agf.cnt_level.get(), rmap_level]
        .iter()
        .map(|level| (*level).min(MAX_LEVELS).saturating_mul(2))
        .fold(0_u32, u32::saturating_add)
        .min(list_slots(t.geometry().sector_bytes))
}

/// What became of a free list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FixedList {
    /// It has what the next operation needs, as before.
    Unchanged,
    /// It has, and the free space of the group is another one.
    Changed,
    /// It has not: there is no free space left.
    Short,
}

/// Shrinks or fills the free list of a group to what the next operation needs.
pub(super) fn fix_freelist(t: &mut Trans<'_>, ag: u32) -> Result<FixedList> {
    // Each round changes the length by one at least, but for blocks that a btree gives or takes.
    let rounds = list_slots(t.geometry().sector_bytes).saturating_mul(2);
    let mut fixed = FixedList::Unchanged;
    for _ in 0..rounds {
        let agf = read_agf(t, ag)?;
        let needed = least_list_blocks(t, &agf);
        let missing = needed.saturating_sub(agf.flcount.get());
        if missing > 0 {
            if !fill(t, ag, missing)? {
                return Ok(FixedList::Short);
            }
        } else if agf.flcount.get() > needed {
            shrink(t, ag)?;
        } else {
            return Ok(fixed);
        }
        fixed = FixedList::Changed;
    }
    Ok(fixed)
}

/// Moves one free extent of at most `missing` blocks to the list; `false` when there is none.
fn fill(t: &mut Trans<'_>, ag: u32, missing: u32) -> Result<bool> {
    if SpaceDenial::next() {
        return Ok(false);
    }
    let fits = space::at_least(t, ag, missing, 0)?;
    let extent = match fits {
        Some(extent) => extent,
        None => match space::at_most(t, ag, u32::MAX, u32::MAX)? {
            Some(longest) => longest,
            None => return Ok(false),
        },
    };
    let len = extent.blocks.min(missing);
    let blocks = extent.ag_block..extent.ag_block.saturating_add(len);
    space::take(t, ag, extent, &blocks)?;
    for block in blocks.clone() {
        list_give(t, ag, block)?;
    }
    rmap::map(t, ag, &blocks, RmapOwner::AG)?;
    Ok(true)
}

/// Makes the first block of the list free.
fn shrink(t: &mut Trans<'_>, ag: u32) -> Result<()> {
    let Some(block) = list_take(t, ag)? else {
        return Ok(());
    };
    let blocks = block..block.saturating_add(1);
    rmap::unmap(t, ag, &blocks, RmapOwner::AG)?;
    space::give(t, ag, &blocks)
}

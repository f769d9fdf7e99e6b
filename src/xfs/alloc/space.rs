//! Free space of a group: both btrees and the sums of the AGF, which change together.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::format::btree::AllocRecord;
use super::super::freespace::FreeExtent;
use super::super::trans::Trans;
use super::super::tree::{self, AgTree, Bnobt, Cntbt};
use super::agf::{bad_agf, edit_agf, read_agf};
use super::list_source::ListSource;
use crate::error::Result;

impl FreeExtent {
    /// The extent of these blocks.
    pub(super) fn of_blocks(blocks: &Range<u32>) -> Self {
        Self {
            ag_block: blocks.start,
            blocks: blocks.end.saturating_sub(blocks.start),
        }
    }

    /// Its blocks.
    pub(super) fn range(self) -> Range<u32> {
        self.ag_block..self.ag_block.saturating_add(self.blocks)
    }

    fn record(self) -> AllocRecord {
        AllocRecord {
            startblock: self.ag_block.into(),
            blockcount: self.blocks.into(),
        }
    }

    /// The key of the btree by length.
    fn size_key(self) -> (u32, u32) {
        (self.blocks, self.ag_block)
    }
}

/// A record of a free space btree, checked.
fn checked(t: &Trans<'_>, ag: u32, found: Option<AllocRecord>) -> Result<Option<FreeExtent>> {
    let Some(record) = found else {
        return Ok(None);
    };
    let extent = FreeExtent {
        ag_block: record.startblock.get(),
        blocks: record.blockcount.get(),
    };
    let start = t.geometry().fs_block(ag, extent.ag_block);
    let is_inside = extent.ag_block < t.geometry().ag_length(ag);
    let checked = match is_inside {
        true => t.geometry().check_extent(start, extent.blocks.into()),
        false => Err("beyond the end of its allocation group"),
    };
    match checked {
        Ok(()) => Ok(Some(extent)),
        Err(what) => Err(bad_agf(t, ag, &format!("a free extent is {what}"))),
    }
}

/// The free extent with the greatest first block that is at most `block`.
pub(super) fn at_or_before(t: &mut Trans<'_>, ag: u32, block: u32) -> Result<Option<FreeExtent>> {
    let found = tree::find_le(t, &AgTree::<Bnobt>::new(ag), block)?;
    checked(t, ag, found)
}

/// The free extent with the least first block that is at least `block`.
pub(super) fn at_or_after(t: &mut Trans<'_>, ag: u32, block: u32) -> Result<Option<FreeExtent>> {
    let found = tree::find_ge(t, &AgTree::<Bnobt>::new(ag), block)?;
    checked(t, ag, found)
}

/// The first free extent in the order of length and block that is not before `(blocks, ag_block)`.
pub(super) fn at_least(
    t: &mut Trans<'_>,
    ag: u32,
    blocks: u32,
    ag_block: u32,
) -> Result<Option<FreeExtent>> {
    let found = tree::find_ge(t, &AgTree::<Cntbt>::new(ag), (blocks, ag_block))?;
    checked(t, ag, found)
}

/// The last free extent in the order of length and block that is not after `(blocks, ag_block)`.
pub(super) fn at_most(
    t: &mut Trans<'_>,
    ag: u32,
    blocks: u32,
    ag_block: u32,
) -> Result<Option<FreeExtent>> {
    let found = tree::find_le(t, &AgTree::<Cntbt>::new(ag), (blocks, ag_block))?;
    checked(t, ag, found)
}

/// Takes `blocks` out of the free extent `whole`, which has them, as xfs_alloc_fixup_trees().
pub(super) fn take(
    t: &mut Trans<'_>,
    ag: u32,
    whole: FreeExtent,
    blocks: &Range<u32>,
) -> Result<()> {
    let all = whole.range();
    if blocks.is_empty() || blocks.start < all.start || blocks.end > all.end {
        return Err(bad_agf(t, ag, "blocks are taken that are not free"));
    }
    let (by_block, by_length) = (AgTree::<Bnobt>::new(ag), AgTree::<Cntbt>::new(ag));
    let source = &mut ListSource::free_space(ag);
    let before = FreeExtent::of_blocks(&(all.start..blocks.start));
    let after = FreeExtent::of_blocks(&(blocks.end..all.end));
    // What stays of the extent, and what becomes another one.
    let (rest, split_off) = match before.blocks > 0 {
        true => (before, Some(after).filter(|after| after.blocks > 0)),
        false => (after, None),
    };
    if rest.blocks > 0 {
        tree::replace(t, &by_length, &whole.record(), &rest.record(), source)?;
        tree::replace(t, &by_block, &whole.record(), &rest.record(), source)?;
    } else {
        if at_or_before(t, ag, whole.ag_block)? != Some(whole) {
            let what = "its free space btrees have different extents";
            return Err(bad_agf(t, ag, what));
        }
        tree::remove(t, &by_length, whole.size_key(), source)?;
        tree::remove(t, &by_block, whole.ag_block, source)?;
    }
    if let Some(other) = split_off {
        tree::insert(t, &by_length, &other.record(), source)?;
        tree::insert(t, &by_block, &other.record(), source)?;
    }
    let taken = FreeExtent::of_blocks(blocks).blocks;
    change_sums(t, ag, |free| free.checked_sub(taken))
}

/// Makes `blocks` free, as xfs_free_ag_extent(): one extent with the free extents beside them.
pub(super) fn give(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<()> {
    let (by_block, by_length) = (AgTree::<Bnobt>::new(ag), AgTree::<Cntbt>::new(ag));
    let left = at_or_before(t, ag, blocks.start)?;
    let right = at_or_after(t, ag, blocks.start)?;
    if left.is_some_and(|left| left.range().end > blocks.start)
        || right.is_some_and(|right| right.ag_block < blocks.end)
    {
        let what = "blocks are freed that are free already";
        return Err(bad_agf(t, ag, what));
    }
    let left = left.filter(|left| left.range().end == blocks.start);
    let right = right.filter(|right| right.ag_block == blocks.end);
    let start = left.map_or(blocks.start, |left| left.ag_block);
    let end = right.map_or(blocks.end, |right| right.range().end);
    let merged = FreeExtent::of_blocks(&(start..end));
    let source = &mut ListSource::free_space(ag);
    for neighbour in [left, right].into_iter().flatten() {
        tree::remove(t, &by_length, neighbour.size_key(), source)?;
    }
    tree::insert(t, &by_length, &merged.record(), source)?;
    match (left, right) {
        (Some(left), right) => {
            if let Some(right) = right {
                tree::remove(t, &by_block, right.ag_block, source)?;
            }
            tree::update(t, &by_block, left.ag_block, &merged.record())?;
        }
        (None, Some(right)) => tree::update(t, &by_block, right.ag_block, &merged.record())?,
        (None, None) => tree::insert(t, &by_block, &merged.record(), source)?,
    }
    let given = FreeExtent::of_blocks(blocks).blocks;
    let length = t.geometry().ag_length(ag);
    change_sums(t, ag, |free| {
        free.checked_add(given).filter(|free| *free <= length)
    })
}

/// Changes `agf_freeblks` and sets `agf_longest`.
fn change_sums(t: &mut Trans<'_>, ag: u32, change: impl FnOnce(u32) -> Option<u32>) -> Result<()> {
    let longest = at_most(t, ag, u32::MAX, u32::MAX)?;
    let free = change(read_agf(t, ag)?.freeblks.get());
    let free = free.ok_or_else(|| bad_agf(t, ag, "its free blocks are not those of the btree"))?;
    edit_agf(t, ag, |agf| {
        agf.freeblks.set(free);
        agf.longest.set(longest.map_or(0, |extent| extent.blocks));
    })
}

//! Extents moved inside a file: a range is removed, or room for one is made.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::alloc;
use super::super::extents::Extent;
use super::super::trans::Trans;
use super::fork::{ForkId, bad_inode, part_of};
use super::records::{at_or_before, behind, replace, update};
use super::{blocks_of, joined, next_extent, owner_of};
use crate::error::{Error, ErrorKind, Result};

/// Makes two extents of the one that covers the block before `offset_blocks` and this block, if
/// there is one.
///
/// # Errors
/// As [`add`](super::add).
pub(in super::super) fn split_at(t: &mut Trans<'_>, id: ForkId, offset_blocks: u64) -> Result<()> {
    let found = at_or_before(t, id, offset_blocks)?;
    let across = |extent: &Extent| {
        extent.offset_blocks < offset_blocks && offset_blocks < extent.end_blocks()
    };
    match found.filter(across) {
        Some(extent) => {
            let before = part_of(&extent, extent.offset_blocks, offset_blocks);
            let after = part_of(&extent, offset_blocks, extent.end_blocks());
            replace(t, id, &[extent], &[before, after])
        }
        None => Ok(()),
    }
}

/// Moves extents towards the start of the file by `by` blocks: at most `most` from the first one
/// that does not begin before `from`. There is a hole of as many blocks before it. Returns where
/// the next transaction continues; `None` when none is left.
///
/// # Errors
/// As [`add`](super::add).
pub(in super::super) fn collapse(
    t: &mut Trans<'_>,
    id: ForkId,
    from: u64,
    by: u64,
    most: usize,
) -> Result<Option<u64>> {
    let mut next = from;
    for _ in 0..most {
        let Some(extent) = next_extent(t, id, next)? else {
            return Ok(None);
        };
        let before = match extent.offset_blocks.checked_sub(1) {
            Some(before) => at_or_before(t, id, before)?,
            None => None,
        };
        let least = before.map_or(0, |before| before.end_blocks());
        let target = extent.offset_blocks.checked_sub(by);
        let target = target.filter(|target| *target >= least && extent.offset_blocks >= next);
        let Some(offset_blocks) = target else {
            return Err(bad_inode(t, id, "extents are moved where there is no hole"));
        };
        let moved = Extent {
            offset_blocks,
            ..extent
        };
        let old: Vec<_> = before.into_iter().chain([extent]).collect();
        let new = joined(before.into_iter().chain([moved]));
        replace(t, id, &old, &new)?;
        move_owner(t, id, &extent, &moved)?;
        next = extent.end_blocks();
    }
    Ok(next_extent(t, id, next)?.map(|_| next))
}

/// Moves extents towards the end of the file by `by` blocks: at most `most`, the last first, of
/// those that begin before `below` and not before `from`, which no extent crosses. Returns the next
/// `below`; `None` when none is left.
///
/// # Errors
/// As [`add`](super::add); [`ErrorKind::InvalidInput`] when the file would be too large.
pub(in super::super) fn make_room(
    t: &mut Trans<'_>,
    id: ForkId,
    (from, below): (u64, u64),
    by: u64,
    most: usize,
) -> Result<Option<u64>> {
    let mut below = below;
    for _ in 0..most {
        let last = match below.checked_sub(1) {
            Some(last) => at_or_before(t, id, last)?,
            None => None,
        };
        let Some(extent) = last.filter(|last| last.end_blocks() > from) else {
            return Ok(None);
        };
        let offset_blocks = extent.offset_blocks.saturating_add(by);
        let moved = Extent {
            offset_blocks,
            ..extent
        };
        if moved.end_blocks() > t.geometry().limit_blocks() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the file would be larger than the largest possible one",
            ));
        }
        let next = behind(t, id, extent.offset_blocks)?;
        let is_free = next.is_none_or(|next| next.offset_blocks >= moved.end_blocks());
        if !is_free || extent.offset_blocks < from {
            return Err(bad_inode(t, id, "extents are moved where there is no hole"));
        }
        update(t, id, &extent, &moved)?;
        move_owner(t, id, &extent, &moved)?;
        below = extent.offset_blocks;
    }
    let last = match below.checked_sub(1) {
        Some(last) => at_or_before(t, id, last)?,
        None => None,
    };
    Ok(last.filter(|last| last.end_blocks() > from).map(|_| below))
}

fn move_owner(t: &mut Trans<'_>, id: ForkId, old: &Extent, new: &Extent) -> Result<()> {
    let count = blocks_of(old);
    alloc::unmap_owner(t, old.start_block, count, owner_of(id, old))?;
    alloc::map_owner(t, new.start_block, count, owner_of(id, new))
}

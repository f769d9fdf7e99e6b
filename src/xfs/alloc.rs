//! Free space: which blocks a file or a btree gets, and what becomes of those that it gives back.
//!
//! Each group has its free extents in two btrees, by block and by length, a list of free blocks for
//! the splits of these btrees (AGFL), and sums in its AGF. With the features `rmapbt` and `reflink`
//! the owners of blocks are kept, too. All of them change in one transaction, exactly as the kernel
//! changes them: free extents that touch are one extent, and so are reverse mappings and refcounts
//! that continue each other.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::corrupt;
use super::freespace::FreeExtent;
use super::geometry::FsBlock;
use super::trans::Trans;
use crate::error::Result;

mod agf;
mod allocate;
mod choose;
mod deferred;
mod denial;
mod freelist;
mod list_source;
mod refcount;
mod release;
mod reserve;
mod rmap;
mod space;
mod space_source;
mod staging;
#[cfg(test)]
mod tests;

pub(super) use allocate::{Alignment, AllocRequest, Allocated, allocate};
pub(super) use deferred::{
    Ownerless, free_logged, free_ownerless, free_staged, share, stage, unshare, unstage,
};
pub use denial::SpaceDenial;
use freelist::fix_freelist;
use release::release;
pub(super) use reserve::{Reserve, SET_ASIDE, SpaceCount, count_space};
pub(super) use rmap::RmapOwner;
pub(super) use space_source::SpaceSource;

/// The group and the blocks of an extent, checked.
fn blocks_in_group(t: &Trans<'_>, start: FsBlock, blocks: u32) -> Result<(u32, Range<u32>)> {
    let geometry = t.geometry();
    geometry
        .check_extent(start, blocks.into())
        .map_err(|what| {
            let addr = geometry.block_addr(start);
            corrupt(addr, format!("{blocks} blocks at {start} are {what}"))
        })?;
    let (ag, first) = geometry.split(start);
    Ok((ag, first..first.saturating_add(blocks)))
}

/// Frees an extent of `owner`. Blocks that other files share stay with these.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when structures contradict each other;
/// [`ErrorKind::NoSpace`](crate::ErrorKind::NoSpace) when a btree would have to grow and cannot;
/// the device's. The transaction must be dropped then.
pub(super) fn free(t: &mut Trans<'_>, start: FsBlock, blocks: u32, owner: RmapOwner) -> Result<()> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    fix_freelist(t, ag)?;
    rmap::unmap(t, ag, &range, owner)?;
    let pieces = match owner.can_share() {
        true => refcount::decrease(t, ag, &range)?,
        false => vec![range],
    };
    pieces
        .into_iter()
        .try_for_each(|piece| release(t, ag, piece))
}

/// The parts of a range of blocks of a group that are free.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the btree is broken; the device's.
pub(super) fn free_parts(
    t: &mut Trans<'_>,
    ag: u32,
    range: &Range<u32>,
) -> Result<Vec<Range<u32>>> {
    let mut parts = Vec::new();
    let mut next = match space::at_or_before(t, ag, range.start)? {
        None => space::at_or_after(t, ag, range.start)?,
        found => found,
    };
    while let Some(free) = next
        .map(FreeExtent::range)
        .filter(|free| free.start < range.end)
    {
        let part = free.start.max(range.start)..free.end.min(range.end);
        if !part.is_empty() {
            parts.push(part);
        }
        // Keys rise, so the loop ends.
        next = space::at_or_after(t, ag, free.end.max(free.start.saturating_add(1)))?;
    }
    Ok(parts)
}

/// Whether any block of an extent has several owners.
///
/// # Errors
/// As [`free`].
pub(super) fn is_any_shared(t: &mut Trans<'_>, start: FsBlock, blocks: u32) -> Result<bool> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    refcount::is_any_shared(t, ag, &range)
}

/// The last blocks of an extent of a file that one transaction can free: their refcounts are in
/// at most `most` records. All of them where no blocks are shared.
///
/// # Errors
/// As [`free`].
pub(super) fn last_freeable(
    t: &mut Trans<'_>,
    start: FsBlock,
    blocks: u32,
    most: usize,
) -> Result<u32> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    let part = refcount::last_part(t, ag, &range, most)?;
    Ok(part.end.saturating_sub(part.start))
}

/// Notes that an extent has an owner more, or has it at another offset now: for extents that move
/// inside a file. Allocation has done it.
///
/// # Errors
/// As [`free`].
pub(super) fn map_owner(
    t: &mut Trans<'_>,
    start: FsBlock,
    blocks: u32,
    owner: RmapOwner,
) -> Result<()> {
    change_owner(t, start, blocks, owner, rmap::map)
}

/// Notes that an extent has an owner less. [`free`] does it itself.
///
/// # Errors
/// As [`free`].
pub(super) fn unmap_owner(
    t: &mut Trans<'_>,
    start: FsBlock,
    blocks: u32,
    owner: RmapOwner,
) -> Result<()> {
    change_owner(t, start, blocks, owner, rmap::unmap)
}

/// Notes that an extent became written or unwritten; `owner` has the old state.
///
/// # Errors
/// As [`free`].
pub(super) fn convert_owner(
    t: &mut Trans<'_>,
    start: FsBlock,
    blocks: u32,
    owner: RmapOwner,
) -> Result<()> {
    change_owner(t, start, blocks, owner, rmap::convert)
}

fn change_owner(
    t: &mut Trans<'_>,
    start: FsBlock,
    blocks: u32,
    owner: RmapOwner,
    change: fn(&mut Trans<'_>, u32, &Range<u32>, RmapOwner) -> Result<()>,
) -> Result<()> {
    if !t.features().rmapbt() {
        return Ok(());
    }
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    fix_freelist(t, ag)?;
    change(t, ag, &range, owner)
}

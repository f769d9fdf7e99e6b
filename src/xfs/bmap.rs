//! The blocks of a fork, changed: extents added, made written or unwritten, removed, moved.
//!
//! Extents that continue each other in the file and on the device are one record where its length
//! allows that, as xfs_bmap_add_extent_hole_real() and xfs_bmap_add_extent_unwritten_real() merge
//! them. A fork has its extents as a list as long as that fits into the inode, and as a btree from
//! then on. Counters of the inode and reverse mappings change with them; the size of a file and its
//! times are for the caller.
//!
//! Changes that may be long (a file is truncated, a range is moved) are done in parts, each of
//! which is one transaction: these functions return where the next one continues.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::alloc::{self, RmapOwner};
use super::extents::{Extent, FoundExtent};
use super::format::btree::MAX_EXTENT_BLOCKS;
use super::trans::Trans;
use crate::error::{Error, ErrorKind, Result};

mod fork;
mod records;
mod remap;
mod shift;
#[cfg(test)]
mod tests;
mod unmap;

pub(super) use fork::ForkId;
pub(super) use remap::{attach, detach};
pub(super) use shift::{collapse, make_room, split_at};
pub(super) use unmap::unmap;

use fork::{bad_inode, count_blocks, part_of};
use records::{at_or_before, behind, insert, replace, update};

/// The extent that covers a block of a file, or the hole that it lies in.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when the fork is broken; the device's.
pub(super) fn lookup(t: &mut Trans<'_>, id: ForkId, offset_blocks: u64) -> Result<FoundExtent> {
    let before = at_or_before(t, id, offset_blocks)?;
    let start_blocks = match before {
        Some(extent) if extent.end_blocks() > offset_blocks => {
            return Ok(FoundExtent::Extent(extent));
        }
        Some(extent) => extent.end_blocks(),
        None => 0,
    };
    let next = behind(t, id, offset_blocks)?;
    let end_blocks = next.map_or(u64::MAX, |extent| extent.offset_blocks);
    Ok(FoundExtent::Hole {
        start_blocks,
        end_blocks,
    })
}

/// The extent that covers a block of a file, or the first one behind it.
///
/// # Errors
/// As [`lookup`].
pub(super) fn next_extent(
    t: &mut Trans<'_>,
    id: ForkId,
    offset_blocks: u64,
) -> Result<Option<Extent>> {
    match at_or_before(t, id, offset_blocks)? {
        Some(extent) if extent.end_blocks() > offset_blocks => Ok(Some(extent)),
        _ => behind(t, id, offset_blocks),
    }
}

/// The extents that have any block of a range.
///
/// # Errors
/// As [`lookup`].
pub(super) fn extents_in(
    t: &mut Trans<'_>,
    id: ForkId,
    blocks: &Range<u64>,
) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = blocks.start;
    while at < blocks.end {
        let next = next_extent(t, id, at)?;
        let Some(extent) = next.filter(|extent| extent.offset_blocks < blocks.end) else {
            break;
        };
        at = extent.end_blocks();
        extents.push(extent);
    }
    Ok(extents)
}

/// As [`extents_in`], of each what lies in the range.
///
/// # Errors
/// As [`lookup`].
pub(super) fn parts_in(t: &mut Trans<'_>, id: ForkId, blocks: &Range<u64>) -> Result<Vec<Extent>> {
    let extents = extents_in(t, id, blocks)?;
    let part = |extent: &Extent| part_of(extent, blocks.start, blocks.end);
    Ok(extents.iter().map(part).collect())
}

/// The last extent of a fork.
///
/// # Errors
/// As [`lookup`].
pub(super) fn last_extent(t: &mut Trans<'_>, id: ForkId) -> Result<Option<Extent>> {
    at_or_before(t, id, u64::MAX)
}

/// Whether two extents can be one record.
fn joins(left: &Extent, right: &Extent) -> bool {
    left.end_blocks() == right.offset_blocks
        && left.block_at(left.end_blocks()) == right.start_block
        && left.unwritten == right.unwritten
        && left.blocks.saturating_add(right.blocks) <= MAX_EXTENT_BLOCKS
}

/// Extents in order, those joined that can be, empty ones removed.
fn joined(extents: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut all: Vec<Extent> = Vec::new();
    for extent in extents {
        match all.last_mut() {
            _ if extent.blocks == 0 => {}
            Some(last) if joins(last, &extent) => {
                last.blocks = last.blocks.saturating_add(extent.blocks);
            }
            _ => all.push(extent),
        }
    }
    all
}

/// The owner of an extent's blocks.
fn owner_of(id: ForkId, extent: &Extent) -> RmapOwner {
    RmapOwner::fork(id.ino, id.fork, extent.offset_blocks, extent.unwritten)
}

/// The length of an extent, which is less than 2^21.
fn blocks_of(extent: &Extent) -> u32 {
    u32::try_from(extent.blocks).unwrap_or(u32::MAX)
}

/// Adds an extent where the file has a hole. Its blocks were allocated for this fork and offset.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for an extent beyond the largest file; [`ErrorKind::NoSpace`] when
/// the btree of the fork has to grow and cannot; those of [`lookup`]. Then the transaction must be
/// dropped.
pub(super) fn add(t: &mut Trans<'_>, id: ForkId, extent: &Extent) -> Result<()> {
    if extent.end_blocks() > t.geometry().limit_blocks() || extent.blocks > MAX_EXTENT_BLOCKS {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} blocks from block {} of the file are beyond the largest possible file",
                extent.blocks, extent.offset_blocks
            ),
        ));
    }
    if let Err(what) = t.geometry().check_extent(extent.start_block, extent.blocks) {
        return Err(bad_inode(t, id, &format!("a new extent is {what}")));
    }
    let left = at_or_before(t, id, extent.offset_blocks)?;
    let right = behind(t, id, extent.offset_blocks)?;
    if left.is_some_and(|left| left.end_blocks() > extent.offset_blocks)
        || right.is_some_and(|right| right.offset_blocks < extent.end_blocks())
    {
        return Err(bad_inode(t, id, "a new extent overlaps another one"));
    }
    let left = left.filter(|left| joins(left, extent));
    let mut whole = *extent;
    if let Some(left) = left {
        whole = Extent {
            blocks: left.blocks.saturating_add(extent.blocks),
            ..left
        };
    }
    let right = right.filter(|right| joins(&whole, right));
    let more = right.map_or(0, |right| right.blocks);
    whole.blocks = whole.blocks.saturating_add(more);
    match (left, right) {
        (Some(left), Some(right)) => replace(t, id, &[left, right], &[whole])?,
        (Some(one), None) | (None, Some(one)) => update(t, id, &one, &whole)?,
        (None, None) => insert(t, id, &whole)?,
    }
    count_blocks(t, id, i64::from(blocks_of(extent)))
}

/// Makes the allocated blocks of a range written or unwritten, in at most `most` extents. Returns
/// the part of the range that is still to be done, at its end; empty when there is none.
///
/// # Errors
/// As [`add`].
pub(super) fn convert(
    t: &mut Trans<'_>,
    id: ForkId,
    range: Range<u64>,
    unwritten: bool,
    most: usize,
) -> Result<Range<u64>> {
    let mut from = range.start;
    let mut left = most;
    while from < range.end {
        let Some(extent) = next_extent(t, id, from)? else {
            break;
        };
        if extent.offset_blocks >= range.end {
            break;
        }
        let part = part_of(&extent, from, range.end);
        if extent.unwritten != unwritten {
            match left.checked_sub(1) {
                Some(less) => left = less,
                None => return Ok(part.offset_blocks..range.end),
            }
            convert_part(t, id, &extent, part)?;
        }
        from = part.end_blocks();
    }
    Ok(range.end..range.end)
}

/// Converts a part of an extent, as xfs_bmap_add_extent_unwritten_real().
fn convert_part(t: &mut Trans<'_>, id: ForkId, extent: &Extent, part: Extent) -> Result<()> {
    let before = match extent.offset_blocks.checked_sub(1) {
        Some(before) => at_or_before(t, id, before)?,
        None => None,
    };
    let after = behind(t, id, extent.offset_blocks)?;
    let converted = Extent {
        unwritten: !extent.unwritten,
        ..part
    };
    let old = [before, Some(*extent), after];
    let new = [
        before,
        Some(part_of(extent, extent.offset_blocks, part.offset_blocks)),
        Some(converted),
        Some(part_of(extent, part.end_blocks(), extent.end_blocks())),
        after,
    ];
    let old: Vec<_> = old.into_iter().flatten().collect();
    replace(t, id, &old, &joined(new.into_iter().flatten()))?;
    alloc::convert_owner(t, part.start_block, blocks_of(&part), owner_of(id, &part))
}

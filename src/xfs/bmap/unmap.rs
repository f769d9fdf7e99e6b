//! Blocks taken away from a fork: truncation, holes.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::alloc;
use super::super::extents::Extent;
use super::super::trans::Trans;
use super::super::tree::ForkKind;
use super::fork::{ForkId, count_blocks, part_of};
use super::records::{at_or_before, replace};
use super::{blocks_of, owner_of};
use crate::error::Result;

/// Records of reference counts that freeing one extent changes at most in one transaction.
const MOST_SHARED_RECORDS: usize = 64;

/// How far a transaction came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Unmapped {
    /// The part of the range that is still to be done, at its start; empty when there is none.
    pub(in super::super) rest: Range<u64>,
    /// Blocks that the file had there.
    pub(in super::super) blocks: u64,
}

/// Removes a part of an extent from the fork. Its blocks, so many, still have their owner.
pub(super) fn take_out(
    t: &mut Trans<'_>,
    id: ForkId,
    extent: &Extent,
    part: &Extent,
) -> Result<u32> {
    let before = part_of(extent, extent.offset_blocks, part.offset_blocks);
    let after = part_of(extent, part.end_blocks(), extent.end_blocks());
    let new: Vec<_> = [before, after]
        .into_iter()
        .filter(|piece| piece.blocks > 0)
        .collect();
    replace(t, id, &[*extent], &new)?;
    let count = blocks_of(part);
    count_blocks(t, id, i64::from(count).saturating_neg())?;
    Ok(count)
}

/// Frees the blocks of a range of the file, its end first, of at most `most` extents. Freed blocks
/// that other files share stay with these.
///
/// # Errors
/// As [`add`](super::add).
pub(in super::super) fn unmap(
    t: &mut Trans<'_>,
    id: ForkId,
    range: Range<u64>,
    most: usize,
) -> Result<Unmapped> {
    let mut rest = range;
    let mut blocks = 0_u64;
    for _ in 0..most {
        let last = match rest.end.checked_sub(1) {
            Some(last) if !rest.is_empty() => at_or_before(t, id, last)?,
            _ => None,
        };
        let Some(extent) = last.filter(|last| last.end_blocks() > rest.start) else {
            rest.end = rest.start;
            break;
        };
        let mut part = part_of(&extent, rest.start, rest.end);
        if t.features().reflink() && id.fork == ForkKind::Data {
            let count = blocks_of(&part);
            let freeable = alloc::last_freeable(t, part.start_block, count, MOST_SHARED_RECORDS)?;
            let kept = part.blocks.saturating_sub(u64::from(freeable).max(1));
            let start = part.offset_blocks.saturating_add(kept);
            part = part_of(&part, start, part.end_blocks());
        }
        let count = take_out(t, id, &extent, &part)?;
        alloc::free(t, part.start_block, count, owner_of(id, &part))?;
        blocks = blocks.saturating_add(part.blocks);
        rest.end = part.offset_blocks;
    }
    Ok(Unmapped { rest, blocks })
}

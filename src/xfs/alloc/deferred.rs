//! The single steps of an operation, as recovery finishes them: an operation that the log holds in
//! parts has its intents for each step.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::geometry::FsBlock;
use super::super::trans::Trans;
use super::agf::bad_agf;
use super::freelist::fix_freelist;
use super::release::release;
use super::rmap::{self, RmapOwner};
use super::{blocks_in_group, refcount, staging};
use crate::error::Result;

/// An extent that lost its last owner: it is freed when all intents were finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Ownerless {
    ag: u32,
    blocks: Range<u32>,
}

/// Frees an extent. Its owner, if it has one yet, is not known.
///
/// # Errors
/// As [`free`](super::free).
pub(in super::super) fn free_logged(t: &mut Trans<'_>, start: FsBlock, blocks: u32) -> Result<()> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    fix_freelist(t, ag)?;
    rmap::unmap_any(t, ag, &range)?;
    release(t, ag, range)
}

/// Frees an extent that lost its last owner.
///
/// # Errors
/// As [`free`](super::free); also when it has an owner.
pub(in super::super) fn free_ownerless(t: &mut Trans<'_>, extent: &Ownerless) -> Result<()> {
    if rmap::is_mapped(t, extent.ag, &extent.blocks)? {
        let what = format!("{:?} lost its last owner, but has one", extent.blocks);
        return Err(bad_agf(t, extent.ag, &what));
    }
    release(t, extent.ag, extent.blocks.clone())
}

/// The blocks of an extent get an owner more.
///
/// # Errors
/// As [`free`](super::free).
pub(in super::super) fn share(t: &mut Trans<'_>, start: FsBlock, blocks: u32) -> Result<()> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    fix_freelist(t, ag)?;
    refcount::increase(t, ag, &range)
}

/// The blocks of an extent lose an owner. Those that have none any more.
///
/// # Errors
/// As [`free`](super::free).
pub(in super::super) fn unshare(
    t: &mut Trans<'_>,
    start: FsBlock,
    blocks: u32,
) -> Result<Vec<Ownerless>> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    fix_freelist(t, ag)?;
    let free = refcount::decrease(t, ag, &range)?;
    Ok(free
        .into_iter()
        .map(|blocks| Ownerless { ag, blocks })
        .collect())
}

/// Notes that an extent is staged for copy-on-write.
///
/// # Errors
/// As [`free`](super::free).
pub(in super::super) fn stage(t: &mut Trans<'_>, start: FsBlock, blocks: u32) -> Result<()> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    fix_freelist(t, ag)?;
    staging::stage(t, ag, &range)
}

/// Notes that an extent is staged no longer. Its blocks and their owner stay as they are.
///
/// # Errors
/// As [`free`](super::free).
pub(in super::super) fn unstage(t: &mut Trans<'_>, start: FsBlock, blocks: u32) -> Result<()> {
    let (ag, range) = blocks_in_group(t, start, blocks)?;
    fix_freelist(t, ag)?;
    staging::unstage(t, ag, &range)
}

/// Frees the first extent of a group that is staged for copy-on-write. Whether there was one.
///
/// # Errors
/// As [`free`](super::free).
pub(in super::super) fn free_staged(t: &mut Trans<'_>, ag: u32) -> Result<bool> {
    if !t.features().reflink() {
        return Ok(false);
    }
    let Some(range) = staging::first_from(t, ag, 0)? else {
        return Ok(false);
    };
    fix_freelist(t, ag)?;
    staging::unstage(t, ag, &range)?;
    rmap::unmap(t, ag, &range, RmapOwner::STAGING)?;
    release(t, ag, range)?;
    Ok(true)
}

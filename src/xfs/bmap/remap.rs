//! Mappings of a file changed while its blocks stay allocated: the steps of operations that move
//! blocks between files.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::alloc;
use super::super::extents::Extent;
use super::super::trans::Trans;
use super::fork::{ForkId, part_of};
use super::records::at_or_before;
use super::unmap::take_out;
use super::{add, blocks_of, owner_of};
use crate::error::Result;

/// Maps blocks that are allocated into a hole of the file, as xfs_bmapi_remap().
///
/// # Errors
/// As [`add`].
pub(in super::super) fn attach(t: &mut Trans<'_>, id: ForkId, extent: &Extent) -> Result<()> {
    add(t, id, extent)?;
    alloc::map_owner(
        t,
        extent.start_block,
        blocks_of(extent),
        owner_of(id, extent),
    )
}

/// Removes the mappings of a range of the file; the blocks stay allocated. As xfs_bunmapi() with
/// `XFS_BMAPI_REMAP`.
///
/// # Errors
/// As [`add`].
pub(in super::super) fn detach(t: &mut Trans<'_>, id: ForkId, range: Range<u64>) -> Result<()> {
    let mut end = range.end;
    while let Some(last) = end.checked_sub(1).filter(|last| *last >= range.start) {
        let found = at_or_before(t, id, last)?;
        let Some(extent) = found.filter(|found| found.end_blocks() > range.start) else {
            break;
        };
        let part = part_of(&extent, range.start, end);
        let count = take_out(t, id, &extent, &part)?;
        alloc::unmap_owner(t, part.start_block, count, owner_of(id, &part))?;
        end = part.offset_blocks;
    }
    Ok(())
}

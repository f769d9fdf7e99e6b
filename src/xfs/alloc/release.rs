//! Blocks that have no owner any more become free.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::trans::Trans;
use super::freelist::fix_freelist;
use super::space;
use crate::error::Result;

/// Makes blocks free that are in no other structure any more.
pub(super) fn release(t: &mut Trans<'_>, ag: u32, blocks: Range<u32>) -> Result<()> {
    fix_freelist(t, ag)?;
    space::give(t, ag, &blocks)?;
    let count = blocks.end.saturating_sub(blocks.start);
    t.count(count.into(), 0, 0);
    t.note_freed(ag, blocks);
    Ok(())
}

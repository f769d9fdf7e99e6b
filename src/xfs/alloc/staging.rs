//! Blocks that are staged for copy-on-write: allocated, and of no file yet. Their records come last
//! in the refcount btree, with a flag in their first block and one owner.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::format::btree::{REFCOUNT_COW, RefcountRecord};
use super::super::trans::Trans;
use super::super::tree::{self, AgTree, Refcountbt};
use super::agf::bad_agf;
use super::space_source::SpaceSource;
use crate::error::Result;

fn tree_of(ag: u32) -> AgTree<Refcountbt> {
    AgTree::new(ag)
}

fn key(block: u32) -> u32 {
    block | REFCOUNT_COW
}

fn record(blocks: &Range<u32>) -> RefcountRecord {
    RefcountRecord {
        startblock: key(blocks.start).into(),
        blockcount: blocks.end.saturating_sub(blocks.start).into(),
        refcount: 1.into(),
    }
}

/// The blocks of a record, checked; `None` for one of shared blocks.
fn checked(t: &Trans<'_>, ag: u32, found: Option<RefcountRecord>) -> Result<Option<Range<u32>>> {
    let Some(record) = found else {
        return Ok(None);
    };
    let start = record.startblock.get();
    if start & REFCOUNT_COW == 0 {
        return Ok(None);
    }
    let start = start & !REFCOUNT_COW;
    let blocks = record.blockcount.get();
    let first = t.geometry().fs_block(ag, start);
    let is_inside = start < t.geometry().ag_length(ag)
        && t.geometry().check_extent(first, blocks.into()).is_ok();
    match record.refcount.get() {
        1 if is_inside => Ok(Some(start..start.saturating_add(blocks))),
        _ => Err(bad_agf(
            t,
            ag,
            "an impossible refcount record of staged blocks",
        )),
    }
}

/// The first staged blocks from `block` on.
pub(super) fn first_from(t: &mut Trans<'_>, ag: u32, block: u32) -> Result<Option<Range<u32>>> {
    let found = tree::find_ge(t, &tree_of(ag), key(block))?;
    checked(t, ag, found)
}

/// The staged blocks that begin last at `block` or before it.
fn last_to(t: &mut Trans<'_>, ag: u32, block: u32) -> Result<Option<Range<u32>>> {
    let found = tree::find_le(t, &tree_of(ag), key(block))?;
    checked(t, ag, found)
}

/// Notes that blocks are staged: one record with those beside them.
pub(super) fn stage(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<()> {
    let left = last_to(t, ag, blocks.start)?;
    let right = first_from(t, ag, blocks.start)?;
    if left.as_ref().is_some_and(|left| left.end > blocks.start)
        || right.as_ref().is_some_and(|right| right.start < blocks.end)
    {
        return Err(bad_agf(t, ag, "blocks are staged twice"));
    }
    let left = left.filter(|left| left.end == blocks.start);
    let right = right.filter(|right| right.start == blocks.end);
    let start = left.as_ref().map_or(blocks.start, |left| left.start);
    let end = right.as_ref().map_or(blocks.end, |right| right.end);
    let source = &mut SpaceSource::refcountbt(t, ag);
    if let Some(right) = right {
        tree::remove(t, &tree_of(ag), key(right.start), source)?;
    }
    match left {
        Some(left) => tree::update(t, &tree_of(ag), key(left.start), &record(&(start..end))),
        None => tree::insert(t, &tree_of(ag), &record(&(start..end)), source),
    }
}

/// Notes that blocks are staged no longer.
pub(super) fn unstage(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<()> {
    let found = last_to(t, ag, blocks.start)?;
    let Some(whole) = found.filter(|whole| whole.end >= blocks.end) else {
        return Err(bad_agf(t, ag, "blocks are unstaged that are not staged"));
    };
    let source = &mut SpaceSource::refcountbt(t, ag);
    let (before, after) = (whole.start..blocks.start, blocks.end..whole.end);
    match before.is_empty() {
        true => tree::remove(t, &tree_of(ag), key(whole.start), source)?,
        false => tree::update(t, &tree_of(ag), key(whole.start), &record(&before))?,
    }
    match after.is_empty() {
        true => Ok(()),
        false => tree::insert(t, &tree_of(ag), &record(&after), source),
    }
}

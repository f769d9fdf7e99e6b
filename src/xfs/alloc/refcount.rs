//! Blocks get an owner more or lose one, in filesystems that share blocks:
//! xfs_refcount_increase_extent() and xfs_refcount_decrease_extent() of the kernel.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::format::btree::{REFCOUNT_COW, RefcountRecord};
use super::super::trans::Trans;
use super::super::tree::{self, AgTree, Refcountbt};
use super::agf::bad_agf;
use super::space_source::SpaceSource;
use crate::error::Result;

/// Blocks that have so many owners: two at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RefcountRun {
    start: u32,
    end: u32,
    owners: u32,
}

impl RefcountRun {
    fn record(&self) -> RefcountRecord {
        RefcountRecord {
            startblock: self.start.into(),
            blockcount: self.end.saturating_sub(self.start).into(),
            refcount: self.owners.into(),
        }
    }
}

fn tree_of(ag: u32) -> AgTree<Refcountbt> {
    AgTree::new(ag)
}

/// A record, checked; `None` for one of blocks that are staged for copy-on-write: these come last.
fn checked(t: &Trans<'_>, ag: u32, found: Option<RefcountRecord>) -> Result<Option<RefcountRun>> {
    let Some(record) = found else {
        return Ok(None);
    };
    let start = record.startblock.get();
    if start & REFCOUNT_COW != 0 {
        return Ok(None);
    }
    let end = start.checked_add(record.blockcount.get());
    let end = end.filter(|end| *end > start && *end <= t.geometry().ag_length(ag));
    match (end, record.refcount.get()) {
        (Some(end), owners @ 2..) => Ok(Some(RefcountRun { start, end, owners })),
        _ => Err(bad_agf(t, ag, "an impossible refcount record")),
    }
}

fn first_from(t: &mut Trans<'_>, ag: u32, block: u32) -> Result<Option<RefcountRun>> {
    let found = tree::find_ge(t, &tree_of(ag), block)?;
    checked(t, ag, found)
}

/// Whether any of `blocks` has several owners.
pub(super) fn is_any_shared(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<bool> {
    let Some(last) = blocks.end.checked_sub(1).filter(|_| t.features().reflink()) else {
        return Ok(false);
    };
    let found = tree::find_le(t, &tree_of(ag), last)?;
    let run = checked(t, ag, found)?;
    Ok(run.is_some_and(|run| run.end > blocks.start))
}

/// The records that touch `blocks`, those that only border on it as well.
fn touching(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<Vec<RefcountRun>> {
    let before = blocks.start.saturating_sub(1);
    let found = tree::find_le(t, &tree_of(ag), before)?;
    let left = checked(t, ag, found)?.filter(|run| run.end >= blocks.start);
    let mut next = match left {
        Some(run) => Some(run),
        None => first_from(t, ag, blocks.start)?,
    };
    let mut runs = Vec::new();
    while let Some(run) = next.filter(|run| run.start <= blocks.end) {
        runs.push(run);
        // Starts rise, so the loop ends.
        next = first_from(t, ag, run.start.saturating_add(1))?;
        if next.is_some_and(|next| next.start < run.end) {
            return Err(bad_agf(t, ag, "refcount records overlap"));
        }
    }
    Ok(runs)
}

/// Adds blocks with so many owners to a list, as one run with the last where these are as many.
fn push(list: &mut Vec<RefcountRun>, run: RefcountRun) {
    if run.start >= run.end || run.owners < 2 {
        return;
    }
    match list.last_mut() {
        Some(last) if last.end == run.start && last.owners == run.owners => last.end = run.end,
        _ => list.push(run),
    }
}

/// One owner of `blocks` is gone. Returns the blocks that have none any more.
pub(super) fn decrease(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<Vec<Range<u32>>> {
    if !t.features().reflink() {
        return Ok(vec![blocks.clone()]);
    }
    let old = touching(t, ag, blocks)?;
    let mut new = Vec::with_capacity(old.len().saturating_add(2));
    let mut free = Vec::new();
    let mut cursor = blocks.start;
    for run in &old {
        // Blocks without a record have one owner.
        let gap = cursor..run.start.min(blocks.end);
        if !gap.is_empty() {
            free.push(gap);
        }
        let (start, end) = (run.start.max(blocks.start), run.end.min(blocks.end));
        let keep = |start: u32, end: u32| RefcountRun { start, end, ..*run };
        push(&mut new, keep(run.start, run.end.min(blocks.start)));
        let fewer = RefcountRun {
            start,
            end,
            owners: run.owners.saturating_sub(1),
        };
        push(&mut new, fewer);
        push(&mut new, keep(run.start.max(blocks.end), run.end));
        cursor = cursor.max(end);
    }
    if cursor < blocks.end {
        free.push(cursor..blocks.end);
    }
    replace(t, ag, &old, &new)?;
    Ok(free)
}

/// `blocks` get an owner more. Blocks without a record have one.
pub(super) fn increase(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<()> {
    let old = touching(t, ag, blocks)?;
    let mut new = Vec::with_capacity(old.len().saturating_mul(2).saturating_add(1));
    let mut cursor = blocks.start;
    let gap = |start: u32, end: u32| RefcountRun {
        start,
        end,
        owners: 2,
    };
    for run in &old {
        let keep = |start: u32, end: u32| RefcountRun { start, end, ..*run };
        push(&mut new, keep(run.start, run.end.min(blocks.start)));
        push(&mut new, gap(cursor, run.start.min(blocks.end)));
        let more = RefcountRun {
            start: run.start.max(blocks.start),
            end: run.end.min(blocks.end),
            // The greatest count stays, as `XFS_REFC_REFCOUNT_MAX`.
            owners: run.owners.saturating_add(1),
        };
        push(&mut new, more);
        cursor = cursor.max(run.end.min(blocks.end));
        push(&mut new, keep(run.start.max(blocks.end), run.end));
    }
    push(&mut new, gap(cursor, blocks.end));
    replace(t, ag, &old, &new)
}

/// Puts records in the place of others.
fn replace(t: &mut Trans<'_>, ag: u32, old: &[RefcountRun], new: &[RefcountRun]) -> Result<()> {
    let source = &mut SpaceSource::refcountbt(t, ag);
    for run in old {
        let stays = new.binary_search_by_key(&run.start, |other| other.start);
        if stays.is_err() {
            tree::remove(t, &tree_of(ag), run.start, source)?;
        }
    }
    for run in new {
        let same = old.binary_search_by_key(&run.start, |other| other.start);
        match same.ok().and_then(|index| old.get(index)) {
            Some(same) if same == run => {}
            Some(_) => tree::update(t, &tree_of(ag), run.start, &run.record())?,
            None => tree::insert(t, &tree_of(ag), &run.record(), source)?,
        }
    }
    Ok(())
}

/// The last blocks of `blocks` that touch at most `most` records: what one transaction may free.
pub(super) fn last_part(
    t: &mut Trans<'_>,
    ag: u32,
    blocks: &Range<u32>,
    most: usize,
) -> Result<Range<u32>> {
    let mut start = blocks.end;
    if !t.features().reflink() {
        return Ok(blocks.clone());
    }
    for _ in 0..most {
        let Some(before) = start.checked_sub(1).filter(|_| start > blocks.start) else {
            break;
        };
        let found = tree::find_le(t, &tree_of(ag), before)?;
        start = match checked(t, ag, found)? {
            Some(run) if run.end > before => run.start,
            Some(run) => run.end,
            None => blocks.start,
        };
    }
    Ok(start.max(blocks.start)..blocks.end)
}

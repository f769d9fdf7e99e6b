//! Which free blocks of a group an allocation gets, as xfs_alloc_ag_vextent_near() and
//! xfs_alloc_ag_vextent_size() of the kernel choose them.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::freespace::FreeExtent;
use super::super::trans::Trans;
use super::space;
use crate::error::Result;

/// Free extents that are looked at on either side of the block that the allocation should be near.
const LOOKS: u32 = 32;

/// The blocks that an allocation asks of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupWish {
    pub(super) ag: u32,
    /// The block to be near to.
    pub(super) near: Option<u32>,
    pub(super) least: u32,
    pub(super) most: u32,
    /// The first block is a multiple of this.
    pub(super) align: u32,
    /// Blocks whose freeing is not durable are no obstacle: only for metadata, which is not in
    /// place before its checkpoint is.
    pub(super) may_be_busy: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// Blocks of a free extent.
    Blocks(FreeExtent, Range<u32>),
    /// Nothing, but there may be when the blocks that this and earlier transactions freed may be
    /// used.
    Busy,
    /// Nothing.
    Nothing,
}

/// The best so far.
#[derive(Debug)]
struct Search {
    wish: GroupWish,
    best: Option<(FreeExtent, Range<u32>)>,
    saw_busy: bool,
}

fn len(blocks: &Range<u32>) -> u32 {
    blocks.end.saturating_sub(blocks.start)
}

/// How far blocks are from the block that they should be near to.
fn distance(blocks: &Range<u32>, near: u32) -> u32 {
    blocks.start.abs_diff(near)
}

impl GroupWish {
    fn align_up(&self, block: u32) -> Option<u32> {
        block.checked_next_multiple_of(self.align.max(1))
    }

    fn align_down(&self, block: u32) -> u32 {
        let over = block.checked_rem(self.align.max(1)).unwrap_or(0);
        block.saturating_sub(over)
    }

    /// The best blocks in a run of free blocks; `None` where fewer than `least` fit.
    fn fit(&self, run: &Range<u32>) -> Option<Range<u32>> {
        let lowest = self.align_up(run.start)?;
        let room = run.end.checked_sub(lowest)?;
        if room < self.least.max(1) {
            return None;
        }
        let wanted = room.min(self.most);
        // The last start with as many blocks.
        let highest = self.align_down(run.end.saturating_sub(wanted)).max(lowest);
        let start = match self.near {
            None => lowest,
            Some(near) => self.align_up(near).unwrap_or(near).clamp(lowest, highest),
        };
        let end = start.saturating_add(self.most).min(run.end);
        Some(start..end)
    }
}

impl Search {
    fn new(wish: GroupWish) -> Self {
        Self {
            wish,
            best: None,
            saw_busy: false,
        }
    }

    /// Looks at all parts of a free extent that may be used.
    fn look(&mut self, t: &Trans<'_>, extent: FreeExtent) {
        let all = extent.range();
        let mut cursor = all.start;
        while cursor < all.end {
            let rest = cursor..all.end;
            let busy = match self.wish.may_be_busy {
                true => None,
                false => t.first_busy(self.wish.ag, &rest),
            };
            let run = cursor
                ..busy
                    .as_ref()
                    .map_or(all.end, |(busy, _)| busy.start.max(cursor));
            cursor = match busy {
                Some((busy, waits)) => {
                    self.saw_busy |= waits;
                    busy.end.max(cursor.saturating_add(1))
                }
                None => all.end,
            };
            if let Some(blocks) = self.wish.fit(&run)
                && self.is_better(&blocks)
            {
                self.best = Some((extent, blocks));
            }
        }
    }

    fn is_better(&self, blocks: &Range<u32>) -> bool {
        let Some((_, best)) = &self.best else {
            return true;
        };
        match self.wish.near {
            Some(near) if len(blocks) == len(best) => distance(blocks, near) < distance(best, near),
            _ => len(blocks) > len(best),
        }
    }

    fn end(self) -> Choice {
        match (self.best, self.saw_busy) {
            (Some((extent, blocks)), _) => Choice::Blocks(extent, blocks),
            (None, true) => Choice::Busy,
            (None, false) => Choice::Nothing,
        }
    }
}

/// Blocks from exactly `wish.near`.
pub(super) fn choose_exact(t: &mut Trans<'_>, wish: GroupWish) -> Result<Choice> {
    let Some(near) = wish.near else {
        return Ok(Choice::Nothing);
    };
    let mut search = Search::new(GroupWish { align: 1, ..wish });
    if let Some(extent) = space::at_or_before(t, wish.ag, near)? {
        search.look(t, extent);
    }
    search.best = search.best.filter(|(_, blocks)| blocks.start == near);
    Ok(search.end())
}

/// Blocks near to `wish.near`, else from the shortest free extent that is long enough, else from
/// the longest.
pub(super) fn choose(t: &mut Trans<'_>, wish: GroupWish) -> Result<Choice> {
    let full = GroupWish {
        least: wish.most,
        ..wish
    };
    let mut search = Search::new(full);
    if let Some(near) = wish.near {
        look_near(t, &mut search, near)?;
    }
    if search.best.is_none() {
        look_by_length(t, &mut search)?;
    }
    if search.best.is_none() && wish.least < wish.most {
        search.wish = wish;
        look_at_longest(t, &mut search)?;
    }
    Ok(search.end())
}

fn look_near(t: &mut Trans<'_>, search: &mut Search, near: u32) -> Result<()> {
    let ag = search.wish.ag;
    let mut left = space::at_or_before(t, ag, near)?;
    let mut right = space::at_or_after(t, ag, near.saturating_add(1))?;
    for _ in 0..LOOKS {
        for extent in [left, right].into_iter().flatten() {
            search.look(t, extent);
        }
        if search.best.is_some() || (left.is_none() && right.is_none()) {
            break;
        }
        left = match left.and_then(|left| left.ag_block.checked_sub(1)) {
            Some(before) => space::at_or_before(t, ag, before)?,
            None => None,
        };
        right = match right {
            Some(right) => space::at_or_after(t, ag, right.range().end)?,
            None => None,
        };
    }
    Ok(())
}

/// From the shortest extent that is long enough.
fn look_by_length(t: &mut Trans<'_>, search: &mut Search) -> Result<()> {
    let ag = search.wish.ag;
    let mut next = space::at_least(t, ag, search.wish.least, 0)?;
    while let Some(extent) = next {
        search.look(t, extent);
        if search.best.is_some() {
            break;
        }
        // Keys rise, so the loop ends.
        next = space::at_least(t, ag, extent.blocks, extent.ag_block.saturating_add(1))?;
    }
    Ok(())
}

/// From the longest extent, or from a shorter one when busy blocks or the alignment cut that.
fn look_at_longest(t: &mut Trans<'_>, search: &mut Search) -> Result<()> {
    let ag = search.wish.ag;
    let mut next = space::at_most(t, ag, u32::MAX, u32::MAX)?;
    while let Some(extent) = next {
        let best = search.best.as_ref().map_or(0, |(_, blocks)| len(blocks));
        if extent.blocks < search.wish.least || extent.blocks <= best {
            break;
        }
        search.look(t, extent);
        // Keys fall, so the loop ends.
        next = match extent.ag_block.checked_sub(1) {
            Some(before) => space::at_most(t, ag, extent.blocks, before)?,
            None => None,
        };
    }
    Ok(())
}

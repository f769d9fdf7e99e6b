//! The runs of a file, sorted by their place in it.
//!
//! A few are one list. More are lists of at most [`LEAF_MOST`] runs in lists of at most
//! [`GROUP_MOST`] of those, each of which all versions of a map share that have the same runs
//! there: a change of a part of a file copies two lists and the list of groups, however many runs
//! the file has.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;
use std::sync::Arc;

use super::super::geometry::Geometry;
use super::{Hint, Run};
use crate::iomap::{MapFlags, Mapping, MappingKind};

/// Most runs in one list; fewer than half of it become one list again.
const FEW: usize = 256;
/// Most runs in a list of many.
const LEAF_MOST: usize = 128;
/// Most lists of runs in a group.
const GROUP_MOST: usize = 128;

/// The runs of a file.
#[derive(Debug, Default)]
pub(in super::super) struct Runs {
    /// All of them where they are few, otherwise none.
    few: Box<[Run]>,
    /// All of them otherwise.
    many: Box<[RunList<RunList<Run>>]>,
    len: usize,
    /// Number of those that stand for a part of the file whose extents are not loaded.
    unloaded: usize,
}

/// A list, not empty, that versions share.
#[derive(Debug)]
struct RunList<T> {
    /// First byte of the first item.
    start: u64,
    /// First byte behind the last item.
    end: u64,
    items: Arc<[T]>,
}

impl<T> Clone for RunList<T> {
    fn clone(&self) -> Self {
        Self {
            start: self.start,
            end: self.end,
            items: Arc::clone(&self.items),
        }
    }
}

/// A part of a file.
trait FilePart: Clone {
    fn start(&self) -> u64;
    fn end(&self) -> u64;
}

impl FilePart for Run {
    #[inline]
    fn start(&self) -> u64 {
        self.offset
    }

    #[inline]
    fn end(&self) -> u64 {
        self.end
    }
}

impl<T> FilePart for RunList<T> {
    #[inline]
    fn start(&self) -> u64 {
        self.start
    }

    #[inline]
    fn end(&self) -> u64 {
        self.end
    }
}

/// The first item that ends behind a position. The end of the item before it, if there is one,
/// becomes `before`.
#[inline]
fn first_behind<'i, T: FilePart>(items: &'i [T], pos: u64, before: &mut u64) -> Option<&'i T> {
    let index = items.partition_point(|item| item.end() <= pos);
    let last = index.checked_sub(1).and_then(|last| items.get(last));
    *before = last.map_or(*before, FilePart::end);
    items.get(index)
}

/// The items that have any byte of a range; where there are none, their place.
fn touched<T: FilePart>(items: &[T], range: &Range<u64>) -> Range<usize> {
    let first = items.partition_point(|item| item.end() <= range.start);
    let behind = items.partition_point(|item| item.start() < range.end);
    first..behind.max(first)
}

/// As [`touched`], at least one of the items, if there are any: one that the range continues.
fn touched_lists<T: FilePart>(items: &[T], range: &Range<u64>) -> Range<usize> {
    let found = touched(items, range);
    let start = found.start.min(items.len().saturating_sub(1));
    start..found.end.max(start.saturating_add(1)).min(items.len())
}

/// Lists of about equal length, of at most `most` of the items.
fn in_lists<T: FilePart>(items: &[T], most: usize) -> impl Iterator<Item = RunList<T>> {
    let lists = items.len().div_ceil(most).max(1);
    let each = items.len().div_ceil(lists).max(1);
    items.chunks(each).filter_map(|list| {
        let (first, last) = (list.first()?, list.last()?);
        Some(RunList {
            start: first.start(),
            end: last.end(),
            items: list.into(),
        })
    })
}

/// Items with those of a range of indexes replaced by lists of others.
fn with_lists<T: FilePart>(
    old: &[RunList<T>],
    range: Range<usize>,
    items: &[T],
    most: usize,
) -> Vec<RunList<T>> {
    let before = old.get(..range.start).unwrap_or_default();
    let after = old.get(range.end..).unwrap_or_default();
    let mut all = Vec::with_capacity(old.len().saturating_add(2));
    all.extend_from_slice(before);
    all.extend(in_lists(items, most));
    all.extend_from_slice(after);
    all
}

fn count_unloaded(runs: &[Run]) -> usize {
    runs.iter().filter(|run| run.is_unloaded()).count()
}

impl From<Vec<Run>> for Runs {
    fn from(runs: Vec<Run>) -> Self {
        let (len, unloaded) = (runs.len(), count_unloaded(&runs));
        let mut all = Self {
            len,
            unloaded,
            ..Self::default()
        };
        if len <= FEW {
            all.few = runs.into_boxed_slice();
        } else {
            let leaves: Vec<_> = in_lists(&runs, LEAF_MOST).collect();
            all.many = in_lists(&leaves, GROUP_MOST).collect();
        }
        all
    }
}

impl Runs {
    /// Their number.
    pub(in super::super) fn len(&self) -> usize {
        self.len
    }

    /// Whether extents of a part of the file are not loaded.
    pub(in super::super) fn is_partial(&self) -> bool {
        self.unloaded > 0
    }

    /// All of them where they are few; otherwise none.
    #[inline(always)]
    pub(super) fn few(&self) -> &[Run] {
        &self.few
    }

    /// The first run that ends behind a position, and the end of the run before it.
    pub(super) fn first_behind(&self, pos: u64) -> (Option<&Run>, u64) {
        let mut before = 0;
        if self.many.is_empty() {
            return (first_behind(&self.few, pos, &mut before), before);
        }
        let run = first_behind(&self.many, pos, &mut before)
            .and_then(|group| first_behind(&group.items, pos, &mut before))
            .and_then(|leaf| first_behind(&leaf.items, pos, &mut before));
        (run, before)
    }

    /// The address of a position, where it has written blocks of the file's own for the whole
    /// length.
    #[inline(never)]
    pub(super) fn plain_addr(&self, pos: u64, len: u64) -> Option<u64> {
        self.first_behind(pos).0?.plain_addr(pos, len)
    }

    /// The run that has a byte.
    pub(super) fn at(&self, pos: u64) -> Option<&Run> {
        let (run, _) = self.first_behind(pos);
        run.filter(|run| run.offset <= pos)
    }

    /// The runs that have any byte of a range.
    pub(super) fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = &Run> + use<'_> {
        let few = self.few.get(touched(&self.few, range));
        let groups = self.many.get(touched(&self.many, range));
        let leaves = groups.unwrap_or_default().iter().flat_map({
            let range = range.clone();
            move |group| {
                let leaves = group.items.get(touched(&group.items, &range));
                leaves.unwrap_or_default()
            }
        });
        let runs = leaves.flat_map({
            let range = range.clone();
            move |leaf| {
                let runs = leaf.items.get(touched(&leaf.items, &range));
                runs.unwrap_or_default()
            }
        });
        few.unwrap_or_default().iter().chain(runs)
    }

    /// All of them.
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.overlapping(&(0..u64::MAX))
    }

    /// With others in a range, which `change` makes of those that are there, cut at the borders of
    /// the range.
    pub(super) fn replaced(
        &self,
        range: &Range<u64>,
        change: impl FnOnce(&[Run]) -> Vec<Run>,
    ) -> Self {
        if self.many.is_empty() {
            return spliced(&self.few, range, change).into();
        }
        let groups = touched_lists(&self.many, range);
        let changed = self.many.get(groups.clone()).unwrap_or_default();
        let leaves: Vec<RunList<Run>> = changed
            .iter()
            .flat_map(|group| group.items.iter().cloned())
            .collect();
        let mut in_leaves = touched_lists(&leaves, range);
        let runs_of = |leaves: Option<&[RunList<Run>]>| -> Vec<Run> {
            let runs = leaves.unwrap_or_default().iter();
            runs.flat_map(|leaf| leaf.items.iter().copied()).collect()
        };
        let old = runs_of(leaves.get(in_leaves.clone()));
        let mut new = spliced(&old, range, change);
        let len = self.len.saturating_sub(old.len()).saturating_add(new.len());
        let unloaded = self
            .unloaded
            .saturating_sub(count_unloaded(&old))
            .saturating_add(count_unloaded(&new));
        if new.len() < LEAF_MOST / 4
            && let Some(before) = in_leaves.start.checked_sub(1)
        {
            new.splice(0..0, runs_of(leaves.get(before..in_leaves.start)));
            in_leaves.start = before;
        }
        let leaves = with_lists(&leaves, in_leaves, &new, LEAF_MOST);
        let all = Self {
            few: Box::default(),
            many: with_lists(&self.many, groups, &leaves, GROUP_MOST).into_boxed_slice(),
            len,
            unloaded,
        };
        match len < FEW / 2 {
            true => all.iter().copied().collect::<Vec<Run>>().into(),
            false => all,
        }
    }

    /// The mapping of the run at or before which `pos` is found, looking at the hint and the one
    /// after it first.
    #[inline]
    pub(super) fn find(&self, pos: u64, hint: &mut Hint) -> Mapping {
        if let Some(run) = self.few.get(hint.0)
            && run.offset <= pos
            && pos < run.end
        {
            return run.mapping();
        }
        self.search(pos, hint)
    }

    #[inline(never)]
    fn search(&self, pos: u64, hint: &mut Hint) -> Mapping {
        let (run, before) = if self.many.is_empty() {
            let next = hint.0.saturating_add(1);
            let index = match (self.few.get(hint.0), self.few.get(next)) {
                (Some(run), Some(after)) if run.end <= pos && pos < after.end => next,
                _ => self.few.partition_point(|run| run.end <= pos),
            };
            let last = index.checked_sub(1);
            let run = self.few.get(index);
            hint.0 = match run {
                Some(run) if run.offset <= pos => index,
                _ => last.unwrap_or(0),
            };
            let before = last.and_then(|last| self.few.get(last));
            (run, before.map_or(0, |run| run.end))
        } else {
            self.first_behind(pos)
        };
        let end = match run {
            Some(run) if run.offset <= pos => return run.mapping(),
            Some(run) => run.offset,
            // To the end of the last block, a byte past the largest size: direct reads are of
            // whole blocks.
            None => Geometry::MAX_FILE_BYTES.saturating_add(1),
        };
        Mapping {
            addr: 0,
            offset: before,
            length: end.saturating_sub(before),
            kind: MappingKind::Hole,
            flags: MapFlags::empty(),
            cookie: 0,
        }
    }
}

/// Runs with others in a range, which `change` makes of those that are there, cut at the borders of
/// the range.
fn spliced(old: &[Run], range: &Range<u64>, change: impl FnOnce(&[Run]) -> Vec<Run>) -> Vec<Run> {
    let touched = touched(old, range);
    let before = old.get(..touched.start).unwrap_or_default();
    let after = old.get(touched.end..).unwrap_or_default();
    let inside = old.get(touched).unwrap_or_default();
    let left = inside.first().map(|run| run.split(range.start).0);
    let right = inside.last().map(|run| run.split(range.end).1);
    let cut: Vec<Run> = inside
        .iter()
        .map(|run| run.split(range.start).1.split(range.end).0)
        .collect();
    let new = change(&cut);
    let len = before.len().saturating_add(after.len());
    let mut all = Vec::with_capacity(len.saturating_add(new.len()).saturating_add(2));
    all.extend_from_slice(before);
    all.extend(left.filter(|run| run.offset < run.end));
    all.extend(new);
    all.extend(right.filter(|run| run.offset < run.end));
    all.extend_from_slice(after);
    all
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "test code: a failure panics"
)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    const BLOCK: u64 = 4096;

    fn run(block: u64, blocks: u64) -> Run {
        Run {
            offset: block * BLOCK,
            end: (block + blocks) * BLOCK,
            addr: (1 << 40) + block * BLOCK,
            kind: MappingKind::Mapped,
            flags: MapFlags::empty(),
        }
    }

    /// Runs of one block, each with a hole behind it.
    fn alternate(count: u64) -> Vec<Run> {
        (0..count).map(|n| run(2 * n, 1)).collect()
    }

    fn check(runs: &Runs, model: &[Run], what: &str) {
        assert_eq!(runs.len(), model.len(), "{what}");
        assert!(runs.iter().eq(model), "{what}");
        let unloaded = count_unloaded(model);
        assert_eq!(runs.unloaded, unloaded, "{what}");
        assert_eq!(runs.few.is_empty(), !runs.many.is_empty() || runs.len == 0);
        for group in &runs.many {
            assert!((1..=GROUP_MOST).contains(&group.items.len()), "{what}");
            for leaf in &*group.items {
                assert!((1..=LEAF_MOST).contains(&leaf.items.len()), "{what}");
            }
        }
    }

    #[test]
    fn changes_give_what_a_list_gives() {
        let seed = std::env::var("XTENT_SEED").map_or(7, |seed| seed.parse().unwrap());
        let mut rng = SmallRng::seed_from_u64(seed);
        let blocks = 1 << 16;
        let mut model = alternate(blocks / 2);
        let mut runs = Runs::from(model.clone());
        for round in 0..3000 {
            let what = format!("XTENT_SEED={seed}, round {round}");
            // Small ranges, and now and then a large part of the file.
            let most = if rng.random_ratio(1, 20) {
                blocks / 3
            } else {
                40
            };
            let start = rng.random_range(0..blocks);
            let end = start + rng.random_range(1..most);
            let range = start * BLOCK..end * BLOCK;
            let new: Vec<Run> = match rng.random_range(0..5) {
                0 => Vec::new(),
                1 => vec![Run::unloaded(range.clone())],
                2 => vec![run(start, end - start)],
                _ => (start..end).step_by(2).map(|block| run(block, 1)).collect(),
            };
            model = spliced(&model, &range, |_| new.clone());
            let changed = runs.replaced(&range, |old| {
                assert!(runs.overlapping(&range).count() == old.len(), "{what}");
                new.clone()
            });
            runs = changed;
            if round % 16 == 0 {
                check(&runs, &model, &what);
            }
            let pos = rng.random_range(0..blocks * BLOCK + 9 * BLOCK);
            let index = model.partition_point(|run| run.end <= pos);
            let before = index.checked_sub(1).map_or(0, |last| model[last].end);
            assert_eq!(runs.first_behind(pos), (model.get(index), before), "{what}");
            let list = Runs {
                few: model.clone().into(),
                ..Runs::default()
            };
            let found = runs.find(pos, &mut Hint::default());
            assert_eq!(found, list.find(pos, &mut Hint::default()), "{what}");
        }
    }

    #[test]
    fn a_change_of_a_part_shares_all_other_parts() {
        let count = 100_000;
        let runs = Runs::from(alternate(count));
        for block in [0, 1, count, 2 * count - 1, 2 * count, 3 * count] {
            let changed = runs.replaced(&(block * BLOCK..(block + 1) * BLOCK), |_| {
                vec![run(block, 1)]
            });
            let groups = runs.many.iter().zip(&changed.many);
            let copied = groups.filter(|(old, new)| !Arc::ptr_eq(&old.items, &new.items));
            let copied: Vec<_> = copied.collect();
            assert_eq!((copied.len(), runs.many.len()), (1, changed.many.len()));
            let leaves = |group: &RunList<RunList<Run>>| -> Vec<_> {
                group
                    .items
                    .iter()
                    .map(|leaf| Arc::as_ptr(&leaf.items))
                    .collect()
            };
            let (old, new) = (leaves(copied[0].0), leaves(copied[0].1));
            let differ = new.iter().filter(|leaf| !old.contains(leaf)).count();
            assert!(differ <= 2, "block {block}: {differ} lists were copied");
        }
    }

    #[test]
    fn many_become_few_and_none() {
        let mut runs = Runs::from(alternate(1000));
        runs = runs.replaced(&(50 * BLOCK..1900 * BLOCK), |_| Vec::new());
        check(&runs, &runs.iter().copied().collect::<Vec<_>>(), "few");
        assert!(runs.many.is_empty() && runs.len() == 75);
        let mut runs = Runs::from(alternate(1000));
        runs = runs.replaced(&(0..u64::MAX), |_| Vec::new());
        check(&runs, &[], "none");
    }
}

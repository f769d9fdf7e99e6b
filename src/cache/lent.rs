//! The pages of a file that mutable views are lent of.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The pages of a file that mutable views are lent of. Only direct writes ask for them.
#[derive(Debug, Default)]
pub(super) struct LentViews {
    count: AtomicUsize,
    pages: Mutex<LentPages>,
}

#[derive(Debug, Default)]
struct LentPages {
    /// How many views each page has.
    held: BTreeMap<u64, usize>,
    /// Pages without a view whose mark was not to be taken away: another thread did not end writing
    /// to them.
    marked: Vec<u64>,
}

impl LentPages {
    /// Calls `end` with the marked pages that are not lent again, until it takes their marks away.
    fn end_marked(&mut self, mut end: impl FnMut(u64) -> bool) {
        let held = &self.held;
        self.marked
            .retain(|page| !held.contains_key(page) && !end(*page));
    }
}

impl LentViews {
    fn pages(&self) -> MutexGuard<'_, LentPages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, page: u64) {
        let mut pages = self.pages();
        *pages.held.entry(page).or_default() += 1;
        self.count.fetch_add(1, AcqRel);
    }

    /// One fewer; calls `end` with the last one of a page, before another can be added, and, where
    /// that is false, again with each one of the file that ends later.
    pub(super) fn remove(&self, page: u64, end: impl FnMut(u64) -> bool) {
        let mut pages = self.pages();
        if let Some(count) = pages.held.get_mut(&page) {
            *count -= 1;
            if *count == 0 {
                pages.held.remove(&page);
                pages.marked.push(page);
            }
        }
        pages.end_marked(end);
        self.count.fetch_sub(1, AcqRel);
    }

    /// Whether no page has a mutable view.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Acquire) == 0
    }

    pub(super) fn first_in(&self, pages: Range<u64>) -> Option<u64> {
        if pages.is_empty() {
            return None;
        }
        let lent = self.pages();
        lent.held.range(pages).next().map(|(&page, _)| page)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_could_not_be_taken_away_is_taken_away_later() {
        let lent = LentViews::default();
        for page in [1, 1, 2, 3] {
            lent.add(page);
        }
        lent.remove(1, |_| unreachable!("it has another view"));
        lent.remove(1, |_| false);
        assert_eq!(lent.first_in(0..10), Some(2), "nothing waits for it");
        let mut ended = Vec::new();
        let mut end = |page| {
            ended.push(page);
            true
        };
        lent.remove(2, &mut end);
        lent.remove(3, &mut end);
        assert_eq!(ended, [1, 2, 3]);
        assert_eq!(lent.first_in(0..10), None);
    }
}

//! Read-ahead: its window, and the reads in flight.

use std::fmt;

use super::super::Mapping;
use super::ring::TaskId;
use crate::cache::Fill;
use crate::mem::pages::PAGE_BYTES;

/// Pages of the first window.
const FIRST_PAGES: u32 = 8;
/// Pages of the largest window: 1 MiB.
const MOST_PAGES: u32 = 256;

/// What a program says of its reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadAdvice {
    /// Nothing: sequential reads are noticed.
    #[default]
    Normal,
    /// From front to back: the largest window at once.
    Sequential,
    /// Anywhere: never more than asked for.
    Random,
}

/// How one reader goes through a file.
#[derive(Debug, Clone, Copy)]
pub struct ReadAhead {
    advice: ReadAdvice,
    /// Where the last read ended.
    prev_end: u64,
    window: u32,
    /// The first page that was not asked for yet.
    next: u64,
    /// A read that reaches this position begins the next window. `u64::MAX` for none.
    trigger: u64,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self::new(ReadAdvice::Normal)
    }
}

/// Tells whether a file's mappings still hold.
pub struct Validity(Box<dyn Fn(&Mapping) -> bool + Send>);

impl Validity {
    /// From a function that compares the mapping's cookie.
    pub fn new(is_current: impl Fn(&Mapping) -> bool + Send + 'static) -> Self {
        Self(Box::new(is_current))
    }

    pub(super) fn holds(&self, mapping: &Mapping) -> bool {
        (self.0)(mapping)
    }
}

impl fmt::Debug for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Validity")
    }
}

/// Pages that are read before a thread waits for them.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) task: TaskId,
    pub(super) fill: Fill,
    pub(super) used: Vec<Mapping>,
    /// Whether those still hold; where the thread waits for the pages at once, it asks by other
    /// means.
    pub(super) validity: Option<Validity>,
    /// Why not all of it was submitted.
    pub(super) failed: bool,
}

impl ReadAhead {
    /// A reader at the beginning.
    pub fn new(advice: ReadAdvice) -> Self {
        Self {
            advice,
            prev_end: 0,
            window: 0,
            next: 0,
            trigger: u64::MAX,
        }
    }

    /// Notes a read that was a hit; true when the next window is due.
    #[inline]
    pub(super) fn hit(&mut self, pos: u64, len: usize) -> bool {
        self.prev_end = pos + len as u64;
        self.prev_end > self.trigger
    }

    /// A read missed at `page`: how many pages beyond those that it wants are to be read with it.
    pub(super) fn miss(&mut self, pos: u64, page: u64, wanted: u32) -> u32 {
        let page_bytes = PAGE_BYTES as u64;
        let near = pos == self.prev_end || pos / page_bytes == self.prev_end / page_bytes;
        self.window = match self.advice {
            ReadAdvice::Random => 0,
            ReadAdvice::Sequential => MOST_PAGES,
            ReadAdvice::Normal if near => (self.window * 2).clamp(FIRST_PAGES, MOST_PAGES),
            ReadAdvice::Normal => 0,
        };
        if self.window == 0 {
            self.trigger = u64::MAX;
            return 0;
        }
        self.next = page + u64::from(wanted + self.window);
        // When half of the window is used up.
        self.trigger = (self.next - u64::from(self.window / 2)) * page_bytes;
        self.window
    }

    /// The next window is due: its first page and its length.
    pub(super) fn advance(&mut self) -> (u64, u32) {
        let first = self.next;
        self.window = (self.window * 2).clamp(FIRST_PAGES, MOST_PAGES);
        self.next = first + u64::from(self.window);
        self.trigger = first.saturating_mul(PAGE_BYTES as u64);
        (first, self.window)
    }

    /// Nothing more is to be had.
    pub(super) fn stop(&mut self) {
        self.trigger = u64::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_reads_grow_a_window_and_random_ones_have_none() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.miss(0, 0, 1), FIRST_PAGES);
        assert!(!ahead.hit(0, 4096));
        assert!(ahead.hit(4096 * 5, 4096));
        assert_eq!(ahead.advance(), (9, 16));
        assert!(!ahead.hit(4096 * 8, 4096) && ahead.hit(4096 * 9, 4096));
        assert_eq!(ahead.advance(), (25, 32));
        assert_eq!(ahead.miss(4096 * 1000, 1000, 1), 0);
        assert!(!ahead.hit(4096 * 1000, 4096));
        let mut random = ReadAhead::new(ReadAdvice::Random);
        assert_eq!(random.miss(0, 0, 4), 0);
        assert_eq!(
            ReadAhead::new(ReadAdvice::Sequential).miss(4096, 1, 4),
            MOST_PAGES
        );
    }
}

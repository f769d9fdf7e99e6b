//! Page cache counters. Each thread counts its hits for itself and adds them to the totals in
//! batches.

use std::sync::atomic::Ordering::Relaxed;

use super::Cache;
use crate::mem::pages::sync::atomic::AtomicU64;
use crossbeam_utils::CachePadded;

/// Page cache counters.
///
/// ```no_run
/// # use xtent::volume::{OpenOptions, Volume};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let options = OpenOptions::new().write(true).buffered(true);
/// # let file = options.open(&volume, &mut io, "/data")?;
/// if let Some(stats) = io.cache_stats() {
///     println!("{} hits, {} misses, {} dirty pages", stats.hits, stats.misses, stats.dirty_pages);
/// }
/// # drop(file);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CacheStats {
    /// The most memory that it may use.
    pub limit_bytes: usize,
    /// Pages that it has room for.
    pub pages: usize,
    /// Pages that are not free.
    pub used_pages: usize,
    /// Pages that are dirty or being written back.
    pub dirty_pages: usize,
    /// Leaves of the index in use (8 pages side by side).
    pub leaves: usize,
    /// Pages (or parts of them) that were found, to be read or written to.
    pub hits: u64,
    /// Pages that were not, and had to be read from the device.
    pub misses: u64,
    /// Pages evicted for others.
    pub evicted: u64,
    /// Pages read ahead of their use.
    pub ahead: u64,
    /// Of those, pages that were used.
    pub ahead_used: u64,
    /// Of those, pages that were evicted unused.
    pub ahead_wasted: u64,
    /// Pages written back.
    pub written_back: u64,
    /// Of those, pages that were written back in the background.
    pub background: u64,
    /// Pages whose writing back failed.
    pub write_errors: u64,
    /// Pages copied because they were pinned while they were written to.
    pub copied_on_write: u64,
}

#[derive(Debug, Default)]
pub(super) struct CacheCounters {
    hits: CachePadded<AtomicU64>,
    misses: CachePadded<AtomicU64>,
    pub(super) rest: CachePadded<Rest>,
}

/// Of these there are few enough to share a place.
#[derive(Debug, Default)]
pub(super) struct Rest {
    evicted: AtomicU64,
    pub(super) ahead: AtomicU64,
    pub(super) ahead_used: AtomicU64,
    ahead_wasted: AtomicU64,
    pub(super) written_back: AtomicU64,
    pub(super) background: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) copied: AtomicU64,
}

impl CacheCounters {
    pub(super) fn evicted(&self, ahead: bool) {
        self.rest.evicted.fetch_add(1, Relaxed);
        if ahead {
            self.rest.ahead_wasted.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn read(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            evicted: self.rest.evicted.load(Relaxed),
            ahead: self.rest.ahead.load(Relaxed),
            ahead_used: self.rest.ahead_used.load(Relaxed),
            ahead_wasted: self.rest.ahead_wasted.load(Relaxed),
            written_back: self.rest.written_back.load(Relaxed),
            background: self.rest.background.load(Relaxed),
            write_errors: self.rest.write_errors.load(Relaxed),
            copied_on_write: self.rest.copied.load(Relaxed),
            ..CacheStats::default()
        }
    }
}

/// Hit and miss counters of one thread, not shared while it counts, and the place of its last page:
/// consecutive pages of a file are often neighbours in the cache, so the index is not needed for
/// them.
#[derive(Debug, Default)]
pub struct Tally {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) guess: Guess,
}

/// How far leaves and frames are from where they would be if the file's first page were the cache's
/// first.
#[derive(Debug, Default)]
pub(super) struct Guess {
    leaf: u32,
    frame: u32,
    /// It was right the last time.
    pub(super) sure: bool,
}

impl Guess {
    /// Where a leaf is, probably.
    #[inline(always)]
    pub(super) fn leaf(&self, no: u64) -> u32 {
        self.leaf.wrapping_add(low(no))
    }

    /// Where a page is, probably.
    #[inline(always)]
    pub(super) fn frame(&self, page: u64) -> u32 {
        self.frame.wrapping_add(low(page))
    }

    /// Where they are.
    #[inline(always)]
    pub(super) fn learn(&mut self, no: u64, leaf: u32, page: u64, frame: u32) {
        let (leaf, frame) = (leaf.wrapping_sub(low(no)), frame.wrapping_sub(low(page)));
        self.sure = leaf == self.leaf && frame == self.frame;
        (self.leaf, self.frame) = (leaf, frame);
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "differences modulo 2^32")]
fn low(number: u64) -> u32 {
    number as u32
}

impl Tally {
    /// Pages that had to be read.
    pub fn missed(&mut self, pages: u64) {
        self.misses += pages;
    }

    /// Adds what was counted to the cache's own count.
    pub fn flush(&mut self, cache: &Cache) {
        let counters = &cache.inner().counters;
        counters
            .hits
            .fetch_add(std::mem::take(&mut self.hits), Relaxed);
        counters
            .misses
            .fetch_add(std::mem::take(&mut self.misses), Relaxed);
    }
}

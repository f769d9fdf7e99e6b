//! A page cache in hugepages.
//!
//! Layer 1: memory only. Pages of files lie in DMA memory ([`crate::mem::pages`]); here is what
//! finds them without a lock (`index`), what decides which ones go (`reclaim`), and what counts
//! them. Nothing here does I/O: who finds a page missing, or too much dirty, is told so, and reads
//! or writes with `iomap`'s buffered operations.
//!
//! - A [`Cache`] is one limit of memory, taken at the start: the limit is kept because there is
//!   nothing more to take. Everything it needs is counted in, index and queues included.
//! - A [`FileCache`] is a file's pages in it. [`FileCache::read_hit`] and [`FileCache::write_hit`]
//!   do what can be done in memory; [`FileCache::view`] lends the bytes themselves.
//! - A hit writes to one word, the page's own: threads that touch different pages share nothing.
#![forbid(unsafe_code)]

mod alarm;
mod dirty;
mod errors;
mod file;
mod fill;
mod free;
mod ghosts;
mod hit;
mod index;
mod lent;
#[cfg(not(loom))]
#[cfg(test)]
mod policy_tests;
mod reclaim;
mod stats;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;
mod view;
mod wait;
mod waiters;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use self::alarm::Alarm;
use self::free::FreeFrames;
use self::index::{Index, LEAF_PAGES};
use self::reclaim::{Reclaim, Victim};
use self::stats::CacheCounters;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Heap;
use crate::mem::pages::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize};
use crate::mem::pages::{FrameRun, MAX_FRAMES, PAGE_BYTES, PageTable};

pub use dirty::{DirtyPage, Pressure};
pub use errors::ErrorCursor;
pub use file::{FileCache, Invalidated};
pub(crate) use file::{Writing, Wrote};
pub use fill::Fill;
pub(crate) use fill::{Merge, PageState};
pub use reclaim::Policy;
pub use stats::{CacheStats, Tally};
pub(crate) use view::NotLent;
pub use view::{View, ViewMut};
pub(crate) use wait::{BoundedWait, LOCK_LIMIT};

/// How a cache is made.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// The most memory that it may use, in bytes, all of its own needs included. It is taken at
    /// once.
    pub limit_bytes: usize,
    /// What decides which pages stay.
    pub policy: Policy,
    /// From this share of dirty pages on, in percent, some are written back: in the background, or
    /// by writers.
    pub background_percent: u8,
    /// No more than this share of pages becomes dirty, in percent: writers wait for that, or write
    /// back first.
    pub hard_percent: u8,
    /// How long a page that another thread writes back is waited for. Longer than the device can
    /// take with all of its deadlines and retries: then it does not end any more.
    pub wait_limit: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            limit_bytes: 256 << 20,
            policy: Policy::default(),
            background_percent: 10,
            hard_percent: 20,
            wait_limit: Duration::from_secs(300),
        }
    }
}

/// What a page costs beside its bytes: a leaf of its own, which is the worst case (128), queues
/// (32), detached frames (20), owner and flag (5), the ghosts (32), buckets (2), lists and free
/// runs (25).
const OVERHEAD_BYTES: usize = 244;
/// The least that is of any use.
const LEAST_FRAMES: usize = 64;
/// Pages that are evicted at once, where one is needed.
const EVICT_BATCH: usize = 32;

/// Memory for pages of files. Cheap to clone; all clones are the same cache.
#[derive(Debug, Clone)]
pub struct Cache(Arc<CacheInner>);

#[derive(Debug)]
struct CacheInner {
    pages: PageTable,
    index: Index,
    free: FreeFrames,
    reclaim: Reclaim,
    frames: usize,
    limit_bytes: usize,
    background_pages: usize,
    hard_pages: usize,
    wait_limit: Duration,
    /// Pages that are dirty or being written back.
    dirty_pages: CachePadded<AtomicIsize>,
    /// Pages that are being written back, of all files.
    in_writeback: CachePadded<AtomicUsize>,
    /// Wakes the flusher thread.
    alarm: Alarm,
    /// A flusher thread runs, and its last writeback succeeded.
    background: AtomicBool,
    counters: CacheCounters,
}

impl Cache {
    /// A cache with memory from `heap`, which every device that is attached to it reaches.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a limit that is too small or shares that make no sense;
    /// [`ErrorKind::OutOfMemory`].
    pub fn new(heap: &Heap, config: CacheConfig) -> Result<Self> {
        let frames = config.limit_bytes / (PAGE_BYTES + OVERHEAD_BYTES);
        let (background, hard) = (config.background_percent, config.hard_percent);
        if frames < LEAST_FRAMES {
            let least = LEAST_FRAMES * (PAGE_BYTES + OVERHEAD_BYTES);
            return Err(invalid(format!(
                "a cache of {} bytes is too small: give it at least {least}",
                config.limit_bytes
            )));
        }
        if background > hard || hard > 90 || hard == 0 {
            return Err(invalid(format!(
                "dirty shares of {background} and {hard} percent: the first is at most the second, which is 1 to 90"
            )));
        }
        let frames = u32::try_from(frames).unwrap_or(MAX_FRAMES).min(MAX_FRAMES);
        // Reservations of threads that are about to put a page somewhere come on top.
        let leaves = frames + 1024;
        let slots = leaves
            .checked_mul(LEAF_PAGES)
            .ok_or_else(|| invalid("a cache has at most 2 TiB".to_owned()))?;
        let (pages, run) = PageTable::new(heap, frames, slots)?;
        let free = FreeFrames::default();
        free.give(run);
        let share = |percent: u8| frames as usize * usize::from(percent) / 100;
        Ok(Self(Arc::new(CacheInner {
            index: Index::new(pages.groups()),
            pages,
            free,
            reclaim: Reclaim::new(frames, config.policy),
            frames: frames as usize,
            limit_bytes: config.limit_bytes,
            background_pages: share(background).max(1),
            hard_pages: share(hard).max(2),
            wait_limit: config.wait_limit,
            dirty_pages: CachePadded::new(AtomicIsize::new(0)),
            in_writeback: CachePadded::new(AtomicUsize::new(0)),
            alarm: Alarm::default(),
            background: AtomicBool::new(false),
            counters: CacheCounters::default(),
        })))
    }

    fn inner(&self) -> &CacheInner {
        &self.0
    }

    /// Pages that it has room for.
    pub fn pages(&self) -> usize {
        self.0.frames
    }

    /// What was counted so far, and how things stand.
    pub fn stats(&self) -> CacheStats {
        let inner = &*self.0;
        let free = inner.free.len() + inner.pages.orphans();
        CacheStats {
            limit_bytes: inner.limit_bytes,
            pages: inner.frames,
            used_pages: inner.frames.saturating_sub(free),
            dirty_pages: inner.dirty(),
            leaves: inner.index.len(),
            ..inner.counters.read()
        }
    }

    /// How much is dirty, against the limits.
    pub fn pressure(&self) -> Pressure {
        let dirty = self.0.dirty();
        if dirty >= self.0.hard_pages {
            Pressure::Hard
        } else if dirty >= self.0.background_pages {
            Pressure::Background
        } else {
            Pressure::None
        }
    }

    /// Pages that may become dirty before the hard limit is reached.
    pub fn dirty_room(&self) -> usize {
        self.0.hard_pages.saturating_sub(self.0.dirty())
    }

    /// Number of pages in writeback, by all threads.
    pub fn in_writeback(&self) -> usize {
        self.0.in_writeback.load(Acquire)
    }

    /// Sets the function that wakes the flusher thread: called when the background share is
    /// reached, and when the first page becomes dirty after [`Cache::is_all_clean`] said so. The
    /// thread that dirties the page calls it, so it must return quickly. It can be set once; false
    /// when it is set already.
    pub fn when_dirty(&self, wake: impl Fn() + Send + Sync + 'static) -> bool {
        self.0.alarm.set(Box::new(wake))
    }

    /// Whether nothing is dirty; then the one of [`Cache::when_dirty`] is called when something is.
    pub fn is_all_clean(&self) -> bool {
        self.0.alarm.arm(&self.0.dirty_pages)
    }

    /// Sets whether a flusher thread runs and works. If so, writers leave writeback to it and wait
    /// only at the hard share. The flusher writes until less than the background share is dirty, or
    /// resets this.
    pub fn set_background(&self, works: bool) {
        self.0.background.store(works, Release);
    }

    /// Whether a flusher thread runs and works.
    pub fn has_background(&self) -> bool {
        self.0.background.load(Acquire)
    }

    /// Counts pages that were written back in the background.
    pub fn count_background(&self, pages: usize) {
        self.0
            .counters
            .rest
            .background
            .fetch_add(pages as u64, Relaxed);
    }

    /// The frames' memory.
    pub(crate) fn table(&self) -> &PageTable {
        &self.0.pages
    }
}

impl CacheInner {
    pub(super) fn frames(&self, wanted: u32) -> Option<FrameRun> {
        if let Some(run) = self.free.take(wanted) {
            return Some(run);
        }
        self.make_room(EVICT_BATCH.max(wanted as usize));
        self.free.take(wanted)
    }

    pub(super) fn give_back(&self, run: FrameRun) {
        self.free.give(run);
    }

    /// Evicts some pages, and collects what was let go of.
    #[cold]
    fn make_room(&self, pages: usize) {
        let mut runs = Vec::with_capacity(pages);
        while let Some(run) = self.pages.orphan() {
            runs.push(run);
        }
        while runs.len() < pages {
            let hash = |slot| self.page_hash(slot);
            match self.reclaim.victim(&self.pages, hash) {
                Victim::Frame(frame, slot, ahead) => {
                    self.counters.evicted(ahead);
                    self.index.release(slot / LEAF_PAGES);
                    runs.push(frame);
                }
                Victim::Nothing => break,
            }
        }
        self.free.give_all(runs);
    }

    fn page_hash(&self, slot: u32) -> u64 {
        let (file, no) = self.index.key(slot / LEAF_PAGES);
        index::key_hash(
            file,
            no * u64::from(LEAF_PAGES) + u64::from(slot % LEAF_PAGES),
        )
    }

    /// A page came into a slot.
    pub(super) fn track(&self, frame: u32, slot: u32) {
        self.reclaim.track(frame, self.page_hash(slot));
    }

    /// A page moved to another frame.
    pub(super) fn moved(&self, frame: u32) {
        self.reclaim.moved(frame);
    }

    /// A frame is about to be put into a slot.
    pub(super) fn set_owner(&self, frame: u32, slot: u32) {
        self.reclaim.set_owner(frame, slot);
    }

    pub(super) fn count_dirty(&self) {
        let before = self.dirty_pages.fetch_add(1, Relaxed);
        if before == 0 {
            self.alarm.first_dirty();
        }
        if before.unsigned_abs() + 1 == self.background_pages {
            self.alarm.ring();
        }
    }

    pub(super) fn count_clean(&self, pages: usize) {
        self.dirty_pages.fetch_sub(pages.cast_signed(), Relaxed);
    }

    /// Below 0 for a moment, where a page went before it was counted.
    fn dirty(&self) -> usize {
        usize::try_from(self.dirty_pages.load(Relaxed)).unwrap_or(0)
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidInput, why)
}

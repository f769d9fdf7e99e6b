//! Dirty pages: found in order, written back, and counted against the limits.

use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::file::{FileCache, FileInner};
use super::index::{LEAF_PAGES, LEAF_SHIFT};
use super::wait::BoundedWait;
use crate::mem::Segment;
use crate::mem::pages::{PAGE_BYTES, WritebackPage};

/// How much is dirty, against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Below both.
    None,
    /// Above the background share: some should be written back.
    Background,
    /// Above the hard share: nothing more should become dirty before some is written back.
    Hard,
}

/// A dirty page that was taken for writing it back. It must come back by `FileCache::written`.
#[derive(Debug)]
#[must_use = "the page stays as it is for ever when this is dropped"]
pub struct DirtyPage {
    page: u64,
    inner: WritebackPage,
}

impl DirtyPage {
    /// The page's number in the file.
    pub fn page(&self) -> u64 {
        self.page
    }

    /// Which of its granules of 512 bytes are dirty, a bit each.
    pub fn granules(&self) -> u8 {
        self.inner.granules()
    }
}

impl FileCache {
    /// Takes dirty pages of a range of page numbers, in order, at most `most` of them, for
    /// writeback. Pages that another thread writes back or modifies right now are skipped and stay
    /// dirty, unless `wait` says to wait for them. Returns the page to continue from if the scan
    /// stopped early.
    pub fn take_dirty(
        &self,
        pages: Range<u64>,
        most: usize,
        wait: bool,
        taken: &mut Vec<DirtyPage>,
    ) -> Option<u64> {
        self.take_dirty_pages(pages, most, wait, taken, &mut None)
    }

    /// The same. Sets `stuck` to the first page that another thread writes to and does not let go
    /// of; it is left.
    pub(crate) fn take_dirty_pages(
        &self,
        pages: Range<u64>,
        most: usize,
        wait: bool,
        taken: &mut Vec<DirtyPage>,
        stuck: &mut Option<u64>,
    ) -> Option<u64> {
        let inner = &*self.0;
        let index = &inner.cache.inner().index;
        let mut from = pages.start >> LEAF_SHIFT;
        loop {
            let found = inner.lists.dirty().range(from..).next().copied();
            let no = found.filter(|no| no << LEAF_SHIFT < pages.end)?;
            if taken.len() + LEAF_PAGES as usize > most.max(LEAF_PAGES as usize) {
                return Some((no << LEAF_SHIFT).max(pages.start));
            }
            match index.hold(inner.id, no) {
                Some(leaf) => {
                    inner.take_dirty_of(leaf, no, &pages, wait, taken, stuck);
                    let has_dirty = || inner.has_dirty(leaf);
                    index.unlist_clean(leaf, &inner.lists, no, has_dirty);
                    index.release(leaf);
                }
                None => index.unlist_gone(inner.id, &inner.lists, no),
            }
            from = no + 1;
        }
    }

    /// A page's memory, for the command that writes it; `None` when the range is not inside of a
    /// page.
    pub(crate) fn segment_of(&self, page: &DirtyPage, range: Range<usize>) -> Option<Segment> {
        let table = &self.0.cache.inner().pages;
        table.writeback_segment(&page.inner, range)
    }

    /// A page was written back, or could not be: then it is dirty again. The caller has seen every
    /// command on it end, or the device stopped.
    pub(crate) fn written(&self, page: DirtyPage, well: bool) {
        let inner = &*self.0;
        let cache = inner.cache.inner();
        let rest = &cache.counters.rest;
        let counter = if well {
            &rest.written_back
        } else {
            &rest.write_errors
        };
        counter.fetch_add(1, Relaxed);
        let no = page.page >> LEAF_SHIFT;
        if cache.pages.end_writeback(page.inner, well) {
            cache.count_clean(1);
        } else if let Some(leaf) = cache.index.hold(inner.id, no) {
            cache.index.list_dirty(leaf, &inner.lists, no);
            cache.index.release(leaf);
        }
        inner.count_in_writeback(false);
    }

    /// Number of pages in writeback, by all threads.
    pub fn in_writeback(&self) -> usize {
        self.0.in_writeback.load(Acquire)
    }

    /// Waits until no thread writes the file back; false when that takes longer than every deadline
    /// of the device allows.
    pub(crate) fn await_writeback(&self) -> bool {
        let limit = self.0.cache.inner().wait_limit;
        self.in_writeback() == 0 || self.0.waiters.wait(limit, || self.in_writeback() == 0)
    }

    /// Whether a thread waits for this file's writeback to end. The flusher then does not start
    /// another pass over the file, which could keep that thread waiting.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.0.waiters.count() > 0
    }

    /// Whether there may be dirty pages, or pages being written back.
    pub fn may_be_dirty(&self) -> bool {
        // Both at one time: pages are counted before they leave the list, and until they are back
        // there.
        let dirty = self.0.lists.dirty();
        !dirty.is_empty() || self.in_writeback() != 0
    }
}

impl FileInner {
    fn take_dirty_of(
        &self,
        leaf: u32,
        no: u64,
        pages: &Range<u64>,
        wait: bool,
        taken: &mut Vec<DirtyPage>,
        stuck: &mut Option<u64>,
    ) {
        let table = &self.cache.inner().pages;
        for slot in 0..LEAF_PAGES {
            let page = (no << LEAF_SHIFT) + u64::from(slot);
            let at = leaf * LEAF_PAGES + slot;
            let mut patience = BoundedWait::for_lock();
            loop {
                let look = table.look(at);
                if !pages.contains(&page) || (look.locked && !wait) {
                    break;
                }
                // Another thread writes to a locked page, for a moment; it may have been dirty
                // before.
                if !look.locked {
                    if look.dirty == 0 || look.writeback {
                        break;
                    }
                    // Counted before the leaf is unlisted: a thread that waits for writeback must
                    // not miss it.
                    self.count_in_writeback(true);
                    if let Some(inner) = table.begin_writeback(at) {
                        taken.push(DirtyPage { page, inner });
                        break;
                    }
                    self.count_in_writeback(false);
                }
                if !patience.wait() {
                    stuck.get_or_insert(page * PAGE_BYTES as u64);
                    break;
                }
            }
        }
    }

    /// Whether a held leaf has pages that are dirty or being modified. Pages in writeback are
    /// counted.
    fn has_dirty(&self, leaf: u32) -> bool {
        let table = &self.cache.inner().pages;
        (0..LEAF_PAGES).any(|slot| {
            let look = table.look(leaf * LEAF_PAGES + slot);
            look.locked || look.dirty != 0
        })
    }

    fn count_in_writeback(&self, more: bool) {
        let all = &self.cache.inner().in_writeback;
        if more {
            all.fetch_add(1, AcqRel);
            self.in_writeback.fetch_add(1, AcqRel);
        } else {
            self.in_writeback.fetch_sub(1, AcqRel);
            all.fetch_sub(1, AcqRel);
            self.waiters.wake();
        }
    }
}

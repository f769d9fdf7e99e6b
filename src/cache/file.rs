//! A file's pages: what can be read and written in memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::errors::Errors;
use super::index::{LEAF_PAGES, LEAF_SHIFT, Lists, salt_of};
use super::lent::LentViews;
use super::wait::BoundedWait;
use super::waiters::Waiters;
use super::{Cache, CacheInner, ErrorCursor};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::pages::sync::atomic::{AtomicU64, AtomicUsize};
use crate::mem::pages::{
    ALL_GRANULES, FrameRun, PAGE_BYTES, Pin, Removed, Which, WriteLock, granules_covered,
    granules_touched,
};

/// Bits of a position inside of its page.
const PAGE_SHIFT: u32 = PAGE_BYTES.trailing_zeros();

/// A file's pages in a [`Cache`]. Cheap to clone; all clones are the same file. Dropping the last
/// one drops the pages, dirty ones included, so sync first.
#[derive(Debug, Clone)]
pub struct FileCache(pub(super) Arc<FileInner>);

#[derive(Debug)]
pub(super) struct FileInner {
    pub(super) cache: Cache,
    pub(super) id: u32,
    /// The index's, of `id`.
    pub(super) salt: u64,
    /// Filesystem block size in bytes, minus one: the unit of device reads and writes.
    block_mask: usize,
    /// Bytes of a filesystem block, which may be larger than a page.
    whole_block_bytes: u64,
    pub(super) size_bytes: AtomicU64,
    pub(super) lists: Arc<Lists>,
    pub(super) errors: Errors,
    /// Pages that are being written back.
    pub(super) in_writeback: AtomicUsize,
    /// Threads that wait for that to end, or for a mutable view.
    pub(super) waiters: Waiters,
    /// Pages that mutable views are lent of, and how many.
    pub(super) lent: LentViews,
    /// Not 0 when a mutable view has written to it.
    pub(super) written_by_view: AtomicUsize,
}

/// What an invalidation left.
#[must_use = "a page that is stuck stays cached"]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Invalidated {
    /// Pages that went.
    pub removed: usize,
    /// Dirty pages, and pages that mutable views are lent of, that were left, because others were
    /// asked for.
    pub kept: usize,
    /// The position of a page that was left because another thread writes to it, or writes it back,
    /// and does not end.
    pub stuck: Option<u64>,
}

impl FileCache {
    /// A file of `size_bytes`, without pages yet. `block_bytes` is what its filesystem and device
    /// read and write as a whole; of blocks larger than a page each page is read and written alone.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a block that is no power of two from 512 on.
    pub fn new(cache: &Cache, size_bytes: u64, block_bytes: u32) -> Result<Self> {
        let block = block_bytes as usize;
        if !block.is_power_of_two() || block < 512 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("blocks of {block} bytes cannot be cached: 512 is the least"),
            ));
        }
        let (id, lists) = cache.inner().index.add_file();
        Ok(Self(Arc::new(FileInner {
            cache: cache.clone(),
            id,
            salt: salt_of(id),
            block_mask: block.min(PAGE_BYTES) - 1,
            whole_block_bytes: block_bytes.into(),
            size_bytes: AtomicU64::new(size_bytes),
            lists,
            errors: Errors::default(),
            in_writeback: AtomicUsize::new(0),
            waiters: Waiters::default(),
            lent: LentViews::default(),
            written_by_view: AtomicUsize::new(0),
        })))
    }

    /// The cache that its pages are in.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Bytes of the file, as its writers see it.
    #[inline]
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes.load(Acquire)
    }

    /// The file is longer now, if it was shorter. Before: what lies between must be zero, on disk
    /// and here.
    pub fn grow(&self, size_bytes: u64) {
        self.0.size_bytes.fetch_max(size_bytes, AcqRel);
    }

    /// The file has another size. Pages beyond a smaller one are to be invalidated after.
    pub fn set_size(&self, size_bytes: u64) {
        self.0.size_bytes.store(size_bytes, Release);
    }

    /// Bytes that are read and written as a whole, at most a page.
    pub fn block_bytes(&self) -> usize {
        self.0.block_mask + 1
    }

    /// Bytes of a block of the file, which may have several pages.
    pub fn whole_block_bytes(&self) -> u64 {
        self.0.whole_block_bytes
    }

    /// A cursor for a new handle: later calls report only failures that happen after this one.
    pub fn error_cursor(&self) -> ErrorCursor {
        self.0.errors.cursor()
    }

    /// The last failure of writing back, where this cursor has not heard of it yet.
    ///
    /// # Errors
    /// That failure.
    pub fn check_errors(&self, cursor: &mut ErrorCursor) -> Result<()> {
        self.0.errors.check(cursor).map_or(Ok(()), Err)
    }

    /// Records a failure for the next sync of each handle.
    pub fn note_error(&self, error: &Error, pos: u64) {
        self.0.errors.note(error, pos);
    }

    /// Moves the page at a position to another frame if its view pins are exhausted. False when
    /// there is no free frame.
    pub(crate) fn copy_full(&self, pos: u64) -> bool {
        let (page, _) = place(pos);
        let (no, slot) = leaf_of(page);
        let inner = self.0.cache.inner();
        let leaf = inner.index.find(self.0.id, no);
        let full = leaf.is_some_and(|leaf| inner.pages.are_pins_full(leaf * LEAF_PAGES + slot));
        !full || self.0.copy_full(page)
    }

    /// Removes the pages of a range: those that lie in it as a whole, and those that lie in it in
    /// part too, where `partly` says so. Waits for those that are being written back.
    pub fn invalidate(&self, range: Range<u64>, which: Which, partly: bool) -> Invalidated {
        let up = |pos: u64| pos.div_ceil(PAGE_BYTES as u64);
        let (first, behind) = if partly {
            (range.start >> PAGE_SHIFT, up(range.end))
        } else {
            (up(range.start), range.end >> PAGE_SHIFT)
        };
        self.0.invalidate(first..behind, which)
    }

    /// Whether the pages of a range are all there, up to date.
    pub fn is_cached(&self, page: u64, from: usize, to: usize) -> bool {
        let inner = self.0.cache.inner();
        let (no, slot) = leaf_of(page);
        inner.index.find(self.0.id, no).is_some_and(|leaf| {
            let look = inner.pages.look(leaf * LEAF_PAGES + slot);
            let want = granules_touched(from, to);
            look.present && look.uptodate & want == want
        })
    }
}

/// State of a write, and the end-of-file condition to check once the page is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// A hit: it is inside of the file, still, and of its blocks nothing is known but what the page
    /// says.
    Hit,
    /// The filesystem has been asked.
    Asked {
        /// The write extends the file: the size is updated before the page's new content is
        /// visible.
        grow: bool,
        /// The blocks of all of the page are there, and its own.
        backed: bool,
    },
}

impl Writing {
    /// What must be dirty already, unless the page is backed.
    #[inline]
    pub(super) fn claim(self, touched: u8) -> u8 {
        match self {
            Self::Hit => touched,
            Self::Asked { .. } => 0,
        }
    }

    #[inline]
    pub(super) fn backed(self) -> bool {
        matches!(self, Self::Asked { backed: true, .. })
    }

    pub(super) fn grows(self) -> bool {
        matches!(self, Self::Asked { grow: true, .. })
    }
}

/// What came of writing into a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// It is written.
    Yes,
    /// The page, or what the write needs of it, is not there.
    Missing,
    /// A copy was needed, and there is no frame for it.
    NoFrame,
}

/// The granules of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// Blocks that it touches.
    pub(super) touched: u8,
    /// Of those, what must be up to date before, because it covers them in part.
    pub(super) needed: u8,
}

/// The page of a position, and the byte in it.
#[inline]
pub(super) fn place(pos: u64) -> (u64, usize) {
    let from = pos & (PAGE_BYTES as u64 - 1);
    (pos >> PAGE_SHIFT, usize::try_from(from).unwrap_or(0))
}

/// The leaf of a page, and the slot in it.
#[inline]
pub(super) fn leaf_of(page: u64) -> (u64, u32) {
    let slot = page & u64::from(LEAF_PAGES - 1);
    (page >> LEAF_SHIFT, u32::try_from(slot).unwrap_or(0))
}

impl FileInner {
    /// The granules of the blocks that a write touches.
    #[inline(always)]
    pub(super) fn touched(&self, from: usize, to: usize) -> u8 {
        if self.block_mask == PAGE_BYTES - 1 && from < to {
            return ALL_GRANULES;
        }
        granules_touched(
            from & !self.block_mask,
            (to + self.block_mask) & !self.block_mask,
        )
    }

    pub(super) fn marks(&self, from: usize, to: usize) -> Marks {
        let mask = self.block_mask;
        let touched = self.touched(from, to);
        let covered = granules_covered((from + mask) & !mask, to & !mask);
        Marks {
            touched,
            needed: touched & !covered,
        }
    }

    /// Writes into a page that others hold on to: into a copy, which takes its place. They keep
    /// what they saw.
    #[cold]
    pub(super) fn copy_and_write(
        &self,
        page: u64,
        from: usize,
        bytes: &[u8],
        writing: Writing,
    ) -> Wrote {
        let inner = self.cache.inner();
        let (no, slot) = leaf_of(page);
        let marks = self.marks(from, from + bytes.len());
        for _ in 0..8 {
            let Some(mut frame) = inner.frames(1) else {
                return Wrote::NoFrame;
            };
            let Some(leaf) = inner.index.find(self.id, no) else {
                inner.give_back(frame);
                return Wrote::Missing;
            };
            let at = leaf * LEAF_PAGES + slot;
            let pin = match inner.pages.pin_reserved(at, marks.needed) {
                Ok(pin) if inner.index.is(leaf, self.id, no) => pin,
                _ => {
                    inner.give_back(frame);
                    return Wrote::Missing;
                }
            };
            pin.used();
            if !self.allows(writing, page, from + bytes.len()) {
                inner.give_back(frame);
                return Wrote::Missing;
            }
            let to = inner.pages.bytes_mut(&mut frame);
            to.copy_from_slice(pin.bytes());
            to[from..from + bytes.len()].copy_from_slice(bytes);
            match self.swap_in(leaf, no, pin, at, frame, marks, writing) {
                Ok(()) => {
                    inner.counters.rest.copied.fetch_add(1, Relaxed);
                    return Wrote::Yes;
                }
                Err(frame) => inner.give_back(frame),
            }
        }
        Wrote::Missing
    }

    /// Moves the page to another frame when its view pins are exhausted; existing views keep the
    /// old frame. False when there is no free frame.
    #[cold]
    pub(super) fn copy_full(&self, page: u64) -> bool {
        self.copy_and_write(page, 0, &[], Writing::Hit) != Wrote::NoFrame
    }

    /// Puts a frame in the place of a pinned one.
    #[expect(clippy::too_many_arguments, reason = "what a page is, in two places")]
    pub(super) fn swap_in(
        &self,
        leaf: u32,
        no: u64,
        pin: Pin<'_>,
        slot: u32,
        frame: FrameRun,
        marks: Marks,
        writing: Writing,
    ) -> Result<(), FrameRun> {
        let inner = self.cache.inner();
        let number = frame.first();
        let uptodate = pin.uptodate() | marks.touched;
        // Another reservation, so that the leaf stays when the page goes meanwhile.
        let held = inner.index.hold(self.id, no);
        inner.set_owner(number, slot);
        let claim = writing.claim(marks.touched);
        let replaced =
            inner
                .pages
                .replace(pin, frame, uptodate, marks.touched, claim, writing.backed());
        let result = match replaced {
            Ok(newly_dirty) => {
                inner.moved(number);
                if newly_dirty {
                    inner.count_dirty();
                }
                if marks.touched != 0 {
                    // Even where it counted as dirty already: it may have been taken off the list
                    // to be written back.
                    inner.index.list_dirty(leaf, &self.lists, no);
                }
                Ok(())
            }
            Err(frame) => Err(frame),
        };
        if let Some(held) = held {
            inner.index.release(held);
        }
        result
    }

    /// Whether a write may end at this byte of a page; extends the file for it if requested.
    #[inline(always)]
    pub(super) fn allows(&self, writing: Writing, page: u64, to: usize) -> bool {
        let behind = (page << PAGE_SHIFT) + to as u64;
        match writing {
            Writing::Hit => behind <= self.size_bytes.load(Acquire),
            Writing::Asked { grow, .. } => {
                if grow {
                    self.size_bytes.fetch_max(behind, AcqRel);
                }
                true
            }
        }
    }

    /// Marks a page as written to, before or after it is, in any case before it is let go of.
    #[inline(always)]
    pub(super) fn mark_written(
        &self,
        lock: &mut WriteLock<'_>,
        leaf: u32,
        page: u64,
        touched: u8,
        backed: bool,
    ) {
        if lock.marks().1 == 0 {
            // While it is locked: the leaf cannot be reused, and a thread that looks for dirty
            // pages waits for the lock.
            self.first_dirty(leaf, page >> LEAF_SHIFT);
        }
        lock.written(touched, touched, backed);
    }

    #[cold]
    #[inline(never)]
    fn first_dirty(&self, leaf: u32, no: u64) {
        let inner = self.cache.inner();
        inner.count_dirty();
        inner.index.list_dirty(leaf, &self.lists, no);
    }

    fn invalidate(&self, pages: Range<u64>, which: Which) -> Invalidated {
        let inner = self.cache.inner();
        let mut done = Invalidated::default();
        let (first, _) = leaf_of(pages.start);
        let mut next = Some(first);
        while let Some(from) = next {
            let found = self.lists.leaves().range(from..).next().copied();
            let Some(no) = found.filter(|no| no << LEAF_SHIFT < pages.end) else {
                break;
            };
            next = no.checked_add(1);
            let Some(leaf) = inner.index.hold(self.id, no) else {
                continue;
            };
            for slot in 0..LEAF_PAGES {
                let page = (no << LEAF_SHIFT) + u64::from(slot);
                if pages.contains(&page) && !self.remove(leaf, slot, which, &mut done) {
                    done.stuck.get_or_insert(page << PAGE_SHIFT);
                }
            }
            inner.index.release(leaf);
        }
        done
    }

    /// False when it is being written to, or written back, without end.
    fn remove(&self, leaf: u32, slot: u32, which: Which, done: &mut Invalidated) -> bool {
        let inner = self.cache.inner();
        let at = leaf * LEAF_PAGES + slot;
        let mut patience = BoundedWait::for_lock();
        let dirty = loop {
            match inner.pages.remove(at, which) {
                Removed::Busy => {
                    let in_writeback = || inner.pages.look(at).writeback;
                    let goes_on = match in_writeback() {
                        true => self.waiters.wait(inner.wait_limit, || !in_writeback()),
                        false => patience.wait(),
                    };
                    if !goes_on {
                        return false;
                    }
                }
                Removed::Nothing => return true,
                Removed::Kept => {
                    done.kept += 1;
                    return true;
                }
                Removed::Filling => break false,
                Removed::Detached(dirty) => break dirty,
                Removed::Frame(frame, dirty) => {
                    inner.give_back(frame);
                    break dirty;
                }
            }
        };
        if dirty {
            inner.count_clean(1);
        }
        done.removed += 1;
        inner.index.release(leaf);
        true
    }
}

impl CacheInner {
    /// A page that was read ahead is used.
    #[cold]
    pub(super) fn arrived(&self, slot: u32) {
        if self.pages.arrive(slot) {
            self.counters.rest.ahead_used.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for FileInner {
    fn drop(&mut self) {
        // A page that is written back now belongs to a device: then the number stays taken, as do
        // its pages.
        if self.in_writeback.load(Acquire) != 0 {
            return;
        }
        if self.invalidate(0..u64::MAX, Which::All).stuck.is_none() {
            self.cache.inner().index.remove_file(self.id);
        }
    }
}

//! Pages that come: read from the device, or written as a whole.

use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use super::file::{FileCache, FileInner, Marks, Writing, leaf_of, place};
use super::index::LEAF_PAGES;
use crate::mem::Segment;
use crate::mem::pages::{ALL_GRANULES, FrameRun, LentRun, PAGE_BYTES, Pin, Which};
use crate::mem::pages::{Blocked, granules_touched};

/// What stands in the way of a page, where it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageState {
    /// Nothing: it is not there.
    Absent,
    /// Another thread reads it from the device.
    Filling,
    /// It is there in part.
    Partial,
    /// It is there, or was a moment ago.
    There,
}

/// Pages side by side that are being read. The slots are marked; what others put there meanwhile
/// stays.
#[derive(Debug)]
pub struct Fill {
    file: FileCache,
    page: u64,
    slots: Box<[u32]>,
    frames: Option<LentRun>,
}

impl Fill {
    /// The first page.
    pub fn page(&self) -> u64 {
        self.page
    }

    /// How many pages.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Never: a fill has a page at least.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The device's name for a range of their bytes.
    pub(crate) fn segment(&self, range: Range<usize>) -> Option<Segment> {
        self.frames.as_ref()?.segment(range)
    }

    /// Copies bytes to `start` and zeroes what follows, `len` bytes together, where no command in
    /// flight covers them.
    pub(crate) fn put(&mut self, start: usize, len: usize, bytes: &[u8]) {
        if let Some(frames) = &mut self.frames {
            self.file
                .cache()
                .table()
                .fill_lent(frames, start, len, bytes);
        }
    }

    /// All has been read. Copies from file position `pos` on what `buf` has room for and the pages
    /// have, and returns how much; then gives the pages to the cache, marked as read ahead if so.
    /// The caller has seen every command on them end.
    pub(crate) fn finish(mut self, ahead: bool, pos: u64, buf: &mut [u8]) -> usize {
        let Some(frames) = self.frames.take() else {
            return 0;
        };
        let table = self.file.cache().table();
        let mut run = table.take_back(frames);
        let start = self.page * PAGE_BYTES as u64;
        let skip = usize::try_from(pos.saturating_sub(start)).unwrap_or(usize::MAX);
        let bytes = table.bytes(&run).get(skip..).unwrap_or_default();
        let len = bytes.len().min(buf.len());
        buf[..len].copy_from_slice(&bytes[..len]);
        let inner = self.file.0.cache.inner();
        if ahead {
            let pages = self.slots.len() as u64;
            inner.counters.rest.ahead.fetch_add(pages, Relaxed);
        }
        for (index, &slot) in (0..).zip(&self.slots) {
            let frame = run.split_first(1);
            let number = frame.first();
            // Held, so that the leaf stays whatever happens to the page.
            let (no, _) = leaf_of(self.page + index);
            let held = inner.index.hold(self.file.0.id, no);
            inner.set_owner(number, slot);
            match inner.pages.publish(slot, frame, ALL_GRANULES, ahead) {
                Ok(()) => inner.track(number, slot),
                Err(frame) => inner.give_back(frame),
            }
            if let Some(held) = held {
                inner.index.release(held);
            }
        }
        len
    }

    /// The blocks that a write covers in part have been read into the first page: puts the data
    /// over them, and the page into the cache. False when something else came there first. The
    /// caller has seen every command on it end.
    pub(crate) fn finish_write(mut self, pos: u64, data: &[u8], writing: Writing) -> bool {
        let Some(frames) = self.frames.take() else {
            return false;
        };
        let file = &*self.file.0;
        let inner = file.cache.inner();
        let (run, marks) = self.file.write_over(frames, pos, data, writing);
        let (page, _) = place(pos);
        let Some(&slot) = self.slots.first() else {
            return false;
        };
        let (no, _) = leaf_of(page);
        let held = inner.index.hold(file.id, no);
        let number = run.first();
        inner.set_owner(number, slot);
        let published =
            inner
                .pages
                .publish_dirty(slot, run, marks.touched, marks.touched, writing.backed());
        let done = match published {
            Ok(()) => {
                inner.count_dirty();
                inner.index.list_dirty(slot / LEAF_PAGES, &file.lists, no);
                inner.track(number, slot);
                true
            }
            Err(frame) => {
                inner.give_back(frame);
                false
            }
        };
        if let Some(held) = held {
            inner.index.release(held);
        }
        done
    }

    /// It failed, or came too late. `lost` when the device may still write to the memory, which is
    /// then never used again.
    pub(crate) fn abandon(mut self, lost: bool) {
        let Some(frames) = self.frames.take() else {
            return;
        };
        let inner = self.file.0.cache.inner();
        for (index, &slot) in (0..).zip(&self.slots) {
            if inner.pages.abandon(slot, frames.first() + index) {
                inner.index.release(slot / LEAF_PAGES);
            }
        }
        if !lost {
            let run = inner.pages.take_back(frames);
            inner.give_back(run);
        }
    }

    /// The file that they are of.
    pub(crate) fn file(&self) -> &FileCache {
        &self.file
    }
}

impl Drop for Fill {
    /// Dropped in the middle of an operation: the memory may be with a device, and is not used
    /// again.
    fn drop(&mut self) {
        let Some(frames) = self.frames.take() else {
            return;
        };
        let inner = self.file.0.cache.inner();
        for (index, &slot) in (0..).zip(&self.slots) {
            if inner.pages.abandon(slot, frames.first() + index) {
                inner.index.release(slot / LEAF_PAGES);
            }
        }
    }
}

/// A page of which only a part is up to date, and the frame that is to take its place.
#[derive(Debug)]
pub(crate) struct Merge<'a> {
    file: &'a FileCache,
    page: u64,
    slot: u32,
    pin: Pin<'a>,
    frames: Option<LentRun>,
}

impl Merge<'_> {
    /// The granules that are not up to date, one bit each.
    pub(crate) fn missing(&self) -> u8 {
        !self.pin.uptodate()
    }

    pub(crate) fn segment(&self, range: Range<usize>) -> Option<Segment> {
        self.frames.as_ref()?.segment(range)
    }

    pub(crate) fn put(&mut self, start: usize, len: usize, bytes: &[u8]) {
        if let Some(frames) = &mut self.frames {
            self.file
                .cache()
                .table()
                .fill_lent(frames, start, len, bytes);
        }
    }

    /// The blocks that a write needs have been read: puts the data over them, and the page in the
    /// place of the old one. False when that changed meanwhile.
    pub(crate) fn finish_write(mut self, pos: u64, data: &[u8], writing: Writing) -> bool {
        let Some(frames) = self.frames.take() else {
            return false;
        };
        let file = &*self.file.0;
        let inner = file.cache.inner();
        let (run, marks) = self.file.write_over(frames, pos, data, writing);
        let (page, _) = place(pos);
        let (no, _) = leaf_of(page);
        match file.swap_in(
            self.slot / LEAF_PAGES,
            no,
            self.pin,
            self.slot,
            run,
            marks,
            writing,
        ) {
            Ok(()) => {
                inner.counters.rest.copied.fetch_add(1, Relaxed);
                true
            }
            Err(frame) => {
                inner.give_back(frame);
                false
            }
        }
    }

    /// What was missing has been read: the page is whole, unless it changed meanwhile.
    pub(crate) fn finish(mut self) {
        let Some(frames) = self.frames.take() else {
            return;
        };
        let file = &*self.file.0;
        let inner = file.cache.inner();
        let run = inner.pages.take_back(frames);
        let (no, _) = leaf_of(self.page);
        let number = run.first();
        let held = inner.index.hold(file.id, no);
        inner.set_owner(number, self.slot);
        match inner
            .pages
            .replace(self.pin, run, ALL_GRANULES, 0, 0, false)
        {
            Ok(_) => inner.moved(number),
            Err(frame) => inner.give_back(frame),
        }
        if let Some(held) = held {
            inner.index.release(held);
        }
    }

    pub(crate) fn abandon(mut self, lost: bool) {
        if let Some(frames) = self.frames.take()
            && !lost
        {
            let inner = self.file.0.cache.inner();
            let run = inner.pages.take_back(frames);
            inner.give_back(run);
        }
    }
}

/// What came of putting a new page into its slot.
pub(super) enum Installed {
    /// It is there, and dirty.
    Yes,
    /// Another page is there.
    There(FrameRun),
    /// There is no leaf for it.
    NoLeaf(FrameRun),
}

impl FileInner {
    /// Puts a frame into the slot of a page that is not there, with these granules up to date and
    /// dirty. Where the write grows the file, it ends at `end` from then on.
    pub(super) fn install(
        &self,
        page: u64,
        frame: FrameRun,
        touched: u8,
        end: u64,
        writing: Writing,
    ) -> Installed {
        let inner = self.cache.inner();
        let (no, slot) = leaf_of(page);
        let Some(leaf) = inner.index.reserve(self.id, &self.lists, no) else {
            return Installed::NoLeaf(frame);
        };
        // A second reservation, for as long as this looks at the leaf: the first one becomes the
        // page's.
        let held = inner.index.hold(self.id, no);
        let at = leaf * LEAF_PAGES + slot;
        let number = frame.first();
        if writing.grows() {
            self.size_bytes.fetch_max(end, AcqRel);
        }
        inner.set_owner(number, at);
        let backed = writing.backed();
        let installed = match inner.pages.install(at, frame, touched, touched, backed) {
            Ok(was_filling) => {
                if was_filling {
                    // The mark had a reservation of its own.
                    inner.index.release(leaf);
                }
                inner.count_dirty();
                inner.index.list_dirty(leaf, &self.lists, no);
                inner.track(number, at);
                Installed::Yes
            }
            Err(frame) => {
                inner.index.release(leaf);
                Installed::There(frame)
            }
        };
        if let Some(held) = held {
            inner.index.release(held);
        }
        installed
    }
}

impl FileCache {
    /// Puts a write's data over what was read into a page that is in no slot yet. Returns the page,
    /// and what of it was written.
    fn write_over(
        &self,
        frames: LentRun,
        pos: u64,
        data: &[u8],
        writing: Writing,
    ) -> (FrameRun, Marks) {
        let pages = &self.0.cache.inner().pages;
        let mut run = pages.take_back(frames);
        let (_, from) = place(pos);
        let to = from + data.len();
        pages.bytes_mut(&mut run)[from..to].copy_from_slice(data);
        if writing.grows() {
            self.grow(pos + data.len() as u64);
        }
        (run, self.0.marks(from, to))
    }

    /// Whether both are the same file.
    pub(crate) fn is(&self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&self.0, &other.0)
    }

    /// What must be up to date, a bit a granule, before `len` bytes are written at `pos`, inside of
    /// one page.
    pub(crate) fn needed(&self, pos: u64, len: usize) -> u8 {
        let (_, from) = place(pos);
        self.0.marks(from, from + len).needed
    }

    /// How it stands with the page of which `len` bytes at `pos` are wanted, whole blocks of it.
    pub(crate) fn state_of(&self, pos: u64, len: usize) -> PageState {
        let (page, from) = place(pos);
        let mask = self.block_bytes() - 1;
        self.state(page, from & !mask, (from + len + mask) & !mask)
    }

    /// How it stands with a page of which these bytes are wanted.
    pub(crate) fn state(&self, page: u64, from: usize, to: usize) -> PageState {
        let inner = self.0.cache.inner();
        let (no, slot) = leaf_of(page);
        let Some(leaf) = inner.index.find(self.0.id, no) else {
            return PageState::Absent;
        };
        let look = inner.pages.look(leaf * LEAF_PAGES + slot);
        let wanted = granules_touched(from, to);
        match (look.present, look.filling) {
            (true, _) if look.uptodate & wanted != wanted => PageState::Partial,
            (true, _) => PageState::There,
            (_, true) => PageState::Filling,
            _ => PageState::Absent,
        }
    }

    /// Marks pages from `page` on as being read, as many as are wanted, absent, and have frames
    /// side by side. `None` when the first one is not absent; `Some(None)` when there is no frame.
    pub(crate) fn begin_fill(&self, page: u64, wanted: u32) -> Option<Option<Fill>> {
        let inner = self.0.cache.inner();
        let Some(mut run) = inner.frames(wanted.next_power_of_two()) else {
            return Some(None);
        };
        let mut slots = Vec::with_capacity(run.count() as usize);
        for index in 0..run.count().min(wanted) {
            let (no, slot) = leaf_of(page + u64::from(index));
            let Some(leaf) = inner.index.reserve(self.0.id, &self.0.lists, no) else {
                break;
            };
            let at = leaf * LEAF_PAGES + slot;
            if !inner.pages.begin_fill(at, &run, index) {
                inner.index.release(leaf);
                break;
            }
            slots.push(at);
        }
        let used = run.split_first(u32::try_from(slots.len()).unwrap_or(0));
        if run.count() > 0 {
            inner.give_back(run);
        }
        if slots.is_empty() {
            return None;
        }
        Some(Some(Fill {
            file: self.clone(),
            page,
            slots: slots.into_boxed_slice(),
            frames: Some(inner.pages.lend(used)),
        }))
    }

    /// Cancels the fill of a page: its reader must not publish what it read.
    pub(crate) fn supersede(&self, page: u64) {
        let inner = self.0.cache.inner();
        let (no, slot) = leaf_of(page);
        if let Some(leaf) = inner.index.hold(self.0.id, no) {
            if inner.pages.supersede(leaf * LEAF_PAGES + slot) {
                inner.index.release(leaf);
            }
            inner.index.release(leaf);
        }
    }

    /// Begins to read the missing granules of a partly valid page. `None` when the page is not or
    /// no longer in that state; `Some(None)` when there is no free frame.
    pub(crate) fn begin_merge(&self, page: u64) -> Option<Option<Merge<'_>>> {
        let inner = self.0.cache.inner();
        let (no, slot) = leaf_of(page);
        let leaf = inner.index.find(self.0.id, no)?;
        let slot = leaf * LEAF_PAGES + slot;
        let pin = match inner.pages.pin_reserved(slot, 0) {
            Ok(pin) if inner.index.is(leaf, self.0.id, no) => pin,
            Ok(_) => return None,
            Err(Blocked::Ahead) => {
                inner.arrived(slot);
                return None;
            }
            Err(_) => return None,
        };
        let Some(mut frame) = inner.frames(1) else {
            return Some(None);
        };
        inner
            .pages
            .bytes_mut(&mut frame)
            .copy_from_slice(pin.bytes());
        Some(Some(Merge {
            file: self,
            page,
            slot,
            pin,
            frames: Some(inner.pages.lend(frame)),
        }))
    }

    /// Puts data into a page that is not there, where it covers whole blocks. False when the page
    /// is there by now, or the blocks are not covered; `None` when there is no frame. The file's
    /// size is the caller's to see to.
    pub fn write_new(&self, pos: u64, data: &[u8]) -> Option<bool> {
        let writing = Writing::Asked {
            grow: false,
            backed: false,
        };
        self.write_absent(pos, data, writing)
    }

    /// As [`FileCache::write_new`], in the middle of a write by [`crate::iomap`].
    pub(crate) fn write_absent(&self, pos: u64, data: &[u8], writing: Writing) -> Option<bool> {
        let inner = self.0.cache.inner();
        let (page, from) = place(pos);
        let marks: Marks = self.0.marks(from, from + data.len());
        if marks.needed != 0 || from + data.len() > PAGE_BYTES {
            return Some(false);
        }
        let mut frame: FrameRun = inner.frames(1)?;
        inner.pages.bytes_mut(&mut frame)[from..from + data.len()].copy_from_slice(data);
        let end = pos + data.len() as u64;
        match self.0.install(page, frame, marks.touched, end, writing) {
            Installed::Yes => Some(true),
            Installed::There(frame) => {
                inner.give_back(frame);
                Some(false)
            }
            Installed::NoLeaf(frame) => {
                inner.give_back(frame);
                None
            }
        }
    }

    /// Drops the clean, unpinned pages of a range: for streaming access.
    pub fn drop_clean(&self, range: Range<u64>) -> usize {
        self.invalidate(range, Which::Clean, true).removed
    }
}

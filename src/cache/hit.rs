//! Cache hits: reads and writes served from memory. The common case comes first and is short: the
//! leaf is at the guessed place or first in its bucket, and the whole page is up to date. All other
//! cases

use super::file::{FileCache, FileInner, Writing, Wrote, leaf_of, place};
use super::index::LEAF_PAGES;
use super::stats::{Guess, Tally};
use super::wait::BoundedWait;
use crate::mem::pages::{
    ALL_GRANULES, Blocked, PAGE_BYTES, Pin, Place, Tag, WriteLock, granules_touched,
};

impl FileCache {
    /// Copies the cached part of the range, up to the first byte that is not cached or the end of
    /// the file. Returns the number of bytes copied; the rest of `buf` is unspecified.
    // Always inlined: it is long enough that the compiler calls it where a part of a program has a
    // second caller, which costs a buffered read of 64 bytes a tenth.
    #[inline(always)]
    pub fn read_hit(&self, tally: &mut Tally, pos: u64, buf: &mut [u8]) -> usize {
        let want = self.within(pos, buf.len());
        let (page, from) = place(pos);
        // One comparison: nothing is wanted, or more than the page has.
        if want.wrapping_sub(1) >= PAGE_BYTES - from {
            return self.read_pages(tally, pos, buf);
        }
        if !self
            .0
            .read_page(&mut tally.guess, page, from, &mut buf[..want])
        {
            return 0;
        }
        tally.hits += 1;
        want
    }

    /// As [`FileCache::read_hit`], for any number of pages and not inlined: for callers off the hot
    /// path.
    #[inline(never)]
    pub(crate) fn read_pages(&self, tally: &mut Tally, pos: u64, buf: &mut [u8]) -> usize {
        let want = self.within(pos, buf.len());
        let buf = &mut buf[..want];
        let mut done = 0;
        while done < buf.len() {
            let (page, from) = place(pos + done as u64);
            if from == 0 {
                let pages = self.0.read_run(page, &mut buf[done..]);
                tally.hits += pages as u64;
                done += pages * PAGE_BYTES;
                if pages > 0 {
                    continue;
                }
            }
            let len = (PAGE_BYTES - from).min(buf.len() - done);
            let part = &mut buf[done..done + len];
            if !self.0.read_page(&mut tally.guess, page, from, part) {
                break;
            }
            tally.hits += 1;
            done += len;
        }
        done
    }

    /// Overwrites the cached part of the range inside the file, up to the first page that is
    /// absent, is too incomplete, or needs a mapping from the filesystem first (a clean page that
    /// is not known to be backed by its own blocks). Returns the number of bytes written; they are
    /// dirty.
    #[inline]
    pub fn write_hit(&self, tally: &mut Tally, pos: u64, data: &[u8]) -> usize {
        if tally.guess.sure && self.0.overwrite_guessed(&tally.guess, pos, data) {
            tally.hits += 1;
            return data.len();
        }
        self.write_pages(tally, pos, data)
    }

    /// [`FileCache::write_hit`] for several pages, or for one that was not at the guessed place.
    #[inline(never)]
    fn write_pages(&self, tally: &mut Tally, pos: u64, data: &[u8]) -> usize {
        let data = &data[..self.within(pos, data.len())];
        let mut done = 0;
        while done < data.len() {
            let (page, from) = place(pos + done as u64);
            if from == 0 && data.len() - done > PAGE_BYTES {
                let pages = self.0.overwrite_run(page, &data[done..]);
                tally.hits += pages as u64;
                done += pages * PAGE_BYTES;
                if pages > 0 {
                    continue;
                }
            }
            let len = (PAGE_BYTES - from).min(data.len() - done);
            let bytes = &data[done..done + len];
            let guess = &mut tally.guess;
            if self.0.overwrite(guess, page, from, bytes, Writing::Hit) != Wrote::Yes {
                break;
            }
            tally.hits += 1;
            done += len;
        }
        done
    }

    /// Writes into a page that is there, in the middle of a write by [`crate::iomap`].
    pub(crate) fn write_cached(&self, pos: u64, data: &[u8], writing: Writing) -> Wrote {
        let (page, from) = place(pos);
        let mut guess = Guess::default();
        self.0.overwrite(&mut guess, page, from, data, writing)
    }

    /// How much of a range is inside of the file.
    #[inline(always)]
    fn within(&self, pos: u64, len: usize) -> usize {
        let left = self.size_bytes().saturating_sub(pos);
        usize::try_from(left).unwrap_or(usize::MAX).min(len)
    }
}

impl FileInner {
    /// The most probable leaf. The caller checks the owner of a page in it.
    #[inline(always)]
    fn head(&self, no: u64) -> Option<Place<'_>> {
        let inner = self.cache.inner();
        inner.pages.place(inner.index.head(self.salt, no))
    }

    /// Copies out of one page.
    #[inline(always)]
    fn read_page(&self, guess: &mut Guess, page: u64, from: usize, buf: &mut [u8]) -> bool {
        if guess.sure {
            let (no, slot) = leaf_of(page);
            let pages = &self.cache.inner().pages;
            let expected = guess.frame(page);
            pages.prefetch(expected, from);
            let still = |tag: &Tag| tag.is(self.id, no);
            let leaf = pages.place(guess.leaf(no));
            let read = |leaf: Place<'_>| leaf.read_expected(slot, expected, from, buf, still);
            if leaf.is_some_and(read) {
                return true;
            }
            guess.sure = false;
        }
        self.read_page_unsure(guess, page, from, buf)
    }

    /// The same by the index. Cold so that its arguments are kept in registers or spilled only on
    /// the path to it.
    #[cold]
    #[inline(never)]
    fn read_page_unsure(&self, guess: &mut Guess, page: u64, from: usize, buf: &mut [u8]) -> bool {
        let (no, slot) = leaf_of(page);
        let still = |tag: &Tag| tag.is(self.id, no);
        if let Some(leaf) = self.head(no)
            && let Some(frame) = leaf.read(slot, ALL_GRANULES, from, buf, still)
        {
            guess.learn(no, leaf.number(), page, frame);
            return true;
        }
        self.read_page_slowly(page, from, buf)
    }

    /// Copies whole pages of one leaf, as many as lie side by side: how many.
    fn read_run(&self, page: u64, buf: &mut [u8]) -> usize {
        let (no, slot) = leaf_of(page);
        let still = |tag: &Tag| tag.is(self.id, no);
        self.head(no)
            .map_or(0, |leaf| leaf.read_run(slot, buf, still))
    }

    /// Overwrites whole pages of one leaf, as many as lie side by side: how many.
    fn overwrite_run(&self, page: u64, data: &[u8]) -> usize {
        let (no, slot) = leaf_of(page);
        let Some(leaf) = self.head(no).filter(|leaf| leaf.tag().is(self.id, no)) else {
            return 0;
        };
        let mut run = leaf.lock_run(slot, data.len() / PAGE_BYTES);
        let pages = run.len();
        // With a page that is held, the leaf does not change hands any more.
        if pages == 0
            || !leaf.tag().is(self.id, no)
            || !self.allows(Writing::Hit, page + pages as u64 - 1, PAGE_BYTES)
            || !run.put(&data[..pages * PAGE_BYTES])
        {
            return 0;
        }
        // Letting go waits for the bytes to be in the cache; meanwhile the next ones may come.
        run.prefetch_next();
        for mut lock in run.into_locks() {
            self.mark_written(&mut lock, leaf.number(), page, ALL_GRANULES, false);
        }
        pages
    }

    #[cold]
    #[inline(never)]
    fn read_page_slowly(&self, page: u64, from: usize, buf: &mut [u8]) -> bool {
        let inner = self.cache.inner();
        let (no, slot) = leaf_of(page);
        let to = from + buf.len();
        let still = |tag: &Tag| tag.is(self.id, no);
        // It may be further down in its bucket, or up to date in part.
        let leaf = inner.index.find(self.id, no);
        let leaf = leaf.and_then(|leaf| inner.pages.place(leaf));
        let granules = granules_touched(from, to);
        let leaf = leaf.and_then(|leaf| leaf.read(slot, granules, from, buf, still));
        if leaf.is_some() {
            return true;
        }
        let Some(pin) = self.pin_slowly(page, granules) else {
            return false;
        };
        buf.copy_from_slice(&pin.bytes()[from..to]);
        true
    }

    /// Holds on to a page that is up to date between these bytes, at least.
    #[inline(always)]
    pub(super) fn pin(
        &self,
        guess: &mut Guess,
        page: u64,
        from: usize,
        to: usize,
    ) -> Option<Pin<'_>> {
        let pages = &self.cache.inner().pages;
        let (no, slot) = leaf_of(page);
        if guess.sure {
            // The bytes are on the way before it is known whether they are the ones.
            pages.prefetch(guess.frame(page), from);
            if let Some(leaf) = pages.place(guess.leaf(no))
                && let Ok(pin) = leaf.pin(slot, ALL_GRANULES)
            {
                // With a page that is in its slot, the leaf does not change hands.
                if leaf.tag().is(self.id, no) && pin.is_in_place() {
                    pin.used();
                    return Some(pin);
                }
                drop(pin);
            }
        }
        self.pin_unsure(guess, page, from, to)
    }

    /// The same by the index.
    #[cold]
    #[inline(never)]
    fn pin_unsure(&self, guess: &mut Guess, page: u64, from: usize, to: usize) -> Option<Pin<'_>> {
        let (no, slot) = leaf_of(page);
        if let Some(leaf) = self.head(no)
            && leaf.tag().is(self.id, no)
            && let Ok(pin) = leaf.pin(slot, ALL_GRANULES)
        {
            // Asked again, as above.
            if leaf.tag().is(self.id, no) && pin.is_in_place() {
                pin.used();
                guess.learn(no, leaf.number(), page, pin.frame());
                return Some(pin);
            }
            drop(pin);
        }
        guess.sure = false;
        self.pin_slowly(page, granules_touched(from, to))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn pin_slowly(&self, page: u64, granules: u8) -> Option<Pin<'_>> {
        let inner = self.cache.inner();
        let (no, slot) = leaf_of(page);
        let mut patience = BoundedWait::for_lock();
        loop {
            let leaf = inner.index.find(self.id, no)?;
            let at = leaf * LEAF_PAGES + slot;
            let goes_on = match inner.pages.pin(at, granules, true) {
                Ok(pin) => {
                    let mine = inner.index.is(leaf, self.id, no) && pin.is_in_place();
                    return mine.then_some(pin);
                }
                Err(Blocked::Ahead) => {
                    inner.arrived(at);
                    true
                }
                Err(Blocked::Locked) => patience.wait(),
                Err(Blocked::PinsFull) => self.copy_full(page) && patience.wait(),
                Err(_) => false,
            };
            if !goes_on {
                return None;
            }
        }
    }

    /// Writes into one page, as a whole inside of the file, if that is where it was guessed to be.
    /// Nothing but its arguments is needed when it is not, and little after the copy: so that
    /// little has to be kept anywhere.
    #[inline(always)]
    fn overwrite_guessed(&self, guess: &Guess, pos: u64, data: &[u8]) -> bool {
        let (page, from) = place(pos);
        let to = from + data.len();
        if data.is_empty() || to > PAGE_BYTES {
            return false;
        }
        let (no, slot) = leaf_of(page);
        let touched = self.touched(from, to);
        // The owner of the page is checked once it is locked: from then on the leaf cannot be
        // reused. (Another file's page is unlocked unchanged.) A truncation sets the size first and
        // drops this page after: either it finds the bytes written here, or this thread sees the
        // new size.
        if let Some(leaf) = self.cache.inner().pages.place(guess.leaf(no))
            && let Ok(mut lock) = leaf.lock(slot, ALL_GRANULES, touched)
            && leaf.tag().is(self.id, no)
            && self.allows(Writing::Hit, page, to)
        {
            self.mark_written(&mut lock, leaf.number(), page, touched, false);
            return lock.put(from, data);
        }
        false
    }

    /// Writes into one page, if that takes nothing from the device.
    #[inline(never)]
    fn overwrite(
        &self,
        guess: &mut Guess,
        page: u64,
        from: usize,
        bytes: &[u8],
        writing: Writing,
    ) -> Wrote {
        let to = from + bytes.len();
        let marks = self.marks(from, to);
        match self.lock(page, marks.needed, writing.claim(marks.touched)) {
            Ok((mut lock, leaf)) => {
                if !self.allows(writing, page, to) || !lock.put(from, bytes) {
                    return Wrote::Missing;
                }
                guess.learn(leaf_of(page).0, leaf, page, lock.frame());
                self.mark_written(&mut lock, leaf, page, marks.touched, writing.backed());
                Wrote::Yes
            }
            Err(Blocked::Shared | Blocked::PinsFull) => {
                guess.sure = false;
                self.copy_and_write(page, from, bytes, writing)
            }
            Err(_) => Wrote::Missing,
        }
    }

    /// Alone with a page of which these granules are up to date; and its leaf.
    pub(super) fn lock(
        &self,
        page: u64,
        needed: u8,
        claim: u8,
    ) -> Result<(WriteLock<'_>, u32), Blocked> {
        let inner = self.cache.inner();
        let (no, slot) = leaf_of(page);
        let mut patience = BoundedWait::for_lock();
        // Views and writeback do not let go soon, others do.
        let mut patience_with_readers = 64;
        loop {
            let leaf = inner.index.find(self.id, no).ok_or(Blocked::Absent)?;
            let at = leaf * LEAF_PAGES + slot;
            match inner.pages.lock(at, needed, claim) {
                Ok(lock) if inner.index.is(leaf, self.id, no) => return Ok((lock, leaf)),
                Ok(_) => return Err(Blocked::Absent),
                Err(Blocked::Ahead) => inner.arrived(at),
                Err(Blocked::Locked) if patience.wait() => {}
                Err(Blocked::Shared)
                    if patience_with_readers > 0 && !inner.pages.look(at).writeback =>
                {
                    patience_with_readers -= 1;
                    std::hint::spin_loop();
                }
                Err(other) => return Err(other),
            }
        }
    }
}

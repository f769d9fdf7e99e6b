//! A group of slots that was looked up, and the operations on its pages.
//!
//! A page can be read without a pin ([`Place::read`]): load version and word, copy the bytes, load
//! both again (a sequence lock). A writer locks the page's word first and leaves another version
//! when it unlocks it; a page that is put into a slot changes the version, too. So where word and
//! version are unchanged there was no writer, and the copy is one state of the page. A reader
//! writes to no shared memory and does not wait for its own stores: copies of different pages
//! overlap.
//!
//! In terms of the memory model: the writer's lock, a release fence, its stores; the reader's
//! loads, an acquire fence, its second load of word and version. If a load saw one of the stores,
//! the second load sees the lock or a later value. If it sees the unlocked word, which was stored
//! with release, the version differs. Versions have 32 bits: a reader would have to stop in the
//! middle of a copy for an exact multiple of 2^32 writes to its page to miss a change.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::group::{GROUP_SLOTS, Group, Tag};
use super::guards::{Pin, WriteLock};
use super::slots::{Blocked, PageTable, why};
use super::sync::atomic::{AtomicU64, fence};
use super::word::{LOCKED, PIN, Word};
#[cfg(not(loom))]
use super::{ALL_GRANULES, PAGE_BYTES, racy};

/// A group of slots, looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    table: &'a PageTable,
    group: &'a Group,
    number: u32,
}

impl PageTable {
    /// A group by its number, where there is such a group.
    #[inline(always)]
    pub(crate) fn place(&self, number: u32) -> Option<Place<'_>> {
        self.groups.0.get(number as usize).map(|group| Place {
            table: self,
            group,
            number,
        })
    }

    fn place_of(&self, slot: u32) -> Place<'_> {
        Place {
            table: self,
            group: &self.groups.0[(slot / GROUP_SLOTS) as usize],
            number: slot / GROUP_SLOTS,
        }
    }

    /// Holds on to a page, of which these granules are to be read; counts it as a use if `count`
    /// says so.
    ///
    /// # Errors
    /// [`Blocked`].
    #[inline]
    pub fn pin(&self, slot: u32, granules: u8, count: bool) -> Result<Pin<'_>, Blocked> {
        let pin = self.place_of(slot).pin(slot % GROUP_SLOTS, granules)?;
        if count {
            pin.used();
        }
        Ok(pin)
    }

    /// Alone with a page, to write to it. All of `granules` must be up to date; and those of
    /// `claim` dirty already, unless the page is known to be backed by blocks.
    ///
    /// # Errors
    /// [`Blocked`].
    #[inline]
    pub fn lock(&self, slot: u32, granules: u8, claim: u8) -> Result<WriteLock<'_>, Blocked> {
        let place = self.place_of(slot);
        place.lock(slot % GROUP_SLOTS, granules, claim)
    }
}

impl<'a> Place<'a> {
    /// What the owner of the slots keeps here.
    #[inline(always)]
    pub(crate) fn tag(&self) -> &'a Tag {
        &self.group.tag
    }

    /// The group's number.
    #[inline(always)]
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// As [`PageTable::pin`], not counted as a use, by the number of the slot in the group.
    #[inline(always)]
    pub(crate) fn pin(self, slot: u32, granules: u8) -> Result<Pin<'a>, Blocked> {
        let cell = &self.group.words[slot as usize % 8];
        let mut seen = cell.load(Relaxed);
        loop {
            let word = Word(seen);
            if !word.readable(granules) {
                return Err(why(word, granules));
            }
            self.table.prefetch(word.frame(), 0);
            // Acquire: what was written before the page was unlocked or published is seen.
            match cell.compare_exchange_weak(seen, seen + PIN, Acquire, Relaxed) {
                Ok(_) => {
                    return Ok(Pin {
                        table: self.table,
                        group: self.group,
                        slot: self.number * GROUP_SLOTS + slot % GROUP_SLOTS,
                        word,
                    });
                }
                Err(now) => seen = now,
            }
        }
    }

    /// As [`PageTable::lock`], by the number of the slot in the group.
    #[inline(always)]
    pub(crate) fn lock(self, slot: u32, granules: u8, claim: u8) -> Result<WriteLock<'a>, Blocked> {
        let slot = slot as usize % 8;
        let cell = &self.group.words[slot];
        let mut seen = cell.load(Relaxed);
        loop {
            let word = Word(seen);
            if !word.lockable(granules, claim) {
                return Err(why_locked(word, granules, claim));
            }
            // Acquire: it follows all that readers did before they let go (they only ever change
            // the word by one operation, so theirs are all in the sequence that is acquired from).
            match cell.compare_exchange_weak(seen, seen | LOCKED, Acquire, Relaxed) {
                Ok(_) => {
                    // An unpinned reader that sees a part of the write also sees the lock.
                    fence(Release);
                    self.group.used(slot);
                    return Ok(WriteLock {
                        table: self.table,
                        group: self.group,
                        slot,
                        word,
                    });
                }
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(not(loom))]
impl Place<'_> {
    /// Copies from byte `from` of a page on, of which these granules must be up to date, and counts
    /// a use. Returns the page's frame; `None` when the granules are not up to date, when `still`
    /// is false (called after the first load and before the second) or when the page was written to
    /// during the copy. `buf` is unspecified then.
    #[inline(always)]
    pub(crate) fn read(
        self,
        slot: u32,
        granules: u8,
        from: usize,
        buf: &mut [u8],
        still: impl FnOnce(&Tag) -> bool,
    ) -> Option<u32> {
        let slot = slot as usize % 8;
        if from > PAGE_BYTES || buf.len() > PAGE_BYTES - from {
            return None;
        }
        let seen = self.peek(slot, granules)?;
        if !still(&self.group.tag) {
            return None;
        }
        // SAFETY: the range is inside of the frame; a thread that writes to the frame during the
        // copy has locked the slot or taken the frame out of it, and the second load detects that.
        unsafe { self.table.memory.copy_out(seen.word.frame(), from, buf) };
        self.unchanged(slot, seen).then(|| seen.word.frame())
    }
}

#[cfg(not(loom))]
impl Place<'_> {
    /// As [`Place::read`], of a page that is expected to be in a certain frame, and up to date as a
    /// whole; false when it is not. Where the bytes are does not have to be waited for then: the
    /// processor fetches word and bytes at once.
    #[inline(always)]
    pub(crate) fn read_expected(
        self,
        slot: u32,
        expected: u32,
        from: usize,
        buf: &mut [u8],
        still: impl FnOnce(&Tag) -> bool,
    ) -> bool {
        let slot = slot as usize % 8;
        if from > PAGE_BYTES || buf.len() > PAGE_BYTES - from {
            return false;
        }
        let bytes = self.table.memory.guess(expected, from);
        match self.peek(slot, ALL_GRANULES) {
            Some(seen) if seen.word.frame() == expected && still(&self.group.tag) => {
                // SAFETY: the frame is the word's, so it is one of the table's, and the range is
                // inside of it; else as in `read`.
                unsafe { racy::copy(bytes, buf.as_mut_ptr(), buf.len()) };
                self.unchanged(slot, seen)
            }
            _ => false,
        }
    }
}

#[cfg(not(loom))]
impl<'a> Place<'a> {
    /// As [`Place::read`], of pages that follow each other in the group and in memory, from the
    /// start of one on, all of them up to date: how many of them were copied.
    #[inline]
    pub(crate) fn read_run(
        self,
        slot: u32,
        buf: &mut [u8],
        still: impl FnOnce(&Tag) -> bool,
    ) -> usize {
        let mut seen = [Seen::NOTHING; GROUP_SLOTS as usize];
        let first = slot as usize % 8;
        let most = (buf.len() / PAGE_BYTES).min(8 - first);
        let mut pages = 0;
        while pages < most {
            match self.peek(first + pages, ALL_GRANULES) {
                Some(page) if pages == 0 || page.word.follows(seen[pages - 1].word) => {
                    seen[pages] = page;
                    pages += 1;
                }
                _ => break,
            }
        }
        if pages == 0 || !still(&self.group.tag) {
            return 0;
        }
        let buf = &mut buf[..pages * PAGE_BYTES];
        // SAFETY: the frames lie side by side, so the range is inside of the memory; else as in
        // `read`.
        unsafe { self.table.memory.copy_out(seen[0].word.frame(), 0, buf) };
        (0..pages)
            .take_while(|&page| self.unchanged(first + page, seen[page]))
            .count()
    }

    /// Alone with pages that follow each other in the group and in memory, at most `most`, all of
    /// them up to date and with blocks: as many as can be had at once.
    #[inline]
    pub(crate) fn lock_run(self, slot: u32, most: usize) -> LockedRun<'a> {
        let mut locks = [const { None::<WriteLock<'a>> }; GROUP_SLOTS as usize];
        let first = slot as usize % 8;
        let mut pages = 0_usize;
        for slot in (slot % 8..8).take(most) {
            let Ok(lock) = self.lock(slot, ALL_GRANULES, ALL_GRANULES) else {
                break;
            };
            let previous = pages.checked_sub(1).and_then(|at| locks[at].as_ref());
            if previous.is_some_and(|previous| !lock.word.follows(previous.word)) {
                break;
            }
            locks[pages] = Some(lock);
            pages += 1;
        }
        debug_assert!(first + pages <= 8);
        LockedRun { locks, pages }
    }
}

/// Of the page behind a run this much is asked for while the run is let go of.
#[cfg(not(loom))]
const NEXT_BYTES: usize = 1024;
/// Processors fetch lines in pairs.
#[cfg(not(loom))]
const TWO_LINES_BYTES: usize = 128;

/// Pages side by side in memory that one thread is alone with.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct LockedRun<'a> {
    locks: [Option<WriteLock<'a>>; GROUP_SLOTS as usize],
    pages: usize,
}

#[cfg(not(loom))]
impl<'a> LockedRun<'a> {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.pages
    }

    /// Overwrites all of them; false, and nothing, when the lengths are not the same.
    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(first) = &self.locks[0] else {
            return false;
        };
        if bytes.len() != self.pages * PAGE_BYTES {
            return false;
        }
        let memory = &first.table.memory;
        // SAFETY: the frames are adjacent and are those of the locks, which are borrowed: no other
        // thread reads or writes them, and no device has them.
        let pages = unsafe { memory.part_mut(first.word.frame(), 0, bytes.len()) };
        if self.pages == 1 {
            return racy::copy_in(pages, bytes);
        }
        // All at once: so long a copy does not read the lines that it writes to.
        pages.copy_from_slice(bytes);
        true
    }

    /// The pages behind it will probably be wanted next.
    #[inline]
    pub(crate) fn prefetch_next(&self) {
        let last = self
            .pages
            .checked_sub(1)
            .and_then(|at| self.locks[at].as_ref());
        if let Some(last) = last {
            let next = last.word.frame() + 1;
            for at in (0..NEXT_BYTES).step_by(TWO_LINES_BYTES) {
                last.table.memory.prefetch(next, at);
            }
        }
    }

    /// One by one.
    pub(crate) fn into_locks(self) -> impl Iterator<Item = WriteLock<'a>> {
        self.locks.into_iter().flatten()
    }
}

/// What was seen of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    version: u32,
    pub(super) word: Word,
}

#[cfg(not(loom))]
impl Seen {
    const NOTHING: Self = Self {
        version: 0,
        word: Word::EMPTY,
    };
}

impl Place<'_> {
    #[inline(always)]
    pub(super) fn peek(&self, slot: usize, granules: u8) -> Option<Seen> {
        let version = self.group.versions[slot].load(Acquire);
        let word = Word(self.group.words[slot].load(Acquire));
        word.legible(granules).then_some(Seen { version, word })
    }

    /// Whether the page is unchanged since `seen` was loaded. Counts a use if so.
    #[inline(always)]
    pub(super) fn unchanged(&self, slot: usize, seen: Seen) -> bool {
        fence(Acquire);
        let now = Word(self.group.words[slot].load(Acquire));
        let same = now.shows_the_same(seen.word)
            && self.group.versions[slot].load(Relaxed) == seen.version;
        if same {
            self.group.used(slot);
        }
        same
    }
}

impl PageTable {
    #[inline(always)]
    pub(super) fn unpin(&self, cell: &AtomicU64, frame: u32) {
        let mut seen = cell.load(Relaxed);
        // While the slot owns the frame the pin is counted there. A detached frame never comes back
        // to a slot before its last pin has gone, and that is this one or a later one.
        while Word(seen).owns(frame) {
            match cell.compare_exchange_weak(seen, seen - PIN, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        self.unpin_detached(frame);
    }

    #[cold]
    pub(super) fn unpin_detached(&self, frame: u32) {
        self.count_detached(frame, -1);
    }

    pub(super) fn count_detached(&self, frame: u32, pins: i32) {
        let before = self.detached[frame as usize].fetch_add(pins, AcqRel);
        if before + pins == 0 {
            // The queue has room for all frames.
            let _ = self.orphans.push(frame);
        }
    }
}

#[cold]
fn why_locked(word: Word, granules: u8, claim: u8) -> Blocked {
    match why(word, granules) {
        Blocked::Shared | Blocked::PinsFull if !word.claims(claim) => Blocked::Unbacked,
        why => why,
    }
}

//! Every change of the words of slots.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crossbeam_queue::ArrayQueue;

use super::group::{GROUP_SLOTS, Group, Groups};
use super::guards::{Pin, WritebackPage};
use super::memory::Memory;
use super::run::{FrameRun, LentRun};
use super::slots::{Blocked, PageTable, why};
use super::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, fence};
use super::word::{
    AHEAD, FILLING, LENT, LOCKED, MAX_FRAMES, PIN, PINS_FULL, PRESENT, WRITEBACK, Word,
};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Heap, Segment};

/// Snapshot of a slot, which may have changed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// A page is there.
    pub present: bool,
    /// A page is being read.
    pub filling: bool,
    /// The frame, in either case.
    pub frame: u32,
    /// The up-to-date granules, one bit each.
    pub uptodate: u8,
    /// The dirty granules, one bit each.
    pub dirty: u8,
    /// Uses since it was put into the slot, at most 3.
    pub uses: u8,
    /// In writeback.
    pub writeback: bool,
    /// Read ahead and not used.
    pub ahead: bool,
    /// A thread writes to it right now.
    pub locked: bool,
    /// Not dirty, not in writeback and not pinned.
    pub reclaimable: bool,
}

/// Pages that a removal includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Clean pages without a lent copy.
    Clean,
    /// Clean pages, also with a lent copy: the device's content has changed.
    Stale,
    /// Dirty ones too.
    All,
}

/// Result of a removal.
#[derive(Debug, PartialEq, Eq)]
pub enum Removed {
    /// The slot was empty.
    Nothing,
    /// A page that was being filled; the thread that fills it detects the removal.
    Filling,
    /// The page's frame; and whether it was dirty.
    Frame(FrameRun, bool),
    /// The frame is pinned and is given back later. The value says whether it was dirty.
    Detached(bool),
    /// Not removed: it is dirty or lent, and the removal excludes such pages.
    Kept,
    /// It is locked or in writeback: try again.
    Busy,
}

impl PageTable {
    /// A table with memory from `heap`, and all of its frames.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`]; [`ErrorKind::InvalidInput`] for more than [`MAX_FRAMES`] frames.
    pub fn new(heap: &Heap, frames: u32, slots: u32) -> Result<(Self, FrameRun)> {
        static TABLES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        if frames == 0 || frames > MAX_FRAMES {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a page table has between 1 and {MAX_FRAMES} pages, not {frames}"),
            ));
        }
        let id = TABLES.fetch_add(1, Relaxed);
        let table = Self {
            groups: Groups::new(slots),
            detached: (0..frames).map(|_| AtomicI32::new(0)).collect(),
            orphans: ArrayQueue::new(frames as usize),
            lent: AtomicUsize::new(0),
            memory: Memory::new(heap, frames)?,
            id,
        };
        let run = FrameRun {
            table: id,
            first: 0,
            count: frames,
        };
        Ok((table, run))
    }

    /// The groups of its slots.
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    fn group(&self, slot: u32) -> (&Group, usize) {
        let group = &self.groups.0[(slot / GROUP_SLOTS) as usize];
        (group, (slot % GROUP_SLOTS) as usize)
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        let (group, at) = self.group(slot);
        &group.words[at]
    }

    /// Snapshot of a slot.
    pub fn look(&self, slot: u32) -> Look {
        let (group, at) = self.group(slot);
        let word = Word(group.words[at].load(Acquire));
        Look {
            present: word.has(PRESENT),
            filling: word.has(FILLING),
            frame: word.frame(),
            uptodate: word.uptodate(),
            dirty: word.dirty(),
            uses: group.uses(at),
            writeback: word.has(WRITEBACK),
            ahead: word.has(AHEAD),
            locked: word.has(LOCKED),
            reclaimable: word.reclaimable(),
        }
    }

    /// Whether the maximum number of views pin the page.
    pub(crate) fn are_pins_full(&self, slot: u32) -> bool {
        Word(self.word(slot).load(Relaxed)).has(PINS_FULL)
    }

    /// Applies `change` to a word by compare-and-swap until it succeeds or `change` returns `None`.
    /// Returns the word before.
    fn update(&self, slot: u32, change: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        self.word(slot)
            .fetch_update(AcqRel, Acquire, |word| {
                change(Word(word)).map(|word| word.0)
            })
            .map(Word)
            .map_err(Word)
    }

    /// Clears the read-ahead mark. True for the thread that cleared it.
    pub fn arrive(&self, slot: u32) -> bool {
        self.update(slot, |word| {
            (word.has(PRESENT) && word.has(AHEAD) && !word.has(LOCKED))
                .then_some(Word(word.0 & !AHEAD))
        })
        .is_ok()
    }

    /// Sets how often a page counts as used, while it is in this frame.
    pub fn set_uses(&self, slot: u32, frame: u32, uses: u8) {
        let (group, at) = self.group(slot);
        if Word(group.words[at].load(Relaxed)).owns(frame) {
            group.set_uses(at, uses);
        }
    }

    /// Puts a page into a slot that is empty or being filled; true if that ended a fill.
    ///
    /// # Errors
    /// The frame, when there is a page.
    pub fn install(
        &self,
        slot: u32,
        frame: FrameRun,
        uptodate: u8,
        dirty: u8,
        backed: bool,
    ) -> Result<bool, FrameRun> {
        self.check_one(&frame);
        let new = Word::present(frame.first, uptodate, dirty).backed_if(backed);
        match self.update(slot, |word| (!word.has(PRESENT)).then(|| new.locked())) {
            Ok(before) => {
                self.settle(slot, true);
                Ok(before.has(FILLING))
            }
            Err(_) => Err(frame),
        }
    }

    /// Marks an empty slot as being filled, with the frame at `index` of a run; false if not empty.
    pub fn begin_fill(&self, slot: u32, run: &FrameRun, index: u32) -> bool {
        assert!(
            index < run.count && run.table == self.id,
            "a frame of the run"
        );
        let new = Word::filling(run.first + index);
        self.update(slot, |word| (word == Word::EMPTY).then_some(new))
            .is_ok()
    }

    /// Puts a frame that is filled into its slot.
    ///
    /// # Errors
    /// The frame, when the slot is not marked for it any more: what was read may be out of date.
    pub fn publish(
        &self,
        slot: u32,
        frame: FrameRun,
        uptodate: u8,
        ahead: bool,
    ) -> Result<(), FrameRun> {
        self.check_one(&frame);
        let mut new = Word::present(frame.first, uptodate, 0);
        if ahead {
            new.0 |= AHEAD;
        }
        self.settle_marked(slot, frame, new)
    }

    /// As [`PageTable::publish`], with data of the program's in it that is dirty.
    ///
    /// # Errors
    /// As there.
    pub fn publish_dirty(
        &self,
        slot: u32,
        frame: FrameRun,
        uptodate: u8,
        dirty: u8,
        backed: bool,
    ) -> Result<(), FrameRun> {
        self.check_one(&frame);
        let new = Word::present(frame.first, uptodate, dirty).backed_if(backed);
        self.settle_marked(slot, frame, new)
    }

    /// Puts a page into a slot that is marked for its frame.
    fn settle_marked(&self, slot: u32, frame: FrameRun, new: Word) -> Result<(), FrameRun> {
        let marked = Word::filling(frame.first);
        match self.update(slot, |word| (word == marked).then(|| new.locked())) {
            Ok(_) => {
                self.settle(slot, true);
                Ok(())
            }
            Err(_) => Err(frame),
        }
    }

    /// A page came to a slot, locked: it gets another version, and is unlocked. What a `new` page
    /// was used before was another page's.
    fn settle(&self, slot: u32, new: bool) {
        let (group, at) = self.group(slot);
        group.next_version(at);
        if new {
            group.set_uses(at, 0);
        }
        // Not a plain store: a page that was replaced may be written back, and the end of that
        // changes its word.
        group.words[at].fetch_and(!LOCKED, Release);
    }

    /// Takes the mark for a frame away again; false when it is not there any more.
    pub fn abandon(&self, slot: u32, frame: u32) -> bool {
        let marked = Word::filling(frame);
        self.update(slot, |word| (word == marked).then_some(Word::EMPTY))
            .is_ok()
    }

    /// Clears the fill mark of any thread; false when there is none.
    pub fn supersede(&self, slot: u32) -> bool {
        self.update(slot, |word| word.has(FILLING).then_some(Word::EMPTY))
            .is_ok()
    }

    /// Replaces a pinned frame with another one that was made from its content. `uptodate` are all
    /// up-to-date granules in it, `dirty` the newly dirty ones, `claim` is as for
    /// [`PageTable::lock`]. True when the page was not dirty before.
    ///
    /// # Errors
    /// The frame, when the page has changed or gone since it was pinned.
    pub fn replace(
        &self,
        pin: Pin<'_>,
        frame: FrameRun,
        uptodate: u8,
        dirty: u8,
        claim: u8,
        backed: bool,
    ) -> Result<bool, FrameRun> {
        self.check_one(&frame);
        assert_eq!(pin.table.id, self.id, "a pin of this table");
        let changed = self.update(pin.slot, |word| {
            // Pinned, so not written to: the bytes are unchanged if it is the same frame.
            let same = word.owns(pin.frame()) && word.uptodate() == pin.uptodate();
            (same && word.claims(claim)).then(|| {
                let moved = word.moved_to(frame.first).with_marks(uptodate, dirty);
                moved.backed_if(backed).locked()
            })
        });
        match changed {
            Ok(before) => {
                self.settle(pin.slot, false);
                // At least the caller's own, which goes when this returns.
                self.count_detached(pin.frame(), before.pins().cast_signed());
                Ok(!before.is_dirty() && dirty != 0)
            }
            Err(_) => Err(frame),
        }
    }

    /// Marks a pinned page as lent, so that it stays in its slot; false when it has left it.
    pub(crate) fn begin_lending(&self, pin: &Pin<'_>) -> bool {
        let lent = |word: Word| word.owns(pin.frame()).then_some(Word(word.0 | LENT));
        self.update(pin.slot, lent).is_ok()
    }

    /// Takes that mark away. False while another thread writes to the page: then again.
    pub(crate) fn end_lending(&self, slot: u32) -> bool {
        let ended = self.update(slot, |word| {
            (word.has(LENT) && !word.has(LOCKED)).then_some(Word(word.0 & !LENT))
        });
        !ended.is_err_and(|word| word.has(LENT))
    }

    /// Takes the frame of a clean, unpinned page for another use.
    pub fn take(&self, slot: u32, frame: u32) -> Option<FrameRun> {
        self.update(slot, |word| {
            (word.owns(frame) && word.reclaimable()).then_some(Word::EMPTY)
        })
        .ok()
        .map(|word| self.token(word.frame()))
    }

    /// Empties a slot, even if its page is pinned.
    pub fn remove(&self, slot: u32, which: Which) -> Removed {
        let before = self.update(slot, |word| {
            let keep = match which {
                Which::Clean => word.dirty() != 0 || word.has(LENT),
                Which::Stale => word.dirty() != 0,
                Which::All => false,
            };
            let keep = keep || word.has(LOCKED | WRITEBACK);
            (word != Word::EMPTY && !keep).then_some(Word::EMPTY)
        });
        match before {
            Err(Word::EMPTY) => Removed::Nothing,
            Err(word) if word.has(LOCKED | WRITEBACK) => Removed::Busy,
            Err(_) => Removed::Kept,
            Ok(word) if word.has(FILLING) => Removed::Filling,
            Ok(word) if word.pins() == 0 => {
                Removed::Frame(self.token(word.frame()), word.is_dirty())
            }
            Ok(word) => {
                self.count_detached(word.frame(), word.pins().cast_signed());
                Removed::Detached(word.is_dirty())
            }
        }
    }

    /// As [`PageTable::pin`], also where views have used up their share of the pin count: for a
    /// holder inside of the crate that lets go when its operation ends.
    ///
    /// # Errors
    /// [`Blocked`].
    #[cold]
    pub(crate) fn pin_reserved(&self, slot: u32, granules: u8) -> Result<Pin<'_>, Blocked> {
        let pinned = self.update(slot, |word| {
            let ready = word.legible(granules) && word.has_spare_pin();
            ready.then_some(Word(word.0 + PIN))
        });
        let (group, _) = self.group(slot);
        match pinned {
            Ok(word) => Ok(Pin {
                table: self,
                group,
                slot,
                word,
            }),
            Err(word) => Err(why(word, granules)),
        }
    }

    /// Takes a dirty page for writing it to the device: it is clean then, and changes no more in
    /// this frame.
    pub(crate) fn begin_writeback(&self, slot: u32) -> Option<WritebackPage> {
        let before = self.update(slot, |word| {
            let ready = word.has(PRESENT) && !word.has(LOCKED | WRITEBACK) && word.has_spare_pin();
            (ready && word.dirty() != 0).then(|| Word((word.without_dirty().0 | WRITEBACK) + PIN))
        });
        let word = before.ok()?;
        self.lent.fetch_add(1, Relaxed);
        Some(WritebackPage {
            table: self.id,
            slot,
            frame: word.frame(),
            granules: word.dirty(),
        })
    }

    /// The device is done with a page. What was to be written is dirty again where it was not
    /// `written`. True when the page is clean now.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the right to the page ends here"
    )]
    pub(crate) fn end_writeback(&self, page: WritebackPage, written: bool) -> bool {
        assert_eq!(page.table, self.id, "a page of this table");
        let again = if written { 0 } else { page.granules };
        // A page that is written back is not removed: the slot has it, if perhaps in another frame.
        let before = self.update(page.slot, |word| {
            let unmarked = Word(word.0 & !WRITEBACK).with_marks(0, again);
            let pins = if word.owns(page.frame) { PIN } else { 0 };
            Some(Word(unmarked.0 - pins))
        });
        self.lent.fetch_sub(1, Relaxed);
        let (Ok(word) | Err(word)) = before;
        if !word.owns(page.frame) {
            self.unpin_detached(page.frame);
        }
        word.dirty() | again == 0
    }

    /// A page's memory, for the command that writes it: `None` when the range is not inside.
    pub(crate) fn writeback_segment(
        &self,
        page: &WritebackPage,
        range: std::ops::Range<usize>,
    ) -> Option<Segment> {
        if range.start > range.end || range.end > super::PAGE_BYTES {
            return None;
        }
        Some(Segment::new(
            self.memory.iova(page.frame).offset(range.start as u64),
            u32::try_from(range.end - range.start).ok()?,
        ))
    }

    /// A detached frame without pins.
    pub fn orphan(&self) -> Option<FrameRun> {
        self.orphans.pop().map(|frame| self.token(frame))
    }

    fn check_one(&self, frame: &FrameRun) {
        assert!(
            frame.count == 1 && frame.table == self.id,
            "one frame of this table"
        );
    }

    /// How many detached frames wait to be collected.
    pub fn orphans(&self) -> usize {
        self.orphans.len()
    }

    /// The one token of a frame that has just lost its slot or its last pin.
    fn token(&self, frame: u32) -> FrameRun {
        // An unpinned reader that sees a part of a later write to the frame also sees that the
        // frame has left its slot.
        fence(Release);
        FrameRun {
            table: self.id,
            first: frame,
            count: 1,
        }
    }

    /// Gives frames to a device.
    pub(crate) fn lend(&self, run: FrameRun) -> LentRun {
        assert_eq!(run.table, self.id, "frames of this table");
        self.lent.fetch_add(1, Relaxed);
        let iova = self.memory.iova(run.first);
        LentRun { run, iova }
    }

    /// Takes frames back. The caller has seen every command on them end, or the device stopped.
    pub(crate) fn take_back(&self, lent: LentRun) -> FrameRun {
        assert_eq!(lent.run.table, self.id, "frames of this table");
        self.lent.fetch_sub(1, Relaxed);
        lent.run
    }
}

#[cfg(not(loom))]
impl PageTable {
    /// The bytes of frames that the caller owns.
    #[inline]
    pub fn bytes_mut<'a>(&'a self, run: &'a mut FrameRun) -> &'a mut [u8] {
        assert_eq!(run.table, self.id, "frames of this table");
        // SAFETY: the token is the only one, no slot owns its frames, and it is borrowed mutably.
        unsafe { self.memory.bytes_mut(run.first, run.count) }
    }

    /// The bytes of frames that the caller owns, to be read.
    pub fn bytes<'a>(&'a self, run: &'a FrameRun) -> &'a [u8] {
        assert_eq!(run.table, self.id, "frames of this table");
        // SAFETY: as in `bytes_mut`, and the token is borrowed.
        unsafe { self.memory.bytes(run.first, run.count) }
    }

    /// Copies `bytes` to `start` of frames that are with a device and zeroes what follows, `len`
    /// bytes together, where no command in flight covers the range (a hole that was read). Out of
    /// range: nothing.
    pub(crate) fn fill_lent(&self, lent: &mut LentRun, start: usize, len: usize, bytes: &[u8]) {
        assert_eq!(lent.run.table, self.id, "frames of this table");
        let end = start.saturating_add(len);
        if end > lent.run.len_bytes() || bytes.len() > len {
            return;
        }
        // SAFETY: the run is the only token of its frames, no slot owns them, and no command in
        // flight writes to this part (the caller's promise); it is inside the run.
        let part = unsafe { self.memory.part_mut(lent.run.first, start, len) };
        let (data, zeroes) = part.split_at_mut(bytes.len());
        data.copy_from_slice(bytes);
        zeroes.fill(0);
    }
}

/// For the cache's tests.
#[cfg(loom)]
impl PageTable {
    pub(crate) fn write_frame(&self, frame: &FrameRun, value: u8) {
        self.memory.write(frame.first, [value; 2]);
    }

    /// As `Place::read` does, and calls `turn` between its steps.
    pub(crate) fn glance(
        &self,
        group: u32,
        slot: u32,
        turn: impl Fn(),
        still: impl FnOnce(&super::Tag) -> bool,
    ) -> Option<u8> {
        let place = self.place(group)?;
        let slot = slot as usize;
        let seen = place.peek(slot, super::ALL_GRANULES)?;
        turn();
        if !still(place.tag()) {
            return None;
        }
        turn();
        let bytes = self.memory.read_racy(seen.word.frame());
        turn();
        place.unchanged(slot, seen).then_some(bytes[0])
    }
}

impl PageTable {
    /// A frame's bytes from `from` on will probably be wanted: the processor may fetch them while
    /// it does something else.
    #[inline(always)]
    pub(crate) fn prefetch(&self, frame: u32, from: usize) {
        self.memory.prefetch(frame, from);
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        if self.lent.load(Acquire) != 0 {
            self.memory.leak();
        }
    }
}

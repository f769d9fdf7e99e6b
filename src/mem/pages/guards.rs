//! The rights to a slot's page.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::group::Group;
#[cfg(not(loom))]
use super::racy;
use super::slots::PageTable;
use super::word::Word;

/// A page that is held on to: its bytes do not change while this lives.
#[derive(Debug)]
pub struct Pin<'a> {
    pub(super) table: &'a PageTable,
    pub(super) group: &'a Group,
    pub(super) slot: u32,
    /// As it was found.
    pub(super) word: Word,
}

impl Pin<'_> {
    /// What was up to date when it was pinned, a bit a granule.
    #[inline]
    pub fn uptodate(&self) -> u8 {
        self.word.uptodate()
    }

    /// Counts it as used.
    #[inline(always)]
    pub fn used(&self) {
        self.group.used(self.slot as usize % 8);
    }

    /// Its frame.
    #[inline]
    pub fn frame(&self) -> u32 {
        self.word.frame()
    }

    /// Its slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether these granules might become dirty, when it was pinned, without asking the
    /// filesystem.
    pub(crate) fn claims(&self, granules: u8) -> bool {
        self.word.claims(granules)
    }

    /// Whether its frame is still in its slot. A pinned frame is not put into a slot again, so it
    /// was there since it was pinned, and the page has had the same owner for that time.
    #[inline(always)]
    pub(crate) fn is_in_place(&self) -> bool {
        let word = self.group.words[self.slot as usize % 8].load(Acquire);
        Word(word).owns(self.word.frame())
    }
}

#[cfg(not(loom))]
impl Pin<'_> {
    /// The page.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the frame was the slot's when it was pinned, and is not reused before the pin
        // ends: writers lock only without pins, and a detached frame waits for its last one.
        // Devices only read it.
        unsafe { self.table.memory.bytes(self.word.frame(), 1) }
    }
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        let cell = &self.group.words[self.slot as usize % 8];
        self.table.unpin(cell, self.word.frame());
    }
}

/// A page that one thread is alone with.
#[derive(Debug)]
pub struct WriteLock<'a> {
    pub(super) table: &'a PageTable,
    pub(super) group: &'a Group,
    /// In the group.
    pub(super) slot: usize,
    /// The word to leave behind.
    pub(super) word: Word,
}

impl WriteLock<'_> {
    /// Its frame.
    #[inline]
    pub fn frame(&self) -> u32 {
        self.word.frame()
    }

    /// The up-to-date granules and the dirty ones, one bit each.
    #[inline(always)]
    pub fn marks(&self) -> (u8, u8) {
        (self.word.uptodate(), self.word.dirty())
    }

    /// Marks these granules as written, for when it lets go: true when the page was not dirty
    /// before. `backed` when the blocks of all of the page are known to be there.
    #[inline(always)]
    pub fn written(&mut self, uptodate: u8, dirty: u8, backed: bool) -> bool {
        let was_dirty = self.word.dirty() != 0;
        self.word = self.word.with_marks(uptodate, dirty).backed_if(backed);
        !was_dirty && dirty != 0
    }
}

#[cfg(loom)]
impl Pin<'_> {
    /// For the cache's tests.
    pub(crate) fn value(&self) -> u8 {
        self.read()[0]
    }

    pub(super) fn read(&self) -> [u8; 2] {
        self.table.memory.read(self.word.frame())
    }
}

#[cfg(loom)]
impl WriteLock<'_> {
    pub(super) fn write(&mut self, value: [u8; 2]) {
        self.table.memory.write(self.word.frame(), value);
    }

    pub(super) fn read(&self) -> [u8; 2] {
        self.table.memory.read(self.word.frame())
    }
}

#[cfg(not(loom))]
impl WriteLock<'_> {
    /// The page, to be read.
    pub fn bytes_ref(&self) -> &[u8] {
        // SAFETY: as in `bytes`, and it is borrowed.
        unsafe { self.table.memory.bytes(self.word.frame(), 1) }
    }

    /// Overwrites from byte `from` on; false, and nothing, where that is not inside of the page.
    #[inline(always)]
    pub(crate) fn put(&mut self, from: usize, bytes: &[u8]) -> bool {
        let part = from.checked_add(bytes.len());
        match part.and_then(|to| self.bytes().get_mut(from..to)) {
            Some(part) => racy::copy_in(part, bytes),
            None => false,
        }
    }

    /// The page.
    #[inline(always)]
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the word is locked and had no pins: no other thread reads or writes the frame, no
        // device has it, and it is borrowed mutably.
        unsafe { self.table.memory.bytes_mut(self.word.frame(), 1) }
    }
}

impl Drop for WriteLock<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let slot = self.slot % 8;
        self.group.next_version(slot);
        // A locked word is changed only by the lock's owner: it can be overwritten. Release: a
        // thread that pins, locks or reads it next sees the bytes and the version.
        self.group.words[slot].store(self.word.0, Release);
    }
}

/// A page that a device is to read. Not to be dropped: `PageTable::end_writeback`.
#[derive(Debug)]
#[must_use = "the page stays as it is for ever when this is dropped"]
pub struct WritebackPage {
    pub(super) table: u32,
    pub(super) slot: u32,
    pub(super) frame: u32,
    pub(super) granules: u8,
}

impl WritebackPage {
    /// Which granules are to be written.
    pub fn granules(&self) -> u8 {
        self.granules
    }

    /// The slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

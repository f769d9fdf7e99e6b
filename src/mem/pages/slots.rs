//! The table of slots and frames, and the reasons why a page cannot be used.

use crossbeam_queue::ArrayQueue;

use super::group::Groups;
use super::memory::Memory;
use super::sync::atomic::{AtomicI32, AtomicUsize};
use super::word::{AHEAD, FILLING, LOCKED, PINS_FULL, PRESENT, Word};

/// Frames and slots. Slots are numbered from 0; a number out of range panics, as an index does.
#[derive(Debug)]
pub struct PageTable {
    pub(super) groups: Groups,
    /// For each frame: pins that are left from the time when it was in a slot, less those that went
    /// before they were counted. The thread that brings it to 0 gives the frame back.
    pub(super) detached: Box<[AtomicI32]>,
    /// Detached frames given back by the thread that released the last pin.
    pub(super) orphans: ArrayQueue<u32>,
    /// Runs and pages that devices have.
    pub(super) lent: AtomicUsize,
    pub(super) memory: Memory,
    pub(super) id: u32,
}

/// Why a page cannot be read, locked or pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// The slot is empty.
    Absent,
    /// Another thread reads it from the device.
    Filling,
    /// A required granule is not up to date.
    Partial,
    /// It was read ahead and not used yet: [`PageTable::arrive`] first.
    Ahead,
    /// Another thread writes to it, for a short time.
    Locked,
    /// It is pinned or in writeback: [`PageTable::replace`] it.
    Shared,
    /// The maximum number of views pin it: [`PageTable::replace`] it.
    PinsFull,
    /// The filesystem must be asked before it may become dirty.
    Unbacked,
}

#[cold]
pub(super) fn why(word: Word, granules: u8) -> Blocked {
    if word.has(FILLING) {
        Blocked::Filling
    } else if !word.has(PRESENT) {
        Blocked::Absent
    } else if word.has(LOCKED) {
        Blocked::Locked
    } else if word.uptodate() & granules != granules {
        Blocked::Partial
    } else if word.has(AHEAD) {
        Blocked::Ahead
    } else if word.has(PINS_FULL) {
        Blocked::PinsFull
    } else {
        Blocked::Shared
    }
}

//! A slot's word: everything about one page of a file, in 64 bits that change at once.

use std::fmt;

/// Bytes in a page: the unit that is found, pinned and reclaimed.
pub const PAGE_BYTES: usize = 4096;
/// Bytes in a granule: the unit that is up to date or dirty.
pub const GRANULE_BYTES: usize = 512;
/// Most frames of one table: 1 TiB.
pub const MAX_FRAMES: u32 = 1 << 28;

/// All granules of a page.
pub const ALL_GRANULES: u8 = u8::MAX;

/// ```text
///  bit  0..28  frame: which page of memory
///      28..40  pins: readers, views and writeback that hold on to the frame
///      40..48  up to date, a bit a granule
///      48..56  dirty, a bit a granule
///      57      lent: a copy is being written to and replaces it later, so the page stays
///      58      written back right now
///      59      locked: one thread writes to it
///      60      being filled: the frame belongs to the thread that fills it
///      61      present: the frame belongs to this slot
///      62      read ahead, not used yet
///      63      backed: its blocks are known to be there and its own, so it may become dirty again
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

const FRAME_BITS: u32 = 28;
const FRAME_MASK: u64 = (1 << FRAME_BITS) - 1;
const PIN_SHIFT: u32 = 28;
const PIN_MASK: u64 = 0xfff << PIN_SHIFT;
const UPTODATE_SHIFT: u32 = 40;
const DIRTY_SHIFT: u32 = 48;

pub(super) const PIN: u64 = 1 << PIN_SHIFT;
/// The highest bit of the pin count: views get half of what the count holds. The other half is for
/// pins of the crate itself, which are few and short: writeback (one a page), copying the page,
/// filling granules.
pub(super) const PINS_FULL: u64 = 1 << (PIN_SHIFT + 11);
pub(super) const LENT: u64 = 1 << 57;
pub(super) const WRITEBACK: u64 = 1 << 58;
pub(super) const LOCKED: u64 = 1 << 59;
pub(super) const FILLING: u64 = 1 << 60;
pub(super) const PRESENT: u64 = 1 << 61;
pub(super) const AHEAD: u64 = 1 << 62;
pub(super) const BACKED: u64 = 1 << 63;

impl Word {
    pub(super) const EMPTY: Self = Self(0);

    /// A page that is there.
    pub(super) fn present(frame: u32, uptodate: u8, dirty: u8) -> Self {
        Self(
            PRESENT
                | u64::from(frame)
                | u64::from(uptodate) << UPTODATE_SHIFT
                | u64::from(dirty) << DIRTY_SHIFT,
        )
    }

    pub(super) fn filling(frame: u32) -> Self {
        Self(FILLING | u64::from(frame))
    }

    #[inline]
    pub(super) fn frame(self) -> u32 {
        (self.0 & FRAME_MASK) as u32
    }

    #[inline]
    pub(super) fn pins(self) -> u32 {
        ((self.0 & PIN_MASK) >> PIN_SHIFT) as u32
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the 8 bits that are wanted"
    )]
    pub(super) fn uptodate(self) -> u8 {
        (self.0 >> UPTODATE_SHIFT) as u8
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the 8 bits that are wanted"
    )]
    pub(super) fn dirty(self) -> u8 {
        (self.0 >> DIRTY_SHIFT) as u8
    }

    #[inline]
    pub(super) fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// Whether the slot owns this frame.
    #[inline]
    pub(super) fn owns(self, frame: u32) -> bool {
        self.0 & (PRESENT | FRAME_MASK) == PRESENT | u64::from(frame)
    }

    /// Whether it may be pinned and these granules read: one comparison.
    #[inline]
    pub(super) fn readable(self, granules: u8) -> bool {
        let want = PRESENT | u64::from(granules) << UPTODATE_SHIFT;
        self.0 & (want | LOCKED | AHEAD | PINS_FULL) == want
    }

    /// Whether the count has room for a pin of the crate itself.
    #[inline]
    pub(super) fn has_spare_pin(self) -> bool {
        self.0 & PIN_MASK != PIN_MASK
    }

    /// Whether these granules may be read without holding on to it, if it stays as it is.
    #[inline(always)]
    pub(super) fn legible(self, granules: u8) -> bool {
        let want = PRESENT | u64::from(granules) << UPTODATE_SHIFT;
        self.0 & (want | LOCKED | AHEAD) == want
    }

    /// Whether who saw the one and then the other saw the same bytes, if the version is the same,
    /// too: others may have pinned the page, or written it back.
    #[inline(always)]
    pub(super) fn shows_the_same(self, other: Self) -> bool {
        (self.0 ^ other.0) & (FRAME_MASK | 0xff << UPTODATE_SHIFT | LOCKED | PRESENT) == 0
    }

    /// Whether its frame is the one behind another's.
    #[cfg(not(loom))]
    #[inline(always)]
    pub(super) fn follows(self, other: Self) -> bool {
        self.frame() == other.frame() + 1
    }

    /// The same word, locked.
    pub(super) fn locked(self) -> Self {
        Self(self.0 | LOCKED)
    }

    /// Whether it may be locked, where these granules must be up to date already, and those of
    /// `claim` have blocks.
    #[inline]
    pub(super) fn lockable(self, granules: u8, claim: u8) -> bool {
        let want = PRESENT | u64::from(granules) << UPTODATE_SHIFT;
        self.0 & (want | LOCKED | WRITEBACK | AHEAD | PIN_MASK) == want && self.claims(claim)
    }

    /// Whether these granules may become dirty without the filesystem being asked: they are
    /// already, or the page is backed.
    #[inline]
    pub(super) fn claims(self, claim: u8) -> bool {
        self.has(BACKED) || self.dirty() & claim == claim
    }

    /// The same, backed if so.
    #[inline]
    pub(super) fn backed_if(self, backed: bool) -> Self {
        Self(self.0 | u64::from(backed) << 63)
    }

    /// Whether the page can be evicted without writeback.
    pub(super) fn reclaimable(self) -> bool {
        self.0 & (PRESENT | LOCKED | WRITEBACK | LENT | PIN_MASK) == PRESENT && self.dirty() == 0
    }

    /// Counts towards the dirty limit.
    pub(super) fn is_dirty(self) -> bool {
        self.dirty() != 0 || self.has(WRITEBACK)
    }

    #[inline]
    pub(super) fn with_marks(self, uptodate: u8, dirty: u8) -> Self {
        Self(self.0 | u64::from(uptodate) << UPTODATE_SHIFT | u64::from(dirty) << DIRTY_SHIFT)
    }

    pub(super) fn without_dirty(self) -> Self {
        Self(self.0 & !(0xff << DIRTY_SHIFT))
    }

    /// The same page in another frame, with no pins on it.
    pub(super) fn moved_to(self, frame: u32) -> Self {
        Self((self.0 & !(FRAME_MASK | PIN_MASK)) | u64::from(frame))
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Word")
            .field("frame", &self.frame())
            .field("pins", &self.pins())
            .field("uptodate", &self.uptodate())
            .field("dirty", &self.dirty())
            .field("writeback", &self.has(WRITEBACK))
            .field("locked", &self.has(LOCKED))
            .field("filling", &self.has(FILLING))
            .field("present", &self.has(PRESENT))
            .field("ahead", &self.has(AHEAD))
            .finish()
    }
}

/// All granules of a page that a range of its bytes touches.
#[inline]
pub(crate) fn granules_touched(start: usize, end: usize) -> u8 {
    if start >= end {
        return 0;
    }
    mask_of(start / GRANULE_BYTES, end.div_ceil(GRANULE_BYTES))
}

/// All granules of a page that lie in a range of its bytes as a whole.
#[inline]
pub(crate) fn granules_covered(start: usize, end: usize) -> u8 {
    let (first, behind) = (start.div_ceil(GRANULE_BYTES), end / GRANULE_BYTES);
    if first >= behind {
        0
    } else {
        mask_of(first, behind)
    }
}

#[inline]
fn mask_of(first: usize, behind: usize) -> u8 {
    let below = (1_u32 << behind) - 1;
    #[expect(clippy::cast_possible_truncation, reason = "at most 8 granules")]
    let mask = (below & !((1_u32 << first) - 1)) as u8;
    mask & ALL_GRANULES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_of_ranges() {
        assert_eq!(granules_touched(0, PAGE_BYTES), 0xff);
        assert_eq!(granules_touched(511, 513), 0x03);
        assert_eq!(granules_touched(7, 7), 0);
        assert_eq!(granules_covered(511, 1537), 0x06);
        assert_eq!(granules_covered(1, 1023), 0);
        assert_eq!(granules_covered(3584, 4096), 0x80);
    }

    #[test]
    fn fields_do_not_overlap() {
        let word = Word::present(MAX_FRAMES - 1, 0x5a, 0xa5);
        assert_eq!(word.frame(), MAX_FRAMES - 1);
        assert_eq!((word.uptodate(), word.dirty()), (0x5a, 0xa5));
        assert_eq!(word.pins(), 0);
        assert!(word.legible(0x5a) && !word.legible(0x01) && !word.locked().legible(0));
        assert!(Word((word.0 + PIN) | WRITEBACK | BACKED).shows_the_same(word));
        assert!(!word.locked().shows_the_same(word) && !word.moved_to(3).shows_the_same(word));
        assert!(word.readable(0x5a) && !word.readable(0x01));
        assert!(
            Word(word.0 | PINS_FULL).has_spare_pin() && !Word(word.0 | PIN_MASK).has_spare_pin()
        );
        assert!(!Word(word.0 | PINS_FULL).readable(0) && !Word(word.0 | LOCKED).readable(0));
        assert!(word.lockable(0, 0xa5) && !Word(word.0 + PIN).lockable(0, 0));
        assert!(!word.lockable(0, 0xff) && word.backed_if(true).lockable(0, 0xff));
        assert!(!Word::EMPTY.readable(0) && !Word::filling(3).readable(0));
        assert_eq!(Word(word.0 + 3 * PIN).pins(), 3);
        assert_eq!(Word(word.0 + 3 * PIN).moved_to(9).pins(), 0);
        assert!(word.without_dirty().reclaimable() && !word.reclaimable());
        assert!(!Word(word.without_dirty().0 | LENT).reclaimable());
    }
}

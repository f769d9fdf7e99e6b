//! Owned frames: one token exists for each frame.

use std::ops::Range;

use super::word::PAGE_BYTES;
use crate::mem::Segment;
use crate::units::Iova;

/// Adjacent frames that belong to the holder of this value: no other code accesses their bytes.
/// Created once, by [`super::PageTable::new`], and then only split, joined and put into slots.
/// Dropping it loses the frames for the life of the table and does no other harm.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the frames are lost when this is dropped"]
pub struct FrameRun {
    pub(super) table: u32,
    pub(super) first: u32,
    pub(super) count: u32,
}

impl FrameRun {
    /// The first frame's number.
    #[inline]
    pub fn first(&self) -> u32 {
        self.first
    }

    /// How many frames.
    #[inline]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.count as usize * PAGE_BYTES
    }

    /// Cuts the first `count` frames off, at most all of them.
    pub fn split_first(&mut self, count: u32) -> Self {
        let count = count.min(self.count);
        let front = Self { count, ..*self };
        self.first += count;
        self.count -= count;
        front
    }

    /// Appends the frames that follow directly; gives `next` back when they do not.
    ///
    /// # Errors
    /// `next`, where it is not the neighbour.
    pub fn join(&mut self, next: Self) -> Result<(), Self> {
        if next.table != self.table || next.first != self.first + self.count {
            return Err(next);
        }
        self.count += next.count;
        Ok(())
    }
}

/// Frames that are with a device. As with [`crate::mem::Lent`], dropping it loses them on purpose.
#[derive(Debug)]
#[must_use = "the frames are lost when this is dropped"]
pub struct LentRun {
    pub(super) run: FrameRun,
    pub(super) iova: Iova,
}

impl LentRun {
    /// The first frame's number.
    pub fn first(&self) -> u32 {
        self.run.first
    }

    /// How many frames.
    pub fn count(&self) -> u32 {
        self.run.count
    }

    /// The device's name for a range of bytes; `None` when the range is not inside.
    pub(crate) fn segment(&self, range: Range<usize>) -> Option<Segment> {
        if range.start > range.end || range.end > self.run.len_bytes() {
            return None;
        }
        Some(Segment::new(
            self.iova.offset(range.start as u64),
            u32::try_from(range.end - range.start).ok()?,
        ))
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_and_joined_without_a_frame_twice() {
        let mut run = FrameRun {
            table: 1,
            first: 4,
            count: 8,
        };
        let mut front = run.split_first(3);
        assert_eq!((front.first(), front.count()), (4, 3));
        assert_eq!((run.first(), run.count()), (7, 5));
        let back = run.split_first(2);
        let rest = front.join(run).unwrap_err();
        front.join(back).unwrap();
        front.join(rest).unwrap();
        assert_eq!((front.first(), front.count()), (4, 8));
        assert_eq!(front.len_bytes(), 8 * PAGE_BYTES);
    }
}

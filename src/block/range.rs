//! The part of a device that a queue may access.

use std::ops::Range;

/// A range of the device's blocks: a partition, or the whole device. Block numbers of a queue count
/// from its first block, and no command of the queue reaches outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    first: u64,
    blocks: u64,
}

impl BlockRange {
    /// The whole device.
    pub const WHOLE: Self = Self {
        first: 0,
        blocks: u64::MAX,
    };

    /// `blocks` blocks from the block `first` of the device.
    pub const fn new(first: u64, blocks: u64) -> Self {
        Self { first, blocks }
    }

    /// The first block, as the device counts.
    #[inline]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The blocks of the range that a device of `device_blocks` has. Where this is not 0, the sum
    /// with [`BlockRange::first`] is at most `device_blocks`.
    pub const fn blocks_on(self, device_blocks: u64) -> u64 {
        let behind = device_blocks.saturating_sub(self.first);
        if behind < self.blocks {
            behind
        } else {
            self.blocks
        }
    }
}

/// Which ranges a device deallocates at best: multiples of so many blocks, aligned as the device
/// counts. Of others it may deallocate a part, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeallocateGrain {
    /// The length is a multiple of so many blocks.
    pub blocks: u32,
    /// The first block is a multiple of so many.
    pub align_blocks: u32,
    /// The first block of the queue's range, as the device counts.
    pub first: u64,
}

impl DeallocateGrain {
    /// Any range.
    pub const ANY: Self = Self {
        blocks: 1,
        align_blocks: 1,
        first: 0,
    };

    /// The part of a range of the queue's blocks that is worth a command; empty when none is.
    pub fn within(self, range: Range<u64>) -> Range<u64> {
        let align = u64::from(self.align_blocks.max(1));
        let start = self.first.checked_add(range.start);
        let start = start
            .and_then(|start| start.checked_next_multiple_of(align))
            .map_or(range.end, |start| start.saturating_sub(self.first));
        let len = range.end.saturating_sub(start);
        let len = len.saturating_sub(len % u64::from(self.blocks.max(1)));
        match len {
            0 => range.start..range.start,
            _ => start..start.saturating_add(len),
        }
    }
}

impl Default for BlockRange {
    fn default() -> Self {
        Self::WHOLE
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockRange, DeallocateGrain};

    #[test]
    fn a_range_ends_with_the_device() {
        assert_eq!(BlockRange::WHOLE.blocks_on(77), 77);
        let part = BlockRange::new(10, 20);
        assert_eq!(
            [100, 30, 29, 10, 3, 0].map(|n| part.blocks_on(n)),
            [20, 20, 19, 0, 0, 0]
        );
        assert_eq!(BlockRange::new(u64::MAX, u64::MAX).blocks_on(u64::MAX), 0);
    }

    #[test]
    fn ranges_are_cut_to_the_grain() {
        let grain = DeallocateGrain {
            blocks: 8,
            align_blocks: 4,
            first: 1,
        };
        assert_eq!(DeallocateGrain::ANY.within(3..5), 3..5);
        // Block 3 of the queue is block 4 of the device.
        assert_eq!(grain.within(0..20), 3..19);
        assert_eq!(grain.within(3..11), 3..11);
        assert!(grain.within(4..12).is_empty());
        assert!(grain.within(3..10).is_empty());
        assert!(grain.within(u64::MAX - 3..u64::MAX).is_empty());
        let zero = DeallocateGrain {
            blocks: 0,
            align_blocks: 0,
            first: 0,
        };
        assert_eq!(zero.within(3..5), 3..5);
    }
}

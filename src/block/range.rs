//! The part of a device that a queue may access.

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

impl Default for BlockRange {
    fn default() -> Self {
        Self::WHOLE
    }
}

#[cfg(test)]
mod tests {
    use super::BlockRange;

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
}

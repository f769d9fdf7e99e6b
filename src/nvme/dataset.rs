//! Limits of dataset management (NVM 3.2.3, 4.1.5.2): what one command may deallocate, and the
//! ranges that a namespace deallocates at best.

use super::spec::{IdentifyNamespace, IdentifyNvmController, NSFEAT_OPTIMAL, PAGE_BYTES};

/// Most ranges of a command: NR has 8 bits.
const MOST_RANGES: u16 = 256;
/// Bytes of a range.
pub(super) const RANGE_BYTES: usize = 16;
const _: () = assert!(MOST_RANGES as usize * RANGE_BYTES <= PAGE_BYTES);

/// What one dataset management command may cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetLimits {
    /// Most ranges (DMRL), 1 to 256.
    pub ranges: u16,
    /// Most blocks of a range (DMRSL), 1 at least.
    pub range_blocks: u32,
    /// Most blocks in all (DMSL), 1 at least.
    pub blocks: u64,
}

impl Default for DatasetLimits {
    /// No limits but those of the command's form.
    fn default() -> Self {
        Self {
            ranges: MOST_RANGES,
            range_blocks: u32::MAX,
            blocks: u64::MAX,
        }
    }
}

impl DatasetLimits {
    /// As the controller says: 0 is no limit.
    pub(super) fn of(data: &IdentifyNvmController) -> Self {
        let none = Self::default();
        let or = |value: u64, none: u64| if value == 0 { none } else { value };
        Self {
            ranges: match data.dmrl {
                0 => none.ranges,
                ranges => ranges.into(),
            },
            range_blocks: match data.dmrsl.get() {
                0 => none.range_blocks,
                blocks => blocks,
            },
            blocks: or(data.dmsl.get(), none.blocks),
        }
    }

    /// Cuts the next command off `left` blocks from `lba` on, more than 0: gives its ranges (first
    /// block, blocks) to `range` and returns their number and blocks. Where a limit cuts, it cuts
    /// at a multiple of `grain_blocks`, if one is in reach.
    pub(super) fn cut(
        &self,
        lba: u64,
        left: u64,
        grain_blocks: u32,
        mut range: impl FnMut(u16, u64, u32),
    ) -> (u16, u32) {
        // The number of blocks of a command has 32 bits here.
        let all = left.min(self.blocks).min(u32::MAX.into());
        let (mut count, mut done) = (0, 0_u64);
        while count < self.ranges && done < all {
            let at = lba.wrapping_add(done);
            let mut blocks = (all - done).min(self.range_blocks.into());
            if done + blocks < left {
                let over = at.wrapping_add(blocks) % u64::from(grain_blocks.max(1));
                if over < blocks {
                    blocks -= over;
                }
            }
            range(count, at, u32::try_from(blocks).unwrap_or(u32::MAX));
            count += 1;
            done += blocks;
        }
        (count, u32::try_from(done).unwrap_or(u32::MAX))
    }
}

/// Preferred granularity and alignment of deallocation in blocks (NPDG, NPDA); 1 where the
/// namespace says nothing.
pub(super) fn grain_of(data: &IdentifyNamespace) -> (u32, u32) {
    match data.nsfeat & NSFEAT_OPTIMAL {
        0 => (1, 1),
        _ => (
            u32::from(data.npdg.get()) + 1,
            u32::from(data.npda.get()) + 1,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(limits: DatasetLimits, lba: u64, blocks: u64, grain: u32) -> Vec<Vec<(u64, u32)>> {
        let (mut at, mut left) = (lba, blocks);
        let mut commands = Vec::new();
        while left > 0 {
            let mut ranges = Vec::new();
            let (count, blocks) = limits.cut(at, left, grain, |index, lba, blocks| {
                assert_eq!(usize::from(index), ranges.len());
                ranges.push((lba, blocks));
            });
            assert_eq!(usize::from(count), ranges.len());
            assert_eq!(
                u64::from(blocks),
                ranges.iter().map(|range| u64::from(range.1)).sum::<u64>()
            );
            assert!(count > 0 && count <= limits.ranges && u64::from(blocks) <= limits.blocks);
            at += u64::from(blocks);
            left -= u64::from(blocks);
            commands.push(ranges);
        }
        commands
    }

    #[test]
    fn commands_keep_to_the_limits() {
        let none = DatasetLimits::default();
        assert_eq!(cuts(none, 5, 1000, 8), [vec![(5, 1000)]]);
        let most = u64::from(u32::MAX);
        assert_eq!(
            cuts(none, 0, most + 1, 1),
            [vec![(0, u32::MAX)], vec![(most, 1)]]
        );
        let small = DatasetLimits {
            ranges: 2,
            range_blocks: 10,
            blocks: 15,
        };
        assert_eq!(
            cuts(small, 1, 40, 1),
            [
                vec![(1, 10), (11, 5)],
                vec![(16, 10), (26, 5)],
                vec![(31, 10)]
            ]
        );
        // Cuts are at multiples of 4.
        assert_eq!(
            cuts(small, 1, 30, 4),
            [vec![(1, 7), (8, 8)], vec![(16, 8), (24, 7)]]
        );
        // None is in reach.
        assert_eq!(
            cuts(small, 1, 30, 64),
            [vec![(1, 10), (11, 5)], vec![(16, 10), (26, 5)]]
        );
        let one = DatasetLimits {
            ranges: 1,
            range_blocks: 1,
            blocks: 1,
        };
        assert_eq!(
            cuts(one, 9, 3, 8),
            [vec![(9, 1)], vec![(10, 1)], vec![(11, 1)]]
        );
    }

    #[test]
    fn zero_is_no_limit() {
        let mut data: IdentifyNvmController = zerocopy::FromZeros::new_zeroed();
        assert_eq!(DatasetLimits::of(&data), DatasetLimits::default());
        data.dmrl = 255;
        data.dmrsl = 7.into();
        data.dmsl = u64::MAX.into();
        let limits = DatasetLimits::of(&data);
        assert_eq!(
            (limits.ranges, limits.range_blocks, limits.blocks),
            (255, 7, u64::MAX)
        );
        let mut namespace: IdentifyNamespace = zerocopy::FromZeros::new_zeroed();
        namespace.npdg = u16::MAX.into();
        assert_eq!(grain_of(&namespace), (1, 1));
        namespace.nsfeat = NSFEAT_OPTIMAL;
        assert_eq!(grain_of(&namespace), (65_536, 1));
    }
}

//! How far one command may reach: the device's largest transfer (MDTS), its optimal boundary
//! (NOIOB), what a PRP list can name, 65,536 blocks (NLB has 16 bits, NVM 3.2.4), and the seams
//! between memory segments.

use super::spec::{PAGE_BYTES, SGL_DESCRIPTOR_BYTES};
use crate::block::Refused;
use crate::mem::Segment;

/// Most descriptors of one command.
pub(super) const MAX_DESCRIPTORS: usize = PAGE_BYTES / SGL_DESCRIPTOR_BYTES;

/// Most bytes of one command: a PRP list is one page, and the first page of the memory is named
/// apart.
pub(super) const PRP_MAX_BYTES: u32 = 2 << 20;
const _: () = assert!(PRP_MAX_BYTES as usize == PAGE_BYTES / 8 * PAGE_BYTES);

/// Most blocks of one command that counts them in NLB.
pub(super) const NLB_MAX_BLOCKS: u32 = 1 << 16;

/// Alignment that PRPs demand of any address, in bytes.
pub(super) const DWORD_BYTES: u32 = 4;

/// The limits of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SplitLimits {
    pub(super) block_shift: u32,
    /// Most blocks of one read or write; at most 2 MiB in all.
    pub(super) max_blocks: u32,
    /// A command does not cross a multiple of this many blocks; 0 for no boundary.
    pub(super) boundary_blocks: u16,
    /// The boundary less one when it is a power of two, all ones when there is none, 0 when it is
    /// odd.
    boundary_mask: u64,
}

impl SplitLimits {
    pub(super) fn new(block_shift: u32, max_transfer: Option<u32>, boundary_blocks: u16) -> Self {
        let bytes = max_transfer.map_or(PRP_MAX_BYTES, |max| max.min(PRP_MAX_BYTES));
        Self {
            block_shift,
            max_blocks: (bytes >> block_shift).clamp(1, NLB_MAX_BLOCKS),
            boundary_blocks,
            boundary_mask: match boundary_blocks {
                0 => u64::MAX,
                blocks if blocks.is_power_of_two() => u64::from(blocks) - 1,
                _ => 0,
            },
        }
    }

    /// Whether a command for `nlb + 1` blocks from `lba` certainly crosses no boundary. With a
    /// boundary that is not a power of two, only that of one block is certain.
    #[inline]
    pub(super) fn surely_holds(&self, lba: u64, nlb: u64) -> bool {
        // No overflow: the range was found to be on the device.
        (lba & self.boundary_mask).wrapping_add(nlb) <= self.boundary_mask
    }

    /// How many of `left` blocks from `lba` one read or write may cover, memory aside.
    #[inline]
    pub(super) fn reach(&self, lba: u64, left: u64) -> u32 {
        let blocks = clamp_blocks(left, self.max_blocks);
        if self.boundary_blocks == 0 {
            return blocks;
        }
        let boundary = u64::from(self.boundary_blocks);
        clamp_blocks(boundary - lba % boundary, blocks)
    }
}

/// The smaller of the two.
#[inline]
pub(super) fn clamp_blocks(left: u64, most: u32) -> u32 {
    u32::try_from(left).unwrap_or(u32::MAX).min(most)
}

/// A place in a list of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cursor {
    pub(super) index: u32,
    pub(super) offset_bytes: u32,
}

/// Whether one command can go on from `before` into `after`: the seam is at a page on both sides.
pub(super) fn joins(before: &Segment, after: &Segment) -> bool {
    const IN_PAGE: u64 = PAGE_BYTES as u64 - 1;
    let end = before.iova().0.wrapping_add(u64::from(before.len_bytes()));
    (end | after.iova().0) & IN_PAGE == 0
}

/// How many of `limit_bytes` bytes from the cursor one command can name.
pub(super) fn piece_bytes(segments: &[Segment], at: Cursor, limit_bytes: u32) -> u32 {
    let mut rest = segments.get(at.index as usize..).unwrap_or_default().iter();
    let Some(mut segment) = rest.next() else {
        return 0;
    };
    let mut bytes = segment.len_bytes().saturating_sub(at.offset_bytes);
    for next in rest {
        if bytes >= limit_bytes || !joins(segment, next) {
            break;
        }
        bytes = bytes.saturating_add(next.len_bytes());
        segment = next;
    }
    bytes.min(limit_bytes)
}

/// Checks a chain's memory: what it sums up to, alignment, and that each seam is one that a command
/// can cross, or that a command can end at: with SGLs (`sgl`), nearly any.
pub(super) fn check_memory(
    segments: &[Segment],
    total_bytes: u64,
    block_shift: u32,
    sgl: bool,
) -> Result<(), &'static str> {
    // What one SGL can say may have its seams anywhere.
    let any_seam = sgl && segments.len() <= MAX_DESCRIPTORS;
    let mut sum = 0u64;
    let mut previous: Option<&Segment> = None;
    for segment in segments {
        let address = segment.iova().0 | u64::from(segment.len_bytes());
        if address % u64::from(DWORD_BYTES) != 0 {
            return Err("memory is not aligned to 4 bytes in address and length");
        }
        if segment.len_bytes() == 0 {
            return Err("a memory segment is empty");
        }
        if segment.iova().0 >> 63 != 0 {
            return Err("memory lies at the end of the device's address space");
        }
        if !any_seam
            && let Some(previous) = previous
            && !joins(previous, segment)
            && sum.trailing_zeros() < block_shift
        {
            return Err("a seam between memory segments is neither at a page nor at a block");
        }
        sum += u64::from(segment.len_bytes());
        previous = Some(segment);
    }
    if sum != total_bytes {
        return Err("memory and blocks are not of the same length");
    }
    Ok(())
}

/// Copies a list of segments into the slot's table; returns the first.
#[cold]
pub(super) fn take_segments(
    segments: &[Segment],
    table: &mut [Segment],
) -> Result<Segment, Refused> {
    let Some(table) = table.get_mut(..segments.len()) else {
        return Err(Refused::Invalid("the chain has too many memory segments"));
    };
    table.copy_from_slice(segments);
    Ok(segments.first().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Iova;

    fn segment(iova: u64, len_bytes: u32) -> Segment {
        Segment::new(Iova(iova), len_bytes)
    }

    #[test]
    fn reach_is_bounded_by_transfer_boundary_and_nlb() {
        let none = SplitLimits::new(9, None, 0);
        assert_eq!(none.reach(7, 1 << 40), 4096, "2 MiB of PRPs");
        assert_eq!(SplitLimits::new(12, Some(8192), 0).reach(0, 100), 2);
        assert_eq!(SplitLimits::new(12, Some(512), 0).reach(0, 100), 1);
        let odd = SplitLimits::new(9, Some(1 << 20), 100);
        assert_eq!(odd.reach(199, 50), 1);
        assert_eq!(odd.reach(200, 1000), 100);
        assert_eq!(odd.reach(u64::MAX - 20, 3), 3);
        assert!(odd.surely_holds(99, 0) && !odd.surely_holds(0, 1));
        let even = SplitLimits::new(9, None, 8);
        assert!(even.surely_holds(8, 7) && !even.surely_holds(9, 7));
        assert!(none.surely_holds(1 << 60, 4095));
    }

    #[test]
    fn pieces_end_at_seams_that_prps_cannot_cross() {
        let list = [
            segment(0x1200, 0xe00),
            segment(0x8000, 0x1000),
            segment(0x9000, 0x200),
            segment(0xa000, 0x1000),
        ];
        let at = Cursor::default();
        assert_eq!(piece_bytes(&list, at, u32::MAX), 0x2000);
        assert_eq!(piece_bytes(&list, at, 0x1000), 0x1000);
        let last = Cursor {
            index: 3,
            offset_bytes: 0x200,
        };
        assert_eq!(piece_bytes(&list, last, u32::MAX), 0xe00);
        let past = Cursor {
            index: 4,
            offset_bytes: 0,
        };
        assert_eq!(piece_bytes(&list, past, 1), 0);
    }

    #[test]
    fn wrong_memory_is_named() {
        let check = |list: &[Segment], total| check_memory(list, total, 9, false);
        assert_eq!(check(&[segment(0x1004, 512)], 512), Ok(()));
        assert!(check(&[segment(0x1002, 512)], 512).is_err());
        assert!(check(&[segment(0x1000, 510)], 510).is_err());
        assert!(check(&[segment(0x1000, 512)], 1024).is_err());
        assert!(check(&[segment(0x1000, 0), segment(0x1000, 512)], 512).is_err());
        assert!(check(&[segment(0x1000, 256), segment(0x2000, 256)], 512).is_err());
        let odd = [segment(0x1000, 256), segment(0x2000, 256)];
        assert_eq!(check_memory(&odd, 512, 9, true), Ok(()));
        let many = vec![segment(0x1000, 4); 384];
        assert!(check_memory(&many, 1536, 9, true).is_err());
        assert_eq!(
            check(&[segment(0x1f00, 256), segment(0x2000, 256)], 512),
            Ok(())
        );
        assert_eq!(
            check(&[segment(0x1000, 512), segment(0x2010, 512)], 1024),
            Ok(())
        );
    }
}

//! The extent size hint of a file (`xfs_io -c 'extsize 64k'`): its blocks are allocated in aligned
//! multiples of the hint, as far as there are no other extents in the way. What no data was written
//! to stays unwritten; what lies past the end is a reserve for the file to grow, and given back at
//! close as any other.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::format::btree::MAX_EXTENT_BLOCKS;
use super::super::format::inode::{self as layout, InodeCore};

/// The hint of a file in blocks, as xfs_get_extsz_hint().
pub(super) fn hint_of(core: &InodeCore) -> Option<u64> {
    let has_hint = core.flags.get() & layout::FLAG_EXTSIZE != 0;
    Some(u64::from(core.extsize.get())).filter(|blocks| has_hint && *blocks > 0)
}

/// Blocks to be allocated for `wanted` blocks in a hole of a file, which ends at `u64::MAX` behind
/// the last extent, as xfs_bmap_extsize_align(). They cover the first of the wanted ones, and lie
/// in the hole.
pub(super) fn align(hint: u64, wanted: &Range<u64>, hole: &Range<u64>) -> Range<u64> {
    let down = |at: u64| at.saturating_sub(at.checked_rem(hint).unwrap_or(0));
    let mut start = down(wanted.start);
    let up = wanted.end.checked_next_multiple_of(hint);
    let mut len = up.unwrap_or(u64::MAX).saturating_sub(start);
    if len > MAX_EXTENT_BLOCKS {
        len = down(MAX_EXTENT_BLOCKS).max(1);
    }
    // Moved behind the extent before, then before the one behind, with the same length; where both
    // are in the way, the hole is filled.
    if start < hole.start {
        start = hole.start;
    }
    if start.saturating_add(len) > hole.end {
        start = hole.end.saturating_sub(len).max(hole.start);
    }
    let end = start.saturating_add(len).min(hole.end);
    match (start..end).contains(&wanted.start) {
        true => start..end,
        // Of a hint that is longer than an extent can be.
        false => wanted.clone(),
    }
}

/// Where in the file `blocks` go that were allocated for `aligned`, or for a part of it where free
/// space is in pieces, as xfs_bmap_process_allocated_extent(): they cover as many of the
/// wanted ones as they can.
pub(super) fn place(aligned: &Range<u64>, wanted: &Range<u64>, blocks: u64) -> u64 {
    let len = wanted.end.saturating_sub(wanted.start);
    if blocks <= len {
        return wanted.start;
    }
    match aligned.start.saturating_add(blocks) < wanted.end {
        true => wanted.end.saturating_sub(blocks),
        false => aligned.start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_END: u64 = u64::MAX;

    #[test]
    fn blocks_are_aligned_unless_others_are_in_the_way() {
        // As Linux 6.18 does it for a hint of 16 blocks.
        for (wanted, hole, expected) in [
            (0..1, 0..NO_END, 0..16),
            (3..4, 1..NO_END, 1..17),
            (25..26, 17..NO_END, 17..33),
            (17..18, 16..18, 16..18),
            (35..36, 23..NO_END, 32..48),
            (75..76, 0..NO_END, 64..80),
            (3..4, 0..10, 0..10),
            (12..13, 2..14, 2..14),
            (20..21, 9..30, 14..30),
            (1..40, 0..NO_END, 0..48),
        ] {
            assert_eq!(
                align(16, &wanted, &hole),
                expected,
                "{wanted:?} in {hole:?}"
            );
        }
        // Neither power of two nor multiple.
        assert_eq!(align(3, &(4..5), &(0..NO_END)), 3..6);
    }

    #[test]
    fn any_request_is_covered_from_its_first_block() {
        for hint in [1, 2, 3, 5, 16] {
            for hole in [0..NO_END, 5..NO_END, 0..7, 3..20, 19..21] {
                for start in hole.start..hole.end.min(40) {
                    for len in 1..(hole.end.min(60) - start + 1) {
                        let wanted = start..start + len;
                        let got = align(hint, &wanted, &hole);
                        assert!(got.start <= start && got.end > start, "{got:?}");
                        assert!(got.start >= hole.start && got.end <= hole.end, "{got:?}");
                        assert!(got.end >= wanted.end, "{got:?} for {wanted:?}");
                    }
                }
            }
        }
        let most = MAX_EXTENT_BLOCKS;
        for hint in [4096, most - 1, most, u64::from(u32::MAX)] {
            for start in [0, 5, 4095, most, 3 * most - 7] {
                let got = align(hint, &(start..start + most), &(0..NO_END));
                assert!(
                    got.contains(&start) && got.end - got.start <= most,
                    "{got:?}"
                );
            }
        }
    }

    #[test]
    fn a_part_of_the_blocks_covers_what_is_wanted() {
        let (aligned, wanted) = (16..48, 20..40);
        assert_eq!(place(&aligned, &wanted, 32), 16);
        assert_eq!(place(&aligned, &wanted, 24), 16);
        assert_eq!(place(&aligned, &wanted, 22), 18);
        assert_eq!(place(&aligned, &wanted, 20), 20);
        assert_eq!(place(&aligned, &wanted, 1), 20);
    }
}

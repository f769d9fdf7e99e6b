//! Physical region pages (section 4.1.1): how a command names its memory.
//!
//! The first entry may start anywhere in a page, at a dword; every other names a whole page. Two
//! pages fit in the command; for more, the second entry names a list. Every command slot has a list
//! of one page of its own, so that nothing is allocated, and commands are cut so that one page is
//! enough.

use super::spec::PAGE_BYTES;
use super::split::Cursor;
use crate::mem::{Segment, SharedWords};
use crate::units::Iova;

/// The two words of a command's data pointer: PRP entries, or the halves of an SGL descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Prp {
    pub(super) first: u64,
    pub(super) second: u64,
}

const PAGE: u64 = PAGE_BYTES as u64;

/// A slot's own list.
pub(super) struct PrpList<'a> {
    words: &'a SharedWords,
    base_bytes: usize,
}

impl<'a> PrpList<'a> {
    /// The list of slot `at`.
    pub(super) fn of(words: &'a SharedWords, at: u16) -> Self {
        let base_bytes = usize::from(at) * PAGE_BYTES;
        Self { words, base_bytes }
    }

    pub(super) fn iova(&self) -> Iova {
        self.words.iova().offset(self.base_bytes as u64)
    }

    pub(super) fn store(&self, index: usize, address: u64) {
        self.words.store_u64(self.base_bytes + index * 8, address);
    }
}

/// Names contiguous memory that needs no list: it lies in two pages at most.
#[inline]
pub(super) fn short(iova: Iova, len_bytes: u32) -> Option<Prp> {
    let first = iova.0;
    let end = (first & (PAGE - 1)) + u64::from(len_bytes);
    if end <= PAGE {
        return Some(Prp { first, second: 0 });
    }
    let second = (first & !(PAGE - 1)).wrapping_add(PAGE);
    (end <= 2 * PAGE).then_some(Prp { first, second })
}

/// Names contiguous memory, in the command or through the list of slot `at`.
pub(super) fn contiguous(iova: Iova, len_bytes: u32, lists: &SharedWords, at: u16) -> Prp {
    if let Some(prp) = short(iova, len_bytes) {
        return prp;
    }
    let list = PrpList::of(lists, at);
    let end = (iova.0 & (PAGE - 1)) + u64::from(len_bytes);
    let mut page = iova.0 & !(PAGE - 1);
    for index in 0..end.div_ceil(PAGE) - 1 {
        page = page.wrapping_add(PAGE);
        list.store(usize::try_from(index).unwrap_or(0), page);
    }
    Prp {
        first: iova.0,
        second: list.iova().0,
    }
}

/// Names `len_bytes` bytes of a list of segments from `at`, and returns where they end. The
/// segments' seams inside are at pages ([`super::split::piece_bytes`] has seen to that).
pub(super) fn scattered(
    segments: &[Segment],
    mut at: Cursor,
    len_bytes: u32,
    list: &PrpList<'_>,
) -> (Prp, Cursor) {
    let mut prp = Prp::default();
    let (mut pages, mut left) = (0usize, len_bytes);
    while left > 0
        && let Some(segment) = segments.get(at.index as usize)
    {
        let take = left.min(segment.len_bytes().saturating_sub(at.offset_bytes));
        let start = segment.iova().0.wrapping_add(u64::from(at.offset_bytes));
        let end = start.wrapping_add(u64::from(take));
        let mut page = start;
        while page < end {
            match pages {
                0 => prp.first = page,
                1 => prp.second = page,
                _ => {
                    if pages == 2 {
                        list.store(0, prp.second);
                        prp.second = list.iova().0;
                    }
                    list.store(pages - 1, page);
                }
            }
            pages += 1;
            page = (page & !(PAGE - 1)).wrapping_add(PAGE);
        }
        left -= take;
        at.offset_bytes += take;
        if at.offset_bytes >= segment.len_bytes() {
            at = Cursor {
                index: at.index + 1,
                offset_bytes: 0,
            };
        }
    }
    (prp, at)
}

#[cfg(test)]
mod tests {
    use super::super::split::{SplitLimits, check_memory, piece_bytes};
    use super::*;
    use crate::mem::{Heap, HeapConfig, HugePages};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// The lists of a few slots; tests use slot 2.
    fn lists() -> SharedWords {
        let heap = Heap::new(HeapConfig {
            arena_bytes: 2 << 20,
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        SharedWords::new(heap.alloc(4 * PAGE_BYTES, PAGE_BYTES).unwrap())
    }

    /// The entries of slot 2's list that name `bytes` bytes after the first page, where there are
    /// so many.
    fn entries(lists: &SharedWords, prp: Prp, len_bytes: u32) -> Vec<u64> {
        let rest = (prp.first % PAGE + u64::from(len_bytes)).saturating_sub(PAGE);
        let pages = usize::try_from(rest.div_ceil(PAGE)).unwrap();
        let load = |at: usize| u64::from(lists.load_u32(2 * PAGE_BYTES + at * 4));
        match pages {
            0 | 1 => Vec::new(),
            _ => (0..pages)
                .map(|n| load(2 * n) | load(2 * n + 1) << 32)
                .collect(),
        }
    }

    /// What a device makes of the entries: ranges, checked by the rules of section 4.1.1.
    fn walk(prp: Prp, at: Iova, list: &[u64], len_bytes: u32) -> Vec<(u64, u64)> {
        let mut left = u64::from(len_bytes);
        let mut out = Vec::new();
        let mut take = |address: u64| {
            assert_eq!(address % 4, 0, "dwords");
            let n = left.min(PAGE - address % PAGE);
            out.push((address, n));
            left -= n;
            left
        };
        let left_now = take(prp.first);
        if left_now > 0 && left_now <= PAGE {
            assert_eq!(prp.second % PAGE, 0);
            take(prp.second);
        } else if left_now > 0 {
            assert_eq!(prp.second, at.0);
            assert!(list.len() <= PAGE_BYTES / 8, "one page of entries");
            for &address in list {
                assert_eq!(address % PAGE, 0, "whole pages after the first");
                take(address);
            }
        }
        assert_eq!(left, 0, "all bytes are named");
        out
    }

    fn flatten(ranges: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        for (start, len) in ranges {
            match out.last_mut() {
                Some((s, l)) if *s + *l == start => *l += len,
                _ => out.push((start, len)),
            }
        }
        out
    }

    fn segments(rng: &mut StdRng, block_bytes: u32) -> Vec<Segment> {
        let count = rng.random_range(1..8);
        let mut list = Vec::new();
        for n in 0..count {
            let base = ((n + 1) << 32) + u64::from(rng.random_range(0..64u32)) * PAGE;
            let offset = match rng.random_range(0..3) {
                0 => 0,
                1 => 4 * rng.random_range(0..1024u64),
                _ => 512 * rng.random_range(0..8u64),
            };
            let most = if rng.random_bool(0.1) { 2000 } else { 24 };
            let blocks = rng.random_range(1..most);
            let mut len_bytes = blocks * block_bytes;
            if rng.random_bool(0.3) {
                // Up to a page's end, so that the seam can be crossed.
                let end = (base + offset + u64::from(len_bytes)).next_multiple_of(PAGE);
                len_bytes = u32::try_from(end - base - offset).unwrap();
            }
            let iova = Iova(base + offset);
            list.push(Segment::new(iova, len_bytes));
        }
        list
    }

    #[test]
    fn cut_and_named_memory_equals_the_list_of_bytes() {
        let seed = 11;
        let mut rng = StdRng::seed_from_u64(seed);
        let lists = lists();
        let of_slot = lists.iova().offset(2 * PAGE);
        let (mut tried, mut listed) = (0, 0);
        while tried < 4000 {
            let shift = if rng.random_bool(0.5) { 9 } else { 12 };
            let list = segments(&mut rng, 1 << shift);
            let total: u64 = list.iter().map(|s| u64::from(s.len_bytes())).sum();
            if !total.is_multiple_of(1 << shift)
                || check_memory(&list, total, shift, false).is_err()
            {
                continue;
            }
            tried += 1;
            let mdts = [None, Some(4096), Some(8192), Some(128 << 10)][rng.random_range(0..4)];
            let noiob = [0, 1, 8, 100, 256][rng.random_range(0..5)];
            let geometry = SplitLimits::new(shift, mdts, noiob);
            let (mut lba, mut left) = (rng.random_range(0..10_000u64), total >> shift);
            let mut at = Cursor::default();
            let mut named = Vec::new();
            while left > 0 {
                let limit = geometry.reach(lba, left) << shift;
                let bytes = piece_bytes(&list, at, limit);
                let blocks = u64::from(bytes >> shift);
                assert!(bytes > 0 && bytes.is_multiple_of(1 << shift), "seed {seed}");
                assert!(mdts.is_none_or(|max| bytes <= max));
                let end = lba + blocks - 1;
                assert!(noiob == 0 || lba / u64::from(noiob) == end / u64::from(noiob));
                let (prp, next) = scattered(&list, at, bytes, &PrpList::of(&lists, 2));
                let page = entries(&lists, prp, bytes);
                if list.len() == 1 {
                    lists.clear();
                    let start = list[0].iova().offset(u64::from(at.offset_bytes));
                    assert_eq!(contiguous(start, bytes, &lists, 2), prp, "seed {seed}");
                    assert_eq!(entries(&lists, prp, bytes), page, "seed {seed}");
                }
                listed += usize::from(!page.is_empty());
                named.extend(walk(prp, of_slot, &page, bytes));
                (lba, left, at) = (lba + blocks, left - blocks, next);
            }
            let wanted = list.iter().map(|s| (s.iova().0, u64::from(s.len_bytes())));
            assert_eq!(flatten(named), flatten(wanted), "seed {seed} case {tried}");
        }
        assert!(listed > 1000, "lists were used {listed} times");
    }
}

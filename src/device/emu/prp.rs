//! Walking physical region pages (section 4.1.1).

use super::host_range::HostRange;
use crate::mem::DmaSpace;
use crate::nvme::spec::{PAGE_BYTES, SC_DATA_TRANSFER, SC_INVALID_PRP_OFFSET, StatusField};
use crate::units::Iova;

const PAGE: u64 = PAGE_BYTES as u64;

/// The host memory that a command's two PRP fields name, `len_bytes` in all, as contiguous
/// segments.
///
/// Ends for any content of host memory: every list page but the first yields at least 511 pages,
/// and the length is bounded by the command.
pub(super) fn walk(
    space: &DmaSpace,
    prp1: u64,
    prp2: u64,
    len_bytes: u64,
    segments: &mut Vec<HostRange>,
) -> Result<(), StatusField> {
    segments.clear();
    if len_bytes == 0 {
        return Ok(());
    }
    if !prp1.is_multiple_of(4) {
        return Err(SC_INVALID_PRP_OFFSET.do_not_retry());
    }
    let first = (PAGE - prp1 % PAGE).min(len_bytes);
    push(space, segments, prp1, first);
    let rest = len_bytes - first;
    if rest == 0 {
        return Ok(());
    }
    if rest <= PAGE {
        return push_page(space, segments, prp2, rest);
    }
    walk_list(space, prp2, rest, segments)
}

fn walk_list(
    space: &DmaSpace,
    list: u64,
    len_bytes: u64,
    segments: &mut Vec<HostRange>,
) -> Result<(), StatusField> {
    if !list.is_multiple_of(8) {
        return Err(SC_INVALID_PRP_OFFSET.do_not_retry());
    }
    let mut rest = len_bytes;
    let mut list = list;
    loop {
        // A list ends with its page; if more is needed than fits, its last entry names the next
        // list.
        let slots = (PAGE - list % PAGE) / 8;
        let needed = rest.div_ceil(PAGE);
        let entries = usize::try_from(needed.min(slots)).map_err(|_| SC_DATA_TRANSFER)?;
        let memory = space
            .translate(Iova(list), entries * 8)
            .map_err(|_| SC_DATA_TRANSFER)?;
        let entry = |n: usize| memory.load_u64(n * 8).ok_or(SC_DATA_TRANSFER);
        let pages = if needed > slots { entries - 1 } else { entries };
        for n in 0..pages {
            let len = rest.min(PAGE);
            push_page(space, segments, entry(n)?, len)?;
            rest -= len;
        }
        if rest == 0 {
            return Ok(());
        }
        list = entry(entries - 1)?;
        if !list.is_multiple_of(PAGE) {
            return Err(SC_INVALID_PRP_OFFSET.do_not_retry());
        }
    }
}

fn push_page(
    space: &DmaSpace,
    segments: &mut Vec<HostRange>,
    page: u64,
    len: u64,
) -> Result<(), StatusField> {
    if !page.is_multiple_of(PAGE) {
        return Err(SC_INVALID_PRP_OFFSET.do_not_retry());
    }
    push(space, segments, page, len);
    Ok(())
}

/// Adds `len` bytes (less than 4 GiB), cut where one mapping of the host's may end and the next one
/// begin.
pub(super) fn push(space: &DmaSpace, segments: &mut Vec<HostRange>, iova: u64, len: u64) {
    let (mut iova, mut len) = (iova, len);
    while let Some(before) = space.edge_within(Iova(iova), len) {
        push_whole(space, segments, iova, before);
        iova += before;
        len -= before;
    }
    push_whole(space, segments, iova, len);
}

/// Adds bytes to the last segment where they go on.
fn push_whole(space: &DmaSpace, segments: &mut Vec<HostRange>, iova: u64, len: u64) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if let Some(last) = segments.last_mut()
        && last.iova.0.checked_add(u64::from(last.len_bytes)) == Some(iova)
        && let Some(sum) = last.len_bytes.checked_add(len)
        && !space.is_edge(Iova(iova))
    {
        last.len_bytes = sum;
        return;
    }
    segments.push(HostRange {
        iova: Iova(iova),
        len_bytes: len,
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mem::{Heap, HeapConfig, HugePages, SharedWords};

    fn host() -> (Arc<DmaSpace>, SharedWords) {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let space = Arc::new(DmaSpace::default());
        heap.attach(space.clone()).unwrap();
        (
            space,
            SharedWords::new(heap.alloc(4 * PAGE_BYTES, PAGE_BYTES).unwrap()),
        )
    }

    fn lens(segments: &[HostRange]) -> Vec<(u64, u32)> {
        segments.iter().map(|s| (s.iova.0, s.len_bytes)).collect()
    }

    #[test]
    fn one_and_two_pages_need_no_list() {
        let (space, _) = host();
        let mut out = Vec::new();
        walk(&space, 0x1_0200, 0, 512, &mut out).unwrap();
        assert_eq!(lens(&out), [(0x1_0200, 512)]);
        walk(&space, 0x1_0f00, 0x5000, 4096, &mut out).unwrap();
        assert_eq!(lens(&out), [(0x1_0f00, 256), (0x5000, 3840)]);
        walk(&space, 0x1_0f00, 0x1_1000, 4096, &mut out).unwrap();
        assert_eq!(lens(&out), [(0x1_0f00, 4096)]);
        let bad = SC_INVALID_PRP_OFFSET.do_not_retry();
        assert_eq!(walk(&space, 0x1_0f00, 0x5008, 4096, &mut out), Err(bad));
        assert_eq!(walk(&space, 0x1_0f01, 0, 16, &mut out), Err(bad));
    }

    #[test]
    fn lists_chain_from_an_odd_offset() {
        let (space, words) = host();
        let list = words.iova().0;
        let mut out = Vec::new();
        // Two slots are left in the first list page: one data page, then the pointer to the next
        // list.
        words.store_u64(4080, 0x10_0000);
        words.store_u64(4088, list + 4096);
        words.store_u64(4096, 0x20_0000);
        words.store_u64(4104, 0x30_0000);
        let len = 256 + 2 * 4096 + 100;
        walk(&space, 0xf00, list + 4080, len, &mut out).unwrap();
        let want = [
            (0xf00, 256),
            (0x10_0000, 4096),
            (0x20_0000, 4096),
            (0x30_0000, 100),
        ];
        assert_eq!(lens(&out), want);
        // Exactly two pages more fill the two slots with data.
        words.store_u64(4088, 0x40_0000);
        walk(&space, 0xf00, list + 4080, 256 + 8192, &mut out).unwrap();
        assert_eq!(lens(&out)[2], (0x40_0000, 4096));
        words.store_u64(4088, list + 4096 + 8);
        let bad = SC_INVALID_PRP_OFFSET.do_not_retry();
        assert_eq!(walk(&space, 0xf00, list + 4080, len, &mut out), Err(bad));
        assert_eq!(walk(&space, 0xf00, list + 4, len, &mut out), Err(bad));
        words.store_u64(4088, 0xdead_f000);
        let fault = Err(SC_DATA_TRANSFER);
        assert_eq!(walk(&space, 0xf00, list + 4080, len, &mut out), fault);
    }

    #[test]
    fn a_list_that_points_to_itself_ends() {
        let (space, words) = host();
        let list = words.iova().0;
        for slot in 0..512 {
            words.store_u64(slot * 8, list);
        }
        let mut out = Vec::new();
        walk(&space, 0, list, 256 << 20, &mut out).unwrap();
        let sum: u64 = out.iter().map(|s| u64::from(s.len_bytes)).sum();
        assert_eq!(sum, 256 << 20);
    }
}

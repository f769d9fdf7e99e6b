//! Scatter-gather lists (section 4.1.2): memory that physical region pages cannot say in one
//! command, as its seams are not at pages.
//!
//! A list is one page of data block descriptors, which the command's last segment descriptor names:
//! it takes the place of the tracker's PRP list. Descriptors are used for dwords only, which every
//! controller with SGLs takes. (MSDBD, the most descriptors of a command, is a limit of message
//! based transports.)

use super::prp::{Prp, PrpList};
use super::spec::{SGL_DATA_BLOCK, SGL_DESCRIPTOR_BYTES, SGL_LAST_SEGMENT, SGL_TYPE_SHIFT};
use super::split::{Cursor, MAX_DESCRIPTORS};
use crate::mem::Segment;

/// How many of `limit_bytes` bytes from the cursor one command can name, in whole blocks.
pub(super) fn reach(segments: &[Segment], at: Cursor, limit_bytes: u32, block_shift: u32) -> u32 {
    let rest = segments.get(at.index as usize..).unwrap_or_default();
    let mut bytes = 0u32;
    for segment in rest.iter().take(MAX_DESCRIPTORS) {
        bytes = bytes.saturating_add(segment.len_bytes());
    }
    let bytes = bytes.saturating_sub(at.offset_bytes).min(limit_bytes);
    bytes >> block_shift << block_shift
}

/// Names `len_bytes` bytes of a list of segments from `at`, at most as many as [`reach`] says, and
/// returns where they end.
pub(super) fn describe(
    segments: &[Segment],
    mut at: Cursor,
    len_bytes: u32,
    list: &PrpList<'_>,
) -> (Prp, Cursor) {
    let (mut count, mut left) = (0usize, len_bytes);
    let mut first = Prp::default();
    while left > 0
        && let Some(segment) = segments.get(at.index as usize)
    {
        let take = left.min(segment.len_bytes().saturating_sub(at.offset_bytes));
        let address = segment.iova().0.wrapping_add(u64::from(at.offset_bytes));
        let descriptor = descriptor(SGL_DATA_BLOCK, address, take);
        if count == 0 {
            first = descriptor;
        }
        list.store(2 * count, descriptor.first);
        list.store(2 * count + 1, descriptor.second);
        count += 1;
        left -= take;
        at.offset_bytes += take;
        if at.offset_bytes >= segment.len_bytes() {
            at = Cursor {
                index: at.index + 1,
                offset_bytes: 0,
            };
        }
    }
    if count == 1 {
        return (first, at);
    }
    let bytes = u32::try_from(count * SGL_DESCRIPTOR_BYTES).unwrap_or(0);
    (descriptor(SGL_LAST_SEGMENT, list.iova().0, bytes), at)
}

fn descriptor(kind: u8, address: u64, len_bytes: u32) -> Prp {
    Prp {
        first: address,
        second: u64::from(kind) << SGL_TYPE_SHIFT | u64::from(len_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::PAGE_BYTES;
    use super::*;
    use crate::mem::{Heap, HeapConfig, HugePages, SharedWords};
    use crate::units::Iova;

    fn segment(iova: u64, len_bytes: u32) -> Segment {
        Segment::new(Iova(iova), len_bytes)
    }

    #[test]
    fn lists_are_cut_at_blocks_and_go_on_inside_of_a_segment() {
        let heap = Heap::new(HeapConfig {
            arena_bytes: 2 << 20,
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let words = SharedWords::new(heap.alloc(2 * PAGE_BYTES, PAGE_BYTES).unwrap());
        let list = PrpList::of(&words, 1);
        let load = |at: usize| {
            let at = PAGE_BYTES + at * 8;
            u64::from(words.load_u32(at)) | u64::from(words.load_u32(at + 4)) << 32
        };
        let memory = [
            segment(0x1004, 100),
            segment(0x9000, 700),
            segment(0x5008, 736),
        ];
        let start = Cursor::default();
        assert_eq!(reach(&memory, start, 1 << 20, 9), 1536);
        assert_eq!(reach(&memory, start, 1024, 9), 1024);
        assert_eq!(reach(&memory[..1], start, 1024, 9), 0);
        let (pointer, at) = describe(&memory, start, 1024, &list);
        assert_eq!(pointer.first, words.iova().0 + 4096);
        assert_eq!(pointer.second, 0x30 << 56 | 48);
        let stored: Vec<_> = (0..6).map(load).collect();
        assert_eq!(stored, [0x1004, 100, 0x9000, 700, 0x5008, 224]);
        let (index, offset_bytes) = (2, 224);
        assert_eq!(
            at,
            Cursor {
                index,
                offset_bytes
            }
        );
        let (pointer, _) = describe(&memory, at, 512, &list);
        assert_eq!((pointer.first, pointer.second), (0x5008 + 224, 512));
        // No more than a page of descriptors.
        let many = vec![segment(0x1000, 8); 300];
        assert_eq!(reach(&many, start, 1 << 20, 9), 2048);
    }
}

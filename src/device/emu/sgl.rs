//! Walking scatter-gather lists (section 4.1.2).

use super::host_range::HostRange;
use super::prp::push;
use crate::mem::DmaSpace;
use crate::nvme::spec::{
    SC_DATA_SGL_LENGTH, SC_DATA_TRANSFER, SC_INVALID_SGL_COUNT, SC_INVALID_SGL_SEGMENT,
    SC_SGL_GRANULARITY, SC_SGL_TYPE, SGL_DATA_BLOCK, SGL_DESCRIPTOR_BYTES, SGL_LAST_SEGMENT,
    SGL_SEGMENT, SGL_TYPE_SHIFT, StatusField,
};
use crate::units::Iova;

/// Most descriptors of a command; lists that point to themselves end there.
const MOST_DESCRIPTORS: u64 = 1 << 16;

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    kind: u8,
    address: u64,
    len_bytes: u64,
}

impl Descriptor {
    fn of(first: u64, second: u64) -> Self {
        Self {
            kind: second.to_le_bytes()[(SGL_TYPE_SHIFT / 8) as usize],
            address: first,
            len_bytes: second & 0xffff_ffff,
        }
    }
}

/// The host memory that a command's scatter-gather list names, which must be `len_bytes` in all, as
/// contiguous segments. `first` and `second` are the halves of the descriptor in the command.
pub(super) fn walk(
    space: &DmaSpace,
    first: u64,
    second: u64,
    len_bytes: u64,
    segments: &mut Vec<HostRange>,
) -> Result<(), StatusField> {
    segments.clear();
    let mut left = len_bytes;
    let mut allowed = MOST_DESCRIPTORS;
    let mut next = Descriptor::of(first, second);
    if next.kind == SGL_DATA_BLOCK {
        take(space, next, &mut left, segments)?;
        return ended(left);
    }
    loop {
        let is_last = match next.kind {
            SGL_SEGMENT => false,
            SGL_LAST_SEGMENT => true,
            _ => return Err(SC_SGL_TYPE.do_not_retry()),
        };
        let size = SGL_DESCRIPTOR_BYTES as u64;
        let count = next.len_bytes / size;
        if count == 0 || !next.len_bytes.is_multiple_of(size) || !next.address.is_multiple_of(8) {
            return Err(SC_INVALID_SGL_SEGMENT.do_not_retry());
        }
        allowed = allowed
            .checked_sub(count)
            .ok_or(SC_INVALID_SGL_COUNT.do_not_retry())?;
        let bytes = usize::try_from(next.len_bytes).map_err(|_| SC_DATA_TRANSFER)?;
        let memory = space
            .translate(Iova(next.address), bytes)
            .map_err(|_| SC_DATA_TRANSFER)?;
        let word = |at: usize| memory.load_u64(at).ok_or(SC_DATA_TRANSFER);
        let mut go_on = None;
        for at in (0..bytes).step_by(SGL_DESCRIPTOR_BYTES) {
            let descriptor = Descriptor::of(word(at)?, word(at + 8)?);
            let at_end = at + SGL_DESCRIPTOR_BYTES == bytes;
            match descriptor.kind {
                SGL_DATA_BLOCK => take(space, descriptor, &mut left, segments)?,
                SGL_SEGMENT | SGL_LAST_SEGMENT if at_end && !is_last => go_on = Some(descriptor),
                SGL_SEGMENT | SGL_LAST_SEGMENT => {
                    return Err(SC_INVALID_SGL_SEGMENT.do_not_retry());
                }
                _ => return Err(SC_SGL_TYPE.do_not_retry()),
            }
        }
        match go_on {
            Some(descriptor) => next = descriptor,
            None if is_last => return ended(left),
            // A segment that is not the last one ends with the descriptor of the next.
            None => return Err(SC_INVALID_SGL_SEGMENT.do_not_retry()),
        }
    }
}

/// Adds a data block.
fn take(
    space: &DmaSpace,
    block: Descriptor,
    left: &mut u64,
    segments: &mut Vec<HostRange>,
) -> Result<(), StatusField> {
    if !(block.address | block.len_bytes).is_multiple_of(4) {
        return Err(SC_SGL_GRANULARITY.do_not_retry());
    }
    *left = left
        .checked_sub(block.len_bytes)
        .ok_or(SC_DATA_SGL_LENGTH.do_not_retry())?;
    if block.len_bytes > 0 {
        push(space, segments, block.address, block.len_bytes);
    }
    Ok(())
}

fn ended(left: u64) -> Result<(), StatusField> {
    if left == 0 {
        Ok(())
    } else {
        Err(SC_DATA_SGL_LENGTH.do_not_retry())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mem::{Heap, HeapConfig, HugePages, SharedWords};

    const BLOCK: u64 = 0;
    const SEGMENT: u64 = 0x20 << 56;
    const LAST: u64 = 0x30 << 56;

    fn host() -> (Arc<DmaSpace>, SharedWords) {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let space = Arc::new(DmaSpace::default());
        heap.attach(space.clone()).unwrap();
        (space, SharedWords::new(heap.alloc(4096, 4096).unwrap()))
    }

    #[test]
    fn lists_go_on_from_segment_to_segment() {
        let (space, words) = host();
        let list = words.iova().0;
        let mut out = Vec::new();
        let lens = |out: &[HostRange]| {
            out.iter()
                .map(|s| (s.iova.0, s.len_bytes))
                .collect::<Vec<_>>()
        };
        walk(&space, 0x1004, BLOCK | 512, 512, &mut out).unwrap();
        assert_eq!(lens(&out), [(0x1004, 512)]);
        let descriptors = [
            (0x1004, BLOCK | 100),
            (0x9000, BLOCK),
            (list + 64, SEGMENT | 32),
            (0, 0),
            (0x5008, BLOCK | 400),
            (list + 128, LAST | 16),
            (0, 0),
            (0, 0),
            (0x5198, BLOCK | 12),
        ];
        for (at, (first, second)) in descriptors.into_iter().enumerate() {
            words.store_u64(at * 16, first);
            words.store_u64(at * 16 + 8, second);
        }
        walk(&space, list, SEGMENT | 48, 512, &mut out).unwrap();
        assert_eq!(lens(&out), [(0x1004, 100), (0x5008, 412)]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let (space, words) = host();
        let list = words.iova().0;
        // A block of 4 bytes, and a segment that is itself.
        words.store_u64(0, 0x1000);
        words.store_u64(8, BLOCK);
        words.store_u64(16, list);
        words.store_u64(24, SEGMENT | 32);
        let mut out = Vec::new();
        let mut fails = |first, second, sc: StatusField| {
            let got = walk(&space, first, second, 512, &mut out);
            assert_eq!(got.map_err(StatusField::sc), Err(sc.sc()), "{second:#x}");
        };
        fails(list, SEGMENT | 32, SC_INVALID_SGL_COUNT);
        fails(list, LAST | 32, SC_INVALID_SGL_SEGMENT);
        fails(list, LAST | 16, SC_DATA_SGL_LENGTH);
        fails(list, SEGMENT | 16, SC_INVALID_SGL_SEGMENT);
        fails(list, LAST | 17, SC_INVALID_SGL_SEGMENT);
        fails(list, LAST, SC_INVALID_SGL_SEGMENT);
        fails(list + 4, LAST | 16, SC_INVALID_SGL_SEGMENT);
        fails(list, LAST | 0xffff_fff0, SC_INVALID_SGL_COUNT);
        fails(0x7fff_0000_0000, LAST | 16, SC_DATA_TRANSFER);
        fails(0x1000, 0x10 << 56 | 512, SC_SGL_TYPE);
        fails(0x1000, 0x01 << 56 | 512, SC_SGL_TYPE);
        fails(0x1000, BLOCK | 508, SC_DATA_SGL_LENGTH);
        fails(0x1000, BLOCK | 516, SC_DATA_SGL_LENGTH);
        fails(0x1002, BLOCK | 512, SC_SGL_GRANULARITY);
        fails(0x1000, BLOCK | 510, SC_SGL_GRANULARITY);
    }
}

//! Filling the memory of new pages from the blocks, or the inode, behind a mapping.

use std::ops::Range;

use super::super::{MapFlags, Mapping, MappingKind, Ops};
use super::ring::{ChainRing, TaskId};
use crate::block::{Op, Queue};
use crate::cache::{Fill, Merge, Writing};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Segment;
use crate::mem::pages::GRANULE_BYTES;

/// The destination of a read: the memory of new pages.
pub(super) trait Room {
    fn segment(&self, range: Range<usize>) -> Option<Segment>;
    fn put(&mut self, start: usize, len: usize, bytes: &[u8]);
    fn abandon(self, lost: bool);
    fn finish_write(self, pos: u64, data: &[u8], writing: Writing) -> bool;
}

impl Room for Fill {
    fn segment(&self, range: Range<usize>) -> Option<Segment> {
        Self::segment(self, range)
    }

    fn put(&mut self, start: usize, len: usize, bytes: &[u8]) {
        Self::put(self, start, len, bytes);
    }

    fn abandon(self, lost: bool) {
        Self::abandon(self, lost);
    }

    fn finish_write(self, pos: u64, data: &[u8], writing: Writing) -> bool {
        Self::finish_write(self, pos, data, writing)
    }
}

impl Room for Merge<'_> {
    fn segment(&self, range: Range<usize>) -> Option<Segment> {
        Self::segment(self, range)
    }

    fn put(&mut self, start: usize, len: usize, bytes: &[u8]) {
        Self::put(self, start, len, bytes);
    }

    fn abandon(self, lost: bool) {
        Self::abandon(self, lost);
    }

    fn finish_write(self, pos: u64, data: &[u8], writing: Writing) -> bool {
        Self::finish_write(self, pos, data, writing)
    }
}

/// The runs of a page's granules, as ranges of its bytes.
pub(super) fn runs(granules: u8) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < 8 && granules & (1 << at) == 0 {
            at += 1;
        }
        let first = at;
        while at < 8 && granules & (1 << at) != 0 {
            at += 1;
        }
        (at > first).then(|| first * GRANULE_BYTES..at * GRANULE_BYTES)
    })
}

/// Puts what a mapping has from `pos` on into a room whose first byte is the file's byte `start`:
/// whole blocks.
#[expect(
    clippy::too_many_arguments,
    reason = "a step of a loop, in three loops"
)]
pub(super) fn bring<O: Ops, Q: Queue>(
    ring: &mut ChainRing<Q>,
    task: TaskId,
    ops: &O,
    mapping: &Mapping,
    pos: u64,
    len: u64,
    start: u64,
    room: &mut impl Room,
) -> Result<()> {
    let from = offset_in(pos, start);
    let bytes = offset_in(len, 0);
    let fresh = mapping.flags.contains(MapFlags::NEW);
    match mapping.kind {
        MappingKind::Inline => {
            let skip = offset_in(pos, mapping.offset);
            let data = ops.inline_data(mapping).get(skip..).unwrap_or_default();
            room.put(from, bytes, &data[..data.len().min(bytes)]);
        }
        MappingKind::Mapped if !fresh => {
            let block = u64::from(ring.limits().block_bytes);
            let whole = offset_in(len.next_multiple_of(block), 0);
            let segment = room.segment(from..from.saturating_add(whole));
            let segment = segment.ok_or_else(outside)?;
            ring.submit(task, Op::Read, mapping.addr_at(pos), &[segment])?;
        }
        _ => room.put(from, bytes, &[]),
    }
    Ok(())
}

/// Zeroes those of a page's granules, or parts of them, that lie behind the end of the file.
pub(super) fn zero_tail(room: &mut impl Room, start: u64, granules: u8, size: u64) {
    for run in runs(granules) {
        let from = offset_in(size.max(start), start).max(run.start);
        if from < run.end {
            room.put(from, run.end - from, &[]);
        }
    }
}

pub(super) fn offset_in(pos: u64, start: u64) -> usize {
    usize::try_from(pos - start).unwrap_or(usize::MAX)
}

#[cold]
pub(super) fn outside() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the mapping splits a block, or lies outside of what was asked for",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_granules() {
        let all = |mask| {
            runs(mask)
                .map(|run| (run.start, run.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(0), []);
        assert_eq!(all(0xff), [(0, 4096)]);
        assert_eq!(all(0b1100_0110), [(512, 1536), (3072, 4096)]);
    }
}

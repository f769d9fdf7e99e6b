//! Which blocks of a file are shared with others.
//!
//! The refcount btree is asked once for each block that the file has, however many of its extents
//! have that block, and the map is cut where shared and unshared blocks meet. Where extents of one
//! file overlap on the device, their blocks must be shared: then there are at most twice as many
//! pieces as extents and shared runs together. Without that rule it would be their product, which a
//! small image makes as large as memory.

use std::ops::{ControlFlow, Range};

use super::fs::Fs;
use super::iomap::{FileMap, Run};
use super::{MetaIo, corrupt};
use crate::error::Result;
use crate::iomap::{MapFlags, MappingKind};

/// A range of the device in bytes.
type Bytes = Range<u64>;

impl Fs {
    /// Finds out which blocks of a file are shared, once. Needed before a write or a report; costs
    /// nothing for a file that shares no blocks. All extents of the map must be loaded.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the refcount btree is broken, or
    /// extents of the file overlap that are not shared.
    pub fn learn_sharing(&self, io: &mut impl MetaIo, map: &FileMap) -> Result<()> {
        if !map.needs_sharing() {
            return Ok(());
        }
        map.check_loaded(&(0..u64::MAX))?;
        let (owned, overlaps) = on_device(map.runs.iter());
        let shared = self.shared_bytes(io, &owned)?;
        if let Some(both) = overlaps.iter().find(|overlap| !covers(&shared, overlap)) {
            return Err(corrupt(
                both.start,
                "extents of one file overlap in blocks that the refcount btree calls unshared: \
                 run xfs_repair",
            ));
        }
        let mut cut = Vec::with_capacity(map.runs.len());
        for run in map.runs.iter() {
            cut_run(*run, &shared, &mut cut);
        }
        let _ = map.cut.set(cut.into());
        Ok(())
    }

    /// The shared parts of ranges, in order.
    fn shared_bytes(&self, io: &mut impl MetaIo, ranges: &[Bytes]) -> Result<Vec<Bytes>> {
        let geometry = self.geometry();
        let mut shared: Vec<Bytes> = Vec::new();
        for range in ranges {
            let start = geometry.block_at_addr(range.start);
            let blocks = (range.end - range.start) >> geometry.block_log;
            self.for_each_shared(io, start, blocks, |(block, blocks)| {
                let start = geometry.block_addr(block);
                shared.push(start..start + geometry.bytes(blocks));
                ControlFlow::Continue(())
            })?;
        }
        Ok(shared)
    }
}

/// The device ranges of a file's blocks, in order and without overlap; and those that several runs
/// have.
fn on_device<'r>(runs: impl Iterator<Item = &'r Run>) -> (Vec<Bytes>, Vec<Bytes>) {
    let mut all: Vec<Bytes> = runs
        .filter(|run| matches!(run.kind, MappingKind::Mapped | MappingKind::Unwritten))
        .map(|run| run.addr..run.addr + (run.end - run.offset))
        .collect();
    all.sort_unstable_by_key(|range| range.start);
    let (mut owned, mut overlaps): (Vec<Bytes>, Vec<Bytes>) = (Vec::new(), Vec::new());
    for range in all {
        match owned.last_mut() {
            Some(last) if range.start < last.end => {
                let overlap = range.start..range.end.min(last.end);
                last.end = last.end.max(range.end);
                match overlaps.last_mut() {
                    // Those that only touch stay apart, as the ranges do: the refcount btree is
                    // asked for each range.
                    Some(before) if overlap.start < before.end => {
                        before.end = before.end.max(overlap.end);
                    }
                    _ => overlaps.push(overlap),
                }
            }
            _ => owned.push(range),
        }
    }
    (owned, overlaps)
}

/// Whether a range lies inside one of sorted ranges.
fn covers(sorted: &[Bytes], range: &Bytes) -> bool {
    let index = sorted.partition_point(|shared| shared.end <= range.start);
    sorted
        .get(index)
        .is_some_and(|shared| shared.start <= range.start && range.end <= shared.end)
}

/// Appends the pieces of a run, those in shared blocks marked. Unwritten blocks are never shared.
fn cut_run(run: Run, shared: &[Bytes], cut: &mut Vec<Run>) {
    if run.kind != MappingKind::Mapped {
        cut.push(run);
        return;
    }
    let mut rest = run;
    let first = shared.partition_point(|range| range.end <= run.addr);
    for range in &shared[first..] {
        let addr_end = rest.addr + (rest.end - rest.offset);
        if range.start >= addr_end {
            break;
        }
        let from = rest.offset + range.start.saturating_sub(rest.addr);
        let to = rest.offset + (range.end.min(addr_end) - rest.addr);
        let (before, at) = rest.split(from);
        let (mut inside, after) = at.split(to);
        inside.flags = MapFlags::SHARED;
        cut.extend(
            [before, inside]
                .into_iter()
                .filter(|run| run.end > run.offset),
        );
        rest = after;
    }
    if rest.end > rest.offset {
        cut.push(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(offset: u64, blocks: u64, addr: u64) -> Run {
        Run {
            offset: offset * 4096,
            end: (offset + blocks) * 4096,
            addr: addr * 4096,
            kind: MappingKind::Mapped,
            flags: MapFlags::empty(),
        }
    }

    fn blocks(ranges: &[Bytes]) -> Vec<Bytes> {
        let block = |byte: u64| byte / 4096;
        ranges
            .iter()
            .map(|range| block(range.start)..block(range.end))
            .collect()
    }

    #[test]
    fn overlaps_are_found_wherever_the_runs_are_in_the_file() {
        let runs = [
            run(0, 10, 100),
            run(10, 4, 300),
            run(20, 2, 104),
            run(30, 6, 98),
            run(40, 5, 110),
            run(50, 1, 302),
        ];
        let (owned, overlaps) = on_device(runs.iter());
        assert_eq!(blocks(&owned), [98..110, 110..115, 300..304]);
        assert_eq!(blocks(&overlaps), [100..104, 104..106, 302..303]);
        let bytes = |start: u64, end: u64| start * 4096..end * 4096;
        let shared = [bytes(99, 106), bytes(302, 304)];
        assert!(overlaps.iter().all(|overlap| covers(&shared, overlap)));
        assert!(!covers(&shared, &bytes(98, 100)));
        assert!(!covers(&shared, &bytes(105, 107)));
        assert!(!covers(&shared, &bytes(200, 201)));
    }

    #[test]
    fn overlaps_that_touch_are_each_covered_by_what_is_shared_of_their_range() {
        let runs = [
            run(0, 10, 100),
            run(20, 10, 110),
            run(40, 10, 100),
            run(60, 10, 110),
        ];
        let (owned, overlaps) = on_device(runs.iter());
        assert_eq!(blocks(&owned), [100..110, 110..120]);
        // All of both ranges is shared: asked one by one, that is what the refcount btree answers.
        assert!(overlaps.iter().all(|overlap| covers(&owned, overlap)));
        assert_eq!(blocks(&overlaps), [100..110, 110..120]);
    }

    #[test]
    fn runs_are_cut_where_sharing_begins_and_ends() {
        let bytes = |start: u64, end: u64| start * 4096..end * 4096;
        let shared = [bytes(90, 101), bytes(103, 105), bytes(109, 200)];
        let mut cut = Vec::new();
        cut_run(run(0, 10, 100), &shared, &mut cut);
        cut_run(run(20, 1, 102), &shared, &mut cut);
        let found: Vec<_> = cut
            .iter()
            .map(|run| {
                let part = [run.offset, run.end, run.addr].map(|byte| byte / 4096);
                (part, run.flags == MapFlags::SHARED)
            })
            .collect();
        let expected = [
            ([0, 1, 100], true),
            ([1, 3, 101], false),
            ([3, 5, 103], true),
            ([5, 9, 105], false),
            ([9, 10, 109], true),
            ([20, 21, 102], false),
        ];
        assert_eq!(found, expected);
    }
}

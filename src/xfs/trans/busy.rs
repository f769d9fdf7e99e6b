//! Busy extents: blocks that were freed by a checkpoint that is not durable yet. A crash would
//! bring their old owner back, so they must not have been overwritten.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, ErrorKind};

/// The detail of the error when only blocks are left that earlier transactions freed.
const ONLY_BUSY: &str = "the free blocks that are left were freed by changes that are not durable";

/// The error of an allocation that found only busy blocks.
#[cold]
pub(in super::super) fn only_busy() -> Error {
    Error::new(ErrorKind::WouldBlock, ONLY_BUSY)
}

/// The error when no space is left.
#[cold]
pub(in super::super) fn no_space() -> Error {
    Error::new(ErrorKind::NoSpace, "no space left on the filesystem")
}

/// Whether an operation failed because the free blocks that are left are busy: after it was
/// cancelled and the log was forced it can be tried again.
pub(in super::super) fn is_only_busy(error: &Error) -> bool {
    error.kind() == ErrorKind::WouldBlock && error.detail() == ONLY_BUSY
}

/// Busy extents by group and first block, with their end and the number of the checkpoint that
/// freed them. They do not overlap, because busy blocks are not allocated.
#[derive(Debug, Default)]
pub(in super::super) struct BusyExtents {
    extents: BTreeMap<(u32, u32), (u32, u64)>,
}

impl BusyExtents {
    pub(super) fn insert(&mut self, ag: u32, blocks: Range<u32>, checkpoint: u64) {
        // A list block that went to a btree and back may be busy already.
        while let Some(old) = self.first_in(ag, &blocks) {
            self.extents.remove(&(ag, old.start));
            let (before, after) = (old.start..blocks.start, blocks.end..old.end);
            for rest in [before, after] {
                if !rest.is_empty() {
                    self.extents
                        .insert((ag, rest.start), (rest.end, checkpoint));
                }
            }
        }
        if !blocks.is_empty() {
            self.extents
                .insert((ag, blocks.start), (blocks.end, checkpoint));
        }
    }

    /// The first busy extent that overlaps a range of blocks.
    pub(in super::super) fn first_in(&self, ag: u32, blocks: &Range<u32>) -> Option<Range<u32>> {
        let before = self.extents.range(..(ag, blocks.start)).next_back();
        let inside = self.extents.range((ag, blocks.start)..(ag, blocks.end));
        before
            .filter(|((group, _), (end, _))| *group == ag && *end > blocks.start)
            .into_iter()
            .chain(inside)
            .map(|((_, start), (end, _))| *start..*end)
            .next()
    }

    /// Those that checkpoints up to this one freed, in order; pieces that touch are one.
    pub(in super::super) fn freed_until(&self, checkpoint: u64) -> Vec<(u32, Range<u32>)> {
        let mut found: Vec<(u32, Range<u32>)> = Vec::new();
        for ((ag, start), (end, number)) in &self.extents {
            match found.last_mut() {
                _ if *number > checkpoint => {}
                Some((group, last)) if group == ag && last.end == *start => last.end = *end,
                _ => found.push((*ag, *start..*end)),
            }
        }
        found
    }

    /// Whether no block is busy.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// All checkpoints up to this one are durable.
    pub(in super::super) fn expire(&mut self, checkpoint: u64) {
        self.extents.retain(|_, (_, number)| *number > checkpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found_and_durable_ones_go() {
        let mut busy = BusyExtents::default();
        busy.insert(1, 10..20, 1);
        busy.insert(1, 30..40, 2);
        assert_eq!(busy.first_in(1, &(0..10)), None);
        assert_eq!(busy.first_in(1, &(0..11)), Some(10..20));
        assert_eq!(busy.first_in(1, &(19..35)), Some(10..20));
        assert_eq!(busy.first_in(1, &(20..35)), Some(30..40));
        assert_eq!(busy.first_in(0, &(0..100)), None);
        assert_eq!(busy.first_in(2, &(0..100)), None);
        busy.insert(0, 0..5, 1);
        busy.insert(0, 5..9, 1);
        busy.insert(0, 9..12, 3);
        assert_eq!(busy.freed_until(0), []);
        assert_eq!(busy.freed_until(1), [(0, 0..9), (1, 10..20)]);
        assert_eq!(busy.freed_until(3), [(0, 0..12), (1, 10..20), (1, 30..40)]);
        busy.insert(1, 15..32, 3);
        assert_eq!(busy.first_in(1, &(0..100)), Some(10..15));
        busy.expire(2);
        assert!(!busy.is_empty());
        busy.expire(3);
        assert!(busy.is_empty());
    }
}

//! A run of dirty bytes that is one chain of commands, and the mapping of a dirty byte.

use std::ops::Range;

use super::super::{Mapping, MappingKind};
use super::CachedOps;
use super::ring::{ChainRing, TaskId};
use crate::block::{Op, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Segment;

/// The longest ioend.
const MOST_BYTES: u64 = 8 << 20;

/// A run of dirty bytes, in the file and on the device.
pub(super) struct Ioend {
    pub(super) pos: u64,
    pub(super) len: u64,
    pub(super) mapping: Mapping,
    /// Which of the batch's pages.
    pub(super) pages: Range<usize>,
    pub(super) segments: Vec<Segment>,
    pub(super) task: Option<TaskId>,
    pub(super) failed: Option<Error>,
}

/// The mapping of a dirty byte: the last one, where it still covers it.
pub(super) fn map<O: CachedOps>(
    ops: &mut O,
    last: Option<Mapping>,
    pos: u64,
    len: u64,
) -> Result<Mapping> {
    if let Some(last) = last
        && last.offset <= pos
        && pos < last.end()
        && ops.is_current(&last)
    {
        return Ok(last);
    }
    let mapping = ops.map_writeback(pos, len)?;
    let covers = mapping.offset <= pos && pos < mapping.end();
    if !covers || !matches!(mapping.kind, MappingKind::Mapped | MappingKind::Unwritten) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the filesystem gave no blocks to dirty bytes",
        ));
    }
    Ok(mapping)
}

impl Ioend {
    /// Whether bytes belong to it: side by side in the file and on the device, and of the same
    /// kind.
    pub(super) fn takes(
        &self,
        mapping: &Mapping,
        pos: u64,
        len: u64,
        segment: &Segment,
        most_segments: usize,
    ) -> bool {
        let end = self.pos + self.len;
        let room = self.segments.len() < most_segments || self.follows(segment);
        end == pos
            && self.mapping.addr_at(self.pos) + self.len == mapping.addr_at(pos)
            && self.mapping.kind == mapping.kind
            && self.mapping.flags == mapping.flags
            // The filesystem hears of one mapping.
            && pos + len <= self.mapping.end()
            && self.len + len <= MOST_BYTES
            && room
    }

    fn follows(&self, segment: &Segment) -> bool {
        self.segments
            .last()
            .is_some_and(|last| last.iova().offset(last.len_bytes().into()) == segment.iova())
    }

    pub(super) fn add(&mut self, segment: Segment) {
        let joined = self.segments.last_mut();
        if !joined.is_some_and(|last| last.append(&segment)) {
            self.segments.push(segment);
        }
    }

    pub(super) fn submit<Q: Queue>(&mut self, ring: &mut ChainRing<Q>) {
        if self.task.is_some() || self.failed.is_some() {
            return;
        }
        let task = ring.task();
        let addr = self.mapping.addr_at(self.pos);
        self.failed = ring.submit(task, Op::Write, addr, &self.segments).err();
        self.task = Some(task);
    }
}

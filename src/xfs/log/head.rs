//! The search for the head, as the kernel's xlog_find_head() and xlog_find_zeroed() do it.

use zerocopy::FromBytes;

use super::super::MetaIo;
use super::super::format::log::{self as layout, RecordHeader};
use super::{CHUNK_BLOCKS, IN_FLIGHT_BLOCKS, RECORD_BLOCKS, XfsLog, block_in, cycle_of};
use crate::error::Result;

impl XfsLog {
    /// The head; `None` for a log that was never written.
    pub(super) fn find_head(&self, io: &mut impl MetaIo) -> Result<Option<u64>> {
        let last_block = self.blocks.saturating_sub(1);
        let first = self.cycle(io, 0)?;
        if first == 0 {
            return Ok(None);
        }
        let last = self.cycle(io, last_block)?;
        if last == 0 {
            return self.find_zeroes(io).map(Some);
        }
        let (mut head, stop) = if first == last {
            (self.blocks, last.wrapping_sub(1))
        } else {
            (self.find_cycle_start(io, last_block, last)?, last)
        };
        // Records that were in flight may have left holes of an older cycle before that: the first
        // hole is the head.
        let scan = self.blocks.min(IN_FLIGHT_BLOCKS);
        let far = scan.saturating_sub(head);
        let behind = self.blocks.saturating_sub(far);
        if let Some(hole) = self.find_cycle(io, behind, far, stop.wrapping_sub(1))? {
            head = hole;
        } else {
            let near = scan.saturating_sub(far);
            let start = head.saturating_sub(near);
            head = self.find_cycle(io, start, near, stop)?.unwrap_or(head);
        }
        head = self.after_whole_record(io, head)?;
        Ok(Some(if head == self.blocks { 0 } else { head }))
    }

    /// The head of a log that ends in zeroes.
    fn find_zeroes(&self, io: &mut impl MetaIo) -> Result<u64> {
        let head = self.find_cycle_start(io, self.blocks.saturating_sub(1), 0)?;
        let scan = head.min(IN_FLIGHT_BLOCKS);
        let start = head.saturating_sub(scan);
        let head = self.find_cycle(io, start, scan, 0)?.unwrap_or(head);
        self.end_of_record_before(io, start, head, 0)?
            .ok_or_else(|| self.bad(head, "no record before the head"))
    }

    /// Where `cycle` begins, which the block `last` has, by halving: an approximation.
    fn find_cycle_start(&self, io: &mut impl MetaIo, last: u64, cycle: u32) -> Result<u64> {
        let (mut newer, mut older) = (0_u64, last);
        while older.saturating_sub(newer) > 1 {
            let middle = newer.midpoint(older);
            if self.cycle(io, middle)? == cycle {
                older = middle;
            } else {
                newer = middle;
            }
        }
        Ok(older)
    }

    /// The first of `count` blocks from `start` that has `cycle`.
    fn find_cycle(
        &self,
        io: &mut impl MetaIo,
        start: u64,
        count: u64,
        cycle: u32,
    ) -> Result<Option<u64>> {
        let mut done = 0_u64;
        while done < count {
            let now = CHUNK_BLOCKS.min(count.saturating_sub(done));
            let from = start.saturating_add(done);
            let data = self.read(io, from, now)?;
            let found = (0..now).find(|index| cycle_of(block_in(&data, *index)) == cycle);
            if let Some(index) = found {
                return Ok(Some(from.saturating_add(index)));
            }
            done = done.saturating_add(now);
        }
        Ok(None)
    }

    /// Moves the head back to the start of the last record, when that was not written whole.
    fn after_whole_record(&self, io: &mut impl MetaIo, head: u64) -> Result<u64> {
        let start = head.saturating_sub(RECORD_BLOCKS);
        if let Some(head) = self.end_of_record_before(io, start, head, 0)? {
            return Ok(head);
        }
        // The record begins at the end of the log.
        let start = self
            .blocks
            .saturating_sub(RECORD_BLOCKS.saturating_sub(head));
        match self.end_of_record_before(io, start, self.blocks, head)? {
            Some(end) if end == self.blocks => Ok(head),
            Some(end) => Ok(end),
            None => Err(self.bad(head, "no record before the head")),
        }
    }

    /// The end of the last record that begins in `start..end`, when that is `end`, and the record's
    /// start otherwise, as xlog_find_verify_log_record(). `extra` blocks of it lie at the start of
    /// the log. `None` when the search came to the start of the log.
    fn end_of_record_before(
        &self,
        io: &mut impl MetaIo,
        start: u64,
        end: u64,
        extra: u64,
    ) -> Result<Option<u64>> {
        let mut to = end;
        while to > start {
            let from = to.saturating_sub(CHUNK_BLOCKS).max(start);
            let data = self.read(io, from, to.saturating_sub(from))?;
            for block in (from..to).rev() {
                let raw = block_in(&data, block.saturating_sub(from));
                let Ok((header, _)) = RecordHeader::ref_from_prefix(raw) else {
                    continue;
                };
                if header.magicno.get() != layout::RECORD_MAGIC {
                    continue;
                }
                // IRIX wrote no uuid.
                if header.fs_uuid != self.uuid && header.fs_uuid != [0; 16] {
                    return Err(self.bad(block, "a record of another filesystem (uuid)"));
                }
                let covered = end.saturating_sub(block).saturating_add(extra);
                let whole = covered == header.blocks();
                return Ok(Some(if whole { end } else { block }));
            }
            to = from;
        }
        if start == 0 {
            Ok(None)
        } else {
            Err(self.bad(start, "no record before the head"))
        }
    }
}

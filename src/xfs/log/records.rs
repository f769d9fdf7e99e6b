//! The records before the head, as the kernel's xlog_find_tail() looks at them.

use zerocopy::FromBytes;

use super::super::MetaIo;
use super::super::format;
use super::super::format::log::{self as layout, OpHeader, RecordHeader};
use super::{
    BB, CHUNK_BLOCKS, IN_FLIGHT_BLOCKS, LogEnd, LogState, RECORD_BLOCKS, XfsLog, block_in, block_of,
};
use crate::error::Result;

/// Basic blocks before the head in which headers are searched: records that can have been in
/// flight, and the whole one before them.
const WINDOW_BLOCKS: u64 = IN_FLIGHT_BLOCKS + 2 * RECORD_BLOCKS;

/// Torn records that are stepped over at the tail: more than can have been in flight.
const MOST_TORN: u32 = 64;

/// The start of a record.
#[derive(Debug, Clone, Copy)]
struct Record {
    block: u64,
    /// Whether the head is behind the end of the log from here, at its start.
    wrapped: bool,
    header: RecordHeader,
}

impl Record {
    /// The block of the oldest record that has to be replayed after this one was written.
    fn tail(&self) -> u64 {
        block_of(self.header.tail_lsn.get())
    }
}

impl XfsLog {
    /// Looks at the last record before the head, and, unless that is the one that unmounting
    /// writes, for torn ones.
    pub(super) fn end_at(&self, io: &mut impl MetaIo, head: u64) -> Result<LogEnd> {
        let record = self.last_record(io, head, self.blocks)?;
        if self.is_unmount(io, &record, head)? {
            return Ok(Self::end_after(&record, head, LogState::Clean));
        }
        let tail = record.tail();
        // As xlog_recover(): there is nothing between them.
        let nothing = tail == head;
        let state = if nothing {
            LogState::Clean
        } else {
            LogState::Dirty
        };
        let dirty = Self::end_after(&record, head, state);
        // As xlog_verify_head().
        let distance = self.distance(tail, head);
        let in_flight = self.records_before(io, head, distance, layout::MAX_IN_FLIGHT)?;
        let Some(oldest) = in_flight.last() else {
            return Ok(dirty);
        };
        let Some(head) = self.first_torn(io, oldest, head)? else {
            return Ok(dirty);
        };
        if head == 0 {
            // The kernel takes a torn record for one at this block only if the block is not 0, and
            // fails to mount.
            return Err(self.bad(0, "a torn record at the start of the log"));
        }
        let record = self.last_record(io, head, self.distance(tail, head))?;
        let clean = self.is_unmount(io, &record, head)?
            // As xlog_verify_tail(), whose tail is this record.
            && self.first_torn(io, &record, head)?.is_none();
        let state = if clean {
            LogState::Clean
        } else {
            LogState::Dirty
        };
        Ok(Self::end_after(&record, head, state))
    }

    /// As xlog_set_state().
    fn end_after(record: &Record, head: u64, state: LogState) -> LogEnd {
        let cycle = record
            .header
            .cycle
            .get()
            .wrapping_add(record.wrapped.into());
        LogEnd {
            state,
            lsn: u64::from(cycle).wrapping_shl(32) | head,
            tail_lsn: record.header.tail_lsn.get(),
            record_bytes: record.header.size.get(),
        }
    }

    /// Blocks from the tail to the head.
    pub(super) fn distance(&self, tail: u64, head: u64) -> u64 {
        if head > tail {
            head.saturating_sub(tail)
        } else {
            head.saturating_add(self.blocks.saturating_sub(tail))
        }
    }

    /// The block of the first record to be replayed: the tail, or behind it when that was
    /// overwritten while the last records were being written. As xlog_verify_tail().
    pub(super) fn first_to_replay(&self, io: &mut impl MetaIo, end: &LogEnd) -> Result<u64> {
        let head = block_of(end.lsn);
        let in_flight = u64::from(layout::MAX_IN_FLIGHT)
            .saturating_mul(u64::from(end.record_bytes).div_ceil(format::BASIC_BLOCK_BYTES))
            .min(IN_FLIGHT_BLOCKS);
        let mut from = block_of(end.tail_lsn);
        // As xlog_clear_stale_blocks(): in this cycle, or in the one before behind the head.
        let cycles = (end.lsn.wrapping_shr(32)).wrapping_sub(end.tail_lsn.wrapping_shr(32));
        let fits = match cycles {
            0 => from < head,
            1 => from >= head,
            _ => false,
        };
        if !fits || from >= self.blocks {
            return Err(self.bad(head, "the tail of the last record is impossible"));
        }
        for _ in 0..MOST_TORN {
            let record = self
                .record_after(io, from, head)?
                .ok_or_else(|| self.bad(from, "no record between tail and head"))?;
            let Some(torn) = self.first_torn(io, &record, head)? else {
                return Ok(record.block);
            };
            // Nearer to the end than what can have been in flight, it is no tail that was
            // overwritten.
            if self.distance(torn, head) > in_flight || torn == head {
                return Err(self.bad(torn, "a record between tail and head is damaged"));
            }
            from = self.wrap(torn.saturating_add(1));
            if from == head {
                return Err(self.bad(torn, "no whole record between tail and head"));
            }
        }
        Err(self.bad(head, "too many damaged records between tail and head"))
    }

    /// The first record that begins from block `from` on, before the head.
    fn record_after(&self, io: &mut impl MetaIo, from: u64, head: u64) -> Result<Option<Record>> {
        let all = self.distance(from, head).min(self.blocks);
        let mut done = 0_u64;
        while done < all {
            let now = CHUNK_BLOCKS.min(all.saturating_sub(done));
            let start = from.saturating_add(done);
            let data = self.read_ring(io, start, now)?;
            for index in 0..now {
                if let Ok((header, _)) = RecordHeader::read_from_prefix(block_in(&data, index))
                    && header.magicno.get() == layout::RECORD_MAGIC
                {
                    let block = self.wrap(start.saturating_add(index));
                    return Ok(Some(Record {
                        block,
                        wrapped: block >= head,
                        header,
                    }));
                }
            }
            done = done.saturating_add(now);
        }
        Ok(None)
    }

    fn last_record(&self, io: &mut impl MetaIo, head: u64, most: u64) -> Result<Record> {
        let records = self.records_before(io, head, most, 1)?;
        let last = records.first().copied();
        last.ok_or_else(|| self.bad(head, "no record before the head"))
    }

    /// The last `count` records that begin in the `most` blocks before `head`, the last one first.
    fn records_before(
        &self,
        io: &mut impl MetaIo,
        head: u64,
        most: u64,
        count: u32,
    ) -> Result<Vec<Record>> {
        let most = most.min(WINDOW_BLOCKS).min(self.blocks);
        let count = usize::try_from(count).unwrap_or(0);
        let mut records = Vec::with_capacity(count);
        let mut done = 0_u64;
        while done < most && records.len() < count {
            let wrapped = done >= head;
            let to = if wrapped {
                self.blocks.saturating_sub(done.saturating_sub(head))
            } else {
                head.saturating_sub(done)
            };
            let now = CHUNK_BLOCKS.min(to).min(most.saturating_sub(done));
            if now == 0 {
                break;
            }
            let from = to.saturating_sub(now);
            let data = self.read(io, from, now)?;
            for block in (from..to).rev() {
                let raw = block_in(&data, block.saturating_sub(from));
                if let Ok((header, _)) = RecordHeader::read_from_prefix(raw)
                    && header.magicno.get() == layout::RECORD_MAGIC
                    && records.len() < count
                {
                    records.push(Record {
                        block,
                        wrapped,
                        header,
                    });
                }
            }
            done = done.saturating_add(now);
        }
        Ok(records)
    }

    /// Bytes of the buffer that the records from this one on were written from.
    pub(super) fn buffer_size(&self, first: &RecordHeader) -> u32 {
        let len = first.len.get();
        // mkfs.xfs wrote this size wrong when the log had a large stripe unit.
        let wrong = len > first.size.get() && len <= self.buffer_bytes;
        if wrong && first.num_logops.get() == 1 {
            self.buffer_bytes
        } else {
            first.size.get()
        }
    }

    /// Whether a record consists of the unmount operation and ends at the head. The kernel does not
    /// look at its checksum.
    fn is_unmount(&self, io: &mut impl MetaIo, record: &Record, head: u64) -> Result<bool> {
        let header = &record.header;
        let end = record.block.saturating_add(header.blocks());
        if self.wrap(end) != head || header.num_logops.get() != 1 {
            return Ok(false);
        }
        let payload = self.wrap(record.block.saturating_add(header.header_blocks()));
        let data = self.read(io, payload, 1)?;
        let operation = OpHeader::ref_from_prefix(&data);
        let flags = operation.map_or(0, |(operation, _)| operation.flags);
        Ok(flags & layout::OP_UNMOUNT != 0)
    }

    /// The start of the first record from `oldest` to the head that was not written whole. As the
    /// kernel does, the first record says how many header blocks all of them have.
    fn first_torn(&self, io: &mut impl MetaIo, oldest: &Record, head: u64) -> Result<Option<u64>> {
        let first = &oldest.header;
        let size = self.buffer_size(first);
        if size > layout::MAX_RECORD_BYTES {
            return Ok(Some(oldest.block));
        }
        let header_blocks = layout::header_blocks(first.version.get(), size);
        let all = self.distance(oldest.block, head);
        let mut done = 0_u64;
        while done < all {
            let block = self.wrap(oldest.block.saturating_add(done));
            let headers = self.read_ring(io, block, header_blocks)?;
            let Ok((header, _)) = RecordHeader::ref_from_prefix(&headers) else {
                return Ok(Some(block));
            };
            if !header.is_valid(size) {
                return Ok(Some(block));
            }
            let blocks = u64::from(header.len.get()).div_ceil(format::BASIC_BLOCK_BYTES);
            let payload = self.read_ring(io, block.saturating_add(header_blocks), blocks)?;
            if !checksum_fits(header, &headers, &payload) {
                return Ok(Some(block));
            }
            done = done.saturating_add(header_blocks.saturating_add(blocks));
        }
        Ok(None)
    }
}

/// Whether a record's checksum is right, or absent, as mkfs.xfs writes it. It covers as many
/// extended headers as the payload needs, however many there are.
pub(super) fn checksum_fits(header: &RecordHeader, headers: &[u8], payload: &[u8]) -> bool {
    let stored = header.crc.get();
    let short = size_of::<RecordHeader>();
    let sizes = [layout::RECORD_CRC_BYTES, short];
    let len = usize::try_from(header.len.get()).unwrap_or(usize::MAX);
    let Some(payload) = payload.get(..len) else {
        return false;
    };
    stored == 0
        || sizes
            .into_iter()
            .any(|covered| record_checksum(headers, payload, covered) == Some(stored))
}

/// The checksum of a record, counting `covered` bytes of its first header.
pub(super) fn record_checksum(headers: &[u8], payload: &[u8], covered: usize) -> Option<u32> {
    let mut crc = format::checksum(headers.get(..covered)?, layout::RECORD_CRC_OFFSET)?;
    let used = payload.len().div_ceil(layout::HEADER_COVERS_BYTES as usize);
    for extended in headers.chunks_exact(BB).take(used).skip(1) {
        crc = format::crc::append(crc, extended.get(..layout::EXTENDED_CRC_BYTES)?);
    }
    Some(format::crc::append(crc, payload))
}

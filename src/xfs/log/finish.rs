//! The end of a replay: a log that says that there is nothing to replay.

use zerocopy::{FromZeros, IntoBytes};

use super::super::MetaIo;
use super::super::format::BASIC_BLOCK_BYTES;
use super::super::format::log::{self as layout, OpHeader, RecordHeader};
use super::super::format::log_items::CLIENT_LOG;
use super::super::superblock::Superblock;
use super::records::record_checksum;
use super::{
    BB, IN_FLIGHT_BLOCKS, LogEnd, LogState, RECORD_BLOCKS, XfsLog, block_of, log_of, word_offset,
};
use crate::error::Result;

/// The unmount record's data: its magic number, `Un` in the order of the machine, and padding.
const UNMOUNT: [u8; 8] = [0x6e, 0x55, 0, 0, 0, 0, 0, 0];
/// Basic blocks that are cleared at once.
const CLEAR_BLOCKS: u64 = 512;

/// Writes the record of unmounting at the end of a dirty log whose changes are all in place and
/// durable, and makes it durable. Returns where the log ends then.
///
/// # Errors
/// The device's. The log is then as dirty as before, or clean.
pub(in super::super) fn mark_clean(
    io: &mut impl MetaIo,
    superblock: &Superblock,
    end: &LogEnd,
) -> Result<LogEnd> {
    let log = log_of(io, superblock)?;
    log.clear_stale(io, end)?;
    io.flush()?;
    log.write_unmount(io, superblock, end)?;
    io.flush()?;
    let now = log.end(io)?;
    if now.state == LogState::Clean {
        return Ok(now);
    }
    Err(log.bad(
        end.block(),
        "the record of unmounting was not found after it was written",
    ))
}

/// Whether the record of unmounting fits between the head and the tail.
pub(in super::super) fn has_room(
    io: &mut impl MetaIo,
    superblock: &Superblock,
    end: &LogEnd,
) -> Result<bool> {
    let log = log_of(io, superblock)?;
    let tail = block_of(end.tail_lsn);
    let free = log.blocks.saturating_sub(log.distance(tail, end.block()));
    Ok(free > RECORD_BLOCKS)
}

impl LogEnd {
    /// The block of the head.
    fn block(&self) -> u64 {
        block_of(self.lsn)
    }

    fn cycle(&self) -> u32 {
        u32::try_from(self.lsn.wrapping_shr(32)).unwrap_or(u32::MAX)
    }
}

impl XfsLog {
    /// Overwrites what can have been in flight behind the head: an old record there would be taken
    /// for a part of the log as soon as the head comes near. As xlog_clear_stale_blocks().
    fn clear_stale(&self, io: &mut impl MetaIo, end: &LogEnd) -> Result<()> {
        let head = end.block();
        let tail = block_of(end.tail_lsn);
        let free = self.blocks.saturating_sub(self.distance(tail, head));
        let count = free.min(IN_FLIGHT_BLOCKS);
        let before_end = count.min(self.blocks.saturating_sub(head));
        let older = end.cycle().wrapping_sub(1);
        self.clear(io, (head, before_end), older, end.tail_lsn)?;
        let behind = count.saturating_sub(before_end);
        self.clear(io, (0, behind), end.cycle(), end.tail_lsn)
    }

    /// Writes empty records of one block.
    fn clear(
        &self,
        io: &mut impl MetaIo,
        (first, count): (u64, u64),
        cycle: u32,
        tail_lsn: u64,
    ) -> Result<()> {
        let mut done = 0_u64;
        while done < count {
            let now = CLEAR_BLOCKS.min(count.saturating_sub(done));
            let from = first.saturating_add(done);
            let mut blocks = Vec::new();
            for block in from..from.saturating_add(now) {
                let mut header = self.header(cycle, block);
                header.tail_lsn = tail_lsn.into();
                let start = blocks.len();
                blocks.extend_from_slice(header.as_bytes());
                blocks.resize(start.saturating_add(BB), 0);
            }
            self.write(io, from, &blocks)?;
            done = done.saturating_add(now);
        }
        Ok(())
    }

    fn header(&self, cycle: u32, block: u64) -> RecordHeader {
        let mut header = RecordHeader::new_zeroed();
        header.magicno = layout::RECORD_MAGIC.into();
        header.cycle = cycle.into();
        header.version = layout::RECORD_VERSION_2.into();
        header.lsn = (u64::from(cycle).wrapping_shl(32) | block).into();
        header.fmt = layout::FORMAT_LITTLE_ENDIAN.into();
        header.fs_uuid = self.uuid;
        header
    }

    fn write_unmount(
        &self,
        io: &mut impl MetaIo,
        superblock: &Superblock,
        end: &LogEnd,
    ) -> Result<()> {
        let operation = OpHeader::new(CLIENT_LOG, layout::OP_UNMOUNT, UNMOUNT.len());
        let mut payload = operation.as_bytes().to_vec();
        payload.extend_from_slice(&UNMOUNT);
        let geometry = &superblock.geometry;
        let unit = geometry
            .log_stripe_bytes
            .max(geometry.log_sector_bytes)
            .max(512);
        let blocks = self.record(end, &payload, 1, unit)?;
        let before_end = self.blocks.saturating_sub(end.block());
        let before_end = usize::try_from(before_end).unwrap_or(usize::MAX);
        let split = before_end.saturating_mul(BB).min(blocks.len());
        let (first, rest) = blocks.split_at(split);
        self.write(io, end.block(), first)?;
        self.write(io, 0, rest)
    }

    /// The blocks of a record at the head of the log, whose tail is the record itself. Its length
    /// is a multiple of `unit` bytes.
    fn record(&self, end: &LogEnd, payload: &[u8], operations: u32, unit: u32) -> Result<Vec<u8>> {
        let (block, cycle) = (end.block(), end.cycle());
        let size = self.buffer_bytes;
        let header_blocks = layout::header_blocks(layout::RECORD_VERSION_2, size);
        let count = usize::try_from(header_blocks).unwrap_or(1);
        let unit = usize::try_from(unit).unwrap_or(BB);
        let head_bytes = count.saturating_mul(BB);
        let all = head_bytes
            .saturating_add(payload.len())
            .checked_next_multiple_of(unit)
            .ok_or_else(|| self.bad(block, "a record is too long"))?;
        let mut headers = vec![0; head_bytes];
        let mut payload = payload.to_vec();
        payload.resize(all.saturating_sub(head_bytes), 0);
        // A block behind the end of the log is of the next cycle.
        let cycle_at = |index: u64| match block.saturating_add(index) < self.blocks {
            true => cycle,
            false => match cycle.wrapping_add(1) {
                layout::RECORD_MAGIC => cycle.wrapping_add(2),
                next => next,
            },
        };
        let mut header = self.header(cycle, block);
        header.len = u32::try_from(payload.len()).unwrap_or(u32::MAX).into();
        header.tail_lsn = end.lsn.into();
        header.num_logops = operations.into();
        header.size = size.into();
        put(&mut headers, 0, header.as_bytes());
        for index in 1..count {
            let cycle = cycle_at(index as u64).to_be_bytes();
            put(&mut headers, index.saturating_mul(BB), &cycle);
        }
        for (index, data) in payload.chunks_exact_mut(BB).enumerate() {
            if let Some(word) = data.first_chunk_mut::<4>() {
                put(&mut headers, word_offset(index), word);
                *word = cycle_at(header_blocks.saturating_add(index as u64)).to_be_bytes();
            }
        }
        let crc = record_checksum(&headers, &payload, layout::RECORD_CRC_BYTES).unwrap_or(0);
        put(&mut headers, layout::RECORD_CRC_OFFSET, &crc.to_le_bytes());
        headers.extend_from_slice(&payload);
        Ok(headers)
    }

    /// Writes whole blocks, which must lie in the log.
    fn write(&self, io: &mut impl MetaIo, first: u64, blocks: &[u8]) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let into = first.saturating_mul(BASIC_BLOCK_BYTES);
        io.write_at(self.addr_bytes.saturating_add(into), blocks)
    }
}

fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    let to = buf
        .get_mut(at..)
        .and_then(|rest| rest.get_mut(..bytes.len()));
    if let Some(to) = to {
        to.copy_from_slice(bytes);
    }
}

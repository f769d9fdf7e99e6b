//! Records: headers, cycle numbers, checksum, and where in the ring of the log each part goes. As
//! the kernel's xlog_sync() writes them.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromZeros, IntoBytes};

use super::super::super::format::BASIC_BLOCK_BYTES;
use super::super::super::format::log::{self as layout, OpHeader, RecordHeader};
use super::super::super::format::log_items::CLIENT_LOG;
use super::super::records::record_checksum;
use super::super::{BB, IN_FLIGHT_BLOCKS, XfsLog, block_of, word_offset};

/// The data of the operation of unmounting: its magic number, `Un` in the order of the machine, and
/// padding.
const UNMOUNT: [u8; 8] = [0x6e, 0x55, 0, 0, 0, 0, 0, 0];
/// Basic blocks that are cleared by one write.
const CLEAR_BLOCKS: u64 = 512;
/// `RecordHeader::prev_block` of a record whose predecessor is unknown. Nothing reads the field.
pub(in super::super) const NO_BLOCK: u32 = u32::MAX;

/// A write to the device: whole sectors of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogWrite {
    /// Where on the device.
    pub addr_bytes: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// A record as it is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltRecord {
    /// Its log sequence number: the cycle in the upper half, its first block in the lower.
    pub lsn: u64,
    /// One write, or two for a record that continues at the start of the log. The record counts
    /// only when both are there, in any order.
    pub writes: Vec<LogWrite>,
}

impl BuiltRecord {
    /// Basic blocks.
    pub fn blocks(&self) -> u64 {
        let bytes = self.writes.iter().map(|write| write.bytes.len() as u64);
        bytes.fold(0, u64::saturating_add) / BASIC_BLOCK_BYTES
    }
}

/// A position in the ring of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct LogHead {
    pub(in super::super) cycle: u32,
    /// Basic block in the log.
    pub(in super::super) block: u64,
}

impl LogHead {
    pub(in super::super) fn at(lsn: u64) -> Self {
        Self {
            cycle: u32::try_from(lsn.wrapping_shr(32)).unwrap_or(u32::MAX),
            block: block_of(lsn),
        }
    }

    pub(in super::super) fn lsn(self) -> u64 {
        u64::from(self.cycle).wrapping_shl(32) | self.block
    }

    /// The position `count` blocks on, in a log of `blocks` blocks.
    pub(in super::super) fn after(self, count: u64, blocks: u64) -> Self {
        let block = self.block.saturating_add(count);
        match block.checked_sub(blocks) {
            None => Self { block, ..self },
            Some(block) => Self {
                cycle: next_cycle(self.cycle),
                block,
            },
        }
    }
}

/// The cycle number after this one. The magic number of records is none: a block that begins with
/// it would look like a record's.
fn next_cycle(cycle: u32) -> u32 {
    match cycle.wrapping_add(1) {
        layout::RECORD_MAGIC => layout::RECORD_MAGIC.wrapping_add(1),
        next => next,
    }
}

/// What a record's header says besides its place and length.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordFields {
    pub(super) tail_lsn: u64,
    pub(super) operations: u32,
    pub(super) previous_block: u32,
}

impl XfsLog {
    /// Bytes of a record's headers.
    pub(super) fn header_bytes(&self) -> usize {
        let blocks = layout::header_blocks(layout::RECORD_VERSION_2, self.buffer_bytes);
        usize::try_from(blocks).unwrap_or(1).saturating_mul(BB)
    }

    /// Bytes of the longest record, headers included: as many whole units as a buffer holds.
    pub(super) fn record_bytes(&self) -> usize {
        let size = u64::from(self.buffer_bytes);
        let over = size.checked_rem(self.unit_bytes).unwrap_or(0);
        usize::try_from(size.saturating_sub(over)).unwrap_or(0)
    }

    /// Bytes of a record with so many bytes before its padding.
    pub(super) fn padded(&self, bytes: usize) -> usize {
        let unit = usize::try_from(self.unit_bytes).unwrap_or(BB);
        bytes.checked_next_multiple_of(unit).unwrap_or(bytes)
    }

    fn new_header(&self, at: LogHead) -> RecordHeader {
        let mut header = RecordHeader::new_zeroed();
        header.magicno = layout::RECORD_MAGIC.into();
        header.cycle = at.cycle.into();
        header.version = layout::RECORD_VERSION_2.into();
        header.lsn = at.lsn().into();
        header.fmt = layout::FORMAT_LITTLE_ENDIAN.into();
        header.fs_uuid = self.uuid;
        header
    }

    /// Completes a record whose payload lies behind room for its headers: pads it, fills in the
    /// headers, puts cycle numbers into the blocks, and sums it up.
    pub(super) fn seal(
        &self,
        mut record: Vec<u8>,
        at: LogHead,
        fields: RecordFields,
    ) -> BuiltRecord {
        record.resize(self.padded(record.len()), 0);
        let (headers, payload) = record
            .split_at_mut_checked(self.header_bytes())
            .unwrap_or_default();
        let mut header = self.new_header(at);
        header.len = u32::try_from(payload.len()).unwrap_or(u32::MAX).into();
        header.tail_lsn = fields.tail_lsn.into();
        header.prev_block = fields.previous_block.into();
        header.num_logops = fields.operations.into();
        header.size = self.buffer_bytes.into();
        // As xlog_pack_data() and xlog_split_iclog(): blocks behind the end of the log are of the
        // next cycle.
        let before_end =
            usize::try_from(self.blocks.saturating_sub(at.block)).unwrap_or(usize::MAX);
        let cycles = [at.cycle, next_cycle(at.cycle)].map(u32::to_be_bytes);
        let [this, next] = &cycles;
        let cycle_of = |index: usize| if index < before_end { this } else { next };
        put(headers, 0, header.as_bytes());
        let count = headers.len() / BB;
        for index in 1..count {
            put(headers, index.saturating_mul(BB), cycle_of(index));
        }
        for (index, block) in payload.chunks_exact_mut(BB).enumerate() {
            if let Some(word) = block.first_chunk_mut::<4>() {
                put(headers, word_offset(index), word);
                *word = *cycle_of(count.saturating_add(index));
            }
        }
        let crc = record_checksum(headers, payload, layout::RECORD_CRC_BYTES).unwrap_or(0);
        put(headers, layout::RECORD_CRC_OFFSET, &crc.to_le_bytes());
        BuiltRecord {
            lsn: at.lsn(),
            writes: self.ring_writes(at.block, record),
        }
    }

    /// The record that says that the log is clean. Its tail is itself.
    pub(in super::super) fn unmount_record(&self, at: LogHead, previous_block: u32) -> BuiltRecord {
        let operation = OpHeader::new(CLIENT_LOG, layout::OP_UNMOUNT, UNMOUNT.len());
        let mut record = vec![0; self.header_bytes()];
        record.extend_from_slice(operation.as_bytes());
        record.extend_from_slice(&UNMOUNT);
        let fields = RecordFields {
            tail_lsn: at.lsn(),
            operations: 1,
            previous_block,
        };
        self.seal(record, at, fields)
    }

    /// Basic blocks of the record of unmounting.
    pub(super) fn unmount_blocks(&self) -> u64 {
        let bytes = self
            .header_bytes()
            .saturating_add(size_of::<OpHeader>())
            .saturating_add(UNMOUNT.len());
        self.padded(bytes) as u64 / BASIC_BLOCK_BYTES
    }

    /// What overwrites the blocks that can have been in flight behind the head: an old record there
    /// would be taken for a part of the log as soon as the head comes near. As
    /// xlog_clear_stale_blocks(). The blocks from the tail on stay.
    pub(in super::super) fn stale_writes(
        &self,
        head: LogHead,
        tail_lsn: u64,
    ) -> impl Iterator<Item = LogWrite> {
        let free = self
            .blocks
            .saturating_sub(self.distance(block_of(tail_lsn), head.block));
        let count = free.min(IN_FLIGHT_BLOCKS);
        let mut done = 0_u64;
        std::iter::from_fn(move || {
            let at = head.after(done, self.blocks);
            let to_end = self.blocks.saturating_sub(at.block);
            let now = CLEAR_BLOCKS.min(count.saturating_sub(done)).min(to_end);
            done = done.saturating_add(now);
            (now > 0).then(|| self.clear(at, now, tail_lsn))
        })
    }

    /// Empty records of one block, of the cycle before that of `at`.
    fn clear(&self, at: LogHead, count: u64, tail_lsn: u64) -> LogWrite {
        let cycle = at.cycle.wrapping_sub(1);
        let mut bytes = Vec::with_capacity(usize::try_from(count).unwrap_or(0).saturating_mul(BB));
        for block in at.block..at.block.saturating_add(count) {
            let mut header = self.new_header(LogHead { cycle, block });
            header.tail_lsn = tail_lsn.into();
            let end = bytes.len().saturating_add(BB);
            bytes.extend_from_slice(header.as_bytes());
            bytes.resize(end, 0);
        }
        self.write_of(at.block, bytes)
    }

    /// The writes of blocks from block `first` on, which may continue at the start of the log.
    fn ring_writes(&self, first: u64, mut bytes: Vec<u8>) -> Vec<LogWrite> {
        let before_end = self.blocks.saturating_sub(first);
        let before_end = usize::try_from(before_end.saturating_mul(BASIC_BLOCK_BYTES));
        let rest = match before_end {
            Ok(before_end) if before_end < bytes.len() => bytes.split_off(before_end),
            _ => Vec::new(),
        };
        let mut writes = vec![self.write_of(first, bytes)];
        if !rest.is_empty() {
            writes.push(self.write_of(0, rest));
        }
        writes
    }

    fn write_of(&self, block: u64, bytes: Vec<u8>) -> LogWrite {
        let into = block.saturating_mul(BASIC_BLOCK_BYTES);
        LogWrite {
            addr_bytes: self.addr_bytes.saturating_add(into),
            bytes,
        }
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

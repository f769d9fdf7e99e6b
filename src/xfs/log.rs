//! The log: is it clean, how far has it come, what does it change ([`mod@replay`]), and how is it
//! written ([`mod@write`])?
//!
//! "Journaling Log". The log is a ring of basic blocks. Each has the number of the pass (cycle)
//! that wrote it in its first word, or in its second where a record begins. The head, where the
//! next record goes, is the first block of an older pass. Clean means that the last whole record
//! before the head is the one that unmounting writes, or that nothing was ever written.
//!
//! The kernel's xlog_find_tail() decides whether it replays anything, so the search for the head
//! ([`head`](mod@head)) and for torn records ([`records`](mod@records)) follows it step by step.
//! Blocks that it does not look at are not looked at here: tools of xfsprogs clear a log by writing
//! one record and zeroes, or headers of the previous cycle, behind it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::format::log as layout;
use super::format::{self};
use super::superblock::Superblock;
use super::{MetaIo, corrupt};
use crate::error::{Error, Result};
pub(super) use finish::{has_room, mark_clean};
pub(super) use replay::{PendingIntent, ReplayStart, Replayed, Unfinished};
pub use write::{
    BuiltCheckpoint, BuiltRecord, InodeChange, LogItem, LogWrite, LogWriter, NewInodes,
};

mod finish;
mod head;
mod records;
mod replay;
#[cfg(test)]
mod tests;
mod write;

/// Bytes of a basic block.
const BB: usize = 512;
/// Basic blocks of the longest record.
const RECORD_BLOCKS: u64 = layout::MAX_RECORD_BYTES as u64 / format::BASIC_BLOCK_BYTES;
/// Basic blocks before the head in which writes can have been in flight.
const IN_FLIGHT_BLOCKS: u64 = layout::MAX_IN_FLIGHT as u64 * RECORD_BLOCKS;
/// Basic blocks that are read at once.
const CHUNK_BLOCKS: u64 = 256;

/// Whether the log holds changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogState {
    /// Nothing to replay.
    Clean,
    /// Changes that the rest of the disk may not have yet.
    Dirty,
}

/// What to do with a log that holds changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovery {
    /// Refuse the filesystem.
    #[default]
    Refuse,
    /// Replay it into memory, for reading only; the device is not written.
    InMemory,
    /// Replay it on the device, as a mount does, and mark the log clean; into memory, where
    /// something is left that only the kernel can finish.
    OnDevice,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogEnd {
    pub(super) state: LogState,
    /// The log sequence number of the next record: the cycle in the upper half, the block in the
    /// lower.
    pub(super) lsn: u64,
    /// That of the oldest record that has to be replayed, if the log is dirty.
    tail_lsn: u64,
    /// Bytes of the buffer that the last record was written from.
    record_bytes: u32,
}

/// The part of the log that has to be replayed.
#[derive(Debug, Clone, Copy)]
struct LogSpan {
    /// Block of its first record.
    tail: u64,
    /// The block behind its last record.
    head: u64,
    /// The log sequence number of the head.
    lsn: u64,
}

impl LogEnd {
    /// Whether metadata with this sequence number is newer than the log, as xfs_log_check_lsn()
    /// sees it.
    pub(super) fn is_behind(&self, lsn: u64) -> bool {
        lsn != layout::NULL_LSN && lsn > self.lsn
    }
}

/// A log sequence number as the kernel's messages show it.
pub(super) fn show_lsn(lsn: u64) -> String {
    format!("{}:{}", lsn.wrapping_shr(32), block_of(lsn))
}

/// The block of a log sequence number.
fn block_of(lsn: u64) -> u64 {
    lsn & u64::from(u32::MAX)
}

/// Finds the head of the log and looks at the record before it.
pub(super) fn end(io: &mut impl MetaIo, superblock: &Superblock) -> Result<LogEnd> {
    log_of(io, superblock)?.end(io)
}

/// Replays a dirty log into memory, at most `limit_bytes` of it; nothing is written. Waits for the
/// device, which is asked for the log three times, and for the metadata that it changes.
pub(super) fn replay(
    io: &mut impl MetaIo,
    superblock: &Superblock,
    end: &LogEnd,
    limit_bytes: u64,
) -> Result<Replayed> {
    let log = log_of(io, superblock)?;
    let span = LogSpan {
        tail: log.first_to_replay(io, end)?,
        head: block_of(end.lsn),
        lsn: end.lsn,
    };
    replay::replay(io, &log, &span, superblock, limit_bytes)
}

fn log_of(io: &mut impl MetaIo, superblock: &Superblock) -> Result<XfsLog> {
    let log = XfsLog::of(superblock);
    let bytes = log.blocks.saturating_mul(format::BASIC_BLOCK_BYTES);
    if log.addr_bytes.saturating_add(bytes) > io.capacity_bytes() {
        return Err(corrupt(0, "the log lies beyond the end of the device"));
    }
    Ok(log)
}

/// Where the log lies, and what its records must say.
#[derive(Debug, Clone)]
struct XfsLog {
    addr_bytes: u64,
    /// Basic blocks.
    blocks: u64,
    sector_bytes: u64,
    /// Bytes that the length of every record is a multiple of.
    unit_bytes: u64,
    /// Bytes of the kernel's log buffers, unless a mount option says otherwise.
    buffer_bytes: u32,
    uuid: [u8; 16],
}

/// The cycle number of a basic block.
fn cycle_of(block: &[u8]) -> u32 {
    let word = |at: usize| {
        block
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u32::from_be_bytes(*bytes))
    };
    match word(0) {
        layout::RECORD_MAGIC => word(4),
        cycle => cycle,
    }
}

/// One of the basic blocks in a buffer; empty when it has none of that number.
fn block_in(data: &[u8], index: u64) -> &[u8] {
    let start = usize::try_from(index)
        .unwrap_or(usize::MAX)
        .saturating_mul(BB);
    let rest = data.get(start..).unwrap_or_default();
    rest.get(..BB).unwrap_or_default()
}

/// Where in the headers of a record the word lies that the cycle number displaces in a block of its
/// payload.
fn word_offset(index: usize) -> usize {
    const WORDS: usize = layout::HEADER_COVERS_BYTES as usize / BB;
    let header = index / WORDS;
    let words = match header {
        0 => layout::CYCLE_DATA_OFFSET,
        _ => layout::EXTENDED_CYCLE_DATA_OFFSET,
    };
    let word = (index % WORDS).saturating_mul(4);
    header
        .saturating_mul(BB)
        .saturating_add(words)
        .saturating_add(word)
}

impl XfsLog {
    fn of(superblock: &Superblock) -> Self {
        let geometry = &superblock.geometry;
        let bytes = geometry.bytes(geometry.log_blocks.into());
        let unit = geometry.log_stripe_bytes.max(geometry.log_sector_bytes);
        Self {
            addr_bytes: geometry.block_addr(geometry.log_start),
            blocks: bytes / format::BASIC_BLOCK_BYTES,
            sector_bytes: geometry.sector_bytes.max(geometry.log_sector_bytes).into(),
            unit_bytes: u64::from(unit).max(format::BASIC_BLOCK_BYTES),
            buffer_bytes: layout::MIN_BUFFER_BYTES.max(geometry.log_stripe_bytes),
            uuid: superblock.uuid,
        }
    }

    fn bad(&self, block: u64, what: &str) -> Error {
        let into = block.saturating_mul(format::BASIC_BLOCK_BYTES);
        corrupt(
            self.addr_bytes.saturating_add(into),
            format!(
                "log: {what}; when the kernel cannot mount the filesystem either, xfs_repair -L \
                 clears the log, and the changes in it are lost"
            ),
        )
    }

    /// Reads `count` basic blocks from block `first`, in whole sectors. The range must lie in the
    /// log.
    fn read(&self, io: &mut impl MetaIo, first: u64, count: u64) -> Result<Vec<u8>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let start = first.saturating_mul(format::BASIC_BLOCK_BYTES);
        let end = start.saturating_add(count.saturating_mul(format::BASIC_BLOCK_BYTES));
        let skip = start.checked_rem(self.sector_bytes).unwrap_or(0);
        let from = start.saturating_sub(skip);
        let to = end
            .checked_next_multiple_of(self.sector_bytes)
            .unwrap_or(end);
        let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        let mut buf = vec![0; len];
        io.read_at(self.addr_bytes.saturating_add(from), &mut buf)?;
        let skip = usize::try_from(skip).unwrap_or(0);
        buf.drain(..skip);
        buf.truncate(usize::try_from(end.saturating_sub(start)).unwrap_or(0));
        Ok(buf)
    }

    /// Reads `count` basic blocks from block `first`, which may continue at the start of the log.
    fn read_ring(&self, io: &mut impl MetaIo, first: u64, count: u64) -> Result<Vec<u8>> {
        let first = self.wrap(first);
        let before_end = count.min(self.blocks.saturating_sub(first));
        let mut data = self.read(io, first, before_end)?;
        let behind = count.saturating_sub(before_end).min(self.blocks);
        data.extend(self.read(io, 0, behind)?);
        Ok(data)
    }

    fn cycle(&self, io: &mut impl MetaIo, block: u64) -> Result<u32> {
        Ok(cycle_of(&self.read(io, block, 1)?))
    }

    /// A block number behind the end of the log is one at its start.
    fn wrap(&self, block: u64) -> u64 {
        block.checked_rem(self.blocks).unwrap_or(0)
    }

    /// As xlog_find_tail().
    fn end(&self, io: &mut impl MetaIo) -> Result<LogEnd> {
        match self.find_head(io)? {
            // The kernel starts such a log at block 0 of cycle 1.
            None => Ok(LogEnd {
                state: LogState::Clean,
                lsn: 1 << 32,
                tail_lsn: 1 << 32,
                record_bytes: 0,
            }),
            Some(head) => self.end_at(io, head),
        }
    }
}

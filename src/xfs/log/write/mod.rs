//! Writing the log: the records of a checkpoint, and where in the log they go. No I/O and no locks
//! are in here: the caller writes the records in order.
//!
//! A checkpoint is a sequence of operations: START, the header of the transaction, the regions of
//! its items, COMMIT. They are cut into records; a region that does not fit continues in the next
//! one, as in the kernel's xlog_write(). Every checkpoint begins in a record of its own, whose log
//! sequence number is the checkpoint's: metadata that is written in place carries it, and replay
//! skips metadata that carries that number already.
//!
//! What the caller has to see to, as for the kernel:
//!
//! - Before the first record of a checkpoint is written, the file data that its metadata refers to,
//!   and all metadata whose changes lie before `tail_lsn`, are durable (a flush).
//! - A group of records ([`BuiltCheckpoint::groups`]) is durable (a flush) before the next one or
//!   the commit record is written: the search for the head looks no further back for blocks that
//!   were lost, and a replay fails at one that it did not find.
//! - The commit record is durable (a flush or FUA) before any change of the checkpoint is written
//!   in place.
//! - When a write fails, nothing more may be written to the log.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::hash::{BuildHasher, Hasher, RandomState};

use zerocopy::IntoBytes;

use super::super::MetaIo;
use super::super::format::BASIC_BLOCK_BYTES;
use super::super::format::log::{MAX_RECORD_BYTES, MIN_BUFFER_BYTES, RECORD_MAGIC};
use super::super::format::log_items::{
    OP_COMMIT, OP_START, TRANSACTION_CHECKPOINT, TRANSACTION_MAGIC, TransactionHeader,
};
use super::super::superblock::Superblock;
use super::{
    IN_FLIGHT_BLOCKS, LogEnd, LogState, RECORD_BLOCKS, ReplayStart, XfsLog, block_of, log_of,
};
use crate::error::{Error, ErrorKind, Result};
pub use inode_items::InodeChange;
pub use items::{LogItem, NewInodes};
use operations::{OP_BYTES, Operations, WASTE_BYTES};
pub use record::{BuiltRecord, LogWrite};
pub(super) use record::{LogHead, NO_BLOCK};

mod inode_items;
mod items;
mod operations;
mod record;
#[cfg(test)]
mod tests;

/// Bytes of the operations of a checkpoint besides its items.
const FRAME_BYTES: u64 = 3 * OP_BYTES as u64 + size_of::<TransactionHeader>() as u64;

/// Where the next record of a log goes. There is one for a mounted filesystem.
#[derive(Debug)]
pub struct LogWriter {
    log: XfsLog,
    head: LogHead,
    previous_block: u32,
    /// The tail that the newest record names.
    written_tail: u64,
    /// The number of the next transaction. No two between tail and head are the same: the kernel
    /// does not mount a log where one begins again that was not committed.
    tid: u32,
}

/// A checkpoint as it is to be written.
#[derive(Debug)]
pub struct BuiltCheckpoint {
    /// Its log sequence number, that of its first record.
    pub lsn: u64,
    /// In order. The commit record is the last, and may be the only one.
    pub records: Vec<BuiltRecord>,
}

impl BuiltCheckpoint {
    /// The commit record, which is written after all others.
    pub fn commit(&self) -> Option<&BuiltRecord> {
        self.records.last()
    }

    /// The other records, in groups that may be in flight together. None for a checkpoint of one
    /// record.
    pub fn groups(&self) -> impl Iterator<Item = &[BuiltRecord]> {
        let mut rest = match self.records.split_last() {
            Some((_, others)) => others,
            None => &[],
        };
        std::iter::from_fn(move || {
            let mut blocks = 0_u64;
            let fits = |record: &&BuiltRecord| {
                blocks = blocks.saturating_add(record.blocks());
                blocks <= IN_FLIGHT_BLOCKS
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (group, after) = rest.split_at_checked(count)?;
            rest = after;
            Some(group)
        })
    }
}

impl LogWriter {
    /// Goes on behind the end of a clean log. Before anything is written, what
    /// [`LogWriter::stale_writes`] returns has to be.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsRecovery`] for a log that holds changes, [`ErrorKind::Unsupported`] for
    /// one that does not end at a whole sector.
    pub(in crate::xfs) fn new(superblock: &Superblock, end: &LogEnd) -> Result<Self> {
        if end.state != LogState::Clean {
            return Err(Error::new(
                ErrorKind::NeedsRecovery,
                "the log holds changes that must be replayed before it is written to",
            ));
        }
        Self::at(superblock, XfsLog::of(superblock), end)
    }

    /// Goes on behind the end of a log that was replayed from `start`, where replays begin until
    /// the tail is moved. Its records are as long as those that are there: a replay takes the
    /// number of blocks of their headers from the first one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for one that cannot be continued.
    pub(in crate::xfs) fn resume(
        superblock: &Superblock,
        end: &LogEnd,
        start: &ReplayStart,
    ) -> Result<Self> {
        let log = XfsLog {
            buffer_bytes: start.record_bytes,
            ..XfsLog::of(superblock)
        };
        let bytes = log.buffer_bytes;
        let sizes = MIN_BUFFER_BYTES.max(superblock.geometry.log_stripe_bytes)..=MAX_RECORD_BYTES;
        let is_odd = u64::from(bytes).checked_rem(BASIC_BLOCK_BYTES) != Some(0);
        let mut writer = Self::at(superblock, log, end)?;
        writer.written_tail = start.lsn;
        if is_odd || !sizes.contains(&bytes) || writer.free_blocks(start.lsn) == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("no record can be written behind those of {bytes} bytes in the log"),
            ));
        }
        Ok(writer)
    }

    fn at(superblock: &Superblock, log: XfsLog, end: &LogEnd) -> Result<Self> {
        let mut head = LogHead::at(end.lsn);
        if head.cycle == RECORD_MAGIC {
            head.cycle = head.cycle.wrapping_add(1);
        }
        let sector = u64::from(superblock.geometry.log_sector_bytes).max(BASIC_BLOCK_BYTES);
        let bytes = head.block.saturating_mul(BASIC_BLOCK_BYTES);
        let is_odd = |bytes: u64| bytes.checked_rem(sector) != Some(0);
        if head.block >= log.blocks || is_odd(bytes) || is_odd(log.unit_bytes) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the log cannot be written: its last record ends at byte {bytes}, records are \
                     multiples of {} bytes, and its sectors have {sector} bytes",
                    log.unit_bytes
                ),
            ));
        }
        Ok(Self {
            written_tail: start_of_last(&log, head, end.tail_lsn).lsn(),
            log,
            head,
            previous_block: NO_BLOCK,
            tid: random_number(),
        })
    }

    /// Goes on behind the end of the log of a filesystem that is not open, and whose log is clean.
    ///
    /// # Errors
    /// As for opening a filesystem; [`ErrorKind::NeedsRecovery`] for a log that holds changes.
    pub fn open(io: &mut impl MetaIo) -> Result<Self> {
        let superblock = Superblock::read(io, false)?;
        let end = log_of(io, &superblock)?.end(io)?;
        Self::new(&superblock, &end)
    }

    /// The log sequence number of the next record, and so of the next checkpoint.
    pub fn lsn(&self) -> u64 {
        self.head.lsn()
    }

    /// The tail that the newest record names: where a replay would begin. No checkpoint overwrites
    /// the log from there on.
    pub fn written_tail(&self) -> u64 {
        self.written_tail
    }

    /// Basic blocks of the log.
    pub fn blocks(&self) -> u64 {
        self.log.blocks
    }

    /// Basic blocks of the largest checkpoint: half of the log.
    pub fn most_blocks(&self) -> u64 {
        self.log.blocks / 2
    }

    /// Basic blocks that a checkpoint of these items takes: exact for one that fits in one record,
    /// otherwise an upper bound, one or two records more than needed at most.
    pub fn checkpoint_blocks(&self, items: &[LogItem]) -> u64 {
        self.blocks_for(items_bytes(items))
    }

    /// As [`LogWriter::checkpoint_blocks`], for items that have so many [`LogItem::log_bytes`]
    /// together.
    pub fn blocks_for(&self, items_bytes: u64) -> u64 {
        let log = &self.log;
        let headers = log.header_bytes();
        let bytes = items_bytes.saturating_add(FRAME_BYTES);
        let room = log.record_bytes().saturating_sub(headers);
        if bytes <= room as u64 {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            return log.padded(headers.saturating_add(bytes)) as u64 / BASIC_BLOCK_BYTES;
        }
        let used = room.saturating_sub(WASTE_BYTES).max(1) as u64;
        let record = log.record_bytes() as u64 / BASIC_BLOCK_BYTES;
        bytes.div_ceil(used).saturating_mul(record)
    }

    /// Basic blocks of the record of unmounting.
    pub fn unmount_blocks(&self) -> u64 {
        self.log.unmount_blocks()
    }

    /// Basic blocks that can be written from the head on without reaching this tail; 0 for a tail
    /// that is none.
    ///
    /// Space before a tail that has moved in memory is free only once a record that names it is
    /// durable: until then a replay begins at [`LogWriter::written_tail`].
    pub fn free_blocks(&self, tail_lsn: u64) -> u64 {
        let (head, tail) = (self.head, LogHead::at(tail_lsn));
        let blocks = self.log.blocks;
        let is_valid = match tail.cycle == head.cycle {
            true => tail.block <= head.block,
            // A cycle before, at the same block or behind it.
            false => {
                tail.after(blocks, blocks).cycle == head.cycle
                    && (head.block..blocks).contains(&tail.block)
            }
        };
        if !is_valid {
            return 0;
        }
        let used = match tail == head {
            true => 0,
            false => self.log.distance(tail.block, head.block),
        };
        blocks.saturating_sub(used).saturating_sub(1)
    }

    /// What has to be written before the first record after the log was opened. It overwrites what
    /// a crash may have left behind the head; without it, such a record would be taken for a part
    /// of the log when the head comes near.
    pub fn stale_writes(&self) -> impl Iterator<Item = LogWrite> {
        self.log.stale_writes(self.head, self.written_tail)
    }

    /// Formats a checkpoint and moves the head behind it. A replay after it begins at `tail_lsn`:
    /// the start of the oldest checkpoint whose changes are not all in place and durable;
    /// [`LogWriter::lsn`] if there is none but this. Without items it only moves the tail.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for more than [`LogWriter::most_blocks`] or an impossible tail,
    /// [`ErrorKind::WouldBlock`] when it would reach [`LogWriter::written_tail`]: a later tail has
    /// to be written first. The writer is unchanged then.
    pub fn checkpoint(&mut self, items: &[LogItem], tail_lsn: u64) -> Result<BuiltCheckpoint> {
        let bytes = items_bytes(items);
        let blocks = self.blocks_for(bytes);
        if blocks > self.most_blocks() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a checkpoint of {bytes} bytes is too large for the log"),
            ));
        }
        self.check_tail(tail_lsn)?;
        self.check_room(blocks)?;
        let lsn = self.lsn();
        let tid = self.next_tid();
        let bytes = usize::try_from(bytes.saturating_add(FRAME_BYTES)).unwrap_or(usize::MAX);
        let counts = items.iter().map(LogItem::region_count);
        let count = counts.fold(0, u32::saturating_add);
        let mut operations = Operations::new(self, tid, tail_lsn, bytes);
        operations.add(OP_START, &[]);
        let header = TransactionHeader {
            magic: TRANSACTION_MAGIC.into(),
            transaction_type: TRANSACTION_CHECKPOINT.into(),
            tid: tid.cast_signed().into(),
            num_items: count.into(),
        };
        operations.add(0, header.as_bytes());
        for region in items.iter().flat_map(LogItem::regions) {
            operations.add(0, region);
        }
        operations.add(OP_COMMIT, &[]);
        let records = operations.finish();
        self.written_tail = tail_lsn;
        Ok(BuiltCheckpoint { lsn, records })
    }

    /// Formats the record that says that the log is clean, and moves the head behind it. All that
    /// the log holds must be in place and durable.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when there is no room, as for a checkpoint.
    pub fn unmount(&mut self) -> Result<BuiltCheckpoint> {
        self.check_room(self.log.unmount_blocks())?;
        let lsn = self.lsn();
        let record = self.log.unmount_record(self.head, self.previous_block);
        self.pass(&record);
        self.written_tail = lsn;
        Ok(BuiltCheckpoint {
            lsn,
            records: vec![record],
        })
    }

    /// Moves the head behind a record.
    fn pass(&mut self, record: &BuiltRecord) {
        self.previous_block = u32::try_from(self.head.block).unwrap_or(NO_BLOCK);
        self.head = self.head.after(record.blocks(), self.log.blocks);
    }

    fn check_tail(&self, tail_lsn: u64) -> Result<()> {
        if tail_lsn >= self.written_tail && tail_lsn <= self.lsn() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the tail of the log cannot be {}: the newest record names {}",
                super::show_lsn(tail_lsn),
                super::show_lsn(self.written_tail)
            ),
        ))
    }

    fn check_room(&self, blocks: u64) -> Result<()> {
        if blocks <= self.free_blocks(self.written_tail) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::WouldBlock,
            "the log is full until more metadata is written in place",
        ))
    }

    fn next_tid(&mut self) -> u32 {
        let tid = self.tid;
        self.tid = tid.wrapping_add(1);
        tid
    }
}

/// Where the last record of a clean log begins, which is needed until the next one is there. It is
/// its own tail.
fn start_of_last(log: &XfsLog, head: LogHead, tail_lsn: u64) -> LogHead {
    let named = block_of(tail_lsn);
    let is_near = log.distance(named, head.block) <= RECORD_BLOCKS;
    let block = if named < log.blocks && is_near {
        named
    } else {
        let back = log.blocks.saturating_sub(RECORD_BLOCKS);
        log.wrap(head.block.saturating_add(back))
    };
    let cycle = match block < head.block {
        true => head.cycle,
        false => head.cycle.wrapping_sub(1),
    };
    LogHead { cycle, block }
}

fn items_bytes(items: &[LogItem]) -> u64 {
    let sizes = items.iter().map(LogItem::log_bytes);
    sizes.fold(0, u64::saturating_add)
}

/// From the keys that the standard library has for its hash tables.
fn random_number() -> u32 {
    let hash = RandomState::new().build_hasher().finish();
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

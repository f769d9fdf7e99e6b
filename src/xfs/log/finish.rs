//! The end of a replay: a log that says that there is nothing to replay.

use super::super::MetaIo;
use super::super::superblock::Superblock;
use super::write::{LogHead, NO_BLOCK};
use super::{LogEnd, LogState, RECORD_BLOCKS, block_of, log_of};
use crate::error::Result;

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
    let head = LogHead::at(end.lsn);
    for write in log.stale_writes(head, end.tail_lsn) {
        io.write_at(write.addr_bytes, &write.bytes)?;
    }
    for write in log.unmount_record(head, NO_BLOCK).writes {
        io.write_durable_at(write.addr_bytes, &write.bytes)?;
    }
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
}

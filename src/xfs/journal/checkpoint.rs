//! Writing a checkpoint.

use std::sync::atomic::Ordering;

use super::super::MetaIo;
use super::super::buf::{BufKind, MetaBuffer};
use super::super::log::{self, BuiltCheckpoint, BuiltRecord, InodeChange, LogEnd, LogItem};
use super::super::superblock::Superblock;
use super::super::trans::MetaState;
use super::{Journal, JournalWriter};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of buffers that are not in place, above which they are written.
const MOST_DIRTY_BYTES: usize = 128 << 20;

impl Journal {
    /// Writes all that was committed to the log, if anything was.
    pub(super) fn write_checkpoint(
        &self,
        io: &mut dyn MetaIo,
        writer: &mut JournalWriter,
    ) -> Result<()> {
        self.state().check_running()?;
        let result = self.write_now(io, writer);
        self.or_shut_down(result)
    }

    fn write_now(&self, io: &mut dyn MetaIo, writer: &mut JournalWriter) -> Result<()> {
        if !writer.is_cleared {
            check_stands_still(io, &self.state().superblock.clone(), &writer.end)?;
            for write in writer.log.stale_writes() {
                io.write_at(write.addr_bytes, &write.bytes)?;
            }
            io.flush()?;
            writer.is_cleared = true;
        }
        self.make_room(io, writer)?;
        let mut state = self.state();
        if state.is_cil_empty() {
            return Ok(());
        }
        let items = items_of(&state)?;
        let lsn = writer.log.lsn();
        // With what this checkpoint has newer changes of: it may end without its last record.
        let tail = state.tail_lsn().min(lsn);
        state.note_logged(lsn);
        let number = state.checkpoint;
        state.checkpoint = number.saturating_add(1);
        drop(state);
        // Transactions go on meanwhile. An error shuts the filesystem down.
        let built = writer.log.checkpoint(&items, tail)?;
        write_records(io, &built)?;
        self.durable.store(number, Ordering::Release);
        self.discard(io, number);
        let mut state = self.state();
        state.head_lsn = writer.log.lsn();
        state.busy.expire(number);
        state.pinned.retain(|pin| pin.checkpoint > number);
        let replayed_from = state.replayed_from;
        state.replayed_from = replayed_from.filter(|(_, checkpoint)| *checkpoint > number);
        Ok(())
    }

    /// Sees to it that half of the log is free, so that every checkpoint finds room: those in
    /// memory are limited to a fraction of that.
    fn make_room(&self, io: &mut dyn MetaIo, writer: &mut JournalWriter) -> Result<()> {
        let half = writer.log.blocks() / 2;
        let tail = |journal: &Self| journal.state().tail_lsn();
        let dirty_bytes = self.state().buffers.dirty_bytes();
        if writer.log.free_blocks(tail(self)) < half || dirty_bytes > MOST_DIRTY_BYTES {
            self.write_in_place(io, u64::MAX)?;
        }
        // Until a record names the new tail, a replay would begin at the old one.
        let (written, tail) = (writer.log.written_tail(), tail(self));
        if writer.log.free_blocks(written) < half && tail > written {
            let built = writer.log.checkpoint(&[], tail)?;
            self.state().head_lsn = writer.log.lsn();
            write_records(io, &built)?;
        }
        Ok(())
    }
}

/// Whether the log still ends where it was found when the filesystem was opened: one that goes on
/// is of a filesystem that is mounted elsewhere, where no lock or lease tells.
fn check_stands_still(
    mut io: &mut dyn MetaIo,
    superblock: &Superblock,
    end: &LogEnd,
) -> Result<()> {
    if log::end(&mut io, superblock)? == *end {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        "the log changed since the filesystem was opened: it is mounted elsewhere",
    ))
}

/// Writes the records of a checkpoint: the last one is durable when this returns, and with it all
/// that was written to the device before.
fn write_records(io: &mut dyn MetaIo, built: &BuiltCheckpoint) -> Result<()> {
    let Some(commit) = built.commit() else {
        return Ok(());
    };
    for group in built.groups() {
        io.flush()?;
        for write in group.iter().flat_map(|record| &record.writes) {
            io.write_at(write.addr_bytes, &write.bytes)?;
        }
    }
    write_durable(io, commit)
}

/// Writes a record with a flush before it and Force Unit Access, as xlog_write_iclog() of Linux.
pub(super) fn write_durable(io: &mut dyn MetaIo, record: &BuiltRecord) -> Result<()> {
    for write in &record.writes {
        io.write_durable_at(write.addr_bytes, &write.bytes)?;
    }
    Ok(())
}

/// The items of all that was committed since the last checkpoint.
pub(super) fn items_of(state: &MetaState) -> Result<Vec<LogItem>> {
    let mut items = Vec::with_capacity(state.cil.len());
    items.extend_from_slice(&state.items);
    for (addr, len) in &state.cancelled {
        items.push(LogItem::cancel(*addr, *len));
    }
    for addr in &state.cil {
        let Some(buffer) = state.buffers.get(*addr) else {
            continue;
        };
        if buffer.kind == BufKind::Inodes {
            inode_items(*addr, buffer, &mut items)?;
        } else {
            let kind = buffer.kind.log_type(&buffer.bytes);
            let words = buffer.dirty.words(buffer.chunks());
            items.push(LogItem::buffer(*addr, kind, &buffer.bytes, words));
        }
    }
    Ok(items)
}

fn inode_items(addr: u64, buffer: &MetaBuffer, items: &mut Vec<LogItem>) -> Result<()> {
    let size = buffer.bytes.len().checked_div(buffer.slots.len());
    let size = size.unwrap_or(0).max(1);
    let mut relinked = Vec::new();
    let inodes = buffer.bytes.chunks_exact(size).zip(&buffer.slots);
    for (index, (dinode, slot)) in inodes.enumerate() {
        let offset = index.saturating_mul(size);
        if !slot.in_cil {
            continue;
        }
        if slot.relinked {
            relinked.push(offset);
        }
        if slot.is_changed {
            items.push(LogItem::inode(&InodeChange {
                cluster_addr_bytes: addr,
                cluster_bytes: u32::try_from(buffer.bytes.len()).unwrap_or(u32::MAX),
                offset_bytes: u32::try_from(offset).unwrap_or(u32::MAX),
                dinode,
                data: slot.data,
                attributes: slot.attributes,
            })?);
        }
    }
    if !relinked.is_empty() {
        items.push(LogItem::unlinked_links(addr, &buffer.bytes, relinked));
    }
    Ok(())
}

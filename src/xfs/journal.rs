//! The journal of a filesystem that is written: transactions go to memory, checkpoints to the log,
//! buffers in place.
//!
//! A transaction ends in memory. [`Journal::force`] makes it durable: the first thread that waits
//! writes one checkpoint of all that was committed until then, the others find it done (group
//! commit). One checkpoint is written at a time, so there is always one content of each buffer that
//! the log has: its newest, or its shadow while it was changed again since. That content can be
//! written in place at any time, which moves the tail of the log: nothing that waits for log space
//! depends on another thread.
//!
//! Two locks: `writer` is held by the thread that writes the log or in place, for as long as that
//! takes; `state` for a transaction, or to copy a buffer that is written. `writer` is taken first.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use zerocopy::FromBytes;

use super::buf::{BufPlace, MetaBuffer};
use super::format::log::NULL_LSN;
use super::format::superblock::SuperblockLayout;
use super::log::{LogEnd, LogWriter, ReplayStart};
use super::superblock::{Features, Superblock};
use super::trans::{CommitTicket, MetaState, Trans, is_only_busy, no_space};
use super::{Ino, MetaIo, corrupt};
use crate::error::Result;

mod checkpoint;
mod discard;
mod in_place;

use checkpoint::items_of;

/// How often a transaction that found only busy space is tried again, after a force of the log.
const BUSY_TRIES: u32 = 3;
/// Turns on the processor that a thread gives away before it sleeps until a checkpoint is written.
const YIELDS: u32 = 64;
/// Bytes of the largest checkpoint that is gathered before it is written.
const MOST_CIL_BYTES: u64 = 32 << 20;

/// The journal. Shared by threads; each brings its own way to the device.
#[derive(Debug)]
pub(super) struct Journal {
    state: Mutex<MetaState>,
    writer: Mutex<JournalWriter>,
    /// Number of the last checkpoint that is durable.
    durable: AtomicU64,
    /// Bytes of uncommitted changes above which a committer writes the log.
    most_cil_bytes: u64,
    /// Changes whenever what a reader of the device sees may be old: see [`Journal::changes`].
    changes: AtomicU64,
    /// Freed blocks are discarded.
    discards: AtomicBool,
    /// That could not be done, which was told.
    has_warned: AtomicBool,
}

#[derive(Debug)]
struct JournalWriter {
    log: LogWriter,
    /// What a crash may have left behind the head was overwritten.
    is_cleared: bool,
    /// Where the log ended when it was opened.
    end: LogEnd,
}

impl Journal {
    /// For a filesystem whose log is clean. Nothing is written until the first checkpoint.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsRecovery`] for a dirty log, [`ErrorKind::Unsupported`] for one that cannot
    /// be written.
    pub(super) fn new(superblock: &Superblock, end: &LogEnd) -> Result<Self> {
        let log = LogWriter::new(superblock, end)?;
        let state = MetaState::new(superblock, log.lsn());
        Ok(Self::with(log, end, state))
    }

    /// For a filesystem whose log was replayed from `start` and is still dirty. `state` has what
    /// was committed to finish the log's intents: until its checkpoint is durable a replay begins
    /// where this one did.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a log that cannot be continued.
    pub(super) fn resume(
        superblock: &Superblock,
        end: &LogEnd,
        start: &ReplayStart,
        mut state: MetaState,
    ) -> Result<Self> {
        let log = LogWriter::resume(superblock, end, start)?;
        state.replayed_from = Some((start.lsn, state.checkpoint));
        Ok(Self::with(log, end, state))
    }

    /// Whether what was committed fits in one checkpoint, with room for what ends the log.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for an inode that cannot be logged.
    pub(super) fn has_room(&self) -> Result<bool> {
        let writer = self.lock_writer();
        let items = items_of(&self.state())?;
        let log = &writer.log;
        let blocks = log.checkpoint_blocks(&items);
        // Two that move the tail, and the record of unmounting.
        let ends = log.blocks_for(0).saturating_mul(2);
        let all = blocks
            .saturating_add(ends)
            .saturating_add(log.unmount_blocks());
        Ok(blocks <= log.most_blocks() && all <= log.free_blocks(log.written_tail()))
    }

    fn with(log: LogWriter, end: &LogEnd, state: MetaState) -> Self {
        let log_bytes = log
            .blocks()
            .saturating_mul(super::format::BASIC_BLOCK_BYTES);
        Self {
            state: Mutex::new(state),
            writer: Mutex::new(JournalWriter {
                log,
                is_cleared: false,
                end: *end,
            }),
            durable: AtomicU64::new(0),
            most_cil_bytes: (log_bytes / 8).min(MOST_CIL_BYTES),
            changes: AtomicU64::new(0),
            discards: AtomicBool::new(false),
            has_warned: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, MetaState> {
        // A panic in a transaction drops it, which undoes it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a transaction. `operation` may be called again, on the state as it was before, when
    /// only space was free that is busy until the log is written. `committed` hears, under the
    /// lock, which buffers were changed.
    ///
    /// # Errors
    /// Those of `operation`, which has left nothing behind then; those of writing the log, where
    /// that was due.
    pub(super) fn run<T>(
        &self,
        io: &mut dyn MetaIo,
        mut operation: impl FnMut(&mut Trans<'_>) -> Result<T>,
        committed: impl FnOnce(&[BufPlace]),
    ) -> Result<(T, CommitTicket)> {
        let mut tries = 0;
        loop {
            let mut state = self.state();
            let mut trans = Trans::begin(&mut state, io)?;
            let done = operation(&mut trans);
            match done.and_then(|value| Ok((value, trans.put_unlogged()?))) {
                Ok((value, written)) => {
                    if !written.is_empty() {
                        // What readers of the device have seen there is old.
                        self.changes.fetch_add(1, Ordering::Release);
                    }
                    let (ticket, mut changed) = trans.commit();
                    changed.extend(written);
                    if !changed.is_empty() {
                        committed(&changed);
                    }
                    let is_due = state.cil_bytes > self.most_cil_bytes;
                    drop(state);
                    if is_due {
                        self.force(io, ticket)?;
                    }
                    return Ok((value, ticket));
                }
                Err(error) if is_only_busy(&error) && tries < BUSY_TRIES => {
                    drop(trans);
                    let ticket = CommitTicket(state.checkpoint);
                    drop(state);
                    tries = tries.saturating_add(1);
                    self.force(io, ticket)?;
                    // Until what the checkpoint freed is no longer busy, by whatever thread.
                    drop(self.lock_writer());
                }
                Err(error) if is_only_busy(&error) => return Err(no_space()),
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Journal::run`], of a transaction that changes the bytes of one inode alone.
    ///
    /// # Errors
    /// As [`Journal::run`].
    pub(super) fn run_on_inode<T>(
        &self,
        io: &mut dyn MetaIo,
        ino: Ino,
        change: impl FnOnce(&mut [u8], &Features) -> Result<T>,
        committed: impl FnOnce(BufPlace),
    ) -> Result<(T, CommitTicket)> {
        let mut state = self.state();
        let (value, ticket, changed) = state.change_inode(io, ino, change)?;
        if let Some(place) = changed {
            committed(place);
        }
        let is_due = state.cil_bytes > self.most_cil_bytes;
        drop(state);
        if is_due {
            self.force(io, ticket)?;
        }
        Ok((value, ticket))
    }

    /// Looks at metadata as it is now, without a change.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) fn look<T>(
        &self,
        io: &mut dyn MetaIo,
        look: impl FnOnce(&mut Trans<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state();
        look(&mut Trans::begin(&mut state, io)?)
    }

    /// Makes a transaction durable, and with it all that was committed or written to the device
    /// before its checkpoint was formatted.
    ///
    /// # Errors
    /// The device's; the filesystem is shut down then. Afterwards [`ErrorKind::Io`].
    pub(super) fn force(&self, io: &mut dyn MetaIo, ticket: CommitTicket) -> Result<()> {
        match self.writer_for(ticket) {
            None => Ok(()),
            Some(mut writer) => self.write_checkpoint(io, &mut writer),
        }
    }

    /// As [`Journal::force`], and what was written to the device before this call is durable too.
    ///
    /// # Errors
    /// As [`Journal::force`].
    pub(super) fn force_with_data(&self, io: &mut dyn MetaIo, ticket: CommitTicket) -> Result<()> {
        // A checkpoint that is open now is written after a flush that comes later than this.
        let is_open = {
            let state = self.state();
            ticket.0 == state.checkpoint && !state.is_cil_empty()
        };
        if !is_open {
            io.flush()?;
        }
        self.force(io, ticket)
    }

    /// The newest transaction that the log does not have yet.
    pub(super) fn newest_unlogged(&self) -> Option<CommitTicket> {
        let state = self.state();
        let newest = match state.is_cil_empty() {
            true => CommitTicket(state.checkpoint.saturating_sub(1)),
            false => CommitTicket(state.checkpoint),
        };
        (!self.is_durable(newest)).then_some(newest)
    }

    /// The writer, for the thread that has to write the checkpoint of a ticket; none once that is
    /// durable. While another thread writes, this one first gives its turn on the processor to
    /// others: a fast device has ended the write before a sleeping thread would be woken.
    fn writer_for(&self, ticket: CommitTicket) -> Option<MutexGuard<'_, JournalWriter>> {
        for _ in 0..YIELDS {
            if self.is_durable(ticket) {
                return None;
            }
            match self.writer.try_lock() {
                Ok(writer) => return (!self.is_durable(ticket)).then_some(writer),
                Err(TryLockError::Poisoned(_)) => break,
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        let writer = self.lock_writer();
        (!self.is_durable(ticket)).then_some(writer)
    }

    /// Makes all that was committed durable, and all that was written to the device before.
    ///
    /// # Errors
    /// As [`Journal::force`].
    pub(super) fn sync(&self, io: &mut dyn MetaIo) -> Result<()> {
        let (ticket, is_unformatted) = {
            let state = self.state();
            state.check_running()?;
            let is_unformatted = !state.is_cil_empty();
            let before = u64::from(!is_unformatted);
            (
                CommitTicket(state.checkpoint.saturating_sub(before)),
                is_unformatted,
            )
        };
        self.force(io, ticket)?;
        if is_unformatted {
            // The device was flushed before the checkpoint was written, and so after this began.
            return Ok(());
        }
        io.flush()
    }

    /// Whether the log has not all that was committed.
    pub(super) fn has_unlogged(&self) -> bool {
        let state = self.state();
        !state.is_cil_empty() || !self.is_durable(CommitTicket(state.checkpoint.saturating_sub(1)))
    }

    /// Whether anything was committed since the log was clean.
    pub(super) fn is_changed(&self) -> bool {
        let state = self.state();
        !state.is_cil_empty() || state.checkpoint > state.clean_checkpoint
    }

    /// Whether metadata with this log sequence number is newer than the log.
    pub(super) fn is_ahead(&self, lsn: u64) -> bool {
        lsn != NULL_LSN && lsn > self.state().head_lsn
    }

    /// Writes everything in place, the counters of the superblock too, and marks the log as clean.
    /// The journal can be used on.
    ///
    /// # Errors
    /// As [`Journal::force`]. The log is then as it was, and is replayed at the next open.
    pub(super) fn clean(&self, io: &mut dyn MetaIo) -> Result<()> {
        let mut writer = self.lock_writer();
        if !self.is_changed() {
            return self.state().check_running();
        }
        self.write_checkpoint(io, &mut writer)?;
        let result = self.write_in_place(io, u64::MAX).and_then(|()| {
            self.write_superblock(io)?;
            let unmount = writer.log.unmount()?;
            self.state().head_lsn = writer.log.lsn();
            for record in &unmount.records {
                checkpoint::write_durable(io, record)?;
            }
            let mut state = self.state();
            state.clean_checkpoint = state.checkpoint;
            Ok(())
        });
        self.or_shut_down(result)
    }

    fn lock_writer(&self) -> MutexGuard<'_, JournalWriter> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_durable(&self, ticket: CommitTicket) -> bool {
        self.durable.load(Ordering::Acquire) >= ticket.0
    }

    /// A failure of writing the log or in place ends all writing: what the log has is what a replay
    /// finds.
    fn or_shut_down<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            let mut state = self.state();
            if state.shutdown.is_none() {
                state.shutdown = Some(error.to_string());
            }
        }
        result
    }

    /// A number that changes before buffers that were written in place can be evicted: bytes that
    /// were read from the device and patched between two equal values of it are the newest. A
    /// commit changes nothing of that, because its buffers are dirty afterwards.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The newest bytes of an inode, where they are in memory, and whole.
    pub(super) fn inode_in_memory(&self, ino: Ino) -> Option<Box<[u8]>> {
        self.state().inode_in_memory(ino)
    }

    /// Replaces bytes that were read from the device by those of buffers that are newer.
    pub(super) fn patch(&self, addr_bytes: u64, bytes: &mut [u8]) {
        let state = self.state();
        let len = bytes.len() as u64;
        for (at, buffer) in state.buffers.overlapping(addr_bytes, len) {
            if buffer.is_dirty() {
                copy_overlap((at, &buffer.newest()), (addr_bytes, bytes));
            }
        }
    }
}

/// Copies the bytes of a buffer at one address to those of a range at another one.
fn copy_overlap((from_addr, from): (u64, &[u8]), (to_addr, to): (u64, &mut [u8])) {
    let skip = |by: u64| usize::try_from(by).unwrap_or(usize::MAX);
    let from = from.get(skip(to_addr.saturating_sub(from_addr))..);
    let to = to.get_mut(skip(from_addr.saturating_sub(to_addr))..);
    if let (Some(from), Some(to)) = (from, to) {
        let len = from.len().min(to.len());
        if let (Some(from), Some(to)) = (from.get(..len), to.get_mut(..len)) {
            to.copy_from_slice(from);
        }
    }
}

/// The primary superblock with these counters.
fn counted_superblock(buffer: &mut MetaBuffer, state: &MetaState) -> Result<()> {
    let (raw, _) = SuperblockLayout::mut_from_prefix(&mut buffer.bytes)
        .map_err(|_| corrupt(0, "superblock: too short"))?;
    // Not those of transactions that the log does not have.
    let [free_blocks, inodes, free_inodes] = state.logged_counters;
    raw.icount = inodes.into();
    raw.ifree = free_inodes.into();
    raw.fdblocks = free_blocks.into();
    Ok(())
}

/// Place of the primary superblock.
fn superblock_place(state: &MetaState) -> BufPlace {
    BufPlace {
        addr_bytes: 0,
        len_bytes: usize::try_from(state.superblock.geometry.sector_bytes).unwrap_or(512),
    }
}

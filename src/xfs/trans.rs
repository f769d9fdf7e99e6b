//! Transactions: changes of metadata in memory that reach the log together or not at all.
//!
//! A [`Trans`] has the filesystem's metadata for itself, under one lock: there is no order of
//! locks, and no thread waits for log space inside of one. It keeps the content of each buffer from
//! before its first change. [`Trans::commit`] compares, so that what was changed is logged,
//! wherever it was changed; a transaction that is dropped puts the old content back, so that an
//! operation that fails half-way (no space, corrupt metadata) leaves nothing behind.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::buf::{
    self, BufKind, BufPlace, Buffers, Identity, MetaBuffer, OldContent, SpareContents,
};
use super::format::log_items::CHUNK_BYTES;
use super::geometry::{Geometry, Ino};
use super::log::LogItem;
use super::superblock::{Features, Superblock};
use super::{MetaIo, corrupt};
use crate::error::{Error, ErrorKind, Result};

mod busy;
mod inodes;
mod places;
mod single;
mod unlogged;

pub(super) use busy::{BusyExtents, is_only_busy, no_space, only_busy};
use places::place_of_inode;

/// Bytes of clean buffers that are kept.
const BUFFER_BYTES: usize = 64 << 20;

/// All that transactions change: the metadata of a filesystem that is written.
#[derive(Debug)]
pub(super) struct MetaState {
    pub(super) superblock: Superblock,
    pub(super) buffers: Buffers,
    /// Addresses of the buffers with changes that are not in the log.
    pub(super) cil: BTreeSet<u64>,
    /// Metadata blocks that were freed since the last checkpoint: address and length. Their items
    /// keep a replay from writing to blocks that have other owners by then.
    pub(super) cancelled: BTreeMap<u64, usize>,
    /// Items of no buffer that the next checkpoint has: intents that were finished.
    pub(super) items: Vec<LogItem>,
    /// Bytes that the next checkpoint takes, about.
    pub(super) cil_bytes: u64,
    /// Number of the checkpoint that the next commit goes into.
    pub(super) checkpoint: u64,
    /// The number that it had when the log was clean last.
    pub(super) clean_checkpoint: u64,
    /// The log sequence number of the next record.
    pub(super) head_lsn: u64,
    /// The start of the newest checkpoint.
    pub(super) newest_lsn: u64,
    /// Blocks that were freed by a checkpoint that is not durable yet.
    pub(super) busy: BusyExtents,
    /// Buffers that were discarded before they were in place.
    pub(super) pinned: Vec<PinnedBuffer>,
    /// Where the replay of the log began that found intents, until the checkpoint of this number is
    /// durable, which ends them.
    pub(super) replayed_from: Option<(u64, u64)>,
    /// The counters of free blocks, inodes and free inodes as of the last checkpoint.
    pub(super) logged_counters: [u64; 3],
    /// Free blocks of all groups, with those that btrees keep: `sb_fdblocks`.
    pub(super) free_blocks: u64,
    /// Free blocks that are withheld from users; `None` before they were counted.
    pub(super) withheld_blocks: Option<u64>,
    /// Allocated inodes and free ones among them.
    pub(super) inodes: u64,
    pub(super) free_inodes: u64,
    /// Of the first failed write of the log: nothing is changed or written any more.
    pub(super) shutdown: Option<String>,
    /// Memory for the next transaction: of blocks from before their change, and of an inode.
    spare: SpareContents,
    old_inode: Vec<u8>,
    /// The inode that was changed last, and where it lies.
    last_inode: Option<(Ino, BufPlace, Range<usize>)>,
}

/// A buffer that was discarded before what the log has of it was in place. Until the checkpoint
/// with the discarding is durable a replay needs that, in the log or in place.
#[derive(Debug)]
pub(super) struct PinnedBuffer {
    pub(super) addr_bytes: u64,
    pub(super) buffer: MetaBuffer,
    /// Number of the checkpoint that has the discarding.
    pub(super) checkpoint: u64,
}

/// A committed transaction: the number of the checkpoint that makes it durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitTicket(pub(super) u64);

impl CommitTicket {
    /// Its number, which grows with time.
    pub fn number(self) -> u64 {
        self.0
    }

    /// That of a number.
    pub fn of(number: u64) -> Self {
        Self(number)
    }
}

/// A buffer from before its first change in a transaction.
#[derive(Debug)]
enum Before {
    /// It was there, with this content.
    Content(OldContent),
    /// It was new, or discarded: this was in the table instead, and whether its freeing was to be
    /// logged.
    Replaced(Option<MetaBuffer>, Option<usize>),
}

/// What a transaction does to the counters of the filesystem.
#[derive(Debug, Clone, Copy, Default)]
struct CounterChange {
    free_blocks: i64,
    withheld_blocks: i64,
    inodes: i64,
    free_inodes: i64,
}

/// One transaction. Dropped without [`Trans::commit`] it is undone.
pub(super) struct Trans<'a> {
    state: &'a mut MetaState,
    io: &'a mut dyn MetaIo,
    before: BTreeMap<u64, Before>,
    /// Memory for the contents in `before`.
    spare: SpareContents,
    freed: Vec<(u32, Range<u32>)>,
    items: Vec<LogItem>,
    /// Blocks with content that is not logged: address and content.
    values: Vec<(u64, Box<[u8]>)>,
    counters: CounterChange,
}

impl MetaState {
    /// The state of a filesystem whose log is clean, with nothing in memory.
    pub(super) fn new(superblock: &Superblock, head_lsn: u64) -> Self {
        Self {
            buffers: Buffers::new(BUFFER_BYTES),
            cil: BTreeSet::new(),
            cancelled: BTreeMap::new(),
            items: Vec::new(),
            cil_bytes: 0,
            checkpoint: 1,
            clean_checkpoint: 1,
            head_lsn,
            newest_lsn: superblock.lsn,
            busy: BusyExtents::default(),
            pinned: Vec::new(),
            replayed_from: None,
            logged_counters: [
                superblock.free_blocks,
                superblock.inodes,
                superblock.free_inodes,
            ],
            free_blocks: superblock.free_blocks,
            withheld_blocks: None,
            inodes: superblock.inodes,
            free_inodes: superblock.free_inodes,
            shutdown: None,
            spare: SpareContents::default(),
            old_inode: Vec::new(),
            last_inode: None,
            superblock: superblock.clone(),
        }
    }

    pub(super) fn identity(&self) -> Identity {
        identity_of(&self.superblock, self.head_lsn)
    }

    /// Whether the log has all that was committed.
    pub(super) fn is_cil_empty(&self) -> bool {
        self.cil.is_empty() && self.cancelled.is_empty() && self.items.is_empty()
    }

    /// All that was committed goes into a checkpoint that starts at `lsn`.
    pub(super) fn note_logged(&mut self, lsn: u64) {
        for addr in std::mem::take(&mut self.cil) {
            self.buffers.note_logged(addr, lsn);
        }
        self.cancelled.clear();
        self.items.clear();
        self.cil_bytes = 0;
        self.newest_lsn = lsn;
        self.logged_counters = [self.free_blocks, self.inodes, self.free_inodes];
    }

    /// Where a replay has to begin: the start of the oldest checkpoint that is not wholly in place,
    /// the head of the log if there is none.
    pub(super) fn tail_lsn(&self) -> u64 {
        let pinned = self.pinned.iter().filter_map(|pin| pin.buffer.lsn).min();
        let oldest = self.buffers.oldest_lsn();
        oldest
            .into_iter()
            .chain(pinned)
            .chain(self.replayed_from.map(|(lsn, _)| lsn))
            .min()
            .unwrap_or(self.head_lsn)
    }

    /// The error of a filesystem that was shut down.
    pub(super) fn check_running(&self) -> Result<()> {
        match &self.shutdown {
            None => Ok(()),
            Some(why) => Err(Error::new(
                ErrorKind::Io,
                format!("the filesystem was shut down: {why}"),
            )),
        }
    }
}

impl<'a> Trans<'a> {
    /// Begins a transaction.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the filesystem was shut down.
    pub(super) fn begin(state: &'a mut MetaState, io: &'a mut dyn MetaIo) -> Result<Self> {
        state.check_running()?;
        Ok(Self {
            spare: std::mem::take(&mut state.spare),
            state,
            io,
            before: BTreeMap::new(),
            freed: Vec::new(),
            items: Vec::new(),
            values: Vec::new(),
            counters: CounterChange::default(),
        })
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.state.superblock.geometry
    }

    pub(super) fn features(&self) -> &Features {
        &self.state.superblock.features
    }

    /// The uuid that metadata carries.
    pub(super) fn meta_uuid(&self) -> [u8; 16] {
        self.state.superblock.meta_uuid
    }

    /// The first part of a range of blocks that was freed but may not be used again yet. Whether it
    /// was freed by another transaction: then it may be used once the log was forced.
    pub(super) fn first_busy(&self, ag: u32, blocks: &Range<u32>) -> Option<(Range<u32>, bool)> {
        let own = self.freed.iter().filter(|(group, freed)| {
            *group == ag && freed.start < blocks.end && freed.end > blocks.start
        });
        let own = own.map(|(_, freed)| freed.clone());
        let own = own.min_by_key(|freed| freed.start);
        match (self.state.busy.first_in(ag, blocks), own) {
            (Some(other), Some(own)) if own.start <= other.start => Some((own, false)),
            (Some(other), _) => Some((other, true)),
            (None, own) => own.map(|own| (own, false)),
        }
    }

    /// Free blocks that are withheld from users as this transaction sees them; `None` before they
    /// were counted.
    pub(super) fn withheld_blocks(&self) -> Option<u64> {
        let counted = self.state.withheld_blocks?;
        Some(counted.saturating_add_signed(self.counters.withheld_blocks))
    }

    /// Free blocks that are withheld from users were counted, the changes of this transaction
    /// included.
    pub(super) fn set_withheld_blocks(&mut self, blocks: u64) {
        let before = self.counters.withheld_blocks.saturating_neg();
        self.state.withheld_blocks = Some(blocks.saturating_add_signed(before));
    }

    /// Has an item of no buffer logged with the changes of the transaction.
    pub(super) fn log_item(&mut self, item: LogItem) {
        self.items.push(item);
    }

    /// Changes the number of free blocks that are withheld from users.
    pub(super) fn withhold(&mut self, blocks: i64) {
        let counter = &mut self.counters.withheld_blocks;
        *counter = counter.saturating_add(blocks);
    }

    /// Allocated inodes as this transaction sees them, and free ones among them.
    pub(super) fn inode_counts(&self) -> (u64, u64) {
        let (state, counters) = (&self.state, &self.counters);
        (
            state.inodes.saturating_add_signed(counters.inodes),
            state
                .free_inodes
                .saturating_add_signed(counters.free_inodes),
        )
    }

    /// Free blocks of the filesystem as this transaction sees them.
    pub(super) fn free_blocks(&self) -> u64 {
        self.state
            .free_blocks
            .saturating_add_signed(self.counters.free_blocks)
    }

    /// The place of a filesystem block that holds metadata.
    pub(super) fn place_of_block(&self, ag: u32, ag_block: u32) -> BufPlace {
        let geometry = self.geometry();
        BufPlace {
            addr_bytes: geometry.ag_block_addr(ag, ag_block),
            len_bytes: usize::try_from(geometry.block_bytes).unwrap_or(0),
        }
    }

    /// The place of a group's header: [`BufKind::Agf`], [`BufKind::Agi`] or [`BufKind::Agfl`]. For
    /// all other kinds the superblock of the group.
    pub(super) fn place_of_header(&self, ag: u32, kind: BufKind) -> BufPlace {
        let sector = match kind {
            BufKind::Agf => 1_u32,
            BufKind::Agi => 2,
            BufKind::Agfl => 3,
            _ => 0,
        };
        let geometry = self.geometry();
        let into = sector.saturating_mul(geometry.sector_bytes);
        BufPlace {
            addr_bytes: geometry.ag_block_addr(ag, 0).saturating_add(into.into()),
            len_bytes: usize::try_from(geometry.sector_bytes).unwrap_or(0),
        }
    }

    /// The content of a buffer, read and checked if it is not in memory.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], naming the fault; the device's.
    pub(super) fn read(&mut self, place: BufPlace, kind: BufKind) -> Result<&[u8]> {
        Ok(&self.buffer(place, kind)?.bytes)
    }

    /// The same. When the content was not checked since it was read from the device, `check` is
    /// called with it.
    ///
    /// # Errors
    /// As [`Trans::read`], and what `check` finds.
    pub(super) fn read_checked(
        &mut self,
        place: BufPlace,
        kind: BufKind,
        check: impl FnOnce(&[u8]) -> Result<(), &'static str>,
    ) -> Result<&[u8]> {
        let buffer = self.buffer(place, kind)?;
        if !buffer.is_checked {
            check(&buffer.bytes)
                .map_err(|what| corrupt(place.addr_bytes, format!("{}: {what}", kind.name())))?;
            buffer.is_checked = true;
        }
        Ok(&buffer.bytes)
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// As [`Trans::read`].
    pub(super) fn edit(&mut self, place: BufPlace, kind: BufKind) -> Result<&mut [u8]> {
        let buffer = buffer_of(self.state, self.io, place, kind)?;
        let before = self.before.entry(place.addr_bytes);
        let spare = &mut self.spare;
        let whole = || Before::Content(OldContent::Whole(spare.copy(&buffer.bytes)));
        if let Before::Content(content) = before.or_insert_with(whole) {
            content.keep_whole(&buffer.bytes);
        }
        Ok(&mut buffer.bytes)
    }

    /// A buffer for a block that was just allocated: zeroed, and logged whole.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the place is in use by a buffer of another length.
    pub(super) fn fresh(&mut self, place: BufPlace, kind: BufKind) -> Result<&mut [u8]> {
        let addr = place.addr_bytes;
        let buffer = MetaBuffer::zeroed(place.len_bytes, kind);
        let old = self.state.buffers.insert(addr, buffer);
        let cancelled = self.state.cancelled.remove(&addr);
        let before = self.before.remove(&addr);
        let before = match (before, old) {
            // It was discarded or new in this transaction: what was there before that counts.
            (Some(Before::Replaced(first, cancel)), _) => Before::Replaced(first, cancel),
            (Some(Before::Content(content)), Some(mut old)) => {
                content.restore(&mut old.bytes);
                Before::Replaced(Some(old), cancelled)
            }
            (_, old) => Before::Replaced(old, cancelled),
        };
        self.before.insert(addr, before);
        match self.state.buffers.get_mut(addr) {
            Some(buffer) => Ok(&mut buffer.bytes),
            None => Err(corrupt(addr, "a metadata buffer disappeared")),
        }
    }

    /// Drops the buffer of a metadata block that is freed, and has its freeing logged.
    pub(super) fn discard(&mut self, place: BufPlace) {
        let addr = place.addr_bytes;
        let old = self.state.buffers.remove(addr);
        let cancelled = self.state.cancelled.insert(addr, place.len_bytes);
        let before = match (self.before.remove(&addr), old) {
            (Some(Before::Content(content)), Some(mut old)) => {
                content.restore(&mut old.bytes);
                Before::Replaced(Some(old), cancelled)
            }
            (Some(first), _) => first,
            (None, old) => Before::Replaced(old, cancelled),
        };
        self.before.insert(addr, before);
    }

    /// As [`Trans::discard`], of all buffers in memory whose blocks lie in a range that is freed.
    pub(super) fn discard_within(&mut self, addr_bytes: u64, len_bytes: u64) {
        let found = self.state.buffers.overlapping(addr_bytes, len_bytes);
        let places = found.map(|(addr_bytes, buffer)| BufPlace {
            addr_bytes,
            len_bytes: buffer.bytes.len(),
        });
        for place in places.collect::<Vec<_>>() {
            self.discard(place);
        }
    }

    fn buffer(&mut self, place: BufPlace, kind: BufKind) -> Result<&mut MetaBuffer> {
        buffer_of(self.state, self.io, place, kind)
    }

    /// Whether the buffer of a metadata block is in memory.
    pub(super) fn has_buffer(&self, addr_bytes: u64) -> bool {
        self.state.buffers.get(addr_bytes).is_some()
    }

    /// Blocks were freed: they may not be used before the checkpoint of this transaction is
    /// durable.
    pub(super) fn note_freed(&mut self, ag: u32, blocks: Range<u32>) {
        self.freed.push((ag, blocks));
    }

    /// Changes the counters of free blocks, inodes and free inodes of the filesystem. The headers
    /// of the groups are for the caller to change.
    pub(super) fn count(&mut self, free_blocks: i64, inodes: i64, free_inodes: i64) {
        let counters = &mut self.counters;
        counters.free_blocks = counters.free_blocks.saturating_add(free_blocks);
        counters.inodes = counters.inodes.saturating_add(inodes);
        counters.free_inodes = counters.free_inodes.saturating_add(free_inodes);
    }

    /// More bytes than the log gets of the transaction, as far as it came: the buffers that it
    /// changed, as a whole.
    pub(super) fn edited_bytes(&self) -> u64 {
        let blocks = u64::try_from(self.before.len()).unwrap_or(u64::MAX);
        blocks.saturating_mul(self.geometry().block_bytes.into())
    }

    /// Ends the transaction: its changes are in memory, and in the log with the checkpoint of the
    /// ticket. Returns the buffers that were changed, too.
    pub(super) fn commit(mut self) -> (CommitTicket, Vec<BufPlace>) {
        let state = &mut *self.state;
        let spare = &mut self.spare;
        let mut changed = Vec::with_capacity(self.before.len());
        for (addr_bytes, before) in std::mem::take(&mut self.before) {
            let content = match before {
                Before::Content(content) => Some(content),
                Before::Replaced(old, _) => {
                    if let Some(buffer) = old.filter(|old| old.lsn.is_some()) {
                        let checkpoint = state.checkpoint;
                        state.pinned.push(PinnedBuffer {
                            addr_bytes,
                            buffer,
                            checkpoint,
                        });
                    }
                    None
                }
            };
            let Some(buffer) = state.buffers.get_mut(addr_bytes) else {
                // Discarded. A new block that was discarded again needs no item, but has one.
                state.cil.remove(&addr_bytes);
                state.cil_bytes = state.cil_bytes.saturating_add(CHUNK_BYTES as u64);
                let len_bytes = state.cancelled.get(&addr_bytes).copied().unwrap_or(0);
                changed.push(BufPlace {
                    addr_bytes,
                    len_bytes,
                });
                continue;
            };
            let counted = if buffer.in_cil { buffer.log_bytes() } else { 0 };
            let is_changed = match content {
                Some(mut content) => {
                    let is_changed = buffer.note_changes(&mut content);
                    spare.keep(content);
                    is_changed
                }
                None => {
                    buffer.note_new();
                    true
                }
            };
            if is_changed {
                let more = buffer.log_bytes().saturating_sub(counted);
                state.cil_bytes = state.cil_bytes.saturating_add(more);
                state.cil.insert(addr_bytes);
                changed.push(BufPlace {
                    addr_bytes,
                    len_bytes: buffer.bytes.len(),
                });
            }
        }
        for item in std::mem::take(&mut self.items) {
            state.cil_bytes = state.cil_bytes.saturating_add(item.log_bytes());
            state.items.push(item);
        }
        for (ag, blocks) in std::mem::take(&mut self.freed) {
            state.busy.insert(ag, blocks, state.checkpoint);
        }
        let counters = std::mem::take(&mut self.counters);
        let add = |to: &mut u64, by: i64| *to = to.saturating_add_signed(by);
        add(&mut state.free_blocks, counters.free_blocks);
        add(&mut state.inodes, counters.inodes);
        add(&mut state.free_inodes, counters.free_inodes);
        if let Some(withheld) = &mut state.withheld_blocks {
            add(withheld, counters.withheld_blocks);
        }
        let ticket = CommitTicket(state.checkpoint);
        state.buffers.evict();
        (ticket, changed)
    }
}

fn identity_of(superblock: &Superblock, head_lsn: u64) -> Identity {
    Identity {
        meta_uuid: superblock.meta_uuid,
        head_lsn,
        inode_bytes: usize::try_from(superblock.geometry.inode_bytes).unwrap_or(512),
    }
}

/// A buffer, read and checked if it is not in memory.
fn buffer_of<'s>(
    state: &'s mut MetaState,
    io: &mut dyn MetaIo,
    place: BufPlace,
    kind: BufKind,
) -> Result<&'s mut MetaBuffer> {
    let addr = place.addr_bytes;
    let (superblock, head_lsn) = (&state.superblock, state.head_lsn);
    let load = || buf::load(io, place, kind, &identity_of(superblock, head_lsn));
    let buffer = state.buffers.get_or_load(addr, load)?;
    if buffer.kind == kind && buffer.bytes.len() == place.len_bytes {
        return Ok(buffer);
    }
    Err(corrupt(
        addr,
        format!("the block is used for something else than a {kind:?}"),
    ))
}

fn check_inode(buffer: &MetaBuffer, ino: Ino, place: BufPlace, range: &Range<usize>) -> Result<()> {
    let is_good = buffer.slot_at(range.start).is_some();
    is_good
        .then_some(())
        .ok_or_else(|| corrupt(place.addr_bytes, format!("{ino} is damaged")))
}

impl Drop for Trans<'_> {
    /// Puts back what was there before; after a commit there is nothing to put back.
    fn drop(&mut self) {
        self.state.spare = std::mem::take(&mut self.spare);
        for (addr, before) in std::mem::take(&mut self.before) {
            match before {
                Before::Content(content) => {
                    if let Some(buffer) = self.state.buffers.get_mut(addr) {
                        content.restore(&mut buffer.bytes);
                    }
                }
                Before::Replaced(old, cancelled) => {
                    self.state.buffers.remove(addr);
                    if let Some(old) = old {
                        self.state.buffers.insert(addr, old);
                    }
                    match cancelled {
                        Some(len) => self.state.cancelled.insert(addr, len),
                        None => self.state.cancelled.remove(&addr),
                    };
                }
            }
        }
    }
}

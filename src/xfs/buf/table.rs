//! The buffers in memory: found by address, written in place in address order, evicted when clean.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;

use foldhash::fast::RandomState;

use super::super::format::log_items::CHUNK_BYTES;
use super::{
    BufKind, ChunkMap, Identity, InodeSlot, OldContent, changed_chunks, inode_core, inode_is_whole,
    seal, slots,
};

/// A buffer.
#[derive(Debug)]
pub(in super::super) struct MetaBuffer {
    pub(in super::super) bytes: Box<[u8]>,
    pub(in super::super) kind: BufKind,
    /// Changed since it was last written in place; unused for inodes.
    pub(in super::super) dirty: ChunkMap,
    /// The inodes of a cluster; empty for all other kinds.
    pub(in super::super) slots: Vec<InodeSlot>,
    /// Anything in the cluster is no inode.
    has_foreign: bool,
    /// Inodes of the cluster with changes that are not in the log yet.
    unlogged_inodes: u64,
    /// The start of the last checkpoint that logged it, while it is not in place. Of a cluster,
    /// that of the inode that was logged first.
    pub(in super::super) lsn: Option<u64>,
    /// There are changes that are not in the log yet.
    pub(in super::super) in_cil: bool,
    /// The content at the last checkpoint, where that is neither in place nor the newest.
    pub(in super::super) shadow: Option<Box<[u8]>>,
    /// Counts changes: a write in place that ends finds out whether it wrote the newest.
    pub(in super::super) version: u64,
    /// The structure was checked since it was read: see `Trans::read_checked`.
    pub(in super::super) is_checked: bool,
    used: bool,
}

/// Notes what differs between two images of an inode, and counts it among those that are not in the
/// log yet. Returns whether anything does.
fn note_slot(slot: &mut InodeSlot, unlogged: &mut u64, old: &[u8], new: &[u8]) -> bool {
    let was_in_cil = slot.in_cil;
    let differs = slot.note_changes(old, new);
    let is_more = u64::from(slot.in_cil && !was_in_cil);
    *unlogged = unlogged.saturating_add(is_more);
    differs
}

impl MetaBuffer {
    pub(super) fn new(bytes: Box<[u8]>, kind: BufKind) -> Self {
        Self {
            bytes,
            kind,
            dirty: ChunkMap::default(),
            slots: Vec::new(),
            has_foreign: false,
            unlogged_inodes: 0,
            lsn: None,
            in_cil: false,
            shadow: None,
            version: 0,
            is_checked: false,
            used: true,
        }
    }

    /// A cluster of inodes as it was read.
    pub(super) fn of_inodes(bytes: Box<[u8]>, identity: &Identity) -> Self {
        let slots: Vec<InodeSlot> = bytes
            .chunks_exact(identity.inode_bytes.max(1))
            .map(|raw| InodeSlot {
                is_bad: !inode_is_whole(raw, identity),
                is_foreign: inode_core(raw).is_none(),
                ..InodeSlot::default()
            })
            .collect();
        Self {
            has_foreign: slots.iter().any(|slot| slot.is_foreign),
            slots,
            ..Self::new(bytes, BufKind::Inodes)
        }
    }

    /// A buffer of zeroes for a new block.
    pub(in super::super) fn zeroed(len_bytes: usize, kind: BufKind) -> Self {
        Self {
            is_checked: true,
            ..Self::new(vec![0; len_bytes].into_boxed_slice(), kind)
        }
    }

    /// Whether it must not be evicted.
    pub(in super::super) fn is_dirty(&self) -> bool {
        self.in_cil || self.lsn.is_some()
    }

    /// Compares it with its content before a transaction, and notes what has to be logged. Returns
    /// whether anything has. The old content is kept as the shadow where the last checkpoint is not
    /// in place yet.
    pub(in super::super) fn note_changes(&mut self, before: &mut OldContent) -> bool {
        if before.is_in(&self.bytes) {
            return false;
        }
        let bytes = self.inode_bytes();
        for (start, old) in before.parts() {
            let new = self.bytes.get(start..start.saturating_add(old.len()));
            let new = new.unwrap_or_default();
            if bytes == 0 {
                self.dirty.merge(&changed_chunks(old, new));
                continue;
            }
            let first = start.checked_div(bytes).unwrap_or(0);
            let images = old.chunks(bytes).zip(new.chunks(bytes));
            for (slot, (old, new)) in self.slots.iter_mut().skip(first).zip(images) {
                note_slot(slot, &mut self.unlogged_inodes, old, new);
            }
        }
        self.note_changed(|bytes| std::mem::take(before).into_whole(bytes));
        true
    }

    /// As [`MetaBuffer::note_changes`], of the inode at an offset of a cluster.
    pub(in super::super) fn note_inode(&mut self, start: usize, old: &[u8]) -> bool {
        let new = self.bytes.get(start..start.saturating_add(old.len()));
        let new = new.unwrap_or_default();
        let index = start.checked_div(old.len()).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        if !note_slot(slot, &mut self.unlogged_inodes, old, new) {
            return false;
        }
        self.note_changed(|bytes| {
            let mut shadow: Box<[u8]> = bytes.into();
            let part = shadow.get_mut(start..start.saturating_add(old.len()));
            part.unwrap_or_default().copy_from_slice(old);
            shadow
        });
        true
    }

    /// It has to be logged; `old_content` makes its content from before out of that now.
    fn note_changed(&mut self, old_content: impl FnOnce(&[u8]) -> Box<[u8]>) {
        if !self.in_cil && self.lsn.is_some() {
            self.shadow = Some(old_content(&self.bytes));
        }
        self.in_cil = true;
        self.version = self.version.wrapping_add(1);
    }

    /// The length of an inode in a cluster; 0 for all other kinds.
    fn inode_bytes(&self) -> usize {
        self.bytes.len().checked_div(self.slots.len()).unwrap_or(0)
    }

    /// Everything of it is logged: a new block.
    pub(in super::super) fn note_new(&mut self) {
        self.dirty = ChunkMap::first(self.chunks());
        self.in_cil = true;
        self.version = self.version.wrapping_add(1);
    }

    /// Number of its chunks.
    pub(in super::super) fn chunks(&self) -> usize {
        self.bytes.len().div_ceil(CHUNK_BYTES)
    }

    /// Bytes that it takes in the log, about.
    pub(in super::super) fn log_bytes(&self) -> u64 {
        const PER_ITEM_BYTES: u64 = 128;
        if self.slots.is_empty() {
            let chunks = u64::from(self.dirty.len()).saturating_mul(CHUNK_BYTES as u64);
            return chunks.saturating_add(2 * PER_ITEM_BYTES);
        }
        let inode_bytes = self.inode_bytes() as u64;
        let each = inode_bytes.saturating_add(2 * PER_ITEM_BYTES);
        self.unlogged_inodes
            .saturating_mul(each)
            .saturating_add(2 * PER_ITEM_BYTES)
    }

    /// All its changes went into a checkpoint that starts at `lsn`.
    pub(in super::super) fn note_logged(&mut self, lsn: u64) {
        self.in_cil = false;
        self.shadow = None;
        if self.slots.is_empty() {
            self.lsn = Some(lsn);
            return;
        }
        self.unlogged_inodes = 0;
        for slot in &mut self.slots {
            if std::mem::take(&mut slot.in_cil) {
                slot.lsn = Some(lsn);
                if slot.is_changed {
                    slot.stamp = Some(lsn);
                }
            }
        }
        self.lsn = self.slots.iter().filter_map(|slot| slot.lsn).min();
    }

    /// The image to be written in place, sealed: the content at the last checkpoint.
    pub(in super::super) fn image(&self) -> Box<[u8]> {
        let mut image = self.shadow.as_ref().unwrap_or(&self.bytes).clone();
        seal(&mut image, self.kind, self.lsn.unwrap_or(0), &self.slots);
        image
    }

    /// The newest content, sealed, as a reader may see it.
    pub(in super::super) fn newest(&self) -> Box<[u8]> {
        let mut image = self.bytes.clone();
        seal(&mut image, self.kind, self.lsn.unwrap_or(0), &self.slots);
        image
    }

    /// The newest content of the inode at a range of a cluster, sealed; `None` as
    /// [`MetaBuffer::slot_at`].
    pub(in super::super) fn newest_inode(&self, range: Range<usize>) -> Option<Box<[u8]>> {
        let slot = self.slot_at(range.start)?;
        let mut raw: Box<[u8]> = self.bytes.get(range)?.into();
        slots::seal(&mut raw, std::slice::from_ref(slot));
        Some(raw)
    }

    /// Its image was written in place and is durable; `version` is that of the image.
    pub(in super::super) fn note_in_place(&mut self, version: u64) {
        self.shadow = None;
        self.lsn = None;
        let is_newest = version == self.version && !self.in_cil;
        if is_newest {
            self.dirty = ChunkMap::default();
        }
        for slot in &mut self.slots {
            slot.lsn = None;
            if !slot.in_cil {
                slot.forget_changes();
            }
        }
    }

    /// The inode at an offset of a cluster; `None` when it was damaged on disk, or anything in the
    /// cluster is no inode, which the kernel's xfs_inode_buf_verify() refuses.
    pub(in super::super) fn slot_at(&self, offset: usize) -> Option<&InodeSlot> {
        let bytes = self.bytes.len().checked_div(self.slots.len())?;
        let slot = self.slots.get(offset.checked_div(bytes)?)?;
        (!self.has_foreign && !slot.is_bad).then_some(slot)
    }
}

/// All buffers, by address.
#[derive(Debug)]
pub(in super::super) struct Buffers {
    // Keyed, because a disk names the addresses, and cheap, because each append looks one up.
    table: HashMap<u64, MetaBuffer, RandomState>,
    /// The addresses of all, in order.
    addresses: BTreeSet<u64>,
    /// Those that are not in place, by the start of the last checkpoint that logged them.
    logged: BTreeSet<(u64, u64)>,
    hand: VecDeque<u64>,
    bytes: usize,
    /// Of these, bytes of buffers that the log has and that are not in place.
    dirty_bytes: usize,
    limit_bytes: usize,
}

impl Buffers {
    /// None yet. Clean ones are evicted when there are more bytes than the limit.
    pub(in super::super) fn new(limit_bytes: usize) -> Self {
        Self {
            table: HashMap::with_hasher(RandomState::default()),
            addresses: BTreeSet::new(),
            logged: BTreeSet::new(),
            hand: VecDeque::new(),
            bytes: 0,
            dirty_bytes: 0,
            limit_bytes,
        }
    }

    /// The buffer at an address, marked as used.
    pub(in super::super) fn get_mut(&mut self, addr_bytes: u64) -> Option<&mut MetaBuffer> {
        let buffer = self.table.get_mut(&addr_bytes)?;
        buffer.used = true;
        Some(buffer)
    }

    pub(in super::super) fn get(&self, addr_bytes: u64) -> Option<&MetaBuffer> {
        self.table.get(&addr_bytes)
    }

    /// The buffer at an address, marked as used; when there is none, the one that `load` makes.
    pub(in super::super) fn get_or_load<E>(
        &mut self,
        addr_bytes: u64,
        load: impl FnOnce() -> Result<MetaBuffer, E>,
    ) -> Result<&mut MetaBuffer, E> {
        match self.table.entry(addr_bytes) {
            Entry::Occupied(entry) => {
                let buffer = entry.into_mut();
                buffer.used = true;
                Ok(buffer)
            }
            Entry::Vacant(entry) => {
                let buffer = load()?;
                self.bytes = self.bytes.saturating_add(buffer.bytes.len());
                self.addresses.insert(addr_bytes);
                self.hand.push_back(addr_bytes);
                Ok(entry.insert(buffer))
            }
        }
    }

    /// Adds a buffer; returns the one that it takes the place of.
    pub(in super::super) fn insert(
        &mut self,
        addr_bytes: u64,
        buffer: MetaBuffer,
    ) -> Option<MetaBuffer> {
        let old = self.remove(addr_bytes);
        self.bytes = self.bytes.saturating_add(buffer.bytes.len());
        if let Some(lsn) = buffer.lsn {
            self.logged.insert((lsn, addr_bytes));
            self.dirty_bytes = self.dirty_bytes.saturating_add(buffer.bytes.len());
        }
        self.table.insert(addr_bytes, buffer);
        self.addresses.insert(addr_bytes);
        // It may be there twice, after it was removed: that costs a look.
        if old.is_none() {
            self.hand.push_back(addr_bytes);
        }
        old
    }

    pub(in super::super) fn remove(&mut self, addr_bytes: u64) -> Option<MetaBuffer> {
        let old = self.table.remove(&addr_bytes)?;
        self.addresses.remove(&addr_bytes);
        self.bytes = self.bytes.saturating_sub(old.bytes.len());
        if let Some(lsn) = old.lsn {
            self.logged.remove(&(lsn, addr_bytes));
            self.dirty_bytes = self.dirty_bytes.saturating_sub(old.bytes.len());
        }
        Some(old)
    }

    /// Buffers that overlap a range of the device.
    pub(in super::super) fn overlapping(
        &self,
        addr_bytes: u64,
        len_bytes: u64,
    ) -> impl Iterator<Item = (u64, &MetaBuffer)> {
        const LARGEST_BYTES: u64 = 64 << 10;
        let end = addr_bytes.saturating_add(len_bytes);
        self.addresses
            .range(addr_bytes.saturating_sub(LARGEST_BYTES)..end)
            .filter_map(|addr| Some((*addr, self.table.get(addr)?)))
            .filter(move |(addr, buffer)| {
                addr.saturating_add(buffer.bytes.len() as u64) > addr_bytes
            })
    }

    /// The start of the oldest checkpoint that is not wholly in place.
    pub(in super::super) fn oldest_lsn(&self) -> Option<u64> {
        self.logged.first().map(|(lsn, _)| *lsn)
    }

    /// Addresses of the buffers that were logged last by a checkpoint that started before `below`,
    /// and are not in place.
    pub(in super::super) fn logged_before(&self, below: u64) -> Vec<u64> {
        self.logged
            .range(..(below, 0))
            .map(|(_, addr)| *addr)
            .collect()
    }

    /// All changes of a buffer went into a checkpoint that starts at `lsn`.
    pub(in super::super) fn note_logged(&mut self, addr_bytes: u64, lsn: u64) {
        self.change_lsn(addr_bytes, |buffer| buffer.note_logged(lsn));
    }

    /// An image of a buffer is in place and durable; `version` is that of the image.
    pub(in super::super) fn note_in_place(&mut self, addr_bytes: u64, version: u64) {
        self.change_lsn(addr_bytes, |buffer| buffer.note_in_place(version));
    }

    fn change_lsn(&mut self, addr_bytes: u64, change: impl FnOnce(&mut MetaBuffer)) {
        let Some(buffer) = self.table.get_mut(&addr_bytes) else {
            return;
        };
        let old = buffer.lsn;
        change(buffer);
        let (new, len) = (buffer.lsn, buffer.bytes.len());
        match (old, new) {
            (None, Some(_)) => self.dirty_bytes = self.dirty_bytes.saturating_add(len),
            (Some(_), None) => self.dirty_bytes = self.dirty_bytes.saturating_sub(len),
            _ => {}
        }
        if old != new {
            if let Some(lsn) = old {
                self.logged.remove(&(lsn, addr_bytes));
            }
            if let Some(lsn) = new {
                self.logged.insert((lsn, addr_bytes));
            }
        }
    }

    /// Evicts clean buffers while there are too many bytes. Dirty ones stay: they are looked at
    /// again when they are in place. Not while a transaction has changed any.
    pub(in super::super) fn evict(&mut self) {
        let mut looks = self.hand.len().saturating_mul(2);
        while self.bytes.saturating_sub(self.dirty_bytes) > self.limit_bytes && looks > 0 {
            looks = looks.saturating_sub(1);
            let Some(addr) = self.hand.pop_front() else {
                return;
            };
            match self.table.get_mut(&addr) {
                None => {}
                Some(buffer) if buffer.used || buffer.is_dirty() => {
                    buffer.used = false;
                    self.hand.push_back(addr);
                }
                Some(_) => {
                    self.remove(addr);
                }
            }
        }
    }

    /// Bytes of buffers that are not in place.
    pub(in super::super) fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }
}

//! A disk in memory whose log is used and cut off, and a model of it.

use std::collections::{HashSet, VecDeque};

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngCore, SeedableRng};

use super::super::super::super::Features;
use super::super::super::super::format::superblock::IN_NREXT64;
use super::super::super::super::geometry::{FsBlock, Geometry, Ino};
use super::super::super::finish::mark_clean;
use super::super::super::{BB, end, replay};
use super::super::*;

/// Number of the log's first block in the filesystem.
const LOG_START: u32 = 16;
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Bytes behind the log.
const DATA_BYTES: usize = 1 << 20;

/// A filesystem of one group, whose blocks have 4096 bytes.
fn superblock(sector_bytes: u32, stripe_bytes: u32, log_blocks: u32) -> Superblock {
    let blocks = LOG_START + log_blocks + DATA_BYTES as u32 / BLOCK_BYTES as u32;
    Superblock {
        geometry: Geometry {
            block_bytes: 4096,
            block_log: 12,
            sector_bytes,
            inode_bytes: 512,
            inode_log: 9,
            inopb_log: 3,
            dir_block_bytes: 4096,
            dir_block_blocks: 1,
            data_blocks: blocks.into(),
            ag_blocks: blocks,
            ag_block_log: blocks.next_power_of_two().ilog2(),
            ag_count: 1,
            log_start: FsBlock(LOG_START.into()),
            log_blocks,
            log_sector_bytes: sector_bytes,
            log_ignored: false,
            log_stripe_bytes: stripe_bytes,
            root_ino: Ino(128),
            stripe_unit_blocks: 0,
            stripe_width_blocks: 0,
            inode_align_blocks: 4,
        },
        features: Features {
            incompat: IN_NREXT64,
            ..Features::default()
        },
        uuid: *b"the uuid of logs",
        meta_uuid: *b"that of metadata",
        label: Vec::new(),
        inodes: 0,
        free_inodes: 0,
        free_blocks: 0,
        most_inodes: 0,
        lsn: 0,
        has_quotas: false,
        internal_inodes: [0; 5],
        read_only: None,
    }
}

/// A disk in memory that takes whole sectors only.
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    pub(super) sector_bytes: usize,
}

impl Disk {
    fn new(superblock: &Superblock) -> Self {
        let geometry = &superblock.geometry;
        Self {
            bytes: vec![0; geometry.bytes(geometry.data_blocks) as usize],
            sector_bytes: geometry.sector_bytes as usize,
        }
    }
}

impl MetaIo for Disk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let addr = addr as usize;
        buf.copy_from_slice(&self.bytes[addr..addr + buf.len()]);
        Ok(())
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> Result<()> {
        let addr = addr as usize;
        assert!(
            addr.is_multiple_of(self.sector_bytes) && buf.len().is_multiple_of(self.sector_bytes)
        );
        self.bytes[addr..addr + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A checkpoint that is not in place.
pub(super) struct Outstanding {
    pub(super) lsn: u64,
    /// Buffers that it changed.
    pub(super) changed: Vec<usize>,
}

/// A disk, its log, and what all checkpoints together made of its buffers.
pub(super) struct World {
    pub(super) superblock: Superblock,
    pub(super) disk: Disk,
    pub(super) writer: LogWriter,
    /// Address and bytes of each buffer.
    pub(super) buffers: Vec<(usize, usize)>,
    pub(super) truth: Vec<u8>,
    pub(super) outstanding: VecDeque<Outstanding>,
    /// Blocks that were written to the log, and records that continued at its start or ended there.
    pub(super) written: u64,
    pub(super) wrapped: u32,
    pub(super) ended_at_end: u32,
    pub(super) rng: SmallRng,
    pub(super) what: String,
}

impl World {
    pub(super) fn new(sector: u32, stripe: u32, log_blocks: u32, seed: u64) -> Self {
        let what = format!("seed {seed}, sector {sector}, stripe {stripe}, {log_blocks} blocks");
        let superblock = superblock(sector, stripe, log_blocks);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = Disk::new(&superblock);
        let start = (LOG_START + log_blocks) as usize * BLOCK_BYTES as usize;
        let mut buffers = Vec::new();
        let mut at = start;
        loop {
            let len = *[512, 4096, 4096, 8192, 16384, 65536]
                .choose(&mut rng)
                .unwrap();
            let len = len.max(sector as usize);
            if at + len > disk.bytes.len() {
                break;
            }
            buffers.push((at, len));
            at += len;
        }
        let end = end(&mut disk, &superblock).unwrap();
        let mut world = Self {
            writer: LogWriter::new(&superblock, &end).unwrap(),
            truth: disk.bytes.clone(),
            superblock,
            disk,
            buffers,
            outstanding: VecDeque::new(),
            written: 0,
            wrapped: 0,
            ended_at_end: 0,
            rng,
            what,
        };
        world.clear_stale();
        world
    }

    pub(super) fn clear_stale(&mut self) {
        for write in self.writer.stale_writes() {
            self.disk.write_at(write.addr_bytes, &write.bytes).unwrap();
        }
    }

    /// Writes the sectors of records, but those in `lost`, counted over all of them.
    pub(super) fn write(&mut self, built: &BuiltCheckpoint, lost: &HashSet<usize>) {
        let sector = self.disk.sector_bytes;
        let log = self.writer.log.addr_bytes as usize;
        let end = log + self.writer.blocks() as usize * BB;
        let mut number = 0;
        for record in &built.records {
            self.wrapped += u32::from(record.writes.len() == 2);
            for write in &record.writes {
                let at = write.addr_bytes as usize;
                assert!(at >= log && at + write.bytes.len() <= end, "{}", self.what);
                self.ended_at_end += u32::from(at + write.bytes.len() == end);
                for (index, part) in write.bytes.chunks(sector).enumerate() {
                    if !lost.contains(&number) {
                        let addr = write.addr_bytes + (index * sector) as u64;
                        self.disk.write_at(addr, part).unwrap();
                    }
                    number += 1;
                }
            }
        }
        self.written += (number * sector / BB) as u64;
    }

    /// Changes some buffers, and returns the items that say so.
    pub(super) fn change(&mut self, count: usize) -> (Vec<usize>, Vec<LogItem>) {
        let mut numbers: Vec<usize> = (0..self.buffers.len()).collect();
        numbers.shuffle(&mut self.rng);
        numbers.truncate(count);
        let items = numbers.iter().map(|number| {
            let (at, len) = self.buffers[*number];
            let mut dirty = [0_u32; 16];
            let chunks = len / 128;
            for _ in 0..self.rng.random_range(1..=3) {
                let first = self.rng.random_range(0..chunks);
                let last = match self.rng.random_range(0..4) {
                    0 => chunks,
                    _ => chunks.min(first + self.rng.random_range(1..4)),
                };
                for chunk in first..last {
                    dirty[chunk / 32] |= 1 << (chunk % 32);
                    let start = at + chunk * 128;
                    self.rng.fill_bytes(&mut self.truth[start..start + 128]);
                    // Nothing that looks like metadata with a sequence number.
                    self.truth[start] = 0xee;
                    self.truth[start + 8] = 0xee;
                }
            }
            LogItem::buffer(at as u64, 0, &self.truth[at..at + len], dirty)
        });
        let items = items.collect();
        (numbers, items)
    }

    /// Writes the oldest checkpoints in place.
    pub(super) fn push(&mut self, count: usize) {
        for _ in 0..count.min(self.outstanding.len()) {
            let done = self.outstanding.pop_front().unwrap();
            for number in done.changed {
                let (at, len) = self.buffers[number];
                self.disk.bytes[at..at + len].copy_from_slice(&self.truth[at..at + len]);
            }
        }
    }

    pub(super) fn tail(&self) -> u64 {
        self.outstanding
            .front()
            .map_or(self.writer.lsn(), |oldest| oldest.lsn)
    }

    /// Moves the tail until a checkpoint of these items fits.
    pub(super) fn make_room(&mut self, items: &[LogItem]) {
        let blocks = self.writer.checkpoint_blocks(items);
        while blocks > self.writer.free_blocks(self.writer.written_tail()) {
            let before = self.tail();
            self.push(self.outstanding.len().div_ceil(2));
            // A record that says so.
            let built = self.writer.checkpoint(&[], self.tail());
            let built = built.unwrap_or_else(|error| panic!("{}: {error}", self.what));
            self.write(&built, &HashSet::new());
            assert!(self.tail() > before, "{}: no room", self.what);
        }
    }

    pub(super) fn checkpoint(&mut self) {
        let count = match self.rng.random_range(0..20) {
            0 => 0,
            1 => self.rng.random_range(20..60),
            _ => self.rng.random_range(1..8),
        };
        let most = self.writer.most_blocks();
        let before = self.truth.clone();
        let (changed, items) = self.change(count);
        if self.writer.checkpoint_blocks(&items) > most {
            self.truth = before;
            return;
        }
        self.make_room(&items);
        let (from, bound) = (self.writer.head, self.writer.checkpoint_blocks(&items));
        let built = self.writer.checkpoint(&items, self.tail()).unwrap();
        let bytes = built.records.iter().flat_map(|record| &record.writes);
        let blocks = bytes.map(|write| write.bytes.len()).sum::<usize>() / BB;
        let record = self.writer.log.record_bytes() / BB;
        let exact = built.records.len() == 1;
        assert!(blocks as u64 <= bound, "{}", self.what);
        assert!(bound - blocks as u64 <= 2 * record as u64, "{}", self.what);
        assert!(!exact || bound == blocks as u64, "{}", self.what);
        assert_eq!(built.lsn, from.lsn());
        assert_eq!(
            self.writer.head,
            from.after(blocks as u64, self.writer.blocks())
        );
        self.write(&built, &HashSet::new());
        let lsn = built.lsn;
        self.outstanding.push_back(Outstanding { lsn, changed });
    }

    /// The log says where it ends, and the disk after its replay is as the model.
    pub(super) fn check(&mut self) -> LogEnd {
        let end = end(&mut self.disk, &self.superblock);
        let end = end.unwrap_or_else(|error| panic!("{}: {error}", self.what));
        if end.state == LogState::Dirty {
            let replayed = replay(&mut self.disk, &self.superblock, &end, 1 << 30);
            let replayed = replayed.unwrap_or_else(|error| panic!("{}: {error}", self.what));
            replayed.overlay.write_in_place(&mut self.disk).unwrap();
        }
        let (start, _) = self.buffers[0];
        let differs = (start..self.truth.len()).find(|at| self.disk.bytes[*at] != self.truth[*at]);
        assert_eq!(differs, None, "{}", self.what);
        end
    }

    /// Sectors that are not written when the power goes: any of a group, or of the commit record,
    /// and all behind it.
    pub(super) fn lost(&mut self, built: &BuiltCheckpoint) -> HashSet<usize> {
        let sector_blocks = (self.disk.sector_bytes / BB) as u64;
        let sectors = |records: &[BuiltRecord]| {
            let blocks: u64 = records.iter().map(BuiltRecord::blocks).sum();
            (blocks / sector_blocks) as usize
        };
        let commit = std::slice::from_ref(built.commit().unwrap());
        let groups: Vec<usize> = built.groups().chain([commit]).map(sectors).collect();
        let all = sectors(&built.records);
        assert_eq!(groups.iter().sum::<usize>(), all);
        let cut = self.rng.random_range(0..groups.len());
        let from: usize = groups[..cut].iter().sum();
        let to = from + groups[cut];
        let mut lost: HashSet<usize> = (to..all).collect();
        match self.rng.random_range(0..4) {
            0 => lost.extend(self.rng.random_range(from..to)..to),
            1 => lost.extend((from..to).filter(|_| self.rng.random_ratio(1, 3))),
            2 => lost.extend([self.rng.random_range(from..to)]),
            _ => (),
        }
        lost
    }

    /// The power goes while a checkpoint is written: it counts if all of it is there. Then the disk
    /// is opened again.
    pub(super) fn cut(&mut self) {
        let count = self.rng.random_range(1..20);
        let before = self.truth.clone();
        let (_, items) = self.change(count);
        let blocks = self.writer.checkpoint_blocks(&items);
        if blocks > self.writer.most_blocks() {
            self.truth = before;
            return;
        }
        self.cut_at(&items, before);
    }

    /// The power goes while these items are written. `before` is the truth without them.
    pub(super) fn cut_at(&mut self, items: &[LogItem], before: Vec<u8>) {
        // Buffers that are pushed meanwhile must be from before it.
        let after = std::mem::replace(&mut self.truth, before);
        self.make_room(items);
        let built = self.writer.checkpoint(items, self.tail()).unwrap();
        let lost = self.lost(&built);
        self.write(&built, &lost);
        if lost.is_empty() {
            self.truth = after;
        }
        let end = self.check();
        self.outstanding.clear();
        if end.state == LogState::Dirty {
            mark_clean(&mut self.disk, &self.superblock, &end).unwrap();
        }
        self.open();
    }

    pub(super) fn open(&mut self) {
        let end = end(&mut self.disk, &self.superblock).unwrap();
        assert_eq!(end.state, LogState::Clean, "{}", self.what);
        self.writer = LogWriter::new(&self.superblock, &end).unwrap();
        self.clear_stale();
    }

    pub(super) fn unmount(&mut self) {
        self.push(usize::MAX);
        while self.writer.unmount_blocks() > self.writer.free_blocks(self.writer.written_tail()) {
            let built = self.writer.checkpoint(&[], self.writer.lsn()).unwrap();
            self.write(&built, &HashSet::new());
        }
        let built = self.writer.unmount().unwrap();
        self.write(&built, &HashSet::new());
        let end = end(&mut self.disk, &self.superblock).unwrap();
        assert_eq!(end.state, LogState::Clean, "{}", self.what);
        assert_eq!(end.lsn, self.writer.lsn(), "{}", self.what);
        self.open();
    }

    /// Uses the log until it was written this many times.
    pub(super) fn live(&mut self, rounds: u64) {
        while self.written < rounds * self.writer.blocks() {
            match self.rng.random_range(0..100) {
                0..2 => self.unmount(),
                2..5 => self.cut(),
                5..30 => {
                    let count = self.rng.random_range(0..=self.outstanding.len());
                    self.push(count);
                }
                30..33 => {
                    let lsn = self.writer.lsn();
                    let tail = self.tail();
                    let built = self.writer.checkpoint(&[], tail);
                    if let Ok(built) = built {
                        self.write(&built, &HashSet::new());
                        let changed = Vec::new();
                        self.outstanding.push_back(Outstanding { lsn, changed });
                    }
                    let end = self.check();
                    assert_eq!(end.lsn, self.writer.lsn(), "{}", self.what);
                }
                _ => self.checkpoint(),
            }
        }
        self.unmount();
        self.check();
    }
}

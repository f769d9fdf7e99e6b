//! The inode btrees: which inodes exist, and which of them are free.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use super::state::{At, Checker, Owned};
use super::table::InodeChunk;
use super::tree::{CheckTree, Walked};
use crate::error::Result;
use crate::xfs::format::ag::Agi;
use crate::xfs::format::btree::{
    CHUNK_INODES, FINOBT_MAGIC, HOLE_BIT_INODES, INOBT_MAGIC, InobtRecord, RMAP_OWNER_INOBT,
    RMAP_OWNER_INODES,
};
use crate::xfs::format::superblock;

const ALL: CheckTree<InobtRecord> = CheckTree {
    name: "inode btree",
    magic: INOBT_MAGIC,
    owner: RMAP_OWNER_INOBT,
    keys: |record| {
        let key = (record.startino.get().into(), 0, 0);
        (key, key)
    },
    key_bytes: size_of::<U32>(),
    node_key: |raw| Some((U32::ref_from_prefix(raw).ok()?.0.get().into(), 0, 0)),
    has_high_keys: false,
    is_lower_counted: false,
};

const WITH_FREE: CheckTree<InobtRecord> = CheckTree {
    name: "free inode btree",
    magic: FINOBT_MAGIC,
    ..ALL
};

/// A record as both forms of the btree have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ChunkRecord {
    start: u32,
    /// Inodes that have blocks.
    present: u64,
    free: u64,
    free_count: u32,
    /// As it stands; 0 without sparse chunks.
    count: u32,
}

fn present_of(holes: u16) -> u64 {
    let mut present = u64::MAX;
    for bit in 0..u16::BITS {
        if holes.wrapping_shr(bit) & 1 == 1 {
            let four = 0xf_u64.wrapping_shl(bit.saturating_mul(HOLE_BIT_INODES));
            present &= !four;
        }
    }
    present
}

impl Checker<'_> {
    /// Checks the inode btrees of a group, and takes its chunks.
    pub(super) fn check_inode_trees(&mut self, group: u32, agi: &Agi) -> Result<()> {
        let at = self.head_at(group, 2);
        let root = (agi.root.get(), agi.level.get());
        let all = self.walk_group_tree(&ALL, (group, at), root)?;
        if !all.is_whole {
            self.all_are_incomplete();
        }
        let records = self.take_chunks(group, at, agi, &all);
        let features = *self.fs.features();
        let has_counts = features.ro_compat & superblock::RO_INOBTCOUNT != 0;
        if has_counts && all.is_whole && agi.iblocks.get() != all.blocks {
            let (found, expected) = (agi.iblocks.get(), all.blocks);
            let detail = format!("AGI: inode btree of {found} blocks, expected {expected}");
            self.finding(at, detail);
        }
        if !features.finobt() {
            return Ok(());
        }
        let root = (agi.free_root.get(), agi.free_level.get());
        let free = self.walk_group_tree(&WITH_FREE, (group, at), root)?;
        if has_counts && free.is_whole && agi.fblocks.get() != free.blocks {
            let (found, expected) = (agi.fblocks.get(), free.blocks);
            let detail = format!("AGI: free inode btree of {found} blocks, expected {expected}");
            self.finding(at, detail);
        }
        if all.is_whole && free.is_whole {
            self.compare_chunks(group, &records, &free.records);
        }
        Ok(())
    }

    fn chunk_record(&self, record: &InobtRecord) -> ChunkRecord {
        let is_sparse = self.fs.features().sparse();
        let present = match is_sparse {
            true => present_of(record.holemask.get()),
            false => u64::MAX,
        };
        let free_count = match is_sparse {
            true => record.freecount.into(),
            // One number of 32 bits.
            false => {
                u32::from(record.holemask.get()).wrapping_shl(16)
                    | u32::from(record.count).wrapping_shl(8)
                    | u32::from(record.freecount)
            }
        };
        ChunkRecord {
            start: record.startino.get(),
            present,
            free: record.free.get(),
            free_count,
            count: if is_sparse { record.count.into() } else { 0 },
        }
    }

    /// Checks each record of the inode btree.
    fn take_chunks(
        &mut self,
        group: u32,
        at: At,
        agi: &Agi,
        all: &Walked<InobtRecord>,
    ) -> Vec<ChunkRecord> {
        let (mut count, mut free, mut last_end) = (0_u32, 0_u32, 0_u64);
        let mut taken = Vec::with_capacity(all.records.len());
        for raw in &all.records {
            let record = self.chunk_record(raw);
            let inodes = record.present.count_ones();
            count = count.saturating_add(inodes);
            free = free.saturating_add(record.free_count);
            self.check_chunk_record(group, &record);
            let start = u64::from(record.start);
            let overlaps = start < last_end;
            if overlaps {
                let at = self.chunk_at(group, record.start);
                let detail = format!("inode chunk {start}: overlaps the one before");
                self.finding(at, detail);
            }
            last_end = start.saturating_add(CHUNK_INODES.into());
            if !overlaps && self.own_chunk(group, &record) {
                self.inodes.push(InodeChunk {
                    group,
                    start: record.start,
                    present: record.present,
                    used: record.present & !record.free,
                });
            }
            taken.push(record);
        }
        if all.is_whole {
            if agi.count.get() != count {
                let found = agi.count.get();
                self.finding(at, format!("AGI: {found} inodes, expected {count}"));
            }
            if agi.freecount.get() != free {
                let found = agi.freecount.get();
                self.finding(at, format!("AGI: {found} free inodes, expected {free}"));
            }
        }
        taken
    }

    fn chunk_at(&self, group: u32, start: u32) -> At {
        let block = start.wrapping_shr(self.geometry.inopb_log);
        At::group(group, self.addr_of(group, block))
    }

    fn check_chunk_record(&mut self, group: u32, record: &ChunkRecord) {
        let at = self.chunk_at(group, record.start);
        let start = record.start;
        let is_sparse = self.fs.features().sparse();
        let inodes = record.present.count_ones();
        if is_sparse && record.count != inodes {
            let count = record.count;
            let detail = format!("inode chunk {start}: {count} inodes, expected {inodes}");
            self.finding(at, detail);
        }
        if record.free & !record.present != !record.present {
            let detail = format!("inode chunk {start}: inodes in its holes are not free");
            self.finding(at, detail);
        }
        let free = (record.free & record.present).count_ones();
        if record.free_count != free {
            let detail = format!(
                "inode chunk {start}: {} free inodes, expected {free}",
                record.free_count
            );
            self.finding(at, detail);
        }
        if inodes == 0 {
            self.finding(at, format!("inode chunk {start}: without inodes"));
        }
        let per_block = 1_u32.wrapping_shl(self.geometry.inopb_log);
        let block = start.wrapping_shr(self.geometry.inopb_log);
        // A chunk starts at a block, or several begin in one.
        let step = per_block.min(CHUNK_INODES);
        let align = self.geometry.inode_align_blocks.max(1);
        if start.checked_rem(step) != Some(0) || block.checked_rem(align) != Some(0) {
            let detail = format!("inode chunk {start}: not aligned to {align} blocks");
            self.finding(at, detail);
        }
    }

    /// Notes the owner of a chunk's blocks. Whether all of them exist.
    fn own_chunk(&mut self, group: u32, record: &ChunkRecord) -> bool {
        let per_block = 1_u32.wrapping_shl(self.geometry.inopb_log);
        let first = record.start.wrapping_shr(self.geometry.inopb_log);
        let blocks = CHUNK_INODES.checked_div(per_block).unwrap_or(1).max(1);
        let mut all_exist = true;
        for index in 0..blocks {
            let bit = index.saturating_mul(per_block);
            if blocks > 1 && record.present.wrapping_shr(bit) & 1 == 0 {
                continue;
            }
            let block = first.saturating_add(index);
            let place = self.geometry.fs_block(group, block);
            if let Err(why) = self.geometry.check_extent(place, 1) {
                let at = self.chunk_at(group, record.start);
                let detail = format!("inode chunk {}: block {block} is {why}", record.start);
                self.finding(at, detail);
                all_exist = false;
                break;
            }
            let owned = Owned {
                start: block,
                blocks: 1,
                owner: RMAP_OWNER_INODES,
                offset: 0,
            };
            // Chunks that share a block.
            let is_same = per_block > CHUNK_INODES
                && self
                    .group(group)
                    .is_some_and(|group| group.owned.last() == Some(&owned));
            if !is_same {
                self.own(group, owned);
            }
        }
        all_exist
    }

    /// The free inode btree has exactly the chunks with free inodes.
    fn compare_chunks(&mut self, group: u32, all: &[ChunkRecord], free: &[InobtRecord]) {
        let free: Vec<_> = free.iter().map(|raw| self.chunk_record(raw)).collect();
        let mut others = free.iter().peekable();
        for record in all {
            while let Some(other) = others.next_if(|other| other.start < record.start) {
                let at = self.chunk_at(group, other.start);
                let detail = format!(
                    "free inode btree: chunk {} is not in the inode btree",
                    other.start
                );
                self.finding(at, detail);
            }
            let other = others.next_if(|other| other.start == record.start);
            let has_free = record.free & record.present != 0;
            let at = self.chunk_at(group, record.start);
            let start = record.start;
            match other {
                Some(_) if !has_free => {
                    let detail = format!("free inode btree: chunk {start} has no free inode");
                    self.finding(at, detail);
                }
                Some(other) if other != record => {
                    let detail = format!(
                        "free inode btree: chunk {start} is {other:x?}, the inode btree has {record:x?}"
                    );
                    self.finding(at, detail);
                }
                None if has_free => {
                    let detail = format!("free inode btree: chunk {start} is missing");
                    self.finding(at, detail);
                }
                _ => {}
            }
        }
        for other in others {
            let at = self.chunk_at(group, other.start);
            let detail = format!(
                "free inode btree: chunk {} is not in the inode btree",
                other.start
            );
            self.finding(at, detail);
        }
    }
}

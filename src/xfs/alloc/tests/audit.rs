//! The free space of a filesystem is read without the code that changes it, and compared with a
//! model.

use std::collections::{BTreeMap, BTreeSet};

use zerocopy::FromBytes;

use super::super::super::buf::BufKind;
use super::super::super::format::ag::{Agf, AgflHeader};
use super::super::super::format::btree::{
    AllocRecord, BtreeShortHeader, RMAP_OWNER_AG, RMAP_OWNER_REFCOUNT, RefcountRecord, RmapRecord,
};
use super::super::rmap::RmapOwner;
use super::image::Volume;

/// A block of a group that has an owner, and at which offset: flags, and the block of the fork.
pub(super) type Mapping = (u32, RmapOwner);

/// The content of a group's structures.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) free: BTreeSet<u32>,
    /// Blocks of the free list and of the btrees that take theirs from it.
    own: BTreeSet<u32>,
    refcount_blocks: BTreeSet<u32>,
    pub(super) refcounts: Vec<(u32, u32, u32)>,
    rmaps: Vec<(u32, u32, RmapOwner)>,
    pub(super) levels: [u32; 3],
    /// Free blocks as the superblock counts them.
    pub(super) counted: u64,
}

const HEADER: usize = size_of::<BtreeShortHeader>();

/// Records of a btree, in order, and its blocks.
fn tree<R: FromBytes>(
    volume: &mut Volume,
    ag: u32,
    (root, levels): (u32, u32),
    key_bytes: usize,
    blocks: &mut BTreeSet<u32>,
) -> Vec<R> {
    let geometry = volume.state.superblock.geometry.clone();
    let len = geometry.block_bytes as usize;
    let mut level = vec![root];
    for height in (0..levels).rev() {
        let mut next = Vec::new();
        let mut records = Vec::new();
        let (each, most) = match height {
            0 => (size_of::<R>(), (len - HEADER) / size_of::<R>()),
            _ => (key_bytes, (len - HEADER) / (key_bytes + 4)),
        };
        for (index, block) in level.iter().enumerate() {
            assert!(blocks.insert(*block), "block {block} is twice in a btree");
            let raw = volume.bytes(geometry.ag_block_addr(ag, *block), len);
            let (header, _) = BtreeShortHeader::read_from_prefix(&raw).unwrap();
            let count = usize::from(header.numrecs.get());
            assert_eq!(u32::from(header.level.get()), height);
            assert!(count <= most, "{count} records of {most}");
            let sibling = |index: Option<usize>| {
                let block = index.and_then(|index| level.get(index));
                block.copied().unwrap_or(u32::MAX)
            };
            assert_eq!(header.leftsib.get(), sibling(index.checked_sub(1)));
            assert_eq!(header.rightsib.get(), sibling(Some(index + 1)));
            let is_root = height + 1 == levels;
            assert!(is_root || count >= most / 2, "{count} records of {most}");
            assert!(!is_root || height == 0 || count > 1);
            for index in 0..count {
                let at = HEADER + index * each;
                records.extend(
                    (height == 0).then(|| R::read_from_bytes(&raw[at..at + each]).unwrap()),
                );
                let at = HEADER + most * each + index * 4;
                let pointer = (height > 0).then(|| raw[at..at + 4].try_into().unwrap());
                next.extend(pointer.map(u32::from_be_bytes));
            }
        }
        if height == 0 {
            return records;
        }
        level = next;
    }
    unreachable!("a btree has a leaf");
}

fn free_extents(records: &[AllocRecord]) -> Vec<(u32, u32)> {
    let pair = |record: &AllocRecord| (record.startblock.get(), record.blockcount.get());
    records.iter().map(pair).collect()
}

impl Group {
    /// Reads the structures of a group, and compares them with each other.
    pub(super) fn read(volume: &mut Volume, ag: u32) -> Self {
        let (geometry, features) = {
            let superblock = &volume.state.superblock;
            (superblock.geometry.clone(), superblock.features)
        };
        let sector = geometry.sector_bytes as usize;
        let addr = volume.header(ag, BufKind::Agf);
        let (agf, _) = Agf::read_from_prefix(&volume.bytes(addr, sector)).unwrap();
        let mut group = Self {
            levels: [agf.bno_level.get(), agf.cnt_level.get(), 0],
            ..Self::default()
        };
        let root = (agf.bno_root.get(), agf.bno_level.get());
        let by_block: Vec<AllocRecord> = tree(volume, ag, root, 8, &mut group.own);
        let root = (agf.cnt_root.get(), agf.cnt_level.get());
        let by_length: Vec<AllocRecord> = tree(volume, ag, root, 8, &mut group.own);
        let by_block = free_extents(&by_block);
        let mut by_length = free_extents(&by_length);
        assert!(by_length.is_sorted_by_key(|(start, blocks)| (*blocks, *start)));
        let longest = by_length.last().map_or(0, |(_, blocks)| *blocks);
        by_length.sort_unstable();
        assert_eq!(by_block, by_length, "group {ag}: the btrees differ");
        for pair in by_block.windows(2) {
            assert!(pair[0].0 + pair[0].1 < pair[1].0, "not merged: {pair:?}");
        }
        for (start, blocks) in by_block {
            group.free.extend(start..start + blocks);
        }
        assert_eq!(agf.freeblks.get() as usize, group.free.len());
        assert_eq!(agf.longest.get(), longest, "group {ag}");
        let mut tree_blocks = group.own.len() - 2;
        if features.rmapbt() {
            let root = (agf.rmap_root.get(), agf.rmap_level.get());
            let before = group.own.len();
            let records: Vec<RmapRecord> = tree(volume, ag, root, 40, &mut group.own);
            group.levels[2] = agf.rmap_level.get();
            let blocks = group.own.len() - before;
            assert_eq!(agf.rmap_blocks.get() as usize, blocks);
            tree_blocks += blocks - 1;
            let owner = |record: &RmapRecord| RmapOwner {
                owner: record.owner.get(),
                offset: record.offset.get(),
            };
            let rmap = |record: &RmapRecord| {
                let (start, blocks) = (record.startblock.get(), record.blockcount.get());
                (start, blocks, owner(record))
            };
            group.rmaps = records.iter().map(rmap).collect();
        }
        assert_eq!(agf.btreeblks.get() as usize, tree_blocks, "group {ag}");
        if features.reflink() {
            let root = (agf.refcount_root.get(), agf.refcount_level.get());
            let records: Vec<RefcountRecord> =
                tree(volume, ag, root, 4, &mut group.refcount_blocks);
            let refcount = |record: &RefcountRecord| {
                let (start, blocks) = (record.startblock.get(), record.blockcount.get());
                (start, blocks, record.refcount.get())
            };
            group.refcounts = records.iter().map(refcount).collect();
            let blocks = group.refcount_blocks.len();
            assert_eq!(agf.refcount_blocks.get() as usize, blocks);
        }
        group.read_list(volume, ag, &agf);
        let counted = group.free.len() + tree_blocks + agf.flcount.get() as usize;
        group.counted = counted as u64;
        let uses = [&group.free, &group.own, &group.refcount_blocks];
        let all: BTreeSet<u32> = uses.iter().copied().flatten().copied().collect();
        let sum: usize = uses.iter().map(|set| set.len()).sum();
        assert_eq!(all.len(), sum, "group {ag}: blocks are used twice");
        group
    }

    fn read_list(&mut self, volume: &mut Volume, ag: u32, agf: &Agf) {
        let sector = volume.state.superblock.geometry.sector_bytes as usize;
        let addr = volume.header(ag, BufKind::Agfl);
        let raw = volume.bytes(addr, sector);
        let slots = (sector - size_of::<AgflHeader>()) / 4;
        let (first, last) = (agf.flfirst.get() as usize, agf.fllast.get() as usize);
        let count = agf.flcount.get() as usize;
        for index in 0..count {
            let slot = (first + index) % slots;
            assert_eq!(slot == last, index + 1 == count);
            let at = size_of::<AgflHeader>() + slot * 4;
            let block = u32::from_be_bytes(raw[at..at + 4].try_into().unwrap());
            assert!(self.own.insert(block), "list block {block} is used twice");
        }
    }

    /// Blocks that are neither free nor of a structure that changes.
    pub(super) fn others(&self, length: u32) -> BTreeSet<u32> {
        let uses = [&self.free, &self.own, &self.refcount_blocks];
        let mut others: BTreeSet<u32> = (0..length).collect();
        for block in uses.into_iter().flatten() {
            others.remove(block);
        }
        others
    }

    /// Owners that do not change, by block.
    pub(super) fn fixed_mappings(&self) -> Vec<Mapping> {
        let changing = [RMAP_OWNER_AG, RMAP_OWNER_REFCOUNT];
        let fixed = self.rmaps.iter();
        let fixed = fixed.filter(|(.., owner)| !changing.contains(&owner.owner));
        fixed
            .flat_map(|(start, blocks, owner)| {
                (0..*blocks).map(move |into| (start + into, owner.behind(into)))
            })
            .collect()
    }

    /// The reverse mappings are exactly these, and those of the group's own blocks.
    pub(super) fn compare_mappings(&self, mappings: &[Mapping]) {
        let mut by_owner: BTreeMap<u64, BTreeMap<u32, RmapOwner>> = BTreeMap::new();
        let own = self.own.iter().map(|block| (*block, RmapOwner::AG));
        let refcounts = self.refcount_blocks.iter();
        let refcounts = refcounts.map(|block| (*block, RmapOwner::REFCOUNTBT));
        for (block, owner) in mappings.iter().copied().chain(own).chain(refcounts) {
            let blocks = by_owner.entry(owner.owner).or_default();
            assert_eq!(blocks.insert(block, owner), None, "block {block} twice");
        }
        let mut expected: Vec<(u32, u32, RmapOwner)> = Vec::new();
        for blocks in by_owner.values() {
            let mut last: Option<(u32, u32, RmapOwner)> = None;
            for (block, owner) in blocks {
                match &mut last {
                    Some((start, blocks, first))
                        if *start + *blocks == *block && first.behind(*blocks) == *owner =>
                    {
                        *blocks += 1;
                    }
                    _ => expected.extend(last.replace((*block, 1, *owner))),
                }
            }
            expected.extend(last);
        }
        let key = |(start, _, owner): &(u32, u32, RmapOwner)| {
            (*start, owner.owner, owner.offset & !(1 << 61))
        };
        expected.sort_by_key(key);
        assert!(self.rmaps.is_sorted_by_key(key));
        for (found, expected) in self.rmaps.iter().zip(&expected) {
            assert_eq!(found, expected);
        }
        assert_eq!(self.rmaps.len(), expected.len());
    }
}

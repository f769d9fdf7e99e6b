//! A second reading of a tree, which shares no code with the engine: every rule of its structure is
//! asserted.

use std::collections::BTreeSet;

use zerocopy::{FromBytes, IntoBytes};

use super::super::super::buf::BufKind;
use super::super::super::format::ag::{Agf, Agi};
use super::super::super::format::btree::{
    BtreeShortHeader, LongHeader, RMAP_BMBT_BLOCK, RMAP_UNWRITTEN, RmapRecord,
};
use super::super::super::format::inode::CORE_BYTES;
use super::super::super::trans::Trans;
use super::super::{RecordOf, RootPlace, TreeHandle, TreeKind};
use super::TestSource;

/// Sizes of a kind of tree: header, record, key, pointer.
fn sizes(kind: BufKind) -> (usize, usize, usize, usize) {
    match kind {
        BufKind::Bnobt | BufKind::Cntbt => (56, 8, 8, 4),
        BufKind::Inobt | BufKind::Finobt => (56, 16, 4, 4),
        BufKind::Refcountbt => (56, 12, 4, 4),
        BufKind::Rmapbt => (56, 24, 40, 4),
        BufKind::Bmbt => (72, 16, 8, 8),
        _ => panic!("no tree"),
    }
}

struct Reading<'t, 'a> {
    t: &'t mut Trans<'a>,
    kind: BufKind,
    root: RootPlace,
    blocks: BTreeSet<u64>,
    /// Blocks of each level from left to right, with their siblings.
    levels: Vec<Vec<(u64, u64, u64)>>,
    records: Vec<Vec<u8>>,
    seed: u64,
}

fn number(raw: &[u8]) -> u64 {
    raw.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Low and high key of a record, as bytes.
fn keys_of_record(kind: BufKind, raw: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let low = match kind {
        BufKind::Bnobt | BufKind::Cntbt => raw[..8].to_vec(),
        BufKind::Bmbt => {
            let offset = (number(&raw[..8]) & !(1 << 63)) >> 9;
            offset.to_be_bytes().to_vec()
        }
        BufKind::Rmapbt => {
            let (record, _) = RmapRecord::ref_from_prefix(raw).unwrap();
            let offset = record.offset.get() & !RMAP_UNWRITTEN;
            let more = record.blockcount.get() - 1;
            let has_offset = record.owner.get() < 1 << 63 && offset & RMAP_BMBT_BLOCK == 0;
            let end = offset + if has_offset { u64::from(more) } else { 0 };
            let key = |block: u32, offset: u64| {
                let mut key = block.to_be_bytes().to_vec();
                key.extend(record.owner.as_bytes());
                key.extend(offset.to_be_bytes());
                key
            };
            let start = record.startblock.get();
            return (key(start, offset), key(start + more, end));
        }
        _ => raw[..4].to_vec(),
    };
    (low.clone(), low)
}

/// Bytes that compare as the keys do.
fn comparable(kind: BufKind, key: &[u8]) -> Vec<u8> {
    match kind {
        BufKind::Cntbt => [&key[4..8], &key[..4]].concat(),
        BufKind::Bnobt => key[..4].to_vec(),
        _ => key.to_vec(),
    }
}

impl Reading<'_, '_> {
    fn entries<'b>(&self, body: &'b [u8], level: usize, count: usize) -> Vec<(&'b [u8], u64)> {
        let (_, record, key, pointer) = sizes(self.kind);
        let each = if level == 0 { record } else { key + pointer };
        let most = body.len() / each;
        assert!(count <= most, "seed {}", self.seed);
        (0..count)
            .map(|index| {
                if level == 0 {
                    return (&body[index * record..][..record], 0);
                }
                let at = most * key + index * pointer;
                (&body[index * key..][..key], number(&body[at..][..pointer]))
            })
            .collect()
    }

    /// Reads all blocks below a block; its least and greatest key.
    fn block(&mut self, pointer: u64, level: usize, is_root: bool) -> Option<(Vec<u8>, Vec<u8>)> {
        assert!(
            self.blocks.insert(pointer),
            "a block twice, seed {}",
            self.seed
        );
        let place = self.t.place_of_block(0, pointer as u32);
        let bytes = self.t.read(place, self.kind).unwrap().to_vec();
        let (header, record, key, pointers) = sizes(self.kind);
        let (found_level, count, left, right, owner, blkno) = if pointers == 8 {
            let (header, _) = LongHeader::ref_from_prefix(&bytes).unwrap();
            let (left, right) = (header.leftsib.get(), header.rightsib.get());
            let owner = header.owner.get();
            (
                header.level,
                header.numrecs,
                left,
                right,
                owner,
                header.blkno,
            )
        } else {
            let (header, _) = BtreeShortHeader::ref_from_prefix(&bytes).unwrap();
            let wide = |block: u32| {
                if block == u32::MAX {
                    u64::MAX
                } else {
                    block.into()
                }
            };
            let (left, right) = (wide(header.leftsib.get()), wide(header.rightsib.get()));
            let owner = header.owner.get().into();
            (
                header.level,
                header.numrecs,
                left,
                right,
                owner,
                header.blkno,
            )
        };
        let seed = self.seed;
        assert_eq!(usize::from(found_level.get()), level, "seed {seed}");
        assert_eq!(blkno.get(), place.addr_bytes / 512, "seed {seed}");
        match self.root {
            RootPlace::Group(ag) => assert_eq!(owner, u64::from(ag), "seed {seed}"),
            RootPlace::Fork(ino, _) => assert_eq!(owner, ino.0, "seed {seed}"),
        }
        let count = usize::from(count.get());
        let each = if level == 0 { record } else { key + pointers };
        let least = match (is_root, level) {
            (false, _) => (bytes.len() - header) / each / 2,
            (true, 0) => 0,
            (true, _) => 2,
        };
        assert!(
            count >= least,
            "{count} entries at level {level}, seed {seed}"
        );
        if self.levels.len() <= level {
            self.levels.resize(level + 1, Vec::new());
        }
        self.levels[level].push((pointer, left, right));
        self.children(&bytes[header..], level, count)
    }

    fn children(&mut self, body: &[u8], level: usize, count: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (item, pointer) in self.entries(body, level, count) {
            let keys = if level == 0 {
                self.records.push(item.to_vec());
                keys_of_record(self.kind, item)
            } else {
                let keys = self.block(pointer, level - 1, false).unwrap();
                let expected = if self.kind == BufKind::Rmapbt {
                    [&keys.0[..], &keys.1[..]].concat()
                } else {
                    keys.0.clone()
                };
                assert_eq!(item, expected, "a key, seed {}", self.seed);
                keys
            };
            if let Some(before) = all.last() {
                let order = |key: &[u8]| comparable(self.kind, key);
                assert!(order(&before.0) < order(&keys.0), "seed {}", self.seed);
            }
            all.push(keys);
        }
        let low = all.first()?.0.clone();
        Some((low, all.into_iter().map(|(_, high)| high).max()?))
    }

    fn assert_siblings(&self) {
        for level in &self.levels {
            for (index, (_, left, right)) in level.iter().enumerate() {
                let at = |index: Option<usize>| {
                    let there = index.and_then(|index| level.get(index));
                    there.map_or(u64::MAX, |(block, ..)| *block)
                };
                assert_eq!(*left, at(index.checked_sub(1)), "seed {}", self.seed);
                assert_eq!(*right, at(index.checked_add(1)), "seed {}", self.seed);
            }
        }
    }

    /// The counters of a group are those of the tree.
    fn assert_counters(&mut self) {
        let blocks = self.blocks.len() as u32;
        let place = self.t.place_of_header(0, BufKind::Agf);
        let agf = self.t.read(place, BufKind::Agf).unwrap();
        let (agf, _) = Agf::read_from_prefix(agf).unwrap();
        let place = self.t.place_of_header(0, BufKind::Agi);
        let agi = self.t.read(place, BufKind::Agi).unwrap();
        let (agi, _) = Agi::read_from_prefix(agi).unwrap();
        let expected = match self.kind {
            BufKind::Bnobt | BufKind::Cntbt => agf.btreeblks.get() + 1,
            BufKind::Rmapbt => {
                assert_eq!(agf.btreeblks.get() + 1, blocks, "seed {}", self.seed);
                agf.rmap_blocks.get()
            }
            BufKind::Refcountbt => agf.refcount_blocks.get(),
            BufKind::Inobt => agi.iblocks.get(),
            _ => agi.fblocks.get(),
        };
        assert_eq!(blocks, expected, "seed {}", self.seed);
    }
}

/// Asserts every rule of a tree's structure, and that its blocks are those taken from `source` when
/// that has given blocks to no other. The records, in order.
pub(in crate::xfs) fn records_in<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    source: Option<&TestSource>,
    seed: u64,
) -> Vec<RecordOf<T>> {
    let kind = T::Kind::SHAPE.kind;
    let mut reading = Reading {
        t,
        kind,
        root: tree.root(),
        blocks: BTreeSet::new(),
        levels: Vec::new(),
        records: Vec::new(),
        seed,
    };
    match tree.root() {
        RootPlace::Group(ag) => {
            let root = super::super::root::group_root(reading.t, ag, kind).unwrap();
            let level = root.levels as usize - 1;
            reading.block(root.ag_block.into(), level, true);
            reading.assert_counters();
        }
        RootPlace::Fork(ino, _) => {
            let raw = reading.t.inode(ino).unwrap().to_vec();
            let fork = &raw[CORE_BYTES..CORE_BYTES + 24 * 8];
            let level = number(&fork[..2]) as usize;
            let count = number(&fork[2..4]) as usize;
            assert!(level > 0 && count > 0, "seed {seed}");
            // The only child of the root may be nearly empty.
            if count == 1 {
                let pointer = number(&fork[4 + (fork.len() - 4) / 16 * 8..][..8]);
                reading.block(pointer, level - 1, true);
            } else {
                reading.children(&fork[4..], level, count);
            }
        }
    }
    reading.assert_siblings();
    if let Some(source) = source {
        let used: BTreeSet<u64> = source.used.iter().map(|block| (*block).into()).collect();
        assert_eq!(reading.blocks, used, "seed {seed}");
    }
    reading
        .records
        .iter()
        .map(|raw| FromBytes::read_from_bytes(raw).unwrap())
        .collect()
}

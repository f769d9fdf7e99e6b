//! Random changes of every kind of tree, compared with a model and with a second reading of the
//! blocks; lack of space at every block, transactions that are dropped, damaged blocks.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::Immutable;

use super::super::format::btree::{
    AllocRecord, BmbtRecord, InobtRecord, RMAP_ATTR_FORK, RMAP_BMBT_BLOCK, RMAP_OWNER_AG,
    RMAP_UNWRITTEN, RefcountRecord, RmapKey, RmapRecord,
};
use super::*;
use crate::error::ErrorKind;

mod rig;
mod structure;

pub(in super::super) use rig::{TestFs, TestSource, seed};
pub(in super::super) use structure::records_in;

/// What the tests need of a kind of tree.
trait Sample: TreeHandle<Kind: TreeKind<Record: PartialEqBytes>> {
    fn tree(fs: &mut TestFs) -> Self;
    fn any(rng: &mut StdRng) -> RecordOf<Self>;
    fn key(record: &RecordOf<Self>) -> KeyOf<Self>;
    /// Another record with the same key.
    fn altered(record: &RecordOf<Self>, rng: &mut StdRng) -> RecordOf<Self>;
}

trait PartialEqBytes: IntoBytes + Immutable {
    fn equals(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<T: IntoBytes + Immutable> PartialEqBytes for T {}

macro_rules! sample {
    ($kind:ident, $record:ident, $any:expr, $key:expr, $altered:expr) => {
        impl Sample for AgTree<$kind> {
            fn tree(fs: &mut TestFs) -> Self {
                fs.plant_group_tree::<$kind>();
                AgTree::new(0)
            }

            fn any(rng: &mut StdRng) -> $record {
                let any: fn(&mut StdRng) -> $record = $any;
                any(rng)
            }

            fn key(record: &$record) -> KeyOf<Self> {
                let key: fn(&$record) -> KeyOf<Self> = $key;
                key(record)
            }

            fn altered(record: &$record, rng: &mut StdRng) -> $record {
                let altered: fn(&mut $record, &mut StdRng) = $altered;
                let mut record = *record;
                altered(&mut record, rng);
                record
            }
        }
    };
}

fn any_free(rng: &mut StdRng) -> AllocRecord {
    AllocRecord {
        startblock: rng.random_range(0..60_000_u32).into(),
        blockcount: rng.random_range(1..300_u32).into(),
    }
}

sample!(
    Bnobt,
    AllocRecord,
    any_free,
    |record| record.startblock.get(),
    |record, rng| record.blockcount = rng.random_range(1..300_u32).into()
);
sample!(
    Cntbt,
    AllocRecord,
    any_free,
    |record| (record.blockcount.get(), record.startblock.get()),
    |_, _| {}
);

fn any_chunk(rng: &mut StdRng) -> InobtRecord {
    InobtRecord {
        startino: (rng.random_range(0..40_000_u32) * 64).into(),
        holemask: 0.into(),
        count: 64,
        freecount: rng.random_range(0..64),
        free: rng.random::<u64>().into(),
    }
}

sample!(
    Inobt,
    InobtRecord,
    any_chunk,
    |record| record.startino.get(),
    |record, rng| record.free = rng.random::<u64>().into()
);
sample!(
    Finobt,
    InobtRecord,
    any_chunk,
    |record| record.startino.get(),
    |record, rng| record.free = rng.random::<u64>().into()
);
sample!(
    Refcountbt,
    RefcountRecord,
    |rng| RefcountRecord {
        startblock: (rng.random_range(0..30_000_u32) | (u32::from(rng.random::<bool>()) << 31))
            .into(),
        blockcount: 1.into(),
        refcount: 2.into(),
    },
    |record| record.startblock.get(),
    |record, rng| record.refcount = rng.random_range(2..9_u32).into()
);
sample!(
    Rmapbt,
    RmapRecord,
    |rng| {
        let flags = match rng.random_range(0..6) {
            0 => RMAP_ATTR_FORK,
            1 => RMAP_UNWRITTEN,
            2 => RMAP_BMBT_BLOCK,
            _ => 0,
        };
        let offset = if flags & RMAP_BMBT_BLOCK == 0 {
            rng.random_range(0..50_u64)
        } else {
            0
        };
        let (owner, offset) = match rng.random_range(0..4) {
            0 => (RMAP_OWNER_AG, 0),
            _ => (rng.random_range(128..140), offset | flags),
        };
        RmapRecord {
            startblock: rng.random_range(0..9_000_u32).into(),
            blockcount: rng.random_range(1..400_u32).into(),
            owner: owner.into(),
            offset: offset.into(),
        }
    },
    |record| RmapKey {
        startblock: record.startblock,
        owner: record.owner,
        offset: record.offset,
    },
    |record, rng| {
        record.blockcount = rng.random_range(1..400_u32).into();
        if record.owner.get() < 1 << 63 && record.offset.get() & RMAP_BMBT_BLOCK == 0 {
            record.offset = (record.offset.get() ^ RMAP_UNWRITTEN).into();
        }
    }
);

impl Sample for ForkTree {
    fn tree(fs: &mut TestFs) -> Self {
        fs.fork_tree()
    }

    fn any(rng: &mut StdRng) -> BmbtRecord {
        let offset = rng.random_range(0..1_u64 << 40);
        BmbtRecord::new(offset, rng.random_range(100..900), 1, rng.random())
    }

    fn key(record: &BmbtRecord) -> u64 {
        record.offset_blocks()
    }

    fn altered(record: &BmbtRecord, rng: &mut StdRng) -> BmbtRecord {
        let blocks = rng.random_range(1..99);
        BmbtRecord::new(record.offset_blocks(), 77, blocks, rng.random())
    }
}

type Model<T> = BTreeMap<KeyOrder, RecordOf<T>>;

/// The records of a tree that was just made.
fn start<T: Sample>(fs: &mut TestFs, tree: &T) -> Model<T> {
    let all = fs.read(|t| records_in(t, tree, None, 0));
    all.into_iter()
        .map(|record| (order::<T>(T::key(&record)), record))
        .collect()
}

/// One random change; in the model only when it succeeds. `growing` out of 100 are insertions.
fn step<T: Sample>(
    t: &mut Trans<'_>,
    tree: &T,
    model: &mut Model<T>,
    source: &mut TestSource,
    rng: &mut StdRng,
    growing: u32,
) -> Result<()> {
    let record = T::any(rng);
    let key = order::<T>(T::key(&record));
    if rng.random_range(0..100) < growing {
        if let Entry::Vacant(vacant) = model.entry(key) {
            insert(t, tree, &record, source)?;
            vacant.insert(record);
        }
        return Ok(());
    }
    let next = model.range(key..).next().or_else(|| model.iter().next());
    let Some((key, old)) = next.map(|(key, record)| (*key, *record)) else {
        return Ok(());
    };
    // The extent tree of a fork is never empty.
    if rng.random_range(0..3) == 0 || (T::Kind::SHAPE.is_long() && model.len() == 1) {
        let new = T::altered(&old, rng);
        update(t, tree, T::key(&old), &new)?;
        model.insert(key, new);
    } else {
        remove(t, tree, T::key(&old), source)?;
        model.remove(&key);
    }
    Ok(())
}

fn assert_lookups<T: Sample>(
    t: &mut Trans<'_>,
    tree: &T,
    model: &Model<T>,
    rng: &mut StdRng,
    seed: u64,
) {
    for _ in 0..20 {
        let probe = T::any(rng);
        let (key, at) = (T::key(&probe), order::<T>(T::key(&probe)));
        let same = |found: Option<RecordOf<T>>, expected: Option<(&KeyOrder, &RecordOf<T>)>| {
            let same = match (&found, expected) {
                (Some(found), Some((_, expected))) => found.equals(expected),
                (None, None) => true,
                _ => false,
            };
            assert!(same, "seed {seed}");
        };
        same(find(t, tree, key).unwrap(), model.get_key_value(&at));
        same(
            find_le(t, tree, key).unwrap(),
            model.range(..=at).next_back(),
        );
        same(
            find_lt(t, tree, key).unwrap(),
            model.range(..at).next_back(),
        );
        same(find_ge(t, tree, key).unwrap(), model.range(at..).next());
        let mut above = model.range(at..).filter(|(key, _)| **key != at);
        same(find_gt(t, tree, key).unwrap(), above.next());
        let mut expected = model.range(at..).map(|(_, record)| record);
        let mut left = 60;
        let end = walk(t, tree, key, |record| {
            let is_next = expected.next().is_some_and(|next| next.equals(record));
            left -= 1;
            match (is_next, left) {
                (false, _) => ControlFlow::Break(false),
                (true, 0) => ControlFlow::Break(true),
                _ => ControlFlow::Continue(()),
            }
        });
        assert_ne!(end.unwrap(), Some(false), "seed {seed}");
    }
}

fn assert_same<T: Sample>(
    fs: &mut TestFs,
    tree: &T,
    model: &Model<T>,
    source: &TestSource,
    seed: u64,
) {
    let found = fs.read(|t| records_in(t, tree, Some(source), seed));
    assert_eq!(found.len(), model.len(), "seed {seed}");
    for (found, expected) in found.iter().zip(model.values()) {
        assert!(found.equals(expected), "seed {seed}");
    }
}

fn changes_equal_the_model<T: Sample>(block_log: u32, operations: u32) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fs = TestFs::new(block_log);
    let tree = T::tree(&mut fs);
    let mut source = fs.source();
    let mut model = start::<T>(&mut fs, &tree);
    for round in 0..operations / 100 {
        // The tree grows, and is emptied at last.
        let growing = match (round * 100).checked_div(operations / 100) {
            Some(0..60) => 70,
            Some(60..70) => 50,
            _ => 5,
        };
        let (mut new, mut taken) = (model.clone(), source.clone());
        if rng.random_range(0..4) == 0 {
            taken.fail_after(rng.random_range(0..3));
        }
        let is_kept = rng.random_range(0..4) != 0;
        let done = fs.transaction(|t| {
            for _ in 0..100 {
                step(t, &tree, &mut new, &mut taken, &mut rng, growing)?;
            }
            Ok(is_kept)
        });
        match done {
            Ok(true) => (model, source) = (new, taken),
            Ok(false) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfMemory, "seed {seed}: {error}"),
        }
        source.fail_after(u32::MAX);
        assert_same(&mut fs, &tree, &model, &source, seed);
        fs.read(|t| assert_lookups(t, &tree, &model, &mut rng, seed));
    }
    let least = usize::from(T::Kind::SHAPE.is_long());
    while model.len() > least
        && let Some((_, record)) = model.pop_first()
    {
        let key = T::key(&record);
        fs.transaction(|t| remove(t, &tree, key, &mut source).map(|()| true))
            .unwrap();
    }
    assert_same(&mut fs, &tree, &model, &source, seed);
}

#[test]
fn free_space_by_block() {
    changes_equal_the_model::<AgTree<Bnobt>>(9, 20_000);
    changes_equal_the_model::<AgTree<Bnobt>>(10, 5_000);
}

#[test]
fn free_space_by_length() {
    changes_equal_the_model::<AgTree<Cntbt>>(9, 20_000);
}

#[test]
fn inode_chunks() {
    changes_equal_the_model::<AgTree<Inobt>>(9, 10_000);
    changes_equal_the_model::<AgTree<Finobt>>(10, 5_000);
}

#[test]
fn reference_counts() {
    changes_equal_the_model::<AgTree<Refcountbt>>(9, 10_000);
}

#[test]
fn owners_with_overlaps() {
    changes_equal_the_model::<AgTree<Rmapbt>>(9, 20_000);
}

#[test]
fn extents_of_a_fork() {
    changes_equal_the_model::<ForkTree>(9, 20_000);
    changes_equal_the_model::<ForkTree>(10, 10_000);
}

#[test]
fn appended_records_fill_their_blocks() {
    let mut fs = TestFs::new(10);
    let tree = ForkTree::tree(&mut fs);
    let mut source = fs.source();
    let before = source.used();
    fs.transaction(|t| {
        for at in 1..=5_000_u64 {
            insert(
                t,
                &tree,
                &BmbtRecord::new(at * 2, 100, 1, false),
                &mut source,
            )?;
        }
        Ok(true)
    })
    .unwrap();
    let leaf = (1024 - 72) / 16;
    let blocks = source.used() - before;
    assert!(blocks < 5_000 / leaf * 110 / 100, "{blocks} blocks");
}

/// All owners of a range of blocks are found, in order, and no others.
#[test]
fn owners_of_a_range() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fs = TestFs::new(9);
    let tree = AgTree::<Rmapbt>::tree(&mut fs);
    let mut source = fs.source();
    let mut model = Model::<AgTree<Rmapbt>>::new();
    fs.transaction(|t| {
        for _ in 0..3000 {
            step(t, &tree, &mut model, &mut source, &mut rng, 80)?;
        }
        Ok(true)
    })
    .unwrap();
    fs.read(|t| {
        for _ in 0..200 {
            let start = rng.random_range(0..9_500);
            let range = start..start + rng.random_range(1..200);
            let mut found = Vec::new();
            walk_overlapping(t, &tree, &range, |record| {
                found.push(*record);
                ControlFlow::<()>::Continue(())
            })
            .unwrap();
            let mut expected = model.values().filter(|record| {
                let first = record.startblock.get();
                first < range.end && first + record.blockcount.get() > range.start
            });
            for found in &found {
                assert!(expected.next().unwrap().equals(found), "seed {seed}");
            }
            assert!(expected.next().is_none(), "seed {seed}");
        }
    });
}

/// A record that is missing, twice there, or would go past its neighbour is an error.
#[test]
fn contradictions_are_errors() {
    let mut fs = TestFs::new(9);
    let tree = AgTree::<Bnobt>::tree(&mut fs);
    let mut source = fs.source();
    let free = |start: u32| AllocRecord {
        startblock: start.into(),
        blockcount: 1.into(),
    };
    let mut failed = |change: &mut dyn FnMut(&mut Trans<'_>, &mut TestSource) -> Result<()>| {
        let done = fs.transaction(|t| {
            for start in 0..500 {
                insert(t, &tree, &free(start * 10), &mut source)?;
            }
            change(t, &mut source).map(|()| true)
        });
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Corrupt);
        source = fs.source();
    };
    failed(&mut |t, source| insert(t, &tree, &free(50), source));
    failed(&mut |t, source| remove(t, &tree, 51, source));
    failed(&mut |t, _| update(t, &tree, 51, &free(52)));
    failed(&mut |t, _| update(t, &tree, 50, &free(60)));
    failed(&mut |t, _| update(t, &tree, 50, &free(39)));
    failed(&mut |t, source| {
        update(t, &tree, 50, &free(59))?;
        update(t, &tree, 59, &free(41))?;
        // That was right; a block that is in use is not.
        source.hand_out_used();
        (0..500).try_for_each(|start| insert(t, &tree, &free(start * 10 + 5), source))
    });
}

fn damage_is_an_error<T: Sample>() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..40 {
        let mut fs = TestFs::new(9);
        let tree = T::tree(&mut fs);
        let mut source = fs.source();
        let mut model = start::<T>(&mut fs, &tree);
        fs.transaction(|t| {
            for _ in 0..1500 {
                step(t, &tree, &mut model, &mut source, &mut rng, 85)?;
            }
            Ok(true)
        })
        .unwrap();
        for _ in 0..rng.random_range(1..4) {
            fs.damage(T::Kind::SHAPE.kind, &mut rng);
        }
        for _ in 0..200 {
            // Any result is right, as long as there is one.
            let done = fs.transaction(|t| {
                step(t, &tree, &mut model, &mut source, &mut rng, 40)?;
                let probe = T::key(&T::any(&mut rng));
                find_le(t, &tree, probe)?;
                walk(t, &tree, probe, |_| ControlFlow::<()>::Continue(()))?;
                Ok(true)
            });
            if let Err(error) = done {
                let is_right = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::OutOfMemory);
                assert!(is_right, "seed {seed}: {error}");
            }
        }
    }
}

#[test]
fn damaged_blocks_are_errors() {
    damage_is_an_error::<AgTree<Bnobt>>();
    damage_is_an_error::<AgTree<Rmapbt>>();
    damage_is_an_error::<ForkTree>();
}

/// The extents of both forks go into a btree and come back.
#[test]
fn forks_become_trees_and_lists_again() {
    let mut fs = TestFs::new(9);
    let data = ForkTree::tree(&mut fs);
    let attributes = fs.fork_tree_of(ForkKind::Attribute);
    let mut source = fs.source();
    for tree in [data, attributes] {
        let add = |t: &mut Trans<'_>, source: &mut TestSource| {
            for at in 1..200 {
                insert(t, &tree, &BmbtRecord::new(at, 100, 1, false), source)?;
            }
            Ok(true)
        };
        fs.transaction(|t| add(t, &mut source)).unwrap();
        fs.transaction(|t| {
            assert!(uproot(t, &tree, &mut source)?.is_none());
            for at in 3..200 {
                remove(t, &tree, at, &mut source)?;
            }
            let records = uproot(t, &tree, &mut source)?.unwrap();
            assert_eq!(records.len(), 3);
            assert_eq!(records[2].offset_blocks(), 2);
            Ok(true)
        })
        .unwrap();
    }
    assert_eq!(source.used(), 0);
}

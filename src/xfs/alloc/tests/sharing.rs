//! Files that share blocks give them back one after the other.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::super::format::btree::RefcountRecord;
use super::super::super::geometry::{FsBlock, Ino};
use super::super::super::trans::Trans;
use super::super::super::tree::{self, AgTree, ForkKind, Refcountbt};
use super::super::rmap::RmapOwner;
use super::super::{
    AllocRequest, SpaceSource, allocate, free, last_freeable, map_owner, unmap_owner,
};
use super::audit::Group;
use super::image::Volume;

/// Offsets by block of the group, for each file.
type Files = Vec<BTreeMap<u32, u64>>;

const FILES: usize = 5;

fn owner(file: usize, offset: u64) -> RmapOwner {
    RmapOwner::fork(Ino(128 + file as u64), ForkKind::Data, offset, false)
}

/// The refcount records that the files need.
fn refcounts(files: &Files) -> Vec<(u32, u32, u32)> {
    let mut owners: BTreeMap<u32, u32> = BTreeMap::new();
    for block in files.iter().flat_map(BTreeMap::keys) {
        *owners.entry(*block).or_default() += 1;
    }
    let mut records: Vec<(u32, u32, u32)> = Vec::new();
    for (block, owners) in owners.into_iter().filter(|(_, owners)| *owners > 1) {
        match records.last_mut() {
            Some((start, blocks, same)) if *start + *blocks == block && *same == owners => {
                *blocks += 1;
            }
            _ => records.push((block, 1, owners)),
        }
    }
    records
}

/// Makes the refcount btree what the files need: sharing itself is not part of the allocator.
fn set_refcounts(t: &mut Trans<'_>, files: &Files) {
    let tree_of = AgTree::<Refcountbt>::new(0);
    let mut old: Vec<u32> = Vec::new();
    tree::walk(t, &tree_of, 0, |record| {
        old.push(record.startblock.get());
        ControlFlow::<()>::Continue(())
    })
    .unwrap();
    let source = &mut SpaceSource::refcountbt(t, 0);
    for start in old {
        tree::remove(t, &tree_of, start, source).unwrap();
    }
    for (start, blocks, owners) in refcounts(files) {
        let record = RefcountRecord {
            startblock: start.into(),
            blockcount: blocks.into(),
            refcount: owners.into(),
        };
        tree::insert(t, &tree_of, &record, source).unwrap();
    }
}

/// A random run of blocks of a file that continue each other, on disk and in the file.
fn any_run(files: &Files, file: usize, rng: &mut SmallRng) -> Option<(u32, u32, u64)> {
    let (last, _) = files[file].last_key_value()?;
    let from = rng.random_range(0..=*last);
    let (start, offset) = files[file].range(from..).next()?;
    let (start, offset) = (*start, *offset);
    let most = rng.random_range(1..40_u32);
    let follows =
        |into: &u32| files[file].get(&(start + into)) == Some(&(offset + u64::from(*into)));
    let blocks = (0..most).take_while(follows).count() as u32;
    Some((start, blocks, offset))
}

fn check(volume: &mut Volume, fixed: &Group, files: &Files) {
    let group = Group::read(volume, 0);
    assert_eq!(group.refcounts, refcounts(files));
    let mut mappings = fixed.fixed_mappings();
    for (file, blocks) in files.iter().enumerate() {
        mappings.extend(
            blocks
                .iter()
                .map(|(block, offset)| (*block, owner(file, *offset))),
        );
    }
    group.compare_mappings(&mappings);
    let length = volume.state.superblock.geometry.ag_length(0);
    let mut used = fixed.others(length);
    used.extend(files.iter().flat_map(BTreeMap::keys));
    assert_eq!(group.others(length), used);
}

/// Another file gets blocks of a file.
fn share(t: &mut Trans<'_>, files: &mut Files, rng: &mut SmallRng) {
    let (from, to) = (rng.random_range(0..FILES), rng.random_range(0..FILES));
    let Some((start, blocks, offset)) = any_run(files, from, rng) else {
        return;
    };
    // Sometimes at an offset where the records of both sides merge.
    let offset = offset + rng.random_range(0..2_u64) * 1000;
    let is_there = |into: u32| files[to].contains_key(&(start + into));
    if (0..blocks).any(is_there) {
        return;
    }
    map_owner(t, FsBlock(start.into()), blocks, owner(to, offset)).unwrap();
    files[to].extend((0..blocks).map(|into| (start + into, offset + u64::from(into))));
    set_refcounts(t, files);
}

/// Blocks get another offset in their file.
fn shift(t: &mut Trans<'_>, files: &mut Files, rng: &mut SmallRng) {
    let file = rng.random_range(0..FILES);
    let Some((start, blocks, offset)) = any_run(files, file, rng) else {
        return;
    };
    let first = FsBlock(start.into());
    unmap_owner(t, first, blocks, owner(file, offset)).unwrap();
    map_owner(t, first, blocks, owner(file, offset + 7)).unwrap();
    let moved = (0..blocks).map(|into| (start + into, offset + 7 + u64::from(into)));
    files[file].extend(moved);
}

#[test]
fn shared_blocks_are_free_when_the_last_owner_is_gone() {
    let seed = std::env::var("XTENT_SEED").ok();
    let seed = seed.map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let arguments = "-b size=1024 -d agcount=1 -m rmapbt=1,reflink=1";
    let Some(mut volume) = Volume::make(32, arguments) else {
        return;
    };
    let mut rng = SmallRng::seed_from_u64(seed);
    let fixed = Group::read(&mut volume, 0);
    let mut files: Files = vec![BTreeMap::new(); FILES];
    let mut offset = 0;
    for step in 0..600 {
        let before = files.clone();
        let mut t = volume.begin();
        match rng.random_range(0..6) {
            0 => {
                let most = rng.random_range(1..300);
                let request = AllocRequest::new(owner(0, offset), 1, most);
                let found = allocate(&mut t, &request).unwrap();
                let blocks = 0..u64::from(found.blocks);
                files[0].extend(blocks.map(|into| ((found.start.0 + into) as u32, offset + into)));
                offset += u64::from(found.blocks);
            }
            1..4 => share(&mut t, &mut files, &mut rng),
            4 => {
                let file = rng.random_range(0..FILES);
                if let Some((start, blocks, offset)) = any_run(&files, file, &mut rng) {
                    let first = FsBlock(start.into());
                    let part = last_freeable(&mut t, first, blocks, 2).unwrap();
                    assert!((1..=blocks).contains(&part));
                    let skipped = blocks - part;
                    let (start, offset) = (start + skipped, offset + u64::from(skipped));
                    free(&mut t, FsBlock(start.into()), part, owner(file, offset)).unwrap();
                    files[file].retain(|block, _| !(start..start + part).contains(block));
                }
            }
            _ => shift(&mut t, &mut files, &mut rng),
        }
        if rng.random_ratio(1, 8) {
            drop(t);
            files = before;
        } else {
            t.commit();
            volume.force();
        }
        if step % 20 == 0 {
            check(&mut volume, &fixed, &files);
        }
    }
    for file in 0..FILES {
        while let Some((start, blocks, offset)) = any_run(&files, file, &mut rng) {
            let mut t = volume.begin();
            free(&mut t, FsBlock(start.into()), blocks, owner(file, offset)).unwrap();
            t.commit();
            files[file].retain(|block, _| !(start..start + blocks).contains(block));
        }
        check(&mut volume, &fixed, &files);
    }
    volume.write_in_place();
    let (is_clean, text) = volume.repair();
    assert!(is_clean, "{text}");
}

//! Random changes of files that mkfs.xfs made, compared with a model of each block, with
//! transactions that are dropped and disks that are full; xfs_repair reads the results.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::alloc::{AllocRequest, allocate};
use super::super::geometry::FsBlock;
use super::super::trans::is_only_busy;
use super::super::tree::ForkKind;
use super::super::tree::tests::seed;
use super::unmap::Unmapped;
use super::*;
use crate::error::ErrorKind;

mod image;

use image::ProtoImage;

/// Blocks of the file that are used, most of the time.
const FILE_BLOCKS: u64 = 3000;

/// Each allocated block of a fork, and whether it is unwritten.
type BlockModel = BTreeMap<u64, (FsBlock, bool)>;

fn extents_of(t: &mut Trans<'_>, id: ForkId) -> Vec<Extent> {
    let mut all: Vec<Extent> = Vec::new();
    while let Some(extent) = next_extent(t, id, all.last().map_or(0, Extent::end_blocks)).unwrap() {
        all.push(extent);
    }
    all
}

fn blocks_in(extents: &[Extent]) -> BlockModel {
    let each = extents.iter().flat_map(|extent| {
        (extent.offset_blocks..extent.end_blocks())
            .map(|offset| (offset, (extent.block_at(offset), extent.unwritten)))
    });
    each.collect()
}

/// One random change of a file; in the model only when it succeeds.
fn step(
    t: &mut Trans<'_>,
    id: ForkId,
    model: &mut BlockModel,
    rng: &mut StdRng,
    growing: u32,
) -> Result<()> {
    let start = rng.random_range(0..FILE_BLOCKS);
    let range = start..start + rng.random_range(1..60);
    if rng.random_range(0..100) < growing {
        return grow(t, id, model, rng, start);
    }
    match rng.random_range(0..8) {
        0..3 => {
            let unwritten = rng.random();
            let rest = convert(t, id, range.clone(), unwritten, rng.random_range(1..4))?;
            for (_, block) in model.range_mut(range.start..rest.start) {
                block.1 = unwritten;
            }
        }
        3..6 => {
            let before = model.range(range.clone()).count() as u64;
            let done = unmap(t, id, range.clone(), rng.random_range(1..4))?;
            model.retain(|offset, _| !(done.rest.end..range.end).contains(offset));
            assert_eq!(before - model.range(range).count() as u64, done.blocks);
        }
        6 => {
            while !unmap(t, id, range.clone(), 9)?.rest.is_empty() {}
            let by = range.end - range.start;
            let mut next = Some(range.end);
            while let Some(from) = next {
                next = collapse(t, id, from, by, rng.random_range(1..99))?;
            }
            let old = std::mem::take(model);
            let kept = old
                .into_iter()
                .filter(|(offset, _)| !range.contains(offset));
            let shift = |offset| {
                if offset < range.start {
                    offset
                } else {
                    offset - by
                }
            };
            *model = kept.map(|(offset, block)| (shift(offset), block)).collect();
        }
        _ => {
            split_at(t, id, start)?;
            let by = rng.random_range(1..60);
            let mut next = Some(u64::MAX);
            while let Some(below) = next {
                next = make_room(t, id, (start, below), by, rng.random_range(1..99))?;
            }
            let old = std::mem::take(model);
            let shift = |offset| if offset < start { offset } else { offset + by };
            *model = old
                .into_iter()
                .map(|(offset, block)| (shift(offset), block))
                .collect();
        }
    }
    Ok(())
}

/// Allocates blocks and adds them, when there are none yet.
fn grow(
    t: &mut Trans<'_>,
    id: ForkId,
    model: &mut BlockModel,
    rng: &mut StdRng,
    offset: u64,
) -> Result<()> {
    let room = match lookup(t, id, offset)? {
        FoundExtent::Extent(extent) => {
            let expected = (extent.block_at(offset), extent.unwritten);
            assert_eq!(model.get(&offset), Some(&expected));
            return Ok(());
        }
        FoundExtent::Hole { end_blocks, .. } => end_blocks - offset,
    };
    let unwritten = rng.random();
    let owner = RmapOwner::fork(id.ino, id.fork, offset, unwritten);
    let large = if rng.random_range(0..3) == 0 { 20 } else { 1 };
    let most = room.min(rng.random_range(1..12) * large) as u32;
    let before = model.range(..offset).next_back();
    let request = AllocRequest {
        near: before
            .map(|(_, (block, _))| *block)
            .filter(|_| rng.random()),
        ..AllocRequest::new(owner, 1, most)
    };
    let found = allocate(t, &request)?;
    let extent = Extent {
        offset_blocks: offset,
        start_block: found.start,
        blocks: found.blocks.into(),
        unwritten,
    };
    add(t, id, &extent)?;
    model.append(&mut blocks_in(&[extent]));
    Ok(())
}

/// Random changes of `files`, each round in transactions of which some are dropped, until the disk
/// is full; then until it is empty.
fn changes_equal_the_model(mkfs: &str, files: usize, rounds: u32) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let Some(mut image) = ProtoImage::make(mkfs, files) else {
        return;
    };
    let ids = image.files();
    let mut models = vec![BlockModel::new(); files];
    let (mut was_full, mut most_extents) = (0, 0);
    for round in 0..rounds {
        let growing = match round * 100 / rounds {
            0..60 => 70,
            60..80 => 45,
            _ => 3,
        };
        let file = rng.random_range(0..files);
        let (id, mut new) = (ids[file], models[file].clone());
        let is_kept = rng.random_range(0..5) != 0;
        let mut t = image.begin();
        let done = (0..40).try_for_each(|_| step(&mut t, id, &mut new, &mut rng, growing));
        match done {
            Ok(()) if is_kept => {
                t.commit();
                models[file] = new;
            }
            Ok(()) => drop(t),
            Err(error) => {
                drop(t);
                let is_right = error.kind() == ErrorKind::NoSpace || is_only_busy(&error);
                assert!(is_right, "seed {seed}, round {round}: {error}");
                was_full += 1;
                image.force();
            }
        }
        if rng.random_range(0..8) == 0 {
            image.force();
        }
        let mut t = image.begin();
        let extents = extents_of(&mut t, id);
        let last = last_extent(&mut t, id).unwrap();
        assert_eq!(last, extents.last().copied(), "seed {seed}");
        assert_eq!(
            blocks_in(&extents),
            models[file],
            "seed {seed}, round {round}"
        );
        most_extents = most_extents.max(extents.len());
        drop(t);
        if round % (rounds / 6) == 0 {
            image.assert_clean(seed);
        }
    }
    println!("{mkfs}: {most_extents} extents, {was_full} rounds without space");
    assert!(was_full > 0 || !mkfs.contains("20m"), "seed {seed}");
    for (id, model) in ids.iter().zip(&mut models) {
        let mut rest = 0..u64::MAX;
        while !rest.is_empty() {
            let mut t = image.begin();
            rest = unmap(&mut t, *id, rest, 20).unwrap().rest;
            t.commit();
        }
        model.clear();
    }
    image.assert_clean(seed);
    image.assert_empty(seed);
}

#[test]
fn small_blocks() {
    changes_equal_the_model("-b size=1024 -m rmapbt=0", 3, 200);
}

#[test]
fn large_counters() {
    changes_equal_the_model("-b size=1024 -i nrext64=1 -m rmapbt=0,reflink=0", 2, 120);
}

#[test]
fn owners_of_blocks() {
    changes_equal_the_model("-b size=1024 -m rmapbt=1 -i nrext64=1", 3, 200);
    changes_equal_the_model("-b size=4096 -m rmapbt=1", 2, 120);
}

#[test]
fn a_disk_that_fills() {
    changes_equal_the_model(
        "-b size=1024 -m rmapbt=1,reflink=0 -d size=20m,agcount=1",
        12,
        500,
    );
}

/// Files of one extent more than fit in the inode, and of one less, in both directions.
#[test]
fn the_form_goes_with_the_number_of_extents() {
    let Some(mut image) = ProtoImage::make("-b size=1024 -m rmapbt=1", 1) else {
        return;
    };
    let id = image.files()[0];
    let inline = 336 / 16;
    let mut t = image.begin();
    for index in 0..=inline {
        assert!(!fork::fork_info(&mut t, id).unwrap().is_btree, "{index}");
        let owner = RmapOwner::fork(id.ino, id.fork, index * 2, false);
        let found = allocate(&mut t, &AllocRequest::new(owner, 1, 1)).unwrap();
        let extent = Extent {
            offset_blocks: index * 2,
            start_block: found.start,
            blocks: 1,
            unwritten: false,
        };
        add(&mut t, id, &extent).unwrap();
    }
    assert!(fork::fork_info(&mut t, id).unwrap().is_btree);
    t.commit();
    image.assert_clean(0);
    let mut t = image.begin();
    let done = unmap(&mut t, id, 2..4, 9).unwrap();
    let (rest, blocks) = (2..2, 1);
    assert_eq!(done, Unmapped { rest, blocks });
    assert!(!fork::fork_info(&mut t, id).unwrap().is_btree);
    t.commit();
    image.assert_clean(0);
}

/// An extent beyond the largest file, or over another one, is refused.
#[test]
fn impossible_extents_are_refused() {
    let Some(mut image) = ProtoImage::make("-b size=1024 -m rmapbt=0", 1) else {
        return;
    };
    let id = image.files()[0];
    let most = 1_u64 << 53;
    let mut refused = |extents: &[(u64, u64, u64)]| {
        let mut t = image.begin();
        let done = extents.iter().try_for_each(|(offset, start, blocks)| {
            let extent = Extent {
                offset_blocks: *offset,
                start_block: FsBlock(*start),
                blocks: *blocks,
                unwritten: false,
            };
            add(&mut t, id, &extent)
        });
        done.map_err(|error| error.kind())
    };
    assert_eq!(refused(&[(0, 5000, 10)]), Ok(()));
    assert_eq!(refused(&[(most - 10, 5000, 10)]), Ok(()));
    assert_eq!(
        refused(&[(most - 9, 5000, 10)]),
        Err(ErrorKind::InvalidInput)
    );
    assert_eq!(
        refused(&[(u64::MAX, 5000, 1)]),
        Err(ErrorKind::InvalidInput)
    );
    assert_eq!(refused(&[(0, 5000, 1 << 21)]), Err(ErrorKind::InvalidInput));
    assert_eq!(refused(&[(0, 0, 1)]), Err(ErrorKind::Corrupt));
    assert_eq!(refused(&[(0, 1 << 50, 1)]), Err(ErrorKind::Corrupt));
    for second in [(9, 6000, 1), (0, 6000, 1), (5, 6000, 50)] {
        assert_eq!(refused(&[(0, 5000, 10), second]), Err(ErrorKind::Corrupt));
    }
    let mut t = image.begin();
    let attributes = ForkId {
        fork: ForkKind::Attribute,
        ..id
    };
    let none = lookup(&mut t, attributes, 0).map_err(|error| error.kind());
    assert_eq!(none, Err(ErrorKind::Corrupt));
}

/// An inode whose bytes were changed gives errors, and nothing worse.
#[test]
fn damaged_inodes_are_errors() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let Some(mut image) = ProtoImage::make("-b size=1024 -m rmapbt=1", 1) else {
        return;
    };
    let id = image.files()[0];
    let mut failed = 0;
    for round in 0..300 {
        let mut t = image.begin();
        let mut model = BlockModel::new();
        for at in 0..rng.random_range(0..60) {
            grow(&mut t, id, &mut model, &mut rng, at * 20).unwrap();
        }
        for _ in 0..rng.random_range(1..4) {
            let raw = t.edit_inode(id.ino).unwrap();
            let at = match rng.random_range(0..4) {
                0 => rng.random_range(64..96),
                1 => rng.random_range(2..6),
                _ => rng.random_range(176..raw.len()),
            };
            raw[at] = rng.random();
        }
        for _ in 0..20 {
            let offset = rng.random_range(0..1300);
            let range = offset..offset + rng.random_range(1..50);
            let done = match rng.random_range(0..4) {
                0 => lookup(&mut t, id, offset).map(|_| ()),
                1 => convert(&mut t, id, range, rng.random(), 5).map(|_| ()),
                2 => unmap(&mut t, id, range, 5).map(|_| ()),
                _ => collapse(&mut t, id, offset, 1, 5).map(|_| ()),
            };
            if let Err(error) = done {
                let what = format!("seed {seed}, round {round}: {error}");
                let kinds = [
                    ErrorKind::Corrupt,
                    ErrorKind::Unsupported,
                    ErrorKind::NoSpace,
                ];
                assert!(
                    kinds.contains(&error.kind()) || is_only_busy(&error),
                    "{what}"
                );
                failed += 1;
            }
        }
    }
    assert!(failed > 100, "seed {seed}");
}

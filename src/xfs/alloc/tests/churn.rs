//! Random operations in random transactions.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::super::geometry::{FsBlock, Ino};
use super::super::super::trans::Trans;
use super::super::super::trans::is_only_busy;
use super::super::super::tree::ForkKind;
use super::super::reserve::{Reserve, available, withheld};
use super::super::rmap::RmapOwner;
use super::super::{AllocRequest, Allocated, allocate, convert_owner, free};
use super::audit::{Group, Mapping};
use super::image::Volume;
use crate::error::{ErrorKind, Result};

/// An extent of a file.
#[derive(Debug, Clone, Copy)]
struct Piece {
    blocks: u32,
    file: u64,
    offset: u64,
    unwritten: bool,
}

impl Piece {
    fn owner(&self) -> RmapOwner {
        RmapOwner::fork(Ino(self.file), ForkKind::Data, self.offset, self.unwritten)
    }

    /// A part of it.
    fn part(&self, skipped: u32, blocks: u32) -> Self {
        Self {
            blocks,
            offset: self.offset + u64::from(skipped),
            ..*self
        }
    }
}

/// What files have, by first block.
#[derive(Debug, Clone, Default)]
struct Model {
    pieces: BTreeMap<u64, Piece>,
    /// The end of each file, in blocks of the file, and of its last extent.
    ends: BTreeMap<u64, (u64, Option<FsBlock>)>,
    /// What the transaction changed, newest last.
    undo: Vec<Undo>,
}

/// What was there before a change.
#[derive(Debug, Clone)]
enum Undo {
    Piece(u64, Option<Piece>),
    End(u64, Option<(u64, Option<FsBlock>)>),
}

impl Model {
    /// A random extent.
    fn any(&self, rng: &mut SmallRng) -> Option<(u64, Piece)> {
        let (last, _) = self.pieces.last_key_value()?;
        let from = rng.random_range(0..=*last);
        let (start, piece) = self.pieces.range(from..).next()?;
        Some((*start, *piece))
    }

    fn set(&mut self, start: u64, piece: Option<Piece>) {
        let old = match piece {
            Some(piece) => self.pieces.insert(start, piece),
            None => self.pieces.remove(&start),
        };
        self.undo.push(Undo::Piece(start, old));
    }

    fn set_end(&mut self, file: u64, end: (u64, Option<FsBlock>)) {
        let old = self.ends.insert(file, end);
        self.undo.push(Undo::End(file, old));
    }

    /// As it was before the transaction.
    fn roll_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Piece(start, Some(piece)) => drop(self.pieces.insert(start, piece)),
                Undo::Piece(start, None) => drop(self.pieces.remove(&start)),
                Undo::End(file, Some(end)) => drop(self.ends.insert(file, end)),
                Undo::End(file, None) => drop(self.ends.remove(&file)),
            }
        }
    }
}

/// How large the extents are.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    least: u32,
    most: u32,
}

struct Churn {
    volume: Volume,
    model: Model,
    rng: SmallRng,
    /// Blocks of each group that mkfs.xfs used, and their owners.
    fixed: Vec<(BTreeSet<u32>, Vec<Mapping>)>,
    deepest: [u32; 3],
}

impl Churn {
    fn new(mut volume: Volume, seed: u64) -> Self {
        let geometry = volume.state.superblock.geometry.clone();
        let fixed = (0..geometry.ag_count).map(|ag| {
            let group = Group::read(&mut volume, ag);
            (group.others(geometry.ag_length(ag)), group.fixed_mappings())
        });
        let fixed = fixed.collect();
        Self {
            volume,
            model: Model::default(),
            rng: SmallRng::seed_from_u64(seed),
            fixed,
            deepest: [0; 3],
        }
    }

    /// All structures are right.
    fn check(&mut self) {
        let geometry = self.volume.state.superblock.geometry.clone();
        let mut used = self.fixed.clone();
        for (start, piece) in &self.model.pieces {
            let (ag, block) = geometry.split(FsBlock(*start));
            for into in 0..piece.blocks {
                let (blocks, mappings) = &mut used[ag as usize];
                assert!(blocks.insert(block + into), "block {} twice", block + into);
                mappings.push((block + into, piece.owner().behind(into)));
            }
        }
        let mut free = 0;
        for (ag, (blocks, mappings)) in used.iter().enumerate() {
            let ag = ag as u32;
            let group = Group::read(&mut self.volume, ag);
            assert_eq!(group.others(geometry.ag_length(ag)), *blocks, "group {ag}");
            if self.volume.state.superblock.features.rmapbt() {
                group.compare_mappings(mappings);
            }
            free += group.counted;
            for (deepest, levels) in self.deepest.iter_mut().zip(group.levels) {
                *deepest = levels.max(*deepest);
            }
        }
        assert_eq!(self.volume.state.free_blocks, free, "sb_fdblocks");
        if let Some(counted) = self.volume.state.withheld_blocks {
            self.volume.state.withheld_blocks = None;
            let again = withheld(&mut self.volume.begin()).unwrap();
            assert_eq!(counted, again, "withheld blocks");
        }
    }

    /// One transaction of `operations`; some are dropped although nothing failed.
    fn transaction(
        &mut self,
        operations: usize,
        operate: impl Fn(&mut Trans<'_>, &mut Model, &mut SmallRng) -> Result<()>,
    ) -> Result<()> {
        let mut t = self.volume.begin();
        for _ in 0..operations {
            let done = operate(&mut t, &mut self.model, &mut self.rng);
            let Err(error) = done else {
                continue;
            };
            drop(t);
            self.model.roll_back();
            if is_only_busy(&error) {
                self.volume.force();
                return Ok(());
            }
            return Err(error);
        }
        if self.rng.random_ratio(1, 8) {
            drop(t);
            self.model.roll_back();
            return Ok(());
        }
        t.commit();
        self.model.undo.clear();
        if self.rng.random_ratio(1, 16) {
            self.volume.force();
        }
        Ok(())
    }

    /// Allocates until there is no space left.
    fn fill(&mut self, sizes: Sizes, operations: usize) {
        loop {
            let done = self.transaction(operations, |t, model, rng| add(t, model, rng, sizes));
            let Err(error) = done else {
                continue;
            };
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
            if operations == 1 && sizes.least == 1 {
                let left = available(&mut self.volume.begin(), Reserve::User).unwrap();
                assert_eq!(left, 0, "{left} blocks are left");
            }
            return;
        }
    }

    /// Frees about one of `of` blocks, in small parts.
    fn thin(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let operations = self.rng.random_range(1..6);
            let done = self.transaction(operations, free_part);
            done.unwrap();
        }
    }

    /// Frees everything, in random order.
    fn empty(&mut self) {
        while !self.model.pieces.is_empty() {
            let operations = self.rng.random_range(1..20);
            self.transaction(operations, free_whole).unwrap();
        }
    }
}

/// Adds an extent to a file.
fn add(t: &mut Trans<'_>, model: &mut Model, rng: &mut SmallRng, sizes: Sizes) -> Result<()> {
    let geometry = t.geometry().clone();
    let group = rng.random_range(0..geometry.ag_count);
    let bits = geometry.ag_block_log + geometry.inopb_log;
    let file = (u64::from(group) << bits) + 128 + rng.random_range(0..4_u64);
    let (end, last) = model.ends.get(&file).copied().unwrap_or_default();
    let offset = end + if rng.random() { 0 } else { 10 };
    let most = rng.random_range(sizes.least..=sizes.most);
    let unwritten = rng.random();
    let owner = RmapOwner::fork(Ino(file), ForkKind::Data, offset, unwritten);
    let request = AllocRequest {
        near: last.filter(|_| rng.random_ratio(3, 4)),
        ..AllocRequest::new(owner, sizes.least, most)
    };
    let Allocated { start, blocks } = allocate(t, &request)?;
    assert!((sizes.least..=most).contains(&blocks));
    let piece = Piece {
        blocks,
        file,
        offset,
        unwritten,
    };
    let end = FsBlock(start.0 + u64::from(blocks));
    model.set_end(file, (offset + u64::from(blocks), Some(end)));
    assert!(!model.pieces.contains_key(&start.0));
    model.set(start.0, Some(piece));
    Ok(())
}

/// Frees a part of an extent.
fn free_part(t: &mut Trans<'_>, model: &mut Model, rng: &mut SmallRng) -> Result<()> {
    let Some((start, piece)) = model.any(rng) else {
        return Ok(());
    };
    let skipped = rng.random_range(0..piece.blocks);
    let blocks = rng.random_range(1..=(piece.blocks - skipped).min(4));
    let part = piece.part(skipped, blocks);
    free(t, FsBlock(start + u64::from(skipped)), blocks, part.owner())?;
    replace(model, start, &piece, skipped, blocks, None);
    Ok(())
}

/// Puts another piece, or nothing, in the place of a part of a piece.
fn replace(
    model: &mut Model,
    start: u64,
    piece: &Piece,
    skipped: u32,
    blocks: u32,
    new: Option<Piece>,
) {
    model.set(start, None);
    let behind = skipped + blocks;
    let parts = [
        (0, Some(piece.part(0, skipped))),
        (skipped, new),
        (behind, Some(piece.part(behind, piece.blocks - behind))),
    ];
    for (into, part) in parts {
        if let Some(part) = part.filter(|part| part.blocks > 0) {
            model.set(start + u64::from(into), Some(part));
        }
    }
}

/// Makes a part of an extent written or unwritten.
fn convert(t: &mut Trans<'_>, model: &mut Model, rng: &mut SmallRng) -> Result<()> {
    let Some((start, piece)) = model.any(rng) else {
        return Ok(());
    };
    let skipped = rng.random_range(0..piece.blocks);
    let blocks = rng.random_range(1..=piece.blocks - skipped);
    let part = piece.part(skipped, blocks);
    convert_owner(t, FsBlock(start + u64::from(skipped)), blocks, part.owner())?;
    let new = Piece {
        unwritten: !part.unwritten,
        ..part
    };
    replace(model, start, &piece, skipped, blocks, Some(new));
    Ok(())
}

fn free_whole(t: &mut Trans<'_>, model: &mut Model, rng: &mut SmallRng) -> Result<()> {
    let Some((start, piece)) = model.any(rng) else {
        return Ok(());
    };
    free(t, FsBlock(start), piece.blocks, piece.owner())?;
    model.set(start, None);
    Ok(())
}

/// Fills, thins out and empties a filesystem. Returns the greatest heights of its btrees.
fn churn(mib: u64, arguments: &str) -> Option<[u32; 3]> {
    let seed = std::env::var("XTENT_SEED").ok();
    let seed = seed.map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}: mkfs.xfs {arguments}");
    let mut churn = Churn::new(Volume::make(mib, arguments)?, seed);
    churn.check();
    for round in 0..3 {
        let sizes = Sizes {
            least: 1,
            most: [300, 20, 3][round],
        };
        churn.fill(sizes, [5, 2, 1][round]);
        churn.check();
        for _ in 0..5 {
            churn.thin(400);
            churn.check();
            for _ in 0..200 {
                churn.transaction(2, convert).unwrap();
            }
            churn.check();
        }
    }
    churn.empty();
    churn.check();
    churn.volume.write_in_place();
    let (is_clean, text) = churn.volume.repair();
    assert!(is_clean, "{text}");
    Some(churn.deepest)
}

#[test]
fn small_blocks_with_owners() {
    let Some(deepest) = churn(32, "-b size=1024 -d agcount=2 -m rmapbt=1,reflink=1") else {
        return;
    };
    println!("levels {deepest:?}");
}

#[test]
fn small_blocks() {
    let Some(deepest) = churn(32, "-b size=1024 -d agcount=2 -m rmapbt=0,reflink=0") else {
        return;
    };
    println!("levels {deepest:?}");
}

#[test]
fn large_blocks_with_owners() {
    let Some(deepest) = churn(128, "-b size=4096 -d agcount=4 -m rmapbt=1,reflink=1") else {
        return;
    };
    println!("levels {deepest:?}");
}

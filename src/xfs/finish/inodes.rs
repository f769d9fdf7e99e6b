//! Inodes in the inode btrees: whether one is in use; one made free, and its chunk with the last.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use super::super::alloc::{self, RmapOwner, SpaceSource};
use super::super::buf::BufKind;
use super::super::corrupt;
use super::super::format::ag::Agi;
use super::super::format::btree::{CHUNK_INODES, HOLE_BIT_INODES, InobtRecord};
use super::super::format::inode::{
    CORE_BYTES, FLAG2_BIGTIME, FLAG2_NREXT64, FORMAT_EXTENTS, InodeCore,
};
use super::super::geometry::{Geometry, Ino};
use super::super::trans::Trans;
use super::super::tree::{self, AgTree, Finobt, Inobt};
use crate::error::{Error, Result};

/// Behind the last possible block of a fork.
pub(super) const END_BLOCKS: u64 = 1 << 54;

/// An inode in use: its group, the record of its chunk, and its bit there.
pub(super) struct UsedInode {
    ag: u32,
    record: InobtRecord,
    bit: u64,
}

#[cold]
pub(super) fn bad_inode(t: &Trans<'_>, ino: Ino, what: &str) -> Error {
    let addr = t.inode_place(ino).map_or(0, |(place, range)| {
        place.addr_bytes.saturating_add(range.start as u64)
    });
    corrupt(addr, format!("{ino}: {what}; run xfs_repair"))
}

/// Looks an inode up, which must be in use.
pub(super) fn used_inode(t: &mut Trans<'_>, ino: Ino) -> Result<UsedInode> {
    let geometry = t.geometry();
    let place = geometry.locate_inode(ino);
    let place = place.ok_or_else(|| corrupt(0, format!("there can be no {ino}")))?;
    let found = tree::find_le(t, &AgTree::<Inobt>::new(place.ag), place.ag_ino)?;
    let index = |record: &InobtRecord| place.ag_ino.checked_sub(record.startino.get());
    let found = found.and_then(|record| Some((record, index(&record)?)));
    let Some((record, index)) = found.filter(|(_, index)| *index < CHUNK_INODES) else {
        return Err(bad_inode(t, ino, "it is in no inode chunk"));
    };
    let hole = 1_u16.wrapping_shl(index.checked_div(HOLE_BIT_INODES).unwrap_or(0));
    if t.features().sparse() && record.holemask.get() & hole != 0 {
        return Err(bad_inode(t, ino, "it is in a hole of its chunk"));
    }
    let bit = 1_u64.wrapping_shl(index);
    if record.free.get() & bit != 0 {
        return Err(bad_inode(t, ino, "it is free"));
    }
    Ok(UsedInode {
        ag: place.ag,
        record,
        bit,
    })
}

/// The core of an inode.
pub(super) fn core_of(t: &mut Trans<'_>, ino: Ino) -> Result<InodeCore> {
    let raw = t.inode(ino)?;
    let core = InodeCore::read_from_prefix(raw).ok();
    let core = core.filter(|(core, _)| core.ino.get() == ino.0);
    let core = core.map(|(core, _)| core);
    core.ok_or_else(|| bad_inode(t, ino, "it has another number"))
}

/// Changes the core of an inode. Returns all its bytes.
pub(super) fn edit_core<'t>(
    t: &'t mut Trans<'_>,
    ino: Ino,
    change: impl FnOnce(&mut InodeCore),
) -> Result<&'t mut [u8]> {
    let addr = t.inode_place(ino)?.0.addr_bytes;
    let raw = t.edit_inode(ino)?;
    let (core, _) =
        InodeCore::mut_from_prefix(raw).map_err(|_| corrupt(addr, "an inode that is too short"))?;
    change(core);
    Ok(raw)
}

/// A group's AGI.
pub(super) fn read_agi(t: &mut Trans<'_>, ag: u32) -> Result<Agi> {
    let place = t.place_of_header(ag, BufKind::Agi);
    let raw = t.read(place, BufKind::Agi)?;
    let agi = Agi::read_from_prefix(raw).map(|(agi, _)| agi).ok();
    let agi = agi.filter(|agi| agi.seqno.get() == ag && agi.freecount.get() <= agi.count.get());
    agi.ok_or_else(|| corrupt(place.addr_bytes, format!("AGI of group {ag} is damaged")))
}

pub(super) fn edit_agi(t: &mut Trans<'_>, ag: u32, change: impl FnOnce(&mut Agi)) -> Result<()> {
    let place = t.place_of_header(ag, BufKind::Agi);
    let raw = t.edit(place, BufKind::Agi)?;
    let (agi, _) =
        Agi::mut_from_prefix(raw).map_err(|_| corrupt(place.addr_bytes, "AGI: too short"))?;
    change(agi);
    Ok(())
}

/// Makes an inode free that has no blocks any more, as xfs_ifree() and xfs_difree().
pub(super) fn free_inode(t: &mut Trans<'_>, ino: Ino, used: &UsedInode) -> Result<()> {
    let UsedInode { ag, record, bit } = used;
    let (ag, start) = (*ag, record.startino.get());
    let had_free = record.freecount != 0;
    let record = InobtRecord {
        freecount: record.freecount.saturating_add(1),
        free: (record.free.get() | bit).into(),
        ..*record
    };
    let inodes = read_agi(t, ag)?;
    if u32::from(record.freecount) > CHUNK_INODES || inodes.freecount.get() >= inodes.count.get() {
        return Err(bad_inode(
            t,
            ino,
            "its chunk has more free inodes than inodes",
        ));
    }
    // As xfs_difree_inobt(): not where a block has several chunks.
    if record.free.get() == u64::MAX && t.geometry().inopb_log <= CHUNK_INODES.ilog2() {
        return free_chunk(t, ag, &record, had_free);
    }
    tree::update(t, &AgTree::<Inobt>::new(ag), start, &record)?;
    if t.features().finobt() {
        let free_tree = AgTree::<Finobt>::new(ag);
        if had_free {
            let free = tree::find(t, &free_tree, start)?;
            let is_same = free.is_some_and(|free| {
                free.free.get() | bit == record.free.get()
                    && free.holemask.as_bytes() == record.holemask.as_bytes()
            });
            if !is_same {
                return Err(bad_inode(t, ino, "both inode btrees have other chunks"));
            }
            tree::update(t, &free_tree, start, &record)?;
        } else {
            let source = &mut SpaceSource::finobt(t, ag);
            tree::insert(t, &free_tree, &record, source)?;
        }
    }
    edit_agi(t, ag, |agi| {
        agi.freecount.set(agi.freecount.get().saturating_add(1));
    })?;
    t.count(0, 0, 1);
    let raw = edit_core(t, ino, |core| {
        core.mode = 0.into();
        core.flags = 0.into();
        let kept = core.flags2.get() & (FLAG2_BIGTIME | FLAG2_NREXT64);
        core.flags2 = kept.into();
        core.format = FORMAT_EXTENTS;
        core.aformat = FORMAT_EXTENTS;
        core.forkoff = 0;
        core.size = 0.into();
        core.extsize = 0.into();
        core.cowextsize = 0.into();
        core.generation = core.generation.get().wrapping_add(1).into();
        core.changecount = core.changecount.get().wrapping_add(1).into();
    })?;
    if let Some(forks) = raw.get_mut(CORE_BYTES..) {
        forks.fill(0);
    }
    Ok(())
}

/// Makes a chunk free whose last inode in use was freed, as xfs_difree_inode_chunk() and
/// xfs_ifree_cluster(). `was_listed` says that other inodes of it were free before.
fn free_chunk(t: &mut Trans<'_>, ag: u32, record: &InobtRecord, was_listed: bool) -> Result<()> {
    let start = record.startino.get();
    let source = &mut SpaceSource::inobt(t, ag);
    tree::remove(t, &AgTree::<Inobt>::new(ag), start, source)?;
    if t.features().finobt() && was_listed {
        let source = &mut SpaceSource::finobt(t, ag);
        tree::remove(t, &AgTree::<Finobt>::new(ag), start, source)?;
    }
    let geometry = t.geometry().clone();
    let holes = match t.features().sparse() {
        true => record.holemask.get(),
        false => 0,
    };
    let is_hole = |inode: u32| {
        let bit = inode.checked_div(HOLE_BIT_INODES).unwrap_or(0);
        holes & 1_u16.wrapping_shl(bit) != 0
    };
    let per_block = 1_u32.wrapping_shl(geometry.inopb_log);
    let per_cluster = per_block.saturating_mul(geometry.cluster_blocks());
    let block_of = |inode: u32| start.saturating_add(inode).wrapping_shr(geometry.inopb_log);
    let inodes = |step: u32| {
        let step = usize::try_from(step).unwrap_or(1).max(1);
        (0..CHUNK_INODES)
            .step_by(step)
            .filter(|inode| !is_hole(*inode))
    };
    for inode in inodes(per_cluster) {
        let bits = geometry.ag_block_log.saturating_add(geometry.inopb_log);
        let ag_ino = start.saturating_add(inode);
        let ino = Ino(u64::from(ag).wrapping_shl(bits) | u64::from(ag_ino));
        let (place, _) = t.inode_place(ino)?;
        t.discard(place);
    }
    let mut runs: Vec<Range<u32>> = Vec::new();
    for inode in inodes(per_block.max(HOLE_BIT_INODES)) {
        let first = block_of(inode);
        let end = block_of(inode.saturating_add(HOLE_BIT_INODES.max(per_block)));
        let end = end.max(first.saturating_add(1));
        match runs.last_mut() {
            Some(last) if last.end >= first => last.end = end,
            _ => runs.push(first..end),
        }
    }
    for run in runs {
        let blocks = run.end.saturating_sub(run.start);
        alloc::free(
            t,
            geometry.fs_block(ag, run.start),
            blocks,
            RmapOwner::INODES,
        )?;
    }
    let count = CHUNK_INODES.saturating_sub(holes.count_ones().saturating_mul(HOLE_BIT_INODES));
    let others = count.saturating_sub(1);
    edit_agi(t, ag, |agi| {
        agi.count.set(agi.count.get().saturating_sub(count));
        agi.freecount
            .set(agi.freecount.get().saturating_sub(others));
    })?;
    let gone = |count: u32| i64::from(count).saturating_neg();
    t.count(0, gone(count), gone(others));
    Ok(())
}

/// Whether a file can have these blocks.
pub(super) fn check_offset(offset: u64, blocks: u64) -> Result<(), &'static str> {
    match offset.checked_add(blocks) {
        Some(end) if end <= END_BLOCKS => Ok(()),
        _ => Err("beyond the largest possible file"),
    }
}

/// The inode of a number that the geometry has.
pub(super) fn inode_of(geometry: &Geometry, owner: u64) -> Result<Ino, &'static str> {
    let ino = Ino(owner);
    let is_possible = geometry.locate_inode(ino).is_some();
    is_possible.then_some(ino).ok_or("an impossible inode")
}

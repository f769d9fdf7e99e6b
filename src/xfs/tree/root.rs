//! Where a tree begins: in the header of an allocation group, or in the fork of an inode. Counters
//! of a tree's blocks.

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::FromBytes;

use super::super::buf::{BufKind, BufPlace};
use super::super::corrupt;
use super::super::format::ag::{Agf, Agi};
use super::super::format::btree::MAX_LEVELS;
use super::super::format::inode::{CORE_BYTES, FORMAT_BTREE, InodeCore};
use super::super::format::superblock::RO_INOBTCOUNT;
use super::super::geometry::Ino;
use super::super::trans::Trans;
use crate::error::Result;

/// A fork of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum ForkKind {
    /// The file's data.
    Data,
    /// Its extended attributes.
    Attribute,
}

/// Where the root of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum RootPlace {
    /// The header of this group has its block and its height.
    Group(u32),
    /// It is in a fork of this inode.
    Fork(Ino, ForkKind),
}

/// The root block of a tree of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupRoot {
    pub(super) ag_block: u32,
    pub(super) levels: u32,
}

/// Where the header of a group keeps what it says of a tree.
struct RootFields {
    header: BufKind,
    root: usize,
    level: usize,
    /// Blocks of the tree: of all trees of free space together without their roots, of one tree
    /// with its root.
    counters: [Option<usize>; 2],
}

fn fields(t: &Trans<'_>, kind: BufKind) -> Option<RootFields> {
    let agf = |root, level, counters| RootFields {
        header: BufKind::Agf,
        root,
        level,
        counters,
    };
    let others = Some(offset_of!(Agf, btreeblks));
    let counted = t.features().ro_compat & RO_INOBTCOUNT != 0;
    let agi = |root, level, counter| RootFields {
        header: BufKind::Agi,
        root,
        level,
        counters: [counted.then_some(counter), None],
    };
    Some(match kind {
        BufKind::Bnobt => agf(
            offset_of!(Agf, bno_root),
            offset_of!(Agf, bno_level),
            [others, None],
        ),
        BufKind::Cntbt => agf(
            offset_of!(Agf, cnt_root),
            offset_of!(Agf, cnt_level),
            [others, None],
        ),
        BufKind::Rmapbt => agf(
            offset_of!(Agf, rmap_root),
            offset_of!(Agf, rmap_level),
            [others, Some(offset_of!(Agf, rmap_blocks))],
        ),
        BufKind::Refcountbt => agf(
            offset_of!(Agf, refcount_root),
            offset_of!(Agf, refcount_level),
            [Some(offset_of!(Agf, refcount_blocks)), None],
        ),
        BufKind::Inobt => agi(
            offset_of!(Agi, root),
            offset_of!(Agi, level),
            offset_of!(Agi, iblocks),
        ),
        BufKind::Finobt => agi(
            offset_of!(Agi, free_root),
            offset_of!(Agi, free_level),
            offset_of!(Agi, fblocks),
        ),
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn set_word(bytes: &mut [u8], at: usize, value: u32) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

fn header(t: &Trans<'_>, ag: u32, kind: BufKind) -> Result<(RootFields, BufPlace)> {
    let fields = fields(t, kind).ok_or_else(|| corrupt(0, "no tree of a group"))?;
    if t.geometry().ag_length(ag) == 0 {
        return Err(corrupt(0, format!("there is no allocation group {ag}")));
    }
    let place = t.place_of_header(ag, fields.header);
    Ok((fields, place))
}

/// The root of a group's tree. Its block and height are possible ones.
pub(super) fn group_root(t: &mut Trans<'_>, ag: u32, kind: BufKind) -> Result<GroupRoot> {
    let (fields, place) = header(t, ag, kind)?;
    let bytes = t.read(place, fields.header)?;
    let root = word(bytes, fields.root).zip(word(bytes, fields.level));
    let possible = root.filter(|(_, levels)| (1..=MAX_LEVELS).contains(levels));
    let (ag_block, levels) =
        possible.ok_or_else(|| corrupt(place.addr_bytes, "impossible height of a btree"))?;
    Ok(GroupRoot { ag_block, levels })
}

pub(super) fn set_group_root(
    t: &mut Trans<'_>,
    ag: u32,
    kind: BufKind,
    root: GroupRoot,
) -> Result<()> {
    let (fields, place) = header(t, ag, kind)?;
    let bytes = t.edit(place, fields.header)?;
    set_word(bytes, fields.root, root.ag_block)
        .and_then(|()| set_word(bytes, fields.level, root.levels))
        .ok_or_else(|| corrupt(place.addr_bytes, "header of a group: too short"))
}

/// A tree of a group got a block more, or one less.
pub(super) fn count_block(t: &mut Trans<'_>, ag: u32, kind: BufKind, more: bool) -> Result<()> {
    let (fields, place) = header(t, ag, kind)?;
    for counter in fields.counters.into_iter().flatten() {
        let bytes = t.edit(place, fields.header)?;
        let count = word(bytes, counter).and_then(|count| {
            if more {
                count.checked_add(1)
            } else {
                count.checked_sub(1)
            }
        });
        count
            .and_then(|count| set_word(bytes, counter, count))
            .ok_or_else(|| corrupt(place.addr_bytes, "impossible number of btree blocks"))?;
    }
    Ok(())
}

/// Where a fork lies in the bytes of its inode, and its form; `None` when there is no such fork.
pub(in super::super) fn fork_range(raw: &[u8], fork: ForkKind) -> Option<(Range<usize>, u8)> {
    let (core, _) = InodeCore::ref_from_prefix(raw).ok()?;
    let units = usize::from(core.forkoff);
    let split = match units.checked_mul(8)? {
        0 => raw.len(),
        bytes => CORE_BYTES.checked_add(bytes)?,
    };
    if split > raw.len() {
        return None;
    }
    match fork {
        ForkKind::Data => Some((CORE_BYTES..split, core.format)),
        ForkKind::Attribute if units == 0 => None,
        ForkKind::Attribute => Some((split..raw.len(), core.aformat)),
    }
}

/// Where the root of the extent btree of a fork lies in the bytes of its inode.
pub(super) fn root_range(raw: &[u8], fork: ForkKind) -> Result<Range<usize>, &'static str> {
    match fork_range(raw, fork) {
        Some((range, FORMAT_BTREE)) => Ok(range),
        Some(_) => Err("the fork is no btree"),
        None => Err("impossible place of the attribute fork"),
    }
}

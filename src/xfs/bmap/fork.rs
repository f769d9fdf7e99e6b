//! What an inode says of a fork: form, number of extents, blocks.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use zerocopy::FromBytes;

use super::super::corrupt;
use super::super::extents::Extent;
use super::super::format::btree::BmbtRecord;
use super::super::format::inode::{
    FLAG_REALTIME, FLAG2_NREXT64, FORMAT_BTREE, FORMAT_EXTENTS, InodeCore,
};
use super::super::geometry::{FsBlock, Ino};
use super::super::trans::Trans;
use super::super::tree::{ForkKind, ForkTree, fork_range};
use crate::error::{Error, ErrorKind, Result};

/// A fork of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct ForkId {
    pub(in super::super) ino: Ino,
    pub(in super::super) fork: ForkKind,
}

impl ForkId {
    /// The data fork of an inode.
    pub(in super::super) fn data(ino: Ino) -> Self {
        let fork = ForkKind::Data;
        Self { ino, fork }
    }

    /// Its extents in btree form.
    pub(super) fn tree(self) -> ForkTree {
        ForkTree {
            ino: self.ino,
            fork: self.fork,
        }
    }
}

/// A fork as its inode describes it.
#[derive(Debug, Clone)]
pub(super) struct ForkInfo {
    pub(super) is_btree: bool,
    /// Where it lies in the bytes of the inode.
    pub(super) range: Range<usize>,
    pub(super) extents: u64,
    /// Extents that there is room for in the inode.
    pub(super) most_inline: u64,
    /// Extents that the counter can say.
    most: u64,
}

/// The error for an inode whose content is wrong.
#[cold]
pub(super) fn bad_inode(t: &Trans<'_>, id: ForkId, what: &str) -> Error {
    let addr = t.inode_place(id.ino).map_or(0, |(place, range)| {
        place.addr_bytes.saturating_add(range.start as u64)
    });
    let fork = match id.fork {
        ForkKind::Data => "data fork",
        ForkKind::Attribute => "attribute fork",
    };
    corrupt(addr, format!("{fork} of {}: {what}", id.ino))
}

/// What the inode says of a fork that has extents.
pub(super) fn fork_info(t: &mut Trans<'_>, id: ForkId) -> Result<ForkInfo> {
    let raw = t.inode(id.ino)?;
    let found = fork_range(raw, id.fork).zip(InodeCore::ref_from_prefix(raw).ok());
    let Some(((range, form), (core, _))) = found else {
        return Err(bad_inode(t, id, "there is none"));
    };
    let is_large = core.flags2.get() & FLAG2_NREXT64 != 0;
    let is_data = id.fork == ForkKind::Data;
    let is_realtime = core.flags.get() & FLAG_REALTIME != 0;
    let is_deleted = core.mode.get() == 0;
    let (extents, most) = match (id.fork, is_large) {
        (ForkKind::Data, true) => (core.big_nextents.get(), (1 << 48) - 1),
        (ForkKind::Data, false) => (core.nextents.get().into(), (1 << 31) - 1),
        (ForkKind::Attribute, true) => (core.nextents.get().into(), (1 << 32) - 1),
        (ForkKind::Attribute, false) => (core.anextents.get().into(), (1 << 15) - 1),
    };
    if is_realtime && is_data {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} lies in the realtime section: it is only read", id.ino),
        ));
    }
    let each = size_of::<BmbtRecord>();
    let most_inline = range.len().checked_div(each).unwrap_or(0) as u64;
    let is_btree = form == FORMAT_BTREE;
    if is_deleted || !matches!(form, FORMAT_BTREE | FORMAT_EXTENTS) {
        return Err(bad_inode(t, id, "it has no extents"));
    }
    if extents > most || is_btree == (extents <= most_inline) {
        let what = "the number of extents does not go with its form";
        return Err(bad_inode(t, id, what));
    }
    Ok(ForkInfo {
        is_btree,
        range,
        extents,
        most_inline,
        most,
    })
}

/// Sets the number of extents.
pub(super) fn set_extents(t: &mut Trans<'_>, id: ForkId, extents: u64) -> Result<()> {
    let info = fork_info(t, id)?;
    if extents > info.most {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} has {} extents and can have no more",
                id.ino, info.extents
            ),
        ));
    }
    put_extents(t, id, extents)
}

/// The same, whether or not the number goes with the form of the fork.
pub(super) fn put_extents(t: &mut Trans<'_>, id: ForkId, extents: u64) -> Result<()> {
    edit_core(t, id, |core| {
        let is_large = core.flags2.get() & FLAG2_NREXT64 != 0;
        match (id.fork, is_large) {
            (ForkKind::Data, true) => core.big_nextents.set(extents),
            (ForkKind::Data, false) | (ForkKind::Attribute, true) => {
                core.nextents.set(u32::try_from(extents).ok()?);
            }
            (ForkKind::Attribute, false) => core.anextents.set(u16::try_from(extents).ok()?),
        }
        Some(())
    })
}

/// Changes the number of blocks that the inode has, those of its btrees included.
pub(super) fn count_blocks(t: &mut Trans<'_>, id: ForkId, change: i64) -> Result<()> {
    edit_core(t, id, |core| {
        let blocks = core.nblocks.get().checked_add_signed(change)?;
        core.nblocks.set(blocks);
        Some(())
    })
}

/// Sets the form of a fork, and fills it with zeroes.
pub(super) fn clear(t: &mut Trans<'_>, id: ForkId, is_btree: bool) -> Result<()> {
    let range = fork_range(t.inode(id.ino)?, id.fork).map(|(range, _)| range);
    let form = if is_btree {
        FORMAT_BTREE
    } else {
        FORMAT_EXTENTS
    };
    edit_core(t, id, |core| {
        match id.fork {
            ForkKind::Data => core.format = form,
            ForkKind::Attribute => core.aformat = form,
        }
        Some(())
    })?;
    let raw = t.edit_inode(id.ino)?;
    if let Some(fork) = range.and_then(|range| raw.get_mut(range)) {
        fork.fill(0);
    }
    Ok(())
}

fn edit_core(
    t: &mut Trans<'_>,
    id: ForkId,
    change: impl FnOnce(&mut InodeCore) -> Option<()>,
) -> Result<()> {
    let raw = t.edit_inode(id.ino)?;
    let core = InodeCore::mut_from_prefix(raw).ok();
    core.and_then(|(core, _)| change(core))
        .ok_or_else(|| bad_inode(t, id, "impossible number of blocks or extents"))
}

/// The record of an extent.
pub(super) fn record_of(extent: &Extent) -> BmbtRecord {
    BmbtRecord::new(
        extent.offset_blocks,
        extent.start_block.0,
        extent.blocks,
        extent.unwritten,
    )
}

/// The part of an extent from `start` to `end`, in blocks of the file.
pub(super) fn part_of(extent: &Extent, start: u64, end: u64) -> Extent {
    let start = start.clamp(extent.offset_blocks, extent.end_blocks());
    let end = end.clamp(start, extent.end_blocks());
    Extent {
        offset_blocks: start,
        start_block: FsBlock(extent.block_at(start).0),
        blocks: end.saturating_sub(start),
        unwritten: extent.unwritten,
    }
}

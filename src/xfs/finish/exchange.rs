//! Exchanges of mappings between two files (XMI), finished from where the log says they had come.
//!
//! As xfs_exchmaps_recover_work() and xfs_exchmaps_finish_one(): the ranges are walked from their
//! start; each pair of mappings changes places, and the mark of shared blocks is set for both files
//! before. Two things differ from the kernel:
//!
//! - The sizes at the end are those of the item. The kernel takes those that the files have when
//!   recovery begins; when a part of the exchange was done, these may lie in between.
//! - The marks of shared blocks are cleared where the item says so and the file shares none. The
//!   kernel leaves them then, because it set both before the item was logged.
//!
//! Directories and attributes that would fit into the inode stay in their blocks, which is valid.
//! Only the kernel's online repair exchanges those of directories, symbolic links and attributes.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use zerocopy::FromBytes;

use super::super::alloc;
use super::super::bmap::{self, ForkId};
use super::super::extents::{Extent, FoundExtent};
use super::super::format::inode::{
    FLAG2_NREXT64, FLAG2_REFLINK, FORMAT_BTREE, FORMAT_EXTENTS, InodeCore, S_IFDIR, S_IFMT, S_IFREG,
};
use super::super::format::log_items::{self as layout, ExchangeItem};
use super::super::geometry::{Geometry, Ino};
use super::super::trans::Trans;
use super::super::tree::ForkKind;
use super::inodes::{bad_inode, check_offset, core_of, edit_core, inode_of, used_inode};
use crate::error::{Error, ErrorKind, Result};

/// The largest size of a file in bytes.
const MOST_BYTES: u64 = i64::MAX as u64;

/// One of the two files of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExchangeSide {
    ino: Ino,
    generation: u32,
    /// First block of the range.
    start: u64,
    /// Size in bytes at the end, where sizes are exchanged.
    size: Option<u64>,
    clears_shared: bool,
}

/// An exchange that was not finished, checked against the geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MappingExchange {
    sides: [ExchangeSide; 2],
    blocks: u64,
    fork: ForkKind,
    /// Holes and unwritten blocks of the first file are omitted.
    only_written: bool,
}

impl MappingExchange {
    /// The files.
    pub(super) fn inodes(&self) -> [Ino; 2] {
        self.sides.map(|side| side.ino)
    }
}

/// As xlog_recover_xmi_commit_pass2() and xfs_xmi_validate().
pub(super) fn parse(bytes: &[u8], geometry: &Geometry) -> Result<MappingExchange, &'static str> {
    const FLAGS: u64 = layout::XMI_ATTR_FORK
        | layout::XMI_SET_SIZES
        | layout::XMI_INO1_WRITTEN
        | layout::XMI_CLEAR_INO1_REFLINK
        | layout::XMI_CLEAR_INO2_REFLINK;
    let item = ExchangeItem::ref_from_bytes(bytes).map_err(|_| "of another length than one")?;
    let flags = item.flags.get();
    if flags & !FLAGS != 0 || item.pad.get() != 0 {
        return Err("unknown flags");
    }
    let has = |flag: u64| flags & flag != 0;
    let blocks = item.blockcount.get();
    let side = |ino: u64, generation: u32, start: u64, size: u64, clear: u64| {
        check_offset(start, blocks)?;
        let sets_size = has(layout::XMI_SET_SIZES) && !has(layout::XMI_ATTR_FORK);
        if sets_size && size > MOST_BYTES {
            return Err("an impossible size");
        }
        Ok(ExchangeSide {
            ino: inode_of(geometry, ino)?,
            generation,
            start,
            size: sets_size.then_some(size),
            clears_shared: has(clear),
        })
    };
    let first = side(
        item.inode1.get(),
        item.igen1.get(),
        item.startoff1.get(),
        item.isize1.get(),
        layout::XMI_CLEAR_INO1_REFLINK,
    )?;
    let second = side(
        item.inode2.get(),
        item.igen2.get(),
        item.startoff2.get(),
        item.isize2.get(),
        layout::XMI_CLEAR_INO2_REFLINK,
    )?;
    if blocks == 0 {
        return Err("an exchange of nothing");
    }
    if first.ino == second.ino && first.start.abs_diff(second.start) < blocks {
        return Err("an exchange of ranges that overlap");
    }
    Ok(MappingExchange {
        sides: [first, second],
        blocks,
        fork: match has(layout::XMI_ATTR_FORK) {
            true => ForkKind::Attribute,
            false => ForkKind::Data,
        },
        only_written: has(layout::XMI_INO1_WRITTEN),
    })
}

/// Exchanges the rest of the ranges.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when the files are not those of the item or are damaged;
/// [`ErrorKind::Unsupported`] for symbolic links and files of the realtime section;
/// [`ErrorKind::InvalidInput`] when a file would have too many extents; [`ErrorKind::NoSpace`] when
/// a btree has to grow and cannot; the device's. The transaction must be dropped then.
pub(super) fn finish(t: &mut Trans<'_>, exchange: &MappingExchange) -> Result<()> {
    let MappingExchange { fork, .. } = *exchange;
    for side in &exchange.sides {
        check_file(t, side, fork)?;
    }
    ensure_marks(t, exchange)?;
    let mut done = 0;
    while done < exchange.blocks {
        done = done.saturating_add(step(t, exchange, done)?);
    }
    for side in &exchange.sides {
        if let Some(size) = side.size {
            edit_core(t, side.ino, |core| core.size = size.into())?;
        }
    }
    for side in &exchange.sides {
        if side.clears_shared && !shares_blocks(t, side.ino)? {
            edit_core(t, side.ino, |core| {
                core.flags2 = (core.flags2.get() & !FLAG2_REFLINK).into();
            })?;
        }
    }
    Ok(())
}

/// As xlog_recover_iget_handle() and xfs_exchmaps_check_forks().
fn check_file(t: &mut Trans<'_>, side: &ExchangeSide, fork: ForkKind) -> Result<()> {
    used_inode(t, side.ino)?;
    let core = core_of(t, side.ino)?;
    let bad = |t: &Trans<'_>, what: &str| Err(bad_inode(t, side.ino, what));
    if core.mode.get() == 0 || core.generation.get() != side.generation {
        return bad(t, "its mappings are exchanged, and it is another file");
    }
    let form = match fork {
        ForkKind::Attribute if core.forkoff == 0 => {
            return bad(t, "attributes are exchanged, and it has none");
        }
        ForkKind::Attribute => core.aformat,
        ForkKind::Data => core.format,
    };
    if !matches!(form, FORMAT_EXTENTS | FORMAT_BTREE) {
        return bad(t, "its mappings are exchanged, and it has none");
    }
    // A target that fits into the inode would have to be moved there.
    if fork == ForkKind::Data && !matches!(core.mode.get() & S_IFMT, S_IFREG | S_IFDIR) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} is repaired by an exchange that was not finished: mount the filesystem once \
                 with the kernel and unmount it",
                side.ino
            ),
        ));
    }
    Ok(())
}

/// As xfs_exchmaps_ensure_reflink() and xfs_exchmaps_upgrade_extent_counts().
fn ensure_marks(t: &mut Trans<'_>, exchange: &MappingExchange) -> Result<()> {
    let has_large = t.features().nrext64();
    let mut shared = 0;
    for ino in exchange.inodes() {
        shared |= core_of(t, ino)?.flags2.get() & FLAG2_REFLINK;
    }
    for ino in exchange.inodes() {
        let flags2 = core_of(t, ino)?.flags2.get();
        if flags2 | shared != flags2 {
            edit_core(t, ino, |core| core.flags2 = (flags2 | shared).into())?;
        }
        if has_large && flags2 & FLAG2_NREXT64 == 0 {
            edit_core(t, ino, widen_counters)?;
        }
    }
    Ok(())
}

/// Makes the counters of extents those of the feature `nrext64`.
fn widen_counters(core: &mut InodeCore) {
    let (data, attributes) = (core.nextents.get(), core.anextents.get());
    core.big_nextents = u64::from(data).into();
    core.nextents = u32::from(attributes).into();
    core.anextents = 0.into();
    core.flags2 = (core.flags2.get() | FLAG2_NREXT64).into();
}

/// What a file has from a block on, for `most` blocks at most: the length, and the extent or, for a
/// hole, `None`.
fn mapping_at(
    t: &mut Trans<'_>,
    id: ForkId,
    start: u64,
    most: u64,
) -> Result<(u64, Option<Extent>)> {
    let end = start.saturating_add(most);
    Ok(match bmap::lookup(t, id, start)? {
        FoundExtent::Extent(extent) => {
            let end = end.min(extent.end_blocks());
            (end.saturating_sub(start), Some(extent))
        }
        FoundExtent::Hole { end_blocks, .. } => (end.min(end_blocks).saturating_sub(start), None),
    })
}

/// Exchanges the next pair of mappings, as xfs_exchmaps_find_mappings() and
/// xfs_exchmaps_one_step(). Returns how many blocks further the exchange is.
fn step(t: &mut Trans<'_>, exchange: &MappingExchange, done: u64) -> Result<u64> {
    let MappingExchange { fork, blocks, .. } = *exchange;
    let ids = exchange.inodes().map(|ino| ForkId { ino, fork });
    let [start1, start2] = exchange.sides.map(|side| side.start.saturating_add(done));
    let (len, one) = mapping_at(t, ids[0], start1, blocks.saturating_sub(done))?;
    if exchange.only_written && one.is_none_or(|extent| extent.unwritten) {
        return Ok(len);
    }
    let (len, two) = mapping_at(t, ids[1], start2, len)?;
    let place = |extent: Option<Extent>, at: u64| extent.map(|extent| extent.block_at(at));
    let (place1, place2) = (place(one, start1), place(two, start2));
    if place1 == place2 {
        let state = |extent: Option<Extent>| extent.is_some_and(|extent| extent.unwritten);
        if state(one) != state(two) {
            let what = "blocks are written in one file and unwritten in another";
            return Err(bad_inode(t, exchange.sides[0].ino, what));
        }
        return Ok(len);
    }
    let range = |start: u64| -> Range<u64> { start..start.saturating_add(len) };
    bmap::detach(t, ids[0], range(start1))?;
    bmap::detach(t, ids[1], range(start2))?;
    let moved = |extent: Option<Extent>, from: u64, to: u64| {
        extent.map(|extent| Extent {
            offset_blocks: to,
            start_block: extent.block_at(from),
            blocks: len,
            unwritten: extent.unwritten,
        })
    };
    if let Some(extent) = moved(two, start2, start1) {
        bmap::attach(t, ids[0], &extent)?;
    }
    if let Some(extent) = moved(one, start1, start2) {
        bmap::attach(t, ids[1], &extent)?;
    }
    Ok(len)
}

/// Whether a file has blocks that others have, too.
fn shares_blocks(t: &mut Trans<'_>, ino: Ino) -> Result<bool> {
    let mut at = 0;
    while let Some(extent) = bmap::next_extent(t, ForkId::data(ino), at)? {
        let blocks = u32::try_from(extent.blocks).unwrap_or(u32::MAX);
        if alloc::is_any_shared(t, extent.start_block, blocks)? {
            return Ok(true);
        }
        at = extent.end_blocks();
    }
    Ok(false)
}

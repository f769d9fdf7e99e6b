//! The blocks of an attribute fork: read, changed, taken, given back.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{self, AttrLeafHeader};
use super::short::bad_attributes;
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::alloc::{self, Alignment, AllocRequest, RmapOwner};
use crate::xfs::bmap::{self, ForkId};
use crate::xfs::buf::{BufKind, BufPlace};
use crate::xfs::extents::{Extent, FoundExtent};
use crate::xfs::format::dir::{self as da, DaHeader, NodeEntry, NodeHeader};
use crate::xfs::trans::Trans;
use crate::xfs::tree::ForkKind;
use crate::xfs::{Ino, corrupt};

/// The attributes of an inode that lie in blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttrTree {
    pub(super) ino: Ino,
}

impl AttrTree {
    pub(super) fn id(self) -> ForkId {
        ForkId {
            ino: self.ino,
            fork: ForkKind::Attribute,
        }
    }

    /// Where a block of the fork lies.
    pub(super) fn place(self, t: &mut Trans<'_>, at: u32) -> Result<BufPlace> {
        match bmap::lookup(t, self.id(), at.into())? {
            FoundExtent::Extent(extent) if !extent.unwritten => {
                let (ag, block) = t.geometry().split(extent.block_at(at.into()));
                Ok(t.place_of_block(ag, block))
            }
            _ => Err(bad_attributes(t, self.ino, "the index points to a hole")),
        }
    }

    /// The content of a block of the index.
    pub(super) fn read<'t>(self, t: &'t mut Trans<'_>, at: u32) -> Result<&'t [u8]> {
        let place = self.place(t, at)?;
        let bytes = t.read(place, BufKind::AttrIndex)?;
        let header = DaHeader::ref_from_prefix(bytes).ok();
        let is_own = header.is_some_and(|(header, _)| header.owner.get() == self.ino.0);
        match is_own {
            true => Ok(bytes),
            false => Err(corrupt(place.addr_bytes, "attributes of another inode")),
        }
    }

    /// The same, to be changed.
    pub(super) fn edit<'t>(self, t: &'t mut Trans<'_>, at: u32) -> Result<&'t mut [u8]> {
        self.read(t, at)?;
        let place = self.place(t, at)?;
        t.edit(place, BufKind::AttrIndex)
    }

    /// The error of a block of the index.
    #[cold]
    pub(super) fn bad(self, t: &mut Trans<'_>, at: u32, what: &str) -> Error {
        let addr = self.place(t, at).map_or(0, |place| place.addr_bytes);
        corrupt(addr, format!("attributes of {}: {what}", self.ino))
    }

    pub(super) fn is_leaf(self, t: &mut Trans<'_>, at: u32) -> Result<bool> {
        Ok(header(self.read(t, at)?).0 == layout::MAGIC_LEAF)
    }

    /// Previous and next block of the same level.
    pub(super) fn siblings(self, t: &mut Trans<'_>, at: u32) -> Result<(u32, u32)> {
        let (_, back, forw) = header(self.read(t, at)?);
        Ok((back, forw))
    }

    pub(super) fn set_siblings(
        self,
        t: &mut Trans<'_>,
        at: u32,
        (back, forw): (Option<u32>, Option<u32>),
    ) -> Result<()> {
        let bytes = self.edit(t, at)?;
        if let Ok((header, _)) = DaHeader::mut_from_prefix(bytes) {
            if let Some(back) = back {
                header.back = back.into();
            }
            if let Some(forw) = forw {
                header.forw = forw.into();
            }
        }
        Ok(())
    }

    /// Links a new block behind another one.
    pub(super) fn link_behind(self, t: &mut Trans<'_>, left: u32, new: u32) -> Result<()> {
        let (_, next) = self.siblings(t, left)?;
        self.set_siblings(t, new, (Some(left), Some(next)))?;
        self.set_siblings(t, left, (None, Some(new)))?;
        if next != 0 {
            if self.siblings(t, next)?.0 != left {
                return Err(self.bad(t, next, "it does not point back to its neighbour"));
            }
            self.set_siblings(t, next, (Some(new), None))?;
        }
        Ok(())
    }

    /// Takes a block out of its level, and gives it back.
    pub(super) fn unlink(self, t: &mut Trans<'_>, at: u32) -> Result<()> {
        let (back, forw) = self.siblings(t, at)?;
        if back != 0 {
            if self.siblings(t, back)?.1 != at {
                return Err(self.bad(t, back, "it does not point to its neighbour"));
            }
            self.set_siblings(t, back, (None, Some(forw)))?;
        }
        if forw != 0 {
            if self.siblings(t, forw)?.0 != at {
                return Err(self.bad(t, forw, "it does not point back to its neighbour"));
            }
            self.set_siblings(t, forw, (Some(back), None))?;
        }
        self.give(t, at)
    }

    /// Allocates a block in the first hole of the fork, as xfs_da_grow_inode(): a leaf without
    /// entries.
    pub(super) fn take(self, t: &mut Trans<'_>) -> Result<u32> {
        let at = self.first_unused(t, 1)?;
        let extent = self.allocate(t, at, 1, None, true)?;
        bmap::add(t, self.id(), &extent)?;
        let (ag, block) = t.geometry().split(extent.start_block);
        let place = t.place_of_block(ag, block);
        let header = self.new_header(t, layout::MAGIC_LEAF, &place);
        let bytes = t.fresh(place, BufKind::AttrIndex)?;
        if let Some(room) = bytes.get_mut(..size_of::<DaHeader>()) {
            room.copy_from_slice(header.as_bytes());
        }
        crate::xfs::format::attr_leaf::fill_leaf(bytes, &[]);
        u32::try_from(at).map_err(|_| bad_attributes(t, self.ino, "too many blocks"))
    }

    fn new_header(self, t: &Trans<'_>, magic: u16, place: &BufPlace) -> DaHeader {
        DaHeader {
            forw: 0.into(),
            back: 0.into(),
            magic: magic.into(),
            pad: 0.into(),
            crc: [0; 4],
            daddr: place.basic_block().into(),
            lsn: 0.into(),
            uuid: t.meta_uuid(),
            owner: self.ino.0.into(),
        }
    }

    /// Allocates `most` blocks or less for a hole at this block of the fork.
    pub(super) fn allocate(
        self,
        t: &mut Trans<'_>,
        at: u64,
        most: u32,
        near: Option<&Extent>,
        is_logged: bool,
    ) -> Result<Extent> {
        let owner = RmapOwner::fork(self.ino, ForkKind::Attribute, at, false);
        let request = AllocRequest {
            near: near.map(|extent| extent.block_at(extent.end_blocks())),
            alignment: Alignment::None,
            is_logged,
            ..AllocRequest::new(owner, 1, most)
        };
        let got = alloc::allocate(t, &request)?;
        Ok(Extent {
            offset_blocks: at,
            start_block: got.start,
            blocks: got.blocks.into(),
            unwritten: false,
        })
    }

    /// The first hole of so many blocks, as xfs_bmap_first_unused().
    pub(super) fn first_unused(self, t: &mut Trans<'_>, blocks: u64) -> Result<u64> {
        let mut at = 0_u64;
        loop {
            let next = bmap::next_extent(t, self.id(), at)?;
            match next {
                Some(extent) if extent.offset_blocks < at.saturating_add(blocks) => {
                    at = extent.end_blocks();
                }
                _ => break,
            }
        }
        match at.saturating_add(blocks) <= u32::MAX.into() {
            true => Ok(at),
            false => Err(Error::new(
                ErrorKind::NoSpace,
                format!("{} has no room for more attributes", self.ino),
            )),
        }
    }

    /// Frees a block of the index.
    pub(super) fn give(self, t: &mut Trans<'_>, at: u32) -> Result<()> {
        let place = self.place(t, at)?;
        t.discard(place);
        let at = u64::from(at);
        self.free(t, at..at.saturating_add(1))
    }

    /// Frees blocks of the fork.
    pub(super) fn free(self, t: &mut Trans<'_>, blocks: Range<u64>) -> Result<()> {
        const MOST_EXTENTS: usize = 16;
        let mut rest = blocks;
        while !rest.is_empty() {
            rest = bmap::unmap(t, self.id(), rest, MOST_EXTENTS)?.rest;
        }
        Ok(())
    }

    /// Level and entries of a node.
    pub(super) fn node(self, t: &mut Trans<'_>, at: u32) -> Result<(u16, Vec<NodeEntry>)> {
        let found = da::node(self.read(t, at)?).and_then(|(header, entries)| {
            da::check_node_entries(entries)?;
            Ok((
                header.info.magic.get(),
                header.level.get(),
                entries.to_vec(),
            ))
        });
        match found {
            Ok((da::MAGIC_NODE, level, entries)) => Ok((level, entries)),
            Ok(_) => Err(self.bad(t, at, "no node")),
            Err(error) => Err(self.bad(t, at, error.detail())),
        }
    }

    /// Entries that a node has room for.
    pub(super) fn most_entries(t: &Trans<'_>) -> usize {
        let block = usize::try_from(t.geometry().block_bytes).unwrap_or(0);
        let room = block.saturating_sub(size_of::<NodeHeader>());
        room.checked_div(size_of::<NodeEntry>()).unwrap_or(0)
    }

    /// Makes a block a node with these entries; its identity and its siblings stay.
    pub(super) fn put_node(
        self,
        t: &mut Trans<'_>,
        at: u32,
        level: u16,
        entries: &[NodeEntry],
    ) -> Result<()> {
        let fits = entries.len() <= Self::most_entries(t);
        let bytes = self.edit(t, at)?;
        let placed = NodeHeader::mut_from_prefix(bytes).ok().and_then(|parts| {
            let (header, rest) = parts;
            header.info.magic = da::MAGIC_NODE.into();
            header.count = u16::try_from(entries.len()).ok()?.into();
            header.level = level.into();
            header.pad = 0.into();
            rest.fill(0);
            let raw = entries.as_bytes();
            rest.get_mut(..raw.len())?.copy_from_slice(raw);
            fits.then_some(())
        });
        placed.ok_or_else(|| self.bad(t, at, "more entries than fit into a node"))
    }

    /// Makes a block a leaf without entries.
    pub(super) fn put_empty_leaf(self, t: &mut Trans<'_>, at: u32) -> Result<()> {
        let bytes = self.edit(t, at)?;
        if let Ok((header, _)) = AttrLeafHeader::mut_from_prefix(bytes) {
            header.info.magic = layout::MAGIC_LEAF.into();
        }
        crate::xfs::format::attr_leaf::fill_leaf(bytes, &[]);
        Ok(())
    }

    /// Copies the content of a block to another one, but for what says where it lies.
    pub(super) fn copy(self, t: &mut Trans<'_>, from: u32, to: u32) -> Result<()> {
        let old = self.read(t, from)?.to_vec();
        let place = self.place(t, to)?;
        let (back, forw) = self.siblings(t, to)?;
        let magic = header(&old).0;
        let mut new = self.new_header(t, magic, &place);
        new.back = back.into();
        new.forw = forw.into();
        let bytes = self.edit(t, to)?;
        bytes.copy_from_slice(&old);
        if let Some(room) = bytes.get_mut(..size_of::<DaHeader>()) {
            room.copy_from_slice(new.as_bytes());
        }
        Ok(())
    }
}

/// Magic number, previous and next block.
fn header(bytes: &[u8]) -> (u16, u32, u32) {
    DaHeader::ref_from_prefix(bytes).map_or((0, 0, 0), |(header, _)| {
        (header.magic.get(), header.back.get(), header.forw.get())
    })
}

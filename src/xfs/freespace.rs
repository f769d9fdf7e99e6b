//! Free space of an allocation group ("AG Free Space B+trees"): the same extents in two btrees, one
//! by block number, one by length.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::{ControlFlow, Range};

use zerocopy::FromBytes;

use super::ag::Root;
use super::btree::{Tree, first_u32};
use super::cache::BlockKind;
use super::format::btree::{AllocRecord, BNOBT_MAGIC, CNTBT_MAGIC};
use super::fs::Fs;
use super::{MetaIo, corrupt};
use crate::error::Result;

const BY_BLOCK: Tree = Tree {
    kind: BlockKind::Bnobt,
    magic: BNOBT_MAGIC,
    record_bytes: size_of::<AllocRecord>(),
    key_bytes: size_of::<AllocRecord>(),
    key: first_u32,
    siblings: true,
};

const BY_LENGTH: Tree = Tree {
    kind: BlockKind::Cntbt,
    magic: CNTBT_MAGIC,
    key: |raw| FreeExtent::of(raw).map(FreeExtent::length_key),
    ..BY_BLOCK
};

/// Blocks that are free, side by side in one allocation group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FreeExtent {
    /// First block in the group.
    pub ag_block: u32,
    /// Length in blocks.
    pub blocks: u32,
}

impl FreeExtent {
    fn of(raw: &[u8]) -> Option<Self> {
        let (record, _) = AllocRecord::read_from_prefix(raw).ok()?;
        Some(Self {
            ag_block: record.startblock.get(),
            blocks: record.blockcount.get(),
        })
    }

    /// The order by length: length, then block.
    fn length_key(self) -> u64 {
        u64::from(self.blocks).wrapping_shl(32) | u64::from(self.ag_block)
    }
}

/// The free space of a group in sum, as its two btrees have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FreeSpace {
    /// Extents.
    pub extents: u64,
    /// Blocks of all extents.
    pub blocks: u64,
    /// Blocks of the longest extent.
    pub longest: u32,
}

impl Fs {
    /// Calls `visit` with each free extent of a group that has a block in `blocks`, by block
    /// number.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the btree is broken; what the device
    /// reports.
    pub fn free_by_block(
        &self,
        io: &mut impl MetaIo,
        ag: u32,
        blocks: Range<u32>,
        mut visit: impl FnMut(FreeExtent) -> ControlFlow<()>,
    ) -> Result<()> {
        let (root, _) = self.free_space_roots(io, ag)?;
        let mut free_from = 0;
        let keys = u64::from(blocks.start)..u64::from(blocks.end);
        self.walk_tree(io, &BY_BLOCK, (ag, root), &keys, &mut |raw, addr| {
            let extent = self.free_extent(ag, raw, addr)?;
            if extent.ag_block < free_from {
                return Err(corrupt(addr, "free space btree: records overlap"));
            }
            // Checked to lie in the group.
            free_from = extent.ag_block.saturating_add(extent.blocks);
            if free_from <= blocks.start {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(visit(extent))
        })
    }

    /// Calls `visit` with each free extent of a group of at least `least` blocks, shortest first.
    ///
    /// # Errors
    /// As [`Fs::free_by_block`].
    pub fn free_by_length(
        &self,
        io: &mut impl MetaIo,
        ag: u32,
        least: u32,
        mut visit: impl FnMut(FreeExtent) -> ControlFlow<()>,
    ) -> Result<()> {
        let (_, root) = self.free_space_roots(io, ag)?;
        let keys = u64::from(least).wrapping_shl(32)..u64::MAX;
        self.walk_tree(io, &BY_LENGTH, (ag, root), &keys, &mut |raw, addr| {
            let extent = self.free_extent(ag, raw, addr)?;
            if extent.blocks < least {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(visit(extent))
        })
    }

    /// Adds up the free space of a group, and checks that both btrees have the same extents and the
    /// AGF the same sums.
    ///
    /// # Errors
    /// As [`Fs::free_by_block`].
    pub fn free_space(&self, io: &mut impl MetaIo, ag: u32) -> Result<FreeSpace> {
        let length = self.geometry().ag_length(ag);
        let mut sum = FreeSpace::default();
        self.free_by_block(io, ag, 0..length, |extent| {
            sum.extents = sum.extents.saturating_add(1);
            sum.blocks = sum.blocks.saturating_add(extent.blocks.into());
            sum.longest = sum.longest.max(extent.blocks);
            ControlFlow::Continue(())
        })?;
        let (agf_addr, agf) = self.agf(io, ag)?;
        let bad = |what: &str| corrupt(agf_addr, format!("AGF of group {ag}: {what}"));
        if u64::from(agf.freeblks.get()) != sum.blocks {
            return Err(bad("its free blocks are not those of the btree"));
        }
        if agf.longest.get() != sum.longest {
            return Err(bad("its longest free extent is not that of the btree"));
        }
        // Each of as many different extents of the one is in the other: then they are the same.
        let mut others = 0_u64;
        let (_, root) = self.free_space_roots(io, ag)?;
        let all = 0..u64::MAX;
        let mut list = Vec::new();
        self.walk_tree(io, &BY_LENGTH, (ag, root), &all, &mut |raw, addr| {
            others = others.saturating_add(1);
            if others > sum.extents {
                return Err(corrupt(addr, "free space btrees: more extents by length"));
            }
            list.push(self.free_extent(ag, raw, addr)?);
            Ok(ControlFlow::Continue(()))
        })?;
        list.sort_unstable();
        let mut other = list.into_iter();
        let mut same = true;
        self.free_by_block(io, ag, 0..length, |extent| {
            same = other.next() == Some(extent);
            if same {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if same && other.next().is_none() {
            Ok(sum)
        } else {
            Err(bad("its free space btrees have different extents"))
        }
    }

    /// The roots of both btrees: by block number, and by length.
    fn free_space_roots(&self, io: &mut impl MetaIo, ag: u32) -> Result<(Root, Root)> {
        let (addr, agf) = self.agf(io, ag)?;
        let root = |ag_block: u32, levels: u32| {
            self.check_root(ag, ag_block, levels)
                .map(|()| Root { ag_block, levels })
                .map_err(|what| corrupt(addr, format!("AGF of group {ag}: {what}")))
        };
        Ok((
            root(agf.bno_root.get(), agf.bno_level.get())?,
            root(agf.cnt_root.get(), agf.cnt_level.get())?,
        ))
    }

    fn free_extent(&self, ag: u32, raw: &[u8], addr: u64) -> Result<FreeExtent> {
        let extent = FreeExtent::of(raw);
        let extent = extent.ok_or_else(|| corrupt(addr, "free space btree: too short"))?;
        let start = self.geometry().fs_block(ag, extent.ag_block);
        match self.geometry().check_extent(start, extent.blocks.into()) {
            Ok(()) => Ok(extent),
            Err(what) => Err(corrupt(
                addr,
                format!("free space btree: a free extent is {what}"),
            )),
        }
    }
}

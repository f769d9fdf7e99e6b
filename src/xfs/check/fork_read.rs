//! Blocks of a directory or of attributes, and trees of hashes over them.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;

use zerocopy::FromBytes;

use super::forks::ForkExtent;
use super::state::{At, Checker};
use crate::error::Result;
use crate::xfs::format::BASIC_BLOCK_BYTES;
use crate::xfs::format::dir::{self as layout, BlockHeader, DaHeader};

/// A fork whose blocks are read.
pub(super) struct ForkBlocks<'a> {
    pub(super) ino: u64,
    pub(super) extents: &'a [ForkExtent],
    /// Blocks of the filesystem that are one block of the fork.
    pub(super) step: u64,
    /// Magic number of the leaves of its tree of hashes.
    pub(super) leaf_magic: u16,
    /// For findings.
    pub(super) name: &'static str,
}

/// Called for each leaf, which returns its greatest hash.
pub(super) type LeafVisit<'v> = dyn FnMut(&mut Checker<'_>, At, &[u8]) -> Result<Option<u32>> + 'v;

/// A walk through a tree of hashes.
struct DaWalk<'v> {
    visit: &'v mut LeafVisit<'v>,
    seen: HashSet<u64>,
    /// The block of each level that was visited last, and the next one as it says.
    last: [Option<(u64, u32)>; layout::MAX_TREE_LEVELS as usize + 1],
    is_whole: bool,
}

impl Checker<'_> {
    /// Reads the block at an offset of a fork, in blocks of the filesystem; `None` where that is
    /// not mapped.
    pub(super) fn fork_block(
        &mut self,
        fork: &ForkBlocks<'_>,
        offset: u64,
    ) -> Result<Option<(At, Vec<u8>)>> {
        let mut raw = Vec::new();
        let mut first = None;
        let mut at = offset;
        let end = offset.saturating_add(fork.step);
        while at < end {
            let behind = fork.extents.partition_point(|extent| extent.end() <= at);
            let Some(extent) = fork
                .extents
                .get(behind)
                .filter(|extent| extent.offset <= at)
            else {
                return Ok(None);
            };
            let into = at.saturating_sub(extent.offset);
            let addr = self.geometry.block_addr(extent.start);
            let addr = addr.saturating_add(self.geometry.bytes(into));
            let blocks = extent.end().min(end).saturating_sub(at);
            let len = usize::try_from(self.geometry.bytes(blocks)).unwrap_or(usize::MAX);
            raw.extend(self.read(addr, len)?);
            first.get_or_insert(addr);
            at = at.saturating_add(blocks);
        }
        Ok(first.map(|addr| (At::inode(fork.ino, addr), raw)))
    }

    /// Checks the header of a block of names or of the free index. Whether it is such a block, of
    /// the inode and at its place: no block is read for more than one.
    pub(super) fn check_block_head(
        &mut self,
        (at, ino): (At, u64),
        name: &str,
        raw: &[u8],
        magic: u32,
    ) -> bool {
        let Ok((header, _)) = BlockHeader::ref_from_prefix(raw) else {
            return false;
        };
        if header.magic.get() != magic {
            let detail = format!("{name}: no magic ({:#x})", header.magic.get());
            self.finding(at, detail);
            return false;
        }
        let seal = (layout::BLOCK_CRC_OFFSET, &header.uuid, header.lsn.get());
        self.check_seal(at, name, raw, seal);
        self.check_identity((at, ino), name, header.owner.get(), header.daddr.get())
    }

    fn check_identity(&mut self, (at, ino): (At, u64), name: &str, owner: u64, daddr: u64) -> bool {
        if owner != ino {
            self.finding(at, format!("{name}: of inode {owner}"));
            return false;
        }
        let is_here = daddr == at.addr.unwrap_or(0) / BASIC_BLOCK_BYTES;
        if !is_here {
            self.finding(at, format!("{name}: of another address ({daddr})"));
        }
        is_here
    }

    /// Checks the header of a block of a tree of hashes. As [`Checker::check_block_head`].
    pub(super) fn check_da_head(
        &mut self,
        (at, ino): (At, u64),
        name: &str,
        raw: &[u8],
        header: &DaHeader,
    ) -> bool {
        let seal = (layout::DA_CRC_OFFSET, &header.uuid, header.lsn.get());
        self.check_seal(at, name, raw, seal);
        self.check_identity((at, ino), name, header.owner.get(), header.daddr.get())
    }

    /// Walks the tree of hashes whose root lies at an offset of a fork. Whether all of it could be
    /// read.
    pub(super) fn walk_hashes<'v>(
        &mut self,
        fork: &ForkBlocks<'_>,
        root: u64,
        at: At,
        visit: &'v mut LeafVisit<'v>,
    ) -> Result<bool> {
        let mut walk = DaWalk {
            visit,
            seen: HashSet::new(),
            last: Default::default(),
            is_whole: true,
        };
        self.hash_block(fork, (root, None), at, &mut walk)?;
        if walk.is_whole && walk.last.iter().flatten().any(|(_, next)| *next != 0) {
            let detail = format!("{}: the last block of a level has a next one", fork.name);
            self.finding(at, detail);
        }
        Ok(walk.is_whole)
    }

    /// Checks a block and all below it. Returns its greatest hash.
    fn hash_block(
        &mut self,
        fork: &ForkBlocks<'_>,
        (block, above): (u64, Option<u16>),
        parent: At,
        walk: &mut DaWalk<'_>,
    ) -> Result<Option<u32>> {
        let name = fork.name;
        let found = if walk.seen.insert(block) {
            self.fork_block(fork, block)?
        } else {
            None
        };
        let Some((at, raw)) = found else {
            let detail = format!("{name}: points to block {block}, a hole or a block used twice");
            self.finding(parent, detail);
            walk.is_whole = false;
            return Ok(None);
        };
        let Ok((header, _)) = DaHeader::ref_from_prefix(&raw) else {
            return Ok(None);
        };
        let level = match header.magic.get() {
            magic if magic == fork.leaf_magic => Some(0),
            layout::MAGIC_NODE => layout::node(&raw)
                .ok()
                .map(|(header, _)| header.level.get()),
            _ => None,
        };
        let fits = match (level, above) {
            (Some(level), Some(above)) => level.checked_add(1) == Some(above),
            (Some(level), None) => level < layout::MAX_TREE_LEVELS,
            (None, _) => false,
        };
        let Some(level) = level.filter(|_| fits) else {
            let detail = format!(
                "{name}: not a block of the tree at its level (magic {:#x})",
                header.magic.get()
            );
            self.finding(at, detail);
            walk.is_whole = false;
            return Ok(None);
        };
        if !self.check_da_head((at, fork.ino), name, &raw, header) {
            walk.is_whole = false;
            return Ok(None);
        }
        if let Some(last) = walk.last.get_mut(usize::from(level)) {
            let before = last.replace((block, header.forw.get()));
            let back = before.map_or(0, |(block, _)| block);
            let is_next = before.is_none_or(|(_, next)| u64::from(next) == block);
            if (u64::from(header.back.get()) != back || !is_next) && walk.is_whole {
                self.finding(at, format!("{name}: its neighbours are other blocks"));
            }
        }
        if level == 0 {
            return (walk.visit)(self, at, &raw);
        }
        self.hash_children(fork, (at, level), &raw, walk)
    }

    fn hash_children(
        &mut self,
        fork: &ForkBlocks<'_>,
        (at, level): (At, u16),
        raw: &[u8],
        walk: &mut DaWalk<'_>,
    ) -> Result<Option<u32>> {
        let Ok((_, entries)) = layout::node(raw) else {
            return Ok(None);
        };
        if layout::check_node_entries(entries).is_err() {
            let detail = format!("{}: hashes of a node out of order", fork.name);
            self.finding(at, detail);
        }
        for entry in entries {
            let child = (entry.before.get().into(), Some(level));
            let found = self.hash_block(fork, child, at, walk)?;
            if let Some(found) = found
                && found != entry.hash.get()
            {
                let detail = format!(
                    "{}: greatest hash of block {} is {:#x}, expected {found:#x}",
                    fork.name,
                    entry.before.get(),
                    entry.hash.get()
                );
                self.finding(at, detail);
            }
        }
        Ok(entries.last().map(|entry| entry.hash.get()))
    }
}

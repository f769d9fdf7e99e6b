//! Btrees inside an allocation group: inodes, reference counts, free space.
//!
//! A walk visits the records of a key range in order. It ends on any disk: each step goes one level
//! down, and every block's keys must lie between its own key in the parent and the next one, so
//! that no block can be met twice.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use zerocopy::FromBytes;

use super::ag::Root;
use super::cache::BlockKind;
use super::format::btree::{BtreeShortHeader, MAX_LEVELS, NULL_SIBLING, SHORT_CRC_OFFSET};
use super::format::{self, BASIC_BLOCK_BYTES};
use super::fs::Fs;
use super::{MetaIo, corrupt};
use crate::error::Result;

/// What distinguishes one tree from another. A key is the beginning of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    pub(super) kind: BlockKind,
    pub(super) magic: u32,
    pub(super) record_bytes: usize,
    pub(super) key_bytes: usize,
    /// The order of a key or record.
    pub(super) key: fn(&[u8]) -> Option<u64>,
    /// Whether the pointers between neighbours are checked: a reader needs none of them, a writer
    /// does.
    pub(super) siblings: bool,
}

const POINTER_BYTES: usize = 4;

impl Tree {
    fn child_bytes(&self) -> usize {
        self.key_bytes.saturating_add(POINTER_BYTES)
    }

    /// Bytes from one key to the next in a block of this level.
    fn step_bytes(&self, level: u32) -> usize {
        if level == 0 {
            self.record_bytes
        } else {
            self.key_bytes
        }
    }

    /// The order of the record or key of this index in a block of this level.
    fn key_at(&self, body: &[u8], level: u32, index: usize) -> Option<u64> {
        let start = index.checked_mul(self.step_bytes(level))?;
        (self.key)(body.get(start..)?)
    }

    /// The child of this index in a node.
    fn pointer_at(&self, body: &[u8], index: usize) -> Option<u32> {
        let most = body.len().checked_div(self.child_bytes())?;
        let pointers = most.checked_mul(self.key_bytes)?;
        be32(
            body,
            pointers.checked_add(index.checked_mul(POINTER_BYTES)?)?,
        )
    }
}

/// The order of records that begin with a block or inode number.
pub(super) fn first_u32(raw: &[u8]) -> Option<u64> {
    be32(raw, 0).map(u64::from)
}

/// The big-endian number at a byte offset.
fn be32(raw: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*raw.get(offset..)?.first_chunk()?))
}

/// A block of a tree: where it is, and which keys may be in it.
#[derive(Debug, Clone)]
struct BtreeNode {
    ag_block: u32,
    level: u32,
    keys: Range<u64>,
    /// Whether it is the first, and the last, of its level.
    edges: (bool, bool),
}

/// The block of each level that was visited last: its number and its right sibling.
type Visited = [Option<(u32, u32)>; MAX_LEVELS as usize];

/// One walk through a tree.
struct BtreeWalk<'a, V> {
    fs: &'a Fs,
    tree: &'a Tree,
    ag: u32,
    keys: &'a Range<u64>,
    visit: V,
    visited: Visited,
}

impl Fs {
    /// Visits the records whose keys lie in `keys`, and the last one before them, in order, until
    /// `visit` breaks.
    pub(super) fn walk_tree(
        &self,
        io: &mut impl MetaIo,
        tree: &Tree,
        (ag, root): (u32, Root),
        keys: &Range<u64>,
        visit: &mut impl FnMut(&[u8], u64) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let root = BtreeNode {
            ag_block: root.ag_block,
            level: root.levels.saturating_sub(1),
            keys: 0..u64::MAX,
            edges: (true, true),
        };
        let mut walk = BtreeWalk {
            fs: self,
            tree,
            ag,
            keys,
            visit,
            visited: Visited::default(),
        };
        walk.node(io, &root).map(|_| ())
    }

    /// Reads and checks a block: its address, its bytes, the number of its records.
    fn tree_block(
        &self,
        io: &mut impl MetaIo,
        tree: &Tree,
        ag: u32,
        node: &BtreeNode,
    ) -> Result<(u64, Arc<[u8]>, usize)> {
        let geometry = self.geometry();
        let addr = geometry.ag_block_addr(ag, node.ag_block);
        let bad = |what: &str| corrupt(addr, format!("{:?} btree block: {what}", tree.kind));
        geometry
            .check_extent(geometry.fs_block(ag, node.ag_block), 1)
            .map_err(bad)?;
        let len = usize::try_from(geometry.block_bytes).unwrap_or(usize::MAX);
        let data = self.read_block(io, (addr, len), tree.kind, ag.into(), |raw| {
            self.check_short(raw, addr, ag, tree).map_err(bad)
        })?;
        let (header, body) =
            BtreeShortHeader::ref_from_prefix(&data).map_err(|_| bad("too short"))?;
        if u32::from(header.level.get()) != node.level {
            return Err(bad("at the wrong level"));
        }
        let count = usize::from(header.numrecs.get());
        check_keys(tree, node, body, count).map_err(bad)?;
        Ok((addr, data, count))
    }

    fn check_short(&self, raw: &[u8], addr: u64, ag: u32, tree: &Tree) -> Result<(), &'static str> {
        let (header, _) = BtreeShortHeader::ref_from_prefix(raw).map_err(|_| "too short")?;
        if header.magic.get() != tree.magic {
            return Err("no magic");
        }
        if !format::checksum_ok(raw, SHORT_CRC_OFFSET) {
            return Err("the checksum is wrong");
        }
        if header.uuid != *self.meta_uuid() {
            return Err("of another filesystem (uuid)");
        }
        if header.blkno.get() != addr / BASIC_BLOCK_BYTES {
            return Err("its address is another one");
        }
        if header.owner.get() != ag {
            return Err("of another allocation group");
        }
        Ok(())
    }
}

impl<V: FnMut(&[u8], u64) -> Result<ControlFlow<()>>> BtreeWalk<'_, V> {
    fn node(&mut self, io: &mut impl MetaIo, node: &BtreeNode) -> Result<ControlFlow<()>> {
        let (tree, level) = (self.tree, node.level);
        let (addr, data, count) = self.fs.tree_block(io, tree, self.ag, node)?;
        let bad = |what: &str| corrupt(addr, format!("{:?} btree block: {what}", tree.kind));
        let (header, body) =
            BtreeShortHeader::ref_from_prefix(&data).map_err(|_| bad("too short"))?;
        if tree.siblings {
            self.check_siblings(node, header).map_err(bad)?;
        }
        let key_at = |index: usize| tree.key_at(body, level, index);
        let first = first_of_interest(count, self.keys.start, key_at);
        for index in first..count {
            let key = key_at(index).ok_or_else(|| bad("too short"))?;
            if key >= self.keys.end {
                return Ok(ControlFlow::Break(()));
            }
            let flow = if level == 0 {
                let start = index.wrapping_mul(tree.record_bytes);
                let record = body
                    .get(start..start.wrapping_add(tree.record_bytes))
                    .ok_or_else(|| bad("too short"))?;
                (self.visit)(record, addr)?
            } else {
                let next = index.wrapping_add(1);
                let is_last = next == count;
                let next_key = if is_last { None } else { key_at(next) };
                let child = BtreeNode {
                    ag_block: tree
                        .pointer_at(body, index)
                        .ok_or_else(|| bad("too short"))?,
                    level: level.wrapping_sub(1),
                    keys: key..next_key.unwrap_or(node.keys.end),
                    edges: (node.edges.0 && index == 0, node.edges.1 && is_last),
                };
                self.node(io, &child)?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The blocks of a level are a doubly linked list in the order of their keys.
    fn check_siblings(
        &mut self,
        node: &BtreeNode,
        header: &BtreeShortHeader,
    ) -> Result<(), &'static str> {
        let (left, right) = (header.leftsib.get(), header.rightsib.get());
        let level = usize::try_from(node.level).unwrap_or(usize::MAX);
        let visited = self
            .visited
            .get_mut(level)
            .ok_or("at an impossible level")?;
        let before = visited.replace((node.ag_block, right));
        let left_fits = match before {
            Some((block, right)) => left == block && right == node.ag_block,
            // A walk that begins in the middle does not know the one before.
            None => node.edges.0 == (left == NULL_SIBLING),
        };
        if left_fits && node.edges.1 == (right == NULL_SIBLING) {
            Ok(())
        } else {
            Err("its siblings are not its neighbours")
        }
    }
}

/// Checks number and order of a block's keys, and that they are those the parent said.
fn check_keys(
    tree: &Tree,
    node: &BtreeNode,
    body: &[u8],
    count: usize,
) -> Result<(), &'static str> {
    let each = if node.level == 0 {
        tree.record_bytes
    } else {
        tree.child_bytes()
    };
    if count > body.len().checked_div(each).unwrap_or(0) {
        return Err("too many records");
    }
    if count == 0 && node.level > 0 {
        return Err("without records");
    }
    let mut least = node.keys.start;
    for index in 0..count {
        match tree.key_at(body, node.level, index) {
            Some(key) if key >= least && key < node.keys.end => least = key.wrapping_add(1),
            _ => return Err("keys out of order"),
        }
    }
    Ok(())
}

/// The last index whose key is at most `start`, or 0.
fn first_of_interest(count: usize, start: u64, key_at: impl Fn(usize) -> Option<u64>) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if key_at(middle).is_some_and(|key| key <= start) {
            low = middle.wrapping_add(1);
        } else {
            high = middle;
        }
    }
    low.saturating_sub(1)
}

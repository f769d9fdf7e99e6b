//! Btrees inside an allocation group: inodes and reference counts.
//!
//! A walk visits the records of a key range in order. It ends on any disk: each step goes one level down,
//! and every block's keys must lie between its own key in the parent and the next one, so that no block can
//! be met twice.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use zerocopy::FromBytes;

use super::ag::Root;
use super::cache::BlockKind;
use super::format::btree::{SHORT_CRC_OFFSET, ShortHeader};
use super::format::{self, BASIC_BLOCK_BYTES};
use super::fs::Fs;
use super::{MetaIo, corrupt};
use crate::error::Result;

/// What distinguishes one tree from another. Keys are the first four bytes of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    pub(super) kind: BlockKind,
    pub(super) magic: u32,
    pub(super) record_bytes: usize,
}

const KEY_BYTES: usize = 4;
const POINTER_BYTES: usize = 4;
const CHILD_BYTES: usize = KEY_BYTES + POINTER_BYTES;

/// The big-endian number at a byte offset.
fn be32(raw: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*raw.get(offset..)?.first_chunk()?))
}

/// A block of a tree: where it is, and which keys may be in it.
#[derive(Debug, Clone)]
struct Node {
    ag_block: u32,
    level: u32,
    keys: Range<u64>,
}

impl Fs {
    /// Visits the records whose keys lie in `keys`, and the last one before them, in order, until `visit`
    /// breaks.
    pub(super) fn walk_tree(
        &self,
        io: &mut impl MetaIo,
        tree: &Tree,
        (ag, root): (u32, Root),
        keys: &Range<u32>,
        visit: &mut impl FnMut(&[u8], u64) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let root = Node {
            ag_block: root.ag_block,
            level: root.levels.saturating_sub(1),
            keys: 0..1 << 32,
        };
        self.walk_node(io, tree, ag, &root, keys, visit).map(|_| ())
    }

    fn walk_node(
        &self,
        io: &mut impl MetaIo,
        tree: &Tree,
        ag: u32,
        node: &Node,
        keys: &Range<u32>,
        visit: &mut impl FnMut(&[u8], u64) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let (addr, data, count) = self.tree_block(io, tree, ag, node)?;
        let bad = |what: &str| corrupt(addr, format!("{:?} btree block: {what}", tree.kind));
        let step = if node.level == 0 {
            tree.record_bytes
        } else {
            KEY_BYTES
        };
        let body = data.get(size_of::<ShortHeader>()..).unwrap_or_default();
        let key_at = |index: usize| be32(body, index.wrapping_mul(step)).map(u64::from);
        let first = first_of_interest(count, u64::from(keys.start), key_at);
        let pointers = (body.len() / CHILD_BYTES).wrapping_mul(KEY_BYTES);
        for index in first..count {
            let key = key_at(index).ok_or_else(|| bad("too short"))?;
            if key >= u64::from(keys.end) {
                return Ok(ControlFlow::Break(()));
            }
            let flow = if node.level == 0 {
                let start = index.wrapping_mul(step);
                let record = body
                    .get(start..start.wrapping_add(step))
                    .ok_or_else(|| bad("too short"))?;
                visit(record, addr)?
            } else {
                let pointer = index.wrapping_mul(POINTER_BYTES).wrapping_add(pointers);
                let child = Node {
                    ag_block: be32(body, pointer).ok_or_else(|| bad("too short"))?,
                    level: node.level.wrapping_sub(1),
                    keys: key..key_at(index.wrapping_add(1))
                        .filter(|_| index.wrapping_add(1) < count)
                        .unwrap_or(node.keys.end),
                };
                self.walk_node(io, tree, ag, &child, keys, visit)?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads and checks a block: its address, its bytes, the number of its records.
    fn tree_block(
        &self,
        io: &mut impl MetaIo,
        tree: &Tree,
        ag: u32,
        node: &Node,
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
        let (header, body) = ShortHeader::ref_from_prefix(&data).map_err(|_| bad("too short"))?;
        if u32::from(header.level.get()) != node.level {
            return Err(bad("at the wrong level"));
        }
        let count = usize::from(header.numrecs.get());
        check_keys(tree, node, body, count).map_err(bad)?;
        Ok((addr, data, count))
    }

    fn check_short(&self, raw: &[u8], addr: u64, ag: u32, tree: &Tree) -> Result<(), &'static str> {
        let (header, _) = ShortHeader::ref_from_prefix(raw).map_err(|_| "too short")?;
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

/// Checks number and order of a block's keys, and that they are those the parent said.
fn check_keys(tree: &Tree, node: &Node, body: &[u8], count: usize) -> Result<(), &'static str> {
    let (step, each) = if node.level == 0 {
        (tree.record_bytes, tree.record_bytes)
    } else {
        (KEY_BYTES, CHILD_BYTES)
    };
    if count > body.len().checked_div(each).unwrap_or(0) {
        return Err("too many records");
    }
    if count == 0 && node.level > 0 {
        return Err("without records");
    }
    let mut least = node.keys.start;
    for index in 0..count {
        let key = be32(body, index.wrapping_mul(step)).map(u64::from);
        match key {
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

//! A btree of a group: the structure of all its blocks, and its records.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::state::{At, Checker, Owned};
use crate::error::Result;
use crate::xfs::format::BASIC_BLOCK_BYTES;
use crate::xfs::format::btree::{BtreeShortHeader, MAX_LEVELS, NULL_SIBLING, SHORT_CRC_OFFSET};

/// The order of records: compared from the left.
pub(super) type CheckKey = (u64, u64, u64);

/// What distinguishes one tree from another.
pub(super) struct CheckTree<R> {
    pub(super) name: &'static str,
    pub(super) magic: u32,
    /// The owner of its blocks.
    pub(super) owner: u64,
    /// The least and the greatest key of a record.
    pub(super) keys: fn(&R) -> (CheckKey, CheckKey),
    pub(super) key_bytes: usize,
    pub(super) node_key: fn(&[u8]) -> Option<CheckKey>,
    /// Nodes have a least and a greatest key for each child.
    pub(super) has_high_keys: bool,
    /// Its blocks below the root count as used in the AGF, and come from the free list.
    pub(super) is_lower_counted: bool,
}

/// A tree that was walked.
pub(super) struct Walked<R> {
    pub(super) records: Vec<R>,
    pub(super) blocks: u32,
    /// All of it could be read.
    pub(super) is_whole: bool,
    /// The block of each level that was visited last, and its right sibling.
    last: [Option<(u32, u32, u64)>; MAX_LEVELS as usize],
    last_key: Option<CheckKey>,
}

/// A block as its parent describes it.
struct TreeChild {
    block: u32,
    level: u32,
    is_root: bool,
}

impl<R: FromBytes + Immutable + KnownLayout + Copy> CheckTree<R> {
    fn pointer_at(&self, body: &[u8], index: usize) -> Option<u32> {
        let most = self.most(body, 1);
        let start = most.checked_mul(self.key_stride())?;
        let at = start.checked_add(index.checked_mul(4)?)?;
        Some(u32::from_be_bytes(*body.get(at..)?.first_chunk()?))
    }

    fn key_stride(&self) -> usize {
        let keys = if self.has_high_keys { 2 } else { 1 };
        self.key_bytes.saturating_mul(keys)
    }

    /// Records or children that a block has room for.
    fn most(&self, body: &[u8], level: u32) -> usize {
        let each = match level {
            0 => size_of::<R>(),
            _ => self.key_stride().saturating_add(4),
        };
        body.len().checked_div(each).unwrap_or(0)
    }

    /// The keys of a child in a node.
    fn child_keys(&self, body: &[u8], index: usize) -> Option<(CheckKey, CheckKey)> {
        let at = index.checked_mul(self.key_stride())?;
        let low = (self.node_key)(body.get(at..)?)?;
        let high = match self.has_high_keys {
            true => (self.node_key)(body.get(at.checked_add(self.key_bytes)?..)?)?,
            false => low,
        };
        Some((low, high))
    }
}

impl Checker<'_> {
    /// Walks a whole tree. `levels` is the height that the header of the group gives.
    pub(super) fn walk_group_tree<R: FromBytes + Immutable + KnownLayout + Copy>(
        &mut self,
        tree: &CheckTree<R>,
        (group, at): (u32, At),
        (root, levels): (u32, u32),
    ) -> Result<Walked<R>> {
        let mut walked = Walked {
            records: Vec::new(),
            blocks: 0,
            is_whole: true,
            last: [None; MAX_LEVELS as usize],
            last_key: None,
        };
        if levels == 0 || levels > MAX_LEVELS {
            let detail = format!("{}: impossible height {levels}", tree.name);
            self.finding(at, detail);
            walked.is_whole = false;
        } else {
            let child = TreeChild {
                block: root,
                level: levels.saturating_sub(1),
                is_root: true,
            };
            self.tree_block(tree, group, &child, &mut walked)?;
            for (_, right, addr) in walked.last.into_iter().flatten() {
                if walked.is_whole && right != NULL_SIBLING {
                    let detail = format!(
                        "{}: the last block of its level has a right sibling, {right}",
                        tree.name
                    );
                    self.finding(At::group(group, addr), detail);
                }
            }
        }
        if !walked.is_whole {
            self.group_is_incomplete(group);
        }
        if tree.is_lower_counted
            && let Some(group) = self.group(group)
        {
            let lower = walked.blocks.saturating_sub(1);
            group.lower_blocks = group.lower_blocks.saturating_add(lower);
        }
        Ok(walked)
    }

    /// Checks a block and all below it. Returns its least and its greatest key; `None` for one that
    /// cannot be used or is empty.
    fn tree_block<R: FromBytes + Immutable + KnownLayout + Copy>(
        &mut self,
        tree: &CheckTree<R>,
        group: u32,
        child: &TreeChild,
        walked: &mut Walked<R>,
    ) -> Result<Option<(CheckKey, CheckKey)>> {
        let addr = self.geometry.ag_block_addr(group, child.block);
        let at = At::group(group, addr);
        let place = self.geometry.fs_block(group, child.block);
        if let Err(why) = self.geometry.check_extent(place, 1) {
            let detail = format!("{}: a block, {}, is {why}", tree.name, child.block);
            self.finding(At { addr: None, ..at }, detail);
            walked.is_whole = false;
            return Ok(None);
        }
        let is_new = self
            .group(group)
            .is_some_and(|group| group.tree_blocks.insert(child.block));
        if !is_new {
            let detail = format!("{}: the block is already one of a btree", tree.name);
            self.finding(at, detail);
            walked.is_whole = false;
            return Ok(None);
        }
        let owned = Owned {
            start: child.block,
            blocks: 1,
            owner: tree.owner,
            offset: 0,
        };
        self.own(group, owned);
        walked.blocks = walked.blocks.saturating_add(1);
        let raw = self.read(addr, self.block_bytes())?;
        let Ok((header, body)) = BtreeShortHeader::read_from_prefix(&raw) else {
            return Ok(None);
        };
        if !self.check_tree_header(tree, (group, at), child, &header, &raw) {
            walked.is_whole = false;
            return Ok(None);
        }
        let count = usize::from(header.numrecs.get());
        let most = tree.most(body, child.level);
        let is_filled = child.is_root || count >= most / 2;
        if count > most || count == 0 && (child.level > 0 || !child.is_root) {
            let detail = format!("{}: {count} records, at most {most} fit", tree.name);
            self.finding(at, detail);
            walked.is_whole = false;
            return Ok(None);
        }
        if !is_filled {
            let least = most / 2;
            let detail = format!("{}: {count} records, expected at least {least}", tree.name);
            self.finding(at, detail);
        }
        self.check_tree_siblings(tree, at, child, &header, walked);
        if child.level == 0 {
            return Ok(self.tree_records(tree, at, (body, count), walked));
        }
        self.tree_children(tree, group, (child, at), (body, count), walked)
    }

    /// Whether the block is one of the tree, at its level; other faults are only noted.
    fn check_tree_header<R>(
        &mut self,
        tree: &CheckTree<R>,
        (group, at): (u32, At),
        child: &TreeChild,
        header: &BtreeShortHeader,
        raw: &[u8],
    ) -> bool {
        let name = tree.name;
        if header.magic.get() != tree.magic {
            let magic = header.magic.get();
            self.finding(at, format!("{name}: no block of this btree ({magic:#x})"));
            return false;
        }
        let seal = (SHORT_CRC_OFFSET, &header.uuid, header.lsn.get());
        self.check_seal(at, name, raw, seal);
        let expected = at.addr.unwrap_or(0) / BASIC_BLOCK_BYTES;
        if header.blkno.get() != expected {
            let detail = format!(
                "{name}: its address is {}, expected {expected}",
                header.blkno.get()
            );
            self.finding(at, detail);
        }
        if header.owner.get() != group {
            self.finding(at, format!("{name}: of group {}", header.owner.get()));
        }
        let level = u32::from(header.level.get());
        if level != child.level {
            let detail = format!("{name}: at level {level}, expected {}", child.level);
            self.finding(at, detail);
            return false;
        }
        true
    }

    /// The blocks of a level are a doubly linked list.
    fn check_tree_siblings<R>(
        &mut self,
        tree: &CheckTree<R>,
        at: At,
        child: &TreeChild,
        header: &BtreeShortHeader,
        walked: &mut Walked<R>,
    ) {
        let (left, right) = (header.leftsib.get(), header.rightsib.get());
        let level = usize::try_from(child.level).unwrap_or(usize::MAX);
        let Some(last) = walked.last.get_mut(level) else {
            return;
        };
        let before = last.replace((child.block, right, at.addr.unwrap_or(0)));
        let expected = before.map_or(NULL_SIBLING, |(block, ..)| block);
        if left != expected && walked.is_whole {
            let detail = format!(
                "{}: left sibling {left:#x}, expected {expected:#x}",
                tree.name
            );
            self.finding(at, detail);
        }
        if let Some((_, right, addr)) = before
            && right != child.block
            && walked.is_whole
        {
            let at = At {
                addr: Some(addr),
                ..at
            };
            let detail = format!(
                "{}: right sibling {right:#x}, expected {:#x}",
                tree.name, child.block
            );
            self.finding(at, detail);
        }
    }

    /// Takes the records of a leaf.
    fn tree_records<R: FromBytes + Immutable + KnownLayout + Copy>(
        &mut self,
        tree: &CheckTree<R>,
        at: At,
        (body, count): (&[u8], usize),
        walked: &mut Walked<R>,
    ) -> Option<(CheckKey, CheckKey)> {
        let mut rest = body;
        let mut range: Option<(CheckKey, CheckKey)> = None;
        for index in 0..count {
            let (record, after) = R::read_from_prefix(rest).ok()?;
            rest = after;
            let (low, high) = (tree.keys)(&record);
            if walked.last_key.is_some_and(|last| last >= low) {
                let detail = format!("{}: record {index} is out of order", tree.name);
                self.finding(at, detail);
            }
            walked.last_key = Some(low);
            range = Some(match range {
                Some((first, most)) => (first, most.max(high)),
                None => (low, high),
            });
            walked.records.push(record);
        }
        range
    }

    /// Checks the children of a node, and that it has their keys.
    fn tree_children<R: FromBytes + Immutable + KnownLayout + Copy>(
        &mut self,
        tree: &CheckTree<R>,
        group: u32,
        (node, at): (&TreeChild, At),
        (body, count): (&[u8], usize),
        walked: &mut Walked<R>,
    ) -> Result<Option<(CheckKey, CheckKey)>> {
        let mut range: Option<(CheckKey, CheckKey)> = None;
        for index in 0..count {
            let keys = tree.child_keys(body, index);
            let (Some((low, high)), Some(block)) = (keys, tree.pointer_at(body, index)) else {
                break;
            };
            let child = TreeChild {
                block,
                level: node.level.saturating_sub(1),
                is_root: false,
            };
            let found = self.tree_block(tree, group, &child, walked)?;
            if let Some((found_low, found_high)) = found {
                if low != found_low {
                    let detail = format!(
                        "{}: key {index} is {low:x?}, expected {found_low:x?}",
                        tree.name
                    );
                    self.finding(at, detail);
                }
                if tree.has_high_keys && high != found_high {
                    let detail = format!(
                        "{}: high key {index} is {high:x?}, expected {found_high:x?}",
                        tree.name
                    );
                    self.finding(at, detail);
                }
            }
            let (low, high) = found.unwrap_or((low, high));
            range = Some(match range {
                Some((first, most)) => (first, most.max(high)),
                None => (low, high),
            });
        }
        Ok(range)
    }
}

//! The index of attributes: leaves sorted by hash, with nodes above them. Entries are found and
//! added here.
//!
//! Block 0 is always the root. A leaf that is too full becomes two, or three when its new entry is
//! larger than each half; nodes are split by the middle, as by xfs_da3_split().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::blocks::AttrTree;
use super::key::AttrKey;
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::circle::Circle;
use crate::xfs::format::attr_leaf::{
    LeafItem, fill_leaf, insert_item, item_attribute, leaf_items, room_bytes,
};
use crate::xfs::format::dir::{MAX_TREE_LEVELS, NodeEntry};
use crate::xfs::trans::Trans;

/// A node on the way to a leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexStep {
    pub(super) at: u32,
    /// The entry that leads on.
    pub(super) index: usize,
}

/// The way to a leaf.
#[derive(Debug, Clone)]
pub(super) struct IndexPath {
    /// From the root down.
    pub(super) nodes: Vec<IndexStep>,
    pub(super) leaf: u32,
}

/// An entry of a node.
pub(super) fn node_entry(hash: u32, before: u32) -> NodeEntry {
    NodeEntry {
        hash: hash.into(),
        before: before.into(),
    }
}

impl AttrTree {
    /// The way to the first leaf that can have a hash; the last leaf beyond all of them.
    pub(super) fn descend(self, t: &mut Trans<'_>, hash: u32) -> Result<IndexPath> {
        let path = IndexPath {
            nodes: Vec::new(),
            leaf: 0,
        };
        self.descend_from(t, path, None, |entries| {
            let index = entries.partition_point(|entry| entry.hash.get() < hash);
            index.min(entries.len().saturating_sub(1))
        })
    }

    /// Goes down from the block that the path ends with.
    fn descend_from(
        self,
        t: &mut Trans<'_>,
        mut path: IndexPath,
        mut level_above: Option<u16>,
        choose: impl Fn(&[NodeEntry]) -> usize,
    ) -> Result<IndexPath> {
        while !self.is_leaf(t, path.leaf)? {
            let at = path.leaf;
            let (level, entries) = self.node(t, at)?;
            let fits = match level_above {
                Some(above) => level.checked_add(1) == Some(above),
                None => level < MAX_TREE_LEVELS,
            };
            let index = choose(&entries);
            let Some(entry) = entries.get(index).filter(|_| fits) else {
                return Err(self.bad(t, at, "a node at an impossible height"));
            };
            level_above = Some(level);
            path.nodes.push(IndexStep { at, index });
            path.leaf = entry.before.get();
        }
        if level_above.is_some_and(|level| level != 1) {
            return Err(self.bad(t, path.leaf, "a leaf at the height of a node"));
        }
        Ok(path)
    }

    /// Goes on to the next leaf; `None` at the last one. As xfs_da3_path_shift().
    pub(super) fn next(self, t: &mut Trans<'_>, path: &IndexPath) -> Result<Option<IndexPath>> {
        let (_, forw) = self.siblings(t, path.leaf)?;
        let mut nodes = path.nodes.clone();
        while let Some(step) = nodes.pop() {
            let (level, entries) = self.node(t, step.at)?;
            let index = step.index.saturating_add(1);
            let Some(entry) = entries.get(index) else {
                continue;
            };
            nodes.push(IndexStep { index, ..step });
            let next = IndexPath {
                nodes,
                leaf: entry.before.get(),
            };
            let next = self.descend_from(t, next, Some(level), |_| 0)?;
            if next.leaf != forw {
                return Err(self.bad(t, path.leaf, "its neighbour is another one by the nodes"));
            }
            return Ok(Some(next));
        }
        Ok(None)
    }

    /// The first leaf from a hash on in which `look` finds something, and that. `look` gets the
    /// leaf's entries.
    fn seek<T>(
        self,
        t: &mut Trans<'_>,
        hash: u32,
        mut look: impl FnMut(u32, &[LeafItem<'_>]) -> Result<Option<T>, &'static str>,
    ) -> Result<Option<(IndexPath, T)>> {
        let mut path = self.descend(t, hash)?;
        let mut circle = Circle::new(path.leaf.into());
        loop {
            let found = leaf_items(self.read(t, path.leaf)?).and_then(|items| {
                let is_over = items.last().is_some_and(|item| item.hash > hash);
                Ok((look(path.leaf, &items)?, is_over))
            });
            let (found, is_over) = found.map_err(|what| self.bad(t, path.leaf, what))?;
            if let Some(found) = found {
                return Ok(Some((path, found)));
            }
            if is_over {
                return Ok(None);
            }
            let Some(next) = self.next(t, &path)? else {
                return Ok(None);
            };
            path = next;
            if circle.closes_at(path.leaf.into()) {
                return Err(self.bad(t, path.leaf, "the leaves go in a circle"));
            }
        }
    }

    /// The leaf that has an attribute, and its place there.
    pub(super) fn find(
        self,
        t: &mut Trans<'_>,
        key: &AttrKey<'_>,
    ) -> Result<Option<(IndexPath, usize)>> {
        let hash = key.hash();
        self.seek(t, hash, |_, items| {
            let first = items.partition_point(|item| item.hash < hash);
            for (index, item) in items.iter().enumerate().skip(first) {
                if item.hash != hash {
                    break;
                }
                if key.is_of(&item_attribute(item)?) {
                    return Ok(Some(index));
                }
            }
            Ok(None)
        })
    }

    /// The way to a leaf in which a hash is the last.
    fn path_to(self, t: &mut Trans<'_>, hash: u32, leaf: u32) -> Result<IndexPath> {
        let found = self.seek(t, hash, |at, _| Ok((at == leaf).then_some(())))?;
        match found {
            Some((path, ())) => Ok(path),
            None => Err(self.bad(t, leaf, "a leaf that no node leads to")),
        }
    }

    /// Sets the greatest hash of the child that the path leads to below its node number `depth`, as
    /// xfs_da3_fixhashpath().
    pub(super) fn fix_hash(
        self,
        t: &mut Trans<'_>,
        path: &IndexPath,
        depth: usize,
        hash: u32,
    ) -> Result<()> {
        let above = path.nodes.get(..=depth).unwrap_or_default();
        for step in above.iter().rev() {
            let (level, mut entries) = self.node(t, step.at)?;
            let is_last = step.index.saturating_add(1) == entries.len();
            match entries.get_mut(step.index) {
                Some(entry) if entry.hash.get() == hash => return Ok(()),
                Some(entry) => entry.hash = hash.into(),
                None => return Err(self.bad(t, step.at, "a node has fewer entries")),
            }
            self.put_node(t, step.at, level, &entries)?;
            if !is_last {
                break;
            }
        }
        Ok(())
    }

    /// Sets the greatest hash of the leaf that the path leads to.
    pub(super) fn fix_leaf_hash(
        self,
        t: &mut Trans<'_>,
        path: &IndexPath,
        hash: u32,
    ) -> Result<()> {
        match path.nodes.len().checked_sub(1) {
            Some(depth) => self.fix_hash(t, path, depth, hash),
            None => Ok(()),
        }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; [`ErrorKind::Corrupt`] when the index is damaged; the device's. The
    /// transaction must be dropped then.
    pub(super) fn insert(self, t: &mut Trans<'_>, item: &LeafItem<'_>) -> Result<()> {
        let path = self.descend(t, item.hash)?;
        let at = path.leaf;
        let added = self.edit(t, at).map(|bytes| {
            let items = leaf_items(bytes)?;
            let index = items.partition_point(|other| other.hash <= item.hash);
            let is_last = index == items.len();
            Ok((insert_item(bytes, index, item)?, is_last))
        })?;
        match added.map_err(|what| self.bad(t, at, what))? {
            (true, true) => self.fix_leaf_hash(t, &path, item.hash),
            (true, false) => Ok(()),
            (false, _) => self.split_leaf(t, &path, item),
        }
    }

    /// Splits a leaf that has no room for a new entry.
    fn split_leaf(self, t: &mut Trans<'_>, path: &IndexPath, item: &LeafItem<'_>) -> Result<()> {
        let old = self.read(t, path.leaf)?.to_vec();
        let mut items = leaf_items(&old).map_err(|what| self.bad(t, path.leaf, what))?;
        let index = items.partition_point(|other| other.hash <= item.hash);
        items.insert(index, *item);
        let parts = parts_of(&items, index, room_bytes(old.len()));
        let mut at = path.leaf;
        let mut made = Vec::with_capacity(parts.len());
        if path.nodes.is_empty() {
            // Block 0 becomes a node.
            at = self.take(t)?;
        }
        for (number, part) in parts.iter().enumerate() {
            if number > 0 {
                let new = self.take(t)?;
                self.link_behind(t, at, new)?;
                at = new;
            }
            let is_filled = fill_leaf(self.edit(t, at)?, part);
            let hash = part.last().filter(|_| is_filled).map(|item| item.hash);
            let hash = hash.ok_or_else(|| self.bad(t, at, "an entry that fits into no leaf"))?;
            made.push((hash, at));
        }
        if path.nodes.is_empty() {
            let entries: Vec<_> = made
                .iter()
                .map(|(hash, at)| node_entry(*hash, *at))
                .collect();
            return self.put_node(t, 0, 1, &entries);
        }
        let mut path = path.clone();
        let mut made = made.into_iter();
        if let Some((hash, _)) = made.next() {
            self.fix_leaf_hash(t, &path, hash)?;
        }
        let mut made = made.peekable();
        while let Some((hash, at)) = made.next() {
            let depth = path.nodes.len().saturating_sub(1);
            self.insert_child(t, &path, depth, node_entry(hash, at))?;
            if made.peek().is_some() {
                path = self.path_to(t, hash, at)?;
            }
        }
        Ok(())
    }

    /// Adds a child behind the one that the path leads to below its node number `depth`.
    fn insert_child(
        self,
        t: &mut Trans<'_>,
        path: &IndexPath,
        depth: usize,
        child: NodeEntry,
    ) -> Result<()> {
        let Some(step) = path.nodes.get(depth).copied() else {
            return Err(self.bad(t, path.leaf, "no node above"));
        };
        let (level, mut entries) = self.node(t, step.at)?;
        let index = step.index.saturating_add(1).min(entries.len());
        entries.insert(index, child);
        if entries.len() <= Self::most_entries(t) {
            self.put_node(t, step.at, level, &entries)?;
            return match (
                index.saturating_add(1) == entries.len(),
                depth.checked_sub(1),
            ) {
                (true, Some(above)) => self.fix_hash(t, path, above, child.hash.get()),
                _ => Ok(()),
            };
        }
        let (left, right) = entries.split_at(entries.len() / 2);
        let hash_of = |part: &[NodeEntry]| part.last().map_or(0, |entry| entry.hash.get());
        let Some(above) = depth.checked_sub(1) else {
            return self.split_root(t, level, left, right);
        };
        let new = self.take(t)?;
        self.put_node(t, new, level, right)?;
        self.link_behind(t, step.at, new)?;
        self.put_node(t, step.at, level, left)?;
        self.fix_hash(t, path, above, hash_of(left))?;
        self.insert_child(t, path, above, node_entry(hash_of(right), new))
    }

    /// The root stays where it is; its entries go to two new nodes, as by xfs_da3_root_split().
    fn split_root(
        self,
        t: &mut Trans<'_>,
        level: u16,
        left: &[NodeEntry],
        right: &[NodeEntry],
    ) -> Result<()> {
        let higher = level.saturating_add(1);
        if higher >= MAX_TREE_LEVELS {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("{} has no room for more attributes", self.ino),
            ));
        }
        let mut entries = Vec::with_capacity(2);
        for part in [left, right] {
            let at = self.take(t)?;
            self.put_node(t, at, level, part)?;
            let hash = part.last().map_or(0, |entry| entry.hash.get());
            entries.push(node_entry(hash, at));
        }
        if let [left, right] = entries.as_slice() {
            self.link_behind(t, left.before.get(), right.before.get())?;
        }
        self.put_node(t, 0, higher, &entries)
    }
}

/// The entries of a leaf that is too full, among them a new one, in parts that fit into a leaf
/// each: two of about the same size where that is possible. Entries of one hash stay together where
/// they can, which a lookup is faster for, and which xfs_repair demands.
fn parts_of<'i, 'a>(items: &'i [LeafItem<'a>], new: usize, room: usize) -> Vec<&'i [LeafItem<'a>]> {
    let hash = items.get(new).map_or(0, |item| item.hash);
    let run = items.partition_point(|item| item.hash < hash)
        ..items.partition_point(|item| item.hash <= hash);
    let with_run = [0, run.start, run.end, items.len()];
    let with_new = [0, new, new.saturating_add(1), items.len()];
    let cuts = match (halves(items, room, true), halves(items, room, false)) {
        (Some(cut), _) => vec![0, cut, items.len()],
        (None, _) if fits_in(items.get(run).unwrap_or_default(), room) => with_run.to_vec(),
        (None, Some(cut)) => vec![0, cut, items.len()],
        (None, None) => with_new.to_vec(),
    };
    let ranges = cuts.iter().zip(cuts.iter().skip(1));
    let parts = ranges.map(|(start, end)| items.get(*start..*end).unwrap_or_default());
    parts.filter(|part| !part.is_empty()).collect()
}

fn bytes_of(items: &[LeafItem<'_>]) -> usize {
    items
        .iter()
        .fold(0, |sum, item| sum.saturating_add(item.bytes()))
}

fn fits_in(items: &[LeafItem<'_>], room: usize) -> bool {
    bytes_of(items) <= room
}

/// Where entries are cut into two parts that fit into a leaf each and differ least in size; between
/// different hashes only, where that is asked for.
fn halves(items: &[LeafItem<'_>], room: usize, between_hashes: bool) -> Option<usize> {
    let all = bytes_of(items);
    let mut best: Option<(usize, usize)> = None;
    let mut before = 0_usize;
    let mut hash_before = None;
    for (index, item) in items.iter().enumerate() {
        let after = all.saturating_sub(before);
        let is_between = hash_before != Some(item.hash) || !between_hashes;
        let is_possible = index > 0 && is_between && before <= room && after <= room;
        let uneven = before.abs_diff(after);
        if is_possible && best.is_none_or(|(_, least)| uneven < least) {
            best = Some((index, uneven));
        }
        before = before.saturating_add(item.bytes());
        hash_before = Some(item.hash);
    }
    best.map(|(index, _)| index)
}

//! Entries of the index of attributes are removed: leaves and nodes that are nearly empty are
//! joined with a neighbour below the same node, and empty ones are freed, as by xfs_da3_join().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::blocks::AttrTree;
use super::index::{IndexPath, IndexStep};
use super::short::OwnedAttr;
use crate::error::Result;
use crate::xfs::bmap;
use crate::xfs::format::attr::{FLAG_INCOMPLETE, FLAG_LOCAL, Value};
use crate::xfs::format::attr_leaf::{
    LeafItem, fill_leaf, item_attribute, item_is_local, leaf_items, remove_item, room_bytes,
};
use crate::xfs::trans::Trans;

/// Below this percentage of its room a leaf is joined with a neighbour: `m_attr_magicpct`.
const LEAST_PERCENT: usize = 37;

impl AttrTree {
    /// Removes the entry at an index of a leaf.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when the index is damaged; the device's. The transaction must
    /// be dropped then.
    pub(super) fn remove(self, t: &mut Trans<'_>, path: &IndexPath, index: usize) -> Result<()> {
        let at = path.leaf;
        let rest = self.edit(t, at).map(|bytes| {
            remove_item(bytes, index)?;
            let items = leaf_items(bytes)?;
            let last = items.last().map(|item| item.hash);
            Ok((last, index == items.len(), used_bytes(&items), bytes.len()))
        })?;
        let (last, was_last, used, block) = rest.map_err(|what| self.bad(t, at, what))?;
        let Some(depth) = path.nodes.len().checked_sub(1) else {
            return Ok(());
        };
        let Some(last) = last else {
            self.unlink(t, at)?;
            return self.remove_child(t, path, depth);
        };
        if was_last {
            self.fix_hash(t, path, depth, last)?;
        }
        match used < block.saturating_mul(LEAST_PERCENT) / 100 {
            true => self.join_leaf(t, path, depth),
            false => Ok(()),
        }
    }

    /// Removes the child that the path leads to below its node number `depth`. It was freed.
    fn remove_child(self, t: &mut Trans<'_>, path: &IndexPath, depth: usize) -> Result<()> {
        let Some(step) = path.nodes.get(depth).copied() else {
            return Err(self.bad(t, path.leaf, "no node above"));
        };
        let (level, mut entries) = self.node(t, step.at)?;
        if step.index >= entries.len() {
            return Err(self.bad(t, step.at, "a node has fewer entries"));
        }
        entries.remove(step.index);
        let Some(last) = entries.last().map(|entry| entry.hash.get()) else {
            // Its last child.
            let Some(above) = depth.checked_sub(1) else {
                return self.put_empty_leaf(t, step.at);
            };
            self.unlink(t, step.at)?;
            return self.remove_child(t, path, above);
        };
        let was_last = step.index == entries.len();
        self.put_node(t, step.at, level, &entries)?;
        let Some(above) = depth.checked_sub(1) else {
            return self.lower_root(t);
        };
        if was_last {
            self.fix_hash(t, path, above, last)?;
        }
        self.join_node(t, path, above)
    }

    /// The child that the path leads to below its node number `depth`, with a neighbour below the
    /// same node: left and right one, with the path to the right one, for each of both sides.
    fn neighbours(
        self,
        t: &mut Trans<'_>,
        path: &IndexPath,
        depth: usize,
    ) -> Result<Vec<(u32, u32, IndexPath)>> {
        let nodes = path.nodes.get(..=depth).unwrap_or_default();
        let Some((step, above)) = nodes.split_last() else {
            return Ok(Vec::new());
        };
        let (_, entries) = self.node(t, step.at)?;
        let starts = [Some(step.index), step.index.checked_sub(1)];
        let mut pairs = Vec::with_capacity(2);
        for left in starts.into_iter().flatten() {
            let right = left.saturating_add(1);
            if let (Some(first), Some(second)) = (entries.get(left), entries.get(right)) {
                let (_, next) = self.siblings(t, first.before.get())?;
                if next != second.before.get() || first.before == second.before {
                    return Err(self.bad(t, next, "neighbours that do not follow each other"));
                }
                let last = IndexStep {
                    index: right,
                    ..*step
                };
                let nodes = [above, &[last]].concat();
                let leaf = second.before.get();
                pairs.push((first.before.get(), leaf, IndexPath { nodes, leaf }));
            }
        }
        Ok(pairs)
    }

    /// Joins a leaf with a neighbour where both leave a quarter of it free, as
    /// xfs_attr3_leaf_toosmall() and xfs_attr3_leaf_unbalance().
    fn join_leaf(self, t: &mut Trans<'_>, path: &IndexPath, depth: usize) -> Result<()> {
        for (left, right, right_path) in self.neighbours(t, path, depth)? {
            let first = self.read(t, left)?.to_vec();
            let second = self.read(t, right)?.to_vec();
            let items = leaf_items(&first).and_then(|mut items| {
                items.extend(leaf_items(&second)?);
                Ok(items)
            });
            let items = items.map_err(|what| self.bad(t, left, what))?;
            let room = room_bytes(first.len());
            if used_bytes(&items) > room.saturating_sub(first.len() / 4) {
                continue;
            }
            if !items.is_sorted_by_key(|item| item.hash) {
                return Err(self.bad(t, right, "leaves whose hashes are out of order"));
            }
            fill_leaf(self.edit(t, left)?, &items);
            return self.join_done(t, &right_path, depth);
        }
        Ok(())
    }

    /// The right one of two children was joined into the left one.
    fn join_done(self, t: &mut Trans<'_>, right: &IndexPath, depth: usize) -> Result<()> {
        let Some(step) = right.nodes.get(depth).copied() else {
            return Err(self.bad(t, right.leaf, "no node above"));
        };
        let (level, mut entries) = self.node(t, step.at)?;
        let hash = entries.get(step.index).map(|entry| entry.hash);
        let left = step.index.checked_sub(1);
        let left = left.and_then(|index| entries.get_mut(index));
        match (left, hash) {
            (Some(left), Some(hash)) => left.hash = hash,
            _ => return Err(self.bad(t, step.at, "a node has fewer entries")),
        }
        self.put_node(t, step.at, level, &entries)?;
        self.unlink(t, right.leaf)?;
        self.remove_child(t, right, depth)
    }

    /// Joins a node that is half empty with a neighbour, as xfs_da3_node_toosmall().
    fn join_node(self, t: &mut Trans<'_>, path: &IndexPath, depth: usize) -> Result<()> {
        let most = Self::most_entries(t);
        let child = path.nodes.get(depth.saturating_add(1)).copied();
        let Some(child) = child else {
            return Ok(());
        };
        if self.node(t, child.at)?.1.len() > most / 2 {
            return Ok(());
        }
        for (left, right, right_path) in self.neighbours(t, path, depth)? {
            let (level, mut entries) = self.node(t, left)?;
            let (other, more) = self.node(t, right)?;
            entries.extend(more);
            if other != level || !entries.is_sorted_by_key(|entry| entry.hash.get()) {
                return Err(self.bad(t, right, "nodes that do not follow each other"));
            }
            if entries.len() <= most.saturating_sub(most / 4) {
                self.put_node(t, left, level, &entries)?;
                return self.join_done(t, &right_path, depth);
            }
        }
        Ok(())
    }

    /// A root with one child takes its content, as xfs_da3_root_join().
    fn lower_root(self, t: &mut Trans<'_>) -> Result<()> {
        while !self.is_leaf(t, 0)? {
            let (level, entries) = self.node(t, 0)?;
            let [only] = entries.as_slice() else {
                return Ok(());
            };
            let child = only.before.get();
            let fits = match self.is_leaf(t, child)? {
                true => level == 1,
                false => self.node(t, child)?.0.checked_add(1) == Some(level),
            };
            if !fits || child == 0 || self.siblings(t, child)? != (0, 0) {
                return Err(self.bad(t, child, "an only child that is none"));
            }
            self.copy(t, child, 0)?;
            self.give(t, child)?;
        }
        Ok(())
    }

    /// All attributes, where they are in one leaf that is the only block, with short values; those
    /// that are being made or removed are omitted, as by xfs_attr_shortform_allfit().
    pub(super) fn all_short(self, t: &mut Trans<'_>) -> Result<Option<Vec<OwnedAttr>>> {
        let only = bmap::last_extent(t, self.id())?;
        let is_alone = only.is_some_and(|extent| extent.offset_blocks == 0 && extent.blocks == 1);
        if !is_alone || !self.is_leaf(t, 0)? {
            return Ok(None);
        }
        let short = leaf_items(self.read(t, 0)?).and_then(|items| {
            let mut all = Vec::with_capacity(items.len());
            for item in items {
                if item.flags & FLAG_INCOMPLETE != 0 {
                    continue;
                }
                let attribute = item_attribute(&item)?;
                match attribute.value {
                    Value::Here(value) if item_is_local(&item) => all.push(OwnedAttr {
                        flags: attribute.flags & !FLAG_LOCAL,
                        name: attribute.name.to_vec(),
                        value: value.to_vec(),
                    }),
                    _ => return Ok(None),
                }
            }
            Ok(all.iter().all(OwnedAttr::is_short).then_some(all))
        });
        short.map_err(|what| self.bad(t, 0, what))
    }
}

fn used_bytes(items: &[LeafItem<'_>]) -> usize {
    items
        .iter()
        .fold(0, |sum, item| sum.saturating_add(item.bytes()))
}

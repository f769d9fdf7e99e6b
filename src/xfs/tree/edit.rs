//! Records inserted, removed and replaced, and the keys above them.
//!
//! Every change looks for its place anew, because the way that it took may be gone after a block
//! was split. The number of tries is limited, as is the height of a tree.

use super::super::format::btree::MAX_LEVELS;
use super::blocks::BlockSource;
use super::kinds::KeyOrder;
use super::path::{NodeAt, PathStep, TreePath, level_u32};
use crate::error::Result;

/// The most often that an insertion makes room before it must succeed: at each level a sibling may
/// take entries, or the node is split.
const TRIES: u32 = 4 * MAX_LEVELS;

impl TreePath<'_, '_> {
    /// Inserts a record whose key no other has.
    pub(super) fn insert(&mut self, record: &[u8], source: &mut dyn BlockSource) -> Result<()> {
        let key = (self.shape.record_order)(record);
        for _ in 0..TRIES {
            let is_there = self.descend(&key)?;
            let leaf = self.step(0)?;
            if is_there {
                return Err(self.bad(leaf.at, "a record that is to be added is there already"));
            }
            let (count, layout) = self.fill(leaf.at, 0)?;
            if count < layout.most {
                self.change(leaf.at, 0, |layout, bytes| {
                    layout.insert(bytes, leaf.index, record, 0)
                })?;
                return self.update_keys_of(leaf);
            }
            self.make_room(0, source)?;
        }
        Err(self.bad(NodeAt::Inode, "no room for a record can be made"))
    }

    /// Removes the record with a key.
    pub(super) fn remove(&mut self, key: &KeyOrder, source: &mut dyn BlockSource) -> Result<()> {
        self.descend_to(key)?;
        let leaf = self.step(0)?;
        let behind = leaf.index.saturating_add(1);
        self.change(leaf.at, 0, |layout, bytes| {
            layout.remove(bytes, leaf.index..behind)
        })?;
        self.update_keys_of(leaf)?;
        self.rebalance(source)
    }

    /// Replaces the record with a key by one with the same key or one between its neighbours.
    pub(super) fn update(&mut self, key: &KeyOrder, record: &[u8]) -> Result<()> {
        let new = (self.shape.record_order)(record);
        if new != *key {
            self.check_between(key, &new)?;
        }
        self.descend_to(key)?;
        let leaf = self.step(0)?;
        self.change(leaf.at, 0, |layout, bytes| {
            layout.set_item(bytes, leaf.index, record)
        })?;
        self.update_keys_of(leaf)
    }

    /// Replaces a record, which must be there as it is given, by one with any key that no other
    /// has.
    pub(super) fn replace(
        &mut self,
        old: &[u8],
        new: &[u8],
        source: &mut dyn BlockSource,
    ) -> Result<()> {
        let order = self.shape.record_order;
        let (key, new_key) = (order(old), order(new));
        self.descend_to(&key)?;
        let leaf = self.step(0)?;
        let is_only = self.steps.len() == 1;
        let (layout, bytes) = self.node(leaf.at, 0)?;
        let is_it = layout.item(bytes, leaf.index) == Some(old);
        let stays = new_key == key || layout.fits_at(bytes, leaf.index, &new_key, is_only);
        if !is_it {
            return Err(self.bad(leaf.at, "a record is another one than expected"));
        }
        if !stays {
            self.remove(&key, source)?;
            return self.insert(new, source);
        }
        self.change(leaf.at, 0, |layout, bytes| {
            layout.set_item(bytes, leaf.index, new)
        })?;
        self.update_keys_of(leaf)
    }

    fn descend_to(&mut self, key: &KeyOrder) -> Result<()> {
        let is_there = self.descend(key)?;
        match self.steps.first_mut() {
            Some(leaf) if is_there => {
                leaf.index = leaf.index.saturating_sub(1);
                Ok(())
            }
            Some(leaf) => {
                let at = leaf.at;
                Err(self.bad(at, "a record is missing"))
            }
            None => Err(self.bad(NodeAt::Inode, "a record is missing")),
        }
    }

    /// Whether a record with the key `old` may get the key `new`.
    fn check_between(&mut self, old: &KeyOrder, new: &KeyOrder) -> Result<()> {
        let order = self.shape.record_order;
        self.descend_to(old)?;
        let leaf = self.step(0)?;
        let (layout, bytes) = self.node(leaf.at, 0)?;
        if layout.fits_at(bytes, leaf.index, new, false) {
            return Ok(());
        }
        let before = self.record_before()?.map(order);
        self.descend(old)?;
        let after = self.record_here()?.map(order);
        if before.is_none_or(|before| before < *new) && after.is_none_or(|after| after > *new) {
            return Ok(());
        }
        let leaf = self.step(0)?;
        Err(self.bad(leaf.at, "a record would go past its neighbour"))
    }

    /// The record of a leaf was changed: the same, where it has a part in the keys.
    fn update_keys_of(&mut self, leaf: PathStep) -> Result<()> {
        if leaf.index == 0 || self.shape.high.is_some() {
            self.update_keys(0)
        } else {
            Ok(())
        }
    }

    /// Makes the keys of the nodes above equal to those in the node of this level.
    pub(super) fn update_keys(&mut self, mut level: usize) -> Result<()> {
        loop {
            let above = level.saturating_add(1);
            if above >= self.steps.len() {
                return Ok(());
            }
            let (step, parent) = (self.step(level)?, self.step(above)?);
            if !self.set_keys(above, parent, step.at)? {
                return Ok(());
            }
            level = above;
        }
    }

    /// Writes the keys of a child into its parent. Whether they were others.
    pub(super) fn set_keys(
        &mut self,
        level: usize,
        parent: PathStep,
        child: NodeAt,
    ) -> Result<bool> {
        let below = level_u32(level).saturating_sub(1);
        let (layout, bytes) = self.node(child, below)?;
        let Some(keys) = layout.keys(bytes) else {
            return Ok(false);
        };
        let (layout, bytes) = self.node(parent.at, level_u32(level))?;
        if layout.item(bytes, parent.index) == Some(keys.as_slice()) {
            return Ok(false);
        }
        self.change(parent.at, level_u32(level), |layout, bytes| {
            layout.set_item(bytes, parent.index, keys.as_slice())
        })?;
        Ok(true)
    }

    /// The child of a node.
    pub(super) fn child(&mut self, at: NodeAt, level: usize, index: usize) -> Result<NodeAt> {
        let (layout, bytes) = self.node(at, level_u32(level))?;
        let pointer = layout.pointer(bytes, index);
        let pointer = pointer.filter(|_| index < layout.count(bytes));
        pointer
            .map(NodeAt::Block)
            .ok_or_else(|| self.bad(at, "a child is missing"))
    }
}

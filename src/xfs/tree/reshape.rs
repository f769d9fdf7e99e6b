//! Blocks that are too full or too empty: split, joined; levels added and removed.

use super::super::format::btree::MAX_LEVELS;
use super::blocks::BlockSource;
use super::path::{NodeAt, PathStep, TreePath, level_u32};
use super::root::{self, GroupRoot, RootPlace};
use crate::error::Result;

impl TreePath<'_, '_> {
    /// Makes room in the full node of a level, or in one above when that has to be first.
    pub(super) fn make_room(&mut self, level: usize, source: &mut dyn BlockSource) -> Result<()> {
        let above = level.saturating_add(1);
        if above >= self.steps.len() {
            return self.grow(source);
        }
        let (step, parent) = (self.step(level)?, self.step(above)?);
        let (children, parent_layout) = self.fill(parent.at, above)?;
        // Where the new entry belongs; that of a node is right of the one on the way.
        let index = step.index.saturating_add(usize::from(level > 0));
        let right = parent.index.saturating_add(1);
        let neighbours = [
            (right < children).then_some((right, parent.index)),
            parent.index.checked_sub(1).map(|left| (left, left)),
        ];
        for (neighbour, left) in neighbours.into_iter().flatten() {
            let at = self.child(parent.at, above, neighbour)?;
            let (count, layout) = self.fill(at, level)?;
            let room = layout.most.saturating_sub(count);
            let moved = room.div_ceil(2);
            let stay = layout.most.saturating_sub(moved);
            let is_left = neighbour == left;
            // The new entry must not need the last room where others were moved to.
            let goes_along = if is_left {
                index <= moved
            } else {
                index > stay
            };
            if room > usize::from(goes_along) {
                let in_left = if is_left {
                    count.saturating_add(moved)
                } else {
                    stay
                };
                return self.redistribute(level, left, in_left);
            }
        }
        if children >= parent_layout.most {
            return self.make_room(above, source);
        }
        self.split(level, source)
    }

    /// Moves entries between a child of the parent and the one right of it, until the left one has
    /// this many.
    fn redistribute(&mut self, level: usize, left_index: usize, in_left: usize) -> Result<()> {
        let above = level.saturating_add(1);
        let parent = self.step(above)?.at;
        let right_index = left_index.saturating_add(1);
        let left = self.child(parent, above, left_index)?;
        let right = self.child(parent, above, right_index)?;
        let (count, _) = self.fill(left, level)?;
        let number = level_u32(level);
        if in_left < count {
            let moved = self.change(left, number, |layout, bytes| {
                layout.remove(bytes, in_left..count)
            })?;
            self.change(right, number, |layout, bytes| {
                layout.insert_all(bytes, 0, &moved)
            })?;
        } else {
            let more = in_left.saturating_sub(count);
            let moved =
                self.change(right, number, |layout, bytes| layout.remove(bytes, 0..more))?;
            self.change(left, number, |layout, bytes| {
                layout.insert_all(bytes, count, &moved)
            })?;
        }
        for (index, child) in [(left_index, left), (right_index, right)] {
            self.set_keys(above, PathStep { at: parent, index }, child)?;
        }
        self.update_keys(above)
    }

    /// Moves the upper half of a full node into a new block right of it. The parent has room.
    fn split(&mut self, level: usize, source: &mut dyn BlockSource) -> Result<()> {
        let above = level.saturating_add(1);
        let (step, parent) = (self.step(level)?, self.step(above)?);
        let (count, _) = self.fill(step.at, level)?;
        let stay = count.saturating_sub(count / 2);
        let number = level_u32(level);
        let NodeAt::Block(left) = step.at else {
            return Err(self.bad(step.at, "a root below another node"));
        };
        let new = self.take(number, source)?;
        let moved = self.change(step.at, number, |layout, bytes| {
            layout.remove(bytes, stay..count)
        })?;
        let new_at = NodeAt::Block(new);
        self.change(new_at, number, |layout, bytes| {
            layout.insert_all(bytes, 0, &moved)
        })?;
        let (_, right) = self.siblings(left, number)?;
        self.link(number, Some(left), Some(new))?;
        self.link(number, Some(new), right)?;
        let (layout, bytes) = self.node(new_at, number)?;
        let keys = layout.keys(bytes);
        let keys = keys.ok_or_else(|| self.bad(new_at, "without records"))?;
        let index = parent.index.saturating_add(1);
        self.change(parent.at, level_u32(above), |layout, bytes| {
            layout.insert(bytes, index, keys.as_slice(), new)
        })?;
        self.set_keys(above, parent, step.at)?;
        self.update_keys(above)
    }

    /// Adds a level: above the root block, or below the root in an inode.
    fn grow(&mut self, source: &mut dyn BlockSource) -> Result<()> {
        let top = self.steps.len().saturating_sub(1);
        let old = self.step(top)?.at;
        let levels = level_u32(self.steps.len());
        if levels.saturating_add(1) > MAX_LEVELS {
            return Err(self.bad(old, "too many levels"));
        }
        match (self.root, old) {
            (RootPlace::Group(ag), NodeAt::Block(pointer)) => {
                let new = self.take(levels, source)?;
                let (layout, bytes) = self.node(old, level_u32(top))?;
                let keys = layout.keys(bytes);
                let keys = keys.ok_or_else(|| self.bad(old, "without records"))?;
                self.change(NodeAt::Block(new), levels, |layout, bytes| {
                    layout.insert(bytes, 0, keys.as_slice(), pointer)
                })?;
                let root = GroupRoot {
                    ag_block: u32::try_from(new).unwrap_or(u32::MAX),
                    levels: levels.saturating_add(1),
                };
                root::set_group_root(self.t, ag, self.shape.kind, root)
            }
            _ => {
                let number = level_u32(top);
                let new = self.take(number, source)?;
                let (count, _) = self.fill(old, top)?;
                let moved =
                    self.change(old, number, |layout, bytes| layout.remove(bytes, 0..count))?;
                let keys = self.change(NodeAt::Block(new), number, |layout, bytes| {
                    layout.insert_all(bytes, 0, &moved)?;
                    layout.keys(bytes)
                })?;
                self.change(old, number, |layout, bytes| {
                    layout.set_level(bytes, number.checked_add(1)?)?;
                    layout.insert(bytes, 0, keys.as_slice(), new)
                })
            }
        }
    }

    /// After a removal: fills up or joins the nodes of the way that have too few entries.
    pub(super) fn rebalance(&mut self, source: &mut dyn BlockSource) -> Result<()> {
        for level in 0..self.steps.len() {
            let above = level.saturating_add(1);
            if above >= self.steps.len() {
                break;
            }
            let (step, parent) = (self.step(level)?, self.step(above)?);
            let (count, layout) = self.fill(step.at, level)?;
            let least = layout.least();
            if count >= least {
                return Ok(());
            }
            let (children, _) = self.fill(parent.at, above)?;
            let right = parent.index.saturating_add(1);
            let (right, left) = (
                (right < children).then_some(right),
                parent.index.checked_sub(1),
            );
            if let Some(right) = right {
                let at = self.child(parent.at, above, right)?;
                let spare = self.fill(at, level)?.0.saturating_sub(least);
                if spare > 0 {
                    let in_left = count.saturating_add(spare.div_ceil(2));
                    return self.redistribute(level, parent.index, in_left);
                }
            }
            if let Some(left) = left {
                let at = self.child(parent.at, above, left)?;
                let (others, _) = self.fill(at, level)?;
                let spare = others.saturating_sub(least);
                if spare > 0 {
                    let in_left = others.saturating_sub(spare.div_ceil(2));
                    return self.redistribute(level, left, in_left);
                }
            }
            match (left, right) {
                (Some(left), _) => self.join(level, left, source)?,
                (None, Some(_)) => self.join(level, parent.index, source)?,
                // The only child of a root in an inode.
                (None, None) => {}
            }
        }
        self.shrink(source)
    }

    /// Moves all entries of a child's right neighbour into the child, and frees the neighbour.
    fn join(
        &mut self,
        level: usize,
        left_index: usize,
        source: &mut dyn BlockSource,
    ) -> Result<()> {
        let above = level.saturating_add(1);
        let parent = self.step(above)?.at;
        let right_index = left_index.saturating_add(1);
        let left = self.child(parent, above, left_index)?;
        let right = self.child(parent, above, right_index)?;
        let (NodeAt::Block(left_block), NodeAt::Block(right_block)) = (left, right) else {
            return Err(self.bad(parent, "a root below another node"));
        };
        let number = level_u32(level);
        let (count, _) = self.fill(right, level)?;
        let moved = self.change(right, number, |layout, bytes| {
            layout.remove(bytes, 0..count)
        })?;
        self.change(left, number, |layout, bytes| {
            layout.insert_all(bytes, layout.count(bytes), &moved)
        })?;
        if self.siblings(left_block, number)?.1 != Some(right_block) {
            return Err(self.bad(left, "its siblings are not its neighbours"));
        }
        let (_, next) = self.siblings(right_block, number)?;
        self.link(number, Some(left_block), next)?;
        let behind = right_index.saturating_add(1);
        self.change(parent, level_u32(above), |layout, bytes| {
            layout.remove(bytes, right_index..behind)
        })?;
        let index = left_index;
        self.set_keys(above, PathStep { at: parent, index }, left)?;
        self.update_keys(above)?;
        self.give(right_block, source)
    }

    /// Removes levels of which the root has only one child.
    fn shrink(&mut self, source: &mut dyn BlockSource) -> Result<()> {
        for _ in 0..MAX_LEVELS {
            let (at, level) = self.top()?;
            let (layout, bytes) = self.node(at, level)?;
            if level == 0 || layout.count(bytes) != 1 {
                return Ok(());
            }
            let child = layout.pointer(bytes, 0);
            let child = child.ok_or_else(|| self.bad(at, "a child is missing"))?;
            let below = level.saturating_sub(1);
            match (self.root, at) {
                (RootPlace::Group(ag), NodeAt::Block(old)) => {
                    self.node(NodeAt::Block(child), below)?;
                    let root = GroupRoot {
                        ag_block: u32::try_from(child).unwrap_or(u32::MAX),
                        levels: level,
                    };
                    root::set_group_root(self.t, ag, self.shape.kind, root)?;
                    self.give(old, source)?;
                }
                _ => {
                    let room = layout.most;
                    let (layout, bytes) = self.node(NodeAt::Block(child), below)?;
                    let count = layout.count(bytes);
                    // A leaf does not go into the inode: then the fork changes its form.
                    if below == 0 || count > room || count == 0 {
                        return Ok(());
                    }
                    let moved = self.change(NodeAt::Block(child), below, |layout, bytes| {
                        layout.remove(bytes, 0..count)
                    })?;
                    self.change(at, level, |layout, bytes| {
                        layout.remove(bytes, 0..1)?;
                        layout.set_level(bytes, below)?;
                        layout.insert_all(bytes, 0, &moved)
                    })?;
                    self.give(child, source)?;
                }
            }
        }
        Ok(())
    }

    /// Puts the content of a fork of extents into a first leaf, and makes the fork its root. The
    /// bytes of the fork were set to zero, its form to that of a btree.
    pub(super) fn plant(&mut self, records: &[u8], source: &mut dyn BlockSource) -> Result<()> {
        let new = self.take(0, source)?;
        let keys = self.change(NodeAt::Block(new), 0, |layout, bytes| {
            layout.insert_raw(bytes, 0, records, &[])?;
            layout.keys(bytes)
        })?;
        self.change(NodeAt::Inode, 1, |layout, bytes| {
            layout.set_level(bytes, 1)?;
            layout.insert(bytes, 0, keys.as_slice(), new)
        })
    }

    /// The records of a fork's tree that is one leaf, and frees that. The root stays for the
    /// caller to be overwritten. `None` when there are more leaves.
    pub(super) fn uproot(&mut self, source: &mut dyn BlockSource) -> Result<Option<Vec<u8>>> {
        let (at, level) = self.top()?;
        let (layout, bytes) = self.node(at, level)?;
        let child = layout.pointer(bytes, 0);
        let child = child.filter(|_| level == 1 && layout.count(bytes) == 1);
        let Some(child) = child else {
            return Ok(None);
        };
        let (count, _) = self.fill(NodeAt::Block(child), 0)?;
        let records = self.change(NodeAt::Block(child), 0, |layout, bytes| {
            layout.remove(bytes, 0..count)
        })?;
        self.give(child, source)?;
        Ok(Some(records.into_items()))
    }
}

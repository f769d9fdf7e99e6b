//! Ways through a tree: from the root to a leaf, and from there to the next record.

use std::cell::Cell;
use std::ops::{ControlFlow, Range};

use zerocopy::FromBytes;

use super::super::buf::BufPlace;
use super::super::corrupt;
use super::super::format::btree::{BtreeShortHeader, LongHeader, MAX_LEVELS};
use super::super::geometry::FsBlock;
use super::super::trans::Trans;
use super::kinds::{KeyOrder, TreeShape};
use super::node::NodeLayout;
use super::root::{self, RootPlace};
use crate::error::{Error, Result};

/// A node or leaf of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeAt {
    /// A block, as the tree's pointers number it.
    Block(u64),
    /// The root in an inode.
    Inode,
}

/// A node on the way to a leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct PathStep {
    pub(super) at: NodeAt,
    /// In a node the child on the way. In a leaf the position of the record, or the number of
    /// records.
    pub(super) index: usize,
}

/// A tree in a transaction, and the way to one of its leaves.
pub(super) struct TreePath<'t, 'a> {
    pub(super) t: &'t mut Trans<'a>,
    pub(super) shape: &'static TreeShape,
    pub(super) root: RootPlace,
    /// From the leaf, level 0, up to the root.
    pub(super) steps: Vec<PathStep>,
}

impl<'t, 'a> TreePath<'t, 'a> {
    pub(super) fn new(t: &'t mut Trans<'a>, shape: &'static TreeShape, root: RootPlace) -> Self {
        Self {
            t,
            shape,
            root,
            steps: Vec::new(),
        }
    }

    /// The root and its level.
    pub(super) fn top(&mut self) -> Result<(NodeAt, u32)> {
        match self.root {
            RootPlace::Group(ag) => {
                let root = root::group_root(self.t, ag, self.shape.kind)?;
                let level = root.levels.saturating_sub(1);
                Ok((NodeAt::Block(root.ag_block.into()), level))
            }
            RootPlace::Fork(ino, fork) => {
                let raw = self.t.inode(ino)?;
                let level = root::root_range(raw, fork).and_then(|range| {
                    let bytes = raw.get(range).unwrap_or_default();
                    let layout = NodeLayout::of_root(self.shape, bytes.len());
                    layout.check(bytes)?;
                    match layout.level(bytes) {
                        level @ 1..MAX_LEVELS => Ok(level),
                        _ => Err("impossible height"),
                    }
                });
                let level = level.map_err(|what| self.bad(NodeAt::Inode, what))?;
                Ok((NodeAt::Inode, level))
            }
        }
    }

    /// The block that a pointer of the tree means.
    pub(super) fn fs_block(&self, pointer: u64) -> FsBlock {
        match self.root {
            RootPlace::Group(ag) => {
                let ag_block = u32::try_from(pointer).unwrap_or(u32::MAX);
                self.t.geometry().fs_block(ag, ag_block)
            }
            RootPlace::Fork(..) => FsBlock(pointer),
        }
    }

    /// The buffer of a block.
    pub(super) fn place(&self, pointer: u64) -> Result<BufPlace> {
        let block = self.fs_block(pointer);
        let geometry = self.t.geometry();
        let (ag, ag_block) = geometry.split(block);
        let place = self.t.place_of_block(ag, ag_block);
        let same_group = match self.root {
            RootPlace::Group(own) => own == ag && u64::from(ag_block) == pointer,
            RootPlace::Fork(..) => true,
        };
        match geometry.check_extent(block, 1) {
            Ok(()) if same_group => Ok(place),
            Ok(()) => Err(self.bad_at(place.addr_bytes, "a block in another group")),
            Err(what) => Err(self.bad_at(place.addr_bytes, what)),
        }
    }

    /// The error for a node whose content is wrong.
    #[cold]
    pub(super) fn bad(&self, at: NodeAt, what: &str) -> Error {
        let addr = match (at, self.root) {
            (NodeAt::Block(pointer), _) => self.t.geometry().block_addr(self.fs_block(pointer)),
            (NodeAt::Inode, RootPlace::Fork(ino, _)) => {
                let place = self.t.inode_place(ino);
                place.map_or(0, |(place, range)| {
                    place.addr_bytes.saturating_add(range.start as u64)
                })
            }
            (NodeAt::Inode, RootPlace::Group(_)) => 0,
        };
        self.bad_at(addr, what)
    }

    #[cold]
    fn bad_at(&self, addr_bytes: u64, what: &str) -> Error {
        let owner = match self.root {
            RootPlace::Group(ag) => format!("of group {ag}"),
            RootPlace::Fork(ino, _) => format!("of {ino}"),
        };
        let kind = self.shape.kind.name();
        corrupt(addr_bytes, format!("{kind} {owner}: {what}"))
    }

    /// The bytes of a node, checked.
    pub(super) fn node(&mut self, at: NodeAt, level: u32) -> Result<(NodeLayout, &[u8])> {
        let shape = self.shape;
        match (at, self.root) {
            (NodeAt::Inode, RootPlace::Fork(ino, fork)) => {
                let raw = self.t.inode(ino)?;
                // It was found there before.
                let range = root::root_range(raw, fork).unwrap_or_default();
                let bytes = raw.get(range).unwrap_or_default();
                Ok((NodeLayout::of_root(shape, bytes.len()), bytes))
            }
            (NodeAt::Inode, RootPlace::Group(_)) => Err(self.bad(at, "no such root")),
            (NodeAt::Block(pointer), root) => {
                let place = self.place(pointer)?;
                let layout = NodeLayout::of_block(shape, level, place.len_bytes);
                let check = |bytes: &[u8]| layout.check(bytes);
                let bytes = self.t.read_checked(place, shape.kind, check)?;
                match check_header(&layout, bytes, level, root) {
                    Ok(()) => Ok((layout, bytes)),
                    Err(what) => {
                        let kind = shape.kind.name();
                        Err(corrupt(place.addr_bytes, format!("{kind}: {what}")))
                    }
                }
            }
        }
    }

    /// The same, to be changed; it was read before.
    fn edit(&mut self, at: NodeAt, level: u32) -> Result<(NodeLayout, &mut [u8])> {
        match (at, self.root) {
            (NodeAt::Block(pointer), _) => {
                let place = self.place(pointer)?;
                let layout = NodeLayout::of_block(self.shape, level, place.len_bytes);
                Ok((layout, self.t.edit(place, self.shape.kind)?))
            }
            (NodeAt::Inode, RootPlace::Fork(ino, fork)) => {
                let raw = self.t.edit_inode(ino)?;
                let range = root::root_range(raw, fork).unwrap_or_default();
                let bytes = raw.get_mut(range).unwrap_or_default();
                Ok((NodeLayout::of_root(self.shape, bytes.len()), bytes))
            }
            (NodeAt::Inode, RootPlace::Group(_)) => Err(self.bad(at, "no such root")),
        }
    }

    /// Changes a node that was read before, by a function that fails on inconsistent content.
    pub(super) fn change<R>(
        &mut self,
        at: NodeAt,
        level: u32,
        change: impl FnOnce(&NodeLayout, &mut [u8]) -> Option<R>,
    ) -> Result<R> {
        let (layout, bytes) = self.edit(at, level)?;
        let done = change(&layout, bytes);
        done.ok_or_else(|| self.bad(at, "its content is inconsistent"))
    }

    /// A step of the way by its level.
    pub(super) fn step(&self, level: usize) -> Result<PathStep> {
        let step = self.steps.get(level).copied();
        step.ok_or_else(|| corrupt(0, "a btree changed its height"))
    }

    /// Entries of the node on the way, and how many there is room for.
    pub(super) fn fill(&mut self, at: NodeAt, level: usize) -> Result<(usize, NodeLayout)> {
        let (layout, bytes) = self.node(at, level_u32(level))?;
        Ok((layout.count(bytes), layout))
    }

    /// The way to where a key belongs: in the leaf the number of records that are not greater.
    /// Whether the last of these is equal.
    pub(super) fn descend(&mut self, key: &KeyOrder) -> Result<bool> {
        let (at, level) = self.top()?;
        self.steps.clear();
        // The leaf is asked last.
        let is_there = Cell::new(false);
        self.go_down(at, level, None, |layout, bytes| {
            let above = layout.upper_bound(bytes, key);
            let last = above.checked_sub(1);
            let order = last.and_then(|last| layout.order(bytes, last));
            is_there.set(order == Some(*key));
            above
        })?;
        Ok(is_there.get())
    }

    /// The way to where the first record with a key or a higher one is.
    pub(super) fn descend_below(&mut self, key: &KeyOrder) -> Result<()> {
        let is_there = self.descend(key)?;
        match self.steps.first_mut() {
            Some(leaf) if is_there => leaf.index = leaf.index.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }

    /// Goes from a node down to a leaf, and puts the steps, lowest first, before those there are.
    /// `choose` gives the number of entries that the way does not go past.
    fn go_down(
        &mut self,
        mut at: NodeAt,
        mut level: u32,
        mut first: Option<KeyOrder>,
        choose: impl Fn(&NodeLayout, &[u8]) -> usize,
    ) -> Result<()> {
        // Only a root without nodes may be empty.
        let may_be_empty = level == 0 && first.is_none();
        let above = self.steps.len();
        loop {
            let (layout, bytes) = self.node(at, level)?;
            let has_entries = layout.count(bytes) > 0;
            let fits = first.is_none() || layout.order(bytes, 0) == first;
            let chosen = choose(&layout, bytes);
            let index = if level == 0 {
                chosen
            } else {
                chosen.saturating_sub(1)
            };
            let next = layout.pointer(bytes, index).zip(layout.order(bytes, index));
            if !has_entries && !may_be_empty {
                return Err(self.bad(at, "without records"));
            }
            if !fits {
                return Err(self.bad(at, "its first key is not the one in its parent"));
            }
            self.steps.push(PathStep { at, index });
            if level == 0 {
                break;
            }
            let (child, order) = next.ok_or_else(|| self.bad(at, "too short"))?;
            (at, level, first) = (NodeAt::Block(child), level.saturating_sub(1), Some(order));
        }
        if let Some(down) = self.steps.get_mut(above..) {
            down.reverse();
        }
        self.steps.rotate_left(above);
        Ok(())
    }

    /// Goes to the leaf after the one of the way, or before it. `false` when there is none: then
    /// the way is as it was.
    pub(super) fn next_leaf(&mut self, forward: bool) -> Result<bool> {
        for level in 1..self.steps.len() {
            let step = self.step(level)?;
            let (layout, bytes) = self.node(step.at, level_u32(level))?;
            let count = layout.count(bytes);
            let index = if forward {
                step.index.checked_add(1).filter(|index| *index < count)
            } else {
                step.index.checked_sub(1)
            };
            let Some(index) = index else {
                continue;
            };
            let next = layout.pointer(bytes, index).zip(layout.order(bytes, index));
            let (child, order) = next.ok_or_else(|| self.bad(step.at, "too short"))?;
            self.steps.drain(..level);
            if let Some(step) = self.steps.first_mut() {
                step.index = index;
            }
            let child_level = level_u32(level).saturating_sub(1);
            self.go_down(
                NodeAt::Block(child),
                child_level,
                Some(order),
                |layout, bytes| if forward { 0 } else { layout.count(bytes) },
            )?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The record at the end of the way, or the first one behind it.
    pub(super) fn record_here(&mut self) -> Result<Option<&[u8]>> {
        let leaf = self.step(0)?;
        let (count, _) = self.fill(leaf.at, 0)?;
        if leaf.index >= count && !self.next_leaf(true)? {
            return Ok(None);
        }
        let leaf = self.step(0)?;
        let (layout, bytes) = self.node(leaf.at, 0)?;
        Ok(layout.item(bytes, leaf.index))
    }

    /// The record before the end of the way.
    pub(super) fn record_before(&mut self) -> Result<Option<&[u8]>> {
        let leaf = self.step(0)?;
        if leaf.index == 0 && !self.next_leaf(false)? {
            return Ok(None);
        }
        let leaf = self.step(0)?;
        let (layout, bytes) = self.node(leaf.at, 0)?;
        let before = leaf.index.checked_sub(1);
        Ok(before.and_then(|before| layout.item(bytes, before)))
    }

    /// Calls `visit` with all records from the end of the way on.
    pub(super) fn walk<B>(
        &mut self,
        mut visit: impl FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<Option<B>> {
        loop {
            let leaf = self.step(0)?;
            let (layout, bytes) = self.node(leaf.at, 0)?;
            for index in leaf.index..layout.count(bytes) {
                let record = layout.item(bytes, index).unwrap_or_default();
                if let ControlFlow::Break(value) = visit(record) {
                    return Ok(Some(value));
                }
            }
            if !self.next_leaf(true)? {
                return Ok(None);
            }
        }
    }

    /// Calls `visit` with all records of which a block lies in `blocks`, where extents overlap.
    pub(super) fn walk_overlapping<B>(
        &mut self,
        blocks: &Range<u64>,
        visit: &mut dyn FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<Option<B>> {
        let (at, level) = self.top()?;
        self.walk_node(at, level, None, blocks, visit)
    }

    fn walk_node<B>(
        &mut self,
        at: NodeAt,
        level: u32,
        first: Option<KeyOrder>,
        blocks: &Range<u64>,
        visit: &mut dyn FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<Option<B>> {
        let (layout, bytes) = self.node(at, level)?;
        let mut children = Vec::new();
        let fits = first.is_none() || layout.order(bytes, 0) == first;
        for index in 0..layout.count(bytes) {
            let low = layout.order(bytes, index).unwrap_or_default();
            let high = layout.high_order(bytes, index).unwrap_or_default();
            if low[0] >= blocks.end {
                break;
            }
            if high[0] < blocks.start {
                continue;
            }
            if level > 0 {
                children.extend(layout.pointer(bytes, index).zip(Some(low)));
            } else if let ControlFlow::Break(value) =
                visit(layout.item(bytes, index).unwrap_or_default())
            {
                return Ok(Some(value));
            }
        }
        if !fits {
            return Err(self.bad(at, "its first key is not the one in its parent"));
        }
        for (child, low) in children {
            let below = level.saturating_sub(1);
            let found = self.walk_node(NodeAt::Block(child), below, Some(low), blocks, visit)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// Levels are fewer than [`MAX_LEVELS`].
pub(super) fn level_u32(level: usize) -> u32 {
    u32::try_from(level).unwrap_or(u32::MAX)
}

fn check_header(
    layout: &NodeLayout,
    bytes: &[u8],
    level: u32,
    root: RootPlace,
) -> Result<(), &'static str> {
    let is_owner = match root {
        RootPlace::Group(ag) => {
            let header = BtreeShortHeader::ref_from_prefix(bytes);
            header.is_ok_and(|(header, _)| header.owner.get() == ag)
        }
        RootPlace::Fork(ino, _) => {
            let header = LongHeader::ref_from_prefix(bytes);
            header.is_ok_and(|(header, _)| header.owner.get() == ino.0)
        }
    };
    if !is_owner {
        return Err("of another owner");
    }
    if layout.level(bytes) != level {
        return Err("at the wrong level");
    }
    Ok(())
}

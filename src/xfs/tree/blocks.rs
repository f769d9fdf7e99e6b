//! The blocks of a tree: taken, linked with their neighbours, given back.

use zerocopy::FromBytes;

use super::super::format::btree::{BtreeShortHeader, LongHeader, NULL_SIBLING};
use super::super::geometry::FsBlock;
use super::super::trans::Trans;
use super::kinds::TreeShape;
use super::path::{NodeAt, TreePath};
use super::root::{self, RootPlace};
use crate::error::Result;

/// Where a tree gets blocks from and gives them to. Its own blocks are not counted by it.
pub(in super::super) trait BlockSource {
    /// A free block, which is no longer free then.
    ///
    /// # Errors
    /// No space; corrupt metadata; the device's.
    fn take(&mut self, t: &mut Trans<'_>) -> Result<FsBlock>;

    /// Takes back a block that the tree does not need any more.
    ///
    /// # Errors
    /// Corrupt metadata; the device's.
    fn give(&mut self, t: &mut Trans<'_>, block: FsBlock) -> Result<()>;
}

/// The header of a block that a tree just got.
struct NewBlock<'a> {
    shape: &'a TreeShape,
    level: u32,
    root: RootPlace,
    basic_block: u64,
    uuid: [u8; 16],
}

impl NewBlock<'_> {
    fn write(&self, bytes: &mut [u8]) -> Option<()> {
        let magic = self.shape.kind.magic()?;
        let level = u16::try_from(self.level).ok()?;
        match self.root {
            RootPlace::Group(ag) => {
                let (header, _) = BtreeShortHeader::mut_from_prefix(bytes).ok()?;
                header.magic = magic.into();
                header.level = level.into();
                header.leftsib = NULL_SIBLING.into();
                header.rightsib = NULL_SIBLING.into();
                header.blkno = self.basic_block.into();
                header.uuid = self.uuid;
                header.owner = ag.into();
            }
            RootPlace::Fork(ino, _) => {
                let (header, _) = LongHeader::mut_from_prefix(bytes).ok()?;
                header.magic = magic.into();
                header.level = level.into();
                header.leftsib = u64::MAX.into();
                header.rightsib = u64::MAX.into();
                header.blkno = self.basic_block.into();
                header.uuid = self.uuid;
                header.owner = ino.0.into();
            }
        }
        Some(())
    }
}

/// Left and right sibling of a block; `None` at the edge.
type Siblings = (Option<u64>, Option<u64>);

impl TreePath<'_, '_> {
    /// Left and right sibling of a block.
    pub(super) fn siblings(&mut self, pointer: u64, level: u32) -> Result<Siblings> {
        let at = NodeAt::Block(pointer);
        let root = self.root;
        let (_, bytes) = self.node(at, level)?;
        let pair = match root {
            RootPlace::Group(_) => BtreeShortHeader::ref_from_prefix(bytes).ok().map(|(h, _)| {
                let sibling = |block: u32| (block != NULL_SIBLING).then_some(block.into());
                (sibling(h.leftsib.get()), sibling(h.rightsib.get()))
            }),
            RootPlace::Fork(..) => LongHeader::ref_from_prefix(bytes).ok().map(|(h, _)| {
                let sibling = |block: u64| (block != u64::MAX).then_some(block);
                (sibling(h.leftsib.get()), sibling(h.rightsib.get()))
            }),
        };
        pair.ok_or_else(|| self.bad(at, "too short"))
    }

    /// Makes two blocks of a level neighbours.
    pub(super) fn link(&mut self, level: u32, left: Option<u64>, right: Option<u64>) -> Result<()> {
        for (block, is_left, other) in [(left, true, right), (right, false, left)] {
            let Some(block) = block else {
                continue;
            };
            self.node(NodeAt::Block(block), level)?;
            self.change(NodeAt::Block(block), level, |layout, bytes| {
                if layout.is_long() {
                    let (header, _) = LongHeader::mut_from_prefix(bytes).ok()?;
                    let other = other.unwrap_or(u64::MAX).into();
                    if is_left {
                        header.rightsib = other;
                    } else {
                        header.leftsib = other;
                    }
                } else {
                    let (header, _) = BtreeShortHeader::mut_from_prefix(bytes).ok()?;
                    let other = other.map_or(Some(NULL_SIBLING), |other| other.try_into().ok());
                    if is_left {
                        header.rightsib = other?.into();
                    } else {
                        header.leftsib = other?.into();
                    }
                }
                Some(())
            })?;
        }
        Ok(())
    }

    /// A new block of the tree, empty.
    pub(super) fn take(&mut self, level: u32, source: &mut dyn BlockSource) -> Result<u64> {
        let block = source.take(self.t)?;
        let pointer = match self.root {
            RootPlace::Group(ag) => {
                let (_, ag_block) = self.t.geometry().split(block);
                root::count_block(self.t, ag, self.shape.kind, true)?;
                u64::from(ag_block)
            }
            RootPlace::Fork(..) => block.0,
        };
        let at = NodeAt::Block(pointer);
        let place = self.place(pointer)?;
        if self.fs_block(pointer) != block || self.steps.iter().any(|step| step.at == at) {
            return Err(self.bad(at, "a block in use was given to the tree as a free one"));
        }
        let header = NewBlock {
            shape: self.shape,
            level,
            root: self.root,
            basic_block: place.basic_block(),
            uuid: self.t.meta_uuid(),
        };
        let bytes = self.t.fresh(place, self.shape.kind)?;
        let written = header.write(bytes);
        written.ok_or_else(|| self.bad(at, "too short"))?;
        Ok(pointer)
    }

    /// Frees a block of the tree.
    pub(super) fn give(&mut self, pointer: u64, source: &mut dyn BlockSource) -> Result<()> {
        let place = self.place(pointer)?;
        let block = self.fs_block(pointer);
        self.t.discard(place);
        if let RootPlace::Group(ag) = self.root {
            root::count_block(self.t, ag, self.shape.kind, false)?;
        }
        source.give(self.t, block)
    }
}

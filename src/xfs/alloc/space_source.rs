//! Free space as the source of blocks for btrees of inodes, of refcounts and of forks.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::geometry::FsBlock;
use super::super::trans::Trans;
use super::super::tree::BlockSource;
use super::allocate::{Alignment, AllocRequest, allocate};
use super::freelist::fix_freelist;
use super::release::release;
use super::reserve::Reserve;
use super::rmap::{self, RmapOwner};
use crate::error::Result;

/// Free space.
#[derive(Debug)]
pub(in super::super) struct SpaceSource {
    near: FsBlock,
    /// Only in the group of `near`.
    same_group: bool,
    owner: RmapOwner,
    reserve: Reserve,
}

impl SpaceSource {
    fn of_group(t: &Trans<'_>, ag: u32, owner: RmapOwner, reserve: Reserve) -> Self {
        Self {
            near: t.geometry().fs_block(ag, 0),
            same_group: true,
            owner,
            reserve,
        }
    }

    /// For the inode btree of a group.
    pub(in super::super) fn inobt(t: &Trans<'_>, ag: u32) -> Self {
        Self::of_group(t, ag, RmapOwner::INOBT, Reserve::User)
    }

    /// For the free inode btree of a group.
    pub(in super::super) fn finobt(t: &Trans<'_>, ag: u32) -> Self {
        Self::of_group(t, ag, RmapOwner::INOBT, Reserve::GroupTrees)
    }

    /// For the refcount btree of a group.
    pub(in super::super) fn refcountbt(t: &Trans<'_>, ag: u32) -> Self {
        Self::of_group(t, ag, RmapOwner::REFCOUNTBT, Reserve::GroupTrees)
    }

    /// For the extent btree of a fork: `owner` is [`RmapOwner::bmbt`].
    pub(in super::super) fn bmbt(near: FsBlock, owner: RmapOwner) -> Self {
        Self {
            near,
            same_group: false,
            owner,
            reserve: Reserve::Pool,
        }
    }
}

impl BlockSource for SpaceSource {
    fn take(&mut self, t: &mut Trans<'_>) -> Result<FsBlock> {
        let request = AllocRequest {
            near: Some(self.near),
            same_group: self.same_group,
            alignment: Alignment::None,
            reserve: self.reserve,
            is_logged: true,
            ..AllocRequest::new(self.owner, 1, 1)
        };
        let block = allocate(t, &request)?.start;
        if self.reserve == Reserve::GroupTrees {
            t.withhold(-1);
        }
        Ok(block)
    }

    fn give(&mut self, t: &mut Trans<'_>, block: FsBlock) -> Result<()> {
        let (ag, ag_block) = t.geometry().split(block);
        let blocks = ag_block..ag_block.saturating_add(1);
        fix_freelist(t, ag)?;
        rmap::unmap(t, ag, &blocks, self.owner)?;
        release(t, ag, blocks)?;
        t.withhold((self.reserve == Reserve::GroupTrees).into());
        Ok(())
    }
}

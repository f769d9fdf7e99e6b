//! Free space that is withheld from users, so that metadata can always grow: xfs_ag_resv.c,
//! xfs_fdblocks_unavailable() and xfs_default_resblks() of the kernel. Nothing of it is on disk.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::format::btree::{
    self, BtreeShortHeader, InobtRecord, RefcountRecord, RmapKey, RmapRecord,
};
use super::super::trans::Trans;
use super::agf::{read_agf, read_agi};
use crate::error::{Error, ErrorKind, Result};

/// Blocks of each group that are withheld for the free list and the first splits of the free space
/// btrees: `XFS_ALLOC_AGFL_RESERVE` + 4.
pub(in super::super) const SET_ASIDE: u64 = 8;
/// Most blocks of the pool for conversions and truncates.
const MOST_POOL_BLOCKS: u64 = 8192;

/// What an allocation may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) enum Reserve {
    /// Neither the pool nor the reservations of the groups: file data, new inodes.
    #[default]
    User,
    /// The pool, too: conversions of unwritten extents, truncates, and the btree blocks of these.
    Pool,
    /// The group's reservation for inode and refcount btrees, too.
    GroupTrees,
}

/// Space of a filesystem, as statfs() of the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct SpaceCount {
    /// Blocks of the data section without the log.
    pub(in super::super) blocks: u64,
    /// Blocks that users can allocate.
    pub(in super::super) free: u64,
}

/// What the btrees of a group may still grow by.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GroupReserve {
    /// The reverse mapping btree.
    pub(super) rmapbt: u32,
    /// The free inode btree and the refcount btree.
    pub(super) trees: u32,
    /// Blocks of the group that are missing in the free blocks of a user.
    withheld: u64,
}

impl GroupReserve {
    /// What an allocation has to leave, as xfs_ag_resv_needed().
    pub(super) fn to_leave(self, reserve: Reserve) -> u32 {
        match reserve {
            Reserve::User | Reserve::Pool => self.rmapbt.saturating_add(self.trees),
            Reserve::GroupTrees => self.rmapbt,
        }
    }
}

/// Least records of a leaf and of a node of a btree.
fn least_records(block_bytes: u32, record_bytes: usize, entry_bytes: usize) -> (u64, u64) {
    let bytes = usize::try_from(block_bytes).unwrap_or(0);
    let room = bytes.saturating_sub(size_of::<BtreeShortHeader>());
    let half = |each: usize| (room.checked_div(each).unwrap_or(0) / 2).max(2) as u64;
    (half(record_bytes), half(entry_bytes))
}

/// Blocks of a btree with so many records that is as empty as it may be: xfs_btree_calc_size().
fn most_blocks(records: u64, (leaf, node): (u64, u64)) -> u64 {
    let mut level = records.div_ceil(leaf);
    let mut blocks = level;
    while level > 1 {
        level = level.div_ceil(node);
        blocks = blocks.saturating_add(level);
    }
    blocks
}

/// The reservations of a group.
pub(super) fn group_reserve(t: &mut Trans<'_>, ag: u32) -> Result<GroupReserve> {
    const POINTER_BYTES: usize = 4;
    const CHUNK_INODES: u64 = btree::CHUNK_INODES as u64;
    let agf = read_agf(t, ag)?;
    let (geometry, features) = (t.geometry().clone(), *t.features());
    let mut blocks = geometry.ag_length(ag);
    if geometry.split(geometry.log_start).0 == ag {
        blocks = blocks.saturating_sub(geometry.log_blocks);
    }
    let blocks = u64::from(blocks);
    let tree_blocks = agf.btreeblks.get();
    let mut reserve = GroupReserve::default();
    let mut by_tree_blocks = tree_blocks;
    let mut withheld = SET_ASIDE;
    if features.rmapbt() {
        let used = agf.rmap_blocks.get();
        let entry = size_of::<RmapKey>()
            .saturating_mul(2)
            .saturating_add(POINTER_BYTES);
        let limits = least_records(geometry.block_bytes, size_of::<RmapRecord>(), entry);
        let asked = most_blocks(blocks, limits)
            .max(blocks / 100)
            .max(used.into());
        by_tree_blocks = tree_blocks.saturating_sub(used.saturating_sub(1));
        withheld = withheld.saturating_add(asked);
        reserve.rmapbt = u32::try_from(asked)
            .unwrap_or(u32::MAX)
            .saturating_sub(used);
    }
    let (mut asked, mut used) = (0_u64, 0_u32);
    if features.finobt() {
        let each = geometry.block_bytes.checked_div(geometry.inode_bytes);
        let inodes = blocks.saturating_mul(each.unwrap_or(0).into());
        let chunks = inodes / CHUNK_INODES;
        let entry = POINTER_BYTES.saturating_mul(2);
        let limits = least_records(geometry.block_bytes, size_of::<InobtRecord>(), entry);
        asked = asked.saturating_add(most_blocks(chunks, limits));
        let agi = read_agi(t, ag)?;
        // Without the counter in the AGI there are at least as many blocks as levels.
        used = used.saturating_add(match features.inobtcount() {
            true => agi.fblocks.get(),
            false => agi.free_level.get(),
        });
    }
    if features.reflink() {
        let entry = POINTER_BYTES.saturating_mul(2);
        let limits = least_records(geometry.block_bytes, size_of::<RefcountRecord>(), entry);
        asked = asked.saturating_add(most_blocks(blocks, limits));
        used = used.saturating_add(agf.refcount_blocks.get());
    }
    reserve.trees = u32::try_from(asked)
        .unwrap_or(u32::MAX)
        .saturating_sub(used);
    reserve.withheld = withheld
        .saturating_add(by_tree_blocks.into())
        .saturating_add(reserve.trees.into());
    Ok(reserve)
}

/// Blocks that are withheld from users in all groups, without the pool.
pub(super) fn withheld(t: &mut Trans<'_>) -> Result<u64> {
    if let Some(withheld) = t.withheld_blocks() {
        return Ok(withheld);
    }
    let mut sum = 0_u64;
    for ag in 0..t.geometry().ag_count {
        sum = sum.saturating_add(group_reserve(t, ag)?.withheld);
    }
    t.set_withheld_blocks(sum);
    Ok(sum)
}

/// Blocks that an allocation may take now.
pub(super) fn available(t: &mut Trans<'_>, reserve: Reserve) -> Result<u64> {
    let withheld = withheld(t)?;
    let pool = (t.geometry().data_blocks / 20).min(MOST_POOL_BLOCKS);
    let free = t.free_blocks();
    Ok(match reserve {
        Reserve::User => free.saturating_sub(withheld).saturating_sub(pool),
        Reserve::Pool => free.saturating_sub(withheld),
        Reserve::GroupTrees => free,
    })
}

/// Blocks and free blocks as the kernel's statfs() shows them.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when the header of a group is wrong; the
/// device's.
pub(in super::super) fn count_space(t: &mut Trans<'_>) -> Result<SpaceCount> {
    let free = available(t, Reserve::User)?;
    let geometry = t.geometry();
    let blocks = geometry
        .data_blocks
        .saturating_sub(geometry.log_blocks.into());
    Ok(SpaceCount { blocks, free })
}

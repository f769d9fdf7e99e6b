//! Reverse mappings: the owner of each block that is not free, in filesystems that have them.
//!
//! Records that continue each other are one record, as in xfs_rmap_map(), xfs_rmap_unmap() and
//! xfs_rmap_convert() of the kernel.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::{ControlFlow, Range};

use super::super::format::btree::{
    RMAP_ATTR_FORK, RMAP_BMBT_BLOCK, RMAP_OWNER_AG, RMAP_OWNER_COW, RMAP_OWNER_INOBT,
    RMAP_OWNER_INODES, RMAP_OWNER_REFCOUNT, RMAP_UNWRITTEN, RmapKey, RmapRecord,
};
use super::super::geometry::Ino;
use super::super::trans::Trans;
use super::super::tree::ForkKind;
use super::super::tree::{self, AgTree, Rmapbt};
use super::agf::bad_agf;
use super::list_source::ListSource;
use crate::error::Result;

/// The bits of an offset that are no flags.
const OFFSET_MASK: u64 = (1 << 54) - 1;
/// Owners from here on are no inodes.
const NO_INODE: u64 = 1 << 63;

/// The owner of blocks, and what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct RmapOwner {
    pub(super) owner: u64,
    /// First block of the fork, and flags.
    pub(super) offset: u64,
}

impl RmapOwner {
    /// The free list, the free space btrees and the reverse mapping btree.
    pub(in super::super) const AG: Self = Self::of_group(RMAP_OWNER_AG);
    /// Both inode btrees.
    pub(in super::super) const INOBT: Self = Self::of_group(RMAP_OWNER_INOBT);
    /// Inode chunks.
    pub(in super::super) const INODES: Self = Self::of_group(RMAP_OWNER_INODES);
    /// The refcount btree.
    pub(in super::super) const REFCOUNTBT: Self = Self::of_group(RMAP_OWNER_REFCOUNT);

    /// Blocks that are staged for copy-on-write.
    pub(in super::super) const STAGING: Self = Self::of_group(RMAP_OWNER_COW);

    /// An owner as the log has it: an inode with offset and flags, or an `RMAP_OWNER_*` number.
    pub(in super::super) fn logged(owner: u64, offset: u64) -> Self {
        Self { owner, offset }
    }

    const fn of_group(owner: u64) -> Self {
        Self { owner, offset: 0 }
    }

    /// Blocks of a fork from `offset_blocks` of the file.
    pub(in super::super) fn fork(
        ino: Ino,
        fork: ForkKind,
        offset_blocks: u64,
        is_unwritten: bool,
    ) -> Self {
        let unwritten = if is_unwritten { RMAP_UNWRITTEN } else { 0 };
        Self {
            owner: ino.0,
            offset: (offset_blocks & OFFSET_MASK) | fork_flag(fork) | unwritten,
        }
    }

    /// Blocks of the extent btree of a fork.
    pub(in super::super) fn bmbt(ino: Ino, fork: ForkKind) -> Self {
        Self {
            owner: ino.0,
            offset: RMAP_BMBT_BLOCK | fork_flag(fork),
        }
    }

    /// The inode; `None` for owners that are no inodes.
    pub(super) fn ino(&self) -> Option<Ino> {
        (self.owner & NO_INODE == 0).then_some(Ino(self.owner))
    }

    /// Whether other files may share the blocks.
    pub(super) fn can_share(&self) -> bool {
        self.has_offset() && self.offset & RMAP_ATTR_FORK == 0
    }

    /// Whether blocks have an offset in their owner.
    fn has_offset(&self) -> bool {
        self.owner & NO_INODE == 0 && self.offset & RMAP_BMBT_BLOCK == 0
    }

    /// The owner of the blocks that are so many behind.
    pub(super) fn behind(self, blocks: u32) -> Self {
        if !self.has_offset() {
            return self;
        }
        let start = (self.offset & OFFSET_MASK).saturating_add(blocks.into());
        Self {
            offset: (start & OFFSET_MASK) | (self.offset & !OFFSET_MASK),
            ..self
        }
    }

    /// The owner of the block before; `None` at the start of a fork.
    fn before(self) -> Option<Self> {
        if !self.has_offset() {
            return Some(self);
        }
        let start = (self.offset & OFFSET_MASK).checked_sub(1)?;
        Some(Self {
            offset: start | (self.offset & !OFFSET_MASK),
            ..self
        })
    }

    fn with_state(self, is_unwritten: bool) -> Self {
        let unwritten = if is_unwritten { RMAP_UNWRITTEN } else { 0 };
        Self {
            offset: (self.offset & !RMAP_UNWRITTEN) | unwritten,
            ..self
        }
    }
}

fn fork_flag(fork: ForkKind) -> u64 {
    match fork {
        ForkKind::Attribute => RMAP_ATTR_FORK,
        ForkKind::Data => 0,
    }
}

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RmapRun {
    start: u32,
    blocks: u32,
    owner: RmapOwner,
}

impl RmapRun {
    fn new(blocks: &Range<u32>, owner: RmapOwner) -> Self {
        Self {
            start: blocks.start,
            blocks: blocks.end.saturating_sub(blocks.start),
            owner,
        }
    }

    fn of(record: &RmapRecord) -> Self {
        Self {
            start: record.startblock.get(),
            blocks: record.blockcount.get(),
            owner: RmapOwner {
                owner: record.owner.get(),
                offset: record.offset.get(),
            },
        }
    }

    fn end(&self) -> u32 {
        self.start.saturating_add(self.blocks)
    }

    fn key(&self) -> RmapKey {
        key(self.start, self.owner)
    }

    fn record(&self) -> RmapRecord {
        RmapRecord {
            startblock: self.start.into(),
            blockcount: self.blocks.into(),
            owner: self.owner.owner.into(),
            offset: self.owner.offset.into(),
        }
    }

    /// Whether it has the block as `owner`'s.
    fn has(&self, block: u32, owner: RmapOwner) -> bool {
        self.start <= block
            && block < self.end()
            && self.owner.behind(block.saturating_sub(self.start)) == owner
    }
}

fn key(start: u32, owner: RmapOwner) -> RmapKey {
    RmapKey {
        startblock: start.into(),
        owner: owner.owner.into(),
        offset: (owner.offset & !RMAP_UNWRITTEN).into(),
    }
}

fn tree_of(ag: u32) -> AgTree<Rmapbt> {
    AgTree::new(ag)
}

fn checked(t: &Trans<'_>, ag: u32, found: Option<RmapRecord>) -> Result<Option<RmapRun>> {
    let Some(record) = found else {
        return Ok(None);
    };
    let run = RmapRun::of(&record);
    let end = u64::from(run.start).saturating_add(run.blocks.into());
    if run.blocks == 0 || end > t.geometry().ag_length(ag).into() {
        return Err(bad_agf(t, ag, "an impossible reverse mapping"));
    }
    Ok(Some(run))
}

/// The record that has a block as `owner`'s. Where files share blocks, records of others may begin
/// between its start and the block: then all owners of the block are looked at.
fn find(t: &mut Trans<'_>, ag: u32, block: u32, owner: RmapOwner) -> Result<Option<RmapRun>> {
    if !t.features().reflink() || !owner.can_share() {
        let found = tree::find_le(t, &tree_of(ag), key(block, owner))?;
        return Ok(checked(t, ag, found)?.filter(|run| run.has(block, owner)));
    }
    let blocks = block..block.saturating_add(1);
    let found = tree::walk_overlapping(t, &tree_of(ag), &blocks, |record| {
        if RmapRun::of(record).has(block, owner) {
            ControlFlow::Break(*record)
        } else {
            ControlFlow::Continue(())
        }
    })?;
    checked(t, ag, found)
}

/// Blocks were allocated to `owner`. The free list must have been filled before.
pub(super) fn map(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>, owner: RmapOwner) -> Result<()> {
    if !t.features().rmapbt() || blocks.is_empty() {
        return Ok(());
    }
    let mut run = RmapRun::new(blocks, owner);
    let source = &mut ListSource::rmapbt(ag);
    let left = match (blocks.start.checked_sub(1), owner.before()) {
        (Some(block), Some(before)) => find(t, ag, block, before)?,
        _ => None,
    };
    if left.is_some_and(|left| left.end() > blocks.start) {
        return Err(bad_agf(t, ag, "allocated blocks have an owner already"));
    }
    let next = owner.behind(run.blocks);
    let found = tree::find(t, &tree_of(ag), key(blocks.end, next))?;
    let right = checked(t, ag, found)?.filter(|right| right.owner == next);
    if let Some(right) = right {
        tree::remove(t, &tree_of(ag), right.key(), source)?;
        run.blocks = run.blocks.saturating_add(right.blocks);
    }
    match left {
        Some(left) => {
            run = RmapRun {
                blocks: left.blocks.saturating_add(run.blocks),
                ..left
            };
            tree::update(t, &tree_of(ag), left.key(), &run.record())
        }
        None => tree::insert(t, &tree_of(ag), &run.record(), source),
    }
}

/// Blocks of `owner` were freed. The free list must have been filled before.
pub(super) fn unmap(
    t: &mut Trans<'_>,
    ag: u32,
    blocks: &Range<u32>,
    owner: RmapOwner,
) -> Result<()> {
    if !t.features().rmapbt() || blocks.is_empty() {
        return Ok(());
    }
    let found = find(t, ag, blocks.start, owner)?;
    let run = found.filter(|run| blocks.end <= run.end());
    let Some(run) = run else {
        let what = format!("{blocks:?} is freed by an owner that it does not have: {owner:?}");
        return Err(bad_agf(t, ag, &what));
    };
    let source = &mut ListSource::rmapbt(ag);
    let before = RmapRun::new(&(run.start..blocks.start), run.owner);
    let skipped = blocks.end.saturating_sub(run.start);
    let after = RmapRun::new(&(blocks.end..run.end()), run.owner.behind(skipped));
    if before.blocks > 0 {
        tree::update(t, &tree_of(ag), run.key(), &before.record())?;
    } else {
        tree::remove(t, &tree_of(ag), run.key(), source)?;
    }
    if after.blocks > 0 {
        tree::insert(t, &tree_of(ag), &after.record(), source)?;
    }
    Ok(())
}

/// Blocks of a fork became written or unwritten; `owner` has the old state. The free list must have
/// been filled before.
pub(super) fn convert(
    t: &mut Trans<'_>,
    ag: u32,
    blocks: &Range<u32>,
    owner: RmapOwner,
) -> Result<()> {
    unmap(t, ag, blocks, owner)?;
    let was_unwritten = owner.offset & RMAP_UNWRITTEN != 0;
    map(t, ag, blocks, owner.with_state(!was_unwritten))
}

/// Blocks are freed, and whose they were is not known: of the record that has all of them they are
/// taken away; when none has any, their owner was removed before. As xfs_rmap_unmap() for
/// `XFS_RMAP_OWN_UNKNOWN`. The free list must have been filled before.
pub(super) fn unmap_any(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<()> {
    if !t.features().rmapbt() || blocks.is_empty() {
        return Ok(());
    }
    let last = RmapKey {
        startblock: blocks.start.into(),
        owner: u64::MAX.into(),
        offset: u64::MAX.into(),
    };
    let found = tree::find_le(t, &tree_of(ag), last)?;
    let found = checked(t, ag, found)?.filter(|run| run.end() > blocks.start);
    match found {
        Some(run) if run.end() >= blocks.end => {
            let owner = run.owner.behind(blocks.start.saturating_sub(run.start));
            unmap(t, ag, blocks, owner)
        }
        None if !is_mapped(t, ag, blocks)? => Ok(()),
        _ => {
            let what = format!("{blocks:?} is freed, and has several owners");
            Err(bad_agf(t, ag, &what))
        }
    }
}

/// Whether any of these blocks has an owner.
pub(super) fn is_mapped(t: &mut Trans<'_>, ag: u32, blocks: &Range<u32>) -> Result<bool> {
    if !t.features().rmapbt() || blocks.is_empty() {
        return Ok(false);
    }
    let found = tree::walk_overlapping(t, &tree_of(ag), blocks, |_| ControlFlow::Break(()))?;
    Ok(found.is_some())
}

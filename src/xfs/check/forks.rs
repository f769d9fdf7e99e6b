//! The extents of an inode's forks: the btree that has them, their order, their places.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;

use zerocopy::FromBytes;

use super::core::CheckedCore;
use super::state::{At, Checker, Owned};
use crate::error::Result;
use crate::xfs::format::BASIC_BLOCK_BYTES;
use crate::xfs::format::btree::{
    BMBT_MAGIC, BmbtRecord, BmdrHeader, LONG_CRC_OFFSET, LongHeader, MAX_LEVELS, RMAP_ATTR_FORK,
    RMAP_BMBT_BLOCK, RMAP_UNWRITTEN,
};
use crate::xfs::format::inode as layout;
use crate::xfs::{FsBlock, Geometry};

/// No sibling in a btree of a fork.
const NULL_BLOCK: u64 = u64::MAX;
/// Bytes of a key, and of a pointer.
const KEY_BYTES: usize = 8;
/// Bytes of both, and of an extent.
const CHILD_BYTES: usize = 2 * KEY_BYTES;
const _: () = assert!(CHILD_BYTES == size_of::<BmbtRecord>());

/// An extent of a fork, as it was found; it lies where one may.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForkExtent {
    pub(super) offset: u64,
    pub(super) start: FsBlock,
    pub(super) blocks: u64,
}

impl ForkExtent {
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.blocks)
    }
}

/// What the forks of an inode have.
#[derive(Debug, Default)]
pub(super) struct CheckedForks {
    /// All could be read.
    pub(super) is_whole: bool,
    /// Blocks of both, those of btrees included.
    pub(super) blocks: u64,
    /// Kept where the file is no regular one.
    pub(super) data: Vec<ForkExtent>,
    pub(super) attributes: Vec<ForkExtent>,
}

/// A walk through one fork.
struct ForkWalk {
    at: At,
    ino: u64,
    /// [`RMAP_ATTR_FORK`] or 0.
    flag: u64,
    may_be_unwritten: bool,
    keep: bool,
    /// Owners of blocks are noted.
    own: bool,
    extents: Vec<ForkExtent>,
    count: u64,
    blocks: u64,
    end: u64,
    is_whole: bool,
    seen: HashSet<u64>,
    /// The block of each level that was visited last, and its right sibling.
    last: [Option<(u64, u64)>; MAX_LEVELS as usize],
}

impl ForkWalk {
    fn name(&self) -> &'static str {
        match self.flag {
            0 => "data fork",
            _ => "attribute fork",
        }
    }
}

/// A block of the btree as its parent describes it.
struct ForkChild {
    block: FsBlock,
    level: u32,
    /// It hangs below the root in the inode, alone.
    is_only: bool,
}

fn be64(raw: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*raw.get(at..)?.first_chunk()?))
}

impl Checker<'_> {
    /// Checks both forks of an inode, and notes the owners of their blocks.
    pub(super) fn check_forks(
        &mut self,
        at: At,
        ino: u64,
        checked: &CheckedCore<'_>,
    ) -> Result<CheckedForks> {
        let (data, attributes) = self.walk_forks(at, ino, checked, true)?;
        let is_whole = data.is_whole && attributes.is_whole;
        if !is_whole {
            self.all_are_incomplete();
        }
        let counts = checked.extents();
        for (walk, expected) in [(&data, counts.0), (&attributes, counts.1)] {
            if walk.is_whole && walk.count != expected {
                let detail = format!(
                    "{}: {expected} extents, expected {}",
                    walk.name(),
                    walk.count
                );
                self.finding(at, detail);
            }
            self.report.extents = self.report.extents.saturating_add(walk.count);
        }
        Ok(CheckedForks {
            is_whole,
            blocks: data.blocks.saturating_add(attributes.blocks),
            data: data.extents,
            attributes: attributes.extents,
        })
    }

    /// The extents of a data fork once more, without findings.
    pub(super) fn data_extents(
        &mut self,
        at: At,
        ino: u64,
        checked: &CheckedCore<'_>,
    ) -> Result<CheckedForks> {
        let (findings, more) = (self.report.findings.len(), self.report.more_findings);
        let (data, _) = self.walk_forks(at, ino, checked, false)?;
        self.report.findings.truncate(findings);
        self.report.more_findings = more;
        Ok(CheckedForks {
            is_whole: data.is_whole,
            blocks: data.blocks,
            data: data.extents,
            attributes: Vec::new(),
        })
    }

    fn walk_forks(
        &mut self,
        at: At,
        ino: u64,
        checked: &CheckedCore<'_>,
        own: bool,
    ) -> Result<(ForkWalk, ForkWalk)> {
        let core = checked.core;
        let is_regular = core.mode.get() & layout::S_IFMT == layout::S_IFREG;
        let walk = |flag| ForkWalk {
            at,
            ino,
            flag,
            may_be_unwritten: flag == 0 && is_regular,
            keep: flag != 0 || !is_regular,
            own,
            extents: Vec::new(),
            count: 0,
            blocks: 0,
            end: 0,
            is_whole: true,
            seen: HashSet::new(),
            last: [None; MAX_LEVELS as usize],
        };
        let (mut data, mut attributes) = (walk(0), walk(RMAP_ATTR_FORK));
        let (data_fork, attribute_fork) = checked.forks();
        let counts = checked.extents();
        self.walk_fork(core.format, data_fork, counts.0, &mut data)?;
        if core.forkoff != 0 {
            self.walk_fork(core.aformat, attribute_fork, counts.1, &mut attributes)?;
        }
        Ok((data, attributes))
    }

    fn walk_fork(
        &mut self,
        format: u8,
        fork: &[u8],
        count: u64,
        walk: &mut ForkWalk,
    ) -> Result<()> {
        match format {
            layout::FORMAT_EXTENTS => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                match <[BmbtRecord]>::ref_from_prefix_with_elems(fork, count) {
                    Ok((records, _)) => {
                        for record in records {
                            self.fork_extent(walk.at, record, walk);
                        }
                    }
                    Err(_) => walk.is_whole = false,
                }
                Ok(())
            }
            layout::FORMAT_BTREE => self.walk_bmbt(fork, walk),
            _ => Ok(()),
        }
    }

    fn walk_bmbt(&mut self, fork: &[u8], walk: &mut ForkWalk) -> Result<()> {
        let name = walk.name();
        let Ok((header, body)) = BmdrHeader::read_from_prefix(fork) else {
            walk.is_whole = false;
            return Ok(());
        };
        let level = u32::from(header.level.get());
        let count = usize::from(header.numrecs.get());
        let most = body.len() / CHILD_BYTES;
        if level == 0 || level >= MAX_LEVELS || count == 0 || count > most {
            let detail = format!(
                "{name}: root of the extent btree at level {level} with {count} of {most} records"
            );
            self.finding(walk.at, detail);
            walk.is_whole = false;
            return Ok(());
        }
        let at = walk.at;
        self.bmbt_children(at, (body, count), (level, true), walk)?;
        let is_open = walk
            .last
            .iter()
            .flatten()
            .any(|(_, right)| *right != NULL_BLOCK);
        if walk.is_whole && is_open {
            let detail = format!(
                "{name}: the last block of a level of the extent btree has a right sibling"
            );
            self.finding(walk.at, detail);
        }
        Ok(())
    }

    /// Checks the children of a node or of the root. Returns its first key.
    fn bmbt_children(
        &mut self,
        at: At,
        (body, count): (&[u8], usize),
        (level, is_root): (u32, bool),
        walk: &mut ForkWalk,
    ) -> Result<Option<u64>> {
        let most = body.len() / CHILD_BYTES;
        let mut first = None;
        let mut last = None;
        for index in 0..count {
            let key_at = index.saturating_mul(KEY_BYTES);
            let pointer_at = most.saturating_mul(KEY_BYTES).saturating_add(key_at);
            let (Some(key), Some(block)) = (be64(body, key_at), be64(body, pointer_at)) else {
                break;
            };
            if last.is_some_and(|last| last >= key) {
                let detail = format!("{}: keys of the extent btree out of order", walk.name());
                self.finding(at, detail);
            }
            last = Some(key);
            let child = ForkChild {
                block: FsBlock(block),
                level: level.saturating_sub(1),
                is_only: is_root && count == 1,
            };
            let found = self.bmbt_block(&child, walk)?;
            if found.is_some_and(|found| found != key) {
                let detail = format!(
                    "{}: key {index} of the extent btree is {key}, expected {}",
                    walk.name(),
                    found.unwrap_or(0)
                );
                self.finding(at, detail);
            }
            first = first.or(found);
        }
        Ok(first)
    }

    /// Checks a block and all below it. Returns its first key.
    fn bmbt_block(&mut self, child: &ForkChild, walk: &mut ForkWalk) -> Result<Option<u64>> {
        let name = walk.name();
        if let Err(why) = self.geometry.check_extent(child.block, 1) {
            let detail = format!("{name}: {} of the extent btree is {why}", child.block);
            self.finding(walk.at, detail);
            walk.is_whole = false;
            return Ok(None);
        }
        let addr = self.geometry.block_addr(child.block);
        let at = At::inode(walk.ino, addr);
        if !walk.seen.insert(child.block.0) {
            self.finding(at, format!("{name}: the extent btree has a block twice"));
            walk.is_whole = false;
            return Ok(None);
        }
        walk.blocks = walk.blocks.saturating_add(1);
        if walk.own {
            let (group, start) = self.geometry.split(child.block);
            let owned = Owned {
                start,
                blocks: 1,
                owner: walk.ino,
                offset: RMAP_BMBT_BLOCK | walk.flag,
            };
            self.own(group, owned);
        }
        let raw = self.read(addr, self.block_bytes())?;
        let Ok((header, body)) = LongHeader::read_from_prefix(&raw) else {
            return Ok(None);
        };
        if !self.check_bmbt_header(at, child, &header, &raw, walk) {
            walk.is_whole = false;
            return Ok(None);
        }
        // Records have the size of a key and a pointer.
        let most = body.len() / CHILD_BYTES;
        let count = usize::from(header.numrecs.get());
        if count == 0 || count > most {
            let detail =
                format!("{name}: extent btree block of {count} records, at most {most} fit");
            self.finding(at, detail);
            walk.is_whole = false;
            return Ok(None);
        }
        if count < most / 2 && !child.is_only {
            let least = most / 2;
            let detail =
                format!("{name}: extent btree block of {count} records, expected at least {least}");
            self.finding(at, detail);
        }
        if child.level > 0 {
            return self.bmbt_children(at, (body, count), (child.level, false), walk);
        }
        let Ok((records, _)) = <[BmbtRecord]>::ref_from_prefix_with_elems(body, count) else {
            return Ok(None);
        };
        for record in records {
            self.fork_extent(at, record, walk);
        }
        Ok(records.first().map(BmbtRecord::offset_blocks))
    }

    /// Whether the block is one of the fork's btree; other faults are only noted.
    fn check_bmbt_header(
        &mut self,
        at: At,
        child: &ForkChild,
        header: &LongHeader,
        raw: &[u8],
        walk: &mut ForkWalk,
    ) -> bool {
        let name = walk.name();
        if header.magic.get() != BMBT_MAGIC || header.owner.get() != walk.ino {
            let detail = format!(
                "{name}: a block that is not of its extent btree (magic {:#x}, owner {})",
                header.magic.get(),
                header.owner.get()
            );
            self.finding(at, detail);
            return false;
        }
        let seal = (LONG_CRC_OFFSET, &header.uuid, header.lsn.get());
        self.check_seal(at, "extent btree block", raw, seal);
        if header.blkno.get() != at.addr.unwrap_or(0) / BASIC_BLOCK_BYTES {
            self.finding(at, format!("{name}: extent btree block of another address"));
        }
        let level = u32::from(header.level.get());
        if level != child.level {
            let detail = format!(
                "{name}: extent btree block at level {level}, expected {}",
                child.level
            );
            self.finding(at, detail);
            return false;
        }
        let (left, right) = (header.leftsib.get(), header.rightsib.get());
        let index = usize::try_from(level).unwrap_or(usize::MAX);
        let Some(last) = walk.last.get_mut(index) else {
            return false;
        };
        let before = last.replace((child.block.0, right));
        let expected = before.map_or(NULL_BLOCK, |(block, _)| block);
        let is_next = before.is_none_or(|(_, right)| right == child.block.0);
        if (left != expected || !is_next) && walk.is_whole {
            self.finding(
                at,
                format!("{name}: the siblings of an extent btree block are not its neighbours"),
            );
        }
        true
    }

    /// Takes an extent, which must lie where one may, behind those before.
    fn fork_extent(&mut self, at: At, record: &BmbtRecord, walk: &mut ForkWalk) {
        let name = walk.name();
        walk.count = walk.count.saturating_add(1);
        let (offset, blocks) = (record.offset_blocks(), record.blocks());
        let start = FsBlock(record.start_block());
        walk.blocks = walk.blocks.saturating_add(blocks);
        let most = Geometry::MAX_FILE_BYTES
            .checked_shr(self.geometry.block_log)
            .unwrap_or(0)
            .saturating_add(1);
        let fault = match self.geometry.check_extent(start, blocks) {
            Err(why) => Some(format!("is {why}")),
            Ok(()) if offset < walk.end => Some("overlaps the one before".to_owned()),
            Ok(()) if offset.saturating_add(blocks) > most => {
                Some("lies beyond the largest file".to_owned())
            }
            Ok(()) if record.unwritten() && !walk.may_be_unwritten => {
                Some("is unwritten".to_owned())
            }
            Ok(()) => None,
        };
        if let Some(fault) = &fault {
            let detail = format!("{name}: extent of {blocks} blocks at {offset}, {start}, {fault}");
            self.finding(at, detail);
        }
        if self.geometry.check_extent(start, blocks).is_err() {
            walk.is_whole = false;
            return;
        }
        walk.end = walk.end.max(offset.saturating_add(blocks));
        if walk.own {
            let (group, ag_block) = self.geometry.split(start);
            let unwritten = if record.unwritten() {
                RMAP_UNWRITTEN
            } else {
                0
            };
            let owned = Owned {
                start: ag_block,
                // An extent is shorter than its group.
                blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
                owner: walk.ino,
                offset: offset | walk.flag | unwritten,
            };
            self.own(group, owned);
        }
        if walk.keep && fault.is_none() {
            walk.extents.push(ForkExtent {
                offset,
                start,
                blocks,
            });
        }
    }
}

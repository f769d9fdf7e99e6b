//! The reverse mapping and refcount btrees by themselves: their structure and each record.
//! [`owners`](super::owners) compares them with the owners of the blocks.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use super::state::{At, Checker};
use super::tree::{CheckKey, CheckTree};
use crate::error::Result;
use crate::xfs::Ino;
use crate::xfs::format::ag::Agf;
use crate::xfs::format::btree::{
    REFCOUNT_COW, REFCOUNT_MAGIC, RMAP_ATTR_FORK, RMAP_BMBT_BLOCK, RMAP_OWNER_AG, RMAP_OWNER_COW,
    RMAP_OWNER_FS, RMAP_OWNER_REFCOUNT, RMAP_UNWRITTEN, RMAPBT_MAGIC, RefcountRecord, RmapKey,
    RmapRecord,
};

/// Whether an owner is none of the numbers for structures of a group.
pub(super) fn is_inode_owner(owner: u64) -> bool {
    owner >> 63 == 0
}

fn rmap_keys(record: &RmapRecord) -> (CheckKey, CheckKey) {
    let (start, owner) = (record.startblock.get(), record.owner.get());
    let offset = record.offset.get() & !RMAP_UNWRITTEN;
    let more = record.blockcount.get().saturating_sub(1);
    let has_offset = is_inode_owner(owner) && offset & RMAP_BMBT_BLOCK == 0;
    let last_offset = match has_offset {
        true => offset.saturating_add(more.into()),
        false => offset,
    };
    (
        (start.into(), owner, offset),
        (start.saturating_add(more).into(), owner, last_offset),
    )
}

const RMAPS: CheckTree<RmapRecord> = CheckTree {
    name: "reverse mapping btree",
    magic: RMAPBT_MAGIC,
    owner: RMAP_OWNER_AG,
    keys: rmap_keys,
    key_bytes: size_of::<RmapKey>(),
    node_key: |raw| {
        let (key, _) = RmapKey::ref_from_prefix(raw).ok()?;
        Some((
            key.startblock.get().into(),
            key.owner.get(),
            key.offset.get(),
        ))
    },
    has_high_keys: true,
    is_lower_counted: true,
};

const REFCOUNTS: CheckTree<RefcountRecord> = CheckTree {
    name: "refcount btree",
    magic: REFCOUNT_MAGIC,
    owner: RMAP_OWNER_REFCOUNT,
    keys: |record| {
        let key = (record.startblock.get().into(), 0, 0);
        (key, key)
    },
    key_bytes: size_of::<U32>(),
    node_key: |raw| Some((U32::ref_from_prefix(raw).ok()?.0.get().into(), 0, 0)),
    has_high_keys: false,
    is_lower_counted: false,
};

/// Why a record of the reverse mapping btree is impossible.
fn rmap_fault(
    record: &RmapRecord,
    length: u32,
    is_inode: impl Fn(u64) -> bool,
) -> Option<&'static str> {
    let (start, blocks) = (record.startblock.get(), record.blockcount.get());
    let (owner, offset) = (record.owner.get(), record.offset.get());
    let flags = RMAP_ATTR_FORK | RMAP_BMBT_BLOCK | RMAP_UNWRITTEN;
    let end = start.checked_add(blocks);
    if blocks == 0 || end.is_none_or(|end| end > length) {
        return Some("its blocks are not in the group");
    }
    if is_inode_owner(owner) {
        if !is_inode(owner) {
            return Some("no inode can have this number");
        }
        if offset & RMAP_BMBT_BLOCK != 0 && offset & !(flags & !RMAP_UNWRITTEN) != 0 {
            return Some("a block of an extent btree has an offset");
        }
        if offset & RMAP_UNWRITTEN != 0 && offset & RMAP_ATTR_FORK != 0 {
            return Some("an unwritten extent of an attribute fork");
        }
        return None;
    }
    if !(RMAP_OWNER_COW..=RMAP_OWNER_FS).contains(&owner) {
        return Some("an unknown owner");
    }
    (offset != 0).then_some("an offset, but its owner is no inode")
}

impl Checker<'_> {
    /// Checks both btrees of a group, where the filesystem has them, and keeps their records.
    pub(super) fn check_reverse_trees(&mut self, group: u32, agf: &Agf) -> Result<()> {
        let at = self.head_at(group, 1);
        if self.fs.features().rmapbt() {
            let root = (agf.rmap_root.get(), agf.rmap_level.get());
            let walked = self.walk_group_tree(&RMAPS, (group, at), root)?;
            if walked.is_whole {
                if agf.rmap_blocks.get() != walked.blocks {
                    let (found, expected) = (agf.rmap_blocks.get(), walked.blocks);
                    let detail = format!(
                        "AGF: reverse mapping btree of {found} blocks, expected {expected}"
                    );
                    self.finding(at, detail);
                }
                self.check_rmaps(group, &walked.records);
                if let Some(group) = self.group(group) {
                    group.rmaps = Some(walked.records);
                }
            }
        }
        if self.fs.features().reflink() {
            let root = (agf.refcount_root.get(), agf.refcount_level.get());
            let walked = self.walk_group_tree(&REFCOUNTS, (group, at), root)?;
            if walked.is_whole {
                if agf.refcount_blocks.get() != walked.blocks {
                    let (found, expected) = (agf.refcount_blocks.get(), walked.blocks);
                    let detail =
                        format!("AGF: refcount btree of {found} blocks, expected {expected}");
                    self.finding(at, detail);
                }
                self.check_refcounts(group, &walked.records);
                if let Some(group) = self.group(group) {
                    group.refcounts = Some(walked.records);
                }
            }
        }
        self.check_lower_blocks(group, at, agf);
        Ok(())
    }

    fn check_lower_blocks(&mut self, group: u32, at: At, agf: &Agf) {
        let Some(state) = self.group(group) else {
            return;
        };
        let (expected, is_incomplete) = (state.lower_blocks, state.is_incomplete);
        let found = agf.btreeblks.get();
        if !is_incomplete && found != expected {
            let detail = format!("AGF: {found} blocks of btrees, expected {expected}");
            self.finding(at, detail);
        }
    }

    fn check_rmaps(&mut self, group: u32, records: &[RmapRecord]) {
        let length = self.geometry.ag_length(group);
        for record in records {
            let is_inode = |ino| self.geometry.split_inode(Ino(ino)).is_some();
            if let Some(why) = rmap_fault(record, length, is_inode) {
                let start = record.startblock.get();
                let at = At::group(group, self.addr_of(group, start));
                let detail = format!(
                    "reverse mapping of {} blocks at {start}, owner {:#x}, offset {:#x}: {why}",
                    record.blockcount.get(),
                    record.owner.get(),
                    record.offset.get()
                );
                self.finding(at, detail);
            }
        }
    }

    fn check_refcounts(&mut self, group: u32, records: &[RefcountRecord]) {
        let mut last: Option<(u32, u32)> = None;
        for record in records {
            let (raw, blocks, count) = (
                record.startblock.get(),
                record.blockcount.get(),
                record.refcount.get(),
            );
            let (start, is_staged) = (raw & !REFCOUNT_COW, raw & REFCOUNT_COW != 0);
            let place = self.geometry.fs_block(group, start);
            let fault = match self.geometry.check_extent(place, blocks.into()) {
                Err(why) => Some(format!("is {why}")),
                Ok(()) if is_staged && count != 1 => {
                    Some("is staged for copy-on-write, and not counted once".to_owned())
                }
                Ok(()) if is_staged && !self.report.log_was_dirty => {
                    Some("is left over of a copy-on-write".to_owned())
                }
                Ok(()) if !is_staged && count < 2 => Some("is not shared".to_owned()),
                Ok(()) if last.is_some_and(|(end, _)| raw < end) => {
                    Some("overlaps the record before".to_owned())
                }
                Ok(()) if last == Some((raw, count)) => {
                    Some("is not merged with the record before".to_owned())
                }
                Ok(()) => None,
            };
            last = Some((raw.saturating_add(blocks), count));
            if let Some(fault) = fault {
                let at = At::group(group, self.addr_of(group, start));
                let detail = format!(
                    "refcount record of {blocks} blocks at {start}, count {count}, {fault}"
                );
                self.finding(at, detail);
            }
        }
    }
}

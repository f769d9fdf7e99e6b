//! Free space: both btrees have the same extents, merged, and the AGF their sums.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::state::{At, Checker, OWNER_FREE, Owned};
use super::tree::{CheckKey, CheckTree};
use crate::error::Result;
use crate::xfs::format::ag::Agf;
use crate::xfs::format::btree::{AllocRecord, BNOBT_MAGIC, CNTBT_MAGIC, RMAP_OWNER_AG};

fn by_block(record: &AllocRecord) -> CheckKey {
    let (start, blocks) = (record.startblock.get(), record.blockcount.get());
    (start.into(), blocks.into(), 0)
}

fn by_length(record: &AllocRecord) -> CheckKey {
    let (start, blocks) = (record.startblock.get(), record.blockcount.get());
    (blocks.into(), start.into(), 0)
}

const BY_BLOCK: CheckTree<AllocRecord> = CheckTree {
    name: "free space btree by block",
    magic: BNOBT_MAGIC,
    owner: RMAP_OWNER_AG,
    keys: |record| (by_block(record), by_block(record)),
    key_bytes: size_of::<AllocRecord>(),
    node_key: |raw| Some(by_block(AllocRecord::ref_from_prefix(raw).ok()?.0)),
    has_high_keys: false,
    is_lower_counted: true,
};

const BY_LENGTH: CheckTree<AllocRecord> = CheckTree {
    name: "free space btree by length",
    magic: CNTBT_MAGIC,
    keys: |record| (by_length(record), by_length(record)),
    node_key: |raw| Some(by_length(AllocRecord::ref_from_prefix(raw).ok()?.0)),
    ..BY_BLOCK
};

impl Checker<'_> {
    /// Checks the free space of a group.
    pub(super) fn check_free_space(&mut self, group: u32, agf: &Agf) -> Result<()> {
        let at = self.head_at(group, 1);
        let root = (agf.bno_root.get(), agf.bno_level.get());
        let by_block = self.walk_group_tree(&BY_BLOCK, (group, at), root)?;
        let root = (agf.cnt_root.get(), agf.cnt_level.get());
        let mut by_length = self.walk_group_tree(&BY_LENGTH, (group, at), root)?;
        let length = self.geometry.ag_length(group);
        let (mut sum, mut longest, mut last_end) = (0_u64, 0, None);
        for record in &by_block.records {
            let (start, blocks) = (record.startblock.get(), record.blockcount.get());
            let place = self.geometry.fs_block(group, start);
            if let Err(why) = self.geometry.check_extent(place, blocks.into()) {
                let detail = format!("free extent of {blocks} blocks at {start} is {why}");
                self.finding(At::group(group, self.addr_of(group, start)), detail);
                continue;
            }
            if last_end == Some(start) {
                let detail = format!(
                    "free extents before and at block {start} are adjacent, and not merged"
                );
                self.finding(At::group(group, self.addr_of(group, start)), detail);
            }
            last_end = Some(start.saturating_add(blocks));
            sum = sum.saturating_add(blocks.into());
            longest = longest.max(blocks);
            let owned = Owned {
                start,
                blocks,
                owner: OWNER_FREE,
                offset: 0,
            };
            self.own(group, owned);
        }
        self.report.free_blocks = self.report.free_blocks.saturating_add(sum);
        if !by_block.is_whole || !by_length.is_whole {
            return Ok(());
        }
        by_length
            .records
            .sort_unstable_by_key(|record| record.startblock.get());
        self.compare_free(group, &by_block.records, &by_length.records);
        if u64::from(agf.freeblks.get()) != sum || sum > length.into() {
            let found = agf.freeblks.get();
            self.finding(at, format!("AGF: {found} free blocks, expected {sum}"));
        }
        if agf.longest.get() != longest {
            let found = agf.longest.get();
            let detail = format!("AGF: longest free extent {found}, expected {longest}");
            self.finding(at, detail);
        }
        Ok(())
    }

    /// Byte address of a block that may lie anywhere.
    pub(super) fn addr_of(&self, group: u32, block: u32) -> u64 {
        self.geometry.ag_block_addr(group, block)
    }

    fn compare_free(&mut self, group: u32, by_block: &[AllocRecord], by_length: &[AllocRecord]) {
        let (mut ours, mut theirs) = (by_block.iter().peekable(), by_length.iter().peekable());
        loop {
            let key = |record: &&AllocRecord| by_block_order(record);
            let (one, other) = (ours.peek().map(key), theirs.peek().map(key));
            let (in_other, start, blocks) = match (one, other) {
                (None, None) => break,
                (Some(one), Some(other)) if one == other => {
                    ours.next();
                    theirs.next();
                    continue;
                }
                (Some((start, blocks)), other)
                    if other.is_none_or(|other| (start, blocks) < other) =>
                {
                    ours.next();
                    ("length", start, blocks)
                }
                (_, Some((start, blocks))) => {
                    theirs.next();
                    ("block", start, blocks)
                }
                (Some((start, blocks)), None) => {
                    ours.next();
                    ("length", start, blocks)
                }
            };
            let at = At::group(group, self.addr_of(group, start));
            let detail = format!(
                "free extent of {blocks} blocks at {start} is not in the free space btree by {in_other}"
            );
            self.finding(at, detail);
        }
    }
}

fn by_block_order(record: &AllocRecord) -> (u32, u32) {
    (record.startblock.get(), record.blockcount.get())
}

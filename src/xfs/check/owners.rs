//! Every block has exactly one owner, or as many as the refcount btree says; the reverse mapping
//! btree has them all.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::reverse::is_inode_owner;
use super::state::{At, Checker, OWNER_FREE, Owned};
use crate::xfs::format::btree::{
    REFCOUNT_COW, RMAP_ATTR_FORK, RMAP_BMBT_BLOCK, RMAP_OWNER_AG, RMAP_OWNER_COW, RMAP_OWNER_FS,
    RMAP_OWNER_INOBT, RMAP_OWNER_INODES, RMAP_OWNER_LOG, RMAP_OWNER_REFCOUNT, RmapRecord,
};

/// Whether blocks may have other owners, too: those of the data fork of a file.
fn may_share(owned: &Owned) -> bool {
    is_inode_owner(owned.owner) && owned.offset & (RMAP_ATTR_FORK | RMAP_BMBT_BLOCK) == 0
}

/// An owner in words.
fn owner_name(owner: u64, offset: u64) -> String {
    let name = match owner {
        OWNER_FREE => "free space",
        RMAP_OWNER_FS => "group headers",
        RMAP_OWNER_LOG => "the log",
        RMAP_OWNER_AG => "free space btrees or the free list",
        RMAP_OWNER_INOBT => "inode btrees",
        RMAP_OWNER_INODES => "inodes",
        RMAP_OWNER_REFCOUNT => "the refcount btree",
        RMAP_OWNER_COW => "copy-on-write staging",
        ino => {
            let fork = match offset & RMAP_ATTR_FORK {
                0 => "data",
                _ => "attributes",
            };
            let what = match offset & RMAP_BMBT_BLOCK {
                0 => fork.to_owned(),
                _ => format!("extent btree of the {fork}"),
            };
            return format!("inode {ino} ({what})");
        }
    };
    name.to_owned()
}

/// Blocks with a number of owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SharedRun {
    start: u32,
    end: u32,
    count: u32,
}

/// The runs of blocks with several owners among blocks that may be shared, sorted by their start.
fn shared_runs(sharing: &[Owned]) -> Vec<SharedRun> {
    let mut borders: Vec<(u32, i32)> = Vec::with_capacity(sharing.len().saturating_mul(2));
    for owned in sharing {
        borders.push((owned.start, 1));
        borders.push((owned.end(), -1));
    }
    borders.sort_unstable();
    let mut runs: Vec<SharedRun> = Vec::new();
    let (mut at, mut count) = (0_u32, 0_i32);
    for (border, step) in borders {
        if border > at && count > 1 {
            let run = SharedRun {
                start: at,
                end: border,
                count: u32::try_from(count).unwrap_or(0),
            };
            match runs.last_mut() {
                Some(last) if last.end == run.start && last.count == run.count => {
                    last.end = run.end;
                }
                _ => runs.push(run),
            }
        }
        at = border;
        count = count.saturating_add(step);
    }
    runs
}

/// Joins what one reverse mapping holds: the same owner, blocks and offsets side by side.
fn merged(mut owned: Vec<Owned>) -> Vec<Owned> {
    let has_offset =
        |owned: &Owned| is_inode_owner(owned.owner) && owned.offset & RMAP_BMBT_BLOCK == 0;
    owned.sort_unstable_by_key(|owned| {
        // What can be joined has the same distance from block to offset.
        let diagonal = match has_offset(owned) {
            true => owned.offset.wrapping_sub(owned.start.into()),
            false => owned.offset,
        };
        (owned.owner, diagonal, owned.start)
    });
    let mut joined: Vec<Owned> = Vec::with_capacity(owned.len());
    for next in owned {
        match joined.last_mut() {
            Some(last)
                if last.owner == next.owner
                    && last.end() == next.start
                    && next.offset
                        == match has_offset(last) {
                            true => last.offset.saturating_add(last.blocks.into()),
                            false => last.offset,
                        } =>
            {
                last.blocks = last.blocks.saturating_add(next.blocks);
            }
            _ => joined.push(next),
        }
    }
    joined.sort_unstable_by_key(|owned| (owned.start, owned.owner, owned.offset));
    joined
}

impl Checker<'_> {
    /// Checks the owners of all blocks of a group.
    pub(super) fn check_owners(&mut self, group: u32) {
        let Some(state) = self.group(group) else {
            return;
        };
        let mut owned = std::mem::take(&mut state.owned);
        let (rmaps, refcounts) = (state.rmaps.take(), state.refcounts.take());
        let is_incomplete = state.is_incomplete;
        let mut expected = Vec::new();
        for record in refcounts.iter().flatten() {
            let (raw, blocks) = (record.startblock.get(), record.blockcount.get());
            let start = raw & !REFCOUNT_COW;
            if raw & REFCOUNT_COW != 0 {
                owned.push(Owned {
                    start,
                    blocks,
                    owner: RMAP_OWNER_COW,
                    offset: 0,
                });
            } else {
                expected.push(SharedRun {
                    start,
                    end: start.saturating_add(blocks),
                    count: record.refcount.get(),
                });
            }
        }
        owned.sort_unstable_by_key(|owned| (owned.start, owned.owner, owned.offset));
        self.check_single_owners(group, &owned, is_incomplete);
        let sharing: Vec<_> = owned.iter().copied().filter(may_share).collect();
        let runs = shared_runs(&sharing);
        self.check_sharing(group, &runs, &expected, refcounts.is_some(), is_incomplete);
        self.check_share_flags(group, &sharing, &runs);
        drop(sharing);
        if let Some(rmaps) = rmaps {
            owned.retain(|owned| owned.owner != OWNER_FREE);
            self.compare_rmaps(group, &merged(owned), &rmaps, is_incomplete);
        }
    }

    /// Blocks without an owner, and with several that cannot share them.
    fn check_single_owners(&mut self, group: u32, owned: &[Owned], is_incomplete: bool) {
        let length = self.geometry.ag_length(group);
        // The owner that reaches furthest, and the one that cannot share and does.
        let (mut end, mut furthest, mut alone): (u32, Option<Owned>, Option<Owned>) =
            (0, None, None);
        for next in owned {
            if next.start > end && !is_incomplete {
                self.without_owner(group, end, next.start);
            }
            let rival = match may_share(next) {
                true => alone.filter(|alone| alone.end() > next.start),
                false => furthest.filter(|furthest| furthest.end() > next.start),
            };
            if let Some(rival) = rival {
                let at = At::group(group, self.addr_of(group, next.start));
                let detail = format!(
                    "{} blocks at {} belong to {} and to {}",
                    rival.end().min(next.end()).saturating_sub(next.start),
                    next.start,
                    owner_name(rival.owner, rival.offset),
                    owner_name(next.owner, next.offset)
                );
                self.finding(at, detail);
            }
            if next.end() > end || furthest.is_none() {
                end = end.max(next.end());
                furthest = Some(*next);
            }
            if !may_share(next) && alone.is_none_or(|alone| next.end() > alone.end()) {
                alone = Some(*next);
            }
        }
        if end < length && !is_incomplete {
            self.without_owner(group, end, length);
        }
    }

    fn without_owner(&mut self, group: u32, start: u32, end: u32) {
        let at = At::group(group, self.addr_of(group, start));
        let blocks = end.saturating_sub(start);
        self.finding(
            at,
            format!("{blocks} blocks at {start} have no owner, and are not free"),
        );
    }

    /// The refcount btree has exactly the shared blocks.
    fn check_sharing(
        &mut self,
        group: u32,
        runs: &[SharedRun],
        records: &[SharedRun],
        has_records: bool,
        is_incomplete: bool,
    ) {
        let has_feature = self.fs.features().reflink();
        if is_incomplete || has_feature && !has_records {
            return;
        }
        let (mut runs, mut records) = (runs.iter().peekable(), records.iter().peekable());
        loop {
            let start =
                |shared: Option<&&SharedRun>| shared.map_or(u32::MAX, |shared| shared.start);
            let (one, other) = (start(runs.peek()), start(records.peek()));
            let detail = match (one, other) {
                (u32::MAX, u32::MAX) => return,
                (one, other) if one < other => runs.next().map(|run| {
                    let blocks = run.end.saturating_sub(run.start);
                    let (start, count) = (run.start, run.count);
                    match has_feature {
                        true => format!("{blocks} blocks at {start} have {count} owners, and no refcount record"),
                        false => format!("{blocks} blocks at {start} have {count} owners"),
                    }
                }),
                (one, other) if one > other => records.next().map(|record| {
                    let blocks = record.end.saturating_sub(record.start);
                    format!(
                        "refcount record of {blocks} blocks at {}, count {}: the blocks are not shared so",
                        record.start, record.count
                    )
                }),
                _ => runs.next().zip(records.next()).filter(|(run, record)| run != record).map(
                    |(run, record)| {
                        format!(
                            "refcount record of {} blocks at {}, count {}; expected {} blocks, count {}",
                            record.end.saturating_sub(record.start),
                            record.start,
                            record.count,
                            run.end.saturating_sub(run.start),
                            run.count
                        )
                    },
                ),
            };
            if let Some(detail) = detail {
                let block = one.min(other);
                self.finding(At::group(group, self.addr_of(group, block)), detail);
            }
        }
    }

    /// Inodes with shared blocks have the flag that says so.
    fn check_share_flags(&mut self, group: u32, sharing: &[Owned], runs: &[SharedRun]) {
        let mut told = None;
        for owned in sharing {
            let behind = runs.partition_point(|run| run.end <= owned.start);
            let is_shared = runs.get(behind).is_some_and(|run| run.start < owned.end());
            if is_shared && told != Some(owned.owner) && self.lacks_share_flag(owned.owner) {
                told = Some(owned.owner);
                let addr = self.addr_of(group, owned.start);
                let at = At::inode(owned.owner, addr);
                self.finding(at, "has shared blocks, but not the flag that says so");
            }
        }
    }

    fn lacks_share_flag(&mut self, ino: u64) -> bool {
        let geometry = &self.geometry;
        let state = self.inodes.state(geometry, ino);
        state.is_some_and(|state| !state.may_share)
    }

    /// The reverse mapping btree has exactly the owners.
    fn compare_rmaps(
        &mut self,
        group: u32,
        expected: &[Owned],
        records: &[RmapRecord],
        is_incomplete: bool,
    ) {
        let key = |owned: &Owned| (owned.start, owned.owner, owned.offset, owned.blocks);
        let found: Vec<_> = records
            .iter()
            .map(|record| Owned {
                start: record.startblock.get(),
                blocks: record.blockcount.get(),
                owner: record.owner.get(),
                offset: record.offset.get(),
            })
            .collect();
        let (mut ours, mut theirs) = (expected.iter().peekable(), found.iter().peekable());
        loop {
            let (word, owned) = match (ours.peek(), theirs.peek()) {
                (None, None) => return,
                (Some(one), Some(other)) if key(one) == key(other) => {
                    ours.next();
                    theirs.next();
                    continue;
                }
                (Some(one), Some(other)) if key(one) > key(other) => ("wrong", theirs.next()),
                (Some(_), _) => ("missing", ours.next()),
                (None, Some(_)) => ("wrong", theirs.next()),
            };
            // An owner that could not be read may have it.
            let Some(owned) = owned.filter(|_| word == "missing" || !is_incomplete) else {
                continue;
            };
            let at = At::group(group, self.addr_of(group, owned.start));
            let detail = format!(
                "{word} reverse mapping of {} blocks at {}: {}, offset {:#x}",
                owned.blocks,
                owned.start,
                owner_name(owned.owner, owned.offset),
                owned.offset
            );
            self.finding(at, detail);
        }
    }
}

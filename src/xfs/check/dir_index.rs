//! The index of a directory: hashes of all names, and the longest unused range of each block.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;
use zerocopy::big_endian::U16;

use super::dirs::CheckedDir;
use super::state::{At, Checker};
use crate::error::Result;
use crate::xfs::format::dir::{
    self as layout, BlockTail, DaHeader, DirFreeHeader, DirLeafEntry, DirLeafTail,
};

/// Bytes of the longest unused range of a block.
const BEST_BYTES: usize = size_of::<U16>();

/// Hash and address of an entry, as both sides are compared.
type IndexEntry = (u32, u32);

/// The entries of a leaf that are not stale.
fn live(entries: &[DirLeafEntry]) -> impl Iterator<Item = IndexEntry> + '_ {
    entries
        .iter()
        .filter(|entry| entry.address.get() != 0)
        .map(|entry| (entry.hash.get(), entry.address.get()))
}

impl Checker<'_> {
    /// The index of a directory of a single block, at its end.
    pub(super) fn check_block_index(&mut self, dir: &CheckedDir<'_>) -> Result<()> {
        let Some((at, raw)) = self.fork_block(&dir.fork, 0)? else {
            return Ok(());
        };
        let Ok((entries, _)) = layout::block_leaf(&raw) else {
            return Ok(());
        };
        let stale = BlockTail::ref_from_suffix(&raw).map_or(0, |(_, tail)| tail.stale.get());
        let checked = layout::check_leaf_entries(entries, stale);
        self.or_finding(at, checked)?;
        self.compare_index(dir, live(entries).collect());
        Ok(())
    }

    /// The index of a larger directory; `end` is the block behind the last one of its fork.
    pub(super) fn check_index(&mut self, dir: &mut CheckedDir<'_>, end: u64) -> Result<()> {
        let block_log = self.geometry.block_log;
        let blocks = |bytes: u64| bytes.checked_shr(block_log).unwrap_or(0);
        let leaf_start = blocks(layout::LEAF_SPACE_BYTES);
        if end <= leaf_start {
            self.finding(dir.at, "a directory without an index");
            return Ok(());
        }
        if end == leaf_start.saturating_add(dir.fork.step) {
            return self.check_single_leaf(dir, leaf_start);
        }
        let mut index = Vec::new();
        let mut last_hash = 0;
        let mut visit = |checker: &mut Checker<'_>, at: At, raw: &[u8]| {
            let (header, entries) = match layout::leaf(raw) {
                Ok(found) => found,
                Err(error) => {
                    checker.finding(at, error.detail());
                    return Ok(None);
                }
            };
            let checked = layout::check_leaf_entries(entries, header.stale.get().into());
            checker.or_finding(at, checked)?;
            if entries
                .first()
                .is_some_and(|entry| entry.hash.get() < last_hash)
            {
                checker.finding(at, "directory index: leaves out of order");
            }
            last_hash = entries.last().map_or(last_hash, |entry| entry.hash.get());
            index.extend(live(entries));
            Ok(entries.last().map(|entry| entry.hash.get()))
        };
        let at = dir.at;
        if self.walk_hashes(&dir.fork, leaf_start, at, &mut visit)? {
            self.compare_index(dir, index);
        }
        self.check_free_index(dir, blocks(layout::FREE_SPACE_BYTES))
    }

    /// The only block of an index: hashes from its start, longest unused ranges at its end.
    fn check_single_leaf(&mut self, dir: &CheckedDir<'_>, leaf_start: u64) -> Result<()> {
        let Some((at, raw)) = self.fork_block(&dir.fork, leaf_start)? else {
            self.finding(dir.at, "its index is partly a hole");
            return Ok(());
        };
        let Ok((head, _)) = DaHeader::ref_from_prefix(&raw) else {
            return Ok(());
        };
        if head.magic.get() != layout::MAGIC_LEAF1 {
            let detail = format!("directory index: no magic ({:#x})", head.magic.get());
            self.finding(at, detail);
            return Ok(());
        }
        if !self.check_da_head((at, dir.ino), "directory index", &raw, head) {
            return Ok(());
        }
        if head.forw.get() != 0 || head.back.get() != 0 {
            self.finding(at, "directory index: a single block with neighbours");
        }
        let Some((header, entries)) = self.or_finding(at, layout::leaf(&raw))? else {
            return Ok(());
        };
        let checked = layout::check_leaf_entries(entries, header.stale.get().into());
        self.or_finding(at, checked)?;
        self.compare_index(dir, live(entries).collect());
        let Ok((rest, tail)) = DirLeafTail::ref_from_suffix(&raw) else {
            return Ok(());
        };
        let count = usize::try_from(tail.best_count.get()).unwrap_or(usize::MAX);
        let bests = <[U16]>::ref_from_suffix_with_elems(rest, count);
        let used = size_of::<layout::DirLeafHeader>().saturating_add(size_of_val(entries));
        let Some((_, bests)) = bests.ok().filter(|(before, _)| before.len() >= used) else {
            let detail = format!("directory index: {count} longest unused ranges, more than fit");
            self.finding(at, detail);
            return Ok(());
        };
        if count != dir.longest.len() {
            let detail = format!(
                "directory index: longest unused ranges of {count} blocks, expected {}",
                dir.longest.len()
            );
            self.finding(at, detail);
        }
        self.compare_bests(at, dir, 0, bests);
        Ok(())
    }

    fn compare_bests(&mut self, at: At, dir: &CheckedDir<'_>, first: usize, bests: &[U16]) {
        for (index, best) in bests.iter().enumerate() {
            let block = first.saturating_add(index);
            let expected = dir.longest.get(block).copied();
            let expected = expected.unwrap_or(layout::NO_DATA_BLOCK);
            if best.get() != expected {
                let detail = format!(
                    "directory index: longest unused range of block {block} is {:#x}, expected {expected:#x}",
                    best.get()
                );
                self.finding(at, detail);
            }
        }
    }

    /// The blocks of the free index of a large directory.
    fn check_free_index(&mut self, dir: &CheckedDir<'_>, free_start: u64) -> Result<()> {
        let bytes = usize::try_from(self.geometry.dir_block_bytes).unwrap_or(0);
        let room = bytes.saturating_sub(size_of::<DirFreeHeader>()) / BEST_BYTES;
        let (mut next, mut covered) = (free_start, vec![false; dir.longest.len()]);
        'all: for extent in dir.fork.extents {
            let aligned = extent.offset & !dir.fork.step.saturating_sub(1);
            let mut block = next.max(aligned);
            while block < extent.end() {
                if !self.check_free_block(dir, (block, free_start), room, &mut covered)? {
                    break 'all;
                }
                block = block.saturating_add(dir.fork.step);
                next = block;
            }
        }
        for (block, (covered, longest)) in covered.iter().zip(&dir.longest).enumerate() {
            if !covered && *longest != layout::NO_DATA_BLOCK {
                let detail = format!("block {block} of its names is not in the free index");
                self.finding(dir.at, detail);
            }
        }
        Ok(())
    }

    /// Checks one of them. Whether it is one.
    fn check_free_block(
        &mut self,
        dir: &CheckedDir<'_>,
        (block, free_start): (u64, u64),
        room: usize,
        covered: &mut [bool],
    ) -> Result<bool> {
        let Some((at, raw)) = self.fork_block(&dir.fork, block)? else {
            self.finding(dir.at, "its free index is partly a hole");
            return Ok(false);
        };
        let head = (at, dir.ino);
        if !self.check_block_head(head, "free index", &raw, layout::MAGIC_FREE) {
            return Ok(false);
        }
        let Ok((header, rest)) = DirFreeHeader::ref_from_prefix(&raw) else {
            return Ok(false);
        };
        let number = block
            .saturating_sub(free_start)
            .checked_div(dir.fork.step)
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(usize::MAX);
        let first = number.saturating_mul(room);
        let (valid, used) = (header.valid.get(), header.used.get());
        let count = usize::try_from(valid).unwrap_or(usize::MAX);
        let bests = <[U16]>::ref_from_prefix_with_elems(rest, count);
        let Some((bests, _)) = bests.ok().filter(|_| count <= room) else {
            self.finding(at, format!("free index: {valid} numbers, {room} fit"));
            return Ok(false);
        };
        if usize::try_from(header.first_data.get()) != Ok(first) {
            let found = header.first_data.get();
            self.finding(
                at,
                format!("free index: begins at block {found}, expected {first}"),
            );
            return Ok(false);
        }
        let expected = bests
            .iter()
            .filter(|best| best.get() != layout::NO_DATA_BLOCK)
            .count();
        if usize::try_from(used) != Ok(expected) {
            let detail = format!("free index: {used} numbers in use, expected {expected}");
            self.finding(at, detail);
        }
        self.compare_bests(at, dir, first, bests);
        for covered in covered.iter_mut().skip(first).take(count) {
            *covered = true;
        }
        Ok(true)
    }

    /// The index has exactly the names.
    fn compare_index(&mut self, dir: &CheckedDir<'_>, mut index: Vec<IndexEntry>) {
        index.sort_unstable();
        let names: Vec<_> = dir
            .names
            .iter()
            .map(|name| (name.hash, name.address))
            .collect();
        if index == names {
            return;
        }
        let (mut ours, mut theirs) = (names.iter().peekable(), index.iter().peekable());
        let mut told = 0_u32;
        // A directory whose index is of no use has one line for each of a few names.
        while told < 8 {
            let (word, (hash, address)) = match (ours.peek(), theirs.peek()) {
                (None, None) => return,
                (Some(one), Some(other)) if one == other => {
                    ours.next();
                    theirs.next();
                    continue;
                }
                (Some(one), other) if other.is_none_or(|other| one < other) => {
                    let one = **one;
                    ours.next();
                    ("lacks", one)
                }
                _ => match theirs.next() {
                    Some(other) => ("has, and there is no such name,", *other),
                    None => return,
                },
            };
            told = told.saturating_add(1);
            let place = u64::from(address).saturating_mul(8);
            let detail =
                format!("the index {word} the hash {hash:#x} for byte {place} of the directory");
            self.finding(dir.at, detail);
        }
    }
}

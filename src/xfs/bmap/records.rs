//! The records of a fork in either form: found, inserted, removed, replaced. A list of extents that
//! is too long for the inode becomes a btree, and a btree that would fit becomes a list.

use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use super::super::alloc::{RmapOwner, SpaceSource};
use super::super::extents::Extent;
use super::super::format::btree::BmbtRecord;
use super::super::geometry::FsBlock;
use super::super::trans::Trans;
use super::super::tree::{self, BlockSource};
use super::fork::{
    ForkId, ForkInfo, bad_inode, clear, count_blocks, fork_info, put_extents, record_of,
    set_extents,
};
use crate::error::Result;

/// Blocks for the btree of a fork, which count as blocks of the file.
struct ForkSource {
    id: ForkId,
    space: SpaceSource,
}

impl ForkSource {
    fn new(id: ForkId, near: FsBlock) -> Self {
        let owner = RmapOwner::bmbt(id.ino, id.fork);
        Self {
            id,
            space: SpaceSource::bmbt(near, owner),
        }
    }
}

impl BlockSource for ForkSource {
    fn take(&mut self, t: &mut Trans<'_>) -> Result<FsBlock> {
        let block = self.space.take(t)?;
        count_blocks(t, self.id, 1)?;
        Ok(block)
    }

    fn give(&mut self, t: &mut Trans<'_>, block: FsBlock) -> Result<()> {
        count_blocks(t, self.id, -1)?;
        self.space.give(t, block)
    }
}

fn checked(t: &Trans<'_>, id: ForkId, record: &BmbtRecord) -> Result<Extent> {
    let addr = t
        .inode_place(id.ino)
        .map_or(0, |(place, _)| place.addr_bytes);
    Extent::checked(t.geometry(), record, addr)
}

/// The records of a list of extents.
fn list<'t>(t: &'t mut Trans<'_>, id: ForkId, range: &Range<usize>) -> Result<&'t [BmbtRecord]> {
    let raw = t.inode(id.ino)?;
    let raw = raw.get(range.clone()).unwrap_or_default();
    let count = raw.len().checked_div(size_of::<BmbtRecord>()).unwrap_or(0);
    let records = <[BmbtRecord]>::ref_from_prefix_with_elems(raw, count);
    Ok(records.map_or(&[], |(records, _)| records))
}

/// The records that a list has, without its free room.
fn records<'t>(t: &'t mut Trans<'_>, id: ForkId) -> Result<&'t [BmbtRecord]> {
    let info = fork_info(t, id)?;
    records_of(t, id, &info)
}

fn records_of<'t>(t: &'t mut Trans<'_>, id: ForkId, info: &ForkInfo) -> Result<&'t [BmbtRecord]> {
    let count = usize::try_from(info.extents).unwrap_or(usize::MAX);
    let all = list(t, id, &info.range)?;
    Ok(all.get(..count).unwrap_or(all))
}

/// The last extent that begins at a block or before it.
pub(super) fn at_or_before(t: &mut Trans<'_>, id: ForkId, offset: u64) -> Result<Option<Extent>> {
    let info = fork_info(t, id)?;
    let found = if info.is_btree {
        tree::find_le(t, &id.tree(), offset)?
    } else {
        let records = records_of(t, id, &info)?;
        let behind = records.partition_point(|record| record.offset_blocks() <= offset);
        let index = behind.checked_sub(1);
        index.and_then(|index| records.get(index)).copied()
    };
    found.map(|record| checked(t, id, &record)).transpose()
}

/// The first extent that begins behind a block.
pub(super) fn behind(t: &mut Trans<'_>, id: ForkId, offset: u64) -> Result<Option<Extent>> {
    let info = fork_info(t, id)?;
    let found = if info.is_btree {
        tree::find_gt(t, &id.tree(), offset)?
    } else {
        let records = records_of(t, id, &info)?;
        let behind = records.partition_point(|record| record.offset_blocks() <= offset);
        records.get(behind).copied()
    };
    found.map(|record| checked(t, id, &record)).transpose()
}

/// Changes a list: the records in `range` become these.
fn splice(
    t: &mut Trans<'_>,
    id: ForkId,
    fork: &Range<usize>,
    range: Range<usize>,
    new: &[BmbtRecord],
) -> Result<()> {
    let mut all = records(t, id)?.to_vec();
    if range.end > all.len() || range.start > range.end {
        return Err(bad_inode(t, id, "an extent is missing"));
    }
    all.splice(range, new.iter().copied());
    let raw = t.edit_inode(id.ino)?.get_mut(fork.clone());
    let raw = raw.unwrap_or_default();
    let (used, free) = raw.split_at_mut(raw.len().min(size_of_val(&*all)));
    used.copy_from_slice(all.as_bytes().get(..used.len()).unwrap_or_default());
    free.fill(0);
    set_extents(t, id, all.len() as u64)
}

/// The place of the record that begins at a block.
fn index_of(t: &mut Trans<'_>, id: ForkId, offset: u64) -> Result<usize> {
    let found = records(t, id)?.binary_search_by_key(&offset, BmbtRecord::offset_blocks);
    found.map_err(|_| bad_inode(t, id, "an extent is missing"))
}

/// Adds a record where there is none.
pub(super) fn insert(t: &mut Trans<'_>, id: ForkId, extent: &Extent) -> Result<()> {
    let info = fork_info(t, id)?;
    let record = record_of(extent);
    let more = info.extents.saturating_add(1);
    let source = &mut ForkSource::new(id, extent.start_block);
    if info.is_btree {
        set_extents(t, id, more)?;
        return tree::insert(t, &id.tree(), &record, source);
    }
    let offset = extent.offset_blocks;
    let index = records(t, id)?.partition_point(|record| record.offset_blocks() <= offset);
    if info.extents < info.most_inline {
        return splice(t, id, &info.range, index..index, &[record]);
    }
    let mut all = records(t, id)?.to_vec();
    all.insert(index.min(all.len()), record);
    clear(t, id, true)?;
    // Now the number goes with the form.
    put_extents(t, id, more)?;
    tree::plant(t, &id.tree(), &all, source)
}

/// Removes the record of an extent.
pub(super) fn remove(t: &mut Trans<'_>, id: ForkId, extent: &Extent) -> Result<()> {
    let info = fork_info(t, id)?;
    let offset = extent.offset_blocks;
    if !info.is_btree {
        let index = index_of(t, id, offset)?;
        let behind = index.saturating_add(1);
        return splice(t, id, &info.range, index..behind, &[]);
    }
    let source = &mut ForkSource::new(id, extent.start_block);
    tree::remove(t, &id.tree(), offset, source)?;
    let rest = info.extents.saturating_sub(1);
    if rest > info.most_inline {
        return set_extents(t, id, rest);
    }
    let Some(all) = tree::uproot(t, &id.tree(), source)? else {
        return Err(bad_inode(t, id, "fewer extents than its btree has"));
    };
    if all.len() as u64 != rest {
        let what = "the number of extents is not that of its btree";
        return Err(bad_inode(t, id, what));
    }
    clear(t, id, false)?;
    put_extents(t, id, 0)?;
    splice(t, id, &info.range, 0..0, &all)
}

/// Replaces the record of an extent by one that may begin elsewhere between its neighbours.
pub(super) fn update(t: &mut Trans<'_>, id: ForkId, old: &Extent, new: &Extent) -> Result<()> {
    let info = fork_info(t, id)?;
    let record = record_of(new);
    if info.is_btree {
        return tree::update(t, &id.tree(), old.offset_blocks, &record);
    }
    let index = index_of(t, id, old.offset_blocks)?;
    let behind = index.saturating_add(1);
    splice(t, id, &info.range, index..behind, &[record])
}

/// Replaces neighbouring extents by others, in order, that begin where the first of them begins.
pub(super) fn replace(t: &mut Trans<'_>, id: ForkId, old: &[Extent], new: &[Extent]) -> Result<()> {
    let both = old.len().min(new.len());
    for gone in old.iter().skip(both).rev() {
        remove(t, id, gone)?;
    }
    for (before, after) in old.iter().zip(new) {
        if before != after {
            update(t, id, before, after)?;
        }
    }
    for more in new.iter().skip(both) {
        insert(t, id, more)?;
    }
    Ok(())
}

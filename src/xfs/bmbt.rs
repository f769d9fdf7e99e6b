//! The extent btree of a fork: read whole into an [`ExtentMap`], or asked for one block.
//!
//! Both end on any disk: each step goes one level down, extents must be sorted and must not
//! overlap, and there can be no more of them than the inode says.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;
use std::sync::Arc;

use zerocopy::FromBytes;
use zerocopy::big_endian::U64;

use super::cache::BlockKind;
use super::extents::{Extent, ExtentMap, FoundExtent};
use super::format::btree::{
    BMBT_MAGIC, BmbtRecord, BmdrHeader, LONG_CRC_OFFSET, LongHeader, MAX_LEVELS,
};
use super::format::{self, BASIC_BLOCK_BYTES};
use super::fs::Fs;
use super::geometry::FsBlock;
use super::inode::Inode;
use super::{MetaIo, corrupt};
use crate::error::{Error, Result};

const KEY_BYTES: usize = 8;
const POINTER_BYTES: usize = 8;
const CHILD_BYTES: usize = KEY_BYTES + POINTER_BYTES;

fn be64(raw: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*raw.get(offset..)?.first_chunk()?))
}

/// A child as its parent describes it.
#[derive(Debug, Clone)]
struct Child {
    block: FsBlock,
    level: u32,
    offsets: Range<u64>,
}

/// The children in the keys and pointers of a node or root; `offsets` are those the node itself may
/// hold.
fn children(
    body: &[u8],
    count: usize,
    level: u32,
    offsets: &Range<u64>,
) -> Result<Vec<Child>, &'static str> {
    let most = body.len() / CHILD_BYTES;
    if count == 0 || count > most {
        return Err("impossible number of records");
    }
    let key = |index: usize| be64(body, index.wrapping_mul(KEY_BYTES));
    let mut list = Vec::with_capacity(count);
    for index in 0..count {
        let start = key(index).ok_or("too short")?;
        let next = index.wrapping_add(1);
        let end = if next < count {
            key(next).ok_or("too short")?
        } else {
            offsets.end
        };
        if start < offsets.start || start >= end || end > offsets.end {
            return Err("keys out of order");
        }
        let at = most
            .wrapping_mul(KEY_BYTES)
            .wrapping_add(index.wrapping_mul(POINTER_BYTES));
        list.push(Child {
            block: FsBlock(be64(body, at).ok_or("too short")?),
            level: level.saturating_sub(1),
            offsets: start..end,
        });
    }
    Ok(list)
}

/// A node on the way down: its keys and pointers, or records.
struct BmbtStep<'a> {
    /// For errors: where it lies.
    addr: u64,
    body: &'a [u8],
    count: usize,
    level: u32,
    /// The offsets that it may hold.
    offsets: Range<u64>,
}

impl BmbtStep<'_> {
    /// The last child whose first offset is at most `offset`; the first offset of all when there is
    /// none.
    fn child_at(&self, offset: u64) -> Result<Result<Child, u64>, &'static str> {
        let key = |index: usize| be64(self.body, index.wrapping_mul(KEY_BYTES));
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if key(middle).ok_or("too short")? <= offset {
                low = middle.wrapping_add(1);
            } else {
                high = middle;
            }
        }
        let Some(index) = low.checked_sub(1) else {
            return Ok(Err(key(0).ok_or("too short")?));
        };
        let start = key(index).ok_or("too short")?;
        let end = if low < self.count {
            key(low).ok_or("too short")?
        } else {
            self.offsets.end
        };
        if start < self.offsets.start || start >= end || end > self.offsets.end {
            return Err("keys out of order");
        }
        let most = self.body.len() / CHILD_BYTES;
        let at = most
            .wrapping_mul(KEY_BYTES)
            .wrapping_add(index.wrapping_mul(POINTER_BYTES));
        Ok(Ok(Child {
            block: FsBlock(be64(self.body, at).ok_or("too short")?),
            level: self.level.saturating_sub(1),
            offsets: start..end,
        }))
    }
}

impl Fs {
    /// The extent of a fork in btree form that covers a block, or the hole that the block lies in.
    /// Reads one block of each level.
    pub(super) fn find_in_bmbt(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        root: &[u8],
        offset: u64,
    ) -> Result<FoundExtent> {
        let hole = |start_blocks, end_blocks| FoundExtent::Hole {
            start_blocks,
            end_blocks,
        };
        let (addr, data, offsets) = match self.leaf_at(io, inode, root, offset)? {
            Ok(leaf) => leaf,
            Err(first) => return Ok(hole(0, first)),
        };
        let records = leaf_records(&data)
            .map_err(|what| corrupt(addr, format!("{}: extent btree block: {what}", inode.ino)))?;
        let index = records.partition_point(|record| {
            record.offset_blocks().saturating_add(record.blocks()) <= offset
        });
        let checked = |record: &BmbtRecord| Extent::checked(self.geometry(), record, addr);
        let end = match records.get(index) {
            Some(record) if record.offset_blocks() <= offset => {
                return checked(record).map(FoundExtent::Extent);
            }
            Some(next) => next.offset_blocks(),
            None => offsets.end,
        };
        let before = index.checked_sub(1).and_then(|before| records.get(before));
        let start = match before {
            Some(record) => checked(record)?.end_blocks(),
            None => offsets.start,
        };
        Ok(hole(start, end))
    }

    /// The last extent of a fork in btree form that begins before a block.
    pub(super) fn last_in_bmbt(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        root: &[u8],
        before: u64,
    ) -> Result<Option<Extent>> {
        let Some(last) = before.checked_sub(1) else {
            return Ok(None);
        };
        let Ok((addr, data, _)) = self.leaf_at(io, inode, root, last)? else {
            return Ok(None);
        };
        let bad = |what| corrupt(addr, format!("{}: extent btree block: {what}", inode.ino));
        let records = leaf_records(&data).map_err(bad)?;
        let index = records.partition_point(|record| record.offset_blocks() < before);
        // There is one: the leaf's key, which is at most `last`, is its first record's.
        let record = index.checked_sub(1).and_then(|index| records.get(index));
        let record = record.ok_or_else(|| bad("without records"))?;
        Extent::checked(self.geometry(), record, addr).map(Some)
    }

    /// The leaf that a block's extent would be in: its address, its bytes, the offsets that it may
    /// hold. The first offset of all extents when that is behind the block.
    #[expect(clippy::type_complexity, reason = "the parts of a leaf; used twice")]
    fn leaf_at(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        root: &[u8],
        offset: u64,
    ) -> Result<Result<(u64, Arc<[u8]>, Range<u64>), u64>> {
        let root = root_step(inode, root)?;
        let in_node = |step: &BmbtStep<'_>| {
            step.child_at(offset)
                .map_err(|what| corrupt(step.addr, format!("{}: extent btree: {what}", inode.ino)))
        };
        let mut child = match in_node(&root)? {
            Ok(child) => child,
            Err(first) => return Ok(Err(first)),
        };
        loop {
            let (addr, data) = self.bmbt_block(io, inode, &child)?;
            let bad = |what| corrupt(addr, format!("{}: extent btree block: {what}", inode.ino));
            let (header, body) =
                LongHeader::ref_from_prefix(&data).map_err(|_| bad("too short"))?;
            let first = if child.level == 0 {
                let records = leaf_records(&data).map_err(bad)?;
                records.first().map(BmbtRecord::offset_blocks)
            } else {
                be64(body, 0)
            };
            if first != Some(child.offsets.start) {
                return Err(bad("its first key is not the one in its parent"));
            }
            if child.level == 0 {
                return Ok(Ok((addr, data, child.offsets)));
            }
            let step = BmbtStep {
                addr,
                body,
                count: usize::from(header.numrecs.get()),
                level: child.level,
                offsets: child.offsets,
            };
            child = in_node(&step)?.map_err(|_| bad("keys out of order"))?;
        }
    }

    /// Reads all extents of a part of a fork in btree form, and those that are in the same leaves.
    /// Returns the whole part that these are all extents of.
    pub(super) fn load_bmbt_part(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        root: &[u8],
        blocks: Range<u64>,
    ) -> Result<(Range<u64>, ExtentMap)> {
        let mut map = ExtentMap::default();
        let mut start = blocks.start;
        let mut at = blocks.start;
        while at < blocks.end {
            let (addr, data, offsets) = match self.leaf_at(io, inode, root, at)? {
                Ok(leaf) => leaf,
                Err(first) => {
                    // The hole in front of all extents.
                    start = 0;
                    at = first;
                    continue;
                }
            };
            let bad =
                |what: &str| corrupt(addr, format!("{}: extent btree block: {what}", inode.ino));
            for record in leaf_records(&data).map_err(bad)? {
                map.push(self.geometry(), record, addr)?;
            }
            let end = map.as_slice().last().map_or(0, Extent::end_blocks);
            if end > offsets.end {
                return Err(bad("an extent that the parent's keys exclude"));
            }
            if map.len() as u64 > inode.nextents {
                return Err(bad("more extents than the inode says"));
            }
            start = start.min(offsets.start);
            // It is behind `at`: each leaf has blocks of its own.
            at = offsets.end;
        }
        if start == 0 && at == u64::MAX && map.len() as u64 != inode.nextents {
            let what = "the number of extents is not the one the inode says";
            return Err(bad_root(inode, what));
        }
        Ok((start..at, map))
    }

    /// Reads all extents of a fork in btree form.
    pub(super) fn load_bmbt(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        root: &[u8],
    ) -> Result<ExtentMap> {
        let step = root_step(inode, root)?;
        let mut map = ExtentMap::default();
        let all = children(step.body, step.count, step.level, &step.offsets);
        for child in all.map_err(|what| bad_root(inode, what))? {
            self.load_bmbt_block(io, inode, &child, &mut map)?;
        }
        if map.len() as u64 != inode.nextents {
            let what = "the number of extents is not the one the inode says";
            return Err(bad_root(inode, what));
        }
        Ok(map)
    }

    fn load_bmbt_block(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        node: &Child,
        map: &mut ExtentMap,
    ) -> Result<()> {
        let geometry = self.geometry();
        let (addr, data) = self.bmbt_block(io, inode, node)?;
        let bad = |what: &str| corrupt(addr, format!("{}: extent btree block: {what}", inode.ino));
        let (header, body) = LongHeader::ref_from_prefix(&data).map_err(|_| bad("too short"))?;
        if node.level > 0 {
            let count = usize::from(header.numrecs.get());
            for child in children(body, count, node.level, &node.offsets).map_err(bad)? {
                self.load_bmbt_block(io, inode, &child, map)?;
            }
            return Ok(());
        }
        let records = leaf_records(&data).map_err(bad)?;
        for record in records {
            if !node.offsets.contains(&record.offset_blocks()) {
                return Err(bad("an extent that the parent's keys exclude"));
            }
            if map.len() as u64 >= inode.nextents {
                return Err(bad("more extents than the inode says"));
            }
            map.push(geometry, record, addr)?;
        }
        Ok(())
    }

    /// Reads a block, which must be at its level and in order.
    fn bmbt_block(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        node: &Child,
    ) -> Result<(u64, Arc<[u8]>)> {
        let geometry = self.geometry();
        let addr = geometry.block_addr(node.block);
        let bad = |what: &str| corrupt(addr, format!("{}: extent btree block: {what}", inode.ino));
        geometry.check_extent(node.block, 1).map_err(bad)?;
        let len = usize::try_from(geometry.block_bytes).unwrap_or(usize::MAX);
        let data = self.read_block(io, (addr, len), BlockKind::Bmbt, inode.ino.0, |raw| {
            self.check_long(raw, addr, inode)
                .and_then(|()| check_order(raw))
                .map_err(bad)
        })?;
        let (header, _) = LongHeader::ref_from_prefix(&data).map_err(|_| bad("too short"))?;
        if u32::from(header.level.get()) != node.level {
            return Err(bad("at the wrong level"));
        }
        Ok((addr, data))
    }

    fn check_long(&self, raw: &[u8], addr: u64, inode: &Inode) -> Result<(), &'static str> {
        let (header, _) = LongHeader::ref_from_prefix(raw).map_err(|_| "too short")?;
        if header.magic.get() != BMBT_MAGIC {
            return Err("no magic");
        }
        if !format::checksum_ok(raw, LONG_CRC_OFFSET) {
            return Err("the checksum is wrong");
        }
        if header.uuid != *self.meta_uuid() {
            return Err("of another filesystem (uuid)");
        }
        if header.blkno.get() != addr / BASIC_BLOCK_BYTES {
            return Err("its address is another one");
        }
        if header.owner.get() != inode.ino.0 {
            return Err("of another inode");
        }
        Ok(())
    }
}

fn bad_root(inode: &Inode, what: &str) -> Error {
    corrupt(
        inode.addr_bytes,
        format!("{}: root of the extent btree: {what}", inode.ino),
    )
}

/// The root in the inode.
fn root_step<'a>(inode: &Inode, root: &'a [u8]) -> Result<BmbtStep<'a>> {
    let bad = |what: &str| bad_root(inode, what);
    let (header, body) = BmdrHeader::ref_from_prefix(root).map_err(|_| bad("too short"))?;
    let level = u32::from(header.level.get());
    if level == 0 || level >= MAX_LEVELS {
        return Err(bad("impossible height"));
    }
    let count = usize::from(header.numrecs.get());
    if count == 0 || count > body.len() / CHILD_BYTES {
        return Err(bad("impossible number of records"));
    }
    Ok(BmbtStep {
        addr: inode.addr_bytes,
        body,
        count,
        level,
        offsets: 0..u64::MAX,
    })
}

/// The records of a leaf, at least one.
fn leaf_records(block: &[u8]) -> Result<&[BmbtRecord], &'static str> {
    let (header, body) = LongHeader::ref_from_prefix(block).map_err(|_| "too short")?;
    let count = usize::from(header.numrecs.get());
    match <[BmbtRecord]>::ref_from_prefix_with_elems(body, count) {
        Ok(([], _)) => Err("without records"),
        Ok((records, _)) => Ok(records),
        Err(_) => Err("too many records"),
    }
}

/// Keys must rise, and extents must not overlap: searches rely on it.
fn check_order(block: &[u8]) -> Result<(), &'static str> {
    let (header, body) = LongHeader::ref_from_prefix(block).map_err(|_| "too short")?;
    let count = usize::from(header.numrecs.get());
    if header.level.get() == 0 {
        let mut end = 0;
        for record in leaf_records(block)? {
            if record.offset_blocks() < end || record.blocks() == 0 {
                return Err("extents overlap or are out of order");
            }
            end = record.offset_blocks().saturating_add(record.blocks());
        }
        return Ok(());
    }
    if count == 0 || count > body.len() / CHILD_BYTES {
        return Err("impossible number of records");
    }
    let (keys, _) = <[U64]>::ref_from_prefix_with_elems(body, count).map_err(|_| "too short")?;
    if keys.is_sorted_by(|before, after| before.get() < after.get()) {
        Ok(())
    } else {
        Err("keys out of order")
    }
}

//! The extent btree of a fork: walked once, into an [`ExtentMap`].
//!
//! The walk ends on any disk: each step goes one level down, extents must come sorted and without overlap,
//! and there can be no more of them than the inode says.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use zerocopy::FromBytes;

use super::cache::BlockKind;
use super::extents::ExtentMap;
use super::format::btree::{
    BMBT_MAGIC, BmbtRecord, BmdrHeader, LONG_CRC_OFFSET, LongHeader, MAX_LEVELS,
};
use super::format::{self, BASIC_BLOCK_BYTES};
use super::fs::Fs;
use super::geometry::FsBlock;
use super::inode::Inode;
use super::{MetaIo, corrupt};
use crate::error::Result;

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

/// The children in the keys and pointers of a node or root; `offsets` are those the node itself may hold.
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

impl Fs {
    /// Reads all extents of a fork in btree form.
    pub(super) fn load_bmbt(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        root: &[u8],
    ) -> Result<ExtentMap> {
        let bad = |what: &str| {
            corrupt(
                inode.addr_bytes,
                format!("{}: root of the extent btree: {what}", inode.ino),
            )
        };
        let (header, body) = BmdrHeader::ref_from_prefix(root).map_err(|_| bad("too short"))?;
        let level = u32::from(header.level.get());
        if level == 0 || level >= MAX_LEVELS {
            return Err(bad("impossible height"));
        }
        let count = usize::from(header.numrecs.get());
        let mut map = ExtentMap::default();
        for child in children(body, count, level, &(0..u64::MAX)).map_err(bad)? {
            self.load_bmbt_block(io, inode, &child, &mut map)?;
        }
        if map.len() as u64 != inode.nextents {
            return Err(bad("the number of extents is not the one the inode says"));
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
        let addr = geometry.block_addr(node.block);
        let bad = |what: &str| corrupt(addr, format!("{}: extent btree block: {what}", inode.ino));
        geometry.check_extent(node.block, 1).map_err(bad)?;
        let len = usize::try_from(geometry.block_bytes).unwrap_or(usize::MAX);
        let data = self.read_block(io, (addr, len), BlockKind::Bmbt, inode.ino.0, |raw| {
            self.check_long(raw, addr, inode).map_err(bad)
        })?;
        let (header, body) = LongHeader::ref_from_prefix(&data).map_err(|_| bad("too short"))?;
        if u32::from(header.level.get()) != node.level {
            return Err(bad("at the wrong level"));
        }
        let count = usize::from(header.numrecs.get());
        if node.level > 0 {
            for child in children(body, count, node.level, &node.offsets).map_err(bad)? {
                self.load_bmbt_block(io, inode, &child, map)?;
            }
            return Ok(());
        }
        let (records, _) = <[BmbtRecord]>::ref_from_prefix_with_elems(body, count)
            .map_err(|_| bad("too many records"))?;
        if records.is_empty() {
            return Err(bad("without records"));
        }
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

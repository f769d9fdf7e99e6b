//! Btree blocks and records ("Variable Length Record B+Trees"): short blocks inside an allocation
//! group, long blocks of a fork.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `IAB3`: inode btree.
pub const INOBT_MAGIC: u32 = 0x4941_4233;
/// `FIB3`: free inode btree.
pub const FINOBT_MAGIC: u32 = 0x4649_4233;
/// `AB3B`: free space by block number.
pub const BNOBT_MAGIC: u32 = 0x4142_3342;
/// `AB3C`: free space by length.
pub const CNTBT_MAGIC: u32 = 0x4142_3343;
/// `R3FC`: refcount btree.
pub const REFCOUNT_MAGIC: u32 = 0x5233_4643;
/// `RMB3`: owners of blocks.
pub const RMAPBT_MAGIC: u32 = 0x524d_4233;
/// `BMA3`: extents of a fork.
pub const BMBT_MAGIC: u32 = 0x424d_4133;

/// No block of a btree lies higher than this: more levels than any tree of the largest filesystem
/// needs.
pub const MAX_LEVELS: u32 = 9;

/// Header of a block inside an allocation group; block numbers count from the group's start.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct BtreeShortHeader {
    pub magic: U32,
    pub level: U16,
    pub numrecs: U16,
    pub leftsib: U32,
    pub rightsib: U32,
    pub blkno: U64,
    pub lsn: U64,
    pub uuid: [u8; 16],
    pub owner: U32,
    pub crc: little_endian::U32,
}

/// Where a short block's checksum lies.
pub const SHORT_CRC_OFFSET: usize = 52;

const _: () = {
    assert!(size_of::<BtreeShortHeader>() == 56);
    assert!(offset_of!(BtreeShortHeader, blkno) == 16);
    assert!(offset_of!(BtreeShortHeader, owner) == 48);
    assert!(offset_of!(BtreeShortHeader, crc) == SHORT_CRC_OFFSET);
};

/// Header of a block of a fork's btree.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct LongHeader {
    pub magic: U32,
    pub level: U16,
    pub numrecs: U16,
    pub leftsib: U64,
    pub rightsib: U64,
    pub blkno: U64,
    pub lsn: U64,
    pub uuid: [u8; 16],
    pub owner: U64,
    pub crc: little_endian::U32,
    pad: U32,
}

/// Where a long block's checksum lies.
pub const LONG_CRC_OFFSET: usize = 64;

const _: () = {
    assert!(size_of::<LongHeader>() == 72);
    assert!(offset_of!(LongHeader, blkno) == 24);
    assert!(offset_of!(LongHeader, owner) == 56);
    assert!(offset_of!(LongHeader, crc) == LONG_CRC_OFFSET);
};

/// Root of a fork's btree inside the inode; keys and pointers follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct BmdrHeader {
    pub level: U16,
    pub numrecs: U16,
}

const _: () = assert!(size_of::<BmdrHeader>() == 4);

/// Inodes of a chunk.
pub const CHUNK_INODES: u32 = 64;
/// Inodes that one bit of the hole mask stands for.
pub const HOLE_BIT_INODES: u32 = 4;

/// A chunk of 64 inodes, as filesystems with sparse inodes write it. Without them the four bytes of
/// `holemask`, `count` and `freecount` are one number, the free count, which is at most 64: the
/// hole mask then reads as 0, and `count` is meaningless.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct InobtRecord {
    pub startino: U32,
    pub holemask: U16,
    pub count: u8,
    pub freecount: u8,
    pub free: U64,
}

const _: () = assert!(size_of::<InobtRecord>() == 16);

/// No sibling: what a block at the edge of its level has.
pub const NULL_SIBLING: u32 = u32::MAX;

/// A free extent; record and key of both free space btrees.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct AllocRecord {
    pub startblock: U32,
    pub blockcount: U32,
}

const _: () = {
    assert!(size_of::<AllocRecord>() == 8);
    assert!(offset_of!(AllocRecord, blockcount) == 4);
};

/// `startblock` of a refcount record: the blocks are staged for copy-on-write, not shared.
pub const REFCOUNT_COW: u32 = 1 << 31;

/// Blocks with more than one owner.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct RefcountRecord {
    pub startblock: U32,
    pub blockcount: U32,
    pub refcount: U32,
}

const _: () = assert!(size_of::<RefcountRecord>() == 12);

/// Blocks and their owner: an inode number, or one of the `RMAP_OWNER_*` numbers.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct RmapRecord {
    pub startblock: U32,
    pub blockcount: U32,
    pub owner: U64,
    /// First block of the fork, and `RMAP_*` flags; 0 for owners that are no inodes.
    pub offset: U64,
}

/// Key of the reverse mapping btree. A node has two for each child: the least and the greatest that
/// a block of the child's extents has. Without [`RMAP_UNWRITTEN`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct RmapKey {
    pub startblock: U32,
    pub owner: U64,
    pub offset: U64,
}

const _: () = {
    assert!(size_of::<RmapRecord>() == 24);
    assert!(offset_of!(RmapRecord, owner) == 8);
    assert!(offset_of!(RmapRecord, offset) == 16);
    assert!(size_of::<RmapKey>() == 20);
    assert!(offset_of!(RmapKey, owner) == 4);
    assert!(offset_of!(RmapKey, offset) == 12);
};

/// `offset` of a reverse mapping: the blocks belong to the attribute fork.
pub const RMAP_ATTR_FORK: u64 = 1 << 63;
/// `offset` of a reverse mapping: a block of the extent btree of a fork; the other bits but
/// [`RMAP_ATTR_FORK`] are 0.
pub const RMAP_BMBT_BLOCK: u64 = 1 << 62;
/// `offset` of a reverse mapping: the blocks are allocated, but read as zeroes.
pub const RMAP_UNWRITTEN: u64 = 1 << 61;

/// Owner of a reverse mapping: headers of the group.
pub const RMAP_OWNER_FS: u64 = (-3_i64).cast_unsigned();
/// Owner of a reverse mapping: the log.
pub const RMAP_OWNER_LOG: u64 = (-4_i64).cast_unsigned();
/// Owner of a reverse mapping: free space and reverse mapping btrees, and the free list.
pub const RMAP_OWNER_AG: u64 = (-5_i64).cast_unsigned();
/// Owner of a reverse mapping: inode btrees.
pub const RMAP_OWNER_INOBT: u64 = (-6_i64).cast_unsigned();
/// Owner of a reverse mapping: inodes.
pub const RMAP_OWNER_INODES: u64 = (-7_i64).cast_unsigned();
/// Owner of a reverse mapping: the refcount btree.
pub const RMAP_OWNER_REFCOUNT: u64 = (-8_i64).cast_unsigned();
/// Owner of a reverse mapping: blocks staged for copy-on-write.
pub const RMAP_OWNER_COW: u64 = (-9_i64).cast_unsigned();

/// An extent of a fork, 128 packed bits: unwritten flag 1, first file block 54, first block 52,
/// blocks 21.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct BmbtRecord {
    pub l0: U64,
    pub l1: U64,
}

const _: () = assert!(size_of::<BmbtRecord>() == 16);

/// Blocks of the largest extent.
pub const MAX_EXTENT_BLOCKS: u64 = (1 << 21) - 1;

impl BmbtRecord {
    /// The record of these values; bits that do not fit are cut off.
    pub fn new(offset_blocks: u64, start_block: u64, blocks: u64, unwritten: bool) -> Self {
        let l0 = (u64::from(unwritten) << 63)
            | ((offset_blocks & ((1 << 54) - 1)) << 9)
            | ((start_block >> 43) & 0x1ff);
        let l1 = ((start_block & ((1 << 43) - 1)) << 21) | (blocks & MAX_EXTENT_BLOCKS);
        Self {
            l0: U64::new(l0),
            l1: U64::new(l1),
        }
    }

    /// Allocated, but reads as zeroes.
    pub fn unwritten(&self) -> bool {
        self.l0.get() >> 63 == 1
    }

    /// First block of the file.
    pub fn offset_blocks(&self) -> u64 {
        (self.l0.get() & !(1 << 63)) >> 9
    }

    /// First block of the filesystem.
    pub fn start_block(&self) -> u64 {
        ((self.l0.get() & 0x1ff) << 43) | (self.l1.get() >> 21)
    }

    /// Length.
    pub fn blocks(&self) -> u64 {
        self.l1.get() & MAX_EXTENT_BLOCKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bmbt_records_pack_to_every_bit() {
        let full = BmbtRecord::new((1 << 54) - 1, (1 << 52) - 1, MAX_EXTENT_BLOCKS, true);
        assert_eq!((full.l0.get(), full.l1.get()), (u64::MAX, u64::MAX));
        for (offset, start, blocks, unwritten) in [
            (0, 1 << 51, 1, false),
            (1 << 53, 1, 1 << 20, true),
            (12345, 0x1234_5678_9abc, 77, false),
        ] {
            let record = BmbtRecord::new(offset, start, blocks, unwritten);
            assert_eq!(record.offset_blocks(), offset);
            assert_eq!(record.start_block(), start);
            assert_eq!(record.blocks(), blocks);
            assert_eq!(record.unwritten(), unwritten);
        }
    }
}

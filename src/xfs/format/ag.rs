//! Allocation group headers ("AG Free Space Management", "AG Inode Management"): one sector each,
//! the superblock copy, AGF, AGI, AGFL in this order.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U32, U64};
use zerocopy::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `XAGF`.
pub const AGF_MAGIC: u32 = 0x5841_4746;
/// `XAGI`.
pub const AGI_MAGIC: u32 = 0x5841_4749;
/// `XAFL`.
pub const AGFL_MAGIC: u32 = 0x5841_464c;
/// Version of AGF and AGI.
pub const AG_VERSION: u32 = 1;
/// The absent block number or inode number inside an AG.
pub const NULL_AG: u32 = u32::MAX;

/// Free space of an allocation group.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct Agf {
    pub magicnum: U32,
    pub versionnum: U32,
    pub seqno: U32,
    pub length: U32,
    pub bno_root: U32,
    pub cnt_root: U32,
    pub rmap_root: U32,
    pub bno_level: U32,
    pub cnt_level: U32,
    pub rmap_level: U32,
    pub flfirst: U32,
    pub fllast: U32,
    pub flcount: U32,
    pub freeblks: U32,
    pub longest: U32,
    pub btreeblks: U32,
    pub uuid: [u8; 16],
    pub rmap_blocks: U32,
    pub refcount_blocks: U32,
    pub refcount_root: U32,
    pub refcount_level: U32,
    spare64: [U64; 14],
    pub lsn: U64,
    pub crc: little_endian::U32,
    spare2: U32,
}

/// Where the AGF's checksum lies.
pub const AGF_CRC_OFFSET: usize = 216;

const _: () = {
    assert!(size_of::<Agf>() == 224);
    assert!(offset_of!(Agf, uuid) == 64);
    assert!(offset_of!(Agf, refcount_root) == 88);
    assert!(offset_of!(Agf, lsn) == 208);
    assert!(offset_of!(Agf, crc) == AGF_CRC_OFFSET);
};

/// Inodes of an allocation group.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct Agi {
    pub magicnum: U32,
    pub versionnum: U32,
    pub seqno: U32,
    pub length: U32,
    pub count: U32,
    pub root: U32,
    pub level: U32,
    pub freecount: U32,
    pub newino: U32,
    pub dirino: U32,
    pub unlinked: [U32; 64],
    pub uuid: [u8; 16],
    pub crc: little_endian::U32,
    pad32: U32,
    pub lsn: U64,
    pub free_root: U32,
    pub free_level: U32,
    pub iblocks: U32,
    pub fblocks: U32,
}

/// Where the AGI's checksum lies.
pub const AGI_CRC_OFFSET: usize = 312;

const _: () = {
    assert!(size_of::<Agi>() == 344);
    assert!(offset_of!(Agi, unlinked) == 40);
    assert!(offset_of!(Agi, uuid) == 296);
    assert!(offset_of!(Agi, crc) == AGI_CRC_OFFSET);
    assert!(offset_of!(Agi, free_root) == 328);
};

/// Header of the free list; block numbers follow to the end of the sector.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct AgflHeader {
    pub magicnum: U32,
    pub seqno: U32,
    pub uuid: [u8; 16],
    pub lsn: U64,
    pub crc: little_endian::U32,
}

/// Where the AGFL's checksum lies.
pub const AGFL_CRC_OFFSET: usize = 32;

const _: () = {
    assert!(size_of::<AgflHeader>() == 36);
    assert!(offset_of!(AgflHeader, crc) == AGFL_CRC_OFFSET);
};

/// The block numbers of a free list, used in a circle from `flfirst` to `fllast` of the AGF; `None`
/// for a sector that is too short.
pub fn agfl_entries(sector: &[u8]) -> Option<&[U32]> {
    let (_, rest) = AgflHeader::ref_from_prefix(sector).ok()?;
    let count = rest.len().checked_div(size_of::<U32>())?;
    let (entries, _) = <[U32]>::ref_from_prefix_with_elems(rest, count).ok()?;
    Some(entries)
}

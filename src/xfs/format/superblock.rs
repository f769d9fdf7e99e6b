//! The superblock ("Superblocks"), first sector of every allocation group.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `XFSB`.
pub const MAGIC: u32 = 0x5846_5342;

/// The superblock's fields; the checksum covers the whole sector.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct SuperblockLayout {
    pub magicnum: U32,
    pub blocksize: U32,
    pub dblocks: U64,
    pub rblocks: U64,
    pub rextents: U64,
    pub uuid: [u8; 16],
    pub logstart: U64,
    pub rootino: U64,
    pub rbmino: U64,
    pub rsumino: U64,
    pub rextsize: U32,
    pub agblocks: U32,
    pub agcount: U32,
    pub rbmblocks: U32,
    pub logblocks: U32,
    pub versionnum: U16,
    pub sectsize: U16,
    pub inodesize: U16,
    pub inopblock: U16,
    pub fname: [u8; 12],
    pub blocklog: u8,
    pub sectlog: u8,
    pub inodelog: u8,
    pub inopblog: u8,
    pub agblklog: u8,
    pub rextslog: u8,
    pub inprogress: u8,
    pub imax_pct: u8,
    pub icount: U64,
    pub ifree: U64,
    pub fdblocks: U64,
    pub frextents: U64,
    pub uquotino: U64,
    pub gquotino: U64,
    pub qflags: U16,
    pub flags: u8,
    pub shared_vn: u8,
    pub inoalignmt: U32,
    pub unit: U32,
    pub width: U32,
    pub dirblklog: u8,
    pub logsectlog: u8,
    pub logsectsize: U16,
    pub logsunit: U32,
    pub features2: U32,
    pub bad_features2: U32,
    pub features_compat: U32,
    pub features_ro_compat: U32,
    pub features_incompat: U32,
    pub features_log_incompat: U32,
    pub crc: little_endian::U32,
    pub spino_align: U32,
    pub pquotino: U64,
    pub lsn: U64,
    pub meta_uuid: [u8; 16],
}

const _: () = {
    assert!(size_of::<SuperblockLayout>() == 264);
    assert!(offset_of!(SuperblockLayout, logstart) == 48);
    assert!(offset_of!(SuperblockLayout, agblocks) == 84);
    assert!(offset_of!(SuperblockLayout, versionnum) == 100);
    assert!(offset_of!(SuperblockLayout, blocklog) == 120);
    assert!(offset_of!(SuperblockLayout, icount) == 128);
    assert!(offset_of!(SuperblockLayout, inoalignmt) == 180);
    assert!(offset_of!(SuperblockLayout, dirblklog) == 192);
    assert!(offset_of!(SuperblockLayout, features_compat) == 208);
    assert!(offset_of!(SuperblockLayout, crc) == CRC_OFFSET);
    assert!(offset_of!(SuperblockLayout, meta_uuid) == 248);
};

/// Where the checksum lies.
pub const CRC_OFFSET: usize = 224;

/// Low bits of `versionnum`: the version.
pub const VERSION_MASK: u16 = 0x000f;
/// `versionnum`: there may be extended attributes.
pub const VERSION_ATTR: u16 = 0x0010;
/// `versionnum`: link counts of 32 bits.
pub const VERSION_NLINK: u16 = 0x0020;
/// `versionnum`: there are inodes of quotas.
pub const VERSION_QUOTA: u16 = 0x0040;
/// `versionnum`: inode chunks are aligned.
pub const VERSION_ALIGN: u16 = 0x0080;
/// `versionnum`: the data has a stripe unit.
pub const VERSION_DALIGN: u16 = 0x0100;
/// `versionnum`: all bits but one, which was never used.
pub const VERSION_KNOWN: u16 = !0x0200;
/// `versionnum`: names that differ in the case of ASCII letters only are the same.
pub const VERSION_ASCII_CI: u16 = 0x4000;
/// `versionnum`: the log has version 2.
pub const VERSION_LOGV2: u16 = 0x0400;
/// `versionnum`: sector sizes other than 512 are given.
pub const VERSION_SECTOR: u16 = 0x0800;
/// `versionnum`: extents have the unwritten flag.
pub const VERSION_EXTFLG: u16 = 0x1000;
/// `versionnum`: directories of version 2.
pub const VERSION_DIRV2: u16 = 0x2000;
/// `versionnum`: `features2` is used.
pub const VERSION_MOREBITS: u16 = 0x8000;
/// `features2`: counters of the superblock are written when it is unmounted.
pub const FEATURES2_LAZY_COUNT: u32 = 0x0002;
/// `features2`: attribute forks of any size.
pub const FEATURES2_ATTR2: u32 = 0x0008;
/// `features2`: project numbers of 32 bits.
pub const FEATURES2_PROJID32: u32 = 0x0080;
/// `features2`: metadata with checksums.
pub const FEATURES2_CRC: u32 = 0x0100;
/// `features2`: these, and file types in directory entries, as version 4 has them.
pub const FEATURES2_KNOWN: u32 =
    FEATURES2_LAZY_COUNT | FEATURES2_ATTR2 | FEATURES2_PROJID32 | FEATURES2_CRC | 0x0200;
/// `qflags`: flags for group and project quotas that version 5 has apart.
pub const QFLAGS_OLD: u16 = 0x0030;

/// Read-only compatible features, by bit, under the names that mkfs.xfs and xfs_info use.
pub const RO_COMPAT: [&str; 4] = ["finobt", "rmapbt", "reflink", "inobtcount"];
/// Incompatible features, by bit.
pub const INCOMPAT: [&str; 11] = [
    "ftype",
    "sparse",
    "meta_uuid",
    "bigtime",
    "needsrepair",
    "nrext64",
    "exchange",
    "parent",
    "metadir",
    "zoned",
    "zone_gaps",
];
/// Log-incompatible features, by bit.
pub const LOG_INCOMPAT: [&str; 1] = ["logged_xattrs"];

/// `features_ro_compat`: free inode btree.
pub const RO_FINOBT: u32 = 1;
/// `features_ro_compat`: reverse mapping btree.
pub const RO_RMAPBT: u32 = 1 << 1;
/// `features_ro_compat`: shared blocks, refcount btree.
pub const RO_REFLINK: u32 = 1 << 2;
/// `features_ro_compat`: block counts of inode btrees in the AGI.
pub const RO_INOBTCOUNT: u32 = 1 << 3;
/// `features_incompat`: file type in directory entries.
pub const IN_FTYPE: u32 = 1;
/// `features_incompat`: sparse inode chunks.
pub const IN_SPARSE: u32 = 1 << 1;
/// `features_incompat`: metadata carries `meta_uuid` instead of `uuid`.
pub const IN_META_UUID: u32 = 1 << 2;
/// `features_incompat`: 64-bit time stamps.
pub const IN_BIGTIME: u32 = 1 << 3;
/// `features_incompat`: xfs_repair must run first.
pub const IN_NEEDSREPAIR: u32 = 1 << 4;
/// `features_incompat`: large extent counters.
pub const IN_NREXT64: u32 = 1 << 5;
/// `features_incompat`: file contents can be exchanged.
pub const IN_EXCHANGE: u32 = 1 << 6;
/// `features_incompat`: parent pointers.
pub const IN_PARENT: u32 = 1 << 7;
/// `features_incompat`: groups of zones may have gaps.
pub const IN_ZONE_GAPS: u32 = 1 << 10;

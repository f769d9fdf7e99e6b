//! The inode, version 3 ("On-disk Inode"): 176 bytes of core, then the data fork, then the
//! attribute fork.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `IN`.
pub const MAGIC: u16 = 0x494e;
/// Version of inodes on version 5 filesystems.
pub const VERSION: u8 = 3;
/// Bytes of the core.
pub const CORE_BYTES: usize = 176;
/// Where the checksum lies; it covers the whole inode.
pub const CRC_OFFSET: usize = 100;

/// Core of the inode.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct InodeCore {
    pub magic: U16,
    pub mode: U16,
    pub version: u8,
    pub format: u8,
    pub onlink: U16,
    pub uid: U32,
    pub gid: U32,
    pub nlink: U32,
    pub projid_lo: U16,
    pub projid_hi: U16,
    /// Extents of the data fork, when the inode has large counters.
    pub big_nextents: U64,
    pub atime: U64,
    pub mtime: U64,
    pub ctime: U64,
    pub size: U64,
    pub nblocks: U64,
    pub extsize: U32,
    /// Extents of the data fork; with large counters, of the attribute fork.
    pub nextents: U32,
    /// Extents of the attribute fork; 0 with large counters.
    pub anextents: U16,
    pub forkoff: u8,
    pub aformat: u8,
    pub dmevmask: U32,
    pub dmstate: U16,
    pub flags: U16,
    pub generation: U32,
    pub next_unlinked: U32,
    pub crc: little_endian::U32,
    pub changecount: U64,
    pub lsn: U64,
    pub flags2: U64,
    pub cowextsize: U32,
    pad2: [u8; 12],
    pub crtime: U64,
    pub ino: U64,
    pub uuid: [u8; 16],
}

const _: () = {
    assert!(size_of::<InodeCore>() == CORE_BYTES);
    assert!(offset_of!(InodeCore, big_nextents) == 24);
    assert!(offset_of!(InodeCore, size) == 56);
    assert!(offset_of!(InodeCore, nextents) == 76);
    assert!(offset_of!(InodeCore, forkoff) == 82);
    assert!(offset_of!(InodeCore, flags) == 90);
    assert!(offset_of!(InodeCore, crc) == CRC_OFFSET);
    assert!(offset_of!(InodeCore, flags2) == 120);
    assert!(offset_of!(InodeCore, crtime) == 144);
    assert!(offset_of!(InodeCore, ino) == 152);
};

/// Fork form: a device number.
pub const FORMAT_DEV: u8 = 0;
/// Fork form: the data itself.
pub const FORMAT_LOCAL: u8 = 1;
/// Fork form: a list of extents.
pub const FORMAT_EXTENTS: u8 = 2;
/// Fork form: the root of a btree of extents.
pub const FORMAT_BTREE: u8 = 3;

/// `flags`: the data lies in the realtime section.
pub const FLAG_REALTIME: u16 = 1;
/// `flags`: the bitmap of the realtime section has the newer form.
pub const FLAG_NEWRTBM: u16 = 1 << 2;
/// `flags`: there are blocks that were preallocated by fallocate(2), which stay behind the end of
/// the file.
pub const FLAG_PREALLOCATED: u16 = 1 << 1;
/// `flags`: nothing of the file may change.
pub const FLAG_IMMUTABLE: u16 = 1 << 3;
/// `flags`: the file may only grow.
pub const FLAG_APPEND: u16 = 1 << 4;
/// `flags`: every write is durable when it returns.
pub const FLAG_SYNC: u16 = 1 << 5;
/// `flags`: new files of the directory lie in the realtime section.
pub const FLAG_RTINHERIT: u16 = 1 << 8;
/// `flags`: new files of the directory have its project.
pub const FLAG_PROJINHERIT: u16 = 1 << 9;
/// `flags`: the directory takes no symbolic links.
pub const FLAG_NOSYMLINKS: u16 = 1 << 10;
/// `flags`: the file has an extent size hint.
pub const FLAG_EXTSIZE: u16 = 1 << 11;
/// `flags`: new files of the directory have its extent size hint.
pub const FLAG_EXTSZINHERIT: u16 = 1 << 12;
/// `flags`: all bits that have a meaning.
pub const FLAGS_KNOWN: u16 = 0x7fff;
/// `flags2`: access by loads and stores where the device is memory.
pub const FLAG2_DAX: u64 = 1;
/// `flags2`: blocks may be shared with other files.
pub const FLAG2_REFLINK: u64 = 1 << 1;
/// `flags2`: the file has an extent size hint for copy-on-write.
pub const FLAG2_COWEXTSIZE: u64 = 1 << 2;
/// `flags2`: time stamps are 64-bit nanosecond counters.
pub const FLAG2_BIGTIME: u64 = 1 << 3;
/// `flags2`: large extent counters.
pub const FLAG2_NREXT64: u64 = 1 << 4;
/// `flags2`: a file of the metadata directory.
pub const FLAG2_METADATA: u64 = 1 << 5;

/// `mode`: set-user-ID.
pub const S_ISUID: u16 = 0o4000;
/// `mode`: set-group-ID.
pub const S_ISGID: u16 = 0o2000;
/// `mode`: the group may execute.
pub const S_IXGRP: u16 = 0o010;

/// File type bits of `mode`.
pub const S_IFMT: u16 = 0o170_000;
/// Named pipe.
pub const S_IFIFO: u16 = 0o010_000;
/// Character device.
pub const S_IFCHR: u16 = 0o020_000;
/// Directory.
pub const S_IFDIR: u16 = 0o040_000;
/// Block device.
pub const S_IFBLK: u16 = 0o060_000;
/// Regular file.
pub const S_IFREG: u16 = 0o100_000;
/// Symbolic link.
pub const S_IFLNK: u16 = 0o120_000;
/// Socket.
pub const S_IFSOCK: u16 = 0o140_000;

/// A point in time: seconds since 1970 (negative before) and nanoseconds within the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct InodeTimestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// 0 to 999,999,999, unless the inode is damaged.
    pub nanoseconds: u32,
}

impl InodeTimestamp {
    /// The 64 bits on disk, by which the nearest time is meant that they can express. As
    /// xfs_inode_encode_bigtime() and timestamp_truncate().
    pub fn encode(self, bigtime: bool) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        const LATEST_SECOND: i64 = 16_299_260_424;
        let (earliest, latest) = match bigtime {
            true => (-(1 << 31), LATEST_SECOND),
            false => (i64::from(i32::MIN), i64::from(i32::MAX)),
        };
        let seconds = self.seconds.clamp(earliest, latest);
        let exact = seconds == self.seconds;
        let nanoseconds = if exact { self.nanoseconds } else { 0 };
        if bigtime {
            let since = seconds.wrapping_add(1 << 31).cast_unsigned();
            return since.wrapping_mul(SECOND).wrapping_add(nanoseconds.into());
        }
        let low = u64::from(u32::try_from(seconds & 0xffff_ffff).unwrap_or(0));
        low.wrapping_shl(32) | u64::from(nanoseconds)
    }

    /// Decodes the 64 bits on disk. Legacy: signed 32-bit seconds, then nanoseconds, which the
    /// kernel shows as they are, a second or more of them, too. `bigtime`: nanoseconds since 2^31
    /// seconds before 1970.
    pub fn decode(raw: u64, bigtime: bool) -> Self {
        const SECOND: u64 = 1_000_000_000;
        if bigtime {
            let seconds = (raw / SECOND).cast_signed();
            let nanoseconds = u32::try_from(raw % SECOND).unwrap_or(0);
            Self {
                seconds: seconds.wrapping_sub(1 << 31),
                nanoseconds,
            }
        } else {
            let [b0, b1, b2, b3, n0, n1, n2, n3] = raw.to_be_bytes();
            Self {
                seconds: i32::from_be_bytes([b0, b1, b2, b3]).into(),
                nanoseconds: u32::from_be_bytes([n0, n1, n2, n3]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_in_both_forms() {
        let legacy = |seconds: i32, ns: u32| {
            let seconds = u64::from(u32::from_be_bytes(seconds.to_be_bytes()));
            InodeTimestamp::decode((seconds << 32) | u64::from(ns), false)
        };
        let at = |seconds, nanoseconds| InodeTimestamp {
            seconds,
            nanoseconds,
        };
        assert_eq!(legacy(-1, 5), at(-1, 5));
        assert_eq!(legacy(i32::MIN, 999_999_999), at(-(1 << 31), 999_999_999));
        assert_eq!(legacy(1, 3_000_000_000), at(1, 3_000_000_000));
        assert_eq!(InodeTimestamp::decode(0, true), at(-(1 << 31), 0));
        assert_eq!(
            InodeTimestamp::decode((1 << 31) * 1_000_000_000 + 7, true),
            at(0, 7)
        );
        assert_eq!(
            InodeTimestamp::decode(u64::MAX, true),
            at(16_299_260_425, 709_551_615)
        );
        for time in [
            at(0, 0),
            at(-1, 999_999_999),
            at(i32::MAX.into(), 5),
            at(-(1 << 31), 0),
        ] {
            for bigtime in [false, true] {
                assert_eq!(InodeTimestamp::decode(time.encode(bigtime), bigtime), time);
            }
        }
        let late = at(1 << 33, 7);
        assert_eq!(InodeTimestamp::decode(late.encode(true), true), late);
        assert_eq!(
            InodeTimestamp::decode(late.encode(false), false),
            at(i32::MAX.into(), 0)
        );
        assert_eq!(
            InodeTimestamp::decode(at(i64::MAX, 7).encode(true), true),
            at(16_299_260_424, 0)
        );
    }
}

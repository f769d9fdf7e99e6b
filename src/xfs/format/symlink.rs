//! Remote symbolic links as they lie on disk.
//!
//! Layer 0. Follows "Symbolic Links" of the XFS Algorithms & Data Structures document, version 5. A
//! target that does not fit into the inode lies in extents; each extent (not each block) begins
//! with this header, and its checksum covers the whole extent.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// `XSLM`.
pub const MAGIC: u32 = 0x5853_4c4d;
/// The longest target in bytes.
pub const TARGET_MAX_BYTES: usize = 1024;
/// Byte offset of the checksum in [`SymlinkHeader`].
pub const CRC_OFFSET: usize = offset_of!(SymlinkHeader, crc);

/// `xfs_dsymlink_hdr`: what begins each extent of a remote target.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SymlinkHeader {
    /// [`MAGIC`].
    pub magic: U32,
    /// Where in the target this piece begins, in bytes.
    pub offset: U32,
    /// Bytes of the target in this piece.
    pub bytes: U32,
    /// CRC32C of the whole extent, little-endian.
    pub crc: [u8; 4],
    /// The filesystem's metadata uuid.
    pub uuid: [u8; 16],
    /// The link's inode number.
    pub owner: U64,
    /// Address of the extent in 512-byte units.
    pub daddr: U64,
    /// Last write's log sequence number.
    pub lsn: U64,
}
const _: () = assert!(size_of::<SymlinkHeader>() == 56);
const _: () = assert!(offset_of!(SymlinkHeader, crc) == 12);
const _: () = assert!(offset_of!(SymlinkHeader, uuid) == 16);
const _: () = assert!(offset_of!(SymlinkHeader, owner) == 32);
const _: () = assert!(offset_of!(SymlinkHeader, lsn) == 48);

//! Access control lists as attributes have them.
//!
//! Layer 0.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The name of the attribute with the list of a file, in the namespace of the filesystem
/// ([`super::attr::FLAG_ROOT`]).
pub const ACCESS_NAME: &[u8] = b"SGI_ACL_FILE";

/// `ACL_USER_OBJ`: the owner.
pub const TAG_USER_OBJ: u32 = 0x01;
/// `ACL_GROUP_OBJ`: the group.
pub const TAG_GROUP_OBJ: u32 = 0x04;
/// `ACL_MASK`: what named users and groups can have at most.
pub const TAG_MASK: u32 = 0x10;
/// `ACL_OTHER`: all others.
pub const TAG_OTHER: u32 = 0x20;

/// `struct xfs_acl_entry`. A list is their number, 32 bits, and they.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AclDiskEntry {
    /// Kind of entry.
    pub tag: U32,
    /// User or group, of a named one.
    pub id: U32,
    /// Read, write, execute: the lowest three bits.
    pub permissions: U16,
    /// Zero.
    pub pad: U16,
}

const _: () = assert!(size_of::<AclDiskEntry>() == 12);
const _: () = assert!(std::mem::offset_of!(AclDiskEntry, permissions) == 8);

//! FIEMAP: a file's extents, as the kernel's ioctl reports them.

use bitflags::bitflags;

bitflags! {
    /// What FIEMAP says of an extent; the values are those of `linux/fiemap.h`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct FiemapFlags: u32 {
        /// The file's last extent.
        const LAST = 0x1;
        /// Its place is not known yet.
        const UNKNOWN = 0x2;
        /// Promised, not allocated.
        const DELALLOC = 0x4;
        /// Not aligned to blocks.
        const NOT_ALIGNED = 0x100;
        /// Data inside the inode.
        const DATA_INLINE = 0x200;
        /// Allocated, reads as zeroes.
        const UNWRITTEN = 0x800;
        /// Made of several extents.
        const MERGED = 0x1000;
        /// Shared with another file.
        const SHARED = 0x2000;
    }
}

/// One extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiemapExtent {
    /// First file byte.
    pub logical_bytes: u64,
    /// First byte on the device.
    pub physical_bytes: u64,
    /// Length in bytes.
    pub length_bytes: u64,
    /// What is special about it.
    pub flags: FiemapFlags,
}

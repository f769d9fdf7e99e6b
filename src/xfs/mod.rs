//! XFS version 5, on disk.
//!
//! Layer 5, safe code throughout ([`format`](mod@format), the pure layouts, is layer 0). Disk
//! content is hostile input: every block's checksum, uuid, owner and address is checked before use,
//! and nothing on disk can make this code panic, hang or grow without bound.
//!
//! [`Fs`] is the open filesystem, shared by threads; [`Inode`] a file of it as it was read;
//! [`FileMap`] what I/O on an open file needs, precomputed.
#![forbid(unsafe_code)]

pub mod dir;
pub mod format;
pub mod symlink;

mod ag;
mod attr;
mod attr_fork;
mod bmbt;
mod btree;
mod cache;
#[cfg(not(loom))]
mod cached;
mod circle;
mod extents;
mod freespace;
mod fs;
mod geometry;
mod inobt;
mod inode;
mod inode_read;
mod iomap;
mod log;
mod other;
mod overlay;
mod overwrite;
mod refcount;
mod sharing;
mod superblock;

pub use attr::AttrVisit;
pub use cache::BlockKind;
pub use extents::{Extent, ExtentMap, FoundExtent};
pub use freespace::{FreeExtent, FreeSpace};
pub use fs::{DirBlock, Fs, FsInfo, FsOptions};
pub use geometry::{FsBlock, Geometry, Ino};
pub use inode::{Fork, Inode, InodeType};
pub use iomap::{FileMap, FileOps, Hint};
pub use log::{LogState, Recovery};
pub use superblock::Features;

use crate::error::{Error, ErrorKind, Result};

#[cold]
fn not_writable() -> Error {
    Error::new(ErrorKind::ReadOnly, "metadata cannot be written here")
}

/// How metadata reaches this layer: whole sectors, read and written synchronously. Implemented by a
/// volume's per-thread handle, and by plain files in tests.
pub trait MetaIo {
    /// Fills `buf` from the device at a byte address. Both are multiples of the device's block
    /// size.
    ///
    /// # Errors
    /// The device's, with its name and the offset.
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes `buf` to the device at a byte address. Both are multiples of the device's block size.
    /// Returns when the device has completed the write, which may still be in its write cache.
    ///
    /// # Errors
    /// The device's, with its name and the offset; [`ErrorKind::ReadOnly`] where nothing can be
    /// written.
    fn write_at(&mut self, addr_bytes: u64, buf: &[u8]) -> Result<()> {
        let _ = buf;
        Err(not_writable().at_offset(addr_bytes))
    }

    /// Makes durable all writes that returned before.
    ///
    /// # Errors
    /// The device's; [`ErrorKind::ReadOnly`] where nothing can be written.
    fn flush(&mut self) -> Result<()> {
        Err(not_writable())
    }

    /// Bytes in the device: what lies beyond is refused before it is read.
    fn capacity_bytes(&self) -> u64;

    /// Bytes of the device's blocks. A filesystem with smaller sectors is refused.
    fn block_bytes(&self) -> u32 {
        512
    }

    /// See [`crate::probe::ProbeSource::mbr_sector_bytes`].
    fn mbr_sector_bytes(&self) -> Option<u32> {
        Some(self.block_bytes().max(512))
    }
}

/// The error for corrupt disk content at `addr_bytes` on the device.
#[cold]
pub(crate) fn corrupt(addr_bytes: u64, detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, detail).at_offset(addr_bytes)
}

//! XFS version 5, on disk.
//!
//! Layer 5, safe code throughout ([`format`](mod@format), the pure layouts, is layer 0). Disk
//! content is hostile input: every block's checksum, uuid, owner and address is checked before use,
//! and nothing on disk can make this code panic, hang or grow without bound.
//!
//! [`Fs`] is the open filesystem, shared by threads; [`Inode`] a file of it as it was read;
//! [`FileMap`] what I/O on an open file needs, precomputed.
#![forbid(unsafe_code)]

pub mod check;
pub mod dir;
pub mod format;
pub mod symlink;

mod ag;
#[allow(
    dead_code,
    unused_imports,
    reason = "the parts of the write path are put together step by step"
)]
mod alloc;
mod attr;
mod attr_fork;
mod bmap;
mod bmbt;
mod btree;
#[allow(
    dead_code,
    reason = "the parts of the write path are put together step by step"
)]
mod buf;
mod cache;
mod circle;
mod extents;
mod finish;
mod freespace;
mod fs;
mod geometry;
mod inobt;
mod inode;
mod inode_read;
mod iomap;
mod journal;
mod log;
mod ops;
mod other;
mod overlay;
mod overwrite;
mod refcount;
mod sharing;
mod superblock;
#[allow(
    dead_code,
    reason = "the parts of the write path are put together step by step"
)]
mod trans;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "the parts of the write path are put together step by step"
    )
)]
mod tree;

pub use alloc::SpaceDenial;
pub use attr::{AttrVisit, SetHow};
pub use cache::BlockKind;
pub use extents::{Extent, ExtentMap, FoundExtent};
pub use freespace::{FreeExtent, FreeSpace};
pub use fs::{DirBlock, Fs, FsInfo, FsOptions};
pub use geometry::{FsBlock, Geometry, Ino};
pub use inode::{Fork, Inode, InodeType};
pub use iomap::{FileMap, FileOps, FileState, Hint, MapChange, MapPart, needs_extents};
pub use log::{
    BuiltCheckpoint, BuiltRecord, InodeChange, LogItem, LogState, LogWrite, LogWriter, NewInodes,
    Recovery,
};
pub use ops::{FsUsage, InodeId, InodeUpdate, NewTime, StagedContent, times_after};
pub use superblock::Features;
pub use trans::CommitTicket;

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

    /// Makes all writes that returned before durable, and then writes `buf` durably, as a write
    /// with a flush before it and Force Unit Access.
    ///
    /// # Errors
    /// As [`MetaIo::write_at`].
    fn write_durable_at(&mut self, addr_bytes: u64, buf: &[u8]) -> Result<()> {
        self.flush()?;
        self.write_at(addr_bytes, buf)?;
        self.flush()
    }

    /// Makes durable all writes that returned before.
    ///
    /// # Errors
    /// The device's; [`ErrorKind::ReadOnly`] where nothing can be written.
    fn flush(&mut self) -> Result<()> {
        Err(not_writable())
    }

    /// Tells the device that the content of a range is no longer needed: it may read as anything
    /// afterwards. Returns when the device has completed that.
    ///
    /// # Errors
    /// The device's; [`ErrorKind::Unsupported`] where there is no such operation.
    fn discard(&mut self, addr_bytes: u64, len_bytes: u64) -> Result<()> {
        let _ = len_bytes;
        let error = Error::new(ErrorKind::Unsupported, "the device does not discard blocks");
        Err(error.at_offset(addr_bytes))
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

impl<I: MetaIo + ?Sized> MetaIo for &mut I {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_at(addr_bytes, buf)
    }

    fn write_at(&mut self, addr_bytes: u64, buf: &[u8]) -> Result<()> {
        (**self).write_at(addr_bytes, buf)
    }

    fn write_durable_at(&mut self, addr_bytes: u64, buf: &[u8]) -> Result<()> {
        (**self).write_durable_at(addr_bytes, buf)
    }

    fn flush(&mut self) -> Result<()> {
        (**self).flush()
    }

    fn discard(&mut self, addr_bytes: u64, len_bytes: u64) -> Result<()> {
        (**self).discard(addr_bytes, len_bytes)
    }

    fn capacity_bytes(&self) -> u64 {
        (**self).capacity_bytes()
    }

    fn block_bytes(&self) -> u32 {
        (**self).block_bytes()
    }

    fn mbr_sector_bytes(&self) -> Option<u32> {
        (**self).mbr_sector_bytes()
    }
}

/// The error for corrupt disk content at `addr_bytes` on the device.
#[cold]
pub(crate) fn corrupt(addr_bytes: u64, detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, detail).at_offset(addr_bytes)
}

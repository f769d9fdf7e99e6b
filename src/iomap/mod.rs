//! A file range, iterated mapping by mapping.
//!
//! Layer 4. The filesystem implements [`Ops`]; each operation of this layer asks it for the mapping
//! at a position, works on what the mapping covers, says how far it came, and goes on. The contract
//! is that of Linux's iomap (Documentation/filesystems/iomap). Neither NVMe nor XFS is known here.
#![forbid(unsafe_code)]

#[cfg(not(loom))]
pub mod buffered;
pub mod direct;
mod fiemap;
mod iter;
#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
mod seek;
#[cfg(test)]
mod testing;
mod versions;

use bitflags::bitflags;

use crate::error::Result;

pub use fiemap::{FiemapExtent, FiemapFlags, fiemap};
pub use iter::{Iter, Span};
pub use seek::{seek_data, seek_hole};
pub use versions::{VersionUser, Versions};

/// What stands behind a file range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MappingKind {
    /// Nothing: reads as zeroes.
    Hole,
    /// Space promised in memory, no blocks yet: reads as zeroes unless cached.
    Delalloc,
    /// Blocks with data.
    Mapped,
    /// Blocks without data yet: reads as zeroes.
    Unwritten,
    /// Data inside the inode; it is copied.
    Inline,
}

bitflags! {
    /// Properties of a mapping.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct MapFlags: u16 {
        /// Blocks just allocated: what the write does not cover must be zeroed.
        const NEW = 1;
        /// The inode has changes that a data sync must log.
        const DIRTY = 2;
        /// Blocks shared with another file: a write needs copy-on-write.
        const SHARED = 4;
        /// Made of several extents.
        const MERGED = 8;
        /// Of the attribute fork.
        const XATTR = 16;
        /// The filesystem is changing it: it can be read, and writes have to wait.
        const FROZEN = 32;
        /// What the file has there is not loaded: no mapping that is handed out has this.
        const UNLOADED = 64;
    }
}

/// One mapping: `length` bytes of the file from `offset`, and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Byte address on the device; meaningful for [`MappingKind::Mapped`] and
    /// [`MappingKind::Unwritten`] only.
    pub addr: u64,
    /// First file byte.
    pub offset: u64,
    /// Length in bytes; may reach beyond what was asked for.
    pub length: u64,
    /// What stands behind it.
    pub kind: MappingKind,
    /// Properties of the mapping.
    pub flags: MapFlags,
    /// Changes whenever the file's mappings do; a later use of a mapping compares it first.
    pub cookie: u64,
}

impl Mapping {
    /// The first file byte behind it.
    #[inline]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// The device byte address of a file position inside the mapping.
    #[inline]
    pub fn addr_at(&self, pos: u64) -> u64 {
        self.addr + (pos - self.offset)
    }
}

bitflags! {
    /// What the caller of [`Ops::begin`] is about to do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct IterFlags: u16 {
        /// Write; otherwise read.
        const WRITE = 1;
        /// Zero a range.
        const ZERO = 2;
        /// Only report (fiemap, seek).
        const REPORT = 4;
        /// Page faults.
        const FAULT = 8;
        /// Direct I/O.
        const DIRECT = 16;
        /// Do not wait: an error instead.
        const NOWAIT = 32;
        /// The write must be an overwrite of written, unshared blocks; otherwise
        /// [`crate::error::ErrorKind::NotOverwrite`].
        const OVERWRITE_ONLY = 64;
        /// Report the attribute fork.
        const XATTR = 128;
        /// The write is to blocks that were allocated for it before: unwritten ones, and those past
        /// the end of the file, count as well.
        const ALLOCATED = 256;
    }
}

/// A filesystem's side of iomap. Implemented by a short-lived value that holds what the filesystem
/// needs (its metadata, this thread's way to the device), so that no call is dispatched
/// dynamically.
pub trait Ops {
    /// The mapping that covers at least the byte at `pos`; `len` says how far the caller would go.
    /// A second mapping is where the old data is to be read from when that is another place
    /// (copy-on-write).
    ///
    /// # Errors
    /// Whatever keeps the filesystem from answering; the operation ends with it.
    fn begin(&mut self, pos: u64, len: u64, flags: IterFlags)
    -> Result<(Mapping, Option<Mapping>)>;

    /// The device byte address of `pos`, when one plain written mapping covers all of `len` bytes
    /// and nothing about the operation needs [`Ops::end`]: the usual case, for which neither
    /// `begin` nor `end` is called then. `None` says nothing: `begin` is asked. With
    /// [`IterFlags::OVERWRITE_ONLY`] only for what may be overwritten; the caller has seen that the
    /// range ends before the file.
    #[inline]
    fn whole(&self, pos: u64, len: u64, flags: IterFlags) -> Option<u64> {
        let _ = (pos, len, flags);
        None
    }

    /// The bytes behind a mapping of [`MappingKind::Inline`], from its first; fewer than its length
    /// when the file ends inside it.
    fn inline_data(&self, mapping: &Mapping) -> &[u8] {
        let _ = mapping;
        &[]
    }

    /// Hears, after each mapping, how many bytes the operation did of it (0 when it failed). Called
    /// even then.
    ///
    /// # Errors
    /// Ends the operation, unless it failed already.
    fn end(
        &mut self,
        pos: u64,
        len: u64,
        done: u64,
        flags: IterFlags,
        mapping: &Mapping,
    ) -> Result<()> {
        let _ = (pos, len, done, flags, mapping);
        Ok(())
    }
}

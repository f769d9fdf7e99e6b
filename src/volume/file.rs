//! Files: blocking reads and overwrites, durability, and where their data lies.

use std::sync::Arc;

use super::{DmaBuf, FiemapExtent, FileReader, Io, Metadata, PathBytes, Volume};
use crate::error::Result;

/// How a file is opened.
///
/// ```no_run
/// # use xtent::volume::{OpenOptions, Volume, VolumeOptions};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img", &VolumeOptions::default())?;
/// # let mut io = volume.io()?;
/// let file = OpenOptions::new().read(true).write(true).dsync(true).open(&volume, &mut io, "/db")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenOptions {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) dsync: bool,
}

impl OpenOptions {
    /// Neither reading nor writing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// For reading.
    #[must_use]
    pub fn read(mut self, yes: bool) -> Self {
        self.read = yes;
        self
    }

    /// For writing: overwriting what is there, within the file's length.
    #[must_use]
    pub fn write(mut self, yes: bool) -> Self {
        self.write = yes;
        self
    }

    /// Every write is durable when it returns.
    #[must_use]
    pub fn dsync(mut self, yes: bool) -> Self {
        self.dsync = yes;
        self
    }

    /// Opens an ordinary file; symbolic links are followed.
    ///
    /// # Errors
    /// When the path leads to no ordinary file; when writing is asked for and the volume may only be read.
    pub fn open(self, volume: &Volume, io: &mut Io, path: impl PathBytes) -> Result<File> {
        let _ = (volume, io);
        Err(super::open::not_yet().at_path(path.path_bytes()))
    }
}

/// An open file. Cheap to clone; any thread may use it with its own [`Io`] of the same volume.
///
/// Direct I/O: offsets and lengths are multiples of [`Io::block_bytes`], memory comes from [`Io::alloc`].
/// Reads into ordinary memory may have any alignment. Writes overwrite what is there: a hole, preallocated
/// space, shared blocks or the end of the file refuse them ([`crate::ErrorKind::NotOverwrite`]) before
/// anything is written.
#[derive(Debug, Clone)]
pub struct File {
    shared: Arc<FileShared>,
}

#[derive(Debug)]
struct FileShared {
    metadata: Metadata,
    path: Vec<u8>,
}

impl File {
    /// What was known of the file when it was opened.
    pub fn metadata(&self) -> Metadata {
        self.shared.metadata
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.shared.metadata.len_bytes
    }

    /// The path it was opened by.
    pub fn path(&self) -> &[u8] {
        &self.shared.path
    }

    /// Reads into `buf` from a byte offset; returns the bytes that belong to the file, fewer only at its
    /// end (0 at and beyond it). Bytes of `buf` between the file's end and the end of its last block are
    /// zeroed.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Misaligned`] with the alignment that is needed; the device's errors. `buf` is
    /// given back in any case.
    pub fn read_at(&self, io: &mut Io, buf: &mut DmaBuf, offset: u64) -> Result<usize> {
        let _ = (io, buf, offset);
        Err(super::open::not_yet())
    }

    /// Overwrites from a byte offset with all of `buf`; returns its length.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Misaligned`], [`crate::ErrorKind::NotOverwrite`],
    /// [`crate::ErrorKind::ReadOnly`] before anything is written; the device's errors, after which any part
    /// may have been written. `buf` is given back in any case.
    pub fn write_at(&self, io: &mut Io, buf: &mut DmaBuf, offset: u64) -> Result<usize> {
        let _ = (io, buf, offset);
        Err(super::open::not_yet())
    }

    /// Reads into ordinary memory, at any offset and length, through this thread's bounce buffer; returns
    /// the bytes read, fewer than asked only at the end of the file.
    ///
    /// # Errors
    /// The device's.
    pub fn read_into(&self, io: &mut Io, buf: &mut [u8], offset: u64) -> Result<usize> {
        let _ = (io, buf, offset);
        Err(super::open::not_yet())
    }

    /// Overwrites with ordinary memory through this thread's bounce buffer, under the rules of
    /// [`File::write_at`].
    ///
    /// # Errors
    /// As [`File::write_at`].
    pub fn write_from(&self, io: &mut Io, buf: &[u8], offset: u64) -> Result<usize> {
        let _ = (io, buf, offset);
        Err(super::open::not_yet())
    }

    /// Overwrites all of `buf` at any offset within the file. Blocks that are covered in part are read
    /// first and written back whole: no other writer may touch those blocks meanwhile, through any handle.
    ///
    /// # Errors
    /// As [`File::write_at`], but for alignment.
    pub fn write_all_unaligned_at(&self, io: &mut Io, buf: &[u8], offset: u64) -> Result<()> {
        let _ = (io, buf, offset);
        Err(super::open::not_yet())
    }

    /// Makes every write that was completed before durable.
    ///
    /// # Errors
    /// The device's.
    pub fn sync_data(&self, io: &mut Io) -> Result<()> {
        let _ = io;
        Err(super::open::not_yet())
    }

    /// As [`File::sync_data`], and the file's metadata with it (which an overwrite does not change today).
    ///
    /// # Errors
    /// The device's.
    pub fn sync_all(&self, io: &mut Io) -> Result<()> {
        self.sync_data(io)
    }

    /// The first byte at or after `offset` that reads as zeroes because nothing is there; the end of the
    /// file counts as such. `None` at or beyond the end of the file (`ENXIO`).
    ///
    /// # Errors
    /// When the file's extents cannot be read.
    pub fn seek_hole(&self, io: &mut Io, offset: u64) -> Result<Option<u64>> {
        let _ = (io, offset);
        Err(super::open::not_yet())
    }

    /// The first byte at or after `offset` that has data; `None` when there is none (`ENXIO`). Preallocated
    /// space has no data.
    ///
    /// # Errors
    /// When the file's extents cannot be read.
    pub fn seek_data(&self, io: &mut Io, offset: u64) -> Result<Option<u64>> {
        let _ = (io, offset);
        Err(super::open::not_yet())
    }

    /// The extents that touch `length_bytes` from `offset`, also beyond the end of the file, as the FIEMAP
    /// ioctl reports them. `u64::MAX` as length means all.
    ///
    /// # Errors
    /// When the file's extents cannot be read.
    pub fn fiemap(&self, io: &mut Io, offset: u64, length_bytes: u64) -> Result<Vec<FiemapExtent>> {
        let _ = (io, offset, length_bytes);
        Err(super::open::not_yet())
    }

    /// A reader from the file's start, with several large reads in flight ahead of what is consumed.
    ///
    /// # Errors
    /// When memory is short.
    pub fn reader<'io>(&self, io: &'io mut Io) -> Result<FileReader<'io>> {
        FileReader::new(self.clone(), io)
    }
}

//! Files: blocking reads and writes, durability, and where their data lies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::allocating::Handing;
use super::core::{IoCore, no_slot, operation_name, request_name};
use super::extents::is_for_extents;
use super::file_shared::FileShared;
use super::inodes::{CoreInode, OpenInode, UserHandle};
use super::path::bytes_of;
use super::shared::VolumeShared;
use super::space_wait::lock_space;
use super::{
    DmaBuf, FiemapExtent, File, FileReader, Io, Metadata, OpenOptions, Volume, bounce, cached, walk,
};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::{Ended, Rejected, What};
use crate::iomap::{self};
use crate::xfs::{FileOps, Inode, InodeType};

impl OpenOptions {
    /// Opens an ordinary file; symbolic links are followed.
    ///
    /// # Errors
    /// When the path leads to no ordinary file. For writing: [`ErrorKind::ReadOnly`] where the
    /// volume may only be read; [`ErrorKind::PermissionDenied`] for an immutable or append-only
    /// file; [`ErrorKind::NotOverwrite`] for one with privileges (see [`File`]) that a write cannot
    /// take away: where metadata may not be changed.
    pub fn open(self, volume: &Volume, io: &mut Io, path: impl AsRef<Path>) -> Result<File> {
        let path = bytes_of(path.as_ref());
        let shared = &volume.shared;
        let inode = walk::resolve(volume, io, path, true, "open")?;
        self.open_inode(shared, io, &inode, || path.into())
            .map_err(|error| shared.explain(error, "open", path))
    }

    /// Opens the file of an inode that was just read.
    pub(super) fn open_inode(
        self,
        volume: &Arc<VolumeShared>,
        io: &mut Io,
        inode: &Inode,
        path: impl FnOnce() -> Box<[u8]>,
    ) -> Result<File> {
        if !self.read && !self.write {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "open for reading, for writing, or for both",
            ));
        }
        match inode.file_type {
            InodeType::Regular => {}
            InodeType::Directory => {
                return Err(Error::new(ErrorKind::IsADirectory, "is a directory"));
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "is a device, pipe or socket, and not an ordinary file",
                ));
            }
        }
        if self.write {
            volume.check_writable()?;
            // Of the inode as it is now: one that is in core was perhaps opened before this rule
            // applied.
            volume.fs.check_overwrite(&mut io.core, inode)?;
        }
        volume.note_closed(io);
        let options = Self {
            dsync: self.dsync || inode.is_sync(),
            ..self
        };
        let inode = volume.core_inode(io, inode)?;
        if self.write {
            volume.is_written.store(true, Relaxed);
            // Once here, so that no write has to look for it.
            if inode.maps().now().0.needs_sharing() {
                volume.whole_map(io, &inode)?;
            }
        }
        if self.buffered {
            volume
                .inodes
                .begin_caching(&inode, &volume.target, volume.block_bytes())?;
            if self.write {
                volume
                    .background
                    .start(&volume.inodes, &volume.fs, &volume.target);
            }
        }
        let heard = inode.pages().map(crate::cache::FileCache::error_cursor);
        Ok(File {
            _user: Arc::new(UserHandle::new(&inode)),
            shared: Arc::new(FileShared {
                heard: Mutex::new(heard.unwrap_or_default()),
                inode,
                options,
                path: path(),
                id: NEXT_ID.fetch_add(1, Relaxed),
                advice: AtomicU8::new(0),
            }),
            volume: Arc::clone(volume),
        })
    }
}

impl VolumeShared {
    /// A handle of the file in core of an inode that was just read.
    pub(super) fn core_inode(self: &Arc<Self>, io: &mut Io, inode: &Inode) -> Result<OpenInode> {
        let metadata = Metadata::of(inode, self.block_bytes());
        if let Some(found) = self.inodes.find(&metadata) {
            return Ok(found);
        }
        let map = self.fs.file_map_at_open(&mut io.core, inode)?;
        let mut new = CoreInode::new(metadata, map);
        if self.fs.check_changeable().is_err() {
            new = new.with_fixed_times();
        }
        let added = self.inodes.add(new);
        if let Some(ticket) = self.fs.newest_unlogged() {
            // It may be a change of this file, by a handle that is gone.
            added.note_change(ticket);
        }
        if self.fs.is_changed() {
            // Perhaps since it was read, by a handle that is closed by now.
            let _unchanged = lock_space(io, &added);
            self.reread(io, &added)?;
        }
        Ok(added)
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl File {
    /// An error with the properties of the operation.
    #[cold]
    pub(super) fn explain(&self, error: Error, operation: &'static str, offset: u64) -> Error {
        self.volume
            .explain(error.at_offset(offset), operation, &self.shared.path)
    }

    /// Metadata as known now: as on disk when the file was opened first, with what was changed
    /// through this volume since. The times of writes are those of the first look at them (see
    /// [`File`]).
    pub fn metadata(&self) -> Metadata {
        self.shared.inode.metadata()
    }

    /// Length in bytes, as known now.
    #[expect(clippy::len_without_is_empty, reason = "as std::fs::Metadata")]
    pub fn len(&self) -> u64 {
        self.shared.inode.size_bytes()
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.shared.path))
    }

    /// Reads into `buf` from a byte offset; returns the bytes that belong to the file, fewer only
    /// at its end (0 at and beyond it). Bytes of `buf` between the file's end and the end of its
    /// last block are zeroed.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Misaligned`] with the alignment that is needed; the device's errors,
    /// with the bytes that were read before ([`Error::bytes_done`]), which are in `buf`. `buf` is
    /// given back in any case but one: when the engine loses the operation, `buf` is empty
    /// afterwards.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let file = volume.open_file(&mut io, "/data")?;
    /// let mut buf = io.alloc(4096)?;
    /// let n = file.read_dma_at(&mut io, &mut buf, 8192)?;
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn read_dma_at(&self, io: &mut Io, buf: &mut DmaBuf, offset: u64) -> Result<usize> {
        if self.shared.options.buffered {
            return self.read_at(io, buf, offset);
        }
        if let Err(error) = io.check_read(self) {
            return Err(self.explain(error, "read", offset));
        }
        self.run(io, What::Read, buf, offset)
    }

    /// Writes all of `buf` from a byte offset on; returns its length. Waits for metadata where the
    /// file has no written blocks there, and for the log where that is to be durable.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Misaligned`], [`crate::ErrorKind::NoSpace`],
    /// [`crate::ErrorKind::NotOverwrite`] for blocks shared with another file, or where blocks are
    /// needed and metadata may not be changed, [`crate::ErrorKind::ReadOnly`], before anything is
    /// written; the device's errors, after which at least [`Error::bytes_done`] and at most all of
    /// it has been written. `buf` is given back as by [`File::read_dma_at`].
    #[inline]
    pub fn write_dma_at(&self, io: &mut Io, buf: &mut DmaBuf, offset: u64) -> Result<usize> {
        if self.shared.options.buffered {
            return self.write_at(io, buf, offset);
        }
        if let Err(error) = io.check_write(self) {
            return Err(self.explain(error, "write", offset));
        }
        self.run(io, self.plain_write(), buf, offset)
    }

    /// A write as it was opened for.
    #[inline]
    pub(super) fn plain_write(&self) -> What {
        What::Write {
            dsync: self.shared.options.dsync,
            through_last_block: false,
        }
    }

    #[inline]
    fn run(&self, io: &mut Io, what: What, buf: &mut DmaBuf, offset: u64) -> Result<usize> {
        if let Err(error) = io.check_memory(buf) {
            return Err(self.explain(error, "use memory for I/O", offset));
        }
        if let Err(error) = io.before_direct(self, what, offset, buf.len()) {
            return Err(self.explain(error, "write cached pages back", offset));
        }
        let request = io.request(self, what, offset, std::mem::take(buf), 0);
        match io.core.run(request) {
            Ok(ended) => self.after_run(io, what, ended, buf, offset),
            Err(rejected) => self.run_again(io, what, rejected, buf, offset),
        }
    }

    #[inline]
    fn after_run(
        &self,
        io: &mut Io,
        what: What,
        ended: Ended,
        buf: &mut DmaBuf,
        offset: u64,
    ) -> Result<usize> {
        let done = self.finish(ended, buf)?;
        if matches!(what, What::Write { dsync: true, .. }) {
            io.log_file(&self.shared)
                .map_err(|error| self.explain(error, "write", offset))?;
        }
        Ok(done)
    }

    /// After an operation was rejected: where extents have to be loaded, or blocks allocated, it is
    /// run again.
    #[cold]
    fn run_again(
        &self,
        io: &mut Io,
        what: What,
        rejected: Rejected,
        buf: &mut DmaBuf,
        offset: u64,
    ) -> Result<usize> {
        let again = match is_for_extents(&rejected) {
            true => io.start_loaded(self, rejected, (what, offset, 0), IoCore::run),
            false => Err(rejected),
        };
        match again {
            Ok(ended) => self.after_run(io, what, ended, buf, offset),
            Err(rejected) if rejected.needs_blocks(what) => {
                self.run_allocating(io, rejected.buf, offset, buf)
            }
            Err(rejected) => self.refuse(rejected, what, buf, offset),
        }
    }

    /// A write to where the file has no written blocks of its own.
    #[cold]
    fn run_allocating(
        &self,
        io: &mut Io,
        memory: DmaBuf,
        offset: u64,
        buf: &mut DmaBuf,
    ) -> Result<usize> {
        let end = offset.saturating_add(memory.len() as u64);
        match io.start_allocating(self, memory, (offset, end), Handing::Kept) {
            Ok(kept) => {
                let ended = io
                    .wait(kept)
                    .map_err(|error| self.explain(error, "write", offset))?;
                self.finish(ended, buf)
            }
            Err(rejected) => self.refuse(rejected, self.plain_write(), buf, offset),
        }
    }

    #[inline]
    fn finish(&self, ended: Ended, buf: &mut DmaBuf) -> Result<usize> {
        *buf = ended.buf;
        match ended.result {
            Ok(n) => Ok(n),
            Err(error) => Err(self.explain(error, operation_name(ended.kind), ended.offset)),
        }
    }

    #[cold]
    fn refuse(
        &self,
        rejected: Rejected,
        what: What,
        buf: &mut DmaBuf,
        offset: u64,
    ) -> Result<usize> {
        *buf = rejected.buf;
        let error = rejected.error.unwrap_or_else(no_slot);
        Err(self.explain(error, request_name(what), offset))
    }

    /// Reads into ordinary memory, at any offset and length, through the page cache or this
    /// thread's bounce buffers; returns the bytes read, fewer than asked only at the end of the
    /// file.
    ///
    /// # Errors
    /// The device's, with the bytes that were read before ([`Error::bytes_done`]), which are in
    /// `buf`.
    #[inline]
    pub fn read_at(&self, io: &mut Io, buf: &mut [u8], offset: u64) -> Result<usize> {
        io.check_read(self)
            .and_then(|()| {
                if self.shared.options.buffered {
                    cached::read(&self.shared, io, buf, offset)
                } else {
                    bounce::read(self, io, buf, offset)
                }
            })
            .map_err(|error| self.explain(error, "read", offset))
    }

    /// Writes ordinary memory: through the page cache, with any offset and length, or through this
    /// thread's bounce buffers, under the rules of [`File::write_dma_at`]. Returns the bytes
    /// written: all of them, but where a buffered write came to what it cannot overwrite later than
    /// at its first byte.
    ///
    /// # Errors
    /// As [`File::write_dma_at`].
    #[inline]
    pub fn write_at(&self, io: &mut Io, buf: &[u8], offset: u64) -> Result<usize> {
        io.check_write(self)
            .and_then(|()| {
                if self.shared.options.buffered {
                    return cached::write(&self.shared, io, buf, offset);
                }
                bounce::write(self, io, buf, offset, bounce::Edges::Aligned)?;
                Ok(buf.len())
            })
            .map_err(|error| self.explain(error, "write", offset))
    }

    /// Writes all of `buf` at any offset. Without the page cache, blocks that are covered in part
    /// are read first and written back whole: no other writer may touch those blocks meanwhile,
    /// through any handle.
    ///
    /// # Errors
    /// As [`File::write_dma_at`], but for alignment.
    pub fn write_all_at(&self, io: &mut Io, buf: &[u8], offset: u64) -> Result<()> {
        io.check_write(self)
            .and_then(|()| {
                if self.shared.options.buffered {
                    cached::write_all(&self.shared, io, buf, offset)
                } else {
                    bounce::write(self, io, buf, offset, bounce::Edges::ReadFirst)
                }
            })
            .map_err(|error| self.explain(error, "write", offset))
    }

    /// Makes every write that was completed before durable, those of the file into the page cache
    /// included, by whatever handle; as fdatasync(2): where writes only marked the times, these are
    /// not.
    ///
    /// # Errors
    /// The device's. The last failure of writing the file back that this handle (with its clones)
    /// was not told of yet, however that came about; what failed is still in the cache and is tried
    /// again by the next sync.
    pub fn sync_data(&self, io: &mut Io) -> Result<()> {
        io.check_volume(&self.volume)
            .map_err(|error| self.explain(error, "sync", 0))?;
        if self.shared.inode.pages().is_some() {
            cached::sync(&self.shared, io).map_err(|error| self.explain(error, "sync", 0))?;
        }
        let fs = &self.volume.fs;
        if self.shared.inode.pages().is_none() || fs.has_unlogged() {
            fs.sync(&mut io.core)
                .map_err(|error| self.explain(error, "sync", 0))?;
        }
        let target = &self.volume.target;
        target
            .look_again()
            .map_err(|error| self.explain(error, "sync", 0))
    }

    /// As [`File::sync_data`], which makes metadata durable too, with the times of writes.
    ///
    /// # Errors
    /// As [`File::sync_data`], and where the times cannot be changed; the data is synced all the
    /// same.
    pub fn sync_all(&self, io: &mut Io) -> Result<()> {
        let noted = io
            .check_volume(&self.volume)
            .and_then(|()| self.volume.note_times(&mut io.core, &self.shared.inode))
            .map_err(|error| self.explain(error, "sync", 0));
        self.sync_data(io)?;
        noted
    }

    /// The first byte at or after `offset` that reads as zeroes because nothing is there; the end
    /// of the file counts as such. `None` at or beyond the end of the file (`ENXIO`).
    ///
    /// # Errors
    /// When the file's extents cannot be read.
    pub fn seek_hole(&self, io: &mut Io, offset: u64) -> Result<Option<u64>> {
        self.reported(io, |ops, size, _| iomap::seek_hole(ops, offset, size))
            .map_err(|error| self.explain(error, "seek hole", offset))
    }

    /// The first byte at or after `offset` that has data; `None` when there is none (`ENXIO`).
    /// Preallocated space has no data.
    ///
    /// # Errors
    /// When the file's extents cannot be read.
    pub fn seek_data(&self, io: &mut Io, offset: u64) -> Result<Option<u64>> {
        self.reported(io, |ops, size, _| iomap::seek_data(ops, offset, size))
            .map_err(|error| self.explain(error, "seek data", offset))
    }

    /// The extents that touch `length_bytes` from `offset`, also beyond the end of the file, as the
    /// FIEMAP ioctl reports them. `u64::MAX` as length means all.
    ///
    /// # Errors
    /// When the file's extents cannot be read.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let file = volume.open_file(&mut io, "/data")?;
    /// for extent in file.fiemap(&mut io, 0, u64::MAX)? {
    ///     println!("{} -> {} ({:?})", extent.logical_bytes, extent.physical_bytes, extent.flags);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn fiemap(&self, io: &mut Io, offset: u64, length_bytes: u64) -> Result<Vec<FiemapExtent>> {
        let mut extents = Vec::new();
        self.reported(io, |ops, _, block_bytes| {
            iomap::fiemap(ops, offset, length_bytes, block_bytes, |extent| {
                extents.push(extent);
            })
        })
        .map_err(|error| self.explain(error, "fiemap", offset))?;
        Ok(extents)
    }

    /// Requests mappings for a report, after shared blocks were looked up.
    fn reported<T>(
        &self,
        io: &mut Io,
        ask: impl FnOnce(&mut FileOps<'_>, u64, u32) -> Result<T>,
    ) -> Result<T> {
        io.check_volume(&self.volume)?;
        if self.shared.inode.may_be_dirty() {
            // Blocks without data on disk may have some in the page cache.
            cached::write_file_back(&self.shared, io)?;
        }
        let map = self.volume.whole_map(io, &self.shared.inode)?;
        ask(
            &mut FileOps::new(&map),
            map.size_bytes(),
            self.volume.block_bytes(),
        )
    }

    /// A reader from the file's start, with several large reads in flight ahead of the consumed
    /// position.
    ///
    /// # Errors
    /// When the file was not opened for reading or `io` belongs to another volume.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let file = volume.open_file(&mut io, "/data")?;
    /// std::io::copy(&mut file.reader(&mut io)?, &mut std::io::stdout()).expect("copied");
    /// # Ok(())
    /// # }
    /// ```
    pub fn reader<'io>(&self, io: &'io mut Io) -> Result<FileReader<'io>> {
        io.check_read(self)
            .map_err(|error| self.explain(error, "read", 0))?;
        Ok(FileReader::new(self.clone(), io))
    }
}

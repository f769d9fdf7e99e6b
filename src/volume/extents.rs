//! Loading extents of files that have many of them, when an operation needs them.
//!
//! Extents are loaded while the space of the file is locked, shared or exclusively, so that none of
//! them is of the middle of a change. An operation finds out that it needs them before any of it is
//! submitted; it is rejected, and tried again when they are loaded.

use std::ops::Range;
use std::sync::Arc;

use super::core::IoCore;
use super::file_shared::FileShared;
use super::inodes::CoreInode;
use super::ranges::outward;
use super::shared::VolumeShared;
use super::space_wait::share_space;
use super::{DmaBuf, File, Io};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::{DirectRequest, OperationToken, Rejected, What};
use crate::mem::pages::PAGE_BYTES;
use crate::xfs::{FileMap, needs_extents};

/// How often an operation is tried whose extents other threads unload.
const TRIES: u32 = 1000;

impl VolumeShared {
    /// Loads the extents of a range of a file that are not loaded.
    pub(super) fn load(&self, io: &mut Io, inode: &CoreInode, range: &Range<u64>) -> Result<()> {
        if !inode.is_partial() {
            return Ok(());
        }
        let _unchanged = share_space(io, inode);
        self.load_locked(&mut io.core, inode, range)
    }

    /// As [`VolumeShared::load`], while the space of the file is locked.
    pub(super) fn load_locked(
        &self,
        core: &mut IoCore,
        inode: &CoreInode,
        range: &Range<u64>,
    ) -> Result<()> {
        if !inode.is_partial() {
            return Ok(());
        }
        while let Some(part) = inode.maps().now().0.unloaded_in(range) {
            inode.load(|| self.fs.read_map_part(core, inode.id(), &part))?;
        }
        Ok(())
    }

    /// The map of a file with all of its extents, and what of them is shared.
    pub(super) fn whole_map(&self, io: &mut Io, inode: &CoreInode) -> Result<Arc<FileMap>> {
        let (map, _) = inode.maps().now();
        if map.check_loaded(&(0..u64::MAX)).is_ok() && !map.needs_sharing() {
            return Ok(map);
        }
        let _unchanged = share_space(io, inode);
        self.load_locked(&mut io.core, inode, &(0..u64::MAX))?;
        let (map, _) = inode.maps().now();
        self.fs.learn_sharing(&mut io.core, &map)?;
        Ok(map)
    }
}

impl Io {
    /// Loads the extents of a range of a file that are not loaded. Waits for metadata.
    #[cold]
    pub(super) fn load_extents(&mut self, file: &FileShared, range: &Range<u64>) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        volume.load(self, &file.inode, range)
    }

    /// Loads the extents of the pages of a range that are not loaded, while the space of the file
    /// is locked.
    #[inline]
    pub(super) fn load_pages(&mut self, inode: &CoreInode, range: &Range<u64>) -> Result<()> {
        if !inode.is_partial() {
            return Ok(());
        }
        let pages = outward(range, PAGE_BYTES as u64);
        let Self { volume, core, .. } = self;
        volume.load_locked(core, inode, &pages)
    }

    /// Has `run` run again after it failed for want of extents of a range.
    #[cold]
    pub(super) fn run_loaded<T>(
        &mut self,
        file: &FileShared,
        range: &Range<u64>,
        mut run: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        for _ in 0..TRIES {
            self.load_extents(file, range)?;
            match run(self) {
                Err(error) if needs_extents(&error) => {}
                other => return other,
            }
        }
        Err(unloaded_again())
    }

    /// Has `start` start an operation again that was rejected for want of extents.
    #[cold]
    pub(super) fn start_loaded<T>(
        &mut self,
        file: &File,
        rejected: Rejected,
        (what, offset, user_data): (What, u64, u64),
        mut start: impl FnMut(&mut IoCore, DirectRequest<'_, Arc<FileShared>>) -> Result<T, Rejected>,
    ) -> Result<T, Rejected> {
        let mut buf = rejected.buf;
        let range = offset..offset.saturating_add(buf.len() as u64);
        for _ in 0..TRIES {
            if let Err(error) = self.load_extents(&file.shared, &range) {
                return Err(Rejected::error(error, buf));
            }
            let request = self.request(file, what, offset, buf, user_data);
            match start(&mut self.core, request) {
                Err(rejected) if is_for_extents(&rejected) => buf = rejected.buf,
                other => return other,
            }
        }
        Err(Rejected::error(unloaded_again(), buf))
    }

    /// Starts an operation that is waited for.
    pub(super) fn submit_kept(
        &mut self,
        file: &File,
        what: What,
        offset: u64,
        buf: DmaBuf,
    ) -> Result<OperationToken, Rejected> {
        let request = self.request(file, what, offset, buf, 0);
        match self.core.submit_kept(request) {
            Err(rejected) if is_for_extents(&rejected) => {
                self.start_loaded(file, rejected, (what, offset, 0), IoCore::submit_kept)
            }
            other => other,
        }
    }
}

/// Whether an operation was rejected for want of extents.
pub(super) fn is_for_extents(rejected: &Rejected) -> bool {
    rejected.error.as_ref().is_some_and(needs_extents)
}

fn unloaded_again() -> Error {
    Error::new(
        ErrorKind::Busy,
        "other threads change the file again and again",
    )
}

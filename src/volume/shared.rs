//! What the handles of a volume share, and those of a file.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::sync::{Arc, Mutex};

use super::OpenOptions;
use super::cached::Background;
use super::inodes::{Inodes, OpenInode};
use crate::cache::ErrorCursor;
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::Source;
use crate::target::claims::Claim;
use crate::target::shared::TargetShared;
use crate::xfs::{FileOps, Fs};

#[derive(Debug)]
pub(super) struct VolumeShared {
    pub(super) fs: Fs,
    pub(super) inodes: Arc<Inodes>,
    pub(super) background: Background,
    pub(super) target: Arc<TargetShared>,
    /// A file was opened for writing.
    pub(super) is_written: AtomicBool,
    /// What drop would do was done.
    pub(super) is_closed: bool,
    /// The volume was opened for reading only.
    pub(super) read_only: Option<&'static str>,
    /// Given up last.
    pub(super) _claim: Option<Claim>,
}

impl VolumeShared {
    /// Bytes in a block of the filesystem.
    pub(super) fn block_bytes(&self) -> u32 {
        self.fs.geometry().block_bytes
    }

    /// Whether files may be opened for writing.
    pub(super) fn check_writable(&self) -> Result<()> {
        if let Some(why) = self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, why));
        }
        match self.fs.read_only_reason() {
            Some(why) => Err(Error::new(
                ErrorKind::ReadOnly,
                format!("the filesystem may only be read: {why}"),
            )),
            None => Ok(()),
        }
    }

    /// An error with the path and the target it belongs to.
    #[cold]
    pub(super) fn explain(&self, error: Error, operation: &'static str, path: &[u8]) -> Error {
        let error = match error.kind() {
            ErrorKind::Io | ErrorKind::DeviceGone if operation != "read" => self.target.why(error),
            _ => error,
        };
        error
            .during(operation)
            .at_path(path)
            .on_device(&*self.target.name)
    }
}

/// What all clones of an open file share. An [`Io`](super::Io) keeps that of the files that it was
/// last used with, also when those are closed; so it has no reference to the volume.
pub(super) struct FileShared {
    /// What all handles of the file share.
    pub(super) inode: OpenInode,
    pub(super) options: OpenOptions,
    pub(super) path: Box<[u8]>,
    /// Which handle it is, of all that there ever were.
    pub(super) id: u64,
    /// What was said of the reads to come, for the whole file.
    pub(super) advice: AtomicU8,
    /// The failures of writing back that were told.
    pub(super) heard: Mutex<ErrorCursor>,
}

impl fmt::Debug for FileShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileShared")
            .field("path", &format_args!("{}", self.path.escape_ascii()))
            .field("ino", &self.inode.metadata.ino)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Source for Arc<FileShared> {
    type Ops<'a> = FileOps<'a>;

    #[inline]
    fn ops(&self) -> FileOps<'_> {
        FileOps::new(&self.inode.map)
    }

    #[inline]
    fn size_bytes(&self) -> u64 {
        self.inode.map.size_bytes()
    }

    #[inline]
    fn key(&self) -> usize {
        Arc::as_ptr(self).addr()
    }
}

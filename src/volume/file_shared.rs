//! What the clones of an open file share.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex};

use super::OpenOptions;
use super::inodes::OpenInode;
use crate::cache::ErrorCursor;
use crate::error::Result;
use crate::iomap::Versions;
use crate::iomap::direct::Source;
use crate::xfs::{FileMap, FileOps};

/// What all clones of an open file share. An [`Io`](super::Io) keeps that of the files that it was
/// last used with, also when those are closed; so it has no reference to the volume.
pub(super) struct FileShared {
    /// What all handles of the file share.
    pub(super) inode: OpenInode,
    pub(super) options: OpenOptions,
    pub(super) path: Box<[u8]>,
    /// Which handle it is, of all that there ever were, from 1 on.
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
            .field("ino", &self.inode.ino)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Source for Arc<FileShared> {
    type Version = FileMap;
    type Ops<'a> = FileOps<'a>;

    #[inline(always)]
    fn versions(&self) -> &Versions<FileMap> {
        self.inode.maps()
    }

    #[inline(always)]
    fn ops(map: &FileMap) -> FileOps<'_> {
        FileOps::new(map)
    }

    #[inline(always)]
    fn size_bytes(map: &FileMap) -> u64 {
        map.size_bytes()
    }

    #[inline]
    fn is_no_overwrite(map: &FileMap, offset: u64, len: u64) -> bool {
        map.is_no_overwrite(offset, len)
    }

    #[inline]
    fn check_known(map: &FileMap, range: Range<u64>) -> Result<()> {
        map.check_loaded(&range)
    }

    #[inline(always)]
    fn key(&self) -> u64 {
        self.id
    }
}

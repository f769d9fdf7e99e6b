//! Walking down a tree of a volume, which may be hostile.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use xtent::Result;
use xtent::volume::{DirEntry, File, Io, OpenOptions, ReadDir, Volume};

use super::failure::{CORRUPT, Failure};

/// A file of a volume: by the path that the user gave, or as an entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) enum TreeNode<'a> {
    Path(&'a [u8]),
    Entry(&'a DirEntry),
}

impl<'a> TreeNode<'a> {
    pub(super) fn path(&self) -> Cow<'a, [u8]> {
        match *self {
            Self::Path(path) => path.into(),
            Self::Entry(entry) => entry.path().into_os_string().into_vec().into(),
        }
    }

    pub(super) fn open(&self, volume: &Volume, io: &mut Io) -> Result<File> {
        match self {
            Self::Path(path) => volume.open_file(io, OsStr::from_bytes(path)),
            Self::Entry(entry) => entry.open(io, OpenOptions::new().read(true)),
        }
    }

    pub(super) fn read_dir(&self, volume: &Volume, io: &mut Io) -> Result<ReadDir> {
        match self {
            Self::Path(path) => volume.read_dir(io, OsStr::from_bytes(path)),
            Self::Entry(entry) => entry.read_dir(io),
        }
    }

    pub(super) fn read_link(&self, volume: &Volume, io: &mut Io) -> Result<Vec<u8>> {
        let target = match self {
            Self::Path(path) => volume.read_link(io, OsStr::from_bytes(path)),
            Self::Entry(entry) => entry.read_link(io),
        };
        target.map(|target| target.into_os_string().into_vec())
    }
}

/// The directories found in one directory.
///
/// Each must have one name: with the check of `..` (as [`DirEntry::read_dir`] does it) no directory
/// is then visited twice, and a walk ends.
#[derive(Debug, Default)]
pub(super) struct Children(HashSet<u64>);

impl Children {
    /// Adds a directory; the second name of one is an error.
    pub(super) fn add(&mut self, entry: &DirEntry) -> Result<(), Failure> {
        if self.0.insert(entry.ino()) {
            return Ok(());
        }
        let path = entry.path();
        let text = format!(
            "{}: directory inode {} has a second name in its directory: run xfs_repair",
            path.as_os_str().as_bytes().escape_ascii(),
            entry.ino()
        );
        Err(Failure::new(CORRUPT, text))
    }
}

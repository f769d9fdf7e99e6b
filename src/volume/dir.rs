//! Directories, entry by entry.

use super::{FileType, Io, Metadata};
use crate::error::Result;

/// The entries of a directory. It holds a few blocks at a time, however large the directory is.
#[derive(Debug)]
pub struct ReadDir {
    path: Vec<u8>,
}

impl ReadDir {
    /// The next entry; `None` after the last. `io` is free for other work between the calls.
    ///
    /// # Errors
    /// When the disk cannot be read or contradicts itself; the walk is then over.
    pub fn next_entry(&mut self, io: &mut Io) -> Result<Option<DirEntry>> {
        let _ = io;
        Err(super::open::not_yet().at_path(&self.path))
    }

    /// The same as an iterator that keeps `io` to itself.
    pub fn entries<'a>(&'a mut self, io: &'a mut Io) -> DirEntries<'a> {
        DirEntries { dir: self, io }
    }
}

/// An iterator over a directory's entries, by [`ReadDir::entries`].
#[derive(Debug)]
pub struct DirEntries<'a> {
    dir: &'a mut ReadDir,
    io: &'a mut Io,
}

impl Iterator for DirEntries<'_> {
    type Item = Result<DirEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.dir.next_entry(self.io).transpose()
    }
}

/// One name in a directory.
#[derive(Debug, Clone)]
pub struct DirEntry {
    pub(super) parent: std::sync::Arc<[u8]>,
    pub(super) name: Vec<u8>,
    pub(super) ino: u64,
    pub(super) file_type: Option<FileType>,
}

impl DirEntry {
    /// The name: bytes, at most 255, neither empty nor with a slash or NUL.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The directory's path as it was given, a slash, and the name.
    pub fn path(&self) -> Vec<u8> {
        let mut path = self.parent.to_vec();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(&self.name);
        path
    }

    /// The inode number.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// The type, as the directory has it; `None` where directories do not keep it.
    pub fn file_type(&self) -> Option<FileType> {
        self.file_type
    }

    /// What is known of the file itself; a symbolic link is not followed. Cheaper than by path.
    ///
    /// # Errors
    /// When the inode cannot be read or contradicts itself.
    pub fn metadata(&self, io: &mut Io) -> Result<Metadata> {
        let _ = io;
        Err(super::open::not_yet().at_path(self.path()))
    }
}

//! Directories, entry by entry.

use std::sync::Arc;

use super::mounted::VolumeShared;
use super::{FileType, Io, Metadata};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::dir::DirCursor;
use crate::xfs::{self, Ino, Inode};

/// The entries of a directory. It holds one block at a time, however large the directory is.
#[derive(Debug)]
pub struct ReadDir {
    volume: Arc<VolumeShared>,
    dir: Inode,
    cursor: DirCursor,
    path: Arc<[u8]>,
}

impl ReadDir {
    pub(super) fn new(volume: &Arc<VolumeShared>, dir: Inode, path: &[u8]) -> Result<Self> {
        if dir.file_type != xfs::FileType::Directory {
            let error = Error::new(ErrorKind::NotADirectory, "not a directory");
            return Err(volume.explain(error, "read directory", path));
        }
        Ok(Self {
            volume: Arc::clone(volume),
            dir,
            cursor: DirCursor::new(),
            path: path.into(),
        })
    }

    /// What is known of the directory itself.
    pub fn metadata(&self) -> Metadata {
        Metadata::of(&self.dir, self.volume.block_bytes())
    }

    /// The next entry; `None` after the last. `io` is free for other work between the calls.
    ///
    /// # Errors
    /// When the disk cannot be read or contradicts itself; the walk is then over.
    pub fn next_entry(&mut self, io: &mut Io) -> Result<Option<DirEntry>> {
        let found = io.check_volume(&self.volume).and_then(|()| {
            self.cursor
                .next_entry(&self.volume.fs, &mut io.core, &self.dir)
        });
        let entry = found
            .map_err(|error| self.volume.explain(error, "read directory", &self.path))?
            .map(|entry| DirEntry {
                parent: Arc::clone(&self.path),
                name: entry.name,
                ino: entry.ino.0,
                file_type: entry.file_type.map(FileType::of_xfs),
            });
        Ok(entry)
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
    parent: Arc<[u8]>,
    name: Vec<u8>,
    ino: u64,
    file_type: Option<FileType>,
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

    /// What is known of the file itself; a symbolic link is not followed. Cheaper than by path. `io` must
    /// be of the volume that the directory belongs to.
    ///
    /// # Errors
    /// When the inode cannot be read or contradicts itself.
    pub fn metadata(&self, io: &mut Io) -> Result<Metadata> {
        let volume = Arc::clone(io.volume_shared());
        volume
            .fs
            .read_inode(&mut io.core, Ino(self.ino))
            .map(|inode| Metadata::of(&inode, volume.block_bytes()))
            .map_err(|error| volume.explain(error, "stat", &self.path()))
    }
}

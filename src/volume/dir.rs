//! Directories, entry by entry.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::path::{name_from, path_from};
use super::shared::VolumeShared;
use super::{File, FileType, Io, Metadata, OpenOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::dir::{DirCursor, check_parent};
use crate::xfs::{self, Ino, Inode, symlink};

/// The entries of a directory. It holds one block at a time, however large the directory is.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let mut dir = volume.read_dir(&mut io, "/")?;
/// while let Some(entry) = dir.next_entry(&mut io)? {
///     println!("{:?}", entry.file_name());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ReadDir {
    place: Arc<DirPlace>,
    metadata: Metadata,
    /// Absent after [`ReadDir::release`].
    dir: Option<Inode>,
    cursor: DirCursor,
}

/// A directory and how it was reached; its entries share it.
struct DirPlace {
    volume: Arc<VolumeShared>,
    ino: Ino,
    /// The path that the caller gave; with `above`, a name in that directory.
    name: Box<[u8]>,
    above: Option<Arc<DirPlace>>,
}

impl DirPlace {
    fn path(&self) -> Vec<u8> {
        let mut names = vec![&*self.name];
        let mut above = self.above.as_deref();
        while let Some(place) = above {
            names.push(&place.name);
            above = place.above.as_deref();
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            push_component(&mut path, name);
        }
        path
    }

    #[cold]
    fn explain(&self, error: Error, operation: &'static str) -> Error {
        self.volume.explain(error, operation, &self.path())
    }
}

impl fmt::Debug for DirPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path().escape_ascii(), self.ino)
    }
}

impl Drop for DirPlace {
    /// Iterative: a deep tree would overflow the stack.
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(mut place) = above.and_then(Arc::into_inner) {
            above = place.above.take();
        }
    }
}

fn push_component(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() && path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

impl ReadDir {
    pub(super) fn new(volume: &Arc<VolumeShared>, dir: Inode, path: &[u8]) -> Result<Self> {
        let place = DirPlace {
            volume: Arc::clone(volume),
            ino: dir.ino,
            name: path.into(),
            above: None,
        };
        Self::of(place, dir)
    }

    fn of(place: DirPlace, dir: Inode) -> Result<Self> {
        if dir.file_type != xfs::InodeType::Directory {
            let error = Error::new(ErrorKind::NotADirectory, "not a directory");
            return Err(place.explain(error, "read directory"));
        }
        Ok(Self {
            metadata: Metadata::of(&dir, place.volume.block_bytes()),
            place: Arc::new(place),
            dir: Some(dir),
            cursor: DirCursor::new(),
        })
    }

    /// Metadata of the directory itself.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// The path that it was opened by.
    #[doc(hidden)]
    pub fn path(&self) -> PathBuf {
        path_from(self.place.path())
    }

    /// The next entry; `None` after the last. `io` is free for other work between the calls.
    ///
    /// # Errors
    /// When the disk cannot be read or its content is corrupt; the walk is then over.
    pub fn next_entry(&mut self, io: &mut Io) -> Result<Option<DirEntry>> {
        let found = self
            .next_in(io)
            .map_err(|error| self.place.explain(error, "read directory"))?;
        Ok(found.map(|entry| DirEntry {
            place: Arc::clone(&self.place),
            name: entry.name,
            ino: entry.ino,
            file_type: entry.file_type.map(FileType::of_xfs),
        }))
    }

    fn next_in(&mut self, io: &mut Io) -> Result<Option<xfs::dir::XfsDirEntry>> {
        io.check_volume(&self.place.volume)?;
        let fs = &self.place.volume.fs;
        let dir = match &mut self.dir {
            Some(dir) => dir,
            none => {
                let dir = fs.read_inode(&mut io.core, self.place.ino)?;
                if dir.generation != self.metadata.generation {
                    let detail = "the directory was removed while it was being read";
                    return Err(Error::new(ErrorKind::NotFound, detail));
                }
                none.insert(dir)
            }
        };
        self.cursor.next_entry(fs, &mut io.core, dir)
    }

    /// Frees the directory's block and inode; the next entry reads them again. For a walk down a
    /// deep tree, which keeps the directories above.
    pub fn release(&mut self) {
        let cookie = self.cursor.cookie();
        self.cursor = DirCursor::new().at_cookie(cookie);
        self.dir = None;
    }

    /// The same as an iterator that keeps `io` to itself.
    pub fn entries<'a>(&'a mut self, io: &'a mut Io) -> DirEntries<'a> {
        DirEntries { dir: self, io }
    }
}

/// An iterator over a directory's entries, by [`ReadDir::entries`].
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let mut dir = volume.read_dir(&mut io, "/")?;
/// for entry in dir.entries(&mut io) {
///     println!("{}", entry?.path().display());
/// }
/// # Ok(())
/// # }
/// ```
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
///
/// Its methods find the file by inode number: each costs the same, however many names the directory
/// has, however their hashes collide and however long the path is. The [`Io`] must be of the volume
/// that the directory belongs to.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let mut dir = volume.read_dir(&mut io, "/")?;
/// while let Some(entry) = dir.next_entry(&mut io)? {
///     let metadata = entry.metadata(&mut io)?;
///     println!("{:?}: {} bytes", entry.file_name(), metadata.len_bytes);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DirEntry {
    place: Arc<DirPlace>,
    name: Vec<u8>,
    ino: Ino,
    file_type: Option<FileType>,
}

impl fmt::Debug for DirEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirEntry")
            .field("name", &format_args!("{}", self.name.escape_ascii()))
            .field("ino", &self.ino.0)
            .field("file_type", &self.file_type)
            .finish_non_exhaustive()
    }
}

impl DirEntry {
    /// The name: at most 255 bytes, neither empty nor with a slash or NUL.
    pub fn file_name(&self) -> &OsStr {
        name_from(&self.name)
    }

    /// The directory's path as it was given, a slash, and the name.
    pub fn path(&self) -> PathBuf {
        path_from(self.path_bytes())
    }

    fn path_bytes(&self) -> Vec<u8> {
        let mut path = self.place.path();
        push_component(&mut path, &self.name);
        path
    }

    /// The inode number.
    pub fn ino(&self) -> u64 {
        self.ino.0
    }

    /// The type, as the directory has it; `None` where directories do not keep it.
    pub fn file_type(&self) -> Option<FileType> {
        self.file_type
    }

    pub(super) fn volume(&self) -> &VolumeShared {
        &self.place.volume
    }

    pub(super) fn inode(&self, io: &mut Io) -> Result<Inode> {
        io.check_volume(&self.place.volume)?;
        self.place.volume.fs.read_inode(&mut io.core, self.ino)
    }

    #[cold]
    pub(super) fn explain(&self, error: Error, operation: &'static str) -> Error {
        self.place
            .volume
            .explain(error, operation, &self.path_bytes())
    }

    /// Metadata of the file itself; a symbolic link is not followed.
    ///
    /// # Errors
    /// When the inode cannot be read or is corrupt; for an `io` of another volume.
    pub fn metadata(&self, io: &mut Io) -> Result<Metadata> {
        self.inode(io)
            .map(|inode| self.place.volume.metadata_of(&inode))
            .map_err(|error| self.explain(error, "stat"))
    }

    /// Opens it, when it is a regular file; a symbolic link is not followed.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open(&self, io: &mut Io, options: OpenOptions) -> Result<File> {
        self.inode(io)
            .and_then(|inode| {
                options.open_inode(&self.place.volume, io, &inode, || self.path_bytes().into())
            })
            .map_err(|error| self.explain(error, "open"))
    }

    /// Its entries, when it is a directory; a symbolic link is not followed.
    ///
    /// # Errors
    /// [`ErrorKind::NotADirectory`]; [`ErrorKind::Corrupt`] with the inode number for a directory
    /// whose parent is another one, which would have two paths; when the disk cannot be read.
    pub fn read_dir(&self, io: &mut Io) -> Result<ReadDir> {
        let place = DirPlace {
            volume: Arc::clone(&self.place.volume),
            ino: self.ino,
            name: self.name.as_slice().into(),
            above: Some(Arc::clone(&self.place)),
        };
        let fs = &self.place.volume.fs;
        let inode = self.inode(io).and_then(|inode| {
            if inode.file_type == xfs::InodeType::Directory {
                check_parent(fs, &mut io.core, &inode, self.place.ino)?;
            }
            Ok(inode)
        });
        ReadDir::of(place, inode.map_err(|e| self.explain(e, "read directory"))?)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for other files; when the disk cannot be read.
    pub fn read_link(&self, io: &mut Io) -> Result<PathBuf> {
        let fs = &self.place.volume.fs;
        self.inode(io)
            .and_then(|inode| symlink::read_link(fs, &mut io.core, &inode).map(path_from))
            .map_err(|error| self.explain(error, "read link"))
    }
}

#[cfg(test)]
mod tests {
    use super::push_component;

    #[test]
    fn components_are_joined_by_one_slash() {
        let join = |names: &[&[u8]]| {
            let mut path = Vec::new();
            for name in names {
                push_component(&mut path, name);
            }
            path
        };
        assert_eq!(join(&[b"/", b"a", b"b"]), b"/a/b");
        assert_eq!(join(&[b"a/", b"b"]), b"a/b");
        assert_eq!(join(&[b"a"]), b"a");
    }
}

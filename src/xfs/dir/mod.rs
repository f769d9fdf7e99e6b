//! Directories: every form that the format has, read entry by entry or searched by name.
//!
//! Layer 5. A small directory lies in its inode (short form); then in one block of names with their
//! hashes at its end (block form); then in several with one hash block (leaf form); then with a
//! tree of hash blocks (node form). The forms are those of [`super::format::dir`]. Every block is
//! checked when it comes from the device: magic, checksum, uuid, owner and address; what it says of
//! itself is checked at each use.
//!
//! Nothing walks further than the directory's mapped blocks reach, and a tree only downwards, so
//! that a directory that points in circles ends in [`ErrorKind::Corrupt`].
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod block;
mod cursor;
mod lookup;

pub use cursor::{DirCursor, XfsDirEntries};
pub use lookup::{FoundName, check_parent, lookup};

use super::format::dir::{self as layout, EntryType};
use super::format::dir_short::ShortForm;
use super::{Fork, Fs, Ino, Inode, MetaIo};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::InodeType;

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XfsDirEntry {
    /// The name: 1 to 255 bytes, any but `/` and NUL.
    pub name: Vec<u8>,
    /// The inode, in range; whether it exists shows when it is read.
    pub ino: Ino,
    /// What the entry says that the inode is; `None` when it does not say.
    pub file_type: Option<InodeType>,
}

/// The form of a directory that is not short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DirForm {
    Block,
    Leaf,
    Node,
}

/// The content of a short directory, or the form of another.
enum DirContent<'a> {
    Short(ShortForm<'a>),
    Blocks(DirForm),
}

fn corrupt(dir: &Inode, detail: impl std::fmt::Display) -> Error {
    super::corrupt(dir.addr_bytes, format!("directory {}: {detail}", dir.ino))
}

/// Tells the form as the format does: by the last block that is mapped.
fn content<'a>(fs: &Fs, io: &mut impl MetaIo, dir: &'a Inode) -> Result<DirContent<'a>> {
    if dir.file_type != InodeType::Directory {
        return Err(Error::new(
            ErrorKind::NotADirectory,
            format!("{} is not a directory", dir.ino),
        ));
    }
    if let Fork::Local(fork) = &dir.data {
        return ShortForm::parse(fork)
            .map(DirContent::Short)
            .map_err(|error| corrupt(dir, error.detail()));
    }
    let geometry = fs.geometry();
    let end = fs
        .last_extent(io, dir, u64::MAX)?
        .map_or(0, |extent| extent.end_blocks());
    let dir_blocks = u64::from(geometry.dir_block_blocks);
    let leaf_start = block::leaf_space_start(geometry);
    let form = if end == dir_blocks {
        DirForm::Block
    } else if end > leaf_start && end.checked_sub(leaf_start) == Some(dir_blocks) {
        DirForm::Leaf
    } else if end > leaf_start {
        DirForm::Node
    } else {
        return Err(corrupt(dir, "its last block is of no form"));
    };
    let size_is_whole = dir.size.is_multiple_of(u64::from(geometry.dir_block_bytes));
    let data_end = fs
        .last_extent(io, dir, leaf_start)?
        .map_or(0, |extent| extent.end_blocks());
    if !size_is_whole
        || dir.size > layout::LEAF_SPACE_BYTES
        || geometry.bytes(data_end) > dir.size
        || (form == DirForm::Block && dir.size != u64::from(geometry.dir_block_bytes))
    {
        return Err(corrupt(
            dir,
            format!("a size of {} bytes cannot be", dir.size),
        ));
    }
    Ok(DirContent::Blocks(form))
}

/// An entry as the caller gets it: the inode number checked against the geometry.
fn checked_entry(
    fs: &Fs,
    addr_bytes: u64,
    ino: u64,
    name: &[u8],
    kind: EntryType,
) -> Result<XfsDirEntry> {
    Ok(XfsDirEntry {
        name: name.to_vec(),
        ino: checked_ino(fs, addr_bytes, ino)?,
        file_type: file_type(kind),
    })
}

fn checked_ino(fs: &Fs, addr_bytes: u64, ino: u64) -> Result<Ino> {
    let ino = Ino(ino);
    if fs.geometry().split_inode(ino).is_none() {
        let detail = format!("a directory entry points to {ino}, which cannot exist");
        return Err(super::corrupt(addr_bytes, detail));
    }
    // As xfs_dir_ino_validate().
    if fs.is_internal(ino) {
        let detail = format!("a directory entry points to {ino}, which is the filesystem's own");
        return Err(super::corrupt(addr_bytes, detail));
    }
    Ok(ino)
}

fn file_type(kind: EntryType) -> Option<InodeType> {
    Some(match kind {
        EntryType::Regular => InodeType::Regular,
        EntryType::Directory => InodeType::Directory,
        EntryType::CharDevice | EntryType::Whiteout => InodeType::CharDevice,
        EntryType::BlockDevice => InodeType::BlockDevice,
        EntryType::Fifo => InodeType::Fifo,
        EntryType::Socket => InodeType::Socket,
        EntryType::Symlink => InodeType::Symlink,
        EntryType::Unknown => return None,
    })
}

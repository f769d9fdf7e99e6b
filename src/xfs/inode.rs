//! Inodes, decoded.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::OnceLock;

use super::attr_fork::AttrFork;
use super::extents::ExtentMap;
use super::format::inode::{self as layout, InodeTimestamp};
use super::geometry::Ino;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InodeType {
    /// Named pipe.
    Fifo,
    /// Character device.
    CharDevice,
    /// Directory.
    Directory,
    /// Block device.
    BlockDevice,
    /// Regular file.
    Regular,
    /// Symbolic link.
    Symlink,
    /// Socket.
    Socket,
}

impl InodeType {
    /// The type that the mode's upper bits give.
    pub fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & layout::S_IFMT {
            layout::S_IFIFO => Self::Fifo,
            layout::S_IFCHR => Self::CharDevice,
            layout::S_IFDIR => Self::Directory,
            layout::S_IFBLK => Self::BlockDevice,
            layout::S_IFREG => Self::Regular,
            layout::S_IFLNK => Self::Symlink,
            layout::S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }
}

/// What the data fork holds, as far as the inode itself says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fork {
    /// Nothing: a pipe, a socket, or a device (see [`Inode::rdev`]).
    Special,
    /// The content itself: a short directory or symbolic link.
    Local(Box<[u8]>),
    /// The list of extents.
    Extents(ExtentMap),
    /// The root of a btree of extents: header, keys and pointers, as they stand in the inode.
    Btree(Box<[u8]>),
}

/// A file as it was read: what `stat` shows, and its data fork.
#[derive(Debug)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub file_type: InodeType,
    /// Type and permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that refer to it.
    pub nlink: u32,
    /// Project.
    pub projid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Filesystem blocks in use, those of btrees and attributes included.
    pub blocks_used: u64,
    /// The same in units of 512 bytes, as `stat` shows it.
    pub blocks_512: u64,
    /// Last access.
    pub atime: InodeTimestamp,
    /// Last change of the content.
    pub mtime: InodeTimestamp,
    /// Last change of the inode.
    pub ctime: InodeTimestamp,
    /// Creation.
    pub btime: InodeTimestamp,
    /// Differs between files that had the same number one after the other.
    pub generation: u32,
    /// `di_flags`.
    pub flags: u16,
    /// `di_flags2`.
    pub flags2: u64,
    /// Extent size hint in blocks.
    pub extsize_blocks: u32,
    /// Major and minor number of a device; 0, 0 otherwise.
    pub rdev: (u32, u32),
    /// Extents of the data fork.
    pub nextents: u64,
    pub(super) attributes: Option<AttrFork>,
    /// Byte address of the inode on the device, for messages.
    pub addr_bytes: u64,
    /// The data fork.
    pub data: Fork,
    pub(super) extents: OnceLock<ExtentMap>,
}

impl Inode {
    /// Whether every write is to be durable when it returns.
    pub fn is_sync(&self) -> bool {
        self.flags & layout::FLAG_SYNC != 0
    }

    /// Whether it may have extended attributes.
    pub fn has_attribute_fork(&self) -> bool {
        self.attributes.is_some()
    }

    /// Its extent size hint in blocks, if it has one; that of a directory is for new files.
    pub fn extent_size_blocks(&self) -> Option<u32> {
        let has_hint = layout::FLAG_EXTSIZE | layout::FLAG_EXTSZINHERIT;
        Some(self.extsize_blocks).filter(|blocks| *blocks > 0 && self.flags & has_hint != 0)
    }

    /// Whether its blocks may be shared with other files.
    pub fn may_share(&self) -> bool {
        self.flags2 & layout::FLAG2_REFLINK != 0
    }
}

impl Inode {
    /// The extents of a btree fork, when they were read before.
    pub(super) fn extents_loaded(&self) -> Option<&ExtentMap> {
        self.extents.get()
    }

    /// Keeps the extents of a btree fork.
    pub(super) fn keep_extents(&self, map: ExtentMap) -> &ExtentMap {
        self.extents.get_or_init(|| map)
    }
}

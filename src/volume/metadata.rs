//! What `stat` shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::xfs::format::inode::InodeTimestamp;
use crate::xfs::{self, Inode};

/// A point in time as XFS keeps it: seconds since 1970 (negative before) and nanoseconds.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let mtime = volume.metadata(&mut io, "/data")?.mtime;
/// println!("{} s, {} ns: {:?}", mtime.seconds, mtime.nanoseconds, mtime.system_time());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000 unless the inode is damaged.
    pub nanoseconds: u32,
}

impl Timestamp {
    pub(super) fn of(at: InodeTimestamp) -> Self {
        Self {
            seconds: at.seconds,
            nanoseconds: at.nanoseconds,
        }
    }

    pub(super) fn on_disk(self) -> InodeTimestamp {
        InodeTimestamp {
            seconds: self.seconds,
            nanoseconds: self.nanoseconds,
        }
    }

    /// The same as the standard library's time; `None` when the host cannot express it.
    pub fn system_time(self) -> Option<SystemTime> {
        let whole = Duration::from_secs(self.seconds.unsigned_abs());
        let second = if self.seconds < 0 {
            UNIX_EPOCH.checked_sub(whole)
        } else {
            UNIX_EPOCH.checked_add(whole)
        }?;
        second.checked_add(Duration::from_nanos(u64::from(self.nanoseconds)))
    }
}

/// The type of a file.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// use xtent::volume::FileType;
/// let metadata = volume.symlink_metadata(&mut io, "/dev/null")?;
/// assert_eq!(metadata.file_type(), FileType::CharDevice);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// An ordinary file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileType {
    /// The type of a mode's upper bits (`S_IFMT`); `None` for what no file has.
    #[doc(hidden)]
    pub fn of_mode(mode: u32) -> Option<Self> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }

    pub(super) fn of_xfs(file_type: xfs::InodeType) -> Self {
        match file_type {
            xfs::InodeType::Regular => Self::Regular,
            xfs::InodeType::Directory => Self::Directory,
            xfs::InodeType::Symlink => Self::Symlink,
            xfs::InodeType::BlockDevice => Self::BlockDevice,
            xfs::InodeType::CharDevice => Self::CharDevice,
            xfs::InodeType::Fifo => Self::Fifo,
            xfs::InodeType::Socket => Self::Socket,
        }
    }

    /// The letter that `ls -l` begins a line with.
    #[doc(hidden)]
    pub fn letter(self) -> char {
        match self {
            Self::Regular => '-',
            Self::Directory => 'd',
            Self::Symlink => 'l',
            Self::BlockDevice => 'b',
            Self::CharDevice => 'c',
            Self::Fifo => 'p',
            Self::Socket => 's',
        }
    }
}

/// What the volume knows of a file besides its content.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let metadata = volume.metadata(&mut io, "/data")?;
/// println!("{} bytes, mode {:o}", metadata.len_bytes, metadata.permissions());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Inode number.
    pub ino: u64,
    /// Inode generation: tells apart two files that had the same number one after the other.
    pub generation: u32,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project.
    pub project: u32,
    /// Device number of a device node, as `st_rdev`; 0 for other files.
    pub rdev: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Space in use in units of 512 bytes, as in `st_blocks`.
    pub blocks_512: u64,
    /// Preferred I/O size in bytes, as in `st_blksize`.
    pub block_bytes: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// XFS inode flags as on disk (`di_flags`).
    pub xfs_flags: u16,
    /// XFS inode flags, second word, as on disk (`di_flags2`).
    pub xfs_flags2: u64,
    /// Extent size hint in bytes (`xfs_io -c extsize`), where the file has one: its blocks are
    /// allocated in aligned multiples of it. That of a directory is for new files.
    pub extent_size_bytes: Option<u64>,
    /// It may have extended attributes.
    pub(super) has_attributes: bool,
    /// Before its content is changed, privileges have to be looked for and taken away.
    pub(super) has_privileges: bool,
}

/// What `stat` calls the preferred I/O size is a page, or a block where that is larger.
const PAGE_BYTES: u32 = 4096;

impl Metadata {
    pub(super) fn of(inode: &Inode, block_bytes: u32) -> Self {
        let (major, minor) = inode.rdev;
        Self {
            ino: inode.ino.0,
            generation: inode.generation,
            mode: inode.mode.into(),
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            project: inode.projid,
            rdev: libc::makedev(major, minor),
            len_bytes: inode.size,
            blocks_512: inode.blocks_512,
            block_bytes: block_bytes.max(PAGE_BYTES),
            atime: Timestamp::of(inode.atime),
            mtime: Timestamp::of(inode.mtime),
            ctime: Timestamp::of(inode.ctime),
            btime: Timestamp::of(inode.btime),
            xfs_flags: inode.flags,
            xfs_flags2: inode.flags2,
            extent_size_bytes: inode
                .extent_size_blocks()
                .map(|blocks| u64::from(blocks) * u64::from(block_bytes)),
            has_attributes: inode.has_attribute_fork(),
            has_privileges: inode.may_have_privileges(),
        }
    }

    /// Of an ordinary file without content.
    #[cfg(test)]
    pub(super) fn of_test(ino: u64, generation: u32) -> Self {
        Self {
            ino,
            generation,
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            project: 0,
            rdev: 0,
            len_bytes: 0,
            blocks_512: 0,
            block_bytes: PAGE_BYTES,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            xfs_flags: 0,
            xfs_flags2: 0,
            extent_size_bytes: None,
            has_attributes: false,
            has_privileges: false,
        }
    }

    /// The type.
    pub fn file_type(&self) -> FileType {
        FileType::of_mode(self.mode).unwrap_or(FileType::Regular)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Whether it is an ordinary file.
    pub fn is_file(&self) -> bool {
        self.file_type() == FileType::Regular
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type() == FileType::Symlink
    }

    /// The permission bits, including set-user-id, set-group-id and sticky.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_nanoseconds_forward() {
        let at = Timestamp {
            seconds: -1,
            nanoseconds: 250_000_000,
        };
        let before = UNIX_EPOCH
            .duration_since(at.system_time().unwrap())
            .unwrap();
        assert_eq!(before, Duration::from_millis(750));
    }

    #[test]
    fn types_of_modes() {
        assert_eq!(FileType::of_mode(0o100_644), Some(FileType::Regular));
        assert_eq!(FileType::of_mode(0o120_777).unwrap().letter(), 'l');
        assert_eq!(FileType::of_mode(0o030_000), None);
    }
}

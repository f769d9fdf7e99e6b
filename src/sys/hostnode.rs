//! Owner, mode, times and extended attributes of files of the host.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::hostdir::{HostDir, HostTime, check, component, timespec};

/// A file of the host that gets attributes.
#[derive(Debug, Clone, Copy)]
pub enum HostNode<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// An entry of a directory that is not opened: a symbolic link, device, fifo or socket.
    Named(&'a HostDir, &'a [u8]),
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in the name"))
}

impl HostNode<'_> {
    /// Sets owner and group; a symbolic link's own. `u32::MAX` leaves one as it is.
    ///
    /// # Errors
    /// The errno of `fchown` or `fchownat`.
    pub fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        match self {
            // SAFETY: a plain call on a descriptor that is open while it is borrowed.
            Self::Open(fd) => check(unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) }),
            Self::Named(dir, name) => {
                let name = component(name)?;
                let (fd, flags) = (dir.as_fd().as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
                // SAFETY: the name is a C string that outlives the call.
                check(unsafe { libc::fchownat(fd, name.as_ptr(), uid, gid, flags) })
            }
        }
        .map(drop)
    }

    /// Sets the permission bits. A symbolic link has none to set.
    ///
    /// # Errors
    /// The errno of `fchmod` or `fchmodat`.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        let mode = mode & 0o7777;
        match self {
            // SAFETY: a plain call on a descriptor that is open while it is borrowed.
            Self::Open(fd) => check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }),
            Self::Named(dir, name) => {
                let name = component(name)?;
                let (fd, flags) = (dir.as_fd().as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
                // SAFETY: the name is a C string that outlives the call.
                check(unsafe { libc::fchmodat(fd, name.as_ptr(), mode, flags) })
            }
        }
        .map(drop)
    }

    /// Sets access and modification time; a symbolic link's own.
    ///
    /// # Errors
    /// The errno of `futimens` or `utimensat`.
    pub fn set_times(&self, atime: HostTime, mtime: HostTime) -> io::Result<()> {
        match self {
            Self::Open(fd) => {
                let times = [timespec(atime), timespec(mtime)];
                // SAFETY: two timespecs that outlive the call.
                check(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) }).map(drop)
            }
            Self::Named(dir, name) => dir.set_times_of(name, atime, mtime),
        }
    }

    /// Sets an extended attribute; a symbolic link's own.
    ///
    /// # Errors
    /// The errno of `fsetxattr` or `lsetxattr`.
    pub fn set_xattr(&self, name: &[u8], value: &[u8]) -> io::Result<()> {
        let name = c_string(name)?;
        let (data, len) = (value.as_ptr().cast(), value.len());
        match self {
            Self::Open(fd) => {
                // SAFETY: the name is a C string, and `data` has `len` bytes; both outlive the
                // call.
                check(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), data, len, 0) })
            }
            Self::Named(dir, entry) => {
                let path = path_of(dir, entry)?;
                // SAFETY: as above, and the path is a C string.
                check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), data, len, 0) })
            }
        }
        .map(drop)
    }

    /// Removes an extended attribute; one that is not there is no error.
    ///
    /// # Errors
    /// The errno of `fremovexattr` or `lremovexattr`.
    pub fn remove_xattr(&self, name: &CStr) -> io::Result<()> {
        let removed = match self {
            // SAFETY: the name is a C string that outlives the call.
            Self::Open(fd) => check(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }),
            Self::Named(dir, entry) => {
                let path = path_of(dir, entry)?;
                // SAFETY: both are C strings that outlive the call.
                check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
            }
        };
        match removed {
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// A path that leads to an entry through the descriptor of its directory: the calls on extended
/// attributes take no directory before Linux 6.13.
fn path_of(dir: &HostDir, entry: &[u8]) -> io::Result<CString> {
    component(entry)?;
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(entry);
    c_string(&path)
}

/// The permission bits that new files of this process do not get (umask).
pub fn umask() -> u32 {
    // SAFETY: a plain call that cannot fail. A file that another thread makes meanwhile gets fewer
    // rights, not more.
    let mask = unsafe { libc::umask(0o777) };
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    mask
}

impl HostDir {
    /// Whether files that are made in this directory inherit an access control list.
    pub fn has_default_acl(&self) -> bool {
        let fd = self.as_fd().as_raw_fd();
        let name = c"system.posix_acl_default";
        // SAFETY: the name is a C string that outlives the call; nothing is written with a size of
        // 0.
        unsafe { libc::fgetxattr(fd, name.as_ptr(), std::ptr::null_mut(), 0) > 0 }
    }

    /// Makes the device node, fifo or socket `name`, accessible by its owner alone for now.
    ///
    /// # Errors
    /// The errno of `mknodat`: `AlreadyExists` when there is anything of that name.
    pub fn make_node(&self, name: &[u8], file_type: u32, device: u64) -> io::Result<()> {
        let name = component(name)?;
        let (fd, mode) = (self.as_fd().as_raw_fd(), (file_type & libc::S_IFMT) | 0o600);
        // SAFETY: the name is a C string that outlives the call.
        check(unsafe { libc::mknodat(fd, name.as_ptr(), mode, device) }).map(drop)
    }

    /// Gives the file `name` of this directory a second name, in another directory.
    ///
    /// # Errors
    /// The errno of `linkat`: `AlreadyExists` when there is anything of that name.
    pub fn link(&self, name: &[u8], to_dir: &Self, to_name: &[u8]) -> io::Result<()> {
        let (name, to_name) = (component(name)?, component(to_name)?);
        let (fd, to_fd) = (self.as_fd().as_raw_fd(), to_dir.as_fd().as_raw_fd());
        // SAFETY: both names are C strings that outlive the call.
        check(unsafe { libc::linkat(fd, name.as_ptr(), to_fd, to_name.as_ptr(), 0) }).map(drop)
    }

    /// Device and inode number of the entry `name`, of a link itself when it is one.
    ///
    /// # Errors
    /// The errno of `fstatat`.
    pub fn identity_of(&self, name: &[u8]) -> io::Result<(u64, u64)> {
        self.stat_of(name).map(|stat| (stat.st_dev, stat.st_ino))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_links_are_made_beside_each_other() {
        let place = tempfile::tempdir().unwrap();
        let dir = HostDir::open(place.path()).unwrap();
        dir.make_dir(b"below").unwrap();
        let below = dir.open_dir(b"below").unwrap();
        dir.make_node(b"fifo", libc::S_IFIFO, 0).unwrap();
        dir.link(b"fifo", &below, b"again").unwrap();
        assert_eq!(
            dir.identity_of(b"fifo").unwrap(),
            below.identity_of(b"again").unwrap()
        );
        assert_eq!(below.kind_of(b"again").unwrap(), Some(libc::S_IFIFO));
        let node = HostNode::Named(&below, b"again");
        node.set_mode(0o640).unwrap();
        node.set_times((5, 7), (6, 8)).unwrap();
        node.set_owner(u32::MAX, u32::MAX).unwrap();
        node.remove_xattr(c"user.none").unwrap_or_default();
        let stat = dir.stat_of(b"fifo").unwrap();
        assert_eq!(
            (stat.st_mode & 0o7777, stat.st_mtime, stat.st_mtime_nsec),
            (0o640, 6, 8)
        );
        assert!(dir.link(b"..", &below, b"up").is_err());
        assert!(dir.make_node(b"a/b", libc::S_IFIFO, 0).is_err());
        assert!(!dir.has_default_acl());
        assert_eq!(umask(), umask());
    }
}

//! A directory of the host, reached by its descriptor: nothing made in it can land elsewhere,
//! whatever symbolic links others put on the way.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Seconds and nanoseconds since 1970.
pub type HostTime = (i64, u32);

/// An open directory.
#[derive(Debug)]
pub struct HostDir(OwnedFd);

/// The name as C wants it; one component only.
pub(super) fn component(name: &[u8]) -> io::Result<CString> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of a directory entry",
        ));
    }
    CString::new(name).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in the name"))
}

pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(super) fn timespec((seconds, nanoseconds): HostTime) -> libc::timespec {
    // SAFETY: all-zero bytes are a valid `timespec`.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    time.tv_sec = seconds;
    time.tv_nsec = i64::from(nanoseconds.min(999_999_999));
    time
}

impl AsFd for HostDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const DIRECTORY: libc::c_int = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;

impl HostDir {
    /// Opens a directory by its path, symbolic links followed: the caller's own choice of place.
    ///
    /// # Errors
    /// The errno of `open`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in the path"))?;
        Self::open_at(libc::AT_FDCWD, &path, DIRECTORY)
    }

    fn open_at(at: libc::c_int, name: &CStr, flags: libc::c_int) -> io::Result<Self> {
        // SAFETY: the name is a C string that outlives the call.
        let fd = check(unsafe { libc::openat(at, name.as_ptr(), flags) })?;
        // SAFETY: a descriptor just opened, without another owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Opens the directory `name` in this one; a symbolic link of that name is an error.
    ///
    /// # Errors
    /// The errno of `openat`.
    pub fn open_dir(&self, name: &[u8]) -> io::Result<Self> {
        let name = component(name)?;
        Self::open_at(self.0.as_raw_fd(), &name, DIRECTORY | libc::O_NOFOLLOW)
    }

    /// Opens the directory that this one lies in.
    ///
    /// # Errors
    /// The errno of `openat`.
    pub(super) fn open_parent(&self) -> io::Result<Self> {
        Self::open_at(self.0.as_raw_fd(), c"..", DIRECTORY)
    }

    /// Device and inode number.
    ///
    /// # Errors
    /// The errno of `fstat`.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        // SAFETY: all-zero bytes are a valid `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is a place for the answer that outlives the call.
        check(unsafe { libc::fstat(self.0.as_raw_fd(), &raw mut stat) })?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Makes the directory `name`, accessible by its owner alone for now.
    ///
    /// # Errors
    /// The errno of `mkdirat`: `AlreadyExists` when there is anything of that name.
    pub fn make_dir(&self, name: &[u8]) -> io::Result<()> {
        let name = component(name)?;
        // SAFETY: the name is a C string that outlives the call.
        check(unsafe { libc::mkdirat(self.0.as_raw_fd(), name.as_ptr(), 0o700) }).map(drop)
    }

    /// A second descriptor of the same directory.
    ///
    /// # Errors
    /// The errno of `fcntl`.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Makes and opens the new file `name` for writing, with these permission bits less the
    /// process's umask.
    ///
    /// # Errors
    /// The errno of `openat`: `AlreadyExists` when there is anything of that name.
    pub fn create_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let name = component(name)?;
        let flags =
            libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let mode: libc::c_uint = mode & 0o7777;
        // SAFETY: the name is a C string that outlives the call; O_CREAT comes with its mode.
        let fd = check(unsafe { libc::openat(self.0.as_raw_fd(), name.as_ptr(), flags, mode) })?;
        // SAFETY: a descriptor just opened, without another owner.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    /// Makes the symbolic link `name` to `target`.
    ///
    /// # Errors
    /// The errno of `symlinkat`: `AlreadyExists` when there is anything of that name.
    pub fn make_symlink(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        let name = component(name)?;
        let target = CString::new(target)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in the link"))?;
        // SAFETY: both are C strings that outlive the call.
        let result = unsafe { libc::symlinkat(target.as_ptr(), self.0.as_raw_fd(), name.as_ptr()) };
        check(result).map(drop)
    }

    /// Gives the entry `from` the name `to`; what was there is replaced if `replace`, else an
    /// error.
    ///
    /// # Errors
    /// The errno of `renameat2`: `AlreadyExists` without `replace`.
    pub fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> io::Result<()> {
        let (from, to) = (component(from)?, component(to)?);
        let fd = self.0.as_raw_fd();
        if !replace {
            let flags = libc::RENAME_NOREPLACE;
            // SAFETY: both names are C strings that outlive the call.
            let done = unsafe { libc::renameat2(fd, from.as_ptr(), fd, to.as_ptr(), flags) };
            match check(done) {
                // Some filesystems know no RENAME_NOREPLACE; a hard link refuses to replace
                // everywhere.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    // SAFETY: as above.
                    check(unsafe { libc::linkat(fd, from.as_ptr(), fd, to.as_ptr(), 0) })?;
                    // SAFETY: as above.
                    return check(unsafe { libc::unlinkat(fd, from.as_ptr(), 0) }).map(drop);
                }
                other => return other.map(drop),
            }
        }
        // SAFETY: both names are C strings that outlive the call.
        check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) }).map(drop)
    }

    /// Removes the file or link `name`.
    ///
    /// # Errors
    /// The errno of `unlinkat`.
    pub fn remove_file(&self, name: &[u8]) -> io::Result<()> {
        let name = component(name)?;
        // SAFETY: the name is a C string that outlives the call.
        check(unsafe { libc::unlinkat(self.0.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
    }

    /// Metadata of the entry `name`; of a symbolic link, those of the link itself.
    pub(super) fn stat_of(&self, name: &[u8]) -> io::Result<libc::stat> {
        let name = component(name)?;
        // SAFETY: all-zero bytes are a valid `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the name is a C string and `stat` a place for the answer; both outlive the call.
        let result =
            unsafe { libc::fstatat(self.0.as_raw_fd(), name.as_ptr(), &raw mut stat, flags) };
        check(result).map(|_| stat)
    }

    /// The type of the entry `name` (`S_IFMT`); `None` when there is none.
    ///
    /// # Errors
    /// The errno of `fstatat`, except that a missing entry is `None`.
    pub fn kind_of(&self, name: &[u8]) -> io::Result<Option<libc::mode_t>> {
        match self.stat_of(name) {
            Ok(stat) => Ok(Some(stat.st_mode & libc::S_IFMT)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the symbolic link `name` leads.
    ///
    /// # Errors
    /// The errno of `readlinkat`.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        let name = component(name)?;
        let mut target = vec![0; libc::PATH_MAX as usize];
        // SAFETY: the name is a C string, and `target` has as many bytes as is said.
        let len = unsafe {
            libc::readlinkat(
                self.0.as_raw_fd(),
                name.as_ptr(),
                target.as_mut_ptr().cast(),
                target.len(),
            )
        };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        target.truncate(len);
        Ok(target)
    }

    /// Sets access and modification time of the entry `name`, of a link itself when it is one.
    ///
    /// # Errors
    /// The errno of `utimensat`.
    pub fn set_times_of(&self, name: &[u8], atime: HostTime, mtime: HostTime) -> io::Result<()> {
        let name = component(name)?;
        let times = [timespec(atime), timespec(mtime)];
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the name is a C string and there are two timespecs; all outlive the call.
        let result =
            unsafe { libc::utimensat(self.0.as_raw_fd(), name.as_ptr(), times.as_ptr(), flags) };
        check(result).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lands_outside() {
        let place = tempfile::tempdir().unwrap();
        let dir = HostDir::open(place.path()).unwrap();
        for name in [&b".."[..], b".", b"", b"a/b", b"../x", b"a\0b"] {
            assert!(
                dir.create_file(name, 0o600).is_err(),
                "{}",
                name.escape_ascii()
            );
            assert!(dir.make_dir(name).is_err());
        }
        dir.make_symlink(b"/", b"link").unwrap();
        assert!(dir.open_dir(b"link").is_err());
        assert!(dir.create_file(b"link", 0o600).is_err());
    }

    #[test]
    fn rename_without_replace_refuses() {
        let place = tempfile::tempdir().unwrap();
        let dir = HostDir::open(place.path()).unwrap();
        dir.create_file(b"a", 0o600).unwrap();
        dir.create_file(b"b", 0o600).unwrap();
        let error = dir.rename(b"a", b"b", false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        dir.rename(b"a", b"b", true).unwrap();
        assert!(dir.kind_of(b"a").unwrap().is_none());
    }
}

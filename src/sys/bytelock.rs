//! Locks of bytes of a file that belong to the open file (`fcntl(2)`, `F_OFD_SETLK`), as QEMU has
//! them on its images.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// From `asm-generic/fcntl.h`.
const F_OFD_GETLK: libc::c_int = 36;
const F_OFD_SETLK: libc::c_int = 37;

fn bytes(kind: libc::c_int, first: u8, count: u8) -> libc::flock {
    // SAFETY: a structure of integers, for which zeroes are a value. The process id must be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "0, 1 or 2")]
    {
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
    }
    lock.l_start = first.into();
    lock.l_len = count.into();
    lock
}

/// Takes a shared lock of `count` bytes from `first` on.
///
/// # Errors
/// `EAGAIN` when another open file has one of them locked exclusively; `EINVAL` or `ENOLCK` where
/// there are no such locks.
pub fn lock_bytes(file: &File, first: u8, count: u8) -> io::Result<()> {
    set(file, libc::F_RDLCK, first, count)
}

/// Gives up every lock of bytes that this open file has.
///
/// # Errors
/// The errno of `fcntl`.
pub(super) fn unlock_bytes(file: &File) -> io::Result<()> {
    set(file, libc::F_UNLCK, 0, u8::MAX)
}

fn set(file: &File, kind: libc::c_int, first: u8, count: u8) -> io::Result<()> {
    let lock = bytes(kind, first, count);
    // SAFETY: a structure as the kernel reads it, alive during the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), F_OFD_SETLK, &raw const lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether another open file has a lock on any of `count` bytes from `first` on.
///
/// # Errors
/// The errno of `fcntl`.
pub fn are_bytes_locked(file: &File, first: u8, count: u8) -> io::Result<bool> {
    let mut lock = bytes(libc::F_WRLCK, first, count);
    // SAFETY: a structure as the kernel reads and fills it, alive during the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), F_OFD_GETLK, &raw mut lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_belong_to_the_open_file() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let a = File::open(&path).unwrap();
        let b = File::open(&path).unwrap();
        lock_bytes(&a, 101, 1).unwrap();
        assert!(!are_bytes_locked(&a, 100, 5).unwrap(), "its own");
        assert!(are_bytes_locked(&b, 100, 5).unwrap());
        assert!(!are_bytes_locked(&b, 200, 5).unwrap());
        lock_bytes(&b, 101, 1).unwrap();
        // What a child inherited keeps nothing.
        let inherited = a.try_clone().unwrap();
        unlock_bytes(&a).unwrap();
        assert!(!are_bytes_locked(&b, 100, 5).unwrap());
        drop(inherited);
    }
}

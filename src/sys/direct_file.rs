//! Files read and written past the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What direct I/O on a file must be aligned to, in bytes; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlign {
    /// Addresses of memory.
    pub memory_bytes: u32,
    /// Offsets in the file, and lengths.
    pub offset_bytes: u32,
}

impl DirectAlign {
    /// Asks the kernel; `None` where it does not say (before 6.1, or not for this filesystem).
    ///
    /// # Errors
    /// The errno of `statx`; `EOPNOTSUPP` when the file has no direct I/O.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        // SAFETY: a structure of integers, for which zeroes are a value.
        let mut stat: libc::statx = unsafe { std::mem::zeroed() };
        // SAFETY: the path is an empty string, and `stat` is a structure of the size that statx
        // fills.
        let result = unsafe {
            libc::statx(
                file.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                &raw mut stat,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        if stat.stx_mask & libc::STATX_DIOALIGN == 0 {
            return Ok(None);
        }
        let (memory_bytes, offset_bytes) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
        if !memory_bytes.is_power_of_two() || !offset_bytes.is_power_of_two() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(Some(Self {
            memory_bytes,
            offset_bytes,
        }))
    }
}

/// From now on all I/O on this open file goes past the page cache.
///
/// # Errors
/// The errno of `fcntl`: `EINVAL` when the filesystem has no direct I/O.
pub fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: asks for the flags of an open file; no memory is passed.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sets the flags of an open file; no memory is passed.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes `O_NONBLOCK` off an open file: with it, operations of io_uring may end with `EAGAIN`.
///
/// # Errors
/// The errno of `fcntl`.
pub fn set_blocking(file: &File) -> io::Result<()> {
    // SAFETY: asks for the flags of an open file; no memory is passed.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sets the flags of an open file; no memory is passed.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_say_their_alignment_or_that_they_have_no_direct_io() {
        let file = tempfile::tempfile().unwrap();
        if let Ok(Some(align)) = DirectAlign::of(&file) {
            assert!(align.offset_bytes >= 512 && align.memory_bytes >= 1);
            set_direct(&file).unwrap();
        } else {
            println!("SKIPPED: the kernel says nothing of direct I/O on this filesystem");
        }
        let pipe = File::open("/dev/null").unwrap();
        assert!(!matches!(DirectAlign::of(&pipe), Ok(Some(_))));
    }
}

//! Ranges of files that are allocated, freed, zeroed or removed without writing them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Frees a range of a file (or discards one of a block device): it reads as zeroes, the length
/// stays.
///
/// # Errors
/// The errno of `fallocate`; `EOPNOTSUPP` where the filesystem cannot.
pub fn punch_hole(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, offset_bytes, len_bytes)
}

/// Makes a range of a file read as zeroes and keeps it allocated; the length stays.
///
/// # Errors
/// The errno of `fallocate`; `EOPNOTSUPP` where the filesystem cannot.
pub fn zero_range(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, offset_bytes, len_bytes)
}

/// Allocates blocks for the holes of a range, which read as zeroes. A range behind the end makes
/// the file longer, unless `keep_size` says that it stays as it is.
///
/// # Errors
/// The errno of `fallocate`; `EOPNOTSUPP` where the filesystem cannot.
pub fn preallocate(file: &File, range: Range<u64>, keep_size: bool) -> io::Result<()> {
    let mode = if keep_size {
        libc::FALLOC_FL_KEEP_SIZE
    } else {
        0
    };
    fallocate(
        file,
        mode,
        range.start,
        range.end.saturating_sub(range.start),
    )
}

/// Removes a range of whole filesystem blocks: the data behind it moves to its place.
///
/// # Errors
/// The errno of `fallocate`; `EOPNOTSUPP` where the filesystem cannot.
pub fn collapse_range(file: &File, range: Range<u64>) -> io::Result<()> {
    let mode = libc::FALLOC_FL_COLLAPSE_RANGE;
    fallocate(
        file,
        mode,
        range.start,
        range.end.saturating_sub(range.start),
    )
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    loop {
        // SAFETY: a call on an open descriptor that takes no memory of ours.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The first byte that this process may not write to in any file (`RLIMIT_FSIZE`, `ulimit -f`). A
/// write there is answered with SIGXFSZ, which ends a process that does not expect it.
pub fn file_size_limit() -> u64 {
    // SAFETY: a structure of integers, for which zeroes are a value.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: a structure of ours that the kernel fills.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    if result == 0 {
        limit.rlim_cur
    } else {
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_punched_range_reads_as_zeroes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 16384], 0).unwrap();
        for (zero, offset) in [
            (punch_hole as fn(&File, u64, u64) -> io::Result<()>, 4096),
            (zero_range, 8192),
        ] {
            match zero(&file, offset, 4096) {
                Ok(()) => {
                    let mut bytes = [1; 4097];
                    file.read_exact_at(&mut bytes, offset).unwrap();
                    assert_eq!(bytes[..4096], [0; 4096]);
                    assert_eq!(bytes[4096], if offset == 4096 { 7 } else { bytes[4096] });
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
            }
        }
        assert_eq!(file.metadata().unwrap().len(), 16384);
        assert!(punch_hole(&file, 0, u64::MAX).is_err());
    }
}

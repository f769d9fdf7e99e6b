//! Files in memory, as processes share them, and what a descriptor from elsewhere really is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{HUGE_PAGE_BYTES, file_size_limit};

/// A file of `len_bytes` in memory, all zeroes; with `huge` of 2 MiB hugepages, reserved when it is mapped.
/// Its length is sealed: whoever else gets it can neither cut nor grow it.
///
/// # Errors
/// The errno of `memfd_create`, `ftruncate` or `fcntl`.
pub fn memory_file(len_bytes: usize, huge: bool) -> io::Result<File> {
    let len = u64::try_from(len_bytes).map_err(io::Error::other)?;
    if len > file_size_limit() {
        // Setting the length would be answered with SIGXFSZ, which ends the process.
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{len} bytes of shared memory are more than `ulimit -f` allows for a file"),
        ));
    }
    let size = if huge {
        libc::MFD_HUGETLB | libc::MFD_HUGE_2MB
    } else {
        0
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | size;
    // SAFETY: a name that ends in a zero byte, and flags.
    let fd = unsafe { libc::memfd_create(c"xtent".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain integers.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// The page size, in bytes, of a file whose content is memory (`memfd`, tmpfs, hugetlbfs); `None` for any
/// other file. Mapping such a file cannot block on a disk, or on a process that plays a filesystem.
///
/// # Errors
/// The errno of `fstatfs`.
pub fn memory_page_bytes(file: &File) -> io::Result<Option<u64>> {
    // SAFETY: all-zero bytes are a valid `statfs`.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, and a structure that the kernel may fill.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let page = u64::try_from(stat.f_bsize).unwrap_or(0);
    let huge = page >= HUGE_PAGE_BYTES as u64;
    Ok(match stat.f_type {
        libc::TMPFS_MAGIC => Some(4096),
        libc::HUGETLBFS_MAGIC if huge || page > 4096 => Some(page),
        _ => None,
    })
}

/// Whether a descriptor is an `eventfd`, and not a pipe or file whose other end might block a writer.
pub fn is_eventfd(fd: impl AsFd) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(path)
        .is_ok_and(|name| name.as_os_str().as_encoded_bytes() == b"anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::EventFd;

    #[test]
    fn a_memory_file_keeps_its_length() {
        let file = memory_file(8192, false).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
        assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
        assert_eq!(memory_page_bytes(&file).unwrap(), Some(4096));
    }

    #[test]
    fn descriptors_are_told_apart() {
        assert!(is_eventfd(EventFd::new().unwrap()));
        let null = File::open("/dev/null").unwrap();
        assert!(!is_eventfd(&null));
        let disk = File::open("/proc/self/exe").unwrap();
        assert_eq!(memory_page_bytes(&disk).unwrap(), None);
    }
}

//! Files in memory, as processes share them, and what a descriptor from elsewhere really is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::file_size_limit;

/// The hugepage size that arenas are made of, in bytes.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A file of `len_bytes` in memory, all zeroes; with `huge` of 2 MiB hugepages, reserved when it is
/// mapped. Its length is sealed: other holders of the descriptor can neither shrink nor grow it.
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

/// Whether a descriptor is a file whose content is memory (`memfd`, tmpfs, hugetlbfs): only those
/// have seals.
///
/// The one question that may be asked of a peer's descriptor before anything else: `memfd_fcntl()`
/// looks at the file's type and calls no filesystem. On a file of a FUSE filesystem `fstat`,
/// `fstatfs`, `mmap` and even `close` may wait for the peer for ever.
pub fn is_memory(fd: impl AsFd) -> bool {
    // SAFETY: plain integers.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GET_SEALS) >= 0 }
}

/// The page size, in bytes, of a file whose content is memory; `None` for any other file. Mapping
/// such a file cannot block on a disk, or on a process that plays a filesystem.
///
/// # Errors
/// The errno of `fstatfs`.
pub fn memory_page_bytes(file: &File) -> io::Result<Option<u64>> {
    if !is_memory(file) {
        return Ok(None);
    }
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

/// Filesystems whose files lie on a disk of this machine, or in its memory: none of them waits for
/// another process.
const LOCAL: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay", "tmpfs",
];

/// Whether a descriptor is memory, or a file of a mounted filesystem that waits for no other
/// process or machine. Decided by the kernel's tables of descriptors and mounts, without a call
/// into the file's filesystem.
pub fn is_local_file(fd: impl AsFd) -> bool {
    is_memory(&fd) || filesystem_of(fd.as_fd()).is_some_and(|name| LOCAL.contains(&name.as_str()))
}

/// The type of the filesystem that a descriptor's file is in, where that is mounted here.
fn filesystem_of(fd: BorrowedFd<'_>) -> Option<String> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let mount = about
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?;
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mounts = String::from_utf8_lossy(&mounts);
    // proc_pid_mountinfo(5): the id comes first, the type behind the lone hyphen.
    let line = mounts
        .lines()
        .find(|line| line.split(' ').next() == Some(mount.trim()))?;
    let (_, behind) = line.split_once(" - ")?;
    behind.split(' ').next().map(str::to_owned)
}

/// Whether a descriptor is an `eventfd`, and not a pipe or file whose other end might block a
/// writer.
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
        assert!(!is_memory(&disk) && !is_memory(&null));
        let shared = tempfile::tempfile_in("/dev/shm").unwrap();
        assert!(is_memory(&shared) && is_local_file(&shared));
        assert!(is_local_file(memory_file(4096, false).unwrap()));
        // A file of proc, and one of no filesystem that is mounted.
        assert!(!is_local_file(File::open("/proc/self/status").unwrap()));
        assert!(!is_local_file(EventFd::new().unwrap()));
    }
}

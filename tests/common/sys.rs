//! The system calls that the oracle and the filler need and std lacks.
#![expect(unsafe_code, reason = "system calls through libc")]

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
}

fn check(result: libc::c_int) -> Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

/// The effective user.
pub fn effective_uid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

/// `SEEK_DATA` or `SEEK_HOLE` from `offset`; `None` for `ENXIO`: nothing of the kind further on.
pub fn seek(file: &File, offset: u64, whence: i32) -> Result<Option<u64>> {
    let offset =
        libc::off_t::try_from(offset).map_err(|_| Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the descriptor is open; lseek touches no memory.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// `fallocate` with these `FALLOC_FL_*` flags.
pub fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> Result<()> {
    let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else {
        return Err(Error::from_raw_os_error(libc::EINVAL));
    };
    // SAFETY: the descriptor is open; fallocate touches no memory.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) })
}

/// Makes `to` share all blocks of `from` (`FICLONE`).
pub fn clone_file(from: &File, to: &File) -> Result<()> {
    // SAFETY: FICLONE takes a descriptor by value; both are open.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) })
}

/// Exchanges `length` bytes of two files at these offsets, as XFS_IOC_EXCHANGE_RANGE. Holes
/// and unwritten blocks of the first one are omitted, if `only_written`.
pub fn exchange_range(
    files: [&File; 2],
    offsets: [u64; 2],
    length: u64,
    only_written: bool,
) -> Result<()> {
    /// `XFS_EXCHANGE_RANGE_FILE1_WRITTEN`.
    const FILE1_WRITTEN: u64 = 1 << 3;
    /// As `struct xfs_exchange_range`.
    #[repr(C)]
    struct ExchangeRange {
        file1_fd: i32,
        pad: u32,
        file1_offset: u64,
        file2_offset: u64,
        length: u64,
        flags: u64,
    }
    /// `_IOW('X', 129, struct xfs_exchange_range)`.
    const EXCHANGE_RANGE: libc::Ioctl = 0x4028_5881_u32 as libc::Ioctl;
    let range = ExchangeRange {
        file1_fd: files[0].as_raw_fd(),
        pad: 0,
        file1_offset: offsets[0],
        file2_offset: offsets[1],
        length,
        flags: if only_written { FILE1_WRITTEN } else { 0 },
    };
    // SAFETY: both descriptors are open, and the structure is the one that the call reads.
    check(unsafe { libc::ioctl(files[1].as_raw_fd(), EXCHANGE_RANGE, &raw const range) })
}

/// A fifo, socket or device node: `mode` with its `S_IFMT` bits.
pub fn make_node(path: &Path, mode: u32, major: u32, minor: u32) -> Result<()> {
    let path = c_path(path);
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    check(unsafe { libc::mknod(path.as_ptr(), mode, libc::makedev(major, minor)) })
}

/// Sets access and modification time (seconds since 1970, nanoseconds) of a path, not following a
/// link.
pub fn set_times(path: &Path, accessed: (i64, i64), modified: (i64, i64)) -> Result<()> {
    let path = c_path(path);
    let times = [accessed, modified].map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the path is NUL-terminated and `times` has the two elements that the call reads.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) })
}

/// One extent as the `FIEMAP` ioctl gives it, all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiemapExtent {
    /// First file byte.
    pub logical: u64,
    /// First device byte.
    pub physical: u64,
    /// Length.
    pub length: u64,
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const BATCH: usize = 1024;

#[repr(C)]
struct RawFiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// `FS_IOC_FIEMAP`, `_IOWR('f', 11, struct fiemap)`.
const FIEMAP_REQUEST: libc::c_ulong = 0xc020_660b;
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;

/// All extents of a file from byte 0, also those beyond its end.
pub fn fiemap(file: &File) -> Result<Vec<FiemapExtent>> {
    let mut all: Vec<FiemapExtent> = Vec::new();
    let mut start = 0u64;
    loop {
        let mut request = Box::new(RawFiemap {
            start,
            length: u64::MAX - start,
            flags: FIEMAP_FLAG_SYNC,
            mapped_extents: 0,
            extent_count: BATCH as u32,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        });
        let pointer: *mut RawFiemap = &raw mut *request;
        // SAFETY: the kernel writes the header and at most `extent_count` extents, which all lie
        // inside the boxed request.
        check(unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP_REQUEST, pointer) })?;
        let mapped = &request.extents[..request.mapped_extents as usize];
        all.extend(mapped.iter().map(|extent| FiemapExtent {
            logical: extent.logical,
            physical: extent.physical,
            length: extent.length,
            flags: extent.flags,
        }));
        match all.last() {
            Some(last) if !mapped.is_empty() && last.flags & FIEMAP_EXTENT_LAST == 0 => {
                start = last.logical + last.length;
            }
            _ => return Ok(all),
        }
    }
}

/// Sets an extended attribute of a path, not following a link.
pub fn set_xattr(path: &Path, name: impl AsRef<[u8]>, value: &[u8]) -> Result<()> {
    let path = c_path(path);
    let name = CString::new(name.as_ref()).expect("a name without NUL");
    let (data, length) = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings are NUL-terminated and `data` points to `length` bytes; all outlive the
    // call.
    check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), data, length, 0) })
}

/// `XFS_IOC_SET_RESBLKS`, `_IOWR('X', 114, struct { u64, u64 })`.
const SET_RESERVED_BLOCKS: libc::c_ulong = 0xc010_5872;

/// Sets how many blocks of a mounted XFS are kept back for itself.
pub fn set_reserved_blocks(root: &File, blocks: u64) -> Result<()> {
    let mut request = [blocks, 0u64];
    // SAFETY: the call reads and writes the two words of `request`.
    check(unsafe { libc::ioctl(root.as_raw_fd(), SET_RESERVED_BLOCKS, request.as_mut_ptr()) })
}

/// Writes out all of the filesystem that a file lies in.
pub fn sync_filesystem(file: &File) -> Result<()> {
    // SAFETY: the descriptor is open; syncfs touches no memory.
    check(unsafe { libc::syncfs(file.as_raw_fd()) })
}

/// What a filesystem has room for, in bytes.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let found = statvfs(path)?;
    Ok(found.f_bavail * found.f_frsize)
}

/// The numbers of a mounted filesystem.
pub fn statvfs(path: &Path) -> Result<libc::statvfs> {
    let path = c_path(path);
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path is NUL-terminated and `found` is what the call fills in.
    check(unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) })?;
    // SAFETY: of integers only, which were zero before the call.
    Ok(unsafe { found.assume_init() })
}

/// `XFS_IOC_GOINGDOWN`, `_IOR('X', 125, u32)`.
const GOING_DOWN: libc::c_ulong = 0x8004_587d;
const WRITE_LOG_FIRST: u32 = 1;

/// Ends a mounted XFS as a power cut would, right after its log was written.
pub fn shut_down(root: &File) -> Result<()> {
    let mut flags = WRITE_LOG_FIRST;
    // SAFETY: the call reads the word `flags`.
    check(unsafe { libc::ioctl(root.as_raw_fd(), GOING_DOWN, &raw mut flags) })
}

/// Whether a descriptor polls readable within a minute.
pub fn is_readable(fd: &impl AsFd) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which lives through the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 60_000) };
    assert!(ready >= 0, "{}", Error::last_os_error());
    ready == 1 && poll.revents & libc::POLLIN != 0
}

/// An extended attribute of a path, not following a link; `None` where there is none.
pub fn xattr(path: &Path, name: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
    let path = c_path(path);
    let name = CString::new(name.as_ref()).expect("a name without NUL");
    let mut value = vec![0_u8; 64 << 10];
    let (data, length) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: both strings are NUL-terminated and `data` points to `length` bytes to be written;
    // all outlive the call.
    let got = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), data, length) };
    match usize::try_from(got) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(_) => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
            error => Err(error),
        },
    }
}

/// Removes an extended attribute of a path, not following a link.
pub fn remove_xattr(path: &Path, name: impl AsRef<[u8]>) -> Result<()> {
    let path = c_path(path);
    let name = CString::new(name.as_ref()).expect("a name without NUL");
    // SAFETY: both strings are NUL-terminated and outlive the call.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
}

/// The names of all extended attributes of a path, not following a link. At most 64 KiB of them.
pub fn list_xattrs(path: &Path) -> Result<Vec<Vec<u8>>> {
    let path = c_path(path);
    let mut names = vec![0_u8; 64 << 10];
    let (data, length) = (names.as_mut_ptr().cast(), names.len());
    // SAFETY: the path is NUL-terminated and `data` points to `length` bytes to be written; both
    // outlive the call.
    let got = unsafe { libc::llistxattr(path.as_ptr(), data, length) };
    let Ok(len) = usize::try_from(got) else {
        return Err(Error::last_os_error());
    };
    names.truncate(len);
    let parts = names.split(|byte| *byte == 0);
    Ok(parts
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

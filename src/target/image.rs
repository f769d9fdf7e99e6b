//! Image files: opened so that no other process changes them meanwhile.
//!
//! Four things keep others out, for no single one is seen by all of them:
//! - a write lease (`fcntl(2)`, `F_SETLEASE`), kept while the image is open: it is refused while
//!   any other descriptor of the file is open, a loop device's or one in another mount namespace
//!   included, and later openers wait until writing has stopped ([`HeldFile`]);
//! - `flock(2)`, between processes that use this crate;
//! - locks of bytes as QEMU has them on its images;
//! - where there are no leases (NFS, say), the kernel's list of loop devices, looked at again at
//!   each sync.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::probe::{self, Content};
use crate::sys::{
    FileId, HeldFile, LeaseKind, file_size_limit, give_lease_back, loop_device_of, set_blocking,
    take_lease,
};

/// How long another opener that is about to close the file is waited for: udev, a child between
/// fork and exec, a loop device that is being detached.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(5);
/// The smallest block.
const LEAST_BYTES: u64 = 512;

/// How an image is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageAccess {
    pub(crate) read_only: bool,
    /// Although it is in use elsewhere; goes with `read_only`.
    pub(crate) in_use: bool,
}

/// Opens and locks an image: for itself alone when it may be written, shared with other readers
/// otherwise.
pub(crate) fn open(path: &Path, access: ImageAccess) -> Result<HeldFile> {
    let meta = fs::metadata(path).map_err(|e| Error::system("cannot find the image", e))?;
    check_type(&meta)?;
    let file = open_file(path, access)?;
    let len = file
        .metadata()
        .map_err(|e| Error::system("cannot find the image's length", e))?
        .len();
    if len == 0 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the image is empty: make a filesystem in it first (truncate -s 1G FILE; mkfs.xfs FILE)",
        ));
    }
    if len < LEAST_BYTES {
        return Err(too_small(&file, len));
    }
    if !access.read_only {
        check_limit(len)?;
    }
    hold(file, access)
}

/// A file without one block of the smallest size: what it is, where that is known.
#[cold]
fn too_small(file: &File, len: u64) -> Error {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let found = match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => probe::identify_bytes(&bytes),
        Err(_) => Content::Unknown,
    };
    match found {
        Content::Known { name, advice } => Error::new(
            ErrorKind::Unsupported,
            format!("the file is no disk image, it is {name}: {advice}"),
        ),
        _ => Error::new(
            ErrorKind::InvalidInput,
            format!("the file is too small to be a disk image ({len} bytes)"),
        ),
    }
}

fn check_type(meta: &fs::Metadata) -> Result<()> {
    let file_type = meta.file_type();
    if file_type.is_file() {
        return Ok(());
    }
    if file_type.is_dir() {
        return Err(Error::new(
            ErrorKind::IsADirectory,
            "an image is a file, this is a directory",
        ));
    }
    if file_type.is_block_device() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this is a block device, and an image is an ordinary file: open it through the kernel \
             (uring:DEVICE), or an NVMe disk by its PCI address (pci:ADDRESS, after vfio-setup.sh bind)",
        ));
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "an image is an ordinary file, this is a device, pipe or socket",
    ))
}

/// With `O_NONBLOCK`, so that a file that another process has a lease on is an error at once.
fn open_file(path: &Path, access: ImageAccess) -> Result<File> {
    let polite = if access.in_use { 0 } else { libc::O_NONBLOCK };
    let file = File::options()
        .read(true)
        .write(!access.read_only)
        .custom_flags(polite)
        .open(path)
        .map_err(|e| cannot_open(access, e))?;
    set_blocking(&file).map_err(|e| Error::system("cannot open the image", e))?;
    Ok(file)
}

fn cannot_open(access: ImageAccess, error: io::Error) -> Error {
    use std::io::ErrorKind as Io;
    if error.kind() == Io::WouldBlock {
        return locked_by_another(access);
    }
    let read_only = matches!(error.kind(), Io::PermissionDenied | Io::ReadOnlyFilesystem);
    if read_only && !access.read_only {
        return Error::new(
            ErrorKind::PermissionDenied,
            "the image may not be written: open it with the option readonly, or change its permissions",
        )
        .because(error);
    }
    Error::system("cannot open the image", error)
}

/// A write past the limit would end the process with SIGXFSZ.
fn check_limit(len_bytes: u64) -> Result<()> {
    let limit = file_size_limit();
    if len_bytes <= limit {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::PermissionDenied,
        format!(
            "the image has {len_bytes} bytes, and this process may write only the first {limit} of a file \
             (ulimit -f): raise the limit, or open the image with the option readonly"
        ),
    ))
}

fn hold(file: File, access: ImageAccess) -> Result<HeldFile> {
    let system = |e| Error::system("cannot look at the image", e);
    if access.in_use {
        return HeldFile::unwatched(file).map_err(system);
    }
    lock(&file, access)?;
    qemu::lock(&file, access)?;
    let leased = lease(&file, access)?;
    match (access.read_only, leased) {
        (true, true) => {
            // It has shown that nothing writes to the file now.
            give_lease_back(&file).map_err(system)?;
            HeldFile::unwatched(file)
        }
        (true, false) => HeldFile::unwatched(file),
        (false, true) => HeldFile::leased(file),
        (false, false) => HeldFile::looked_at(file),
    }
    .map_err(|e| Error::system("cannot watch the image's lease", e))
}

fn lock(file: &File, access: ImageAccess) -> Result<()> {
    let locked = if access.read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(locked_by_another(access)),
        Err(TryLockError::Error(error)) => Err(Error::system("cannot lock the image", error)),
    }
}

fn locked_by_another(access: ImageAccess) -> Error {
    Error::new(
        ErrorKind::Busy,
        if access.read_only {
            "another process has the image open for writing"
        } else {
            "another process has the image open: for reading beside readers use the option readonly"
        },
    )
}

/// Takes a lease; false where there is none to be had, which is logged.
fn lease(file: &File, access: ImageAccess) -> Result<bool> {
    let meta = file
        .metadata()
        .map_err(|e| Error::system("cannot look at the image", e))?;
    let id = FileId::of(&meta);
    let kind = if access.read_only {
        LeaseKind::Read
    } else {
        LeaseKind::Write
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let refused = take_lease(file, kind).err();
        // Whatever the lease says: a device that is attached only for reading is one, too.
        let attached = loop_device_of(id);
        let busy = match &refused {
            None => attached.is_some(),
            Some(error) => attached.is_some() || error.kind() == io::ErrorKind::WouldBlock,
        };
        match refused {
            None if !busy => return Ok(true),
            Some(error) if !busy => {
                say_that_there_is_no_lease(&error, access);
                return Ok(false);
            }
            _ => {}
        }
        if Instant::now() > until {
            return Err(in_use(attached, access));
        }
        if refused.is_none() {
            let _ = give_lease_back(file);
        }
        thread::sleep(RETRY);
    }
}

fn in_use(attached: Option<String>, access: ImageAccess) -> Error {
    let detail = match (attached, access.read_only) {
        (Some(name), _) => format!(
            "the image is attached to /dev/{name}, and may be mounted there: unmount it and detach it \
             (losetup -d /dev/{name}), or read it with the options readonly,inuse"
        ),
        (None, true) => {
            "another process, or a loop device that is not visible here, has the image open for \
             writing (fuser -v FILE, losetup -j FILE): end that, or read it with the options \
             readonly,inuse"
                .to_owned()
        }
        (None, false) => {
            "another process, or a loop device that is not visible here, has the image open \
             (fuser -v FILE, losetup -j FILE): end that, or read it with the options \
             readonly,inuse"
                .to_owned()
        }
    };
    Error::new(ErrorKind::Busy, detail)
}

fn say_that_there_is_no_lease(error: &io::Error, access: ImageAccess) {
    if access.read_only {
        return;
    }
    tracing::warn!(
        "no lease can be had on the image ({error}): should another process open or mount it, that is \
         noticed only at the next sync"
    );
}

/// Locks as QEMU's `file-posix.c` takes them on images: a byte for each permission that a user has,
/// and one for each that it does not share.
mod qemu {
    use std::fs::File;
    use std::io;

    use super::ImageAccess;
    use crate::error::{Error, ErrorKind, Result};
    use crate::sys::{are_bytes_locked, lock_bytes};

    /// `RAW_LOCK_PERM_BASE`.
    const HAS: u8 = 100;
    /// `RAW_LOCK_SHARED_BASE`.
    const DOES_NOT_SHARE: u8 = 200;
    // `BLK_PERM_*`, by bit.
    const READ: u8 = 0;
    const WRITE: u8 = 1;
    const RESIZE: u8 = 3;
    /// QEMU has had a fifth one (`BLK_PERM_GRAPH_MOD`).
    const ALL: u8 = 5;

    /// Takes the locks that keep QEMU out, after a look at its own.
    pub(crate) fn lock(file: &File, access: ImageAccess) -> Result<()> {
        let locked = if access.read_only {
            lock_to_read(file)
        } else {
            lock_to_write(file)
        };
        match locked {
            Ok(true) => Ok(()),
            Ok(false) => Err(in_use()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use()),
            // No such locks here: QEMU goes without them as well.
            Err(_) => Ok(()),
        }
    }

    fn in_use() -> Error {
        Error::new(
            ErrorKind::Busy,
            "QEMU, or another program with its locks, has the image open: end it first, or read it \
             with the options readonly,inuse",
        )
    }

    fn lock_to_write(file: &File) -> io::Result<bool> {
        lock_bytes(file, HAS + READ, ALL)?;
        lock_bytes(file, DOES_NOT_SHARE + READ, ALL)?;
        let used =
            are_bytes_locked(file, HAS, ALL)? || are_bytes_locked(file, DOES_NOT_SHARE, ALL)?;
        Ok(!used)
    }

    fn lock_to_read(file: &File) -> io::Result<bool> {
        lock_bytes(file, HAS + READ, 1)?;
        for not_shared in [WRITE, RESIZE] {
            lock_bytes(file, DOES_NOT_SHARE + not_shared, 1)?;
        }
        let mut used = are_bytes_locked(file, DOES_NOT_SHARE + READ, 1)?;
        for change in [WRITE, RESIZE] {
            used |= are_bytes_locked(file, HAS + change, 1)?;
        }
        Ok(!used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{are_bytes_locked, lock_bytes};

    const WRITE: ImageAccess = ImageAccess {
        read_only: false,
        in_use: false,
    };
    const READ: ImageAccess = ImageAccess {
        read_only: true,
        in_use: false,
    };

    #[test]
    fn writers_are_alone_and_readers_are_not() {
        let path = image(4096);
        let writer = open(&path, WRITE).unwrap();
        for access in [READ, WRITE] {
            assert_eq!(open(&path, access).unwrap_err().kind(), ErrorKind::Busy);
        }
        let forced = ImageAccess {
            read_only: true,
            in_use: true,
        };
        open(&path, forced).unwrap();
        writer.look_again().unwrap();
        drop(writer);
        let reader = open(&path, READ).unwrap();
        open(&path, READ).unwrap();
        let error = open(&path, WRITE).unwrap_err();
        assert!(error.to_string().contains("readonly"), "{error}");
        drop(reader);
        open(&path, WRITE).unwrap();
    }

    fn image(len_bytes: u64) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len_bytes).unwrap();
        file.into_temp_path()
    }

    #[test]
    fn a_file_that_another_program_has_open_is_in_use() {
        let path = image(4096);
        let probe = File::options().read(true).write(true).open(&path).unwrap();
        if take_lease(&probe, LeaseKind::Write).is_err() {
            println!("SKIPPED: there are no leases here");
            return;
        }
        drop(probe);
        // As a loop device in another mount namespace, by another name.
        let other = File::options().read(true).write(true).open(&path).unwrap();
        for access in [READ, WRITE] {
            assert_eq!(open(&path, access).unwrap_err().kind(), ErrorKind::Busy);
        }
        drop(other);
        let reader = File::open(&path).unwrap();
        assert_eq!(open(&path, WRITE).unwrap_err().kind(), ErrorKind::Busy);
        open(&path, READ).unwrap();
        drop(reader);
        open(&path, WRITE).unwrap();
    }

    #[test]
    fn an_opener_that_comes_late_stops_writing() {
        let path = image(4096);
        let writer = open(&path, WRITE).unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        let start = Instant::now();
        while writer.look_again().is_ok() {
            if start.elapsed() > Duration::from_secs(60) {
                println!("SKIPPED: there are no leases here");
                return;
            }
            thread::sleep(RETRY);
        }
        drop(other);
        assert!(!writer.gate().writer().enter_waiting());
    }

    #[test]
    fn locks_of_qemu_are_seen_and_taken() {
        let path = image(4096);
        let guest = File::open(&path).unwrap();
        // It reads, and lets others only read.
        lock_bytes(&guest, 100, 1).unwrap();
        lock_bytes(&guest, 201, 1).unwrap();
        let error = open(&path, WRITE).unwrap_err();
        assert!(error.to_string().contains("QEMU"), "{error}");
        let reader = open(&path, READ).unwrap();
        // It writes, and shares nothing.
        lock_bytes(&guest, 101, 1).unwrap();
        lock_bytes(&guest, 200, 4).unwrap();
        let error = open(&path, READ).unwrap_err();
        assert!(error.to_string().contains("QEMU"), "{error}");
        drop(guest);
        let guest = File::open(&path).unwrap();
        assert!(are_bytes_locked(&guest, 100, 5).unwrap());
        assert!(are_bytes_locked(&guest, 201, 1).unwrap());
        assert!(!are_bytes_locked(&guest, 101, 1).unwrap());
        drop(reader);
        assert!(!are_bytes_locked(&guest, 100, 105).unwrap(), "it is gone");
    }

    #[test]
    fn an_image_beyond_the_limit_of_writes_is_not_opened_for_them() {
        check_limit(file_size_limit().min(1 << 40)).unwrap();
        if let Some(more) = file_size_limit().checked_add(1) {
            let error = check_limit(more).unwrap_err();
            assert!(error.to_string().contains("ulimit -f"), "{error}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |path: &Path| open(path, WRITE).unwrap_err().kind();
        assert_eq!(kind(dir.path()), ErrorKind::IsADirectory);
        assert_eq!(kind(&dir.path().join("none")), ErrorKind::NotFound);
        assert_eq!(kind(Path::new("/dev/null")), ErrorKind::Unsupported);
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        assert_eq!(kind(&empty), ErrorKind::InvalidInput);
    }
}

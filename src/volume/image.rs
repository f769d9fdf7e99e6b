//! Image files: opened so that nobody else changes them meanwhile.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// How an image is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageAccess {
    pub(super) read_only: bool,
    /// Although it is in use elsewhere; goes with `read_only`.
    pub(super) in_use: bool,
}

/// Opens and locks an image: for itself alone when it may be written, shared with other readers otherwise.
pub(super) fn open(path: &Path, access: ImageAccess) -> Result<File> {
    let meta = fs::metadata(path).map_err(|e| Error::system("cannot find the image", e))?;
    check_type(&meta)?;
    if !access.in_use
        && let Some(device) = attached_to(&meta)
    {
        return Err(Error::new(
            ErrorKind::Busy,
            format!(
                "the image is attached to {device}, and may be mounted there: unmount it and detach it \
                 (losetup -d {device}), or read what is there with the options readonly,inuse"
            ),
        ));
    }
    let file = File::options()
        .read(true)
        .write(!access.read_only)
        .open(path)
        .map_err(|e| cannot_open(access, e))?;
    lock(&file, access)?;
    // The file may have been cut between the look and the lock.
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
    Ok(file)
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
            "this is a block device, and an image is an ordinary file: give a disk by its PCI address \
             (pci:ADDRESS, after vfio-setup.sh bind)",
        ));
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "an image is an ordinary file, this is a device, pipe or socket",
    ))
}

fn cannot_open(access: ImageAccess, error: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
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

fn lock(file: &File, access: ImageAccess) -> Result<()> {
    if access.in_use {
        return Ok(());
    }
    let locked = if access.read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Busy,
            if access.read_only {
                "another process has the image open for writing"
            } else {
                "another process has the image open: for reading beside readers use the option readonly"
            },
        )),
        Err(TryLockError::Error(error)) => Err(Error::system("cannot lock the image", error)),
    }
}

/// The loop device that the file stays attached to. One that is being detached has a moment to vanish: the
/// kernel keeps it until the last one who looks at it (udev, say) is gone.
fn attached_to(meta: &fs::Metadata) -> Option<String> {
    let patience = Instant::now() + Duration::from_millis(500);
    loop {
        let name = loop_device_of(meta)?;
        let autoclear = format!("/sys/block/{name}/loop/autoclear");
        let leaving = fs::read_to_string(autoclear).is_ok_and(|text| text.trim() == "1");
        if !leaving || Instant::now() > patience {
            return Some(format!("/dev/{name}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The name of the loop device that has the file behind it, by what the kernel says of each.
fn loop_device_of(meta: &fs::Metadata) -> Option<String> {
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b"loop") {
            continue;
        }
        let Ok(text) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        // The kernel names the path it was attached by, as seen from its root.
        let backing = Path::new(text.trim_end_matches('\n'));
        if let Ok(other) = fs::metadata(backing)
            && (other.dev(), other.ino()) == (meta.dev(), meta.ino())
        {
            return Some(name.to_string_lossy().into_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let writer = open(file.path(), WRITE).unwrap();
        for access in [READ, WRITE] {
            assert_eq!(
                open(file.path(), access).unwrap_err().kind(),
                ErrorKind::Busy
            );
        }
        let forced = ImageAccess {
            read_only: true,
            in_use: true,
        };
        open(file.path(), forced).unwrap();
        drop(writer);
        let reader = open(file.path(), READ).unwrap();
        open(file.path(), READ).unwrap();
        let error = open(file.path(), WRITE).unwrap_err();
        assert!(error.to_string().contains("readonly"), "{error}");
        drop(reader);
        open(file.path(), WRITE).unwrap();
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

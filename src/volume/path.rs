//! Paths: bytes separated by slashes, in whatever type the caller has them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Anything that is a path inside a volume: `str`, `[u8]`, `OsStr`, `Path`, their owned forms, and
/// references to those.
///
/// ```
/// use xtent::volume::PathBytes;
/// assert_eq!("a/b".path_bytes(), b"a/b");
/// assert_eq!(std::path::Path::new("a/b").path_bytes(), b"a/b");
/// assert_eq!(b"not utf-8: \xff".path_bytes(), b"not utf-8: \xff");
/// ```
pub trait PathBytes {
    /// The path's bytes.
    fn path_bytes(&self) -> &[u8];
}

impl PathBytes for [u8] {
    fn path_bytes(&self) -> &[u8] {
        self
    }
}

impl<const N: usize> PathBytes for [u8; N] {
    fn path_bytes(&self) -> &[u8] {
        self
    }
}

impl PathBytes for Vec<u8> {
    fn path_bytes(&self) -> &[u8] {
        self
    }
}

impl PathBytes for str {
    fn path_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PathBytes for String {
    fn path_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PathBytes for OsStr {
    fn path_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PathBytes for OsString {
    fn path_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PathBytes for Path {
    fn path_bytes(&self) -> &[u8] {
        self.as_os_str().as_bytes()
    }
}

impl PathBytes for PathBuf {
    fn path_bytes(&self) -> &[u8] {
        self.as_os_str().as_bytes()
    }
}

impl<T: PathBytes + ?Sized> PathBytes for &T {
    fn path_bytes(&self) -> &[u8] {
        (**self).path_bytes()
    }
}

//! Paths inside a volume: bytes separated by slashes, in Rust's path types.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The bytes of a path.
pub(super) fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// A path of these bytes.
pub(super) fn path_from(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// A name of these bytes.
pub(super) fn name_from(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

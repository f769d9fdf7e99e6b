//! The scripts of the repository, run against programs and a sysfs that the tests make: no package
//! is installed, no device is touched.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod apt;
mod beside;
mod supervise;
mod toolchain;
mod vfio_setup;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// An executable shell script in `dir`.
fn program(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The value of `PATH` with `dir` in front.
fn path_with(dir: &Path) -> String {
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

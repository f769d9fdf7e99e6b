//! The kernel as oracle: images made by mkfs.xfs, filled and read through the kernel's own xfs on a
//! loop device, and the tree as the kernel shows it. Shared by the tests that compare xtent with
//! it.
//!
//! Needs root, mkfs.xfs, losetup and a kernel with xfs; a test whose need is missing says
//! `SKIPPED`: begin with `if !common::kernel_is_here() { return; }`.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test crate that includes this module uses its own part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "test code: a failure panics, sizes are its own"
)]

pub mod changed;
pub mod crash;
pub mod disk;
pub mod fill;
pub mod forms;
pub mod image;
pub mod judge;
pub mod nvmf;
pub mod oracle;
pub mod reader;
pub mod served;
pub mod space;
pub mod space_disk;
pub mod space_op;
pub mod structures;
pub mod sys;

use std::process::Command;

/// Says on the test's output that, and why, a test did nothing.
pub fn skipped(reason: &str) {
    println!("SKIPPED: {reason}");
}

/// Whether the test runs as root.
pub fn is_root() -> bool {
    sys::effective_uid() == 0
}

/// Whether a program is on the path (or in the sbin directories, which root's path may lack).
pub fn has_tool(name: &str) -> bool {
    tool(name).is_some()
}

/// The full path of a program.
pub fn tool(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Whether the kernel's xfs can be asked about an image. Prints `SKIPPED` and the reason when it
/// cannot.
pub fn kernel_is_here() -> bool {
    match kernel_is_missing().or_else(loop_is_missing) {
        Some(reason) => {
            skipped(&reason);
            false
        }
        None => true,
    }
}

/// Why the kernel's xfs cannot be asked about any disk; `None` when it can.
pub fn kernel_is_missing() -> Option<String> {
    if !is_root() {
        return Some("mounting needs root".to_owned());
    }
    for name in ["mkfs.xfs", "xfs_repair", "xfs_db", "mount", "umount"] {
        if !has_tool(name) {
            return Some(format!("{name} is not installed"));
        }
    }
    let _ = Command::new("modprobe").arg("xfs").output();
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let xfs = known.lines().any(|line| line.trim() == "xfs");
    (!xfs).then(|| "this kernel has no xfs".to_owned())
}

/// Why an image cannot be mounted; `None` when it can.
pub fn loop_is_missing() -> Option<String> {
    if !has_tool("losetup") {
        return Some("losetup is not installed".to_owned());
    }
    let here = std::path::Path::new("/dev/loop-control").exists();
    (!here).then(|| "this kernel has no loop devices".to_owned())
}

/// Whether the kernel's xfs mounts blocks that are larger than pages. Prints `SKIPPED` when not.
pub fn large_blocks_are_here() -> bool {
    if !kernel_is_here() {
        return false;
    }
    let image = image::Image::make(320 << 20, 512, &["-b", "size=16384"]);
    let mounts = judge::Judge::new(&image.path(), 512).mounts("", |_| {});
    if !mounts {
        skipped("this kernel does not mount blocks that are larger than pages");
    }
    mounts
}

/// How much a test does: all of it, or with `XTENT_SCALE=small`, for machines that are emulated,
/// less of the same.
pub fn scaled<T>(full: T, small: T) -> T {
    match std::env::var("XTENT_SCALE").as_deref() {
        Err(_) | Ok("full") => full,
        Ok("small") => small,
        Ok(other) => panic!("XTENT_SCALE is `{other}`, and must be full or small"),
    }
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect(name))
}

/// Bytes that a seed gives.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::Rng::fill(
        &mut <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(seed),
        &mut bytes[..],
    );
    bytes
}

/// Runs a tool and returns what it printed; panics with all of its output when it fails.
pub fn run(name: &str, args: &[&str]) -> String {
    try_run(name, args).unwrap_or_else(|failure| panic!("{failure}"))
}

/// The same; the error has all that it printed.
pub fn try_run(name: &str, args: &[&str]) -> Result<String, String> {
    let program = tool(name).unwrap_or_else(|| panic!("{name} is not installed"));
    let output = Command::new(program)
        .args(args)
        // With these mkfs.xfs allows sizes and counts that are too small for daily use: one
        // allocation group, groups of a few MiB, a short log.
        .envs(["TEST_DIR", "TEST_DEV", "QA_CHECK_FS"].map(|name| (name, "1")))
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{name} {args:?}: {}\n{text}{errors}",
        output.status
    ))
}

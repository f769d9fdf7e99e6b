//! The kernel's verdict on an image, many times over: one loop device that cannot be written to.
//!
//! On such a device the kernel mounts a filesystem with a clean log, and refuses one whose log it
//! would have to replay; it changes nothing. The image file may be changed between two questions.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use xtent::internals::xfs::{Fs, FsOptions, MetaIo, Recovery};

use super::{run, tool};

/// A loop device over an image, read-only, and a mount point.
#[derive(Debug)]
pub struct Judge {
    device: String,
    dir: tempfile::TempDir,
}

impl Judge {
    /// Attaches an image.
    pub fn new(image: &Path, sector_bytes: u32) -> Self {
        let sector = sector_bytes.to_string();
        let image = image.to_str().expect("UTF-8");
        let args = [
            "--find",
            "--show",
            "--read-only",
            "--sector-size",
            &sector,
            image,
        ];
        Self {
            device: run("losetup", &args).trim().to_owned(),
            dir: tempfile::Builder::new()
                .prefix("xtent-judge-")
                .tempdir()
                .expect("a temporary directory"),
        }
    }

    /// Whether the kernel mounts what the image holds now. While it is mounted, `look` runs.
    pub fn mounts(&self, options: &str, look: impl FnOnce(&Path)) -> bool {
        self.wait_until_unused();
        let options = format!(
            "ro,nouuid{}{options}",
            if options.is_empty() { "" } else { "," }
        );
        let dir = self.dir.path();
        // -i: no helper; with a type given, mount does not probe the device.
        let mounted = quiet(
            "mount",
            &["-i", "-t", "xfs", "-o", &options, &self.device, path(dir)],
        );
        if mounted {
            let mount = Mounted(dir);
            look(mount.0);
        }
        mounted
    }
}

impl Judge {
    /// The kernel would reuse a mount that still exists, without reading the disk again: a process
    /// that made a mount namespace in the meantime has the last mount, too, until it ends.
    fn wait_until_unused(&self) {
        for _ in 0..6000 {
            let mut options = File::options();
            let exclusive = options.read(true).custom_flags(libc::O_EXCL);
            if exclusive.open(&self.device).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} stays in use", self.device);
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        quiet("losetup", &["--detach", &self.device]);
    }
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    /// A child that another test is just starting holds our descriptors until its exec: busy for a
    /// moment.
    fn drop(&mut self) {
        for _ in 0..200 {
            if quiet("umount", &["-i", path(self.0)]) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        quiet("umount", &["--lazy", path(self.0)]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs a tool without a word; whether it succeeded.
pub fn quiet(name: &str, args: &[&str]) -> bool {
    let program = tool(name).unwrap_or_else(|| panic!("{name} is not installed"));
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Opens the filesystem on a disk so that its metadata can be changed; a log that holds changes is
/// replayed.
pub fn open_to_change(disk: &mut impl MetaIo) -> Fs {
    let options = FsOptions {
        writable: true,
        recovery: Recovery::OnDevice,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(disk, &options).expect("a filesystem");
    assert_eq!(fs.write_refusal(), None);
    fs
}

/// An image file as a disk.
#[derive(Debug)]
pub struct ImageDisk {
    file: File,
    sector_bytes: u32,
}

impl ImageDisk {
    /// Opens an image, to read and, for what a test changes in it, to write.
    pub fn open(image: PathBuf, sector_bytes: u32) -> Self {
        let mut options = File::options();
        let file = options.read(true).write(true).open(image);
        Self {
            file: file.expect("the image"),
            sector_bytes,
        }
    }

    /// `len` bytes at a byte address.
    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.file.read_exact_at(&mut buf, addr).expect("the image");
        buf
    }

    /// Writes at a byte address.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, addr).expect("the image");
    }
}

impl MetaIo for ImageDisk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.file.read_exact_at(buf, addr).expect("the image");
        Ok(())
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        let sector = u64::from(self.sector_bytes);
        assert!(addr.is_multiple_of(sector) && (buf.len() as u64).is_multiple_of(sector));
        self.put(addr, buf);
        Ok(())
    }

    fn flush(&mut self) -> xtent::Result<()> {
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.file.metadata().expect("the image").len()
    }

    fn block_bytes(&self) -> u32 {
        self.sector_bytes
    }
}

//! An image file with a filesystem, and its mount. Both vanish when dropped, after a panic too.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{run, tool};

/// A sparse file in a directory of its own, with an XFS made by mkfs.xfs.
#[derive(Debug)]
pub struct Image {
    dir: tempfile::TempDir,
    sector_bytes: u32,
}

impl Image {
    /// An image of `size_bytes` made with these mkfs.xfs arguments. With `sector_bytes` 4096 the loop device
    /// has that logical block size, and `-s size=4096` is added.
    pub fn make(size_bytes: u64, sector_bytes: u32, mkfs_args: &[&str]) -> Self {
        let image = Self::empty(size_bytes, sector_bytes);
        let sector = format!("size={sector_bytes}");
        let path = image.path();
        let mut args = vec!["-q", "-f", "-s", &sector];
        args.extend_from_slice(mkfs_args);
        args.push(path.to_str().expect("a temporary path in UTF-8"));
        run("mkfs.xfs", &args);
        image
    }

    /// An image without a filesystem.
    pub fn empty(size_bytes: u64, sector_bytes: u32) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("xtent-")
            .tempdir()
            .expect("a temporary directory");
        let image = Self { dir, sector_bytes };
        let file = File::create(image.path()).expect("the image");
        file.set_len(size_bytes).expect("the image's size");
        image
    }

    /// The image file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// The sector size of the filesystem and the loop device.
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// Mounts the image with these options (`""` for none).
    pub fn mount(&self, options: &str) -> Mount {
        Mount::new(
            &self.path(),
            self.sector_bytes,
            options,
            &self.dir.path().join("mnt"),
        )
    }

    /// Panics unless `xfs_repair -n` finds nothing. The image must not be mounted.
    pub fn assert_clean(&self) {
        let path = self.path();
        run("xfs_repair", &["-n", "-f", path.to_str().expect("UTF-8")]);
    }
}

/// A mounted image. Dropping it unmounts and detaches the loop device.
#[derive(Debug)]
pub struct Mount {
    loop_device: String,
    dir: PathBuf,
    mounted: bool,
}

impl Mount {
    fn new(image: &Path, sector_bytes: u32, options: &str, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the mount point");
        let sector = sector_bytes.to_string();
        let image = image.to_str().expect("UTF-8");
        let device = run(
            "losetup",
            &["--find", "--show", "--sector-size", &sector, image],
        );
        let mut mount = Self {
            loop_device: device.trim().to_owned(),
            dir: dir.to_path_buf(),
            mounted: false,
        };
        let mut args = vec!["-t", "xfs"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([&*mount.loop_device, dir.to_str().expect("UTF-8")]);
        run("mount", &args);
        mount.mounted = true;
        mount
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The loop device.
    pub fn device(&self) -> &str {
        &self.loop_device
    }

    /// Unmounts and detaches, and panics when that does not succeed. Afterwards the image holds all.
    pub fn unmount(mut self) {
        let dir = self.dir.to_str().expect("UTF-8").to_owned();
        // A child that another test is just starting holds our descriptors until its exec: busy for a moment.
        for _ in 0..100 {
            if quiet("umount", &[dir.as_ref()]) {
                self.mounted = false;
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        if self.mounted {
            run("umount", &[&dir]);
            self.mounted = false;
        }
        run("losetup", &["--detach", &self.loop_device]);
        self.wait_for_detach();
        self.loop_device.clear();
    }

    /// The kernel detaches only when the last user (udev, another losetup that looks around) is gone.
    fn wait_for_detach(&self) {
        let name = self.loop_device.trim_start_matches("/dev/");
        let backing = PathBuf::from(format!("/sys/block/{name}/loop/backing_file"));
        let image = self.dir.with_file_name("disk.img");
        for _ in 0..2000 {
            let text = std::fs::read_to_string(&backing).unwrap_or_default();
            if Path::new(text.trim_end()) != image {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{} stays attached", self.loop_device);
    }
}

impl Drop for Mount {
    /// Does what it can: this may run while a test is failing, with files of the mount still open.
    fn drop(&mut self) {
        if self.mounted {
            let dir = self.dir.as_os_str();
            if !quiet("umount", &[dir]) {
                quiet("umount", &["--lazy".as_ref(), dir]);
            }
        }
        if !self.loop_device.is_empty() {
            // The kernel detaches once the last user is gone.
            quiet("losetup", &["--detach".as_ref(), self.loop_device.as_ref()]);
        }
    }
}

/// Runs a tool without a word; whether it succeeded.
fn quiet(name: &str, args: &[&OsStr]) -> bool {
    tool(name).is_some_and(|program| {
        let output = Command::new(program).args(args).output();
        output.is_ok_and(|output| output.status.success())
    })
}

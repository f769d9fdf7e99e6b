//! An image file with a filesystem, and its mount. Both vanish when dropped, after a panic too.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{run, tool, try_run};

/// A sparse file in a directory of its own, with an XFS made by mkfs.xfs.
#[derive(Debug)]
pub struct Image {
    dir: tempfile::TempDir,
    sector_bytes: u32,
}

impl Image {
    /// An image of `size_bytes` made with these mkfs.xfs arguments. With `sector_bytes` 4096 the
    /// loop device has that logical block size, and `-s size=4096` is added.
    pub fn make(size_bytes: u64, sector_bytes: u32, mkfs_args: &[&str]) -> Self {
        Self::make_in(&std::env::temp_dir(), size_bytes, sector_bytes, mkfs_args)
    }

    /// As [`Image::make`], in a directory of its own in `parent`.
    pub fn make_in(parent: &Path, size_bytes: u64, sector_bytes: u32, mkfs_args: &[&str]) -> Self {
        let image = Self::empty_in(parent, size_bytes, sector_bytes);
        let made = image.format(mkfs_args);
        made.unwrap_or_else(|failure| panic!("{failure}"));
        image
    }

    /// Makes a filesystem with these mkfs.xfs arguments; the error is what mkfs.xfs says.
    pub fn format(&self, mkfs_args: &[&str]) -> Result<(), String> {
        let sector = format!("size={}", self.sector_bytes);
        let path = self.path();
        let mut args = vec!["-q", "-f", "-s", &sector];
        args.extend_from_slice(mkfs_args);
        args.push(path.to_str().expect("a temporary path in UTF-8"));
        try_run("mkfs.xfs", &args).map(|_| ())
    }

    /// An image without a filesystem.
    pub fn empty(size_bytes: u64, sector_bytes: u32) -> Self {
        Self::empty_in(&std::env::temp_dir(), size_bytes, sector_bytes)
    }

    fn empty_in(parent: &Path, size_bytes: u64, sector_bytes: u32) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("xtent-")
            .tempdir_in(parent)
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
        let dir = self.dir.path().join("mnt");
        Mount::new(&self.path(), self.sector_bytes, options, &dir)
    }

    /// Makes these bytes its content; blank stretches take no space.
    pub fn put_content(&self, content: &[u8]) {
        const PIECE_BYTES: usize = 64 << 10;
        let file = File::create(self.path()).expect("the image");
        file.set_len(content.len() as u64).expect("its size");
        for (index, piece) in content.chunks(PIECE_BYTES).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                let at = (index * PIECE_BYTES) as u64;
                std::os::unix::fs::FileExt::write_all_at(&file, piece, at).expect("the image");
            }
        }
    }

    /// Panics unless `xfs_repair -n` finds nothing. The image must not be mounted.
    pub fn assert_clean(&self) {
        let path = self.path();
        run("xfs_repair", &["-n", "-f", path.to_str().expect("UTF-8")]);
    }
}

/// A mounted image or disk. Dropping it unmounts, and detaches the loop device that an image needs.
#[derive(Debug)]
pub struct Mount {
    device: String,
    /// What the loop device stands for; `None` for a disk.
    image: Option<PathBuf>,
    dir: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts an image, on a loop device of this sector size, or a block device, as it is.
    pub(super) fn new(source: &Path, sector_bytes: u32, options: &str, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the mount point");
        let kind = std::fs::metadata(source).expect("the disk").file_type();
        let image = (!kind.is_block_device()).then(|| source.to_path_buf());
        let source = source.to_str().expect("UTF-8");
        let device = if image.is_some() {
            let sector = sector_bytes.to_string();
            run(
                "losetup",
                &["--find", "--show", "--sector-size", &sector, source],
            )
        } else {
            source.to_owned()
        };
        let mut mount = Self {
            device: device.trim().to_owned(),
            image,
            dir: dir.to_path_buf(),
            mounted: false,
        };
        let mut args = vec!["-t", "xfs"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([&*mount.device, dir.to_str().expect("UTF-8")]);
        run("mount", &args);
        mount.mounted = true;
        mount
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The block device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Unmounts and detaches, and panics when that does not succeed. Afterwards the image holds
    /// all.
    pub fn unmount(mut self) {
        let dir = self.dir.to_str().expect("UTF-8").to_owned();
        // A child that another test is just starting holds our descriptors until its exec: busy for
        // a moment.
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
        if let Some(image) = self.image.take() {
            run("losetup", &["--detach", &self.device]);
            self.wait_for_detach(&image);
        }
    }

    /// The kernel detaches only when the last user (udev, another losetup that looks around) is
    /// gone.
    fn wait_for_detach(&self, image: &Path) {
        let name = self.device.trim_start_matches("/dev/");
        let backing = PathBuf::from(format!("/sys/block/{name}/loop/backing_file"));
        for _ in 0..2000 {
            let text = std::fs::read_to_string(&backing).unwrap_or_default();
            if Path::new(text.trim_end()) != image {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{} stays attached", self.device);
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
        if self.image.is_some() {
            // The kernel detaches once the last user is gone.
            quiet("losetup", &["--detach".as_ref(), self.device.as_ref()]);
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

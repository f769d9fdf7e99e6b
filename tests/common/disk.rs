//! A disk that goes back and forth: the kernel makes and fills a filesystem, xtent works on it, the
//! kernel looks at the result.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::image::Mount;
use super::{run, sys};

/// The current user of the disk, kernel or xtent, and the handover between them.
pub trait Hands: Send {
    /// Gives it to the kernel: the image file or block device that mkfs.xfs and mount take.
    fn to_kernel(&mut self) -> PathBuf;

    /// Gives it to xtent: the target.
    fn to_xtent(&mut self) -> String;
}

/// A disk, with a filesystem once it is made. It is with the kernel or with xtent, as the last call
/// asked.
pub struct Disk {
    hands: Box<dyn Hands>,
    lba_bytes: u32,
    filesystem_bytes: u64,
    dir: tempfile::TempDir,
}

impl Disk {
    /// A disk of blocks of `lba_bytes`.
    pub fn new(hands: impl Hands + 'static, lba_bytes: u32) -> Self {
        Self {
            hands: Box::new(hands),
            lba_bytes,
            filesystem_bytes: 0,
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// Bytes in a block.
    pub fn lba_bytes(&self) -> u32 {
        self.lba_bytes
    }

    /// Makes an XFS of `size_bytes` with these arguments of mkfs.xfs, and sectors of a block unless
    /// they are said to be larger.
    pub fn make(&mut self, size_bytes: u64, sector_bytes: u32, mkfs_args: &[&str]) {
        let path = self.hands.to_kernel();
        let sector = format!("size={}", sector_bytes.max(self.lba_bytes));
        let size = format!("size={size_bytes}");
        let mut args = vec!["-q", "-f", "-s", &sector, "-d", &size];
        args.extend_from_slice(mkfs_args);
        args.push(path.to_str().expect("UTF-8"));
        run("mkfs.xfs", &args);
        self.filesystem_bytes = size_bytes;
    }

    /// Mounts it with these options (`""` for none).
    pub fn mount(&mut self, options: &str) -> Mount {
        let path = self.hands.to_kernel();
        Mount::new(&path, self.lba_bytes, options, &self.dir.path().join("mnt"))
    }

    /// The image file or block device, for tools. It is with the kernel then, and must not be
    /// mounted.
    pub fn for_tools(&mut self) -> PathBuf {
        self.hands.to_kernel()
    }

    /// Panics unless `xfs_repair -n` finds nothing. It must not be mounted.
    pub fn assert_clean(&mut self) {
        let path = self.hands.to_kernel();
        let mut args = vec!["-n"];
        if path.is_file() {
            args.push("-f");
        }
        args.push(path.to_str().expect("UTF-8"));
        run("xfs_repair", &args);
    }

    /// A checksum of every byte of the filesystem. Blank stretches are only counted: most of it is
    /// blank, and an emulated machine is slow at sums.
    pub fn checksum(&mut self) -> u32 {
        let path = self.hands.to_kernel();
        let disk = File::open(path).expect("the disk");
        let mut disk = disk.take(self.filesystem_bytes);
        let mut buf = vec![0; 64 << 10];
        let blank = buf.clone();
        let (mut sum, mut at) = (0, 0_u64);
        loop {
            let n = disk.read(&mut buf).expect("the disk");
            if n == 0 {
                return crc32c::crc32c_append(sum, &at.to_le_bytes());
            }
            if buf[..n] != blank[..n] {
                sum = crc32c::crc32c_append(sum, &at.to_le_bytes());
                sum = crc32c::crc32c_append(sum, &buf[..n]);
            }
            at += n as u64;
        }
    }

    /// The target that xtent opens, with further options (`""` for none).
    pub fn target(&mut self, options: &str) -> String {
        format!("{}{options}", self.hands.to_xtent())
    }
}

/// Where images lie: in memory, where it has ample room and `TMPDIR` names no other place. Each
/// mount and each sync would wait for the machine's disk otherwise, which nothing is asked about
/// here.
fn place() -> PathBuf {
    const AMPLE_BYTES: u64 = 6 << 30;
    // scripts/test.sh names a place there that it clears when it ends, however that may be.
    let memory = std::env::var_os("XTENT_TEST_MEMORY").unwrap_or_else(|| "/dev/shm".into());
    let memory = Path::new(&memory);
    let known = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = known.lines().find_map(|line| {
        let kib = line.strip_prefix("MemAvailable:")?.strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    let room = sys::free_bytes(memory).unwrap_or(0);
    let room = room.min(available.unwrap_or(0).saturating_mul(1024));
    if room < AMPLE_BYTES || std::env::var_os("TMPDIR").is_some() {
        return std::env::temp_dir();
    }
    memory.to_path_buf()
}

/// An image file behind the embedded controller.
#[derive(Debug)]
pub struct ImageHands {
    dir: tempfile::TempDir,
    /// `lba=512,inline` and the like.
    options: String,
}

impl ImageHands {
    /// A sparse file of `size_bytes`; xtent opens it with these options.
    pub fn new(size_bytes: u64, options: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("xtent-")
            .tempdir_in(place());
        let hands = Self {
            dir: dir.expect("a temporary directory"),
            options: options.to_owned(),
        };
        let file = File::create(hands.path()).expect("the image");
        file.set_len(size_bytes).expect("the image's size");
        hands
    }

    /// The image.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }
}

impl Hands for ImageHands {
    fn to_kernel(&mut self) -> PathBuf {
        self.path()
    }

    fn to_xtent(&mut self) -> String {
        format!("image:{},{}", self.path().display(), self.options)
    }
}

/// A PCI controller, which vfio-setup.sh gives to the kernel's driver or to vfio-pci.
#[derive(Debug, Clone)]
pub struct PciHands {
    address: String,
}

impl PciHands {
    /// The controller at this full address, whichever driver has it.
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
        }
    }

    /// The driver that has it.
    fn driver(&self) -> Option<String> {
        let link = format!("/sys/bus/pci/devices/{}/driver", self.address);
        let link = std::fs::read_link(link).ok()?;
        link.file_name()?.to_str().map(str::to_owned)
    }
}

impl Hands for PciHands {
    fn to_kernel(&mut self) -> PathBuf {
        if self.driver().as_deref() != Some("nvme") {
            setup(&["reset", &self.address]);
        }
        namespace_of(&self.address)
    }

    fn to_xtent(&mut self) -> String {
        if self.driver().as_deref() != Some("vfio-pci") {
            // It carries a filesystem, which bind leaves alone unless it is told.
            setup(&["bind", "--force", &self.address, &self.address]);
        }
        format!("pci:{}", self.address)
    }
}

/// Runs vfio-setup.sh, which lies where tests run: in the root of the repository, or beside the
/// test programs.
fn setup(args: &[&str]) {
    let output = Command::new("sh")
        .arg("./vfio-setup.sh")
        .args(args)
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "vfio-setup.sh {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The block device that the kernel has of a controller's first namespace. Waits for it: a driver
/// that was just bound looks for namespaces in the background.
fn namespace_of(address: &str) -> PathBuf {
    let start = Instant::now();
    loop {
        if let Some(path) = namespace_now(address) {
            return path;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the kernel has no disk of {address}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn namespace_now(address: &str) -> Option<PathBuf> {
    let dir = format!("/sys/bus/pci/devices/{address}/nvme");
    let entries = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").file_name())
    };
    for controller in entries(Path::new(&dir)) {
        for name in entries(&Path::new(&dir).join(controller)) {
            let path = Path::new("/dev").join(&name);
            let namespace = |name: &str| name.starts_with("nvme") && name.ends_with("n1");
            if name.to_str().is_some_and(namespace) && path.exists() {
                return Some(path);
            }
        }
    }
    None
}

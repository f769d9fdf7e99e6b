//! Small XFS disks in memory: an image made once by mkfs.xfs, on controllers that are stepped and
//! can fail.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use xtent::Result;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, FaultPlan, Medium, Mode};
use xtent::internals::mem::HugePages;
use xtent::internals::nvme::ControllerOptions;
use xtent::internals::target_on_device;
use xtent::target::TargetOptions;
use xtent::volume::{File, Io, MountOptions, OpenOptions, Volume};

use super::common;

/// Size of each file in bytes.
pub(crate) const FILE_BYTES: usize = 256 << 10;
/// The files, all zeroes: there is no need for a mount, and so for root, to make them.
pub(crate) const FILES: [&str; 3] = ["first", "second", "shared"];
/// Deadline of a command, on the device's clock, which a waiting thread moves on by a tick for each
/// look.
const TIMEOUT: Duration = Duration::from_millis(4);
const TICK_NS: u64 = 20_000;
const IMAGE_BYTES: u64 = 24 << 20;
const PIECE: usize = 64 << 10;

/// The pieces of the image that are not zeroes.
type Pieces = Vec<(u64, Vec<u8>)>;

/// Tests beside each other read; who measures the process writes.
static PROCESS: RwLock<()> = RwLock::new(());

fn is_possible() -> bool {
    let possible = common::has_tool("mkfs.xfs");
    if !possible {
        common::skipped("mkfs.xfs is not installed");
    }
    possible
}

/// To be held by a test; `None` where images cannot be made.
pub(crate) fn beside_others() -> Option<RwLockReadGuard<'static, ()>> {
    is_possible().then(|| PROCESS.read().unwrap_or_else(PoisonError::into_inner))
}

/// The same, for a test that measures the process.
pub(crate) fn alone() -> Option<RwLockWriteGuard<'static, ()>> {
    is_possible().then(|| PROCESS.write().unwrap_or_else(PoisonError::into_inner))
}

fn image() -> &'static Pieces {
    static IMAGE: OnceLock<Pieces> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (path, content) = (dir.path().join("disk.img"), dir.path().join("content"));
        std::fs::write(&content, vec![0; FILE_BYTES]).unwrap();
        let mut proto = "/\n0 0\nd--755 0 0\n".to_owned();
        for name in FILES {
            proto += &format!("{name} ---644 0 0 {}\n", content.display());
        }
        proto += "$\n";
        let proto_path = dir.path().join("proto");
        std::fs::write(&proto_path, proto).unwrap();
        let image = std::fs::File::create(&path).unwrap();
        image.set_len(IMAGE_BYTES).unwrap();
        let (path, proto) = (path.to_str().unwrap(), proto_path.to_str().unwrap());
        common::run(
            "mkfs.xfs",
            &["-q", "-f", "-d", "agcount=1", "-p", proto, path],
        );
        let bytes = std::fs::read(path).unwrap();
        let pieces = bytes.chunks(PIECE).zip((0..).step_by(PIECE));
        pieces
            .filter(|(piece, _)| piece.iter().any(|byte| *byte != 0))
            .map(|(piece, at)| (at, piece.to_vec()))
            .collect()
    })
}

/// A device with the image on it.
pub(crate) fn device(faults: FaultPlan) -> Arc<EmuDevice> {
    let mut medium = Medium::memory(IMAGE_BYTES);
    for (at, piece) in image() {
        medium.write_at(*at, piece).unwrap();
    }
    let config = EmuConfig {
        medium,
        mode: Mode::Stepped,
        tick_ns: TICK_NS,
        faults,
        ..EmuConfig::default()
    };
    EmuDevice::start(config).unwrap()
}

pub(crate) fn options() -> (TargetOptions, MountOptions) {
    let target = TargetOptions::new()
        .huge_pages(HugePages::Never)
        .memory_limit_bytes(10 << 20)
        .command_timeout(TIMEOUT)
        .queue_depth(32);
    let mount = MountOptions::new()
        .cache_bytes(768 << 10)
        .writeback_interval(Duration::ZERO);
    (target, mount)
}

/// The volume on a device.
pub(crate) fn open(
    device: &Arc<EmuDevice>,
    options: &(TargetOptions, MountOptions),
) -> Result<Volume> {
    let controller = ControllerOptions {
        admin_timeout: TIMEOUT,
        ..ControllerOptions::default()
    };
    Volume::on(
        target_on_device(device.clone(), &options.0, controller)?,
        &options.1,
    )
}

/// A volume without faults, and the means to use it.
pub(crate) fn plain() -> (Volume, Io) {
    let volume = open(&device(FaultPlan::default()), &options()).unwrap();
    let io = volume.io().unwrap();
    (volume, io)
}

pub(crate) fn buffered(volume: &Volume, io: &mut Io, name: &str) -> Result<File> {
    let options = OpenOptions::new().read(true).write(true).buffered(true);
    options.open(volume, io, name)
}

pub(crate) fn direct(volume: &Volume, io: &mut Io, name: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(volume, io, name)
}

/// A line of `/proc/self/status`, in its own unit.
pub(crate) fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    value.map_or(0, |value| value.parse().unwrap())
}

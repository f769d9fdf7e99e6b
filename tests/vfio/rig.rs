//! What the tests share: which controllers they have, bringing them up, asking the host for
//! something.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xtent::internals::block::{Chain, ChainFlags, Op, Queue, Status};
use xtent::internals::device::Device;
use xtent::internals::device::vfio::{VfioDevice, VfioOptions};
use xtent::internals::mem::{Heap, Segment};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions, QueuePair};
use xtent::internals::units::Lba;

/// What a job says in an environment variable, a list with commas; `None`, and a word about it,
/// when it is unset.
pub(crate) fn told(variable: &str) -> Option<Vec<String>> {
    let list = std::env::var(variable).unwrap_or_default();
    let list: Vec<_> = list.split_terminator(',').map(str::to_owned).collect();
    if list.is_empty() {
        eprintln!("SKIPPED: {variable} names no controllers");
        return None;
    }
    Some(list)
}

/// As [`told`], of pairs `A=B`.
pub(crate) fn told_pairs(variable: &str) -> Option<Vec<(String, String)>> {
    let pair = |text: &String| {
        let (a, b) = text.split_once('=').unwrap();
        (a.to_owned(), b.to_owned())
    };
    Some(told(variable)?.iter().map(pair).collect())
}

/// The addresses of the controllers that any test may have.
pub(crate) fn controllers() -> Option<Vec<String>> {
    told("XTENT_VFIO")
}

/// One test at a time has the controllers.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The seed of a test; printed, so that a failure can be replayed.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("XTENT_SEED").map_or(1, |text| text.parse().unwrap());
    println!("XTENT_SEED={seed}");
    seed
}

pub(crate) fn open(address: &str) -> Arc<VfioDevice> {
    VfioDevice::open(address, &VfioOptions::default()).unwrap()
}

pub(crate) fn bring_up(device: &Arc<VfioDevice>, heap: &Heap) -> (Arc<Controller>, QueuePair) {
    // Short: the watch looks at a sixteenth of it whether the device is still up.
    let timeout = Duration::from_secs(2);
    let controller = controller(device, heap, timeout);
    let options = QueueOptions {
        timeout,
        ..QueueOptions::default()
    };
    let pair = controller.queue(1, options).unwrap();
    (controller, pair)
}

pub(crate) fn controller(
    device: &Arc<VfioDevice>,
    heap: &Heap,
    admin_timeout: Duration,
) -> Arc<Controller> {
    let device: Arc<dyn Device> = Arc::<VfioDevice>::clone(device);
    let options = ControllerOptions {
        admin_timeout,
        ..ControllerOptions::default()
    };
    Controller::open(device, heap, options).unwrap()
}

/// A chain over `segments`.
pub(crate) fn chain(op: Op, lba: u64, blocks: u64, segments: &[Segment], token: u64) -> Chain<'_> {
    Chain {
        op,
        flags: ChainFlags::default(),
        lba: Lba(lba),
        blocks,
        segments,
        token,
    }
}

/// A read of the first 4 KiB, and how it ended.
pub(crate) fn read_once(pair: &mut QueuePair, heap: &Heap) -> Status {
    let memory = heap.alloc(4096, 4096).unwrap().lend();
    let segments = [memory.segment(0..4096).unwrap()];
    let blocks = 4096 / u64::from(pair.limits().block_bytes);
    pair.submit(&chain(Op::Read, 0, blocks, &segments, 7))
        .unwrap();
    drain(pair)[&7]
}

/// Polls until nothing is outstanding; how each chain ended, by its token.
pub(crate) fn drain(pair: &mut QueuePair) -> BTreeMap<u64, Status> {
    let mut ended = BTreeMap::new();
    while pair.outstanding() > 0 {
        pair.poll(usize::MAX, &mut |completion| {
            let before = ended.insert(completion.token, completion.status);
            assert_eq!(before, None, "{} ended twice", completion.token);
        });
        pair.relax();
    }
    ended
}

/// Asks the host for something (see `scripts/vm/supervise.py`).
pub(crate) fn ask_host(request: &str) {
    // Past the harness, which would keep it; the line must begin with the mark.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@@HOST {request}\n").as_bytes())
        .unwrap();
    out.flush().unwrap();
}

/// Runs a program and returns what it printed; panics with all of its output when it fails.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        // With these mkfs.xfs makes a single allocation group.
        .envs(["TEST_DIR", "TEST_DEV", "QA_CHECK_FS"].map(|name| (name, "1")))
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{text}{error}",
        output.status
    );
    text
}

/// As [`run`], for programs that need a file that no process has open: a child that another thread
/// is just starting holds our descriptors until its exec.
pub(crate) fn run_when_free(program: &str, args: &[&str]) {
    let free = (0..50).any(|_| {
        let output = Command::new(program).args(args).output();
        let done = output.is_ok_and(|output| output.status.success());
        if !done {
            std::thread::sleep(Duration::from_millis(50));
        }
        done
    });
    if !free {
        run(program, args);
    }
}

/// The kernel's block device of a controller that its own driver has.
pub(crate) fn disk_of(address: &str) -> String {
    let controllers = format!("/sys/bus/pci/devices/{address}/nvme");
    let mut names = std::fs::read_dir(controllers).unwrap();
    let name = names.next().unwrap().unwrap().file_name();
    format!("/dev/{}n1", name.to_str().unwrap())
}

/// A filesystem that the kernel has mounted, until dropped.
pub(crate) struct Mounted(String);

impl Mounted {
    pub(crate) fn new(disk: &str, options: &str) -> Self {
        let dir = format!("/mnt/{}", disk.replace('/', "-"));
        std::fs::create_dir_all(&dir).unwrap();
        run("mount", &["-t", "xfs", "-o", options, disk, &dir]);
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = Command::new("umount").arg(&self.0).status();
        } else {
            run_when_free("umount", &[&self.0]);
        }
    }
}

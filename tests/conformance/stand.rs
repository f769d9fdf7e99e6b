//! Stands: the devices that the list runs on.
//!
//! A new kind of device is one more [`Engine`] and one more line in [`kinds_of`]; every test of the
//! list then runs on it. An engine that brings its own driver makes [`Engine::open`] give out a
//! [`Rig`] of its own.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use xtent::internals::block::{Chain, Completion, Limits, Queue, Refused};
use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::device::vfio::{VfioDevice, VfioOptions};
use xtent::internals::device::vfio_user::{ServerOptions, VfioUserDevice, VfioUserOptions};
use xtent::internals::nvme::{
    Controller, ControllerOptions, ControllerStats, QueueOptions, QueuePair,
};

use super::Reason;
use super::common::disk::{Disk, Hands, ImageHands, PciHands};
use super::common::served::{ServedHands, Serving};
use super::common::{kernel_is_missing, loop_is_missing};
use super::rig::Memory;

/// Bytes that every stand has at least. Sparse, where it is a file or memory.
pub(crate) const CAPACITY_BYTES: u64 = 1280 << 20;

/// Something that tests run on.
pub(crate) trait Engine: Send + Sync {
    /// The controller, for tests of the driver. What it had on its disk may be lost.
    fn device(&self) -> Arc<dyn Device>;

    /// The controller, brought up, and memory that it reaches, for tests of the driver.
    fn open(&self, options: ControllerOptions) -> (Box<dyn Rig>, Memory) {
        let memory = Memory::new();
        let device = self.device();
        let controller = Controller::open(device.clone(), &memory.heap, options).unwrap();
        (Box::new(OwnRig { device, controller }), memory)
    }

    /// The disk, for tests of files.
    fn disk(&self, lba_bytes: u32) -> Disk;

    /// Bytes in a block, where it is known without asking the controller.
    fn block_bytes(&self) -> Option<u32> {
        None
    }

    /// Why tests of files cannot run; `None` when they can.
    fn missing(&self) -> Option<String> {
        kernel_is_missing()
    }
}

/// Which tests a stand is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Driver,
    Files,
    Both,
}

/// One device, by name. One test at a time has it.
pub(crate) struct Stand {
    pub(crate) name: String,
    /// Tests that need only some stands go to one stand of each kind and block size.
    pub(crate) kind: &'static str,
    pub(crate) is_for: For,
    engine: Box<dyn Engine>,
    lba_bytes: OnceLock<u32>,
    one: Mutex<()>,
}

/// Stands that a test has just now, and the most there were at once.
static BUSY: AtomicUsize = AtomicUsize::new(0);
static MOST_BUSY: AtomicUsize = AtomicUsize::new(0);

/// A test has this stand for itself.
pub(crate) struct Alone<'a> {
    _guard: MutexGuard<'a, ()>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many stands were in use at the same time, at most.
pub(crate) fn most_at_once() -> usize {
    MOST_BUSY.load(Ordering::Relaxed)
}

impl Stand {
    pub(crate) fn new(
        name: String,
        kind: &'static str,
        is_for: For,
        engine: impl Engine + 'static,
    ) -> Self {
        Self {
            name,
            kind,
            is_for,
            engine: Box::new(engine),
            lba_bytes: OnceLock::new(),
            one: Mutex::new(()),
        }
    }

    pub(crate) fn alone(&self) -> Alone<'_> {
        let guard = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = BUSY.fetch_add(1, Ordering::Relaxed) + 1;
        MOST_BUSY.fetch_max(busy, Ordering::Relaxed);
        Alone { _guard: guard }
    }

    /// Bytes in a block; asks the device, at the first call.
    pub(crate) fn lba_bytes(&self) -> u32 {
        *self.lba_bytes.get_or_init(|| {
            if let Some(block_bytes) = self.engine.block_bytes() {
                return block_bytes;
            }
            let (rig, _memory) = self.open();
            let queue = rig.queue(QueueOptions::default());
            let limits = queue.limits();
            let bytes = limits.capacity_blocks * u64::from(limits.block_bytes);
            assert!(
                bytes >= CAPACITY_BYTES,
                "{} has {bytes} bytes, the tests need {CAPACITY_BYTES}",
                self.name
            );
            limits.block_bytes
        })
    }

    /// How the targets of its disk begin, as errors name them.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.kind {
            "embedded" => "image:",
            "spdk, tcp" | "spdk, vfio-user" => "spdk:",
            kind => kind,
        }
    }

    /// Brings the controller up, for tests of the driver.
    pub(crate) fn open(&self) -> (Box<dyn Rig>, Memory) {
        self.engine.open(ControllerOptions::default())
    }

    /// The disk, for tests of files.
    ///
    /// # Errors
    /// Why there can be none.
    pub(crate) fn disk(&self) -> Result<Disk, Reason> {
        match self.engine.missing() {
            Some(what) => Err(Reason::Missing(what)),
            None => Ok(self.engine.disk(self.lba_bytes())),
        }
    }
}

/// A controller that is up.
pub(crate) trait Rig: Sync {
    /// A queue on the first namespace.
    fn queue(&self, options: QueueOptions) -> RigQueue;

    /// The deepest queue that it has.
    fn most_depth(&self) -> usize;

    /// What went wrong so far.
    fn troubles(&self) -> Troubles;

    /// Takes the device away from under its queues, in the middle of whatever it does.
    fn cut_off(&self);
}

/// What happened to a controller that should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Troubles {
    /// Commands that passed their deadline, or ended in some other way than they should.
    pub(crate) timeouts: u64,
    pub(crate) resets: u64,
}

/// A queue of any engine.
pub(crate) enum RigQueue {
    Own(Box<QueuePair>),
    #[cfg(feature = "spdk")]
    Spdk(Box<xtent::internals::spdk::SpdkQueue>),
}

impl Queue for RigQueue {
    fn limits(&self) -> &Limits {
        match self {
            Self::Own(queue) => queue.limits(),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.limits(),
        }
    }

    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        match self {
            Self::Own(queue) => queue.submit(chain),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.submit(chain),
        }
    }

    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        match self {
            Self::Own(queue) => queue.poll(budget, done),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.poll(budget, done),
        }
    }

    fn outstanding(&self) -> usize {
        match self {
            Self::Own(queue) => queue.outstanding(),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.outstanding(),
        }
    }

    fn relax(&mut self) {
        match self {
            Self::Own(queue) => queue.relax(),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.relax(),
        }
    }
}

/// A controller under the crate's own driver.
struct OwnRig {
    device: Arc<dyn Device>,
    controller: Arc<Controller>,
}

impl Rig for OwnRig {
    fn queue(&self, options: QueueOptions) -> RigQueue {
        RigQueue::Own(Box::new(self.controller.queue(1, options).unwrap()))
    }

    fn most_depth(&self) -> usize {
        // A queue holds one command less than it has entries.
        self.controller.info().max_queue_entries as usize - 1
    }

    fn troubles(&self) -> Troubles {
        let stats = self.controller.stats();
        Troubles {
            resets: stats.resets,
            timeouts: u64::from(
                ControllerStats { resets: 0, ..stats } != ControllerStats::default(),
            ),
        }
    }

    fn cut_off(&self) {
        self.device.stop_dma().unwrap();
    }
}

/// The embedded controller.
struct Embedded {
    mode: Mode,
    lba_bytes: u32,
    mdts: u8,
    noiob_blocks: u16,
}

impl Embedded {
    /// As the options of a target say it.
    fn options(&self) -> String {
        let mut text = format!("lba={},mdts={}", self.lba_bytes, self.mdts);
        if self.noiob_blocks > 0 {
            let _ = write!(text, ",noiob={}", self.noiob_blocks);
        }
        text + match self.mode {
            Mode::Threaded => ",threaded",
            Mode::Inline => ",inline",
            Mode::Stepped => ",stepped",
        }
    }

    fn stand(self, is_for: For) -> Stand {
        let name = format!("embedded:{}", self.options());
        let kind = match (is_for, self.mode) {
            (For::Driver, Mode::Stepped) => "embedded, stepped",
            (For::Driver, Mode::Inline) => "embedded, inline",
            (For::Driver, Mode::Threaded) => "embedded, threaded",
            _ => "embedded",
        };
        Stand::new(name, kind, is_for, self)
    }
}

impl Engine for Embedded {
    fn device(&self) -> Arc<dyn Device> {
        let config = EmuConfig {
            medium: Medium::memory(CAPACITY_BYTES),
            lba_bytes: self.lba_bytes,
            mdts: self.mdts,
            noiob_blocks: self.noiob_blocks,
            mode: self.mode,
            // So that a stepped controller's deadlines come after a bearable number of steps.
            tick_ns: 20_000,
            ..EmuConfig::default()
        };
        EmuDevice::start(config).unwrap()
    }

    fn disk(&self, lba_bytes: u32) -> Disk {
        Disk::new(ImageHands::new(CAPACITY_BYTES, &self.options()), lba_bytes)
    }

    fn missing(&self) -> Option<String> {
        kernel_is_missing().or_else(loop_is_missing)
    }
}

fn embedded() -> Vec<Stand> {
    let mut stands = Vec::new();
    for lba_bytes in [512, 4096] {
        // For files, a device's way of working and its largest command each make a difference, by
        // themselves.
        for (mode, mdts) in [(Mode::Inline, 1), (Mode::Threaded, 5)] {
            let noiob_blocks = 0;
            let shape = Embedded {
                mode,
                lba_bytes,
                mdts,
                noiob_blocks,
            };
            stands.push(shape.stand(For::Files));
        }
        for mode in [Mode::Stepped, Mode::Inline, Mode::Threaded] {
            for (mdts, noiob_blocks) in [(0, 0), (1, 0), (5, 8), (0, 100), (5, 1)] {
                let shape = Embedded {
                    mode,
                    lba_bytes,
                    mdts,
                    noiob_blocks,
                };
                stands.push(shape.stand(For::Driver));
            }
        }
    }
    stands
}

/// A PCI controller over VFIO.
struct Pci {
    address: String,
}

impl Engine for Pci {
    fn device(&self) -> Arc<dyn Device> {
        PciHands::new(&self.address).to_xtent();
        VfioDevice::open(&self.address, &VfioOptions::default()).unwrap()
    }

    fn disk(&self, lba_bytes: u32) -> Disk {
        Disk::new(PciHands::new(&self.address), lba_bytes)
    }
}

/// The embedded controller behind a socket, served by this process.
struct Served {
    lba_bytes: u32,
    mdts: u8,
    options: ServerOptions,
    /// The server of the device that was given out last.
    serving: Mutex<Option<Serving>>,
}

impl Engine for Served {
    fn device(&self) -> Arc<dyn Device> {
        let config = EmuConfig {
            medium: Medium::memory(CAPACITY_BYTES),
            lba_bytes: self.lba_bytes,
            mdts: self.mdts,
            max_io_queues: 63,
            interrupt_vectors: 64,
            shadow_doorbells: !self.options.map_doorbells,
            ..EmuConfig::default()
        };
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        // The one before ends first.
        *serving = None;
        let new = serving.insert(Serving::start(config, &self.options));
        VfioUserDevice::open(new.socket(), &VfioUserOptions::default()).unwrap()
    }

    fn disk(&self, lba_bytes: u32) -> Disk {
        let options = format!("lba={lba_bytes},mdts={}", self.mdts);
        Disk::new(ServedHands::new(CAPACITY_BYTES, &options), lba_bytes)
    }

    fn missing(&self) -> Option<String> {
        kernel_is_missing().or_else(loop_is_missing)
    }
}

fn served() -> Vec<Stand> {
    let stand = |lba_bytes: u32, mdts: u8, map_doorbells: bool, is_for| {
        let doorbells = if map_doorbells {
            ""
        } else {
            ",no-mapped-doorbells"
        };
        let name = format!("vfio-user:lba={lba_bytes},mdts={mdts}{doorbells}");
        let options = ServerOptions {
            map_doorbells,
            ..ServerOptions::default()
        };
        let shape = Served {
            lba_bytes,
            mdts,
            options,
            serving: Mutex::new(None),
        };
        Stand::new(name, "vfio-user", is_for, shape)
    };
    vec![
        stand(512, 5, true, For::Both),
        stand(4096, 1, true, For::Driver),
        stand(512, 0, false, For::Driver),
    ]
}

/// A controller that another process serves on a socket.
struct Socket {
    path: String,
}

impl Engine for Socket {
    fn device(&self) -> Arc<dyn Device> {
        VfioUserDevice::open(&self.path, &VfioUserOptions::default()).unwrap()
    }

    fn disk(&self, _lba_bytes: u32) -> Disk {
        unreachable!("a controller that is only for the driver's tests")
    }
}

/// The stands that a word of `XTENT_CONFORMANCE` names.
fn kinds_of(word: &str) -> Vec<Stand> {
    match word.split_once(':') {
        None if word == "embedded" => embedded(),
        None if word == "vfio-user" => served(),
        Some(("vfio-user", path)) => {
            let path = path.to_owned();
            let socket = Socket { path };
            vec![Stand::new(
                word.to_owned(),
                "vfio-user",
                For::Driver,
                socket,
            )]
        }
        Some(("pci", address)) => {
            let address = address.to_owned();
            vec![Stand::new(
                word.to_owned(),
                "pci",
                For::Both,
                Pci { address },
            )]
        }
        #[cfg(feature = "spdk")]
        None if word == "spdk-tcp" || word == "spdk-vfio-user" => super::spdk::stands(word),
        _ => panic!(
            "XTENT_CONFORMANCE is a list of `embedded`, `vfio-user`, `vfio-user:SOCKET`, `pci:ADDRESS` and, with \
             the feature `spdk`, `spdk-tcp` and `spdk-vfio-user`, and names `{word}`"
        ),
    }
}

/// The stands that `XTENT_CONFORMANCE` names; without it the embedded controller, in this process
/// and behind a socket.
pub(crate) fn stands() -> Vec<Arc<Stand>> {
    let words = std::env::var("XTENT_CONFORMANCE").unwrap_or_else(|_| {
        println!("SKIPPED: pci: XTENT_CONFORMANCE names no controllers");
        "embedded,vfio-user".to_owned()
    });
    let words = words.split(',').filter(|word| !word.is_empty());
    words.flat_map(kinds_of).map(Arc::new).collect()
}

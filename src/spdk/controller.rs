//! A controller that SPDK drives: attached, described, shared by the queues of all threads.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use spdk_sys as ffi;

use super::attach::{AttachHost, attach, detach, new_hostnqn, peer_of};
use super::core::{Core, CoreShape};
use super::describe::{SpdkControllerInfo, describe};
use super::env::{EnvironmentOptions, SpdkEnvironment, attaching, forget_words, words};
use super::keeper;
use super::memory::{SpdkArenas, SpdkMemory, Windows};
use super::queue::SpdkQueue;
use super::transport::{Transport, TransportId};
use crate::block::{BlockRange, Limits};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{ArenaSource, Heap, Mapper};
use crate::sys::{SocketPeer, spawn_thread};

/// The generation of a controller that is gone for good.
pub(super) const GONE: u64 = u64::MAX;

/// How a controller is opened.
#[derive(Debug, Clone, Copy)]
pub struct SpdkControllerOptions {
    /// Time for the controller to come up, at first and after each reset or reconnection.
    pub connect_timeout: Duration,
    /// Time after which a controller that does not come back is gone.
    pub loss_timeout: Duration,
    /// Between two signs of life (fabrics).
    pub keep_alive: Duration,
}

impl Default for SpdkControllerOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            loss_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(10),
        }
    }
}

/// How a queue is made.
#[derive(Debug, Clone, Copy)]
pub struct SpdkQueueOptions {
    /// Chains outstanding at once.
    pub depth: usize,
    /// Most segments of a chain.
    pub max_segments: usize,
    /// Time after which a command counts as lost.
    pub timeout: Duration,
    /// How often a chain is sent again after a reset or a lost connection.
    pub retries: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The blocks that the queue may access.
    pub range: BlockRange,
}

impl Default for SpdkQueueOptions {
    fn default() -> Self {
        Self {
            depth: 128,
            max_segments: 8,
            timeout: Duration::from_secs(30),
            retries: 16,
            read_only: false,
            range: BlockRange::WHOLE,
        }
    }
}

/// What happened to a controller since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpdkStats {
    /// Commands that passed their deadline.
    pub timeouts: u64,
    /// Times that it was reset or connected again.
    pub resets: u64,
}

/// What the queues and the keeper share.
pub(super) struct SpdkShared {
    pub(super) host: AttachHost,
    pub(super) options: SpdkControllerOptions,
    pub(super) nsid: u32,
    pub(super) info: SpdkControllerInfo,
    /// Even while it is up, odd during a reset, or [`GONE`].
    pub(super) generation: AtomicU64,
    /// The generation to be ended by a requested reset, plus one; 0 for none.
    wanted: AtomicU64,
    pub(super) ctrlr: AtomicPtr<ffi::spdk_nvme_ctrlr>,
    /// The process that serves the controller, for vfio-user.
    pub(super) peer: Mutex<Option<SocketPeer>>,
    /// SPDK keeps it to the end of the process, because it could not be cut off from memory.
    pub(super) kept: AtomicBool,
    /// Held while queue pairs are made or the controller is reset.
    pub(super) cores: Mutex<Vec<Arc<Core>>>,
    pub(super) stop: AtomicBool,
    bell: Mutex<()>,
    rung: Condvar,
    pub(super) timeouts: AtomicU64,
    pub(super) resets: AtomicU64,
    started: Instant,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SpdkShared {
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Wants the controller reset, unless it was since `generation`.
    #[cold]
    pub(super) fn ask_reset(&self, generation: u64) {
        if self.wanted.fetch_max(generation + 1, Ordering::AcqRel) <= generation {
            let _bell = lock(&self.bell);
            self.rung.notify_all();
        }
    }

    pub(super) fn reset_is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) > self.generation.load(Ordering::Acquire)
    }

    /// Sleeps, but not when there is something to do: a reset is wanted, or the end.
    pub(super) fn sleep(&self, time: Duration, but_for_resets: bool) {
        let bell = lock(&self.bell);
        if self.stopping() || (but_for_resets && self.reset_is_wanted()) {
            return;
        }
        drop(self.rung.wait_timeout(bell, time));
    }

    /// Whether SPDK takes the controller for failed. The caller has the lock of `cores`.
    fn has_failed(&self) -> bool {
        let ctrlr = self.ctrlr.load(Ordering::Acquire);
        // SAFETY: attached while the lock is held. Polled, because that is how SPDK notices.
        let polled = unsafe { ffi::spdk_nvme_ctrlr_process_admin_completions(ctrlr) };
        // SAFETY: as above.
        polled < 0 || unsafe { ffi::spdk_nvme_ctrlr_is_failed(ctrlr) }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Gives the core a queue pair. The caller has the lock of `cores`; the core's own is taken
    /// only once the queue pair is connected, which may take a while: its owner does not wait for
    /// that.
    pub(super) fn equip(&self, core: &Core) -> Result<()> {
        let ctrlr = self.ctrlr.load(Ordering::Acquire);
        // SAFETY: the controller is attached: the keeper gives it up under the lock of `cores`,
        // which callers hold.
        let ns = unsafe { ffi::spdk_nvme_ctrlr_get_ns(ctrlr, self.nsid) };
        if ns.is_null() {
            return Err(Error::new(ErrorKind::NotFound, "the namespace is gone"));
        }
        let commands = u32::try_from(core.shape.commands).unwrap_or(1024);
        let entries = (commands + 1).min(self.info.max_queue_entries);
        // Cut at what PRPs cannot say and at boundaries, a command becomes several requests.
        let requests = commands.saturating_mul(4).max(256);
        let one_at_a_time = attaching();
        // SAFETY: as above.
        let qpair = unsafe { ffi::xtent_spdk_qpair(ctrlr, entries, requests) };
        drop(one_at_a_time);
        if qpair.is_null() {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("the controller grants no queue{}", words()),
            ));
        }
        let _guard = lock(&core.lock);
        core.ns.set(ns);
        core.qpair.set(qpair);
        Ok(())
    }
}

/// A controller that SPDK drives. Dropped, it is detached.
pub struct SpdkController {
    pub(super) shared: Arc<SpdkShared>,
    pub(super) arenas: Arc<SpdkArenas>,
    mapper: Arc<dyn Mapper>,
    environment: &'static SpdkEnvironment,
    /// The heap that it was opened with, to be left behind.
    heap: Mutex<Option<Heap>>,
    keeper: Option<JoinHandle<()>>,
}

/// Of connections that are cut, that of a new queue may be the first on which it shows: so long it
/// is asked again.
const SECOND_THOUGHTS: Duration = Duration::from_millis(320);

/// Controllers that are open in this process: SPDK would hand out the same one twice.
static OPEN: Mutex<Vec<(TransportId, Weak<SpdkShared>)>> = Mutex::new(Vec::new());

impl SpdkController {
    /// Attaches a controller; `nsid` names a namespace where it has several. The environment is
    /// started, if it is not, as `XTENT_SPDK` says.
    ///
    /// # Errors
    /// What keeps the environment from starting; a controller that cannot be reached or does not
    /// come up; a namespace that is not there or has a format that cannot be used.
    pub fn open(
        id: &TransportId,
        nsid: Option<u32>,
        options: SpdkControllerOptions,
    ) -> Result<Arc<Self>> {
        let environment = environment_for(id)?;
        if id.transport.is_fabrics() && id.subnqn.is_none() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "`subnqn` is missing: it names the subsystem; `xtent list` with the same words shows which there are",
            ));
        }
        let hostnqn = match &id.hostnqn {
            Some(name) => name.clone(),
            None => new_hostnqn()?,
        };
        check_not_open(id)?;
        let host = AttachHost {
            id: id.clone(),
            hostnqn,
            keep_alive: options.keep_alive,
            connect_timeout: options.connect_timeout,
            admin_timeout: options.connect_timeout,
        };
        let attached = attach(&host, options.connect_timeout)?;
        let info = match describe(&attached, nsid) {
            Ok(info) => info,
            Err(error) => {
                detach(attached);
                return Err(error);
            }
        };
        let shared = Arc::new(SpdkShared {
            host,
            options,
            nsid: info.nsid,
            info,
            generation: AtomicU64::new(2),
            wanted: AtomicU64::new(0),
            ctrlr: AtomicPtr::new(attached.0),
            peer: Mutex::new(peer_of(id)),
            kept: AtomicBool::new(false),
            cores: Mutex::default(),
            stop: AtomicBool::new(false),
            bell: Mutex::default(),
            rung: Condvar::new(),
            timeouts: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            started: Instant::now(),
        });
        lock(&OPEN).push((id.clone(), Arc::downgrade(&shared)));
        let for_keeper = Arc::clone(&shared);
        let keeper = spawn_thread("spdk-keeper", move || keeper::run(&for_keeper))
            .inspect_err(|_| detach(attached))?;
        let arenas = Arc::new(SpdkArenas::new(id.transport));
        Ok(Arc::new(Self {
            shared,
            mapper: arenas.clone(),
            arenas,
            environment,
            heap: Mutex::default(),
            keeper: Some(keeper),
        }))
    }

    /// Where the memory of a heap for this controller must come from; `None` for anywhere.
    pub fn arena_source(&self) -> Option<Arc<dyn ArenaSource>> {
        match self.shared.host.id.transport {
            Transport::VfioUser => Some(Arc::new(SpdkMemory(self.environment))),
            Transport::Pcie | Transport::Tcp | Transport::Rdma => None,
        }
    }

    /// Lets the controller reach the memory of a heap (see [`SpdkController::arena_source`]), until
    /// it is dropped.
    ///
    /// # Errors
    /// When SPDK cannot map it.
    pub fn attach(&self, heap: &Heap) -> Result<()> {
        heap.attach(Arc::clone(&self.mapper))?;
        let before = lock(&self.heap).replace(heap.clone());
        match before {
            Some(before) if before.backing().is_some() => before.detach(&self.mapper),
            _ => Ok(()),
        }
    }

    /// What the controller says of itself and its namespace.
    pub fn info(&self) -> &SpdkControllerInfo {
        &self.shared.info
    }

    /// What happened since it was opened.
    pub fn stats(&self) -> SpdkStats {
        SpdkStats {
            timeouts: self.shared.timeouts.load(Ordering::Relaxed),
            resets: self.shared.resets.load(Ordering::Relaxed),
        }
    }

    /// Resets the controller, or reconnects to it; in-flight chains are submitted again. Returns at
    /// once.
    pub fn reset(&self) {
        self.shared
            .ask_reset(self.shared.generation.load(Ordering::Acquire) & !1);
    }

    /// A queue for the calling thread. During a reset this waits for its end.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceGone`]; [`ErrorKind::OutOfMemory`] when the controller has no queue left.
    pub fn queue(self: &Arc<Self>, options: SpdkQueueOptions) -> Result<SpdkQueue> {
        let info = &self.shared.info;
        let depth = options.depth.clamp(1, 4095);
        let limits = Limits {
            block_bytes: info.block_bytes,
            capacity_blocks: options.range.blocks_on(info.blocks),
            max_segments: options.max_segments.clamp(1, 256),
            dma_align_bytes: info.block_bytes,
            max_transfer_bytes: Some(info.max_transfer_bytes),
            // SPDK resets by itself, after which the device may have a write cache again.
            volatile_write_cache: true,
            fua: true,
            write_zeroes: info.write_zeroes,
            deallocate: info.deallocate,
            read_only: options.read_only || info.read_only,
            depth,
        };
        let core = Arc::new(Core::new(CoreShape {
            limits,
            first_block: options.range.first(),
            commands: (depth * 2).clamp(16, 1023),
            retries: options.retries,
        }));
        let generation = self.admit(&core)?;
        let windows = Windows::new(&self.arenas);
        Ok(SpdkQueue::new(
            Arc::clone(self),
            core,
            windows,
            generation,
            options.timeout,
        ))
    }
}

impl SpdkController {
    /// Gives a new core a queue pair and a place among the others. The generation that it belongs
    /// to.
    fn admit(&self, core: &Arc<Core>) -> Result<u64> {
        let shared = &self.shared;
        let start = Instant::now();
        let mut was_reset = false;
        loop {
            // A reset has this lock all the while: afterwards the controller is up, or gone.
            let mut cores = lock(&shared.cores);
            let generation = shared.generation.load(Ordering::Acquire);
            if generation == GONE {
                return Err(Error::new(ErrorKind::DeviceGone, "the controller is gone"));
            }
            forget_words();
            let refused = match shared.equip(core) {
                Ok(()) => {
                    keeper::forget_dropped(&mut cores);
                    cores.push(Arc::clone(core));
                    return Ok(generation);
                }
                Err(error) => error,
            };
            let lost = shared.has_failed();
            drop(cores);
            if lost && was_reset {
                return Err(refused);
            }
            if lost {
                // The connection is lost, and no queue has noticed yet.
                was_reset = true;
                shared.ask_reset(generation);
                while shared.generation.load(Ordering::Acquire) == generation {
                    thread::sleep(Duration::from_millis(1));
                }
            } else if start.elapsed() >= SECOND_THOUGHTS {
                return Err(refused);
            } else {
                thread::sleep(SECOND_THOUGHTS / 16);
            }
        }
    }
}

impl Drop for SpdkController {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        drop(lock(&self.shared.bell));
        self.shared.rung.notify_all();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        if let Some(heap) = lock(&self.heap).take() {
            let _ = heap.detach(&self.mapper);
        }
        if !self.shared.kept.load(Ordering::Acquire) {
            let mine = Arc::downgrade(&self.shared);
            lock(&OPEN).retain(|(_, shared)| !shared.ptr_eq(&mine));
        }
    }
}

impl fmt::Debug for SpdkController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpdkController")
            .field("id", &self.shared.host.id.to_string())
            .field("generation", &self.shared.generation)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// The environment, with PCI where that is needed.
pub(super) fn environment_for(id: &TransportId) -> Result<&'static SpdkEnvironment> {
    let pci = id.transport == Transport::Pcie;
    let mut options = EnvironmentOptions::from_environment()?;
    options.pci |= pci;
    let environment = SpdkEnvironment::start(&options)?;
    if pci && !environment.options().pci {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "SPDK was started without PCI in this process: open PCIe targets first, or set XTENT_SPDK=pci=on",
        ));
    }
    Ok(environment)
}

fn check_not_open(id: &TransportId) -> Result<()> {
    // Under names of their own, connections to one subsystem are independent.
    if id.transport.is_fabrics() && id.hostnqn.is_none() {
        return Ok(());
    }
    let mut open = lock(&OPEN);
    open.retain(|(_, shared)| shared.strong_count() > 0);
    match open.iter().any(|(other, _)| other == id) {
        true => Err(Error::new(
            ErrorKind::Busy,
            "this process has the controller open already",
        )),
        false => Ok(()),
    }
}

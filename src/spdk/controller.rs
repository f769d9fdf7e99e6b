//! A controller that SPDK drives: attached, described, shared by the queues of all threads.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::attach::{AttachHost, attach, detach, new_hostnqn, peer_of};
use super::core::Core;
use super::describe::{SpdkControllerInfo, describe};
use super::env::{EnvironmentOptions, SpdkEnvironment, forget_words};
use super::keeper;
use super::memory::{SpdkArenas, SpdkMemory};
use super::options::SpdkControllerOptions;
use super::shared::{GONE, SpdkShared, lock};
use super::transport::{Transport, TransportId};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{ArenaSource, Heap, Mapper};
use crate::sys::spawn_thread;

/// What happened to a controller since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpdkStats {
    /// Commands that passed their deadline.
    pub timeouts: u64,
    /// Times that it was reset or connected again.
    pub resets: u64,
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

    /// Gives a new core a queue pair and a place among the others. The generation that it belongs
    /// to.
    pub(super) fn admit(&self, core: &Arc<Core>) -> Result<u64> {
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

//! A controller: bring-up, identify, features, reset, shutdown (sections 3.5 and 3.6).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use zerocopy::FromBytes;

use super::admin::{Admin, Failure};
use super::bell::Shadows;
use super::info::{
    ControllerInfo, other_command_set, parse_command_set, parse_controller, parse_namespace,
};
use super::pair::QueuePair;
use super::port::Port;
use super::spec::{
    CNS_ACTIVE_NAMESPACES, CNS_CONTROLLER, CNS_DESCRIPTORS, CNS_NAMESPACE, CSI_NVM,
    FEAT_VOLATILE_WRITE_CACHE, IdentifyController, IdentifyNamespace, OACS_DOORBELL_BUFFER_CONFIG,
};
use super::wait;
use crate::block::Wait;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Heap, Mapper};

/// How a controller is driven.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// I/O queue pairs to ask for; the controller may grant fewer.
    pub queues: u16,
    /// Deadline of one admin command.
    pub admin_timeout: Duration,
    /// Deadline of an orderly shutdown.
    pub shutdown_timeout: Duration,
    /// Shadow doorbells are used where the controller offers them, as emulated ones do.
    pub shadow_doorbells: bool,
    /// Scatter-gather lists are used for memory that physical region pages cannot say in one command, where the
    /// controller offers them.
    pub sgl: bool,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            queues: 128,
            admin_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(5),
            shadow_doorbells: true,
            sgl: true,
        }
    }
}

/// How a queue pair is made.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// Chains, and commands, that can be outstanding at once; 1 to 4095. The controller may allow fewer:
    /// see [`crate::block::Limits::depth`].
    pub depth: usize,
    /// Most segments in one chain.
    pub max_segments: usize,
    /// Deadline of one command, after which it is aborted and, if that does not help, the controller reset.
    pub timeout: Duration,
    /// How often one command is sent again, after a reset or an error that may pass.
    pub retries: u8,
    /// Refuse whatever would change the namespace.
    pub read_only: bool,
    /// How [`crate::block::Queue::relax`] waits. Anything but polling takes an interrupt vector of the device.
    pub wait: Wait,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            depth: 128,
            max_segments: 16,
            timeout: Duration::from_secs(30),
            retries: 4,
            read_only: false,
            wait: Wait::Poll,
        }
    }
}

/// What went wrong so far, all queues together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Controller resets.
    pub resets: u64,
    /// Abort commands sent.
    pub aborts: u64,
    /// Commands sent again.
    pub retries: u64,
    /// Completions that belonged to no outstanding command, or named a wrong queue.
    pub stale_completions: u64,
    /// Commands that missed their deadline, admin commands included.
    pub timeouts: u64,
    /// Sleeps that ended by the clock although a completion was there: its interrupt was lost, or very late.
    pub lost_interrupts: u64,
    /// Bytes of rings never given back, because the device could not be kept from using them.
    pub leaked_bytes: u64,
}

/// One statistic. Counted on slow paths only.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// [`Stats`] as they are counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) resets: Counter,
    pub(super) aborts: Counter,
    pub(super) retries: Counter,
    pub(super) stale: Counter,
    pub(super) timeouts: Counter,
    pub(super) lost_interrupts: Counter,
    pub(super) leaked_bytes: Counter,
}

/// The generation of a controller that is gone for good.
pub(super) const GONE: u64 = u64::MAX;

/// The register value of NVMe 1.3.
const VERSION_1_3: u32 = 0x0001_0300;

/// Most namespaces that are looked at.
const MAX_NAMESPACES: usize = 256;

/// An NVMe controller, up and running. Shared by the threads that have queues on it.
///
/// Dropping it (its queues hold it too) shuts the controller down and unmaps the heap.
pub struct Controller {
    /// Even: counts resets, and queues of another generation do not exist any more. Odd: a reset is going
    /// on. [`GONE`]: there is no controller any more. Changed under the admin lock only.
    generation: AtomicU64,
    pub(super) port: Port,
    info: ControllerInfo,
    pub(super) heap: Heap,
    mapper: Arc<dyn Mapper>,
    admin: Mutex<Admin>,
    pub(super) counters: Counters,
    options: ControllerOptions,
    /// Set once when the device could not be kept from host memory: rings are then leaked.
    dma_loose: AtomicBool,
}

impl Controller {
    /// Brings `device` up: maps `heap` in it, resets and enables it, identifies it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] or [`ErrorKind::DeviceGone`] saying what did not happen,
    /// [`ErrorKind::Unsupported`] or [`ErrorKind::Corrupt`] for a controller that cannot be driven, by name
    /// of the reason.
    pub fn open(
        device: Arc<dyn Device>,
        heap: &Heap,
        options: ControllerOptions,
    ) -> Result<Arc<Self>> {
        let name = device.name().to_owned();
        Self::bring_up(device, heap, options).map_err(|error| error.during("open").on_device(name))
    }

    fn bring_up(
        device: Arc<dyn Device>,
        heap: &Heap,
        options: ControllerOptions,
    ) -> Result<Arc<Self>> {
        let mapper = device.mapper();
        let port = Port::new(device)?;
        // What an earlier owner left running must stop before our memory is mapped.
        port.disable()?;
        let admin = Admin::new(&port, heap, options.admin_timeout)?;
        heap.attach(Arc::clone(&mapper))?;
        let info = ControllerInfo::unknown(port.device.name());
        // From here on dropping the controller undoes what was done.
        let mut controller = Self {
            generation: AtomicU64::new(0),
            port,
            info,
            heap: heap.clone(),
            mapper,
            admin: Mutex::new(admin),
            counters: Counters::default(),
            options,
            dma_loose: false.into(),
        };
        controller.info = controller.start()?;
        Ok(Arc::new(controller))
    }

    /// Enables the controller and learns what it is.
    fn start(&self) -> Result<ControllerInfo> {
        let mut admin = self.admin();
        admin.enable(&self.port)?;
        let bytes = admin
            .identify(&self.port, &self.counters, CNS_CONTROLLER, 0)
            .map_err(|failure| failure.into_error("identify controller"))?;
        let data = IdentifyController::read_from_bytes(&bytes[..])
            .map_err(|_| Error::new(ErrorKind::Corrupt, "identify controller is too short"))?;
        let name = self.port.device.name();
        let mut info = parse_controller(name, self.port.cap, self.port.version(), &data)?;
        info.namespaces = self.identify_namespaces(&mut admin, data.nn.get())?;
        if self.options.shadow_doorbells && data.oacs.get() & OACS_DOORBELL_BUFFER_CONFIG != 0 {
            admin.shadows = Some(Shadows::new(&self.heap)?);
            self.give_shadows(&mut admin)?;
            info.shadow_doorbells = admin.shadows.is_some();
        }
        info.queues = self.negotiate(&mut admin)?;
        admin.free_ids = (1..=info.queues).rev().collect();
        admin.free_vectors = wait::free_vectors(&*self.port.device);
        if info.volatile_write_cache {
            info.volatile_write_cache =
                match admin.feature(&self.port, &self.counters, FEAT_VOLATILE_WRITE_CACHE) {
                    Ok(value) => value & 1 == 1,
                    // It has one and does not say whether it is on: flushes are needed.
                    Err(Failure::Status(_)) => true,
                    Err(failure) => {
                        return Err(failure.into_error("get feature volatile write cache"));
                    }
                };
        }
        Ok(info)
    }

    fn give_shadows(&self, admin: &mut Admin) -> Result<()> {
        admin
            .give_shadows(&self.port, &self.counters)
            .map_err(|failure| failure.into_error("doorbell buffer config"))
    }

    fn negotiate(&self, admin: &mut Admin) -> Result<u16> {
        // A queue id is 16 bits, and 0 is the admin queue.
        let wanted = self.options.queues.clamp(1, u16::MAX - 1);
        admin
            .negotiate_queues(&self.port, &self.counters, wanted)
            .map_err(|failure| failure.into_error("set feature number of queues"))
    }

    fn identify_namespaces(
        &self,
        admin: &mut Admin,
        count: u32,
    ) -> Result<Vec<super::info::NamespaceInfo>> {
        let list = match admin.identify(&self.port, &self.counters, CNS_ACTIVE_NAMESPACES, 0) {
            Ok(bytes) => {
                let ids = bytes.chunks_exact(4);
                let ids = ids.map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
                ids.take_while(|&id| id != 0).collect::<Vec<_>>()
            }
            // Controllers before NVMe 1.1 do not have the list: ids are without gaps.
            Err(Failure::Status(_)) => (1..=count).take(MAX_NAMESPACES).collect(),
            Err(failure) => return Err(failure.into_error("identify active namespaces")),
        };
        let ascending = list.is_sorted_by(|a, b| a < b);
        if !ascending || list.last().is_some_and(|&last| last > count) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the list of active namespaces makes no sense: its ids do not ascend, or go beyond {count}"
                ),
            ));
        }
        let mut namespaces = Vec::new();
        for &nsid in list.iter().take(MAX_NAMESPACES) {
            let bytes = admin
                .identify(&self.port, &self.counters, CNS_NAMESPACE, nsid)
                .map_err(|failure| failure.into_error("identify namespace"))?;
            let data = IdentifyNamespace::read_from_bytes(&bytes[..])
                .map_err(|_| Error::new(ErrorKind::Corrupt, "identify namespace is too short"))?;
            let mut namespace = parse_namespace(nsid, &data);
            let set = self.command_set(admin, nsid)?;
            if set != CSI_NVM {
                namespace.unusable = Some(other_command_set(set));
            }
            namespaces.push(namespace);
        }
        Ok(namespaces)
    }

    /// The command set of a namespace. Controllers before NVMe 1.3 do not say; they know one only.
    fn command_set(&self, admin: &mut Admin, nsid: u32) -> Result<u8> {
        if self.port.version() < VERSION_1_3 {
            return Ok(CSI_NVM);
        }
        match admin.identify(&self.port, &self.counters, CNS_DESCRIPTORS, nsid) {
            Ok(bytes) => Ok(parse_command_set(&bytes[..])),
            Err(Failure::Status(_)) => Ok(CSI_NVM),
            Err(failure) => Err(failure.into_error("identify namespace descriptors")),
        }
    }

    /// What the controller says of itself.
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    pub(super) fn uses_sgl(&self) -> bool {
        self.options.sgl
    }

    /// What went wrong so far.
    pub fn stats(&self) -> Stats {
        Stats {
            resets: self.counters.resets.get(),
            aborts: self.counters.aborts.get(),
            retries: self.counters.retries.get(),
            stale_completions: self.counters.stale.get(),
            timeouts: self.counters.timeouts.get(),
            lost_interrupts: self.counters.lost_interrupts.get(),
            leaked_bytes: self.counters.leaked_bytes.get(),
        }
    }

    /// A queue pair on a namespace, for one thread.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a namespace that is not there, [`ErrorKind::Unsupported`] for one that
    /// cannot be used, [`ErrorKind::InvalidInput`] for options, [`ErrorKind::OutOfMemory`] when the
    /// controller has no queue left or the heap no memory.
    pub fn queue(self: &Arc<Self>, nsid: u32, options: QueueOptions) -> Result<QueuePair> {
        QueuePair::open(self, nsid, &options)
            .map_err(|error| error.during("open queue").on_device(&*self.info.device))
    }

    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The slow path's lock. What a panic left half-done there is in doubt no more than after a timeout.
    pub(super) fn admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock if nobody has it: polls do not wait for another thread's recovery.
    pub(super) fn try_admin(&self) -> Option<MutexGuard<'_, Admin>> {
        match self.admin.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Disables and enables the controller. All its I/O queues are gone then, and nothing of theirs is used
    /// by the device any more; their owners see the new generation. When it fails the controller is
    /// [`GONE`].
    #[cold]
    pub(super) fn reset(&self, admin: &mut Admin) -> Result<()> {
        let before = self.generation();
        if before == GONE {
            return Err(Error::new(ErrorKind::DeviceGone, "the controller is gone"));
        }
        self.counters.resets.add(1);
        // Owners that look now stop ringing; a doorbell that is rung all the same is of a queue that does
        // not exist, and is ignored by the device.
        self.generation.store(before | 1, Ordering::Release);
        let result = self.restart(admin);
        match result {
            Ok(()) => self.generation.store((before | 1) + 1, Ordering::Release),
            Err(_) => self.give_up(),
        }
        result
    }

    fn restart(&self, admin: &mut Admin) -> Result<()> {
        self.port.disable()?;
        admin.enable(&self.port)?;
        self.give_shadows(admin)?;
        let queues = self.negotiate(admin)?;
        if queues < self.info.queues {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the controller grants fewer queues after a reset than before",
            ));
        }
        Ok(())
    }

    /// Marks the controller as gone, after cutting it off from host memory. Under the admin lock.
    fn give_up(&self) {
        let cut_off = self.port.disable().is_ok()
            || self.port.device.stop_dma().is_ok()
            || self.heap.detach(&self.mapper).is_ok();
        self.dma_loose.store(!cut_off, Ordering::Relaxed);
        self.generation.store(GONE, Ordering::Release);
    }

    /// Whether memory that the device was given may never be reused. True only for a controller that is
    /// gone.
    pub(super) fn dma_is_loose(&self) -> bool {
        self.dma_loose.load(Ordering::Relaxed)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let admin = self.admin.get_mut().unwrap_or_else(PoisonError::into_inner);
        let loose = if self.generation.load(Ordering::Relaxed) == GONE {
            let _ = self.heap.detach(&self.mapper);
            self.dma_loose.load(Ordering::Relaxed)
        } else {
            // A shutdown that fails leaves the device as a power cut would; nobody is there to be told.
            let _ = self.port.shut_down(self.options.shutdown_timeout);
            let stopped = self.port.disable().is_ok() || self.port.device.stop_dma().is_ok();
            let unmapped = self.heap.detach(&self.mapper).is_ok();
            !stopped && !unmapped
        };
        if loose {
            self.counters.leaked_bytes.add(admin.leak() as u64);
        }
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("device", &self.info.device)
            .field("generation", &self.generation())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

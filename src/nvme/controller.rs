//! A controller: bring-up, reset, shutdown (sections 3.5 and 3.6).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::admin::{Admin, free_vectors};
use super::bell::ShadowDoorbells;
use super::counters::{ControllerCounters, ControllerStats};
use super::events::EventBacklog;
use super::info::ControllerInfo;
use super::port::Port;
use super::spec::OACS_DOORBELL_BUFFER_CONFIG;
use crate::block::{BlockRange, Wait};
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
    /// Scatter-gather lists are used for memory that physical region pages cannot say in one
    /// command, where the controller offers them.
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
    /// Chains, and commands, that can be outstanding at once; 1 to 4095. The controller may allow
    /// fewer: see [`crate::block::Limits::depth`].
    pub depth: usize,
    /// Most segments in one chain.
    pub max_segments: usize,
    /// Deadline of one command, after which it is aborted and, if that does not help, the
    /// controller reset.
    pub timeout: Duration,
    /// How often one command is sent again, after a reset or an error that may pass.
    pub retries: u8,
    /// Refuse whatever would change the namespace.
    pub read_only: bool,
    /// How [`crate::block::Queue::relax`] waits. Anything but polling takes an interrupt vector of
    /// the device.
    pub wait: Wait,
    /// The blocks that the queue may access.
    pub range: BlockRange,
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
            range: BlockRange::WHOLE,
        }
    }
}

/// The generation of a controller that is gone for good.
pub(super) const GONE: u64 = u64::MAX;

/// The generation counts resets above this bit, and changes of namespaces below, from bit 1 on. Bit
/// 0: a reset is going on.
const RESET_STEP: u64 = 1 << 32;
const NAMESPACES_STEP: u64 = 2;
const RESETTING: u64 = 1;

/// Whether the rings of one generation are those of another: no reset lies between them.
pub(super) fn same_rings(a: u64, b: u64) -> bool {
    a != GONE && b != GONE && (a | b) & RESETTING == 0 && a / RESET_STEP == b / RESET_STEP
}

/// Resets that are tried before a controller is given up.
const RESET_TRIES: usize = 2;

/// An NVMe controller, up and running. Shared by the threads that have queues on it.
///
/// Dropping it (its queues hold it too) shuts the controller down and unmaps the heap.
pub struct Controller {
    /// Changes with every reset and every change of a namespace; queues made before a reset do not
    /// exist any more ([`same_rings`]). [`GONE`]: there is no controller any more. Changed under
    /// the admin lock only.
    generation: AtomicU64,
    pub(super) port: Port,
    name: String,
    /// Replaced as a whole, under the admin lock.
    info: Mutex<Arc<ControllerInfo>>,
    kept: Mutex<EventBacklog>,
    pub(super) heap: Heap,
    mapper: Arc<dyn Mapper>,
    admin: Mutex<Admin>,
    pub(super) counters: ControllerCounters,
    options: ControllerOptions,
    /// Set once when the device could not be kept from host memory: rings are then leaked.
    dma_loose: AtomicBool,
}

impl Controller {
    /// Brings `device` up: maps `heap` in it, resets and enables it, identifies it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] or [`ErrorKind::DeviceGone`] saying what did not happen,
    /// [`ErrorKind::Unsupported`] or [`ErrorKind::Corrupt`] for a controller that cannot be driven,
    /// by name of the reason.
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
        // Before the first allocation: how much the device's host can pin decides how large arenas
        // are.
        heap.attach(Arc::clone(&mapper))?;
        let admin = Admin::new(&port, heap, options.admin_timeout).inspect_err(|_| {
            // Of memory that no device was told of.
            let _ = heap.detach(&mapper);
        })?;
        let name = port.device.name().to_owned();
        // From here on dropping the controller undoes what was done.
        let controller = Self {
            generation: AtomicU64::new(0),
            port,
            info: Mutex::new(Arc::new(ControllerInfo::unknown(&name))),
            name,
            kept: Mutex::default(),
            heap: heap.clone(),
            mapper,
            admin: Mutex::new(admin),
            counters: ControllerCounters::default(),
            options,
            dma_loose: false.into(),
        };
        controller.start()?;
        Ok(Arc::new(controller))
    }

    /// Enables the controller and learns what it is.
    fn start(&self) -> Result<()> {
        let mut admin = self.admin();
        admin.enable(&self.port)?;
        let mut info = self.learn(&mut admin)?;
        if self.options.shadow_doorbells && info.admin_commands & OACS_DOORBELL_BUFFER_CONFIG != 0 {
            admin.shadows = Some(ShadowDoorbells::new(&self.heap)?);
            self.give_shadows(&mut admin)?;
            info.shadow_doorbells = admin.shadows.is_some();
        }
        info.queues = self.negotiate(&mut admin)?;
        admin.free_ids = (1..=info.queues).rev().collect();
        admin.free_vectors = free_vectors(&*self.port.device);
        self.start_events(&mut admin, &info)?;
        self.set_info(info);
        Ok(())
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

    fn start_events(&self, admin: &mut Admin, info: &ControllerInfo) -> Result<()> {
        let (wanted, most) = (Self::events_wanted(info), info.event_requests);
        admin
            .start_events(&self.port, &self.counters, wanted, most)
            .map_err(|failure| failure.into_error("set feature asynchronous events"))
    }

    /// What the controller said of itself last.
    pub fn info(&self) -> Arc<ControllerInfo> {
        Arc::clone(&self.info.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_info(&self, info: ControllerInfo) {
        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(info);
    }

    /// The device's name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, EventBacklog> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn uses_sgl(&self) -> bool {
        self.options.sgl
    }

    /// What went wrong so far.
    pub fn stats(&self) -> ControllerStats {
        ControllerStats {
            resets: self.counters.resets.get(),
            aborts: self.counters.aborts.get(),
            retries: self.counters.retries.get(),
            stale_completions: self.counters.stale.get(),
            timeouts: self.counters.timeouts.get(),
            lost_interrupts: self.counters.lost_interrupts.get(),
            events: self.counters.events.get(),
            lost_events: self.kept().lost(),
            leaked_bytes: self.counters.leaked_bytes.get(),
        }
    }

    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The slow path's lock. What a panic left half-done there is in doubt no more than after a
    /// timeout.
    pub(super) fn admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if it is free: polls do not wait for another thread's recovery.
    pub(super) fn try_admin(&self) -> Option<MutexGuard<'_, Admin>> {
        match self.admin.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Disables and enables the controller. All its I/O queues are gone then, and nothing of theirs
    /// is used by the device any more; their owners see the new generation. When it fails the
    /// controller is [`GONE`].
    #[cold]
    pub(super) fn reset(&self, admin: &mut Admin) -> Result<()> {
        let before = self.generation();
        if before == GONE {
            return Err(Error::new(ErrorKind::DeviceGone, "the controller is gone"));
        }
        self.counters.resets.add(1);
        // Owners that look now stop ringing; a doorbell that is rung all the same is of a queue
        // that does not exist, and is ignored by the device.
        self.generation.store(before | RESETTING, Ordering::Release);
        let result = self.restart(admin);
        match result {
            Ok(()) => self
                .generation
                .store(before.wrapping_add(RESET_STEP), Ordering::Release),
            Err(_) => self.give_up(),
        }
        result
    }

    fn restart(&self, admin: &mut Admin) -> Result<()> {
        let mut tries = 1;
        loop {
            self.port.disable()?;
            let result = match admin.enable(&self.port) {
                Ok(()) => self.recognise(admin),
                // A second try takes as long again, for as little.
                Err(error) if error.kind() == ErrorKind::Timeout => return Err(error),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if tries < RESET_TRIES && error.kind() != ErrorKind::DeviceGone => {}
                result => return result,
            }
            tries += 1;
        }
    }

    /// After a reset: it must be the controller that it was; its namespaces may be others.
    fn recognise(&self, admin: &mut Admin) -> Result<()> {
        let before = self.info();
        self.give_shadows(admin)?;
        let mut now = self.learn(admin)?;
        now.queues = before.queues;
        now.shadow_doorbells = admin.shadows.is_some();
        let other = |what: &str| {
            Err(Error::new(
                ErrorKind::Unsupported,
                format!("after a reset the controller is not what it was: {what}"),
            ))
        };
        if (&now.model, &now.serial) != (&before.model, &before.serial) {
            return other("it has another model or serial number");
        }
        let transfer = |info: &ControllerInfo| info.max_transfer_bytes.unwrap_or(u32::MAX);
        if transfer(&now) < transfer(&before) {
            return other("its largest transfer is smaller");
        }
        if before.sgl && !now.sgl {
            return other("it does not take scatter gather lists any more");
        }
        if self.negotiate(admin)? < before.queues {
            return other("it grants fewer queues");
        }
        self.start_events(admin, &now)?;
        // Whatever was replaced is found by its users: they all create their queues again.
        self.adopt(admin, now);
        Ok(())
    }

    /// Has every queue look at its namespace at its next poll. Under the admin lock.
    pub(super) fn tell_queues(&self) {
        let generation = self.generation();
        if generation != GONE {
            // The part that counts changes goes round in itself.
            let resets = generation & !(RESET_STEP - 1);
            let changes = generation.wrapping_add(NAMESPACES_STEP) & (RESET_STEP - 1);
            self.generation.store(resets | changes, Ordering::Release);
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.generation() == GONE
    }

    /// Marks the controller as gone, after cutting it off from host memory. Under the admin lock.
    fn give_up(&self) {
        let cut_off = self.port.disable().is_ok()
            || self.port.device.stop_dma().is_ok()
            || self.heap.detach(&self.mapper).is_ok();
        self.dma_loose.store(!cut_off, Ordering::Relaxed);
        self.generation.store(GONE, Ordering::Release);
    }

    /// Whether memory that the device was given may never be reused. True only for a controller
    /// that is gone.
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
            // A failed shutdown leaves the device as a power cut does, and `drop` cannot return an
            // error.
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
            .field("device", &self.name)
            .field("generation", &self.generation())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

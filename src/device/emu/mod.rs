//! The embedded NVMe controller: a real device side, in this process.
//!
//! Layer 1. Registers, doorbells, admin and I/O queues, PRPs and SGLs, identify, features, a
//! volatile write cache with flush and FUA, deallocate, abort, shutdown: after the NVMe base
//! specification 2.0c and the NVM command set specification 1.0c, as a controller of version 1.4.
//! The driver cannot distinguish it from hardware. Its medium is a file or memory ([`Medium`]); it
//! runs in a thread of its own, in the thread that waits for it, or step by step ([`Mode`]); and it
//! fails on request ([`FaultPlan`]).
//!
//! Host memory is reached only through [`crate::mem::DmaSpace`], so that a wrong address is a data
//! transfer error and never an access. Everything that a host can write is hostile input here.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Arena, DmaSpace, Doorbell, DoorbellArray, Mapper};
use crate::nvme::spec::{CriticalWarning, EventWord, REG_DOORBELLS, StatusField, status_name};
use crate::sys::EventFd;

mod admin;
mod bits;
mod cache;
mod clock;
mod config;
mod control;
mod controller;
mod fault;
mod features;
mod health;
mod health_state;
mod host_range;
mod identify;
mod io;
mod irq;
mod medium;
mod namespace;
mod offer;
mod prp;
mod queue;
mod registers;
mod sgl;
mod shadow;
mod shadow_pages;
mod stats;
mod worker;

pub use config::{AtomicOffer, DatasetOffer, EmuConfig, Mode, Past};
pub use fault::{Fault, FaultPlan, FaultRate, FaultRule, Scope};
pub use medium::Medium;
pub use stats::EmuStats;

use clock::EmuClock;
use controller::EmuController;
use irq::EmuVectors;
use registers::EmuRegisters;

/// Commands of one `relax()` of an inline controller.
const INLINE_PASS: usize = 64;
/// Waiting rounds of a thread between two offers of its processor to the thread that runs the
/// controller.
const RELAX_YIELD_EVERY: u32 = 256;

/// An embedded controller, running. Dropping it stops its thread; a file as medium keeps what was
/// written.
#[derive(Debug)]
pub struct EmuDevice {
    name: String,
    mode: Mode,
    tick_ns: u64,
    auto_relax: bool,
    stride_shift: u8,
    shared: Arc<EmuShared>,
    mapper: Arc<EmuMapper>,
    thread: Option<JoinHandle<()>>,
}

/// What the controller's thread and the host's threads share.
#[derive(Debug)]
struct EmuShared {
    registers: Arc<EmuRegisters>,
    clock: Arc<EmuClock>,
    vectors: Arc<EmuVectors>,
    controller: Mutex<EmuController>,
    /// Memory for the counters to raise, kept from one pass to the next.
    spare: Mutex<Vec<Arc<EventFd>>>,
    /// Host threads that want the lock: the worker lets them in.
    waiting: AtomicU32,
    stop: AtomicBool,
    sleeping: AtomicBool,
}

impl EmuShared {
    /// Uses the controller, for a host thread; raises the interrupts that come of it once it is
    /// released.
    fn with<T>(&self, work: impl FnOnce(&mut EmuController) -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.controller.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.work_and_raise(guard.unwrap_or_else(PoisonError::into_inner), work)
    }

    /// One pass of the worker.
    fn worker_pass(&self, budget: usize) -> usize {
        while self.waiting.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        let controller = self.controller.lock();
        let controller = controller.unwrap_or_else(PoisonError::into_inner);
        self.work_and_raise(controller, |controller| controller.pass(budget))
    }

    /// A pass; `None` while another thread is at it.
    fn try_pass(&self, budget: usize) -> Option<usize> {
        let controller = match self.controller.try_lock() {
            Ok(controller) => controller,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.work_and_raise(controller, |controller| controller.pass(budget)))
    }

    #[inline]
    fn work_and_raise<T>(
        &self,
        mut controller: MutexGuard<'_, EmuController>,
        work: impl FnOnce(&mut EmuController) -> T,
    ) -> T {
        let done = work(&mut controller);
        if controller.due.is_empty() {
            return done;
        }
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = std::mem::take(&mut *spare());
        controller.take_due(&mut events);
        drop(controller);
        for event in events.drain(..) {
            event.raise();
        }
        *spare() = events;
        done
    }
}

/// Maps arenas for the device. When one is unmapped no transfer is under way and no queue uses it.
#[derive(Debug)]
struct EmuMapper {
    space: Arc<DmaSpace>,
    shared: Weak<EmuShared>,
}

impl Mapper for EmuMapper {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        self.space.map(arena)
    }

    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        let Some(shared) = self.shared.upgrade() else {
            return self.space.unmap(arena);
        };
        shared.with(|controller| {
            let done = self.space.unmap(arena);
            controller.remap_queues();
            done
        })
    }
}

impl EmuDevice {
    /// Powers a controller on, disabled as after a reset.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a configuration that makes no sense, [`ErrorKind::System`]
    /// when the thread cannot be started.
    pub fn start(config: EmuConfig) -> Result<Arc<Self>> {
        config.check()?;
        let words = (2 * (usize::from(config.max_io_queues) + 1)) << config.doorbell_stride_shift;
        let doorbells = DoorbellArray::new(words)?;
        let registers = Arc::new(EmuRegisters::new(&config));
        let space = Arc::new(DmaSpace::default());
        let clock = Arc::new(match config.mode {
            Mode::Stepped => EmuClock::Virtual(0.into()),
            Mode::Threaded | Mode::Inline => EmuClock::Real(std::time::Instant::now()),
        });
        let (name, mode, tick_ns) = (config.name.clone(), config.mode, config.tick_ns);
        let (auto_relax, spin_ns) = (config.auto_relax, config.spin_ns);
        let stride_shift = config.doorbell_stride_shift;
        let vectors = Arc::new(EmuVectors::new(match config.mode {
            Mode::Threaded | Mode::Stepped => config.interrupt_vectors,
            // A thread that sleeps on a vector does not do the controller's work.
            Mode::Inline => 0,
        }));
        let controller = EmuController::new(
            config,
            Arc::clone(&registers),
            Arc::clone(&space),
            doorbells,
            Arc::clone(&clock),
            Arc::clone(&vectors),
        );
        let shared = Arc::new(EmuShared {
            registers,
            clock,
            vectors,
            controller: Mutex::new(controller),
            spare: Mutex::default(),
            waiting: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
        });
        let thread = match mode {
            Mode::Threaded => Some(spawn(&shared, Duration::from_nanos(spin_ns))?),
            Mode::Inline | Mode::Stepped => None,
        };
        Ok(Arc::new(Self {
            name,
            mode,
            tick_ns,
            auto_relax,
            stride_shift,
            mapper: Arc::new(EmuMapper {
                space,
                shared: Arc::downgrade(&shared),
            }),
            shared,
            thread,
        }))
    }

    /// The thread that does the work.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Does up to `commands` commands (or endings of commands that were held back), one after the
    /// other, each a tick of the clock apart; how many it was. Meant for [`Mode::Stepped`], where
    /// nothing else makes the controller work; allowed in every mode.
    pub fn step(&self, commands: usize) -> usize {
        for done in 0..commands {
            if self.shared.with(|controller| controller.pass(1)) == 0 {
                return done;
            }
            self.shared.clock.advance(self.tick_ns);
        }
        commands
    }

    /// Advances the clock of a stepped controller. The next step does the work that is due by then.
    pub fn advance_ns(&self, ns: u64) {
        self.shared.clock.advance(ns);
    }

    /// What happened since the start.
    pub fn stats(&self) -> EmuStats {
        self.shared.with(|controller| controller.stats.clone())
    }

    /// Adds a fault to those planned.
    pub fn inject(&self, rule: FaultRule) {
        self.shared.with(|controller| controller.faults.add(rule));
    }

    /// Replaces all faults, those injected included.
    pub fn set_faults(&self, plan: FaultPlan) {
        let faults = fault::Faults::new(plan);
        self.shared.with(|controller| controller.faults = faults);
    }

    /// Another temperature, in kelvins: over the host's threshold there is a SMART warning, and an
    /// event for a host that asked for it.
    pub fn set_temperature(&self, kelvins: u16) {
        self.shared
            .with(|controller| controller.set_temperature(kelvins));
        self.wake();
    }

    /// Sets the critical warnings in the SMART log; new ones are reported to the host, if it
    /// enabled that.
    pub fn set_warning(&self, warning: CriticalWarning) {
        self.shared
            .with(|controller| controller.set_warning(warning));
        self.wake();
    }

    /// Raises an event, whatever the host asked for, and whether it makes sense or not.
    pub fn raise(&self, event: EventWord) {
        self.shared.with(|controller| controller.raise(event));
        self.wake();
    }

    /// Another size for the namespace, in blocks, at most what its medium has; the host hears of
    /// it. Returns the size that it has then.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceGone`] when the medium was taken.
    pub fn resize(&self, blocks: u64) -> Result<u64> {
        let blocks = self.shared.with(|controller| {
            let namespace = controller.namespaces.first_mut();
            let blocks = namespace
                .ok_or_else(|| self.without_medium())?
                .resize(blocks);
            controller.namespace_changed(1);
            Ok::<_, Error>(blocks)
        })?;
        self.wake();
        Ok(blocks)
    }

    /// Another size for the namespace's blocks, in bytes: 512 or 4096, as if another host had
    /// formatted it; this one hears of it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for another block size, [`ErrorKind::DeviceGone`] when the
    /// medium was taken, [`ErrorKind::Io`] when it fails.
    pub fn format(&self, lba_bytes: u32) -> Result<()> {
        if !matches!(lba_bytes, 512 | 4096) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("the block size is {lba_bytes}, and must be 512 or 4096"),
            ));
        }
        self.shared.with(|controller| {
            let namespace = controller.namespaces.first_mut();
            let namespace = namespace.ok_or_else(|| self.without_medium())?;
            namespace.format(lba_bytes).map_err(of_medium)?;
            controller.namespace_changed(1);
            Ok::<_, Error>(())
        })?;
        self.wake();
        Ok(())
    }

    fn without_medium(&self) -> Error {
        Error::new(ErrorKind::DeviceGone, "the medium was taken already")
            .on_device(self.name.as_str())
    }

    /// Cuts the power: the device is gone for its host (registers read as ones), commands under way
    /// are done, half done or not done, and with [`EmuConfig::cache_model`] every block that was
    /// not made durable is kept or lost, by `seed`. The medium that is left can be put into a new
    /// controller.
    ///
    /// # Errors
    /// [`ErrorKind::DeviceGone`] when the medium was taken before, [`ErrorKind::Io`] when it fails.
    pub fn power_cut(&self, seed: u64) -> Result<Medium> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let medium = self
            .shared
            .with(|controller| controller.power_cut(&mut rng));
        self.taken(medium, "cut the power")
    }

    /// Ends the device orderly: everything written is made durable. For its host it is gone.
    ///
    /// # Errors
    /// As for [`EmuDevice::power_cut`].
    pub fn power_off(&self) -> Result<Medium> {
        let medium = self.shared.with(EmuController::power_off);
        self.taken(medium, "power off")
    }

    fn taken(
        &self,
        medium: Option<Result<Medium, StatusField>>,
        operation: &'static str,
    ) -> Result<Medium> {
        let error = match medium {
            Some(Ok(medium)) => return Ok(medium),
            Some(Err(status)) => of_medium(status),
            None => Error::new(ErrorKind::DeviceGone, "the medium was taken already"),
        };
        Err(error.during(operation).on_device(self.name.as_str()))
    }

    /// The doorbells of the host that comes next, which is another process: no host before it has
    /// them.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`]; the next host must then not be served.
    pub(in crate::device) fn new_doorbells(&self) -> Result<Arc<DoorbellArray>> {
        self.shared.with(|controller| {
            let doorbells = DoorbellArray::new(controller.doorbells.len())?;
            let old = std::mem::replace(&mut controller.doorbells, Arc::clone(&doorbells));
            old.give_back();
            Ok(doorbells)
        })
    }

    /// The host has left: the device is as after power-on, whatever faults are planned, reaches no
    /// memory of another process, and raises no counter.
    pub(in crate::device) fn forget_host(&self) {
        self.shared.with(|controller| {
            controller.forget_host();
            self.mapper.space.unmap_peers();
        });
    }

    /// From now on an interrupt vector raises this counter, or none; vectors that there are not
    /// raise nothing.
    pub(in crate::device) fn set_interrupt(&self, vector: u16, event: Option<Arc<EventFd>>) {
        self.shared.vectors.set(vector, event);
    }

    /// Raises an interrupt.
    pub(in crate::device) fn raise_interrupt(&self, vector: u16) {
        if let Some(event) = self.shared.vectors.event(vector) {
            event.raise();
        }
    }

    /// Changes what the device reaches of memory, while no transfer is under way.
    pub(in crate::device) fn change_memory<T>(&self, change: impl FnOnce(&DmaSpace) -> T) -> T {
        self.shared.with(|controller| {
            let changed = change(&self.mapper.space);
            controller.remap_queues();
            changed
        })
    }

    /// After a register access of the host.
    fn wake(&self) {
        match (&self.thread, self.mode) {
            (Some(thread), _) => self.unpark(thread.thread()),
            (None, Mode::Inline) => {
                self.shared.try_pass(INLINE_PASS);
            }
            (None, _) => {}
        }
    }

    fn unpark(&self, thread: &Thread) {
        // A doorbell that was rung before is seen by the thread, or its sleep is seen here (see
        // `worker`).
        fence(Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::SeqCst) {
            thread.unpark();
        }
    }
}

fn of_medium(status: StatusField) -> Error {
    let what = status_name(status.sct(), status.sc());
    Error::new(ErrorKind::Io, format!("the medium reported {what}"))
}

fn spawn(shared: &Arc<EmuShared>, spin: Duration) -> Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    crate::sys::spawn_thread("xtent-emu", move || worker::run(&shared, spin))
}

impl Device for EmuDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn read32(&self, offset: u32) -> u32 {
        self.shared.registers.read32(offset)
    }

    fn read64(&self, offset: u32) -> u64 {
        self.shared.registers.read64(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.shared
            .with(|controller| controller.write32(offset, value));
        self.wake();
    }

    fn write64(&self, offset: u32, value: u64) {
        self.shared.with(|controller| {
            controller.write32(offset, (value & 0xffff_ffff) as u32);
            controller.write32(offset.wrapping_add(4), (value >> 32) as u32);
        });
        self.wake();
    }

    fn doorbell(&self, offset: u32) -> Result<Doorbell> {
        let stride = 4_u32 << self.stride_shift;
        offset
            .checked_sub(REG_DOORBELLS)
            .filter(|from| from.is_multiple_of(stride))
            .and_then(|from| usize::try_from(from / 4).ok())
            .and_then(|index| {
                self.shared
                    .with(|controller| Doorbell::in_array(&controller.doorbells, index))
            })
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!("there is no doorbell at register offset {offset:#x}"),
                )
                .on_device(self.name.as_str())
            })
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        self.mapper.clone()
    }

    fn stop_dma(&self) -> Result<()> {
        // Transfers happen under the lock: when it is ours, none is under way.
        if self.shared.with(EmuController::stop_dma) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, "the device did not stop its DMA")
            .on_device(self.name.as_str()))
    }

    fn now_ns(&self) -> u64 {
        self.shared.clock.now_ns()
    }

    fn work_for_pollers(&self) {
        if self.mode == Mode::Inline {
            self.shared.try_pass(INLINE_PASS);
        }
    }

    fn relax(&self, silent: u32, _outstanding: u32) {
        match self.mode {
            Mode::Threaded => {
                if let Some(thread) = &self.thread {
                    self.unpark(thread.thread());
                }
                // On a machine with fewer processors than pollers the controller's thread must get
                // one.
                if silent % RELAX_YIELD_EVERY == RELAX_YIELD_EVERY - 1 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
            Mode::Inline => match self.shared.try_pass(INLINE_PASS) {
                // On a machine with fewer processors than pollers that thread may wait for one.
                None if silent % RELAX_YIELD_EVERY == RELAX_YIELD_EVERY - 1 => {
                    std::thread::yield_now();
                }
                None | Some(0) => std::hint::spin_loop(),
                Some(_) => {}
            },
            Mode::Stepped => {
                if self.auto_relax {
                    self.shared.with(|controller| controller.pass(1));
                }
                self.shared.clock.advance(self.tick_ns);
            }
        }
    }

    fn is_gone(&self) -> bool {
        self.shared.registers.gone.load(Ordering::Acquire)
    }

    fn interrupt_vectors(&self) -> u16 {
        self.shared.vectors.count()
    }

    fn interrupt(&self, vector: u16) -> Result<Arc<EventFd>> {
        let count = self.interrupt_vectors();
        let error = match self.shared.vectors.connect(vector) {
            Some(Ok(event)) => return Ok(event),
            Some(Err(error)) => Error::system("cannot make an eventfd", error),
            None if count == 0 => Error::new(
                ErrorKind::Unsupported,
                "this embedded controller has no interrupts; it can only be polled",
            ),
            None => Error::new(
                ErrorKind::InvalidInput,
                format!("there is no interrupt vector {vector}: there are {count}"),
            ),
        };
        Err(error.on_device(self.name.as_str()))
    }
}

impl Drop for EmuDevice {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A worker that panicked has nothing more to say here.
            let _ = thread.join();
        }
    }
}

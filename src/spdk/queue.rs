//! One thread's queue on a namespace that SPDK drives.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use spdk_sys as ffi;

use super::controller::SpdkController;
use super::core::{Core, CoreShape, Overdue};
use super::env::attaching;
use super::keeper::release;
use super::memory::Windows;
use super::options::SpdkQueueOptions;
use super::shared::{GONE, lock};
use super::slots::{SpdkPiece, SpdkStage};
use super::transport::Transport;
use crate::block::{Chain, Completion, DeallocateGrain, Limits, Op, Queue, Refused};
use crate::error::Result;

/// Polls between two looks at the clock, where the caller never relaxes.
const POLLS_PER_LOOK: u32 = 4096;
/// One [`Queue::relax`] counts as this many polls.
const RELAX_WEIGHT: u32 = 64;
/// Rounds without a completion before a waiting thread offers its processor to others, and between
/// two such offers. The controller may be a program on this machine that has none; one that has
/// answers sooner. A round of TCP is a system call, the others read memory.
fn offers_of(transport: Transport) -> (u32, u32) {
    match transport {
        // Hardware needs no processor, but a reset of it takes long.
        Transport::Pcie => (1 << 14, 1 << 10),
        Transport::Tcp => (64, 8),
        _ => (1024, 64),
    }
}
/// How long a waiting thread sleeps at a time while the controller is being reset or its target is
/// away.
const AWAY_SLEEP: Duration = Duration::from_micros(100);
/// Completions that are taken out at once.
const BATCH: usize = 32;

/// A queue over one SPDK queue pair. Belongs to one thread at a time.
///
/// Dropping it waits for in-flight chains, which end by their deadline or with the controller.
pub struct SpdkQueue {
    core: Arc<Core>,
    controller: Arc<SpdkController>,
    windows: Windows,
    /// The controller's generation that the queue pair belongs to.
    generation: u64,
    limits: Limits,
    block_shift: u32,
    countdown: u32,
    timeout_ns: u64,
    next_look_ns: u64,
    /// Completions that were taken out of the core, to be handed over from `next_in_batch` on. They
    /// stay here when the caller's code panics.
    batch: [Option<Completion>; BATCH],
    next_in_batch: usize,
    /// [`Queue::relax`] since the last completion.
    silent: u32,
    offers: (u32, u32),
}

impl SpdkController {
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
            deallocate_grain: DeallocateGrain::ANY,
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

impl SpdkQueue {
    fn new(
        controller: Arc<SpdkController>,
        core: Arc<Core>,
        windows: Windows,
        generation: u64,
        timeout: Duration,
    ) -> Self {
        let limits = core.shape.limits;
        let offers = offers_of(controller.shared.host.id.transport);
        Self {
            core,
            controller,
            windows,
            generation,
            limits,
            block_shift: limits.block_bytes.trailing_zeros(),
            countdown: POLLS_PER_LOOK,
            timeout_ns: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
            next_look_ns: 0,
            batch: [None; BATCH],
            next_in_batch: BATCH,
            silent: 0,
            offers,
        }
    }

    /// Refuses what must not reach the device.
    fn check(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        let limits = &self.limits;
        let wrong = match chain.op {
            Op::Flush if chain.blocks != 0 => Some("a flush has no blocks"),
            Op::Flush => None,
            Op::Write | Op::WriteZeroes | Op::Deallocate if limits.read_only => {
                return Err(Refused::ReadOnly);
            }
            Op::WriteZeroes if !limits.write_zeroes => Some("write zeroes is not offered"),
            Op::Deallocate if !limits.deallocate => Some("deallocate is not offered"),
            _ if chain.blocks == 0 => Some("a chain has at least one block"),
            _ if chain
                .lba
                .checked_add(chain.blocks)
                .is_none_or(|end| end.0 > limits.capacity_blocks) =>
            {
                Some("the blocks are outside of the device")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(Refused::Invalid(wrong));
        }
        if !matches!(chain.op, Op::Read | Op::Write) {
            return match chain.segments {
                [] => Ok(()),
                _ => Err(Refused::Invalid("this operation takes no memory")),
            };
        }
        if chain.segments.len() > limits.max_segments {
            return Err(Refused::Invalid("more memory segments than the limit"));
        }
        let mut sum = 0u64;
        for segment in chain.segments {
            if segment.iova().0 % 4 != 0 || segment.len_bytes() % limits.block_bytes != 0 {
                return Err(Refused::Invalid(
                    "memory is not aligned, or not in whole blocks",
                ));
            }
            if segment.len_bytes() == 0 || self.windows.find(segment).is_none() {
                return Err(Refused::Invalid("memory is not mapped in the device"));
            }
            sum += u64::from(segment.len_bytes());
        }
        match sum >> self.block_shift == chain.blocks {
            true => Ok(()),
            false => Err(Refused::Invalid(
                "memory and blocks are not of the same length",
            )),
        }
    }

    /// Periodic checks, also made after a failure. False when the queue pair is unusable.
    #[cold]
    fn look(&mut self) {
        self.countdown = POLLS_PER_LOOK;
        let shared = Arc::clone(&self.controller.shared);
        let now = shared.now_ns();
        if now < self.next_look_ns {
            return;
        }
        self.next_look_ns = now + (self.timeout_ns / 16).min(250_000_000);
        let timeout = self.timeout_ns;
        let Some(_inside) = self.core.gate.enter(&shared.generation, self.generation) else {
            return;
        };
        let qpair = self.core.qpair.get();
        let must_reset = qpair.is_null()
            || self.core.look(now, |stage, age, command| match stage {
                SpdkStage::Sent if age >= timeout => {
                    if !shared.host.id.transport.has_aborts() {
                        shared.timeouts.fetch_add(1, Ordering::Relaxed);
                        return Overdue::Reset;
                    }
                    let ctrlr = shared.ctrlr.load(Ordering::Acquire);
                    // SAFETY: attached, and the queue pair is its: inside of the gate. SPDK
                    // compares the command's address; the callback touches nothing.
                    let rc = unsafe {
                        ffi::spdk_nvme_ctrlr_cmd_abort_ext(
                            ctrlr,
                            qpair,
                            command,
                            Some(on_abort),
                            std::ptr::null_mut(),
                        )
                    };
                    // The admin queue is full: at the next look, unless that does not change.
                    if rc == -libc::ENOMEM && age < timeout.saturating_mul(2) {
                        return Overdue::No;
                    }
                    shared.timeouts.fetch_add(1, Ordering::Relaxed);
                    match rc {
                        0 => Overdue::Aborted,
                        _ => Overdue::Reset,
                    }
                }
                SpdkStage::Aborted if age >= timeout / 2 => Overdue::Reset,
                SpdkStage::Sent | SpdkStage::Aborted => Overdue::No,
            });
        if must_reset {
            shared.ask_reset(self.generation);
        }
    }

    /// The controller has another generation: it is being reset, was reset, or is gone. Hands over
    /// what has ended meanwhile.
    #[cold]
    fn rejoin(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        self.countdown = 0;
        self.next_in_batch = 0;
        {
            let _guard = match self.core.lock.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // The keeper is at it.
                Err(TryLockError::WouldBlock) => return 0,
            };
            let generation = self.controller.shared.generation.load(Ordering::Acquire);
            if generation == GONE {
                self.core.end_all();
            } else if generation.is_multiple_of(2) {
                self.generation = generation;
                return 0;
            }
            for place in self.batch.iter_mut().take(budget) {
                *place = self.core.next_ended();
            }
        }
        self.hand_over(budget, done)
    }

    /// Lets other threads have the processor.
    #[cold]
    fn offer(&self) {
        let generation = &self.controller.shared.generation;
        match generation.load(Ordering::Relaxed) == self.generation {
            true => thread::yield_now(),
            // The keeper is bringing it up again, and that takes long.
            false => thread::sleep(AWAY_SLEEP),
        }
    }

    /// Delivers the rest of the batch; returns their number.
    #[inline]
    fn hand_over(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        let mut count = 0;
        while count < budget
            && let Some(completion) = self
                .batch
                .get_mut(self.next_in_batch)
                .and_then(Option::take)
        {
            self.next_in_batch += 1;
            count += 1;
            done(completion);
        }
        count
    }

    /// Completions of the batch that are still to be handed over.
    fn left_in_batch(&self) -> usize {
        let left = self.batch.get(self.next_in_batch..).unwrap_or_default();
        left.iter().flatten().count()
    }

    /// One round inside of the gate, for at most `room` completions.
    #[inline]
    fn round(&mut self, room: usize) -> Option<usize> {
        let core = &self.core;
        let generation = &self.controller.shared.generation;
        let _inside = core.gate.enter(generation, self.generation)?;
        core.send_waiting();
        let qpair = core.qpair.get();
        if !core.has_ended() && core.outstanding.get() > 0 && !qpair.is_null() {
            // At most BATCH.
            let most = u32::try_from(room).unwrap_or(1);
            // SAFETY: the controller's, and this thread's: inside of the gate.
            let rc = unsafe { ffi::spdk_nvme_qpair_process_completions(qpair, most) };
            if rc < 0 {
                self.controller.shared.ask_reset(self.generation);
            }
        }
        self.next_in_batch = 0;
        let mut count = 0;
        for place in self.batch.iter_mut().take(room) {
            *place = core.next_ended();
            if place.is_none() {
                break;
            }
            count += 1;
        }
        Some(count)
    }
}

/// An abort was answered: the aborted command says the rest.
unsafe extern "C" fn on_abort(_: *mut std::ffi::c_void, _: *const ffi::spdk_nvme_cpl) {}

impl Queue for SpdkQueue {
    #[inline]
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        if self.generation == GONE {
            return Err(Refused::Gone);
        }
        self.check(chain)?;
        let windows = &mut self.windows;
        let piece = |at: usize| {
            let segment = &chain.segments[at];
            SpdkPiece {
                // Found by `check` just before; otherwise nothing is sent, as a piece without
                // length has no room.
                base: windows
                    .find(segment)
                    .unwrap_or(std::ptr::NonNull::dangling()),
                len_bytes: segment.len_bytes(),
            }
        };
        let shared = &self.controller.shared;
        if let Some(_inside) = self.core.gate.enter(&shared.generation, self.generation) {
            if !self.core.take(chain, piece) {
                return Err(Refused::Full);
            }
            self.core.send_waiting();
            return Ok(());
        }
        if shared.generation.load(Ordering::Acquire) == GONE {
            return Err(Refused::Gone);
        }
        // During a reset it is only taken, to be sent later. The keeper has the lock for moments.
        let _guard = lock(&self.core.lock);
        match self.core.take(chain, piece) {
            true => Ok(()),
            false => Err(Refused::Full),
        }
    }

    #[inline]
    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        let mut handed = self.hand_over(budget, done);
        if self.countdown == 0 {
            self.look();
        }
        self.countdown = self.countdown.saturating_sub(1);
        while handed < budget {
            let room = (budget - handed).min(BATCH);
            let Some(count) = self.round(room) else {
                handed += self.rejoin(budget - handed, done);
                break;
            };
            // Outside of the gate: the caller's code may take its time, or panic.
            handed += self.hand_over(count, done);
            if count < room {
                break;
            }
        }
        if handed > 0 {
            self.silent = 0;
        }
        handed
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.core.outstanding.get() as usize + self.left_in_batch()
    }

    #[inline]
    fn relax(&mut self) {
        self.countdown = self.countdown.saturating_sub(RELAX_WEIGHT);
        self.silent = self.silent.saturating_add(1);
        let (spins, every) = self.offers;
        match self.silent >= spins && self.silent.is_multiple_of(every) {
            true => self.offer(),
            false => std::hint::spin_loop(),
        }
    }
}

impl Drop for SpdkQueue {
    fn drop(&mut self) {
        // It ends by its deadline, or by that of the controller. The bound is for unforeseen cases.
        let options = &self.controller.shared.options;
        let patience = Duration::from_nanos(self.timeout_ns.saturating_mul(2))
            .saturating_add(options.loss_timeout)
            .saturating_add(options.connect_timeout);
        let start = Instant::now();
        while self.core.outstanding.get() > 0 && start.elapsed() < patience {
            if self.poll(BATCH, &mut |_| {}) == 0 {
                self.relax();
            }
        }
        let generation = &self.controller.shared.generation;
        let one_at_a_time = attaching();
        let mine = generation.load(Ordering::Acquire);
        if mine.is_multiple_of(2)
            && let Some(_inside) = self.core.gate.enter(generation, mine)
        {
            // SAFETY: this thread's: inside of the gate.
            unsafe { release(&self.core) };
        }
        drop(one_at_a_time);
        // From here on only the thread that holds `cores` uses the core.
        self.core.owned.store(false, Ordering::Release);
    }
}

impl fmt::Debug for SpdkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpdkQueue")
            .field("controller", &self.controller)
            .field("limits", &self.limits)
            .field("outstanding", &self.core.outstanding.get())
            .finish_non_exhaustive()
    }
}

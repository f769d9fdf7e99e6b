//! One thread's ring: a chain is one operation of io_uring, or two if it must be made durable.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::medium::UringDisk;
use crate::block::{
    BlockRange, Chain, ChainFlags, Completion, Limits, Op, Queue, Refused, Status, Token, Wait,
};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Segment;
use crate::sys::{
    DirectRing, GateState, GateWriter, HeldFile, ProcessLimit, RingMemory, RingOp, file_size_limit,
    limit_error,
};

/// The longest sleep in [`Queue::relax`]: its caller has other conditions to check.
const NAP: Duration = Duration::from_millis(10);

/// Most repetitions of an operation that the kernel interrupts.
const RETRIES: u8 = 16;

/// No slot.
const NONE: u16 = u16::MAX;

/// Options of a queue.
#[derive(Debug, Clone, Copy)]
pub struct RingOptions {
    /// Chains that can be outstanding at once; at most 4096.
    pub depth: usize,
    /// Writes are refused.
    pub read_only: bool,
    /// How [`Queue::relax`] waits.
    pub wait: Wait,
    /// The blocks that the queue may access.
    pub range: BlockRange,
}

/// A [`Queue`] over io_uring. It may move between threads.
#[derive(Debug)]
pub struct RingQueue {
    ring: DirectRing,
    limits: Limits,
    block_shift: u32,
    /// The byte of the device where block 0 of a chain lies.
    first_byte: u64,
    slots: Box<[UringSlot]>,
    free: u16,
    outstanding: usize,
    regions: Vec<UringRegion>,
    arenas: Arc<super::medium::UringArenas>,
    is_device: bool,
    wait: Wait,
    idle: u32,
    /// The ring failed: nothing is taken any more.
    broken: bool,
    /// Counts writes to a file that another process may get.
    writer: Option<GateWriter>,
    /// Of them, those under way.
    writes: usize,
    /// Operations pushed to the ring so far.
    pushed: u64,
    /// Kept open and locked.
    held: Arc<HeldFile>,
    /// The process may not write beyond it.
    limit_bytes: u64,
}

/// Memory that the ring knows, by its device addresses; the index is the ring's number for it.
#[derive(Debug, Clone, Copy)]
struct UringRegion {
    iova: u64,
    len_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct UringSlot {
    token: Token,
    stage: UringStage,
    op: Op,
    fua: bool,
    retries: u8,
    next_free: u16,
    offset_bytes: u64,
    len_bytes: u64,
    memory: RingMemory,
    /// How many had been pushed, this one included.
    pushed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UringStage {
    Free,
    /// What was asked for.
    Main,
    /// Zeroing by the way that more filesystems have.
    Fallback,
    /// Making it durable.
    Sync,
}

impl UringDisk {
    /// A queue for one thread.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when io_uring is disabled on this system;
    /// [`ErrorKind::InvalidInput`] for an unusable depth.
    pub fn queue(&self, options: RingOptions) -> Result<RingQueue> {
        let depth = u16::try_from(options.depth).ok();
        let depth = depth
            .filter(|depth| (1..=4096).contains(depth))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    "a queue of io_uring holds 1 to 4096 operations",
                )
            })?;
        let ring = DirectRing::new(self.held.file().clone(), u32::from(depth)).map_err(no_ring)?;
        let info = &self.info;
        let mut queue = RingQueue {
            ring,
            limits: Limits {
                block_bytes: info.block_bytes,
                capacity_blocks: options.range.blocks_on(info.capacity_blocks),
                max_segments: 1,
                dma_align_bytes: info.memory_align_bytes,
                max_transfer_bytes: None,
                volatile_write_cache: true, // The kernel decides: the device may change.
                fua: true,
                write_zeroes: true,
                deallocate: true,
                deallocate_grain: crate::block::DeallocateGrain::ANY,
                read_only: options.read_only,
                depth: usize::from(depth),
            },
            block_shift: info.block_bytes.trailing_zeros(),
            // Where the range has a block, its start is on the device, which ends below 2^63 bytes.
            first_byte: options
                .range
                .first()
                .saturating_mul(info.block_bytes.into()),
            slots: (0..depth).map(UringSlot::free).collect(),
            free: 0,
            outstanding: 0,
            regions: Vec::with_capacity(16),
            arenas: self.arenas.clone(),
            is_device: info.is_device,
            wait: options.wait,
            idle: 0,
            broken: false,
            writer: (!info.is_device && !options.read_only).then(|| self.held.gate().writer()),
            writes: 0,
            pushed: 0,
            held: Arc::clone(&self.held),
            limit_bytes: file_size_limit(),
        };
        if let Some(last) = queue.slots.last_mut() {
            last.next_free = NONE;
        }
        for arena in self.arenas.all() {
            queue.know(&arena);
        }
        Ok(queue)
    }
}

#[cold]
fn no_ring(error: std::io::Error) -> Error {
    // ENOMEM and EMFILE; what forbids io_uring as such has other errnos.
    if ProcessLimit::Ring.explain(&error).is_some() {
        let what = "cannot set up the kernel's io_uring";
        return limit_error(what, error, ProcessLimit::Ring);
    }
    Error::new(
        ErrorKind::Unsupported,
        "the kernel's io_uring cannot be had: it is not in this kernel, switched off \
         (sysctl kernel.io_uring_disabled), or kept from this container",
    )
    .because(error)
}

// Code that makes system calls is kept out of line, so that matching on an engine stays small.
impl Queue for RingQueue {
    #[inline]
    fn limits(&self) -> &Limits {
        &self.limits
    }

    #[inline(never)]
    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        if self.broken {
            return Err(Refused::Gone);
        }
        self.check(chain)?;
        let index = self.free;
        let memory = match chain.segments {
            [segment] => self.memory(segment)?,
            _ => RingMemory {
                region: 0,
                offset_bytes: 0,
                len_bytes: 0,
            },
        };
        if usize::from(index) >= self.slots.len() {
            return Err(Refused::Full);
        }
        let writes = self.enter(chain)?;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(Refused::Full);
        };
        let next_free = slot.next_free;
        *slot = UringSlot {
            token: chain.token,
            stage: UringStage::Main,
            op: chain.op,
            fua: chain.flags.contains(ChainFlags::FUA),
            retries: 0,
            next_free: NONE,
            // A flush has no range.
            offset_bytes: self
                .first_byte
                .wrapping_add(chain.lba.0 << self.block_shift),
            len_bytes: chain.blocks << self.block_shift,
            memory,
            pushed: self.pushed + 1,
        };
        if self.ring.push(slot.operation(), u64::from(index)).is_err() {
            slot.stage = UringStage::Free;
            slot.next_free = next_free;
            self.leave(writes);
            return Err(Refused::Full);
        }
        self.pushed += 1;
        self.free = next_free;
        self.outstanding += 1;
        Ok(())
    }

    #[inline(never)]
    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        if self.is_closed() {
            let given_up = self.give_up_untold(done);
            if given_up > 0 {
                return given_up;
            }
        }
        if self.ring.tell().is_err() {
            // Short of memory, or interrupted: the next poll submits the pushed entries.
            self.idle = 0;
        }
        let mut count = self.reap(budget, done);
        if count == 0 && budget > 0 && self.outstanding > 0 {
            let _ = self.ring.nudge();
            count = self.reap(budget, done);
        }
        count
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.outstanding
    }

    #[inline(never)]
    fn relax(&mut self) {
        let spins = match self.wait {
            Wait::Poll => u32::MAX,
            Wait::Interrupt => 0,
            Wait::Adaptive { spins } => spins,
        };
        if self.idle < spins || self.outstanding == 0 {
            self.idle = self.idle.saturating_add(1);
            std::hint::spin_loop();
            return;
        }
        // It would tell the kernel of what `poll` is to give up.
        if self.is_closed() && (self.ring.untold() > 0 || self.ring.is_inherited()) {
            return;
        }
        let _ = self.ring.wait(NAP);
    }
}

impl RingQueue {
    /// The ring, which polls readable after a completion; `None` for a queue that only polls.
    pub(crate) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        (self.wait != Wait::Poll).then(|| self.ring.as_fd())
    }

    /// As `QueuePair::arm` of the NVMe driver.
    pub(crate) fn arm(&mut self) -> bool {
        let can_wait = self.wait != Wait::Poll && !self.is_closed() && self.ring.tell().is_ok();
        // What the kernel did not take yet does not end.
        can_wait && self.ring.untold() == 0 && !self.ring.has_ended()
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        if self.is_closed() {
            self.ring.silence();
        }
        if !self.ring.finish() {
            // The kernel may still write to the file: it stays locked, its writes counted.
            std::mem::forget((self.writer.take(), Arc::clone(&self.held)));
        }
    }
}

impl RingQueue {
    /// Counts a write to a file as under way; whether it is one. Where writes are paused it waits,
    /// but not while any of this queue are under way: those must be reaped first.
    fn enter(&mut self, chain: &Chain<'_>) -> Result<bool, Refused> {
        let Some(writer) = &mut self.writer else {
            return Ok(false);
        };
        if matches!(chain.op, Op::Read | Op::Flush) {
            return Ok(false);
        }
        let end = self.first_byte + ((chain.lba.0 + chain.blocks) << self.block_shift);
        if end > self.limit_bytes || !self.held.has(end) {
            return Err(Refused::Gone);
        }
        match writer.enter() {
            Ok(()) => {}
            Err(GateState::Paused) if self.writes > 0 => return Err(Refused::Full),
            Err(GateState::Paused) if writer.enter_waiting() => {}
            Err(_) => return Err(Refused::Gone),
        }
        self.writes += 1;
        Ok(true)
    }

    #[inline]
    fn leave(&mut self, write: bool) {
        if let Some(writer) = &mut self.writer
            && write
        {
            writer.leave();
            self.writes -= 1;
        }
    }

    fn is_closed(&self) -> bool {
        let state = self.writer.as_ref().map(GateWriter::state);
        state == Some(GateState::Closed)
    }

    /// The file was lost to another process: what the kernel was not told of it never is.
    #[cold]
    fn give_up_untold(&mut self, done: &mut impl FnMut(Completion)) -> usize {
        let told = match self.ring.is_inherited() {
            // The queues are the parent's.
            true => 0,
            false => self.pushed - self.ring.untold() as u64,
        };
        let untold = |slot: &UringSlot| slot.stage != UringStage::Free && slot.pushed > told;
        let given_up: Vec<_> = (0_u16..)
            .zip(&self.slots)
            .filter_map(|(at, slot)| untold(slot).then_some(at))
            .collect();
        if given_up.is_empty() {
            return 0;
        }
        self.broken = true;
        self.ring.silence();
        for &at in &given_up {
            if let Some(token) = self.free_slot(at) {
                self.outstanding -= 1;
                done(Completion {
                    token,
                    status: Status::Gone,
                });
            }
        }
        given_up.len()
    }

    /// Frees a slot whose operation has ended; its token.
    #[inline]
    fn free_slot(&mut self, at: u16) -> Option<Token> {
        let slot = self.slots.get_mut(usize::from(at))?;
        slot.stage = UringStage::Free;
        slot.next_free = self.free;
        self.free = at;
        let (token, op) = (slot.token, slot.op);
        self.leave(!matches!(op, Op::Read | Op::Flush));
        Some(token)
    }

    #[inline]
    fn check(&self, chain: &Chain<'_>) -> Result<(), Refused> {
        let invalid = |why| Err(Refused::Invalid(why));
        let limits = &self.limits;
        if limits.read_only && !matches!(chain.op, Op::Read | Op::Flush) {
            return Err(Refused::ReadOnly);
        }
        if chain.flags.contains(ChainFlags::FUA) && !matches!(chain.op, Op::Write | Op::WriteZeroes)
        {
            return invalid("FUA is for writes and write zeroes");
        }
        if chain.op == Op::Flush {
            return match (chain.blocks, chain.segments) {
                (0, []) => Ok(()),
                _ => invalid("a flush has no range and no memory"),
            };
        }
        if chain.blocks == 0 {
            return invalid("a chain has at least one block");
        }
        match chain.lba.0.checked_add(chain.blocks) {
            Some(end) if end <= limits.capacity_blocks => {}
            _ => return invalid("the range is not on the device"),
        }
        let align = u64::from(limits.dma_align_bytes) - 1;
        match (chain.op, chain.segments) {
            (Op::Read | Op::Write, [segment]) => {
                if u64::from(segment.len_bytes()) != chain.blocks << self.block_shift {
                    return invalid("the memory is of another length than the range");
                }
                if segment.iova().0 & align != 0 {
                    return invalid("the memory is not aligned as direct I/O needs it");
                }
                Ok(())
            }
            (Op::Read | Op::Write, _) => invalid("the chain has too many memory segments, or none"),
            (_, []) => Ok(()),
            _ => invalid("only reads and writes have memory"),
        }
    }

    /// The ring's name for a segment.
    #[inline]
    fn memory(&mut self, segment: &Segment) -> Result<RingMemory, Refused> {
        let found = find(&self.regions, segment);
        let found = found.or_else(|| {
            let arena = self.arenas.find(segment.iova().0)?;
            self.know(&arena);
            find(&self.regions, segment)
        });
        found.ok_or(Refused::Invalid("the memory is not this target's"))
    }

    /// Makes an arena known to the ring.
    #[cold]
    fn know(&mut self, arena: &Arc<crate::mem::Arena>) {
        self.ring.add_memory(arena.pinned());
        self.regions.push(UringRegion {
            iova: arena.iova().0,
            len_bytes: arena.len_bytes() as u64,
        });
    }

    #[inline]
    fn reap(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        let mut count = 0;
        while count < budget
            && let Some((index, result)) = self.ring.reap()
        {
            if let Some(completion) = self.ended(index, result) {
                count += 1;
                self.outstanding -= 1;
                done(completion);
            }
        }
        if count > 0 {
            self.idle = 0;
        }
        count
    }

    /// An operation has ended; gives the end of the chain if that was all of it.
    #[inline]
    fn ended(&mut self, index: u64, result: i32) -> Option<Completion> {
        let at = u16::try_from(index).ok()?;
        let slot = self.slots.get_mut(usize::from(at))?;
        let whole = match slot.op {
            Op::Read | Op::Write => i64::from(result) == i64::from(slot.memory.len_bytes),
            _ => result == 0,
        };
        let status = if whole && !(slot.fua && slot.op == Op::WriteZeroes) {
            Status::Success
        } else {
            self.go_on(at, result)?
        };
        let token = self.free_slot(at)?;
        Some(Completion { token, status })
    }

    /// Handles completions other than success: submits the rest, or ends the chain with an error.
    #[cold]
    fn go_on(&mut self, at: u16, result: i32) -> Option<Status> {
        let slot = self.slots.get_mut(usize::from(at))?;
        let is_transfer = matches!(slot.op, Op::Read | Op::Write) && slot.stage == UringStage::Main;
        let needs_sync = slot.fua && !is_transfer && slot.stage != UringStage::Sync;
        match result {
            0 if needs_sync => slot.stage = UringStage::Sync,
            0 if !is_transfer => return Some(Status::Success),
            // The kernel stopped in between, as it does at an error: the rest says which.
            n if n > 0 && is_transfer => {
                let n = u32::try_from(n).unwrap_or(0).min(slot.memory.len_bytes - 1);
                slot.memory.offset_bytes += n as usize;
                slot.memory.len_bytes -= n;
                slot.offset_bytes += u64::from(n);
            }
            n if (n == -libc::EAGAIN || n == -libc::EINTR) && slot.retries < RETRIES => {
                slot.retries += 1;
            }
            n if n == -libc::EOPNOTSUPP
                && slot.op == Op::WriteZeroes
                && slot.stage == UringStage::Main
                && !self.is_device =>
            {
                slot.stage = UringStage::Fallback;
            }
            // Only a hint.
            n if n == -libc::EOPNOTSUPP && slot.op == Op::Deallocate => {
                return Some(Status::Success);
            }
            n => return Some(status_of(n, slot.op)),
        }
        let operation = slot.operation();
        slot.pushed = self.pushed + 1;
        if self.is_closed() || self.ring.push(operation, u64::from(at)).is_err() {
            // As many operations fit as there are slots: this one's place is free.
            return Some(Status::Reset);
        }
        self.pushed += 1;
        let _ = self.ring.tell();
        None
    }
}

#[inline]
fn find(regions: &[UringRegion], segment: &Segment) -> Option<RingMemory> {
    let (at, len_bytes) = (segment.iova().0, segment.len_bytes());
    regions.iter().enumerate().find_map(|(region, known)| {
        let offset = at.checked_sub(known.iova)?;
        let end = offset.checked_add(u64::from(len_bytes))?;
        (end <= known.len_bytes).then_some(RingMemory {
            region,
            offset_bytes: usize::try_from(offset).ok()?,
            len_bytes,
        })
    })
}

impl UringSlot {
    fn free(index: u16) -> Self {
        Self {
            token: 0,
            stage: UringStage::Free,
            op: Op::Flush,
            fua: false,
            retries: 0,
            next_free: index + 1,
            offset_bytes: 0,
            len_bytes: 0,
            memory: RingMemory {
                region: 0,
                offset_bytes: 0,
                len_bytes: 0,
            },
            pushed: 0,
        }
    }

    #[inline]
    fn operation(&self) -> RingOp {
        let (offset, len) = (self.offset_bytes, self.len_bytes);
        match (self.stage, self.op) {
            (UringStage::Sync, _) | (_, Op::Flush) => RingOp::Sync,
            (UringStage::Fallback, _) | (_, Op::Deallocate) => RingOp::PunchHole(offset, len),
            (_, Op::Read) => RingOp::Read(self.memory, offset),
            (_, Op::Write) => RingOp::Write(self.memory, offset, self.fua),
            (_, Op::WriteZeroes) => RingOp::ZeroRange(offset, len),
        }
    }
}

/// The NVMe status that the kernel makes such an error of (the reverse of its `nvme_error_status`),
/// so that one error reads the same from every engine.
#[cold]
fn status_of(result: i32, op: Op) -> Status {
    const GENERIC: u8 = 0;
    const MEDIA: u8 = 2;
    let (sct, sc) = match -result {
        libc::ETIMEDOUT => return Status::TimedOut,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN => return Status::Gone,
        libc::EOPNOTSUPP => (GENERIC, 0x01),
        libc::EINVAL | libc::EFAULT => (GENERIC, 0x02),
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => (GENERIC, 0x81),
        libc::EROFS | libc::EPERM => (GENERIC, 0x20),
        libc::EILSEQ => (MEDIA, 0x82),
        _ if op == Op::Read => (MEDIA, 0x81),
        _ => (MEDIA, 0x80),
    };
    Status::Device { sct, sc }
}

//! Direct reads and overwrites: one chain of commands per mapping, several mappings in flight,
//! polled.
//!
//! As `iomap_dio_rw` of Linux, turned inside out: an operation is a slot in [`Direct`], not a stack
//! frame, so that it never waits. It goes through its range mapping by mapping; when the queue has
//! no room it stays where it is and goes on at a later [`Direct::poll_queue`]. It ends when the
//! last of its chains has. Where the kernel polls single-request I/O only, all of this is polled.
//!
//! An operation owns its buffer while it runs, as [`crate::mem::Lent`]. Nothing here allocates but
//! [`Direct::new`].

use std::collections::VecDeque;

use full::InFull;
use simple::Grid;
use slot::{DirectSlot, DirectStage};
use sources::Sources;

use crate::block::{Completion, Limits, One, Queue, Reaper};
use crate::error::{Error, ErrorKind};
use crate::mem::Segment;

mod allocated;
mod end;
mod full;
mod issue;
mod simple;
mod slot;
mod source;
mod sources;
#[cfg(test)]
mod tests;

pub use slot::{DirectRequest, Ended, Hear, Of, OperationKind, Rejected, What, WrittenData};
pub use source::Source;

/// The longest piece of a mapping that goes into one chain: what a [`Segment`] can hold, in whole
/// blocks.
const MAX_CHAIN_BYTES: u64 = 1 << 30;
/// Below it a token's slot number, above it the chain's first block, counted from the operation's
/// start.
const SLOT_BITS: u32 = 16;
/// The block number of a flush that follows a durable write.
const FLUSH_BLOCK: u64 = (1 << (64 - SLOT_BITS)) - 1;

/// The end of the list of free slots.
const NO_SLOT: u16 = u16::MAX;

/// One thread's direct operations over one [`Queue`].
///
/// `S` is what an operation needs of its file: cheap to clone, and able to answer for its mappings.
#[derive(Debug)]
pub struct Direct<S: Source> {
    slots: Box<[DirectSlot]>,
    /// The first free slot.
    free: u16,
    grid: Grid,
    sources: Sources<S>,
    /// Operations in flight that [`Direct::poll_queue`] hands over.
    polled: usize,
    /// Operations in flight that [`Direct::take`] hands over.
    kept: usize,
    /// There are operations in `waiting` or `written`.
    is_due: bool,
    /// Operations that have more to submit, in the order they came.
    waiting: VecDeque<u16>,
    /// Operations that have ended and were not handed over yet.
    ended: VecDeque<u16>,
    /// Writes whose data is on the device, and whose file is to be changed.
    written: VecDeque<u16>,
}

/// Names a kept operation until [`Direct::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationToken(u16);

/// Of [`Direct::poll_queue`].
struct Polled<'a, S: Source, H> {
    direct: &'a mut Direct<S>,
    hear: &'a mut H,
    /// Operations handed over.
    count: usize,
}

impl<S: Source, H: Hear<S>> Reaper for Polled<'_, S, H> {
    #[inline(always)]
    fn reap(&mut self, completion: Completion) {
        if let Some((ended, source)) = self.direct.ended_by(completion) {
            self.count += 1;
            self.hear.hear(ended, self.direct.of(source));
        }
    }
}

/// How far an operation came with the queue.
enum Issued {
    /// Everything is submitted, or has failed.
    All,
    /// The queue is full.
    Blocked,
}

impl<S: Source> Direct<S> {
    /// Room for `operations` (at most 65,535) over a queue with these limits.
    pub fn new(operations: usize, limits: &Limits) -> Self {
        let count = u16::try_from(operations).unwrap_or(u16::MAX);
        let after = |index: u16| {
            if index + 1 < count {
                index + 1
            } else {
                NO_SLOT
            }
        };
        Self {
            slots: (0..count)
                .map(|index| DirectSlot::free(after(index)))
                .collect(),
            free: if count == 0 { NO_SLOT } else { 0 },
            grid: Grid {
                block_mask: u64::from(limits.block_bytes) - 1,
                block_shift: limits.block_bytes.trailing_zeros(),
                dma_mask: u64::from(limits.dma_align_bytes.max(1)) - 1,
            },
            sources: Sources::new(count.into()),
            polled: 0,
            kept: 0,
            is_due: false,
            waiting: VecDeque::with_capacity(count.into()),
            ended: VecDeque::with_capacity(count.into()),
            written: VecDeque::with_capacity(count.into()),
        }
    }

    /// Operations that were taken and not yet handed over.
    pub fn outstanding(&self) -> usize {
        self.polled + self.kept
    }

    /// Of those, what [`Direct::poll_queue`] is to hand over. An operation counts no more when its
    /// callback is called, also when that panics.
    #[inline]
    pub fn to_hand_over(&self) -> usize {
        self.polled
    }

    /// Of those, what [`Direct::take`] is to hand over.
    #[inline]
    pub fn to_take(&self) -> usize {
        self.kept
    }

    /// Whether a poll has something to do without the queue: operations that have ended, that wait
    /// for room in the queue, or whose file is to be changed.
    pub fn has_more(&self) -> bool {
        self.is_due || !self.ended.is_empty()
    }

    /// Whether an operation waits for room in the queue.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Starts an operation in either way.
    #[cfg(test)]
    pub fn submit<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'_, S>,
    ) -> Result<(), Rejected> {
        match self.submit_simple(queue, request) {
            Ok(()) => Ok(()),
            Err(request) => self.submit_in_full(queue, request),
        }
    }

    /// Starts an operation that is one chain, as most are; it is handed over by a later
    /// [`Direct::poll_queue`]. Otherwise nothing was started, and the request comes back, for
    /// [`Direct::submit_in_full`].
    #[inline(always)]
    pub fn submit_simple<'a, Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'a, S>,
    ) -> Result<(), DirectRequest<'a, S>> {
        self.start_simple(queue, request).map(|_| ())
    }

    /// Starts any operation; it is handed over by a later [`Direct::poll_queue`].
    ///
    /// # Errors
    /// [`Rejected`] with the buffer; nothing was started then. In particular a write that is not
    /// entirely an overwrite is refused here, before any of it is written.
    pub fn submit_in_full<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'_, S>,
    ) -> Result<(), Rejected> {
        self.start_in_full(queue, request, InFull::default())?;
        Ok(())
    }

    /// Starts an operation that stays after its end until [`Direct::take`]: what a blocking call
    /// waits for.
    ///
    /// # Errors
    /// As [`Direct::submit_in_full`].
    pub fn submit_kept<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'_, S>,
    ) -> Result<OperationToken, Rejected> {
        let index = match self.start_simple(queue, request) {
            Ok(index) => {
                let slot = &mut self.slots[usize::from(index)];
                if slot.stage == DirectStage::Simple {
                    slot.unfold(slot.report);
                }
                slot.kept = true;
                self.polled -= 1;
                self.kept += 1;
                index
            }
            Err(request) => {
                let how = InFull {
                    kept: true,
                    ..InFull::default()
                };
                self.start_in_full(queue, request, how)?
            }
        };
        Ok(OperationToken(index))
    }

    /// As [`Direct::submit_in_full`] or [`Direct::submit_kept`], of a write to blocks of the file
    /// that were allocated for it: unwritten ones, or past the end of the file. When the data is
    /// there the file has to be changed: [`Direct::next_written`]. A change that is to be durable
    /// is so when the operation ends. The last `filler_bytes` of the memory are no data: they fill
    /// the last block.
    ///
    /// # Errors
    /// As [`Direct::submit_in_full`].
    pub fn submit_allocated<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'_, S>,
        filler_bytes: u16,
        kept: bool,
    ) -> Result<OperationToken, Rejected> {
        let how = InFull {
            kept,
            filler_bytes: Some(filler_bytes),
        };
        let started = match self.start_allocated(queue, request, how) {
            Ok(index) => Ok(index),
            Err(request) => self.start_in_full(queue, request, how),
        };
        started.map(OperationToken)
    }

    /// Polls the queue and goes on with operations that wait for room, without handing anything
    /// over: for a caller that waits for a kept operation. Returns the chains that have ended.
    #[inline]
    pub fn progress<Q: Queue>(&mut self, queue: &mut Q) -> usize {
        let budget = self.slots.len();
        let count = queue.poll(budget, &mut |completion| {
            if let Some(index) = self.completed(completion) {
                self.ended.push_back(index);
            }
        });
        if !self.waiting.is_empty() {
            self.resume(queue);
        }
        count
    }

    /// Polls the queue, and hands operations that have ended to `hear`, at most `budget` of them;
    /// returns how many. Where [`Direct::is_due`] says so afterwards, [`Direct::go_on`] is the
    /// other half of it.
    #[inline]
    pub fn poll_queue<Q: Queue>(
        &mut self,
        queue: &mut Q,
        budget: usize,
        hear: &mut impl Hear<S>,
    ) -> usize {
        let mut count = 0;
        if !self.ended.is_empty() {
            count = self.drain(budget, hear);
        }
        // No more chains than may be handed over: each ends one operation at most.
        let mut reaper = Polled {
            direct: self,
            hear,
            count,
        };
        queue.poll_with(budget - count, &mut reaper);
        reaper.count
    }

    /// Both halves of a poll.
    #[cfg(test)]
    fn poll<Q: Queue>(&mut self, queue: &mut Q, budget: usize, hear: &mut impl Hear<S>) -> usize {
        let count = self.poll_queue(queue, budget, hear);
        match self.is_due() {
            true => count + self.go_on(queue, budget - count, hear),
            false => count,
        }
    }

    /// Whether operations wait for room in the queue, or [`Direct::next_written`] has one.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// Goes on with operations that wait for room, and hands those that have ended to `hear`, at
    /// most `budget` of them; returns how many.
    #[cold]
    #[inline(never)]
    pub fn go_on<Q: Queue>(
        &mut self,
        queue: &mut Q,
        budget: usize,
        hear: &mut impl Hear<S>,
    ) -> usize {
        self.resume(queue);
        self.drain(budget, hear)
    }

    /// Starts an operation that is one chain, as most are. It is polled. Otherwise nothing was
    /// started, and the request comes back, for [`Direct::start_in_full`].
    #[inline(always)]
    fn start_simple<'a, Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'a, S>,
    ) -> Result<u16, DirectRequest<'a, S>> {
        let index = self.free;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(request);
        };
        let (what, offset) = (request.what, request.offset);
        // Operations that wait go first.
        if self.waiting.is_empty()
            && let Some(source) = request.source
            && let Some(version) = self.sources.begin(source)
        {
            let grid = self.grid;
            let Some((simple, memory)) = request.buf.place().and_then(|memory| {
                let simple = grid.simple::<S, Q>(queue, version, what, offset, memory)?;
                Some((simple, memory))
            }) else {
                self.sources.cancel(self.sources.last());
                return Err(request);
            };
            let lent = request.buf.lend();
            let one = One {
                op: simple.op,
                flags: simple.flags,
                lba: simple.lba,
                blocks: simple.blocks,
                segment: Segment::new(memory.0, simple.len_bytes),
                token: issue::token(index, 0),
            };
            if queue.try_one(one) {
                self.free = slot.next_free;
                self.polled += 1;
                slot.stage = DirectStage::Simple;
                slot.kind = simple.kind;
                slot.source = self.sources.last();
                slot.start = offset;
                slot.report = simple.report;
                slot.user_data = request.user_data;
                slot.lent = lent;
                if simple.without_fua || simple.report != u64::from(simple.len_bytes) {
                    // There is more to do when it has ended.
                    slot.unfold(simple.len_bytes.into());
                    slot.without_fua = simple.without_fua;
                }
                return Ok(index);
            }
            self.sources.cancel(self.sources.last());
            return Err(DirectRequest {
                buf: lent.take_back(),
                ..request
            });
        }
        Err(request)
    }

    /// Looks at every mapping of a write, for a caller that submits it in pieces.
    ///
    /// # Errors
    /// [`ErrorKind::NotOverwrite`] with the first byte that cannot be overwritten; the
    /// filesystem's.
    pub fn check_overwrite(&mut self, source: &S, offset: u64, len: u64) -> Result<(), Error> {
        let number = self.sources.begin_in_full(source);
        let result = match self.sources.version(number) {
            Some(version) => issue::check_blocks::<S>(version, offset, len, issue::WRITE_FLAGS),
            None => Err(internal("the operation has no file")),
        };
        self.sources.end(number);
        result
    }

    fn issue<Q: Queue>(&mut self, queue: &mut Q, index: u16, first: bool) -> Result<Issued, Error> {
        let shift = self.grid.block_shift;
        let slot = &mut self.slots[usize::from(index)];
        match slot.kind {
            OperationKind::Read | OperationKind::Write => {
                let version = self.sources.version(slot.source);
                issue::file::<S, Q>(slot, version, queue, (index, shift), first)
            }
            OperationKind::DeviceRead | OperationKind::DeviceWrite => {
                issue::device(slot, queue, index, shift)
            }
            OperationKind::Flush => issue::flush(slot, queue, index),
            OperationKind::Discard => issue::discard(slot, queue, index, shift),
        }
    }

    #[cold]
    fn resume<Q: Queue>(&mut self, queue: &mut Q) {
        while let Some(&index) = self.waiting.front() {
            let issued = self.issue(queue, index, false);
            let slot = &mut self.slots[usize::from(index)];
            match issued {
                Ok(Issued::Blocked) => return,
                Ok(Issued::All) => {}
                // Without its flush nothing of a durable write is done.
                Err(error) if slot.flush_after => slot.fail(0, error),
                Err(error) => slot.fail(slot.pos - slot.start, error),
            }
            slot.stage = DirectStage::Submitted;
            let idle = slot.in_flight == 0;
            self.waiting.pop_front();
            if idle {
                self.settle_early(index);
            }
        }
        self.is_due = self.has_written();
    }

    /// The operation waits for room in the queue.
    fn wait_for_room(&mut self, index: u16) {
        self.waiting.push_back(index);
        self.is_due = true;
    }
}

#[cold]
fn internal(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

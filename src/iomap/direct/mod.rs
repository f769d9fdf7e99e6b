//! Direct reads and overwrites: one chain of commands per mapping, several mappings in flight, polled.
//!
//! As `iomap_dio_rw` of Linux, turned inside out: an operation is a slot in [`Direct`], not a stack frame,
//! so that it never waits. It goes through its range mapping by mapping; when the queue has no room it
//! stays where it is and goes on at a later [`Direct::poll`]. It ends when the last of its chains has.
//! Where the kernel polls single-request I/O only, all of this is polled.
//!
//! An operation owns its buffer while it runs, as [`crate::mem::Lent`]. Nothing here allocates but [`Direct::new`].

use std::collections::VecDeque;

use slot::{Kind as SlotKind, Slot, Stage};

use crate::block::{Chain, Completion, Limits, Queue};
use crate::error::{Error, ErrorKind};
use crate::mem::{DmaBuf, Segment};

mod issue;
mod simple;
mod slot;
#[cfg(test)]
mod tests;

pub use issue::check_overwrite;
pub use slot::{Ended, Kind as EndedKind, Rejected, Request, Source, What};

/// The longest piece of a mapping that goes into one chain: what a [`Segment`] can hold, in whole blocks.
const MAX_CHAIN_BYTES: u64 = 1 << 30;
/// Below it a token's slot number, above it the chain's first block, counted from the operation's start.
const SLOT_BITS: u32 = 16;
/// The block number of a flush that follows a durable write.
const FLUSH_BLOCK: u64 = (1 << (64 - SLOT_BITS)) - 1;

/// One thread's direct operations over one [`Queue`].
///
/// `S` is what an operation keeps of its file: cheap to move, and able to answer for its mappings.
#[derive(Debug)]
pub struct Direct<S> {
    slots: Box<[Slot<S>]>,
    free: Vec<u16>,
    /// Operations that have more to submit, in the order they came.
    waiting: VecDeque<u16>,
    /// Operations that have ended and were not handed over yet.
    ended: VecDeque<u16>,
    block_mask: u64,
    block_shift: u32,
    dma_mask: u64,
}

/// Names a kept operation until [`Direct::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept(u16);

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
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            free: (0..count).rev().collect(),
            waiting: VecDeque::with_capacity(count.into()),
            ended: VecDeque::with_capacity(count.into()),
            block_mask: u64::from(limits.block_bytes) - 1,
            block_shift: limits.block_bytes.trailing_zeros(),
            dma_mask: u64::from(limits.dma_align_bytes.max(1)) - 1,
        }
    }

    /// Operations that were taken and not yet handed over.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Of those, what [`Direct::poll`] is to hand over. Looks at every slot, so that no operation counts for it.
    #[cold]
    pub fn to_hand_over(&self) -> usize {
        let is_polled = |slot: &&Slot<S>| slot.stage != Stage::Free && !slot.kept;
        self.slots.iter().filter(is_polled).count()
    }

    /// Whether an operation waits for room in the queue.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Starts an operation; it is handed over by a later [`Direct::poll`].
    ///
    /// # Errors
    /// [`Rejected`] with the buffer; nothing was started then. In particular a write that is not entirely an
    /// overwrite is refused here, before any of it is written.
    #[inline]
    pub fn submit<Q: Queue>(&mut self, queue: &mut Q, request: Request<S>) -> Result<(), Rejected> {
        self.start(queue, request, false).map(|_| ())
    }

    /// Starts an operation that stays after its end until [`Direct::take`]: what a blocking call waits for.
    ///
    /// # Errors
    /// As [`Direct::submit`].
    #[inline]
    pub fn submit_kept<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: Request<S>,
    ) -> Result<Kept, Rejected> {
        self.start(queue, request, true).map(Kept)
    }

    /// The operation, when it has ended.
    #[inline]
    pub fn take(&mut self, kept: Kept) -> Option<Ended<S>> {
        let slot = self.slots.get(usize::from(kept.0))?;
        (slot.stage == Stage::Ended && slot.kept).then(|| self.hand_over(kept.0))
    }

    /// Polls the queue and goes on with operations that wait for room, without handing anything over: for
    /// whoever waits for a kept operation. Returns the chains that have ended.
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

    /// Polls the queue, goes on with operations that wait for room, and hands those that have ended to
    /// `done`, at most `budget` of them; returns how many.
    #[inline]
    pub fn poll<Q: Queue>(
        &mut self,
        queue: &mut Q,
        budget: usize,
        mut done: impl FnMut(Ended<S>),
    ) -> usize {
        let mut count = 0;
        if !self.ended.is_empty() {
            count = self.drain(budget, &mut done);
        }
        // No more chains than may be handed over: each ends one operation at most.
        queue.poll(budget - count, &mut |completion| {
            if let Some(index) = self.completed(completion) {
                count += 1;
                done(self.hand_over(index));
            }
        });
        if !self.waiting.is_empty() {
            self.resume(queue);
            count += self.drain(budget - count, &mut done);
        }
        count
    }

    /// Whether a kept operation has not ended yet.
    #[cold]
    pub fn has_unfinished_kept(&self) -> bool {
        let unfinished = |slot: &Slot<S>| slot.kept && slot.is_unfinished();
        self.slots.iter().any(unfinished)
    }

    /// Hands over every kept operation that has ended and was never taken: its owner was leaked.
    #[cold]
    pub fn take_all_kept(&mut self, mut done: impl FnMut(Ended<S>)) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.kept && slot.stage == Stage::Ended {
                done(self.hand_over(u16::try_from(index).unwrap_or(u16::MAX)));
            }
        }
    }

    /// Hands over every operation, when the owner of the queue goes away: those that have ended, kept ones
    /// included, and those that will not end any more. The memory of the latter is leaked where the device may
    /// still have it.
    #[cold]
    pub fn take_all(&mut self, mut done: impl FnMut(Ended<S>)) {
        self.ended.clear();
        self.waiting.clear();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.stage == Stage::Free {
                continue;
            }
            if slot.is_unfinished() {
                slot.give_up();
            }
            done(self.hand_over(u16::try_from(index).unwrap_or(u16::MAX)));
        }
    }

    /// Hands over what has ended while nobody polled for it.
    #[cold]
    fn drain(&mut self, budget: usize, done: &mut impl FnMut(Ended<S>)) -> usize {
        let mut count = 0;
        while count < budget
            && let Some(index) = self.ended.pop_front()
        {
            done(self.hand_over(index));
            count += 1;
        }
        count
    }

    #[inline]
    fn start<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: Request<S>,
        kept: bool,
    ) -> Result<u16, Rejected> {
        let Some(&index) = self.free.last() else {
            return Err(Rejected::full(request.buf));
        };
        let Some(simple) = self.simple(queue, &request) else {
            return self.start_in_full(queue, request, kept, index);
        };
        // The usual case: one chain is all of it.
        let lent = request.buf.lend();
        let segment = Segment::new(lent.iova(), simple.len_bytes);
        let chain = Chain {
            op: simple.op,
            flags: simple.flags,
            lba: simple.lba,
            blocks: u64::from(simple.len_bytes) >> self.block_shift,
            segments: &[segment],
            token: issue::token(index, 0),
        };
        if queue.submit(&chain).is_err() {
            let request = Request {
                buf: lent.take_back(),
                ..request
            };
            return self.start_in_full(queue, request, kept, index);
        }
        self.free.pop();
        let slot = &mut self.slots[usize::from(index)];
        slot.begin(kept, request.offset, request.user_data);
        slot.kind = simple.kind;
        slot.without_fua = simple.without_fua;
        slot.report = simple.report;
        slot.end = request.offset + u64::from(simple.len_bytes);
        slot.pos = slot.end;
        slot.in_flight = 1;
        slot.stage = Stage::Submitted;
        slot.lent = Some(lent);
        // A free slot has none, so nothing is forgotten; not to look for it saves what dropping it would cost.
        std::mem::forget(std::mem::replace(&mut slot.source, request.source));
        Ok(index)
    }

    #[inline(never)]
    fn start_in_full<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: Request<S>,
        kept: bool,
        index: u16,
    ) -> Result<u16, Rejected> {
        let len = request.buf.len() as u64;
        let offset = request.offset;
        if ((offset | len) & self.block_mask) | (request.buf.iova().0 & self.dma_mask) != 0 {
            let error = self.misaligned(offset, &request.buf);
            return Err(Rejected::error(error, request.buf));
        }
        // Filled in where it stands: a slot is too large to be moved for every operation.
        let slot = &mut self.slots[usize::from(index)];
        slot.begin(kept, offset, request.user_data);
        if request.what == What::Read {
            let size = request.source.as_ref().map_or(0, Source::size_bytes);
            slot.kind = SlotKind::Read;
            // Whole blocks are read, what lies beyond the size is zeroed and not reported.
            slot.report = len.min(size.saturating_sub(offset));
            slot.end = offset + ((slot.report + self.block_mask) & !self.block_mask);
        } else if let Err(error) = self.prepare(index, &request, queue.limits().read_only) {
            self.slots[usize::from(index)].stage = Stage::Free;
            return Err(Rejected::error(error, request.buf));
        }
        let slot = &mut self.slots[usize::from(index)];
        slot.lent = Some(request.buf.lend());
        slot.source = request.source;
        // Whoever waits goes first.
        if !self.waiting.is_empty() {
            return self.queue_up(index);
        }
        match self.issue(queue, index, true) {
            Ok(Issued::All) => {
                self.free.pop();
                let slot = &mut self.slots[usize::from(index)];
                slot.stage = Stage::Submitted;
                if slot.in_flight == 0 {
                    self.settle_early(index);
                }
            }
            Ok(Issued::Blocked) => {
                self.free.pop();
                self.waiting.push_back(index);
            }
            Err(error) => self.fail_first(index, error)?,
        }
        Ok(index)
    }

    /// What is not a read: the rest of its slot, as far as can be seen without mappings.
    #[inline(never)]
    fn prepare(&mut self, index: u16, request: &Request<S>, read_only: bool) -> Result<(), Error> {
        let block_mask = self.block_mask;
        let slot = &mut self.slots[usize::from(index)];
        let len = request.buf.len() as u64;
        let offset = request.offset;
        match request.what {
            What::Read => {}
            What::Write {
                dsync,
                through_last_block,
            } => {
                let Some(source) = &request.source else {
                    return Err(internal("a write needs a file"));
                };
                if read_only {
                    return Err(read_only_device());
                }
                let size = source.size_bytes();
                let limit = if through_last_block {
                    size.saturating_add(block_mask) & !block_mask
                } else {
                    size
                };
                let Some(end) = offset.checked_add(len).filter(|&end| end <= limit) else {
                    return Err(past_end(size));
                };
                slot.kind = SlotKind::Write;
                slot.dsync = dsync;
                slot.report = len;
                // What reaches beyond the size belongs to the last block, not to the file.
                slot.end = end.min(size).max(offset);
            }
            What::Flush => slot.kind = SlotKind::Flush,
            What::DeviceRead => {
                slot.kind = SlotKind::DeviceRead;
                slot.report = len;
                slot.end = offset.saturating_add(len);
            }
        }
        Ok(())
    }

    /// Behind others that wait. A write is looked at now: it is refused here or not at all.
    #[cold]
    fn queue_up(&mut self, index: u16) -> Result<u16, Rejected> {
        let slot = &mut self.slots[usize::from(index)];
        if slot.kind == SlotKind::Write
            && let Some(source) = &slot.source
            && let Err(error) = check_overwrite(source, slot.pos, slot.end - slot.pos)
        {
            return Err(slot.reject(error));
        }
        self.free.pop();
        self.waiting.push_back(index);
        Ok(index)
    }

    /// The first attempt failed. A write of which nothing is on its way was not started; all else ends with
    /// the error.
    #[cold]
    fn fail_first(&mut self, index: u16, error: Error) -> Result<(), Rejected> {
        let slot = &mut self.slots[usize::from(index)];
        if slot.kind == SlotKind::Write && slot.in_flight == 0 {
            return Err(slot.reject(error));
        }
        self.free.pop();
        slot.fail(slot.pos - slot.start, error);
        slot.stage = Stage::Submitted;
        if slot.in_flight == 0 {
            self.settle_early(index);
        }
        Ok(())
    }

    #[cold]
    fn misaligned(&self, offset: u64, buf: &DmaBuf) -> Error {
        let block = self.block_mask + 1;
        let dma = self.dma_mask + 1;
        Error::new(
            ErrorKind::Misaligned,
            format!(
                "direct I/O needs an offset and a length that are multiples of {block} bytes and memory at \
                 a multiple of {dma}: this is {} bytes at offset {offset}, memory at {}",
                buf.len(),
                buf.iova()
            ),
        )
    }

    #[inline]
    fn issue<Q: Queue>(&mut self, queue: &mut Q, index: u16, first: bool) -> Result<Issued, Error> {
        let shift = self.block_shift;
        let slot = &mut self.slots[usize::from(index)];
        match slot.kind {
            SlotKind::Read | SlotKind::Write => issue::file(slot, queue, index, shift, first),
            SlotKind::DeviceRead => issue::device(slot, queue, index, shift),
            SlotKind::Flush => issue::flush(slot, queue, index),
        }
    }

    /// A chain has ended. The operation, when it has ended with it and is to be handed over.
    #[inline]
    fn completed(&mut self, completion: Completion) -> Option<u16> {
        let index = (completion.token & ((1 << SLOT_BITS) - 1)) as u16;
        let slot = self.slots.get_mut(usize::from(index))?;
        // An engine hands each chain over once; one that does not must not end another operation.
        if slot.in_flight == 0 {
            return None;
        }
        slot.in_flight -= 1;
        if !completion.status.is_success() {
            slot.fail_chain(completion, self.block_shift);
        }
        if slot.in_flight > 0 || slot.stage != Stage::Submitted {
            return None;
        }
        self.settle(index)
    }

    /// All chains of an operation have ended: it is over, unless a flush is still due. Its number when it is
    /// to be handed over.
    #[inline]
    fn settle(&mut self, index: u16) -> Option<u16> {
        let slot = &mut self.slots[usize::from(index)];
        if slot.without_fua && slot.needs_flush() {
            self.waiting.push_back(index);
            return None;
        }
        slot.stage = Stage::Ended;
        if slot.kind == SlotKind::Read && slot.end - slot.start > slot.report {
            slot.zero_tail();
        }
        (!slot.kept).then_some(index)
    }

    /// As [`Direct::settle`], while nobody polls.
    #[cold]
    fn settle_early(&mut self, index: u16) {
        if let Some(index) = self.settle(index) {
            self.ended.push_back(index);
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
                Err(error) => slot.fail(slot.pos - slot.start, error),
            }
            slot.stage = Stage::Submitted;
            let idle = slot.in_flight == 0;
            self.waiting.pop_front();
            if idle {
                self.settle_early(index);
            }
        }
    }

    #[inline]
    fn hand_over(&mut self, index: u16) -> Ended<S> {
        self.free.push(index);
        self.slots[usize::from(index)].finish()
    }
}

#[cold]
fn internal(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

#[cold]
fn read_only_device() -> Error {
    Error::new(ErrorKind::ReadOnly, "the device may only be read")
}

#[cold]
fn past_end(size: u64) -> Error {
    Error::new(
        ErrorKind::NotOverwrite,
        format!(
            "the write goes past the end of the file at byte {size}, and growing a file is not supported yet"
        ),
    )
}

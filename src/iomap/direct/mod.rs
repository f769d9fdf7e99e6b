//! Direct reads and overwrites: one chain of commands per mapping, several mappings in flight,
//! polled.
//!
//! As `iomap_dio_rw` of Linux, turned inside out: an operation is a slot in [`Direct`], not a stack
//! frame, so that it never waits. It goes through its range mapping by mapping; when the queue has
//! no room it stays where it is and goes on at a later [`Direct::poll`]. It ends when the last of
//! its chains has. Where the kernel polls single-request I/O only, all of this is polled.
//!
//! An operation owns its buffer while it runs, as [`crate::mem::Lent`]. Nothing here allocates but
//! [`Direct::new`].

use std::collections::VecDeque;

use simple::Grid;
use slot::{DirectSlot, DirectStage};
use sources::{NO_SOURCE, Sources};

use crate::block::{Limits, One, Queue};
use crate::error::{Error, ErrorKind};
use crate::mem::{DmaBuf, Segment};

mod end;
mod issue;
mod simple;
mod slot;
mod source;
mod sources;
#[cfg(test)]
mod tests;

pub use issue::check_overwrite;
pub use slot::{DirectRequest, Ended, Hear, Of, OperationKind, Rejected, What};
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
pub struct Direct<S> {
    slots: Box<[DirectSlot]>,
    /// The first free slot.
    free: u16,
    grid: Grid,
    sources: Sources<S>,
    /// Operations in flight that [`Direct::poll`] hands over.
    polled: usize,
    /// Operations in flight that [`Direct::take`] hands over.
    kept: usize,
    /// Operations that have more to submit, in the order they came.
    waiting: VecDeque<u16>,
    /// Operations that have ended and were not handed over yet.
    ended: VecDeque<u16>,
}

/// Names a kept operation until [`Direct::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationToken(u16);

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
            waiting: VecDeque::with_capacity(count.into()),
            ended: VecDeque::with_capacity(count.into()),
        }
    }

    /// Operations that were taken and not yet handed over.
    pub fn outstanding(&self) -> usize {
        self.polled + self.kept
    }

    /// Of those, what [`Direct::poll`] is to hand over. An operation counts no more when its
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

    /// Whether a poll has something to do without the queue: operations that have ended, or that
    /// wait for room in the queue.
    pub fn has_more(&self) -> bool {
        !self.ended.is_empty() || !self.waiting.is_empty()
    }

    /// Whether an operation waits for room in the queue.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Starts an operation; it is handed over by a later [`Direct::poll`].
    ///
    /// # Errors
    /// [`Rejected`] with the buffer; nothing was started then. In particular a write that is not
    /// entirely an overwrite is refused here, before any of it is written.
    #[inline(always)]
    pub fn submit<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'_, S>,
    ) -> Result<(), Rejected> {
        match self.start_simple(queue, request) {
            Ok(_) => Ok(()),
            Err(request) => self.start_in_full(queue, request, false).map(|_| ()),
        }
    }

    /// Starts an operation that stays after its end until [`Direct::take`]: what a blocking call
    /// waits for.
    ///
    /// # Errors
    /// As [`Direct::submit`].
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
            Err(request) => self.start_in_full(queue, request, true)?,
        };
        Ok(OperationToken(index))
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

    /// Polls the queue, goes on with operations that wait for room, and hands those that have ended
    /// to `hear`, at most `budget` of them; returns how many.
    #[inline]
    pub fn poll<Q: Queue>(
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
        queue.poll(budget - count, &mut |completion| {
            if let Some((ended, source)) = self.ended_by(completion) {
                count += 1;
                hear.hear(ended, self.of(source));
            }
        });
        if !self.waiting.is_empty() {
            self.resume(queue);
            count += self.drain(budget - count, hear);
        }
        count
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
            && let Some(memory) = request.buf.place()
            && let Some(simple) = self.grid.simple(queue, source, what, offset, memory)
        {
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
                slot.source = self.sources.add_user(source);
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
            return Err(DirectRequest {
                buf: lent.take_back(),
                ..request
            });
        }
        Err(request)
    }

    #[inline(never)]
    fn start_in_full<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'_, S>,
        kept: bool,
    ) -> Result<u16, Rejected> {
        let index = self.free;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(Rejected::full(request.buf));
        };
        let len = request.buf.len() as u64;
        let offset = request.offset;
        let block_mask = self.grid.block_mask;
        if ((offset | len) & block_mask) | (request.buf.iova().0 & self.grid.dma_mask) != 0 {
            let error = self.misaligned(offset, &request.buf);
            return Err(Rejected::error(error, request.buf));
        }
        slot.begin(kept, offset, request.user_data);
        if request.what == What::Read {
            let size = request.source.map_or(0, Source::size_bytes);
            slot.kind = OperationKind::Read;
            // Whole blocks are read, what lies beyond the size is zeroed and not reported.
            slot.report = len.min(size.saturating_sub(offset));
            slot.end = offset + ((slot.report + block_mask) & !block_mask);
        } else if let Err(error) = self.prepare(index, &request, queue.limits().read_only) {
            let slot = &mut self.slots[usize::from(index)];
            slot.stage = DirectStage::Free;
            slot.kept = false;
            return Err(Rejected::error(error, request.buf));
        }
        let source = request
            .source
            .map_or(NO_SOURCE, |source| self.sources.add_user(source));
        let slot = &mut self.slots[usize::from(index)];
        slot.lent = request.buf.lend();
        slot.source = source;
        // Operations that wait go first.
        if !self.waiting.is_empty() {
            return self.queue_up(index);
        }
        match self.issue(queue, index, true) {
            Ok(Issued::All) => {
                self.leave_free_list(index);
                let slot = &mut self.slots[usize::from(index)];
                slot.stage = DirectStage::Submitted;
                if slot.in_flight == 0 {
                    self.settle_early(index);
                }
            }
            Ok(Issued::Blocked) => {
                self.leave_free_list(index);
                self.waiting.push_back(index);
            }
            Err(error) => self.fail_first(index, error)?,
        }
        Ok(index)
    }

    /// The first free slot has an operation now.
    fn leave_free_list(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        self.free = slot.next_free;
        if slot.kept {
            self.kept += 1;
        } else {
            self.polled += 1;
        }
    }

    /// The first free slot stays free: nothing of its operation was started.
    fn reject(&mut self, index: u16, error: Error) -> Rejected {
        let slot = &mut self.slots[usize::from(index)];
        self.sources.remove_user(slot.source);
        slot.reject(error)
    }

    /// For operations other than reads: the rest of the slot, as far as it is known without
    /// mappings.
    #[inline(never)]
    fn prepare(
        &mut self,
        index: u16,
        request: &DirectRequest<'_, S>,
        read_only: bool,
    ) -> Result<(), Error> {
        let block_mask = self.grid.block_mask;
        let slot = &mut self.slots[usize::from(index)];
        let len = request.buf.len() as u64;
        let offset = request.offset;
        match request.what {
            What::Read => {}
            What::Write {
                dsync,
                through_last_block,
            } => {
                let Some(source) = request.source else {
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
                slot.kind = OperationKind::Write;
                slot.dsync = dsync;
                slot.report = len;
                // What reaches beyond the size belongs to the last block, not to the file.
                slot.end = end.min(size).max(offset);
            }
            What::Flush => slot.kind = OperationKind::Flush,
            What::DeviceRead | What::DeviceWrite => {
                if request.what == What::DeviceWrite {
                    if read_only {
                        return Err(read_only_device());
                    }
                    slot.kind = OperationKind::DeviceWrite;
                } else {
                    slot.kind = OperationKind::DeviceRead;
                }
                slot.report = len;
                slot.end = offset.saturating_add(len);
            }
        }
        Ok(())
    }

    /// Behind others that wait. A write is looked at now: it is refused here or not at all.
    #[cold]
    fn queue_up(&mut self, index: u16) -> Result<u16, Rejected> {
        let slot = &self.slots[usize::from(index)];
        if slot.kind == OperationKind::Write
            && let Some(source) = self.sources.get(slot.source)
            && let Err(error) = check_overwrite(source, slot.pos, slot.end - slot.pos)
        {
            return Err(self.reject(index, error));
        }
        self.leave_free_list(index);
        self.waiting.push_back(index);
        Ok(index)
    }

    /// The first attempt failed. A write of which nothing is on its way was not started; all else
    /// ends with the error.
    #[cold]
    fn fail_first(&mut self, index: u16, error: Error) -> Result<(), Rejected> {
        let slot = &mut self.slots[usize::from(index)];
        if slot.kind == OperationKind::Write && slot.in_flight == 0 {
            return Err(self.reject(index, error));
        }
        slot.fail(slot.pos - slot.start, error);
        slot.stage = DirectStage::Submitted;
        let idle = slot.in_flight == 0;
        self.leave_free_list(index);
        if idle {
            self.settle_early(index);
        }
        Ok(())
    }

    #[cold]
    fn misaligned(&self, offset: u64, buf: &DmaBuf) -> Error {
        let block = self.grid.block_mask + 1;
        let dma = self.grid.dma_mask + 1;
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

    fn issue<Q: Queue>(&mut self, queue: &mut Q, index: u16, first: bool) -> Result<Issued, Error> {
        let shift = self.grid.block_shift;
        let slot = &mut self.slots[usize::from(index)];
        match slot.kind {
            OperationKind::Read | OperationKind::Write => {
                let source = self.sources.get(slot.source);
                issue::file(slot, source, queue, (index, shift), first)
            }
            OperationKind::DeviceRead | OperationKind::DeviceWrite => {
                issue::device(slot, queue, index, shift)
            }
            OperationKind::Flush => issue::flush(slot, queue, index),
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

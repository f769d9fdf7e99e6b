//! A queue pair: one thread's way to a namespace. This file is the hot path: submit, poll, and nothing that
//! locks, allocates, calls the system or reads a clock. What goes wrong is looked after in `recovery`.
//!
//! A chain (the caller's work) has a slot; each command that it is cut into has a tracker, named by the
//! command id's low bits. The high bits count the tracker's uses, so that a completion of an earlier use is
//! seen for what it is.

use std::sync::Arc;

use super::controller::Controller;
use super::prp;
use super::queue::{CompletionRing, SubmissionRing};
use super::recovery::Watch;
use super::slots::{List, NONE, Slot, Stage, Tracker};
use super::spec::{
    CDW12_FUA, DSM_DEALLOCATE, OPC_DATASET_MANAGEMENT, OPC_FLUSH, OPC_READ, OPC_WRITE,
    OPC_WRITE_ZEROES, PAGE_BYTES,
};
use super::split::{
    Cursor, DWORD_BYTES, Geometry, NLB_MAX_BLOCKS, RANGE_MAX_BLOCKS, check_memory, clamp_blocks,
    piece_bytes,
};
use crate::block::{Chain, ChainFlags, Completion, Limits, Op, Queue, Refused, Status};
use crate::mem::{Segment, SharedWords};

/// Polls between two looks at the clock, where the caller never relaxes.
pub(super) const POLLS_PER_LOOK: u32 = 4096;

/// One [`Queue::relax`] counts as this many polls.
const RELAX_WEIGHT: u32 = 64;

/// A submission and a completion queue on one namespace. Belongs to one thread at a time.
///
/// Dropping it waits, bounded by the deadline of a command, for what is outstanding, and deletes the queues.
pub struct QueuePair {
    pub(super) sq: SubmissionRing,
    pub(super) cq: CompletionRing,
    /// The controller's generation that these rings belong to.
    pub(super) generation: u64,
    pub(super) controller: Arc<Controller>,
    /// Polls until the next look at the clock; 0 asks for attention at once.
    pub(super) countdown: u32,
    pub(super) free_tracker: u16,
    pub(super) free_slot: u16,
    /// Added to a command id for each use of its tracker: the entries of the rings.
    pub(super) cid_step: u16,
    /// What dword 2 of every completion starts with.
    pub(super) sq_id_word: u32,
    pub(super) outstanding: u32,
    pub(super) waiting: List,
    /// Chains that ended elsewhere than in `reap`.
    pub(super) ended: List,
    pub(super) trackers: Box<[Tracker]>,
    pub(super) slots: Box<[Slot]>,
    pub(super) geometry: Geometry,
    /// The namespace id, in its place in word 0.
    pub(super) nsid_word: u64,
    pub(super) limits: Limits,
    /// A page for each tracker: its PRP list, or its dataset management range.
    pub(super) lists: SharedWords,
    /// `limits.max_segments` for each slot.
    pub(super) segments: Box<[Segment]>,
    pub(super) id: u16,
    pub(super) watch: Watch,
}

impl Queue for QueuePair {
    #[inline]
    fn limits(&self) -> &Limits {
        &self.limits
    }

    #[inline]
    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        let index = self.free_slot;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(self.refusal());
        };
        let (opcode, control) = match chain.op {
            Op::Read => (OPC_READ, 0),
            Op::Write if !self.limits.read_only => {
                let fua = chain.flags.contains(ChainFlags::FUA);
                (OPC_WRITE, if fua { CDW12_FUA } else { 0 })
            }
            _ => return self.submit_other(chain),
        };
        let bytes = check_range(chain, &self.limits, self.geometry.block_shift)?;
        match chain.segments {
            [only] if u64::from(only.len_bytes) == bytes && is_aligned(only) => slot.first = *only,
            _ => {
                let table = usize::from(index) * self.limits.max_segments;
                let table = &mut self.segments[table..table + self.limits.max_segments];
                slot.first =
                    take_segments(chain.segments, table, bytes, self.geometry.block_shift)?;
            }
        }
        slot.segments = chain.segments.len();
        self.enter(index, chain, (opcode, control), chain.blocks);
        Ok(())
    }

    #[inline]
    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        if (self.countdown == 0 || self.controller.generation() != self.generation)
            && !self.attend()
        {
            return self.drain_ended(budget, done);
        }
        self.countdown -= 1;
        if self.waiting.head != NONE {
            self.issue_waiting();
        }
        self.sq.ring();
        let drained = match self.ended.head {
            NONE => 0,
            _ => self.drain_ended(budget, done),
        };
        drained + self.reap(budget - drained, done)
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.outstanding as usize
    }

    #[inline]
    fn relax(&mut self) {
        self.controller.port.device.relax();
        self.countdown = self.countdown.saturating_sub(RELAX_WEIGHT);
    }
}

impl QueuePair {
    /// The operations without memory, and whatever is refused.
    #[cold]
    fn submit_other(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        let invalid = |why| Err(Refused::Invalid(why));
        if self.limits.read_only && chain.op != Op::Flush {
            return invalid("the queue is read-only");
        }
        if !chain.segments.is_empty() {
            return invalid("only reads and writes have memory");
        }
        let fua = chain.flags.contains(ChainFlags::FUA);
        let (command, left) = match chain.op {
            Op::Flush if chain.blocks != 0 => return invalid("a flush has no range"),
            Op::Flush => ((OPC_FLUSH, 0), 1),
            Op::WriteZeroes if !self.limits.write_zeroes => {
                return invalid("the device does not offer write zeroes");
            }
            Op::WriteZeroes => {
                let control = if fua { CDW12_FUA } else { 0 };
                ((OPC_WRITE_ZEROES, control), chain.blocks)
            }
            _ if !self.limits.deallocate => return invalid("the device does not offer deallocate"),
            _ => ((OPC_DATASET_MANAGEMENT, 0), chain.blocks),
        };
        if fua && chain.op != Op::WriteZeroes {
            return invalid("FUA is for writes and write zeroes");
        }
        let index = self.free_slot;
        self.slots[usize::from(index)].segments = 0;
        if chain.op == Op::Flush {
            if !self.limits.volatile_write_cache {
                // All that completed is durable already: the flush has ended before it is sent.
                self.enter(index, chain, command, 0);
                self.ended.push(&mut self.slots, index);
                return Ok(());
            }
        } else {
            check_range(chain, &self.limits, self.geometry.block_shift)?;
        }
        self.enter(index, chain, command, left);
        Ok(())
    }

    #[cold]
    fn refusal(&self) -> Refused {
        if self.watch.gone {
            Refused::Gone
        } else {
            Refused::Full
        }
    }

    /// Takes slot `index`, the first free one, and issues what it can of the chain.
    #[inline]
    fn enter(&mut self, index: u16, chain: &Chain<'_>, (opcode, control): (u8, u32), left: u64) {
        let slot = &mut self.slots[usize::from(index)];
        self.free_slot = slot.next;
        slot.token = chain.token;
        slot.lba = chain.lba.0;
        slot.left = left;
        slot.at = Cursor::default();
        slot.pending = 0;
        slot.control = control;
        slot.opcode = opcode;
        slot.waiting = false;
        slot.status = Status::Success;
        self.outstanding += 1;
        if self.waiting.head == NONE {
            while self.slots[usize::from(index)].left != 0 {
                if !self.issue(index) {
                    self.wait(index);
                    break;
                }
            }
        } else if left != 0 {
            self.wait(index);
        }
    }

    #[cold]
    fn wait(&mut self, index: u16) {
        self.slots[usize::from(index)].waiting = true;
        self.waiting.push(&mut self.slots, index);
    }

    /// Goes on with the chains that found too few trackers, in their order.
    #[cold]
    fn issue_waiting(&mut self) {
        while self.waiting.head != NONE {
            let index = self.waiting.head;
            while self.slots[usize::from(index)].left != 0 {
                if !self.issue(index) {
                    return;
                }
            }
            self.waiting.pop(&self.slots);
            let slot = &mut self.slots[usize::from(index)];
            slot.waiting = false;
            if slot.pending == 0 {
                // It failed while it waited, and all that was sent has ended.
                self.ended.push(&mut self.slots, index);
            }
        }
    }

    /// Sends the next command of a chain; false when no tracker is free.
    #[inline]
    fn issue(&mut self, index: u16) -> bool {
        let at = self.free_tracker;
        let Some(tracker) = self.trackers.get(usize::from(at)) else {
            return false;
        };
        let (cid, next_free) = (tracker.cid, tracker.next_free);
        let opcode = self.slots[usize::from(index)].opcode;
        let (prp, cdw10_11, cdw12) = match opcode {
            OPC_READ | OPC_WRITE => self.next_transfer(index, at),
            _ => self.next_other(index, at),
        };
        self.slots[usize::from(index)].pending += 1;
        let word0 = u64::from(opcode) | u64::from(cid) << 16 | self.nsid_word;
        let cdw12 = u64::from(cdw12);
        self.free_tracker = next_free;
        let tracker = &mut self.trackers[usize::from(at)];
        tracker.chain = index;
        tracker.retries = 0;
        tracker.stage = Stage::Sent;
        tracker.seen_ns = 0;
        tracker.entry = [word0, prp.first, prp.second, cdw10_11, cdw12];
        self.sq
            .push(&[word0, 0, 0, prp.first, prp.second, cdw10_11, cdw12, 0]);
        true
    }

    /// The next read or write of a chain: its memory, CDW10 and 11, CDW12.
    #[inline]
    fn next_transfer(&mut self, index: u16, at: u16) -> (prp::Prp, u64, u32) {
        let slot = &mut self.slots[usize::from(index)];
        let base = usize::from(at) * PAGE_BYTES;
        let lists = &self.lists;
        let list = lists.iova().offset(base as u64);
        let store = |index: usize, address| lists.store_u64(base + index * 8, address);
        let shift = self.geometry.block_shift;
        let mut blocks = self.geometry.reach(slot.lba, slot.left);
        let bytes = blocks << shift;
        let prp = if slot.segments == 1 {
            let start = slot.first.iova.offset(u64::from(slot.at.offset_bytes));
            slot.at.offset_bytes = slot.at.offset_bytes.wrapping_add(bytes);
            prp::contiguous(start, bytes, list, store)
        } else {
            let table = usize::from(index) * self.limits.max_segments;
            let table = &self.segments[table..table + slot.segments];
            let bytes = piece_bytes(table, slot.at, bytes);
            blocks = bytes >> shift;
            let (prp, end) = prp::scattered(table, slot.at, bytes, list, store);
            slot.at = end;
            prp
        };
        let lba = slot.lba;
        slot.lba = lba.wrapping_add(u64::from(blocks));
        slot.left -= u64::from(blocks);
        (prp, lba, slot.control | blocks.wrapping_sub(1))
    }

    /// The next flush, write zeroes or dataset management of a chain.
    #[cold]
    fn next_other(&mut self, index: u16, at: u16) -> (prp::Prp, u64, u32) {
        let slot = &mut self.slots[usize::from(index)];
        let lba = slot.lba;
        let (blocks, prp, cdw10_11, cdw12) = match slot.opcode {
            OPC_FLUSH => (1, prp::Prp::default(), 0, 0),
            OPC_WRITE_ZEROES => {
                let blocks = clamp_blocks(slot.left, NLB_MAX_BLOCKS);
                (
                    blocks,
                    prp::Prp::default(),
                    lba,
                    slot.control | (blocks - 1),
                )
            }
            _ => {
                // One range; their number is 0's based.
                let blocks = clamp_blocks(slot.left, RANGE_MAX_BLOCKS);
                let base = usize::from(at) * PAGE_BYTES;
                self.lists.store_u64(base, u64::from(blocks) << 32);
                self.lists.store_u64(base + 8, lba);
                let prp = prp::Prp {
                    first: self.lists.iova().offset(base as u64).0,
                    second: 0,
                };
                (blocks, prp, u64::from(DSM_DEALLOCATE) << 32, 0)
            }
        };
        slot.lba = lba.wrapping_add(u64::from(blocks));
        slot.left -= u64::from(blocks);
        (prp, cdw10_11, cdw12)
    }

    /// Takes completions, at most one ring's worth, and hands over the chains that they end.
    #[inline]
    fn reap(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        let (mut count, mut looks) = (0, self.cq.entries());
        while count < budget && looks > 0 {
            let Some(entry) = self.cq.peek() else { break };
            looks -= 1;
            // Both halves at once: another queue's id, or an SQ head outside of the ring, is large.
            if entry.dw2 ^ self.sq_id_word >= self.cq.entries() {
                self.distrust();
                break;
            }
            let at = entry.cid() & (self.cid_step - 1);
            match self.trackers.get(usize::from(at)) {
                Some(tracker) if tracker.cid == entry.cid() && tracker.chain != NONE => {}
                _ => {
                    self.cq.pop();
                    if !self.stale(entry.cid()) {
                        break;
                    }
                    continue;
                }
            }
            self.cq.pop();
            let over = if entry.status().is_success() {
                self.settle(at, Status::Success)
            } else {
                self.failed(at, entry.status())
            };
            if let Some(index) = over {
                count += 1;
                done(self.release(index));
            }
        }
        self.cq.ring();
        count
    }

    /// Frees a tracker whose command ended with `status`; gives the chain if that was the last of it.
    #[inline]
    pub(super) fn settle(&mut self, at: u16, status: Status) -> Option<u16> {
        let tracker = &mut self.trackers[usize::from(at)];
        let index = tracker.chain;
        tracker.chain = NONE;
        tracker.cid = tracker.cid.wrapping_add(self.cid_step);
        tracker.next_free = self.free_tracker;
        self.free_tracker = at;
        let slot = &mut self.slots[usize::from(index)];
        slot.pending -= 1;
        if !status.is_success() && slot.status.is_success() {
            slot.status = status;
            // The rest is not sent.
            slot.left = 0;
        }
        (slot.pending == 0 && slot.left == 0 && !slot.waiting).then_some(index)
    }

    /// Frees a slot and says how its chain ended.
    #[inline]
    fn release(&mut self, index: u16) -> Completion {
        let slot = &mut self.slots[usize::from(index)];
        slot.next = self.free_slot;
        self.free_slot = index;
        self.outstanding -= 1;
        Completion {
            token: slot.token,
            status: slot.status,
        }
    }

    #[cold]
    fn drain_ended(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        let mut count = 0;
        while count < budget
            && let Some(index) = self.ended.pop(&self.slots)
        {
            count += 1;
            let completion = self.release(index);
            if self.watch.gone {
                // No slot is ever free again.
                self.free_slot = NONE;
            }
            done(completion);
        }
        count
    }
}

#[inline]
fn is_aligned(segment: &Segment) -> bool {
    (segment.iova.0 | u64::from(segment.len_bytes)) & u64::from(DWORD_BYTES - 1) == 0
        && segment.iova.0 <= IOVA_LAST
}

/// Past this, a segment could run over the end of the address space.
const IOVA_LAST: u64 = u64::MAX - (1 << 33);

/// Checks that a chain lies on the device; returns its length in bytes.
#[inline]
fn check_range(chain: &Chain<'_>, limits: &Limits, block_shift: u32) -> Result<u64, Refused> {
    if chain.blocks == 0 {
        return Err(Refused::Invalid("a chain has at least one block"));
    }
    match chain.lba.0.checked_add(chain.blocks) {
        Some(end) if end <= limits.capacity_blocks => Ok(chain.blocks << block_shift),
        _ => Err(Refused::Invalid("the range is not on the device")),
    }
}

/// Copies a list of segments into the slot's table, checked; returns the first.
#[cold]
fn take_segments(
    segments: &[Segment],
    table: &mut [Segment],
    bytes: u64,
    block_shift: u32,
) -> Result<Segment, Refused> {
    check_memory(segments, bytes, block_shift).map_err(Refused::Invalid)?;
    let Some(table) = table.get_mut(..segments.len()) else {
        return Err(Refused::Invalid("the chain has too many memory segments"));
    };
    table.copy_from_slice(segments);
    Ok(segments.first().copied().unwrap_or_default())
}

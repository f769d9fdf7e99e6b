//! A queue pair: one thread's access to a namespace. This file is the hot path, submit and poll: no
//! lock, allocation, system call or clock read. `recovery` handles failures.
//!
//! Each command has a tracker, named by the command id's low bits. The high bits count the
//! tracker's uses, so that a stale completion of an earlier use is detected. A chain (the caller's
//! request) that is one read or write, as most are, needs only a tracker; others have a slot, too.

use super::dataset::RANGE_BYTES;
use super::pair_state::{AttendAgain, GiveBack, QueuePair, Unwinding, next_cid};
use super::prp;
use super::queue::CqEntry;
use super::sgl;
use super::slots::{NONE, PairSlot, SINGLE};
use super::spec::{
    CDW12_FUA, DSM_DEALLOCATE, FLAGS_SGL, OPC_DATASET_MANAGEMENT, OPC_FLUSH, OPC_READ, OPC_WRITE,
    OPC_WRITE_ZEROES, PAGE_BYTES,
};
use super::split::{
    DWORD_BYTES, NLB_MAX_BLOCKS, check_memory, clamp_blocks, piece_bytes, take_segments,
};
use crate::block::{
    Chain, ChainFlags, Completion, Limits, One, Op, Queue, Reaper, Refused, Status, Token,
};
use crate::mem::Segment;
use crate::units::Iova;

/// One [`Queue::relax`] counts as this many polls.
const RELAX_WEIGHT: u32 = 64;

/// Of [`Queue::poll`].
struct Closure<'a, F>(&'a mut F);

impl<F: FnMut(Completion)> Reaper for Closure<'_, F> {
    #[inline(always)]
    fn reap(&mut self, completion: Completion) {
        (self.0)(completion);
    }
}

impl Queue for QueuePair {
    #[inline]
    fn limits(&self) -> &Limits {
        &self.limits
    }

    #[inline(always)]
    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        if let &[segment] = chain.segments
            && self.try_one(One {
                op: chain.op,
                flags: chain.flags,
                lba: chain.lba,
                blocks: chain.blocks,
                segment,
                token: chain.token,
            })
        {
            return Ok(());
        }
        self.submit_slowly(chain)
    }

    // Not left to the compiler: a call of it costs a tenth of its instructions more.
    #[inline(always)]
    fn try_one(&mut self, one: One) -> bool {
        // Nothing here calls anything: the compiler then saves no registers.
        let nlb = one.blocks.wrapping_sub(1);
        let segment = one.segment;
        // With a countdown of 0, chains may wait; else all in flight have trackers. Not 0 blocks.
        if self.countdown != 0
            && nlb < u64::from(self.most_plain_blocks)
            // No underflow: `most_plain_blocks` is at most the capacity.
            && one.lba.0 <= self.limits.capacity_blocks.wrapping_sub(one.blocks)
            && u64::from(segment.len_bytes()) == one.blocks << self.geometry.block_shift
            && is_plain(segment.iova())
            // Inside of the namespace, as the range is.
            && let lba = one.lba.0.wrapping_add(self.range.first())
            && self.geometry.surely_holds(lba, nlb)
            && let Some(prp) = prp::short(segment.iova(), segment.len_bytes())
            && let Some(tracker) = self.trackers.get_mut(usize::from(self.free_tracker))
        {
            let (opcode, control) = match one.op {
                Op::Read => (OPC_READ, 0),
                Op::Write if !self.limits.read_only => (OPC_WRITE, fua(one.flags)),
                _ => return false,
            };
            let word0 = u64::from(opcode) | u64::from(tracker.cid) << 16 | self.nsid_word;
            let cdw12 = nlb | u64::from(control);
            self.free_tracker = tracker.next_free;
            tracker.start(
                SINGLE,
                [word0, prp.first, prp.second, lba, cdw12],
                one.token,
            );
            self.outstanding += 1;
            self.sq
                .push(&[word0, 0, 0, prp.first, prp.second, lba, cdw12, 0]);
            return true;
        }
        false
    }

    #[inline(always)]
    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        self.poll_with(budget, &mut Closure(done))
    }

    #[inline]
    fn poll_with(&mut self, budget: usize, reaper: &mut impl Reaper) -> usize {
        if self.countdown == 0 || self.controller.generation() != self.generation {
            return self.poll_slowly(budget, reaper);
        }
        self.countdown -= 1;
        // As in `submit`: what calls anything is behind a tail call.
        if !self.sq.ring_register() {
            return self.poll_and_tell(budget, reaper);
        }
        let Some(entry) = self.cq.peek() else {
            return 0;
        };
        // The first in line, so that a depth of 1 does not pay for the loop.
        if budget != 0
            && let Some(token) = self.take_plain(entry)
        {
            let unwinding = Unwinding(self);
            reaper.reap(Completion {
                token,
                status: Status::Success,
            });
            std::mem::forget(unwinding);
            if self.outstanding == 0 {
                return if self.cq.owes() { self.settle_up() } else { 1 };
            }
            return 1 + self.reap(budget - 1, reaper);
        }
        self.reap(budget, reaper)
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.outstanding as usize
    }

    #[inline]
    fn relax(&mut self) {
        let silent = self.watch.silent_rounds(self.cq.head());
        let device = &*self.controller.port.device;
        device.relax(silent, self.outstanding);
        self.countdown = self.countdown.saturating_sub(RELAX_WEIGHT);
        if self.outstanding != 0 && device.is_gone() {
            self.watch.look_soon();
            self.countdown = 0;
            return;
        }
        if self.sleeper.is_some() {
            self.doze();
        }
    }
}

impl QueuePair {
    /// Requests other than a single read or write: several commands, other operations, invalid
    /// ones.
    #[cold]
    fn submit_slowly(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        if self.watch.replaced {
            return Err(Refused::Changed);
        }
        if self.watch.gone {
            return Err(Refused::Gone);
        }
        if self.outstanding as usize >= self.limits.depth {
            return Err(Refused::Full);
        }
        let (opcode, control) = self.check(chain)?;
        let index = self.free_slot;
        let mut first = Segment::default();
        if matches!(chain.op, Op::Read | Op::Write) {
            let table = usize::from(index) * self.limits.max_segments;
            let table = &mut self.segments[table..table + self.limits.max_segments];
            let bytes = chain.blocks << self.geometry.block_shift;
            check_memory(chain.segments, bytes, self.geometry.block_shift, self.sgl)
                .map_err(Refused::Invalid)?;
            first = take_segments(chain.segments, table)?;
        }
        let slot = &mut self.slots[usize::from(index)];
        self.free_slot = slot.next;
        *slot = PairSlot {
            token: chain.token,
            // Inside of the namespace, as `check` says of the range's end.
            lba: chain.lba.0.wrapping_add(self.range.first()),
            left: chain.blocks,
            first,
            segments: chain.segments.len(),
            control,
            opcode,
            ..PairSlot::free(NONE)
        };
        self.outstanding += 1;
        if chain.op == Op::Flush {
            let limits_hold = self.controller.generation() == self.generation;
            if !self.limits.volatile_write_cache && limits_hold {
                // All that completed is durable already: the flush has ended before it is sent.
                self.ended.push(&mut self.slots, index);
                self.countdown = 0;
                return Ok(());
            }
            slot.left = 1;
        }
        if self.waiting.head != NONE || !self.issue_all(index) {
            self.slots[usize::from(index)].waiting = true;
            self.waiting.push(&mut self.slots, index);
            self.countdown = 0;
        }
        Ok(())
    }

    /// Everything but the memory of a chain; its opcode, and CDW12 without the number of blocks.
    fn check(&self, chain: &Chain<'_>) -> Result<(u8, u32), Refused> {
        let invalid = |why| Err(Refused::Invalid(why));
        let limits = &self.limits;
        if limits.read_only && !matches!(chain.op, Op::Read | Op::Flush) {
            return Err(Refused::ReadOnly);
        }
        if !matches!(chain.op, Op::Read | Op::Write) && !chain.segments.is_empty() {
            return invalid("only reads and writes have memory");
        }
        if fua(chain.flags) != 0 && !matches!(chain.op, Op::Write | Op::WriteZeroes) {
            return invalid("FUA is for writes and write zeroes");
        }
        let opcode = match chain.op {
            Op::Flush if chain.blocks != 0 => return invalid("a flush has no range"),
            Op::Flush => return Ok((OPC_FLUSH, 0)),
            Op::Read => OPC_READ,
            Op::Write => OPC_WRITE,
            Op::WriteZeroes if limits.write_zeroes => OPC_WRITE_ZEROES,
            Op::WriteZeroes => return invalid("the device does not offer write zeroes"),
            Op::Deallocate if limits.deallocate => OPC_DATASET_MANAGEMENT,
            Op::Deallocate => return invalid("the device does not offer deallocate"),
        };
        if chain.blocks == 0 {
            return invalid("a chain has at least one block");
        }
        match chain.lba.0.checked_add(chain.blocks) {
            Some(end) if end <= limits.capacity_blocks => Ok((opcode, fua(chain.flags))),
            _ => invalid("the range is not on the device"),
        }
    }

    /// A poll that tells a device that is told by more than a register.
    #[inline(never)]
    fn poll_and_tell(&mut self, budget: usize, reaper: &mut impl Reaper) -> usize {
        self.sq.ring();
        self.reap(budget, reaper)
    }

    /// Gives back the entries of a poll that took the only completion; says so.
    #[cold]
    #[inline(never)]
    fn settle_up(&mut self) -> usize {
        self.cq.ring();
        1
    }

    /// A poll that has more to do than to ring and to reap.
    #[cold]
    fn poll_slowly(&mut self, budget: usize, reaper: &mut impl Reaper) -> usize {
        let usable = self.attend();
        let AttendAgain(pair) = &mut AttendAgain(self);
        let mut count = 0;
        while count < budget
            && let Some(index) = pair.ended.pop(&pair.slots)
        {
            count += 1;
            let completion = pair.release(index);
            pair.outstanding -= 1;
            reaper.reap(completion);
        }
        if usable {
            pair.issue_waiting();
            pair.sq.ring();
            count += pair.reap(budget - count, reaper);
            // Into trackers that the reap freed, too: a caller that sleeps next would not be woken.
            pair.issue_waiting();
            pair.sq.ring();
        }
        count
    }

    /// Sends all that is left of a chain; false when there are too few trackers.
    fn issue_all(&mut self, index: u16) -> bool {
        while self.slots[usize::from(index)].left != 0 {
            if !self.issue(index) {
                return false;
            }
        }
        true
    }

    /// Continues, in order, with the chains that found too few trackers.
    fn issue_waiting(&mut self) {
        while self.waiting.head != NONE {
            let index = self.waiting.head;
            if !self.issue_all(index) {
                return;
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
    fn issue(&mut self, index: u16) -> bool {
        let at = self.free_tracker;
        let Some(tracker) = self.trackers.get(usize::from(at)) else {
            return false;
        };
        let (cid, next_free) = (tracker.cid, tracker.next_free);
        let opcode = self.slots[usize::from(index)].opcode;
        let (prp, flags, cdw10_11, cdw12) = match opcode {
            OPC_READ | OPC_WRITE => self.next_transfer(index, at),
            _ => self.next_other(index, at),
        };
        self.slots[usize::from(index)].pending += 1;
        let word0 =
            u64::from(u16::from_le_bytes([opcode, flags])) | u64::from(cid) << 16 | self.nsid_word;
        let cdw12 = u64::from(cdw12);
        self.free_tracker = next_free;
        let entry = [word0, prp.first, prp.second, cdw10_11, cdw12];
        self.trackers[usize::from(at)].start(index, entry, 0);
        self.sq
            .push(&[word0, 0, 0, prp.first, prp.second, cdw10_11, cdw12, 0]);
        true
    }

    /// The next read or write of a chain: its memory, what that is, CDW10 and 11, CDW12.
    fn next_transfer(&mut self, index: u16, at: u16) -> (prp::Prp, u8, u64, u32) {
        let slot = &mut self.slots[usize::from(index)];
        let shift = self.geometry.block_shift;
        let mut blocks = self.geometry.reach(slot.lba, slot.left);
        let bytes = blocks << shift;
        let mut flags = 0;
        let prp = if slot.segments == 1 {
            let start = slot.first.iova().offset(u64::from(slot.at.offset_bytes));
            slot.at.offset_bytes = slot.at.offset_bytes.wrapping_add(bytes);
            prp::contiguous(start, bytes, &self.lists, at)
        } else {
            let table = usize::from(index) * self.limits.max_segments;
            let table = &self.segments[table..table + slot.segments];
            let list = prp::PrpList::of(&self.lists, at);
            let by_sgl = if self.sgl {
                sgl::reach(table, slot.at, bytes, shift)
            } else {
                0
            };
            let bytes = piece_bytes(table, slot.at, bytes);
            // PRPs where they say as much: they are what controllers know best.
            let (prp, end) = if by_sgl > bytes {
                flags = FLAGS_SGL;
                blocks = by_sgl >> shift;
                sgl::describe(table, slot.at, by_sgl, &list)
            } else {
                blocks = bytes >> shift;
                prp::scattered(table, slot.at, bytes, &list)
            };
            slot.at = end;
            prp
        };
        let lba = slot.lba;
        slot.lba = lba.wrapping_add(u64::from(blocks));
        slot.left -= u64::from(blocks);
        (prp, flags, lba, slot.control | blocks.wrapping_sub(1))
    }

    /// The next flush, write zeroes or dataset management of a chain.
    fn next_other(&mut self, index: u16, at: u16) -> (prp::Prp, u8, u64, u32) {
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
                let base = usize::from(at) * PAGE_BYTES;
                let grain = self.limits.deallocate_grain.blocks;
                let (ranges, blocks) =
                    self.dataset
                        .cut(lba, slot.left, grain, |index, lba, blocks| {
                            let base = base + usize::from(index) * RANGE_BYTES;
                            self.lists.store_u64(base, u64::from(blocks) << 32);
                            self.lists.store_u64(base + 8, lba);
                        });
                let prp = prp::Prp {
                    first: self.lists.iova().offset(base as u64).0,
                    second: 0,
                };
                // The number of ranges is 0's based.
                let count = u64::from(ranges.saturating_sub(1));
                (blocks, prp, u64::from(DSM_DEALLOCATE) << 32 | count, 0)
            }
        };
        slot.lba = lba.wrapping_add(u64::from(blocks));
        slot.left -= u64::from(blocks);
        (prp, 0, cdw10_11, cdw12)
    }

    /// Reaps completions and delivers the chains that they end. Bounded whatever the device posts:
    /// each entry ends a command, uses up one of its retries, or counts against the limit of stale
    /// ones.
    #[inline(never)]
    fn reap(&mut self, budget: usize, reaper: &mut impl Reaper) -> usize {
        let GiveBack(pair) = &mut GiveBack(self);
        let mut count = 0;
        while count < budget
            && pair.outstanding != 0
            && let Some(entry) = pair.cq.peek()
        {
            let completion = match pair.take_plain(entry) {
                Some(token) => Completion {
                    token,
                    status: Status::Success,
                },
                None => match pair.take_other(entry) {
                    Ok(None) => continue,
                    Ok(Some(completion)) => {
                        pair.outstanding -= 1;
                        completion
                    }
                    Err(Confused) => break,
                },
            };
            count += 1;
            // In one place, so that it can be inlined.
            reaper.reap(completion);
        }
        count
    }

    /// Fast path: reaps the entry at the head if it is the success of a chain of one command.
    #[inline(always)]
    fn take_plain(&mut self, entry: CqEntry) -> Option<Token> {
        let cid = entry.cid();
        let at = cid & self.cid_mask;
        // Both halves of dword 2 at once: a wrong queue id or SQ head makes it too large.
        if entry.dw2 ^ self.sq_id_word > u32::from(self.cid_mask) || !entry.status().is_success() {
            return None;
        }
        let tracker = self.trackers.get_mut(usize::from(at))?;
        if tracker.cid != cid || tracker.chain != SINGLE {
            return None;
        }
        tracker.chain = NONE;
        tracker.cid = next_cid(cid, self.cid_mask);
        tracker.next_free = self.free_tracker;
        self.free_tracker = at;
        self.outstanding -= 1;
        self.cq.pop();
        Some(tracker.token)
    }

    /// Takes any entry; gives the end of a chain if it was that.
    fn take_other(&mut self, entry: CqEntry) -> Result<Option<Completion>, Confused> {
        if entry.dw2 ^ self.sq_id_word > u32::from(self.cid_mask) {
            self.distrust();
            return Err(Confused);
        }
        self.cq.pop();
        let cid = entry.cid();
        let at = cid & self.cid_mask;
        let tracker = self.trackers.get(usize::from(at));
        if !tracker.is_some_and(|tracker| tracker.cid == cid && tracker.chain != NONE) {
            return if self.stale(cid) {
                Ok(None)
            } else {
                Err(Confused)
            };
        }
        if entry.status().is_success() {
            Ok(self.settle(at, Status::Success))
        } else {
            Ok(self.failed(at, entry.status()))
        }
    }

    /// Frees a tracker whose command ended with `status`; gives the end of the chain if that was
    /// the last of it.
    pub(super) fn settle(&mut self, at: u16, status: Status) -> Option<Completion> {
        let tracker = &mut self.trackers[usize::from(at)];
        let (index, token) = (tracker.chain, tracker.token);
        tracker.chain = NONE;
        tracker.cid = next_cid(tracker.cid, self.cid_mask);
        tracker.next_free = self.free_tracker;
        self.free_tracker = at;
        if index == SINGLE {
            return Some(Completion { token, status });
        }
        let slot = &mut self.slots[usize::from(index)];
        slot.pending -= 1;
        if !status.is_success() && slot.status.is_success() {
            slot.status = status;
            // The rest is not sent.
            slot.left = 0;
        }
        let over = slot.pending == 0 && slot.left == 0 && !slot.waiting;
        over.then(|| self.release(index))
    }

    /// Frees a slot and says how its chain ended.
    fn release(&mut self, index: u16) -> Completion {
        let slot = &mut self.slots[usize::from(index)];
        slot.next = self.free_slot;
        self.free_slot = index;
        Completion {
            token: slot.token,
            status: slot.status,
        }
    }

    /// Keeps the end of a chain for the next poll. A slot is free: no more chains are outstanding
    /// than there are slots.
    pub(super) fn keep(&mut self, completion: Completion) {
        let index = self.free_slot;
        let slot = &mut self.slots[usize::from(index)];
        self.free_slot = slot.next;
        slot.token = completion.token;
        slot.status = completion.status;
        self.ended.push(&mut self.slots, index);
    }
}

/// The device broke the protocol: nothing more of it is believed before a reset.
struct Confused;

/// FUA, in its place in CDW12.
#[inline]
fn fua(flags: ChainFlags) -> u32 {
    if flags.contains(ChainFlags::FUA) {
        CDW12_FUA
    } else {
        0
    }
}

/// Aligned to a dword, and so low that no segment can run over the end of the address space.
#[inline]
fn is_plain(iova: Iova) -> bool {
    const MASK: u64 = 1 << 63 | (DWORD_BYTES as u64 - 1);
    iova.0 & MASK == 0
}

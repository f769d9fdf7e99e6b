//! What a queue pair does when something is wrong: deadline, abort, controller reset, retry, and
//! the end of every operation when nothing helps.
//!
//! No command carries a clock reading. The watch looks through the trackers now and then, notes
//! when it saw a command first, and takes that for its start: a deadline is enforced late by at
//! most one look, and never early, however long the program did not poll.
//!
//! Any thread may reset the controller (under the admin lock). The queues of the others are gone
//! then; each owner sees the new generation at its next poll, creates its own again and sends its
//! commands again.

use std::sync::Arc;

use super::admin::Admin;
use super::controller::{GONE, same_rings};
use super::pair_state::{POLLS_PER_LOOK, QueuePair, next_cid};
use super::port::ALL_ONES;
use super::slots::{CommandStage, NONE};
use super::spec::{CSTS_CFS, CSTS_RDY, REG_CSTS, SC_ABORT_REQUESTED, StatusField};
use super::watch::FIRST_PATIENCE_NS;
use crate::block::{Completion, Status};

/// Resets in a row before a queue that the controller does not create again is given up.
const RESETS_IN_A_ROW: usize = 3;

/// Completions of earlier uses that are only counted, in one generation. More show a confused
/// device.
const STALE_ALLOWED: u32 = 16;

/// Polls between two looks at the clock while chains wait for trackers.
const CALLS_PER_LOOK: u32 = 64;

impl QueuePair {
    /// Looks after what the hot path does not. False when the queue cannot be used just now:
    /// another thread is resetting the controller, or it is gone.
    #[cold]
    pub(super) fn attend(&mut self) -> bool {
        // Whatever cannot be done now is tried again at the next poll.
        self.countdown = 0;
        if self.watch.gone {
            return false;
        }
        let controller = Arc::clone(&self.controller);
        if controller.generation() != self.generation {
            return match controller.try_admin() {
                Some(mut admin) => self.rejoin_with(&mut admin),
                None => false,
            };
        }
        if !self.watch.must_reset {
            self.countdown = POLLS_PER_LOOK;
            if self.outstanding != 0 {
                controller.port.device.work_for_pollers();
            }
            self.watch.calls = self.watch.calls.wrapping_add(1);
            let called = self.waiting.head != NONE || self.ended.head != NONE;
            if called && !self.watch.calls.is_multiple_of(CALLS_PER_LOOK) {
                return true;
            }
            let now = controller.port.device.now_ns();
            if self.outstanding != 0 {
                self.call_again(now);
            }
            if now < self.watch.next_look_ns {
                return true;
            }
            self.watch.next_look_ns = now.saturating_add(self.watch.look_ns);
            controller.look_for_events();
            if controller.generation() != self.generation {
                // A namespace changed, or the controller was reset: the next poll sees to it.
                self.countdown = 0;
                return false;
            }
            self.watch.must_reset = self.outstanding != 0 && self.look(now);
            if !self.watch.must_reset {
                return true;
            }
            self.countdown = 0;
        }
        let Some(mut admin) = controller.try_admin() else {
            return false;
        };
        if controller.generation() == self.generation {
            // A failure leaves the controller gone, which rejoining sees.
            let _ = controller.reset(&mut admin);
        }
        self.rejoin_with(&mut admin)
    }

    /// Rings the registers of a controller with shadow doorbells when nothing has come of it for a
    /// while. A call that was lost costs that while, and no command.
    fn call_again(&mut self, now: u64) {
        if !self.sq.is_shadowed() {
            return;
        }
        let head = self.cq.head();
        let watch = &mut self.watch;
        if head != watch.called_at {
            watch.called_at = head;
            watch.patience_ns = FIRST_PATIENCE_NS;
        } else if now >= watch.call_again_ns {
            self.sq.insist();
            self.cq.insist();
            watch.patience_ns = watch.patience_ns.saturating_mul(2);
        } else {
            return;
        }
        watch.call_again_ns = now.saturating_add(watch.patience_ns);
    }

    /// Looks through the commands; true when the controller must be reset.
    fn look(&mut self, now: u64) -> bool {
        let answered = self.cq.peek().is_some();
        let head = self.cq.head();
        let went_on = std::mem::replace(&mut self.watch.looked_at, head) != head;
        // Who answers is well. To ask may cost a message to another process, which takes its time.
        if !answered && !went_on && self.is_lost() {
            return true;
        }
        // The device answered and the queue was not polled: first reap, then judge, but only once,
        // so that the judgement comes.
        let reaped = std::mem::take(&mut self.watch.reap_first);
        let may_judge = !answered || reaped;
        for at in 0..self.trackers.len() {
            let tracker = &mut self.trackers[at];
            if tracker.chain == NONE {
                continue;
            }
            if tracker.seen_ns == 0 {
                tracker.seen_ns = now.max(1);
            }
            let age = now.saturating_sub(tracker.seen_ns);
            if !may_judge {
                if age >= self.watch.timeout_ns / 2 {
                    self.watch.reap_first = true;
                    self.watch.next_look_ns = now;
                }
                continue;
            }
            match tracker.stage {
                CommandStage::Stuck => return true,
                CommandStage::Sent if age >= self.watch.timeout_ns => {
                    if self.abort(at, now) {
                        return true;
                    }
                }
                CommandStage::Aborted if age >= self.watch.timeout_ns / 2 => return true,
                CommandStage::Sent | CommandStage::Aborted => {}
            }
        }
        false
    }

    /// Whether the controller does not know this queue any more, by its status.
    fn is_lost(&self) -> bool {
        match self.controller.port.device.read32(REG_CSTS) {
            ALL_ONES => true,
            // Without RDY another process disabled or reset it.
            csts => csts & CSTS_CFS != 0 || csts & CSTS_RDY == 0,
        }
    }

    /// Aborts a command that is past its deadline; true when the controller must be reset.
    fn abort(&mut self, at: usize, now: u64) -> bool {
        let controller = Arc::clone(&self.controller);
        let Some(mut admin) = controller.try_admin() else {
            // The lock's owner may be resetting the controller; check again soon.
            self.watch.next_look_ns = now;
            return false;
        };
        if controller.generation() != self.generation {
            return false;
        }
        let counters = &controller.counters;
        counters.timeouts.add(1);
        counters.aborts.add(1);
        let tracker = &mut self.trackers[at];
        let aborted = admin.abort(&controller.port, counters, self.id, tracker.cid);
        match aborted {
            Ok(true) => {
                tracker.stage = CommandStage::Aborted;
                tracker.seen_ns = controller.port.device.now_ns().max(1);
                false
            }
            // Not aborted: it may have ended in between, which the next reap shows; otherwise it is
            // stuck.
            Ok(false) => {
                tracker.stage = CommandStage::Stuck;
                self.watch.next_look_ns = now;
                self.countdown = 1;
                false
            }
            Err(_) => {
                tracker.stage = CommandStage::Stuck;
                true
            }
        }
    }

    /// Creates the queues in the controller's current generation and submits the in-flight commands
    /// again. False when the controller is gone; everything has ended then.
    pub(super) fn rejoin_with(&mut self, admin: &mut Admin) -> bool {
        let controller = Arc::clone(&self.controller);
        for _ in 0..RESETS_IN_A_ROW {
            let generation = controller.generation();
            if generation == GONE {
                self.end_all(Status::Gone);
                return false;
            }
            let usable = self.renew_namespace();
            if same_rings(generation, self.generation) {
                // A namespace changed, and the rings are unchanged. One that became unusable comes
                // with a reset, by the thread that detected it or, failing that, by this one.
                self.generation = generation;
                self.watch.must_reset |= !usable;
                self.countdown = if self.watch.must_reset {
                    0
                } else {
                    POLLS_PER_LOOK
                };
                return usable;
            }
            if !usable {
                self.watch.replaced = true;
                self.end_all(Status::Changed);
                return false;
            }
            if self.create(admin).is_ok() {
                self.generation = generation;
                self.countdown = POLLS_PER_LOOK;
                self.watch.must_reset = false;
                self.watch.stale = 0;
                self.send_again();
                return true;
            }
            let _ = controller.reset(admin);
        }
        // The last reset left the device without this queue, and it will not have it again.
        self.end_all(Status::Gone);
        false
    }

    /// Takes over what the controller says of the namespace by now; false when it is not the one
    /// that this queue was opened on.
    pub(super) fn renew_namespace(&mut self) -> bool {
        let info = self.controller.info();
        let found = info.namespace(self.watch.nsid());
        let found =
            found.filter(|now| now.unusable.is_none() && self.watch.namespace.is_still(now));
        let Some(now) = found else { return false };
        let blocks = now.blocks;
        self.limits.deallocate_grain.blocks = now.deallocate_granularity_blocks;
        self.limits.deallocate_grain.align_blocks = now.deallocate_alignment_blocks;
        self.dataset = info.dataset;
        self.limits.read_only = self.watch.read_only || now.read_only;
        self.limits.volatile_write_cache = info.volatile_write_cache;
        self.set_device_blocks(blocks);
        true
    }

    /// After a reset: every outstanding command is sent again or, its retries used up, ended.
    fn send_again(&mut self) {
        for at in 0..self.trackers.len() {
            let tracker = &self.trackers[at];
            if tracker.chain == NONE {
                continue;
            }
            let status = match tracker.stage {
                CommandStage::Sent => Status::Reset,
                CommandStage::Aborted | CommandStage::Stuck => Status::TimedOut,
            };
            self.retry_or_end(at, status);
        }
    }

    fn retry_or_end(&mut self, at: usize, status: Status) {
        if self.retry(at) {
            return;
        }
        let at = u16::try_from(at).unwrap_or(NONE);
        if let Some(completion) = self.settle(at, status) {
            self.keep(completion);
        }
    }

    /// Sends a command again under a new id; false when its retries are used up, or its chain has
    /// failed.
    fn retry(&mut self, at: usize) -> bool {
        let tracker = &mut self.trackers[at];
        let chain = self.slots.get(usize::from(tracker.chain));
        let failed_already = chain.is_some_and(|slot| !slot.status.is_success());
        if failed_already || tracker.retries >= self.watch.retries {
            return false;
        }
        self.controller.counters.retries.add(1);
        tracker.retries += 1;
        tracker.stage = CommandStage::Sent;
        tracker.seen_ns = 0;
        tracker.cid = next_cid(tracker.cid, self.cid_mask);
        let [word0, prp1, prp2, cdw10_11, cdw12] = tracker.entry;
        let word0 = word0 & !(0xffff << 16) | u64::from(tracker.cid) << 16;
        self.sq.push(&[word0, 0, 0, prp1, prp2, cdw10_11, cdw12, 0]);
        true
    }

    /// A command ended with an error status. Gives the end of its chain if that was the last of it.
    #[cold]
    pub(super) fn failed(&mut self, at: u16, field: StatusField) -> Option<Completion> {
        let tracker = &self.trackers[usize::from(at)];
        let timed_out = tracker.stage != CommandStage::Sent
            && (field.sct(), field.sc()) == (SC_ABORT_REQUESTED.sct(), SC_ABORT_REQUESTED.sc());
        if (timed_out || may_pass(field)) && self.retry(usize::from(at)) {
            return None;
        }
        let status = if timed_out {
            Status::TimedOut
        } else {
            Status::Device {
                sct: field.sct(),
                sc: field.sc(),
            }
        };
        self.settle(at, status)
    }

    /// A completion that names no outstanding command. True when it may be passed over: a doubled
    /// or late one of an earlier use of a tracker, as long as they are few.
    #[cold]
    pub(super) fn stale(&mut self, cid: u16) -> bool {
        let slot = usize::from(cid & self.cid_mask);
        self.watch.stale += 1;
        if slot >= self.trackers.len() || self.watch.stale > STALE_ALLOWED {
            self.distrust();
            return false;
        }
        self.controller.counters.stale.add(1);
        true
    }

    /// The device broke the protocol: nothing more of it is believed until it was reset.
    #[cold]
    pub(super) fn distrust(&mut self) {
        self.controller.counters.stale.add(1);
        self.watch.must_reset = true;
        self.countdown = 0;
    }

    /// The controller is gone, or refuses this queue, or the namespace is another: everything ends.
    fn end_all(&mut self, status: Status) {
        self.watch.gone = true;
        self.generation = GONE;
        let loose = self.controller.dma_is_loose();
        let status = if loose { Status::Unfenced } else { status };
        for at in 0..self.trackers.len() {
            let chain = self.trackers[at].chain;
            if loose && let Some(slot) = self.slots.get_mut(usize::from(chain)) {
                // Whatever else went wrong before: the memory counts.
                slot.status = status;
            }
            if chain != NONE {
                let at = u16::try_from(at).unwrap_or(NONE);
                if let Some(completion) = self.settle(at, status) {
                    self.keep(completion);
                }
            }
        }
        while let Some(index) = self.waiting.pop(&self.slots) {
            let slot = &mut self.slots[usize::from(index)];
            slot.waiting = false;
            slot.left = 0;
            if slot.status.is_success() {
                slot.status = status;
            }
            self.ended.push(&mut self.slots, index);
        }
    }
}

/// Whether the same command may succeed when sent again: not forbidden by the device (DNR), and an
/// error of the moment rather than of the command.
fn may_pass(field: StatusField) -> bool {
    if field.dnr() {
        return false;
    }
    match field.sct() {
        // Data transfer, power loss, internal, abort, queue deleted, interrupted, transport, not
        // ready.
        0 => matches!(field.sc(), 0x04..=0x08 | 0x21 | 0x22 | 0x82),
        // Media: write fault, unrecovered read. Path errors.
        2 => matches!(field.sc(), 0x80 | 0x81),
        3 => true,
        _ => false,
    }
}

//! Interrupt-driven completion waiting: a queue whose owner sleeps until the device interrupts.
//!
//! No wakeup is missed. The device posts an entry and then raises the vector's counter; the owner
//! polls the queue and then sleeps on the counter. An entry posted after the poll raises the
//! counter after the poll, and a counter above zero ends the sleep, or does not let it begin. Only
//! the sleeper resets the counter, as it wakes, and it polls the queue after that. A device may
//! withhold the next interrupt until the entries of the last one are returned: therefore the
//! completion queue's doorbell is rung before every sleep. A lost interrupt, or a silent device,
//! costs at most one check interval of the deadline watch: no sleep is longer.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::controller::Controller;
use super::pair_state::QueuePair;
use super::slots::NONE;
use crate::block::Queue;
use crate::sys::EventFd;

impl QueuePair {
    /// The counter that the device raises when a request has completed; `None` for a queue that
    /// only polls.
    pub(crate) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sleeper.as_ref().map(|sleeper| sleeper.event.as_fd())
    }

    /// Resets the counter of [`QueuePair::event_fd`], for a caller that waits for it next. False
    /// when there may be a completion to poll: the caller polls again instead of waiting.
    pub(crate) fn arm(&mut self) -> bool {
        let may_have_more = self.ended.head != NONE
            || self.watch.is_busy()
            || self.controller.generation() != self.generation;
        let Some(sleeper) = &self.sleeper else {
            return false;
        };
        // As in `doze`: the queue is checked after the counter is reset.
        let _ = sleeper.event.take();
        self.sq.ring();
        self.cq.ring();
        // The next poll checks the deadlines: the caller may have waited for long.
        self.countdown = 0;
        !may_have_more && self.cq.peek().is_none()
    }

    /// How long the owner may sleep, where polling has brought nothing for long enough and only the
    /// device can bring anything.
    #[cold]
    pub(super) fn sleep_limit(&mut self) -> Option<Duration> {
        let head = self.cq.head();
        let nothing_to_come = self.outstanding == 0
            || self.ended.head != NONE
            || self.watch.is_busy()
            || self.controller.generation() != self.generation;
        let sleeper = self.sleeper.as_mut()?;
        if nothing_to_come || !sleeper.is_tired(head) {
            return None;
        }
        // What the device was not told of, it will not end; and a device whose doorbells take its
        // `relax` to arrive has not had one since.
        if !self.sq.is_rung() || !self.cq.is_rung() {
            self.sq.ring();
            self.cq.ring();
            return None;
        }
        if self.cq.peek().is_some() {
            return None;
        }
        Some(self.watch.longest_sleep(self.sq.is_shadowed()))
    }

    /// Sleeps, where that makes sense.
    #[cold]
    pub(super) fn doze(&mut self) {
        let Some(longest) = self.sleep_limit() else {
            return;
        };
        let Some(sleeper) = &self.sleeper else {
            return;
        };
        // A failed sleep is no sleep: the caller continues as if it polled.
        let woken = sleeper.event.wait(Some(longest));
        if matches!(woken, Ok(false)) && self.cq.peek().is_some() {
            self.controller.counters.lost_interrupts.add(1);
        }
        self.look_at_clock();
    }

    /// After a sleep: the watch goes by the clock, and that took long.
    pub(super) fn look_at_clock(&mut self) {
        self.countdown = 0;
    }
}

/// For a pair whose handles sleep without it.
impl QueuePair {
    /// The counter of [`QueuePair::event_fd`].
    pub(super) fn device_event(&self) -> Option<Arc<EventFd>> {
        self.sleeper
            .as_ref()
            .map(|sleeper| Arc::clone(&sleeper.event))
    }

    /// [`Queue::relax`] without a sleep.
    pub(super) fn relax_awake(&mut self) {
        let sleeper = self.sleeper.take();
        self.relax();
        self.sleeper = sleeper;
    }

    /// Gives the device back all entries that were taken: it may withhold its next interrupt until
    /// then.
    pub(super) fn give_all_back(&mut self) {
        self.cq.ring();
    }

    /// The controller, whose clock counts, and the deadline of a command.
    pub(super) fn deadline(&self) -> (Arc<Controller>, Duration) {
        (Arc::clone(&self.controller), self.watch.timeout())
    }
}

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
use super::pair::QueuePair;
use super::slots::NONE;
use crate::block::{Queue, Wait};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::EventFd;

/// What a queue pair needs to sleep. Gives its vector back when it is dropped.
pub(super) struct Sleeper {
    controller: Arc<Controller>,
    pub(super) vector: u16,
    event: Arc<EventFd>,
    /// Rounds that find nothing before it sleeps.
    spins: u32,
    /// Rounds that found nothing so far, and where the completion queue stood.
    idle: (u32, u32),
}

/// The vectors for I/O queues, the next one last. Vector 0 is the admin queue's: it comes when all
/// others are in use, and its queue is woken by admin commands for nothing.
pub(super) fn free_vectors(device: &dyn Device) -> Vec<u16> {
    let all = device.interrupt_vectors();
    let mut free: Vec<_> = (1..all).rev().collect();
    if all > 0 {
        free.insert(0, 0);
    }
    free
}

impl Sleeper {
    /// Takes a vector and connects it; `None` for a queue that only polls.
    pub(super) fn new(controller: &Arc<Controller>, wait: Wait) -> Result<Option<Self>> {
        let spins = match wait {
            Wait::Poll => return Ok(None),
            Wait::Interrupt => 0,
            Wait::Adaptive { spins } => spins,
        };
        let device = &*controller.port.device;
        if device.interrupt_vectors() == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the device has no interrupts to wait for; it can only be polled",
            ));
        }
        let Some(vector) = controller.admin().free_vectors.pop() else {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "all {} interrupt vectors of the device are in use; wait by polling",
                    device.interrupt_vectors()
                ),
            ));
        };
        match device.interrupt(vector) {
            Ok(event) => Ok(Some(Self {
                controller: Arc::clone(controller),
                vector,
                event,
                spins,
                idle: (0, 0),
            })),
            Err(error) => {
                controller.admin().free_vectors.push(vector);
                Err(error)
            }
        }
    }

    /// Counts a round that found nothing; whether there were enough of them.
    fn is_tired(&mut self, head: u32) -> bool {
        let (rounds, at) = &mut self.idle;
        if *at != head {
            (*rounds, *at) = (0, head);
        }
        *rounds = rounds.saturating_add(1);
        *rounds > self.spins
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.controller.admin().free_vectors.push(self.vector);
    }
}

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

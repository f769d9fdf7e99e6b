//! Counters of a controller, and the statistics they become.

use std::sync::atomic::{AtomicU64, Ordering};

/// What went wrong so far, all queues together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControllerStats {
    /// Controller resets.
    pub resets: u64,
    /// Abort commands sent.
    pub aborts: u64,
    /// Commands sent again.
    pub retries: u64,
    /// Completions that belonged to no outstanding command, or named a wrong queue.
    pub stale_completions: u64,
    /// Commands that missed their deadline, admin commands included.
    pub timeouts: u64,
    /// Sleeps that ended by the clock although a completion was there: its interrupt was lost, or
    /// very late.
    pub lost_interrupts: u64,
    /// Asynchronous events that the controller reported.
    pub events: u64,
    /// Events that the program did not ask for in time.
    pub lost_events: u64,
    /// Bytes of rings never given back, because the device could not be kept from using them.
    pub leaked_bytes: u64,
}

/// One statistic. Counted on slow paths only.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// [`ControllerStats`] as they are counted.
#[derive(Debug, Default)]
pub(super) struct ControllerCounters {
    pub(super) resets: Counter,
    pub(super) aborts: Counter,
    pub(super) retries: Counter,
    pub(super) stale: Counter,
    pub(super) timeouts: Counter,
    pub(super) lost_interrupts: Counter,
    pub(super) events: Counter,
    pub(super) leaked_bytes: Counter,
}

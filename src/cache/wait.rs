//! Bounded waits for what other threads do to a page.

use std::time::{Duration, Instant};

use crossbeam_utils::Backoff;

/// How long a page that another thread writes to is waited for. It is locked for the time of a
/// copy, so only a thread that does not get to run takes long.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// The first and the longest sleep between two looks.
const FIRST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// What a round of waiting counts for beyond twice its sleep, at most.
const ROUND_LIMIT: Duration = Duration::from_millis(10);

/// The time that a wait may still take. A round that took far longer than its sleep counts for a
/// part of it: the process was stopped (by a signal, a freezer, a pause of the virtual machine),
/// and so were the threads that are waited for.
#[derive(Debug)]
pub(super) struct Remaining(Duration);

impl Remaining {
    pub(super) fn new(limit: Duration) -> Self {
        Self(limit)
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_zero()
    }

    /// How long to sleep in a round where a sleep of this length is wanted.
    pub(super) fn sleep(&self, wanted: Duration) -> Duration {
        self.0.min(wanted)
    }

    /// A round with this sleep took this long.
    pub(super) fn count(&mut self, sleep: Duration, took: Duration) {
        self.0 = self.0.saturating_sub(took.min(sleep * 2 + ROUND_LIMIT));
    }
}

/// Waits for a short condition that has no wakeup: yields the processor first, then sleeps for
/// increasing times, and gives up after a limit.
#[derive(Debug)]
pub(crate) struct BoundedWait {
    backoff: Backoff,
    remaining: Remaining,
    /// When the last sleep ended.
    last: Option<Instant>,
    nap: Duration,
}

impl BoundedWait {
    /// For this long, from the first wait on, without the time in which the process is stopped.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            backoff: Backoff::new(),
            remaining: Remaining::new(limit),
            last: None,
            nap: FIRST_NAP,
        }
    }

    /// For a page that another thread writes to.
    pub(crate) fn for_lock() -> Self {
        Self::new(LOCK_LIMIT)
    }

    /// Waits a little; false when the limit has passed.
    #[cold]
    pub(crate) fn wait(&mut self) -> bool {
        if !self.backoff.is_completed() {
            self.backoff.snooze();
            return true;
        }
        if self.remaining.is_over() {
            return false;
        }
        let start = self.last.unwrap_or_else(Instant::now);
        std::thread::sleep(self.nap);
        let now = Instant::now();
        self.remaining.count(self.nap, now - start);
        self.last = Some(now);
        self.nap = (self.nap * 2).min(LONGEST_NAP);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_process_was_stopped_uses_up_no_limit() {
        let mut remaining = Remaining::new(Duration::from_secs(5));
        remaining.count(LONGEST_NAP, Duration::from_secs(3600));
        assert!(!remaining.is_over());
        let rounds = (0..5000).take_while(|_| {
            remaining.count(LONGEST_NAP, LONGEST_NAP);
            !remaining.is_over()
        });
        assert!((4900..5000).contains(&rounds.count()));
    }

    #[test]
    fn patience_ends() {
        let mut patience = BoundedWait::new(Duration::from_millis(5));
        let waits = (0..1_000_000).take_while(|_| patience.wait()).count();
        assert!(waits > 3 && waits < 1_000_000);
        assert!(!patience.wait());
    }
}

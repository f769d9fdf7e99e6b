//! Bounded waits for what other threads do to a page.

use std::time::{Duration, Instant};

use crossbeam::utils::Backoff;

/// How long a page that another thread writes to is waited for. It is locked for the time of a copy, so only a thread
/// that does not get to run takes long.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// The first and the longest sleep between two looks.
const FIRST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// Waits for something that is over soon and that wakes nobody: yields the processor first, sleeps longer and longer
/// then, and gives up after a limit.
#[derive(Debug)]
pub(crate) struct Patience {
    backoff: Backoff,
    limit: Duration,
    deadline: Option<Instant>,
    nap: Duration,
}

impl Patience {
    /// For this long, from the first wait on.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            backoff: Backoff::new(),
            limit,
            deadline: None,
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
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert_with(|| now + self.limit);
        if now >= deadline {
            return false;
        }
        std::thread::sleep(self.nap);
        self.nap = (self.nap * 2).min(LONGEST_NAP);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends() {
        let mut patience = Patience::new(Duration::from_millis(5));
        let waits = (0..1_000_000).take_while(|_| patience.wait()).count();
        assert!(waits > 3 && waits < 1_000_000);
        assert!(!patience.wait());
    }
}

//! Threads that sleep until a page's writeback or pin ends. Ending either costs a fence and a load.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::wait::Remaining;
use crate::mem::pages::sync::atomic::{AtomicUsize, fence};
use crate::mem::pages::sync::{Condvar, Mutex};

/// The longest sleep without a look at the time.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// The threads that wait for the pages of one file.
#[derive(Debug)]
pub(super) struct Waiters {
    count: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            count: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }
}

impl Waiters {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Sleeps until `is_over` says so, which is asked after each [`Waiters::wake`]; false when that
    /// takes longer than the limit, without the time in which the process is stopped.
    #[cold]
    pub(super) fn wait(&self, limit: Duration, mut is_over: impl FnMut() -> bool) -> bool {
        let mut remaining = Remaining::new(limit);
        self.count.fetch_add(1, SeqCst);
        // Either this sees what was changed before a wake, or the wake sees the count.
        fence(SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let over = loop {
            if is_over() {
                break true;
            }
            if remaining.is_over() {
                break false;
            }
            let (start, sleep) = (Instant::now(), remaining.sleep(LONGEST_SLEEP));
            let slept = self.wake.wait_timeout(guard, sleep);
            (guard, _) = slept.unwrap_or_else(PoisonError::into_inner);
            remaining.count(sleep, start.elapsed());
        };
        drop(guard);
        self.count.fetch_sub(1, SeqCst);
        over
    }

    /// Has all of them look again. After the change that they wait for.
    pub(super) fn wake(&self) {
        fence(SeqCst);
        if self.count.load(Relaxed) != 0 {
            self.wake_all();
        }
    }

    #[cold]
    fn wake_all(&self) {
        // A thread that has checked the condition already sleeps once the lock can be taken.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

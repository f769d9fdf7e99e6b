//! Wakes the flusher thread on the first clean-to-dirty transition, and when the background share
//! is reached. Pages that become dirty while the flusher is not asleep cause no wakeup.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::mem::pages::sync::atomic::{AtomicBool, AtomicIsize, fence};

#[derive(Default)]
pub(super) struct Alarm {
    /// The flusher sleeps until the first page becomes dirty.
    armed: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").finish_non_exhaustive()
    }
}

impl Alarm {
    /// Sets the function that wakes the flusher. False if one is set already.
    pub(super) fn set(&self, wake: Box<dyn Fn() + Send + Sync>) -> bool {
        self.wake.set(wake).is_ok()
    }

    /// Arms the wakeup for the first dirty page. True when no page is dirty, so that the flusher
    /// may sleep.
    pub(super) fn arm(&self, dirty_pages: &AtomicIsize) -> bool {
        self.armed.store(true, SeqCst);
        // Either this load sees the page, or the thread that counted the page sees `armed`.
        fence(SeqCst);
        let clean = dirty_pages.load(Relaxed) <= 0;
        if !clean {
            self.armed.store(false, Relaxed);
        }
        clean
    }

    /// A page was counted as dirty, and before there was none.
    #[cold]
    pub(super) fn first_dirty(&self) {
        fence(SeqCst);
        if self.armed.load(Relaxed) && self.armed.swap(false, Relaxed) {
            self.ring();
        }
    }

    /// Wakes the other one in any case.
    #[cold]
    pub(super) fn ring(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

//! Wakes whoever writes back in the background, and nobody else, and not more often than need be: the first page that
//! becomes dirty rings only when the other one sleeps for want of anything dirty.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::mem::pages::sync::atomic::{AtomicBool, AtomicIsize, fence};

#[derive(Default)]
pub(super) struct Alarm {
    /// The other one sleeps until something is dirty.
    armed: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").finish_non_exhaustive()
    }
}

impl Alarm {
    /// Whom it wakes; false where there is somebody already.
    pub(super) fn set(&self, wake: Box<dyn Fn() + Send + Sync>) -> bool {
        self.wake.set(wake).is_ok()
    }

    /// True when nothing is dirty: then it rings for the first page that is.
    pub(super) fn arm(&self, dirty_pages: &AtomicIsize) -> bool {
        self.armed.store(true, SeqCst);
        // Either this sees the page, or who counted it sees that it is armed.
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

//! What a controller, its queues and its keeper share.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spdk_sys as ffi;

use super::attach::AttachHost;
use super::core::Core;
use super::describe::SpdkControllerInfo;
use super::env::{attaching, words};
use super::options::SpdkControllerOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::SocketPeer;

/// The generation of a controller that is gone for good.
pub(super) const GONE: u64 = u64::MAX;

/// What the queues and the keeper share.
pub(super) struct SpdkShared {
    pub(super) host: AttachHost,
    pub(super) options: SpdkControllerOptions,
    pub(super) nsid: u32,
    pub(super) info: SpdkControllerInfo,
    /// Even while it is up, odd during a reset, or [`GONE`].
    pub(super) generation: AtomicU64,
    /// The generation to be ended by a requested reset, plus one; 0 for none.
    pub(super) wanted: AtomicU64,
    pub(super) ctrlr: AtomicPtr<ffi::spdk_nvme_ctrlr>,
    /// The process that serves the controller, for vfio-user.
    pub(super) peer: Mutex<Option<SocketPeer>>,
    /// SPDK keeps it to the end of the process, because it could not be cut off from memory.
    pub(super) kept: AtomicBool,
    /// Held while queue pairs are made or the controller is reset.
    pub(super) cores: Mutex<Vec<Arc<Core>>>,
    pub(super) stop: AtomicBool,
    pub(super) bell: Mutex<()>,
    pub(super) rung: Condvar,
    pub(super) timeouts: AtomicU64,
    pub(super) resets: AtomicU64,
    pub(super) started: Instant,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SpdkShared {
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Wants the controller reset, unless it was since `generation`.
    #[cold]
    pub(super) fn ask_reset(&self, generation: u64) {
        if self.wanted.fetch_max(generation + 1, Ordering::AcqRel) <= generation {
            let _bell = lock(&self.bell);
            self.rung.notify_all();
        }
    }

    pub(super) fn reset_is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) > self.generation.load(Ordering::Acquire)
    }

    /// Sleeps, but not when there is something to do: a reset is wanted, or the end.
    pub(super) fn sleep(&self, time: Duration, but_for_resets: bool) {
        let bell = lock(&self.bell);
        if self.stopping() || (but_for_resets && self.reset_is_wanted()) {
            return;
        }
        drop(self.rung.wait_timeout(bell, time));
    }

    /// Whether SPDK takes the controller for failed. The caller has the lock of `cores`.
    pub(super) fn has_failed(&self) -> bool {
        let ctrlr = self.ctrlr.load(Ordering::Acquire);
        // SAFETY: attached while the lock is held. Polled, because that is how SPDK notices.
        let polled = unsafe { ffi::spdk_nvme_ctrlr_process_admin_completions(ctrlr) };
        // SAFETY: as above.
        polled < 0 || unsafe { ffi::spdk_nvme_ctrlr_is_failed(ctrlr) }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Gives the core a queue pair. The caller has the lock of `cores`; the core's own is taken
    /// only once the queue pair is connected, which may take a while: its owner does not wait for
    /// that.
    pub(super) fn equip(&self, core: &Core) -> Result<()> {
        let ctrlr = self.ctrlr.load(Ordering::Acquire);
        // SAFETY: the controller is attached: the keeper gives it up under the lock of `cores`,
        // which callers hold.
        let ns = unsafe { ffi::spdk_nvme_ctrlr_get_ns(ctrlr, self.nsid) };
        if ns.is_null() {
            return Err(Error::new(ErrorKind::NotFound, "the namespace is gone"));
        }
        let commands = u32::try_from(core.shape.commands).unwrap_or(1024);
        let entries = (commands + 1).min(self.info.max_queue_entries);
        // Cut at what PRPs cannot say and at boundaries, a command becomes several requests.
        let requests = commands.saturating_mul(4).max(256);
        let one_at_a_time = attaching();
        // SAFETY: as above.
        let qpair = unsafe { ffi::xtent_spdk_qpair(ctrlr, entries, requests) };
        drop(one_at_a_time);
        if qpair.is_null() {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("the controller grants no queue{}", words()),
            ));
        }
        let _guard = lock(&core.lock);
        core.ns.set(ns);
        core.qpair.set(qpair);
        Ok(())
    }
}

//! The device's clock: the host's monotonic one, or one that moves only when it is told to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[derive(Debug)]
pub(super) enum EmuClock {
    Real(Instant),
    Virtual(AtomicU64),
}

impl EmuClock {
    pub(super) fn now_ns(&self) -> u64 {
        match self {
            Self::Real(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Self::Virtual(now) => now.load(Ordering::Acquire),
        }
    }

    /// Moves a virtual clock; the real one goes by itself.
    pub(super) fn advance(&self, ns: u64) {
        if let Self::Virtual(now) = self {
            now.fetch_add(ns, Ordering::AcqRel);
        }
    }
}

//! Interrupts: a counter for each vector, as MSI-X messages would raise it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::EventFd;

/// The vectors of a controller. One without a counter interrupts nothing.
#[derive(Debug)]
pub(super) struct EmuVectors(Box<[Mutex<VectorSlot>]>);

type VectorSlot = Option<Arc<EventFd>>;

fn lock(slot: &Mutex<VectorSlot>) -> MutexGuard<'_, VectorSlot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EmuVectors {
    pub(super) fn new(count: u16) -> Self {
        Self((0..count).map(|_| Mutex::new(None)).collect())
    }

    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// The counter of `vector`, made at the first call; `None` for a vector that there is not.
    pub(super) fn connect(&self, vector: u16) -> Option<io::Result<Arc<EventFd>>> {
        let mut slot = lock(self.0.get(usize::from(vector))?);
        if let Some(event) = &*slot {
            return Some(Ok(Arc::clone(event)));
        }
        Some(EventFd::new().map(|event| Arc::clone(slot.insert(Arc::new(event)))))
    }

    /// From now on `vector` raises this counter, or nothing.
    pub(super) fn set(&self, vector: u16, event: Option<Arc<EventFd>>) {
        if let Some(slot) = self.0.get(usize::from(vector)) {
            *lock(slot) = event;
        }
    }

    pub(super) fn disconnect_all(&self) {
        for slot in &self.0 {
            *lock(slot) = None;
        }
    }

    /// The counter of `vector`, if one is connected. Raised without the controller's lock: a peer
    /// has it, too.
    pub(super) fn event(&self, vector: u16) -> VectorSlot {
        lock(self.0.get(usize::from(vector))?).clone()
    }
}

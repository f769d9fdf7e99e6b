//! Interrupts: a counter for each vector, as MSI-X messages would raise it.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::sys::EventFd;

/// The vectors of a controller. Those that nobody asked for are raised into the void.
#[derive(Debug)]
pub(super) struct Vectors(Box<[OnceLock<Arc<EventFd>>]>);

impl Vectors {
    pub(super) fn new(count: u16) -> Self {
        Self((0..count).map(|_| OnceLock::new()).collect())
    }

    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// The counter of `vector`, made at the first call; `None` for a vector that there is not.
    pub(super) fn connect(&self, vector: u16) -> Option<io::Result<Arc<EventFd>>> {
        let slot = self.0.get(usize::from(vector))?;
        if let Some(event) = slot.get() {
            return Some(Ok(Arc::clone(event)));
        }
        let made = match EventFd::new() {
            Ok(event) => Arc::new(event),
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(Arc::clone(slot.get_or_init(|| made))))
    }

    pub(super) fn raise(&self, vector: u16) {
        if let Some(event) = self.0.get(usize::from(vector)).and_then(OnceLock::get) {
            event.raise();
        }
    }

    /// Wakes whoever sleeps: the device is no more.
    pub(super) fn raise_all(&self) {
        for event in self.0.iter().filter_map(OnceLock::get) {
            event.raise();
        }
    }
}

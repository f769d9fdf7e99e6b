//! A queue pair's interrupt vector.

use std::sync::Arc;

use super::controller::Controller;
use crate::block::Wait;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::EventFd;

/// What a queue pair needs to sleep. Gives its vector back when it is dropped.
pub(super) struct Sleeper {
    controller: Arc<Controller>,
    pub(super) vector: u16,
    pub(super) event: Arc<EventFd>,
    /// Rounds that find nothing before it sleeps.
    spins: u32,
    /// Rounds that found nothing so far, and where the completion queue stood.
    idle: (u32, u32),
}

impl Sleeper {
    /// Takes a vector and connects it; `None` for a queue that only polls.
    pub(super) fn new(controller: &Arc<Controller>, wait: Wait) -> Result<Option<Self>> {
        let spins = match wait {
            Wait::Poll => return Ok(None),
            Wait::Interrupt => 0,
            Wait::Adaptive { spins } => spins,
        };
        let device = &*controller.port.device;
        if device.interrupt_vectors() == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the device has no interrupts to wait for; it can only be polled",
            ));
        }
        let Some(vector) = controller.admin().free_vectors.pop() else {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "all {} interrupt vectors of the device are in use; wait by polling",
                    device.interrupt_vectors()
                ),
            ));
        };
        match device.interrupt(vector) {
            Ok(event) => Ok(Some(Self {
                controller: Arc::clone(controller),
                vector,
                event,
                spins,
                idle: (0, 0),
            })),
            Err(error) => {
                controller.admin().free_vectors.push(vector);
                Err(error)
            }
        }
    }

    /// Counts a round that found nothing; whether there were enough of them.
    pub(super) fn is_tired(&mut self, head: u32) -> bool {
        let (rounds, at) = &mut self.idle;
        if *at != head {
            (*rounds, *at) = (0, head);
        }
        *rounds = rounds.saturating_add(1);
        *rounds > self.spins
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.controller.admin().free_vectors.push(self.vector);
    }
}

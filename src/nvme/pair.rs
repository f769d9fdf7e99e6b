//! A queue pair: one thread's way to a namespace.

use crate::block::{Chain, Completion, Limits, Queue, Refused};

/// A submission and a completion queue on one namespace. Belongs to one thread at a time.
#[derive(Debug)]
pub struct QueuePair {
    limits: Limits,
}

impl Queue for QueuePair {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, _chain: &Chain<'_>) -> Result<(), Refused> {
        Err(Refused::Gone)
    }

    fn poll(&mut self, _budget: usize, _done: &mut impl FnMut(Completion)) -> usize {
        0
    }

    fn outstanding(&self) -> usize {
        0
    }

    fn relax(&mut self) {}
}

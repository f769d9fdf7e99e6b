//! How a queue's owner and the controller's keeper share a queue pair without a lock in the hot
//! path.
//!
//! The controller has a generation: even while it is up, odd while it is being reset. The owner
//! enters its gate, looks at the generation, uses the queue pair if it is the one that the queue
//! pair belongs to, and leaves. The keeper makes the generation odd, and then waits until each
//! owner is outside: an owner that enters after that sees the new generation and leaves again. From
//! then on the queue pair is the keeper's.
//!
//! Both sides store and then load what the other stored, so each needs a full fence in between; the
//! owner's is paid for by the keeper ([`heavy_barrier`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::sys::light_barrier;

#[derive(Debug, Default)]
pub(super) struct Gate {
    inside: AtomicBool,
}

/// The owner is inside; it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

impl Gate {
    /// Enters, if the generation is still `mine`. By the owner only, and not twice.
    #[inline]
    pub(super) fn enter(&self, generation: &AtomicU64, mine: u64) -> Option<Inside<'_>> {
        self.inside.store(true, Ordering::Relaxed);
        light_barrier();
        let inside = Inside(self);
        // Acquire: what the keeper did to the queue pair before it set this generation is seen.
        (generation.load(Ordering::Acquire) == mine).then_some(inside)
    }

    /// Waits until the owner is outside. By the keeper, after it changed the generation and called
    /// [`crate::sys::heavy_barrier`].
    pub(super) fn wait_outside(&self) {
        while self.inside.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: what was done inside is seen by a keeper that finds the gate empty.
        self.0.inside.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::heavy_barrier;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn owner_and_keeper_are_never_inside_together() {
        let (gate, generation) = (Gate::default(), AtomicU64::new(0));
        let (users, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mine = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Some(_inside) = gate.enter(&generation, mine) {
                        assert_eq!(users.fetch_add(1, Ordering::Relaxed), 0);
                        users.fetch_sub(1, Ordering::Relaxed);
                    } else {
                        mine = generation.load(Ordering::Acquire) & !1;
                    }
                }
            });
            for round in 0..2000 {
                generation.store(round * 2 + 1, Ordering::Relaxed);
                heavy_barrier();
                gate.wait_outside();
                assert_eq!(users.fetch_add(1, Ordering::Relaxed), 0);
                users.fetch_sub(1, Ordering::Relaxed);
                generation.store(round * 2 + 2, Ordering::Release);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

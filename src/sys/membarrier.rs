//! Barriers of unequal weight: one side nearly free, for the hot path; the other a system call.
//!
//! Two threads that each store to one variable and then load the other's need a full fence on both
//! sides, or both may miss the other's store. `membarrier(2)` lets one side have both fences.

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence, fence};

const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: takes two numbers and a processor that no flag asks for; touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Whether the kernel does our fencing. Asked once: both sides must agree.
fn by_kernel() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED))
}

/// The light side: a fence against the compiler alone, where the kernel does the rest.
#[inline]
pub fn light_barrier() {
    if by_kernel() {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// Whether [`kernel_light_barrier`] may take the place of [`light_barrier`].
pub fn is_fenced_by_kernel() -> bool {
    by_kernel()
}

/// As [`light_barrier`] where the kernel does the rest, for a hot path that knows that it does.
#[inline(always)]
pub fn kernel_light_barrier() {
    compiler_fence(Ordering::SeqCst);
}

/// The heavy side: a full fence on every running thread of this process.
pub fn heavy_barrier() {
    fence(Ordering::SeqCst);
    if by_kernel() {
        // Registered, so it cannot fail.
        membarrier(PRIVATE_EXPEDITED);
    }
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn one_of_two_stores_is_always_seen() {
        const ROUNDS: usize = 20_000;
        let flags = [AtomicU32::new(0), AtomicU32::new(0)];
        let missed = [AtomicU32::new(0), AtomicU32::new(0)];
        let start = Barrier::new(2);
        let side = |me: usize, barrier: fn()| {
            for _ in 0..ROUNDS {
                flags[me].store(0, Ordering::SeqCst);
                missed[me].store(0, Ordering::SeqCst);
                start.wait();
                flags[me].store(1, Ordering::Relaxed);
                barrier();
                missed[me].store(
                    u32::from(flags[1 - me].load(Ordering::Relaxed) == 0),
                    Ordering::SeqCst,
                );
                start.wait();
                let both = missed[0].load(Ordering::SeqCst) + missed[1].load(Ordering::SeqCst);
                assert!(both < 2, "both stores were missed");
                start.wait();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| side(0, light_barrier));
            scope.spawn(|| side(1, heavy_barrier));
        });
    }
}

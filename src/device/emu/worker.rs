//! The thread that does the controller's work in threaded mode.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use super::EmuShared;

/// Commands of one pass, under one lock.
const PASS: usize = 256;
/// Empty passes between two looks at the clock.
const LOOK_EVERY: u32 = 64;
/// Empty passes between two offers of the processor to others, while spinning.
const YIELD_EVERY: u32 = 512;
/// Sleeps go from the first to the second as nothing happens.
const SHORTEST_SLEEP: Duration = Duration::from_micros(20);
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

/// Polls until told to stop. After work it spins for `spin`, then yields for as long again, then
/// sleeps in growing steps; a register access or a waiting host wakes it.
pub(super) fn run(shared: &Arc<EmuShared>, spin: Duration) {
    let mut idle_since = Instant::now();
    let mut empty = 0_u32;
    let mut sleep = SHORTEST_SLEEP;
    while !shared.stop.load(Ordering::Acquire) {
        if shared.worker_pass(PASS) > 0 {
            empty = 0;
            sleep = SHORTEST_SLEEP;
            continue;
        }
        empty = empty.wrapping_add(1);
        if empty == 1 {
            idle_since = Instant::now();
        }
        if !empty.is_multiple_of(LOOK_EVERY) {
            std::hint::spin_loop();
            continue;
        }
        let idle = idle_since.elapsed();
        if idle < spin {
            if empty.is_multiple_of(YIELD_EVERY) {
                thread::yield_now();
            }
        } else if idle < spin * 2 {
            thread::yield_now();
        } else {
            shared.sleeping.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // What came in between is seen now, or by the host that waits for it and wakes us.
            if shared.worker_pass(PASS) == 0 && !shared.stop.load(Ordering::Acquire) {
                thread::park_timeout(sleep);
            }
            shared.sleeping.store(false, Ordering::SeqCst);
            sleep = (sleep * 2).min(LONGEST_SLEEP);
        }
    }
}

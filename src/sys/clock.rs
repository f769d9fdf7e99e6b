//! The kernel's clocks, without the arithmetic of [`std::time`].

use std::time::Duration;

/// The time since 1970 at the last tick of the kernel: up to 10 ms old, and the same between ticks.
/// It makes no system call.
pub fn coarse_time() -> Duration {
    time_of(libc::CLOCK_REALTIME_COARSE)
}

/// The time since 1970. It makes no system call where the kernel has a clock for that.
pub fn fine_time() -> Duration {
    time_of(libc::CLOCK_REALTIME)
}

fn time_of(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec that the call may write to.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn the_coarse_time_is_that_of_the_last_tick() {
        let first = coarse_time();
        let fine = fine_time();
        assert!(first <= fine, "{first:?} is after {fine:?}");
        let std = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(fine <= std, "{fine:?} is after {std:?}");
        while coarse_time() == first {
            std::hint::spin_loop();
        }
    }
}

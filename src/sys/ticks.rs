//! A clock that costs a few cycles to read, for measuring each of many operations.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A point in time, in units of the fastest steady clock: the time stamp counter where it runs at
/// one rate in all states of the processor, the system's monotonic clock otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(u64);

#[derive(Debug)]
struct TickClock {
    /// Whether the time stamp counter is read.
    counter: bool,
    /// Nanoseconds in a tick, times 2^32.
    scale: u64,
    epoch: Instant,
}

static CLOCK: OnceLock<TickClock> = OnceLock::new();

/// How long the counter is compared with the system's clock: a rate that is right to a few
/// millionths.
const CALIBRATION: Duration = Duration::from_millis(20);

impl Ticks {
    /// Now. The first call in a process takes 20 ms: it finds out how fast the counter runs.
    #[inline]
    pub fn now() -> Self {
        let clock = CLOCK.get_or_init(TickClock::new);
        if clock.counter {
            return Self(counter());
        }
        Self(u64::try_from(clock.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Nanoseconds since an earlier point; 0 when it is a later one.
    #[inline]
    pub fn nanoseconds_since(self, earlier: Self) -> u64 {
        let scale = CLOCK.get().map_or(1 << 32, |clock| clock.scale);
        let ticks = u128::from(self.0.saturating_sub(earlier.0));
        u64::try_from((ticks * u128::from(scale)) >> 32).unwrap_or(u64::MAX)
    }

    /// The point that lies so much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let scale = CLOCK.get().map_or(1 << 32, |clock| clock.scale.max(1));
        let ticks = (time.as_nanos() << 32) / u128::from(scale);
        Self(
            self.0
                .saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX)),
        )
    }
}

impl TickClock {
    fn new() -> Self {
        let epoch = Instant::now();
        let by_system = Self {
            counter: false,
            scale: 1 << 32,
            epoch,
        };
        if !counter_is_steady() {
            return by_system;
        }
        let first = counter();
        while epoch.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        let ns = epoch.elapsed().as_nanos();
        let ticks = u128::from(counter().saturating_sub(first));
        match u64::try_from((ns << 32) / ticks.max(1)) {
            Ok(scale) if ticks > 0 && scale > 0 => Self {
                counter: true,
                scale,
                epoch,
            },
            _ => by_system,
        }
    }
}

#[inline]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Whether the counter is invariant (Intel's manual, volume 3, 18.17.1: CPUID leaf 8000_0007, EDX
/// bit 8).
fn counter_is_steady() -> bool {
    use core::arch::x86_64::__cpuid;
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_systems_clock() {
        let first = Ticks::now();
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(30));
        let least = start.elapsed().as_nanos();
        let between = u128::from(Ticks::now().nanoseconds_since(first));
        let most = start.elapsed().as_nanos();
        // The two clocks differ by what calibration missed, not more.
        assert!(between >= least - least / 100, "{between} of {least}");
        assert!(
            between <= most + most / 100 + 1_000_000,
            "{between} of {most}"
        );
        let later = first.after(Duration::from_millis(5));
        let ns = later.nanoseconds_since(first);
        assert!((4_999_000..=5_001_000).contains(&ns), "{ns}");
        assert_eq!(first.nanoseconds_since(later), 0);
    }
}

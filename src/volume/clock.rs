//! The time of changes: as fine as the clock, or, where no one can tell, as coarse as the kernel's
//! ticks. With that a file that is written to and synced again and again has new times, and the log
//! a transaction for them, a few hundred times a second. As the kernel's multigrain timestamps
//! (inode_set_ctime_current()): a time that was looked at is followed by a later one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::sys::{coarse_time, fine_time};
use crate::xfs::format::inode::InodeTimestamp;

/// The newest fine time that was given out, in nanoseconds since 1970. No coarse time that is given
/// out later is before it.
static FLOOR_NS: AtomicU64 = AtomicU64::new(0);
/// More than two ticks of the coarse clock. A floor further ahead is from before the clock was set
/// back.
const TICKS: Duration = Duration::from_millis(25);

/// The time of a change.
pub(super) fn now() -> InodeTimestamp {
    let since = fine_time();
    // Until the year 2554.
    let ns = since.as_secs().wrapping_mul(1_000_000_000);
    FLOOR_NS.store(ns.wrapping_add(since.subsec_nanos().into()), Relaxed);
    stamp(since)
}

/// The time of a change of a file whose inode was changed `last`, and whose times were looked at
/// since or not. Later than `last` where they were, and not before it otherwise, unless the clock
/// was set back.
pub(super) fn now_after(last: InodeTimestamp, is_seen: bool) -> InodeTimestamp {
    let floor = Duration::from_nanos(FLOOR_NS.load(Relaxed));
    let last_time = u64::try_from(last.seconds).map_or(Duration::ZERO, |seconds| {
        Duration::from_secs(seconds).saturating_add(Duration::from_nanos(last.nanoseconds.into()))
    });
    let at = coarse_after(coarse_time(), [floor, last_time]);
    match is_seen && at == last_time {
        true => now(),
        false => stamp(at),
    }
}

/// The coarse time, or a finer one of the same tick that was given out.
fn coarse_after(coarse: Duration, fine: [Duration; 2]) -> Duration {
    let limit = coarse.saturating_add(TICKS);
    let close = fine.into_iter().filter(|time| *time <= limit);
    close.fold(coarse, Duration::max)
}

fn stamp(since: Duration) -> InodeTimestamp {
    InodeTimestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: since.subsec_nanos(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_were_looked_at_are_followed_by_later_ones() {
        let mut last = now();
        for round in 0..1000 {
            let unseen = now_after(last, false);
            assert!(unseen >= last, "round {round}");
            let seen = now_after(unseen, true);
            assert!(seen > unseen, "round {round}");
            last = seen;
        }
    }

    #[test]
    fn times_that_were_not_looked_at_are_few() {
        let ms = Duration::from_millis;
        assert_eq!(coarse_after(ms(100), [ms(100), ms(96)]), ms(100));
        assert_eq!(coarse_after(ms(100), [ms(101), ms(96)]), ms(101));
        assert_eq!(coarse_after(ms(100), [ms(101), ms(103)]), ms(103));
        assert_eq!(coarse_after(ms(100), [ms(5000), ms(103)]), ms(103));
    }

    #[test]
    fn a_clock_that_was_set_back_is_believed() {
        let ahead = now();
        let ahead = InodeTimestamp {
            seconds: ahead.seconds + 1000,
            ..ahead
        };
        assert!(now_after(ahead, false) < ahead);
        assert!(now_after(ahead, true) < ahead);
    }
}

//! Operations and bytes over time, in intervals of one length.

use std::time::Duration;

/// More intervals than this are joined in pairs: a run of days takes no more memory than one of
/// minutes.
const MOST: usize = 4096;

/// The counts of one interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) read_ios: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_ios: u64,
    pub(crate) write_bytes: u64,
}

impl Interval {
    fn map2(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            read_ios: join(self.read_ios, other.read_ios),
            read_bytes: join(self.read_bytes, other.read_bytes),
            write_ios: join(self.write_ios, other.write_ios),
            write_bytes: join(self.write_bytes, other.write_bytes),
        }
    }
}

/// The intervals of a measurement that are over.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    pub(crate) interval: Duration,
    pub(crate) intervals: Vec<Interval>,
    /// Counts at the end of the last of them.
    before: Interval,
}

impl Timeline {
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval: interval.max(Duration::from_millis(1)),
            intervals: Vec::new(),
            before: Interval::default(),
        }
    }

    /// When the interval that is running ends, from the start of the measurement.
    pub(crate) fn next_end(&self) -> Duration {
        let ends = u32::try_from(self.intervals.len() + 1).unwrap_or(u32::MAX);
        self.interval.saturating_mul(ends)
    }

    /// Takes the counts so far, this long after the start. What was done since the last time is
    /// spread over the intervals that ended since then: an operation may take longer than one.
    pub(crate) fn mark(&mut self, elapsed: Duration, so_far: Interval) {
        while self.intervals.len() >= MOST {
            self.coarsen();
        }
        let ended = elapsed.as_nanos() / self.interval.as_nanos();
        let ended = usize::try_from(ended).unwrap_or(usize::MAX);
        let new = ended.saturating_sub(self.intervals.len()).min(MOST);
        if new == 0 {
            return;
        }
        let done = so_far.map2(self.before, u64::saturating_sub);
        for at in 0..new as u64 {
            let share = |all: u64, _| all * (at + 1) / new as u64 - all * at / new as u64;
            self.intervals.push(done.map2(done, share));
        }
        self.before = so_far;
    }

    /// Joins pairs of intervals.
    fn coarsen(&mut self) {
        let joined = self.intervals.chunks_exact(2);
        self.intervals = joined
            .map(|pair| pair[0].map2(pair[1], |a, b| a + b))
            .collect();
        self.interval *= 2;
    }

    /// Adds what another job did at the same time.
    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        while self.interval < other.interval {
            self.coarsen();
        }
        while other.interval < self.interval {
            other.coarsen();
        }
        if self.intervals.len() < other.intervals.len() {
            self.intervals
                .resize(other.intervals.len(), Interval::default());
        }
        for (all, more) in self.intervals.iter_mut().zip(&other.intervals) {
            *all = all.map2(*more, |a, b| a + b);
        }
    }

    /// A rate per second in each interval.
    pub(crate) fn rates(&self, count: impl Fn(&Interval) -> u64) -> Vec<f64> {
        let seconds = self.interval.as_secs_f64();
        let rates = self.intervals.iter().map(count);
        rates.map(|n| super::hist::rate(n, seconds)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ios(read_ios: u64) -> Interval {
        Interval {
            read_ios,
            read_bytes: read_ios * 4096,
            ..Interval::default()
        }
    }

    #[test]
    fn counts_fall_into_the_intervals_that_ended() {
        let mut timeline = Timeline::new(Duration::from_millis(100));
        assert_eq!(timeline.next_end(), Duration::from_millis(100));
        timeline.mark(Duration::from_millis(99), ios(5));
        assert!(timeline.intervals.is_empty());
        timeline.mark(Duration::from_millis(101), ios(10));
        // A long operation.
        timeline.mark(Duration::from_millis(450), ios(31));
        let found: Vec<u64> = timeline.intervals.iter().map(|i| i.read_ios).collect();
        assert_eq!(found, [10, 7, 7, 7]);
        let rates = timeline.rates(|i| i.read_ios);
        assert!((rates[0] - 100.0).abs() < 1e-9, "{rates:?}");
        assert_eq!(timeline.next_end(), Duration::from_millis(500));
    }

    #[test]
    fn long_runs_have_longer_intervals_and_jobs_are_added() {
        let mut long = Timeline::new(Duration::from_millis(1));
        for ms in 1..=10_000 {
            long.mark(Duration::from_millis(ms), ios(ms * 10));
        }
        assert!(long.intervals.len() <= MOST);
        let all: u64 = long.intervals.iter().map(|i| i.read_ios).sum();
        assert!((99_000..=100_000).contains(&all), "{all}");
        let mut other = Timeline::new(Duration::from_millis(1));
        other.mark(Duration::from_millis(4), ios(4));
        other.add(&long);
        assert_eq!(other.interval, long.interval);
        assert_eq!(other.intervals[0].read_ios, long.intervals[0].read_ios + 4);
    }
}

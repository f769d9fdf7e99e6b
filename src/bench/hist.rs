//! Latencies and counts of one direction, and the figures drawn from them.

use hdrhistogram::Histogram;

use super::latency::{Samples, add_histogram, histogram};

/// fio's list.
pub(crate) const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// The latencies of a direction that have percentiles. `clat` always has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Percentiles {
    pub(crate) slat: bool,
    pub(crate) lat: bool,
}

/// The operations of one direction (reads, writes) of a workload.
#[derive(Debug, Clone)]
pub(crate) struct Direction {
    /// From the time that the engine has an operation until it is reaped; where submission and
    /// completion are one call, from before that call.
    pub(crate) clat: Samples,
    submission: Submission,
    pub(crate) bytes: u64,
}

/// The times of submissions: from just before an operation is handed to the engine until the engine
/// has it. No more is kept for each operation than what the figures of submission and of both parts
/// together need; those of completion are in [`Direction::clat`].
#[derive(Debug, Clone)]
struct Submission {
    count: u64,
    min: u64,
    max: u64,
    sum: u64,
    squares: u128,
    /// Of both parts together.
    min_of_both: u64,
    max_of_both: u64,
    /// The sum of the products of both parts.
    products: u128,
    slat: Option<Histogram<u64>>,
    lat: Option<Histogram<u64>>,
}

impl Default for Direction {
    fn default() -> Self {
        Self::new(Percentiles::default())
    }
}

impl Direction {
    pub(crate) fn new(percentiles: Percentiles) -> Self {
        Self {
            clat: Samples::new(true),
            submission: Submission {
                count: 0,
                min: u64::MAX,
                max: 0,
                sum: 0,
                squares: 0,
                min_of_both: u64::MAX,
                max_of_both: 0,
                products: 0,
                slat: percentiles.slat.then(histogram),
                lat: percentiles.lat.then(histogram),
            },
            bytes: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn record(&mut self, latency: std::time::Duration, bytes: usize) {
        self.record_ns(u64::try_from(latency.as_nanos()).unwrap(), bytes);
    }

    /// An operation whose submission and completion were not told apart.
    #[inline]
    pub(crate) fn record_ns(&mut self, latency_ns: u64, bytes: usize) {
        self.clat.record(latency_ns);
        self.bytes += bytes as u64;
    }

    /// An operation, by its two parts.
    #[inline]
    pub(crate) fn record_parts(&mut self, submission_ns: u64, completion_ns: u64, bytes: usize) {
        let submission = &mut self.submission;
        let both = submission_ns + completion_ns;
        submission.count += 1;
        submission.min = submission.min.min(submission_ns);
        submission.max = submission.max.max(submission_ns);
        submission.sum += submission_ns;
        submission.squares += u128::from(submission_ns) * u128::from(submission_ns);
        submission.min_of_both = submission.min_of_both.min(both);
        submission.max_of_both = submission.max_of_both.max(both);
        submission.products += u128::from(submission_ns) * u128::from(completion_ns);
        if let Some(histogram) = &mut submission.slat {
            histogram.saturating_record(submission_ns.max(1));
        }
        if let Some(histogram) = &mut submission.lat {
            histogram.saturating_record(both.max(1));
        }
        self.record_ns(completion_ns, bytes);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.clat.add(&other.clat);
        self.bytes += other.bytes;
        let (all, more) = (&mut self.submission, &other.submission);
        all.count += more.count;
        all.min = all.min.min(more.min);
        all.max = all.max.max(more.max);
        all.sum += more.sum;
        all.squares += more.squares;
        all.min_of_both = all.min_of_both.min(more.min_of_both);
        all.max_of_both = all.max_of_both.max(more.max_of_both);
        all.products += more.products;
        add_histogram(&mut all.slat, more.slat.as_ref());
        add_histogram(&mut all.lat, more.lat.as_ref());
    }

    /// The times of submissions; none where they were not told apart.
    pub(crate) fn slat(&self) -> Samples {
        let submission = &self.submission;
        Samples::from_sums(
            (submission.count, submission.min, submission.max),
            (u128::from(submission.sum), submission.squares),
            submission.slat.clone(),
        )
    }

    /// Submission and completion together.
    pub(crate) fn lat(&self) -> Samples {
        let submission = &self.submission;
        if submission.count == 0 {
            return self.clat.clone();
        }
        let (sum, squares) = self.clat.sums();
        Samples::from_sums(
            (
                submission.count,
                submission.min_of_both,
                submission.max_of_both,
            ),
            (
                sum + u128::from(submission.sum),
                squares + submission.squares + 2 * submission.products,
            ),
            submission.lat.clone(),
        )
    }

    /// Operations.
    pub(crate) fn ios(&self) -> u64 {
        self.clat.count()
    }

    /// The completion latency that this percentage of operations did not exceed, in nanoseconds.
    pub(crate) fn percentile_ns(&self, percent: f64) -> u64 {
        self.clat.percentile_ns(percent)
    }
}

/// A rate as a whole number, as fio has it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded, not negative, and far below 2^64"
)]
pub(crate) fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

/// A rate per second.
pub(crate) fn rate(count: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let count = count as f64;
    count / seconds
}

/// A time for people: three digits and a unit.
pub(crate) fn time_text(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A count for people: 12.3k.
pub(crate) fn count_text(value: f64) -> String {
    match value {
        v if v < 1e3 => three_digits(v),
        v if v < 1e6 => format!("{}k", three_digits(v / 1e3)),
        v => format!("{}M", three_digits(v / 1e6)),
    }
}

/// Bytes for people, in powers of 1024.
pub(crate) fn bytes_text(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), units[unit])
}

pub(crate) fn three_digits(value: f64) -> String {
    match value {
        v if v == 0.0 || v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_the_sum_of_its_parts() {
        let mut direction = Direction::default();
        direction.record_parts(10, 90, 4096);
        direction.record_parts(30, 70, 4096);
        assert_eq!((direction.ios(), direction.bytes), (2, 8192));
        assert_eq!(
            (direction.slat().max_ns(), direction.clat.max_ns()),
            (30, 90)
        );
        assert_eq!(
            (direction.lat().min_ns(), direction.lat().max_ns()),
            (100, 100)
        );
        assert!((direction.slat().stddev_ns() - 200_f64.sqrt()).abs() < 1e-9);
        assert!(direction.lat().stddev_ns().abs() < 1e-9);
        let mut twice = Direction::default();
        twice.add(&direction);
        twice.add(&direction);
        assert!((twice.slat().mean_ns() - 20.0).abs() < 1e-9 && twice.lat().count() == 4);
        // In one call.
        let mut direction = Direction::default();
        direction.record_ns(50, 512);
        assert_eq!(
            (direction.slat().count(), direction.lat().max_ns()),
            (0, 50)
        );
    }

    #[test]
    fn texts_have_three_digits_and_a_unit() {
        assert_eq!(time_text(950.0), "950 ns");
        assert_eq!(time_text(12_340.0), "12.3 us");
        assert_eq!(count_text(1234.0), "1.23k");
        assert_eq!(bytes_text(1_048_576.0), "1.00 MiB");
    }
}

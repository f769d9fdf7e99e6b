//! Latencies and counts of one direction, and the figures drawn from them.

use super::latency::Samples;

/// fio's list.
pub(crate) const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// Which latencies of a direction have percentiles. `clat` always has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Percentiles {
    pub(crate) slat: bool,
    pub(crate) lat: bool,
}

/// The operations of one direction (reads, writes) of a workload.
#[derive(Debug, Clone)]
pub(crate) struct Direction {
    /// From just before an operation is handed to the engine until the engine has it. Empty where both are
    /// one call.
    pub(crate) slat: Samples,
    /// From then until it is reaped; where both are one call, all of it.
    pub(crate) clat: Samples,
    /// Both together. Empty where `slat` is.
    lat: Samples,
    pub(crate) bytes: u64,
}

impl Default for Direction {
    fn default() -> Self {
        Self::new(Percentiles::default())
    }
}

impl Direction {
    pub(crate) fn new(percentiles: Percentiles) -> Self {
        Self {
            slat: Samples::new(percentiles.slat),
            clat: Samples::new(true),
            lat: Samples::new(percentiles.lat),
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
        self.slat.record(submission_ns);
        self.lat.record(submission_ns + completion_ns);
        self.record_ns(completion_ns, bytes);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.slat.add(&other.slat);
        self.clat.add(&other.clat);
        self.lat.add(&other.lat);
        self.bytes += other.bytes;
    }

    /// Submission and completion together.
    pub(crate) fn lat(&self) -> &Samples {
        if self.lat.count() == 0 {
            &self.clat
        } else {
            &self.lat
        }
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

/// So many a second.
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
        assert_eq!((direction.slat.max_ns(), direction.clat.max_ns()), (30, 90));
        assert_eq!(
            (direction.lat().min_ns(), direction.lat().max_ns()),
            (100, 100)
        );
        // In one call.
        let mut direction = Direction::default();
        direction.record_ns(50, 512);
        assert_eq!((direction.slat.count(), direction.lat().max_ns()), (0, 50));
    }

    #[test]
    fn texts_have_three_digits_and_a_unit() {
        assert_eq!(time_text(950.0), "950 ns");
        assert_eq!(time_text(12_340.0), "12.3 us");
        assert_eq!(count_text(1234.0), "1.23k");
        assert_eq!(bytes_text(1_048_576.0), "1.00 MiB");
    }
}

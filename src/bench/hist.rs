//! Latencies and counts of one direction, and the figures drawn from them.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// fio's list.
pub(crate) const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// The longest latency told apart; longer ones count as this.
const LONGEST_NS: u64 = 600_000_000_000;

/// What one direction (reads, writes) of a workload came to.
#[derive(Debug, Clone)]
pub(crate) struct Direction {
    latency_ns: Histogram<u64>,
    pub(crate) bytes: u64,
    /// Exact, where the histogram has three digits.
    min_ns: u64,
    max_ns: u64,
    sum_ns: u128,
}

impl Default for Direction {
    fn default() -> Self {
        let latency_ns = Histogram::new_with_bounds(1, LONGEST_NS, 3)
            .unwrap_or_else(|_| unreachable!("the bounds are constants in range"));
        Self {
            latency_ns,
            bytes: 0,
            min_ns: u64::MAX,
            max_ns: 0,
            sum_ns: 0,
        }
    }
}

impl Direction {
    #[cfg(test)]
    pub(crate) fn record(&mut self, latency: Duration, bytes: usize) {
        self.record_ns(u64::try_from(latency.as_nanos()).unwrap(), bytes);
    }

    #[inline]
    pub(crate) fn record_ns(&mut self, latency_ns: u64, bytes: usize) {
        self.latency_ns.saturating_record(latency_ns.max(1));
        self.bytes += bytes as u64;
        self.min_ns = self.min_ns.min(latency_ns);
        self.max_ns = self.max_ns.max(latency_ns);
        self.sum_ns += u128::from(latency_ns);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        // Same bounds: this cannot fail.
        let _ = self.latency_ns.add(&other.latency_ns);
        self.bytes += other.bytes;
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.sum_ns += other.sum_ns;
    }

    /// Operations.
    pub(crate) fn ios(&self) -> u64 {
        self.latency_ns.len()
    }

    /// The latency that this percentage of operations did not exceed, in nanoseconds.
    pub(crate) fn percentile_ns(&self, percent: f64) -> u64 {
        let found = self.latency_ns.value_at_percentile(percent);
        found.clamp(self.min_ns(), self.max_ns.max(self.min_ns()))
    }

    /// `(latency in ns, share of operations that took no longer)`, for a curve: at most about 400 points.
    pub(crate) fn cdf(&self) -> Vec<(f64, f64)> {
        let mut points = Vec::new();
        let mut last = 0.0;
        for step in self.latency_ns.iter_recorded() {
            let share = step.quantile();
            let far_tail = share >= 0.99 && (1.0 - share) < (1.0 - last) * 0.95;
            if points.is_empty() || share - last >= 0.003 || far_tail || share >= 1.0 {
                #[expect(clippy::cast_precision_loss, reason = "a point on a chart")]
                points.push((step.value_iterated_to() as f64, share));
                last = share;
            }
        }
        points
    }

    /// The figures with fio's names.
    pub(crate) fn json(&self, elapsed: Duration) -> Value {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let empty = self.latency_ns.is_empty();
        let percentiles: serde_json::Map<String, Value> = PERCENTILES
            .iter()
            .filter(|_| !empty)
            .map(|&p| (format!("{p:.6}"), json!(self.percentile_ns(p))))
            .collect();
        json!({
            "io_bytes": self.bytes,
            "total_ios": self.ios(),
            "runtime": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "bw_bytes": whole(rate(self.bytes, seconds)),
            "bw": whole(rate(self.bytes, seconds) / 1024.0),
            "iops": rate(self.ios(), seconds),
            "clat_ns": {
                "min": self.min_ns(),
                "max": self.max_ns,
                "mean": self.mean_ns(),
                "stddev": self.stdev_ns(),
                "N": self.ios(),
                "percentile": percentiles,
            },
        })
    }

    pub(crate) fn min_ns(&self) -> u64 {
        if self.ios() == 0 { 0 } else { self.min_ns }
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max_ns
    }

    pub(crate) fn mean_ns(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let (sum, count) = (self.sum_ns as f64, self.ios().max(1) as f64);
        sum / count
    }

    /// Of one sample, none.
    pub(crate) fn stdev_ns(&self) -> f64 {
        match self.ios() {
            0 | 1 => 0.0,
            _ => self.latency_ns.stdev(),
        }
    }
}

/// A rate as a whole number, as fio has it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded, not negative, and far below 2^64"
)]
fn whole(rate: f64) -> u64 {
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
    fn percentiles_and_curve_are_those_of_the_data() {
        let mut direction = Direction::default();
        for us in 1..=1000 {
            direction.record(Duration::from_micros(us), 4096);
        }
        let p50 = direction.percentile_ns(50.0);
        assert!((499_000..=501_000).contains(&p50), "{p50}");
        let p99 = direction.percentile_ns(99.0);
        assert!((989_000..=991_000).contains(&p99), "{p99}");
        let cdf = direction.cdf();
        assert!(cdf.len() > 100 && cdf.len() < 500, "{} points", cdf.len());
        assert!(cdf.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1));
        assert!((cdf.last().unwrap().1 - 1.0).abs() < 1e-9);
        let json = direction.json(Duration::from_secs(2));
        assert_eq!(json["total_ios"], 1000);
        assert_eq!(json["iops"], 500.0);
        assert_eq!(json["bw_bytes"], 2_048_000);
        assert_eq!(json["clat_ns"]["N"], 1000);
    }

    #[test]
    fn one_sample_is_all_figures_at_once() {
        let mut direction = Direction::default();
        direction.record_ns(53_632_123, 4096);
        let json = direction.json(Duration::from_millis(54));
        let clat = &json["clat_ns"];
        assert_eq!(
            (clat["min"].as_u64(), clat["max"].as_u64()),
            (Some(53_632_123), Some(53_632_123))
        );
        assert_eq!(clat["mean"], 53_632_123.0);
        assert_eq!(clat["percentile"]["50.000000"], 53_632_123);
        assert!(json["bw"].is_u64() && json["bw_bytes"].is_u64());
    }

    #[test]
    fn texts_have_three_digits_and_a_unit() {
        assert_eq!(time_text(950.0), "950 ns");
        assert_eq!(time_text(12_340.0), "12.3 us");
        assert_eq!(count_text(1234.0), "1.23k");
        assert_eq!(bytes_text(1_048_576.0), "1.00 MiB");
    }
}

//! Latency samples: exact minimum, maximum, mean and standard deviation, and a histogram of three
//! digits.

use hdrhistogram::Histogram;

/// The longest latency told apart; longer ones count as this.
const LONGEST_NS: u64 = 600_000_000_000;

/// A histogram of nanoseconds; all of them have the same bounds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are constants in range"))
}

/// Adds a histogram where there is one.
pub(super) fn add_histogram(all: &mut Option<Histogram<u64>>, more: Option<&Histogram<u64>>) {
    if let Some(more) = more {
        // Same bounds: this cannot fail.
        let _ = all.get_or_insert_with(histogram).add(more);
    }
}

/// Nanoseconds of many operations.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    count: u64,
    min: u64,
    max: u64,
    sum: u128,
    squares: u128,
    /// `None` where percentiles were not asked for.
    histogram: Option<Histogram<u64>>,
}

impl Samples {
    /// With or without a histogram for percentiles.
    pub(crate) fn new(with_histogram: bool) -> Self {
        Self {
            count: 0,
            min: u64::MAX,
            max: 0,
            sum: 0,
            squares: 0,
            histogram: with_histogram.then(histogram),
        }
    }

    /// From `(count, minimum, maximum)` and `(sum, sum of squares)`.
    pub(super) fn from_sums(
        (count, min, max): (u64, u64, u64),
        (sum, squares): (u128, u128),
        histogram: Option<Histogram<u64>>,
    ) -> Self {
        Self {
            count,
            min,
            max,
            sum,
            squares,
            histogram,
        }
    }

    /// The sum and the sum of squares.
    pub(super) fn sums(&self) -> (u128, u128) {
        (self.sum, self.squares)
    }

    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.count += 1;
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.sum += u128::from(ns);
        self.squares += u128::from(ns) * u128::from(ns);
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record(ns.max(1));
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.squares += other.squares;
        add_histogram(&mut self.histogram, other.histogram.as_ref());
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn histogram(&self) -> Option<&Histogram<u64>> {
        self.histogram.as_ref()
    }

    pub(crate) fn min_ns(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub(crate) fn mean_ns(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }

    /// Of a sample (divided by n - 1), as fio's; 0 for one operation.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub(crate) fn stddev_ns(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let over = self.squares as f64 - self.mean_ns() * self.sum as f64;
        (over.max(0.0) / (self.count - 1) as f64).sqrt()
    }

    /// The latency that this percentage of operations did not exceed; 0 without a histogram.
    pub(crate) fn percentile_ns(&self, percent: f64) -> u64 {
        let Some(histogram) = &self.histogram else {
            return 0;
        };
        let found = histogram.value_at_percentile(percent);
        found.clamp(self.min_ns(), self.max.max(self.min_ns()))
    }

    /// Whether at least one operation is expected to lie above this percentile. Below that, the
    /// figure is the maximum of what was measured and says little of the percentile.
    pub(crate) fn supports(&self, percent: f64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "compared with a small number")]
        let above = self.count as f64 * (1.0 - percent / 100.0);
        // 100 - 99.9999 is not exact.
        above >= 1.0 - 1e-6 || percent >= 100.0
    }

    /// `(percentile as a share, latency in ns)`, for a curve: at most about 400 points.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let mut points = Vec::new();
        let mut last = 0.0;
        for step in self.histogram.iter().flat_map(Histogram::iter_recorded) {
            let share = step.quantile();
            let far_tail = share >= 0.99 && (1.0 - share) < (1.0 - last) * 0.95;
            if points.is_empty() || share - last >= 0.003 || far_tail || share >= 1.0 {
                #[expect(clippy::cast_precision_loss, reason = "a point on a chart")]
                points.push((share, step.value_iterated_to() as f64));
                last = share;
            }
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_curve_are_those_of_the_data() {
        let mut samples = Samples::new(true);
        (1..=1000).for_each(|us| samples.record(us * 1000));
        let p50 = samples.percentile_ns(50.0);
        assert!((499_000..=501_000).contains(&p50), "{p50}");
        let p99 = samples.percentile_ns(99.0);
        assert!((989_000..=991_000).contains(&p99), "{p99}");
        assert_eq!((samples.min_ns(), samples.max_ns()), (1000, 1_000_000));
        assert!((samples.mean_ns() - 500_500.0).abs() < 1e-6);
        // Of 1..=1000: sqrt((n * n - 1) / 12 * n / (n - 1)).
        assert!((samples.stddev_ns() - 288_819.436).abs() < 0.01);
        let curve = samples.curve();
        assert!(curve.len() > 100 && curve.len() < 500, "{}", curve.len());
        assert!(
            curve
                .windows(2)
                .all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1)
        );
        assert!((curve.last().unwrap().0 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_percentile_needs_samples_above_it() {
        let mut samples = Samples::new(true);
        (1..=9_999).for_each(|ns| samples.record(ns));
        assert!(samples.supports(99.9) && !samples.supports(99.99));
        samples.record(10_000);
        assert!(samples.supports(99.99) && !samples.supports(99.9999));
        assert!(!Samples::new(true).supports(50.0));
    }

    #[test]
    fn without_a_histogram_the_rest_is_there() {
        let mut samples = Samples::new(false);
        samples.record(7);
        let mut all = Samples::new(false);
        all.add(&samples);
        all.add(&samples);
        assert_eq!((all.count(), all.min_ns(), all.max_ns()), (2, 7, 7));
        assert!(all.stddev_ns().abs() < 1e-9 && all.histogram().is_none());
        assert!(all.curve().is_empty() && all.percentile_ns(50.0) == 0);
    }
}

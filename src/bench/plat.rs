//! fio's latency buckets (`stat.c`: `plat_val_to_idx`, `plat_idx_to_val`): 64 to each power of two.
//! The bins of `json+` and the columns of a histogram log are these.

use hdrhistogram::Histogram;

/// `FIO_IO_U_PLAT_BITS`.
const BITS: u32 = 6;
/// `FIO_IO_U_PLAT_NR`: 29 groups of 64.
pub(crate) const BUCKETS: usize = 29 << BITS;

/// The bucket of a latency in nanoseconds; the last one has all that is longer.
fn index_of(ns: u64) -> usize {
    let highest_bit = 63 - ns.max(1).leading_zeros();
    let index = if highest_bit <= BITS {
        ns
    } else {
        let error_bits = highest_bit - BITS;
        (u64::from(error_bits + 1) << BITS) + (ns >> error_bits & ((1 << BITS) - 1))
    };
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The nanoseconds that stand for a bucket: its middle.
fn value_of(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 << BITS {
        return index;
    }
    let error_bits = (index >> BITS) - 1;
    let start = (1 << (error_bits + u64::from(BITS))) + ((index % (1 << BITS)) << error_bits);
    start + (1 << error_bits >> 1)
}

/// The counts of all buckets.
pub(crate) fn counts(histogram: &Histogram<u64>) -> Vec<u64> {
    let mut counts = vec![0; BUCKETS];
    // A bucket of the histogram, a 1024th of its value at most, lies within one of fio's.
    for step in histogram.iter_recorded() {
        let lowest = histogram.lowest_equivalent(step.value_iterated_to());
        counts[index_of(lowest)] += step.count_at_value();
    }
    counts
}

/// `(nanoseconds, count)` of every bucket that is not empty.
pub(crate) fn bins(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    let counts = counts(histogram).into_iter().enumerate();
    counts
        .filter(|(_, count)| *count > 0)
        .map(|(index, count)| (value_of(index), count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::latency::histogram;

    #[test]
    fn buckets_are_fios() {
        // As fio 3.33 prints them: each value is the middle of its own bucket.
        for value in [748, 852, 1560, 3120, 12_992, 56_576, 3_981_312, 7_962_624] {
            assert_eq!(value_of(index_of(value)), value, "{value}");
        }
        for (ns, value) in [
            (0, 0),
            (127, 127),
            (128, 129),
            (751, 748),
            (1_317_946, 1_318_912),
        ] {
            assert_eq!(value_of(index_of(ns)), value, "{ns}");
        }
        // The longest that fio's tools know.
        assert_eq!(value_of(BUCKETS - 1), 17_112_760_320);
        assert_eq!(index_of(u64::MAX), BUCKETS - 1);
        assert!((1..BUCKETS).all(|index| index_of(value_of(index)) == index));
    }

    #[test]
    fn no_operation_is_lost() {
        let mut all = histogram();
        let mut ns = 1_u64;
        while ns < 500_000_000_000 {
            all.saturating_record(ns);
            ns += ns / 7 + 1;
        }
        let counted: u64 = bins(&all).iter().map(|(_, count)| count).sum();
        assert_eq!(counted, all.len());
    }
}

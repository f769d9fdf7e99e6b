//! Results with fio's names, in fio's units: what tools that read `--output-format=json+` look for.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::hist::{Direction, PERCENTILES, rate, whole};
use super::latency::Samples;
use super::outcome::Outcome;
use super::plat;
use super::timeline::{Interval, Timeline};

/// The parts of each latency that are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LatencyForm<'a> {
    pub(crate) percentiles: &'a [f64],
    /// The buckets of `json+`.
    pub(crate) bins: bool,
}

impl LatencyForm<'static> {
    /// fio's own percentiles, without bins.
    pub(crate) const PLAIN: Self = Self {
        percentiles: &PERCENTILES,
        bins: false,
    };
}

/// One of slat, clat and lat.
fn samples(samples: &Samples, form: LatencyForm<'_>) -> Value {
    let mut value = json!({
        "min": samples.min_ns(),
        "max": samples.max_ns(),
        "mean": samples.mean_ns(),
        "stddev": samples.stddev_ns(),
        "N": samples.count(),
    });
    let Some(histogram) = samples.histogram().filter(|_| samples.count() > 0) else {
        return value;
    };
    let key = |percent: &f64| format!("{percent:.6}");
    let percentiles: Map<String, Value> = form
        .percentiles
        .iter()
        .map(|p| (key(p), json!(samples.percentile_ns(*p))))
        .collect();
    let few: Vec<String> = form
        .percentiles
        .iter()
        .filter(|p| !samples.supports(**p))
        .map(key)
        .collect();
    value["percentile"] = Value::Object(percentiles);
    // Percentiles that are no more than the maximum of too few operations.
    value["percentile_too_few_samples"] = json!(few);
    if form.bins {
        let bins = plat::bins(histogram).into_iter();
        let bins: Map<String, Value> = bins.map(|(ns, n)| (ns.to_string(), json!(n))).collect();
        value["bins"] = Value::Object(bins);
    }
    value
}

/// Minimum, maximum, mean, standard deviation and number of samples.
fn statistics(rates: &[f64]) -> [f64; 4] {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let n = rates.len() as f64;
    if rates.is_empty() {
        return [0.0; 4];
    }
    let mean = rates.iter().sum::<f64>() / n;
    let squares: f64 = rates.iter().map(|rate| (rate - mean).powi(2)).sum();
    let stddev = if n > 1.0 {
        (squares / (n - 1.0)).sqrt()
    } else {
        0.0
    };
    let least = rates.iter().copied().fold(f64::MAX, f64::min);
    [
        least,
        rates.iter().copied().fold(0.0, f64::max),
        mean,
        stddev,
    ]
}

type IntervalCount = fn(&Interval) -> u64;

/// Reads or writes; `over_time` counts their operations and bytes in an interval.
pub(crate) fn direction(
    direction: &Direction,
    elapsed: Duration,
    timeline: &Timeline,
    over_time: (IntervalCount, IntervalCount),
    form: LatencyForm<'_>,
) -> Value {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let per_second = rate(direction.bytes, seconds);
    let used = direction.ios() > 0;
    let intervals = |count: IntervalCount| {
        if used {
            timeline.rates(count)
        } else {
            Vec::new()
        }
    };
    let iops = intervals(over_time.0);
    let kib: Vec<f64> = intervals(over_time.1).iter().map(|r| r / 1024.0).collect();
    let [iops_min, iops_max, iops_mean, iops_stddev] = statistics(&iops);
    let [bw_min, bw_max, bw_mean, bw_dev] = statistics(&kib);
    let runtime = if used { elapsed.as_millis() } else { 0 };
    json!({
        "io_bytes": direction.bytes,
        "io_kbytes": direction.bytes >> 10,
        "total_ios": direction.ios(),
        "short_ios": 0,
        "drop_ios": 0,
        "runtime": u64::try_from(runtime).unwrap_or(u64::MAX),
        "bw_bytes": whole(per_second),
        "bw": whole(per_second / 1024.0),
        "iops": rate(direction.ios(), seconds),
        "slat_ns": samples(&direction.slat(), form),
        "clat_ns": samples(&direction.clat, form),
        "lat_ns": lat(direction, form),
        "bw_min": whole(bw_min),
        "bw_max": whole(bw_max),
        "bw_agg": if used { 100.0 } else { 0.0 },
        "bw_mean": bw_mean,
        "bw_dev": bw_dev,
        "bw_samples": kib.len(),
        "iops_min": whole(iops_min),
        "iops_max": whole(iops_max),
        "iops_mean": iops_mean,
        "iops_stddev": iops_stddev,
        "iops_samples": iops.len(),
    })
}

/// Where submission and completion are one call, their sum is clat: its bins are not given twice.
fn lat(direction: &Direction, form: LatencyForm<'_>) -> Value {
    let mut value = samples(&direction.lat(), form);
    if direction.slat().count() == 0
        && let Value::Object(fields) = &mut value
    {
        fields.retain(|key, _| key != "bins" && !key.starts_with("percentile"));
    }
    value
}

const READS: (IntervalCount, IntervalCount) = (|i| i.read_ios, |i| i.read_bytes);
const WRITES: (IntervalCount, IntervalCount) = (|i| i.write_ios, |i| i.write_bytes);

/// Both directions, fio's third one, syncs and processor time.
pub(crate) fn job(outcome: &Outcome, form: LatencyForm<'_>) -> Map<String, Value> {
    let (elapsed, timeline) = (outcome.elapsed, &outcome.timeline);
    let run_ms = (outcome.job_time.as_secs_f64() * 1e3).max(1e-6);
    let usage = &outcome.usage;
    let (user, system) = outcome.cpu_percent();
    let none = Direction::default();
    let value = json!({
        "read": direction(&outcome.read, elapsed, timeline, READS, form),
        "write": direction(&outcome.write, elapsed, timeline, WRITES, form),
        "trim": direction(&none, Duration::ZERO, timeline, READS, form),
        "sync": {
            "total_ios": outcome.sync.count(),
            "lat_ns": samples(&outcome.sync, form),
        },
        "job_runtime": whole(run_ms),
        "usr_cpu": user,
        "sys_cpu": system,
        "ctx": usage.context_switches,
        "majf": usage.major_faults,
        "minf": usage.minor_faults,
    });
    let mut job = match value {
        Value::Object(job) => job,
        _ => Map::new(),
    };
    job.extend(latency_shares(outcome));
    job
}

/// Upper ends of fio's classes of latency, in units of their own.
const CLASSES: [u64; 10] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];

/// `latency_ns`, `latency_us` and `latency_ms`: percent of the operations in each class, by clat.
fn latency_shares(outcome: &Outcome) -> Map<String, Value> {
    let all = outcome.all();
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let share = |count: u64| 100.0 * count as f64 / all.ios().max(1) as f64;
    let mut classes = Vec::new();
    for (unit, ns) in [
        ("latency_ns", 1),
        ("latency_us", 1_000),
        ("latency_ms", 1_000_000),
    ] {
        classes.extend(CLASSES.map(|end| (unit, end.to_string(), end * ns)));
    }
    classes.push(("latency_ms", "2000".into(), 2_000_000_000));
    classes.push(("latency_ms", ">=2000".into(), u64::MAX));
    let mut counts = vec![0; classes.len()];
    let histogram = all.clat.histogram();
    for step in histogram
        .iter()
        .flat_map(|histogram| histogram.iter_recorded())
    {
        let ns = histogram.map_or(0, |h| h.lowest_equivalent(step.value_iterated_to()));
        let class = classes.partition_point(|(_, _, end)| *end <= ns);
        counts[class.min(classes.len() - 1)] += step.count_at_value();
    }
    let mut shares = Map::new();
    for ((unit, name, _), count) in classes.into_iter().zip(counts) {
        let unit = shares.entry(unit).or_insert_with(|| json!({}));
        unit[name] = json!(share(count));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        let mut outcome = Outcome {
            elapsed: Duration::from_secs(2),
            job_time: Duration::from_secs(2),
            ..Outcome::default()
        };
        for us in 1..=1000 {
            outcome.read.record_parts(100, us * 1000, 4096);
        }
        let half = Interval {
            read_ios: 400,
            read_bytes: 400 * 4096,
            ..Interval::default()
        };
        outcome.timeline.mark(Duration::from_millis(500), half);
        outcome
    }

    #[test]
    fn figures_are_those_of_the_operations() {
        let form = LatencyForm {
            percentiles: &[50.0, 99.0, 99.9999],
            bins: true,
        };
        let job = job(&outcome(), form);
        let read = &job["read"];
        assert_eq!(read["total_ios"], 1000);
        assert_eq!(read["iops"], 500.0);
        assert_eq!(read["bw_bytes"], 2_048_000);
        assert_eq!(
            (&read["slat_ns"]["max"], &read["lat_ns"]["max"]),
            (&100.into(), &1_000_100.into())
        );
        let clat = &read["clat_ns"];
        assert_eq!(clat["N"], 1000);
        assert!(clat["percentile"]["99.999900"].is_u64());
        assert_eq!(clat["percentile_too_few_samples"], json!(["99.999900"]));
        let bins = clat["bins"].as_object().unwrap();
        assert_eq!(bins.values().filter_map(Value::as_u64).sum::<u64>(), 1000);
        assert_eq!(
            (&read["iops_samples"], &read["iops_max"]),
            (&1.into(), &800.into())
        );
        assert_eq!(job["write"]["runtime"], 0);
        let shares: f64 = ["latency_ns", "latency_us", "latency_ms"]
            .iter()
            .flat_map(|unit| job[*unit].as_object().unwrap().values())
            .filter_map(Value::as_f64)
            .sum();
        assert!((shares - 100.0).abs() < 1e-6, "{shares}");
        assert!((job["latency_us"]["750"].as_f64().unwrap() - 25.0).abs() < 0.2);
    }

    #[test]
    fn one_sample_is_all_figures_at_once() {
        let mut outcome = Outcome::default();
        outcome.read.record_ns(53_632_123, 4096);
        outcome.elapsed = Duration::from_millis(54);
        let job = job(&outcome, LatencyForm::PLAIN);
        let clat = &job["read"]["clat_ns"];
        for figure in ["min", "max"] {
            assert_eq!(clat[figure], 53_632_123);
        }
        assert_eq!(clat["mean"], 53_632_123.0);
        assert_eq!(clat["percentile"]["50.000000"], 53_632_123);
        let read = &job["read"];
        assert!(read["bw"].is_u64() && read["bw_bytes"].is_u64());
        // In one call: the whole latency is that of the completion.
        assert_eq!(read["lat_ns"]["mean"], clat["mean"]);
        assert!(read["lat_ns"]["percentile"].is_null());
    }
}

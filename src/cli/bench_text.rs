//! Results of `xtent bench` as text, laid out as fio's.

use std::io::{self, Write};
use std::time::Duration;

use xtent::target::TargetInfo;

use super::bench_args::BenchArgs;
use super::output::{controller_text, size_text, waiting};
use crate::bench::hist::{Direction, PERCENTILES, bytes_text, count_text, rate, three_digits};
use crate::bench::latency::Samples;
use crate::bench::outcome::Outcome;
use crate::bench::workload::Workload;

/// A workload and its results.
pub(super) struct Results<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) workload: &'a Workload,
    pub(super) outcome: &'a Outcome,
    pub(super) target: &'a TargetInfo,
}

impl Results<'_> {
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.head(out)?;
        let jobs = &self.outcome.jobs;
        if self.args.group_reporting || jobs.is_empty() {
            self.figures(out, self.outcome)?;
            return self.each_job(out);
        }
        for (number, job) in jobs.iter().enumerate() {
            writeln!(out, " job {}:", number + 1)?;
            self.figures(out, job)?;
        }
        Ok(())
    }

    fn head(&self, out: &mut impl Write) -> io::Result<()> {
        let (workload, target) = (self.workload, self.target);
        write!(
            out,
            "{}: rw={}, bs={}, iodepth={}, numjobs={}, size={}",
            workload.name,
            workload.rw.name(),
            size_text(workload.block_bytes as u64),
            workload.iodepth,
            workload.numjobs,
            size_text(workload.size_bytes)
        )?;
        if workload.offset_bytes > 0 {
            write!(out, ", offset={}", size_text(workload.offset_bytes))?;
        }
        writeln!(out)?;
        if self.outcome.interrupted {
            writeln!(
                out,
                "  INTERRUPTED after {:.2} s: results so far",
                self.outcome.elapsed.as_secs_f64()
            )?;
        }
        writeln!(out, "  on {}: {}", target.target, target.engine)?;
        let how = if workload.buffered {
            "buffered I/O through a page cache in"
        } else {
            "direct I/O, nothing copied, from DMA memory of"
        };
        writeln!(
            out,
            "  {how} {}{}; waiting by {}; controller: {}",
            target.memory,
            if target.memory == "hugepages" {
                ""
            } else {
                " (no hugepages)"
            },
            waiting(&target.wait),
            controller_text(&target.controller)
        )
    }

    fn figures(&self, out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
        if self.workload.rw.reads() {
            self.direction(out, "read", &outcome.read, outcome.elapsed)?;
        }
        if self.workload.rw.writes() {
            self.direction(out, "write", &outcome.write, outcome.elapsed)?;
        }
        if outcome.sync.count() > 0 {
            writeln!(out, "  fsync/fdatasync:")?;
            self.latency(out, "sync", &outcome.sync, true)?;
        }
        self.processor(out, outcome)?;
        if self.workload.verify {
            writeln!(
                out,
                "  verify: {} blocks read back and right",
                outcome.verified_blocks
            )?;
        }
        Ok(())
    }

    fn direction(
        &self,
        out: &mut impl Write,
        name: &str,
        direction: &Direction,
        elapsed: Duration,
    ) -> io::Result<()> {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let bandwidth = rate(direction.bytes, seconds);
        writeln!(
            out,
            "  {name}: IOPS={}, BW={}/s ({:.1} MB/s), {} operations, {} in {seconds:.2} s",
            count_text(rate(direction.ios(), seconds)),
            bytes_text(bandwidth),
            bandwidth / 1e6,
            direction.ios(),
            size_text(direction.bytes),
        )?;
        if direction.ios() == 0 {
            return Ok(());
        }
        let (slat, lat) = (direction.slat(), direction.lat());
        if slat.count() > 0 {
            self.latency(out, "slat", &slat, false)?;
        }
        self.latency(out, "clat", &direction.clat, false)?;
        self.latency(out, " lat", &lat, false)?;
        if self.args.slat_percentiles && slat.count() > 0 {
            self.percentiles(out, "slat", &slat)?;
        }
        self.percentiles(out, "clat", &direction.clat)?;
        if self.args.lat_percentiles {
            self.percentiles(out, "lat", &lat)?;
        }
        Ok(())
    }

    fn latency(
        &self,
        out: &mut impl Write,
        name: &str,
        samples: &Samples,
        with_percentiles: bool,
    ) -> io::Result<()> {
        let unit = Unit::of(samples);
        writeln!(
            out,
            "    {name} ({}): min={}, max={}, avg={}, stdev={}",
            unit.name,
            unit.text(samples.min_ns()),
            unit.text(samples.max_ns()),
            three_digits(samples.mean_ns() / unit.ns),
            three_digits(samples.stddev_ns() / unit.ns)
        )?;
        if with_percentiles {
            self.percentiles(out, name, samples)?;
        }
        Ok(())
    }

    fn percentiles(&self, out: &mut impl Write, name: &str, samples: &Samples) -> io::Result<()> {
        let list = self.args.percentile_list.as_ref();
        let list = list.map_or(&PERCENTILES[..], |list| &list.0);
        let unit = Unit::of(samples);
        writeln!(out, "    {name} percentiles ({}):", unit.name)?;
        // As many digits as the list needs, two at least.
        let digits = list.iter().map(|p| decimals(*p)).max().unwrap_or(2).max(2);
        let mut too_few = false;
        for line in list.chunks(4) {
            let cells: Vec<String> = line
                .iter()
                .map(|&p| {
                    let few = !samples.supports(p);
                    too_few |= few;
                    let mark = if few { "*" } else { "" };
                    let value = unit.text(samples.percentile_ns(p));
                    format!(
                        "{p:>width$.digits$}th=[{value:>6}]{mark}",
                        width = digits + 3
                    )
                })
                .collect();
            writeln!(out, "     | {}", cells.join(", "))?;
        }
        if too_few {
            writeln!(
                out,
                "     * of {} operations: too few for this percentile",
                samples.count()
            )?;
        }
        Ok(())
    }

    fn processor(&self, out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
        let (user, system) = outcome.cpu_percent();
        let usage = &outcome.usage;
        write!(
            out,
            "  cpu: usr={user:.2}%, sys={system:.2}%, ctx={}, majf={}, minf={}",
            usage.context_switches, usage.major_faults, usage.minor_faults
        )?;
        if outcome.cpus.seconds > 0.0 {
            write!(
                out,
                "; CPUs in use: {:.2} by this process, {:.2} by the machine",
                outcome.cpus.process, outcome.cpus.machine
            )?;
        }
        writeln!(out)
    }

    /// One line for each job of a group.
    fn each_job(&self, out: &mut impl Write) -> io::Result<()> {
        for (number, job) in self.outcome.jobs.iter().enumerate() {
            let seconds = job.elapsed.as_secs_f64().max(1e-9);
            let all = job.all();
            let p99 = all.percentile_ns(99.0);
            let unit = Unit::of(&all.clat);
            writeln!(
                out,
                "  job {}: IOPS={}, BW={}/s, {} operations; clat ({}) avg={}, 99.00th={}",
                number + 1,
                count_text(rate(all.ios(), seconds)),
                bytes_text(rate(all.bytes, seconds)),
                all.ios(),
                unit.name,
                three_digits(all.clat.mean_ns() / unit.ns),
                unit.text(p99)
            )?;
        }
        Ok(())
    }
}

/// Digits after the point that a percentage needs, up to 6.
fn decimals(percent: f64) -> usize {
    let text = format!("{percent:.6}");
    let digits = text.trim_end_matches('0');
    digits.split_once('.').map_or(0, |(_, digits)| digits.len())
}

/// One unit for a whole table, as fio's: the largest that leaves the median (or the mean) above 10.
struct Unit {
    ns: f64,
    name: &'static str,
}

impl Unit {
    fn of(samples: &Samples) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "compared with powers of ten")]
        let middle = match samples.percentile_ns(50.0) {
            0 => samples.mean_ns(),
            median => median as f64,
        };
        let (ns, name) = match middle {
            ns if ns < 1e4 => (1.0, "nsec"),
            ns if ns < 1e7 => (1e3, "usec"),
            _ => (1e6, "msec"),
        };
        Self { ns, name }
    }

    fn text(&self, ns: u64) -> String {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        three_digits(ns as f64 / self.ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_the_digits_that_they_need() {
        for (percent, digits) in [(50.0, 0), (99.9, 1), (99.9999, 4), (99.99, 2)] {
            assert_eq!(decimals(percent), digits, "{percent}");
        }
    }
}

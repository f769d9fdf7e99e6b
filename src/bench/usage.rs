//! Processor time of this thread, this process and the whole machine, from /proc.

use std::fs::read_to_string;
use std::time::Instant;

/// `USER_HZ` of x86-64.
const TICK_MS: f64 = 10.0;

/// Processor time and what goes with it, as `getrusage` counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) user_ms: f64,
    pub(crate) system_ms: f64,
    pub(crate) context_switches: u64,
    pub(crate) major_faults: u64,
    pub(crate) minor_faults: u64,
}

impl Usage {
    /// Of the calling thread, so far.
    pub(crate) fn of_thread() -> Self {
        let text = |name: &str| read_to_string(format!("/proc/thread-self/{name}"));
        let mut usage = text("stat").map_or(Self::default(), |stat| Self::parse(&stat));
        if let Ok(status) = text("status") {
            usage.context_switches = switches(&status);
        }
        // In nanoseconds, where `stat` has ticks: the sum is taken from here, the parts from there.
        let exact = text("schedstat").ok().and_then(|text| {
            let ns: f64 = text.split(' ').next()?.parse().ok()?;
            Some(ns / 1e6)
        });
        if let Some(exact) = exact {
            let ticks = usage.user_ms + usage.system_ms;
            let system = if ticks > 0.0 {
                usage.system_ms / ticks
            } else {
                0.0
            };
            (usage.user_ms, usage.system_ms) = (exact * (1.0 - system), exact * system);
        }
        usage
    }

    /// Of all threads of this process, so far.
    fn of_process() -> Self {
        read_to_string("/proc/self/stat").map_or(Self::default(), |stat| Self::parse(&stat))
    }

    /// `/proc/PID/stat`; see proc(5).
    fn parse(stat: &str) -> Self {
        // The name may have spaces and parentheses in it.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<u64> = after_name
            .split_ascii_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        // The first of these is field 3.
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        Self {
            user_ms: ms(field(14)),
            system_ms: ms(field(15)),
            context_switches: 0,
            major_faults: field(12),
            minor_faults: field(10),
        }
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            user_ms: (self.user_ms - earlier.user_ms).max(0.0),
            system_ms: (self.system_ms - earlier.system_ms).max(0.0),
            context_switches: self
                .context_switches
                .saturating_sub(earlier.context_switches),
            major_faults: self.major_faults.saturating_sub(earlier.major_faults),
            minor_faults: self.minor_faults.saturating_sub(earlier.minor_faults),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.user_ms += other.user_ms;
        self.system_ms += other.system_ms;
        self.context_switches += other.context_switches;
        self.major_faults += other.major_faults;
        self.minor_faults += other.minor_faults;
    }
}

fn ms(ticks: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let ticks = ticks as f64;
    ticks * TICK_MS
}

/// Voluntary and involuntary ones together.
fn switches(status: &str) -> u64 {
    let lines = status
        .lines()
        .filter(|line| line.contains("ctxt_switches:"));
    lines
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// The first line of `/proc/stat`: all CPUs, without idle and waiting for I/O, with what the host
/// took away.
fn machine_busy_ms(stat: &str) -> f64 {
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // user nice system - - irq softirq steal; guests are in user and nice.
    let busy = [0, 1, 2, 5, 6, 7];
    busy.iter()
        .map(|&at| ms(fields.get(at).copied().unwrap_or(0)))
        .sum()
}

/// When a measurement began, and what had been used by then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    begun: Instant,
    process: Usage,
    machine_ms: f64,
}

/// CPUs in use on average.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub(crate) struct CpusInUse {
    /// By this process.
    #[serde(rename = "process_cpus")]
    pub(crate) process: f64,
    /// By all of the machine, the kernel's threads and other programs included.
    #[serde(rename = "machine_cpus")]
    pub(crate) machine: f64,
    #[serde(rename = "seconds")]
    pub(crate) seconds: f64,
}

impl Meter {
    pub(crate) fn start() -> Self {
        let machine = read_to_string("/proc/stat").unwrap_or_default();
        Self {
            begun: Instant::now(),
            process: Usage::of_process(),
            machine_ms: machine_busy_ms(&machine),
        }
    }

    /// Since the start.
    pub(crate) fn read(&self) -> CpusInUse {
        let now = Self::start();
        let ms = now.begun.duration_since(self.begun).as_secs_f64().max(1e-6) * 1e3;
        let process = now.process.since(&self.process);
        CpusInUse {
            process: (process.user_ms + process.system_ms) / ms,
            machine: (now.machine_ms - self.machine_ms).max(0.0) / ms,
            seconds: ms / 1e3,
        }
    }
}

impl CpusInUse {
    /// By other programs than this one.
    pub(crate) fn others(&self) -> f64 {
        (self.machine - self.process).max(0.0)
    }

    /// The mean over both times.
    pub(crate) fn add(&mut self, other: &Self) {
        let seconds = self.seconds + other.seconds;
        if seconds <= 0.0 {
            return;
        }
        let mean = |a: f64, b: f64| (a * self.seconds + b * other.seconds) / seconds;
        *self = Self {
            process: mean(self.process, other.process),
            machine: mean(self.machine, other.machine),
            seconds,
        };
    }

    /// A warning, where other programs used more than a quarter of the machine during the
    /// measurement. Time before it, and what this process used, do not count.
    pub(crate) fn warning(&self, cpus: usize) -> Option<String> {
        #[expect(clippy::cast_precision_loss, reason = "a number of CPUs")]
        let all = cpus as f64;
        // A tick or two of 10 ms are no load.
        let counted = self.others() * self.seconds > 0.1;
        (counted && self.others() > all / 4.0).then(|| {
            format!(
                "other programs used {:.1} of {cpus} CPUs during the measurement: results may be unreliable",
                self.others()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_proc_are_found() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 111 0 22 0 150 50 0 0 20 0 1 0 5 6 7";
        let usage = Usage::parse(stat);
        assert_eq!((usage.minor_faults, usage.major_faults), (111, 22));
        assert!((usage.user_ms - 1500.0).abs() < 1e-9 && (usage.system_ms - 500.0).abs() < 1e-9);
        assert_eq!(Usage::parse(""), Usage::default());
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(switches(status), 12);
        let busy = machine_busy_ms("cpu  1 2 3 1000 1000 4 5 6 7 8\ncpu0 9 9 9\n");
        assert!((busy - 210.0).abs() < 1e-9, "{busy}");
    }

    #[test]
    fn a_thread_that_works_uses_a_cpu() {
        let (thread, meter) = (Usage::of_thread(), Meter::start());
        let until = Instant::now() + std::time::Duration::from_millis(60);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let used = Usage::of_thread().since(&thread);
        assert!(used.user_ms + used.system_ms > 0.0, "{used:?}");
        assert!(meter.read().seconds > 0.05);
    }

    #[test]
    fn own_work_is_no_load_of_others() {
        let busy = CpusInUse {
            process: 2.0,
            machine: 2.1,
            seconds: 10.0,
        };
        assert_eq!(busy.warning(2), None);
        let mut beside = CpusInUse {
            machine: 3.1,
            ..busy
        };
        assert!(beside.warning(2).unwrap().contains("used 1.1 of 2 CPUs"));
        beside.add(&busy);
        assert!((beside.others() - 0.6).abs() < 1e-9, "{beside:?}");
        let short = CpusInUse {
            seconds: 0.05,
            ..beside
        };
        assert_eq!(short.warning(2), None);
    }
}

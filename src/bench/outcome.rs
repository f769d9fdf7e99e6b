//! The results of a workload.

use std::time::Duration;

use super::hist::Direction;
use super::latency::Samples;
use super::timeline::Timeline;
use super::usage::{CpusInUse, Usage};
use super::workload::Measure;

/// The results of one job, or of all together.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) read: Direction,
    pub(crate) write: Direction,
    /// The syncs after every N writes; the one at the end is not measured.
    pub(crate) sync: Samples,
    /// The measured time of the job that took longest, without ramp and without the final flush.
    pub(crate) elapsed: Duration,
    /// Blocks whose pattern was read back and found right.
    pub(crate) verified_blocks: u64,
    /// A job was done before its ramp time was over: all that it did is counted.
    pub(crate) only_ramp: bool,
    /// The user ended it before its time.
    pub(crate) interrupted: bool,
    /// The measured time of all jobs, added up.
    pub(crate) job_time: Duration,
    /// Processor time of the threads of the jobs.
    pub(crate) usage: Usage,
    /// The time in which they used it, of all jobs added up: the measured one, and the end of the
    /// ramp time.
    pub(crate) usage_time: Duration,
    /// CPUs in use by this process and by the whole machine, on average.
    pub(crate) cpus: CpusInUse,
    pub(crate) timeline: Timeline,
    /// Each job by itself, where there are several.
    pub(crate) jobs: Vec<Outcome>,
}

impl Default for Outcome {
    fn default() -> Self {
        Self::new(&Measure::default())
    }
}

impl Outcome {
    /// Processor time in percent of one CPU for each job: user, system.
    pub(crate) fn cpu_percent(&self) -> (f64, f64) {
        let all_ms = (self.usage_time.as_secs_f64() * 1e3).max(1e-6);
        let percent = |ms: f64| 100.0 * ms / all_ms;
        (percent(self.usage.user_ms), percent(self.usage.system_ms))
    }

    pub(crate) fn new(measure: &Measure) -> Self {
        Self {
            read: Direction::new(measure.percentiles),
            write: Direction::new(measure.percentiles),
            sync: Samples::new(true),
            elapsed: Duration::ZERO,
            verified_blocks: 0,
            only_ramp: false,
            interrupted: false,
            job_time: Duration::ZERO,
            usage: Usage::default(),
            usage_time: Duration::ZERO,
            cpus: CpusInUse::default(),
            timeline: Timeline::new(measure.interval),
            jobs: Vec::new(),
        }
    }

    /// Adds what another job did at the same time.
    pub(super) fn join(&mut self, job: &Self) {
        self.read.add(&job.read);
        self.write.add(&job.write);
        self.sync.add(&job.sync);
        self.elapsed = self.elapsed.max(job.elapsed);
        self.verified_blocks += job.verified_blocks;
        self.only_ramp |= job.only_ramp;
        self.interrupted |= job.interrupted;
        self.job_time += job.job_time;
        self.usage.add(&job.usage);
        self.usage_time += job.usage_time;
        self.timeline.add(&job.timeline);
    }

    /// Reads and writes together.
    pub(crate) fn all(&self) -> Direction {
        let mut all = self.read.clone();
        all.add(&self.write);
        all
    }
}

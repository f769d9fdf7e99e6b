//! What a comparison is to measure.

use std::time::Duration;

use clap::ValueEnum;

use super::medium::MediumSpec;

/// Workloads that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WorkloadSet {
    /// Reads and overwrites
    Overwrite,
    /// Overwrites that are durable at once
    Sync,
    /// Writes that allocate: appends, fills, and writes to several extents
    Grow,
}

/// Parameters of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) on: MediumSpec,
    pub(crate) read_file: String,
    pub(crate) write_file: String,
    /// The file that is made anew for each run of a workload that lays it out.
    pub(crate) grow_file: String,
    pub(crate) sets: Vec<WorkloadSet>,
    pub(crate) rounds: usize,
    pub(crate) runtime: Duration,
    pub(crate) ramp_time: Duration,
    pub(crate) seed: u64,
    pub(crate) leave_kernel_out: Option<String>,
    /// Both through their page caches.
    pub(crate) buffered: bool,
    /// As [`Workload::fsync`].
    pub(crate) fsync: u64,
    /// The cache size of each side; without it, both files fit.
    pub(crate) memory_bytes: Option<u64>,
}

impl Plan {
    /// The duration of one run.
    pub(super) fn each(&self) -> Duration {
        self.runtime + self.ramp_time
    }

    /// Whether these workloads are measured.
    pub(super) fn has(&self, set: WorkloadSet) -> bool {
        self.sets.contains(&set)
    }

    /// Whether all is cached before anything is measured.
    pub(super) fn is_warm(&self) -> bool {
        self.buffered && self.memory_bytes.is_none()
    }
}

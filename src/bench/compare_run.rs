//! The runs of a comparison: one workload on one side.

use std::path::{Path, PathBuf};
use std::time::Duration;

use xtent::internals::sys::XfsMount;
use xtent::volume::Volume;
use xtent::{Error, ErrorKind, Result};

use super::buffered_engine::BufferedEngine;
use super::kernel::KernelEngine;
use super::medium::MediumSpec;
use super::outcome::Outcome;
use super::runner::{self, Tick};
use super::workload::Workload;
use super::xtent_engine::XtentEngine;

/// Parameters of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) on: MediumSpec,
    pub(crate) read_file: String,
    pub(crate) write_file: String,
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

    /// Whether all is cached before anything is measured.
    pub(super) fn is_warm(&self) -> bool {
        self.buffered && self.memory_bytes.is_none()
    }
}

/// The host's path of a file in the mounted image. A symbolic link on the way could lead anywhere
/// on the host, and overwrite files there: refused.
pub(super) fn inside(mount: &XfsMount, path: &str) -> Result<PathBuf> {
    let failed = |e| Error::system("the kernel does not find the file", e).at_path(path);
    let root = std::fs::canonicalize(mount.dir()).map_err(failed)?;
    let wanted = root.join(path.trim_start_matches('/'));
    let found = std::fs::canonicalize(&wanted).map_err(failed)?;
    if found != wanted || !found.is_file() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "must be an ordinary file, named without symbolic links or `..`",
        )
        .at_path(path));
    }
    Ok(found)
}

/// Runs a workload on the kernel's side; with the result the engine that was used.
pub(super) fn kernel_run(
    plan: &Plan,
    mount: &XfsMount,
    workload: &Workload,
    tick: Tick<'_>,
) -> Result<(Outcome, String)> {
    let path = inside(mount, file_of(plan, workload))?;
    let make = |path: &Path| {
        if workload.buffered {
            return KernelEngine::buffered(path, workload.rw.writes(), workload.block_bytes);
        }
        KernelEngine::new(
            path,
            workload.rw.writes(),
            workload.iodepth,
            workload.block_bytes,
        )
    };
    let engine = make(&path)?.describe();
    let outcome = runner::run(workload, tick, |_| make(&path))?;
    Ok((outcome, engine))
}

/// Runs a workload on xtent's side.
pub(super) fn xtent_run(
    plan: &Plan,
    volume: &Volume,
    workload: &Workload,
    tick: Tick<'_>,
) -> Result<Outcome> {
    let path = file_of(plan, workload);
    if workload.buffered {
        return runner::run(workload, tick, |_| {
            let write = workload.rw.writes();
            BufferedEngine::new(volume, path.as_bytes(), write, workload.block_bytes)
        });
    }
    runner::run(workload, tick, |_| {
        XtentEngine::new(
            volume,
            path.as_bytes(),
            workload.rw.writes(),
            workload.iodepth,
            workload.block_bytes,
        )
    })
}

fn file_of<'a>(plan: &'a Plan, workload: &Workload) -> &'a str {
    if workload.rw.writes() || workload.verify {
        &plan.write_file
    } else {
        &plan.read_file
    }
}

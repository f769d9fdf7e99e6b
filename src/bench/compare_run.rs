//! The runs of a comparison: one workload on one side.

use std::path::PathBuf;

use xtent::internals::sys::XfsMount;
use xtent::volume::Volume;
use xtent::{Error, ErrorKind, Result};

use super::buffered_engine::BufferedEngine;
use super::compare_plan::Plan;
use super::kernel::KernelEngine;
use super::layout::{KernelFile, Layout, VolumeFile};
use super::outcome::Outcome;
use super::runner::{self, Tick};
use super::workload::Workload;
use super::xtent_engine::XtentEngine;

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
    if workload.layout != Layout::Found {
        let file = &mut KernelFile::open(&path)?;
        workload.layout.apply(file, workload.size_bytes)?;
    }
    let engine = KernelEngine::new(&path, workload)?.describe();
    let outcome = runner::run(workload, tick, |_| KernelEngine::new(&path, workload))?;
    Ok((outcome, engine))
}

/// Runs a workload on xtent's side.
pub(super) fn xtent_run(
    plan: &Plan,
    volume: &Volume,
    workload: &Workload,
    tick: Tick<'_>,
) -> Result<Outcome> {
    let path = file_of(plan, workload).as_bytes();
    if workload.layout != Layout::Found {
        let file = &mut VolumeFile::open(volume, path)?;
        workload.layout.apply(file, workload.size_bytes)?;
    }
    if workload.buffered {
        return runner::run(workload, tick, |_| {
            BufferedEngine::new(volume, path, workload)
        });
    }
    runner::run(workload, tick, |_| XtentEngine::new(volume, path, workload))
}

fn file_of<'a>(plan: &'a Plan, workload: &Workload) -> &'a str {
    if workload.layout != Layout::Found {
        &plan.grow_file
    } else if workload.rw.writes() || workload.verify {
        &plan.write_file
    } else {
        &plan.read_file
    }
}

//! The kernel's xfs and xtent on the same image or disk: same files, same operations, in
//! alternating rounds.

use xtent::internals::sys::interrupted;
use xtent::volume::{Volume, VolumeInfo};
use xtent::{Error, ErrorKind, Result};

use super::cache_spec::CacheSpec;
use super::cgroup::MemoryLimit;
use super::check_interrupted;
use super::compare_checks::{Check, cross_check, final_checks, kernel_checksum, xtent_checksum};
use super::compare_plan::Plan;
use super::compare_plan::WorkloadSet;
use super::compare_run::{kernel_run, xtent_run};
use super::compare_workloads::{FileSizes, workloads};
use super::environment::Environment;
use super::medium::{BenchMedium, MediumInfo};
use super::mix::mix;
use super::progress::{Progress, RunProgress};
use super::rounds::{Rounds, RoundsRow};
use super::usage::CpusInUse;
use super::workload::{Rw, Workload};

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Kernel,
    Xtent,
}

/// A comparison and its results.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) plan: Plan,
    pub(crate) environment: Environment,
    pub(crate) volume: VolumeInfo,
    pub(crate) medium: MediumInfo,
    pub(crate) read_file_bytes: u64,
    pub(crate) write_file_bytes: u64,
    pub(crate) rows: Vec<RoundsRow>,
    pub(crate) checks: Vec<Check>,
    /// xtent's page cache.
    pub(crate) cache: Option<CacheSpec>,
    /// Why the kernel's memory was not limited although it was to be.
    pub(crate) kernel_unlimited: Option<String>,
    /// The user ended it: some runs are missing, or cut short, and some checks were not made.
    pub(crate) interrupted: bool,
}

impl Comparison {
    pub(crate) fn good(&self) -> bool {
        self.checks.iter().all(|check| check.good)
    }

    pub(crate) fn has_kernel(&self) -> bool {
        self.plan.leave_kernel_out.is_none()
    }

    /// Processor time of the runs of xtent's side: in the kernel's, threads of the kernel work for
    /// this process that cannot be told from others.
    pub(crate) fn load(&self) -> CpusInUse {
        let mut load = CpusInUse::default();
        for row in &self.rows {
            load.add(&row.xtent.cpus());
        }
        load
    }
}

/// Runs the comparison. Afterwards an image is as it was, but for the content of the file to
/// overwrite; a disk is with the kernel's driver, as it was, and has a new filesystem.
pub(crate) fn run(mut plan: Plan, progress: &Progress) -> Result<Comparison> {
    let environment = Environment::gather();
    let memory_bytes = environment.memory_bytes;
    let (mut medium, found) = BenchMedium::prepare(&plan.on, memory_bytes, plan.seed, progress)?;
    progress.message("comparing the contents");
    let volume = medium.open(None)?;
    let info = volume.info();
    let read_file_bytes = file_bytes(&volume, &plan.read_file)?;
    let write_file_bytes = file_bytes(&volume, &plan.write_file)?;
    check_grow_file(&plan, &volume)?;
    let before = xtent_checksum(&volume, &plan.read_file)?;
    drop(volume);
    let cache = plan
        .buffered
        .then(|| cache_of(&plan, read_file_bytes, write_file_bytes));
    let mut checks: Vec<Check> = found
        .filled_crc
        .map(|crc| filled_check(&plan, crc, before))
        .into_iter()
        .collect();
    if plan.leave_kernel_out.is_none() {
        match kernel_checksum(&plan, &mut medium) {
            Ok(by_kernel) => checks.push(Check {
                what: format!("{} has the same content on both sides", plan.read_file),
                good: by_kernel == before,
                result: format!("CRC32C {by_kernel:08x} by the kernel, {before:08x} by xtent"),
            }),
            Err(error) if matches!(medium, BenchMedium::Disk(_)) => return Err(error),
            Err(error) => plan.leave_kernel_out = Some(error.to_string()),
        }
    }
    let sizes = FileSizes {
        read_bytes: read_file_bytes,
        write_bytes: write_file_bytes,
    };
    let mut rows: Vec<RoundsRow> = workloads(&plan, sizes, &info)
        .into_iter()
        .map(|workload| RoundsRow {
            workload,
            kernel: Rounds::default(),
            xtent: Rounds::default(),
            unsupported: None,
        })
        .collect();
    let kernel_unlimited = all_rounds(&plan, &mut medium, cache, &mut rows, progress)?;
    if rows.iter().all(RoundsRow::is_empty) {
        // Interrupted before anything was measured: there are no results to show.
        check_interrupted()?;
    }
    progress.message("checking the contents");
    let checked = check_interrupted()
        .and_then(|()| cross_check(&plan, &mut medium, write_file_bytes, &mut checks))
        .and_then(|()| final_checks(&plan, &mut medium, before, &mut checks));
    // The results so far are worth showing; what was begun is undone as always.
    let interrupted = match checked {
        Err(_) if interrupted().is_some() => true,
        Err(error) => return Err(error),
        Ok(()) => false,
    };
    medium.finish()?;
    Ok(Comparison {
        plan,
        environment,
        volume: info,
        medium: found,
        read_file_bytes,
        write_file_bytes,
        rows,
        checks,
        cache,
        kernel_unlimited,
        interrupted,
    })
}

/// Both sides in turn, until the user interrupts; why the kernel's page cache was not limited.
fn all_rounds(
    plan: &Plan,
    medium: &mut BenchMedium,
    cache: Option<CacheSpec>,
    rows: &mut [RoundsRow],
    progress: &Progress,
) -> Result<Option<String>> {
    let mut kernel_unlimited = None;
    for round in 0..plan.rounds {
        if interrupted().is_some() {
            break;
        }
        if plan.leave_kernel_out.is_none() {
            let limit = plan.memory_bytes.map(MemoryLimit::enter);
            kernel_round(plan, medium, round, rows, progress)?;
            kernel_unlimited = limit.and_then(std::result::Result::err);
        }
        if interrupted().is_none() {
            let volume = medium.open(cache)?;
            xtent_round(plan, &volume, round, rows, progress)?;
            // The kernel finds a log that is clean.
            volume.close()?;
        }
    }
    Ok(kernel_unlimited)
}

/// Whether a file that was filled for the comparison is read as it was filled.
fn filled_check(plan: &Plan, filled: u32, read: u32) -> Check {
    Check {
        what: format!("xtent reads {} as it was filled", plan.read_file),
        good: filled == read,
        result: format!("CRC32C {filled:08x} as filled, {read:08x} by xtent"),
    }
}

/// Whether the file is there that workloads make longer.
fn check_grow_file(plan: &Plan, volume: &Volume) -> Result<()> {
    if !plan.has(WorkloadSet::Grow) {
        return Ok(());
    }
    let found = volume.metadata(&mut volume.io()?, &plan.grow_file);
    found.map(|_| ()).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::new(
            ErrorKind::NotFound,
            "--workloads grow empties this file and writes it again and again: make an empty one, or \
             name another with --grow-file",
        )
        .at_path(&*plan.grow_file),
        _ => error,
    })
}

fn file_bytes(volume: &Volume, path: &str) -> Result<u64> {
    let mut io = volume.io()?;
    match volume.open_file(&mut io, path) {
        Ok(file) => Ok(file.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::new(
            ErrorKind::NotFound,
            "compare reads one file of the image and overwrites another: name existing ones with \
             --read-file and --write-file, or let scripts/demo.sh make an image",
        )
        .at_path(path)),
        Err(error) => Err(error),
    }
}

fn kernel_round(
    plan: &Plan,
    medium: &mut BenchMedium,
    round: usize,
    rows: &mut [RoundsRow],
    progress: &Progress,
) -> Result<()> {
    let mount = medium.mount()?;
    if plan.is_warm() {
        for workload in whole_files(rows) {
            kernel_run(plan, &mount, &workload, &|_| {})?;
        }
    }
    for row in rows {
        if interrupted().is_some() {
            break;
        }
        let what = format!("round {}, kernel: {}", round + 1, row.workload.name);
        let run = RunProgress::new(progress, what, row.workload.block_bytes, plan.each());
        let workload = seeded(&row.workload, round);
        let (outcome, engine) = kernel_run(plan, &mount, &workload, &|ios| run.tick(ios))?;
        row.kernel.outcomes.push(outcome);
        row.kernel.engine = engine;
        progress.add(1);
    }
    mount.unmount()
}

fn xtent_round(
    plan: &Plan,
    volume: &Volume,
    round: usize,
    rows: &mut [RoundsRow],
    progress: &Progress,
) -> Result<()> {
    if plan.is_warm() {
        for workload in whole_files(rows) {
            xtent_run(plan, volume, &workload, &|_| {})?;
        }
    }
    for row in rows {
        if interrupted().is_some() {
            break;
        }
        let what = format!("round {}, xtent: {}", round + 1, row.workload.name);
        let run = RunProgress::new(progress, what, row.workload.block_bytes, plan.each());
        let workload = seeded(&row.workload, round);
        match xtent_run(plan, volume, &workload, &|ios| run.tick(ios)) {
            Ok(outcome) => row.xtent.outcomes.push(outcome),
            // Writes that allocate, where xtent cannot do them.
            Err(error) if error.kind() == ErrorKind::NotOverwrite => {
                row.unsupported = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        row.xtent.engine = if row.workload.buffered {
            "calls through the page cache in DMA memory".into()
        } else {
            "polled NVMe queue pair, direct I/O from DMA memory".into()
        };
        progress.add(1);
    }
    Ok(())
}

/// A cache for all of both files, all of the one dirty if it comes to that, as the kernel lets it
/// be where there is plenty of memory; unless a size was given.
fn cache_of(plan: &Plan, read_bytes: u64, write_bytes: u64) -> CacheSpec {
    let files = read_bytes + write_bytes;
    // Writers begin to write back at half of what may be dirty.
    let all = (files + files / 16).max(write_bytes / 2 * 5) + (8 << 20);
    CacheSpec {
        bytes: usize::try_from(plan.memory_bytes.unwrap_or(all)).unwrap_or(usize::MAX),
        dirty_percent: if plan.is_warm() { 90 } else { 20 },
    }
}

/// One read of each file as a whole, unmeasured, so that both sides begin with all of it cached.
fn whole_files(rows: &[RoundsRow]) -> Vec<Workload> {
    let of = |writes: bool| rows.iter().find(|row| row.workload.rw.writes() == writes);
    let read = |row: &RoundsRow| Workload {
        name: "warm up".into(),
        // The file that is written, too, is only read here.
        rw: if row.workload.rw.writes() {
            Rw::Readwrite
        } else {
            Rw::Read
        },
        rwmixread: 100,
        block_bytes: 1 << 20,
        runtime: None,
        time_based: false,
        ramp_time: None,
        ..row.workload.clone()
    };
    [false, true]
        .into_iter()
        .filter_map(|writes| of(writes).map(read))
        .collect()
}

/// Other offsets each round, the same for both sides.
fn seeded(workload: &Workload, round: usize) -> Workload {
    let mut workload = workload.clone();
    workload.seed = mix(workload.seed ^ round as u64);
    workload
}

//! The kernel's xfs and xtent on the same image or disk: same files, same operations, turn and turn about.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtent::internals::sys::XfsMount;
use xtent::volume::{Volume, VolumeInfo};
use xtent::{Error, ErrorKind, Result};

use super::buffered_engine::BufferedEngine;
use super::cgroup::MemoryLimit;
use super::environment::Environment;
use super::hist::{Direction, rate};
use super::kernel::KernelEngine;
use super::medium::{CacheSpec, Medium, MediumInfo, MediumSpec};
use super::progress::Progress;
use super::runner::{self, Outcome, check_interrupted};
use super::workload::{Rw, Workload, mix};
use super::xtent_engine::XtentEngine;

/// What to compare, and how long.
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
    /// What each side may cache; without it, all of both files.
    pub(crate) memory_bytes: Option<u64>,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Kernel,
    Xtent,
}

/// One figure of every round, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(pub(crate) Vec<f64>);

impl Figures {
    /// 0 without rounds.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The lowest and the highest; zeros without rounds.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let lowest = self.0.iter().copied().min_by(f64::total_cmp);
        let highest = self.0.iter().copied().max_by(f64::total_cmp);
        (lowest.unwrap_or(0.0), highest.unwrap_or(0.0))
    }
}

/// The rounds of one side on one workload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    pub(crate) engine: String,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Rounds {
    /// A figure of each round.
    pub(crate) fn each(&self, figure: impl Fn(&Outcome) -> f64) -> Figures {
        Figures(self.outcomes.iter().map(figure).collect())
    }

    pub(crate) fn percentile_ns(&self, percent: f64) -> Figures {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        self.each(|outcome| outcome.all().percentile_ns(percent) as f64)
    }

    pub(crate) fn iops(&self) -> Figures {
        self.each(|outcome| rate(outcome.all().ios(), outcome.elapsed.as_secs_f64().max(1e-9)))
    }

    pub(crate) fn bytes_per_second(&self) -> Figures {
        self.each(|outcome| rate(outcome.all().bytes, outcome.elapsed.as_secs_f64().max(1e-9)))
    }

    /// Each round, reads and writes apart.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let round = |outcome: &Outcome| {
            serde_json::json!({
                "read": outcome.read.json(outcome.elapsed),
                "write": outcome.write.json(outcome.elapsed),
            })
        };
        self.outcomes.iter().map(round).collect()
    }

    /// All rounds, reads and writes together.
    pub(crate) fn together(&self) -> Direction {
        let mut all = Direction::default();
        for outcome in &self.outcomes {
            all.add(&outcome.all());
        }
        all
    }
}

/// One workload with what both sides made of it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) workload: Workload,
    pub(crate) kernel: Rounds,
    pub(crate) xtent: Rounds,
}

/// Something that was checked, and what came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) good: bool,
    pub(crate) result: String,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) plan: Plan,
    pub(crate) environment: Environment,
    pub(crate) volume: VolumeInfo,
    pub(crate) medium: MediumInfo,
    pub(crate) read_file_bytes: u64,
    pub(crate) write_file_bytes: u64,
    pub(crate) rows: Vec<Row>,
    pub(crate) checks: Vec<Check>,
    /// xtent's page cache.
    pub(crate) cache: Option<CacheSpec>,
    /// Why the kernel's memory was not limited although it was to be.
    pub(crate) kernel_unlimited: Option<String>,
}

impl Plan {
    /// Whether all is cached before anything is measured.
    fn is_warm(&self) -> bool {
        self.buffered && self.memory_bytes.is_none()
    }
}

impl Comparison {
    pub(crate) fn good(&self) -> bool {
        self.checks.iter().all(|check| check.good)
    }

    pub(crate) fn has_kernel(&self) -> bool {
        self.plan.leave_kernel_out.is_none()
    }
}

/// The list that is run: what storage is bought by, or what is asked of a page cache.
fn workloads(plan: &Plan, read_bytes: u64, write_bytes: u64) -> Vec<Workload> {
    const K: usize = 1024;
    let list = [
        ("4k random read, depth 1", Rw::Randread, 4 * K, 1),
        ("4k random read, depth 32", Rw::Randread, 4 * K, 32),
        ("4k random write, depth 1", Rw::Randwrite, 4 * K, 1),
        ("4k random write, depth 32", Rw::Randwrite, 4 * K, 32),
        ("4k random 70/30 mix, depth 32", Rw::Randrw, 4 * K, 32),
        ("128k sequential read, depth 8", Rw::Read, 128 * K, 8),
        ("128k sequential write, depth 8", Rw::Write, 128 * K, 8),
    ];
    let buffered = [
        ("64 bytes random read", Rw::Randread, 64, 1),
        ("4k random read", Rw::Randread, 4 * K, 1),
        ("4k random write", Rw::Randwrite, 4 * K, 1),
        ("777 bytes random write", Rw::Randwrite, 777, 1),
        ("4k random 70/30 mix", Rw::Randrw, 4 * K, 1),
        ("1m sequential read", Rw::Read, 1024 * K, 1),
        ("1m sequential write", Rw::Write, 1024 * K, 1),
    ];
    let list = if plan.buffered { buffered } else { list };
    list.into_iter()
        .enumerate()
        .map(|(index, (name, rw, block_bytes, iodepth))| Workload {
            name: name.into(),
            rw,
            rwmixread: 70,
            block_bytes,
            iodepth,
            numjobs: 1,
            size_bytes: if rw.writes() { write_bytes } else { read_bytes },
            runtime: Some(plan.runtime),
            time_based: true,
            ramp_time: Some(plan.ramp_time),
            number_ios: None,
            verify: false,
            seed: mix(plan.seed ^ mix(index as u64)),
            buffered: plan.buffered,
            fsync: plan.fsync,
        })
        .collect()
}

/// Runs the comparison. Afterwards an image is as it was, but for the content of the file to overwrite; a disk
/// is with the kernel's driver, as it was, and has a new filesystem.
pub(crate) fn run(mut plan: Plan, progress: &Progress) -> Result<Comparison> {
    let environment = Environment::gather();
    let memory_bytes = environment.memory_bytes;
    let (mut medium, found) = Medium::prepare(&plan.on, memory_bytes, plan.seed, progress)?;
    progress.message("comparing the contents");
    let volume = medium.open(None)?;
    let info = volume.info();
    let read_file_bytes = file_bytes(&volume, &plan.read_file)?;
    let write_file_bytes = file_bytes(&volume, &plan.write_file)?;
    let before = xtent_checksum(&volume, &plan.read_file)?;
    drop(volume);
    let cache = plan
        .buffered
        .then(|| cache_of(&plan, read_file_bytes, write_file_bytes));
    let mut kernel_unlimited = None;
    let mut checks = Vec::new();
    if let Some(filled) = found.filled_crc {
        checks.push(Check {
            what: format!("xtent reads {} as it was filled", plan.read_file),
            good: filled == before,
            result: format!("CRC32C {filled:08x} as filled, {before:08x} by xtent"),
        });
    }
    if plan.leave_kernel_out.is_none() {
        match kernel_checksum(&plan, &mut medium) {
            Ok(by_kernel) => checks.push(Check {
                what: format!("{} has the same content on both sides", plan.read_file),
                good: by_kernel == before,
                result: format!("CRC32C {by_kernel:08x} by the kernel, {before:08x} by xtent"),
            }),
            Err(error) if matches!(medium, Medium::Disk(_)) => return Err(error),
            Err(error) => plan.leave_kernel_out = Some(error.to_string()),
        }
    }
    let mut rows: Vec<Row> = workloads(&plan, read_file_bytes, write_file_bytes)
        .into_iter()
        .map(|workload| Row {
            workload,
            kernel: Rounds::default(),
            xtent: Rounds::default(),
        })
        .collect();
    for round in 0..plan.rounds {
        if plan.leave_kernel_out.is_none() {
            let limit = plan.memory_bytes.map(MemoryLimit::enter);
            kernel_round(&plan, &mut medium, round, &mut rows, progress)?;
            kernel_unlimited = limit.and_then(Result::err);
        }
        let volume = medium.open(cache)?;
        xtent_round(&plan, &volume, round, &mut rows, progress)?;
    }
    progress.message("checking the contents");
    cross_check(&plan, &mut medium, write_file_bytes, &mut checks)?;
    final_checks(&plan, &mut medium, before, &mut checks)?;
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
    })
}

/// The file that was only read is as it was; the filesystem is whole.
fn final_checks(
    plan: &Plan,
    medium: &mut Medium,
    before: u32,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let mut after = vec![(
        xtent_checksum(&medium.open(None)?, &plan.read_file)?,
        "xtent",
    )];
    if matches!(medium, Medium::Disk(_)) {
        after.push((kernel_checksum(plan, medium)?, "the kernel"));
    }
    for (after, by) in after {
        checks.push(Check {
            what: format!("{} is unchanged after all rounds", plan.read_file),
            good: after == before,
            result: format!("CRC32C {before:08x} before, {after:08x} after by {by}"),
        });
    }
    check_interrupted()?;
    let on = match medium {
        Medium::Image(_) => "image",
        Medium::Disk(_) => "disk",
    };
    let repair = medium.check_clean()?;
    check_interrupted()?;
    if let Some(repair) = repair {
        checks.push(Check {
            what: format!("xfs_repair -n on the {on}"),
            good: repair.is_ok(),
            result: repair.err().unwrap_or_else(|| "clean".into()),
        });
    }
    Ok(())
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

fn checksum(mut reader: impl Read) -> Result<u32> {
    let mut chunk = vec![0; 1 << 20];
    let mut crc = 0;
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(crc),
            Ok(n) => crc = crc32c::crc32c_append(crc, &chunk[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::system("cannot read the file", e)),
        }
        check_interrupted()?;
    }
}

fn xtent_checksum(volume: &Volume, path: &str) -> Result<u32> {
    let mut io = volume.io()?;
    let file = volume.open_file(&mut io, path)?;
    checksum(file.reader(&mut io)?)
}

/// The host's path of a file in the mounted image. A symbolic link on the way could lead anywhere on the
/// host, and what is there be overwritten: refused.
fn inside(mount: &XfsMount, path: &str) -> Result<PathBuf> {
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

fn kernel_checksum(plan: &Plan, medium: &mut Medium) -> Result<u32> {
    let mount = medium.mount()?;
    let path = inside(&mount, &plan.read_file)?;
    let file = std::fs::File::open(path).map_err(|e| Error::system("cannot open the file", e))?;
    let crc = checksum(file)?;
    mount.unmount()?;
    Ok(crc)
}

fn kernel_round(
    plan: &Plan,
    medium: &mut Medium,
    round: usize,
    rows: &mut [Row],
    progress: &Progress,
) -> Result<()> {
    let mount = medium.mount()?;
    if plan.is_warm() {
        for workload in whole_files(rows) {
            kernel_run(plan, &mount, &workload)?;
        }
    }
    for row in rows {
        progress.message(format!("round {} kernel: {}", round + 1, row.workload.name));
        let (outcome, engine) = kernel_run(plan, &mount, &seeded(&row.workload, round))?;
        row.kernel.outcomes.push(outcome);
        row.kernel.engine = engine;
        progress.add(1);
        check_interrupted()?;
    }
    mount.unmount()
}

fn kernel_run(plan: &Plan, mount: &XfsMount, workload: &Workload) -> Result<(Outcome, String)> {
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
    let outcome = runner::run(workload, &|_| {}, |_| make(&path))?;
    Ok((outcome, engine))
}

fn xtent_round(
    plan: &Plan,
    volume: &Volume,
    round: usize,
    rows: &mut [Row],
    progress: &Progress,
) -> Result<()> {
    if plan.is_warm() {
        for workload in whole_files(rows) {
            xtent_run(plan, volume, &workload)?;
        }
    }
    for row in rows {
        progress.message(format!("round {} xtent: {}", round + 1, row.workload.name));
        let outcome = xtent_run(plan, volume, &seeded(&row.workload, round))?;
        row.xtent.outcomes.push(outcome);
        row.xtent.engine = if plan.buffered {
            "calls through the page cache in DMA memory".into()
        } else {
            "polled NVMe queue pair, direct I/O from DMA memory".into()
        };
        progress.add(1);
        check_interrupted()?;
    }
    Ok(())
}

fn xtent_run(plan: &Plan, volume: &Volume, workload: &Workload) -> Result<Outcome> {
    let path = file_of(plan, workload);
    if workload.buffered {
        return runner::run(workload, &|_| {}, |_| {
            let write = workload.rw.writes();
            BufferedEngine::new(volume, path.as_bytes(), write, workload.block_bytes)
        });
    }
    runner::run(workload, &|_| {}, |_| {
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

/// A cache for all of both files, all of the one dirty if it comes to that, as the kernel lets it be where there is plenty of
/// memory; unless a size was given.
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
fn whole_files(rows: &[Row]) -> Vec<Workload> {
    let of = |writes: bool| rows.iter().find(|row| row.workload.rw.writes() == writes);
    let read = |row: &Row| Workload {
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

/// Each side writes the whole file to overwrite with a pattern, and the other reads and checks it.
fn cross_check(
    plan: &Plan,
    medium: &mut Medium,
    write_bytes: u64,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let whole = |rw, seed| Workload {
        name: "check".into(),
        rw,
        rwmixread: 0,
        block_bytes: 128 << 10,
        iodepth: if plan.buffered { 1 } else { 8 },
        numjobs: 1,
        size_bytes: write_bytes,
        runtime: None,
        time_based: false,
        ramp_time: None,
        number_ios: None,
        verify: true,
        seed,
        buffered: plan.buffered,
        fsync: 0,
    };
    let (first, second) = (mix(plan.seed), mix(!plan.seed));
    xtent_run(plan, &medium.open(None)?, &whole(Rw::Write, first))?;
    check_interrupted()?;
    if plan.leave_kernel_out.is_some() {
        let read = xtent_run(plan, &medium.open(None)?, &whole(Rw::Read, first));
        checks.push(pattern_check(
            "xtent wrote, xtent read after reopening",
            read,
        ));
        return Ok(());
    }
    let kernel = medium.mount()?;
    let read = kernel_run(plan, &kernel, &whole(Rw::Read, first)).map(|(outcome, _)| outcome);
    checks.push(pattern_check("xtent wrote, the kernel read", read));
    check_interrupted()?;
    kernel_run(plan, &kernel, &whole(Rw::Write, second))?;
    kernel.unmount()?;
    check_interrupted()?;
    let read = xtent_run(plan, &medium.open(None)?, &whole(Rw::Read, second));
    checks.push(pattern_check("the kernel wrote, xtent read", read));
    check_interrupted()
}

fn pattern_check(what: &str, read: Result<Outcome>) -> Check {
    let (good, result) = match read {
        Ok(outcome) => (
            outcome.verified_blocks > 0,
            format!("{} blocks of 128 KiB agree", outcome.verified_blocks),
        ),
        Err(error) => (false, error.to_string()),
    };
    Check {
        what: what.into(),
        good,
        result,
    }
}

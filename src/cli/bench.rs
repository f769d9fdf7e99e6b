//! `xtent bench`.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use xtent::target::{Target, TargetInfo, TargetOptions, Wait};
use xtent::volume::{CacheStats, MountOptions, Volume};

use super::bench_holes::Unbacked;
use super::events;
use super::failure::{Failure, USAGE, check_interrupted, complain};
use super::output::size_text;
use super::values::{Share, share, size, time, wait};
use super::{TargetArg, VolumePath, cache_table};
use crate::bench::budget;
use crate::bench::buffered_engine::BufferedEngine;
use crate::bench::environment::Environment;
use crate::bench::hist::{Direction, PERCENTILES, bytes_text, count_text, rate, three_digits};
use crate::bench::progress::Progress;
use crate::bench::raw_engine::RawEngine;
use crate::bench::runner::{self, Outcome};
use crate::bench::workload::{Rw, Workload};
use crate::bench::xtent_engine::XtentEngine;

#[derive(Debug, Args)]
#[command(
    after_help = "Options mean what they mean to fio, with these differences: random workloads touch every \
    block once before any twice; with --verify, --runtime implies --time-based; clat is measured from just \
    before an operation is handed to xtent until it is reaped. I/O is direct, from DMA memory, and nothing is copied, \
    unless it is --buffered. A workload that writes OVERWRITES THE FILE, and flushes at its end.\n\n\
    With --buffered it goes through xtent's page cache, one operation at a time, of any size.\n\n\
    With --raw the load goes to the blocks of the target, whatever is on it; one that writes DESTROYS THAT.\n\n\
    Examples: xtent bench image:disk.img /data --rw randread --iodepth 32 --runtime 10 --time-based\n\
    \x20         xtent bench --raw pci:0000:01:00.0 --rw randread --bs 512 --iodepth 128 --runtime 10 --time-based"
)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The file; workloads that write overwrite it
    #[arg(
        value_name = "PATH",
        required_unless_present = "raw",
        conflicts_with = "raw"
    )]
    path: Option<VolumePath>,
    /// The target's own blocks instead of a file: no filesystem is looked for
    #[arg(long)]
    raw: bool,
    /// With --raw and a workload that writes: the serial number of the target (`xtent info` shows it), for
    /// proof that it is the one you mean. It is OVERWRITTEN
    #[arg(long, value_name = "SERIAL", conflicts_with = "path")]
    i_may_erase: Option<String>,
    /// What to do
    #[arg(long, value_enum, default_value = "read")]
    rw: Rw,
    /// Percent of reads in a mixed workload
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixread: u8,
    /// Bytes of an operation
    #[arg(long, default_value = "4k", value_parser = size)]
    bs: u64,
    /// Operations in flight per job
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    iodepth: u32,
    /// Threads, each with a queue pair of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    numjobs: u32,
    /// Bytes from the file's start that each job does, or a percentage as in 50% [default: all]
    #[arg(long, value_parser = share)]
    size: Option<Share>,
    /// End after this long, if not before by having done every block once
    #[arg(long, value_parser = time)]
    runtime: Option<Duration>,
    /// Go on over and over until the runtime is over
    #[arg(long, alias = "time_based", requires = "runtime")]
    time_based: bool,
    /// Run for this long before measuring
    #[arg(long, alias = "ramp_time", value_parser = time)]
    ramp_time: Option<Duration>,
    /// The most operations of each job; 0 for no limit
    #[arg(long = "number-ios", alias = "number_ios")]
    number_ios: Option<u64>,
    /// Through the page cache instead of direct I/O
    #[arg(long, conflicts_with = "raw")]
    buffered: bool,
    /// How large that page cache is [default: an eighth of the free hugepages, or 64m]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "buffered")]
    memory: Option<u64>,
    /// Shows how the page cache fared: hits, misses, read-ahead, reclaim
    #[arg(long, requires = "buffered")]
    cache_stats: bool,
    /// Makes durable what was written, after every N writes of a job; waits for what is in flight before
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    fsync: u64,
    /// How threads wait: they poll, sleep until the device interrupts, or poll for a while and then sleep; the
    /// target's own option `wait=` goes before this one
    #[arg(long, value_parser = wait, value_name = "poll|interrupt|adaptive", default_value = "poll")]
    wait: Wait,
    /// Writes a pattern and reads it back; a workload that only reads checks a pattern written before with
    /// the same seed and block size
    #[arg(long)]
    verify: bool,
    /// What random order and pattern follow from
    #[arg(long, default_value_t = 0x1db7_1064, visible_alias = "randseed")]
    seed: u64,
    /// Prints JSON, with names as in fio's
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let environment = Environment::gather();
    if let Some(warning) = environment.warning() {
        complain(&format!("warning: {warning}"));
    }
    let place = Place::open(args)?;
    let workload = workload(args, place.len_bytes()?)?;
    budget::check(&workload)?;
    let unbacked = place.unbacked(&workload)?;
    if let Some(warning) = unbacked.warning(workload.size_bytes) {
        complain(&warning);
    }
    if args.rw.writes() {
        complain(&format!("note: --rw {} overwrites {place}", args.rw.name()));
    }
    let progress = progress(&workload);
    let started = std::time::Instant::now();
    let watched = place.target();
    let tick = |ios: u64| {
        events::tell_of(&watched, |text| progress.aside(|| complain(text)));
        match workload.runtime.filter(|_| workload.time_based) {
            Some(_) => {
                progress.set(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
            }
            None => progress.set(ios),
        }
    };
    let outcome = place.run(&workload, &tick);
    drop(progress);
    // What the controller said just now may explain an error.
    events::tell_of(&watched, complain);
    let outcome = outcome?;
    check_interrupted()?;
    if outcome.only_ramp {
        complain(
            "warning: a job was done before its --ramp-time was over: all that it did is counted",
        );
    }
    // Asked again: DMA memory is reserved when it is first needed.
    let target = place.info();
    let mut out = super::output::text_stdout()?;
    if args.json {
        let value = json_of(&workload, &outcome, &environment, &target, &place, unbacked);
        super::output::print_json(&value)?;
    } else {
        print(&mut out, &workload, &outcome, &target)?;
        if let Some(stats) = place.cache_stats().filter(|_| args.cache_stats) {
            cache_table::print(&mut out, &stats)?;
        }
    }
    out.flush()?;
    if args.rw.writes() {
        place.close()?;
    }
    Ok(())
}

/// What is put under load.
enum Place<'a> {
    File { volume: Volume, path: &'a [u8] },
    Raw(Target),
}

impl<'a> Place<'a> {
    fn open(args: &'a BenchArgs) -> Result<Self, Failure> {
        let options = TargetOptions::new()
            .read_only(!args.rw.writes())
            .queue_depth(args.iodepth.max(2))
            .wait(args.wait);
        if let Some(path) = &args.path {
            let mut mount = MountOptions::new();
            if let Some(bytes) = args.memory {
                mount = mount.cache_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
            }
            let volume = args.target.open(&options, &mount)?;
            return Ok(Self::File {
                volume,
                path: path.as_encoded_bytes(),
            });
        }
        args.target.check()?;
        let target = Target::open(&args.target.target, &options).map_err(Failure::target)?;
        if args.rw.writes() {
            check_serial(&target, args.i_may_erase.as_deref())?;
        }
        Ok(Self::Raw(target))
    }

    fn len_bytes(&self) -> Result<u64, Failure> {
        match self {
            Self::File { volume, path } => Ok(volume
                .open_file(&mut volume.io()?, OsStr::from_bytes(path))?
                .len()),
            Self::Raw(target) => Ok(target.info().capacity_bytes),
        }
    }

    /// What of the measured range is not on the device; nothing of a target's own blocks.
    fn unbacked(&self, workload: &Workload) -> Result<Unbacked, Failure> {
        match self {
            Self::File { volume, path } if workload.rw.reads() => {
                let mut io = volume.io()?;
                let file = volume.open_file(&mut io, OsStr::from_bytes(path))?;
                Unbacked::of(&file, &mut io, workload.size_bytes)
            }
            _ => Ok(Unbacked::default()),
        }
    }

    fn run(&self, workload: &Workload, tick: runner::Tick<'_>) -> xtent::Result<Outcome> {
        let (depth, block_bytes) = (workload.iodepth, workload.block_bytes);
        match self {
            Self::File { volume, path } if workload.buffered => runner::run(workload, tick, |_| {
                BufferedEngine::new(volume, path, workload.rw.writes(), block_bytes)
            })
            .map_err(|error| error.at_path(path)),
            Self::File { volume, path } => runner::run(workload, tick, |_| {
                XtentEngine::new(volume, path, workload.rw.writes(), depth, block_bytes)
            })
            .map_err(|error| error.at_path(path)),
            Self::Raw(target) => runner::run(workload, tick, |_| {
                RawEngine::new(target, depth, block_bytes)
            }),
        }
        .map_err(|error| error.on_device(self.info().target))
    }

    /// Ends writing: what was not synced is written back and flushed.
    fn close(self) -> Result<(), Failure> {
        match self {
            Self::File { volume, .. } => Ok(volume.close()?),
            Self::Raw(_) => Ok(()),
        }
    }

    fn target(&self) -> Target {
        match self {
            Self::File { volume, .. } => volume.target(),
            Self::Raw(target) => target.clone(),
        }
    }

    fn info(&self) -> TargetInfo {
        match self {
            Self::File { volume, .. } => volume.info().target,
            Self::Raw(target) => target.info().clone(),
        }
    }

    /// Of the page cache, where there is one.
    fn cache_stats(&self) -> Option<CacheStats> {
        match self {
            Self::File { volume, .. } => volume.cache_stats(),
            Self::Raw(_) => None,
        }
    }

    fn path(&self) -> Option<&[u8]> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Raw(_) => None,
        }
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { volume, path } => {
                write!(
                    f,
                    "{} on {}",
                    path.escape_ascii(),
                    volume.info().target.target
                )
            }
            Self::Raw(target) => write!(f, "all that is on {}", target.info().target),
        }
    }
}

/// Whoever overwrites a target names it twice.
pub(super) fn check_serial(target: &Target, given: Option<&str>) -> Result<(), Failure> {
    let info = target.info();
    match given {
        Some(given) if given == info.serial => Ok(()),
        Some(given) => Err(Failure::new(
            USAGE,
            format!(
                "--i-may-erase {given}: the serial number of {} is {}; nothing was written",
                info.target, info.serial
            ),
        )),
        None => Err(Failure::new(
            USAGE,
            format!(
                "this DESTROYS what is on {} ({}): if you mean it, add --i-may-erase SERIAL with its serial \
                 number, which `xtent info` shows",
                info.target, info.model
            ),
        )),
    }
}

fn workload(args: &BenchArgs, len_bytes: u64) -> Result<Workload, Failure> {
    let size_bytes = args.size.map_or(len_bytes, |size| size.of(len_bytes));
    if size_bytes > len_bytes {
        return Err(Failure::new(
            USAGE,
            format!("--size {size_bytes} exceeds the file size ({len_bytes} bytes)"),
        ));
    }
    // Zero is no limit, as for fio.
    let runtime = args.runtime.filter(|runtime| !runtime.is_zero());
    let workload = Workload {
        name: "bench".into(),
        rw: args.rw,
        rwmixread: args.rwmixread,
        block_bytes: usize::try_from(args.bs).unwrap_or(usize::MAX),
        iodepth: args.iodepth as usize,
        numjobs: args.numjobs as usize,
        size_bytes,
        runtime,
        time_based: args.time_based || args.verify && runtime.is_some(),
        ramp_time: args.ramp_time.filter(|ramp| !ramp.is_zero()),
        number_ios: args.number_ios.filter(|&number| number > 0),
        verify: args.verify,
        seed: args.seed,
        buffered: args.buffered,
        fsync: args.fsync,
    };
    workload.check()?;
    Ok(workload)
}

fn progress(workload: &Workload) -> Progress {
    let progress = match workload.runtime.filter(|_| workload.time_based) {
        Some(runtime) => {
            let all = runtime + workload.ramp_time.unwrap_or_default();
            Progress::steps(u64::try_from(all.as_millis()).unwrap_or(u64::MAX))
        }
        None => {
            let each = workload.operations_per_job().unwrap_or(0);
            Progress::steps(each.saturating_mul(workload.numjobs as u64))
        }
    };
    progress.message(workload.rw.name());
    progress
}

fn json_of(
    workload: &Workload,
    outcome: &Outcome,
    environment: &Environment,
    target: &TargetInfo,
    place: &Place<'_>,
    unbacked: Unbacked,
) -> Value {
    let path = place.path();
    let stats = place.cache_stats();
    let mut options = serde_json::Map::new();
    let filename = path.unwrap_or(target.target.as_bytes());
    super::output::put_name(&mut options, "filename", filename);
    if let Ok(Value::Object(more)) = serde_json::to_value(workload) {
        options.extend(more);
    }
    json!({
        "xtent version": environment.xtent,
        "timestamp": environment.timestamp,
        "environment": environment,
        "target": target,
        "memory": target.memory,
        "wait": target.wait,
        "controller": target.controller,
        "filesystem": path.is_some(),
        "hole_bytes": unbacked.hole_bytes,
        "unwritten_bytes": unbacked.unwritten_bytes,
        "copies": if workload.buffered {
            "one: between the page cache and ordinary memory"
        } else {
            "none: direct I/O from DMA memory"
        },
        "cache": cache_table::json(stats.as_ref()),
        "jobs": [{
            "jobname": workload.name,
            "groupid": 0,
            "error": 0,
            "job options": options,
            "read": outcome.read.json(outcome.elapsed),
            "write": outcome.write.json(outcome.elapsed),
            "verified_blocks": if workload.verify { json!(outcome.verified_blocks) } else { Value::Null },
        }],
    })
}

fn print(
    out: &mut impl Write,
    workload: &Workload,
    outcome: &Outcome,
    target: &TargetInfo,
) -> std::io::Result<()> {
    writeln!(
        out,
        "{}: rw={}, bs={}, iodepth={}, numjobs={}, size={}",
        workload.name,
        workload.rw.name(),
        size_text(workload.block_bytes as u64),
        workload.iodepth,
        workload.numjobs,
        size_text(workload.size_bytes)
    )?;
    writeln!(out, "  on {}: {}", target.target, target.engine)?;
    let how = if workload.buffered {
        "buffered I/O through a page cache in"
    } else {
        "direct I/O, nothing copied, from DMA memory of"
    };
    writeln!(
        out,
        "  {how} {}; waiting by {}; controller: {}",
        target.memory,
        super::output::waiting(&target.wait),
        controller_text(&target.controller)
    )?;
    if workload.rw.reads() {
        direction(out, "read", &outcome.read, outcome.elapsed)?;
    }
    if workload.rw.writes() {
        direction(out, "write", &outcome.write, outcome.elapsed)?;
    }
    if workload.verify {
        writeln!(
            out,
            "  verify: {} blocks read back and right",
            outcome.verified_blocks
        )?;
    }
    Ok(())
}

/// Who carries the commands out.
fn controller_text(mode: &str) -> &str {
    match mode {
        "inline" => "inline (on the thread that waits)",
        "threaded" => "threaded (on a thread of its own)",
        _ => "none (device)",
    }
}

fn direction(
    out: &mut impl Write,
    name: &str,
    direction: &Direction,
    elapsed: Duration,
) -> std::io::Result<()> {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let bandwidth = rate(direction.bytes, seconds);
    writeln!(
        out,
        "  {name}: IOPS={}, BW={}/s ({:.1} MB/s), {} operations, {} in {:.2} s",
        count_text(rate(direction.ios(), seconds)),
        bytes_text(bandwidth),
        bandwidth / 1e6,
        direction.ios(),
        size_text(direction.bytes),
        seconds
    )?;
    if direction.ios() == 0 {
        return Ok(());
    }
    // One unit for the whole table, as fio does: the largest that leaves the median above 10.
    let median = direction.percentile_ns(50.0);
    let (divisor, unit) = match median {
        0..10_000 => (1.0, "nsec"),
        10_000..10_000_000 => (1e3, "usec"),
        _ => (1e6, "msec"),
    };
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let shown = |ns: u64| three_digits(ns as f64 / divisor);
    writeln!(
        out,
        "    clat ({unit}): min={}, max={}, avg={}, stdev={}",
        shown(direction.min_ns()),
        shown(direction.max_ns()),
        three_digits(direction.mean_ns() / divisor),
        three_digits(direction.stdev_ns() / divisor)
    )?;
    writeln!(out, "    clat percentiles ({unit}):")?;
    for line in PERCENTILES.chunks(4) {
        let cells: Vec<String> = line
            .iter()
            .map(|&p| format!("{p:>5.2}th=[{:>6}]", shown(direction.percentile_ns(p))))
            .collect();
        writeln!(out, "     | {}", cells.join(", "))?;
    }
    Ok(())
}

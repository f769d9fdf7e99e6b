//! `xtent bench`.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use xtent::target::{Target, TargetInfo, TargetOptions};
use xtent::volume::{CacheStats, MountOptions, Volume};

use super::bench_args::{BenchArgs, Format};
use super::bench_holes::Unbacked;
use super::bench_text::Results;
use super::events;
use super::failure::{Failure, USAGE, check_interrupted, complain};
use super::output::{put_name, results, write_json};
use crate::bench::budget;
use crate::bench::buffered_engine::BufferedEngine;
use crate::bench::calendar::asctime;
use crate::bench::environment::Environment;
use crate::bench::fio_json::{self, LatencyForm};
use crate::bench::hist::PERCENTILES;
use crate::bench::hist_log::LogFiles;
use crate::bench::layout::VolumeFile;
use crate::bench::outcome::Outcome;
use crate::bench::progress::{Progress, Speed, load_text};
use crate::bench::raw_engine::RawEngine;
use crate::bench::runner;
use crate::bench::workload::Workload;
use crate::bench::xtent_engine::XtentEngine;

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    // Results are printed also after an interruption.
    xtent::internals::sys::end_within(10);
    let environment = Environment::gather();
    if let Some(warning) = environment.warning() {
        complain(&format!("warning: {warning}"));
    }
    super::fio_options::reject_job_file(OsStr::new(&args.target.target))?;
    let place = LoadObject::open(args)?;
    let workload = args.workload(place.len_bytes()?)?;
    budget::check(&workload)?;
    let unbacked = place.unbacked(&workload)?;
    if let Some(warning) = unbacked.warning(workload.size_bytes) {
        complain(&warning);
    }
    let output = args.output.as_ref().filter(|path| path.as_os_str() != "-");
    let file = output.map(|path| {
        File::create(path).map_err(|error| Failure::local("cannot write", path, error))
    });
    let file = file.transpose()?;
    if args.rw.writes() {
        complain(&format!("note: --rw {} overwrites {place}", args.rw.name()));
    }
    check_interrupted()?;
    place.lay_out(&workload)?;
    let outcome = measure(args, &place, &workload)?;
    if outcome.only_ramp && !outcome.interrupted {
        complain(
            "warning: a job was done before its --ramp-time was over: all that it did is counted",
        );
    }
    if let Some(warning) = outcome.cpus.warning(environment.cpus) {
        complain(&format!("warning: {warning}"));
    }
    // Asked again: DMA memory is reserved when it is first needed.
    let target = place.info();
    if let Some(warning) = shares(args, workload.numjobs, &target) {
        complain(&warning);
    }
    let mut out = results(file)?;
    let found = Results {
        args,
        workload: &workload,
        outcome: &outcome,
        target: &target,
    };
    match args.format() {
        Format::Normal => {
            found.print(&mut out)?;
            if let Some(stats) = place.cache_stats().filter(|_| args.cache_stats) {
                super::cache_table::print(&mut out, &stats)?;
            }
            out.flush()?;
        }
        Format::Json | Format::JsonPlus => {
            let value = json_of(&found, &environment, &place, unbacked);
            write_json(&mut out, &value)?;
        }
    }
    if args.rw.writes() {
        place.close()?;
    }
    if outcome.interrupted {
        check_interrupted()?;
    }
    Ok(())
}

/// Runs the load, with its progress, logs and what the controller reports.
fn measure(
    args: &BenchArgs,
    place: &LoadObject<'_>,
    workload: &Workload,
) -> Result<Outcome, Failure> {
    let logs = LogFiles::create(
        args.write_hist_log.as_deref(),
        args.write_hlog.as_deref(),
        workload.numjobs,
        workload.block_bytes,
    )?;
    let logs = RefCell::new(logs);
    let log_failure = Cell::new(None);
    let progress = progress(workload);
    let (started, speed) = (Instant::now(), Speed::new());
    let watched = place.target();
    let tick = |ios: u64| {
        events::tell_of(&watched, |text| progress.aside(|| complain(text)));
        show(
            &progress,
            workload,
            started.elapsed(),
            ios,
            speed.update(ios),
        );
    };
    let log = |window: &_| {
        if let Err(error) = logs.borrow_mut().write(window) {
            log_failure.set(Some(error));
        }
    };
    let outcome = place.run(workload, &tick, &log);
    drop(progress);
    // What the controller said just now may explain an error.
    events::tell_of(&watched, complain);
    let outcome = outcome?;
    match log_failure.take() {
        Some(error) => return Err(error.into()),
        None => logs.into_inner().finish()?,
    }
    Ok(outcome)
}

/// Whether jobs had no queue pair of their own. A buffered file takes a second one.
fn shares(args: &BenchArgs, jobs: usize, target: &TargetInfo) -> Option<String> {
    let pairs = target.max_queue_pairs as usize;
    let each = if args.is_buffered() { 2 } else { 1 };
    let is_short = args.path.is_some() && pairs > 0 && jobs.saturating_mul(each) >= pairs;
    is_short.then(|| {
        format!(
            "warning: the controller has {pairs} queue pairs: jobs share the last one, by a lock"
        )
    })
}

/// The object of the load: a file of a volume, or a target.
enum LoadObject<'a> {
    File { volume: Volume, path: &'a [u8] },
    Raw(Target),
}

impl<'a> LoadObject<'a> {
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

    /// The parts of the measured range that are not on the device; none of a target's own blocks.
    fn unbacked(&self, workload: &Workload) -> Result<Unbacked, Failure> {
        match self {
            Self::File { volume, path } if workload.rw.reads() => {
                let mut io = volume.io()?;
                let file = volume.open_file(&mut io, OsStr::from_bytes(path))?;
                Unbacked::of(&file, &mut io, workload.offset_bytes, workload.size_bytes)
            }
            _ => Ok(Unbacked::default()),
        }
    }

    /// Gives the file the space that `--fallocate` asks for.
    fn lay_out(&self, workload: &Workload) -> Result<(), Failure> {
        if let (Self::File { volume, path }, Some(fallocate)) = (self, workload.fallocate) {
            let end = workload.offset_bytes.saturating_add(workload.size_bytes);
            let file = &mut VolumeFile::open(volume, path)?;
            fallocate.apply(file, workload.offset_bytes..end)?;
        }
        Ok(())
    }

    fn run(
        &self,
        workload: &Workload,
        tick: runner::Tick<'_>,
        log: runner::LogCallback<'_>,
    ) -> xtent::Result<Outcome> {
        match self {
            Self::File { volume, path } if workload.buffered => {
                runner::run_logged(workload, tick, log, |_| {
                    BufferedEngine::new(volume, path, workload)
                })
                .map_err(|error| error.at_path(path))
            }
            Self::File { volume, path } => runner::run_logged(workload, tick, log, |_| {
                XtentEngine::new(volume, path, workload)
            })
            .map_err(|error| error.at_path(path)),
            Self::Raw(target) => runner::run_logged(workload, tick, log, |_| {
                RawEngine::new(target, workload.iodepth, workload.block_bytes)
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

    /// Counters of the page cache, where there is one.
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

impl std::fmt::Display for LoadObject<'_> {
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

/// A target is overwritten only where its serial number is given.
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
                "this DESTROYS all data on {} ({}): to confirm, add --i-may-erase SERIAL with its serial \
                 number, which `xtent info` shows",
                info.target, info.model
            ),
        )),
    }
}

/// Operations in all, where their number ends the load.
fn all_operations(workload: &Workload) -> Option<u64> {
    let each = workload.operations_per_job()?;
    Some(each.saturating_mul(workload.numjobs as u64))
}

/// The time that a load takes at most, where it has one.
fn all_time(workload: &Workload) -> Option<Duration> {
    let runtime = workload.runtime?;
    Some(runtime + workload.ramp_time.unwrap_or_default())
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn progress(workload: &Workload) -> Progress {
    let total = match all_operations(workload) {
        Some(operations) => operations,
        None => all_time(workload).map_or(0, whole_ms),
    };
    Progress::load(total)
}

fn show(progress: &Progress, workload: &Workload, elapsed: Duration, ios: u64, iops: f64) {
    let by_time = all_time(workload).map(|all| all.saturating_sub(elapsed));
    let by_count = all_operations(workload).filter(|_| iops > 0.0).map(|all| {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = all.saturating_sub(ios) as f64 / iops;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    });
    let eta = by_time.into_iter().chain(by_count).min();
    progress.message(load_text(
        workload.rw.name(),
        iops,
        workload.block_bytes,
        eta,
    ));
    match all_operations(workload) {
        Some(_) => progress.set(ios),
        None => progress.set(whole_ms(elapsed)),
    }
}

fn json_of(
    found: &Results<'_>,
    environment: &Environment,
    place: &LoadObject<'_>,
    unbacked: Unbacked,
) -> Value {
    let (workload, outcome, target) = (found.workload, found.outcome, found.target);
    let path = place.path();
    let stats = place.cache_stats();
    let seconds = i64::try_from(environment.timestamp).unwrap_or(i64::MAX);
    json!({
        // Readers of fio's JSON want a text here.
        "fio version": format!("xtent {}", environment.xtent),
        "xtent version": environment.xtent,
        "timestamp": environment.timestamp,
        "timestamp_ms": environment.timestamp.saturating_mul(1000),
        "time": asctime(seconds),
        "interrupted": outcome.interrupted,
        "environment": environment,
        "target": target,
        "memory": target.memory,
        "hugepages": target.memory == "hugepages",
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
        "cache": super::cache_table::json(stats.as_ref()),
        "cpus_used": outcome.cpus,
        "jobs": jobs_of(found, path.unwrap_or(target.target.as_bytes())),
    })
}

/// One entry for the group, with the figures of its jobs; or one for each job.
fn jobs_of(found: &Results<'_>, filename: &[u8]) -> Vec<Value> {
    let percentiles = found.args.percentile_list.as_ref().map(|list| &list.0[..]);
    let form = LatencyForm {
        percentiles: percentiles.unwrap_or(&PERCENTILES),
        bins: true,
    };
    let mut options = Map::new();
    put_name(&mut options, "filename", filename);
    if let Ok(Value::Object(more)) = serde_json::to_value(found.workload) {
        options.extend(more);
    }
    let entry = |outcome: &Outcome| {
        let mut job = Map::new();
        job.insert("jobname".into(), json!(found.workload.name));
        job.insert("groupid".into(), json!(0));
        job.insert("error".into(), json!(0));
        job.insert("job options".into(), Value::Object(options.clone()));
        job.extend(fio_json::job(outcome, form));
        let verified = found.workload.verify.then_some(outcome.verified_blocks);
        job.insert("verified_blocks".into(), json!(verified));
        job
    };
    let jobs = &found.outcome.jobs;
    if !found.args.group_reporting && !jobs.is_empty() {
        return jobs.iter().map(|job| Value::Object(entry(job))).collect();
    }
    let mut group = entry(found.outcome);
    let each: Vec<Value> = jobs
        .iter()
        .map(|job| {
            Value::Object(fio_json::job(
                job,
                LatencyForm {
                    bins: false,
                    ..form
                },
            ))
        })
        .collect();
    group.insert("per_job".into(), json!(each));
    vec![Value::Object(group)]
}

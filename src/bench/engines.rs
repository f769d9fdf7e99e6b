//! Engines compared on one target: the same operations on its blocks, in alternating
//! rounds, no filesystem.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use xtent::internals::sys::interrupted;
use xtent::internals::target::TargetSpec;
use xtent::target::{Target, TargetInfo, TargetOptions};
use xtent::{Error, ErrorKind, Result};

use super::check_interrupted;
use super::engine_name::EngineName;
use super::environment::Environment;
use super::hist::{count_text, time_text};
use super::mix::mix;
use super::progress::{Progress, RunProgress};
use super::raw_engine::RawEngine;
use super::rounds::{Ratio, Rounds};
use super::runner;
use super::workload::{Rw, Workload};

/// Parameters of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct EnginesPlan {
    pub(crate) target: String,
    pub(crate) engines: Vec<EngineName>,
    pub(crate) rounds: usize,
    pub(crate) runtime: Duration,
    pub(crate) ramp_time: Duration,
    pub(crate) seed: u64,
    /// The serial number that allows writing.
    pub(crate) may_erase: Option<String>,
}

/// One engine's side.
#[derive(Debug)]
struct EngineSide {
    engine: EngineName,
    target: String,
    info: TargetInfo,
}

/// One workload with what each side made of it, in their order.
#[derive(Debug)]
struct EnginesRow {
    workload: Workload,
    sides: Vec<Rounds>,
}

impl EnginesRow {
    /// Whether nothing of it was measured.
    fn is_empty(&self) -> bool {
        self.sides.iter().all(|rounds| rounds.outcomes.is_empty())
    }

    /// The IOPS of a side by those of the first one.
    fn ratio(&self, at: usize) -> Option<Ratio> {
        let (first, side) = (self.sides.first()?, self.sides.get(at)?);
        let better = |a: f64, b: f64| (a > 0.0 && b > 0.0).then(|| b / a);
        let rounds = first.iops().0.into_iter().zip(side.iops().0);
        Some(Ratio {
            all: better(first.all_iops(), side.all_iops())?,
            rounds: rounds.filter_map(|(a, b)| better(a, b)).collect(),
        })
    }
}

/// A comparison and its results.
#[derive(Debug)]
pub(crate) struct EnginesComparison {
    plan: EnginesPlan,
    environment: Environment,
    sides: Vec<EngineSide>,
    /// Engines that had no turn, and why.
    pub(crate) left_out: Vec<(EngineName, String)>,
    /// The user ended it: some runs are missing, or cut short.
    pub(crate) interrupted: bool,
    rows: Vec<EnginesRow>,
}

fn open(plan: &EnginesPlan, target: &str) -> Result<Target> {
    let target = Target::open(
        target,
        &TargetOptions::new().read_only(plan.may_erase.is_none()),
    )?;
    match &plan.may_erase {
        Some(given) if *given != target.info().serial => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "--i-may-erase {given}: the serial number of {} is {}; nothing was written",
                target.info().target,
                target.info().serial
            ),
        )),
        _ => Ok(target),
    }
}

/// Where a target lies on its device.
fn place(info: &TargetInfo) -> (u64, u64, u32) {
    (info.start_bytes, info.capacity_bytes, info.lba_bytes)
}

/// Rejects sides that do not access the same blocks: one of them would be measured, and written,
/// elsewhere.
fn check_places(first: &TargetInfo, other: &TargetInfo) -> Result<()> {
    if place(first) == place(other) {
        return Ok(());
    }
    let words = |info: &TargetInfo| {
        format!(
            "{} begins at byte {} and has {} bytes in blocks of {}",
            info.target, info.start_bytes, info.capacity_bytes, info.lba_bytes
        )
    };
    let hint = if first.lba_bytes == other.lba_bytes {
        ""
    } else {
        "; for a file, give the block size of both by the option lba=512 or lba=4096"
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "the engines would not access the same blocks: {}, but {}{hint}; nothing was written",
            words(first),
            words(other)
        ),
    ))
}

/// The list that is run. Writes only where they are allowed.
fn workloads(plan: &EnginesPlan, info: &TargetInfo) -> Vec<Workload> {
    const K: usize = 1024;
    let small = (4 * K).max(info.lba_bytes as usize);
    let list = [
        ("random read, depth 1", Rw::Randread, small, 1),
        ("random read, depth 32", Rw::Randread, small, 32),
        ("random read, depth 128", Rw::Randread, small, 128),
        ("sequential read, depth 8", Rw::Read, 128 * K, 8),
        ("random write, depth 1", Rw::Randwrite, small, 1),
        ("random write, depth 32", Rw::Randwrite, small, 32),
    ];
    list.into_iter()
        .filter(|(_, rw, ..)| !rw.writes() || plan.may_erase.is_some())
        .enumerate()
        .map(|(index, (name, rw, block_bytes, iodepth))| Workload {
            name: format!("{}k {name}", block_bytes / K),
            rw,
            rwmixread: 0,
            block_bytes,
            iodepth,
            size_bytes: info.capacity_bytes,
            runtime: Some(plan.runtime),
            time_based: true,
            ramp_time: Some(plan.ramp_time),
            seed: mix(plan.seed ^ mix(index as u64)),
            ..Workload::default()
        })
        .collect()
}

/// The number of runs of workloads at most.
pub(crate) fn turns(plan: &EnginesPlan) -> u64 {
    let each = if plan.may_erase.is_some() { 6 } else { 4 };
    (plan.rounds * plan.engines.len()) as u64 * each
}

/// Runs the comparison. Nothing is written unless the plan allows it.
pub(crate) fn run(plan: EnginesPlan, progress: &Progress) -> Result<EnginesComparison> {
    let environment = Environment::gather();
    let spec = TargetSpec::parse(&plan.target)?;
    let (mut sides, mut left_out) = (Vec::new(), Vec::new());
    for &engine in &plan.engines {
        progress.message(format!("opening by {}", engine.name()));
        let target = match engine.target(&spec) {
            Ok(target) => target,
            Err(why) => {
                left_out.push((engine, why.to_owned()));
                continue;
            }
        };
        match open(&plan, &target) {
            Ok(opened) => sides.push(EngineSide {
                engine,
                target,
                info: opened.info().clone(),
            }),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                left_out.push((engine, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    let Some(first) = sides.first() else {
        let why: Vec<_> = left_out
            .iter()
            .map(|(engine, why)| format!("{}: {why}", engine.name()))
            .collect();
        return Err(Error::new(ErrorKind::Unsupported, why.join("; ")).on_device(plan.target));
    };
    for side in &sides {
        check_places(&first.info, &side.info)?;
    }
    let mut rows: Vec<EnginesRow> = workloads(&plan, &first.info)
        .into_iter()
        .map(|workload| EnginesRow {
            workload,
            sides: sides.iter().map(|_| Rounds::default()).collect(),
        })
        .collect();
    for round in 0..plan.rounds {
        for (at, side) in sides.iter().enumerate() {
            if interrupted().is_some() {
                break;
            }
            turn(&plan, round, at, side, &mut rows, progress)?;
        }
    }
    if rows.iter().all(EnginesRow::is_empty) {
        // Interrupted before anything was measured: there are no results to show.
        check_interrupted()?;
    }
    Ok(EnginesComparison {
        plan,
        environment,
        sides,
        left_out,
        interrupted: interrupted().is_some(),
        rows,
    })
}

/// One engine's turn: it opens the target, runs every workload and closes it again.
fn turn(
    plan: &EnginesPlan,
    round: usize,
    at: usize,
    side: &EngineSide,
    rows: &mut [EnginesRow],
    progress: &Progress,
) -> Result<()> {
    let target = open(plan, &side.target)?;
    // The partition table may have been changed meanwhile.
    check_places(&side.info, target.info())?;
    for row in rows {
        if interrupted().is_some() {
            break;
        }
        let name = side.engine.name();
        let what = format!("round {}, {name}: {}", round + 1, row.workload.name);
        let each = plan.runtime + plan.ramp_time;
        let run = RunProgress::new(progress, what, row.workload.block_bytes, each);
        let mut workload = row.workload.clone();
        // Other offsets each round, the same for every engine.
        workload.seed = mix(workload.seed ^ round as u64);
        let (depth, block_bytes) = (workload.iodepth, workload.block_bytes);
        let outcome = runner::run(&workload, &|ios| run.tick(ios), |_| {
            RawEngine::new(&target, depth, block_bytes)
        })
        .map_err(|error| error.on_device(side.target.as_str()))?;
        row.sides[at].outcomes.push(outcome);
        row.sides[at].engine.clone_from(&side.info.engine);
        progress.add(1);
    }
    Ok(())
}

impl EnginesComparison {
    /// The table for a terminal: all rounds together, and the least and most of them.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        if self.interrupted {
            text.push_str("INTERRUPTED: results so far\n");
        }
        let mut stable = true;
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.workload.name);
            for (at, (side, rounds)) in self.sides.iter().zip(&row.sides).enumerate() {
                if rounds.outcomes.is_empty() {
                    continue;
                }
                let (least, most) = rounds.iops().spread();
                let ratio = row.ratio(at);
                stable &= ratio.as_ref().is_none_or(Ratio::is_stable);
                let _ = writeln!(
                    text,
                    "  {:<8}{:>9} IOPS ({} .. {}){:>10} p50{:>10} p99{:>13}{}",
                    side.engine.name(),
                    count_text(rounds.all_iops()),
                    count_text(least),
                    count_text(most),
                    time_text(rounds.all_percentile_ns(50.0)),
                    time_text(rounds.all_percentile_ns(99.0)),
                    ratio.map_or("-".into(), |ratio| ratio.to_string()),
                    if rounds.interrupted() {
                        " (interrupted)"
                    } else {
                        ""
                    },
                );
            }
        }
        for side in &self.sides {
            let _ = writeln!(
                text,
                "{}: {}, {} ({}; waiting by {}; controller: {})",
                side.engine.name(),
                side.target,
                side.info.engine,
                side.info.memory,
                side.info.wait,
                side.info.controller
            );
        }
        let _ = writeln!(
            text,
            "All of {} rounds together, with the least and the most. Ratios: IOPS by those of {}.",
            self.plan.rounds,
            self.sides.first().map_or("none", |side| side.engine.name())
        );
        if !stable {
            text.push_str(
                "A range is that of the rounds, which differ widely: no stable difference shown.\n",
            );
        }
        text
    }

    /// Everything for a script.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        let sides: Vec<Value> = self
            .sides
            .iter()
            .map(|side| {
                json!({
                    "engine": side.engine.name(),
                    "target": side.target,
                    "hugepages": side.info.memory == "hugepages",
                    "info": side.info,
                })
            })
            .collect();
        let left_out: Vec<Value> = self
            .left_out
            .iter()
            .map(|(engine, why)| json!({ "engine": engine.name(), "reason": why }))
            .collect();
        json!({
            "xtent version": self.environment.xtent,
            "environment": self.environment,
            "interrupted": self.interrupted,
            "target": self.plan.target,
            "rounds": self.plan.rounds,
            "runtime": self.plan.runtime.as_secs_f64(),
            "ramp_time": self.plan.ramp_time.as_secs_f64(),
            "seed": self.plan.seed,
            "engines": sides,
            "skipped": left_out,
            "workloads": rows,
        })
    }

    fn row_json(&self, row: &EnginesRow) -> Value {
        let mut engines = serde_json::Map::new();
        for (at, (side, rounds)) in self.sides.iter().zip(&row.sides).enumerate() {
            let (least, most) = rounds.iops().spread();
            let value = json!({
                "all": rounds.all_json(),
                "iops_ratio": row.ratio(at).map(|ratio| ratio.json()),
                "median": {
                    "iops": rounds.iops().median(),
                    "p50_ns": rounds.percentile_ns(50.0).median(),
                    "p99_ns": rounds.percentile_ns(99.0).median(),
                },
                "iops_spread": [least, most],
                "rounds": rounds.json(),
            });
            engines.insert(side.engine.name().to_owned(), value);
        }
        json!({
            "name": row.workload.name,
            "job options": row.workload,
            "engines": engines,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_access_the_same_blocks_or_none() {
        let info = |options: &str| {
            let options = format!("ram:2M,inline{options}");
            let target = Target::open(&options, &TargetOptions::new()).unwrap();
            target.info().clone()
        };
        let whole = info("");
        check_places(&whole, &info(",readonly")).unwrap();
        for other in [",offset=1M", ",lba=4096"] {
            let error = check_places(&whole, &info(other)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(error.to_string().contains("lba=512"), other == ",lba=4096");
        }
        let smaller = TargetInfo {
            capacity_bytes: whole.capacity_bytes - 4096,
            ..whole.clone()
        };
        check_places(&whole, &smaller).unwrap_err();
    }
}

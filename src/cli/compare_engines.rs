//! `xtent compare --engines`: engines beside each other on one target.

use std::io::Write;

use xtent::ErrorKind;
use xtent::internals::sys::end_within;

use super::compare_args::CompareArgs;
use super::failure::{Failure, check_interrupted, complain};
use crate::bench::engines::{EnginesPlan, run as compare, turns};
use crate::bench::progress::Progress;

pub(super) fn run(args: &CompareArgs, target: &str) -> Result<(), Failure> {
    let plan = EnginesPlan {
        target: target.to_owned(),
        engines: args.engines.clone(),
        rounds: usize::from(args.rounds),
        runtime: args.runtime,
        ramp_time: args.ramp_time,
        seed: args.seed,
        may_erase: args.i_may_erase.clone(),
    };
    // Results are shown also after an interruption.
    end_within(10);
    let progress = Progress::steps(turns(&plan));
    let comparison = compare(plan, &progress);
    drop(progress);
    if comparison.is_err() {
        check_interrupted()?;
    }
    let comparison = comparison.map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => error.into(),
        _ => Failure::target(error),
    })?;
    for (engine, why) in &comparison.left_out {
        complain(&format!("note: {} is skipped: {why}", engine.name()));
    }
    let mut out = super::output::results(None)?;
    match &args.json {
        Some(path) if path.as_os_str() == "-" => {
            super::output::write_json(&mut out, &comparison.json())?
        }
        Some(path) => {
            super::output::write_file(path, &format!("{:#}\n", comparison.json()))?;
            write!(out, "{}", comparison.table())?;
        }
        None => write!(out, "{}", comparison.table())?,
    }
    out.flush()?;
    if comparison.interrupted {
        check_interrupted()?;
    }
    Ok(())
}

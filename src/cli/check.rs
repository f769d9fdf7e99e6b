//! `xtent check`.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};
use xtent::internals::check_target;
use xtent::internals::xfs::check::{CheckOptions, CheckReport, Finding};
use xtent::target::{ControllerMode, Target};

use super::TargetArg;
use super::failure::{Failure, OPERATION};
use super::output::print_json;

#[derive(Debug, Args)]
#[command(
    after_help = "The target is only read. A log that holds changes is replayed into memory first; with the \
    target option norecovery the state without it is checked. Prints a line for each finding, then a summary. \
    Not checked: quotas, and the files of a realtime section. Repair is left to xfs_repair.\n\n\
    --json prints an object with `target`, `is_clean`, `findings` (each with `what`, and `group`, `inode` and \
    `addr_bytes` where known), `more_findings` and the figures of the summary.\n\n\
    Exit status: 0 when nothing was found, 1 when something was; otherwise as for every command (see \
    `xtent --help`).\n\n\
    Example: xtent check image:disk.img"
)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The most findings to print
    #[arg(long, default_value_t = CheckOptions::default().most_findings, value_name = "N")]
    findings: usize,
    /// Print the findings only
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "what": finding.what,
        "group": finding.group,
        "inode": finding.inode,
        "addr_bytes": finding.addr_bytes,
    })
}

fn plural(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}

fn summary(report: &CheckReport) -> String {
    let parts = [
        plural(
            report.groups.into(),
            "allocation group",
            "allocation groups",
        ),
        plural(report.inodes, "inode", "inodes"),
        plural(report.directories, "directory", "directories"),
        plural(report.extents, "extent", "extents"),
        plural(report.free_blocks, "free block", "free blocks"),
    ];
    let found = (report.findings.len() as u64).saturating_add(report.more_findings);
    let verdict = match found {
        0 => "clean".to_owned(),
        found => plural(found, "finding", "findings"),
    };
    format!("{verdict}: {}", parts.join(", "))
}

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    args.target.check()?;
    let options = super::reading().controller(ControllerMode::Inline);
    let target = Target::open(&args.target.target, &options).map_err(Failure::target)?;
    let options = CheckOptions {
        most_findings: args.findings,
        ..CheckOptions::default()
    };
    let report = check_target(&target, &options).map_err(Failure::target)?;
    if args.json {
        let findings: Vec<_> = report.findings.iter().map(finding_json).collect();
        print_json(&json!({
            "target": target.info().target,
            "is_clean": report.is_clean(),
            "findings": findings,
            "more_findings": report.more_findings,
            "log_was_dirty": report.log_was_dirty,
            "replayed_checkpoints": report.replayed_checkpoints,
            "groups": report.groups,
            "inodes": report.inodes,
            "directories": report.directories,
            "extents": report.extents,
            "free_blocks": report.free_blocks,
        }))?;
    } else {
        print_text(args, &report)?;
    }
    match report.is_clean() {
        true => Ok(()),
        false => Err(Failure::silent(OPERATION)),
    }
}

fn print_text(args: &CheckArgs, report: &CheckReport) -> Result<(), Failure> {
    let mut out = super::output::text_stdout()?;
    if report.replayed_checkpoints > 0 && !args.quiet {
        let count = plural(report.replayed_checkpoints, "checkpoint", "checkpoints");
        writeln!(out, "the log held changes: {count} replayed into memory")?;
    }
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    if report.more_findings > 0 {
        writeln!(out, "{} more findings", report.more_findings)?;
    }
    if !args.quiet {
        writeln!(out, "{}", summary(report))?;
    }
    Ok(out.flush()?)
}

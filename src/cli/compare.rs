//! `xtent compare`.

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use xtent::sys::{LoopOptions, is_root, private_mounts};
use xtent::volume::ControllerMode;

use super::LocalPath;
use super::failure::{CORRUPT, Failure, check_interrupted, complain};
use super::values::time;
use crate::bench::compare::{Plan, Side, run as compare};
use crate::bench::environment::Environment;
use crate::bench::progress::Progress;
use crate::bench::{image, page, report};

#[derive(Debug, Args)]
#[command(
    after_help = "The same list of workloads runs on the kernel's xfs (a loop mount of the image, \
    O_DIRECT, psync at depth 1 and io_uring above; needs root, and is left out without) and on xtent over \
    its embedded controller, in turns, on the same files at the same offsets. Neither side is a disk: both \
    end in the page cache; the report says what stands behind each.\n\n\
    Afterwards each side checks what the other wrote, the file that is only read must be unchanged, and \
    xfs_repair -n must find the image clean. The mount is private to the process and ends with it, even \
    when it is killed.\n\n\
    Example: xtent compare --image disk.img --report report.html"
)]
pub(super) struct CompareArgs {
    /// An XFS image, not in use; without it a temporary one is made by mkfs.xfs
    #[arg(long, value_name = "FILE")]
    image: Option<LocalPath>,
    /// The file of the image that is read
    #[arg(long, value_name = "PATH", default_value = image::READ_FILE)]
    read_file: String,
    /// The file of the image that is OVERWRITTEN
    #[arg(long, value_name = "PATH", default_value = image::WRITE_FILE)]
    write_file: String,
    /// Writes a report as one HTML page
    #[arg(long, value_name = "FILE.html")]
    report: Option<LocalPath>,
    /// Writes everything as JSON (`-` for standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<LocalPath>,
    /// How often each side has its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// How long each workload runs in each turn
    #[arg(long, default_value = "2", value_parser = time)]
    runtime: Duration,
    /// How long it runs before that without being measured
    #[arg(long, default_value = "0.2", value_parser = time)]
    ramp_time: Duration,
    /// What the offsets follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leaves the kernel's side out
    #[arg(long)]
    no_kernel: bool,
    /// Lets the loop device read the image past the page cache
    #[arg(long)]
    loop_direct_io: bool,
    /// The loop device's sector size in bytes
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(512..=4096))]
    loop_sector_size: u32,
    /// Who does the embedded controller's work: the thread that waits (inline), as the kernel's loop device
    /// does where it can, or a thread of its own (threaded), which needs a CPU more
    #[arg(long, value_enum, default_value = "inline")]
    controller: Controller,
    /// Options for xtent's target, such as lba=4096,mdts=5 (`inline` and `threaded` by --controller)
    #[arg(long, value_name = "OPTIONS")]
    target_options: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Controller {
    Inline,
    Threaded,
}

pub(super) fn run(args: &CompareArgs) -> Result<(), Failure> {
    if let Some(warning) = Environment::gather().warning() {
        complain(&format!("warning: {warning}"));
    }
    let leave_kernel_out = why_not_kernel(args);
    let (scratch, path) = match &args.image {
        Some(path) => (None, path.clone()),
        None => {
            complain("note: no --image was given: making a temporary one");
            let (scratch, path) = image::make().map_err(Failure::target)?;
            (Some(scratch), path)
        }
    };
    let plan = plan(args, path, leave_kernel_out);
    let progress = Progress::steps(u64::from(args.rounds) * 14);
    let comparison = compare(plan, &progress);
    drop(progress);
    drop(scratch);
    check_interrupted()?;
    let comparison = comparison?;
    if let Some(reason) = &comparison.plan.leave_kernel_out {
        complain(&format!("note: the kernel's side is left out: {reason}"));
    }
    let mut out = std::io::stdout().lock();
    let json_to_stdout = args
        .json
        .as_ref()
        .is_some_and(|path| path.as_os_str() == "-");
    if json_to_stdout {
        writeln!(out, "{:#}", report::json(&comparison))?;
    } else {
        print(&mut out, &comparison)?;
    }
    out.flush()?;
    if let Some(path) = args.json.as_ref().filter(|_| !json_to_stdout) {
        write(path, &format!("{:#}\n", report::json(&comparison)))?;
    }
    if let Some(path) = &args.report {
        write(path, &page::html(&comparison)?)?;
        complain(&format!("the report is in {}", path.display()));
    }
    if comparison.good() {
        Ok(())
    } else {
        Err(Failure::new(
            CORRUPT,
            "a check of the contents failed; see above",
        ))
    }
}

fn plan(args: &CompareArgs, image: LocalPath, leave_kernel_out: Option<String>) -> Plan {
    let options = args.target_options.as_deref().unwrap_or_default();
    Plan {
        image,
        target_options: if options.is_empty() {
            String::new()
        } else {
            format!(",{options}")
        },
        read_file: args.read_file.clone(),
        write_file: args.write_file.clone(),
        rounds: usize::from(args.rounds),
        runtime: args.runtime,
        ramp_time: args.ramp_time,
        seed: args.seed,
        loop_options: LoopOptions {
            sector_bytes: args.loop_sector_size,
            direct_io: args.loop_direct_io,
        },
        controller: match args.controller {
            Controller::Inline => ControllerMode::Inline,
            Controller::Threaded => ControllerMode::Threaded,
        },
        leave_kernel_out,
    }
}

fn why_not_kernel(args: &CompareArgs) -> Option<String> {
    if args.no_kernel {
        return Some("--no-kernel was given".into());
    }
    if !is_root() {
        return Some("mounting needs root: run it as root to compare with the kernel".into());
    }
    // Not fatal: the mount is then visible to others, and still ended with the comparison.
    if let Err(error) = private_mounts() {
        complain(&format!("note: no private mounts: {error}"));
    }
    None
}

fn print(
    out: &mut impl Write,
    comparison: &crate::bench::compare::Comparison,
) -> std::io::Result<()> {
    write!(out, "{}", report::table(comparison))?;
    if comparison.has_kernel() {
        writeln!(
            out,
            "\nkernel: {}",
            report::behind(comparison, Side::Kernel)
        )?;
    }
    writeln!(out, "xtent:  {}", report::behind(comparison, Side::Xtent))?;
    writeln!(out, "{}", report::meaning(comparison))?;
    for check in &comparison.checks {
        let word = if check.good { "ok" } else { "FAILED" };
        writeln!(out, "{word}: {} ({})", check.what, check.result)?;
    }
    Ok(())
}

fn write(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::local("cannot write", path, error))
}

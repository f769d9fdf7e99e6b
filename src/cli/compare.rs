//! `xtent compare`.

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use xtent::internals::sys::{
    LoopOptions, catch_interrupts, end_within, hold_interrupts, is_root, private_mounts,
};
use xtent::internals::target::{TargetKind, TargetSpec};
use xtent::target::{ControllerMode, TargetInfo};

use super::LocalPath;
use super::failure::{CORRUPT, Failure, TARGET, USAGE, check_interrupted, complain};
use super::values::{size, time};
use crate::bench::compare::{Comparison, Side, run as compare};
use crate::bench::compare_run::Plan;
use crate::bench::disk::DiskSpec;
use crate::bench::engine_name::EngineName;
use crate::bench::environment::Environment;
use crate::bench::medium::{ImageSpec, MediumSpec};
use crate::bench::nvme_sysfs::{Places, SysfsController};
use crate::bench::progress::Progress;
use crate::bench::{image, page, report};

const AFTER_HELP: &str = "\
The same list of workloads runs on the kernel's XFS (O_DIRECT; psync at depth 1 and io_uring above)
and on xtent, in alternating rounds, on the same files at the same offsets. The report describes the
method of each side. Afterwards each side checks what the other wrote, the file that is only read
must be unchanged, and xfs_repair -n must find the filesystem clean.

With --image (or neither): a loop mount for the kernel, the embedded controller for xtent. Neither
is a disk: both end in the page cache. The kernel's side needs root; otherwise it is skipped with a
notice.

With --device: an NVMe disk, which is ERASED. It must be bound to the kernel's driver, not in use,
behind an IOMMU; needs root. The kernel's rounds use its own driver, xtent's use VFIO on the same
controller. At the end, after an error and when interrupted the disk goes back to the kernel's
driver; after a SIGKILL the next comparison gives it back, or: vfio-setup.sh reset ADDRESS.

Figures and ratios are of all rounds together. Where the rounds differ widely their range is shown:
no stable difference. Ctrl-C ends the comparison and shows the results so far, marked as
interrupted; the exit status is 130.

Mounts are private to the process and end with it, even when it is killed.

Examples:
  xtent compare --image disk.img --report report.html
  xtent compare --device 0000:01:00.0 --i-may-erase S5GXNX0R --report report.html
  xtent compare --engines native,spdk --target pci:0000:01:00.0";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CompareArgs {
    /// An XFS image that is not in use [default: a temporary one, made by mkfs.xfs]
    #[arg(long, value_name = "FILE")]
    image: Option<LocalPath>,
    /// The PCI address of an NVMe disk, with a namespace where there are several; it is ERASED
    #[arg(long, value_name = "ADDRESS[/NSID]", requires = "i_may_erase")]
    #[arg(conflicts_with_all = ["image", "read_file", "write_file", "no_kernel"])]
    #[arg(conflicts_with_all = ["loop_direct_io", "loop_sector_size", "controller"])]
    device: Option<String>,
    /// The serial number of that disk, or of the target of --engines, which confirms that it may
    /// be erased
    #[arg(long, value_name = "SERIAL", conflicts_with = "image")]
    pub(super) i_may_erase: Option<String>,
    /// Compare engines on the blocks of one target, without a filesystem; it is only read, unless
    /// --i-may-erase names its serial number
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        requires = "target"
    )]
    pub(super) engines: Vec<EngineName>,
    /// The target of --engines (see `xtent --help`)
    #[arg(long, value_name = "TARGET", requires = "engines")]
    #[arg(conflicts_with_all = ["image", "device", "read_file", "write_file", "no_kernel", "report"])]
    #[arg(conflicts_with_all = ["loop_direct_io", "loop_sector_size", "controller", "target_options"])]
    target: Option<String>,
    /// Bytes of each of the two files made on that disk [default: 1g, less on a small disk]
    #[arg(long, value_name = "SIZE", requires = "device", value_parser = size)]
    file_size: Option<u64>,
    /// The file of the image that is read
    #[arg(long, value_name = "PATH", default_value = image::READ_FILE)]
    read_file: String,
    /// The file of the image that is OVERWRITTEN
    #[arg(long, value_name = "PATH", default_value = image::WRITE_FILE)]
    write_file: String,
    /// Write a report as one HTML page
    #[arg(long, value_name = "FILE.html")]
    report: Option<LocalPath>,
    /// Write all results as JSON (`-` for standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<LocalPath>,
    /// The number of rounds of each side
    #[arg(long, visible_alias = "alternate", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(super) rounds: u16,
    /// The measured time of each workload in each round
    #[arg(long, default_value = "2", value_parser = time)]
    pub(super) runtime: Duration,
    /// Run for this long before measuring
    #[arg(long, default_value = "0.2", value_parser = time)]
    pub(super) ramp_time: Duration,
    /// Use the page caches of both sides: pread and pwrite without O_DIRECT, and xtent's own cache.
    /// Both files are cached completely before anything is measured, unless --memory limits it
    #[arg(long, conflicts_with = "engines")]
    buffered: bool,
    /// Make written data durable after every N writes, on both sides
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        conflicts_with = "engines"
    )]
    fsync: u64,
    /// The memory for caching on each side: the size of xtent's page cache, and the limit of a
    /// cgroup (v2) for the kernel's side, which includes what the loop device caches of the image
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "buffered")]
    memory: Option<u64>,
    /// The seed of the offsets
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Skip the kernel's side
    #[arg(long)]
    no_kernel: bool,
    /// Let the loop device bypass the page cache
    #[arg(long)]
    loop_direct_io: bool,
    /// The loop device's sector size in bytes
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(512..=4096))]
    loop_sector_size: u32,
    /// The thread that runs the embedded controller: the one that waits (inline), as the kernel's
    /// loop device does where it can, or one of its own (threaded), which needs another CPU
    #[arg(long, value_enum, default_value = "inline")]
    controller: Controlled,
    /// Options for xtent's target, such as lba=4096,mdts=5 (`inline` and `threaded` by
    /// --controller)
    #[arg(long, value_name = "OPTIONS")]
    target_options: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Controlled {
    Inline,
    Threaded,
}

pub(super) fn run(args: &CompareArgs) -> Result<(), Failure> {
    if let Some(warning) = Environment::gather().warning() {
        complain(&format!("warning: {warning}"));
    }
    if let Some(target) = &args.target {
        return super::compare_engines::run(args, target);
    }
    if args.i_may_erase.is_some() && args.device.is_none() {
        return Err(Failure::new(
            USAGE,
            "--i-may-erase goes with --device or with --engines",
        ));
    }
    let comparison = match &args.device {
        Some(device) => on_disk(args, device)?,
        None => on_image(args)?,
    };
    if let Some(reason) = &comparison.kernel_unlimited {
        complain(&format!(
            "note: the kernel's page cache is not limited by --memory: {reason}"
        ));
    }
    if let Some(reason) = &comparison.plan.leave_kernel_out {
        complain(&format!("note: the kernel's side is skipped: {reason}"));
    }
    if let Some(warning) = comparison.load().warning(comparison.environment.cpus) {
        complain(&format!("warning: {warning}"));
    }
    let mut out = super::output::results(None)?;
    let json_to_stdout = args
        .json
        .as_ref()
        .is_some_and(|path| path.as_os_str() == "-");
    if json_to_stdout {
        super::output::write_json(&mut out, &report::json(&comparison))?;
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
    if comparison.interrupted {
        check_interrupted()?;
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

fn on_image(args: &CompareArgs) -> Result<Comparison, Failure> {
    let leave_kernel_out = why_not_kernel(args);
    end_within(10);
    let (scratch, path) = match &args.image {
        Some(path) => (None, path.clone()),
        None => {
            complain("note: no --image was given: making a temporary one");
            let (scratch, path) = image::make().map_err(Failure::target)?;
            (Some(scratch), path)
        }
    };
    let on = MediumSpec::Image(ImageSpec {
        path,
        target_options: target_options(args),
        loop_options: LoopOptions {
            sector_bytes: args.loop_sector_size,
            direct_io: args.loop_direct_io,
        },
        controller: match args.controller {
            Controlled::Inline => ControllerMode::Inline,
            Controlled::Threaded => ControllerMode::Threaded,
        },
    });
    let comparison = measure(plan(args, on, leave_kernel_out));
    drop(scratch);
    if comparison.is_err() {
        check_interrupted()?;
    }
    Ok(comparison?)
}

fn on_disk(args: &CompareArgs, device: &str) -> Result<Comparison, Failure> {
    let target = format!("pci:{}", device.trim_start_matches("pci:"));
    let TargetKind::Pci { address, nsid } = TargetSpec::parse(&target)?.kind else {
        return Err(Failure::new(
            USAGE,
            format!("`{device}` is not a PCI address"),
        ));
    };
    if !is_root() {
        return Err(Failure::new(
            TARGET,
            "comparing on a disk needs root: it makes a filesystem, mounts it and moves the disk between drivers",
        ));
    }
    private_mounts().map_err(|error| {
        let text = format!("no private mounts, and others shall not see the disk's: {error}");
        Failure::new(TARGET, text)
    })?;
    // The disk is given back before the process ends.
    hold_interrupts();
    let on = MediumSpec::Disk(DiskSpec {
        address,
        nsid,
        serial: args.i_may_erase.clone().unwrap_or_default(),
        file_bytes: args.file_size,
        target_options: target_options(args),
    });
    let comparison = measure(plan(args, on, None));
    // The disk was given back.
    catch_interrupts();
    if comparison
        .as_ref()
        .map_or(true, |comparison| comparison.interrupted)
    {
        let driver = SysfsController::look_up(Places::default(), address).ok();
        if let Some(driver) = driver.and_then(|controller| controller.driver()) {
            complain(&format!("note: {address} is with the driver {driver}"));
        }
    }
    if comparison.is_err() {
        check_interrupted()?;
    }
    comparison.map_err(Failure::target)
}

fn measure(plan: Plan) -> xtent::Result<Comparison> {
    let sides = if plan.leave_kernel_out.is_none() {
        2
    } else {
        1
    };
    let progress = Progress::steps(plan.rounds as u64 * 7 * sides);
    compare(plan, &progress)
}

/// As they follow a target.
fn target_options(args: &CompareArgs) -> String {
    match args.target_options.as_deref() {
        None | Some("") => String::new(),
        Some(options) => format!(",{options}"),
    }
}

fn plan(args: &CompareArgs, on: MediumSpec, leave_kernel_out: Option<String>) -> Plan {
    Plan {
        on,
        read_file: args.read_file.clone(),
        write_file: args.write_file.clone(),
        rounds: usize::from(args.rounds),
        runtime: args.runtime,
        ramp_time: args.ramp_time,
        seed: args.seed,
        leave_kernel_out,
        buffered: args.buffered,
        fsync: args.fsync,
        memory_bytes: args.memory,
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

fn print(out: &mut impl Write, comparison: &Comparison) -> std::io::Result<()> {
    if comparison.interrupted {
        writeln!(
            out,
            "INTERRUPTED: results so far; not all contents were checked"
        )?;
    }
    write!(out, "{}", report::table(comparison))?;
    write!(out, "{}", report::spread(comparison))?;
    if comparison.has_kernel() {
        writeln!(
            out,
            "\nkernel: {}",
            report::behind(comparison, Side::Kernel)
        )?;
    }
    writeln!(out, "xtent:  {}", report::behind(comparison, Side::Xtent))?;
    writeln!(out, "{}", mode(&comparison.volume.target))?;
    writeln!(out, "{}", report::meaning(comparison))?;
    for check in &comparison.checks {
        let word = if check.good { "ok" } else { "FAILED" };
        writeln!(out, "{word}: {} ({})", check.what, check.result)?;
    }
    Ok(())
}

/// The mode of xtent's side, in the words of `xtent bench`.
fn mode(target: &TargetInfo) -> String {
    format!(
        "xtent's target: {}: {}; memory: {}{}; waiting by {}; controller: {}",
        target.target,
        target.engine,
        target.memory,
        if target.memory == "hugepages" {
            ""
        } else {
            " (no hugepages)"
        },
        super::output::waiting(&target.wait),
        super::output::controller_text(&target.controller),
    )
}

pub(super) fn write(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::local("cannot write", path, error))
}

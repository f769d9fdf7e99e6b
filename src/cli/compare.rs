//! `xtent compare`.

use std::io::Write;

use xtent::internals::sys::{
    LoopOptions, catch_interrupts, end_within, hold_interrupts, is_root, private_mounts,
};
use xtent::internals::target::{TargetKind, TargetSpec};
use xtent::target::{ControllerMode, TargetInfo};

use super::compare_args::{CompareArgs, Controlled};
use super::failure::{CORRUPT, Failure, TARGET, USAGE, check_interrupted, complain};
use crate::bench::compare::{Comparison, Side, run as compare};
use crate::bench::compare_plan::Plan;
use crate::bench::disk::DiskSpec;
use crate::bench::environment::Environment;
use crate::bench::medium::{ImageSpec, MediumSpec};
use crate::bench::nvme_sysfs::{Places, SysfsController};
use crate::bench::progress::Progress;
use crate::bench::{compare_workloads, image, page, report};

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
    for row in &comparison.rows {
        if let Some(why) = &row.unsupported {
            complain(&format!("note: {}: {why}", row.workload.name));
        }
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
        super::output::write_file(path, &format!("{:#}\n", report::json(&comparison)))?;
    }
    if let Some(path) = &args.report {
        super::output::write_file(path, &page::html(&comparison)?)?;
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
    let workloads = compare_workloads::count(&plan) as u64;
    let progress = Progress::steps(plan.rounds as u64 * workloads * sides);
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
        grow_file: args.grow_file.clone(),
        sets: args.workloads.clone(),
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

//! A comparison as a table for the terminal and as JSON; [`super::page`] makes the page of it.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use xtent::target::ControllerMode;

use super::compare::{Comparison, Side};
use super::figures::{Figure, IOPS, P50, P99, P99_9, advantage};
use super::medium::MediumSpec;
use super::rounds::{Ratio, Rounds, RoundsRow};

/// The method of a side: software, device and memory.
pub(crate) fn behind(comparison: &Comparison, side: Side) -> String {
    let mut text = beneath(comparison, side);
    let Some(cache) = comparison.cache else {
        return text;
    };
    let _ = match side {
        Side::Xtent => write!(
            text,
            " Files through xtent's page cache of {} MiB of the same memory, at most {} % of it dirty.",
            cache.bytes >> 20,
            cache.dirty_percent
        ),
        Side::Kernel => match (comparison.plan.memory_bytes, &comparison.kernel_unlimited) {
            (Some(bytes), None) => write!(
                text,
                " Limited to {} MiB by a cgroup, including cached pages of the image.",
                bytes >> 20
            ),
            (Some(_), Some(why)) => write!(text, " Its page cache was NOT limited: {why}."),
            (None, _) => write!(text, " Its page cache is not limited."),
        },
    };
    text
}

/// The method of a side, without the page cache.
fn beneath(comparison: &Comparison, side: Side) -> String {
    let engines = if comparison.plan.buffered {
        BUFFERED_ENGINE
    } else {
        KERNEL_ENGINES
    };
    let target = &comparison.volume.target;
    let memory = &target.memory;
    match (&comparison.plan.on, side) {
        (MediumSpec::Image(image), Side::Kernel) => {
            let (direct, through) = if image.loop_options.direct_io {
                ("on", "with direct I/O, bypassing the page cache")
            } else {
                ("off", "through the page cache")
            };
            format!(
                "The kernel's XFS, mounted from a loop device over the image file (sector size {} bytes, \
                 direct-io {direct}). {engines} The loop driver reads and writes the image {through}.",
                image.loop_options.sector_bytes,
            )
        }
        (MediumSpec::Image(image), Side::Xtent) => format!(
            "xtent's own XFS and polled NVMe driver, in this process, in front of an embedded NVMe \
             controller: {} carries out the commands by pread() and pwrite() on the image file, through the \
             page cache. It is not a disk. Memory: {memory}.",
            match image.controller {
                ControllerMode::Inline => "the thread that waits for a command",
                ControllerMode::Threaded => "another thread of this process",
            },
        ),
        (MediumSpec::Disk(_), Side::Kernel) => format!(
            "The kernel's nvme driver and its xfs on {}. {engines} The disk interrupts when it is done.",
            comparison.medium.name
        ),
        (MediumSpec::Disk(disk), Side::Xtent) => format!(
            "xtent's own XFS and polled NVMe driver, in this process, on the same controller over VFIO \
             (pci:{}). Memory: {memory}.",
            disk.address
        ),
    }
}

const KERNEL_ENGINES: &str = "Files opened with O_DIRECT; pread and pwrite at depth 1, io_uring with \
    registered file and buffers above.";

const BUFFERED_ENGINE: &str =
    "Files opened without O_DIRECT; pread and pwrite through the page cache.";

/// The meaning of the figures, and their limits.
pub(crate) fn meaning(comparison: &Comparison) -> String {
    if comparison.plan.buffered {
        return match comparison.plan.memory_bytes {
            None => BUFFERED_MEANING.into(),
            Some(_) => format!(
                "{BUFFERED_MEANING} The cache may be smaller than the files: misses are read from the \
                 device."
            ),
        };
    }
    let image = match &comparison.plan.on {
        MediumSpec::Image(image) => image,
        MediumSpec::Disk(_) => return meaning_on_disk(comparison),
    };
    format!(
        "No disk is measured: both sides end in copies from and to the page cache of this machine. \
         The comparison is of the software between a program and its data: system calls, filesystem, \
         block layer and loop driver for the kernel; XFS code, queue pair and embedded controller for \
         xtent. xtent polls: it keeps {} busy all the time, where the kernel sleeps while it waits.",
        match image.controller {
            ControllerMode::Inline => "a CPU",
            ControllerMode::Threaded => "two CPUs",
        }
    )
}

fn meaning_on_disk(comparison: &Comparison) -> String {
    let mut text = String::from(
        "Both sides drive the same controller and end in the same blocks of the same files. The \
         comparison is of the software between a program and the disk: system calls, filesystem, block \
         layer, driver and interrupts for the kernel; XFS code and queue pair for xtent. xtent polls: it \
         keeps a CPU busy all the time, where the kernel sleeps while it waits.",
    );
    if comparison.volume.target.model.contains("QEMU") {
        text.push_str(
            " This controller is QEMU's, which is software: times and IOPS are not those of a disk, and \
             ratios will differ on one.",
        );
    }
    text
}

const BUFFERED_MEANING: &str = "Both sides keep the files in a page cache and copy the bytes of each operation \
    once. The comparison is of cached access: a system call and a page lookup for the kernel, a lookup in \
    its own memory for xtent; and of writeback.";

/// The figures of the table on a terminal.
const FIGURES: [Figure; 3] = [P50, P99, IOPS];

/// The table for a terminal.
pub(crate) fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    let both = comparison.has_kernel();
    let _ = write!(text, "{:<31}", "");
    for figure in &FIGURES {
        if both {
            let _ = write!(text, " |{:>9}{:>9}{:>13}", "kernel", "xtent", figure.name);
        } else {
            let _ = write!(text, " |{:>9} {:>4}", "xtent", figure.name);
        }
    }
    text.push('\n');
    let mut stable = true;
    for row in &comparison.rows {
        let cut = row.kernel.interrupted() || row.xtent.interrupted();
        let name = format!("{}{}", row.workload.name, if cut { "*" } else { "" });
        let _ = write!(text, "{name:<31}");
        for figure in &FIGURES {
            let xtent = value_text(figure, &row.xtent);
            if both {
                let kernel = value_text(figure, &row.kernel);
                let ratio = advantage(figure, row);
                stable &= ratio.as_ref().is_none_or(Ratio::is_stable);
                let ratio = ratio.map_or("-".into(), |ratio| ratio.to_string());
                let _ = write!(text, " |{kernel:>9}{xtent:>9}{ratio:>13}");
            } else {
                let _ = write!(text, " |{xtent:>9} {:>4}", "");
            }
        }
        text.push('\n');
    }
    if comparison
        .rows
        .iter()
        .any(|row| row.kernel.interrupted() || row.xtent.interrupted())
    {
        text.push_str("* interrupted: this run is shorter than the others.\n");
    }
    if both {
        text.push_str(
            "Figures of all rounds together. Ratios: how many times better xtent is (latency shorter, IOPS more).\n",
        );
        if !stable {
            text.push_str(
                "A range is that of the rounds, which differ widely: no stable difference shown.\n",
            );
        }
        if comparison.plan.rounds < 2 {
            text.push_str("One round: its spread is not known.\n");
        }
    }
    text
}

/// A figure of all rounds together; a dash without any.
fn value_text(figure: &Figure, rounds: &Rounds) -> String {
    if rounds.outcomes.is_empty() {
        return "-".into();
    }
    (figure.text)((figure.all)(rounds))
}

/// The spread of the rounds: the lowest and the highest figure of each side.
pub(crate) fn spread(comparison: &Comparison) -> String {
    let mut text = String::new();
    if comparison.plan.rounds < 2 {
        return text;
    }
    let _ = writeln!(
        text,
        "Lowest and highest of {} rounds:",
        comparison.plan.rounds
    );
    for row in &comparison.rows {
        let _ = write!(text, "{:<30}", row.workload.name);
        for figure in [P50, IOPS] {
            let _ = write!(text, " | {:<4}", figure.name);
            for (name, side) in [("kernel", &row.kernel), ("xtent", &row.xtent)] {
                if !side.outcomes.is_empty() {
                    let (lowest, highest) = (figure.of)(side).spread();
                    let [from, to] = [lowest, highest].map(figure.text);
                    let _ = write!(text, "{name:>7}{from:>8} ..{to:>8}");
                }
            }
        }
        text.push('\n');
    }
    text
}

/// Everything for a script.
pub(crate) fn json(comparison: &Comparison) -> Value {
    let plan = &comparison.plan;
    let rows: Vec<Value> = comparison.rows.iter().map(row_json).collect();
    let (on, medium) = medium_json(comparison);
    let mut all = json!({
        "xtent version": comparison.environment.xtent,
        "interrupted": comparison.interrupted,
        "environment": comparison.environment,
        "target": comparison.volume.target.target,
        "controller": comparison.volume.target.controller,
        "wait": comparison.volume.target.wait,
        "memory": comparison.volume.target.memory,
        "hugepages": comparison.volume.target.memory == "hugepages",
        "cpus_used": comparison.load(),
        "volume": comparison.volume,
        "rounds": plan.rounds,
        "runtime": plan.runtime.as_secs_f64(),
        "ramp_time": plan.ramp_time.as_secs_f64(),
        "seed": plan.seed,
        "buffered": plan.buffered,
        "fsync": plan.fsync,
        "memory_bytes": plan.memory_bytes,
        "cache_bytes": comparison.cache.map(|cache| cache.bytes),
        "kernel not limited": comparison.kernel_unlimited,
        "kernel skipped": plan.leave_kernel_out,
        "behind": {
            "kernel": behind(comparison, Side::Kernel),
            "xtent": behind(comparison, Side::Xtent),
            "meaning": meaning(comparison),
        },
        "workloads": rows,
        "checks": comparison.checks,
    });
    all[on] = medium;
    if let MediumSpec::Image(image) = &plan.on {
        all["loop"] = json!({
            "sector_bytes": image.loop_options.sector_bytes,
            "direct_io": image.loop_options.direct_io,
        });
    }
    all
}

/// The image or disk, and its key.
fn medium_json(comparison: &Comparison) -> (&'static str, Value) {
    let plan = &comparison.plan;
    let (key, mut value) = match &plan.on {
        MediumSpec::Image(image) => (
            "image",
            json!({
                "path": image.path.to_string_lossy(),
                "read into the page cache": comparison.medium.cached,
            }),
        ),
        MediumSpec::Disk(disk) => (
            "disk",
            json!({
                "address": disk.address.to_string(),
                "nsid": comparison.volume.target.nsid,
                "serial": comparison.volume.target.serial,
                "name": comparison.medium.name,
            }),
        ),
    };
    value["bytes"] = json!(comparison.medium.bytes);
    value["read_file"] = json!(plan.read_file);
    value["read_file_bytes"] = json!(comparison.read_file_bytes);
    value["write_file"] = json!(plan.write_file);
    value["write_file_bytes"] = json!(comparison.write_file_bytes);
    value["grow_file"] = json!(plan.grow_file);
    (key, value)
}

fn row_json(row: &RoundsRow) -> Value {
    let side = |rounds: &Rounds| {
        if rounds.outcomes.is_empty() {
            return Value::Null;
        }
        json!({
            "engine": rounds.engine,
            "median": {
                "p50_ns": rounds.percentile_ns(50.0).median(),
                "p99_ns": rounds.percentile_ns(99.0).median(),
                "p99.9_ns": rounds.percentile_ns(99.9).median(),
                "iops": rounds.iops().median(),
                "bw_bytes": rounds.bytes_per_second().median(),
            },
            "spread": {
                "p50_ns": rounds.percentile_ns(50.0).spread(),
                "p99_ns": rounds.percentile_ns(99.0).spread(),
                "iops": rounds.iops().spread(),
            },
            "all": rounds.all_json(),
            "rounds": rounds.json(),
        })
    };
    let (mut better, mut ratios) = (Map::new(), Map::new());
    for figure in [P50, P99, P99_9, IOPS] {
        if let Some(ratio) = advantage(&figure, row) {
            better.insert(figure.name.to_owned(), json!(ratio.all));
            ratios.insert(figure.name.to_owned(), ratio.json());
        }
    }
    json!({
        "name": row.workload.name,
        "job options": row.workload,
        "kernel": side(&row.kernel),
        "xtent": side(&row.xtent),
        "xtent skipped": row.unsupported,
        "times better": better,
        "ratios": ratios,
    })
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;

//! A comparison as a table for the terminal and as JSON; [`super::page`] makes the page of it.

use std::fmt::Write as _;

use serde_json::{Value, json};
use xtent::target::ControllerMode;

use super::compare::{Comparison, Figures, Rounds, Row, Side};
use super::hist::{count_text, three_digits, time_text};
use super::medium::MediumSpec;

/// What stands behind a side, in words that keep anybody from taking it for something else.
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
                " Limited to {} MiB by a cgroup, what is cached of the image included.",
                bytes >> 20
            ),
            (Some(_), Some(why)) => write!(text, " Its page cache was NOT limited: {why}."),
            (None, _) => write!(text, " Its page cache is as large as it likes."),
        },
    };
    text
}

/// The same, without the page cache above.
fn beneath(comparison: &Comparison, side: Side) -> String {
    let engines = if comparison.plan.buffered {
        BUFFERED_ENGINE
    } else {
        KERNEL_ENGINES
    };
    let memory = &comparison.volume.target.memory;
    match (&comparison.plan.on, side) {
        (MediumSpec::Image(image), Side::Kernel) => {
            let (direct, through) = if image.loop_options.direct_io {
                ("on", "past the page cache, on the disk it lies on")
            } else {
                ("off", "through the page cache")
            };
            format!(
                "The kernel's xfs, mounted from a loop device over the image file (sector size {} bytes, \
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

const KERNEL_ENGINES: &str = "Files opened with O_DIRECT; pread/pwrite at depth 1, io_uring with registered file and buffers above.";

const BUFFERED_ENGINE: &str = "Files opened without O_DIRECT; pread/pwrite through the page cache.";

/// What the figures say and what they do not.
pub(crate) fn meaning(comparison: &Comparison) -> String {
    if comparison.plan.buffered {
        return match comparison.plan.memory_bytes {
            None => BUFFERED_MEANING.into(),
            Some(_) => format!(
                "{BUFFERED_MEANING} Not all of them fits here: what is missed is read from beneath."
            ),
        };
    }
    let image = match &comparison.plan.on {
        MediumSpec::Image(image) => image,
        MediumSpec::Disk(_) => return meaning_on_disk(comparison),
    };
    format!(
        "No disk is measured: both sides end in copies from and to the page cache of this machine. What \
         differs, and is compared, is the software between a program and its data: system calls, \
         filesystem, block layer and loop driver on one side; xtent, its queue pair and the embedded \
         controller on the other. xtent polls: it keeps {} busy all the time, where the kernel sleeps while \
         it waits.",
        match image.controller {
            ControllerMode::Inline => "a CPU",
            ControllerMode::Threaded => "two CPUs",
        }
    )
}

fn meaning_on_disk(comparison: &Comparison) -> String {
    let mut text = String::from(
        "Both sides drive the same controller and end in the same blocks of the same files. What differs, and \
         is compared, is the software between a program and the disk: system calls, filesystem, block layer, \
         driver and interrupts on one side; xtent and its queue pair on the other. xtent polls: it keeps a CPU \
         busy all the time, where the kernel sleeps while it waits.",
    );
    if comparison.volume.target.model.contains("QEMU") {
        text.push_str(
            " This controller is QEMU's, software itself: the ratios say something, the times and the IOPS say \
             nothing about a disk.",
        );
    }
    text
}

const BUFFERED_MEANING: &str = "Both sides keep the files in a page cache and copy each operation's bytes once. What \
    is compared is how a program gets at bytes that are cached: a system call and a walk through pages on one side, a \
    lookup in its own memory on the other; and how what was written gets beneath.";

/// A figure of the table.
pub(super) struct Figure {
    name: &'static str,
    pub(super) of: fn(&Rounds) -> Figures,
    pub(super) text: fn(f64) -> String,
    /// Whether the ratio is xtent by kernel (more is better) or kernel by xtent.
    pub(super) more_is_better: bool,
}

pub(super) const FIGURES: [Figure; 3] = [
    Figure {
        name: "p50",
        of: |rounds| rounds.percentile_ns(50.0),
        text: time_text,
        more_is_better: false,
    },
    Figure {
        name: "p99",
        of: |rounds| rounds.percentile_ns(99.0),
        text: time_text,
        more_is_better: false,
    },
    Figure {
        name: "IOPS",
        of: Rounds::iops,
        text: count_text,
        more_is_better: true,
    },
];

/// How much better xtent is, where both were measured: above 1 is better in every figure.
pub(super) fn advantage(figure: &Figure, row: &Row) -> Option<f64> {
    let [kernel, xtent] = [&row.kernel, &row.xtent].map(|side| (figure.of)(side).median());
    if kernel <= 0.0 || xtent <= 0.0 {
        return None;
    }
    Some(if figure.more_is_better {
        xtent / kernel
    } else {
        kernel / xtent
    })
}

/// The table for a terminal.
pub(crate) fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    let both = comparison.has_kernel();
    let _ = write!(text, "{:<30}", "");
    for figure in &FIGURES {
        if both {
            let _ = write!(text, " |{:>9}{:>9}{:>8}", "kernel", "xtent", figure.name);
        } else {
            let _ = write!(text, " |{:>9} {:>4}", "xtent", figure.name);
        }
    }
    text.push('\n');
    for row in &comparison.rows {
        let _ = write!(text, "{:<30}", row.workload.name);
        for figure in &FIGURES {
            let xtent = (figure.text)((figure.of)(&row.xtent).median());
            if both {
                let kernel = (figure.text)((figure.of)(&row.kernel).median());
                let ratio = advantage(figure, row).map_or("-".into(), times);
                let _ = write!(text, " |{kernel:>9}{xtent:>9}{ratio:>8}");
            } else {
                let _ = write!(text, " |{xtent:>9} {:>4}", "");
            }
        }
        text.push('\n');
    }
    if both {
        text.push_str("Ratios: how many times better xtent is (latency shorter, IOPS more).\n");
    }
    text
}

/// How far the rounds lie apart: the lowest and the highest figure of each side.
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
        for figure in FIGURES.iter().filter(|figure| figure.name != "p99") {
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

pub(super) fn times(ratio: f64) -> String {
    format!("{}x", three_digits(ratio))
}

/// Everything for a script.
pub(crate) fn json(comparison: &Comparison) -> Value {
    let plan = &comparison.plan;
    let rows: Vec<Value> = comparison.rows.iter().map(row_json).collect();
    let (on, medium) = medium_json(comparison);
    let mut all = json!({
        "xtent version": comparison.environment.xtent,
        "environment": comparison.environment,
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
        "kernel left out": plan.leave_kernel_out,
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

/// What it ran on, and under which key that stands.
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
    (key, value)
}

fn row_json(row: &Row) -> Value {
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
            "rounds": rounds.json(),
        })
    };
    let ratios: serde_json::Map<String, Value> = FIGURES
        .iter()
        .filter_map(|figure| Some((figure.name.to_owned(), json!(advantage(figure, row)?))))
        .collect();
    json!({
        "name": row.workload.name,
        "job options": row.workload,
        "kernel": side(&row.kernel),
        "xtent": side(&row.xtent),
        "times better": ratios,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::{Check, Plan};
    use crate::bench::disk::DiskSpec;
    use crate::bench::environment::Environment;
    use crate::bench::medium::{ImageSpec, MediumInfo};
    use crate::bench::page::html;
    use crate::bench::runner::Outcome;
    use crate::bench::workload::{Rw, Workload};
    use std::time::Duration;
    use xtent::internals::sys::LoopOptions;
    use xtent::target::TargetInfo;
    use xtent::volume::{FilesystemInfo, VolumeInfo};

    fn rounds(base_ns: u64) -> Rounds {
        let mut outcome = Outcome {
            elapsed: Duration::from_millis(100),
            ..Outcome::default()
        };
        for i in 0..2000_u64 {
            let tail = if i % 100 == 0 { 8 } else { 1 };
            let spread = base_ns + base_ns * (i * 7919 % 1000) / 1000;
            outcome
                .read
                .record(Duration::from_nanos(spread * tail), 4096);
        }
        Rounds {
            engine: "test".into(),
            outcomes: vec![outcome; 3],
        }
    }

    fn row(name: &str, iodepth: usize, kernel_ns: u64, xtent_ns: u64) -> Row {
        Row {
            workload: Workload {
                name: name.into(),
                rw: Rw::Randread,
                rwmixread: 70,
                block_bytes: 4096,
                iodepth,
                numjobs: 1,
                size_bytes: 1 << 20,
                runtime: Some(Duration::from_secs(2)),
                time_based: true,
                ramp_time: None,
                number_ios: None,
                verify: false,
                seed: 1,
                buffered: false,
                fsync: 0,
            },
            kernel: rounds(kernel_ns),
            xtent: rounds(xtent_ns),
        }
    }

    fn volume() -> VolumeInfo {
        VolumeInfo {
            target: TargetInfo {
                target: "image:disk.img".into(),
                engine: "embedded controller".into(),
                model: "model".into(),
                serial: "1".into(),
                firmware: "1".into(),
                nvme_version: "1.4.0".into(),
                nsid: 1,
                lba_bytes: 512,
                capacity_bytes: 1 << 30,
                max_transfer_bytes: Some(1 << 20),
                boundary_blocks: 0,
                volatile_write_cache: true,
                read_only: false,
                max_queue_pairs: 64,
                queue_depth: 128,
                wait: "poll".into(),
                controller: "inline".into(),
                memory: "locked pages".into(),
            },
            filesystem: FilesystemInfo {
                kind: "xfs".into(),
                label: String::new(),
                uuid: String::new(),
                block_bytes: 4096,
                sector_bytes: 512,
                inode_bytes: 512,
                dir_block_bytes: 4096,
                ag_count: 4,
                ag_blocks: 65536,
                blocks: 262_144,
                free_blocks: 100_000,
                inodes: 64,
                free_inodes: 50,
                log_blocks: 16384,
                features: vec!["crc".into(), "reflink".into()],
                read_only_reason: None,
                log_dirty: false,
            },
        }
    }

    fn comparison() -> Comparison {
        Comparison {
            plan: Plan {
                on: MediumSpec::Image(ImageSpec {
                    path: "/tmp/<image>.img".into(),
                    target_options: String::new(),
                    loop_options: LoopOptions {
                        sector_bytes: 512,
                        direct_io: false,
                    },
                    controller: ControllerMode::Inline,
                }),
                read_file: "/bench/read.dat".into(),
                write_file: "/bench/write.dat".into(),
                rounds: 3,
                runtime: Duration::from_secs(2),
                ramp_time: Duration::from_millis(200),
                seed: 1,
                leave_kernel_out: None,
                buffered: false,
                fsync: 0,
                memory_bytes: None,
            },
            environment: Environment::gather(),
            volume: volume(),
            medium: MediumInfo {
                name: "/tmp/<image>.img".into(),
                bytes: 1 << 30,
                cached: true,
                filled_crc: None,
            },
            read_file_bytes: 256 << 20,
            write_file_bytes: 256 << 20,
            rows: vec![
                row("4k random read, depth 1", 1, 30_000, 6_000),
                row("4k random read, depth 32", 32, 400_000, 500_000),
            ],
            checks: vec![Check {
                what: "contents".into(),
                good: true,
                result: "agree".into(),
            }],
            cache: None,
            kernel_unlimited: None,
        }
    }

    #[test]
    fn ratios_are_above_one_where_xtent_is_better() {
        let comparison = comparison();
        let ratio =
            |row: usize, figure: usize| advantage(&FIGURES[figure], &comparison.rows[row]).unwrap();
        assert!((4.9..5.1).contains(&ratio(0, 0)), "{}", ratio(0, 0));
        assert!((0.79..0.81).contains(&ratio(1, 0)), "{}", ratio(1, 0));
        assert!((0.99..1.01).contains(&ratio(0, 2)), "{}", ratio(0, 2));
        assert!(table(&comparison).contains("5.0"));
    }

    #[test]
    fn a_disk_is_named_and_the_spread_shown() {
        let mut comparison = comparison();
        comparison.plan.on = MediumSpec::Disk(DiskSpec {
            address: "0000:01:00.0".parse().unwrap(),
            nsid: None,
            serial: "1".into(),
            file_bytes: None,
            target_options: String::new(),
        });
        comparison.medium.name = "Model, serial 1, /dev/nvme0n1".into();
        comparison.rows[0].kernel.outcomes[1] = rounds(60_000).outcomes[0].clone();
        let text = spread(&comparison);
        assert!(
            text.contains("of 3 rounds") && text.contains("45.2 us .. 90.3 us"),
            "{text}"
        );
        let json = json(&comparison);
        assert_eq!(json["disk"]["address"], "0000:01:00.0");
        assert!(json["image"].is_null() && json["loop"].is_null());
        assert!(json["workloads"][0]["kernel"]["spread"]["p50_ns"][1].as_f64() > Some(80_000.0));
        let page = html(&comparison).unwrap();
        for word in ["/dev/nvme0n1", "over VFIO", "same disk"] {
            assert!(page.contains(word), "{word}");
        }
        assert!(
            !page.contains("loop device") && !page.contains("page cache") && !page.contains("QEMU")
        );
        comparison.volume.target.model = "QEMU NVMe Ctrl".into();
        assert!(html(&comparison).unwrap().contains("software itself"));
    }

    #[test]
    fn the_page_needs_nothing_else_and_says_what_stands_behind() {
        let mut comparison = comparison();
        let page = html(&comparison).unwrap();
        for word in ["://", "src=", "@import", "<script", "<image>"] {
            assert!(!page.contains(word), "{word}");
        }
        for word in [
            "loop device",
            "It is not a disk",
            "page cache",
            "<svg",
            "5.00×",
        ] {
            assert!(page.contains(word), "{word}");
        }
        comparison.plan.leave_kernel_out = Some("needs root".into());
        for row in &mut comparison.rows {
            row.kernel = Rounds::default();
        }
        let page = html(&comparison).unwrap();
        assert!(page.contains("left out: needs root") && !page.contains("×"));
        let json = json(&comparison);
        assert!(json["workloads"][0]["kernel"].is_null());
        assert!(json["workloads"][0]["xtent"]["median"]["p50_ns"].is_number());
    }
}

//! A comparison as a table for the terminal and as JSON; [`super::page`] makes the page of it.

use std::fmt::Write as _;

use serde_json::{Value, json};
use xtent::volume::ControllerMode;

use super::compare::{Comparison, Rounds, Row, Side};
use super::hist::{count_text, three_digits, time_text};

/// What stands behind a side, in words that keep anybody from taking it for something else.
pub(crate) fn behind(comparison: &Comparison, side: Side) -> String {
    let plan = &comparison.plan;
    match side {
        Side::Kernel => format!(
            "The kernel's xfs, mounted from a loop device over the image file (sector size {} bytes, \
             direct-io {}). Files opened with O_DIRECT; pread/pwrite at depth 1, io_uring with registered \
             file and buffers above. The loop driver reads and writes the image {}.",
            plan.loop_options.sector_bytes,
            if plan.loop_options.direct_io {
                "on"
            } else {
                "off"
            },
            if plan.loop_options.direct_io {
                "past the page cache, on the disk it lies on"
            } else {
                "through the page cache"
            }
        ),
        Side::Xtent => format!(
            "xtent's own XFS and polled NVMe driver, in this process, in front of an embedded NVMe \
             controller: {} carries out the commands by pread() and pwrite() on the image file, through the \
             page cache. It is not a disk. Memory: {}.",
            match plan.controller {
                ControllerMode::Inline => "the thread that waits for a command",
                ControllerMode::Threaded => "another thread of this process",
            },
            comparison.volume.target.memory
        ),
    }
}

/// What the figures say and what they do not.
pub(crate) fn meaning(comparison: &Comparison) -> String {
    format!(
        "No disk is measured: both sides end in copies from and to the page cache of this machine. What \
         differs, and is compared, is the software between a program and its data: system calls, \
         filesystem, block layer and loop driver on one side; xtent, its queue pair and the embedded \
         controller on the other. xtent polls: it keeps {} busy all the time, where the kernel sleeps while \
         it waits.",
        match comparison.plan.controller {
            ControllerMode::Inline => "a CPU",
            ControllerMode::Threaded => "two CPUs",
        }
    )
}

/// A figure of the table.
pub(super) struct Figure {
    name: &'static str,
    pub(super) of: fn(&Rounds) -> f64,
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
    let (kernel, xtent) = ((figure.of)(&row.kernel), (figure.of)(&row.xtent));
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
            let xtent = (figure.text)((figure.of)(&row.xtent));
            if both {
                let kernel = (figure.text)((figure.of)(&row.kernel));
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

pub(super) fn times(ratio: f64) -> String {
    format!("{}x", three_digits(ratio))
}

/// Everything for a script.
pub(crate) fn json(comparison: &Comparison) -> Value {
    let plan = &comparison.plan;
    let rows: Vec<Value> = comparison.rows.iter().map(row_json).collect();
    json!({
        "xtent version": comparison.environment.xtent,
        "environment": comparison.environment,
        "image": {
            "path": plan.image.to_string_lossy(),
            "bytes": comparison.image_bytes,
            "read into the page cache": comparison.image_cached,
            "read_file": plan.read_file,
            "read_file_bytes": comparison.read_file_bytes,
            "write_file": plan.write_file,
            "write_file_bytes": comparison.write_file_bytes,
        },
        "volume": comparison.volume,
        "rounds": plan.rounds,
        "runtime": plan.runtime.as_secs_f64(),
        "ramp_time": plan.ramp_time.as_secs_f64(),
        "seed": plan.seed,
        "loop": {
            "sector_bytes": plan.loop_options.sector_bytes,
            "direct_io": plan.loop_options.direct_io,
        },
        "kernel left out": plan.leave_kernel_out,
        "behind": {
            "kernel": behind(comparison, Side::Kernel),
            "xtent": behind(comparison, Side::Xtent),
            "meaning": meaning(comparison),
        },
        "workloads": rows,
        "checks": comparison.checks,
    })
}

fn row_json(row: &Row) -> Value {
    let side = |rounds: &Rounds| {
        if rounds.outcomes.is_empty() {
            return Value::Null;
        }
        let each: Vec<Value> = rounds
            .outcomes
            .iter()
            .map(|outcome| {
                json!({
                    "read": outcome.read.json(outcome.elapsed),
                    "write": outcome.write.json(outcome.elapsed),
                })
            })
            .collect();
        json!({
            "engine": rounds.engine,
            "median": {
                "p50_ns": rounds.percentile_ns(50.0),
                "p99_ns": rounds.percentile_ns(99.0),
                "p99.9_ns": rounds.percentile_ns(99.9),
                "iops": rounds.iops(),
                "bw_bytes": rounds.bytes_per_second(),
            },
            "rounds": each,
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
    use crate::bench::environment::Environment;
    use crate::bench::page::html;
    use crate::bench::runner::Outcome;
    use crate::bench::workload::{Rw, Workload};
    use std::time::Duration;
    use xtent::sys::LoopOptions;
    use xtent::volume::{FilesystemInfo, TargetInfo, VolumeInfo};

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
                ramp_time: None,
                number_ios: None,
                verify: false,
                seed: 1,
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
                image: "/tmp/<image>.img".into(),
                target_options: String::new(),
                read_file: "/bench/read.dat".into(),
                write_file: "/bench/write.dat".into(),
                rounds: 3,
                runtime: Duration::from_secs(2),
                ramp_time: Duration::from_millis(200),
                seed: 1,
                loop_options: LoopOptions {
                    sector_bytes: 512,
                    direct_io: false,
                },
                controller: ControllerMode::Inline,
                leave_kernel_out: None,
            },
            environment: Environment::gather(),
            volume: volume(),
            image_bytes: 1 << 30,
            image_cached: true,
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

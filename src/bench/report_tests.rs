//! The table, the JSON and the page of a comparison.

use super::*;
use crate::bench::compare_checks::Check;
use crate::bench::compare_plan::Plan;
use crate::bench::compare_plan::WorkloadSet;
use crate::bench::disk::DiskSpec;
use crate::bench::environment::Environment;
use crate::bench::medium::{ImageSpec, MediumInfo};
use crate::bench::outcome::Outcome;
use crate::bench::page::html;
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

fn row(name: &str, iodepth: usize, kernel_ns: u64, xtent_ns: u64) -> RoundsRow {
    RoundsRow {
        workload: Workload {
            name: name.into(),
            rw: Rw::Randread,
            iodepth,
            size_bytes: 1 << 20,
            runtime: Some(Duration::from_secs(2)),
            time_based: true,
            seed: 1,
            ..Workload::default()
        },
        kernel: rounds(kernel_ns),
        xtent: rounds(xtent_ns),
        unsupported: None,
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
            start_bytes: 0,
            partition: None,
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
            most_inodes: 0,
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
            grow_file: "/bench/grow.dat".into(),
            sets: vec![WorkloadSet::Overwrite],
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
        interrupted: false,
    }
}

#[test]
fn ratios_are_above_one_where_xtent_is_better() {
    let comparison = comparison();
    let ratio = |row: usize, figure: Figure| advantage(&figure, &comparison.rows[row]).unwrap().all;
    assert!((4.9..5.1).contains(&ratio(0, P50)), "{}", ratio(0, P50));
    assert!((0.79..0.81).contains(&ratio(1, P50)), "{}", ratio(1, P50));
    assert!((0.99..1.01).contains(&ratio(0, IOPS)), "{}", ratio(0, IOPS));
    let text = table(&comparison);
    assert!(
        text.contains("5.0") && !text.contains("no stable"),
        "{text}"
    );
}

#[test]
fn rounds_that_differ_give_a_range_everywhere() {
    let mut comparison = comparison();
    comparison.rows[0].kernel.outcomes[2] = rounds(54_000).outcomes[0].clone();
    let text = table(&comparison);
    assert!(text.contains("5.00..9.00x"), "{text}");
    assert!(text.contains("no stable difference shown"), "{text}");
    let page = html(&comparison).unwrap();
    assert!(page.contains("5.00 to 9.00\u{d7}") && page.contains("no stable difference shown"));
    let json = json(&comparison);
    assert_eq!(json["workloads"][0]["ratios"]["p50"]["stable"], false);
    assert_eq!(json["workloads"][1]["ratios"]["p50"]["stable"], true);
}

#[test]
fn an_interrupted_comparison_is_marked() {
    let mut comparison = comparison();
    comparison.interrupted = true;
    comparison.rows[1].xtent.outcomes.truncate(1);
    comparison.rows[1].xtent.outcomes[0].interrupted = true;
    assert!(table(&comparison).contains("4k random read, depth 32*"));
    assert_eq!(json(&comparison)["interrupted"], true);
    assert!(html(&comparison).unwrap().contains("INTERRUPTED"));
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
    assert!(html(&comparison).unwrap().contains("which is software"));
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
        "no hugepages used",
        "p99.99",
        "prefers-color-scheme",
        "Command line",
        "time in a round (s)",
    ] {
        assert!(page.contains(word), "{word}");
    }
    comparison.plan.leave_kernel_out = Some("needs root".into());
    for row in &mut comparison.rows {
        row.kernel = Rounds::default();
    }
    let page = html(&comparison).unwrap();
    assert!(page.contains("skipped: needs root") && !page.contains("×"));
    let json = json(&comparison);
    assert!(json["workloads"][0]["kernel"].is_null());
    assert!(json["workloads"][0]["xtent"]["median"]["p50_ns"].is_number());
}

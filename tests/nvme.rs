//! The driver over embedded controllers that lose commands, do not abort, do not reset, or lie.
//! What it does over any controller is in the conformance list.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod rig;

use std::sync::Arc;
use std::time::Duration;

use rig::{Memory, chain, drain};
use xtent::ErrorKind;
use xtent::internals::block::{Op, Queue, Refused, Status};
use xtent::internals::device::emu::{
    DatasetOffer, EmuConfig, EmuDevice, Fault, FaultPlan, FaultRule, Medium, Mode, Scope,
};
use xtent::internals::nvme::spec::OPC_READ;
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions};

const MEDIUM_BYTES: u64 = 8 << 20;

fn config(mode: Mode) -> EmuConfig {
    EmuConfig {
        medium: Medium::memory(MEDIUM_BYTES),
        mode,
        ..EmuConfig::default()
    }
}

fn open(config: EmuConfig, memory: &Memory) -> (Arc<EmuDevice>, Arc<Controller>) {
    let device = EmuDevice::start(config).unwrap();
    let options = ControllerOptions::default();
    let controller = Controller::open(device.clone(), &memory.heap, options).unwrap();
    (device, controller)
}

#[test]
fn threads_with_a_queue_each_share_a_controller_that_is_reset_under_them() {
    let memory = Memory::new();
    for mode in [Mode::Threaded, Mode::Inline] {
        let (device, controller) = open(config(mode), &memory);
        device.inject(FaultRule::new(Fault::Fatal).on(Scope::Io).after(2000));
        device.inject(
            FaultRule::new(Fault::LostCompletion)
                .on(Scope::Io)
                .after(5000),
        );
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (controller, memory) = (&controller, &memory);
                scope.spawn(move || {
                    let mut pair = controller
                        .queue(
                            1,
                            QueueOptions {
                                depth: 16,
                                timeout: Duration::from_millis(200),
                                retries: 20,
                                ..QueueOptions::default()
                            },
                        )
                        .unwrap();
                    let lent = memory.lend(16 * 512);
                    let list: Vec<_> = (0..16)
                        .map(|n| [lent.segment(n * 512..(n + 1) * 512).unwrap()])
                        .collect();
                    for round in 0..60u8 {
                        for op in [Op::Write, Op::Read] {
                            for (n, segments) in list.iter().enumerate() {
                                if op == Op::Write {
                                    memory.fill(segments, &[round; 512]);
                                } else {
                                    memory.fill(segments, &[0xff; 512]);
                                }
                                let lba = thread * 1000 + n as u64;
                                pair.submit(&chain(op, lba, 1, segments, n as u64)).unwrap();
                            }
                            let ended = drain(&mut pair);
                            assert!(ended.values().all(|s| s.is_success()), "{ended:?}");
                        }
                        for segments in &list {
                            assert_eq!(memory.bytes(segments), [round; 512]);
                        }
                    }
                });
            }
        });
        assert!(controller.stats().resets >= 1, "{:?}", controller.stats());
    }
}

/// Reads one block with these faults; how it ended.
fn one_read(
    memory: &Memory,
    rules: &[FaultRule],
) -> (Status, xtent::internals::nvme::ControllerStats) {
    let (device, controller) = open(
        EmuConfig {
            tick_ns: 20_000,
            ..config(Mode::Stepped)
        },
        memory,
    );
    for rule in rules {
        device.inject(rule.clone());
    }
    let options = QueueOptions {
        depth: 4,
        timeout: Duration::from_millis(5),
        ..QueueOptions::default()
    };
    let mut pair = controller.queue(1, options).unwrap();
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    pair.submit(&chain(Op::Read, 5, 1, &segments, 1)).unwrap();
    let status = drain(&mut pair)[&1];
    drop(pair);
    (status, controller.stats())
}

#[test]
fn deadline_then_abort_then_reset_then_the_end() {
    let memory = Memory::new();
    let lost = FaultRule::new(Fault::Lost).opcode(OPC_READ);
    let (status, stats) = one_read(&memory, std::slice::from_ref(&lost));
    assert_eq!(status, Status::Success);
    assert_eq!(
        (stats.aborts, stats.resets, stats.retries),
        (1, 0, 1),
        "{stats:?}"
    );

    let no_abort = FaultRule::new(Fault::AbortFails).times(u64::MAX);
    let (status, stats) = one_read(&memory, &[lost.clone(), no_abort.clone()]);
    assert_eq!(status, Status::Success);
    assert_eq!(
        (stats.aborts, stats.resets, stats.retries),
        (1, 1, 1),
        "{stats:?}"
    );

    let always = lost.clone().times(u64::MAX);
    let (status, stats) = one_read(&memory, &[always, no_abort.clone()]);
    assert_eq!(status, Status::TimedOut);
    assert_eq!(
        (stats.aborts, stats.resets, stats.retries),
        (5, 5, 4),
        "{stats:?}"
    );

    let stuck = FaultRule::new(Fault::ResetFails).times(u64::MAX);
    let (status, stats) = one_read(&memory, &[lost.clone(), no_abort.clone(), stuck.clone()]);
    assert_eq!((status, stats.leaked_bytes), (Status::Gone, 0), "{stats:?}");

    let gone = FaultRule::new(Fault::Gone).opcode(OPC_READ);
    assert_eq!(one_read(&memory, &[gone]).0, Status::Gone);
}

#[test]
fn a_flush_is_sent_only_to_a_controller_with_a_cache() {
    let memory = Memory::new();
    for volatile_write_cache in [false, true] {
        let (device, controller) = open(
            EmuConfig {
                volatile_write_cache,
                ..config(Mode::Stepped)
            },
            &memory,
        );
        let options = QueueOptions::default();
        let mut pair = controller.queue(1, options).unwrap();
        pair.submit(&chain(Op::Flush, 0, 0, &[], 2)).unwrap();
        assert_eq!(pair.outstanding(), 1);
        assert!(drain(&mut pair)[&2].is_success());
        assert_eq!(device.stats().flushes, u64::from(volatile_write_cache));
    }
}

#[test]
fn a_hostile_controller_ends_every_operation_once_or_is_not_opened() {
    let memory = Memory::new();
    let lent = memory.lend(16 * 512);
    let list: Vec<_> = (0..16)
        .map(|n| [lent.segment(n * 512..(n + 1) * 512).unwrap()])
        .collect();
    let (mut opened, mut gone) = (0, 0);
    for seed in 0..150 {
        let device = EmuDevice::start(EmuConfig {
            tick_ns: 50_000,
            faults: FaultPlan::hostile(seed),
            ..config(Mode::Stepped)
        })
        .unwrap();
        let options = ControllerOptions {
            admin_timeout: Duration::from_millis(20),
            shutdown_timeout: Duration::from_millis(20),
            ..ControllerOptions::default()
        };
        let Ok(controller) = Controller::open(device, &memory.heap, options) else {
            continue;
        };
        let Ok(mut pair) = controller.queue(
            1,
            QueueOptions {
                depth: 16,
                timeout: Duration::from_millis(5),
                ..QueueOptions::default()
            },
        ) else {
            continue;
        };
        opened += 1;
        for _ in 0..4 {
            let mut submitted = 0;
            for (n, segments) in list.iter().enumerate() {
                match pair.submit(&chain(Op::Read, n as u64, 1, segments, n as u64)) {
                    Ok(()) => submitted += 1,
                    Err(Refused::Gone) => gone += 1,
                    Err(other) => panic!("seed {seed}: {other:?}"),
                }
            }
            assert_eq!(drain(&mut pair).len(), submitted, "seed {seed}");
        }
    }
    assert!(opened > 30, "{opened} opened, {gone} refusals");
}

#[test]
fn a_controller_that_never_gets_ready_is_named() {
    let memory = Memory::new();
    let device = EmuDevice::start(EmuConfig {
        tick_ns: 1_000_000,
        ..config(Mode::Stepped)
    })
    .unwrap();
    device.inject(FaultRule::new(Fault::NeverReady).times(u64::MAX));
    let error = Controller::open(device, &memory.heap, ControllerOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("CSTS.RDY"), "{error}");
}

#[expect(clippy::too_many_lines, reason = "a list of limits")]
#[test]
fn deallocation_keeps_to_the_limits_of_the_controller() {
    const BLOCKS: u64 = 600;
    let memory = Memory::new();
    let none = DatasetOffer::default();
    for (dataset, most) in [
        (none, BLOCKS),
        (
            DatasetOffer {
                ranges: 1,
                range_blocks: 1,
                blocks: 1,
                ..none
            },
            40,
        ),
        (
            DatasetOffer {
                range_blocks: 1,
                ..none
            },
            BLOCKS,
        ),
        (
            DatasetOffer {
                ranges: 3,
                range_blocks: 17,
                ..none
            },
            BLOCKS,
        ),
        (
            DatasetOffer {
                blocks: 33,
                granularity_blocks: 8,
                ..none
            },
            BLOCKS,
        ),
        (
            DatasetOffer {
                ranges: 255,
                range_blocks: 9,
                blocks: 100,
                granularity_blocks: 4,
                alignment_blocks: 4,
            },
            BLOCKS,
        ),
        (
            DatasetOffer {
                ranges: 255,
                range_blocks: u32::MAX,
                blocks: u64::MAX,
                granularity_blocks: 65_536,
                alignment_blocks: 65_536,
            },
            BLOCKS,
        ),
    ] {
        let config = EmuConfig {
            dataset,
            ..config(Mode::Inline)
        };
        let (_device, controller) = open(config, &memory);
        let mut pair = controller.queue(1, QueueOptions::default()).unwrap();
        let grain = pair.limits().deallocate_grain;
        assert_eq!(grain.blocks, dataset.granularity_blocks.max(1));
        assert_eq!(grain.align_blocks, dataset.alignment_blocks.max(1));
        let len = usize::try_from(BLOCKS).unwrap() * 512;
        let lent = memory.lend(len);
        let segments = [lent.segment(0..len).unwrap()];
        for (first, blocks) in [(0, most), (3, most / 2), (7, 1)] {
            memory.fill(&segments, &vec![7; len]);
            pair.submit(&chain(Op::Write, 0, BLOCKS, &segments, 1))
                .unwrap();
            assert!(drain(&mut pair)[&1].is_success());
            pair.submit(&chain(Op::Deallocate, first, blocks, &[], 2))
                .unwrap();
            let status = drain(&mut pair)[&2];
            assert!(status.is_success(), "{dataset:?}: {status}");
            pair.submit(&chain(Op::Read, 0, BLOCKS, &segments, 3))
                .unwrap();
            assert!(drain(&mut pair)[&3].is_success());
            let found = memory.bytes(&segments);
            for (block, bytes) in found.chunks(512).enumerate() {
                let is_gone = (first..first + blocks).contains(&(block as u64));
                let want = if is_gone { 0 } else { 7 };
                assert!(
                    bytes.iter().all(|byte| *byte == want),
                    "{dataset:?}: block {block}"
                );
            }
        }
    }
}

//! The driver over the embedded controller: every geometry, every depth, several threads, and controllers
//! that lose commands, do not abort, do not reset, or lie.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod rig;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rig::{Memory, chain, drain};
use xtent::ErrorKind;
use xtent::block::{Chain, ChainFlags, Op, Queue, Refused, Status};
use xtent::device::emu::{EmuConfig, EmuDevice, Fault, FaultPlan, FaultRule, Medium, Mode, Scope};
use xtent::mem::Segment;
use xtent::nvme::spec::OPC_READ;
use xtent::nvme::{Controller, ControllerOptions, QueueOptions, QueuePair};

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

fn queue(controller: &Arc<Controller>, depth: usize) -> QueuePair {
    let options = QueueOptions {
        depth,
        ..QueueOptions::default()
    };
    controller.queue(1, options).unwrap()
}

/// A random list of segments of `len` bytes in a fresh buffer: seams at pages, or at blocks anywhere.
fn scattered(memory: &Memory, rng: &mut StdRng, len: usize, block: usize) -> Vec<Segment> {
    let lent = memory.lend(2 * len + 64 * 4096);
    let mut list = Vec::new();
    let (mut at, mut left) = (4 * rng.random_range(0..1024), len);
    while left > 0 && list.len() < 15 {
        let blocks = rng.random_range(1..=left / block);
        let mut take = blocks * block;
        let to_page = (at + take).next_multiple_of(4096) - at;
        if (left - take.min(left)) > 4096 && to_page <= left && to_page.is_multiple_of(block) {
            take = to_page;
        }
        list.push(lent.segment(at..at + take).unwrap());
        left -= take;
        at += take + 4 * rng.random_range(0..64);
    }
    if left > 0 {
        list.push(lent.segment(at..at + left).unwrap());
    }
    list
}

#[test]
fn every_geometry_reads_back_what_was_written() {
    let memory = Memory::new();
    for (seed, mode) in [Mode::Stepped, Mode::Inline, Mode::Threaded]
        .into_iter()
        .enumerate()
    {
        for lba_bytes in [512, 4096] {
            for (mdts, noiob_blocks) in [(0, 0), (1, 0), (5, 8), (0, 100), (5, 1)] {
                let (_device, controller) = open(
                    EmuConfig {
                        lba_bytes,
                        mdts,
                        noiob_blocks,
                        ..config(mode)
                    },
                    &memory,
                );
                let mut pair = queue(&controller, 7);
                let block = lba_bytes as usize;
                let mut rng = StdRng::seed_from_u64(seed as u64);
                for round in 0..12u64 {
                    let most = if round % 4 == 0 { 300 } else { 40 };
                    let blocks = rng.random_range(1..=most);
                    let capacity = MEDIUM_BYTES / u64::from(lba_bytes);
                    let lba = rng.random_range(0..=capacity - blocks as u64);
                    let mut want = vec![0; blocks * block];
                    rng.fill(&mut want[..]);
                    let from = scattered(&memory, &mut rng, want.len(), block);
                    let to = scattered(&memory, &mut rng, want.len(), block);
                    memory.fill(&from, &want);
                    for (op, list) in [(Op::Write, &from), (Op::Read, &to)] {
                        pair.submit(&chain(op, lba, blocks as u64, list, round))
                            .unwrap();
                        assert_eq!(drain(&mut pair)[&round], Status::Success);
                    }
                    assert!(
                        memory.bytes(&to) == want,
                        "{mode:?} {lba_bytes} {mdts} {noiob_blocks}"
                    );
                }
                assert_eq!(controller.stats(), xtent::nvme::Stats::default());
            }
        }
    }
}

#[test]
fn every_depth_wraps_its_rings() {
    let memory = Memory::new();
    for depth in [1, 2, 3, 64, 1023] {
        let (_device, controller) = open(config(Mode::Stepped), &memory);
        let mut pair = queue(&controller, depth);
        assert_eq!(pair.limits().depth, depth);
        let lent = memory.lend(512);
        let segments = [lent.segment(0..512).unwrap()];
        for round in 0..(5000 / depth as u64).max(5) {
            for token in 0..depth as u64 {
                let lba = (round + token) % 1000;
                pair.submit(&chain(Op::Read, lba, 1, &segments, token))
                    .unwrap();
            }
            let more = chain(Op::Read, 0, 1, &segments, 0);
            assert_eq!(pair.submit(&more), Err(Refused::Full));
            let ended = drain(&mut pair);
            assert_eq!(ended.len(), depth);
            assert!(ended.values().all(|status| status.is_success()));
        }
        assert_eq!(controller.stats(), xtent::nvme::Stats::default());
    }
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
fn one_read(memory: &Memory, rules: &[FaultRule]) -> (Status, xtent::nvme::Stats) {
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
fn operations_without_memory_do_what_they_say() {
    let memory = Memory::new();
    for volatile_write_cache in [false, true] {
        let (device, controller) = open(
            EmuConfig {
                medium: Medium::memory(80 << 20),
                volatile_write_cache,
                ..config(Mode::Stepped)
            },
            &memory,
        );
        let mut pair = queue(&controller, 2);
        let lent = memory.lend(512);
        let segments = [lent.segment(0..512).unwrap()];
        memory.fill(&segments, &[7; 512]);
        let fua = Chain {
            flags: ChainFlags::FUA,
            ..chain(Op::Write, 140_000, 1, &segments, 1)
        };
        pair.submit(&fua).unwrap();
        assert!(drain(&mut pair)[&1].is_success());
        pair.submit(&chain(Op::Flush, 0, 0, &[], 2)).unwrap();
        assert_eq!(pair.outstanding(), 1);
        assert!(drain(&mut pair)[&2].is_success());
        assert_eq!(device.stats().flushes, u64::from(volatile_write_cache));
        // Three commands of at most 65,536 blocks, through two trackers.
        pair.submit(&chain(Op::WriteZeroes, 10, 150_000, &[], 3))
            .unwrap();
        assert!(drain(&mut pair)[&3].is_success());
        pair.submit(&chain(Op::Read, 140_000, 1, &segments, 4))
            .unwrap();
        assert!(drain(&mut pair)[&4].is_success());
        assert_eq!(memory.bytes(&segments), [0; 512]);
        pair.submit(&chain(Op::Deallocate, 0, 160_000, &[], 5))
            .unwrap();
        assert!(drain(&mut pair)[&5].is_success());
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

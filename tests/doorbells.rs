//! Shadow doorbells: the driver's and the embedded controller's side of them, by the book and
//! against it.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod rig;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rig::{Memory, chain, drain};
use xtent::internals::block::{Completion, Op, Queue, Wait};
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Fault, FaultRule, Medium, Mode, Scope};
use xtent::internals::nvme::spec::{ADM_DOORBELL_BUFFER_CONFIG, SC_INVALID_FIELD};
use xtent::internals::nvme::{
    Controller, ControllerOptions, ControllerStats, QueueOptions, QueuePair,
};

fn config(mode: Mode) -> EmuConfig {
    EmuConfig {
        medium: Medium::memory(8 << 20),
        mode,
        shadow_doorbells: true,
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

/// Keeps `in_flight` reads outstanding until `reads` have ended; bounded.
fn read_many(memory: &Memory, pair: &mut QueuePair, in_flight: usize, reads: u64) {
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    let (mut sent, mut ended) = (0, 0);
    for _ in 0..200_000_000u64 {
        while sent < reads && pair.outstanding() < in_flight {
            pair.submit(&chain(Op::Read, sent % 1000, 1, &segments, sent))
                .unwrap();
            sent += 1;
        }
        let count = pair.poll(usize::MAX, &mut |Completion { status, .. }| {
            assert!(status.is_success());
            ended += 1;
        });
        if ended == reads {
            return;
        }
        if count == 0 {
            pair.relax();
        }
    }
    panic!("{ended} of {reads} ended");
}

#[test]
fn a_busy_queue_is_hardly_ever_rung_by_register() {
    let memory = Memory::new();
    let (device, controller) = open(config(Mode::Stepped), &memory);
    assert!(controller.info().shadow_doorbells);
    let mut pair = queue(&controller, 8);
    read_many(&memory, &mut pair, 8, 3000);
    let wakeups = device.stats().wakeups;
    assert!((1..300).contains(&wakeups), "{wakeups}");
    // One at a time: the queue sleeps after each.
    read_many(&memory, &mut pair, 1, 1000);
    assert!(device.stats().wakeups > wakeups);
    assert_eq!(controller.stats(), ControllerStats::default());
}

#[test]
fn data_is_read_back_at_every_depth() {
    let memory = Memory::new();
    for mode in [Mode::Stepped, Mode::Inline, Mode::Threaded] {
        for depth in [1, 2, 3, 31, 300] {
            let (device, controller) = open(config(mode), &memory);
            let mut pair = queue(&controller, depth);
            let mut rng = StdRng::seed_from_u64(depth as u64);
            let lent = memory.lend(depth * 512);
            for _ in 0..20 {
                let count = rng.random_range(1..=depth);
                let list: Vec<_> = (0..count)
                    .map(|n| [lent.segment(n * 512..(n + 1) * 512).unwrap()])
                    .collect();
                let want: Vec<u8> = (0..count).map(|_| rng.random()).collect();
                for (op, flip) in [(Op::Write, 0), (Op::Read, 0xff)] {
                    for (n, segments) in list.iter().enumerate() {
                        memory.fill(segments, &[want[n] ^ flip; 512]);
                        pair.submit(&chain(op, n as u64, 1, segments, n as u64))
                            .unwrap();
                    }
                    assert!(drain(&mut pair).values().all(|s| s.is_success()));
                }
                for (n, segments) in list.iter().enumerate() {
                    assert_eq!(memory.bytes(segments), [want[n]; 512]);
                }
            }
            assert!(device.stats().wakeups > 0);
            assert_eq!(
                controller.stats(),
                ControllerStats::default(),
                "{mode:?} {depth}"
            );
        }
    }
}

#[test]
fn no_call_is_lost_between_two_threads() {
    let memory = Memory::new();
    let (device, controller) = open(config(Mode::Threaded), &memory);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (controller, memory) = (&controller, &memory);
            scope.spawn(move || {
                let wait = [Wait::Poll, Wait::Interrupt, Wait::ADAPTIVE][thread];
                let options = QueueOptions {
                    depth: 4,
                    wait,
                    ..QueueOptions::default()
                };
                let mut pair = controller.queue(1, options).unwrap();
                for round in 0..2000 {
                    read_many(memory, &mut pair, round % 4 + 1, 3);
                }
            });
        }
    });
    assert!(device.stats().wakeups > 0);
    // On a busy machine the controller's thread may lose its processor between an entry and its
    // interrupt, for longer than a sleep lasts.
    let stats = ControllerStats {
        lost_interrupts: 0,
        ..controller.stats()
    };
    assert_eq!(stats, ControllerStats::default());
}

#[test]
fn garbage_as_event_index_costs_no_command() {
    let memory = Memory::new();
    for mode in [Mode::Stepped, Mode::Threaded] {
        let (device, controller) = open(config(mode), &memory);
        let garbage = FaultRule::new(Fault::GarbageEventIndex);
        device.inject(garbage.on(Scope::Io).times(u64::MAX));
        let mut pair = queue(&controller, 4);
        for round in 0..100 {
            read_many(&memory, &mut pair, round % 4 + 1, 7);
        }
        assert!(device.stats().fault("garbage-event-index") > 0);
        // Not one came near its deadline.
        assert_eq!(controller.stats(), ControllerStats::default(), "{mode:?}");
    }
}

#[test]
fn shadows_are_given_again_after_a_reset() {
    let memory = Memory::new();
    let (device, controller) = open(config(Mode::Stepped), &memory);
    let mut first = queue(&controller, 8);
    let mut second = queue(&controller, 8);
    for round in 1..4 {
        device.inject(FaultRule::new(Fault::Fatal).on(Scope::Io).after(20));
        read_many(&memory, &mut first, 5, 50);
        let wakeups = device.stats().wakeups;
        read_many(&memory, &mut second, 5, 50);
        assert!(device.stats().wakeups > wakeups);
        assert_eq!(controller.stats().resets, round);
    }
    // A queue that is new goes by them too.
    drop(second);
    let wakeups = device.stats().wakeups;
    read_many(&memory, &mut queue(&controller, 8), 5, 50);
    assert!(device.stats().wakeups > wakeups);
}

#[test]
fn they_are_left_alone_when_not_wanted_not_offered_or_refused() {
    let memory = Memory::new();
    let refuse = FaultRule::new(Fault::Status(SC_INVALID_FIELD));
    let refuse = refuse.opcode(ADM_DOORBELL_BUFFER_CONFIG).on(Scope::Admin);
    for (offered, wanted, refused) in [
        (true, false, false),
        (false, true, false),
        (true, true, true),
    ] {
        let device = EmuDevice::start(EmuConfig {
            shadow_doorbells: offered,
            ..config(Mode::Stepped)
        })
        .unwrap();
        if refused {
            device.inject(refuse.clone());
        }
        let options = ControllerOptions {
            shadow_doorbells: wanted,
            ..ControllerOptions::default()
        };
        let controller = Controller::open(device.clone(), &memory.heap, options).unwrap();
        assert!(!controller.info().shadow_doorbells);
        read_many(&memory, &mut queue(&controller, 8), 5, 50);
        assert_eq!(device.stats().wakeups, 0);
        assert_eq!(controller.stats(), ControllerStats::default());
    }
}

#[test]
fn queues_beyond_the_pages_keep_to_their_registers() {
    let memory = Memory::new();
    // Doorbells 1 KiB apart: the pages have room for those of two queues.
    let (device, controller) = open(
        EmuConfig {
            doorbell_stride_shift: 8,
            ..config(Mode::Stepped)
        },
        &memory,
    );
    let mut pairs: Vec<_> = (0..4).map(|_| queue(&controller, 8)).collect();
    for (n, pair) in pairs.iter_mut().enumerate() {
        let before = device.stats().wakeups;
        read_many(&memory, pair, 3, 20);
        assert_eq!(device.stats().wakeups > before, n == 0, "queue {n}");
    }
}

#[test]
fn deadlines_hold_with_shadows_as_well() {
    let memory = Memory::new();
    let (device, controller) = open(
        EmuConfig {
            tick_ns: 20_000,
            ..config(Mode::Stepped)
        },
        &memory,
    );
    device.inject(FaultRule::new(Fault::Lost).on(Scope::Io).times(3));
    let options = QueueOptions {
        depth: 4,
        timeout: Duration::from_millis(5),
        ..QueueOptions::default()
    };
    let mut pair = controller.queue(1, options).unwrap();
    read_many(&memory, &mut pair, 2, 20);
    assert_eq!(controller.stats().aborts, 3);
}

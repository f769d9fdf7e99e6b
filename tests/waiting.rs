//! Waiting for the device: by polling, by interrupts, and by one after the other, over the embedded
//! controller on a thread of its own.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod rig;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::{Memory, chain, drain};
use xtent::ErrorKind;
use xtent::internals::block::{Op, Queue, Status, Wait};
use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Fault, FaultRule, Medium, Mode, Scope};
use xtent::internals::nvme::spec::OPC_READ;
use xtent::internals::nvme::{
    Controller, ControllerOptions, ControllerStats, QueueOptions, QueuePair,
};

const SLEEPY: [Wait; 3] = [
    Wait::Interrupt,
    Wait::Adaptive { spins: 20 },
    Wait::ADAPTIVE,
];

fn open(config: EmuConfig, memory: &Memory) -> (Arc<EmuDevice>, Arc<Controller>) {
    let device = EmuDevice::start(EmuConfig {
        medium: Medium::memory(8 << 20),
        ..config
    })
    .unwrap();
    let options = ControllerOptions::default();
    let controller = Controller::open(device.clone(), &memory.heap, options).unwrap();
    (device, controller)
}

fn queue(controller: &Arc<Controller>, wait: Wait, timeout: Duration) -> QueuePair {
    let options = QueueOptions {
        depth: 16,
        timeout,
        wait,
        ..QueueOptions::default()
    };
    controller.queue(1, options).unwrap()
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn several_sleepers_read_back_what_they_wrote() {
    let memory = Memory::new();
    for wait in SLEEPY {
        let (_device, controller) = open(EmuConfig::default(), &memory);
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let (controller, memory) = (&controller, &memory);
                scope.spawn(move || {
                    let mut pair = queue(controller, wait, LONG);
                    let lent = memory.lend(16 * 512);
                    for round in 0..100u8 {
                        let depth = usize::from(round % 16) + 1;
                        let list: Vec<_> = (0..depth)
                            .map(|n| [lent.segment(n * 512..(n + 1) * 512).unwrap()])
                            .collect();
                        for (op, byte) in [(Op::Write, round), (Op::Read, !round)] {
                            for (n, segments) in list.iter().enumerate() {
                                memory.fill(segments, &[byte; 512]);
                                let lba = thread * 1000 + n as u64;
                                pair.submit(&chain(op, lba, 1, segments, n as u64)).unwrap();
                            }
                            assert!(drain(&mut pair).values().all(|s| s.is_success()));
                        }
                        for segments in &list {
                            assert_eq!(memory.bytes(segments), [round; 512]);
                        }
                    }
                });
            }
        });
        assert_eq!(controller.stats(), ControllerStats::default(), "{wait:?}");
    }
}

/// Nanoseconds that this thread was on a processor.
fn processor_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_sleeper_takes_no_processor_time() {
    if !fs::exists("/proc/thread-self/schedstat").unwrap() {
        eprintln!("SKIPPED: this kernel does not count a thread's processor time (schedstat)");
        return;
    }
    let memory = Memory::new();
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    for wait in SLEEPY {
        let (device, controller) = open(EmuConfig::default(), &memory);
        let mut pair = queue(&controller, wait, LONG);
        let delay_ns = 600_000_000;
        device.inject(FaultRule::new(Fault::Late { delay_ns }).opcode(OPC_READ));
        pair.submit(&chain(Op::Read, 0, 1, &segments, 1)).unwrap();
        let (start, used) = (Instant::now(), processor_ns());
        assert_eq!(drain(&mut pair)[&1], Status::Success);
        let (elapsed, used) = (start.elapsed(), processor_ns() - used);
        assert!(elapsed.as_nanos() >= delay_ns.into(), "{elapsed:?}");
        let share = used as f64 / elapsed.as_nanos() as f64;
        assert!(share < 0.1, "{wait:?}: {share} of the time on a processor");
    }
}

#[test]
fn an_interrupt_that_is_lost_costs_a_look_and_not_the_command() {
    let memory = Memory::new();
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    for wait in SLEEPY {
        let (device, controller) = open(EmuConfig::default(), &memory);
        device.inject(
            FaultRule::new(Fault::LostInterrupt)
                .on(Scope::Io)
                .times(u64::MAX),
        );
        // The commands end well before their deadline: none is aborted, nothing is reset.
        let mut pair = queue(&controller, wait, Duration::from_secs(2));
        for token in 0..5 {
            pair.submit(&chain(Op::Read, 0, 1, &segments, token))
                .unwrap();
            assert_eq!(drain(&mut pair)[&token], Status::Success);
        }
        let stats = controller.stats();
        if wait == Wait::Interrupt {
            assert!(stats.lost_interrupts > 0, "{stats:?}");
        }
        let expected = ControllerStats {
            lost_interrupts: stats.lost_interrupts,
            ..ControllerStats::default()
        };
        assert_eq!(stats, expected, "{wait:?}");
        assert_eq!(device.stats().fault("lost-interrupt"), 5);
    }
}

#[test]
fn deadlines_and_resets_reach_a_sleeper() {
    let memory = Memory::new();
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    for wait in SLEEPY {
        for (fault, resets) in [(Fault::Lost, 0), (Fault::Fatal, 1)] {
            let (device, controller) = open(EmuConfig::default(), &memory);
            let mut pair = queue(&controller, wait, Duration::from_millis(300));
            device.inject(FaultRule::new(fault).on(Scope::Io));
            for token in 0..3 {
                pair.submit(&chain(Op::Read, 0, 1, &segments, token))
                    .unwrap();
                assert_eq!(drain(&mut pair)[&token], Status::Success);
            }
            let stats = controller.stats();
            assert_eq!(stats.resets, resets, "{wait:?} {fault:?}");
            assert!(stats.retries > 0, "{wait:?} {fault:?}");
        }
    }
}

#[test]
fn a_device_that_goes_away_wakes_who_sleeps() {
    let memory = Memory::new();
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    let (device, controller) = open(EmuConfig::default(), &memory);
    let mut pair = queue(&controller, Wait::Interrupt, LONG);
    device.inject(FaultRule::new(Fault::Lost).opcode(OPC_READ));
    pair.submit(&chain(Op::Read, 0, 1, &segments, 1)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while device.stats().fault("lost") == 0 {
                std::thread::yield_now();
            }
            drop(device.power_cut(1));
        });
        assert_eq!(drain(&mut pair)[&1], Status::Gone);
    });
    assert_eq!(controller.stats().timeouts, 0, "before any deadline");
}

#[test]
fn vectors_run_out_and_come_back() {
    let memory = Memory::new();
    let (_device, controller) = open(
        EmuConfig {
            interrupt_vectors: 3,
            ..EmuConfig::default()
        },
        &memory,
    );
    let options = || QueueOptions {
        wait: Wait::Interrupt,
        ..QueueOptions::default()
    };
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    let read = |mut pair: QueuePair| {
        pair.submit(&chain(Op::Read, 0, 1, &segments, 1)).unwrap();
        assert_eq!(drain(&mut pair)[&1], Status::Success);
        pair
    };
    // The last one shares its vector with the admin queue.
    let many: Vec<_> = (0..3)
        .map(|_| read(controller.queue(1, options()).unwrap()))
        .collect();
    let error = controller.queue(1, options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("all 3 interrupt"), "{error}");
    drop(read(controller.queue(1, QueueOptions::default()).unwrap()));
    drop(many);
    drop(read(controller.queue(1, options()).unwrap()));
}

#[test]
fn a_device_without_interrupts_can_only_be_polled() {
    let memory = Memory::new();
    let (_device, controller) = open(
        EmuConfig {
            mode: Mode::Inline,
            ..EmuConfig::default()
        },
        &memory,
    );
    for wait in SLEEPY {
        let options = QueueOptions {
            wait,
            ..QueueOptions::default()
        };
        let error = controller.queue(1, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    queue(&controller, Wait::Poll, LONG);
}

#[test]
fn a_controller_that_somebody_else_disabled_is_reset_before_any_deadline() {
    let memory = Memory::new();
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    for wait in [Wait::Poll, Wait::Interrupt] {
        let (device, controller) = open(EmuConfig::default(), &memory);
        let mut pair = queue(&controller, wait, LONG);
        device.stop_dma().unwrap();
        pair.submit(&chain(Op::Read, 0, 1, &segments, 1)).unwrap();
        assert_eq!(drain(&mut pair)[&1], Status::Success);
        // Nor does a queue take long to be closed on it, or to be made.
        device.stop_dma().unwrap();
        drop(pair);
        device.stop_dma().unwrap();
        let mut pair = queue(&controller, wait, LONG);
        pair.submit(&chain(Op::Read, 0, 1, &segments, 1)).unwrap();
        assert_eq!(drain(&mut pair)[&1], Status::Success);
        let stats = controller.stats();
        assert_eq!((stats.resets, stats.timeouts), (3, 0), "{wait:?}");
    }
}

//! What a controller tells of itself, heard by the driver: SMART and error logs that count what
//! happened, events, and a namespace that changes while it is in use. Over the embedded controller.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod rig;

use std::sync::Arc;

use rig::{Memory, chain, drain};
use xtent::internals::block::{Op, Queue, Refused, Status};
use xtent::internals::device::emu::{
    AtomicOffer, EmuConfig, EmuDevice, Fault, FaultRule, Medium, Mode, Past, Scope,
};
use xtent::internals::mem::Segment;
use xtent::internals::nvme::spec::{CriticalWarning, EventWord, OPC_READ, SC_UNRECOVERED_READ};
use xtent::internals::nvme::{Controller, ControllerOptions, Event, QueueOptions, QueuePair};

const BLOCKS: u64 = 2048;

struct Unit {
    device: Arc<EmuDevice>,
    controller: Arc<Controller>,
    pair: QueuePair,
    segment: [Segment; 1],
}

impl Unit {
    fn new(config: EmuConfig, memory: &Memory) -> Self {
        let device = EmuDevice::start(EmuConfig {
            medium: Medium::memory(BLOCKS * 512),
            ..config
        })
        .unwrap();
        let options = ControllerOptions::default();
        let controller = Controller::open(device.clone(), &memory.heap, options).unwrap();
        let options = QueueOptions {
            retries: 0,
            ..QueueOptions::default()
        };
        Self {
            pair: controller.queue(1, options).unwrap(),
            segment: [memory.lend(512).segment(0..512).unwrap()],
            device,
            controller,
        }
    }

    fn io(&mut self, op: Op, lba: u64) -> Result<Status, Refused> {
        self.pair.submit(&chain(op, lba, 1, &self.segment, lba))?;
        Ok(drain(&mut self.pair)[&lba])
    }

    /// Asks until something was heard, bounded.
    fn hear(&self) -> Vec<Event> {
        for _ in 0..1_000_000 {
            let events = self.controller.events();
            if !events.is_empty() {
                return events;
            }
            std::thread::yield_now();
        }
        panic!("nothing was heard");
    }
}

#[test]
fn smart_and_error_logs_count_what_happened() {
    let memory = Memory::new();
    for mode in [Mode::Inline, Mode::Threaded] {
        let config = EmuConfig {
            mode,
            past: Past {
                power_cycles: 4,
                power_on_hours: 10,
                unsafe_shutdowns: 2,
            },
            ..EmuConfig::default()
        };
        let mut unit = Unit::new(config, &memory);
        let before = unit.controller.smart().unwrap();
        assert_eq!((before.power_cycles, before.power_on_hours), (5, 10));
        assert_eq!(before.unsafe_shutdowns, 2);
        assert_eq!(before.temperature_k, 300);
        assert!(unit.controller.error_log(64).unwrap().is_empty());
        let bad = FaultRule::new(Fault::Status(SC_UNRECOVERED_READ.do_not_retry()))
            .on(Scope::Io)
            .opcode(OPC_READ)
            .lbas(70..72)
            .times(u64::MAX);
        unit.device.inject(bad);
        for lba in 0..1000 {
            assert_eq!(unit.io(Op::Write, lba), Ok(Status::Success));
        }
        for lba in 60..80 {
            let good = !(70..72).contains(&lba);
            let status = unit.io(Op::Read, lba).unwrap();
            assert_eq!(status.is_success(), good, "{lba}: {status}");
        }
        let smart = unit.controller.smart().unwrap();
        // What failed was not done.
        assert_eq!((smart.host_writes, smart.host_reads), (1000, 18));
        assert_eq!((smart.data_units_written, smart.data_units_read), (1, 1));
        assert_eq!((smart.media_errors, smart.error_entries), (2, 2));
        let errors = unit.controller.error_log(64).unwrap();
        let found: Vec<_> = errors
            .iter()
            .map(|e| (e.error_count, e.lba, e.nsid))
            .collect();
        assert_eq!(found, [(2, 71, 1), (1, 70, 1)]);
        assert_eq!(errors[0].queue, 1);
        assert_eq!((errors[0].status.sct(), errors[0].status.sc()), (2, 0x81));
        let slots = unit.controller.firmware_slots().unwrap();
        assert_eq!(
            (slots.active, slots.revisions),
            (1, vec![(1, "1.0".into())])
        );
    }
}

#[test]
fn the_error_log_keeps_the_newest() {
    let memory = Memory::new();
    let mut unit = Unit::new(
        EmuConfig {
            mode: Mode::Inline,
            ..EmuConfig::default()
        },
        &memory,
    );
    let bad = Fault::Status(SC_UNRECOVERED_READ.do_not_retry());
    unit.device.inject(
        FaultRule::new(bad)
            .on(Scope::Io)
            .opcode(OPC_READ)
            .times(u64::MAX),
    );
    for lba in 0..100 {
        assert!(!unit.io(Op::Read, lba).unwrap().is_success());
    }
    let errors = unit.controller.error_log(usize::MAX).unwrap();
    let counts: Vec<_> = errors.iter().map(|e| e.error_count).collect();
    let want: Vec<_> = (37..=100).rev().collect();
    assert_eq!(counts, want);
    assert_eq!(unit.controller.error_log(3).unwrap(), errors[..3]);
}

#[test]
fn warnings_are_heard_once_until_the_log_is_read() {
    let memory = Memory::new();
    for mode in [Mode::Inline, Mode::Threaded] {
        let config = EmuConfig {
            mode,
            ..EmuConfig::default()
        };
        let unit = Unit::new(config, &memory);
        for kelvins in [350, 360] {
            unit.device.set_temperature(kelvins);
            let events = unit.hear();
            let want = Event::Health {
                critical_warning: CriticalWarning::TEMPERATURE.bits(),
                temperature_k: Some(kelvins),
                available_spare: Some(100),
            };
            assert_eq!(events, [want], "{mode:?}");
            unit.device.set_temperature(300);
            assert!(unit.controller.smart().unwrap().critical_warning.is_empty());
        }
        unit.device
            .set_warning(CriticalWarning::RELIABILITY | CriticalWarning::READ_ONLY);
        let events = unit.hear();
        assert!(
            events[0]
                .to_string()
                .contains("reliability-degraded, read-only"),
            "{events:?}"
        );
        unit.device.raise(EventWord(0x00c1_0007));
        assert_eq!(
            unit.hear(),
            [Event::Other {
                kind: 7,
                information: 0,
                log_page: 0xc1
            }]
        );
        assert_eq!(unit.controller.stats().events, 4);
    }
}

#[test]
fn a_namespace_that_is_resized_or_formatted_under_load_is_never_written_as_if_it_were_not() {
    let memory = Memory::new();
    for mode in [Mode::Stepped, Mode::Inline, Mode::Threaded] {
        let config = EmuConfig {
            mode,
            ..EmuConfig::default()
        };
        let mut unit = Unit::new(config, &memory);
        for blocks in [BLOCKS / 4, BLOCKS] {
            unit.device.resize(blocks).unwrap();
            if mode == Mode::Stepped {
                unit.device.step(100);
            }
            let events = unit.hear();
            assert!(
                matches!(events[..], [Event::NamespaceResized { to_bytes, .. }]
                    if to_bytes == blocks * 512),
                "{events:?}"
            );
            // The queue knows from its next poll on.
            unit.pair.poll(1, &mut |_| {});
            assert_eq!(unit.io(Op::Write, blocks - 1), Ok(Status::Success));
            assert_eq!(unit.pair.limits().capacity_blocks, blocks);
            let outside = unit.io(Op::Write, blocks);
            assert!(matches!(outside, Err(Refused::Invalid(_))), "{outside:?}");
        }
        unit.device.format(4096).unwrap();
        let events = unit.hear();
        let replaced = Event::NamespaceReplaced {
            nsid: 1,
            block_bytes: 4096,
        };
        assert_eq!(events, [replaced]);
        // The next poll ends the in-flight request, the next submit is refused.
        unit.pair.poll(1, &mut |_| {});
        let refused = unit.io(Op::Write, 0);
        assert!(matches!(refused, Err(Refused::Changed)), "{refused:?}");
        let fresh = unit.controller.queue(1, QueueOptions::default()).unwrap();
        assert_eq!(fresh.limits().block_bytes, 4096);
        assert_eq!(fresh.limits().capacity_blocks, BLOCKS / 8);
    }
}

#[test]
fn atomic_limits_are_read() {
    let memory = Memory::new();
    let unit = Unit::new(
        EmuConfig {
            mode: Mode::Inline,
            atomic: AtomicOffer {
                write_blocks: 256,
                power_fail_blocks: 8,
                boundary_blocks: 64,
            },
            ..EmuConfig::default()
        },
        &memory,
    );
    let info = unit.controller.info();
    let atomic = info.namespaces[0].atomic;
    assert_eq!((atomic.normal_blocks, atomic.power_fail_blocks), (256, 8));
    assert_eq!(
        (atomic.boundary_blocks, atomic.power_fail_boundary_blocks),
        (64, 64)
    );
    assert_eq!(info.error_log_entries, 64);
    assert_eq!(info.warning_temperature_k, Some(343));
}

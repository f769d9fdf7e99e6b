//! The three ways to work: a thread, the waiting host, steps.

use std::sync::Arc;
use std::time::Duration;

use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::nvme::spec::*;

use crate::host::*;

const OK: StatusField = StatusField::SUCCESS;
const ROUNDS: u64 = 2_000;

fn config(mode: Mode) -> EmuConfig {
    EmuConfig {
        mode,
        lba_bytes: 4096,
        medium: Medium::memory(16 << 20),
        ..EmuConfig::default()
    }
}

/// Writes and reads back numbered blocks, eight at a time, in a part of the device that is its own.
fn hammer(device: &Arc<EmuDevice>, heap: &xtent::internals::mem::Heap, pair: Pair, first_lba: u64) {
    let Pair { mut sq, mut cq } = pair;
    let mut bufs: Vec<_> = (0..8).map(|_| heap.alloc(4096, 4096).unwrap()).collect();
    for round in 0..ROUNDS {
        let byte = u8::try_from(round % 251).unwrap() + 1;
        for reading in [false, true] {
            for (n, buf) in bufs.iter_mut().enumerate() {
                let lba = first_lba + n as u64;
                buf.fill(if reading { 0 } else { byte });
                let mut command = if reading {
                    read(lba, buf)
                } else {
                    write(lba, buf)
                };
                command.cid = u16::try_from(n).unwrap().into();
                sq.push(command);
            }
            sq.ring();
            let mut ended = 0;
            while ended < bufs.len() {
                while let Some(cqe) = cq.pop() {
                    assert_eq!(cqe.status, OK);
                    ended += 1;
                }
                cq.consume();
                device.relax(0, 0);
            }
        }
        assert!(bufs.iter().all(|buf| buf.iter().all(|&b| b == byte)));
    }
}

fn two_hosts(mode: Mode) {
    let mut host = Host::new(config(mode));
    let pairs = [host.pair(1, 16), host.pair(2, 16)];
    std::thread::scope(|scope| {
        for (n, pair) in pairs.into_iter().enumerate() {
            let (device, heap) = (&host.device, &host.heap);
            scope.spawn(move || hammer(device, heap, pair, n as u64 * 100));
        }
    });
    let stats = host.device.stats();
    assert_eq!((stats.reads, stats.writes), (16 * ROUNDS, 16 * ROUNDS));
}

#[test]
fn a_thread_serves_two_hosts() {
    two_hosts(Mode::Threaded);
}

#[test]
fn two_hosts_work_for_an_inline_controller() {
    two_hosts(Mode::Inline);
}

#[test]
fn a_sleeping_thread_is_woken() {
    let mut host = Host::new(EmuConfig {
        spin_ns: 0,
        ..config(Mode::Threaded)
    });
    let mut pair = host.pair(1, 16);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(10));
        let flush = command(OPC_FLUSH, 1, 0, 0, &[]);
        assert_eq!(host.io(&mut pair, flush).status, OK);
    }
}

#[test]
fn dropping_the_device_ends_its_thread() {
    let host = Host::new(config(Mode::Threaded));
    let watch = Arc::downgrade(&host.device);
    let Host { device, .. } = host;
    drop(device);
    assert!(watch.upgrade().is_none());
}

#[test]
fn a_stepped_clock_moves_only_by_steps() {
    let mut host = Host::new(EmuConfig {
        tick_ns: 10,
        auto_relax: false,
        ..stepped()
    });
    let start = host.device.now_ns();
    host.submit_admin(command(ADM_GET_FEATURES, 0, 0, 0, &[7]));
    host.submit_admin(command(ADM_GET_FEATURES, 0, 0, 0, &[7]));
    host.device.relax(0, 0);
    assert_eq!(host.device.now_ns(), start + 10);
    assert_eq!(host.admin_cq.pop(), None, "relax does no work");
    assert_eq!(host.device.step(1), 1);
    assert!(host.admin_cq.pop().is_some());
    assert_eq!(host.admin_cq.pop(), None);
    assert_eq!(host.device.step(5), 1);
    assert_eq!(host.device.now_ns(), start + 30);
    host.device.advance_ns(1_000);
    assert_eq!(host.device.now_ns(), start + 1_030);
}

//! The client, among servers that break the rules one by one.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xtent::ErrorKind::{self, DeviceGone as Gone, PermissionDenied, System, Unsupported};
use xtent::internals::block::{Op, Queue, Status};
use xtent::internals::device::Device;
use xtent::internals::device::vfio_user::{VfioUserDevice, VfioUserOptions};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions};

use super::common::served::Serving;
use super::proxy::{Packet, Proxy, Then, Way};
use super::raw::{
    DMA_MAP, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, REGION_READ, REGION_WRITE, VERSION,
};
use super::rig::{Memory, chain, drain};
use super::{PLENTY, drive, serving};

/// Long enough for a server on a busy machine, short enough to be waited for.
const SOON: VfioUserOptions = VfioUserOptions {
    timeout: Duration::from_millis(500),
    interrupt_vectors: 4,
};

/// Changes replies to one command.
fn altering(
    serving: &Serving,
    command: u16,
    mut alter: impl FnMut(&mut Packet) -> Then + Send + 'static,
) -> Proxy {
    Proxy::start(&serving.socket(), move |way, packet| {
        if way == Way::ToClient && packet.command() == command {
            alter(packet)
        } else {
            Then::Pass
        }
    })
}

#[test]
fn an_honest_proxy_is_not_noticed() {
    let serving = serving();
    let proxy = Proxy::start(&serving.socket(), |_, _| Then::Pass);
    drive(&proxy.socket(), PLENTY, 3).unwrap();
}

type Alter = fn(&mut Packet) -> Then;

/// Replaces a reply by an error.
fn refuse(packet: &mut Packet) -> Then {
    packet.bytes.truncate(16);
    packet.fds.clear();
    packet.set(4, 16);
    packet.set(8, 0x21);
    packet.set(12, 13);
    Then::Pass
}

fn add_fds(packet: &mut Packet, count: usize) -> Then {
    let null = std::fs::File::open("/dev/null").unwrap();
    let more = (0..count).map(|_| null.try_clone().unwrap().into());
    packet.fds.extend(more);
    Then::Pass
}

/// Malformed replies to a command while a device is opened, and the possible errors; none where the
/// device must open all the same.
static MALFORMED: &[(&str, u16, Alter, &[ErrorKind])] = &[
    (
        "another major",
        VERSION,
        |p| {
            p.set(16, 1);
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "a later minor",
        VERSION,
        |p| {
            p.set(16, 9 << 16);
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "no JSON",
        VERSION,
        |p| {
            p.bytes[21] = b'}';
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "no zero byte",
        VERSION,
        |p| {
            *p.bytes.last_mut().unwrap() = b' ';
            Then::Pass
        },
        &[Unsupported],
    ),
    ("a refusal", GET_INFO, refuse, &[PermissionDenied, System]),
    (
        "no PCI",
        GET_INFO,
        |p| {
            p.set(20, 1);
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "no regions",
        GET_INFO,
        |p| {
            p.set(24, 0);
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "another id",
        GET_INFO,
        |p| {
            p.bytes[0] ^= 1;
            Then::Pass
        },
        &[Gone],
    ),
    (
        "another command",
        GET_INFO,
        |p| {
            p.bytes[2] = 5;
            Then::Pass
        },
        &[Gone],
    ),
    (
        "neither command nor reply",
        GET_INFO,
        |p| {
            p.set(8, 2);
            Then::Pass
        },
        &[Gone],
    ),
    (
        "a size below a header",
        GET_INFO,
        |p| {
            p.set(4, 3);
            Then::Pass
        },
        &[Gone],
    ),
    (
        "a huge size",
        GET_INFO,
        |p| {
            p.set(4, u32::MAX);
            Then::Pass
        },
        &[Gone],
    ),
    (
        "a short reply",
        GET_INFO,
        |p| {
            p.set(4, 20);
            p.bytes.truncate(20);
            Then::Pass
        },
        &[Gone],
    ),
    (
        "an error with data",
        GET_INFO,
        |p| {
            p.set(8, 0x21);
            Then::Pass
        },
        &[Gone],
    ),
    ("twice", GET_INFO, |_| Then::Twice, &[Gone]),
    ("descriptors", GET_INFO, |p| add_fds(p, 1), &[Gone]),
    (
        "too many descriptors",
        GET_INFO,
        |p| add_fds(p, 60),
        &[Gone],
    ),
    (
        "silence at first",
        VERSION,
        |_| Then::Nothing,
        &[ErrorKind::Busy],
    ),
    (
        "silence",
        GET_INFO,
        |_| Then::Nothing,
        &[ErrorKind::Busy, ErrorKind::Timeout],
    ),
    ("half a header", GET_INFO, |_| Then::CutAfter(7), &[Gone]),
    ("half a reply", GET_INFO, |_| Then::CutAfter(25), &[Gone]),
    ("nothing more", GET_INFO, |_| Then::CutAfter(0), &[Gone]),
    (
        "no file to map",
        GET_REGION_INFO,
        |p| {
            p.fds.clear();
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "too many files",
        GET_REGION_INFO,
        |p| {
            if p.fds.is_empty() {
                Then::Pass
            } else {
                add_fds(p, 2)
            }
        },
        &[Unsupported],
    ),
    (
        "another region",
        GET_REGION_INFO,
        |p| {
            p.set(24, 3);
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "a tiny BAR",
        GET_REGION_INFO,
        |p| {
            p.set(32, 64);
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "doorbells past the file",
        GET_REGION_INFO,
        |p| {
            if p.bytes.len() > 48 {
                p.set(64, 0x10_0000);
                p.set(72, 0x1000);
            }
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "capabilities outside",
        GET_REGION_INFO,
        |p| {
            if p.bytes.len() > 48 {
                p.set(28, 0xffff_fff0);
            }
            Then::Pass
        },
        &[],
    ),
    (
        "a million areas",
        GET_REGION_INFO,
        |p| {
            if p.bytes.len() > 48 {
                p.set(56, 1 << 20);
            }
            Then::Pass
        },
        &[],
    ),
    (
        "an endless description",
        GET_REGION_INFO,
        |p| {
            p.set(16, u32::MAX);
            Then::Pass
        },
        &[],
    ),
    (
        "another class",
        REGION_READ,
        |p| {
            p.set(32, 0x0200_0000);
            Then::Pass
        },
        &[Unsupported],
    ),
    (
        "another offset",
        REGION_READ,
        |p| {
            p.set(16, 12);
            Then::Pass
        },
        &[Gone],
    ),
    (
        "more data",
        REGION_READ,
        |p| {
            p.bytes.push(0);
            let n = p.get(4);
            p.set(4, n + 1);
            Then::Pass
        },
        &[Gone],
    ),
    (
        "no writing",
        REGION_WRITE,
        refuse,
        &[PermissionDenied, System],
    ),
    (
        "no interrupts",
        GET_IRQ_INFO,
        refuse,
        &[PermissionDenied, System],
    ),
];

#[test]
fn every_lie_while_a_device_is_opened_is_an_error() {
    let serving = serving();
    for (name, command, alter, kinds) in MALFORMED {
        let proxy = altering(&serving, *command, *alter);
        let opened = VfioUserDevice::open(proxy.socket(), &SOON);
        match opened {
            Err(error) => assert!(
                kinds.is_empty() || kinds.contains(&error.kind()),
                "{name}: {error} ({:?})",
                error.kind()
            ),
            Ok(_) => assert!(kinds.is_empty(), "{name} was believed"),
        }
    }
    drive(&serving.socket(), PLENTY, 1).unwrap();
}

#[test]
fn memory_that_is_refused_is_an_error_of_the_heap() {
    let serving = serving();
    let proxy = altering(&serving, DMA_MAP, refuse);
    let device = VfioUserDevice::open(proxy.socket(), &SOON).unwrap();
    let memory = Memory::new();
    let error = Controller::open(device, &memory.heap, ControllerOptions::default()).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn memory_that_cannot_be_shared_is_named() {
    let serving = serving();
    let device = VfioUserDevice::open(serving.socket(), &VfioUserOptions::default()).unwrap();
    let heap = xtent::internals::mem::Heap::new(xtent::internals::mem::HeapConfig {
        huge_pages: xtent::internals::mem::HugePages::Never,
        ..Default::default()
    });
    let error = Controller::open(device, &heap, ControllerOptions::default()).unwrap_err();
    assert!(error.to_string().contains("shareable"), "{error}");
}

#[test]
fn a_server_that_asks_is_refused_and_served_no_memory() {
    let serving = serving();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let answers = Arc::clone(&asked);
    let proxy = Proxy::start(&serving.socket(), move |way, packet| {
        if way == Way::ToServer && packet.get(8) & 0xf == 1 {
            // The client's answer to what was put in below.
            answers
                .lock()
                .unwrap()
                .push((packet.command(), packet.get(8), packet.get(12)));
            return Then::Nothing;
        }
        if way == Way::ToClient && packet.command() == GET_INFO {
            // Before the reply, a command: DMA_READ of a page.
            let reply = std::mem::take(&mut packet.bytes);
            let mut request = super::raw::header(9, 11, 32, 0);
            request.extend(super::raw::words(&[], &[1 << 32, 4096]));
            packet.bytes = [request, reply].concat();
        }
        Then::Pass
    });
    drive(&proxy.socket(), PLENTY, 5).unwrap();
    let expected = (11, 0x21, libc::EOPNOTSUPP.unsigned_abs());
    assert_eq!(*asked.lock().unwrap(), [expected]);
}

/// A driver with operations under way, and what cuts the device off.
fn end_under_load(end: impl FnOnce(Serving, Proxy), proxy: (Serving, Proxy)) {
    let (serving, proxy) = proxy;
    let device = VfioUserDevice::open(proxy.socket(), &SOON).unwrap();
    let memory = Memory::new();
    let opened = Controller::open(device.clone(), &memory.heap, ControllerOptions::default());
    let controller = opened.unwrap();
    let mut pair = controller.queue(1, QueueOptions::default()).unwrap();
    let lent = memory.lend(4096);
    let segments = [lent.segment(0..4096).unwrap()];
    for token in 0..8 {
        pair.submit(&chain(Op::Read, 0, 8, &segments, token))
            .unwrap();
    }
    drain(&mut pair);
    end(serving, proxy);
    for token in 0..8 {
        // May be refused, once the loss is known.
        let _ = pair.submit(&chain(Op::Read, 0, 8, &segments, token));
    }
    for (token, status) in drain(&mut pair) {
        // The peer that cut the connection may still have the memory: the driver reports that if it
        // tried to stop it.
        let ended = matches!(status, Status::Gone | Status::Unfenced);
        assert!(ended, "{token}: {status}");
    }
    assert!(device.is_gone());
    assert_eq!(device.read32(0x1c), u32::MAX);
    assert_eq!(device.stop_dma().unwrap_err().kind(), ErrorKind::DeviceGone);
}

#[test]
fn a_server_that_goes_away_ends_every_operation() {
    let serving = serving();
    let proxy = Proxy::start(&serving.socket(), |_, _| Then::Pass);
    end_under_load(
        |serving, proxy| {
            drop(proxy);
            drop(serving);
        },
        (serving, proxy),
    );
}

#[test]
fn doorbells_that_are_taken_away_are_a_device_that_is_gone() {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(0x4000).unwrap();
    let serving = serving();
    let shared = file.try_clone().unwrap();
    let proxy = altering(&serving, GET_REGION_INFO, move |packet| {
        for fd in &mut packet.fds {
            *fd = shared.as_fd().try_clone_to_owned().unwrap();
        }
        Then::Pass
    });
    let device = VfioUserDevice::open(proxy.socket(), &SOON).unwrap();
    let doorbell = device.doorbell(0x1000).unwrap();
    doorbell.ring(1);
    assert!(!device.is_gone());
    file.set_len(0).unwrap();
    doorbell.ring(2);
    assert!(device.is_gone());
    doorbell.ring(3);
}

#[test]
fn interrupts_come_over_the_socket() {
    let serving = serving();
    let device = VfioUserDevice::open(serving.socket(), &VfioUserOptions::default()).unwrap();
    assert_eq!(device.interrupt_vectors(), 9);
    let error = device.interrupt(9).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let memory = Memory::new();
    let opened = Controller::open(device, &memory.heap, ControllerOptions::default());
    let options = QueueOptions {
        wait: xtent::internals::nvme::Wait::Interrupt,
        ..QueueOptions::default()
    };
    let mut pair = opened.unwrap().queue(1, options).unwrap();
    let lent = memory.lend(4096);
    let segments = [lent.segment(0..4096).unwrap()];
    for token in 0..100 {
        pair.submit(&chain(Op::Read, 0, 8, &segments, token))
            .unwrap();
        assert_eq!(drain(&mut pair).get(&token), Some(&Status::Success));
    }
}

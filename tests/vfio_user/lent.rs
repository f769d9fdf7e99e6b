//! What a client lends, and what it keeps when it has left.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::mpsc::channel;
use std::time::Duration;

use xtent::internals::device::emu::{EmuConfig, Fault, FaultPlan, FaultRule, Medium};
use xtent::internals::device::vfio_user::{
    Server, ServerEvent, ServerOptions, VfioUserDevice, VfioUserOptions,
};
use xtent::internals::sys::EventFd;

use super::common::served::Serving;
use super::fuse::Mute;
use super::proxy::{Proxy, Then, Way};
use super::raw::{
    DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, RESET, Raw, SET_IRQS, header, memory, words,
};
use super::{PLENTY, drive, serving, serving_with};

const BASE: u64 = 0x10_0000;
const LEN: usize = 0x1_0000;

/// Memory at [`BASE`].
fn lend(raw: &mut Raw) -> File {
    let file = memory(LEN);
    raw.map(Some(file.as_fd()), BASE, LEN as u64).unwrap();
    File::from(file)
}

/// A controller that is up, with an admin queue of 32 entries in [`lend`]'s memory.
fn enable(raw: &mut Raw) {
    raw.write(0x14, &0_u32.to_le_bytes()).unwrap();
    raw.write(0x24, &(31_u32 << 16 | 31).to_le_bytes()).unwrap();
    raw.write(0x28, &BASE.to_le_bytes()).unwrap();
    raw.write(0x30, &(BASE + 0x1000).to_le_bytes()).unwrap();
    raw.write(0x14, &(4_u32 << 20 | 6 << 16 | 1).to_le_bytes())
        .unwrap();
    assert_eq!(raw.read(0, 0x1c, 4).unwrap(), [1, 0, 0, 0]);
}

/// The file of the doorbells.
fn doorbells(raw: &mut Raw) -> File {
    let request = words(&[4096, 0, 0, 0], &[0, 0]);
    let (_, mut fds) = raw.call(GET_REGION_INFO, &request, &[]).unwrap();
    File::from(fds.remove(0))
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Long enough for a controller to see a doorbell, were it to look.
fn a_while() {
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn a_client_that_has_left_rings_nothing() {
    let serving = serving();
    let socket = serving.socket();
    let mut first = Raw::greeted(&socket);
    let left = doorbells(&mut first);
    drop(first);
    let mut next = Raw::greeted(&socket);
    // Nor does it hold memory of the server's.
    assert_eq!(left.metadata().unwrap().blocks(), 0);
    let memory = lend(&mut next);
    enable(&mut next);
    let before = content(&memory);
    for word in 0..18 {
        left.write_all_at(&5_u32.to_le_bytes(), 0x1000 + word * 4)
            .unwrap();
    }
    a_while();
    assert!(content(&memory) == before, "its queues were rung");
    assert_eq!(next.read(0, 0x1c, 4).unwrap(), [1, 0, 0, 0]);
    // Its own doorbells work.
    let own = doorbells(&mut next);
    own.write_all_at(&1_u32.to_le_bytes(), 0x1000).unwrap();
    let mut entry = [0; 16];
    while entry[14] == 0 {
        memory.read_exact_at(&mut entry, 0x1000).unwrap();
    }
}

#[test]
fn a_client_that_has_left_has_no_queues_whatever_fails() {
    // Even a controller that cannot be stopped forgets its host.
    let config = EmuConfig {
        medium: Medium::memory(8 << 20),
        faults: FaultPlan::none(1).rule(FaultRule::new(Fault::StopFails).times(u64::MAX)),
        ..EmuConfig::default()
    };
    let serving = Serving::start(config, &ServerOptions::default());
    let socket = serving.socket();
    let mut first = Raw::greeted(&socket);
    lend(&mut first);
    enable(&mut first);
    drop(first);
    let mut next = Raw::greeted(&socket);
    let memory = lend(&mut next);
    assert_eq!(next.read(0, 0x1c, 4).unwrap(), [0; 4]);
    next.write(0x1000, &5_u32.to_le_bytes()).unwrap();
    a_while();
    assert!(content(&memory).iter().all(|byte| *byte == 0));
}

#[test]
fn a_descriptor_that_blocks_every_call_blocks_nothing() {
    let Some(mute) = Mute::mount() else { return };
    let serving = serving();
    let socket = serving.socket();
    let fds = [mute.file()];
    let mut raw = Raw::greeted(&socket);
    assert_eq!(raw.map(Some(fds[0]), BASE, 4096), Err(libc::EINVAL));
    let irqs = words(&[20, 0x24, 2, 0, 1], &[]);
    assert_eq!(raw.call(SET_IRQS, &irqs, &fds).unwrap_err(), libc::EINVAL);
    // Where none belongs.
    raw.call(GET_INFO, &words(&[16, 0, 0, 0], &[]), &fds)
        .unwrap();
    // In half a message.
    raw.send(&header(1, DMA_MAP, 48, 0), &fds);
    drop(raw);
    drive(&socket, PLENTY, 1).unwrap();
    let events = serving.end();
    let refused = events.iter().find_map(|event| match event {
        ServerEvent::MapRefused { address, why, .. } => Some((*address, *why)),
        _ => None,
    });
    let why = "the file is not memory (memfd, tmpfs or hugetlbfs)";
    assert_eq!(refused, Some((BASE, why)));
    mute.end();
}

#[test]
fn a_bar_that_blocks_every_call_is_refused() {
    let Some(mute) = Mute::mount() else { return };
    let serving = serving();
    let mut fd = Some(mute.file().try_clone_to_owned().unwrap());
    let proxy = Proxy::start(&serving.socket(), move |way, packet| {
        if way == Way::ToClient && !packet.fds.is_empty() && fd.is_some() {
            packet.fds = fd.take().into_iter().collect();
        }
        Then::Pass
    });
    let (socket, (tell, told)) = (proxy.socket(), channel());
    std::thread::spawn(move || {
        let opened = VfioUserDevice::open(&socket, &VfioUserOptions::default());
        let _ = tell.send(opened.map(drop).map_err(|e| e.to_string()));
    });
    let opened = told.recv_timeout(PLENTY);
    mute.end();
    let error = opened.expect("the client waits for the file").unwrap_err();
    assert!(error.contains("neither memory nor"), "{error}");
}

#[test]
fn a_counter_that_blocks_its_writers_blocks_nothing() {
    let serving = serving();
    let socket = serving.socket();
    let mut raw = Raw::greeted(&socket);
    let event = EventFd::new().unwrap();
    let set = |flags, start, count| words(&[20, flags, 2, start, count], &[]);
    raw.call(SET_IRQS, &set(0x24, 0, 1), &[event.as_fd()])
        .unwrap();
    super::fuse::fill_and_block(event.as_fd().as_raw_fd());
    for _ in 0..200 {
        raw.call(SET_IRQS, &set(0x21, 0, 1), &[]).unwrap();
    }
    // By the controller's own thread.
    let memory = lend(&mut raw);
    enable(&mut raw);
    for round in 1..20_u32 {
        raw.write(0x1000, &round.to_le_bytes()).unwrap();
    }
    let mut entry = [0; 16];
    while entry[14] == 0 {
        memory.read_exact_at(&mut entry, 0x1000 + 18 * 16).unwrap();
    }
    assert_eq!(raw.read(0, 0x1c, 4).unwrap(), [1, 0, 0, 0]);
    drop(raw);
    drive(&socket, PLENTY, 1).unwrap();
}

#[test]
fn what_is_lent_is_bounded_in_sum() {
    let serving = serving_with(&ServerOptions {
        most_lent_bytes: Some(2 * LEN as u64),
        ..ServerOptions::default()
    });
    let mut raw = Raw::greeted(&serving.socket());
    let huge = File::from(memory(64 << 20));
    let mut map = |at, len| raw.map(Some(huge.as_fd()), at, len);
    map(BASE, LEN as u64).unwrap();
    assert_eq!(map(2 * BASE, LEN as u64 + 4096), Err(libc::ENOMEM));
    map(2 * BASE, LEN as u64).unwrap();
    assert_eq!(map(3 * BASE, 4096), Err(libc::ENOMEM));
    assert_eq!(map(1 << 40, 64 << 20), Err(libc::ENOMEM));
    // Memory that is not mapped here costs nothing.
    raw.map(None, 1 << 40, 1 << 40).unwrap();
    let unmap = |flags, at, len| words(&[24, flags], &[at, len]);
    raw.call(DMA_UNMAP, &unmap(0, 1 << 40, 1 << 40), &[])
        .unwrap();
    assert_eq!(
        raw.map(Some(huge.as_fd()), 3 * BASE, 4096),
        Err(libc::ENOMEM)
    );
    raw.call(DMA_UNMAP, &unmap(0, BASE, LEN as u64), &[])
        .unwrap();
    raw.map(Some(huge.as_fd()), 3 * BASE, LEN as u64).unwrap();
    raw.call(DMA_UNMAP, &unmap(2, 0, 0), &[]).unwrap();
    raw.map(Some(huge.as_fd()), BASE, 2 * LEN as u64).unwrap();
    drop(raw);
    // The next one begins anew, and only so many refusals are told.
    let mut next = Raw::greeted(&serving.socket());
    next.map(Some(huge.as_fd()), BASE, 2 * LEN as u64).unwrap();
    for _ in 0..50 {
        assert!(next.map(Some(huge.as_fd()), 2 * BASE, 4096).is_err());
    }
    drop(next);
    let events = serving.end();
    let refused = |event: &&ServerEvent| matches!(event, ServerEvent::MapRefused { .. });
    assert_eq!(events.iter().filter(refused).count(), 4 + 8);
}

#[test]
fn a_client_that_reads_no_answer_does_not_keep_the_server_from_ending() {
    let serving = serving_with(&ServerOptions {
        patience: Duration::from_secs(3600),
        ..ServerOptions::default()
    });
    let mut raw = Raw::greeted(&serving.socket());
    let wait = Some(Duration::from_millis(300));
    raw.socket.set_write_timeout(wait).unwrap();
    let message = [header(1, GET_INFO, 32, 0), words(&[16, 0, 0, 0], &[])].concat();
    // Until the server does not take any more, because its own answers are not taken.
    while raw.try_send(&message) {}
    let (tell, told) = channel();
    std::thread::spawn(move || tell.send(serving.end()));
    told.recv_timeout(PLENTY).expect("the server waits");
}

#[test]
fn a_socket_is_for_its_user_alone_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mode = |options: &ServerOptions| {
        let server = Server::bind(&socket, EmuConfig::default(), options).unwrap();
        assert!(!server.is_replaceable() || dir.path().parent() != Some("/tmp".as_ref()));
        socket.symlink_metadata().unwrap().mode() & 0o7777
    };
    assert_eq!(mode(&ServerOptions::default()), 0o600);
    let options = ServerOptions {
        socket_mode: 0o666,
        ..ServerOptions::default()
    };
    assert_eq!(mode(&options), 0o666);
}

#[test]
fn a_reset_leaves_what_is_lent() {
    let serving = serving();
    let mut raw = Raw::greeted(&serving.socket());
    lend(&mut raw);
    raw.call(RESET, &[], &[]).unwrap();
    enable(&mut raw);
}

//! The server, among clients that break every rule.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use xtent::internals::device::emu::{EmuConfig, Medium};
use xtent::internals::device::vfio_user::{Server, ServerEvent, ServerOptions};
use xtent::internals::sys::EventFd;

use super::raw::{
    DMA_MAP, DMA_UNMAP, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, RESET, Raw, SET_IRQS, VERSION,
    header, many, memory, words,
};
use super::{PLENTY, drive, serving, serving_with};

const PAGE: u64 = 4096;

#[test]
fn clients_come_and_go() {
    let serving = serving();
    for seed in 0..3 {
        drive(&serving.socket(), PLENTY, seed).unwrap();
    }
    let events = serving.end();
    assert_eq!(
        events,
        [ServerEvent::Connected, ServerEvent::Left].repeat(3)
    );
}

#[test]
fn a_driver_without_mapped_doorbells_gets_by_on_messages() {
    let serving = serving_with(&ServerOptions {
        map_doorbells: false,
        ..ServerOptions::default()
    });
    drive(&serving.socket(), PLENTY, 7).unwrap();
}

#[test]
fn a_session_that_panics_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let config = EmuConfig {
        medium: Medium::memory(1 << 20),
        ..EmuConfig::default()
    };
    let socket = directory.path().join("socket");
    let server = Server::bind(socket, config, &ServerOptions::default()).unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let serve = || server.serve_connection(&near, &|| panic!("a test"), &mut |_| ());
    assert!(catch_unwind(AssertUnwindSafe(serve)).is_err());
    far.set_nonblocking(true).unwrap();
    assert_eq!(far.read(&mut [0]).unwrap(), 0, "the connection is closed");
}

#[test]
fn the_next_client_waits_until_the_one_before_has_left() {
    let serving = serving();
    let first = Raw::greeted(&serving.socket());
    let socket = serving.socket();
    let second = std::thread::spawn(move || drive(&socket, PLENTY, 1));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!second.is_finished());
    drop(first);
    second.join().unwrap().unwrap();
}

#[test]
fn a_short_answer_says_where_the_capabilities_of_a_region_would_be() {
    let serving = serving();
    let mut raw = Raw::greeted(&serving.socket());
    let (bar0, capabilities) = (0, 1 << 3);
    for room in [32u32, 4096] {
        let (answer, _) = raw
            .call(GET_REGION_INFO, &words(&[room, 0, bar0, 0], &[0, 0]), &[])
            .unwrap();
        let word = |at: usize| u32::from_le_bytes(answer[at * 4..][..4].try_into().unwrap());
        assert_eq!(word(1) & capabilities, capabilities);
        // QEMU rejects sizes below 32 and beyond the announced argsz.
        assert_eq!((word(0), word(3)), (64, 32));
        assert_eq!(answer.len(), if room == 32 { 32 } else { 64 });
    }
}

#[test]
fn what_is_no_version_ends_the_connection() {
    let serving = serving();
    let socket = serving.socket();
    let version = |payload: &[u8]| Raw::connect(&socket).call(VERSION, payload, &[]);
    assert_eq!(
        version(&words(&[7], &[])).unwrap_err(),
        libc::EPROTONOSUPPORT
    );
    assert_eq!(version(&[0, 0]).unwrap_err(), libc::EINVAL);
    let mut nonsense = words(&[1 << 16], &[]);
    for text in [
        &b"{\"capabilities\":7}\0"[..],
        b"{}",
        b"\xff\0",
        &[b'['; 6000],
    ] {
        nonsense.truncate(4);
        nonsense.extend_from_slice(text);
        assert_eq!(version(&nonsense).unwrap_err(), libc::EINVAL);
    }
    for (command, size, flags) in [
        (GET_INFO, 16, 0),
        (VERSION, 15, 0),
        (VERSION, u32::MAX, 0),
        (VERSION, 1 << 20, 0),
        (VERSION, 20, 1),
        (VERSION, 20, 9),
    ] {
        let mut raw = Raw::connect(&socket);
        let message = [header(1, command, size, flags), words(&[1 << 16], &[])];
        raw.send(&message.concat(), &[]);
        assert!(raw.ends(), "{command} {size} {flags}");
    }
    drive(&socket, PLENTY, 1).unwrap();
}

#[test]
fn silence_and_half_messages_are_not_waited_for_for_ever() {
    let serving = serving_with(&ServerOptions {
        patience: Duration::from_millis(100),
        ..ServerOptions::default()
    });
    let socket = serving.socket();
    assert!(Raw::connect(&socket).ends());
    let mut half = Raw::greeted(&socket);
    half.send(&header(1, GET_INFO, 32, 0)[..9], &[]);
    assert!(half.ends());
    let mut cut = Raw::greeted(&socket);
    cut.send(&header(1, GET_INFO, 32, 0), &[]);
    drop(cut);
    drive(&socket, PLENTY, 1).unwrap();
    let events = serving.end();
    let cut_off = |event: &&ServerEvent| matches!(event, ServerEvent::CutOff(_));
    assert_eq!(events.iter().filter(cut_off).count(), 2, "{events:?}");
}

#[test]
fn too_many_descriptors_end_the_connection_and_are_closed() {
    let serving = serving();
    let socket = serving.socket();
    let fd = memory(4096);
    for count in [17, 64] {
        let mut raw = Raw::greeted(&socket);
        raw.send(&header(1, GET_INFO, 16, 0), &many(&fd, count));
        assert!(raw.ends());
    }
    let mut raw = Raw::greeted(&socket);
    let payload = words(&[32, 3], &[0, 0, PAGE]);
    let two = raw.call(DMA_MAP, &payload, &many(&fd, 2));
    assert_eq!(two.unwrap_err(), libc::EINVAL);
}

#[test]
fn mappings_that_make_no_sense_are_refused() {
    let serving = serving();
    let mut raw = Raw::greeted(&serving.socket());
    let fd = memory(0x10_0000);
    let fd = Some(fd.as_fd());
    raw.map(fd, 0x10_0000, 0x10_0000).unwrap();
    for (at, len, errno) in [
        (0x10_0000, 0x10_0000, libc::EEXIST),
        (0xf_f000, 0x2000, libc::EEXIST),
        (0x1f_f000, PAGE, libc::EEXIST),
        (0, u64::MAX - 0xfff, libc::EEXIST),
        (0, 0, libc::EINVAL),
        (1, PAGE, libc::EINVAL),
        (0, 1, libc::EINVAL),
        (u64::MAX - 0xfff, 0x2000, libc::EINVAL),
        (0x20_0000, 0x20_0000, libc::EINVAL),
    ] {
        assert_eq!(raw.map(fd, at, len), Err(errno), "{at:#x} {len:#x}");
    }
    let disk = std::fs::File::open("/proc/self/exe").unwrap();
    assert_eq!(raw.map(Some(disk.as_fd()), 0, PAGE), Err(libc::EINVAL));
    let flags = words(&[32, 8], &[0, 0, PAGE]);
    assert_eq!(raw.call(DMA_MAP, &flags, &[]).unwrap_err(), libc::EINVAL);
    assert_eq!(raw.call(DMA_MAP, &[0; 31], &[]).unwrap_err(), libc::EINVAL);
    // A range without a file is recorded, and so is a read-only one.
    raw.map(None, 0x40_0000, PAGE).unwrap();
    assert_eq!(raw.map(fd, 0x40_0000, PAGE), Err(libc::EEXIST));
    let unmap = |flags, at, len| words(&[24, flags], &[at, len]);
    for (payload, errno) in [
        (unmap(0, 0x10_0000, PAGE), libc::ENOENT),
        (unmap(0, 0x11_0000, 0x10_0000), libc::ENOENT),
        (unmap(1, 0x10_0000, 0x10_0000), libc::EINVAL),
        (unmap(2, 0x10_0000, 0x10_0000), libc::EINVAL),
    ] {
        assert_eq!(raw.call(DMA_UNMAP, &payload, &[]).unwrap_err(), errno);
    }
    raw.call(DMA_UNMAP, &unmap(0, 0x10_0000, 0x10_0000), &[])
        .unwrap();
    raw.call(DMA_UNMAP, &unmap(2, 0, 0), &[]).unwrap();
    raw.map(fd, 0x40_0000, PAGE).unwrap();
    for n in 1..256 {
        raw.map(None, 0x100_0000 + n * PAGE, PAGE).unwrap();
    }
    assert_eq!(raw.map(None, 0x200_0000, PAGE), Err(libc::ENOSPC));
}

#[test]
fn accesses_outside_of_regions_and_registers_are_refused() {
    let serving = serving();
    let mut raw = Raw::greeted(&serving.socket());
    for (region, offset, count) in [
        (0, 0, 0),
        (0, 0, 3),
        (0, 2, 4),
        (0, 4, 8),
        (0, 0, 64),
        (0, u64::MAX, 4),
        (0, 0x10_0000, 4),
        (7, 4094, 4),
        (7, 0, 5000),
        (7, 0, u32::MAX),
        (1, 0, 4),
        (8, 0, 4),
        (9, 0, 4),
        (u32::MAX, 0, 4),
    ] {
        let read = raw.read(region, offset, count);
        assert_eq!(
            read.unwrap_err(),
            libc::EINVAL,
            "{region} {offset:#x} {count}"
        );
    }
    assert_eq!(raw.read(0, 8, 4).unwrap(), 0x0001_0400_u32.to_le_bytes());
    assert_eq!(raw.read(0, 10, 1).unwrap(), [1]);
    assert_eq!(raw.read(7, 9, 3).unwrap(), [2, 8, 1]);
    assert_eq!(raw.write(0x1000, &[1; 3]), Err(libc::EINVAL));
    assert_eq!(raw.write(0x1000, &[1; 8]), Err(libc::EINVAL));
    assert_eq!(raw.write(0x1002, &[1; 4]), Err(libc::EINVAL));
    raw.write(0x2000, &[7; 16]).unwrap();
    assert_eq!(raw.read(0, 0x2000, 16).unwrap(), [7; 16]);
    raw.call(RESET, &[], &[]).unwrap();
    assert_eq!(raw.read(0, 0x2000, 16).unwrap(), [0; 16]);
}

#[test]
fn requests_for_what_there_is_not_are_refused() {
    let serving = serving();
    let mut raw = Raw::greeted(&serving.socket());
    for command in [0, 6, 11, 12, 14, 15, 16, 17, 18, 19, u16::MAX] {
        let refused = raw.call(command, &[0; 64], &[]);
        assert_eq!(refused.unwrap_err(), libc::EOPNOTSUPP, "{command}");
    }
    let einval = |answer: super::raw::Answer| assert_eq!(answer.unwrap_err(), libc::EINVAL);
    einval(raw.call(VERSION, &words(&[0], &[]), &[]));
    einval(raw.call(GET_INFO, &[0; 15], &[]));
    einval(raw.call(GET_INFO, &[0; 16], &[]));
    einval(raw.call(GET_REGION_INFO, &words(&[32, 0, 9, 0], &[0, 0]), &[]));
    einval(raw.call(GET_REGION_INFO, &words(&[31, 0, 0, 0], &[0, 0]), &[]));
    einval(raw.call(GET_IRQ_INFO, &words(&[16, 0, 5, 0], &[]), &[]));
    // Room for the fixed part alone gives that, and says how much more there is.
    let request = words(&[32, 0, 0, 0], &[0, 0]);
    let (short, fds) = raw.call(GET_REGION_INFO, &request, &[]).unwrap();
    assert_eq!((short.len(), short[0], fds.len()), (32, 64, 0));
    let request = words(&[4096, 0, 0, 0], &[0, 0]);
    let (whole, fds) = raw.call(GET_REGION_INFO, &request, &[]).unwrap();
    assert_eq!((whole.len(), fds.len()), (64, 1));
}

#[test]
fn interrupts_are_connected_and_checked() {
    let serving = serving();
    let mut raw = Raw::greeted(&serving.socket());
    let event = EventFd::new().unwrap();
    let fds = [event.as_fd()];
    let set = |flags, index, start, count| words(&[20, flags, index, start, count], &[]);
    raw.call(SET_IRQS, &set(0x24, 2, 3, 1), &fds).unwrap();
    raw.call(SET_IRQS, &set(0x21, 2, 3, 1), &[]).unwrap();
    assert!(event.take());
    raw.call(SET_IRQS, &[set(0x22, 2, 2, 2), vec![1, 0]].concat(), &[])
        .unwrap();
    assert!(!event.take());
    let null = std::fs::File::open("/dev/null").unwrap();
    let two = [event.as_fd(), event.as_fd()];
    for (payload, fds) in [
        (set(0x24, 2, 3, 1), &[null.as_fd()][..]),
        (set(0x24, 2, 3, 1), &two),
        (set(0x24, 2, 9, 1), &fds),
        (set(0x24, 2, u32::MAX, 2), &two),
        (set(0x24, 0, 0, 1), &fds),
        (set(0x24, 7, 0, 1), &fds),
        (set(0x24, 2, 0, u32::MAX), &[]),
        (set(0x04, 2, 3, 1), &fds),
        (set(0x2c, 2, 3, 1), &fds),
        (set(0x22, 2, 0, 2), &[]),
        (vec![0; 19], &[]),
    ] {
        let refused = raw.call(SET_IRQS, &payload, fds);
        assert_eq!(refused.unwrap_err(), libc::EINVAL, "{payload:?}");
    }
    raw.call(SET_IRQS, &set(0x21, 2, 0, 0), &[]).unwrap();
    raw.call(SET_IRQS, &set(0x21, 2, 3, 1), &[]).unwrap();
    assert!(!event.take());
}

#[test]
fn memory_that_a_client_takes_away_costs_it_its_connection_and_nobody_else() {
    let serving = serving();
    let socket = serving.socket();
    let mut raw = Raw::greeted(&socket);
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(0x1_0000).unwrap();
    raw.map(Some(file.as_fd()), 0x10_0000, 0x1_0000).unwrap();
    raw.write(0x24, &(31_u32 << 16 | 31).to_le_bytes()).unwrap();
    raw.write(0x28, &0x10_0000_u64.to_le_bytes()).unwrap();
    raw.write(0x30, &0x10_1000_u64.to_le_bytes()).unwrap();
    raw.write(0x14, &(4_u32 << 20 | 6 << 16 | 1).to_le_bytes())
        .unwrap();
    assert_eq!(raw.read(0, 0x1c, 4).unwrap(), [1, 0, 0, 0]);
    file.set_len(0).unwrap();
    raw.write(0x1000, &5_u32.to_le_bytes()).unwrap();
    assert!(raw.ends());
    drive(&socket, PLENTY, 1).unwrap();
    let events = serving.end();
    assert!(
        events.contains(&ServerEvent::CutOff("its memory went away")),
        "{events:?}"
    );
}

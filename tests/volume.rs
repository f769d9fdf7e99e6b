//! Behaviour of image targets only: an image in use is refused; failing writes; and targets that do
//! not exist.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::image::Image;
use common::served::Serving;
use xtent::ErrorKind;
use xtent::internals::block::Op;
use xtent::internals::device::emu::{EmuConfig, Fault, FaultPlan, FaultRule, Scope};
use xtent::internals::device::vfio_user::ServerOptions;
use xtent::internals::nvme::spec::{OPC_WRITE, StatusField};
use xtent::internals::target::TargetSpec;
use xtent::internals::target::controller_to_serve;
use xtent::internals::units::Lba;
use xtent::target::{Target, TargetOptions, Wait};
use xtent::volume::{MountOptions, OpenOptions, Volume};

#[test]
fn an_image_in_use_is_refused_by_name() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let target = format!("image:{}", image.path().display());
    let options = TargetOptions::new();
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), [7; 5000]).unwrap();
    let error = Volume::open(&target).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("/dev/loop"), "{error}");
    let error = Volume::open(&format!("{target},readonly")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    // Asked for, it is read; the log of a mounted filesystem is dirty, which is to be asked for
    // too.
    let volume = Volume::open(&format!("{target},inuse,norecovery")).unwrap();
    assert!(volume.info().filesystem.read_only_reason.is_some());
    mount.unmount();
    drop(volume);
    let held = Volume::open(&target).unwrap();
    let error = Target::open(&target, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("another process"), "{error}");
    drop(held);
    let copy = format!("ram:320M,load={}", image.path().display());
    let volume = Volume::open(&copy).unwrap();
    let mut io = volume.io().unwrap();
    assert_eq!(volume.metadata(&mut io, "file").unwrap().len_bytes, 5000);
}

/// Writes pause while another process opens the image: blocking calls wait for the end of the
/// pause, also while many requests are in flight.
#[test]
fn blocking_calls_wait_while_writes_are_paused() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), vec![7; 4 << 20]).unwrap();
    mount.unmount();
    let path = image.path().to_owned();
    for scheme in ["uring", "image"] {
        let target = format!("{scheme}:{},depth=4", path.display());
        let volume = Volume::open(&target).unwrap();
        let mut io = volume.io().unwrap();
        let options = OpenOptions::new().read(true).write(true);
        let file = options.open(&volume, &mut io, "/file").unwrap();
        let cached = options.buffered(true);
        let cached = cached.open(&volume, &mut io, "/file").unwrap();
        let mut buf = io.alloc(256 << 10).unwrap();
        let opened = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    // Refused at once where the writer has a lease, which it then has to give back.
                    let mut options = std::fs::OpenOptions::new();
                    let _ = options
                        .read(true)
                        .custom_flags(libc::O_NONBLOCK)
                        .open(&path);
                    opened.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let data = vec![8; 3 << 20];
            for round in 0_u64.. {
                for n in 0..4 {
                    let buf = io.alloc(4096).unwrap();
                    io.submit_write(&file, n << 12, buf, n).unwrap();
                }
                file.write_at(&mut io, &data, 512).unwrap();
                file.write_all_at(&mut io, &data[..10_000], 5 + round)
                    .unwrap();
                file.write_dma_at(&mut io, &mut buf, 4096).unwrap();
                cached.write_at(&mut io, &data[..100_000], round).unwrap();
                cached.sync_data(&mut io).unwrap();
                while io.outstanding() > 0 {
                    io.poll(usize::MAX, |done| assert_eq!(done.result.unwrap(), 4096));
                    io.relax();
                }
                if opened.load(Ordering::Relaxed) == 20 {
                    break;
                }
            }
        });
        drop((file, cached, io));
        volume.close().unwrap();
    }
}

#[test]
fn a_device_has_one_filesystem_that_writes() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), [7; 5000]).unwrap();
    mount.unmount();
    let path = image.path().to_owned();
    let path = path.display();
    let options = TargetOptions::new();
    for target in [
        format!("ram:320M,load={path}"),
        format!("image:{path}"),
        format!("uring:{path}"),
    ] {
        let target = match Target::open(&target, &options) {
            Ok(target) => target,
            Err(error) => {
                println!("SKIPPED: {error}");
                continue;
            }
        };
        let volume = Volume::on(target.clone(), &MountOptions::new()).unwrap();
        let error = Volume::on(target.clone(), &MountOptions::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        let mut beside = target.raw(1, 4096).unwrap();
        let error = beside.submit(0, Op::Write, Lba(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        beside.submit(0, Op::Read, Lba(0)).unwrap();
        while beside.outstanding() > 0 {
            if beside.poll(|_, status| assert!(status.is_success())) == 0 {
                beside.relax();
            }
        }
        assert_eq!(beside.slot_mut(0).unwrap()[..4], *b"XFSB");
        drop((volume, beside));
        let writer = target.raw(1, 4096).unwrap();
        let error = Volume::on(target.clone(), &MountOptions::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        drop(writer);
        // A volume that claims to read only cannot write, whichever option says so.
        let read_only = [
            MountOptions::new().read_only(true),
            MountOptions::new().no_recovery(true),
        ];
        let readers = read_only.map(|options| Volume::on(target.clone(), &options).unwrap());
        for volume in &readers {
            assert!(volume.info().filesystem.read_only_reason.is_some());
            let mut io = volume.io().unwrap();
            let opened = OpenOptions::new().write(true).open(volume, &mut io, "file");
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::ReadOnly);
        }
        drop(readers);
        Volume::on(target, &MountOptions::new()).unwrap();
    }
    // Two targets of one device, which both only read.
    let readers = [(); 2].map(|()| Volume::open(&format!("image:{path},readonly")));
    assert!(readers.iter().all(Result::is_ok));
}

#[test]
fn what_cannot_be_had_and_no_filesystems_are_refused_by_name() {
    let error = Volume::open("spdk:trtype=TCP").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("`traddr` is missing"), "{error}");
    #[cfg(not(feature = "spdk"))]
    {
        let target = "spdk:trtype=VFIOUSER traddr=/nowhere";
        let error = Volume::open(target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("--features spdk"), "{error}");
    }
    let error = Volume::open("uring:/nowhere/nvme0n1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = Volume::open("ram:64M,inline").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotXfs, "{error}");
    let error = Volume::open("/").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IsADirectory, "{error}");
}

/// Every write of the device fails, as often as this.
fn served_with_write_faults(image: &Image, times: u64) -> Serving {
    let spec = TargetSpec::parse(&format!("image:{}", image.path().display())).unwrap();
    // Write fault (media error, 0x80), not to be tried again.
    let fault = Fault::Status(StatusField::of(2, 0x80).do_not_retry());
    let rule = FaultRule::new(fault)
        .on(Scope::Io)
        .opcode(OPC_WRITE)
        .times(times);
    let config = EmuConfig {
        faults: FaultPlan {
            rules: vec![rule],
            ..FaultPlan::default()
        },
        ..controller_to_serve(&spec).unwrap()
    };
    Serving::start(config, &ServerOptions::default())
}

#[test]
fn failures_of_writing_back_are_told_once_to_each_who_syncs() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), [7; 50_000]).unwrap();
    mount.unmount();
    // Each sync tries a writeback twice, and this one is a single contiguous run.
    let serving = served_with_write_faults(&image, 5);
    let target = format!("vfio-user:{}", serving.socket().display());
    let volume = Volume::open(&target).unwrap();
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true).buffered(true);
    let [first, second] = [(); 2].map(|()| options.open(&volume, &mut io, "file").unwrap());
    assert_eq!(first.write_at(&mut io, &[8; 10_000], 5).unwrap(), 10_000);
    let error = first.sync_data(&mut io).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("sync file"), "{error}");
    // Told, but tried again, in vain.
    let error = first.sync_all(&mut io).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(io.cache_stats().unwrap().dirty_pages > 0);
    // Direct I/O cannot read dirty pages that are not on the device; the second try of this call
    // has the last fault.
    let direct = volume.open_file(&mut io, "file").unwrap();
    let mut buf = io.alloc(4096).unwrap();
    direct.read_dma_at(&mut io, &mut buf, 0).unwrap();
    assert_eq!(buf[..10], [7, 7, 7, 7, 7, 8, 8, 8, 8, 8]);
    first.sync_range(&mut io, 0..u64::MAX).unwrap_err();
    first.sync_data(&mut io).unwrap();
    let error = second.sync_data(&mut io).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    second.sync_data(&mut io).unwrap();
    let error = volume.sync(&mut io).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    volume.sync(&mut io).unwrap();
    let late = options.open(&volume, &mut io, "file").unwrap();
    late.sync_data(&mut io).unwrap();
    assert_eq!(io.cache_stats().unwrap().dirty_pages, 0);
    drop((first, second, late, direct, io, volume));
    serving.end();
    let mount = image.mount("ro");
    let bytes = std::fs::read(mount.path().join("file")).unwrap();
    assert!(bytes[5..10_005] == [8; 10_000] && bytes[10_005..] == [7; 39_995]);
    mount.unmount();
}

/// An engine without rings in DMA memory has none when it is opened: that was called pageable
/// memory.
#[test]
fn the_memory_of_an_engine_is_what_its_buffers_are_made_of() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    let options = TargetOptions::new();
    let uring = format!("uring:{}", file.path().display());
    let uring = match Target::open(&uring, &options) {
        Ok(target) => target,
        Err(error) => {
            common::skipped(&format!("io_uring: {error}"));
            return;
        }
    };
    let embedded = Target::open("ram:64M,inline", &options).unwrap();
    assert_eq!(uring.info().memory, embedded.info().memory);
}

#[test]
fn calls_of_several_buffers_and_std_io_do_what_one_call_does() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), [7; 20_000]).unwrap();
    mount.unmount();
    let volume = Volume::open(&format!("image:{}", image.path().display())).unwrap();
    let mut io = volume.io().unwrap();
    for buffered in [false, true] {
        let options = OpenOptions::new().read(true).write(true);
        let file = options
            .buffered(buffered)
            .open(&volume, &mut io, "file")
            .unwrap();
        let blocks = [[1; 512], [2; 512]];
        let parts = blocks.each_ref().map(|block| IoSlice::new(block));
        let written = file.write_vectored_at(&mut io, &parts, 4096).unwrap();
        assert_eq!(written, 1024);
        let (mut first, mut second) = ([0; 700], [0; 700]);
        let mut parts = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        assert_eq!(
            file.read_vectored_at(&mut io, &mut parts, 4000).unwrap(),
            1400
        );
        let all = [&first[..], &second].concat();
        assert!(all[..96] == [7; 96] && all[96..608] == blocks[0] && all[608..1120] == blocks[1]);
        assert_eq!(all[1120..], [7; 280]);
        // At the end of the file: fewer, and an error where all was asked for.
        let mut parts = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        assert_eq!(
            file.read_vectored_at(&mut io, &mut parts, 19_000).unwrap(),
            1000
        );
        let mut bytes = [0; 1001];
        let error = file.read_exact_at(&mut io, &mut bytes, 19_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        assert_eq!(
            (error.bytes_done(), error.offset()),
            (Some(1000), Some(19_000))
        );
        assert_eq!(
            (error.operation(), error.path()),
            (Some("read"), Some(Path::new("file")))
        );
        assert!(
            error
                .device()
                .is_some_and(|device| device.starts_with("image:"))
        );
        file.read_exact_at(&mut io, &mut bytes[..1000], 19_000)
            .unwrap();
        let mut writer = file.writer(&mut io).unwrap();
        writer.seek(SeekFrom::End(-11)).unwrap();
        write!(writer, "a last line").unwrap();
        drop(writer);
        let mut end = String::new();
        let mut reader = file.reader(&mut io).unwrap();
        reader.seek(SeekFrom::End(-11)).unwrap();
        reader.read_to_string(&mut end).unwrap();
        assert_eq!(end, "a last line");
    }
}

#[test]
fn a_handle_polls_readable_when_an_operation_has_ended() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), vec![7; 1 << 20]).unwrap();
    mount.unmount();
    let path = image.path().to_owned();
    let path = path.display();
    let mut waits = 0;
    for (target, wait) in [
        (format!("image:{path},threaded"), Wait::Interrupt),
        (format!("image:{path},threaded"), Wait::ADAPTIVE),
        (format!("uring:{path}"), Wait::Interrupt),
        (format!("image:{path},inline"), Wait::Poll),
        (format!("uring:{path}"), Wait::Poll),
    ] {
        let options = TargetOptions::new().wait(wait);
        let volume = match Volume::open_with(&target, &options, &MountOptions::new()) {
            Ok(volume) => volume,
            Err(error) if target.starts_with("uring:") && error.kind() != ErrorKind::Busy => {
                common::skipped(&format!("io_uring: {error}"));
                continue;
            }
            Err(error) => panic!("{target}: {error}"),
        };
        let mut io = volume.io().unwrap();
        let file = volume.open_file(&mut io, "file").unwrap();
        assert!(wait != Wait::Poll || common::sys::is_readable(&io));
        let mut done = 0;
        for round in 0..200_u64 {
            for n in 0..1 + round % 4 {
                let buf = io.alloc(4096).unwrap();
                io.submit_read(&file, (round * 5 + n) % 256 * 4096, buf, n)
                    .unwrap();
            }
            while io.outstanding() > 0 {
                let ended = io.poll(2, |done| assert_eq!(done.result.unwrap(), 4096));
                done += ended;
                if ended == 0 && io.arm() {
                    assert!(wait != Wait::Poll);
                    assert!(common::sys::is_readable(&io), "{target} round {round}");
                    waits += 1;
                }
            }
        }
        assert_eq!(done, 500);
        assert!(!io.arm(), "nothing is in flight");
    }
    assert!(waits > 0, "nothing was ever waited for");
}

/// A read of 128 commands through a queue that has room for 2: each of them that ends makes room.
#[test]
fn a_handle_polls_readable_while_an_operation_waits_for_room() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), vec![7; 1 << 20]).unwrap();
    mount.unmount();
    let target = format!("image:{},threaded,mdts=1,depth=2", image.path().display());
    for wait in [Wait::Interrupt, Wait::ADAPTIVE] {
        let options = TargetOptions::new().wait(wait);
        let volume = Volume::open_with(&target, &options, &MountOptions::new()).unwrap();
        let mut io = volume.io().unwrap();
        let file = volume.open_file(&mut io, "file").unwrap();
        let buf = io.alloc(1 << 20).unwrap();
        io.submit_read(&file, 0, buf, 1).unwrap();
        while io.outstanding() > 0 {
            let ended = io.poll(2, |done| {
                assert_eq!(done.result.unwrap(), 1 << 20);
                assert!(done.buf.iter().all(|&byte| byte == 7));
            });
            if ended == 0 && io.arm() {
                assert!(common::sys::is_readable(&io));
            }
        }
    }
}

#[test]
fn a_cause_is_told_once() {
    let error = Volume::open("image:/nowhere/disk.img").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(2), "{error:?}");
    let mut chain = vec![error.to_string()];
    let mut next = std::error::Error::source(&error);
    while let Some(error) = next {
        chain.push(error.to_string());
        next = error.source();
    }
    let text = chain.join(": ");
    assert_eq!(text.matches("os error 2").count(), 1, "{text}");
    assert!(
        format!("{error:?}").starts_with("NotFound: open"),
        "{error:?}"
    );
}

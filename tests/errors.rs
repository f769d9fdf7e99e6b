//! Errors are told: with the bytes that were done before them, by every path of a read or a write,
//! and by the close of a volume.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::io::Read;

use common::image::Image;
use common::served::Serving;
use xtent::internals::device::emu::{Fault, FaultPlan, FaultRule, Scope};
use xtent::internals::device::vfio_user::ServerOptions;
use xtent::internals::nvme::spec::{OPC_FLUSH, OPC_READ, OPC_WRITE, StatusField};
use xtent::internals::target::TargetSpec;
use xtent::internals::target::controller_to_serve;
use xtent::target::TargetOptions;
use xtent::volume::{Advice, File, Io, MountOptions, OpenOptions, SubmitError, Volume};
use xtent::{Error, ErrorKind};

const FILE_BYTES: usize = 1 << 20;
/// The byte of the file whose block fails.
const BAD: usize = 512 << 10;

/// An image with a file of sevens on it, in one extent; that is at this byte of the device.
fn image() -> Option<(Image, u64)> {
    if !common::kernel_is_here() {
        return None;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    fs::write(mount.path().join("file"), vec![7; FILE_BYTES]).unwrap();
    mount.unmount();
    let (_volume, mut io, file) = open(&target(&image), false, true);
    let extents = file.fiemap(&mut io, 0, u64::MAX).unwrap();
    assert_eq!(extents.len(), 1, "{extents:?}");
    let at = extents[0].physical_bytes;
    Some((image, at))
}

fn target(image: &Image) -> String {
    format!("image:{}", image.path().display())
}

fn open(target: &str, write: bool, buffered: bool) -> (Volume, Io, File) {
    // Without a flusher thread, the test decides when pages are written back.
    let mount = MountOptions::new()
        .cache_bytes(4 << 20)
        .writeback_interval(std::time::Duration::ZERO);
    let volume = Volume::open_with(target, &TargetOptions::new(), &mount).unwrap();
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(write);
    let file = options
        .buffered(buffered)
        .open(&volume, &mut io, "file")
        .unwrap();
    (volume, io, file)
}

/// The image's controller, where these rules spoil commands. An error is not to be tried again.
fn spoiled(image: &Image, rules: Vec<FaultRule>) -> (Serving, String) {
    let spec = TargetSpec::parse(&target(image)).unwrap();
    let mut config = controller_to_serve(&spec).unwrap();
    config.faults = FaultPlan {
        rules,
        ..FaultPlan::default()
    };
    let serving = Serving::start(config, &ServerOptions::default());
    let target = format!("vfio-user:{}", serving.socket().display());
    (serving, target)
}

fn media_error(opcode: u8) -> FaultRule {
    let fault = Fault::Status(StatusField::of(2, 0x80).do_not_retry());
    FaultRule::new(fault)
        .on(Scope::Io)
        .opcode(opcode)
        .times(u64::MAX)
}

/// Such commands on the file's bad block fail.
fn bad_block(opcode: u8, file_at: u64) -> FaultRule {
    let lba = (file_at + BAD as u64) / 512;
    media_error(opcode).lbas(lba..lba + 1)
}

/// The error has `done` bytes, and says so.
fn check(error: &Error, done: usize) {
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_eq!(error.bytes_done(), Some(done as u64), "{error}");
    let words = format!("after {done} bytes");
    assert_eq!(error.to_string().contains(&words), done > 0, "{error}");
}

#[test]
fn a_read_that_fails_later_than_at_its_first_byte_is_an_error_with_the_bytes_before() {
    let Some((image, at)) = image() else { return };
    let (_serving, target) = spoiled(&image, vec![bad_block(OPC_READ, at)]);
    let (_volume, mut io, file) = open(&target, false, false);
    let mut bytes = vec![0; FILE_BYTES];
    let error = file.read_at(&mut io, &mut bytes, 0).unwrap_err();
    check(&error, BAD);
    assert!(bytes[..BAD].iter().all(|&byte| byte == 7));
    // Pieces of 256 KiB, the first one from byte 512 on, the second one with the bad block.
    let error = file.read_at(&mut io, &mut bytes[1000..], 1000);
    check(&error.unwrap_err(), (256 << 10) - 488);
    // `std::io`: the bytes before, then the error; never the end of the file.
    let mut read = Vec::new();
    let mut reader = file.reader(&mut io).unwrap();
    let error = reader.read_to_end(&mut read).unwrap_err();
    assert_eq!(read.len(), BAD);
    let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    check(inner, 0);
    assert_eq!(inner.offset(), Some(BAD as u64));
}

#[test]
fn a_buffered_read_that_fails_later_is_an_error_with_the_bytes_before() {
    let Some((image, at)) = image() else { return };
    let (_serving, target) = spoiled(&image, vec![bad_block(OPC_READ, at)]);
    let (_volume, mut io, file) = open(&target, false, true);
    file.advise(&mut io, 0..u64::MAX, Advice::Random).unwrap();
    let mut bytes = vec![0; FILE_BYTES];
    let good = 256 << 10;
    assert_eq!(file.read_at(&mut io, &mut bytes[..good], 0).unwrap(), good);
    let error = file.read_at(&mut io, &mut bytes, 0).unwrap_err();
    // Read by some pages at once: those with the bad block are not there.
    let done = usize::try_from(error.bytes_done().unwrap()).unwrap();
    assert!((good..=BAD).contains(&done), "{error}");
    check(&error, done);
    assert!(bytes[..done].iter().all(|&byte| byte == 7));
}

#[test]
fn a_write_that_fails_later_is_an_error_with_the_bytes_before() {
    let Some((image, at)) = image() else { return };
    let (_serving, target) = spoiled(&image, vec![bad_block(OPC_WRITE, at)]);
    let (_volume, mut io, file) = open(&target, true, false);
    let error = file.write_at(&mut io, &vec![8; FILE_BYTES], 0);
    check(&error.unwrap_err(), BAD);
    let mut bytes = vec![0; BAD];
    assert_eq!(file.read_at(&mut io, &mut bytes, 0).unwrap(), BAD);
    assert!(bytes.iter().all(|&byte| byte == 8), "they are done");
    // The first piece begins before the first byte of the data.
    let error = file.write_all_at(&mut io, &vec![9; FILE_BYTES - 100], 100);
    check(&error.unwrap_err(), BAD - 100);
    let error = file.write_at(&mut io, &[8; 512], BAD as u64);
    check(&error.unwrap_err(), 0);
}

#[test]
fn a_buffered_write_that_fails_later_is_an_error_with_the_bytes_before() {
    let Some((image, at)) = image() else { return };
    let (_serving, target) = spoiled(&image, vec![bad_block(OPC_READ, at)]);
    let (_volume, mut io, file) = open(&target, true, true);
    // The last block is written in part, so it must be read.
    let error = file.write_at(&mut io, &vec![8; BAD + 100], 0);
    check(&error.unwrap_err(), BAD);
    let error = file.write_all_at(&mut io, &vec![8; BAD + 100], 0);
    check(&error.unwrap_err(), BAD);
    let mut bytes = vec![0; BAD];
    assert_eq!(file.read_at(&mut io, &mut bytes, 0).unwrap(), BAD);
    assert!(bytes.iter().all(|&byte| byte == 8), "they are done");
}

#[test]
fn a_full_handle_would_block() {
    let Some((image, _)) = image() else { return };
    let (_volume, mut io, file) = open(&target(&image), false, false);
    let refused = loop {
        let buf = io.alloc(512).unwrap();
        if let Err(error) = io.submit_read(&file, 0, buf, 0) {
            break error;
        }
    };
    let to_error = |error: SubmitError| Error::from(error);
    assert_eq!(to_error(refused).kind(), ErrorKind::WouldBlock);
    while io.outstanding() > 0 {
        io.poll(usize::MAX, |done| assert_eq!(done.result.unwrap(), 512));
        io.relax();
    }
}

#[test]
fn close_writes_back_and_the_kernel_reads_it() {
    let Some((image, _)) = image() else { return };
    let (volume, io, file) = {
        let (volume, mut io, file) = open(&target(&image), true, true);
        file.write_all_at(&mut io, b"DIRTY", 0).unwrap();
        (volume, io, file)
    };
    drop((io, file));
    volume.close().unwrap();
    let mount = image.mount("ro");
    let bytes = fs::read(mount.path().join("file")).unwrap();
    mount.unmount();
    assert_eq!(&bytes[..6], b"DIRTY\x07");
}

#[test]
fn close_beside_other_handles_writes_back_and_says_that_it_is_not_the_last() {
    let Some((image, _)) = image() else { return };
    let (volume, mut io, file) = open(&target(&image), true, true);
    file.write_all_at(&mut io, b"DIRTY", 0).unwrap();
    let other = volume.clone();
    let error = volume.close().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("3 other handles"), "{error}");
    assert_eq!(other.cache_stats().unwrap().dirty_pages, 0);
    let bytes = fs::read(image.path()).unwrap();
    assert!(
        bytes.windows(6).any(|bytes| bytes == b"DIRTY\x07"),
        "on the device"
    );
    drop((io, file));
    other.close().unwrap();
}

#[test]
fn close_returns_a_failure_of_writing_back_and_of_the_flush() {
    let Some((image, at)) = image() else { return };
    for (rule, direct) in [
        (bad_block(OPC_WRITE, at), false),
        (media_error(OPC_FLUSH), false),
        (media_error(OPC_FLUSH), true),
    ] {
        let (_serving, target) = spoiled(&image, vec![rule]);
        let (volume, mut io, file) = open(&target, true, !direct);
        let written = match direct {
            true => file.write_at(&mut io, &[8; 512], 0),
            false => file.write_at(&mut io, b"DIRTY", BAD as u64),
        };
        written.unwrap();
        drop((io, file));
        let error = volume.close().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.to_string().contains("close"), "{error}");
    }
}

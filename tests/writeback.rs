//! Background writeback: bytes written to buffered files reach the device without a sync, failures
//! are kept for handles that sync, and the flusher thread takes no resources that other threads
//! need.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code: a failure panics, sizes are its own"
)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::image::Image;
use common::served::Serving;
use xtent::ErrorKind;
use xtent::internals::device::emu::{EmuConfig, Fault, FaultPlan, FaultRule, Scope};
use xtent::internals::device::vfio_user::ServerOptions;
use xtent::internals::nvme::spec::{OPC_WRITE, StatusField};
use xtent::internals::target::TargetSpec;
use xtent::internals::target::controller_to_serve;
use xtent::target::TargetOptions;
use xtent::volume::{CacheStats, File, Io, MountOptions, OpenOptions, Volume};

const FILE_BYTES: usize = 8 << 20;
/// Of the cache: a quarter of the file.
const CACHE_BYTES: usize = 2 << 20;
const NEVER: Duration = Duration::from_secs(100_000);
const SOON: Duration = Duration::from_millis(10);

/// One test at a time: they look for the thread by its name.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An image with a file of sevens on it.
fn image() -> Option<Image> {
    if !common::kernel_is_here() {
        return None;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    fs::write(mount.path().join("file"), vec![7; FILE_BYTES]).unwrap();
    mount.unmount();
    Some(image)
}

fn options(expire: Duration, interval: Duration) -> MountOptions {
    MountOptions::new()
        .cache_bytes(CACHE_BYTES)
        .dirty_expire(expire)
        .writeback_interval(interval)
}

fn open(target: &str, options: &MountOptions) -> (Volume, Io, File) {
    let volume = Volume::open_with(target, &TargetOptions::new(), options).unwrap();
    let mut io = volume.io().unwrap();
    let file = handle(&volume, &mut io);
    (volume, io, file)
}

fn handle(volume: &Volume, io: &mut Io) -> File {
    let buffered = OpenOptions::new().read(true).write(true).buffered(true);
    buffered.open(volume, io, "file").unwrap()
}

/// The controller of an image, as this makes it.
fn served(image: &Image, change: impl FnOnce(&mut EmuConfig)) -> (Serving, String) {
    let spec = TargetSpec::parse(&target(image)).unwrap();
    let mut config = controller_to_serve(&spec).unwrap();
    change(&mut config);
    let serving = Serving::start(config, &ServerOptions::default());
    let target = format!("vfio-user:{}", serving.socket().display());
    (serving, target)
}

fn target(image: &Image) -> String {
    format!("image:{}", image.path().display())
}

/// So many writes end with a write fault (media error, 0x80), not to be tried again.
fn writes_fail(times: u64) -> FaultPlan {
    let fault = Fault::Status(StatusField::of(2, 0x80).do_not_retry());
    let rule = FaultRule::new(fault)
        .on(Scope::Io)
        .opcode(OPC_WRITE)
        .times(times);
    FaultPlan {
        rules: vec![rule],
        ..FaultPlan::default()
    }
}

/// Waits until the cache is as wanted. What never comes about fails the test, however slow the
/// machine is.
fn wait_until(io: &mut Io, what: &str, is: impl Fn(&CacheStats) -> bool) -> CacheStats {
    for _ in 0..10_000 {
        let stats = io.cache_stats().unwrap();
        if is(&stats) {
            return stats;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what}: {:?}", io.cache_stats());
}

/// What the kernel knows of the thread, where there is one.
fn flusher() -> Option<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().map(|task| task.path()).find(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "xtent-writeback")
    })
}

/// Fails unless the thread ends. A thread that was joined may be seen for a moment still.
fn assert_no_flusher() {
    let gone = (0..2000).any(|_| {
        let gone = flusher().is_none();
        if !gone {
            std::thread::sleep(Duration::from_millis(5));
        }
        gone
    });
    assert!(gone, "the thread ends with the volume");
}

/// The file's bytes, as a mount shows them.
fn as_mounted(image: &Image) -> Vec<u8> {
    let mount = image.mount("ro");
    let bytes = fs::read(mount.path().join("file")).unwrap();
    mount.unmount();
    bytes
}

#[test]
fn what_is_old_reaches_the_device_without_a_sync() {
    let _alone = alone();
    let Some(image) = image() else { return };
    let (volume, mut io, file) = open(&target(&image), &options(SOON, SOON));
    assert_eq!(
        file.write_at(&mut io, &[8; 100_000], 4096).unwrap(),
        100_000
    );
    wait_until(&mut io, "written back", |stats| {
        stats.dirty_pages == 0 && stats.background > 0
    });
    // Of this image one block after the other.
    let disk = fs::File::open(image.path()).unwrap();
    let first = file.fiemap(&mut io, 4096, 1).unwrap()[0];
    let mut found = vec![0; 4096];
    let at = first.physical_bytes + (4096 - first.logical_bytes);
    disk.read_exact_at(&mut found, at).unwrap();
    assert!(found == [8; 4096], "it is on the device");
    drop((file, io, volume));
    assert_no_flusher();
    let bytes = as_mounted(&image);
    assert!(bytes[4096..104_096] == [8; 100_000] && bytes[104_096..].iter().all(|&b| b == 7));
}

#[test]
fn much_is_written_back_before_it_is_old_and_nothing_is_done_when_all_is_clean() {
    let _alone = alone();
    let Some(image) = image() else { return };
    let (volume, mut io, file) = open(&target(&image), &options(NEVER, NEVER));
    let data: Vec<u8> = (0..FILE_BYTES).map(|at| (at / 1000) as u8).collect();
    // Four times the cache: writers wait for the thread.
    let mut done = 0;
    while done < data.len() {
        let piece = &data[done..data.len().min(done + 50_000)];
        done += file.write_at(&mut io, piece, done as u64).unwrap();
    }
    let few = |stats: &CacheStats| stats.dirty_pages * 10 < stats.pages && stats.background > 0;
    wait_until(&mut io, "below the background share", few);
    file.sync_data(&mut io).unwrap();
    drop((file, io, volume));
    assert!(as_mounted(&image) == data);

    // It would look every millisecond, were there anything dirty.
    let millisecond = Duration::from_millis(1);
    let (volume, mut io, file) = open(&target(&image), &options(millisecond, millisecond));
    file.write_at(&mut io, &[1; 4096], 0).unwrap();
    wait_until(&mut io, "written back", |stats| stats.dirty_pages == 0);
    let status = flusher().expect("the thread is there").join("status");
    let switches = || {
        let text = fs::read_to_string(&status).unwrap();
        let line = text.lines().find(|l| l.starts_with("voluntary")).unwrap();
        line.to_owned()
    };
    let sleeps = (0..100).any(|_| {
        let before = switches();
        std::thread::sleep(Duration::from_millis(100));
        before == switches()
    });
    assert!(sleeps, "it polls although nothing is dirty");
    // And wakes up again.
    file.write_at(&mut io, &[2; 4096], 0).unwrap();
    wait_until(&mut io, "written back", |stats| stats.dirty_pages == 0);
    drop((file, io, volume));
}

#[test]
fn a_failure_is_told_once_to_each_handle_by_its_next_sync() {
    let _alone = alone();
    let Some(image) = image() else { return };
    let (serving, target) = served(&image, |config| config.faults = writes_fail(1));
    let (volume, mut io, first) = open(&target, &options(SOON, SOON));
    let second = handle(&volume, &mut io);
    first.write_at(&mut io, &[8; 4096], 0).unwrap();
    // It fails, and is tried again.
    let stats = wait_until(&mut io, "written back after all", |stats| {
        stats.write_errors > 0 && stats.dirty_pages == 0 && stats.background > 0
    });
    assert_eq!((stats.write_errors, stats.background), (1, 1), "{stats:?}");
    for handle in [&first, &second] {
        let error = handle.sync_data(&mut io).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        handle.sync_data(&mut io).unwrap();
    }
    let late = handle(&volume, &mut io);
    late.sync_data(&mut io).unwrap();
    drop((first, second, late, io, volume));
    serving.end();
    assert!(as_mounted(&image)[..4096] == [8; 4096]);
}

/// What fails for good neither hangs writers nor loses what was written.
#[test]
fn a_device_that_writes_nothing_is_told_to_the_writer_that_wants_more() {
    let _alone = alone();
    let Some(image) = image() else { return };
    let (serving, target) = served(&image, |config| config.faults = writes_fail(u64::MAX));
    let (volume, mut io, file) = open(&target, &options(SOON, SOON));
    let mut done = 0;
    let error = loop {
        match file.write_at(&mut io, &[8; 10_000], done) {
            Ok(wrote) => done += wrote as u64,
            Err(error) => break error,
        }
        assert!(done < FILE_BYTES as u64, "more is dirty than may be");
    };
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let mut found = vec![0; done as usize];
    assert_eq!(file.read_at(&mut io, &mut found, 0).unwrap(), found.len());
    assert!(found.iter().all(|&byte| byte == 8));
    drop((file, io, volume));
    serving.end();
}

#[test]
fn closing_with_dirty_pages_loses_nothing() {
    let _alone = alone();
    let Some(image) = image() else { return };
    for round in 0..6_u8 {
        // Nothing was written back yet; all of it; or it is being written back.
        let expire = [NEVER, SOON, Duration::ZERO][usize::from(round) % 3];
        let interval = [NEVER, SOON, Duration::from_micros(10)][usize::from(round) % 3];
        let (volume, mut io, file) = open(&target(&image), &options(expire, interval));
        let data = vec![round; 300_000];
        let mut done = 0;
        while done < data.len() {
            done += file.write_at(&mut io, &data[done..], done as u64).unwrap();
        }
        drop((file, volume, io));
        assert_no_flusher();
        assert!(as_mounted(&image)[..data.len()] == data, "round {round}");
    }
}

#[test]
fn without_a_queue_to_spare_writers_write_back_and_others_get_theirs() {
    let _alone = alone();
    let Some(image) = image() else { return };
    // One for direct I/O, one for buffered.
    let (serving, two) = served(&image, |config| config.max_io_queues = 2);
    let (volume, mut io, file) = open(&two, &options(Duration::ZERO, SOON));
    for at in 0..40 {
        let data = vec![at as u8; 100_000];
        let wrote = file.write_at(&mut io, &data, at * 100_000).unwrap();
        assert_eq!(wrote, data.len());
    }
    file.sync_data(&mut io).unwrap();
    let stats = io.cache_stats().unwrap();
    assert_eq!((stats.background, stats.dirty_pages), (0, 0), "{stats:?}");
    drop((file, io, volume));
    serving.end();

    // The third queue is the flusher's, until another thread needs it.
    let (serving, three) = served(&image, |config| config.max_io_queues = 3);
    let (volume, mut io, file) = open(&three, &options(Duration::ZERO, SOON));
    for round in 0..5_u8 {
        file.write_at(&mut io, &[round; 4096], 0).unwrap();
        wait_until(&mut io, "written back", |stats| {
            stats.background > u64::from(round)
        });
        let other = volume.io().expect("the thread's queue");
        drop(other);
    }
    drop((file, io, volume));
    serving.end();
}

#[test]
fn a_page_that_is_lent_stops_nobody_who_wants_others() {
    let _alone = alone();
    let Some(image) = image() else { return };
    // Of three queues the third is the thread's.
    let (serving, target) = served(&image, |config| config.max_io_queues = 3);
    let (volume, mut io, file) = open(&target, &options(Duration::ZERO, SOON));
    file.write_at(&mut io, &[1; 4096], 0).unwrap();
    let mut lent = file.view_mut(&mut io, 0..10).unwrap().unwrap();
    lent.copy_from_slice(&[3; 10]);
    let before = io.cache_stats().unwrap().background;
    file.write_at(&mut io, &[2; 4096], 4096).unwrap();
    wait_until(&mut io, "its neighbour written back", |stats| {
        stats.background > before
    });
    let other = volume.io().expect("the thread's queue");
    drop((lent, other));
    wait_until(&mut io, "written back", |stats| stats.dirty_pages == 0);
    drop((file, io, volume));
    serving.end();
    let bytes = as_mounted(&image);
    assert!(bytes[..10] == [3; 10] && bytes[10..4096] == [1; 4086]);
    assert!(bytes[4096..8192] == [2; 4096]);
}

/// All handles of a file share its pages, whichever was opened first: each reads the others'
/// writes.
#[test]
fn who_opens_a_file_at_the_same_time_has_the_same_pages() {
    const THREADS: usize = 4;
    const FILES: usize = 400;
    let _alone = alone();
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    for file in 0..FILES {
        fs::write(mount.path().join(file.to_string()), [7; THREADS * 4096]).unwrap();
    }
    mount.unmount();
    let volume = Volume::open_with(
        &target(&image),
        &TargetOptions::new(),
        &options(NEVER, NEVER),
    )
    .unwrap();
    let together = std::sync::Barrier::new(THREADS);
    let work = |thread: usize| {
        let mut io = volume.io().unwrap();
        let buffered = OpenOptions::new().read(true).write(true).buffered(true);
        for file in 0..FILES {
            together.wait();
            let file = buffered.open(&volume, &mut io, file.to_string()).unwrap();
            let at = (thread * 4096) as u64;
            assert_eq!(file.write_at(&mut io, &[8; 10], at).unwrap(), 10);
            together.wait();
            let mut found = [0; THREADS * 4096];
            let len = file.read_at(&mut io, &mut found, 0).unwrap();
            assert_eq!(len, found.len());
            let written = found.chunks(4096).all(|page| page[..10] == [8; 10]);
            assert!(written, "thread {thread}: what others wrote is not there");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
}

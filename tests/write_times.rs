//! What a write changes of a file besides its data: times, change count, privileges. What the
//! kernel finds after a clean end and after a crash; what handles of the volume see before.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs::{self, File as HostFile};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::image::Image;
use common::{kernel_is_here, random_bytes, run, sys};
use xtent::ErrorKind;
use xtent::internals::sys::coarse_time;
use xtent::volume::{File, Io, OpenOptions, SetTime, Timestamp, Volume};

/// Bytes of a file.
const LEN: usize = 64 << 10;
/// File capabilities: revision 2, `CAP_CHOWN`.
const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Seconds of the times that files are made with.
const OLD: i64 = 1_000_000_000;

fn stamp(since: Duration) -> Timestamp {
    Timestamp {
        seconds: since.as_secs().try_into().unwrap(),
        nanoseconds: since.subsec_nanos(),
    }
}

/// The time at the last tick of the kernel: times that are not looked at are no finer.
fn now() -> Timestamp {
    stamp(coarse_time())
}

fn exactly_now() -> Timestamp {
    stamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

fn open_volume(image: &Image) -> Volume {
    Volume::open(&format!("image:{}", image.path().display())).unwrap()
}

fn open(volume: &Volume, io: &mut Io, path: &str, buffered: bool) -> File {
    let options = OpenOptions::new().read(true).write(true).buffered(buffered);
    options.open(volume, io, path).unwrap()
}

/// How the content of a file is changed.
type Way = fn(&File, &mut Io);

/// Every way to change the content of a file; those with `true` through the page cache.
const WAYS: &[(&str, bool, Way)] = &[
    ("dma", false, |file, io| {
        let mut buf = io.alloc(4096).unwrap();
        file.write_dma_at(io, &mut buf, 8192).unwrap();
    }),
    ("submit", false, |file, io| {
        let buf = io.alloc(8192).unwrap();
        io.submit_write(file, 4096, buf, 1).unwrap();
        while io.outstanding() > 0 {
            io.poll(8, |done| assert_eq!(done.result.unwrap(), 8192));
            io.relax();
        }
    }),
    ("bounce", false, |file, io| {
        assert_eq!(file.write_at(io, &[1; 4096], 4096).unwrap(), 4096);
    }),
    ("edges", false, |file, io| {
        file.write_all_at(io, b"odd", 5001).unwrap();
    }),
    ("append", false, |file, io| {
        file.write_all_at(io, &[2; 8192], LEN as u64).unwrap();
    }),
    ("set-len", false, |file, io| file.set_len(io, 5000).unwrap()),
    ("allocate", false, |file, io| {
        file.allocate(io, 0..2 * LEN as u64, true).unwrap();
    }),
    ("punch", false, |file, io| {
        file.punch_hole(io, 4096..8192).unwrap();
    }),
    ("zero", false, |file, io| {
        file.zero_range(io, 5..500, false).unwrap();
    }),
    ("collapse", false, |file, io| {
        file.collapse_range(io, 0..4096).unwrap();
    }),
    ("replace", false, |file, io| {
        let new = [5; 10_000];
        file.replace_content(io, 10_000, &mut &new[..]).unwrap();
    }),
    ("cached", true, |file, io| {
        assert_eq!(file.write_at(io, b"cached", 5000).unwrap(), 6);
    }),
    ("cached-append", true, |file, io| {
        file.write_all_at(io, &[3; 5000], LEN as u64).unwrap();
    }),
    ("view", true, |file, io| {
        let mut view = file.view_mut(io, 100..200).unwrap().unwrap();
        view.fill(4);
    }),
    ("dontcache", true, |file, io| {
        let flags = xtent::volume::RwFlags::DONTCACHE;
        assert_eq!(file.write_with(io, b"once", 9000, flags).unwrap(), 4);
    }),
];

/// The attributes of a file beside its capabilities: before them, and behind.
type Attributes = (&'static str, Vec<String>, Vec<String>);

/// In the inode, in a leaf, in several leaves.
fn attributes() -> Vec<Attributes> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let many = |count: u32| {
        (0..count)
            .map(|index| format!("user.number-{index}"))
            .collect()
    };
    vec![
        ("none", names(&[]), names(&[])),
        ("before", names(&["user.a"]), names(&[])),
        ("behind", names(&[]), names(&["user.b", "user.capability"])),
        ("around", names(&["user.capability"]), names(&["user.d"])),
        ("leaf", many(30), names(&["user.d"])),
        ("node", names(&["user.capability"]), many(300)),
    ]
}

/// A file with old times, which is run by another user than who calls it, with capabilities.
fn make_privileged(path: &Path, before: &[String], behind: &[String], pieces: u64) {
    fs::write(path, random_bytes(3, LEN)).unwrap();
    let file = HostFile::options().write(true).open(path).unwrap();
    // Each a piece by itself: with many the extents of the file are a btree.
    for piece in 0..pieces {
        let at = LEN as u64 + 8192 * (piece + 1);
        file.write_all_at(&[9; 4096], at).unwrap();
    }
    drop(file);
    fs::set_permissions(path, fs::Permissions::from_mode(0o6755)).unwrap();
    for name in before {
        sys::set_xattr(path, name, name.as_bytes()).unwrap();
    }
    sys::set_xattr(path, "security.capability", &CAPABILITY).unwrap();
    for name in behind {
        sys::set_xattr(path, name, name.as_bytes()).unwrap();
    }
    sys::set_times(path, (OLD, 0), (OLD, 5)).unwrap();
}

fn change_count(image: &Image, ino: u64) -> u64 {
    let (path, inode) = (image.path(), format!("inode {ino}"));
    let args = ["-r", "-c", &inode, "-c", "p v3.change_count"];
    let text = run("xfs_db", &[&args[..], &[path.to_str().unwrap()]].concat());
    text.trim().rsplit(' ').next().unwrap().parse().unwrap()
}

/// What the kernel sees of a file that was written to after `begin`.
fn check_written(path: &Path, begin: Timestamp, attributes: &[String]) {
    let what = path.display();
    let metadata = fs::metadata(path).unwrap();
    assert_eq!(metadata.mode(), 0o100_755, "{what}");
    let mtime = (metadata.mtime(), metadata.mtime_nsec());
    let ctime = (metadata.ctime(), metadata.ctime_nsec());
    let begin = (begin.seconds, begin.nanoseconds.into());
    assert!(mtime >= begin, "{what}: mtime {mtime:?}, begin {begin:?}");
    assert!(ctime >= begin, "{what}: ctime {ctime:?}, begin {begin:?}");
    assert_eq!(
        (metadata.atime(), metadata.atime_nsec()),
        (OLD, 0),
        "{what}"
    );
    let capability = sys::xattr(path, "security.capability").unwrap();
    assert_eq!(capability, None, "{what}");
    for name in attributes {
        let value = sys::xattr(path, name).unwrap();
        assert_eq!(value.as_deref(), Some(name.as_bytes()), "{what}: {name}");
    }
}

#[test]
fn every_write_sets_the_times_and_takes_privileges_away() {
    if !kernel_is_here() {
        return;
    }
    // Large extent counters and time stamps, or neither; attribute forks that go and that stay.
    for features in ["bigtime=1,rmapbt=1", "bigtime=0"] {
        let image = Image::make(300 << 20, 512, &["-m", features]);
        let mount = image.mount("noatime");
        let mut files = Vec::new();
        for (way, buffered, change) in WAYS {
            for (index, (name, before, behind)) in attributes().iter().enumerate() {
                let name = format!("{way}-{name}");
                let path = mount.path().join(&name);
                let pieces = if index == 0 && *way == "dma" { 60 } else { 0 };
                make_privileged(&path, before, behind, pieces);
                let kept = [&before[..], behind].concat();
                files.push((
                    name,
                    *buffered,
                    *change,
                    kept,
                    fs::metadata(&path).unwrap().ino(),
                ));
            }
        }
        mount.unmount();
        let counts: Vec<u64> = files
            .iter()
            .map(|file| change_count(&image, file.4))
            .collect();

        let begin = now();
        let volume = open_volume(&image);
        let mut io = volume.io().unwrap();
        for (name, buffered, change, ..) in &files {
            let file = open(&volume, &mut io, name, *buffered);
            assert_eq!(
                file.metadata().mode,
                0o106_755,
                "{name}: opened, not written to"
            );
            file.write_all_at(&mut io, &[], 0).unwrap();
            assert_eq!(
                file.metadata().mode,
                0o106_755,
                "{name}: nothing was written"
            );
            assert_eq!(file.metadata().mtime.seconds, OLD, "{name}");
            change(&file, &mut io);
            let metadata = volume.metadata(&mut io, name).unwrap();
            assert_eq!(metadata.mode, 0o100_755, "{name}");
            assert!(metadata.mtime >= begin && metadata.ctime >= begin, "{name}");
            assert_eq!(metadata, file.metadata(), "{name}");
        }
        volume.sync(&mut io).unwrap();
        let copy = Image::empty(0, 512);
        fs::copy(image.path(), copy.path()).unwrap();
        drop(io);
        volume.close().unwrap();
        image.assert_clean();
        // A clean end, and a log that the kernel replays.
        for image in [&image, &copy] {
            let mount = image.mount("noatime");
            for (name, _, _, kept, _) in &files {
                check_written(&mount.path().join(name), begin, kept);
            }
            mount.unmount();
            image.assert_clean();
            for (file, before) in files.iter().zip(&counts) {
                let after = change_count(image, file.4);
                assert!(after > *before, "{}: {after} after {before}", file.0);
            }
        }
    }
}

#[test]
fn privileges_that_are_set_on_an_open_file_go_with_the_next_write() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(300 << 20, 512, &[]);
    let mount = image.mount("");
    fs::write(mount.path().join("file"), random_bytes(1, LEN)).unwrap();
    mount.unmount();
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    let direct = open(&volume, &mut io, "file", false);
    let cached = open(&volume, &mut io, "file", true);
    let mode = |file: &File| file.metadata().permissions();
    for (round, (set, left)) in [
        (0o4711, 0o711),
        (0o2711, 0o711),
        (0o2701, 0o2701),
        (0o6750, 0o750),
    ]
    .into_iter()
    .cycle()
    .take(12)
    .enumerate()
    {
        volume.set_permissions(&mut io, "file", set).unwrap();
        assert_eq!((mode(&direct), mode(&cached)), (set, set));
        match round % 3 {
            0 => direct.write_all_at(&mut io, &[1; 4096], 4096).unwrap(),
            // The page is dirty already in later rounds: the filesystem is asked for nothing.
            1 => cached.write_all_at(&mut io, b"cached", 9000).unwrap(),
            _ => {
                let buf = io.alloc(4096).unwrap();
                io.submit_write(&direct, 0, buf, 0).unwrap();
                while io.outstanding() > 0 {
                    io.poll(1, |done| assert!(done.result.is_ok()));
                }
            }
        }
        assert_eq!(
            (mode(&direct), mode(&cached)),
            (left, left),
            "round {round}"
        );
    }
    drop((direct, cached, io));
    volume.close().unwrap();
    image.assert_clean();
}

#[test]
fn times_that_are_set_after_a_write_win() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(300 << 20, 512, &[]);
    let mount = image.mount("");
    for name in ["direct", "cached", "closed", "seen", "again"] {
        fs::write(mount.path().join(name), random_bytes(1, LEN)).unwrap();
    }
    mount.unmount();
    let at = |seconds| Timestamp {
        seconds,
        nanoseconds: 77,
    };
    let set = |seconds| {
        (
            Some(SetTime::At(at(seconds))),
            Some(SetTime::At(at(seconds + 1))),
        )
    };
    let begin = now();
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    for (name, buffered) in [("direct", false), ("cached", true), ("seen", false)] {
        let file = open(&volume, &mut io, name, buffered);
        file.write_all_at(&mut io, &[1; 4096], 0).unwrap();
        if name == "seen" {
            assert!(file.metadata().mtime >= begin);
        }
        let (accessed, modified) = set(OLD);
        file.set_times(&mut io, accessed, modified).unwrap();
        assert_eq!(file.metadata().mtime, at(OLD + 1), "{name}");
        assert!(file.metadata().ctime >= begin, "{name}");
    }
    // Through the path, when the file is closed.
    let file = open(&volume, &mut io, "closed", false);
    file.write_all_at(&mut io, &[1; 4096], 0).unwrap();
    drop(file);
    let (accessed, modified) = set(OLD);
    volume
        .set_times(&mut io, "closed", accessed, modified)
        .unwrap();
    // A write that comes later wins.
    let file = open(&volume, &mut io, "again", false);
    let (accessed, modified) = set(OLD);
    file.set_times(&mut io, accessed, modified).unwrap();
    file.write_all_at(&mut io, &[1; 4096], 0).unwrap();
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    for name in ["direct", "cached", "closed", "seen", "again"] {
        let metadata = fs::metadata(mount.path().join(name)).unwrap();
        let mtime = (metadata.mtime(), metadata.mtime_nsec());
        let ctime = (metadata.ctime(), metadata.ctime_nsec());
        let begin = (begin.seconds, begin.nanoseconds.into());
        match name {
            "again" => assert!(mtime >= begin, "{name}"),
            _ => assert_eq!(mtime, (OLD + 1, 77), "{name}"),
        }
        assert!(ctime >= begin, "{name}");
    }
    mount.unmount();
}

/// A disk with `file`, of old times.
fn disk_of_one_file(args: &[&str]) -> Image {
    let image = Image::make(300 << 20, 512, args);
    let mount = image.mount("");
    let path = mount.path().join("file");
    fs::write(&path, random_bytes(1, LEN)).unwrap();
    sys::set_times(&path, (OLD, 0), (OLD, 0)).unwrap();
    mount.unmount();
    image
}

fn mtime_of_copy(image: &Image) -> i64 {
    let copy = Image::empty(0, 512);
    fs::copy(image.path(), copy.path()).unwrap();
    let mount = copy.mount("");
    let mtime = fs::metadata(mount.path().join("file")).unwrap().mtime();
    mount.unmount();
    copy.assert_clean();
    mtime
}

#[test]
fn a_full_sync_has_the_times_and_a_sync_of_data_leaves_the_log_alone() {
    if !kernel_is_here() {
        return;
    }
    let image = disk_of_one_file(&[]);
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    for buffered in [false, true] {
        let file = open(&volume, &mut io, "file", buffered);
        let (accessed, modified) = (None, Some(SetTime::At(Timestamp::default())));
        file.set_times(&mut io, accessed, modified).unwrap();
        file.sync_all(&mut io).unwrap();
        file.write_all_at(&mut io, &[1; 4096], 0).unwrap();
        file.sync_data(&mut io).unwrap();
        assert_eq!(mtime_of_copy(&image), 0, "buffered: {buffered}");
        file.sync_all(&mut io).unwrap();
        assert!(mtime_of_copy(&image) > OLD, "buffered: {buffered}");
    }
    drop(io);
    volume.close().unwrap();
    // Without a write nothing of the disk is changed.
    let before = fs::read(image.path()).unwrap();
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    let file = open(&volume, &mut io, "file", true);
    assert_eq!(file.read_at(&mut io, &mut [0; 100], 0).unwrap(), 100);
    assert_eq!(file.write_at(&mut io, &[], 0).unwrap(), 0);
    file.sync_all(&mut io).unwrap();
    drop((file, io));
    volume.close().unwrap();
    assert!(
        fs::read(image.path()).unwrap() == before,
        "the disk changed"
    );
}

#[test]
fn a_mark_has_the_time_of_the_first_look_or_of_the_close() {
    if !kernel_is_here() {
        return;
    }
    let image = disk_of_one_file(&[]);
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    let pause = || std::thread::sleep(Duration::from_millis(2));
    for buffered in [false, true] {
        let file = open(&volume, &mut io, "file", buffered);
        let other = open(&volume, &mut io, "file", !buffered);
        let mut last = file.metadata().mtime;
        for _ in 0..3 {
            let begin = now();
            file.write_all_at(&mut io, &[1; 4096], 4096).unwrap();
            let seen = other.metadata();
            assert!(seen.mtime >= begin && seen.mtime > last && seen.ctime == seen.mtime);
            pause();
            // Nothing was written since: neither looks nor noting change it.
            assert_eq!(file.metadata(), seen);
            file.sync_all(&mut io).unwrap();
            assert_eq!(volume.metadata(&mut io, "file").unwrap(), seen);
            last = seen.mtime;
        }
        file.write_all_at(&mut io, &[2; 4096], 0).unwrap();
        drop((file, other));
        let closed = exactly_now();
        pause();
        // Opened again or not.
        if buffered {
            drop(open(&volume, &mut io, "file", false));
        }
        let seen = volume.metadata(&mut io, "file").unwrap();
        assert!(
            seen.mtime > last && seen.mtime <= closed,
            "buffered: {buffered}"
        );
    }
    // An operation may end after its file was closed.
    let file = open(&volume, &mut io, "file", false);
    let buf = io.alloc(4096).unwrap();
    io.submit_write(&file, 0, buf, 0).unwrap();
    let begin = now();
    drop(file);
    while io.outstanding() > 0 {
        io.poll(1, |done| assert!(done.result.is_ok()));
        io.relax();
    }
    drop(io);
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    let metadata = fs::metadata(mount.path().join("file")).unwrap();
    assert!((metadata.mtime(), metadata.mtime_nsec()) >= (begin.seconds, begin.nanoseconds.into()));
    mount.unmount();
}

#[test]
fn a_volume_that_is_dropped_writes_the_times_too() {
    if !kernel_is_here() {
        return;
    }
    let image = disk_of_one_file(&[]);
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    let file = open(&volume, &mut io, "file", false);
    file.write_all_at(&mut io, &[1; 4096], 0).unwrap();
    drop((volume, io, file));
    image.assert_clean();
    assert!(mtime_of_copy(&image) > OLD);
}

#[test]
fn times_are_never_older_than_data_while_threads_write() {
    if !kernel_is_here() {
        return;
    }
    let image = disk_of_one_file(&[]);
    let volume = open_volume(&image);
    let rounds = 300;
    let end = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|thread| {
                let volume = &volume;
                scope.spawn(move || {
                    let mut io = volume.io().unwrap();
                    let file = open(volume, &mut io, "file", thread % 2 == 1);
                    let mut begin = now();
                    for round in 0..rounds {
                        begin = now();
                        let at = thread * 16384 + (round % 4) * 4096;
                        file.write_all_at(&mut io, &[7; 4096], at).unwrap();
                        let seen = file.metadata();
                        assert!(seen.mtime >= begin, "thread {thread}, round {round}");
                        match round % 50 {
                            10 => file.sync_all(&mut io).unwrap(),
                            20 => volume.sync(&mut io).unwrap(),
                            // Without a look, so that the mark is the only trace.
                            30 => file.write_all_at(&mut io, &[8; 4096], at).unwrap(),
                            40 => file.set_permissions(&mut io, 0o4755).unwrap(),
                            _ => {}
                        }
                    }
                    begin
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .max()
    });
    volume.close().unwrap();
    image.assert_clean();
    let end = end.unwrap();
    let mount = image.mount("ro");
    let metadata = fs::metadata(mount.path().join("file")).unwrap();
    let mtime = (metadata.mtime(), metadata.mtime_nsec());
    assert!(mtime >= (end.seconds, end.nanoseconds.into()));
    mount.unmount();
}

#[test]
fn where_metadata_may_not_be_changed_overwrites_leave_the_times() {
    if !kernel_is_here() {
        return;
    }
    let image = disk_of_one_file(&[]);
    let mount = image.mount("");
    make_privileged(&mount.path().join("privileged"), &[], &[], 0);
    mount.unmount();
    let path = image.path();
    // Quotas of users.
    let args = ["-x", "-c", "sb 0", "-c", "write -d qflags 0x7"];
    run("xfs_db", &[&args[..], &[path.to_str().unwrap()]].concat());
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().write(true);
    let error = options.open(&volume, &mut io, "privileged").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite, "{error}");
    assert!(error.to_string().contains("set-user-ID"), "{error}");
    for buffered in [false, true] {
        let file = open(&volume, &mut io, "file", buffered);
        file.write_all_at(&mut io, &[1; 4096], 0).unwrap();
        file.sync_all(&mut io).unwrap();
        assert_eq!(file.metadata().mtime.seconds, OLD);
    }
    drop(io);
    volume.close().unwrap();
    let volume = open_volume(&image);
    let mut io = volume.io().unwrap();
    let file = open(&volume, &mut io, "file", false);
    assert_eq!(file.metadata().mtime.seconds, OLD);
    let mut byte = [0];
    assert_eq!(file.read_at(&mut io, &mut byte, 0).unwrap(), 1);
    assert_eq!(byte, [1]);
}

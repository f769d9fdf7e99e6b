//! Changes of metadata through the API: what the kernel finds after a clean end, after a sync
//! without one, and after none.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::image::Image;
use common::{kernel_is_here, random_bytes};
use xtent::ErrorKind;
use xtent::volume::{OpenOptions, SetTime, Timestamp, Volume};

fn image() -> Image {
    let image = Image::make(300 << 20, 512, &[]);
    let mount = image.mount("");
    fs::write(mount.path().join("file"), random_bytes(1, 100_000)).unwrap();
    fs::create_dir(mount.path().join("dir")).unwrap();
    symlink("file", mount.path().join("link")).unwrap();
    mount.unmount();
    image
}

fn open(image: &Image) -> Volume {
    Volume::open(&format!("image:{}", image.path().display())).unwrap()
}

#[test]
fn permissions_owners_and_times_are_changed() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let at = Timestamp {
        seconds: 1_234_567_890,
        nanoseconds: 123_456_789,
    };
    volume.set_permissions(&mut io, "/link", 0o4751).unwrap();
    assert_eq!(volume.metadata(&mut io, "/file").unwrap().mode, 0o104_751);
    volume.set_owner(&mut io, "/file", Some(7), None).unwrap();
    assert_eq!(volume.metadata(&mut io, "/file").unwrap().mode, 0o100_751);
    volume
        .set_symlink_owner(&mut io, "/link", None, Some(9))
        .unwrap();
    volume
        .set_times(&mut io, "/dir", None, Some(SetTime::At(at)))
        .unwrap();
    volume
        .set_symlink_times(&mut io, "/link", Some(SetTime::At(at)), None)
        .unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&volume, &mut io, "/file")
        .unwrap();
    file.set_times(&mut io, Some(SetTime::At(at)), Some(SetTime::Now))
        .unwrap();
    file.set_owner(&mut io, None, Some(1000)).unwrap();
    file.write_all_at(&mut io, b"overwritten", 5000).unwrap();
    for (path, mode) in [("/nowhere", 0o600), ("/file", 0o10_000)] {
        let error = volume.set_permissions(&mut io, path, mode).unwrap_err();
        assert_eq!(error.operation(), Some("change permissions"));
    }
    let odd = Timestamp {
        nanoseconds: 1_000_000_000,
        ..at
    };
    let error = volume
        .set_times(&mut io, "/file", None, Some(SetTime::At(odd)))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    let file = fs::metadata(mount.path().join("file")).unwrap();
    assert_eq!(file.mode(), 0o100_751);
    assert_eq!((file.uid(), file.gid()), (7, 1000));
    assert_eq!((file.atime(), file.atime_nsec()), (at.seconds, 123_456_789));
    assert!(file.mtime() > at.seconds);
    let link = fs::symlink_metadata(mount.path().join("link")).unwrap();
    assert_eq!((link.uid(), link.gid()), (0, 9));
    assert_eq!((link.atime(), link.atime_nsec()), (at.seconds, 123_456_789));
    let dir = fs::metadata(mount.path().join("dir")).unwrap();
    assert_eq!((dir.mtime(), dir.mtime_nsec()), (at.seconds, 123_456_789));
    let content = fs::read(mount.path().join("file")).unwrap();
    assert_eq!(&content[5000..5011], b"overwritten");
    mount.unmount();
}

#[test]
fn every_handle_of_a_file_sees_its_metadata_change() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let direct = options.open(&volume, &mut io, "/file").unwrap();
    let buffered = options.buffered(true);
    let buffered = buffered.open(&volume, &mut io, "/file").unwrap();
    buffered.write_all_at(&mut io, b"cached", 10).unwrap();
    volume.set_permissions(&mut io, "/link", 0o604).unwrap();
    for file in [&direct, &buffered] {
        assert_eq!(file.metadata().mode, 0o100_604);
    }
    direct.set_permissions(&mut io, 0o640).unwrap();
    // Opened now, it is the same file in core: with the pages that are not written back.
    let again = options.open(&volume, &mut io, "/file").unwrap();
    for file in [&direct, &buffered, &again] {
        assert_eq!(file.metadata().mode, 0o100_640);
        assert_eq!(file.len(), 100_000);
        let mut bytes = [0; 6];
        file.read_exact_at(&mut io, &mut bytes, 10).unwrap();
        assert_eq!(&bytes, b"cached");
    }
    drop((direct, buffered, again, io, volume));
    image.assert_clean();
}

#[test]
fn what_was_synced_survives_an_end_without_a_close() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let copy = Image::empty(0, 512);
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    volume.set_permissions(&mut io, "/file", 0o600).unwrap();
    volume.sync(&mut io).unwrap();
    volume.set_permissions(&mut io, "/dir", 0o700).unwrap();
    let file = volume.open_file(&mut io, "/file").unwrap();
    file.sync_data(&mut io).unwrap();
    volume.set_permissions(&mut io, "/file", 0o111).unwrap();
    fs::copy(image.path(), copy.path()).unwrap();
    // The log is replayed by the kernel: both syncs, and not what came after them.
    let mount = copy.mount("");
    let mode = |name: &str| fs::metadata(mount.path().join(name)).unwrap().mode();
    assert_eq!((mode("file"), mode("dir")), (0o100_600, 0o040_700));
    mount.unmount();
    copy.assert_clean();
    // The volume itself goes on, and leaves a clean log.
    drop((file, io, volume));
    image.assert_clean();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    assert_eq!(volume.metadata(&mut io, "/file").unwrap().mode, 0o100_111);
}

#[test]
fn what_may_not_be_changed_is_refused() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let mount = image.mount("");
    let path = |name: &str| mount.path().join(name).to_str().unwrap().to_owned();
    for name in ["immutable", "acl", "twin", "capable"] {
        fs::write(mount.path().join(name), "text").unwrap();
    }
    for name in ["acl", "twin"] {
        common::run("setfacl", &["-m", "u:7:r,g:9:rwx", &path(name)]);
    }
    common::run("chmod", &["2751", &path("twin")]);
    common::run("setcap", &["cap_net_raw+ep", &path("capable")]);
    common::run("chattr", &["+i", &path("immutable")]);
    mount.unmount();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let mode = volume.set_permissions(&mut io, "/immutable", 0o600);
    assert_eq!(mode.unwrap_err().kind(), ErrorKind::PermissionDenied);
    // The list changes with the mode, and capabilities go with the owner.
    volume.set_permissions(&mut io, "/acl", 0o2751).unwrap();
    volume
        .set_owner(&mut io, "/capable", Some(5), None)
        .unwrap();
    drop(io);
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    let path = |name: &str| mount.path().join(name).to_str().unwrap().to_owned();
    let list = |name: &str| common::run("getfacl", &["-cpn", &path(name)]);
    assert_eq!(list("acl"), list("twin"));
    assert!(list("acl").contains("mask::r-x"), "{}", list("acl"));
    assert_eq!(common::run("getcap", &[&path("capable")]), "");
    mount.unmount();
    let target = format!("image:{}", image.path().display());
    let read_only = xtent::volume::MountOptions::new().read_only(true);
    let options = xtent::target::TargetOptions::new();
    let volume = Volume::open_with(&target, &options, &read_only).unwrap();
    let mut io = volume.io().unwrap();
    let error = volume.set_permissions(&mut io, "/file", 0o600).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
}

#[test]
fn entries_of_directories_are_changed_and_links_are_not_followed() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let at = Timestamp {
        seconds: 1_000_000_000,
        nanoseconds: 1,
    };
    let mut dir = volume.read_dir(&mut io, "/").unwrap();
    while let Some(entry) = dir.next_entry(&mut io).unwrap() {
        entry.set_owner(&mut io, Some(3), Some(4)).unwrap();
        let time = Some(SetTime::At(at));
        entry.set_times(&mut io, time, time).unwrap();
        let mode = entry.set_permissions(&mut io, 0o1700);
        match entry.file_name() == "link" {
            true => assert_eq!(mode.unwrap_err().kind(), ErrorKind::Unsupported),
            false => mode.unwrap(),
        }
    }
    drop((dir, io));
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    for (name, mode) in [("file", 0o101_700), ("dir", 0o041_700), ("link", 0o120_777)] {
        let about = fs::symlink_metadata(mount.path().join(name)).unwrap();
        assert_eq!((about.mode(), about.uid(), about.gid()), (mode, 3, 4));
        assert_eq!((about.mtime(), about.mtime_nsec()), (at.seconds, 1));
    }
    mount.unmount();
}

#[test]
fn length_and_space_are_changed() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let mut model = random_bytes(1, 100_000);
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&volume, &mut io, "/file")
        .unwrap();
    let other = volume.open_file(&mut io, "/file").unwrap();
    file.set_len(&mut io, 70_001).unwrap();
    model.truncate(70_001);
    assert_eq!((file.len(), other.len()), (70_001, 70_001));
    file.allocate(&mut io, 60_000..500_000, false).unwrap();
    model.resize(500_000, 0);
    file.allocate(&mut io, 500_000..900_000, true).unwrap();
    assert_eq!(other.len(), 500_000);
    assert!(other.metadata().blocks_512 >= 900_000 / 512);
    file.punch_hole(&mut io, 10_000..30_000).unwrap();
    model[10_000..30_000].fill(0);
    file.zero_range(&mut io, 40_000..45_000, false).unwrap();
    model[40_000..45_000].fill(0);
    file.collapse_range(&mut io, 8192..12_288).unwrap();
    drop(model.drain(8192..12_288));
    file.insert_range(&mut io, 4096..12_288).unwrap();
    drop(model.splice(4096..4096, vec![0; 8192]));
    file.write_all_at(&mut io, b"overwritten", 100).unwrap();
    model[100..111].copy_from_slice(b"overwritten");
    let mut found = vec![0xee; model.len() + 10];
    assert_eq!(other.read_at(&mut io, &mut found, 0).unwrap(), model.len());
    found.truncate(model.len());
    assert!(found == model, "both handles see the new mappings");
    let error = file.collapse_range(&mut io, 1..4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.operation(), Some("collapse a range"));
    let error = other.set_len(&mut io, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "opened for reading");
    file.sync_all(&mut io).unwrap();
    let copy = Image::empty(0, 512);
    fs::copy(image.path(), copy.path()).unwrap();
    let mount = copy.mount("");
    assert!(fs::read(mount.path().join("file")).unwrap() == model);
    mount.unmount();
    copy.assert_clean();
    drop((file, other, io));
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    assert!(fs::read(mount.path().join("file")).unwrap() == model);
    mount.unmount();
}

#[test]
fn blocks_are_taken_away_from_readers_and_writers_in_flight() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&volume, &mut io, "/file")
        .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (volume, file) = (&volume, &file);
            scope.spawn(move || {
                let mut io = volume.io().unwrap();
                let mut buf = io.alloc(4096).unwrap();
                for round in 0..400 {
                    buf.fill(7);
                    // In the part that comes and goes a write finds a hole at times.
                    file.write_dma_at(&mut io, &mut buf, (round % 20) * 4096)
                        .unwrap();
                    let read = file.read_dma_at(&mut io, &mut buf, (round % 20) * 4096);
                    let bytes = read.unwrap();
                    let known = thread < 2 && buf[..bytes].iter().all(|byte| [0, 7].contains(byte));
                    assert!(known || round < 20);
                }
            });
        }
        for round in 0..60 {
            let start = (round % 10) * 8192;
            file.punch_hole(&mut io, start..start + 8192).unwrap();
            file.allocate(&mut io, start..start + 8192, true).unwrap();
            if round % 20 == 0 {
                volume.sync(&mut io).unwrap();
            }
        }
        file.set_len(&mut io, 8192).unwrap();
    });
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
}

#[test]
fn projects_are_changed_as_by_chattr() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let mount = image.mount("");
    let path = |name: &str| mount.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("immutable"), b"stays").unwrap();
    common::run("chattr", &["+i", &path("immutable")]);
    mount.unmount();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    volume.set_project(&mut io, "/link", 0x0102_0304).unwrap();
    volume.set_project(&mut io, "/immutable", 5).unwrap();
    let file = volume.open_file(&mut io, "/file").unwrap();
    assert_eq!(file.metadata().project, 0x0102_0304);
    let error = volume.set_permissions(&mut io, "/immutable", 0o600);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::PermissionDenied);
    let mut dir = volume.read_dir(&mut io, "/").unwrap();
    while let Some(entry) = dir.next_entry(&mut io).unwrap() {
        if entry.file_name() == "dir" {
            entry.set_project(&mut io, u32::MAX).unwrap();
        }
    }
    drop((file, dir, io));
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    for (name, project) in [("file", 0x0102_0304), ("immutable", 5), ("dir", u32::MAX)] {
        let path = mount.path().join(name);
        let shown = common::run("xfs_io", &["-r", "-c", "lsproj", path.to_str().unwrap()]);
        assert_eq!(shown.trim(), format!("projid = {project}"), "{name}");
    }
    mount.unmount();
}

#[test]
fn space_and_inodes_are_those_that_the_kernel_counts() {
    if !kernel_is_here() {
        return;
    }
    let kinds: [&[&str]; 3] = [
        &["-m", "rmapbt=1,reflink=1"],
        &[
            "-b",
            "size=1024",
            "-m",
            "rmapbt=0,reflink=0",
            "-i",
            "maxpct=1",
        ],
        &["-d", "agcount=2", "-m", "reflink=1", "-i", "size=1024"],
    ];
    for args in kinds {
        let image = Image::make(320 << 20, 512, args);
        let mount = image.mount("");
        fs::write(mount.path().join("file"), random_bytes(1, 100_000)).unwrap();
        mount.unmount();
        let volume = open(&image);
        let mut io = volume.io().unwrap();
        let file = OpenOptions::new().read(true).write(true);
        let file = file.open(&volume, &mut io, "/file").unwrap();
        let before = volume.statfs(&mut io).unwrap();
        file.allocate(&mut io, 0..50 << 20, true).unwrap();
        let after = volume.statfs(&mut io).unwrap();
        let taken = (before.free_blocks - after.free_blocks) * u64::from(after.block_bytes);
        assert!((49 << 20..52 << 20).contains(&taken), "{taken} {args:?}");
        // What it says while the volume is open the kernel says after its end.
        drop((file, io));
        let mut io = volume.io().unwrap();
        let last = volume.statfs(&mut io).unwrap();
        drop(io);
        volume.close().unwrap();
        let mount = image.mount("");
        let kernel = common::sys::statvfs(mount.path()).unwrap();
        mount.unmount();
        let found = [last.blocks, last.free_blocks, last.inodes, last.free_inodes];
        let shown = [
            kernel.f_blocks,
            kernel.f_bfree,
            kernel.f_files,
            kernel.f_ffree,
        ];
        assert_eq!(found, shown, "{args:?}");
    }
}

#[test]
fn a_new_owner_takes_capabilities_away_as_with_the_kernel() {
    if !kernel_is_here() {
        return;
    }
    let image = image();
    let mount = image.mount("");
    let forms = [("short", 0), ("leaf", 30), ("node", 300)];
    for by in ["xtent", "kernel"] {
        for (form, others) in forms {
            let path = mount.path().join(format!("{by}-{form}"));
            fs::write(&path, "text").unwrap();
            for index in 0..others {
                common::sys::set_xattr(&path, format!("user.{index}"), &[7; 20]).unwrap();
            }
            common::run("setcap", &["cap_net_raw+ep", path.to_str().unwrap()]);
        }
    }
    for (form, _) in forms {
        let path = mount.path().join(format!("kernel-{form}"));
        std::os::unix::fs::lchown(path, Some(5), None).unwrap();
    }
    mount.unmount();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    for (form, _) in forms {
        let path = format!("/xtent-{form}");
        volume.set_owner(&mut io, &path, Some(5), None).unwrap();
    }
    drop(io);
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("");
    for (form, others) in forms {
        let names = ["xtent", "kernel"].map(|by| {
            let path = mount.path().join(format!("{by}-{form}"));
            let mut names = common::sys::list_xattrs(&path).unwrap();
            names.sort_unstable();
            names
        });
        assert_eq!(names[0], names[1], "{form}");
        assert_eq!(names[0].len(), others, "{form}");
    }
    mount.unmount();
}

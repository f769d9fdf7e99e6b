//! Files that are changed while they are open: what every handle sees of them, and when nothing
//! uses what they were before.

use std::path::Path;
use std::process::Command;

use super::inodes::CoreInode;
use super::{File, Io, Metadata, MountOptions, OpenOptions, Volume};
use crate::target::{HugePages, TargetOptions};
use crate::xfs::FileMap;

const A: u64 = 64 << 10;
const B: u64 = 24 << 10;

/// An XFS with the files `/a`, `A` bytes of 1, and `/b`, `B` bytes of 2.
fn volume(dir: &Path) -> Option<Volume> {
    let image = dir.join("disk.img");
    let mut proto = "/\n0 0\nd--755 0 0\n".to_owned();
    for (name, len, byte) in [("a", A, 1), ("b", B, 2)] {
        let content = dir.join(name);
        std::fs::write(&content, vec![byte; usize::try_from(len).unwrap()]).unwrap();
        proto += &format!("{name} ---644 0 0 {}\n", content.display());
    }
    std::fs::write(dir.join("proto"), proto + "$\n").unwrap();
    std::fs::File::create(&image)
        .unwrap()
        .set_len(320 << 20)
        .unwrap();
    let made = Command::new("mkfs.xfs")
        .args(["-q", "-f", "-p"])
        .args([&dir.join("proto"), &image])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("SKIPPED: mkfs.xfs is missing (apt install xfsprogs, dnf install xfsprogs)");
        return None;
    }
    let options = TargetOptions::new().huge_pages(HugePages::Never);
    let mount = MountOptions::new().cache_bytes(8 << 20);
    let target = format!("image:{},inline", image.display());
    Some(Volume::open_with(&target, &options, &mount).unwrap())
}

fn open(volume: &Volume, io: &mut Io, path: &str, buffered: bool) -> File {
    let options = OpenOptions::new().read(true).write(true).buffered(buffered);
    options.open(volume, io, path).unwrap()
}

/// What `/a` becomes: the blocks of `/b`.
fn of_b(volume: &Volume, io: &mut Io, a: &File) -> (Metadata, FileMap) {
    let b = super::walk::resolve(volume, io, b"/b", true, "open").unwrap();
    let map = volume.shared.fs.file_map(&mut io.core, &b).unwrap();
    let metadata = Metadata {
        len_bytes: map.size_bytes(),
        ..a.metadata()
    };
    (metadata, map)
}

fn inode(file: &File) -> &std::sync::Arc<CoreInode> {
    file.shared.inode.core()
}

#[test]
fn every_handle_sees_the_file_as_it_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let Some(volume) = volume(dir.path()) else {
        return;
    };
    let (mut io, mut other_io) = (volume.io().unwrap(), volume.io().unwrap());
    let direct = open(&volume, &mut io, "/a", false);
    let other = open(&volume, &mut other_io, "/a", false);
    let mut buf = io.alloc(65536).unwrap();
    assert_eq!(direct.read_dma_at(&mut io, &mut buf, 0).unwrap(), 65536);
    assert_eq!(
        other.read_dma_at(&mut other_io, &mut buf, 0).unwrap(),
        65536
    );
    assert!(buf.iter().all(|&byte| byte == 1));

    let (metadata, map) = of_b(&volume, &mut io, &direct);
    inode(&direct).replace(metadata, map);
    for (file, io) in [(&direct, &mut io), (&other, &mut other_io)] {
        assert_eq!((file.len(), file.metadata().len_bytes), (B, B));
        assert_eq!(file.read_dma_at(io, &mut buf, 0).unwrap() as u64, B);
        assert!(
            buf[..usize::try_from(B).unwrap()]
                .iter()
                .all(|&byte| byte == 2)
        );
        assert_eq!(file.read_dma_at(io, &mut buf, A).unwrap(), 0);
        let mut bytes = vec![0; 65536];
        assert_eq!(file.read_at(io, &mut bytes, 1).unwrap() as u64, B - 1);
        assert_eq!(file.fiemap(io, 0, u64::MAX).unwrap().len(), 1);
        assert_eq!(file.seek_hole(io, 0).unwrap(), Some(B));
    }
    // On disk it is as it was, but this volume knows better.
    let again = open(&volume, &mut io, "/a", false);
    assert_eq!(again.len(), B);
    inode(&again).change_metadata(|metadata| metadata.mode = 0o100_600);
    assert_eq!(other.metadata().mode, 0o100_600);
    assert_eq!(other.len(), B);
}

#[test]
fn the_page_cache_follows() {
    let dir = tempfile::tempdir().unwrap();
    let Some(volume) = volume(dir.path()) else {
        return;
    };
    let mut io = volume.io().unwrap();
    let direct = open(&volume, &mut io, "/a", false);
    let (smaller, map) = of_b(&volume, &mut io, &direct);
    let larger = direct.metadata();
    // Changed before it is cached, and while it is.
    inode(&direct).replace(smaller, map);
    let file = open(&volume, &mut io, "/a", true);
    let mut bytes = vec![0; 65536];
    assert_eq!(file.len(), B);
    assert_eq!(
        file.read_at(&mut io, &mut bytes[..4096], 8192).unwrap(),
        4096
    );
    assert_eq!(bytes[..4096], [2; 4096]);
    let a = super::walk::resolve(&volume, &mut io, b"/a", true, "open").unwrap();
    let map = volume.shared.fs.file_map(&mut io.core, &a).unwrap();
    inode(&file).replace(larger, map);
    assert_eq!((file.len(), direct.len()), (A, A));
    // Cached pages stay: they are for the caller to invalidate.
    assert_eq!(file.read_at(&mut io, &mut bytes, 0).unwrap() as u64, A);
    assert!(bytes[8192..12288].iter().all(|&byte| byte == 2));
    let rest = bytes[..8192].iter().chain(&bytes[12288..]);
    assert!(rest.clone().all(|&byte| byte == 1));
    // Dirty pages go where the map of now says.
    file.write_all_at(&mut io, &[9; 4096], 0).unwrap();
    let (smaller, map) = of_b(&volume, &mut io, &file);
    inode(&file).replace(smaller, map);
    assert_eq!((file.len(), direct.len()), (B, B));
    assert_eq!(file.read_at(&mut io, &mut bytes, 0).unwrap() as u64, B);
    file.sync_data(&mut io).unwrap();
    let b = open(&volume, &mut io, "/b", false);
    let mut first = vec![0; 4096];
    assert_eq!(b.read_at(&mut io, &mut first, 0).unwrap(), 4096);
    assert_eq!(first, [9; 4096]);
}

#[test]
fn blocks_that_were_taken_away_are_in_use_until_every_operation_from_before_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let Some(volume) = volume(dir.path()) else {
        return;
    };
    let mut handles = [volume.io().unwrap(), volume.io().unwrap()];
    let file = open(&volume, &mut handles[0], "/a", false);
    let other = open(&volume, &mut handles[0], "/b", false);
    let (metadata, map) = of_b(&volume, &mut handles[0], &file);
    let unused = inode(&file).replace(metadata, map);
    assert!(inode(&file).is_quiet(unused), "nothing was in flight");

    for io in &mut handles {
        let buf = io.alloc(4096).unwrap();
        io.submit_read(&file, 0, buf, 0).unwrap();
    }
    let (metadata, map) = of_b(&volume, &mut handles[0], &file);
    let first = inode(&file).replace(metadata, map);
    // Operations on other files, or that begin later, do not count.
    let [io, last] = &mut handles;
    for file in [&other, &file] {
        let buf = io.alloc(4096).unwrap();
        io.submit_read(file, 0, buf, 1).unwrap();
    }
    let (metadata, map) = of_b(&volume, io, &file);
    let second = inode(&file).replace(metadata, map);
    let mut ended = 0;
    while ended < 3 {
        assert!(!inode(&file).is_quiet(first), "of the other thread");
        ended += io.poll(1, |done| assert_eq!(done.result.unwrap(), 4096));
        io.relax();
    }
    assert!(!inode(&file).is_quiet(first) && !inode(&file).is_quiet(second));
    while last.outstanding() > 0 {
        last.poll(1, |done| assert_eq!(done.result.unwrap(), 4096));
        last.relax();
    }
    assert!(inode(&file).is_quiet(first) && inode(&file).is_quiet(second));

    // A handle that is dropped waits for its operations; a leaked one keeps the blocks.
    let (mut dropped, mut leaked) = (volume.io().unwrap(), volume.io().unwrap());
    for io in [&mut dropped, &mut leaked] {
        let buf = io.alloc(4096).unwrap();
        io.submit_read(&file, 0, buf, 0).unwrap();
    }
    let (metadata, map) = of_b(&volume, &mut handles[0], &file);
    let third = inode(&file).replace(metadata, map);
    std::mem::forget(leaked);
    assert!(!inode(&file).is_quiet(third));
    let (metadata, map) = of_b(&volume, &mut handles[0], &other);
    let of_other = inode(&other).replace(metadata, map);
    drop(dropped);
    assert!(!inode(&file).is_quiet(third));
    assert!(
        inode(&other).is_quiet(of_other),
        "the leaked one is of another file"
    );
}

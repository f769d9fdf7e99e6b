//! Metadata beside the kernel's tools: which files may be overwritten, single lookups in a fork's
//! btree, shared blocks, free space.
#![expect(
    clippy::unwrap_used,
    reason = "test code: a failure panics, sizes are its own"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use common::image::Image;
use common::{has_tool, kernel_is_here, run, skipped, sys};
use xtent::internals::xfs::format::attr::FLAG_SECURE;
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::{FoundExtent, Fs, Ino, MetaIo};
use xtent::volume::{OpenOptions, Volume};
use xtent::{Error, ErrorKind};

/// An image as a file, whose reads are counted.
struct Disk {
    file: File,
    reads: usize,
}

impl Disk {
    fn open(image: &Image) -> Self {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(image.path())
            .unwrap();
        Self { file, reads: 0 }
    }
}

impl MetaIo for Disk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.reads += 1;
        self.file
            .read_exact_at(buf, addr)
            .map_err(|error| Error::system("read", error))
    }

    fn capacity_bytes(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }
}

fn create(path: &Path, bytes: usize) -> u64 {
    fs::write(path, vec![0x5a; bytes]).unwrap();
    fs::metadata(path).unwrap().ino()
}

/// File capabilities: revision 2, `CAP_CHOWN`.
const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What an attribute block of an inode says that it is.
fn attribute_block(image: &Image, ino: u64) -> String {
    let path = image.path();
    let inode = format!("inode {ino}");
    run(
        "xfs_db",
        &[
            "-r",
            "-c",
            &inode,
            "-c",
            "ablock 0",
            "-c",
            "p",
            path.to_str().unwrap(),
        ],
    )
}

/// Files with modes, flags and attributes of every form; the inodes of those with a leaf and with a
/// node.
fn privileged(root: &Path) -> [u64; 2] {
    let attributes = |name: &str, count: usize, capability: bool| {
        let path = root.join(name);
        let ino = create(&path, 4096);
        for i in 0..count {
            // One of three is large: its value is in blocks of its own.
            let value = vec![7; if i % 3 == 0 { 3500 } else { 50 }];
            sys::set_xattr(&path, format!("user.capability-{i}"), &value).unwrap();
        }
        sys::set_xattr(&path, "user.capability", b"of another namespace").unwrap();
        if capability {
            sys::set_xattr(&path, "security.capability", &CAPABILITY).unwrap();
        }
        ino
    };
    for (name, bits) in [
        ("plain", 0o644),
        ("setuid", 0o4644),
        ("setgid", 0o2754),
        ("setgid-no-exec", 0o2744),
    ] {
        create(&root.join(name), 4096);
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(bits)).unwrap();
    }
    for (name, flag) in [("immutable", "+i"), ("append", "+a"), ("sync", "+S")] {
        create(&root.join(name), 4096);
        run("chattr", &[flag, root.join(name).to_str().unwrap()]);
    }
    for (name, count) in [("attr-short", 0), ("attr-leaf", 10), ("attr-node", 800)] {
        attributes(name, count, false);
    }
    attributes("cap-short", 0, true);
    [
        attributes("cap-leaf", 10, true),
        attributes("cap-node", 800, true),
    ]
}

#[test]
fn files_that_may_not_be_written_or_would_keep_privileges_are_refused() {
    if !kernel_is_here() {
        return;
    }
    if !has_tool("chattr") {
        return skipped("chattr is not installed");
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let [leaf, node] = privileged(mount.path());
    mount.unmount();
    assert!(attribute_block(&image, leaf).contains("0x3bee"));
    assert!(attribute_block(&image, node).contains("0x3ebe"));

    let target = image.path().display().to_string();
    let volume = Volume::open(&target).unwrap();
    let mut io = volume.io().unwrap();
    for name in [
        "plain",
        "sync",
        "setgid-no-exec",
        "setuid",
        "setgid",
        "cap-short",
        "cap-leaf",
        "cap-node",
        "attr-short",
        "attr-leaf",
        "attr-node",
    ] {
        for buffered in [false, true] {
            let options = OpenOptions::new().write(true).buffered(buffered);
            let file = options.open(&volume, &mut io, name).unwrap();
            file.write_all_at(&mut io, b"new", 17).unwrap();
        }
    }
    for (name, word) in [("immutable", "immutable"), ("append", "append-only")] {
        let read = OpenOptions::new().read(true);
        read.open(&volume, &mut io, name).unwrap();
        for buffered in [false, true] {
            let options = OpenOptions::new().write(true).buffered(buffered);
            let error = options.open(&volume, &mut io, name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}: {error}");
            assert!(error.to_string().contains(word), "{name}: {error}");
        }
    }
    drop((io, volume));
    image.assert_clean();
}

#[test]
fn an_attribute_that_is_being_removed_is_not_there() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let path = mount.path().join("file");
    let ino = create(&path, 0);
    for i in 0..10 {
        sys::set_xattr(&path, format!("user.{i}"), &[7; 100]).unwrap();
    }
    sys::set_xattr(&path, "security.capability", &CAPABILITY).unwrap();
    mount.unmount();
    let mut disk = Disk::open(&image);
    let has = |disk: &mut Disk| {
        let fs = Fs::open(disk).unwrap();
        let inode = fs.read_inode(disk, Ino(ino)).unwrap();
        let has = fs.has_attribute(disk, &inode, FLAG_SECURE, b"capability");
        (has, fs.has_attribute(disk, &inode, 0, b"5").unwrap())
    };
    assert!(matches!(has(&mut disk), (Ok(true), true)));
    // The leaf is the only block of its magic; sparse images are mostly zero.
    let mut whole = vec![0; 320 << 20];
    disk.file.read_exact_at(&mut whole, 0).unwrap();
    let leaf = (0..whole.len()).step_by(4096).find(|&at| {
        whole[at + 8..at + 10] == [0x3b, 0xee] && whole[at + 48..at + 56] == ino.to_be_bytes()
    });
    let at = leaf.unwrap();
    let block = &mut whole[at..at + 4096];
    let count = usize::from(u16::from_be_bytes([block[56], block[57]]));
    let mut set = 0;
    for entry in 0..count {
        let flags = &mut block[80 + entry * 8 + 6];
        if *flags & FLAG_SECURE != 0 {
            *flags |= 0x80;
            set += 1;
        }
    }
    assert_eq!(set, 1);
    set_checksum(block, 12);
    disk.file.write_all_at(block, at as u64).unwrap();
    assert!(matches!(has(&mut disk), (Ok(false), true)));
}

#[test]
fn attributes_of_every_form_are_listed_with_their_values() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let value = |len: usize| (0..=250_u8).cycle().take(len).collect::<Vec<u8>>();
    let full_name = |i: usize| format!("{}.a{i}", ["user", "trusted", "security"][i % 3]);
    // Short form, one leaf, a tree of leaves, values in blocks of their own.
    let files = [
        ("none", vec![]),
        ("short", vec![0, 1, 20]),
        ("leaf", vec![0, 100, 255, 256, 1000]),
        ("tree", (0..400).map(|i| 100 + i % 50).collect()),
        ("remote", vec![4000, 5000, 65_535, 65_536, 10]),
    ];
    for (name, lens) in &files {
        let path = mount.path().join(name);
        create(&path, 0);
        for (i, len) in lens.iter().enumerate() {
            sys::set_xattr(&path, full_name(i), &value(*len)).unwrap();
        }
    }
    mount.unmount();
    let volume = Volume::open(&format!("image:{}", image.path().display())).unwrap();
    let mut io = volume.io().unwrap();
    for (name, lens) in &files {
        let metadata = volume.metadata(&mut io, name).unwrap();
        let mut found = BTreeMap::new();
        volume
            .each_xattr(&mut io, &metadata, |name, value| {
                let name = String::from_utf8(name.to_vec()).unwrap();
                assert!(found.insert(name, value.to_vec()).is_none());
                Ok(())
            })
            .unwrap();
        let expected = lens.iter().enumerate();
        let expected = expected.map(|(i, len)| (full_name(i), value(*len)));
        assert!(found == expected.collect(), "{name}");
    }
    drop((io, volume));
    image.assert_clean();
}

/// A file of many extents in an image of 1 KiB blocks, so that its btree and those of free space
/// are high.
fn fragmented() -> Option<(Image, u64)> {
    if !kernel_is_here() {
        return None;
    }
    let image = Image::make(64 << 20, 512, &["-d", "agcount=2", "-b", "size=1024"]);
    let mount = image.mount("");
    let path = mount.path().join("file");
    let ino = create(&path, 12 << 20);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.sync_all().unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    for i in 0..6000 {
        sys::fallocate(&file, punch, (2 * i + 1) * 1024, 1024).unwrap();
    }
    drop(file);
    mount.unmount();
    Some((image, ino))
}

#[test]
fn one_extent_of_a_btree_is_found_by_one_block_of_each_level() {
    let Some((image, ino)) = fragmented() else {
        return;
    };
    let mut disk = Disk::open(&image);
    let fs = Fs::open(&mut disk).unwrap();
    let inode = fs.read_inode(&mut disk, Ino(ino)).unwrap();
    disk.reads = 0;
    for (at, hole) in [(0, false), (11_999, true), (5000, false), (7001, true)] {
        disk.reads = 0;
        let found = fs.find_extent(&mut disk, &inode, at).unwrap();
        assert_eq!(matches!(found, FoundExtent::Hole { .. }), hole, "{found:?}");
        assert!(disk.reads <= 2, "{} blocks for one lookup", disk.reads);
    }
    let map = fs.extents(&mut disk, &inode).unwrap();
    assert!(map.len() >= 6000);
    for at in (0..12_010).chain([1 << 40, u64::MAX - 1]) {
        assert_eq!(
            fs.find_extent(&mut disk, &inode, at).unwrap(),
            map.lookup(at)
        );
        let last = fs.last_extent(&mut disk, &inode, at).unwrap();
        assert_eq!(last, map.last_before(at));
    }
}

#[test]
fn free_space_is_what_xfs_db_finds() {
    let Some((image, _)) = fragmented() else {
        return;
    };
    let mut disk = Disk::open(&image);
    let fs = Fs::open(&mut disk).unwrap();
    let mut all = 0;
    for ag in 0..2 {
        let mut ours = BTreeSet::new();
        let length = fs.geometry().ag_length(ag);
        fs.free_by_block(&mut disk, ag, 0..length, |extent| {
            ours.insert((extent.ag_block, extent.blocks));
            ControlFlow::Continue(())
        })
        .unwrap();
        let sum = fs.free_space(&mut disk, ag).unwrap();
        assert_eq!(sum.extents, ours.len() as u64);
        all += sum.extents;
        let command = format!("freesp -d -a {ag}");
        let path = image.path();
        let text = run("xfs_db", &["-r", "-c", &command, path.to_str().unwrap()]);
        // Lines of group, block, length; then a histogram, whose lines have other forms.
        let theirs: BTreeSet<(u32, u32)> = text
            .lines()
            .take_while(|line| !line.contains("from"))
            .filter_map(|line| {
                let numbers: Option<Vec<u32>> = line
                    .split_whitespace()
                    .map(|word| word.parse().ok())
                    .collect();
                match numbers?[..] {
                    [group, block, blocks] => (group == ag).then_some((block, blocks)),
                    _ => None,
                }
            })
            .collect();
        assert!(ours.is_subset(&theirs), "group {ag}");
        // xfs_db counts the blocks of the free list, too, each for itself.
        let list: Vec<_> = theirs.difference(&ours).collect();
        assert!(
            list.len() < 64 && list.iter().all(|(_, blocks)| *blocks == 1),
            "{list:?}"
        );
        // From the middle, and by length.
        let middle = ours.iter().nth(ours.len() / 2).unwrap().0;
        let mut first = None;
        fs.free_by_block(&mut disk, ag, middle..length, |extent| {
            first = Some(extent.ag_block);
            ControlFlow::Break(())
        })
        .unwrap();
        assert_eq!(first, Some(middle));
        let mut long = Vec::new();
        fs.free_by_length(&mut disk, ag, 2, |extent| {
            long.push((extent.blocks, extent.ag_block));
            ControlFlow::Continue(())
        })
        .unwrap();
        let mut expected: Vec<_> = ours
            .iter()
            .map(|&(block, blocks)| (blocks, block))
            .collect();
        expected.retain(|&(blocks, _)| blocks >= 2);
        expected.sort_unstable();
        assert_eq!(long, expected);
    }
    assert!(all > 3000, "{all} free extents: the btrees are high");
}

/// Two extents of a file over one block, with its checksum right: as the refcount btree says.
#[test]
fn extents_of_one_file_overlap_only_in_shared_blocks() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &["-m", "reflink=1"]);
    let mount = image.mount("");
    let (path, other) = (mount.path().join("file"), mount.path().join("other"));
    let ino = create(&path, 8 << 10);
    // Makes the file one that may share; its first block is replaced afterwards.
    {
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        sys::clone_file(&file, &File::create(&other).unwrap()).unwrap();
    }
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    let mut disk = Disk::open(&image);
    let fs = Fs::open(&mut disk).unwrap();
    let inode = fs.read_inode(&mut disk, Ino(ino)).unwrap();
    let extents = fs.extents(&mut disk, &inode).unwrap().as_slice().to_vec();
    assert_eq!(extents.len(), 2, "one unshared block, one shared");
    // Both extents over the block of one of them.
    for (source, fine) in [(1, true), (0, false)] {
        let mut raw = vec![0; 512];
        disk.file.read_exact_at(&mut raw, inode.addr_bytes).unwrap();
        let original = raw.clone();
        // The low 43 bits of a record's first block and the length are its second word.
        let word = 176 + source * 16 + 8;
        let copy: [u8; 8] = raw[word..word + 8].try_into().unwrap();
        let into = 176 + (1 - source) * 16 + 8;
        raw[into..into + 8].copy_from_slice(&copy);
        set_checksum(&mut raw, 100);
        disk.file.write_all_at(&raw, inode.addr_bytes).unwrap();
        let fs = Fs::open(&mut disk).unwrap();
        let inode = fs.read_inode(&mut disk, Ino(ino)).unwrap();
        let map = fs.file_map(&mut disk, &inode).unwrap();
        let result = fs.learn_sharing(&mut disk, &map);
        assert_eq!(result.is_ok(), fine, "{result:?}");
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        disk.file.write_all_at(&original, inode.addr_bytes).unwrap();
    }
}

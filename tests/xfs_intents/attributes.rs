//! Changes of attributes that the log leaves open, written by hand: finished by xtent and by the
//! kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::format::attr::{FLAG_PARENT, FLAG_ROOT, FLAG_SECURE};
use xtent::internals::xfs::format::log_items::{self as layout, AttrItem};
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::format::superblock::{CRC_OFFSET, SuperblockLayout};
use xtent::internals::xfs::{Fs, Ino, LogItem, LogWriter, MetaIo};
use zerocopy::FromBytes;

use super::common::image::Image;
use super::common::{kernel_is_here, number, random_bytes, sys};
use super::{copy_of, disk_of, findings_of, writable};

/// Files: attributes of each, and how long their values are.
const FILES: [(&str, u32, usize); 5] = [
    ("short", 3, 10),
    ("leaf", 20, 30),
    ("node", 300, 30),
    ("remote", 6, 9000),
    ("single", 1, 20),
];

/// An intent in parts, so that a test can break it.
struct Intent {
    header: AttrItem,
    parts: Vec<Vec<u8>>,
}

impl Intent {
    fn new(op: u32, ino: u64, filter: u8, name: &[u8], value: &[u8]) -> Self {
        let header = AttrItem {
            item_type: 0.into(),
            regions: 0.into(),
            generation: 0.into(),
            id: 0x1234_5678.into(),
            ino: ino.into(),
            op_flags: op.into(),
            name_len: u32::try_from(name.len()).unwrap().into(),
            value_len: u32::try_from(value.len()).unwrap().into(),
            attr_filter: u32::from(filter).into(),
        };
        let mut parts = vec![name.to_vec()];
        if !value.is_empty() {
            parts.push(value.to_vec());
        }
        Self { header, parts }
    }

    fn item(&self) -> LogItem {
        let parts: Vec<&[u8]> = self.parts.iter().map(Vec::as_slice).collect();
        LogItem::attribute_intent(&self.header, &parts)
    }
}

/// Sets features in the superblock, by hand.
fn add_features(image: &Image, change: impl FnOnce(&mut SuperblockLayout)) {
    let disk = disk_of(image);
    let mut sector = disk.get(0, image.sector_bytes().try_into().unwrap());
    change(SuperblockLayout::mut_from_prefix(&mut sector).unwrap().0);
    set_checksum(&mut sector, CRC_OFFSET);
    disk.put(0, &sector);
}

fn write_log(image: &Image, items: &[LogItem]) {
    let mut disk = disk_of(image);
    let mut writer = LogWriter::open(&mut disk).unwrap();
    let stale: Vec<_> = writer.stale_writes().collect();
    let tail = writer.lsn();
    let built = writer.checkpoint(items, tail).unwrap();
    let records = built.records.into_iter().flat_map(|record| record.writes);
    for write in stale.into_iter().chain(records) {
        disk.write_at(write.addr_bytes, &write.bytes).unwrap();
    }
}

type Found = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

fn attributes_of(image: &Image) -> Found {
    let mount = image.mount("");
    let of_file = |path: &Path| {
        let mut all: Vec<_> = sys::list_xattrs(path)
            .unwrap()
            .into_iter()
            .map(|name| {
                let value = sys::xattr(path, &name).unwrap().unwrap();
                (name, value)
            })
            .collect();
        all.sort();
        all
    };
    let found = FILES
        .iter()
        .map(|(name, ..)| ((*name).to_owned(), of_file(&mount.path().join(name))))
        .collect();
    mount.unmount();
    found
}

/// A disk with files, and their inodes.
fn disk_with_files(rng: &mut SmallRng) -> (Image, Vec<u64>) {
    let block = *["size=1024", "size=4096"].choose(rng).unwrap();
    let rmapbt = format!("rmapbt={},reflink=1", rng.random_range(0..2));
    let large = format!("nrext64={}", rng.random_range(0..2));
    let args = ["-d", "agcount=2", "-b", block, "-m", &rmapbt, "-i", &large];
    let image = Image::make(320 << 20, 512, &args);
    let mount = image.mount("");
    let mut inos = Vec::new();
    for (name, count, len) in FILES {
        let path = mount.path().join(name);
        fs::write(&path, random_bytes(1, 5000)).unwrap();
        for index in 0..count {
            let value = random_bytes(index.into(), len);
            sys::set_xattr(&path, format!("user.number-{index}"), &value).unwrap();
        }
        inos.push(fs::metadata(&path).unwrap().ino());
    }
    mount.unmount();
    (image, inos)
}

#[test]
fn changes_of_attributes_are_finished_as_by_the_kernel() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    for seed in seed..seed + number("XTENT_RUNS", 6) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (image, inos) = disk_with_files(&mut rng);
        let mut items = Vec::new();
        let mut what = format!("XTENT_RUNS=1 XTENT_SEED={seed}:");
        for ((file, count, _), ino) in FILES.iter().zip(inos) {
            let old = format!("number-{}", rng.random_range(0..*count));
            let len = *[0, 7, 200, 700, 5000, 65536].choose(&mut rng).unwrap();
            let value = random_bytes(seed, len);
            let filter = *[0, FLAG_ROOT, FLAG_SECURE].choose(&mut rng).unwrap();
            let mut intent = match rng.random_range(0..3) {
                0 => Intent::new(layout::ATTRI_SET, ino, filter, b"new", &value),
                1 => Intent::new(layout::ATTRI_REPLACE, ino, 0, old.as_bytes(), &value),
                _ => Intent::new(layout::ATTRI_REMOVE, ino, 0, old.as_bytes(), b""),
            };
            intent.header.id = rng.random::<u64>().into();
            let op = intent.header.op_flags.get();
            what += &format!(" {file} {op} {} bytes,", intent.header.value_len.get());
            items.push(intent.item());
        }
        add_features(&image, |raw| raw.features_log_incompat = 1.into());
        write_log(&image, &items);
        let (kernel, ours) = (copy_of(&image.path(), 512), copy_of(&image.path(), 512));
        let theirs = attributes_of(&kernel);
        let mut disk = disk_of(&ours);
        let fs = Fs::open_with(&mut disk, &writable()).unwrap_or_else(|e| panic!("{what} {e}"));
        assert_eq!(fs.write_refusal(), None, "{what}");
        assert_eq!(fs.finished_intents(), FILES.len() as u64, "{what}");
        assert_eq!(fs.features().log_incompat, 0, "{what}");
        drop((fs, disk));
        assert_eq!(findings_of(&ours), (Vec::new(), true), "{what}");
        let mine = attributes_of(&ours);
        for (file, attributes) in &theirs {
            assert!(mine.get(file) == Some(attributes), "{file}: {what}");
        }
        assert_eq!(findings_of(&ours), (Vec::new(), true), "{what}");
    }
}

/// Breaks an intent.
type Break = fn(&mut Intent);

#[test]
fn impossible_changes_of_attributes_are_told() {
    if !kernel_is_here() {
        return;
    }
    let (image, inos) = disk_with_files(&mut SmallRng::seed_from_u64(1));
    add_features(&image, |raw| raw.features_log_incompat = 1.into());
    let breaks: [(&str, Break); 12] = [
        ("op 0", |it| it.header.op_flags = 0.into()),
        ("op 9", |it| it.header.op_flags = 9.into()),
        ("flags of ops", |it| it.header.op_flags = 0x101.into()),
        ("filter", |it| it.header.attr_filter = 0x40.into()),
        ("two namespaces", |it| it.header.attr_filter = 6.into()),
        ("parent", |it| it.header.attr_filter = 8.into()),
        ("parent op", |it| it.header.op_flags = 4.into()),
        ("inode", |it| it.header.ino = (1 << 60).into()),
        ("free inode", |it| {
            it.header.ino = (it.header.ino.get() + 20).into()
        }),
        ("name length", |it| it.header.name_len = 40.into()),
        ("value length", |it| it.header.value_len = 70_000.into()),
        ("regions", |it| it.parts.push(vec![1; 4])),
    ];
    for (what, change) in breaks {
        let copy = copy_of(&image.path(), 512);
        let mut intent = Intent::new(layout::ATTRI_SET, inos[1], 0, b"name", b"value");
        change(&mut intent);
        write_log(&copy, &[intent.item()]);
        let before = fs::read(copy.path()).unwrap();
        let mut disk = disk_of(&copy);
        let error = Fs::open_with(&mut disk, &writable()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(
            fs::read(copy.path()).unwrap() == before,
            "{what}: it was changed"
        );
    }
}

/// `XFS_SB_FEAT_INCOMPAT_PARENT`.
const PARENT_FEATURE: u32 = 1 << 7;

#[test]
fn parent_pointers_are_finished_as_by_the_kernel() {
    if !kernel_is_here() {
        return;
    }
    let (image, _) = disk_with_files(&mut SmallRng::seed_from_u64(1));
    add_features(&image, |raw| {
        raw.features_incompat = (raw.features_incompat.get() | PARENT_FEATURE).into();
    });
    let mount = image.mount("");
    let mut inos = Vec::new();
    for name in ["a", "b", "c"] {
        fs::write(mount.path().join(name), "content").unwrap();
        inos.push(fs::metadata(mount.path().join(name)).unwrap().ino());
    }
    mount.unmount();
    let mut disk = disk_of(&image);
    let fs = Fs::open(&mut disk).unwrap();
    let root = fs.read_root(&mut disk).unwrap();
    let parent = [
        &root.ino.0.to_be_bytes()[..],
        &root.generation.to_be_bytes(),
    ]
    .concat();
    let ops = [
        (layout::ATTRI_PARENT_SET, "new", vec!["a", "new"]),
        (layout::ATTRI_PARENT_REMOVE, "b", vec![]),
        (layout::ATTRI_PARENT_REPLACE, "c", vec!["renamed"]),
    ];
    let mut items = Vec::new();
    for ((op, name, _), ino) in ops.iter().zip(&inos) {
        let inode = fs.read_inode(&mut disk, Ino(*ino)).unwrap();
        let mut intent = Intent::new(*op, *ino, FLAG_PARENT, name.as_bytes(), &parent);
        intent.header.generation = inode.generation.into();
        intent.header.id = (*ino * 7).into();
        if *op == layout::ATTRI_PARENT_REPLACE {
            intent.header.name_len = (1 | 7 << 16).into();
            intent.parts = vec![
                b"c".to_vec(),
                b"renamed".to_vec(),
                parent.clone(),
                parent.clone(),
            ];
        }
        items.push(intent.item());
    }
    drop((fs, disk));
    write_log(&image, &items);
    let (kernel, ours) = (copy_of(&image.path(), 512), copy_of(&image.path(), 512));
    kernel.mount("").unmount();
    let mut disk = disk_of(&ours);
    drop(Fs::open_with(&mut disk, &writable()).unwrap());
    for (who, image) in [("kernel", &kernel), ("xtent", &ours)] {
        let mut disk = disk_of(image);
        let fs = Fs::open(&mut disk).unwrap();
        for ((_, _, expected), ino) in ops.iter().zip(&inos) {
            let inode = fs.read_inode(&mut disk, Ino(*ino)).unwrap();
            for name in ["a", "b", "c", "new", "renamed"] {
                let has = fs.has_attribute(&mut disk, &inode, FLAG_PARENT, name.as_bytes());
                assert_eq!(
                    has.unwrap(),
                    expected.contains(&name),
                    "{who}: {name} of {ino}"
                );
            }
        }
    }
}

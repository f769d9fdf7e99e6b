//! Logs with impossible intents: an error that leaves the disk as it was, or with a log that is the
//! same error again, or a filesystem; never a panic, a hang, or a write outside of the disk.

use std::collections::BTreeMap;
use std::fs;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::format::inode::InodeCore;
use xtent::internals::xfs::format::log_items::{
    self as layout, ExchangeItem, LoggedExtent, LoggedMapping,
};
use xtent::internals::xfs::{
    Extent, Fork, Fs, Geometry, Ino, Inode, InodeChange, LogItem, LogWriter, MetaIo, dir,
};
use xtent::{Error, ErrorKind};

use super::common::changed::Sector;
use super::common::image::Image;
use super::common::{kernel_is_here, number, run};
use super::cut::CutDisk;
use super::exchange::enable;
use super::handmade::place_of;
use super::writable;
use zerocopy::FromBytes;

fn some_number(geometry: &Geometry, rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..6) {
        0 => rng.random(),
        1 => rng.random_range(0..geometry.data_blocks * 2),
        2 => u64::MAX - rng.random_range(0..16),
        3 => geometry.root_ino.0 + rng.random_range(0..70),
        4 => geometry.log_start.0 + rng.random_range(0..u64::from(geometry.log_blocks)),
        _ => 1 << rng.random_range(0..64),
    }
}

fn some_len(rng: &mut SmallRng) -> u32 {
    match rng.random_range(0..4) {
        0 => rng.random(),
        1 => 0,
        _ => rng.random_range(1..200),
    }
}

fn some_flags(rng: &mut SmallRng) -> u32 {
    let flags = match rng.random_range(0..4) {
        0 => rng.random::<u32>() & !layout::INTENT_CHANGE,
        1 => 1 << rng.random_range(28..32),
        _ => 0,
    };
    flags | rng.random_range(0..10)
}

/// A part of an intent that is possible but for one field at most.
fn likely(geometry: &Geometry, files: &[(Ino, Extent)], rng: &mut SmallRng) -> LoggedMapping {
    let (ino, extent) = *files.choose(rng).unwrap();
    let mut map = LoggedMapping {
        owner: ino.0.into(),
        startblock: extent.start_block.0.into(),
        startoff: extent.offset_blocks.into(),
        len: u32::try_from(extent.blocks).unwrap().into(),
        flags: rng.random_range(1..9).into(),
    };
    match rng.random_range(0..8) {
        0 => map.owner = some_number(geometry, rng).into(),
        1 => map.startblock = some_number(geometry, rng).into(),
        2 => map.startoff = some_number(geometry, rng).into(),
        3 => map.len = some_len(rng).into(),
        4 => map.flags = some_flags(rng).into(),
        _ => {}
    }
    map
}

/// An exchange that is possible but for one field at most; files have their generation.
fn likely_exchange(
    geometry: &Geometry,
    files: &[(Ino, u32, Extent)],
    rng: &mut SmallRng,
) -> LogItem {
    let [one, two] = [(); 2].map(|()| *files.choose(rng).unwrap());
    let flags = rng.random_range(0..32_u64);
    let mut item = ExchangeItem {
        item_type: layout::XMI.into(),
        regions: 1.into(),
        pad: 0.into(),
        id: rng.random_range(0..8).into(),
        inode1: one.0.0.into(),
        inode2: two.0.0.into(),
        igen1: one.1.into(),
        igen2: two.1.into(),
        startoff1: one.2.offset_blocks.into(),
        startoff2: two.2.offset_blocks.into(),
        blockcount: one.2.blocks.into(),
        flags: (flags & !layout::XMI_ATTR_FORK).into(),
        isize1: rng.random_range(0..200_000).into(),
        isize2: rng.random_range(0..200_000).into(),
    };
    match rng.random_range(0..12) {
        0 => item.inode1 = some_number(geometry, rng).into(),
        1 => item.inode2 = some_number(geometry, rng).into(),
        2 => item.startoff1 = some_number(geometry, rng).into(),
        3 => item.startoff2 = some_number(geometry, rng).into(),
        4 => item.blockcount = some_number(geometry, rng).into(),
        5 => item.flags = some_number(geometry, rng).into(),
        6 => item.isize1 = some_number(geometry, rng).into(),
        7 => item.igen2 = rng.random::<u32>().into(),
        _ => {}
    }
    LogItem::exchange_intent(&item)
}

fn likely_intent(geometry: &Geometry, files: &[(Ino, Extent)], rng: &mut SmallRng) -> LogItem {
    let id = rng.random_range(0..8);
    let map = likely(geometry, files, rng);
    match rng.random_range(0..4) {
        kind @ (0 | 1) => {
            let extent = LoggedExtent {
                start: map.startblock,
                len: map.len,
                pad: map.flags,
            };
            let kind = if kind == 0 { layout::EFI } else { layout::CUI };
            LogItem::extent_intent(kind, id, &[extent])
        }
        2 => LogItem::mapping_intent(layout::RUI, id, &[map]),
        _ => LogItem::mapping_intent(layout::BUI, id, &[map]),
    }
}

/// The extents of the files of a disk.
fn extents_of(disk: &mut impl MetaIo, fs: &Fs) -> Vec<(Ino, Extent)> {
    let root = fs.read_root(disk).unwrap();
    let mut cursor = dir::DirCursor::new();
    let mut found = Vec::new();
    while let Some(entry) = cursor.next_entry(fs, disk, &root).unwrap() {
        let inode = fs.read_inode(disk, entry.ino).unwrap();
        if let Fork::Extents(map) = &inode.data {
            found.extend(map.as_slice().iter().map(|extent| (inode.ino, *extent)));
        }
    }
    found
}

fn some_intent(geometry: &Geometry, rng: &mut SmallRng) -> LogItem {
    let id = rng.random_range(0..8);
    let count = rng.random_range(0..4);
    let kind = *[layout::EFI, layout::RUI, layout::CUI, layout::BUI]
        .choose(rng)
        .unwrap();
    // One that has the form of another one.
    let is_extent = matches!(kind, layout::EFI | layout::CUI) != rng.random_ratio(1, 12);
    if is_extent {
        let list: Vec<_> = (0..count)
            .map(|_| LoggedExtent {
                start: some_number(geometry, rng).into(),
                len: some_len(rng).into(),
                pad: some_flags(rng).into(),
            })
            .collect();
        return LogItem::extent_intent(kind, id, &list);
    }
    let list: Vec<_> = (0..count)
        .map(|_| LoggedMapping {
            owner: some_number(geometry, rng).into(),
            startblock: some_number(geometry, rng).into(),
            startoff: some_number(geometry, rng).into(),
            len: some_len(rng).into(),
            flags: some_flags(rng).into(),
        })
        .collect();
    LogItem::mapping_intent(kind, id, &list)
}

/// A disk with some files.
fn filled() -> Image {
    let image = Image::make(128 << 20, 512, &["-l", "size=24m", "-m", "rmapbt=1"]);
    let mount = image.mount("");
    for number in 0..60 {
        fs::write(
            mount.path().join(number.to_string()),
            vec![1; number * 3000],
        )
        .unwrap();
    }
    let (from, to) = (mount.path().join("50"), mount.path().join("copy"));
    run(
        "cp",
        &[
            "--reflink=always",
            from.to_str().unwrap(),
            to.to_str().unwrap(),
        ],
    );
    mount.unmount();
    enable(&image);
    image
}

/// The generation of each file.
fn with_generations(
    disk: &mut impl MetaIo,
    fs: &Fs,
    files: &[(Ino, Extent)],
) -> Vec<(Ino, u32, Extent)> {
    let mut found = Vec::new();
    for (ino, extent) in files {
        let inode = fs.read_inode(disk, *ino).unwrap();
        let mut raw = [0; 512];
        disk.read_at(inode.addr_bytes, &mut raw).unwrap();
        let (core, _) = InodeCore::read_from_prefix(&raw).unwrap();
        found.push((*ino, core.generation.get(), *extent));
    }
    found
}

/// Puts a checkpoint of these items at the end of the log of many disks, and opens each. `judge`
/// gets the disk, with what was written before, and the error, if there is one.
fn open_with_items(
    mut items: impl FnMut(&mut CutDisk<'_>, &Fs, &mut SmallRng) -> Vec<LogItem>,
    mut judge: impl FnMut(&mut CutDisk<'_>, &BTreeMap<u64, Sector>, &Error, &str),
) {
    let image = filled();
    let base = fs::read(image.path()).unwrap();
    let seed = number("XTENT_SEED", 1);
    let (mut errors, mut opened) = (0, 0);
    for seed in seed..seed + number("XTENT_RUNS", 6) * 100 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = CutDisk::new(&base, u64::MAX, seed);
        let fs = Fs::open(&mut disk).unwrap();
        let items = items(&mut disk, &fs, &mut rng);
        let mut writer = LogWriter::open(&mut disk).unwrap();
        let tail = writer.lsn();
        let built = writer.checkpoint(&items, tail).unwrap();
        for write in built.records.iter().flat_map(|record| &record.writes) {
            disk.write_at(write.addr_bytes, &write.bytes).unwrap();
        }
        let before = disk.image.changed.clone();
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}");
        match Fs::open_with(&mut disk, &writable()) {
            Ok(fs) => {
                assert!(!fs.info().log_dirty, "{what}");
                opened += 1;
            }
            Err(error) => {
                judge(&mut disk, &before, &error, &what);
                errors += 1;
            }
        }
    }
    println!("{errors} errors, {opened} opened");
    assert!(errors > 0 && opened > 0);
}

#[test]
fn impossible_intents_are_errors() {
    if !kernel_is_here() {
        return;
    }
    let items = |disk: &mut CutDisk<'_>, fs: &Fs, rng: &mut SmallRng| {
        let geometry = fs.geometry().clone();
        let files = extents_of(disk, fs);
        let with_generations = with_generations(disk, fs, &files);
        (0..rng.random_range(1..3))
            .map(|_| match rng.random_range(0..4) {
                0 => some_intent(&geometry, rng),
                1 => likely_exchange(&geometry, &with_generations, rng),
                _ => likely_intent(&geometry, &files, rng),
            })
            .collect()
    };
    open_with_items(items, |disk, before, error, what| {
        // Where the blocks that the intents staged for copy-on-write contradict the rest, the
        // intents are finished.
        let again = Fs::open_with(disk, &writable());
        let is_same = again.is_err_and(|again| again.kind() == error.kind());
        assert!(disk.image.changed == *before || is_same, "{what}: {error}");
        let kinds = [
            ErrorKind::Corrupt,
            ErrorKind::NotFound,
            ErrorKind::InvalidInput,
        ];
        assert!(kinds.contains(&error.kind()), "{what}: {error}");
    });
}

/// The links of the unlinked lists of the first group, as the log makes them, and the deleted
/// inodes, some of which are damaged.
fn unlinked_items(disk: &mut CutDisk<'_>, fs: &Fs, rng: &mut SmallRng) -> Vec<LogItem> {
    let geometry = fs.geometry().clone();
    let inode_bytes = usize::try_from(geometry.inode_bytes).unwrap();
    let cluster_bytes = (geometry.inode_bytes * 32).max(geometry.block_bytes);
    let root = fs.read_root(disk).unwrap();
    let mut inodes = Vec::new();
    let mut cursor = dir::DirCursor::new();
    while let Some(entry) = cursor.next_entry(fs, disk, &root).unwrap() {
        inodes.push(fs.read_inode(disk, entry.ino).unwrap());
    }
    let mut agi = vec![0; 512];
    disk.read_at(1024, &mut agi).unwrap();
    let mut items = Vec::new();
    let mut clusters: BTreeMap<u64, (Vec<u8>, Vec<usize>)> = BTreeMap::new();
    let number = |inode: &Inode| u32::try_from(inode.ino.0 & 0xffff_ffff).unwrap();
    for _ in 0..rng.random_range(1..4) {
        let inode = inodes.swap_remove(rng.random_range(0..inodes.len()));
        let bucket = match rng.random_ratio(1, 8) {
            true => rng.random_range(0..64),
            false => usize::try_from(number(&inode) % 64).unwrap(),
        };
        let head = match rng.random_range(0..12) {
            0 => rng.random(),
            1 => number(&inode) + 64,
            _ => number(&inode),
        };
        agi[40 + bucket * 4..][..4].copy_from_slice(&head.to_be_bytes());
        let mut raw = vec![0; 512 * inode_bytes.div_ceil(512)];
        disk.read_at(inode.addr_bytes, &mut raw).unwrap();
        let (core, _) = InodeCore::mut_from_prefix(&mut raw).unwrap();
        core.nlink = u32::from(rng.random_ratio(1, 10)).into();
        if rng.random() {
            let at = rng.random_range(2..inode_bytes);
            raw[at] ^= 1 << rng.random_range(0..8);
        }
        let (cluster, offset_bytes) = place_of(&geometry, inode.addr_bytes);
        items.extend(LogItem::inode(&InodeChange {
            cluster_addr_bytes: cluster,
            cluster_bytes,
            offset_bytes,
            dinode: &raw,
            data: true,
            attributes: false,
        }));
        let next = match rng.random_range(0..6) {
            0 => number(&inode),
            1 => rng.random(),
            2 => number(&inodes[0]),
            _ => u32::MAX,
        };
        let mut content = vec![0; usize::try_from(cluster_bytes).unwrap()];
        disk.read_at(cluster, &mut content).unwrap();
        let (content, changed) = clusters.entry(cluster).or_insert((content, Vec::new()));
        let offset = usize::try_from(offset_bytes).unwrap();
        content[offset + 96..][..4].copy_from_slice(&next.to_be_bytes());
        changed.push(offset);
    }
    for (addr, (content, changed)) in clusters {
        items.push(LogItem::unlinked_links(addr, &content, changed));
    }
    items.push(LogItem::buffer(1024, layout::TYPE_AGI, &agi, [0b1111]));
    items
}

#[test]
fn impossible_unlinked_lists_are_errors() {
    if !kernel_is_here() {
        return;
    }
    open_with_items(unlinked_items, |disk, _, error, what| {
        let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported];
        assert!(kinds.contains(&error.kind()), "{what}: {error}");
        let again = Fs::open_with(disk, &writable());
        assert!(again.is_err(), "{what}: {error}");
    });
}

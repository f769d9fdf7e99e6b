//! Exchanges of mappings that the log leaves open.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::format::btree::BmbtRecord;
use xtent::internals::xfs::format::inode::{
    FLAG2_NREXT64, FLAG2_REFLINK, FORMAT_EXTENTS, InodeCore,
};
use xtent::internals::xfs::format::log_items::{self as layout, ExchangeItem};
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::format::superblock::{self, IN_EXCHANGE, SuperblockLayout};
use xtent::internals::xfs::{Extent, Fs, FsBlock, Ino, LogItem};
use zerocopy::FromBytes;

use super::common::image::Image;
use super::common::{kernel_is_here, number, random_bytes, skipped, sys, try_run};
use super::handmade::Handmade;
use super::{compare_but, disk_of, findings_of, writable};

/// Mode of fallocate(2): the length stays.
const KEEP_SIZE: i32 = 1;
/// Where the owner lies in a block of attributes.
const OWNER: usize = 48;
/// Where the checksum lies in it.
const BLOCK_CRC: usize = 12;

/// Switches the feature on in all superblocks: mkfs.xfs knows it from 6.10 on only.
pub(crate) fn enable(image: &Image) {
    let disk = disk_of(image);
    let sector = usize::try_from(image.sector_bytes()).unwrap();
    let first = disk.get(0, sector);
    let (first, _) = SuperblockLayout::read_from_prefix(&first).unwrap();
    let group = u64::from(first.agblocks.get()) << first.blocklog;
    for ag in 0..u64::from(first.agcount.get()) {
        let mut raw = disk.get(ag * group, sector);
        let (layout, _) = SuperblockLayout::mut_from_prefix(&mut raw).unwrap();
        let features = layout.features_incompat.get() | IN_EXCHANGE;
        layout.features_incompat.set(features);
        assert!(set_checksum(&mut raw, superblock::CRC_OFFSET));
        disk.put(ag * group, &raw);
    }
}

/// Whether the kernel exchanges mappings. Prints `SKIPPED` when not.
pub(crate) fn exchange_is_here() -> bool {
    if !kernel_is_here() {
        return false;
    }
    let image = Image::make(128 << 20, 512, &["-l", "size=24m"]);
    enable(&image);
    let dir = tempfile::tempdir().unwrap();
    let (path, dir) = (image.path(), dir.path());
    let args = [
        "-t",
        "xfs",
        "-o",
        "loop",
        path.to_str().unwrap(),
        dir.to_str().unwrap(),
    ];
    let mounts = try_run("mount", &args);
    if mounts.is_ok() {
        try_run("umount", &[dir.to_str().unwrap()]).unwrap();
    } else {
        skipped("this kernel cannot exchange mappings");
    }
    mounts.is_ok()
}

/// Files of many forms that share no blocks, with attributes in a block.
fn fill(root: &Path, rng: &mut SmallRng) {
    for number in 0..8 {
        let path = root.join(format!("h{number}"));
        let file = File::create(&path).unwrap();
        // Marks the file as one with preallocated blocks. In others the kernel's recovery frees
        // blocks behind the end that a file had before it got a longer one.
        sys::fallocate(&file, KEEP_SIZE, 0, 4096).unwrap();
        let mut end = 0;
        let pieces = if rng.random() { 3 } else { 60 };
        for piece in 0..rng.random_range(1..=pieces) {
            let at = piece * 150_000 + rng.random_range(0..20) * 4096;
            let len = rng.random_range(1..60_000);
            end = at + len as u64;
            if rng.random_ratio(1, 4) {
                sys::fallocate(&file, KEEP_SIZE, at, len as u64).unwrap();
            } else {
                file.write_all_at(&random_bytes(number, len), at).unwrap();
            }
        }
        let len = match rng.random_ratio(1, 3) {
            true => 64 << 20,
            false => rng.random_range(1_000..9_000_000),
        };
        file.set_len(end.max(len)).unwrap();
    }
    for number in 0..4 {
        for name in [format!("f{number}"), format!("h{number}")] {
            // Where they are one block the kernel looks at it before it is exchanged, and fails.
            for value in 0..30 {
                let bytes = random_bytes(number, rng.random_range(300..400));
                sys::set_xattr(&root.join(&name), format!("user.{value}"), &bytes).unwrap();
            }
        }
    }
}

/// Two files of a disk.
#[derive(Clone, Copy)]
struct Pair<'a>(&'a str, &'a str);

impl Handmade {
    fn core(&mut self, name: &str) -> (Ino, InodeCore) {
        let (ino, addr, _) = self.inode(name);
        let bytes = usize::try_from(self.fs.geometry().inode_bytes).unwrap();
        let raw = self.disk.get(addr, bytes);
        (ino, InodeCore::read_from_prefix(&raw).unwrap().0)
    }

    fn blocks(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.fs.geometry().block_bytes.into())
    }

    fn exchange(&mut self, files: Pair<'_>, starts: [u64; 2], blocks: u64, flags: u64) {
        let [(ino1, core1), (ino2, core2)] = [self.core(files.0), self.core(files.1)];
        let sizes = match flags & layout::XMI_SET_SIZES {
            0 => [u64::MAX; 2],
            _ => [core2.size.get(), core1.size.get()],
        };
        let item = ExchangeItem {
            item_type: layout::XMI.into(),
            regions: 1.into(),
            pad: 0.into(),
            id: self.id().into(),
            inode1: ino1.0.into(),
            inode2: ino2.0.into(),
            igen1: core1.generation.get().into(),
            igen2: core2.generation.get().into(),
            startoff1: starts[0].into(),
            startoff2: starts[1].into(),
            blockcount: blocks.into(),
            flags: flags.into(),
            isize1: sizes[0].into(),
            isize2: sizes[1].into(),
        };
        self.items.push(LogItem::exchange_intent(&item));
    }

    /// All of both files, and the sizes.
    fn exchange_whole(&mut self, files: Pair<'_>, flags: u64) {
        let [(_, core1), (_, core2)] = [self.core(files.0), self.core(files.1)];
        let blocks = self.blocks(core1.size.get().max(core2.size.get()));
        let ends = [core1, core2].map(|core| self.blocks(core.size.get()));
        let shares = |core: &InodeCore| core.flags2.get() & FLAG2_REFLINK != 0;
        let mut flags = flags | layout::XMI_SET_SIZES;
        // As xmi_can_exchange_reflink_flags().
        if ends == [blocks; 2] && shares(&core1) != shares(&core2) {
            flags |= match shares(&core1) {
                true => layout::XMI_CLEAR_INO1_REFLINK,
                false => layout::XMI_CLEAR_INO2_REFLINK,
            };
        }
        self.mark_both(files);
        self.exchange(files, [0, 0], blocks, flags);
    }

    /// As the kernel does when it begins an exchange: where one file may share blocks, both may.
    fn mark_both(&mut self, files: Pair<'_>) {
        let cores = [files.0, files.1].map(|name| (name, self.core(name).1.flags2.get()));
        let either = (cores[0].1 | cores[1].1) & FLAG2_REFLINK;
        for (name, flags2) in cores {
            if flags2 | either != flags2 {
                let (_, addr, _) = self.inode(name);
                self.log_core(addr, |core| core.flags2 = (flags2 | either).into());
            }
        }
    }

    /// A range of both, anywhere.
    fn exchange_range(&mut self, files: Pair<'_>, flags: u64) {
        let mut rest = u64::MAX;
        let starts = [files.0, files.1].map(|name| {
            let size = self.core(name).1.size.get();
            let blocks = self.blocks(size);
            let start = self.rng.random_range(0..blocks.min(300));
            rest = rest.min(blocks - start);
            start
        });
        let blocks = self.rng.random_range(1..=rest);
        self.mark_both(files);
        self.exchange(files, starts, blocks, flags);
    }

    /// Files of one size of which the start was exchanged.
    fn exchange_rest(&mut self, files: Pair<'_>) {
        let Pair(one, two) = files;
        let ((ino1, addr1, old1), (ino2, addr2, old2)) = (self.inode(one), self.inode(two));
        let block = self.fs.geometry().block_bytes;
        let end = u64::from((64 << 20) / block);
        let split = self.rng.random_range(1..u64::from(1_000_000 / block));
        let cut = |extents: &[Extent], is_before: bool| -> Vec<Extent> {
            let parts = extents.iter().map(|extent| {
                let at = split.clamp(extent.offset_blocks, extent.end_blocks());
                let (start, end) = match is_before {
                    true => (extent.offset_blocks, at),
                    false => (at, extent.end_blocks()),
                };
                Extent {
                    offset_blocks: start,
                    start_block: FsBlock(extent.start_block.0 + start - extent.offset_blocks),
                    blocks: end - start,
                    unwritten: extent.unwritten,
                }
            });
            parts.filter(|part| part.blocks > 0).collect()
        };
        let (moved1, moved2) = (cut(&old1, true), cut(&old2, true));
        let new1: Vec<_> = moved2.iter().copied().chain(cut(&old1, false)).collect();
        let new2: Vec<_> = moved1.iter().copied().chain(cut(&old2, false)).collect();
        self.log_inode(addr1, &old1, &new1);
        self.log_inode(addr2, &old2, &new2);
        // The shared blocks are at the same place in both: they were not moved.
        for (from, to, moved) in [(ino1, ino2, moved1), (ino2, ino1, moved2)] {
            for extent in self.parts(&moved).1 {
                self.rui(layout::RUI_UNMAP_SHARED, from.0, &[extent]);
                self.rui(layout::RUI_MAP_SHARED, to.0, &[extent]);
            }
        }
        self.exchange(files, [split; 2], end - split, layout::XMI_SET_SIZES);
    }

    fn attribute_extents(&mut self, name: &str) -> Vec<Extent> {
        let (_, addr, _) = self.inode(name);
        let bytes = usize::try_from(self.fs.geometry().inode_bytes).unwrap();
        let raw = self.disk.get(addr, bytes);
        let (core, forks) = InodeCore::read_from_prefix(&raw).unwrap();
        assert_eq!(core.aformat, FORMAT_EXTENTS, "attributes in the inode");
        let count = match core.flags2.get() & FLAG2_NREXT64 {
            0 => core.anextents.get().into(),
            _ => core.nextents.get(),
        };
        let fork = &forks[usize::from(core.forkoff) * 8..];
        let records = fork.chunks_exact(16).take(count as usize);
        let extent = |raw: &[u8]| {
            let record = BmbtRecord::read_from_bytes(raw).unwrap();
            Extent {
                offset_blocks: record.offset_blocks(),
                start_block: FsBlock(record.start_block()),
                blocks: record.blocks(),
                unwritten: record.unwritten(),
            }
        };
        records.map(extent).collect()
    }

    /// The attributes of two files; the blocks were made for the other one, as the kernel's online
    /// repair makes them.
    fn exchange_attributes(&mut self, files: Pair<'_>) {
        let block_bytes = self.fs.geometry().block_bytes;
        let owners = [self.core(files.1).0, self.core(files.0).0];
        let mut longest = 0;
        for (name, owner) in [files.0, files.1].into_iter().zip(owners) {
            for extent in self.attribute_extents(name) {
                longest = longest.max(extent.end_blocks());
                for at in 0..extent.blocks {
                    let place = FsBlock(extent.start_block.0 + at);
                    let addr = self.fs.geometry().block_addr(place);
                    let mut raw = self.disk.get(addr, usize::try_from(block_bytes).unwrap());
                    raw[OWNER..OWNER + 8].copy_from_slice(&owner.0.to_be_bytes());
                    assert!(set_checksum(&mut raw, BLOCK_CRC));
                    self.disk.put(addr, &raw);
                }
            }
        }
        self.exchange(files, [0, 0], longest, layout::XMI_ATTR_FORK);
    }
}

fn exchanged(seed: u64, is_small: bool) -> (Handmade, String) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let rmapbt = rng.random();
    let mut disk = Handmade::new(rng, rmapbt, is_small, enable, fill);
    let mut kinds = Vec::new();
    for number in 0..8 {
        let [f, g, h] = ["f", "g", "h"].map(|kind| format!("{kind}{number}"));
        let kind = disk.rng.random_range(0..7);
        kinds.push(kind);
        match kind {
            // Attributes leave no room for the extents.
            5 if number < 4 => disk.exchange_range(Pair(&g, &h), 0),
            0 => disk.exchange_whole(Pair(&f, &h), 0),
            1 => disk.exchange_whole(Pair(&h, &g), 0),
            2 => disk.exchange_range(Pair(&f, &h), 0),
            3 => disk.exchange_range(Pair(&h, &f), layout::XMI_INO1_WRITTEN),
            4 => disk.exchange_whole(Pair(&h, &f), layout::XMI_INO1_WRITTEN),
            5 => disk.exchange_rest(Pair(&f, &g)),
            // In one file.
            _ => {
                let half = disk.core(&f).1.size.get() / 2;
                let half = disk.blocks(half);
                disk.exchange(Pair(&f, &f), [0, half], half, 0);
            }
        }
        // Those that name a file's directories belong to the file.
        let is_free = !disk.fs.features().parent();
        if number < 4 && kind < 5 && is_free && disk.rng.random() {
            disk.exchange_attributes(Pair(&f, &h));
        }
    }
    disk.write_log();
    let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: rmapbt {rmapbt}, {kinds:?}");
    (disk, what)
}

#[test]
fn exchanges_are_finished_as_by_the_kernel() {
    if !exchange_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let mut finished = 0;
    for seed in seed..seed + number("XTENT_RUNS", 6) {
        let (disk, what) = exchanged(seed, false);
        let sector_bytes = disk.image.sector_bytes();
        let path = disk.image.path();
        finished += compare_but(&path, sector_bytes, 16, &what).unwrap();
    }
    println!("{finished} intents finished");
    assert!(finished > 0);
}

/// Files of other sizes, with parts of the exchange done: the kernel takes the size that a file has
/// then for the one that it had at first.
#[test]
fn sizes_are_those_of_the_log() {
    if !exchange_is_here() {
        return;
    }
    let fill = |root: &Path, _: &mut SmallRng| {
        fs::write(root.join("long"), random_bytes(1, 200_000)).unwrap();
        fs::write(root.join("short"), random_bytes(2, 100)).unwrap();
    };
    let rng = SmallRng::seed_from_u64(1);
    let mut disk = Handmade::new(rng, true, true, enable, fill);
    disk.exchange_whole(Pair("long", "short"), 0);
    // It has grown with the blocks that it got.
    let (ino, addr, _) = disk.inode("short");
    disk.log_core(addr, |core| core.size = 70_000.into());
    disk.write_log();
    let mut image = disk_of(&disk.image);
    let fs = Fs::open_with(&mut image, &writable()).unwrap();
    assert_eq!(fs.finished_intents(), 1);
    assert_eq!(fs.read_inode(&mut image, ino).unwrap().size, 200_000);
    drop((fs, image));
    assert_eq!(findings_of(&disk.image).0, [""; 0]);
    let mount = disk.image.mount("");
    assert!(fs::read(mount.path().join("long")).unwrap() == random_bytes(2, 100));
    assert!(fs::read(mount.path().join("short")).unwrap() == random_bytes(1, 200_000));
    mount.unmount();
}

/// The mark of shared blocks goes with the blocks.
#[test]
fn marks_of_shared_blocks_go_with_them() {
    if !exchange_is_here() {
        return;
    }
    let fill = |root: &Path, _: &mut SmallRng| {
        for (number, name) in ["alone", "lonely"].into_iter().enumerate() {
            let file = File::create(root.join(name)).unwrap();
            let bytes = random_bytes(number as u64, 9000);
            file.write_all_at(&bytes, 300_000).unwrap();
            file.set_len(64 << 20).unwrap();
        }
    };
    let rng = SmallRng::seed_from_u64(1);
    let mut disk = Handmade::new(rng, false, true, enable, fill);
    let shares =
        |disk: &mut Handmade, name: &str| disk.core(name).1.flags2.get() & FLAG2_REFLINK != 0;
    assert!(shares(&mut disk, "g0") && !shares(&mut disk, "alone"));
    disk.exchange_whole(Pair("g0", "alone"), 0);
    // The log says so, and it is not so.
    let lies = layout::XMI_CLEAR_INO1_REFLINK | layout::XMI_CLEAR_INO2_REFLINK;
    disk.exchange_range(Pair("g1", "lonely"), lies);
    disk.write_log();
    Fs::open_with(&mut disk_of(&disk.image), &writable()).unwrap();
    let marks = ["g0", "alone", "g1"].map(|name| shares(&mut disk, name));
    assert_eq!(marks, [false, true, true]);
    assert_eq!(findings_of(&disk.image).0, [""; 0]);
}

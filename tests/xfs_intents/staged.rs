//! Blocks that are staged for copy-on-write while the log is clean, which no kernel leaves: they
//! stay, as at a mount by the kernel, until the log is replayed once or xfs_repair frees them.

use std::fs::{self, File};

use xtent::internals::xfs::check::check;
use xtent::internals::xfs::format::ag::Agf;
use xtent::internals::xfs::format::btree::{RMAP_OWNER_COW, RefcountRecord, RmapRecord};
use xtent::internals::xfs::format::inode::InodeCore;
use xtent::internals::xfs::format::{ag, inode, set_checksum};
use xtent::internals::xfs::{Extent, Fork, Fs, dir};
use xtent::volume::{OpenOptions, Volume};
use zerocopy::{FromBytes, IntoBytes};

use super::common::image::Image;
use super::common::judge::ImageDisk;
use super::common::{kernel_is_here, random_bytes, run, sys, try_run};
use super::{copy_of, disk_of, writable};

/// Bytes of the header of a btree block of a group.
const HEADER: usize = 56;
/// Where its checksum lies.
const BLOCK_CRC: usize = 52;

/// Changes the root of a btree of group 0, a leaf, and how many records it has.
fn edit_root(disk: &ImageDisk, block: u32, change: impl FnOnce(&mut Vec<u8>)) {
    let addr = u64::from(block) * 4096;
    let mut raw = disk.get(addr, 4096);
    assert_eq!(raw[4..6], [0, 0], "a leaf");
    let count = usize::from(u16::from_be_bytes([raw[6], raw[7]]));
    let each = if &raw[..4] == b"R3FC" { 12 } else { 24 };
    let mut records = raw[HEADER..HEADER + count * each].to_vec();
    change(&mut records);
    let count = u16::try_from(records.len() / each).unwrap();
    raw[6..8].copy_from_slice(&count.to_be_bytes());
    raw[HEADER..HEADER + records.len()].copy_from_slice(&records);
    assert!(set_checksum(&mut raw, BLOCK_CRC));
    disk.put(addr, &raw);
}

/// Takes the only extent of a file away and stages its blocks.
fn stage(image: &Image, name: &str, rmapbt: bool) -> Extent {
    let mut disk = disk_of(image);
    let fs = Fs::open(&mut disk).unwrap();
    let root = fs.read_root(&mut disk).unwrap();
    let found = dir::lookup(&fs, &mut disk, &root, name.as_bytes());
    let file = fs.read_inode(&mut disk, found.unwrap().unwrap().0).unwrap();
    let Fork::Extents(map) = &file.data else {
        panic!("{:?}", file.data);
    };
    let [extent] = map.as_slice() else {
        panic!("{map:?}");
    };
    let mut raw = disk.get(file.addr_bytes, 512);
    let (core, fork) = InodeCore::mut_from_prefix(&mut raw).unwrap();
    (core.nblocks, core.size) = (0.into(), 0.into());
    (core.nextents, core.big_nextents) = (0.into(), 0.into());
    fork[..16].fill(0);
    assert!(set_checksum(&mut raw, inode::CRC_OFFSET));
    disk.put(file.addr_bytes, &raw);
    let agf = disk.get(512, 512);
    let (agf, _) = Agf::read_from_prefix(&agf).unwrap();
    assert_eq!(agf.magicnum.get(), ag::AGF_MAGIC);
    let start = u32::try_from(extent.start_block.0).unwrap();
    let blocks = u32::try_from(extent.blocks).unwrap();
    edit_root(&disk, agf.refcount_root.get(), |records| {
        let record = RefcountRecord {
            startblock: (start | 1 << 31).into(),
            blockcount: blocks.into(),
            refcount: 1.into(),
        };
        records.extend_from_slice(record.as_bytes());
    });
    if rmapbt {
        edit_root(&disk, agf.rmap_root.get(), |records| {
            let list = <[RmapRecord]>::mut_from_bytes(records.as_mut_slice()).unwrap();
            let record = list
                .iter_mut()
                .find(|record| record.startblock.get() == start);
            let record = record.unwrap();
            (record.owner, record.offset) = (RMAP_OWNER_COW.into(), 0.into());
        });
    }
    *extent
}

fn is_left_over(image: &Image) -> bool {
    let report = check(&mut disk_of(image)).unwrap();
    let ours = !report.findings.is_empty();
    let path = image.path();
    let repair = try_run("xfs_repair", &["-n", "-f", path.to_str().unwrap()]);
    assert_eq!(repair.is_err(), ours, "{:?} {repair:?}", report.findings);
    ours
}

#[test]
fn staged_blocks_of_a_clean_log_stay_as_at_a_mount() {
    if !kernel_is_here() {
        return;
    }
    for rmapbt in [false, true] {
        let features = format!("rmapbt={},reflink=1", u8::from(rmapbt));
        let image = Image::make(128 << 20, 512, &["-d", "agcount=2", "-m", &features]);
        let mount = image.mount("");
        fs::write(mount.path().join("staged"), random_bytes(1, 40_960)).unwrap();
        fs::write(mount.path().join("kept"), random_bytes(2, 40_960)).unwrap();
        mount.unmount();
        assert!(!is_left_over(&image));
        let extent = stage(&image, "staged", rmapbt);
        assert_eq!(extent.blocks, 10);
        assert!(is_left_over(&image), "rmapbt {rmapbt}");

        // The kernel: a mount, one that is made writable later, and a replay.
        let kernel = copy_of(&image.path(), 512);
        kernel.mount("").unmount();
        assert!(is_left_over(&kernel), "rmapbt {rmapbt}");
        let mount = kernel.mount("ro");
        let root = mount.path().to_str().unwrap().to_owned();
        run("mount", &["-o", "remount,rw", &root]);
        fs::write(mount.path().join("more"), "x").unwrap();
        let file = File::open(mount.path()).unwrap();
        sys::sync_filesystem(&file).unwrap();
        let dirty = copy_of(&kernel.path(), 512);
        drop(file);
        mount.unmount();
        assert!(is_left_over(&kernel), "rmapbt {rmapbt}");
        let ours_dirty = copy_of(&dirty.path(), 512);
        dirty.mount("").unmount();
        assert!(!is_left_over(&dirty), "rmapbt {rmapbt}");

        // xtent: the same.
        let target = format!("image:{}", image.path().display());
        let volume = Volume::open(&target).unwrap();
        let mut io = volume.io().unwrap();
        let options = OpenOptions::new().write(true);
        let file = options.open(&volume, &mut io, "/kept").unwrap();
        file.set_len(&mut io, 100_000).unwrap();
        file.write_all_at(&mut io, &[3; 90_000], 5_000).unwrap();
        file.sync_data(&mut io).unwrap();
        drop((file, io));
        volume.close().unwrap();
        assert!(is_left_over(&image), "rmapbt {rmapbt}");
        drop(Fs::open_with(&mut disk_of(&ours_dirty), &writable()).unwrap());
        assert!(!is_left_over(&ours_dirty), "rmapbt {rmapbt}");
    }
}

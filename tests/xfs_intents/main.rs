//! What the log leaves open, finished by xtent and by the kernel on copies of one disk: the same
//! files with the same blocks, the same free space, nothing for xfs_repair or the checker to find.
//!
//! Each test makes disks from `XTENT_SEED`, more of them with `XTENT_RUNS` (6). A failure prints
//! the seed.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

#[path = "../common/mod.rs"]
mod common;

mod attributes;
mod cut;
mod exchange;
mod handmade;
mod hostile;
mod in_use;
mod leftovers;
mod staged;

use std::fs;
use std::path::Path;

use common::image::Image;
use common::judge::{ImageDisk, quiet};
use common::oracle::{differences, kernel_tree};
use common::run;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use xtent::ErrorKind;
use xtent::internals::xfs::check::{Finding, check};
use xtent::internals::xfs::{Fs, FsOptions, Recovery};

fn writable() -> FsOptions {
    FsOptions {
        writable: true,
        recovery: Recovery::OnDevice,
        ..FsOptions::default()
    }
}

fn path_of(image: &Image) -> String {
    image.path().to_str().unwrap().to_owned()
}

fn copy_of(path: &Path, sector_bytes: u32) -> Image {
    let copy = Image::empty(0, sector_bytes);
    run(
        "cp",
        &["--sparse=always", path.to_str().unwrap(), &path_of(&copy)],
    );
    copy
}

fn disk_of(image: &Image) -> ImageDisk {
    ImageDisk::open(image.path(), image.sector_bytes())
}

/// Sectors of a disk, and the forms of its log and of its blocks for mkfs.xfs; `is_small` for
/// sectors of 512 bytes and a log without a stripe unit.
fn disk_form(rng: &mut SmallRng, is_small: bool) -> (u32, String, &'static str) {
    let (sector_bytes, log) = match is_small {
        true => (512, "size=24m".to_owned()),
        false => log_form(rng),
    };
    let block = match sector_bytes {
        512 => *["size=4096", "size=1024"].choose(rng).unwrap(),
        _ => "size=4096",
    };
    (sector_bytes, log, block)
}

fn log_form(rng: &mut SmallRng) -> (u32, String) {
    let sector_bytes = *[512, 512, 4096].choose(rng).unwrap();
    let stripe = *["", "", "4k", "32k", "256k"].choose(rng).unwrap();
    let size = if stripe == "256k" { "36m" } else { "24m" };
    let log = match stripe {
        "" => format!("size={size}"),
        _ => format!("size={size},su={stripe}"),
    };
    (sector_bytes, log)
}

/// The extents of files and the counters of free space, as a clean disk has them.
#[derive(Debug, PartialEq, Eq)]
struct Space {
    /// Lines of `xfs_io fsmap` for inodes, where there is a reverse mapping.
    owners: Vec<String>,
    free_bytes: u64,
    inodes: (u64, u64),
}

fn space_of(image: &Image) -> Space {
    let mount = image.mount("");
    let map = run(
        "xfs_io",
        &["-r", "-c", "fsmap", mount.path().to_str().unwrap()],
    );
    mount.unmount();
    // Where blocks of btrees lie is a choice.
    let lines = map
        .lines()
        .filter(|line| line.contains("inode") && !line.contains("map") && !line.contains("btree"));
    // Without the number and the device.
    let owners = lines.filter_map(|line| Some(line.split_once('[')?.1.to_owned()));
    let mut disk = disk_of(image);
    let fs = Fs::open(&mut disk).unwrap();
    let info = fs.info();
    Space {
        owners: owners.collect(),
        free_bytes: info.free_bytes,
        inodes: (info.inodes, info.free_inodes),
    }
}

/// What the checker and xfs_repair find.
fn findings_of(image: &Image) -> (Vec<String>, bool) {
    let report = check(&mut disk_of(image)).unwrap();
    let show = |finding: &Finding| format!("{:?}: {}", finding.inode, finding.what);
    let is_clean = quiet("xfs_repair", &["-n", "-f", &path_of(image)]);
    (report.findings.iter().map(show).collect(), is_clean)
}

/// Lets the kernel and xtent finish the log of a disk. Intents that xtent found; `None` when it
/// left the disk to the kernel.
fn compare(dirty: &Path, sector_bytes: u32, what: &str) -> Option<u64> {
    compare_but(dirty, sector_bytes, 0, what)
}

/// The same; the btree of a file may have so many blocks of 512 bytes more or less.
fn compare_but(dirty: &Path, sector_bytes: u32, btree_512: u64, what: &str) -> Option<u64> {
    let (kernel, ours) = (copy_of(dirty, sector_bytes), copy_of(dirty, sector_bytes));
    kernel.mount("").unmount();
    let mut disk = disk_of(&ours);
    let fs = match Fs::open_with(&mut disk, &writable()) {
        Ok(fs) => fs,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            assert!(
                fs::read(dirty).unwrap() == fs::read(ours.path()).unwrap(),
                "{what}: {error}, and the disk was changed"
            );
            return None;
        }
        Err(error) => panic!("{what}: {error}"),
    };
    assert_eq!(fs.write_refusal(), None, "{what}");
    assert!(!fs.info().log_dirty, "{what}");
    let finished = fs.finished_intents();
    drop((fs, disk));
    // An extended attribute that was being changed stays incomplete.
    let found = findings_of(&ours);
    assert_eq!(found, findings_of(&kernel), "{what}");
    assert!(
        found.0.iter().all(|text| text.contains("attributes")),
        "{what}: {found:?}"
    );
    let (theirs, mine) = (space_of(&kernel), space_of(&ours));
    let but = |a: &Space, b: &Space| {
        let only = a.owners.iter().filter(|line| !b.owners.contains(line));
        only.cloned().collect::<Vec<_>>()
    };
    let (only_theirs, only_mine) = (but(&theirs, &mine), but(&mine, &theirs));
    // The same records may take a block of a btree more or less.
    let blocks = theirs.free_bytes.abs_diff(mine.free_bytes) / 1024;
    assert!(
        theirs.owners == mine.owners && theirs.inodes == mine.inodes && blocks <= 16,
        "{what}: only the kernel's: {only_theirs:?}; only ours: {only_mine:?}; free: {} and {} \
         bytes, {:?} and {:?} inodes",
        theirs.free_bytes,
        mine.free_bytes,
        theirs.inodes,
        mine.inodes
    );
    let tree = |image: &Image| {
        let mount = image.mount("ro");
        let tree = kernel_tree(mount.path());
        mount.unmount();
        tree
    };
    let (theirs, mut mine) = (tree(&kernel), tree(&ours));
    for (path, (stat, _)) in &mut mine {
        let blocks = theirs.get(path).map(|(stat, _)| stat.blocks_512);
        if let Some(blocks) = blocks.filter(|blocks| blocks.abs_diff(stat.blocks_512) <= btree_512)
        {
            stat.blocks_512 = blocks;
        }
    }
    let differ = differences(&theirs, &mine);
    assert!(differ.is_empty(), "{what}: {differ:#?}");
    // The kernel goes on with it.
    let mount = ours.mount("");
    for entry in fs::read_dir(mount.path()).unwrap() {
        drop(fs::remove_file(entry.unwrap().path()));
    }
    drop(fs::write(mount.path().join("after"), vec![1; 3_000_000]));
    mount.unmount();
    let found = findings_of(&ours).0;
    assert!(
        found.iter().all(|text| text.contains("attributes")),
        "{what}: {found:?}"
    );
    Some(finished)
}

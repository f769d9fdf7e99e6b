//! The consistency checker beside xfs_repair: disks that the kernel filled are clean for both; what
//! xfs_repair -n finds on a disk with one changed field, with the checksum made right, the checker
//! finds, too.
//!
//! `XTENT_RUNS` (60) changes of each disk, chosen by `XTENT_SEED`, with mkfs.xfs and xfs_repair as
//! the path has them.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use common::image::Image;
use common::judge::ImageDisk;
use common::structures::{Structure, change, structures};
use common::{kernel_is_here, number, random_bytes, run, sys, tool};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::check::{CheckReport, check};
use xtent::internals::xfs::format::{ag, btree, set_checksum};
use xtent::internals::xfs::{Fs, FsOptions};

/// Which disks: sector bytes, and arguments for mkfs.xfs.
type Kind = (u32, &'static [&'static str]);

const KINDS: [Kind; 4] = [
    (512, &["-d", "agcount=3", "-m", "rmapbt=0"]),
    (
        512,
        &[
            "-d",
            "agcount=3",
            "-b",
            "size=1024",
            "-n",
            "size=4096",
            "-m",
            "rmapbt=1",
        ],
    ),
    (
        4096,
        &["-d", "agcount=2", "-m", "rmapbt=1", "-i", "nrext64=1"],
    ),
    (
        512,
        &[
            "-d",
            "agcount=2",
            "-m",
            "reflink=0,finobt=0",
            "-i",
            "sparse=0,size=1024",
        ],
    ),
];

/// Makes a disk and lets the kernel fill it.
fn filled((sector_bytes, args): Kind, seed: u64) -> Image {
    let mut all = vec!["-l", "size=24m"];
    all.extend(args);
    let image = Image::make(160 << 20, sector_bytes, &all);
    let mount = image.mount("");
    let mut rng = SmallRng::seed_from_u64(seed);
    files(mount.path(), &mut rng);
    directories(mount.path());
    attributes(mount.path(), &mut rng);
    mount.unmount();
    image
}

/// Files with holes, unwritten, shared and many extents; special files, links.
fn files(root: &Path, rng: &mut SmallRng) {
    let create = |name: &str| File::create(root.join(name)).unwrap();
    for (name, extents) in [("few", 12), ("many", 250), ("more", 1200)] {
        let file = create(name);
        for extent in 0..extents {
            let at = extent * 8192 + u64::from(rng.random_ratio(1, 9)) * 4096;
            file.write_all_at(&[1; 4096], at).unwrap();
        }
    }
    let shared = create("shared");
    shared.write_all_at(&random_bytes(1, 600_000), 0).unwrap();
    for copy in 0..4 {
        let file = create(&format!("copy-{copy}"));
        // Only where the filesystem can.
        let _ = sys::clone_file(&shared, &file);
        let at = rng.random_range(0..500_000);
        file.write_all_at(&[2; 20_000], at).unwrap();
    }
    let unwritten = create("unwritten");
    sys::fallocate(&unwritten, 0, 0, 700_000).unwrap();
    unwritten.write_all_at(&[3; 9000], 300_000).unwrap();
    create("sparse").set_len(5 << 40).unwrap();
    symlink("somewhere", root.join("link")).unwrap();
    symlink("l".repeat(900), root.join("long-link")).unwrap();
    fs::hard_link(root.join("few"), root.join("hard-link")).unwrap();
    for (name, kind) in [
        ("fifo", libc::S_IFIFO),
        ("char", libc::S_IFCHR),
        ("disk", libc::S_IFBLK),
    ] {
        sys::make_node(&root.join(name), kind | 0o600, 5, 1).unwrap();
    }
    drop(UnixListener::bind(root.join("socket")).unwrap());
    let dir = root.join("pieces");
    fs::create_dir(&dir).unwrap();
    for name in 0..1000 {
        fs::write(dir.join(name.to_string()), [7; 5000]).unwrap();
    }
    run("sync", &["-f", root.to_str().unwrap()]);
    for name in (0..1000).step_by(2) {
        fs::remove_file(dir.join(name.to_string())).unwrap();
    }
}

/// Directories of all forms, with names that were removed.
fn directories(root: &Path) {
    for (dir, count) in [
        ("few-names", 6),
        ("block", 40),
        ("leaf", 300),
        ("node", 2500),
    ] {
        let dir = root.join(dir);
        fs::create_dir(&dir).unwrap();
        for name in 0..count {
            let name = format!("{name}-{}", "n".repeat(name * 7 % 40 + 1));
            match count {
                // Inodes of their own for some only.
                2500 => fs::hard_link(root.join("many"), dir.join(name)).unwrap(),
                _ => drop(File::create(dir.join(name)).unwrap()),
            }
        }
        for (index, entry) in fs::read_dir(&dir).unwrap().enumerate() {
            if index % 3 == 1 {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }
    let mut deep = root.join("deep");
    for level in 0..12 {
        fs::create_dir(&deep).unwrap();
        deep = deep.join(level.to_string());
    }
}

/// Attributes in the inode, in a leaf, in many, and values in blocks of their own.
fn attributes(root: &Path, rng: &mut SmallRng) {
    let dir = root.join("attributes");
    fs::create_dir(&dir).unwrap();
    for (name, count, most) in [
        ("short", 2, 20),
        ("leaf", 12, 90),
        ("node", 300, 300),
        ("remote", 4, 20_000),
    ] {
        let path = dir.join(name);
        drop(File::create(&path).unwrap());
        for number in 0..count {
            let value = random_bytes(number, rng.random_range(1..most));
            sys::set_xattr(&path, format!("user.attribute-{number}"), &value).unwrap();
        }
    }
}

fn report_of(image: &Image) -> CheckReport {
    let mut disk = ImageDisk::open(image.path(), image.sector_bytes());
    check(&mut disk).unwrap()
}

/// What xfs_repair -n says; `None` when it finds nothing.
fn complaint(image: &Image) -> Option<String> {
    let output = Command::new(tool("timeout").unwrap())
        .args(["120", "xfs_repair", "-n", "-f"])
        .arg(image.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let progress = |line: &&str| {
        !line.starts_with("Phase") && !line.trim_start().starts_with("- ") && !line.is_empty()
    };
    let lines: Vec<_> = text.lines().filter(progress).collect();
    (!output.status.success()).then(|| lines.join("\n"))
}

#[test]
fn disks_that_the_kernel_filled_are_clean() {
    if !kernel_is_here() {
        return;
    }
    for kind in KINDS {
        let image = filled(kind, number("XTENT_SEED", 1));
        image.assert_clean();
        let (status, out) = command(&["check", image.path().to_str().unwrap()]);
        assert!(status == Some(0) && out.starts_with("clean: "), "{out}");
        let report = report_of(&image);
        assert!(report.is_clean(), "{kind:?}: {:#?}", report.findings);
        assert!(report.inodes > 500 && report.extents > 1000, "{report:?}");
        assert!(!report.log_was_dirty);
    }
}

/// Unlinked files that were open and blocks staged for copy-on-write are no findings after a cut.
#[test]
fn dirty_logs_are_replayed_first() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(300 << 20, 512, &["-m", "rmapbt=1"]);
    let mount = image.mount("");
    let root = mount.path();
    fs::create_dir(root.join("dir")).unwrap();
    for name in 0..500 {
        fs::write(root.join("dir").join(name.to_string()), [1; 3000]).unwrap();
    }
    let removed = File::create(root.join("removed")).unwrap();
    removed.write_all_at(&[2; 50_000], 0).unwrap();
    fs::remove_file(root.join("removed")).unwrap();
    let mut options = File::options();
    let unnamed = options
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(root)
        .unwrap();
    unnamed.write_all_at(&[3; 9000], 0).unwrap();
    run(
        "xfs_io",
        &["-x", "-c", "shutdown -f", root.to_str().unwrap()],
    );
    drop((removed, unnamed));
    mount.unmount();
    let before = fs::read(image.path()).unwrap();
    let report = report_of(&image);
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert!(report.log_was_dirty && report.replayed_checkpoints > 0);
    assert!(fs::read(image.path()).unwrap() == before, "it was changed");
}

/// Two adjacent records of one free extent, in both btrees: xfs_repair says nothing.
#[test]
fn free_extents_that_are_not_merged() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(300 << 20, 512, &[]);
    let mut disk = ImageDisk::open(image.path(), 512);
    let fs = Fs::open(&mut disk).unwrap();
    let geometry = fs.geometry().clone();
    let start = geometry.ag_block_addr(1, 0);
    let word = |raw: &[u8], at: usize| u32::from_be_bytes(*raw[at..].first_chunk().unwrap());
    let mut agf = disk.get(start + 512, 512);
    let block_of = |at: usize| geometry.ag_block_addr(1, word(&agf, at));
    for root in [block_of(16), block_of(20)] {
        let mut raw = disk.get(root, 4096);
        assert_eq!(u16::from_be_bytes([raw[6], raw[7]]), 1, "one free extent");
        let (first, blocks) = (word(&raw, 56), word(&raw, 60));
        raw[7] = 2;
        raw[60..64].copy_from_slice(&100_u32.to_be_bytes());
        raw[64..68].copy_from_slice(&(first + 100).to_be_bytes());
        raw[68..72].copy_from_slice(&(blocks - 100).to_be_bytes());
        assert!(set_checksum(&mut raw, btree::SHORT_CRC_OFFSET));
        disk.put(root, &raw);
    }
    let longest = word(&agf, 56) - 100;
    agf[56..60].copy_from_slice(&longest.to_be_bytes());
    assert!(set_checksum(&mut agf, ag::AGF_CRC_OFFSET));
    disk.put(start + 512, &agf);
    image.assert_clean();
    let report = report_of(&image);
    let [finding] = &report.findings[..] else {
        panic!("{:#?}", report.findings);
    };
    assert!(finding.what.contains("not merged"), "{finding}");
    // The command gets the image alone.
    drop(disk);
    let (status, out) = command(&["check", image.path().to_str().unwrap()]);
    assert_eq!((status, out.lines().count()), (Some(1), 2), "{out}");
    assert!(out.contains(&finding.to_string()), "{out}");
    let (status, out) = command(&["check", "--json", image.path().to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status, Some(1));
    assert_eq!(json["is_clean"], false);
    assert_eq!(json["findings"][0]["what"], *finding.what);
    assert_eq!(json["findings"][0]["group"], 1);
}

/// The status and the standard output of the command.
fn command(args: &[&str]) -> (Option<i32>, String) {
    let xtent = Command::new(env!("CARGO_BIN_EXE_xtent"))
        .args(args)
        .output()
        .unwrap();
    (
        xtent.status.code(),
        String::from_utf8(xtent.stdout).unwrap(),
    )
}

fn found_in(disk: &mut ImageDisk, image: &Path) -> BTreeMap<String, Vec<Structure>> {
    let fs = Fs::open_with(disk, &FsOptions::default()).unwrap();
    structures(&fs::read(image).unwrap(), &fs)
}

/// What xfs_repair finds, the checker finds.
#[test]
fn changed_fields() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let mut missed = Vec::new();
    let (mut both, mut ours) = (0, 0);
    let show = std::env::var_os("XTENT_SHOW").is_some();
    let runs = number("XTENT_RUNS", 60);
    for (index, kind) in KINDS.into_iter().enumerate() {
        let mut rng = SmallRng::seed_from_u64(seed + index as u64 * 1000);
        let image = filled(kind, seed);
        let mut disk = ImageDisk::open(image.path(), image.sector_bytes());
        let structures = found_in(&mut disk, &image.path());
        let kinds: Vec<_> = structures.keys().collect();
        for _ in 0..runs {
            let name = *kinds.choose(&mut rng).unwrap();
            let structure = *structures[name].choose(&mut rng).unwrap();
            let raw = disk.get(structure.addr, structure.len);
            let mut changed = raw.clone();
            let what = change(&mut changed, &mut rng);
            set_checksum(&mut changed, structure.crc);
            if changed == raw {
                continue;
            }
            disk.put(structure.addr, &changed);
            if show {
                println!("{name} at {:#x}, {what}", structure.addr);
            }
            let report = report_of(&image);
            let complaint = complaint(&image);
            disk.put(structure.addr, &raw);
            match (report.is_clean(), complaint) {
                (true, Some(complaint)) => missed.push(format!(
                    "{kind:?}: {name} at {:#x}, {what}:\n{complaint}",
                    structure.addr
                )),
                (false, Some(_)) => both += 1,
                (false, None) => {
                    ours += 1;
                    if show {
                        println!("by the checker only: {}", report.findings[0]);
                    }
                }
                (true, None) => {}
            }
        }
    }
    println!("seed {seed}: {both} found by both, {ours} by the checker only");
    for miss in &missed {
        println!("MISSED {miss}\n");
    }
    assert!(missed.is_empty(), "seed {seed}: {} missed", missed.len());
    assert!(both > 0);
}

/// Damage that adds up ends every check, without a panic, and is found.
#[test]
fn much_damage() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    for (index, kind) in KINDS.into_iter().enumerate() {
        let mut rng = SmallRng::seed_from_u64(seed + index as u64 * 1000);
        let image = filled(kind, seed);
        let mut disk = ImageDisk::open(image.path(), image.sector_bytes());
        let structures = found_in(&mut disk, &image.path());
        let kinds: Vec<_> = structures.keys().collect();
        let mut changes = Vec::new();
        for round in 0..number("XTENT_RUNS", 60) {
            for _ in 0..rng.random_range(1..8) {
                let name = *kinds.choose(&mut rng).unwrap();
                let structure = *structures[name].choose(&mut rng).unwrap();
                let raw = disk.get(structure.addr, structure.len);
                let mut changed = raw.clone();
                change(&mut changed, &mut rng);
                set_checksum(&mut changed, structure.crc);
                disk.put(structure.addr, &changed);
                changes.push((structure.addr, raw));
            }
            let report = report_of(&image);
            assert!(report.findings.len() <= 1000, "{kind:?}, round {round}");
            if round % 20 == 19 {
                for (addr, raw) in changes.drain(..).rev() {
                    disk.put(addr, &raw);
                }
                let report = report_of(&image);
                assert!(report.is_clean(), "{kind:?}: {:#?}", report.findings);
            }
        }
    }
}

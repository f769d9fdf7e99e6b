//! The log, as the kernel and xfsprogs leave it: xtent calls it clean exactly when the kernel
//! mounts the disk without replaying anything, and xfs_logprint says the same.
//!
//! `random_lives` makes `XTENT_RUNS` (4) disks from `XTENT_SEED`, which live through mounts with
//! any logbsize, power cuts and xfsprogs' tools, until their logs have wrapped several times. After
//! each step, and with broken blocks near the head of the log, all are asked. A failure prints the
//! seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use common::image::Image;
use common::judge::{ImageDisk, Judge, quiet};
use common::{kernel_is_here, number, run, tool};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::format::{set_checksum, superblock as layout};
use xtent::internals::xfs::{Fs, FsOptions};

const LOGBSIZES: [&str; 5] = ["16k", "32k", "64k", "128k", "256k"];

/// What xtent makes of the log.
fn open(image: &Image) -> Result<(), (ErrorKind, String)> {
    let mut disk = ImageDisk::open(image.path(), image.sector_bytes());
    // As the kernel, which reads the root directory's inode when it mounts.
    match Fs::open(&mut disk).and_then(|fs| fs.read_root(&mut disk)) {
        Ok(_) => Ok(()),
        Err(error) => Err((error.kind(), error.to_string())),
    }
}

/// Asks the kernel, xfs_logprint and xtent; whether the log is clean.
fn is_clean(image: &Image, judge: &Judge, what: &str) -> bool {
    let kernel = judge.mounts("", |_| ());
    let xtent = open(image);
    assert_eq!(
        xtent.is_ok(),
        kernel,
        "{what}: the kernel mounts it: {kernel}; {xtent:?}"
    );
    if let Err((kind, text)) = &xtent {
        assert_eq!(*kind, ErrorKind::NeedsRecovery, "{what}: {text}");
    }
    // With -t it then prints the records to replay, and may fail with that.
    let printed = Command::new(tool("xfs_logprint").unwrap())
        .arg("-t")
        .arg(image.path())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    let verdict = printed
        .lines()
        .find(|line| line.contains("<CLEAN>") || line.contains("<DIRTY>"));
    let says_clean = verdict.map(|line| line.contains("<CLEAN>"));
    assert_eq!(
        says_clean,
        Some(kernel),
        "{what}: xfs_logprint -t: {verdict:?}"
    );
    kernel
}

fn kib(size: &str) -> u32 {
    size.trim_end_matches('k').parse().unwrap()
}

#[test]
fn every_logbsize_on_every_stripe_is_clean_after_unmounting() {
    if !kernel_is_here() {
        return;
    }
    for sector_bytes in [512, 4096] {
        for stripe in ["", "4k", "16k", "32k", "64k", "128k", "256k"] {
            let su = format!("su={stripe}");
            let args = if stripe.is_empty() {
                vec![]
            } else {
                vec!["-l", &su]
            };
            let image = Image::make(320 << 20, sector_bytes, &args);
            let judge = Judge::new(&image.path(), sector_bytes);
            let made = format!("sectors of {sector_bytes}, stripe unit {stripe}");
            assert!(is_clean(&image, &judge, &made), "{made}");
            for logbsize in LOGBSIZES {
                // The kernel refuses buffers that are smaller than the stripe unit.
                if !stripe.is_empty() && kib(logbsize) < kib(stripe) {
                    continue;
                }
                let what = format!("{made}, logbsize {logbsize}");
                let mount = image.mount(&format!("logbsize={logbsize}"));
                // More than one record, so that the last of them begins anywhere.
                for file in 0..300 {
                    File::create(mount.path().join(format!("{logbsize}-{file}"))).unwrap();
                }
                mount.unmount();
                assert!(is_clean(&image, &judge, &what), "{what}");
            }
        }
    }
}

#[test]
fn a_log_that_is_older_than_the_superblock_is_refused_until_xfs_repair_ran() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    File::create(mount.path().join("file")).unwrap();
    mount.unmount();
    let mut disk = ImageDisk::open(image.path(), 512);
    let fs = Fs::open(&mut disk).unwrap();
    let log = fs.geometry().block_addr(fs.geometry().log_start);
    let len = fs.info().log_bytes;
    let judge = Judge::new(&image.path(), 512);
    for piece in 0..len >> 20 {
        disk.put(log + (piece << 20), &vec![0; 1 << 20]);
    }
    assert!(!judge.mounts("", |_| ()), "the kernel mounts it");
    let (kind, text) = open(&image).unwrap_err();
    assert_eq!(kind, ErrorKind::Corrupt, "{text}");
    assert!(text.contains("run xfs_repair"), "{text}");
    // Neither is it enough to make the superblock older: the allocation groups' headers are newer,
    // too.
    let superblock = disk.get(0, 512);
    let mut older = superblock.clone();
    older[240..248].fill(0);
    set_checksum(&mut older, layout::CRC_OFFSET);
    disk.put(0, &older);
    assert!(!judge.mounts("", |_| ()), "the kernel mounts it");
    let (kind, text) = open(&image).unwrap_err();
    assert_eq!(kind, ErrorKind::Corrupt, "{text}");
    assert!(text.contains("newer than the end of the log"), "{text}");
    disk.put(0, &superblock);
    // For reading only, what stands on the disk can be had.
    let options = FsOptions {
        norecovery: true,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(&mut disk, &options).unwrap();
    assert!(fs.read_only_reason().is_some());
    assert!(judge.mounts("norecovery", |_| ()));
    // What the message says helps.
    run("xfs_repair", &["-f", image.path().to_str().unwrap()]);
    assert!(is_clean(&image, &judge, "after xfs_repair"));
}

/// A disk with a small log, and its choices.
struct Life {
    image: Image,
    stripe_kib: u32,
    rng: SmallRng,
    /// Files made so far.
    files: u32,
    what: String,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let sector_bytes = *[512, 512, 4096].choose(&mut rng).unwrap();
        let stripe = *["", "", "4k", "32k", "128k", "256k"]
            .choose(&mut rng)
            .unwrap();
        // The smallest that mkfs.xfs allows, about.
        let size = match stripe {
            "128k" | "256k" => "20m",
            _ => "8m",
        };
        let mut log = format!("size={size}");
        if !stripe.is_empty() {
            log += &format!(",su={stripe}");
        }
        let mut args = vec!["-d", "agcount=2", "-l", &log];
        if sector_bytes == 512 && rng.random() {
            args.extend(["-b", "size=1024"]);
        }
        let image = Image::make(160 << 20, sector_bytes, &args);
        Self {
            image,
            stripe_kib: if stripe.is_empty() { 0 } else { kib(stripe) },
            rng,
            files: 0,
            what: format!("XTENT_RUNS=1 XTENT_SEED={seed}: {args:?}, sectors of {sector_bytes}"),
        }
    }

    fn path(&self) -> String {
        self.image.path().to_str().unwrap().to_owned()
    }

    /// Makes and removes files, and writes the log out now and then.
    fn churn(&mut self, root: &Path) {
        let rounds = self.rng.random_range(0..6);
        for _ in 0..rounds {
            let count = self.rng.random_range(1..400);
            for file in self.files..self.files + count {
                File::create(root.join(file.to_string())).unwrap();
            }
            if self.rng.random_ratio(2, 3) {
                for file in self.files..self.files + count {
                    fs::remove_file(root.join(file.to_string())).unwrap();
                }
            }
            self.files += count;
            if self.rng.random() {
                run("sync", &["-f", root.to_str().unwrap()]);
            }
        }
    }

    fn mounted(&mut self) {
        let sizes: Vec<&str> = LOGBSIZES
            .into_iter()
            .filter(|size| kib(size) >= self.stripe_kib)
            .collect();
        let logbsize = *sizes.choose(&mut self.rng).unwrap();
        self.what += &format!(", logbsize={logbsize}");
        let mount = self.image.mount(&format!("logbsize={logbsize}"));
        self.churn(mount.path());
        if self.rng.random_ratio(1, 4) {
            run("xfs_freeze", &["-f", mount.path().to_str().unwrap()]);
            run("xfs_freeze", &["-u", mount.path().to_str().unwrap()]);
            self.what += " frozen";
        }
        if self.rng.random_ratio(1, 3) {
            self.what += " cut";
            let how = *["shutdown", "shutdown -f"].choose(&mut self.rng).unwrap();
            let root = mount.path().to_str().unwrap();
            run("xfs_io", &["-x", "-c", how, root]);
        }
        mount.unmount();
    }

    /// One of the things that happen to a disk.
    fn step(&mut self, clean: bool) {
        let image = self.path();
        // The tools want a clean log.
        let most = if clean { 10 } else { 6 };
        match self.rng.random_range(0..most) {
            0..5 => self.mounted(),
            5 => self.tool("xfs_repair", &["-f", "-L", &image]),
            6 => self.tool("xfs_repair", &["-f", &image]),
            7 => self.tool("xfs_admin", &["-U", "generate", &image]),
            8 => self.tool("xfs_admin", &["-L", "label", &image]),
            _ => {
                let dump = self.image.path().with_extension("dump");
                let dump = dump.to_str().unwrap();
                self.tool("xfs_metadump", &["-o", &image, dump]);
                self.tool("xfs_mdrestore", &[dump, &image]);
                fs::remove_file(dump).unwrap();
            }
        }
    }

    fn tool(&mut self, name: &str, args: &[&str]) {
        self.what += &format!(", {name} {}", args[..args.len() - 1].join(" "));
        // xfs_repair says with its status whether it changed anything.
        quiet(name, args);
    }

    /// Breaks blocks near the head of the log, one after the other, and asks.
    fn broken(&mut self, judge: &Judge) {
        let disk = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let mut reader = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let options = FsOptions {
            norecovery: true,
            ..FsOptions::default()
        };
        let fs = Fs::open_with(&mut reader, &options).unwrap();
        let addr = fs.geometry().block_addr(fs.geometry().log_start);
        let blocks = fs.info().log_bytes / 512;
        let log = disk.get(addr, (blocks * 512).try_into().unwrap());
        let record = newest_record(&log);
        for _ in 0..6 {
            let near = if self.rng.random() { 4 } else { 700 };
            let block = (record + blocks + self.rng.random_range(0..near) - near / 3) % blocks;
            let at = addr + block * 512;
            let before = disk.get(at, 512);
            let (after, how) = self.break_block(&before, &log);
            disk.put(at, &after);
            let kernel = judge.mounts("", |_| ());
            let xtent = open(&self.image);
            // The kernel makes do with some logs that have no record near their head.
            let stricter = matches!(&xtent, Err((ErrorKind::Corrupt, _)));
            assert!(
                xtent.is_ok() == kernel || stricter,
                "{}: with block {block} of the log broken ({how}) the kernel mounts it: {kernel}; {xtent:?}",
                self.what
            );
            disk.put(at, &before);
        }
    }

    fn break_block(&mut self, before: &[u8], log: &[u8]) -> (Vec<u8>, String) {
        let mut after = before.to_vec();
        match self.rng.random_range(0..4) {
            0 => {
                after.fill(0);
                (after, "zeroes".to_owned())
            }
            1 => {
                let from = self.rng.random_range(0..log.len() / 512) * 512;
                after.copy_from_slice(&log[from..from + 512]);
                (after, format!("block {}", from / 512))
            }
            2 => {
                let at = self.rng.random_range(0..44);
                let bit = self.rng.random_range(0..8);
                after[at] ^= 1 << bit;
                (after, format!("bit {bit} of byte {at}"))
            }
            _ => {
                let at = self.rng.random_range(0..512);
                after[at] = self.rng.random();
                (after, format!("byte {at}"))
            }
        }
    }
}

/// The block of the newest record of a log.
fn newest_record(log: &[u8]) -> u64 {
    let word = |block: &[u8], at: usize| u32::from_be_bytes(block[at..at + 4].try_into().unwrap());
    let records = log.chunks_exact(512).enumerate();
    let records = records.filter(|(_, block)| word(block, 0) == 0xfeed_babe);
    let newest = records.max_by_key(|(number, block)| (word(block, 4), *number));
    newest.map_or(0, |(number, _)| number as u64)
}

#[test]
fn random_lives() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    for seed in seed..seed + number("XTENT_RUNS", 4) {
        let mut life = Life::new(seed);
        let judge = Judge::new(&life.image.path(), life.image.sector_bytes());
        let mut clean = is_clean(&life.image, &judge, &life.what);
        for _ in 0..12 {
            life.step(clean);
            clean = is_clean(&life.image, &judge, &life.what);
            life.broken(&judge);
        }
    }
}

//! Length and space of files that xtent changes: contents, sizes and blocks against a model, after
//! the kernel has replayed the log, and in place; judged by xfs_repair and by the own checker.
//!
//! `XTENT_RUNS` (2) disks from `XTENT_SEED`; a failure prints the seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use common::image::Image;
use common::judge::{ImageDisk, open_to_change};
use common::space_disk::plain_form;
use common::{kernel_is_here, number, random_bytes, run};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fs, Ino, InodeId};

/// Bytes that files have at most, about.
const MOST_BYTES: u64 = 3 << 20;
const FILES: usize = 8;

struct SpaceDisk {
    image: Image,
    rng: SmallRng,
    files: Vec<(Ino, Vec<u8>)>,
    block: u64,
    what: String,
}

impl SpaceDisk {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (sector_bytes, args, block) = plain_form(&mut rng);
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: sectors of {sector_bytes}, {args:?}");
        let all: Vec<&str> = args.iter().map(String::as_str).collect();
        let image = Image::make(128 << 20, sector_bytes, &all);
        let mount = image.mount("");
        let mut files = Vec::new();
        for file in 0..FILES {
            let path = mount.path().join(file.to_string());
            let len = rng.random_range(0..MOST_BYTES / 2);
            let content = random_bytes(seed + file as u64, usize::try_from(len).unwrap());
            fs::write(&path, &content).unwrap();
            files.push((Ino(fs::metadata(&path).unwrap().ino()), content));
        }
        mount.unmount();
        Self {
            image,
            rng,
            files,
            block,
            what,
        }
    }

    fn open(&self) -> (ImageDisk, Fs) {
        let mut disk = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let fs = open_to_change(&mut disk);
        (disk, fs)
    }

    /// A range; often of whole blocks, at times behind the end.
    fn range(&mut self, len: u64) -> Range<u64> {
        let start = self.rng.random_range(0..len.max(1) + 50_000);
        let longest = *[100, 5000, 100_000, 1_000_000]
            .choose(&mut self.rng)
            .unwrap();
        let end = start + self.rng.random_range(1..longest);
        if self.rng.random_range(0..3) == 0 {
            let block = self.block;
            return start / block * block..(end.div_ceil(block) * block).max(block);
        }
        start..end
    }

    /// One operation on one file and on its model.
    #[expect(clippy::too_many_lines, reason = "a few lines for each operation")]
    fn operate(&mut self, disk: &mut ImageDisk, fs: &Fs) {
        let index = self.rng.random_range(0..FILES);
        let ino = self.files[index].0;
        let generation = fs.read_inode(disk, ino).unwrap().generation;
        let file = InodeId { ino, generation };
        let old = self.files[index].1.len() as u64;
        let range = self.range(old);
        let keep = self.rng.random::<bool>();
        let now = InodeTimestamp {
            seconds: 1_700_000_000,
            nanoseconds: 5,
        };
        let at = |bytes: u64| usize::try_from(bytes).unwrap();
        let mut model = std::mem::take(&mut self.files[index].1);
        let zero = |model: &mut Vec<u8>, range: &Range<u64>| {
            let end = at(range.end).min(model.len());
            if at(range.start) < end {
                model[at(range.start)..end].fill(0);
            }
        };
        let grown = |model: &mut Vec<u8>, end: u64| {
            if !keep && at(end) > model.len() {
                model.resize(at(end), 0);
            }
        };
        let kind = self.rng.random_range(0..7);
        let what = format!(
            "operation {kind} of {range:?} on {ino}, {old} bytes; {}",
            self.what
        );
        match kind {
            0 | 1 => {
                let len = if self.rng.random() {
                    old / 2
                } else {
                    range.end.min(MOST_BYTES)
                };
                fs.set_len(disk, file, len, now)
                    .unwrap_or_else(|error| panic!("{error}; {what}"));
                model.resize(at(len), 0);
            }
            2 => {
                fs.allocate_range(disk, file, range.clone(), keep, now)
                    .unwrap_or_else(|error| panic!("{error}; {what}"));
                grown(&mut model, range.end);
            }
            3 => {
                fs.punch_hole(disk, file, range.clone(), now)
                    .unwrap_or_else(|error| panic!("{error}; {what}"));
                zero(&mut model, &range);
            }
            4 => {
                fs.zero_range(disk, file, range.clone(), keep, now)
                    .unwrap_or_else(|error| panic!("{error}; {what}"));
                zero(&mut model, &range);
                grown(&mut model, range.end);
            }
            kind => {
                let is_whole =
                    range.start.is_multiple_of(self.block) && range.end.is_multiple_of(self.block);
                let collapses = kind == 5;
                let fits = match collapses {
                    true => range.end < old,
                    false => range.start < old,
                };
                let result = match collapses {
                    true => fs.collapse_range(disk, file, range.clone(), now),
                    false => fs.insert_range(disk, file, range.clone(), now),
                };
                match result {
                    Ok(()) if collapses => drop(model.drain(at(range.start)..at(range.end))),
                    Ok(()) => {
                        let hole = vec![0; at(range.end - range.start)];
                        model.splice(at(range.start)..at(range.start), hole);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}; {what}");
                        assert!(!is_whole || !fits, "{error}; {what}");
                    }
                }
            }
        }
        if model.len() as u64 > 2 * MOST_BYTES {
            model.truncate(at(MOST_BYTES));
            fs.set_len(disk, file, MOST_BYTES, now).unwrap();
        }
        self.files[index].1 = model;
    }

    /// Contents as the kernel has them, on a copy whose log it replays.
    fn check_copy(&self) {
        let copy = Image::empty(0, self.image.sector_bytes());
        fs::copy(self.image.path(), copy.path()).unwrap();
        copy.mount("").unmount();
        self.check(&copy);
    }

    fn check(&self, image: &Image) {
        image.assert_clean();
        let mount = image.mount("ro");
        for (file, (ino, model)) in self.files.iter().enumerate() {
            let found = fs::read(mount.path().join(file.to_string())).unwrap();
            assert_eq!(found.len(), model.len(), "length of {ino}; {}", self.what);
            let wrong = found.iter().zip(model).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "content of {ino}; {}", self.what);
        }
        mount.unmount();
    }
}

#[test]
fn space_is_changed_as_the_kernel_does() {
    if !kernel_is_here() {
        return;
    }
    let first = number("XTENT_SEED", 1);
    for seed in first..first + number("XTENT_RUNS", 2) {
        let mut disk = SpaceDisk::new(seed);
        println!("{}", disk.what);
        for round in 0..4 {
            let (mut io, fs) = disk.open();
            for _ in 0..3 {
                for _ in 0..disk.rng.random_range(1..60) {
                    disk.operate(&mut io, &fs);
                }
                fs.sync(&mut io).unwrap();
                disk.check_copy();
            }
            if round % 2 == 0 {
                fs.clean_log(&mut io).unwrap();
                drop(fs);
                disk.check(&disk.image);
            }
        }
        // The kernel goes on with what it finds.
        let (mut io, fs) = disk.open();
        fs.clean_log(&mut io).unwrap();
        drop(fs);
        let mount = disk.image.mount("");
        for file in 0..FILES {
            let path = mount.path().join(file.to_string());
            if file % 2 == 0 {
                fs::remove_file(path).unwrap();
            } else {
                run(
                    "xfs_io",
                    &["-c", "pwrite -q 0 100k", path.to_str().unwrap()],
                );
            }
        }
        mount.unmount();
        disk.image.assert_clean();
    }
}

#[test]
fn the_same_length_frees_blocks_behind_the_end() {
    if !kernel_is_here() {
        return;
    }
    let disk = SpaceDisk::new(1);
    let (mut io, fs) = disk.open();
    for (ino, model) in &disk.files {
        let len = model.len() as u64;
        let file = InodeId::of(&fs.read_inode(&mut io, *ino).unwrap());
        let now = InodeTimestamp {
            seconds: 1_700_000_000,
            nanoseconds: 5,
        };
        fs.set_len(&mut io, file, len, now).unwrap();
        let before = fs.read_inode(&mut io, *ino).unwrap().blocks_used;
        let range = len..len + 100 * disk.block;
        fs.allocate_range(&mut io, file, range, true, now).unwrap();
        assert!(fs.read_inode(&mut io, *ino).unwrap().blocks_used > before);
        fs.set_len(&mut io, file, len, now).unwrap();
        assert_eq!(fs.read_inode(&mut io, *ino).unwrap().blocks_used, before);
    }
    fs.clean_log(&mut io).unwrap();
    disk.check(&disk.image);
}

//! Small disks of many forms, with files whose space is changed.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use xtent::internals::xfs::{Ino, InodeId};

use super::image::Image;
use super::judge::{ImageDisk, Judge, open_to_change};
use super::space::FileModel;
use super::{random_bytes, sys};

/// What free space and files look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Few extents, much space.
    Plain,
    /// Files of single blocks with holes between them, free space of single blocks: btrees of
    /// several levels.
    Fragmented,
    /// A few hundred blocks are left.
    Full,
}

/// A disk, and its files.
#[derive(Debug)]
pub struct SpaceDisk {
    pub image: Image,
    pub files: Vec<FileModel>,
    pub block: u64,
    /// How it was made.
    pub what: String,
}

impl SpaceDisk {
    /// A disk of a random form with a log that is as small as mkfs.xfs lets it be.
    pub fn random(rng: &mut SmallRng, files: usize, shape: Shape) -> Self {
        let sector_bytes = *[512, 512, 4096].choose(rng).unwrap();
        let block = if sector_bytes == 512 && rng.random() {
            1024
        } else {
            4096
        };
        let features = *["rmapbt=0", "rmapbt=1,reflink=1", "rmapbt=1,reflink=0"]
            .choose(rng)
            .unwrap();
        let data = *["agcount=2", "agcount=2,su=16k,sw=2", "agcount=3"]
            .choose(rng)
            .unwrap();
        let log = *["", ",su=4k", ",su=32k", ",su=64k", ",su=256k"]
            .choose(rng)
            .unwrap();
        let large = format!("nrext64={}", rng.random_range(0..2));
        let size = format!("size={block}");
        let args = ["-b", &size, "-m", features, "-i", &large, "-d", data];
        let (image, log) = with_small_log((sector_bytes, shape), &args, log);
        let what = format!("sectors of {sector_bytes}, {args:?}, log {log}, {shape:?}");
        let mut disk = Self {
            image,
            files: Vec::new(),
            block,
            what,
        };
        disk.populate(rng, files, shape);
        disk
    }

    fn populate(&mut self, rng: &mut SmallRng, files: usize, shape: Shape) {
        let block = self.block;
        let mount = self.image.mount("");
        let path = |file: usize| mount.path().join(file.to_string());
        for file in 0..files {
            let blocks = match shape {
                // All of them take a third of the disk at most, before they get holes. Of 3,000
                // blocks of 1 KiB the btree has two levels below its root.
                Shape::Fragmented => {
                    let most = ((10 << 20) / (block * files as u64)).min(3000);
                    rng.random_range(most / 3..most)
                }
                _ => rng.random_range(1..60),
            };
            let len = rng.random_range((blocks - 1) * block + 1..=blocks * block);
            fs::write(path(file), random_bytes(rng.random(), len as usize)).unwrap();
        }
        if shape == Shape::Fragmented {
            for file in 0..files {
                punch_every_second(&path(file), block, u64::MAX);
            }
            // No more than a few MiB: a check reads all records of each disk.
            let filler = take_space(mount.path(), block, 0);
            punch_every_second(&filler, block, 3000);
        }
        if shape == Shape::Full {
            // Where the filler has them, too: every second one of some.
            let left = rng.random_range(50..400);
            let filler = take_space(mount.path(), block, left);
            punch_every_second(&filler, block, left);
        }
        let contents: Vec<_> = (0..files)
            .map(|file| {
                let ino = Ino(fs::metadata(path(file)).unwrap().ino());
                (ino, fs::read(path(file)).unwrap())
            })
            .collect();
        mount.unmount();
        let mut device = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let fs = open_to_change(&mut device);
        for (ino, bytes) in contents {
            let inode = fs.read_inode(&mut device, ino).unwrap();
            let id = InodeId::of(&inode);
            self.files.push(FileModel::new(id, block, &bytes));
        }
    }
}

/// A disk of a random form with much space: its sectors, arguments of mkfs.xfs, and its blocks.
pub fn plain_form(rng: &mut SmallRng) -> (u32, Vec<String>, u64) {
    let sector_bytes = *[512, 512, 4096].choose(rng).unwrap();
    let features = format!(
        "rmapbt={},reflink={}",
        rng.random_range(0..2),
        rng.random_range(0..2)
    );
    let inodes = format!("nrext64={}", rng.random_range(0..2));
    let args = [
        "-d",
        "agcount=3",
        "-l",
        "size=24m",
        "-m",
        &features,
        "-i",
        &inodes,
    ];
    let mut args = args.map(str::to_owned).to_vec();
    let mut block = 4096;
    if sector_bytes == 512 && rng.random() {
        args.extend(["-b", "size=1024"].map(str::to_owned));
        block = 1024;
    }
    (sector_bytes, args, block)
}

/// A filesystem with the smallest log and on the smallest disk that the kernel mounts.
fn with_small_log(
    (sector_bytes, shape): (u32, Shape),
    args: &[&str],
    log: &str,
) -> (Image, String) {
    let least = if shape == Shape::Full { 16 } else { 32 };
    let sizes = [16_u64, 24, 32, 40, 48, 64, 96];
    for disk_mib in sizes.into_iter().filter(|size| *size >= least) {
        for log_mib in 3..=24 {
            let image = Image::empty(disk_mib << 20, sector_bytes);
            let log = format!("size={log_mib}m{log}");
            let mut all = args.to_vec();
            all.extend(["-l", &log]);
            // The kernel may want a larger one than mkfs.xfs does.
            let is_enough = || Judge::new(&image.path(), sector_bytes).mounts("", |_| {});
            if image.format(&all).is_ok() && is_enough() {
                return (image, format!("{log} on {disk_mib} MiB"));
            }
        }
    }
    if !log.is_empty() {
        return with_small_log((sector_bytes, shape), args, "");
    }
    panic!("mkfs.xfs makes no disk of at most 96 MiB with {args:?}");
}

/// A file that takes all space but for so many blocks.
fn take_space(root: &Path, block: u64, left: u64) -> std::path::PathBuf {
    let path = root.join("filler");
    let file = File::create(&path).unwrap();
    let mut end = 0;
    let mut step = 4 << 20;
    while step >= block {
        match sys::fallocate(&file, 0, end, step) {
            Ok(()) => end += step,
            Err(_) => step /= 2,
        }
    }
    file.set_len(end.saturating_sub(left * block)).unwrap();
    path
}

/// Punches every second block of a file, `most` at most, from its end.
fn punch_every_second(path: &Path, block: u64, most: u64) {
    let file = File::options().write(true).open(path).unwrap();
    let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let blocks = file.metadata().unwrap().len() / block;
    for index in (0..blocks / 2).rev().take(most as usize) {
        if sys::fallocate(&file, flags, (2 * index + 1) * block, block).is_err() {
            // Its btree has to grow, and there is no space.
            return;
        }
    }
}

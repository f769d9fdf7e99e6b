//! Metadata that xtent changes: the kernel replays it from the log after a crash, and finds it in
//! place after a clean end.
//!
//! `changed_inodes_are_what_the_kernel_replays` makes `XTENT_RUNS` (2) disks from `XTENT_SEED`. A
//! failure prints the seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::image::Image;
use common::judge::{ImageDisk, open_to_change};
use common::oracle::{Stat, kernel_tree};
use common::{kernel_is_here, number, random_bytes, run};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fs, Ino, InodeUpdate, NewTime};

/// Crashes of one disk.
const ROUNDS: u32 = 4;

/// A disk with files of the kernel's, and what their inodes have to look like.
struct Changed {
    image: Image,
    rng: SmallRng,
    stats: BTreeMap<Vec<u8>, Stat>,
    what: String,
}

impl Changed {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let sector_bytes = *[512, 512, 4096].choose(&mut rng).unwrap();
        let stripe = *["", "", "4k", "32k", "256k"].choose(&mut rng).unwrap();
        let size = if stripe == "256k" { "36m" } else { "24m" };
        let mut log = format!("size={size}");
        if !stripe.is_empty() {
            log += &format!(",su={stripe}");
        }
        let features = format!(
            "rmapbt={},bigtime={}",
            rng.random_range(0..2),
            rng.random_range(0..2)
        );
        let inode = *["size=512", "size=1024", "size=2048"]
            .choose(&mut rng)
            .unwrap();
        let mut args = vec!["-d", "agcount=3", "-l", &log, "-m", &features, "-i", inode];
        if sector_bytes == 512 && rng.random() {
            args.extend(["-b", "size=1024"]);
        }
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: sectors of {sector_bytes}, {args:?}");
        let image = Image::make(160 << 20, sector_bytes, &args);
        let mount = image.mount("");
        fill(mount.path(), &mut rng);
        mount.unmount();
        let stats = tree(&image);
        Self {
            image,
            rng,
            stats,
            what,
        }
    }

    fn open(&self) -> (ImageDisk, Fs) {
        let mut disk = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let fs = open_to_change(&mut disk);
        (disk, fs)
    }

    /// Changes inodes as root may, and the expectation with them.
    fn change(&mut self, disk: &mut ImageDisk, fs: &Fs, count: u32) {
        let mut stats: Vec<&mut Stat> = self.stats.values_mut().collect();
        for _ in 0..count {
            let index = self.rng.random_range(0..stats.len());
            let stat = &mut *stats[index];
            let now = self.rng.random_range(1_000_000..2_000_000_000);
            let now = InodeTimestamp {
                seconds: now,
                nanoseconds: self.rng.random_range(0..1_000_000_000),
            };
            let update = update(&mut self.rng);
            fs.update_inode(disk, Ino(stat.ino), &update, now).unwrap();
            expect(stat, &update, now);
            if self.rng.random_range(0..20) == 0 {
                fs.sync(disk).unwrap();
            }
            if self.rng.random_range(0..10) == 0 {
                // A reader sees the content of memory.
                let inode = fs.read_inode(disk, Ino(stat.ino)).unwrap();
                assert_eq!(u32::from(inode.mode), stat.mode, "{}", self.what);
                assert_eq!(
                    (inode.uid, inode.gid),
                    (stat.uid, stat.gid),
                    "{}",
                    self.what
                );
            }
        }
        fs.sync(disk).unwrap();
    }

    /// What the kernel says of a copy of the disk, after it has replayed the log.
    fn check_copy(&self) {
        let copy = Image::empty(0, self.image.sector_bytes());
        fs::copy(self.image.path(), copy.path()).unwrap();
        copy.mount("").unmount();
        self.compare(&tree(&copy));
        copy.assert_clean();
    }

    fn compare(&self, found: &BTreeMap<Vec<u8>, Stat>) {
        for (path, stat) in &self.stats {
            let name = path.escape_ascii();
            assert_eq!(found.get(path), Some(stat), "{name}; {}", self.what);
        }
    }
}

/// Inodes of all forms.
fn fill(root: &Path, rng: &mut SmallRng) {
    for index in 0..60 {
        let dir = root.join(format!("d{}", index % 5));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join(format!("f{index}"));
        fs::write(&file, random_bytes(index, rng.random_range(0..50_000))).unwrap();
        if index % 3 == 0 {
            let value = "v".repeat(rng.random_range(1..3000));
            run(
                "setfattr",
                &["-n", "user.a", "-v", &value, file.to_str().unwrap()],
            );
        }
        if index % 7 == 0 {
            symlink(
                "t".repeat(rng.random_range(1..1000)),
                root.join(format!("s{index}")),
            )
            .unwrap();
        }
    }
    let holes = root.join("holes");
    let mut script = String::new();
    for index in 0..200 {
        script += &format!("pwrite -q {} 4096\n", index * 12_288);
    }
    let commands = root.join("commands");
    fs::write(&commands, script).unwrap();
    let line = format!("xfs_io -f {} < {}", holes.display(), commands.display());
    run("sh", &["-c", &line]);
}

fn tree(image: &Image) -> BTreeMap<Vec<u8>, Stat> {
    let mount = image.mount("ro");
    let tree = kernel_tree(mount.path());
    mount.unmount();
    tree.into_iter()
        .map(|(path, (stat, _))| (path, stat))
        .collect()
}

fn update(rng: &mut SmallRng) -> InodeUpdate {
    let time = |rng: &mut SmallRng| {
        rng.random::<bool>().then(|| match rng.random_range(0..3) {
            0 => NewTime::Now,
            _ => NewTime::At(InodeTimestamp {
                seconds: rng.random_range(-100_000..2_147_483_647),
                nanoseconds: rng.random_range(0..1_000_000_000),
            }),
        })
    };
    InodeUpdate {
        permissions: rng.random::<bool>().then(|| rng.random_range(0..0o10000)),
        uid: rng.random::<bool>().then(|| rng.random_range(0..100_000)),
        gid: rng.random::<bool>().then(|| rng.random_range(0..100_000)),
        project: rng.random::<bool>().then(|| rng.random()),
        accessed: time(rng),
        modified: time(rng),
    }
}

fn expect(stat: &mut Stat, update: &InodeUpdate, now: InodeTimestamp) {
    if *update == InodeUpdate::default() {
        return;
    }
    if let Some(permissions) = update.permissions {
        stat.mode = (stat.mode & 0o170_000) | u32::from(permissions);
    }
    if update.uid.is_some() || update.gid.is_some() {
        stat.uid = update.uid.unwrap_or(stat.uid);
        stat.gid = update.gid.unwrap_or(stat.gid);
        if stat.mode & 0o170_000 != 0o040_000 {
            stat.mode &= !0o4000;
            if stat.mode & 0o2010 == 0o2010 {
                stat.mode &= !0o2000;
            }
        }
    }
    let time = |time| match time {
        NewTime::Now => (now.seconds, now.nanoseconds),
        NewTime::At(at) => (at.seconds, at.nanoseconds),
    };
    if let Some(accessed) = update.accessed {
        stat.atime = time(accessed);
    }
    if let Some(modified) = update.modified {
        stat.mtime = time(modified);
    }
    stat.ctime = time(NewTime::Now);
}

#[test]
fn changed_inodes_are_what_the_kernel_replays() {
    if !kernel_is_here() {
        return;
    }
    let first = number("XTENT_SEED", 1);
    for seed in first..first + number("XTENT_RUNS", 2) {
        let mut disk = Changed::new(seed);
        println!("{}", disk.what);
        for round in 0..ROUNDS {
            let (mut io, fs) = disk.open();
            for _ in 0..5 {
                let count = disk.rng.random_range(1..200);
                disk.change(&mut io, &fs, count);
                disk.check_copy();
            }
            if round % 2 == 0 {
                fs.clean_log(&mut io).unwrap();
                drop(fs);
                let clean = Fs::open(&mut io).unwrap();
                assert_eq!(clean.replayed_checkpoints(), 0, "{}", disk.what);
                disk.image.assert_clean();
                disk.compare(&tree(&disk.image));
            }
            // Otherwise the next open replays it.
        }
        // The kernel goes on with what it finds.
        let mount = disk.image.mount("");
        fs::remove_dir_all(mount.path().join("d1")).unwrap();
        fs::write(mount.path().join("new"), "text").unwrap();
        mount.unmount();
        disk.image.assert_clean();
    }
}

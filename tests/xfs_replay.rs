//! Logs that the kernel left dirty, replayed by xtent: on the device, sector by sector, as the
//! kernel replays them; into memory, what files then look like, with the disk as it was.
//!
//! `dirty_logs_of_the_kernel` makes `XTENT_RUNS` (4) disks from `XTENT_SEED`, each of which is
//! used, cut off from its log and replayed several times. A failure prints the seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::image::Image;
use common::judge::{ImageDisk, quiet};
use common::oracle::{differences, kernel_tree};
use common::reader::xtent_tree;
use common::{kernel_is_here, number, random_bytes, run};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::{FoundExtent, Fs, FsOptions, MetaIo, Recovery, dir};

/// Rounds of use, cut and replay on one disk.
const ROUNDS: u32 = 5;

/// What became of a dirty log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Replayed,
    /// Something has still to be freed, which only the kernel does: the disk is as it was.
    LeftToTheKernel,
}

fn options(recovery: Recovery) -> FsOptions {
    FsOptions {
        recovery,
        ..FsOptions::default()
    }
}

/// A disk that is used by the kernel, and its choices.
struct Life {
    image: Image,
    rng: SmallRng,
    logbsizes: Vec<&'static str>,
    files: u32,
    what: String,
}

impl Life {
    fn new(seed: u64) -> Self {
        Self::new_in(&std::env::temp_dir(), seed)
    }

    fn new_in(parent: &Path, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let sector_bytes = *[512, 512, 4096].choose(&mut rng).unwrap();
        let stripe = *["", "", "4k", "32k", "256k"].choose(&mut rng).unwrap();
        // About the smallest that mkfs.xfs allows: with rmapbt it needs more.
        let size = if stripe == "256k" { "36m" } else { "24m" };
        let mut log = format!("size={size}");
        if !stripe.is_empty() {
            log += &format!(",su={stripe}");
        }
        let rmapbt = format!("rmapbt={}", rng.random_range(0..2));
        let inodes = format!("nrext64={}", rng.random_range(0..2));
        let mut args = vec!["-d", "agcount=3", "-l", &log, "-m", &rmapbt, "-i", &inodes];
        let mut block = "4k";
        if sector_bytes == 512 && rng.random() {
            args.extend(["-b", "size=1024"]);
            // Directory blocks of several blocks.
            args.extend(["-n", "size=4096"]);
            block = "1k";
        }
        let image = Image::make_in(parent, 128 << 20, sector_bytes, &args);
        let least = if stripe == "256k" { 256 } else { 32 };
        let logbsizes = ["32k", "64k", "256k"].into_iter().filter(|size| {
            let kib: u32 = size.trim_end_matches('k').parse().unwrap();
            kib >= least
        });
        Self {
            image,
            logbsizes: logbsizes.collect(),
            files: 0,
            what: format!(
                "XTENT_RUNS=1 XTENT_SEED={seed}: sectors of {sector_bytes}, blocks of {block}, {args:?}"
            ),
            rng,
        }
    }

    /// Changes of all kinds that the log can hold.
    fn change(&mut self, root: &Path) {
        for _ in 0..self.rng.random_range(20..120) {
            let some = self.rng.random_range(0..self.files.max(1));
            let path = root.join(format!("d{}", some % 7)).join(some.to_string());
            match self.rng.random_range(0..14) {
                0..4 => self.create(root),
                4 => drop(fs::remove_file(&path)),
                5 => drop(fs::rename(&path, root.join(format!("moved-{some}")))),
                6 => drop(fs::hard_link(&path, root.join(format!("link-{some}")))),
                7 => drop(symlink(
                    "t".repeat(some as usize % 900 + 1),
                    root.join(format!("s{some}")),
                )),
                8 => self.write_somewhere(&path),
                9 => {
                    let file = File::options().write(true).open(&path);
                    let len = self.rng.random_range(0..200_000);
                    drop(file.and_then(|file| file.set_len(len)));
                }
                10 => {
                    let value = "v".repeat(self.rng.random_range(1..3000));
                    let name = format!("user.a{}", self.rng.random_range(0..20));
                    let path = path.to_str().unwrap();
                    quiet("setfattr", &["-n", &name, "-v", &value, path]);
                }
                11 => {
                    let copy = root.join(format!("copy-{some}"));
                    let (from, to) = (path.to_str().unwrap(), copy.to_str().unwrap());
                    quiet("cp", &["--reflink=always", from, to]);
                }
                12 => {
                    let punch = format!("fpunch {} 5000", some * 900);
                    quiet("xfs_io", &["-c", &punch, path.to_str().unwrap()]);
                }
                _ => {
                    let sub = root.join(format!("d{}/sub{some}", some % 7));
                    drop(fs::create_dir_all(&sub));
                    drop(fs::remove_dir(root.join(format!(
                        "d{}/sub{}",
                        some % 7,
                        some / 2
                    ))));
                }
            }
            if self.rng.random_ratio(1, 20) {
                run("sync", &["-f", root.to_str().unwrap()]);
            }
        }
    }

    fn create(&mut self, root: &Path) {
        for _ in 0..self.rng.random_range(1..40) {
            let number = self.files;
            self.files += 1;
            let dir = root.join(format!("d{}", number % 7));
            drop(fs::create_dir_all(&dir));
            let len = self.rng.random_range(0..9000);
            let content = random_bytes(number.into(), len);
            drop(fs::write(dir.join(number.to_string()), content));
        }
    }

    fn write_somewhere(&mut self, path: &Path) {
        if let Ok(file) = File::options().write(true).open(path) {
            for _ in 0..self.rng.random_range(1..30) {
                let at = self.rng.random_range(0..400) * 1500;
                drop(file.write_at(b"something", at));
            }
        }
    }

    /// Uses the disk, and leaves it as a power cut would.
    fn cut(&mut self) {
        let logbsize = *self.logbsizes.choose(&mut self.rng).unwrap();
        let mount = self.image.mount(&format!("logbsize={logbsize}"));
        self.change(mount.path());
        let kept_open = self.rng.random_ratio(1, 4).then(|| {
            let path = mount.path().join("deleted-while-open");
            let file = File::create(&path)?;
            file.write_at(&[7; 5000], 0)?;
            fs::remove_file(path)?;
            Ok::<_, std::io::Error>(file)
        });
        let how = *["shutdown", "shutdown -f", "shutdown -f"]
            .choose(&mut self.rng)
            .unwrap();
        let root = mount.path().to_str().unwrap();
        run("xfs_io", &["-x", "-c", how, root]);
        drop(kept_open);
        mount.unmount();
        self.what += &format!(", {how} at {logbsize}");
    }

    /// Copies of the image while it is in use, in a directory of its filesystem.
    fn copies_in_use(&mut self, dir: &Path, count: usize) -> Vec<PathBuf> {
        let logbsize = *self.logbsizes.choose(&mut self.rng).unwrap();
        self.what += &format!(", copied in use at {logbsize}");
        let mount = self.image.mount(&format!("logbsize={logbsize}"));
        let from = self.image.path();
        let copies: Vec<_> = (0..count).map(|n| dir.join(format!("copy-{n}"))).collect();
        let is_used = AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for copy in &copies {
                    std::thread::sleep(Duration::from_millis(150));
                    let paths = [from.to_str().unwrap(), copy.to_str().unwrap()];
                    run("cp", &["--reflink=always", paths[0], paths[1]]);
                }
                is_used.store(false, Ordering::Relaxed);
            });
            while is_used.load(Ordering::Relaxed) {
                self.change(mount.path());
            }
        });
        mount.unmount();
        copies
    }

    fn disk(&self, image: &Image) -> ImageDisk {
        ImageDisk::open(image.path(), self.image.sector_bytes())
    }

    /// Another image with the same content.
    fn copy(&self) -> Image {
        let copy = Image::empty(0, self.image.sector_bytes());
        let (from, to) = (self.image.path(), copy.path());
        let paths = [from.to_str().unwrap(), to.to_str().unwrap()];
        run("cp", &["--sparse=always", paths[0], paths[1]]);
        copy
    }

    /// Replays the log in memory, and compares it with what the kernel made of it.
    fn in_memory(&self, kernel: &Image) {
        let before = fs::read(self.image.path()).unwrap();
        let target = format!("image:{}", self.image.path().display());
        let ours = xtent_tree(&target);
        let mount = kernel.mount("ro");
        let theirs = kernel_tree(mount.path());
        mount.unmount();
        let differ = differences(&theirs, &ours);
        assert!(differ.is_empty(), "{}: {differ:#?}", self.what);
        let after = fs::read(self.image.path()).unwrap();
        assert!(before == after, "{}: the disk was changed", self.what);
    }

    /// Replays the log on a copy, and compares each sector outside of the log with the kernel's.
    fn on_device(&self, kernel: &Image) -> End {
        let ours = self.copy();
        let mut disk = self.disk(&ours);
        let fs = Fs::open_with(&mut disk, &options(Recovery::OnDevice));
        let fs = fs.unwrap_or_else(|error| panic!("{}: {error}", self.what));
        assert_eq!(fs.read_only_reason(), None, "{}", self.what);
        if fs.info().log_dirty {
            assert!(
                fs::read(ours.path()).unwrap() == fs::read(self.image.path()).unwrap(),
                "{}: left to the kernel, and changed",
                self.what
            );
            return End::LeftToTheKernel;
        }
        let log = fs.geometry().block_addr(fs.geometry().log_start);
        let log = log..log + fs.info().log_bytes;
        let (by_kernel, by_xtent) = (
            fs::read(kernel.path()).unwrap(),
            fs::read(ours.path()).unwrap(),
        );
        assert_eq!(by_kernel.len(), by_xtent.len());
        let pairs = by_kernel.chunks(512).zip(by_xtent.chunks(512));
        for (sector, (theirs, ours)) in pairs.enumerate() {
            let addr = sector as u64 * 512;
            if theirs == ours || log.contains(&addr) {
                continue;
            }
            let differ: Vec<_> = (0..512).filter(|at| theirs[*at] != ours[*at]).collect();
            // The kernel logs the superblock once more when it unmounts: sequence number, checksum,
            // and for no quota inodes -1 in the place of mkfs.xfs's 0.
            let expected = |at: &usize| match at {
                224..228 | 240..248 => true,
                160..176 | 232..240 => ours[*at] == 0 && theirs[*at] == 0xff,
                _ => false,
            };
            assert!(
                addr == 0 && differ.iter().all(expected),
                "{}: sector {sector} differs from the kernel's at {differ:?}",
                self.what
            );
        }
        drop(disk);
        ours.assert_clean();
        // And the kernel goes on with it, without another replay.
        let mount = ours.mount("");
        drop(fs::remove_dir_all(mount.path().join("d1")));
        drop(fs::write(mount.path().join("after"), b"after"));
        mount.unmount();
        ours.assert_clean();
        End::Replayed
    }

    /// As a mount: then it is used again.
    fn round(&mut self) -> End {
        self.cut();
        let kernel = self.copy();
        kernel.mount("").unmount();
        self.in_memory(&kernel);
        let end = self.on_device(&kernel);
        let path = self.image.path();
        if end == End::Replayed && self.rng.random() {
            let mut disk = self.disk(&self.image);
            Fs::open_with(&mut disk, &options(Recovery::OnDevice)).unwrap();
            self.what += ", replayed by xtent";
        } else {
            fs::copy(kernel.path(), path).unwrap();
        }
        end
    }
}

#[test]
fn dirty_logs_of_the_kernel() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let (mut replayed, mut left) = (0, 0);
    for seed in seed..seed + number("XTENT_RUNS", 4) {
        let mut life = Life::new(seed);
        for _ in 0..ROUNDS {
            match life.round() {
                End::Replayed => replayed += 1,
                End::LeftToTheKernel => left += 1,
            }
        }
    }
    println!("{replayed} logs replayed, {left} left to the kernel");
    assert!(
        replayed > left,
        "{replayed} replayed, {left} left to the kernel"
    );
}

/// Copies of a disk in use, made in one moment by sharing its blocks: records are in flight, and
/// metadata is being written in place.
#[test]
fn copies_of_a_disk_in_use() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let (mut replayed, mut left) = (0, 0);
    for seed in seed..seed + number("XTENT_RUNS", 4).div_ceil(3) {
        let outer = Image::make(1500 << 20, 512, &[]);
        let mount = outer.mount("");
        let mut life = Life::new_in(mount.path(), seed);
        let copies = life.copies_in_use(mount.path(), 8);
        for copy in copies {
            fs::copy(&copy, life.image.path()).unwrap();
            fs::remove_file(copy).unwrap();
            let kernel = life.copy();
            kernel.mount("").unmount();
            match life.on_device(&kernel) {
                End::Replayed => replayed += 1,
                End::LeftToTheKernel => left += 1,
            }
            life.in_memory(&kernel);
        }
        drop(life);
        mount.unmount();
    }
    println!("{replayed} logs replayed, {left} left to the kernel");
    assert!(replayed > 0);
}

/// A block is overwritten beside a log that is left to the kernel, which then replays it: where
/// metadata may not be changed.
#[test]
fn overwrites_beside_a_log_that_stays() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(128 << 20, 512, &["-l", "size=24m"]);
    let mount = image.mount("");
    let root = mount.path();
    fs::write(root.join("data"), vec![1; 100_000]).unwrap();
    run("sync", &["-f", root.to_str().unwrap()]);
    let deleted = File::create(root.join("deleted")).unwrap();
    deleted.write_all_at(&[2; 50_000], 0).unwrap();
    fs::remove_file(root.join("deleted")).unwrap();
    run(
        "xfs_io",
        &["-x", "-c", "shutdown -f", root.to_str().unwrap()],
    );
    drop(deleted);
    mount.unmount();
    let mut disk = ImageDisk::open(image.path(), 512);
    let fs = Fs::open_with(&mut disk, &options(Recovery::OnDevice)).unwrap();
    assert!(fs.info().log_dirty);
    let root = fs.read_root(&mut disk).unwrap();
    let (ino, _) = dir::lookup(&fs, &mut disk, &root, b"data")
        .unwrap()
        .unwrap();
    let inode = fs.read_inode(&mut disk, ino).unwrap();
    let FoundExtent::Extent(extent) = fs.find_extent(&mut disk, &inode, 10).unwrap() else {
        panic!("no extent");
    };
    disk.put(fs.geometry().block_addr(extent.block_at(10)), &[3; 4096]);
    let mount = image.mount("");
    let mut expected = vec![1; 100_000];
    expected[10 * 4096..11 * 4096].fill(3);
    assert!(fs::read(mount.path().join("data")).unwrap() == expected);
    mount.unmount();
    image.assert_clean();
}

/// A disk whose writes end with an error after some of them. Until the next flush, any of them may
/// be lost, or there in part.
struct FailingDisk {
    disk: ImageDisk,
    rng: SmallRng,
    left: u32,
    /// Whether a write may be there in part. Then the kernel may fail where xtent goes on.
    tears: bool,
    /// What was overwritten since the last flush.
    unflushed: Vec<(u64, Vec<u8>)>,
}

impl FailingDisk {
    fn count(&mut self) -> xtent::Result<()> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                // The power is gone.
                let sector = match self.tears {
                    true => self.disk.block_bytes() as usize,
                    false => usize::MAX,
                };
                for (addr, old) in self.unflushed.drain(..).rev() {
                    for (index, old) in old.chunks(sector).enumerate() {
                        if self.rng.random() {
                            self.disk
                                .put(addr + (index as u64).saturating_mul(sector as u64), old);
                        }
                    }
                }
                Err(xtent::Error::new(ErrorKind::Io, "the power is gone"))
            }
        }
    }
}

impl MetaIo for FailingDisk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.disk.read_at(addr, buf)
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        self.count()?;
        self.unflushed.push((addr, self.disk.get(addr, buf.len())));
        self.disk.put(addr, buf);
        Ok(())
    }

    fn flush(&mut self) -> xtent::Result<()> {
        self.count()?;
        self.unflushed.clear();
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.disk.capacity_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.disk.block_bytes()
    }
}

/// All is in place, and the log as dirty as before: a byte of metadata that is wrong is an error,
/// or made right by the log. No wrong byte gets a right checksum.
fn damage(life: &mut Life, dirty: &[u8], whole: &[u8]) {
    fs::write(life.image.path(), whole).unwrap();
    let mut disk = life.disk(&life.image);
    let fs = Fs::open(&mut disk).unwrap();
    let log = fs.geometry().block_addr(fs.geometry().log_start);
    let log = usize::try_from(log).unwrap()..usize::try_from(log + fs.info().log_bytes).unwrap();
    drop(fs);
    let mut in_place = whole.to_vec();
    in_place[log.clone()].copy_from_slice(&dirty[log.clone()]);
    let changed: Vec<_> = (0..whole.len() / 512)
        .filter(|sector| !log.contains(&(sector * 512)))
        .map(|sector| sector * 512)
        .filter(|at| dirty[*at..at + 512] != whole[*at..at + 512])
        .collect();
    let (mut errors, mut right) = (0, 0);
    for _ in 0..40 {
        let at = changed.choose(&mut life.rng).unwrap() + life.rng.random_range(0..512);
        let bit = 1 << life.rng.random_range(0..8);
        in_place[at] ^= bit;
        fs::write(life.image.path(), &in_place).unwrap();
        in_place[at] ^= bit;
        let mut disk = life.disk(&life.image);
        if Fs::open_with(&mut disk, &options(Recovery::OnDevice)).is_err() {
            errors += 1;
            continue;
        }
        right += 1;
        let now = fs::read(life.image.path()).unwrap();
        let what = format!("{}: bit {bit:#x} of byte {at:#x}", life.what);
        assert!(now[..log.start] == whole[..log.start], "{what}");
        assert!(now[log.end..] == whole[log.end..], "{what}");
    }
    println!("{errors} errors, {right} made right");
}

/// Cut off at any write or flush, the replay leaves a log that is replayed again, with one result.
#[test]
fn a_replay_that_is_cut_off_is_replayed_again() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    for seed in seed..seed + number("XTENT_RUNS", 3) {
        let mut life = Life::new(seed);
        let whole = loop {
            life.cut();
            let whole = life.copy();
            let mut disk = life.disk(&whole);
            let opened = Fs::open_with(&mut disk, &options(Recovery::OnDevice));
            if opened.is_ok_and(|fs| fs.replayed_checkpoints() > 0 && !fs.info().log_dirty) {
                break fs::read(whole.path()).unwrap();
            }
            fs::copy(
                {
                    let kernel = life.copy();
                    kernel.mount("").unmount();
                    kernel
                }
                .path(),
                life.image.path(),
            )
            .unwrap();
        };
        let dirty = fs::read(life.image.path()).unwrap();
        let mut cuts = 0;
        let mut left = 0;
        loop {
            fs::write(life.image.path(), &dirty).unwrap();
            let mut failing = FailingDisk {
                disk: life.disk(&life.image),
                rng: SmallRng::seed_from_u64(seed ^ u64::from(left) << 32),
                left,
                tears: cuts % 8 != 0,
                unflushed: Vec::new(),
            };
            if Fs::open_with(&mut failing, &options(Recovery::OnDevice)).is_ok() {
                break;
            }
            cuts += 1;
            let by_kernel = (cuts % 8 == 1).then(|| life.copy());
            let mut disk = life.disk(&life.image);
            let opened = Fs::open_with(&mut disk, &options(Recovery::OnDevice));
            let what = format!("{}: cut after {left} writes and flushes", life.what);
            assert!(opened.is_ok(), "{what}: {opened:?}");
            let again = fs::read(life.image.path()).unwrap();
            let fs = opened.unwrap();
            let log = fs.geometry().block_addr(fs.geometry().log_start);
            let log = log..log + fs.info().log_bytes;
            let pairs = again.chunks(512).zip(whole.chunks(512)).enumerate();
            let differ: Vec<_> = pairs
                .filter(|(sector, (a, b))| a != b && !log.contains(&(*sector as u64 * 512)))
                .map(|(sector, _)| sector)
                .collect();
            assert!(differ.is_empty(), "{what}: sectors {differ:?} differ");
            if let Some(image) = by_kernel {
                image.mount("").unmount();
                image.assert_clean();
            }
            left += life.rng.random_range(1..=1 + left / 6);
        }
        println!("{cuts} cuts");
        assert!(cuts > 3, "{cuts} cuts");
        damage(&mut life, &dirty, &whole);
    }
}

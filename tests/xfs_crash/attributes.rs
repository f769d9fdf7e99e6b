//! Inodes that are changed, by threads that sync at different times.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fs, FsOptions, Ino, Inode, InodeUpdate, NewTime, Recovery};

use super::common::crash::{CrashedDisk, RecordedDisk, each_crash};
use super::common::image::Image;
use super::common::judge::open_to_change;
use super::common::{kernel_is_here, number};

/// Files of a workload; each belongs to one thread.
const FILES: usize = 24;
const THREADS: usize = 3;

/// This file has at least this value.
type Promise = (usize, u32);

/// A change that is recognised by any of its parts.
fn change(value: u32) -> (InodeUpdate, InodeTimestamp) {
    let time = InodeTimestamp {
        seconds: value.into(),
        nanoseconds: value,
    };
    let update = InodeUpdate {
        permissions: Some(u16::try_from(value % 512).unwrap()),
        uid: Some(value),
        gid: Some(value + 1),
        modified: Some(NewTime::At(time)),
        ..InodeUpdate::default()
    };
    (update, time)
}

/// The value that an inode has; all of its parts are of one change.
fn value_of(inode: &Inode) -> u32 {
    let value = inode.uid;
    assert_eq!(inode.gid, value + 1, "a change in part");
    assert_eq!(
        u32::from(inode.mode) & 0o777,
        value % 512,
        "a change in part"
    );
    assert_eq!(inode.mtime.nanoseconds, value, "a change in part");
    assert_eq!(inode.ctime, inode.mtime, "a change in part");
    value
}

struct Workload {
    image: Image,
    inos: Vec<Ino>,
    what: String,
}

impl Workload {
    fn new(seed: u64, rng: &mut SmallRng) -> Self {
        let sector_bytes = *[512, 4096].choose(rng).unwrap();
        let stripe = *["", "4k", "64k"].choose(rng).unwrap();
        let mut log = "size=24m".to_owned();
        if !stripe.is_empty() {
            log += &format!(",su={stripe}");
        }
        let args = ["-d", "agcount=2", "-l", &log];
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: sectors of {sector_bytes}, {args:?}");
        let image = Image::make(64 << 20, sector_bytes, &args);
        let mount = image.mount("");
        let mut inos = Vec::new();
        for file in 0..FILES {
            let path = mount.path().join(file.to_string());
            fs::write(&path, "text").unwrap();
            let metadata = fs::metadata(&path).unwrap();
            inos.push(Ino(std::os::unix::fs::MetadataExt::ino(&metadata)));
        }
        mount.unmount();
        Self { image, inos, what }
    }

    /// Threads change files and sync, as often as each of them likes. Returns the last values, and
    /// the number of the event from which all files have one.
    fn run(&self, disk: &RecordedDisk<Promise>, rng: &mut SmallRng) -> (Vec<u32>, usize) {
        let fs = open_to_change(&mut disk.clone());
        for ino in &self.inos {
            let (update, now) = change(1);
            fs.update_inode(&mut disk.clone(), *ino, &update, now)
                .unwrap();
        }
        fs.sync(&mut disk.clone()).unwrap();
        let first = disk.events();
        let last: Arc<Vec<AtomicU32>> = Arc::new((0..FILES).map(|_| AtomicU32::new(1)).collect());
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let mut rng = SmallRng::seed_from_u64(rng.random());
                let (fs, last, inos) = (&fs, Arc::clone(&last), &self.inos);
                let mut disk = disk.clone();
                scope.spawn(move || {
                    let mut value = 2;
                    for _ in 0..rng.random_range(20..60) {
                        let mut changed = Vec::new();
                        for _ in 0..rng.random_range(1..8) {
                            let file = rng.random_range(0..FILES / THREADS) * THREADS + thread;
                            let (update, now) = change(value);
                            fs.update_inode(&mut disk, inos[file], &update, now)
                                .unwrap();
                            last[file].store(value, Ordering::Relaxed);
                            changed.push((file, value));
                            value += 1;
                        }
                        if rng.random_range(0..3) > 0 {
                            fs.sync(&mut disk).unwrap();
                            for promise in changed {
                                disk.promise(promise);
                            }
                        }
                        if rng.random_range(0..20) == 0 {
                            fs.clean_log(&mut disk).unwrap();
                        }
                    }
                });
            }
        });
        let last = last.iter().map(|last| last.load(Ordering::Relaxed));
        (last.collect(), first)
    }
}

/// The files after a replay by xtent.
fn check(disk: &mut CrashedDisk, work: &Workload, promises: &[Promise], last: &[u32]) {
    let options = FsOptions {
        recovery: Recovery::OnDevice,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(disk, &options).unwrap_or_else(|error| panic!("{error}; {}", work.what));
    for (file, ino) in work.inos.iter().enumerate() {
        let value = value_of(&fs.read_inode(disk, *ino).unwrap());
        let promised = promises.iter().rev().find(|(of, _)| *of == file);
        let least = promised.map_or(1, |(_, value)| *value);
        assert!(
            (least..=last[file]).contains(&value),
            "file {file} has {value}, promised were {least}; {}",
            work.what
        );
    }
}

/// The same after a replay by the kernel.
fn kernel_check(content: &[u8], work: &Workload, promises: &[Promise]) {
    use std::os::unix::fs::MetadataExt;
    let copy = Image::empty(0, work.image.sector_bytes());
    fs::write(copy.path(), content).unwrap();
    let mount = copy.mount("");
    for file in 0..FILES {
        let found = fs::metadata(mount.path().join(file.to_string())).unwrap();
        let promised = promises.iter().rev().find(|(of, _)| *of == file);
        let least = promised.map_or(1, |(_, value)| *value);
        assert!(found.uid() >= least, "file {file}; {}", work.what);
        assert_eq!(found.gid(), found.uid() + 1, "{}", work.what);
        assert_eq!(found.mode() & 0o777, found.uid() % 512, "{}", work.what);
    }
    mount.unmount();
    copy.assert_clean();
}

#[test]
fn what_was_promised_survives_a_loss_of_power_at_any_command() {
    if !kernel_is_here() {
        return;
    }
    let first = number("XTENT_SEED", 1);
    for seed in first..first + number("XTENT_RUNS", 1) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let work = Workload::new(seed, &mut rng);
        println!("{}", work.what);
        let content = fs::read(work.image.path()).unwrap();
        let disk = RecordedDisk::new(content, work.image.sector_bytes());
        let (last, first) = work.run(&disk, &mut rng);
        let history = disk.take_history();
        let mut images = 0;
        let kernel = number("XTENT_KERNEL", 5);
        let each = (history.len() as u64 / kernel.max(1)).max(1);
        each_crash(
            &disk,
            (&history, first, 1),
            None,
            &mut rng,
            |mut crashed, promises, _| {
                if images % each == 0 && images / each < kernel {
                    kernel_check(&crashed.content(), &work, promises);
                }
                check(&mut crashed, &work, promises, &last);
                images += 1;
            },
        );
        println!("{images} images");
        assert!(images > 100);
    }
}

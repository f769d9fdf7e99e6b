//! No space: at any point where space is asked for, denied or really gone, an operation fails with
//! that error, and leaves the file as before or at a documented point on the way. Nothing is
//! leaked, all space comes back, and threads on a full disk with a small log never wait for each
//! other in a circle.
//!
//! `XTENT_RUNS` (60) seeded runs of each test from `XTENT_SEED`. A failure prints its seed.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::sync::Arc;

use common::crash::RecordedDisk;
use common::image::Image;
use common::judge::open_to_change;
use common::space::{FileContent, FileModel};
use common::space_disk::{Shape, SpaceDisk};
use common::space_op::{SpaceOp, SpaceOpKind};
use common::{kernel_is_here, number, skipped};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::check::check;
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fs, SpaceDenial};

use SpaceOpKind::{Allocate, Append, Collapse, Insert, Punch, Replace, SetLen, Write, Zero};

/// Runs that use one disk.
const RUNS_OF_DISK: u64 = 40;
const FILES: usize = 4;
const MOST_BLOCKS: u64 = 500;
const KINDS: &[SpaceOpKind] = &[
    SetLen, Allocate, Allocate, Punch, Zero, Collapse, Insert, Write, Write, Append, Append,
    Replace,
];
const NOW: InodeTimestamp = InodeTimestamp {
    seconds: 1_700_000_000,
    nanoseconds: 7,
};

type Disk = RecordedDisk<()>;

/// A disk that many runs begin with.
struct Base {
    source: SpaceDisk,
    content: Arc<Vec<u8>>,
    /// Free bytes when all files are empty.
    free_bytes: u64,
}

impl Base {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let shape = *[Shape::Full, Shape::Full, Shape::Fragmented]
            .choose(&mut rng)
            .unwrap();
        let source = SpaceDisk::random(&mut rng, FILES, shape);
        let content = Arc::new(fs::read(source.image.path()).unwrap());
        let mut base = Self {
            source,
            content,
            free_bytes: 0,
        };
        let disk = base.disk();
        base.free_bytes = base.emptied(&open_to_change(&mut disk.clone()), &disk);
        base
    }

    fn disk(&self) -> Disk {
        RecordedDisk::unrecorded(&self.content, self.source.image.sector_bytes())
    }

    /// Frees all that the files have. Returns the free bytes of the filesystem.
    fn emptied(&self, fs: &Fs, disk: &Disk) -> u64 {
        for file in &self.source.files {
            SpaceOp::SetLen(0)
                .run(fs, &mut disk.clone(), file.id, NOW)
                .unwrap_or_else(|error| panic!("{error}; {}", self.source.what));
        }
        fs.clean_log(&mut disk.clone()).unwrap();
        let fs = Fs::open(&mut disk.clone()).unwrap();
        fs.info().free_bytes
    }

    fn random_op(&self, file: &FileModel, rng: &mut SmallRng) -> SpaceOp {
        let kind = *KINDS.choose(rng).unwrap();
        let sizes = (file.size(), MOST_BLOCKS * self.source.block);
        SpaceOp::random(kind, sizes, self.source.block, rng)
    }
}

/// The base of each seed, the last one kept.
struct Bases(Option<(u64, Base)>);

impl Bases {
    fn of(&mut self, seed: u64) -> &Base {
        let number = seed / RUNS_OF_DISK;
        if self.0.as_ref().is_none_or(|(last, _)| *last != number) {
            let base = Base::new(number);
            println!("from seed {}: {}", number * RUNS_OF_DISK, base.source.what);
            self.0 = Some((number, base));
        }
        &self.0.as_ref().unwrap().1
    }
}

/// Does an operation, which may find no space. Whether it did.
fn change(
    fs: &Fs,
    disk: &Disk,
    file: &mut FileModel,
    (number, op): (u64, &SpaceOp),
    what: &str,
) -> bool {
    let mut io = disk.clone();
    file.begin(number, op);
    let result = op.run(fs, &mut io, file.id, NOW);
    let found = FileContent::read(fs, &mut io, file.id.ino)
        .unwrap_or_else(|error| panic!("{error} after {op:?}; {what}"));
    match result {
        Ok(()) => {
            assert!(file.is_newest(&found), "{op:?} did something else; {what}");
            true
        }
        Err(error) => {
            assert!(op.may_fail(&error), "{error}: {op:?}; {what}");
            assert!(
                file.note_failed(&found),
                "{op:?} left something else; {what}"
            );
            false
        }
    }
}

fn assert_consistent(disk: &Disk, what: &str) {
    let report = check(&mut disk.clone()).unwrap_or_else(|error| panic!("{error}; {what}"));
    assert!(report.is_clean(), "{:?}; {what}", report.findings);
}

/// All is durable and consistent, and all space comes back.
fn end(base: &Base, fs: &Fs, disk: &Disk, what: &str) {
    fs.sync(&mut disk.clone())
        .unwrap_or_else(|error| panic!("{error}; {what}"));
    assert_consistent(disk, what);
    let free_bytes = base.emptied(fs, disk);
    assert_eq!(free_bytes, base.free_bytes, "space is lost; {what}");
    assert_consistent(disk, what);
}

/// An operation that asks for space, if one is found soon, and how often it does.
fn op_that_asks(
    (base, content): (&Base, &Arc<Vec<u8>>),
    file: &FileModel,
    rng: &mut SmallRng,
    what: &str,
) -> (SpaceOp, u64) {
    let mut last = None;
    for _ in 0..5 {
        let disk = Disk::unrecorded(content, base.source.image.sector_bytes());
        let fs = open_to_change(&mut disk.clone());
        let op = base.random_op(file, rng);
        SpaceDenial::plan(0..0);
        change(&fs, &disk, &mut file.clone(), (9, &op), what);
        let asked = SpaceDenial::plan(0..0);
        last = Some((op, asked));
        if asked > 0 {
            break;
        }
    }
    last.unwrap()
}

#[test]
fn an_operation_without_space_leaves_nothing_behind() {
    if !kernel_is_here() {
        return;
    }
    if !cfg!(debug_assertions) {
        return skipped("space is denied with debug assertions only");
    }
    let mut bases = Bases(None);
    let first = number("XTENT_SEED", 1);
    let (mut points, mut failed) = (0_u64, 0_u64);
    for seed in first..first + number("XTENT_RUNS", 60) {
        let base = bases.of(seed);
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: {}", base.source.what);
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = base.disk();
        let fs = open_to_change(&mut disk.clone());
        let mut file = base.source.files.choose(&mut rng).unwrap().clone();
        for turn in 1..=rng.random_range(0..5) {
            let op = base.random_op(&file, &mut rng);
            change(&fs, &disk, &mut file, (turn, &op), &what);
        }
        fs.clean_log(&mut disk.clone()).unwrap();
        let content = Arc::new(disk.content());
        let sector_bytes = base.source.image.sector_bytes();
        let (op, asked) = op_that_asks((base, &content), &file, &mut rng, &what);
        for _ in 0..asked.min(6) {
            let at = rng.random_range(0..asked);
            let denied = if rng.random() {
                at..at + 1
            } else {
                at..u64::MAX
            };
            let what = format!("{op:?} with {denied:?} of {asked} denied; {what}");
            let disk = Disk::unrecorded(&content, sector_bytes);
            let fs = open_to_change(&mut disk.clone());
            let mut file = file.clone();
            SpaceDenial::plan(denied);
            let is_done = change(&fs, &disk, &mut file, (9, &op), &what);
            SpaceDenial::plan(0..0);
            points += 1;
            failed += u64::from(!is_done);
            // It goes on.
            let next = base.random_op(&file, &mut rng);
            change(&fs, &disk, &mut file, (10, &next), &what);
            end(base, &fs, &disk, &what);
        }
    }
    println!("{points} denials, {failed} operations that failed");
}

#[test]
fn threads_on_a_full_disk_get_an_error_or_space() {
    if !kernel_is_here() {
        return;
    }
    let mut bases = Bases(None);
    let first = number("XTENT_SEED", 1);
    let runs = number("XTENT_RUNS", 60);
    let judged = number("XTENT_KERNEL", 2);
    for seed in first..first + runs {
        let base = bases.of(seed);
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: {}", base.source.what);
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = base.disk();
        let fs = open_to_change(&mut disk.clone());
        let mut files = base.source.files.clone();
        // Some logs come to be full.
        let sync_every = *[1, 3, 10].choose(&mut rng).unwrap();
        std::thread::scope(|scope| {
            for file in &mut files {
                let mut rng = SmallRng::seed_from_u64(rng.random());
                let (fs, disk, what) = (&fs, &disk, &what);
                scope.spawn(move || {
                    for turn in 1..=rng.random_range(5..30) {
                        let op = base.random_op(file, &mut rng);
                        if rng.random_range(0..4) == 0 {
                            let at = rng.random_range(0..20);
                            SpaceDenial::plan(at..at + 2);
                        }
                        change(fs, disk, file, (turn, &op), what);
                        if rng.random_range(0..sync_every) == 0 {
                            fs.sync(&mut disk.clone()).unwrap();
                        }
                        if rng.random_range(0..30) == 0 {
                            fs.clean_log(&mut disk.clone()).unwrap();
                        }
                    }
                });
            }
        });
        let each = (runs / judged.max(1)).max(1);
        if (seed - first).is_multiple_of(each) {
            fs.sync(&mut disk.clone()).unwrap();
            kernel_check(base, &disk, &files, &what);
        }
        end(base, &fs, &disk, &what);
    }
}

/// The kernel replays the log, has the same content, and xfs_repair finds nothing.
fn kernel_check(base: &Base, disk: &Disk, files: &[FileModel], what: &str) {
    let copy = Image::empty(0, base.source.image.sector_bytes());
    copy.put_content(&disk.content());
    let mount = copy.mount("");
    for (name, file) in files.iter().enumerate() {
        let bytes = fs::read(mount.path().join(name.to_string())).unwrap();
        assert!(
            file.is_newest(&FileContent { bytes }),
            "file {name}; {what}"
        );
    }
    mount.unmount();
    copy.assert_clean();
}

//! Files whose length and space change: data, sizes and metadata after a loss of power.

use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::check::check;
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fs, FsOptions, InodeUpdate, Recovery};

use super::common::crash::{CrashedDisk, DiskEvent, RecordedDisk, WholeBlocks, each_crash};
use super::common::image::Image;
use super::common::judge::open_to_change;
use super::common::space::{FileContent, FileModel};
use super::common::space_disk::{Shape, SpaceDisk};
use super::common::space_op::{SpaceOp, SpaceOpKind};
use super::common::{kernel_is_here, number};

/// Files of each thread.
const FILES: usize = 2;
/// Blocks of the largest file.
const MOST_BLOCKS: u64 = 1200;

/// What threads do until power is lost.
struct Workload {
    name: &'static str,
    kinds: &'static [SpaceOpKind],
    threads: usize,
    shape: Shape,
}

use SpaceOpKind::{Allocate, Append, Collapse, Insert, Punch, Replace, SetLen, Write, Zero};

const ALL: &[SpaceOpKind] = &[
    SetLen, Allocate, Punch, Zero, Collapse, Insert, Write, Write, Append, Append, Replace,
];

/// All workloads, with that of `attributes` fourteen. A seed gives its workload, too.
const WORKLOADS: &[Workload] = &[
    Workload {
        name: "appends",
        kinds: &[Append],
        threads: 3,
        shape: Shape::Plain,
    },
    Workload {
        name: "moves behind appended blocks",
        kinds: &[Append, Append, Insert, Collapse, SetLen],
        threads: 3,
        shape: Shape::Fragmented,
    },
    Workload {
        name: "sparse writes",
        kinds: &[Write, Write, Punch, SetLen, Allocate],
        threads: 1,
        shape: Shape::Plain,
    },
    Workload {
        name: "lengths",
        kinds: &[SetLen, SetLen, Allocate],
        threads: 1,
        shape: Shape::Plain,
    },
    Workload {
        name: "allocation",
        kinds: &[Allocate, Allocate, SetLen],
        threads: 3,
        shape: Shape::Plain,
    },
    Workload {
        name: "holes",
        kinds: &[Punch, Punch, Allocate],
        threads: 1,
        shape: Shape::Plain,
    },
    Workload {
        name: "zeroes",
        kinds: &[Zero, Zero, SetLen],
        threads: 3,
        shape: Shape::Plain,
    },
    Workload {
        name: "moves",
        kinds: &[Collapse, Insert],
        threads: 1,
        shape: Shape::Plain,
    },
    Workload {
        name: "all",
        kinds: ALL,
        threads: 3,
        shape: Shape::Plain,
    },
    Workload {
        name: "fragments",
        kinds: ALL,
        threads: 1,
        shape: Shape::Fragmented,
    },
    Workload {
        name: "fragments of threads",
        kinds: ALL,
        threads: 3,
        shape: Shape::Fragmented,
    },
    Workload {
        name: "replacements",
        kinds: &[Replace, Replace, Append, Insert, SetLen],
        threads: 3,
        shape: Shape::Fragmented,
    },
    Workload {
        name: "full disk",
        kinds: ALL,
        threads: 3,
        shape: Shape::Full,
    },
];

/// Notes in the history of a disk.
#[derive(Debug, Clone)]
enum Note {
    /// A thread began its operation of this number.
    Begun(usize, u64),
    /// Operations of each thread up to these numbers are durable.
    Durable(Vec<u64>),
}

fn now() -> InodeTimestamp {
    InodeTimestamp {
        seconds: 1_700_000_000,
        nanoseconds: 7,
    }
}

struct Run<'a> {
    work: &'a Workload,
    disk: &'a RecordedDisk<Note>,
    fs: &'a Fs,
    block: u64,
    /// Operations of each thread that are done.
    done: &'a [AtomicU64],
    what: &'a str,
}

impl Run<'_> {
    /// What one thread does.
    fn thread(&self, thread: usize, files: &mut [FileModel], rng: &mut SmallRng) {
        let mut io = self.disk.clone();
        let operations = number("XTENT_OPS", 12);
        for number in 1..=operations {
            let file = files.choose_mut(rng).unwrap();
            let kind = *self.work.kinds.choose(rng).unwrap();
            let sizes = (file.size(), file.size().max(MOST_BLOCKS * self.block));
            let op = SpaceOp::random(kind, sizes, self.block, rng);
            file.begin(number, &op);
            self.disk.promise(Note::Begun(thread, number));
            if let Err(error) = op.run(self.fs, &mut io, file.id, now()) {
                // Writes fill any of these disks in the end.
                assert!(
                    op.may_fail(&error),
                    "{error}, {op:?} of {:?}; {}",
                    file.id,
                    self.what
                );
                let found = FileContent::read(self.fs, &mut io, file.id.ino).unwrap();
                assert!(
                    file.note_failed(&found),
                    "{op:?} failed in part; {}",
                    self.what
                );
            }
            self.done[thread].store(number, Ordering::SeqCst);
            if rng.random_range(0..3) == 0 {
                let done = self.done.iter().map(|done| done.load(Ordering::SeqCst));
                let done = done.collect();
                self.fs.sync(&mut io).unwrap();
                self.disk.promise(Note::Durable(done));
            }
            if rng.random_range(0..25) == 0 {
                self.fs.clean_log(&mut io).unwrap();
            }
        }
    }
}

/// Where the log lies.
fn log_range(disk: &RecordedDisk<Note>) -> Range<u64> {
    let options = FsOptions {
        norecovery: true,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(&mut disk.clone(), &options).unwrap();
    let geometry = fs.geometry();
    let start = geometry.block_addr(geometry.log_start);
    start..start + u64::from(geometry.log_blocks) * u64::from(geometry.block_bytes)
}

/// Changes inodes until the log's head is so close to its end that it wraps soon.
fn go_to_end_of_log(disk: &RecordedDisk<Note>, fs: &Fs, files: &[FileModel], rng: &mut SmallRng) {
    let log = log_range(disk);
    let near = log.end - rng.random_range(256 << 10..(log.end - log.start) / 4);
    let mut io = disk.clone();
    for turn in 0..100_000_u32 {
        if (near..log.end).contains(&disk.last_addr()) {
            return;
        }
        let update = InodeUpdate {
            uid: Some(turn),
            ..InodeUpdate::default()
        };
        for file in files {
            let ino = file.id.ino;
            fs.update_inode(&mut io, ino, &update, now()).unwrap();
        }
        fs.sync(&mut io).unwrap();
    }
    panic!("the log does not end");
}

/// Runs a workload. Returns the files of all threads.
fn run(
    disk: &RecordedDisk<Note>,
    work: &Workload,
    (source, what): (&SpaceDisk, &str),
    rng: &mut SmallRng,
) -> Vec<Vec<FileModel>> {
    let fs = open_to_change(&mut disk.clone());
    if rng.random() {
        // The disk overwrites discarded blocks.
        fs.discard_freed();
    }
    go_to_end_of_log(disk, &fs, &source.files, rng);
    disk.record();
    let done: Vec<_> = (0..work.threads).map(|_| AtomicU64::new(0)).collect();
    let run = Run {
        work,
        disk,
        fs: &fs,
        block: source.block,
        done: &done,
        what,
    };
    let mut files: Vec<Vec<_>> = source.files.chunks(FILES).map(<[_]>::to_vec).collect();
    std::thread::scope(|scope| {
        for (thread, files) in files.iter_mut().enumerate() {
            let mut rng = SmallRng::seed_from_u64(rng.random());
            let run = &run;
            scope.spawn(move || run.thread(thread, files, &mut rng));
        }
    });
    for file in files.iter().flatten() {
        let found = FileContent::read(&fs, &mut disk.clone(), file.id.ino).unwrap();
        assert!(file.is_newest(&found), "{:?} at the end; {what}", file.id);
    }
    files
}

/// Operations of each thread that are durable, and those that were begun.
fn limits(notes: &[Note], threads: usize) -> Vec<(u64, u64)> {
    let mut limits = vec![(0, 0); threads];
    for note in notes {
        match note {
            Note::Begun(thread, number) => limits[*thread].1 = *number,
            Note::Durable(done) => {
                for (limit, done) in limits.iter_mut().zip(done) {
                    limit.0 = limit.0.max(*done);
                }
            }
        }
    }
    limits
}

/// The files of each thread are as one moment of its history left them, and no promise is broken.
fn check_files(
    files: &[Vec<FileModel>],
    notes: &[Note],
    what: &str,
    mut read: impl FnMut(&FileModel) -> FileContent,
) {
    let limits = limits(notes, files.len());
    for (files, (durable, begun)) in files.iter().zip(limits) {
        let contents: Vec<_> = files.iter().map(&mut read).collect();
        let positions = |in_the_middle| {
            let each = files.iter().zip(&contents);
            each.map(|(file, found)| file.positions(found, durable, begun, in_the_middle))
                .reduce(|a, b| a.intersection(&b).copied().collect())
        };
        let is_good = [false, true]
            .into_iter()
            .any(|in_the_middle| positions(in_the_middle).is_some_and(|found| !found.is_empty()));
        if is_good {
            continue;
        }
        let each = files.iter().zip(&contents).map(|(file, found)| {
            let positions = file.positions(found, durable, begun, true);
            format!("{}: {positions:?}", file.id.ino)
        });
        panic!(
            "no common moment from operation {durable} to {begun}: {:?}; {what}",
            each.collect::<Vec<_>>()
        );
    }
}

fn check_crashed(disk: &mut CrashedDisk, files: &[Vec<FileModel>], notes: &[Note], what: &str) {
    let options = FsOptions {
        recovery: Recovery::OnDevice,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(disk, &options).unwrap_or_else(|error| panic!("{error}; {what}"));
    check_files(files, notes, what, |file| {
        FileContent::read(&fs, disk, file.id.ino).unwrap_or_else(|error| panic!("{error}; {what}"))
    });
    let report = check(disk).unwrap_or_else(|error| panic!("{error}; {what}"));
    assert!(report.is_clean(), "{:?}; {what}", report.findings);
}

/// What was recovered is used on, and is lost once more: what was torn before does not come back.
fn live_again(disk: &mut CrashedDisk, source: &SpaceDisk, rng: &mut SmallRng, what: &str) {
    let fs = open_to_change(disk);
    let mut files = Vec::new();
    for file in &source.files {
        let found = FileContent::read(&fs, disk, file.id.ino).unwrap();
        let mut file = FileModel::new(file.id, source.block, &found.bytes);
        let kind = *ALL.choose(rng).unwrap();
        let sizes = (file.size(), MOST_BLOCKS * source.block);
        let op = SpaceOp::random(kind, sizes, source.block, rng);
        file.begin(1, &op);
        let result = op.run(&fs, disk, file.id, now());
        let found = FileContent::read(&fs, disk, file.id.ino).unwrap();
        match result {
            Ok(()) => assert!(file.is_newest(&found), "{op:?} afterwards; {what}"),
            Err(error) => {
                assert!(op.may_fail(&error), "{error}; {what}");
                assert!(file.note_failed(&found), "{op:?} afterwards; {what}");
            }
        }
        files.push(file);
        if rng.random() {
            fs.sync(disk).unwrap();
        }
    }
    fs.sync(disk).unwrap();
    drop(fs);
    let fs = open_to_change(disk);
    for file in &files {
        let found = FileContent::read(&fs, disk, file.id.ino).unwrap();
        assert!(file.is_newest(&found), "{} afterwards; {what}", file.id.ino);
    }
    let report = check(disk).unwrap();
    assert!(
        report.is_clean(),
        "{:?} afterwards; {what}",
        report.findings
    );
}

/// The same after a replay by the kernel.
fn kernel_check(
    content: &[u8],
    source: &SpaceDisk,
    (files, notes): (&[Vec<FileModel>], &[Note]),
    what: &str,
) {
    let copy = Image::empty(0, source.image.sector_bytes());
    copy.put_content(content);
    let mount = copy.mount("");
    let names: Vec<_> = source.files.iter().map(|file| file.id.ino).collect();
    check_files(files, notes, &format!("the kernel; {what}"), |file| {
        let name = names.iter().position(|ino| *ino == file.id.ino).unwrap();
        let bytes = fs::read(mount.path().join(name.to_string())).unwrap();
        FileContent { bytes }
    });
    mount.unmount();
    copy.assert_clean();
}

/// A workload that ran on a disk.
struct Lived {
    what: String,
    source: SpaceDisk,
    disk: RecordedDisk<Note>,
    history: Vec<DiskEvent<Note>>,
    files: Vec<Vec<FileModel>>,
    rng: SmallRng,
}

/// How often the log was written from its start again.
fn wraps(history: &[DiskEvent<Note>], log: &Range<u64>) -> usize {
    let addrs = history.iter().filter_map(|event| match event {
        DiskEvent::Write(addr, _) if log.contains(addr) => Some(*addr),
        _ => None,
    });
    let addrs: Vec<_> = addrs.collect();
    addrs.windows(2).filter(|pair| pair[1] < pair[0]).count()
}

impl Lived {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let index = usize::try_from(seed).unwrap() % WORKLOADS.len();
        let work = &WORKLOADS[index];
        let source = SpaceDisk::random(&mut rng, FILES * work.threads, work.shape);
        let name = work.name;
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: {name}, {}", source.what);
        println!("{what}");
        let content = Arc::new(fs::read(source.image.path()).unwrap());
        let disk = RecordedDisk::unrecorded(&content, source.image.sector_bytes());
        let files = run(&disk, work, (&source, &what), &mut rng);
        let history = disk.take_history();
        println!("the log wraps {} times", wraps(&history, &log_range(&disk)));
        Self {
            what,
            source,
            disk,
            history,
            files,
            rng,
        }
    }

    /// Looks at all disks that a loss of power may leave, `images` for each command. Returns how
    /// many there were, and how many of them, `kernel` at most, the kernel replayed.
    fn check(&mut self, images: u64, kernel: u64) -> (u64, u64) {
        let each = (self.history.len() as u64 * images / kernel.max(1) / 2).max(1);
        let (mut seen, mut mounted, mut next) = (0, 0, each / 2);
        let whole = WholeBlocks {
            block_bytes: self.source.block,
            log: log_range(&self.disk),
        };
        each_crash(
            &self.disk,
            (&self.history, 0, images),
            Some(&whole),
            &mut self.rng,
            |mut crashed, notes, rng| {
                if seen >= next && crashed.has_whole_blocks && mounted < kernel {
                    next += each;
                    let files = (self.files.as_slice(), notes);
                    kernel_check(&crashed.content(), &self.source, files, &self.what);
                    mounted += 1;
                }
                check_crashed(&mut crashed, &self.files, notes, &self.what);
                if rng.random_range(0..8) == 0 {
                    live_again(&mut crashed, &self.source, rng, &self.what);
                }
                seen += 1;
            },
        );
        (seen, mounted)
    }
}

#[test]
fn changed_space_survives_a_loss_of_power_at_any_command() {
    if !kernel_is_here() {
        return;
    }
    let first = number("XTENT_SEED", 1);
    let runs = number("XTENT_RUNS", WORKLOADS.len() as u64);
    let (images, kernel) = (number("XTENT_IMAGES", 1), number("XTENT_KERNEL", 1));
    let mut total = (0, 0);
    for seed in first..first + runs {
        let (seen, mounted) = Lived::new(seed).check(images, kernel);
        assert!(seen > 0);
        total = (total.0 + seen, total.1 + mounted);
        println!(
            "{seen} images, {mounted} by the kernel; {} and {} in all",
            total.0, total.1
        );
    }
}

#[test]
fn a_disk_that_loses_flushed_writes_is_noticed() {
    if !kernel_is_here() {
        return;
    }
    // Of all files, by three threads.
    let mut lived = Lived::new(5);
    lived
        .history
        .retain(|event| !matches!(event, DiskEvent::Flush | DiskEvent::Durable));
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lived.check(4, 0)));
    assert!(checked.is_err(), "no image of that disk was wrong");
}

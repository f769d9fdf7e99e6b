//! Extent size hints: the same operations by the kernel and by xtent, on two files with the same
//! hint, leave the same extents (offset, length, written or not) and the same content.
//!
//! `XTENT_RUNS` (4) disks from `XTENT_SEED`; a failure prints the seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use common::image::Image;
use common::judge::ImageDisk;
use common::{kernel_is_here, number};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::check::check;
use xtent::volume::{File, Io, OpenOptions, Volume};

/// Files of each kind on a disk.
const FILES: usize = 12;
/// Bytes behind which no operation begins.
const MOST_BYTES: u64 = 2 << 20;

#[derive(Debug, Clone)]
enum Op {
    Write(Range<u64>, u8),
    Truncate(u64),
    Allocate(Range<u64>, bool),
    Zero(Range<u64>, bool),
    Punch(Range<u64>),
    Sync,
}

impl Op {
    fn random(rng: &mut SmallRng, block: u64) -> Self {
        let start = rng.random_range(0..MOST_BYTES / block) * block;
        let most = *[3, 20, 100].choose(rng).unwrap();
        let range = start..start + rng.random_range(1..=most) * block;
        match rng.random_range(0..12) {
            0 => Self::Truncate(start),
            1 => Self::Truncate(start + rng.random_range(1..block)),
            2 => Self::Allocate(range, rng.random()),
            3 => Self::Zero(range, rng.random()),
            4 => Self::Punch(range),
            5 => Self::Sync,
            _ => Self::Write(range, rng.random_range(1..250)),
        }
    }

    /// A command of xfs_io.
    fn command(&self) -> String {
        let flag = |keep: bool| if keep { "-k " } else { "" };
        let range = |range: &Range<u64>| format!("{} {}", range.start, range.end - range.start);
        match self {
            Self::Write(at, byte) => format!("pwrite -q -b 4m -S {byte} {}", range(at)),
            Self::Truncate(len) => format!("truncate {len}"),
            Self::Allocate(at, keep) => format!("falloc {}{}", flag(*keep), range(at)),
            Self::Zero(at, keep) => format!("fzero {}{}", flag(*keep), range(at)),
            Self::Punch(at) => format!("fpunch {}", range(at)),
            Self::Sync => "fsync".to_owned(),
        }
    }

    fn run(&self, file: &File, io: &mut Io) -> xtent::Result<()> {
        match self.clone() {
            Self::Write(at, byte) => {
                let len = usize::try_from(at.end - at.start).unwrap();
                file.write_all_at(io, &vec![byte; len], at.start)
            }
            Self::Truncate(len) => file.set_len(io, len),
            Self::Allocate(at, keep) => file.allocate(io, at, keep),
            Self::Zero(at, keep) => file.zero_range(io, at, keep),
            Self::Punch(at) => file.punch_hole(io, at),
            Self::Sync => file.sync_data(io),
        }
    }
}

/// A pair of files, and the operations on them.
#[derive(Debug)]
struct Pair {
    hint_bytes: u64,
    buffered: bool,
    ops: Vec<Op>,
}

fn xfs_io(args: &[&str], commands: &[String], path: &Path) -> String {
    let mut command = Command::new("xfs_io");
    command.args(args);
    for text in commands {
        command.args(["-c", text]);
    }
    let output = command.arg(path).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The extents of a file: first and last unit of 512 bytes, and whether they are written. Those
/// that continue each other are one, wherever they lie.
fn extents(path: &Path) -> Vec<(u64, u64, bool)> {
    let text = xfs_io(&["-r"], &["fiemap -v".to_owned()], path);
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    for line in text
        .lines()
        .filter(|line| line.contains("]: ") && !line.contains("hole"))
    {
        let (_, rest) = line.split_once('[').unwrap();
        let (range, rest) = rest.split_once("]:").unwrap();
        let (start, end) = range.split_once("..").unwrap();
        let flags = rest.split_whitespace().last().unwrap();
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap();
        let (start, end) = (start.parse().unwrap(), end.parse().unwrap());
        let is_written = flags & 0x800 == 0;
        match found.last_mut() {
            Some(last) if last.1 + 1 == start && last.2 == is_written => last.1 = end,
            _ => found.push((start, end, is_written)),
        }
    }
    found
}

fn compare(image: &Image, pairs: &[Pair], what: &str) {
    let mount = image.mount("ro");
    for (number, pair) in pairs.iter().enumerate() {
        let [kernel, ours] = ["k", "x"].map(|kind| mount.path().join(format!("{kind}{number}")));
        let what = format!("{number}: {pair:?}; {what}");
        assert_eq!(extents(&ours), extents(&kernel), "extents of {what}");
        let [kernel, ours] = [kernel, ours].map(|path| fs::read(path).unwrap());
        assert_eq!(ours.len(), kernel.len(), "length of {what}");
        assert!(ours == kernel, "content of {what}");
    }
}

fn random_pairs(rng: &mut SmallRng, block: u64) -> Vec<Pair> {
    let pair = |_| Pair {
        hint_bytes: block * rng.random_range(1..=2) * [1, 3, 4, 16, 100].choose(rng).unwrap(),
        buffered: rng.random(),
        ops: (0..rng.random_range(1..14))
            .map(|_| Op::random(rng, block))
            .collect(),
    };
    (0..FILES).map(pair).collect()
}

#[test]
fn files_with_a_hint_get_the_extents_that_the_kernel_gives_them() {
    if !kernel_is_here() {
        return;
    }
    let first = number("XTENT_SEED", 1);
    for seed in first..first + number("XTENT_RUNS", 4) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let block = *[1024, 4096].choose(&mut rng).unwrap();
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: blocks of {block}");
        println!("{what}");
        let size = format!("size={block}");
        let rmap = *["rmapbt=0,reflink=0", "rmapbt=1"].choose(&mut rng).unwrap();
        let image = Image::make(320 << 20, 512, &["-b", &size, "-m", rmap]);
        let pairs = random_pairs(&mut rng, block);
        let mount = image.mount("");
        for (number, pair) in pairs.iter().enumerate() {
            let hint = format!("extsize {}", pair.hint_bytes);
            for kind in ["k", "x"] {
                let path = mount.path().join(format!("{kind}{number}"));
                xfs_io(&["-f"], std::slice::from_ref(&hint), &path);
            }
            let commands: Vec<_> = pair.ops.iter().map(Op::command).collect();
            let args: &[&str] = if pair.buffered { &[] } else { &["-d"] };
            xfs_io(args, &commands, &mount.path().join(format!("k{number}")));
        }
        mount.unmount();
        let volume = Volume::open(&format!("image:{}", image.path().display())).unwrap();
        let mut io = volume.io().unwrap();
        for (number, pair) in pairs.iter().enumerate() {
            let options = OpenOptions::new().read(true).write(true);
            let options = options.buffered(pair.buffered);
            let path = format!("/x{number}");
            let file = options.open(&volume, &mut io, &path).unwrap();
            assert_eq!(file.metadata().extent_size_bytes, Some(pair.hint_bytes));
            for op in &pair.ops {
                op.run(&file, &mut io)
                    .unwrap_or_else(|error| panic!("{op:?} of {number}: {error}; {what}"));
            }
            // The map in memory has what was allocated around a write, too.
            let mapped = file.fiemap(&mut io, 0, 1 << 40).unwrap();
            let bytes: u64 = mapped.iter().map(|extent| extent.length_bytes).sum();
            // Some blocks may be of the extent btree.
            let of_btree = (file.metadata().blocks_512 * 512).checked_sub(bytes);
            let is_all = of_btree.is_some_and(|rest| rest <= 4 * block);
            assert!(is_all, "{mapped:?} is not all of {number}; {what}");
        }
        drop(io);
        volume.close().unwrap();
        image.assert_clean();
        let report = check(&mut ImageDisk::open(image.path(), 512)).unwrap();
        assert!(report.is_clean(), "{:?}; {what}", report.findings);
        compare(&image, &pairs, &what);
    }
}

/// No extent is as long as the hint: the blocks still go where they are wanted.
#[test]
fn a_hint_does_no_harm_where_free_space_is_in_pieces() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &["-m", "rmapbt=1", "-d", "agcount=2"]);
    let mount = image.mount("");
    let filler = mount.path().join("filler");
    let free = Command::new("stat")
        .args(["-f", "-c", "%a"])
        .arg(mount.path())
        .output();
    let free = String::from_utf8(free.unwrap().stdout).unwrap();
    let blocks: u64 = free.trim().parse().unwrap();
    let mut commands = vec![format!("falloc 0 {}", (blocks - 200) * 4096)];
    // Pieces of three blocks.
    commands.extend((0..500).map(|n| format!("fpunch {} 12k", n * 10 * 4096)));
    xfs_io(&["-f"], &commands, &filler);
    xfs_io(
        &["-f"],
        &["extsize 64k".to_owned()],
        &mount.path().join("file"),
    );
    mount.unmount();
    let volume = Volume::open(&format!("image:{}", image.path().display())).unwrap();
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(&volume, &mut io, "/file").unwrap();
    let mut content = vec![0; 4 << 20];
    let mut rng = SmallRng::seed_from_u64(20_261_129);
    for _ in 0..40 {
        let start = rng.random_range(0..1000) * 4096;
        let len = (rng.random_range(1..8) * 4096).min(content.len() - start);
        content[start..start + len].fill(rng.random());
        let data = &content[start..start + len];
        file.write_all_at(&mut io, data, start as u64).unwrap();
    }
    let len = usize::try_from(file.len()).unwrap();
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
    let report = check(&mut ImageDisk::open(image.path(), 512)).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    let mount = image.mount("ro");
    let found = fs::read(mount.path().join("file")).unwrap();
    assert!(found == content[..len], "content");
}

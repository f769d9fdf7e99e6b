//! Writes to where files have no written blocks: holes, preallocated blocks, past the end; mixed
//! with changes of length and space. Contents against a model, by xtent, by the kernel after it has
//! replayed the log, and in place.
//!
//! `XTENT_RUNS` (2) disks from `XTENT_SEED`, `XTENT_THREADS` (1 or 4) threads, `XTENT_OPERATIONS`
//! (150) for each thread and round; a failure prints the seed of its disk. With blocks larger than
//! pages where the kernel mounts those: `XTENT_BLOCK` (8192 to 65536).

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use common::image::Image;
use common::judge::{ImageDisk, open_to_change};
use common::space_disk::plain_form;
use common::{kernel_is_here, large_blocks_are_here, number};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::check::check;
use xtent::target::TargetOptions;
use xtent::volume::{File, Io, MountOptions, OpenOptions, Volume};

/// Files of a thread.
const FILES: usize = 4;
/// Bytes that a file has at most, about.
const MOST_BYTES: u64 = 2 << 20;
const ROUNDS: u32 = 3;

/// How files are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Buffered,
    /// Now so, now so.
    Both,
}

struct Model {
    path: String,
    content: Vec<u8>,
}

/// One thread's files, with their models.
struct Player {
    rng: SmallRng,
    models: Vec<Model>,
    block: u64,
    /// Bytes of a block of the filesystem, 4096 at least.
    whole: u64,
    way: Way,
    what: String,
}

fn at(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

impl Player {
    fn range(&mut self, len: u64) -> Range<u64> {
        let start = match self.rng.random_range(0..4) {
            0 => len,
            1 => self.rng.random_range(0..len + 200_000),
            _ => self.rng.random_range(0..len.max(1)),
        };
        let most = *[600, 5000, 70_000, 700_000].choose(&mut self.rng).unwrap();
        let end = start + self.rng.random_range(1..most);
        match self.rng.random_range(0..3) {
            0 => start..end,
            kind => {
                let unit = if kind == 1 {
                    self.block
                } else {
                    4096.max(self.block)
                };
                start / unit * unit..end.next_multiple_of(unit)
            }
        }
    }

    fn data(&mut self, len: u64) -> Vec<u8> {
        let mut data = vec![0; at(len)];
        self.rng.fill(&mut data[..]);
        data
    }

    fn put(model: &mut Vec<u8>, range: &Range<u64>, data: &[u8]) {
        if model.len() < at(range.end) {
            model.resize(at(range.end), 0);
        }
        model[at(range.start)..at(range.end)].copy_from_slice(data);
    }

    /// Many writes at once, of ranges that do not overlap.
    fn batch(&mut self, io: &mut Io, file: &File, model: &mut Vec<u8>) {
        let block = self.block;
        let piece = block * self.rng.random_range(1..40);
        let count = self.rng.random_range(2..12);
        let start = self.rng.random_range(0..=model.len() as u64 / block + 20) * block;
        let mut pieces: Vec<u64> = (0..count).map(|n| start + n * piece).collect();
        if self.rng.random() {
            use rand::seq::SliceRandom;
            pieces.shuffle(&mut self.rng);
        }
        let mut failures = Vec::new();
        for (n, from) in pieces.iter().enumerate() {
            let data = self.data(piece);
            let mut buf = io.alloc(at(piece)).unwrap();
            buf.copy_from_slice(&data);
            io.submit_write(file, *from, buf, n as u64).unwrap();
            Self::put(model, &(*from..from + piece), &data);
            if self.rng.random_range(0..4) == 0 {
                io.poll(4, |done| failures.extend(done.result.err()));
            }
        }
        while io.outstanding() > 0 {
            io.poll(16, |done| failures.extend(done.result.err()));
            io.relax();
        }
        assert!(failures.is_empty(), "{failures:?}; {}", self.what);
    }

    #[expect(clippy::too_many_lines, reason = "a few lines for each operation")]
    fn operate(&mut self, volume: &Volume, io: &mut Io) {
        let index = self.rng.random_range(0..self.models.len());
        let path = self.models[index].path.clone();
        let mut model = std::mem::take(&mut self.models[index].content);
        let old = model.len() as u64;
        let range = self.range(old);
        let kind = self.rng.random_range(0..14);
        let what = format!(
            "operation {kind} of {range:?} on {path}, {old} bytes; {}",
            self.what
        );
        let dsync = self.rng.random_range(0..8) == 0;
        let buffered = match self.way {
            Way::Direct => false,
            Way::Buffered => true,
            Way::Both => self.rng.random(),
        };
        let options = OpenOptions::new().read(true).write(true).dsync(dsync);
        let file = options.buffered(buffered).open(volume, io, &path).unwrap();
        let len = range.end - range.start;
        let done = match kind {
            0..=2 => {
                let data = self.data(len);
                Self::put(&mut model, &range, &data);
                file.write_all_at(io, &data, range.start)
            }
            3 | 4 => {
                let unit = self.block;
                let range = range.start / unit * unit..range.end.next_multiple_of(unit);
                let data = self.data(range.end - range.start);
                let mut buf = io.alloc(data.len()).unwrap();
                buf.copy_from_slice(&data);
                Self::put(&mut model, &range, &data);
                file.write_dma_at(io, &mut buf, range.start).map(drop)
            }
            // In flight they are direct writes, beside dirty pages.
            5 => {
                let file = match self.way {
                    Way::Buffered => file.clone(),
                    _ => options.open(volume, io, &path).unwrap(),
                };
                self.batch(io, &file, &mut model);
                Ok(())
            }
            6 => {
                let len = if self.rng.random() {
                    old / 2
                } else {
                    range.end.min(MOST_BYTES)
                };
                model.resize(at(len), 0);
                file.set_len(io, len)
            }
            7 => {
                let keep: bool = self.rng.random();
                if !keep && at(range.end) > model.len() {
                    model.resize(at(range.end), 0);
                }
                file.allocate(io, range, keep)
            }
            8 => {
                let end = at(range.end).min(model.len());
                if at(range.start) < end {
                    model[at(range.start)..end].fill(0);
                }
                file.punch_hole(io, range)
            }
            9 => {
                let block = self.whole;
                let range = range.start / block * block..range.end.next_multiple_of(block);
                if range.end < old {
                    model.drain(at(range.start)..at(range.end));
                    file.collapse_range(io, range)
                } else if range.start < old {
                    let hole = vec![0; at(range.end - range.start)];
                    model.splice(at(range.start)..at(range.start), hole);
                    file.insert_range(io, range)
                } else {
                    Ok(())
                }
            }
            10 if self.rng.random() => {
                let data = self.data(len);
                model.clone_from(&data);
                file.replace_content(io, len, &mut &data[..])
            }
            10 => file.sync_data(io),
            11 if buffered => {
                let old_bytes = range.start.min(old)..range.end.min(old);
                if let Some(mut view) = file.view_mut(io, old_bytes.clone()).unwrap() {
                    let end = old_bytes.start + view.len() as u64;
                    let data = self.data(view.len() as u64);
                    view.copy_from_slice(&data);
                    Self::put(&mut model, &(old_bytes.start..end), &data);
                }
                Ok(())
            }
            12 if buffered => file.sync_range(io, range),
            _ => {
                let mut found = vec![1; at(len)];
                let n = file.read_at(io, &mut found, range.start).unwrap();
                let expected = model.get(at(range.start)..).unwrap_or_default();
                let expected = &expected[..expected.len().min(at(len))];
                assert_eq!(n, expected.len(), "{what}");
                assert!(found[..n] == *expected, "content; {what}");
                Ok(())
            }
        };
        done.unwrap_or_else(|error| panic!("{error}; {what}"));
        if model.len() as u64 > 2 * MOST_BYTES {
            model.truncate(at(MOST_BYTES));
            file.set_len(io, MOST_BYTES).unwrap();
        }
        assert_eq!(file.len(), model.len() as u64, "{what}");
        assert_eq!(file.metadata().len_bytes, model.len() as u64, "{what}");
        self.models[index].content = model;
    }
}

struct Disk {
    image: Image,
    players: Vec<Player>,
    what: String,
}

impl Disk {
    /// With blocks larger than pages, if `is_large`.
    fn new(seed: u64, way: Way, is_large: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (sector_bytes, mut args, _) = plain_form(&mut rng);
        let mut whole = 4096;
        if is_large {
            args.truncate(8);
            let some = *[8192, 16_384, 32_768, 65_536].choose(&mut rng).unwrap();
            whole = number("XTENT_BLOCK", some);
            // The least log has about as many blocks, however large these are.
            args[3] = format!("size={}", (4096 * whole).min(160 << 20));
            args.extend(["-b".to_owned(), format!("size={whole}")]);
        }
        let threads = number("XTENT_THREADS", if rng.random() { 1 } else { 4 });
        let what = format!(
            "{way:?}: XTENT_RUNS=1 XTENT_SEED={seed} XTENT_THREADS={threads}: sectors of {sector_bytes}, {args:?}"
        );
        let all: Vec<&str> = args.iter().map(String::as_str).collect();
        let bytes = if is_large { 600 << 20 } else { 256 << 20 };
        let image = Image::make(bytes, sector_bytes, &all);
        let mount = image.mount("");
        let players = (0..threads).map(|thread| {
            let models = (0..FILES).map(|file| {
                let path = format!("/{thread}-{file}");
                fs::write(mount.path().join(&path[1..]), "").unwrap();
                let content = Vec::new();
                Model { path, content }
            });
            Player {
                rng: SmallRng::seed_from_u64(seed ^ (thread + 1) << 32),
                models: models.collect(),
                block: sector_bytes.into(),
                whole,
                way,
                what: what.clone(),
            }
        });
        let players = players.collect();
        mount.unmount();
        Self {
            image,
            players,
            what,
        }
    }

    fn target(&self) -> String {
        format!(
            "image:{},lba={}",
            self.image.path().display(),
            self.image.sector_bytes()
        )
    }

    /// Contents as the kernel has them, on a copy whose log it replays.
    fn check_copy(&self) {
        let copy = Image::empty(0, self.image.sector_bytes());
        fs::copy(self.image.path(), copy.path()).unwrap();
        let mount = copy.mount("");
        self.check_files(mount.path());
        mount.unmount();
        copy.assert_clean();
    }

    fn check_in_place(&self) {
        self.image.assert_clean();
        let mut disk = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let report = check(&mut disk).unwrap();
        assert!(
            report.findings.is_empty(),
            "{:?}; {}",
            report.findings,
            self.what
        );
        let mount = self.image.mount("ro");
        self.check_files(mount.path());
        mount.unmount();
    }

    fn check_files(&self, dir: &Path) {
        for model in self.players.iter().flat_map(|player| &player.models) {
            let found = fs::read(dir.join(&model.path[1..])).unwrap();
            let path = &model.path;
            assert_eq!(
                found.len(),
                model.content.len(),
                "length of {path}; {}",
                self.what
            );
            let wrong = found.iter().zip(&model.content).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "content of {path}; {}", self.what);
        }
    }

    fn play(&mut self, volume: &Volume) {
        let operations = number("XTENT_OPERATIONS", 150);
        std::thread::scope(|scope| {
            for player in &mut self.players {
                scope.spawn(move || {
                    let mut io = volume.io().unwrap();
                    for _ in 0..operations {
                        player.operate(volume, &mut io);
                    }
                });
            }
        });
    }
}

#[test]
fn files_grow_as_the_kernels_do() {
    grow(Way::Direct, false);
}

#[test]
fn cached_files_grow_as_the_kernels_do() {
    grow(Way::Buffered, false);
}

#[test]
fn files_grow_through_the_cache_and_beside_it() {
    grow(Way::Both, false);
}

#[test]
fn files_of_large_blocks_grow_as_the_kernels_do() {
    if large_blocks_are_here() {
        grow(Way::Direct, true);
    }
}

#[test]
fn cached_files_of_large_blocks_grow_as_the_kernels_do() {
    if large_blocks_are_here() {
        grow(Way::Buffered, true);
    }
}

#[test]
fn files_of_large_blocks_grow_through_the_cache_and_beside_it() {
    if large_blocks_are_here() {
        grow(Way::Both, true);
    }
}

/// Every other time with less memory for pages than the files need, and pages that are written back
/// in the background at once.
fn open(target: &str, round: u32) -> Volume {
    let mut options = MountOptions::default();
    if round % 2 == 1 {
        let soon = Duration::from_millis(1);
        options = options.cache_bytes(4 << 20);
        options = options.dirty_expire(soon).writeback_interval(soon);
    }
    Volume::open_with(target, &TargetOptions::default(), &options).unwrap()
}

fn grow(way: Way, is_large: bool) {
    if !kernel_is_here() {
        return;
    }
    let first = number("XTENT_SEED", 1);
    for seed in first..first + number("XTENT_RUNS", 2) {
        let mut disk = Disk::new(seed, way, is_large);
        println!("{}", disk.what);
        for round in 0..ROUNDS {
            let volume = open(&disk.target(), round);
            disk.play(&volume);
            let mut io = volume.io().unwrap();
            volume.sync(&mut io).unwrap();
            disk.check_copy();
            drop(io);
            if round % 2 == 0 {
                volume.close().unwrap();
            } else {
                drop(volume);
            }
            disk.check_in_place();
        }
        let mut io = ImageDisk::open(disk.image.path(), disk.image.sector_bytes());
        open_to_change(&mut io);
        // The kernel goes on with what it finds.
        let mount = disk.image.mount("");
        for model in disk.players.iter().flat_map(|player| &player.models) {
            fs::remove_file(mount.path().join(&model.path[1..])).unwrap();
        }
        mount.unmount();
        disk.image.assert_clean();
    }
}

#[test]
fn a_full_disk_is_told_by_the_write_that_needs_space() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    fs::write(mount.path().join("file"), "").unwrap();
    mount.unmount();
    let target = format!("image:{}", image.path().display());
    let volume = open(&target, 1);
    let mut io = volume.io().unwrap();
    let file = OpenOptions::new().read(true).write(true).buffered(true);
    let file = file.open(&volume, &mut io, "/file").unwrap();
    let mut data = vec![0; 3_000_001];
    SmallRng::seed_from_u64(20_261_129).fill(&mut data[..]);
    let mut lens = Vec::new();
    for _ in 0..2 {
        file.set_len(&mut io, 0).unwrap();
        let mut len = 0;
        let error = loop {
            match file.write_at(&mut io, &data, len) {
                Ok(done) => len += done as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(error.bytes_done().unwrap_or(0), 0, "{error}");
        assert_eq!(file.len(), len);
        file.sync_all(&mut io).unwrap();
        lens.push(len);
    }
    // All of it comes back, but for blocks in reserve.
    assert!(lens[0] > 200 << 20, "{lens:?}");
    assert!(lens[0].abs_diff(lens[1]) < 8 << 20, "{lens:?}");
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro");
    let found = fs::read(mount.path().join("file")).unwrap();
    assert_eq!(found.len() as u64, lens[1]);
    let mut rest = &found[..];
    while !rest.is_empty() {
        // Each write began with the first byte of `data`; how far it came is found anew.
        let same = rest.iter().zip(&data).take_while(|(a, b)| a == b).count();
        assert!(same > 0, "{} bytes before the end", rest.len());
        rest = &rest[same..];
    }
}

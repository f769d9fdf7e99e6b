//! Blocks that open files hold in reserve past their ends: an operation that finds no space has
//! them freed, and succeeds.
//!
//! `XTENT_RUNS` (3) disks from `XTENT_SEED`; a failure prints the seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::image::Image;
use common::judge::ImageDisk;
use common::{kernel_is_here, number};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::check::check;
use xtent::target::TargetOptions;
use xtent::volume::{File, Io, MountOptions, OpenOptions, Volume};

const BLOCK: u64 = 4096;

/// An image with empty files of these names; `free_bytes` are free, about.
fn nearly_full(free_bytes: u64, names: &[&str]) -> Image {
    let image = Image::make(320 << 20, 512, &["-d", "agcount=2"]);
    let mount = image.mount("");
    for name in names {
        fs::write(mount.path().join(name), "").unwrap();
    }
    let free = free_of(mount.path());
    let filler = mount.path().join("filler");
    let len = (free - free_bytes).to_string();
    let falloc = format!("falloc 0 {len}");
    let mut command = Command::new("xfs_io");
    let output = command.args(["-f", "-c", &falloc]).arg(filler).output();
    assert!(output.as_ref().unwrap().status.success(), "{output:?}");
    mount.unmount();
    image
}

/// Bytes of a mounted filesystem that users can allocate.
fn free_of(mount: &Path) -> u64 {
    let mut command = Command::new("stat");
    let command = command.args(["-f", "-c", "%a %S"]).arg(mount);
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().unwrap());
    numbers.next().unwrap() * numbers.next().unwrap()
}

fn open(image: &Image) -> Volume {
    let target = format!("image:{}", image.path().display());
    let options = MountOptions::default().cache_bytes(16 << 20);
    Volume::open_with(&target, &TargetOptions::default(), &options).unwrap()
}

/// Blocks that a file has past its end.
fn reserve_blocks(file: &File) -> u64 {
    (file.metadata().blocks_512 * 512 / BLOCK).saturating_sub(file.len().div_ceil(BLOCK))
}

fn assert_clean(image: &Image, what: &str) {
    image.assert_clean();
    let mut disk = ImageDisk::open(image.path(), 512);
    let report = check(&mut disk).unwrap();
    assert!(report.is_clean(), "{:?}; {what}", report.findings);
}

/// An operation on a file that asks for one block, at its end.
type Need = fn(&File, &mut Io) -> xtent::Result<()>;

fn write(file: &File, io: &mut Io) -> xtent::Result<()> {
    file.write_all_at(io, &[3; 4096], file.len())
}

fn view(file: &File, io: &mut Io) -> xtent::Result<()> {
    let at = file.len();
    file.set_len(io, at + BLOCK)?;
    let viewed = file.view_mut(io, at..at + BLOCK);
    viewed.map(|view| view.unwrap().fill(3))
}

fn allocate(file: &File, io: &mut Io) -> xtent::Result<()> {
    file.allocate(io, file.len()..file.len() + BLOCK, false)
}

fn zero(file: &File, io: &mut Io) -> xtent::Result<()> {
    file.zero_range(io, file.len()..file.len() + BLOCK, false)
}

const NEEDS: &[(&str, bool, Need)] = &[
    ("direct write", false, write),
    ("buffered write", true, write),
    ("view", true, view),
    ("allocate", false, allocate),
    ("zero", true, zero),
];

/// How many blocks one file gets beside another one, which is open or not.
fn blocks_beside(base: &Image, is_open: bool, (name, buffered, need): (&str, bool, Need)) -> u64 {
    let image = Image::empty(0, 512);
    fs::copy(base.path(), image.path()).unwrap();
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let options = options.buffered(buffered);
    let holder = options.open(&volume, &mut io, "/holder").unwrap();
    let other = options.open(&volume, &mut io, "/other").unwrap();
    holder.write_all_at(&mut io, &[7; 1 << 20], 0).unwrap();
    holder.sync_all(&mut io).unwrap();
    let reserve = reserve_blocks(&holder);
    assert!(reserve >= 60, "{name}: {reserve} blocks in reserve");
    let holder = is_open.then_some(holder);
    other.allocate(&mut io, 0..20 << 20, false).unwrap();
    let error = loop {
        if let Err(error) = need(&other, &mut io) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{name}: {error}");
    let blocks = other.metadata().blocks_512 * 512 / BLOCK;
    if let Some(holder) = &holder {
        assert_eq!(reserve_blocks(holder), 0, "{name}");
        // Its data is not disturbed.
        holder.write_all_at(&mut io, &[8; 5000], 70_000).unwrap();
    }
    drop((holder, other, io));
    volume.close().unwrap();
    assert_clean(&image, name);
    let mount = image.mount("ro");
    let found = fs::read(mount.path().join("holder")).unwrap();
    let mut expected = vec![7; 1 << 20];
    if is_open {
        expected[70_000..75_000].fill(8);
    }
    assert!(found == expected, "{name}");
    blocks
}

#[test]
fn the_reserve_of_an_open_file_goes_to_the_operation_that_needs_it() {
    if !kernel_is_here() {
        return;
    }
    let base = nearly_full(30 << 20, &["holder", "other"]);
    for need in NEEDS {
        let [alone, beside] = [false, true].map(|is_open| blocks_beside(&base, is_open, *need));
        println!(
            "{}: {alone} blocks, {beside} beside a file with a reserve",
            need.0
        );
        assert!(beside + 8 >= alone, "{}: {beside} of {alone}", need.0);
    }
}

#[test]
fn nothing_is_allocated_ahead_where_space_is_scarce() {
    if !kernel_is_here() {
        return;
    }
    // 0.9 % of the disk.
    let image = nearly_full(2900 << 10, &["file"]);
    let volume = open(&image);
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(&volume, &mut io, "/file").unwrap();
    file.write_all_at(&mut io, &[7; 1 << 20], 0).unwrap();
    assert_eq!(reserve_blocks(&file), 0);
    drop((file, io));
    volume.close().unwrap();
    assert_clean(&image, "scarce");
}

/// A file of a thread, and the content that it has.
struct Player {
    rng: SmallRng,
    file: File,
    content: Vec<u8>,
    no_space: u32,
}

impl Player {
    /// Writes behind the end, as much as there is space for.
    fn append(&mut self, io: &mut Io, len: usize) -> bool {
        let data: Vec<u8> = (0..len).map(|_| self.rng.random()).collect();
        let start = self.content.len() as u64;
        match self.file.write_all_at(io, &data, start) {
            Ok(()) => {
                self.content.extend(data);
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                self.no_space += 1;
                let done = usize::try_from(error.bytes_done().unwrap_or(0)).unwrap();
                self.content.extend(&data[..done]);
                // A short write may have gone further than it says.
                self.file.set_len(io, self.content.len() as u64).unwrap();
                false
            }
        }
    }

    fn play(&mut self, io: &mut Io) {
        for _ in 0..self.rng.random_range(30..80) {
            match self.rng.random_range(0..10) {
                0 => {
                    let len = self.content.len() / self.rng.random_range(1..6);
                    self.content.truncate(len);
                    self.file.set_len(io, len as u64).unwrap();
                }
                1 => self.file.sync_data(io).unwrap(),
                _ => {
                    let most = *[5000, 70_000, 900_000].choose(&mut self.rng).unwrap();
                    let len = self.rng.random_range(1..most);
                    self.append(io, len);
                }
            }
        }
    }
}

#[test]
fn threads_with_open_files_on_a_full_disk_use_all_of_it() {
    if !kernel_is_here() {
        return;
    }
    let names = ["0", "1", "2", "3"];
    let first = number("XTENT_SEED", 1);
    for seed in first..first + number("XTENT_RUNS", 3) {
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let image = nearly_full(rng.random_range(4 << 20..24 << 20), &names);
        let volume = open(&image);
        let mut io = volume.io().unwrap();
        let mut players = names.map(|name| {
            let options = OpenOptions::new().read(true).write(true);
            let options = options.buffered(rng.random());
            Player {
                file: options.open(&volume, &mut io, format!("/{name}")).unwrap(),
                rng: SmallRng::seed_from_u64(rng.random()),
                content: Vec::new(),
                no_space: 0,
            }
        });
        std::thread::scope(|scope| {
            for player in &mut players {
                let volume = &volume;
                scope.spawn(move || player.play(&mut volume.io().unwrap()));
            }
        });
        // One of them takes the rest.
        while players[0].append(&mut io, 100_000) {}
        let reserves = players.each_ref().map(|player| {
            player.file.sync_all(&mut io).unwrap();
            reserve_blocks(&player.file)
        });
        let full = players.iter().map(|player| player.no_space).sum::<u32>();
        println!("{what}: {full} without space, reserves {reserves:?}");
        assert!(
            reserves.iter().all(|blocks| *blocks < 16),
            "{reserves:?}; {what}"
        );
        let contents = players.map(|player| player.content);
        drop(io);
        volume.close().unwrap();
        assert_clean(&image, &what);
        let mount = image.mount("ro");
        for (name, content) in names.iter().zip(&contents) {
            let found = fs::read(mount.path().join(name)).unwrap();
            assert_eq!(found.len(), content.len(), "length of {name}; {what}");
            assert!(found == *content, "content of {name}; {what}");
        }
    }
}

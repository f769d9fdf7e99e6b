//! fsx, the exerciser of filesystems, in library form: its operations, data and checks on one file
//! of an XFS disk, direct, through the page cache, and both in turns. One buffer says what the file
//! must hold; every read is compared with it, and so is what a file that grew has where its old
//! end was. Every so often the volume is closed, or given up as by a crash after a sync, and opened
//! again; at those times and at the end the kernel reads the file, and `xfs_repair -n` and the
//! checker look at the disk.
//!
//! `XTENT_FSX_RUNS` operations (6,000) of each way, `XTENT_SEED` (1).

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::ops::Range;

use common::image::Image;
use common::judge::ImageDisk;
use common::space_disk::plain_form;
use common::{kernel_is_here, number};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::check::check;
use xtent::target::TargetOptions;
use xtent::volume::{Advice, File, Io, MountOptions, OpenOptions, Volume};

/// As fsx's `-l` and `-o`, by default.
const MOST_FILE: u64 = 256 * 1024;
const MOST_LEN: u64 = 64 * 1024;
/// Operations between two times that the volume is opened.
const OPEN_EVERY: u64 = 3000;

/// How the file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Buffered,
    /// By a handle of each kind, in turns.
    Both,
}

/// A volume and its handles, which go with it.
struct Mounted {
    volume: Volume,
    io: Io,
    direct: File,
    buffered: File,
}

struct Fsx {
    rng: SmallRng,
    image: Image,
    way: Way,
    /// Block of the filesystem: ranges of collapse and insert are multiples of it.
    block: u64,
    good: Vec<u8>,
    /// Random bytes, as fsx's `original_buf`.
    original: Vec<u8>,
    calls: u64,
    what: String,
}

fn at(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

fn open(image: &Image) -> Mounted {
    let target = format!(
        "image:{},lba={}",
        image.path().display(),
        image.sector_bytes()
    );
    // About as large as the file may become: pages come and go.
    let options = MountOptions::default().cache_bytes(1 << 20);
    let volume = Volume::open_with(&target, &TargetOptions::default(), &options).unwrap();
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let direct = options.open(&volume, &mut io, "/file").unwrap();
    let buffered = options.buffered(true);
    let buffered = buffered.open(&volume, &mut io, "/file").unwrap();
    Mounted {
        volume,
        io,
        direct,
        buffered,
    }
}

impl Fsx {
    fn new(way: Way, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (sector_bytes, args, block) = plain_form(&mut rng);
        let all: Vec<&str> = args.iter().map(String::as_str).collect();
        let image = Image::make(256 << 20, sector_bytes, &all);
        let mount = image.mount("");
        fs::write(mount.path().join("file"), "").unwrap();
        mount.unmount();
        let what = format!("{way:?}, XTENT_SEED={seed}: sectors of {sector_bytes}, {args:?}");
        println!("{what}");
        Self {
            original: (0..MOST_FILE).map(|_| rng.random()).collect(),
            rng,
            image,
            way,
            block,
            good: Vec::new(),
            calls: 0,
            what,
        }
    }

    fn size(&self) -> u64 {
        self.good.len() as u64
    }

    fn place(&self) -> String {
        let size = self.size();
        format!("operation {}, file of {size}; {}", self.calls, self.what)
    }

    /// As fsx's `gendata`: the number of the call, and what was there first.
    fn data(&self, range: &Range<u64>) -> Vec<u8> {
        let call = u8::try_from(self.calls % 256).unwrap();
        let byte = |at: usize| {
            let odd = if at % 2 == 1 { self.original[at] } else { 0 };
            call.wrapping_add(odd)
        };
        (at(range.start)..at(range.end)).map(byte).collect()
    }

    fn compare(&self, from: u64, found: &[u8], what: &str) {
        let expected = &self.good[at(from)..][..found.len()];
        let bad = found.iter().zip(expected).position(|(a, b)| a != b);
        if let Some(bad) = bad {
            panic!(
                "{what} at {from} of {} bytes: byte {} is {:#x} and should be {:#x}; {}",
                found.len(),
                from + bad as u64,
                found[bad],
                expected[bad],
                self.place()
            );
        }
    }

    /// A range inside of the file; empty when that is.
    fn inside(&mut self) -> Range<u64> {
        let size = self.size();
        let start = self.rng.random_range(0..MOST_FILE) % size.max(1);
        let len = self.rng.random_range(1..=MOST_LEN);
        start..(start + len).min(size)
    }

    /// A range of the file that may be.
    fn anywhere(&mut self) -> Range<u64> {
        let start = self.rng.random_range(0..MOST_FILE);
        let len = self.rng.random_range(1..=MOST_LEN);
        start..(start + len).min(MOST_FILE)
    }

    fn put(&mut self, range: &Range<u64>, data: &[u8]) {
        if self.size() < range.end {
            self.good.resize(at(range.end), 0);
        }
        self.good[at(range.start)..at(range.end)].copy_from_slice(data);
    }

    /// Reads by `read`, which may read less, and compares.
    fn read(&mut self, file: &File, io: &mut Io) {
        let range = self.inside();
        let mut found = vec![0xaa; at(range.end - range.start)];
        let n = file.read_at(io, &mut found, range.start).unwrap();
        assert_eq!(n, found.len(), "{}", self.place());
        self.compare(range.start, &found, "read");
    }

    fn map_read(&mut self, file: &File, io: &mut Io) {
        let mut range = self.inside();
        while !range.is_empty() {
            let Some(view) = file.view(io, range.clone()).unwrap() else {
                return;
            };
            self.compare(range.start, &view, "mapread");
            range.start += view.len() as u64;
        }
    }

    fn map_write(&mut self, file: &File, io: &mut Io) {
        let mut range = self.inside();
        while !range.is_empty() {
            let data = self.data(&range);
            // Where there is none, as for blocks larger than pages, it is written.
            let done = match file.view_mut(io, range.clone()).unwrap() {
                Some(mut view) => {
                    let len = view.len();
                    view.copy_from_slice(&data[..len]);
                    len
                }
                None => {
                    file.write_all_at(io, &data, range.start).unwrap();
                    data.len()
                }
            };
            let end = range.start + done as u64;
            self.put(&(range.start..end), &data[..done]);
            range.start = end;
        }
    }

    fn write(&mut self, file: &File, io: &mut Io) {
        let range = self.anywhere();
        let data = self.data(&range);
        self.put(&range, &data);
        file.write_all_at(io, &data, range.start).unwrap();
    }

    /// The modes of fallocate(2).
    fn allocate(&mut self, file: &File, io: &mut Io) {
        let range = self.anywhere();
        let keep: bool = self.rng.random();
        let zeroes = self.rng.random_range(0..3);
        if zeroes < 2 && !keep && self.size() < range.end {
            self.good.resize(at(range.end), 0);
        }
        if zeroes > 0 {
            let end = range.end.min(self.size());
            if range.start < end {
                self.good[at(range.start)..at(end)].fill(0);
            }
        }
        let done = match zeroes {
            0 => file.allocate(io, range, keep),
            1 => file.zero_range(io, range, keep),
            _ => file.punch_hole(io, range),
        };
        done.unwrap_or_else(|error| panic!("{error}; {}", self.place()));
    }

    fn shift(&mut self, file: &File, io: &mut Io) {
        let range = self.inside();
        let block = self.block;
        let range = range.start / block * block..range.end / block * block;
        if range.is_empty() {
            return;
        }
        let len = range.end - range.start;
        let done = if range.end < self.size() && self.rng.random() {
            self.good.drain(at(range.start)..at(range.end));
            file.collapse_range(io, range)
        } else if self.size() + len <= MOST_FILE {
            let hole = vec![0; at(len)];
            self.good.splice(at(range.start)..at(range.start), hole);
            file.insert_range(io, range)
        } else {
            Ok(())
        };
        done.unwrap_or_else(|error| panic!("{error}; {}", self.place()));
    }

    fn truncate(&mut self, file: &File, io: &mut Io) {
        let size = self.rng.random_range(0..MOST_FILE);
        self.good.resize(at(size), 0);
        file.set_len(io, size).unwrap();
    }

    /// As fsx's exchange-range: all of the content at once.
    fn replace(&mut self, file: &File, io: &mut Io) {
        let range = 0..self.rng.random_range(0..MOST_FILE);
        self.good = self.data(&range);
        let mut from = &self.good[..];
        file.replace_content(io, range.end, &mut from).unwrap();
    }

    fn operation(&mut self, mounted: &mut Mounted) {
        self.calls += 1;
        let Mounted {
            volume,
            io,
            direct,
            buffered,
        } = mounted;
        let is_buffered = match self.way {
            Way::Direct => false,
            Way::Buffered => true,
            Way::Both => self.rng.random(),
        };
        let file = if is_buffered { &*buffered } else { &*direct };
        match self.rng.random_range(0..100) {
            0..20 => self.read(file, io),
            20..40 => self.write(file, io),
            40..50 if is_buffered => self.map_read(file, io),
            50..60 if is_buffered => self.map_write(file, io),
            40..50 => self.read(file, io),
            50..60 => self.write(file, io),
            60..68 => self.truncate(file, io),
            68..80 => self.allocate(file, io),
            80..88 => self.shift(file, io),
            88 => self.replace(file, io),
            89..92 => file.sync_all(io).unwrap(),
            92..94 => file.sync_data(io).unwrap(),
            94..97 => {
                let range = self.anywhere();
                buffered.advise(io, range, Advice::DontNeed).unwrap();
            }
            _ => {
                // fsx's close and open: the other handle stays.
                let options = OpenOptions::new().read(true).write(true);
                let options = options.buffered(is_buffered);
                let again = options.open(volume, io, "/file").unwrap();
                *(if is_buffered { buffered } else { direct }) = again;
            }
        }
        let size = self.size();
        for file in [&mounted.direct, &mounted.buffered] {
            assert_eq!(file.len(), size, "{}", self.place());
        }
    }

    /// Ends a volume, cleanly or not, after a sync, and looks at the disk.
    fn end(&mut self, mounted: Mounted) {
        let Mounted {
            volume,
            mut io,
            direct,
            buffered,
        } = mounted;
        let mut found = vec![0; self.good.len() + 1];
        let n = direct.read_at(&mut io, &mut found, 0).unwrap();
        assert_eq!(n, self.good.len(), "{}", self.place());
        self.compare(0, &found[..n], "the whole file");
        volume.sync(&mut io).unwrap();
        if self.rng.random() {
            // What a crash would leave: the kernel replays the log.
            let copy = Image::empty(0, self.image.sector_bytes());
            fs::copy(self.image.path(), copy.path()).unwrap();
            self.look(&copy);
        }
        drop((direct, buffered, io));
        volume.close().unwrap();
        let mut disk = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let report = check(&mut disk).unwrap();
        let findings = report.findings;
        assert!(findings.is_empty(), "{findings:?}; {}", self.place());
        self.image.assert_clean();
        self.look(&self.image);
    }

    fn look(&self, image: &Image) {
        let mount = image.mount("");
        let found = fs::read(mount.path().join("file")).unwrap();
        mount.unmount();
        assert_eq!(found.len(), self.good.len(), "{}", self.place());
        self.compare(0, &found, "the kernel's read");
        image.assert_clean();
    }
}

fn fsx(way: Way) {
    if !kernel_is_here() {
        return;
    }
    let (runs, first) = (number("XTENT_FSX_RUNS", 6000), number("XTENT_SEED", 1));
    // A new disk for every 500,000.
    let mut left = runs;
    for seed in first.. {
        let runs = left.min(500_000);
        let mut fsx = Fsx::new(way, seed);
        while fsx.calls < runs {
            let mut mounted = open(&fsx.image);
            for _ in 0..OPEN_EVERY.min(runs - fsx.calls) {
                fsx.operation(&mut mounted);
            }
            fsx.end(mounted);
        }
        left -= runs;
        if left == 0 {
            break;
        }
    }
}

#[test]
fn direct() {
    fsx(Way::Direct);
}

#[test]
fn buffered() {
    fsx(Way::Buffered);
}

#[test]
fn direct_and_buffered() {
    fsx(Way::Both);
}

//! The exerciser of filesystems, fsx, over the page cache: its operations, its data and its checks,
//! in library form, as there is no mount to run the original on. One file, one buffer that says
//! what it must hold. Reads and writes of odd places and lengths; mapped ones by views, which lend
//! the cached bytes; truncation both ways; fsync; dropping clean pages (invalidate); closing (which
//! writes all out and forgets it) and opening again. Each read is compared, and so is what lies
//! behind the end in the last page, as far as it can be seen: after the file grew.
//!
//! `XTENT_FSX_RUNS` says how many operations (20,000), `XTENT_SEED` the seed (1).

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::cache::{Cache, CacheConfig, ErrorCursor, FileCache};
use xtent::internals::device::emu::Medium;
use xtent::internals::iomap::buffered::{Buffered, ReadAhead};
use xtent::internals::nvme::QueuePair;

use crate::fs::{FileOps, Fs, Inode, Metadata};
use crate::watchdog::{Watchdog, step};
use crate::{Machine, Seed, number};

/// As fsx's `-l` and `-o`, by default.
const MOST_FILE: usize = 256 * 1024;
const MOST_LEN: usize = 64 * 1024;
const BLOCK_BYTES: u64 = 1024;

struct Fsx<'a> {
    rng: StdRng,
    fs: Arc<Fs>,
    cache: &'a Cache,
    file: FileCache,
    cursor: ErrorCursor,
    ops: FileOps,
    buffered: Buffered<QueuePair>,
    ahead: ReadAhead,
    good: Vec<u8>,
    /// Random bytes, as fsx's `original_buf`.
    original: Vec<u8>,
    calls: u64,
}

impl Fsx<'_> {
    /// As fsx's `gendata`: the number of the call, and what was there first.
    fn data(&self, pos: usize, len: usize) -> Vec<u8> {
        let call = (self.calls % 256) as u8;
        (pos..pos + len)
            .map(|at| {
                let odd = if at % 2 == 1 { self.original[at] } else { 0 };
                call.wrapping_add(odd)
            })
            .collect()
    }

    fn compare(&self, pos: usize, found: &[u8], what: &str) {
        let expected = &self.good[pos..pos + found.len()];
        let bad = found.iter().zip(expected).position(|(a, b)| a != b);
        if let Some(bad) = bad {
            panic!(
                "operation {}, {what} at {pos} of {} bytes, file of {}: byte {} is {:#x} and should be {:#x}",
                self.calls,
                found.len(),
                self.good.len(),
                pos + bad,
                found[bad],
                expected[bad]
            );
        }
    }

    /// A place inside of the file, and a length that stays inside.
    fn inside(&mut self) -> Option<(usize, usize)> {
        let size = self.good.len();
        let pos = self.rng.random_range(0..MOST_FILE) % size.max(1);
        let len = self
            .rng
            .random_range(1..=MOST_LEN)
            .min(size - pos.min(size));
        (len > 0).then_some((pos, len))
    }

    /// A place in the file that may be, where a write makes it longer.
    fn anywhere(&mut self) -> (usize, usize) {
        let pos = self.rng.random_range(0..MOST_FILE);
        (
            pos,
            self.rng.random_range(1..=MOST_LEN).min(MOST_FILE - pos),
        )
    }

    fn read(&mut self) {
        let Some((pos, len)) = self.inside() else {
            return;
        };
        let mut found = vec![0xaa; len];
        let (file, ops) = (&self.file, &mut self.ops);
        let done = self
            .buffered
            .read(file, ops, &mut self.ahead, pos as u64, &mut found);
        assert_eq!(done.unwrap(), len, "operation {}", self.calls);
        self.compare(pos, &found, "read");
    }

    fn map_read(&mut self) {
        let Some((mut pos, mut len)) = self.inside() else {
            return;
        };
        while len > 0 {
            // A page that is not there is read first, as a fault would.
            let mut byte = [0];
            let (file, ops) = (&self.file, &mut self.ops);
            self.buffered
                .read(file, ops, &mut self.ahead, pos as u64, &mut byte)
                .unwrap();
            let Some(view) = self.file.view(self.buffered.tally(), pos as u64, len) else {
                return;
            };
            self.compare(pos, &view, "mapread");
            (pos, len) = (pos + view.len(), len - view.len());
        }
    }

    fn write_at(&mut self, mut pos: usize, mut data: &[u8]) {
        if self.good.len() < pos + data.len() {
            self.good.resize(pos + data.len(), 0);
        }
        self.good[pos..pos + data.len()].copy_from_slice(data);
        while !data.is_empty() {
            let (file, ops) = (&self.file, &mut self.ops);
            let written = self.buffered.write(file, ops, pos as u64, data).unwrap();
            (pos, data) = (pos + written.bytes, &data[written.bytes..]);
        }
    }

    fn write(&mut self) {
        let (pos, len) = self.anywhere();
        let data = self.data(pos, len);
        self.write_at(pos, &data);
    }

    fn map_write(&mut self) {
        let Some((mut pos, len)) = self.inside() else {
            return;
        };
        let data = self.data(pos, len);
        let mut rest = &data[..];
        while !rest.is_empty() {
            let view = self.file.view_mut(pos as u64, rest.len());
            let done = view.map(|mut view| {
                let len = view.len();
                view.copy_from_slice(&rest[..len]);
                len
            });
            // Where the filesystem must be asked first.
            let done = done.unwrap_or_else(|| {
                let len = rest.len().min(4096 - pos % 4096);
                self.write_at(pos, &rest[..len]);
                len
            });
            self.good[pos..pos + done].copy_from_slice(&rest[..done]);
            (pos, rest) = (pos + done, &rest[done..]);
        }
    }

    fn truncate(&mut self) {
        let size = self.rng.random_range(0..MOST_FILE);
        let shrinks = size < self.good.len();
        self.good.resize(size, 0);
        self.buffered
            .set_size(&self.file, &mut self.ops, size as u64)
            .unwrap();
        if shrinks {
            self.fs.truncate(0, size as u64);
        } else {
            self.fs.set_disk_size(0, size as u64);
        }
    }

    fn sync(&mut self) {
        let (file, ops) = (&self.file, &mut self.ops);
        self.buffered
            .sync(file, ops, 0..u64::MAX, &mut self.cursor)
            .unwrap();
    }

    fn close_and_open(&mut self) {
        self.sync();
        self.buffered.settle();
        self.file = FileCache::new(self.cache, self.good.len() as u64, 1024).unwrap();
        self.cursor = self.file.error_cursor();
        self.ops = self.fs.ops(0);
        self.ahead = ReadAhead::default();
    }

    fn operation(&mut self) {
        self.calls += 1;
        match self.rng.random_range(0..100) {
            0..25 => self.read(),
            25..45 => self.write(),
            45..65 => self.map_read(),
            65..85 => self.map_write(),
            85..93 => self.truncate(),
            93..96 => self.sync(),
            96..99 => {
                self.file.drop_clean(0..u64::MAX);
            }
            _ => self.close_and_open(),
        }
        let size = self.file.size_bytes();
        assert_eq!(size, self.good.len() as u64, "operation {}", self.calls);
        step();
    }
}

#[test]
fn fsx_finds_nothing() {
    let (runs, seed) = (number("XTENT_FSX_RUNS", 20_000), number("XTENT_SEED", 1));
    let _seed = Seed(seed);
    let _watchdog = Watchdog::new(format!("fsx, seed {seed}"));
    let machine = Machine::start(Medium::memory(8 << 20), 512, true);
    let metadata = Metadata {
        inodes: vec![Inode::default()],
        ..Metadata::default()
    };
    let fs = Fs::new(BLOCK_BYTES, 8 * 1024, metadata, seed);
    // About as large as the file may become: pages come and go.
    let config = CacheConfig {
        limit_bytes: 72 * 4340,
        ..CacheConfig::default()
    };
    let cache = Cache::new(&machine.memory.heap, config).unwrap();
    let file = FileCache::new(&cache, 0, 1024).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fsx = Fsx {
        original: (0..MOST_FILE).map(|_| rng.random()).collect(),
        rng,
        ops: fs.ops(0),
        fs,
        cache: &cache,
        cursor: file.error_cursor(),
        file,
        buffered: Buffered::new(machine.queue(), &cache),
        ahead: ReadAhead::default(),
        good: Vec::new(),
        calls: 0,
    };
    for _ in 0..runs {
        fsx.operation();
    }
    fsx.close_and_open();
    fsx.buffered.settle();
    println!("{runs} operations of fsx, seed {seed}: {:?}", cache.stats());
}

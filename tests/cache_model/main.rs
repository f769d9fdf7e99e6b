//! The page cache against a model: seeded mixed operations on a small cache over a filesystem that
//! hands out every kind of mapping, by 1 and by 4 threads, with power cuts.
//!
//! `XTENT_RUNS` is the number of operations of each test (20,000), `XTENT_SEED` the first seed (1).
//! A failure prints its seed; with one thread and without a flusher a run is reproducible.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code: a failure panics, sizes are its own"
)]

mod errors;
mod fs;
mod fsx;
mod model;
#[path = "../rig/mod.rs"]
mod rig;
mod watchdog;
mod worker;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fs::{Fs, Inode, Metadata};
use model::Model;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rig::Memory;
use watchdog::Watchdog;
use worker::{Shared, Worker};
use xtent::internals::cache::{Cache, CacheConfig, FileCache, Policy, Pressure};
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::iomap::buffered::Buffered;
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions};

const DEVICE_BYTES: u64 = 16 << 20;
/// Bytes of the file that all threads write to, each in stripes of its own.
const COMMON_BYTES: usize = 120_000;
/// Operations of a thread between two power cuts.
const ROUND: u64 = 2500;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect(name))
}

struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with XTENT_SEED={}", self.0);
        }
    }
}

/// The device between two power cuts.
struct Machine {
    device: Arc<EmuDevice>,
    controller: Arc<Controller>,
    memory: Memory,
}

impl Machine {
    fn start(medium: Medium, lba_bytes: u32, sgl: bool) -> Self {
        let memory = Memory::new();
        let device = EmuDevice::start(EmuConfig {
            medium,
            lba_bytes,
            volatile_write_cache: true,
            cache_model: true,
            sgl,
            mode: Mode::Inline,
            ..EmuConfig::default()
        })
        .unwrap();
        let controller =
            Controller::open(device.clone(), &memory.heap, ControllerOptions::default()).unwrap();
        Self {
            device,
            controller,
            memory,
        }
    }

    fn queue(&self) -> xtent::internals::nvme::QueuePair {
        let options = QueueOptions {
            depth: 16,
            max_segments: 16,
            ..QueueOptions::default()
        };
        self.controller.queue(1, options).unwrap()
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one story, told again after each power cut"
)]
fn campaign(seed: u64, threads: usize, background: bool, operations: u64) {
    let _seed = Seed(seed);
    let _watchdog = Watchdog::new(format!("{threads} threads, seed {seed}"));
    let mut rng = StdRng::seed_from_u64(seed);
    let block_bytes: u64 = [512, 1024, 4096][rng.random_range(0..3)];
    let lba_bytes = if block_bytes == 4096 && rng.random_bool(0.5) {
        4096
    } else {
        512
    };
    let sgl = rng.random_bool(0.5);
    let mut metadata = Metadata::default();
    let mut models = Vec::new();
    for _ in 0..threads {
        let inline: Vec<u8> = (0..rng.random_range(0..300))
            .map(|_| rng.random())
            .collect();
        metadata.inodes.push(Inode {
            disk_size: inline.len() as u64,
            inline: Some(inline.clone()),
            ..Inode::default()
        });
        models.push(Model::new(inline));
    }
    metadata.inodes.push(Inode {
        disk_size: COMMON_BYTES as u64,
        ..Inode::default()
    });
    // Each thread knows its own stripes of it.
    let mut common: Vec<_> = (0..threads)
        .map(|_| Model::new(vec![0; COMMON_BYTES]))
        .collect();
    let mut medium = Medium::memory(DEVICE_BYTES);
    let mut left = operations;
    while left > 0 {
        let round = ROUND.min(left.div_ceil(threads as u64));
        let machine = Machine::start(medium, lba_bytes, sgl);
        let fs = Fs::new(
            block_bytes,
            DEVICE_BYTES / block_bytes,
            metadata,
            rng.random(),
        );
        let pages = rng.random_range(80..400);
        let config = CacheConfig {
            limit_bytes: pages * 4340,
            policy: if rng.random_bool(0.5) {
                Policy::S3Fifo
            } else {
                Policy::Clock
            },
            background_percent: 20,
            hard_percent: 40,
            ..CacheConfig::default()
        };
        let cache = Cache::new(&machine.memory.heap, config).unwrap();
        let file = |ino: usize| {
            let size = fs.durable().inodes[ino].disk_size;
            FileCache::new(&cache, size, block_bytes as u32).unwrap()
        };
        let shared = Shared {
            files: (0..=threads).map(file).collect(),
            fs: Arc::clone(&fs),
            common_lock: Mutex::new(()),
            snapshots: Mutex::default(),
            threads,
        };
        recover(&machine, &shared, &mut models, &mut common, seed);
        std::thread::scope(|scope| {
            let mut workers = Vec::new();
            for (thread, (model, common)) in models.iter_mut().zip(&mut common).enumerate() {
                let (machine, shared) = (&machine, &shared);
                let rng = StdRng::seed_from_u64(rng.random());
                workers.push(scope.spawn(move || {
                    let _seed = Seed(seed);
                    let mut worker = Worker::new(thread, machine, shared, rng, model, common);
                    for _ in 0..round {
                        worker.step();
                        watchdog::step();
                    }
                    worker.end();
                }));
            }
            let _seed = Seed(seed);
            let works = || workers.iter().any(|worker| !worker.is_finished());
            if background {
                write_back_while(works, &machine, &shared);
            }
        });
        check_snapshots(&machine, &shared);
        if rng.random_bool(0.5) {
            write_all_out(&machine, &shared);
        }
        assert!(cache.stats().used_pages <= cache.pages());
        left = left.saturating_sub(round * threads as u64);
        metadata = fs.durable().recovered();
        metadata.shared.clear();
        drop(shared);
        let left_behind = (cache.stats().leaves, cache.stats().used_pages);
        assert_eq!(left_behind, (0, 0), "pages are left behind");
        drop(cache);
        medium = machine.device.power_cut(rng.random()).unwrap();
    }
}

/// Reads every file as it is found, and compares it with what it may be.
fn recover(
    machine: &Machine,
    shared: &Shared,
    models: &mut [Model],
    common: &mut [Model],
    seed: u64,
) {
    let rng = StdRng::seed_from_u64(seed);
    let mut none = Model::default();
    let mut unused = Model::default();
    let mut worker = Worker::new(0, machine, shared, rng, &mut none, &mut unused);
    for (ino, model) in models.iter_mut().enumerate() {
        let found = worker.whole(ino);
        if let Some(wrong) = model.recovered(&found) {
            panic!("file {ino} after a power cut: {wrong}");
        }
        *model = Model::new(found);
    }
    let found = worker.whole(models.len());
    let threads = common.len();
    for (thread, model) in common.iter_mut().enumerate() {
        let mut mine = vec![0; COMMON_BYTES];
        for (at, value) in mine.iter_mut().enumerate() {
            if worker::stripe_owner(at, threads) == thread {
                *value = found[at];
            }
        }
        if let Some(wrong) = model.recovered(&mine) {
            panic!("the common file, thread {thread}, after a power cut: {wrong}");
        }
        *model = Model::new(mine);
    }
    worker.end();
}

/// Writes files back beside those who work on them, when much is dirty, and now and then all.
fn write_back_while(works: impl Fn() -> bool, machine: &Machine, shared: &Shared) {
    let cache = shared.files[0].cache();
    let mut buffered = Buffered::new(machine.queue(), cache);
    let mut ops: Vec<_> = (0..shared.files.len())
        .map(|ino| shared.fs.ops(ino))
        .collect();
    cache.set_background(true);
    let mut round = 0_u32;
    while works() {
        round += 1;
        let mut wrote = 0;
        for (ino, file) in shared.files.iter().enumerate() {
            if round.is_multiple_of(16) || cache.pressure() >= Pressure::Background {
                let written = buffered.write_out(file, &mut ops[ino], 0..u64::MAX, usize::MAX);
                wrote += written.unwrap();
            }
        }
        cache.count_background(wrote);
        if wrote == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    cache.set_background(false);
}

/// Nothing is left dirty, nor counted as such, when everything is written back.
fn write_all_out(machine: &Machine, shared: &Shared) {
    let cache = shared.files[0].cache();
    let mut buffered = Buffered::new(machine.queue(), cache);
    for (ino, file) in shared.files.iter().enumerate() {
        let mut ops = shared.fs.ops(ino);
        buffered
            .write_out(file, &mut ops, 0..u64::MAX, usize::MAX)
            .unwrap();
    }
    assert_eq!(cache.stats().dirty_pages, 0);
}

/// Blocks that a snapshot shares were not overwritten.
fn check_snapshots(machine: &Machine, shared: &Shared) {
    let expected = shared.snapshots.lock().unwrap();
    let mut direct = worker::Direct::new(machine, shared.fs.block_bytes);
    for at in shared
        .fs
        .snapshots()
        .iter()
        .flat_map(|snapshot| snapshot.values())
    {
        let found = direct.read(*at);
        assert!(
            found == expected[at],
            "block {at} of a snapshot was overwritten"
        );
    }
}

fn campaigns(threads: usize, background: impl Fn(u64) -> bool) {
    let operations = number("XTENT_RUNS", 20_000);
    let seed = number("XTENT_SEED", 1);
    for round in 0..4 {
        campaign(seed + round, threads, background(round), operations / 4);
    }
}

#[test]
fn one_thread() {
    campaigns(1, |_| false);
}

#[test]
fn one_thread_and_writing_back_in_the_background() {
    campaigns(1, |_| true);
}

#[test]
fn four_threads() {
    campaigns(4, |round| round % 2 == 1);
}

//! The page cache's limit of memory, kept: twenty times the limit is written through it, while the
//! allocator's own count, and what the kernel counts of the process, hugepages included, are looked
//! at.
//!
//! A test of its own process: what it measures is the process.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    dead_code,
    reason = "test code: a failure panics, sizes are its own; it uses a part of the filesystem"
)]

#[path = "../cache_model/fs.rs"]
mod fs;

use fs::{Fs, Inode, Metadata};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::cache::{Cache, CacheConfig, FileCache};
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::iomap::buffered::Buffered;
use xtent::internals::mem::{Heap, HeapConfig, HugePages};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions, QueuePair};

const LIMIT: usize = 8 << 20;
const FILE: usize = 24 << 20;
const DEVICE: u64 = 32 << 20;
/// What may come on top of the limit: rounding to arenas of 2 MiB, what the test filesystem knows
/// of 6,000 blocks, what the process's own allocator keeps.
const SLACK: usize = 4 << 20;

/// Bytes that are resident, hugepages included.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.map_or(0, |kib| kib.parse::<usize>().unwrap() * 1024)
    };
    field("VmRSS:") + field("HugetlbPages:")
}

fn write_all(
    buffered: &mut Buffered<QueuePair>,
    fs: &std::sync::Arc<Fs>,
    file: &FileCache,
    bytes: usize,
    mut look: impl FnMut(),
) {
    let mut rng = StdRng::seed_from_u64(3);
    let mut ops = fs.ops(0);
    let data = vec![0x5a; 300_000];
    let mut done = 0;
    while done < bytes {
        let len = rng.random_range(1..data.len());
        let pos = rng.random_range(0..FILE - len);
        let mut at = 0;
        while at < len {
            let part = &data[at..len];
            let written = buffered.write(file, &mut ops, (pos + at) as u64, part);
            at += written.unwrap().bytes;
        }
        done += len;
        look();
    }
    let mut cursor = file.error_cursor();
    buffered
        .sync(file, &mut ops, 0..u64::MAX, &mut cursor)
        .unwrap();
    buffered.settle();
}

#[test]
fn twenty_times_the_limit_is_written_in_the_limit() {
    // On disk: what a device holds is not the cache's.
    let medium = tempfile::tempfile().unwrap();
    medium.set_len(DEVICE).unwrap();
    let heap = Heap::new(HeapConfig {
        arena_bytes: 2 << 20,
        huge_pages: HugePages::IfFree,
        ..HeapConfig::default()
    });
    let device = EmuDevice::start(EmuConfig {
        medium: Medium::file(medium, false).unwrap(),
        lba_bytes: 4096,
        mode: Mode::Inline,
        ..EmuConfig::default()
    })
    .unwrap();
    let controller = Controller::open(device, &heap, ControllerOptions::default()).unwrap();
    let metadata = Metadata {
        inodes: vec![Inode::default()],
        ..Metadata::default()
    };
    let fs = Fs::new(4096, DEVICE / 4096, metadata, 1);
    let queue = || controller.queue(1, QueueOptions::default()).unwrap();
    let cache = |limit_bytes| {
        let config = CacheConfig {
            limit_bytes,
            ..CacheConfig::default()
        };
        Cache::new(&heap, config).unwrap()
    };
    // A small one first, so that one-time allocations are made before.
    {
        let small = cache(1 << 20);
        let file = FileCache::new(&small, 0, 4096).unwrap();
        let mut buffered = Buffered::new(queue(), &small);
        write_all(&mut buffered, &fs, &file, 4 << 20, || {});
    }
    let (resident_before, used_before) = (resident(), heap.used_bytes());
    let cache = cache(LIMIT);
    let file = FileCache::new(&cache, FILE as u64, 4096).unwrap();
    let mut buffered = Buffered::new(queue(), &cache);
    let (mut most, mut most_used) = (0, 0);
    write_all(&mut buffered, &fs, &file, 20 * LIMIT, || {
        let used = heap.used_bytes().saturating_sub(used_before);
        most_used = most_used.max(used);
        assert!(used <= LIMIT + (1 << 20), "{used} bytes of DMA memory");
        let more = resident().saturating_sub(resident_before);
        most = most.max(more);
        assert!(more <= LIMIT + SLACK, "{more} bytes resident");
        assert!(cache.stats().used_pages <= cache.pages());
    });
    println!(
        "limit {LIMIT}: at most {most} bytes more resident, {most_used} bytes of DMA memory, {:?}",
        heap.backing()
    );
    assert!(most > LIMIT / 2, "it measures something");
}

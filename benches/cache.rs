//! What a hit costs: `cargo bench --bench cache` prints a line for each case,
//! `NAME ours_ns kernel_ns copy_ns`, for one operation. `cargo bench --bench cache -- NAME..` runs
//! the cases whose names begin so.
//!
//! Side by side in one run: the cache, the kernel's page cache (plain `pread` and `pwrite` on an
//! xfs on a loop mount), and the physical limit, a bare copy of the same pattern out of hugepages.
//! The three take turns; each figure is the median of five. Sets of 512 MiB and of 8 MiB, all of it
//! cached. With two threads a figure is the time that passed, divided by the operations of both;
//! where both overwrite one file, both do so bare, too, with a lock for each page. A view reads the
//! first byte of what it lends, and where the next one is depends on that byte; beside it stands a
//! bare read of such bytes: what a cache miss takes when it is waited for.
//!
//! Needs root, mkfs.xfs, 600 MiB of disk and 530 free hugepages; the kernel's column is 0 without
//! the first three.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark ends at what goes wrong; sizes are its own"
)]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::internals::cache::{Cache, CacheConfig, FileCache, Tally};
use xtent::internals::mem::{DmaBuf, Heap, HeapConfig, HugePages};
use xtent::internals::sys::{LoopDevice, LoopOptions, XfsMount, is_root, private_mounts};

const LARGE: usize = 512 << 20;
const SMALL: usize = 8 << 20;
const ROUNDS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
    View,
}

struct Case {
    name: &'static str,
    way: Way,
    set_bytes: usize,
    len: usize,
    sequential: bool,
    threads: usize,
    /// Two threads on one file.
    same_file: bool,
}

const fn case(name: &'static str, way: Way, set_bytes: usize, len: usize) -> Case {
    Case {
        name,
        way,
        set_bytes,
        len,
        sequential: len >= 1 << 20,
        threads: 1,
        same_file: true,
    }
}

const fn pair(name: &'static str, way: Way, set_bytes: usize, same_file: bool) -> Case {
    Case {
        threads: 2,
        same_file,
        ..case(name, way, set_bytes, 4096)
    }
}

const CASES: &[Case] = &[
    case("read_4k_512m", Way::Read, LARGE, 4096),
    case("read_4k_8m", Way::Read, SMALL, 4096),
    case("write_4k_512m", Way::Write, LARGE, 4096),
    case("write_4k_8m", Way::Write, SMALL, 4096),
    case("read_64_512m", Way::Read, LARGE, 64),
    case("read_64_8m", Way::Read, SMALL, 64),
    case("view_4k_512m", Way::View, LARGE, 4096),
    case("view_4k_8m", Way::View, SMALL, 4096),
    case("read_1m_sequential", Way::Read, LARGE, 1 << 20),
    case("write_1m_sequential", Way::Write, LARGE, 1 << 20),
    pair("read_4k_8m_two_files", Way::Read, SMALL, false),
    pair("read_4k_8m_same_file", Way::Read, SMALL, true),
    pair("read_4k_512m_same_file", Way::Read, LARGE, true),
    pair("write_4k_512m_same_file", Way::Write, LARGE, true),
    pair("write_4k_8m_two_files", Way::Write, SMALL, false),
    pair("write_4k_8m_same_file", Way::Write, SMALL, true),
];

/// What each side has of a set.
struct Sides {
    ours: [FileCache; 2],
    kernel: Option<[File; 2]>,
    bare: DmaBuf,
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if !names.iter().any(|name| name == "--bench") {
        println!("SKIPPED: timings need an optimised build; run `cargo bench --bench cache`");
        return;
    }
    names.retain(|name| !name.starts_with('-'));
    let heap = Heap::new(HeapConfig {
        huge_pages: HugePages::IfFree,
        ..HeapConfig::default()
    });
    let config = CacheConfig {
        limit_bytes: (LARGE + SMALL) / 16 * 17,
        ..CacheConfig::default()
    };
    let cache = Cache::new(&heap, config).unwrap();
    let bare = heap.alloc(LARGE, 2 << 20).unwrap();
    println!("# memory: {:?}", heap.backing());
    let size = (LARGE / 2) as u64;
    let ours = [(); 2].map(|()| FileCache::new(&cache, LARGE as u64, 4096).unwrap());
    let fill = vec![7; 4096];
    for page in 0..LARGE / 4096 {
        assert_eq!(ours[0].write_new((page * 4096) as u64, &fill), Some(true));
    }
    for page in 0..SMALL / 4096 {
        assert_eq!(ours[1].write_new((page * 4096) as u64, &fill), Some(true));
    }
    let scratch = tempfile::tempdir().unwrap();
    let mount = kernel_side(scratch.path());
    let kernel = mount.as_ref().map(|mount| {
        ["a", "b"].map(|name| {
            let path = mount.dir().join(name);
            let file = File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(path)
                .unwrap();
            let len = if name == "a" { 2 * size } else { SMALL as u64 };
            for at in (0..len).step_by(1 << 20) {
                file.write_all_at(&vec![7; 1 << 20], at).unwrap();
            }
            file.sync_all().unwrap();
            file
        })
    });
    let mut sides = Sides { ours, kernel, bare };
    for case in CASES {
        if names.is_empty()
            || names
                .iter()
                .any(|name| case.name.starts_with(name.as_str()))
        {
            let [ours, kernel, copy] = measure(case, &mut sides);
            println!("{} {ours:.0} {kernel:.0} {copy:.0}", case.name);
        }
    }
}

/// An xfs on a loop mount, where that can be had.
fn kernel_side(dir: &Path) -> Option<XfsMount> {
    if !is_root() {
        return None;
    }
    private_mounts().ok()?;
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(2 << 30).unwrap();
    let made = Command::new("mkfs.xfs").arg("-q").arg(&image).status();
    if !made.is_ok_and(|status| status.success()) {
        return None;
    }
    let options = LoopOptions {
        sector_bytes: 512,
        direct_io: false,
    };
    XfsMount::new(LoopDevice::attach(&image, options).ok()?, dir).ok()
}

/// Nanoseconds for one operation of ours, of the kernel's, and bare.
fn measure(case: &Case, sides: &mut Sides) -> [f64; 3] {
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS as u64 {
        let offsets: Vec<_> = (0..case.threads as u64)
            .map(|thread| offsets(case, 2 * round + thread))
            .collect();
        let ours = &sides.ours;
        let second = |thread: usize| if case.same_file { 0 } else { thread };
        let mine = timed(case, &offsets, |thread, buf, at, tally| {
            ours_once(case, &ours[second(thread)], buf, at, tally)
        });
        let kernel = sides.kernel.as_ref().map_or(0.0, |files| {
            timed(case, &offsets, |thread, buf, at, _| {
                kernel_once(case, &files[second(thread)], buf, at)
            })
        });
        let bare = if case.way == Way::Write && case.threads == 2 && case.same_file {
            bare_writes_to_same(case, &offsets, &mut sides.bare[..case.set_bytes])
        } else if case.way == Way::Write {
            // Two threads that write to two files get a half each.
            let halves = if case.threads == 2 { 2 } else { 1 };
            let part = case.set_bytes / halves;
            let mut parts: Vec<&mut [u8]> = sides.bare[..case.set_bytes].chunks_mut(part).collect();
            bare_writes(case, &offsets, &mut parts)
        } else {
            let memory = &sides.bare[..];
            timed(case, &offsets, |_, buf, at, _| {
                bare_once(case, memory, buf, at)
            })
        };
        // The first round warms up.
        if round > 0 {
            for (times, time) in times.iter_mut().zip([mine, kernel, bare]) {
                times.push(time);
            }
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn offsets(case: &Case, seed: u64) -> Vec<u64> {
    let places = (case.set_bytes / case.len) as u64;
    let count = if case.sequential {
        places as usize
    } else {
        200_000
    };
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..count as u64)
        .map(|n| {
            let place = if case.sequential {
                n
            } else {
                rng.random_range(0..places)
            };
            place * case.len as u64
        })
        .collect()
}

/// Runs `once` for every offset, in each thread for its own, and says how long one took.
fn timed(
    case: &Case,
    offsets: &[Vec<u64>],
    once: impl Fn(usize, &mut [u8], u64, &mut Tally) -> u8 + Sync,
) -> f64 {
    let barrier = Barrier::new(case.threads);
    let longest = std::thread::scope(|scope| {
        let workers: Vec<_> = offsets
            .iter()
            .enumerate()
            .map(|(thread, offsets)| {
                let (once, barrier) = (&once, &barrier);
                scope.spawn(move || {
                    let mut buf = vec![1; case.len];
                    let mut tally = Tally::default();
                    barrier.wait();
                    let start = Instant::now();
                    // Of all bytes of the files the highest bit is 0; the processor does not know.
                    let mut before = 0;
                    for at in offsets {
                        let at = at + u64::from(before & 0x80);
                        before = once(thread, &mut buf, at, &mut tally);
                    }
                    start.elapsed().as_nanos() as f64
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .fold(0.0, f64::max)
    });
    longest / (offsets[0].len() * case.threads) as f64
}

/// Something that depends on what was read, where that is to be waited for.
fn ours_once(case: &Case, file: &FileCache, buf: &mut [u8], at: u64, tally: &mut Tally) -> u8 {
    match case.way {
        Way::Read => assert_eq!(file.read_hit(tally, at, buf), case.len),
        Way::Write => assert_eq!(file.write_hit(tally, at, buf), case.len),
        Way::View => {
            return file.view(tally, at, case.len).unwrap()[0];
        }
    }
    0
}

fn kernel_once(case: &Case, file: &File, buf: &mut [u8], at: u64) -> u8 {
    let done = match case.way {
        Way::Write => file.write_at(buf, at),
        Way::Read | Way::View => file.read_at(buf, at),
    };
    assert_eq!(done.unwrap(), case.len);
    0
}

fn bare_once(case: &Case, memory: &[u8], buf: &mut [u8], at: u64) -> u8 {
    let at = at as usize;
    if case.way == Way::View {
        return memory[at];
    }
    buf.copy_from_slice(&memory[at..at + case.len]);
    black_box(buf);
    0
}

/// Both threads write to all of the memory, each page behind a lock of its own.
fn bare_writes_to_same(case: &Case, offsets: &[Vec<u64>], memory: &mut [u8]) -> f64 {
    let pages: Vec<_> = memory.chunks_mut(case.len).map(Mutex::new).collect();
    timed(case, offsets, |_, buf, at, _| {
        let mut page = pages[at as usize / case.len].lock().unwrap();
        page.copy_from_slice(black_box(buf));
        0
    })
}

fn bare_writes(case: &Case, offsets: &[Vec<u64>], parts: &mut [&mut [u8]]) -> f64 {
    let barrier = Barrier::new(case.threads);
    let longest = std::thread::scope(|scope| {
        let workers: Vec<_> = offsets
            .iter()
            .zip(parts.iter_mut())
            .map(|(offsets, part)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let buf = vec![1; case.len];
                    let mask = part.len() - 1;
                    barrier.wait();
                    let start = Instant::now();
                    for at in offsets {
                        let at = *at as usize & mask;
                        part[at..at + case.len].copy_from_slice(black_box(&buf));
                    }
                    start.elapsed().as_nanos() as f64
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .fold(0.0, f64::max)
    });
    longest / (offsets[0].len() * case.threads) as f64
}

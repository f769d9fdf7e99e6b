//! Sectors that the disk cannot read or write: exactly the operations that touch them fail, all
//! others succeed, and nothing is lost.
//!
//! `XTENT_ERRORS`: pairs `GOOD=BAD` of controllers of one disk; the kernel has the good one,
//! vfio-pci the bad one, which fails at the 512-byte sectors of `XTENT_BAD_READS` and
//! `XTENT_BAD_WRITES`. They lie in the [`ZONE`].

#[path = "../common/sys.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "shared with other tests; only some of its calls are needed here"
)]
mod sys;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::block::{Op, Queue, Status};
use xtent::internals::mem::HeapConfig;
use xtent::internals::nvme::{Controller, QueueOptions};
use xtent::target::TargetOptions;
use xtent::volume::{Done, Io, MountOptions, OpenOptions, Volume};

use super::rig::{self, Mounted, alone, chain, disk_of, open, run, seed, told, told_pairs};
use super::window::Memory;

/// The range that is read and written, in bytes of the disk.
const ZONE: Range<u64> = 40 << 20..42 << 20;
/// Operations go on at the same time, each in a lane of its own.
const LANES: usize = 16;
const LANE_BYTES: usize = 128 << 10;
const OPERATIONS: u64 = 1500;

/// What the blocks of the zone may hold, and which of them are bad.
struct Zone {
    block_bytes: usize,
    /// One tag if certain; several after failed writes.
    blocks: Vec<Vec<u64>>,
    bad_reads: Vec<bool>,
    bad_writes: Vec<bool>,
}

impl Zone {
    fn new(block_bytes: usize) -> Self {
        let count = usize::try_from(ZONE.end - ZONE.start).unwrap() / block_bytes;
        let bad = |variable| {
            let mut bad = vec![false; count];
            for sector in told(variable).unwrap() {
                let byte = sector.parse::<u64>().unwrap() * 512 - ZONE.start;
                bad[usize::try_from(byte).unwrap() / block_bytes] = true;
            }
            bad
        };
        Self {
            block_bytes,
            blocks: vec![vec![1]; count],
            bad_reads: bad("XTENT_BAD_READS"),
            bad_writes: bad("XTENT_BAD_WRITES"),
        }
    }

    fn content(&self, range: Range<usize>, tag: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for at in range {
            bytes.extend(
                (tag << 20 | at as u64)
                    .to_le_bytes()
                    .repeat(self.block_bytes / 8),
            );
        }
        bytes
    }

    /// How far an operation can get at most, in blocks; all of it when it touches no bad one.
    fn reach(&self, read: bool, range: Range<usize>) -> usize {
        let bad = if read {
            &self.bad_reads
        } else {
            &self.bad_writes
        };
        let len = range.len();
        bad[range].iter().position(|&bad| bad).unwrap_or(len)
    }

    /// A write of the tag ended: its first `done` blocks are written, the others may be.
    fn written(&mut self, range: Range<usize>, tag: u64, done: usize) {
        for (at, block) in self.blocks[range].iter_mut().enumerate() {
            if at < done {
                block.clear();
            }
            block.push(tag);
        }
    }

    /// What was read from block `first` on is what may be there.
    fn check(&mut self, first: usize, bytes: &[u8], seed: u64) {
        for (n, found) in bytes.chunks(self.block_bytes).enumerate() {
            let at = first + n;
            let is = |tag: u64| {
                let word = (tag << 20 | at as u64).to_le_bytes();
                found.chunks(8).all(|bytes| bytes == word)
            };
            let tag = self.blocks[at].iter().copied().find(|&tag| is(tag));
            let Some(tag) = tag else {
                let begin = &found[..16];
                panic!(
                    "seed {seed}: block {at} begins with {begin:02x?}; allowed are {:?}",
                    self.blocks[at]
                );
            };
            self.blocks[at] = vec![tag];
        }
    }

    /// The kernel's view of the whole zone, by the good controller.
    fn check_all(&mut self, file: &File, from: u64, seed: u64) {
        let mut bytes = vec![0; self.blocks.len() * self.block_bytes];
        file.read_exact_at(&mut bytes, from).unwrap();
        self.check(0, &bytes, seed);
    }

    /// A range of blocks inside of a lane.
    fn pick(&self, rng: &mut SmallRng, lane: usize) -> Range<usize> {
        let lane_blocks = LANE_BYTES / self.block_bytes;
        let lane = lane * lane_blocks..(lane + 1) * lane_blocks;
        let bad = |at: &usize| self.bad_reads[*at] || self.bad_writes[*at];
        if rng.random_range(0..3) == 0
            && let Some(bad) = lane.clone().find(bad)
        {
            // That one, or a neighbour.
            let at = (bad + rng.random_range(0..3)).clamp(lane.start + 1, lane.end) - 1;
            return at..at + 1;
        }
        let len = rng.random_range(1..=lane_blocks);
        let first = lane.start + rng.random_range(0..=lane_blocks - len);
        first..first + len
    }
}

/// What flies in a lane.
struct Flight {
    read: bool,
    range: Range<usize>,
    tag: u64,
}

/// Operations that failed, as they had to.
#[derive(Default)]
struct Tally {
    reads: u64,
    writes: u64,
}

impl Tally {
    fn note(&mut self, flight: &Flight, failed: bool) {
        let count = if flight.read {
            &mut self.reads
        } else {
            &mut self.writes
        };
        *count += u64::from(failed);
    }

    fn check(&self) {
        let Self { reads, writes } = self;
        println!("of {OPERATIONS} operations {reads} reads and {writes} writes failed");
        assert!(*reads > 10 && *writes > 10, "too few touched bad sectors");
    }
}

impl Zone {
    /// Takes the end of a chain; whether it failed, as it had to.
    fn settle_raw(
        &mut self,
        flight: &Flight,
        status: Status,
        bytes: impl Fn() -> Vec<u8>,
        seed: u64,
    ) -> bool {
        let Flight { read, range, tag } = flight;
        let whole = self.reach(*read, range.clone()) == range.len();
        let expected = if whole {
            Status::Success
        } else {
            failure(*read)
        };
        assert_eq!(status, expected, "seed {seed}: {range:?}");
        if !read {
            let done = if whole { range.len() } else { 0 };
            self.written(range.clone(), *tag, done);
        } else if whole {
            self.check(range.start, &bytes(), seed);
        }
        !whole
    }

    /// Takes the end of a file operation; whether it failed, as it had to. It may have got as far
    /// as the first bad block.
    fn settle(&mut self, flight: &Flight, done: &Done, seed: u64) -> bool {
        let Flight { read, range, tag } = flight;
        let reach = self.reach(*read, range.clone());
        let whole = reach == range.len();
        let bytes = match &done.result {
            Ok(bytes) => *bytes,
            Err(error) => {
                assert!(!whole, "seed {seed}: {range:?}: {error}");
                assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                let sc = if *read { "0x81" } else { "0x80" };
                for word in ["/data", "status code type 0x2", sc] {
                    assert!(error.to_string().contains(word), "{error}");
                }
                usize::try_from(error.bytes_done().unwrap()).unwrap()
            }
        };
        assert!(
            bytes <= reach * self.block_bytes && (bytes == range.len() * self.block_bytes) == whole,
            "seed {seed}: {range:?}: {bytes} bytes, {reach} blocks can be reached"
        );
        if *read {
            self.check(range.start, &done.buf[..bytes], seed);
        } else {
            self.written(range.clone(), *tag, bytes / self.block_bytes);
        }
        !whole
    }
}

fn failure(read: bool) -> Status {
    let sc = if read { 0x81 } else { 0x80 };
    Status::Device { sct: 2, sc }
}

fn raw(good: &str, bad: &str, seed: u64) {
    let disk = disk_of(good);
    let device = open(bad);
    let memory = Memory::new();
    let controller = rig::controller(&device, &memory.heap, std::time::Duration::from_secs(10));
    let options = QueueOptions {
        depth: LANES,
        ..QueueOptions::default()
    };
    let mut pair = Controller::queue(&controller, 1, options).unwrap();
    let block_bytes = pair.limits().block_bytes as usize;
    let mut zone = Zone::new(block_bytes);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&zone.content(0..zone.blocks.len(), 1), ZONE.start)
        .unwrap();
    file.sync_all().unwrap();
    drop(file);

    let mut rng = SmallRng::seed_from_u64(seed);
    let lent: Vec<_> = (0..LANES).map(|_| memory.lend(LANE_BYTES)).collect();
    let mut flights: Vec<Option<Flight>> = (0..LANES).map(|_| None).collect();
    let (mut submitted, mut tally) = (0, Tally::default());
    while submitted < OPERATIONS || pair.outstanding() > 0 {
        for (lane, flight) in flights.iter_mut().enumerate() {
            if flight.is_some() || submitted == OPERATIONS {
                continue;
            }
            submitted += 1;
            let range = zone.pick(&mut rng, lane);
            let (read, tag) = (rng.random(), submitted + 1);
            let segments = [lent[lane].segment(0..range.len() * block_bytes).unwrap()];
            let op = if read { Op::Read } else { Op::Write };
            if !read {
                memory.fill(&segments, &zone.content(range.clone(), tag));
            }
            let lba = ZONE.start / block_bytes as u64 + range.start as u64;
            let chain = chain(op, lba, range.len() as u64, &segments, lane as u64);
            pair.submit(&chain).unwrap();
            *flight = Some(Flight { read, range, tag });
        }
        pair.poll(LANES, &mut |completion| {
            let lane = usize::try_from(completion.token).unwrap();
            let flight = flights[lane].take().expect("ends once");
            let segment = || lent[lane].segment(0..flight.range.len() * block_bytes);
            let bytes = || memory.bytes(&[segment().unwrap()]);
            tally.note(
                &flight,
                zone.settle_raw(&flight, completion.status, bytes, seed),
            );
        });
        pair.relax();
    }
    tally.check();
    let stats = controller.stats();
    let unrest = (stats.resets, stats.timeouts, stats.stale_completions);
    assert_eq!(unrest, (0, 0, 0), "{stats:?}");
    run("blockdev", &["--flushbufs", &disk]);
    zone.check_all(&File::open(&disk).unwrap(), ZONE.start, seed);
}

#[test]
fn raw_operations_fail_where_the_disk_does() {
    let Some(pairs) = told_pairs("XTENT_ERRORS") else {
        return;
    };
    let (_alone, seed) = (alone(), seed());
    for (good, bad) in &pairs {
        raw(good, bad, seed);
    }
}

/// Makes a filesystem with one file that has the zone; the byte in the file where that begins.
fn make_file(disk: &str, content: &[u8]) -> u64 {
    run(
        "mkfs.xfs",
        &["-q", "-f", "-d", "agcount=1", "-l", "size=16m", disk],
    );
    let mount = Mounted::new(disk, "defaults");
    let file = File::create_new(mount.path().join("data")).unwrap();
    // Nearly all of the disk, so that the zone is in it; only the zone is written.
    sys::fallocate(&file, 0, 0, 128 << 20).unwrap();
    let extents = sys::fiemap(&file).unwrap();
    let inside = |e: &&sys::FiemapExtent| {
        e.physical <= ZONE.start && ZONE.end + (1 << 20) <= e.physical + e.length
    };
    let extent = extents
        .iter()
        .find(inside)
        .expect("the zone is in the file");
    let from = extent.logical + ZONE.start - extent.physical;
    file.write_all_at(content, from).unwrap();
    file.sync_all().unwrap();
    let written = sys::fiemap(&file).unwrap();
    assert!(
        written
            .iter()
            .any(|e| e.physical == ZONE.start && e.logical == from),
        "{written:?}"
    );
    from
}

fn through_a_file(good: &str, bad: &str, seed: u64) {
    let disk = disk_of(good);
    let options = TargetOptions::new()
        .queue_depth(u32::try_from(LANES).unwrap())
        .memory_limit_bytes(HeapConfig::default().arena_bytes);
    let block_bytes = fs::read_to_string(format!(
        "/sys/block/{}/queue/logical_block_size",
        disk.trim_start_matches("/dev/")
    ));
    let mut zone = Zone::new(block_bytes.unwrap().trim().parse().unwrap());
    let from = make_file(&disk, &zone.content(0..zone.blocks.len(), 1));

    let volume = Volume::open_with(&format!("pci:{bad}"), &options, &MountOptions::new()).unwrap();
    let mut io = volume.io().unwrap();
    assert_eq!(io.block_bytes() as usize, zone.block_bytes);
    mixed(&volume, &mut io, &mut zone, from, seed);
    drop((io, volume));

    {
        let mount = Mounted::new(&disk, "ro");
        let file = File::open(mount.path().join("data")).unwrap();
        zone.check_all(&file, from, seed);
    }
    // It has only one allocation group, which is worth a warning otherwise.
    run("xfs_repair", &["-n", "-o", "force_geometry", &disk]);
}

fn mixed(volume: &Volume, io: &mut Io, zone: &mut Zone, from: u64, seed: u64) {
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(volume, io, "/data").unwrap();
    let block_bytes = zone.block_bytes;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut flights: Vec<Option<Flight>> = (0..LANES).map(|_| None).collect();
    let (mut submitted, mut tally) = (0, Tally::default());
    while submitted < OPERATIONS || io.outstanding() > 0 {
        for (lane, flight) in flights.iter_mut().enumerate() {
            if flight.is_some() || submitted == OPERATIONS {
                continue;
            }
            submitted += 1;
            let range = zone.pick(&mut rng, lane);
            let (read, tag) = (rng.random(), submitted + 1);
            let mut buf = io.alloc(range.len() * block_bytes).unwrap();
            let offset = from + (range.start * block_bytes) as u64;
            if read {
                io.submit_read(&file, offset, buf, lane as u64).unwrap();
            } else {
                buf.copy_from_slice(&zone.content(range.clone(), tag));
                io.submit_write(&file, offset, buf, lane as u64).unwrap();
            }
            *flight = Some(Flight { read, range, tag });
        }
        io.poll(LANES, |done| {
            let lane = usize::try_from(done.user_data).unwrap();
            let flight = flights[lane].take().expect("ends once");
            tally.note(&flight, zone.settle(&flight, &done, seed));
        });
        io.relax();
    }
    tally.check();
    // The range behind the zone was never written: a read continues into it.
    let mut buf = io.alloc(64 << 10).unwrap();
    let offset = from + (ZONE.end - ZONE.start) - 4096;
    assert_eq!(file.read_dma_at(io, &mut buf, offset).unwrap(), 64 << 10);
    zone.check(zone.blocks.len() - 4096 / block_bytes, &buf[..4096], seed);
    assert!(buf[4096..].iter().all(|&byte| byte == 0));
}

#[test]
fn file_operations_fail_where_the_disk_does() {
    let Some(pairs) = told_pairs("XTENT_ERRORS") else {
        return;
    };
    let (_alone, seed) = (alone(), seed());
    for (good, bad) in &pairs {
        through_a_file(good, bad, seed);
    }
}

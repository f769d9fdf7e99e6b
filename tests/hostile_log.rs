//! Dirty logs with broken records whose checksums are right: replaying them is an error or works,
//! in bounded time, without a panic, and an error leaves the disk as it was.
//!
//! `XTENT_RUNS` (400) logs are broken, from `XTENT_SEED`. A failure prints the seed of its log.

#![expect(
    clippy::unwrap_used,
    reason = "test code: a failure panics, sizes are its own"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::changed::ChangedImage;
use common::image::Image;
use common::{kernel_is_here, number, run};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::dir::DirCursor;
use xtent::internals::xfs::{Fs, FsOptions, Ino, InodeType, MetaIo, Recovery};

const BB: usize = 512;
/// Processor time of one replay and a walk.
const MOST_NANOSECONDS: u64 = 5_000_000_000;
/// Memory for what a replay changes: all of it fits many times.
const REPLAY_BYTES: u64 = 64 << 20;

/// An image with changed blocks.
struct Disk<'a> {
    image: ChangedImage<'a>,
    writes: u32,
}

impl MetaIo for Disk<'_> {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.image.read(addr, buf)
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        self.image.write(addr, buf, |_, _| {});
        self.writes += 1;
        Ok(())
    }

    fn flush(&mut self) -> xtent::Result<()> {
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.image.base.len() as u64
    }
}

/// A record of the log: where it begins on the disk, and its blocks of headers and payload.
#[derive(Debug, Clone, Copy)]
struct Record {
    addr: usize,
    headers: usize,
    payload: usize,
}

/// A dirty image, with records of its log in the order of the disk.
struct Subject {
    base: Vec<u8>,
    records: Vec<Record>,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Subject {
    fn new(mkfs_args: &[&str]) -> Self {
        let image = Image::make(128 << 20, 512, mkfs_args);
        let mount = image.mount("logbsize=32k");
        let root = mount.path();
        for round in 0..6 {
            for file in 0..60 {
                let dir = root.join(format!("d{}", file % 5));
                fs::create_dir_all(&dir).unwrap();
                let path = dir.join(format!("{round}-{file}"));
                fs::write(&path, vec![7; file * 90]).unwrap();
                if file % 3 == 0 {
                    fs::remove_file(&path).unwrap();
                }
            }
            std::os::unix::fs::symlink("t".repeat(800), root.join(format!("s{round}"))).unwrap();
            run("sync", &["-f", root.to_str().unwrap()]);
        }
        // Deleted while it is open.
        let path = root.join("open");
        let open = fs::File::create(&path).unwrap();
        fs::write(&path, vec![7; 50_000]).unwrap();
        fs::remove_file(&path).unwrap();
        run(
            "xfs_io",
            &["-x", "-c", "shutdown -f", root.to_str().unwrap()],
        );
        drop(open);
        mount.unmount();
        let base = fs::read(image.path()).unwrap();
        let mut disk = Disk::new(&base);
        let options = FsOptions {
            norecovery: true,
            ..FsOptions::default()
        };
        let fs = Fs::open_with(&mut disk, &options).unwrap();
        let start = usize::try_from(fs.geometry().block_addr(fs.geometry().log_start)).unwrap();
        let end = start + usize::try_from(fs.info().log_bytes).unwrap();
        let mut records = Vec::new();
        let mut addr = start;
        while addr < end {
            let block = &base[addr..addr + BB];
            let len = be32(block, 12) as usize;
            if be32(block, 0) == 0xfeed_babe && len > 0 {
                let headers = (be32(block, 320) as usize).div_ceil(32 << 10).max(1);
                let payload = len / BB;
                if addr + (headers + payload) * BB <= end {
                    records.push(Record {
                        addr,
                        headers,
                        payload,
                    });
                    addr += (headers + payload) * BB;
                    continue;
                }
            }
            addr += BB;
        }
        assert!(records.len() > 5, "{} records", records.len());
        Self { base, records }
    }

    /// Breaks a record and makes its checksum right.
    fn break_record(&self, disk: &mut Disk<'_>, rng: &mut SmallRng) {
        let record = self.records[rng.random_range(0..self.records.len())];
        let blocks = record.headers + record.payload;
        let mut raw = vec![0; blocks * BB];
        disk.read_at(record.addr as u64, &mut raw).unwrap();
        let payload = record.headers * BB;
        for _ in 0..1 << rng.random_range(0..4) {
            // Items begin with an operation of 12 bytes; most are at multiples of 4.
            let mut at = payload + rng.random_range(0..record.payload * BB / 4) * 4;
            if at.is_multiple_of(BB) {
                at += 4;
            }
            match rng.random_range(0..4) {
                0 => raw[at] ^= 1 << rng.random_range(0..8),
                1 => raw[at..at + 4].copy_from_slice(&rng.random::<u32>().to_le_bytes()),
                2 => raw[at..at + 2]
                    .copy_from_slice(&rng.random_range(0x1230_u16..0x1250).to_le_bytes()),
                _ => raw[at..at + 4].copy_from_slice(&[0xff; 4]),
            }
        }
        if rng.random_ratio(1, 4) {
            // The number of operations.
            raw[40..44].copy_from_slice(&rng.random_range(0..4000_u32).to_be_bytes());
        }
        raw[32..36].fill(0);
        let mut crc = crc32c::crc32c(&raw[..328]);
        let used = record.payload.div_ceil(64);
        for header in 1..record.headers.min(used) {
            crc = crc32c::crc32c_append(crc, &raw[header * BB..header * BB + 260]);
        }
        crc = crc32c::crc32c_append(crc, &raw[payload..]);
        raw[32..36].copy_from_slice(&crc.to_le_bytes());
        disk.write_at(record.addr as u64, &raw).unwrap();
        disk.writes = 0;
    }

    /// One broken log. What opening it came to.
    fn attempt(&self, seed: u64) -> Result<(), ErrorKind> {
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = Disk::new(&self.base);
        for _ in 0..rng.random_range(1..3) {
            self.break_record(&mut disk, &mut rng);
        }
        let broken = disk.image.changed.clone();
        let start = cpu_nanoseconds();
        let mut end = Ok(());
        let ways = [
            (Recovery::InMemory, false),
            (Recovery::OnDevice, false),
            (Recovery::OnDevice, true),
        ];
        for (recovery, writable) in ways {
            if writable {
                disk.image.changed.clone_from(&broken);
            }
            let options = FsOptions {
                recovery,
                writable,
                replay_bytes: REPLAY_BYTES,
                ..FsOptions::default()
            };
            match Fs::open_with(&mut disk, &options) {
                Ok(fs) => walk(&fs, &mut disk),
                Err(error) => {
                    let expected = [
                        ErrorKind::Corrupt,
                        ErrorKind::Unsupported,
                        ErrorKind::NeedsRecovery,
                        ErrorKind::OutOfMemory,
                    ];
                    assert!(expected.contains(&error.kind()), "{what}: {error:?}");
                    // Deleted files are freed one by one.
                    let is_kept = disk.writes == 0 || writable;
                    assert!(is_kept, "{what}: {error}, but the disk was written");
                    end = Err(error.kind());
                }
            }
        }
        let took = cpu_nanoseconds() - start;
        assert!(took < MOST_NANOSECONDS, "{what}: {took} ns");
        end
    }
}

impl<'a> Disk<'a> {
    fn new(base: &'a [u8]) -> Self {
        Self {
            image: ChangedImage::new(base),
            writes: 0,
        }
    }
}

/// Reads all names and inodes that can be read.
fn walk(fs: &Fs, disk: &mut Disk<'_>) {
    let mut stack = vec![fs.root()];
    let mut seen = std::collections::BTreeSet::<Ino>::new();
    while let Some(ino) = stack.pop() {
        if !seen.insert(ino) {
            continue;
        }
        let Ok(inode) = fs.read_inode(disk, ino) else {
            continue;
        };
        if inode.file_type != InodeType::Directory {
            continue;
        }
        let mut cursor = DirCursor::new();
        while let Ok(Some(entry)) = cursor.next_entry(fs, disk, &inode) {
            stack.push(entry.ino);
        }
    }
}

/// Time this thread spent on a processor.
fn cpu_nanoseconds() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[test]
fn broken_records() {
    if !kernel_is_here() {
        return;
    }
    let subjects = [
        Subject::new(&["-l", "size=24m", "-d", "agcount=2"]),
        Subject::new(&[
            "-l",
            "size=24m",
            "-d",
            "agcount=2",
            "-m",
            "rmapbt=1",
            "-b",
            "size=1024",
        ]),
    ];
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    let seed = number("XTENT_SEED", 1);
    for seed in seed..seed + number("XTENT_RUNS", 400) {
        let end = subjects[(seed % 2) as usize].attempt(seed);
        *ends.entry(format!("{end:?}")).or_default() += 1;
    }
    println!("{ends:?}");
}

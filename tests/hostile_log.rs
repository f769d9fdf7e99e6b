//! Dirty logs with broken records, and metadata with broken fields, whose checksums are right:
//! replaying them is an error or works, in bounded time, without a panic; an error leaves the disk
//! as it was, and a replay does not write to the data of files. What a replay leaves can be
//! changed, by operations that work or fail, and the checker judges the disk then.
//!
//! `XTENT_RUNS` (400) disks are broken, from `XTENT_SEED`. A failure prints the seed of its disk.

#![expect(
    clippy::unwrap_used,
    reason = "test code: a failure panics, sizes are its own"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use common::changed::ChangedImage;
use common::image::Image;
use common::structures::{Structure, change, structures};
use common::{kernel_is_here, number, run};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::check::check;
use xtent::internals::xfs::dir::DirCursor;
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::{Fs, FsOptions, Ino, InodeId, InodeType, MetaIo, Recovery};

const BB: usize = 512;
/// Processor time of one replay and a walk.
const MOST_NANOSECONDS: u64 = 5_000_000_000;
/// Memory for what a replay changes: all of it fits many times.
const REPLAY_BYTES: u64 = 64 << 20;

/// An image with changed blocks.
struct Disk<'a> {
    image: ChangedImage<'a>,
    writes: u32,
    /// Sectors that must not be written.
    data: Option<&'a BTreeSet<u64>>,
    /// One of them that was.
    overwritten: Option<u64>,
}

impl MetaIo for Disk<'_> {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.image.read(addr, buf)
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        let sectors = addr / BB as u64..(addr + buf.len() as u64) / BB as u64;
        let data = self.data.and_then(|data| data.range(sectors).next());
        self.overwritten = self.overwritten.or(data.copied());
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
    /// Metadata in place, by kind.
    structures: Vec<Vec<Structure>>,
    /// Sectors with data of files, when the log is replayed.
    data: BTreeSet<u64>,
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
        let structures = structures(&base, &fs).into_values().collect();
        Self {
            data: data_sectors(&base),
            base,
            records,
            structures,
        }
    }

    /// Breaks a field of metadata and makes its checksum right.
    fn break_structure(&self, disk: &mut Disk<'_>, rng: &mut SmallRng) {
        let structure = self.structures.choose(rng).unwrap().choose(rng).unwrap();
        let first = structure.addr / BB as u64 * BB as u64;
        let into = usize::try_from(structure.addr - first).unwrap();
        let mut raw = vec![0; (into + structure.len).next_multiple_of(BB)];
        disk.read_at(first, &mut raw).unwrap();
        let bytes = &mut raw[into..into + structure.len];
        change(bytes, rng);
        set_checksum(bytes, structure.crc);
        disk.write_at(first, &raw).unwrap();
        disk.writes = 0;
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

    /// One broken disk. What opening it came to, and whether it was consistent at the end.
    fn attempt(&self, seed: u64) -> Result<&'static str, ErrorKind> {
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = Disk::new(&self.base);
        let kind = rng.random_range(0..3);
        for _ in 0..rng.random_range(1..3) {
            if kind != 0 {
                self.break_record(&mut disk, &mut rng);
            }
            if kind != 1 {
                self.break_structure(&mut disk, &mut rng);
            }
        }
        let broken = disk.image.changed.clone();
        let start = cpu_nanoseconds();
        let mut end = Ok("opened");
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
            // What the log leaves open is finished by transactions, which take the blocks that
            // broken trees call free.
            disk.data = Some(&self.data).filter(|_| !writable);
            let opened = Fs::open_with(&mut disk, &options);
            disk.data = None;
            let overwritten = disk.overwritten;
            assert_eq!(overwritten, None, "{what}: data of a file was written to");
            match opened {
                Ok(fs) => {
                    let files = walk(&fs, &mut disk);
                    if writable && fs.write_refusal().is_none() {
                        end = Ok(change_files(&fs, &mut disk, &files, &mut rng));
                    }
                }
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
            data: None,
            overwritten: None,
        }
    }
}

/// The sectors that files have when the log is replayed.
fn data_sectors(base: &[u8]) -> BTreeSet<u64> {
    let mut disk = Disk::new(base);
    let options = FsOptions {
        recovery: Recovery::InMemory,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(&mut disk, &options).unwrap();
    let mut sectors = BTreeSet::new();
    for id in walk(&fs, &mut disk) {
        let inode = fs.read_inode(&mut disk, id.ino).unwrap();
        for extent in fs.extents(&mut disk, &inode).unwrap().as_slice() {
            let geometry = fs.geometry();
            let start = geometry.block_addr(extent.start_block) / BB as u64;
            sectors.extend(start..start + geometry.bytes(extent.blocks) / BB as u64);
        }
    }
    sectors
}

/// Changes files in ways that need all btrees, ends as unmounting does, and has the result checked.
fn change_files(
    fs: &Fs,
    disk: &mut Disk<'_>,
    files: &[InodeId],
    rng: &mut SmallRng,
) -> &'static str {
    let now = InodeTimestamp {
        seconds: 1_800_000_000,
        nanoseconds: 1,
    };
    let mut failed = false;
    for _ in 0..30 {
        let Some(file) = files.choose(rng).copied() else {
            break;
        };
        let start = rng.random_range(0..200_000);
        let range = start..start + rng.random_range(1..100_000);
        let done = match rng.random_range(0..5) {
            0 => fs.set_len(disk, file, start, now),
            1 => fs.allocate_range(disk, file, range, rng.random(), now),
            2 => fs.punch_hole(disk, file, range, now),
            3 => fs.zero_range(disk, file, range, rng.random(), now),
            _ => fs.sync(disk),
        };
        failed |= done.is_err();
    }
    failed |= fs.clean_log(disk).is_err();
    let checked = check(disk);
    let is_clean = checked.is_ok_and(|report| report.findings.is_empty());
    match (failed, is_clean) {
        (_, true) => "consistent",
        (true, false) => "an error, and findings",
        (false, false) => "findings",
    }
}

/// Reads all names and inodes that can be read. The regular files among them.
fn walk(fs: &Fs, disk: &mut Disk<'_>) -> Vec<InodeId> {
    let mut files = Vec::new();
    let mut stack = vec![fs.root()];
    let mut seen = BTreeSet::<Ino>::new();
    while let Some(ino) = stack.pop() {
        if !seen.insert(ino) {
            continue;
        }
        let Ok(inode) = fs.read_inode(disk, ino) else {
            continue;
        };
        if inode.file_type == InodeType::Regular {
            files.push(InodeId::of(&inode));
        }
        if inode.file_type != InodeType::Directory {
            continue;
        }
        let mut cursor = DirCursor::new();
        while let Ok(Some(entry)) = cursor.next_entry(fs, disk, &inode) {
            stack.push(entry.ino);
        }
    }
    files
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

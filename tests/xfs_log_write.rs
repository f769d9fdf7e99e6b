//! Checkpoints that xtent writes to the log, read by the kernel: it replays them when it mounts,
//! and shows what they say; xfs_repair finds nothing, and xfs_logprint parses them.
//!
//! Disks of several geometries are used by the kernel and by xtent's writer of the log in turn,
//! until their logs have wrapped, with power cuts. `XTENT_SEED` chooses the changes,
//! `XTENT_RUNS` (1) how many disks of each geometry there are.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code: a failure panics, sizes are its own"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use common::image::Image;
use common::judge::{ImageDisk, Judge};
use common::{kernel_is_here, number, sys, tool};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::format::inode::{
    CRC_OFFSET, FLAG2_BIGTIME, FORMAT_BTREE, FORMAT_DEV, FORMAT_EXTENTS, FORMAT_LOCAL, InodeCore,
    InodeTimestamp,
};
use xtent::internals::xfs::format::log_items::TYPE_DIR_DATA;
use xtent::internals::xfs::format::{dir, set_checksum};
use xtent::internals::xfs::{
    BuiltCheckpoint, Fs, FsOptions, Geometry, InodeChange, LogItem, LogWriter, MetaIo, Recovery,
};
use zerocopy::FromBytes;

/// An inode, as it is after all checkpoints.
#[derive(Clone)]
struct Known {
    /// Its buffer of inodes and where it lies in it.
    cluster_addr: u64,
    offset: u32,
    bytes: Vec<u8>,
    /// The checkpoint that logged it last.
    lsn: u64,
}

impl Known {
    fn addr(&self) -> u64 {
        self.cluster_addr + u64::from(self.offset)
    }

    fn core(&mut self) -> &mut InodeCore {
        InodeCore::mut_from_prefix(&mut self.bytes).unwrap().0
    }

    /// As `stat` shows it.
    fn shown(&self) -> (i64, i64, u32) {
        let (core, _) = InodeCore::ref_from_prefix(&self.bytes).unwrap();
        let is_bigtime = core.flags2.get() & FLAG2_BIGTIME != 0;
        let time = InodeTimestamp::decode(core.mtime.get(), is_bigtime);
        let mode = core.mode.get().into();
        (time.seconds, time.nanoseconds.into(), mode)
    }
}

/// Times and permissions as `stat` shows them.
type Shown = BTreeMap<u64, (i64, i64, u32)>;

struct Life {
    image: Image,
    disk: ImageDisk,
    geometry: Geometry,
    writer: LogWriter,
    inodes: BTreeMap<u64, Known>,
    /// Blocks of directories: ballast, which is logged as it is.
    blocks: Vec<u64>,
    /// Checkpoints that are not in place: start, and the inodes that they changed.
    outstanding: VecDeque<(u64, Vec<u64>)>,
    written_blocks: u64,
    split: usize,
    rng: SmallRng,
    what: String,
}

/// Files of all kinds of forks.
fn make_files(root: &Path) {
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..8000 {
        let name = format!("many/a rather long name, so that there are many blocks {number:06}");
        fs::hard_link(root.join("one"), root.join(name))
            .or_else(|_| fs::write(root.join("one"), b"1"))
            .unwrap();
    }
    fs::create_dir(root.join("few")).unwrap();
    for number in 0..6 {
        fs::write(root.join(format!("few/{number}")), vec![1; number * 5000]).unwrap();
        let name = format!("user.{number}");
        let path = root.join(format!("few/{number}"));
        if number % 2 == 0 {
            sys::set_xattr(&path, &name, &vec![b'v'; number * 7 + 1]).unwrap();
        }
    }
    symlink("few/3 and more, of odd length", root.join("link")).unwrap();
    sys::make_node(&root.join("node"), 0o020_644, 5, 77).unwrap();
    let holes = fs::File::create(root.join("holes")).unwrap();
    for number in 0..60 {
        std::os::unix::fs::FileExt::write_at(&holes, b"x", number * 20_000).unwrap();
    }
}

/// The numbers of all files.
fn numbers_of(root: &Path, found: &mut Shown) {
    let mut add = |path: &Path| {
        let data = fs::symlink_metadata(path).unwrap();
        let shown = (data.mtime(), data.mtime_nsec(), data.mode());
        found.insert(data.ino(), shown);
        data.is_dir()
    };
    if !add(root) {
        return;
    }
    for entry in fs::read_dir(root).unwrap() {
        numbers_of(&entry.unwrap().path(), found);
    }
}

/// Where an inode's buffer lies, and the inode in it, as xfs_imap() has it.
fn place_of(geometry: &Geometry, ino: u64) -> (u64, u32) {
    let ag_bits = geometry.ag_block_log + geometry.inopb_log;
    let ag = (ino >> ag_bits) as u32;
    let in_ag = (ino & ((1 << ag_bits) - 1)) as u32;
    let block = in_ag >> geometry.inopb_log;
    let cluster = cluster_bytes(geometry) >> geometry.block_log;
    let chunk = block - block % geometry.inode_align_blocks;
    let first = chunk + (block - chunk) / cluster * cluster;
    let into = (block - first) << geometry.block_log;
    let index = in_ag & ((1 << geometry.inopb_log) - 1);
    (
        geometry.ag_block_addr(ag, first),
        into + (index << geometry.inode_log),
    )
}

fn cluster_bytes(geometry: &Geometry) -> u32 {
    geometry.inode_bytes * 32
}

impl Life {
    fn new(sector_bytes: u32, args: &[&str], seed: u64) -> Self {
        let args = [&["-d", "agcount=3"], args].concat();
        let image = Image::make(128 << 20, sector_bytes, &args);
        let mount = image.mount("");
        make_files(mount.path());
        let mut shown = Shown::new();
        numbers_of(mount.path(), &mut shown);
        mount.unmount();
        let mut disk = ImageDisk::open(image.path(), sector_bytes);
        let geometry = Fs::open(&mut disk).unwrap().geometry().clone();
        let mut life = Self {
            writer: LogWriter::open(&mut disk).unwrap(),
            image,
            disk,
            geometry,
            inodes: BTreeMap::new(),
            blocks: Vec::new(),
            outstanding: VecDeque::new(),
            written_blocks: 0,
            split: 0,
            rng: SmallRng::seed_from_u64(seed),
            what: format!("XTENT_SEED={seed}: sectors of {sector_bytes}, {args:?}"),
        };
        for ino in shown.into_keys() {
            let (cluster_addr, offset) = place_of(&life.geometry, ino);
            let known = Known {
                cluster_addr,
                offset,
                bytes: Vec::new(),
                lsn: 0,
            };
            life.inodes.insert(ino, known);
        }
        life.find_blocks();
        life.open();
        let forms = life.inodes.values_mut().map(|known| {
            let core = known.core();
            (
                core.format,
                core.forkoff > 0 && core.aformat == FORMAT_LOCAL,
            )
        });
        let forms: BTreeSet<_> = forms.collect();
        for form in [FORMAT_DEV, FORMAT_LOCAL, FORMAT_EXTENTS, FORMAT_BTREE] {
            assert!(
                forms.iter().any(|(found, _)| *found == form),
                "no fork of form {form}"
            );
        }
        assert!(forms.contains(&(FORMAT_EXTENTS, true)), "no attributes");
        life
    }

    /// Blocks of entries of the large directory.
    fn find_blocks(&mut self) {
        let step = self.geometry.block_bytes as usize;
        let end = self.geometry.bytes(self.geometry.data_blocks);
        for addr in (0..end).step_by(step) {
            let head = self.disk.get(addr, 512);
            let (header, _) = dir::BlockHeader::ref_from_prefix(&head).unwrap();
            if header.magic.get() == dir::MAGIC_DATA && header.daddr.get() == addr / 512 {
                self.blocks.push(addr);
            }
        }
        assert!(self.blocks.len() > 30, "{} blocks", self.blocks.len());
    }

    /// Takes over the disk, whose log is clean.
    fn open(&mut self) {
        self.writer = LogWriter::open(&mut self.disk).unwrap();
        self.outstanding.clear();
        for write in self.writer.stale_writes() {
            self.disk.write_at(write.addr_bytes, &write.bytes).unwrap();
        }
        for (ino, known) in &mut self.inodes {
            known.bytes = self
                .disk
                .get(known.addr(), self.geometry.inode_bytes as usize);
            assert_eq!(known.core().ino.get(), *ino, "{}", self.what);
        }
    }

    /// Changes some inodes, and returns their numbers and items for them; with large items too.
    fn change(&mut self) -> (Vec<u64>, Vec<LogItem>) {
        let lsn = self.writer.lsn();
        let all: Vec<u64> = self.inodes.keys().copied().collect();
        let count = self.rng.random_range(1..6);
        let numbers: BTreeSet<u64> = all.choose_multiple(&mut self.rng, count).copied().collect();
        let mut items = Vec::new();
        if self.rng.random_ratio(1, 3) {
            let size = self.geometry.dir_block_bytes as usize;
            for addr in &self.blocks {
                let content = self.disk.get(*addr, size);
                let words = [u32::MAX, self.rng.random(), 1];
                let word = *words.choose(&mut self.rng).unwrap();
                items.push(LogItem::buffer(*addr, TYPE_DIR_DATA, &content, [word; 16]));
            }
        }
        let cluster_bytes = cluster_bytes(&self.geometry);
        items.extend(self.without_effect(&numbers, items.is_empty()));
        for ino in &numbers {
            let known = self.inodes.get_mut(ino).unwrap();
            known.lsn = lsn;
            let core = known.core();
            let mode = core.mode.get() & 0o170_000 | self.rng.random_range(0..0o1000);
            core.mode = mode.into();
            let seconds: u32 = self.rng.random();
            let nanoseconds = self.rng.random_range(0..1_000_000_000);
            core.mtime = match core.flags2.get() & FLAG2_BIGTIME {
                0 => u64::from(seconds) << 32 | nanoseconds,
                _ => u64::from(seconds) * 3 * 1_000_000_000 + nanoseconds,
            }
            .into();
            core.changecount = (core.changecount.get() + 1).into();
            let change = InodeChange {
                cluster_addr_bytes: known.cluster_addr,
                cluster_bytes,
                offset_bytes: known.offset,
                dinode: &known.bytes,
                data: self.rng.random(),
                attributes: self.rng.random(),
            };
            items.push(LogItem::inode(&change).unwrap());
        }
        (numbers.into_iter().collect(), items)
    }

    /// Items that the kernel has to understand, but that change nothing.
    fn without_effect(&mut self, numbers: &BTreeSet<u64>, cancels: bool) -> Vec<LogItem> {
        let mut items = Vec::new();
        if self.rng.random_ratio(1, 4) {
            let known = &self.inodes[numbers.first().unwrap()];
            let len = cluster_bytes(&self.geometry) as usize;
            let cluster = self.disk.get(known.cluster_addr, len);
            let links = [known.offset as usize];
            items.push(LogItem::unlinked_links(known.cluster_addr, &cluster, links));
        }
        if self.rng.random_ratio(1, 4) {
            let (id, extents) = (self.rng.random(), [(1000, 7), (2000, 1)]);
            items.push(LogItem::to_free(id, &extents));
            items.push(LogItem::freed(id, &extents));
        }
        if cancels && self.rng.random_ratio(1, 4) {
            let size = self.geometry.dir_block_bytes as usize;
            items.push(LogItem::cancel(self.blocks[0], size));
        }
        items
    }

    /// Writes the oldest checkpoints in place.
    fn push(&mut self, count: usize) {
        for _ in 0..count.min(self.outstanding.len()) {
            let (_, numbers) = self.outstanding.pop_front().unwrap();
            for ino in numbers {
                let known = self.inodes.get_mut(&ino).unwrap();
                known.core().lsn = known.lsn.into();
                assert!(set_checksum(&mut known.bytes, CRC_OFFSET));
                self.disk.put(known.addr(), &known.bytes);
            }
        }
    }

    fn tail(&self) -> u64 {
        self.outstanding
            .front()
            .map_or(self.writer.lsn(), |oldest| oldest.0)
    }

    fn write(&mut self, built: &BuiltCheckpoint) {
        for write in built.records.iter().flat_map(|record| &record.writes) {
            self.disk.write_at(write.addr_bytes, &write.bytes).unwrap();
            self.written_blocks += write.bytes.len() as u64 / 512;
        }
        self.split += usize::from(built.records.len() > 1);
    }

    fn make_room(&mut self, blocks: u64) {
        while blocks > self.writer.free_blocks(self.writer.written_tail()) {
            self.push(self.outstanding.len().div_ceil(2));
            let built = self.writer.checkpoint(&[], self.tail()).unwrap();
            self.write(&built);
        }
    }

    fn checkpoint(&mut self) {
        // The number of the checkpoint is known only when there is room.
        self.make_room(self.writer.blocks() / 4);
        let (numbers, items) = self.change();
        let built = self.writer.checkpoint(&items, self.tail()).unwrap();
        self.write(&built);
        self.outstanding.push_back((built.lsn, numbers));
        if self.rng.random_ratio(1, 4) {
            let count = self.rng.random_range(0..=self.outstanding.len());
            self.push(count);
        }
    }

    /// One more checkpoint, of which not all sectors are written.
    fn torn(&mut self) {
        self.make_room(self.writer.blocks() / 4);
        let before = self.inodes.clone();
        let (_, items) = self.change();
        let mut built = self.writer.checkpoint(&items, self.tail()).unwrap();
        self.inodes = before;
        // At most eight records are in flight.
        let first = self.rng.random_range(0..built.records.len());
        built.records.truncate(first + self.rng.random_range(1..=8));
        let last = built.records.len() - 1;
        let lost = self.rng.random_range(first..=last);
        let sector = self.image.sector_bytes() as usize;
        let write = built.records[lost].writes.last_mut().unwrap();
        let keep = self.rng.random_range(0..write.bytes.len() / sector) * sector;
        write.bytes.truncate(keep);
        if self.rng.random() {
            built.records.truncate(lost + 1);
        }
        for record in &mut built.records {
            record.writes.retain(|write| !write.bytes.is_empty());
        }
        self.write(&built);
    }

    /// The log parses, and the kernel shows what it says.
    fn asked(&mut self, end: End) {
        let path = self.image.path();
        let printed = Command::new(tool("xfs_logprint").unwrap())
            .args(["-t", path.to_str().unwrap()])
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&printed.stdout) + String::from_utf8_lossy(&printed.stderr);
        assert!(printed.status.success(), "{}: {text}", self.what);
        let verdict = match end {
            End::Unmount => "<CLEAN>",
            End::Kernel | End::Xtent => "<DIRTY>",
        };
        assert!(text.contains(verdict), "{}: {text}", self.what);
        let expected = self.inodes.iter();
        let expected: Shown = expected.map(|(ino, known)| (*ino, known.shown())).collect();
        let mut shown = Shown::new();
        match end {
            End::Kernel => {
                let mount = self.image.mount("");
                numbers_of(mount.path(), &mut shown);
                mount.unmount();
            }
            End::Xtent => {
                let options = FsOptions {
                    recovery: Recovery::OnDevice,
                    ..FsOptions::default()
                };
                let fs = Fs::open_with(&mut self.disk, &options).unwrap();
                assert!(!fs.info().log_dirty, "{}", self.what);
            }
            End::Unmount => (),
        }
        if end != End::Kernel {
            // A log that is dirty cannot be mounted there.
            let judge = Judge::new(&path, self.image.sector_bytes());
            let is_mounted = judge.mounts("", |root| numbers_of(root, &mut shown));
            assert!(is_mounted, "{}", self.what);
        }
        assert!(shown == expected, "{}, {end:?}", self.what);
        self.image.assert_clean();
        self.open();
    }

    fn live(&mut self, passes: u64) {
        let mut done = BTreeSet::new();
        while done.len() < 5 || self.written_blocks < passes * self.writer.blocks() {
            let until = self.written_blocks + self.rng.random_range(0..self.writer.blocks());
            while self.written_blocks < until {
                self.checkpoint();
            }
            self.checkpoint();
            let ends = [End::Unmount, End::Kernel, End::Xtent];
            let end = *ends.choose(&mut self.rng).unwrap();
            let is_torn = end != End::Unmount && self.rng.random();
            if is_torn {
                self.torn();
            }
            self.what += &format!(", {end:?} {is_torn}");
            if end == End::Unmount {
                self.push(usize::MAX);
                self.make_room(self.writer.unmount_blocks());
                let built = self.writer.unmount().unwrap();
                self.write(&built);
            }
            self.asked(end);
            done.insert((end, is_torn));
        }
        assert!(
            self.split > 3,
            "{} checkpoints of several records",
            self.split
        );
    }
}

/// How the log is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// With the record of unmounting.
    Unmount,
    /// Dirty, for the kernel.
    Kernel,
    /// Dirty, for xtent.
    Xtent,
}

fn lives(sector_bytes: u32, args: &[&str]) {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    for seed in seed..seed + number("XTENT_RUNS", 1) {
        Life::new(sector_bytes, args, seed).live(3);
    }
}

#[test]
fn default_disks() {
    lives(512, &["-l", "size=24m"]);
}

#[test]
fn disks_with_old_time_stamps_and_large_counters() {
    lives(
        512,
        &[
            "-l",
            "size=24m,su=32k",
            "-m",
            "bigtime=0",
            "-i",
            "nrext64=1",
        ],
    );
}

#[test]
fn disks_with_large_sectors_and_reverse_mappings() {
    lives(4096, &["-l", "size=24m", "-m", "rmapbt=1"]);
}

#[test]
fn disks_with_a_stripe_unit_of_256_kib() {
    lives(512, &["-l", "size=36m,su=256k", "-m", "rmapbt=1"]);
}

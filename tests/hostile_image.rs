//! Disks whose metadata is wrong: flipped bits with and without the checksum made right again,
//! absurd numbers, pointers that point back, blocks in each other's place, images cut off. Whatever
//! is read must be an error or an answer (the right one, where a checksum guards it): no panic, no
//! endless loop, bounded memory.
//!
//! `XTENT_RUNS` (1000) broken images an image kind, from `XTENT_SEED`; a failure prints the seed of
//! its run.
#![expect(
    clippy::unwrap_used,
    reason = "test code: a failure panics, sizes are its own"
)]

mod common;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::image::Image;
use common::{kernel_is_here, sys};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::iomap::{IterFlags, MappingKind, Ops as _};
use xtent::internals::xfs::dir::{DirCursor, lookup};
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::{
    FileMap, FileOps, Fork, Fs, FsOptions, Ino, Inode, InodeId, InodeType, MetaIo, symlink,
};
use xtent::{Error, ErrorKind};

/// Counts this thread's memory.
mod memory {
    #![expect(unsafe_code, reason = "a global allocator cannot be written without")]
    use std::alloc::{GlobalAlloc, Layout, System};

    use super::Cell;

    thread_local! {
        static NOW: Cell<isize> = const { Cell::new(0) };
        static PEAK: Cell<isize> = const { Cell::new(0) };
    }

    fn count(by: isize) {
        // While the thread is torn down its thread-locals are gone, and the count is skipped.
        let _ = NOW.try_with(|now| {
            now.set(now.get() + by);
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
        });
    }

    struct Counting;

    // SAFETY: every call goes to the system's allocator as it came.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count(layout.size().cast_signed());
            // SAFETY: as the caller promises.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            count(layout.size().cast_signed());
            // SAFETY: as the caller promises.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            count(-layout.size().cast_signed());
            // SAFETY: as the caller promises.
            unsafe { System.dealloc(at, layout) }
        }
    }

    #[global_allocator]
    static COUNTING: Counting = Counting;

    /// The most memory that `work` had in use above what it began with, in bytes.
    pub(super) fn peak<T>(work: impl FnOnce() -> T) -> (T, isize) {
        let before = NOW.get();
        PEAK.set(before);
        let result = work();
        (result, PEAK.get() - before)
    }
}

/// The metadata cache (16 MiB) and as much again, and a file's extents.
const MOST_MEMORY: isize = 64 << 20;
/// Processor time of one walk.
const MOST_NANOSECONDS: u64 = 2_000_000_000;
/// Names that a walk meets before it is called endless; the images have a tenth of them.
const MOST_ENTRIES: usize = 200_000;

/// An image with changes laid over it.
struct Disk<'a> {
    base: &'a [u8],
    capacity: u64,
    patches: Vec<(u64, Vec<u8>)>,
    /// Address and length of every read.
    reads: BTreeSet<(u64, usize)>,
}

impl<'a> Disk<'a> {
    fn new(base: &'a [u8]) -> Self {
        Self {
            base,
            capacity: base.len() as u64,
            patches: Vec::new(),
            reads: BTreeSet::new(),
        }
    }

    fn copy(&self, addr: u64, buf: &mut [u8]) {
        let start = usize::try_from(addr).unwrap();
        buf.copy_from_slice(&self.base[start..start + buf.len()]);
        for (at, bytes) in &self.patches {
            let from = (*at).max(addr);
            let to = (at + bytes.len() as u64).min(addr + buf.len() as u64);
            if from < to {
                let (i, j, n) = (from - addr, from - at, to - from);
                let [i, j, n] = [i, j, n].map(|n| usize::try_from(n).unwrap());
                buf[i..i + n].copy_from_slice(&bytes[j..j + n]);
            }
        }
    }
}

impl MetaIo for Disk<'_> {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        assert!(!buf.is_empty(), "nothing to read");
        assert_eq!((addr % 512, buf.len() % 512), (0, 0), "whole sectors");
        if addr + buf.len() as u64 > self.capacity {
            return Err(Error::new(ErrorKind::Io, "beyond the end"));
        }
        self.reads.insert((addr, buf.len()));
        self.copy(addr, buf);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.capacity
    }
}

/// Result of a walk: for each inode a hash of its metadata and content. Inodes with errors are
/// skipped.
type Answer = BTreeMap<u64, u64>;

fn walk(disk: &mut Disk<'_>, norecovery: bool) -> xtent::Result<Answer> {
    let options = FsOptions {
        norecovery,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(disk, &options)?;
    std::hint::black_box(fs.info());
    for ag in 0..fs.geometry().ag_count.min(4) {
        let _ = fs.free_space(disk, ag);
    }
    let mut answer = Answer::new();
    let mut seen = BTreeSet::from([fs.root()]);
    let mut stack = vec![fs.root()];
    let mut entries = 0;
    while let Some(ino) = stack.pop() {
        let Ok(inode) = fs.read_inode(disk, ino) else {
            continue;
        };
        let mut hash = DefaultHasher::new();
        let times = (inode.atime, inode.mtime, inode.ctime, inode.btime);
        (inode.mode, inode.uid, inode.gid, inode.nlink).hash(&mut hash);
        (inode.size, inode.blocks_512, inode.rdev, times).hash(&mut hash);
        let whole = match inode.file_type {
            InodeType::Directory => {
                let children = directory(&fs, disk, &inode, &mut entries, &mut hash);
                let whole = children.is_ok();
                for child in children.unwrap_or_else(|found| found) {
                    if seen.insert(child) {
                        stack.push(child);
                    }
                }
                whole
            }
            InodeType::Symlink => symlink::read_link(&fs, disk, &inode)
                .map(|target| target.hash(&mut hash))
                .is_ok(),
            InodeType::Regular => file(&fs, disk, &inode, &mut hash).is_ok(),
            _ => true,
        };
        let overwrite = fs.check_overwrite(disk, &inode);
        let refused = overwrite.as_ref().err().map(Error::kind);
        format!("{refused:?}").hash(&mut hash);
        if whole && refused != Some(ErrorKind::Corrupt) {
            answer.insert(ino.0, hash.finish());
        }
    }
    Ok(answer)
}

/// The children of a directory; as an error those before something was wrong.
fn directory(
    fs: &Fs,
    disk: &mut Disk<'_>,
    inode: &Inode,
    entries: &mut usize,
    hash: &mut DefaultHasher,
) -> Result<Vec<Ino>, Vec<Ino>> {
    let mut children = Vec::new();
    let mut cursor = DirCursor::new();
    loop {
        match cursor.next_entry(fs, disk, inode) {
            Ok(None) => return Ok(children),
            Err(_) => return Err(children),
            Ok(Some(entry)) => {
                *entries += 1;
                assert!(*entries < MOST_ENTRIES, "a directory without end");
                entry.name.hash(hash);
                entry.ino.hash(hash);
                if children.len() % 16 == 0 {
                    match lookup(fs, disk, inode, &entry.name) {
                        Ok(found) => found.map(|found| found.0).hash(hash),
                        Err(_) => return Err(children),
                    }
                }
                children.push(entry.ino);
            }
        }
    }
}

/// Loads the extents as operations do that need a few of them.
fn piece_by_piece(
    fs: &Fs,
    disk: &mut Disk<'_>,
    inode: &Inode,
    whole: &FileMap,
) -> xtent::Result<()> {
    let (ino, generation) = (inode.ino, inode.generation);
    let id = InodeId { ino, generation };
    if matches!(inode.data, Fork::Local(_)) {
        return Ok(());
    }
    let mut map = FileMap::unloaded(inode);
    let mut at = 0;
    for _ in 0..=whole.len() + 2 {
        let Some(rest) = map.unloaded_in(&(at..u64::MAX)) else {
            break;
        };
        at = rest.start + 1;
        let part = fs.read_map_part(disk, id, &(rest.start..at))?;
        map = map.loaded(part);
    }
    assert!(map.check_loaded(&(0..1 << 63)).is_ok(), "no end");
    assert_eq!(map.len(), whole.len());
    Ok(())
}

fn file(
    fs: &Fs,
    disk: &mut Disk<'_>,
    inode: &Inode,
    hash: &mut DefaultHasher,
) -> xtent::Result<()> {
    let map = fs.file_map(disk, inode)?;
    fs.learn_sharing(disk, &map)?;
    piece_by_piece(fs, disk, inode, &map)?;
    let mut ops = FileOps::new(&map);
    let mut pos = 0;
    for _ in 0..=2 * map.len() + 2 {
        let (mapping, _) = ops.begin(pos, 1 << 62, IterFlags::REPORT)?;
        assert_eq!(mapping.offset, pos, "a mapping of another place");
        if mapping.length == 0 {
            break;
        }
        (
            mapping.offset,
            mapping.length,
            mapping.kind,
            mapping.flags.bits(),
        )
            .hash(hash);
        if matches!(mapping.kind, MappingKind::Mapped | MappingKind::Unwritten) {
            mapping.addr.hash(hash);
            let end = mapping.addr.checked_add(mapping.length);
            assert!(
                end.is_some_and(|end| end <= disk.capacity),
                "outside the device"
            );
            let mut data = vec![0; usize::try_from(mapping.length.min(8192)).unwrap()];
            disk.copy(mapping.addr, &mut data);
            data.hash(hash);
        }
        pos = mapping.end();
    }
    // Any write is refused or goes to blocks of this file; never a panic.
    for at in [0, inode.size / 2, inode.size, u64::MAX - 4095] {
        let _ = ops.begin(at, 4096, IterFlags::WRITE | IterFlags::OVERWRITE_ONLY);
        let _ = ops.begin(at, 4096, IterFlags::DIRECT);
    }
    Ok(())
}

/// Where the checksum lies in the metadata object that contains the byte `at` of a block that was
/// read: start and length of the object inside the block, offset of the checksum in the object.
fn object(block: &[u8], at: usize, shape: &Shape) -> Option<(usize, usize, usize)> {
    let whole = |offset| Some((0, block.len(), offset));
    match block.get(..4)? {
        b"XFSB" => Some((0, shape.sector, 224)),
        b"XAGF" => whole(216),
        b"XAGI" => whole(312),
        b"IAB3" | b"FIB3" | b"R3FC" | b"AB3B" | b"AB3C" => whole(52),
        b"BMA3" => whole(64),
        b"XDB3" | b"XDD3" | b"XDF3" if block.len() == shape.dir_block => whole(4),
        b"XSLM" => whole(12),
        [b'I', b'N', ..] => Some((at - at % shape.inode, shape.inode, 100)),
        _ => match block.get(8..10)? {
            [0x3d, 0xf1 | 0xff] if block.len() == shape.dir_block => whole(12),
            // Of a directory, or attributes.
            [0x3e, 0xbe] | [0x3b, 0xee] => whole(12),
            _ => None,
        },
    }
}

/// Kind of a block, for an even choice among kinds.
fn kind(block: &[u8]) -> [u8; 4] {
    match block {
        [b'I', b'N', ..] => *b"IN  ",
        [a, b, c, d, ..] if b"XIFRBA".contains(a) && d.is_ascii_alphanumeric() => [*a, *b, *c, *d],
        [_, _, _, _, _, _, _, _, a @ (0x3b | 0x3d | 0x3e), b, ..] => [*a, *b, 0, 0],
        _ => *b"rest",
    }
}

#[derive(Debug)]
struct Shape {
    sector: usize,
    inode: usize,
    dir_block: usize,
    block: u64,
}

/// An image, what a walk reads of it by kind, and the right answer.
struct Subject {
    base: Vec<u8>,
    shape: Shape,
    kinds: Vec<Vec<(u64, usize)>>,
    right: Answer,
}

impl Subject {
    fn new(base: Vec<u8>) -> Self {
        let mut disk = Disk::new(&base);
        let fs = Fs::open(&mut disk).expect("the unbroken image");
        let geometry = fs.geometry();
        let shape = Shape {
            sector: geometry.sector_bytes.try_into().unwrap(),
            inode: geometry.inode_bytes.try_into().unwrap(),
            dir_block: geometry.dir_block_bytes.try_into().unwrap(),
            block: geometry.block_bytes.into(),
        };
        let right = walk(&mut disk, false).expect("the unbroken image");
        assert!(right.len() > 50, "the image holds what it should");
        let mut kinds: BTreeMap<[u8; 4], Vec<(u64, usize)>> = BTreeMap::new();
        for (addr, len) in &disk.reads {
            let start = usize::try_from(*addr).unwrap();
            let kind = kind(&base[start..start + len]);
            kinds.entry(kind).or_default().push((*addr, *len));
        }
        for wanted in [
            b"XFSB",
            b"XAGI",
            b"IAB3",
            b"IN  ",
            b"BMA3",
            b"XDD3",
            b"XSLM",
            b"AB3B",
            b"AB3C",
            b"\x3b\xee\0\0",
        ] {
            assert!(kinds.contains_key(wanted), "{}", wanted.escape_ascii());
        }
        Self {
            shape,
            kinds: kinds.into_values().collect(),
            right,
            base,
        }
    }

    fn pick(&self, rng: &mut StdRng) -> (u64, usize) {
        let kind = &self.kinds[rng.random_range(0..self.kinds.len())];
        kind[rng.random_range(0..kind.len())]
    }

    /// Lays a change over the disk; whether the checksum, if any, still tells of it.
    fn break_it(&self, disk: &mut Disk<'_>, rng: &mut StdRng) -> bool {
        let (addr, len) = self.pick(rng);
        let mut block = vec![0; len];
        disk.copy(addr, &mut block);
        let near = if rng.random() { len.min(256) } else { len };
        let at = rng.random_range(0..near);
        let place = object(&block, at, &self.shape);
        match rng.random_range(0..8) {
            0..4 => {
                for _ in 0..1 << rng.random_range(0..4) {
                    let (start, within) = place.map_or((0, near), |(start, size, _)| (start, size));
                    let at = start + rng.random_range(0..within.min(near));
                    block[at] ^= 1 << rng.random_range(0..8);
                }
            }
            4..6 => put_number(&mut block, at, absurd(rng), rng),
            6 => {
                // A pointer to a block that the tree knows already.
                let (target, _) = self.pick(rng);
                put_number(&mut block, at, target / self.shape.block, rng);
            }
            _ => {
                // Another block in its place, under its address or not.
                let (other, _) = self.pick(rng);
                let other = other.min(disk.capacity - len as u64);
                disk.copy(other, &mut block);
            }
        }
        let guarded = place.is_some() && rng.random_range(0..3) == 0;
        if let (false, Some((start, size, crc))) = (guarded, object(&block, at, &self.shape)) {
            set_checksum(&mut block[start..start + size], crc);
        }
        disk.patches.push((addr, block));
        guarded
    }

    /// One broken image, walked.
    fn run(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disk = Disk::new(&self.base);
        let mut guarded = true;
        if rng.random_range(0..20) == 0 {
            disk.capacity = rng.random_range(0..disk.capacity / 512) * 512;
        } else {
            for _ in 0..rng.random_range(1..=2) {
                guarded &= self.break_it(&mut disk, &mut rng);
            }
        }
        let norecovery = rng.random();
        let start = cpu_nanoseconds();
        let (answer, memory) = memory::peak(|| walk(&mut disk, norecovery));
        let taken = cpu_nanoseconds() - start;
        assert!(memory < MOST_MEMORY, "{memory} bytes of memory");
        assert!(taken < MOST_NANOSECONDS, "{taken} ns of processor time");
        if guarded {
            for (ino, found) in answer.unwrap_or_default() {
                assert_eq!(self.right.get(&ino), Some(&found), "inode {ino}");
            }
        }
    }
}

/// Writes a number in one of the sizes that fields have, at a field's alignment.
fn put_number(block: &mut [u8], at: usize, number: u64, rng: &mut StdRng) {
    let size = [1, 2, 4, 8][rng.random_range(0..4)];
    let at = at - at % size;
    block[at..at + size].copy_from_slice(&number.to_be_bytes()[8 - size..]);
}

fn absurd(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..6) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << rng.random_range(0..64),
        3 => (1 << rng.random_range(1..64)) - 1,
        4 => rng.random_range(0..300),
        _ => rng.random(),
    }
}

/// Time this thread spent on a processor.
fn cpu_nanoseconds() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn number_from_env(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// Breaks a subject again and again. A walk that does not end is reported and ends the process.
fn campaign(subject: &Subject) {
    static RUNNING: AtomicU64 = AtomicU64::new(0);
    let runs = number_from_env("XTENT_RUNS", 1000);
    let seed = number_from_env("XTENT_SEED", 0x7874_656e);
    std::thread::spawn(|| {
        let mut before = 0;
        loop {
            std::thread::sleep(std::time::Duration::from_secs(60));
            let now = RUNNING.load(Ordering::Relaxed);
            if now != 0 && now == before {
                eprintln!("XTENT_RUNS=1 XTENT_SEED={now} does not end");
                std::process::abort();
            }
            before = now;
        }
    });
    for seed in seed..seed + runs {
        RUNNING.store(seed, Ordering::Relaxed);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| subject.run(seed)));
        assert!(done.is_ok(), "failed: XTENT_RUNS=1 XTENT_SEED={seed}");
    }
    RUNNING.store(0, Ordering::Relaxed);
}

/// Fills a mounted filesystem with little of everything.
fn fill(root: &Path, reflink: bool) {
    let block = [0x5a_u8; 4096];
    let first = root.join("first");
    File::create(&first).unwrap().write_all(&block).unwrap();
    for (dir, count) in [("short", 3), ("block", 30), ("leaf", 300), ("node", 2500)] {
        let dir = root.join(dir);
        fs::create_dir(&dir).unwrap();
        for i in 0..count {
            // Writes in between, so that the directory's blocks do not lie side by side.
            if i % 25 == 0 {
                fs::write(dir.join(format!("file-{i}")), block).unwrap();
            }
            fs::hard_link(&first, dir.join(format!("a-name-of-some-length-{i:05}"))).unwrap();
        }
    }
    for i in (0..100).step_by(2) {
        fs::write(root.join(format!("block/free-{i}")), b"x").unwrap();
    }
    for i in (0..100).step_by(4) {
        fs::remove_file(root.join(format!("block/free-{i}"))).unwrap();
    }
    std::os::unix::fs::symlink("short/target", root.join("inline")).unwrap();
    std::os::unix::fs::symlink("long/".repeat(190), root.join("remote")).unwrap();
    sys::make_node(&root.join("pipe"), libc::S_IFIFO | 0o600, 0, 0).unwrap();
    let scattered = File::create(root.join("scattered")).unwrap();
    for i in 0..600 {
        scattered.write_all_at(&block, i * 8192).unwrap();
    }
    for (name, count) in [("attributes-leaf", 12), ("attributes-node", 300)] {
        let path = root.join(name);
        fs::write(&path, block).unwrap();
        for i in 0..count {
            sys::set_xattr(&path, format!("user.attribute-{i:05}"), &block[..40]).unwrap();
        }
    }
    let preallocated = File::create(root.join("preallocated")).unwrap();
    sys::fallocate(&preallocated, 0, 0, 1 << 20).unwrap();
    preallocated.write_all_at(&block, 64 << 10).unwrap();
    if reflink {
        scattered.sync_all().unwrap();
        let shared = File::create(root.join("shared")).unwrap();
        let scattered = File::open(root.join("scattered")).unwrap();
        sys::clone_file(&scattered, &shared).unwrap();
        shared.write_all_at(&block, 5 * 8192).unwrap();
    }
}

fn image(mkfs_args: &[&str], reflink: bool) -> Option<Subject> {
    if !kernel_is_here() {
        return None;
    }
    let image = Image::make(64 << 20, 512, mkfs_args);
    let mount = image.mount("");
    fill(mount.path(), reflink);
    mount.unmount();
    Some(Subject::new(fs::read(image.path()).unwrap()))
}

#[test]
fn blocks_of_4k_shared() {
    let args = ["-d", "agcount=2", "-m", "reflink=1,rmapbt=1"];
    if let Some(subject) = image(&args, true) {
        campaign(&subject);
    }
}

#[test]
fn blocks_of_1k_large_counters() {
    let args = [
        "-d",
        "agcount=2",
        "-b",
        "size=1024",
        "-m",
        "reflink=0",
        "-i",
        "nrext64=1",
    ];
    if let Some(subject) = image(&args, false) {
        campaign(&subject);
    }
}

//! Files of very many extents: opened without reading these, read, written and changed as the
//! kernel's, by one thread and by several.
//!
//! `XTENT_EXTENTS` (20,000) extents; 1,000,000 is the size that the bounds were made for, and takes
//! minutes. `XTENT_SEED` chooses the blocks that are read and written; a failure prints it.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::collections::BTreeMap;
use std::fs::File as HostFile;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::image::Image;
use common::judge::ImageDisk;
use common::sys::{self, FiemapExtent};
use common::{kernel_is_here, number};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::iomap::{IterFlags, MappingKind, Ops};
use xtent::internals::xfs::{FileMap, FileOps, Fs, Ino, InodeId, MetaIo, needs_extents};
use xtent::volume::{File, Io, OpenOptions, Volume};

const BLOCK: u64 = 4096;
/// Records in a block of an extent btree.
const LEAF_RECORDS: u64 = (BLOCK - 72) / 16;
/// One in so many extents has data.
const WRITTEN: u64 = 16;

/// A disk with a file whose even blocks are allocated and whose odd blocks are holes.
struct ManyExtents {
    image: Image,
    extents: u64,
    ino: Ino,
    seed: u64,
}

/// Blocks that were changed.
type Changed = BTreeMap<u64, Vec<u8>>;

/// The data of a block.
fn data(block: u64, version: u64) -> Vec<u8> {
    let word = (block << 16) | version;
    word.to_le_bytes().repeat(512)
}

impl ManyExtents {
    fn make() -> Self {
        let extents = number("XTENT_EXTENTS", 20_000);
        let size = (extents * 6000).max(512 << 20).next_multiple_of(1 << 20);
        let image = Image::make(size, 512, &[]);
        let mount = image.mount("");
        let path = mount.path().join("file");
        let file = HostFile::create(&path).unwrap();
        for n in 0..extents {
            sys::fallocate(&file, 0, 2 * n * BLOCK, BLOCK).unwrap();
        }
        for n in (0..extents).step_by(usize::try_from(WRITTEN).unwrap()) {
            file.write_all_at(&data(2 * n, 0), 2 * n * BLOCK).unwrap();
        }
        file.sync_all().unwrap();
        let ino = Ino(file.metadata().unwrap().ino());
        drop(file);
        mount.unmount();
        Self {
            image,
            extents,
            ino,
            seed: number("XTENT_SEED", 5),
        }
    }

    fn open(&self) -> (Volume, Io, File) {
        let volume = Volume::open(&format!("image:{}", self.image.path().display())).unwrap();
        let mut io = volume.io().unwrap();
        let options = OpenOptions::new().read(true).write(true);
        let file = options.open(&volume, &mut io, "/file").unwrap();
        (volume, io, file)
    }

    /// What a block has that was not changed.
    fn block(&self, block: u64) -> Vec<u8> {
        let is_written = block.is_multiple_of(2 * WRITTEN) && block / 2 < self.extents;
        match is_written {
            true => data(block, 0),
            false => vec![0; 4096],
        }
    }

    /// What a block has, of which these were changed.
    fn with(&self, changed: &Changed) -> impl Fn(u64) -> Vec<u8> {
        move |block| match changed.get(&block) {
            Some(bytes) => bytes.clone(),
            None => self.block(block),
        }
    }

    /// What the kernel reports of the file.
    fn kernel_fiemap(&self) -> Vec<FiemapExtent> {
        let mount = self.image.mount("");
        let file = HostFile::open(mount.path().join("file")).unwrap();
        let all = sys::fiemap(&file).unwrap();
        drop(file);
        mount.unmount();
        all
    }

    fn assert_fiemap(&self, found: &[xtent::volume::FiemapExtent]) {
        let kernel = self.kernel_fiemap();
        assert_eq!(found.len(), kernel.len());
        for (xtent, kernel) in found.iter().zip(&kernel) {
            let place = [
                xtent.logical_bytes,
                xtent.physical_bytes,
                xtent.length_bytes,
            ];
            assert_eq!(place, [kernel.logical, kernel.physical, kernel.length]);
            assert_eq!(xtent.flags.bits(), kernel.flags);
        }
    }
}

/// Counts the bytes that are read of a disk.
struct CountedDisk {
    disk: ImageDisk,
    bytes: u64,
}

impl MetaIo for CountedDisk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.bytes += buf.len() as u64;
        self.disk.read_at(addr, buf)
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        self.disk.write_at(addr, buf)
    }

    fn flush(&mut self) -> xtent::Result<()> {
        self.disk.flush()
    }

    fn capacity_bytes(&self) -> u64 {
        self.disk.capacity_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.disk.block_bytes()
    }
}

fn kind_at(map: &FileMap, block: u64) -> xtent::Result<MappingKind> {
    let mut ops = FileOps::new(map);
    let found = ops.begin(block * BLOCK, BLOCK, IterFlags::empty());
    found.map(|(mapping, _)| mapping.kind)
}

#[test]
fn an_open_reads_at_most_a_hundredth_of_the_extents() {
    if !kernel_is_here() {
        return;
    }
    let made = ManyExtents::make();
    let mut disk = CountedDisk {
        disk: ImageDisk::open(made.image.path(), 512),
        bytes: 0,
    };
    let fs = Fs::open(&mut disk).unwrap();
    let inode = fs.read_inode(&mut disk, made.ino).unwrap();
    assert_eq!(inode.nextents, made.extents);
    let records = made.extents.div_ceil(LEAF_RECORDS) * BLOCK;
    disk.bytes = 0;
    let mut map = fs.file_map_at_open(&mut disk, &inode).unwrap();
    let at_open = disk.bytes;
    println!("{at_open} of {records} bytes of extents are read by an open");
    assert!(at_open * 100 <= records, "{at_open} of {records}");
    assert!(needs_extents(&kind_at(&map, 0).unwrap_err()));

    let id = InodeId {
        ino: made.ino,
        generation: inode.generation,
    };
    let last = 2 * (made.extents - 1);
    for block in [last, 0, made.extents] {
        disk.bytes = 0;
        let range = block * BLOCK..(block + 1) * BLOCK;
        let part = fs.read_map_part(&mut disk, id, &range).unwrap();
        map = map.loaded(part);
        // A block of each level, and no others.
        assert!(disk.bytes <= 4 * BLOCK, "{} bytes of {block}", disk.bytes);
        assert!(kind_at(&map, block).is_ok());
    }
    assert!(map.len() as u64 <= 3 * LEAF_RECORDS + 4);
    assert_eq!(kind_at(&map, last + 1).unwrap(), MappingKind::Hole);
    // Loaded piece by piece it is the same as loaded at once.
    let mut at = 0;
    while let Some(rest) = map.unloaded_in(&(at..u64::MAX)) {
        at = rest.start + 1;
        let part = fs.read_map_part(&mut disk, id, &(rest.start..at)).unwrap();
        map = map.loaded(part);
    }
    let whole = fs.file_map(&mut disk, &inode).unwrap();
    assert_eq!(map.len(), whole.len());
    for block in 0..2 * made.extents + 2 {
        let found = |map| {
            let mut ops = FileOps::new(map);
            ops.begin(block * BLOCK, 1, IterFlags::REPORT).unwrap().0
        };
        assert_eq!(found(&map), found(&whole), "block {block}");
    }
}

#[test]
fn damage_elsewhere_in_the_btree_is_an_error_there_alone() {
    if !kernel_is_here() {
        return;
    }
    let made = ManyExtents::make();
    let disk = ImageDisk::open(made.image.path(), 512);
    let mut leaves = Vec::new();
    for addr in (0..disk.capacity_bytes()).step_by(4096) {
        let head = disk.get(addr, 72);
        let owner = u64::from_be_bytes(*head[56..].first_chunk().unwrap());
        let level = u16::from_be_bytes(*head[4..].first_chunk().unwrap());
        if head.starts_with(b"BMA3") && owner == made.ino.0 && level == 0 {
            let key = disk.get(addr + 72, 8);
            leaves.push((u64::from_be_bytes(*key.first_chunk().unwrap()), addr));
        }
    }
    leaves.sort_unstable();
    assert!(leaves.len() as u64 >= made.extents / LEAF_RECORDS);
    // A block that becomes full is divided with the one beside it.
    let damaged = &leaves[..leaves.len() - 2];
    for (_, addr) in damaged {
        disk.put(*addr, &[0xa5; 4096]);
    }
    drop(disk);
    let (volume, mut io, file) = made.open();
    let end = file.len();
    let last = end / BLOCK - 1;
    let mut buf = vec![0; 4096];
    assert_eq!(file.read_at(&mut io, &mut buf, last * BLOCK).unwrap(), 4096);
    assert_eq!(buf, made.block(last));
    for n in 0..40 {
        file.write_at(&mut io, &data(last + 1 + n, 1), end + n * BLOCK)
            .unwrap();
    }
    for buffered in [false, true] {
        let options = OpenOptions::new().read(true).buffered(buffered);
        let file = options.open(&volume, &mut io, "/file").unwrap();
        let error = file.read_at(&mut io, &mut buf, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let at = end + 39 * BLOCK;
        assert_eq!(file.read_at(&mut io, &mut buf, at).unwrap(), 4096);
        assert_eq!(buf, data(last + 40, 1));
    }
    let error = file.fiemap(&mut io, 0, u64::MAX).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let error = file.write_at(&mut io, &data(1, 1), BLOCK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// Reads of random pieces, up to 32 in flight, each of which may touch several leaves.
fn read_pieces(
    file: &File,
    io: &mut Io,
    rng: &mut SmallRng,
    expected: &impl Fn(u64) -> Vec<u8>,
    what: &str,
) {
    let blocks = file.len() / BLOCK;
    let mut check = |done: xtent::volume::Done| {
        let n = done
            .result
            .unwrap_or_else(|error| panic!("{error}; {what}"));
        for (index, bytes) in done.buf[..n].chunks(4096).enumerate() {
            let block = done.user_data + index as u64;
            assert_eq!(bytes, expected(block), "block {block}; {what}");
        }
    };
    for _ in 0..200 {
        let start = rng.random_range(0..blocks);
        let len = if rng.random_ratio(1, 8) { 1200 } else { 4 };
        let len = rng.random_range(1..=len);
        let buf = io.alloc(usize::try_from(len * BLOCK).unwrap()).unwrap();
        while io.outstanding() >= 32 {
            io.poll(32, &mut check);
            io.relax();
        }
        io.submit_read(file, start * BLOCK, buf, start).unwrap();
    }
    while io.outstanding() > 0 {
        io.poll(32, &mut check);
        io.relax();
    }
}

/// Buffered writes of blocks, and lengths and holes beside dirty pages.
fn write_cached(file: &File, io: &mut Io, rng: &mut SmallRng, changed: &mut Changed) {
    for n in 0..200_u64 {
        let blocks = file.len() / BLOCK;
        let block = rng.random_range(0..=blocks);
        file.write_all_at(io, &data(block, n + 1000), block * BLOCK)
            .unwrap();
        changed.insert(block, data(block, n + 1000));
        match n % 50 {
            10 => {
                let at = rng.random_range(0..blocks - 2);
                file.punch_hole(io, at * BLOCK..(at + 1) * BLOCK).unwrap();
                changed.insert(at, vec![0; 4096]);
            }
            20 => {
                let len = file.len() / BLOCK - 1;
                file.set_len(io, len * BLOCK - 100).unwrap();
                changed.retain(|block, _| *block < len - 1);
                file.set_len(io, (len - 1) * BLOCK).unwrap();
            }
            30 => file.sync_data(io).unwrap(),
            _ => {}
        }
    }
    file.sync_data(io).unwrap();
}

#[test]
fn a_large_file_is_read_and_changed_as_by_the_kernel() {
    if !kernel_is_here() {
        return;
    }
    let made = ManyExtents::make();
    let what = format!("XTENT_SEED={}", made.seed);
    let mut rng = SmallRng::seed_from_u64(made.seed);
    let (volume, mut io, file) = made.open();
    read_pieces(&file, &mut io, &mut rng, &|block| made.block(block), &what);
    // Overwrites, writes to holes, appends, and a changed length between them.
    let old = file.len() / BLOCK;
    let mut changed = Changed::new();
    for n in 0..200_u64 {
        let block = match rng.random_range(0..4) {
            0 => file.len() / BLOCK,
            1 => rng.random_range(0..old / (2 * WRITTEN)) * 2 * WRITTEN,
            _ => rng.random_range(0..old),
        };
        file.write_at(&mut io, &data(block, n + 1), block * BLOCK)
            .unwrap_or_else(|error| panic!("{error}; {what}"));
        changed.insert(block, data(block, n + 1));
        if n % 50 == 25 {
            let at = rng.random_range(0..old - 3);
            file.punch_hole(&mut io, at * BLOCK..(at + 3) * BLOCK)
                .unwrap();
            for gone in at..at + 3 {
                changed.insert(gone, vec![0; 4096]);
            }
        }
    }
    let expected = made.with(&changed);
    read_pieces(&file, &mut io, &mut rng, &expected, &what);
    // By the page cache, from a map of which nothing is loaded.
    drop((file, io));
    volume.close().unwrap();
    let (volume, mut io, file) = made.open();
    let options = OpenOptions::new().read(true).write(true).buffered(true);
    let cached = options.open(&volume, &mut io, "/file").unwrap();
    let mut buf = vec![0; 4 * 4096];
    for _ in 0..200 {
        let block = rng.random_range(0..file.len() / BLOCK - 4);
        cached.read_at(&mut io, &mut buf, block * BLOCK).unwrap();
        let whole: Vec<u8> = (block..block + 4).flat_map(&expected).collect();
        assert!(buf == whole, "block {block}; {what}");
    }
    drop(expected);
    write_cached(&cached, &mut io, &mut rng, &mut changed);
    let fiemap = file.fiemap(&mut io, 0, u64::MAX).unwrap();
    drop((file, cached, io));
    volume.close().unwrap();
    made.assert_fiemap(&fiemap);
    let mount = made.image.mount("");
    let host = HostFile::open(mount.path().join("file")).unwrap();
    let mut bytes = vec![0; 4096];
    for (block, expected) in &changed {
        host.read_exact_at(&mut bytes, block * BLOCK).unwrap();
        assert!(bytes == *expected, "block {block}; {what}");
    }
    drop(host);
    mount.unmount();
    made.image.assert_clean();
}

#[test]
fn threads_find_the_extents_of_a_file_that_changes() {
    if !kernel_is_here() {
        return;
    }
    let made = ManyExtents::make();
    let (volume, io, file) = made.open();
    drop(io);
    // Blocks that threads change do not meet: each has its own of every eight.
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (volume, file, made) = (&volume, &file, &made);
            scope.spawn(move || {
                let what = format!("thread {thread}, XTENT_SEED={}", made.seed);
                let mut rng = SmallRng::seed_from_u64(made.seed + thread);
                let mut io = volume.io().unwrap();
                let mut buf = vec![0; 4096];
                for n in 1..60 {
                    let block = rng.random_range(0..made.extents / 4) * 8 + 2 * thread + 1;
                    let at = block * BLOCK;
                    file.write_at(&mut io, &data(block, n), at)
                        .unwrap_or_else(|error| panic!("{error}; {what}"));
                    if thread == 0 && n % 8 == 0 {
                        // Its map is read again: nothing of it is loaded then.
                        file.punch_hole(&mut io, at..at + BLOCK).unwrap();
                        assert_eq!(file.read_at(&mut io, &mut buf, at).unwrap(), 4096);
                        assert!(buf == [0; 4096], "block {block}; {what}");
                    } else {
                        assert_eq!(file.read_at(&mut io, &mut buf, at).unwrap(), 4096);
                        assert!(buf == data(block, n), "block {block}; {what}");
                    }
                    let block = rng.random_range(0..made.extents) * 2;
                    file.read_at(&mut io, &mut buf, block * BLOCK).unwrap();
                    assert!(buf == made.block(block), "block {block}; {what}");
                }
            });
        }
    });
    drop(file);
    volume.close().unwrap();
    made.image.assert_clean();
}

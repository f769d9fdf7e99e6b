//! Fills a mounted XFS with one of everything that a reader can meet.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::{scaled, sys};

/// How much to make, and what the filesystem can do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// For contents and choices.
    pub seed: u64,
    /// Filesystem block.
    pub block_bytes: u64,
    /// Directory block.
    pub dir_block_bytes: usize,
    /// Inode.
    pub inode_bytes: u64,
    /// Names in the largest directory.
    pub big_dir_entries: usize,
    /// Extents of the file with most of them.
    pub extents: u64,
    /// Whether files can share blocks.
    pub reflink: bool,
    /// Names of one and the same hash in one directory, at most 4096. When they fill a leaf block
    /// and more, xfs_repair 6.1 takes the kernel's directory for broken ("expected > X / saw X"):
    /// for tests that run it, at most an eighth of `dir_block_bytes / 8`.
    pub names_of_one_hash: usize,
}

/// Makes all of it below `root`.
pub fn fill(root: &Path, plan: &Plan) {
    let mut filler = Filler {
        root,
        plan,
        rng: SmallRng::seed_from_u64(plan.seed),
    };
    filler.directories();
    filler.names();
    filler.symlinks("symlinks");
    filler.files();
    filler.sparse_files();
    filler.preallocated_files();
    if plan.reflink {
        filler.shared_files();
    }
    filler.many_extents();
    filler.nodes_and_owners();
    filler.times();
    filler.attributes();
    filler.freed_inodes();
    filler.fragmented();
}

struct Filler<'a> {
    root: &'a Path,
    plan: &'a Plan,
    rng: SmallRng,
}

fn file_name(bytes: Vec<u8>) -> OsString {
    OsString::from_vec(bytes)
}

fn create(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options
        .open(path)
        .unwrap_or_else(|error| panic!("create {}: {error}", path.display()))
}

impl Filler<'_> {
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn write(&mut self, file: &File, offset: u64, length: usize) {
        let bytes = self.bytes(length);
        file.write_all_at(&bytes, offset).unwrap();
    }

    /// A directory of `count` names: some files of their own, most of them links to one, some
    /// removed.
    fn populate(&mut self, dir: &Path, count: usize) {
        fs::create_dir_all(dir).unwrap();
        let first = dir.join("entry-0000000");
        if count > 0 {
            let file = create(&first);
            self.write(&file, 0, 100);
        }
        for i in 1..count {
            let path = dir.join(format!("entry-{i:07}"));
            match i % 50 {
                7 => drop(create(&path)),
                11 if count < 10_000 => fs::create_dir(&path).unwrap(),
                13 if count < 10_000 => symlink("entry-0000000", &path).unwrap(),
                _ => fs::hard_link(&first, &path).unwrap(),
            }
        }
        // Stale leaf entries and holes in the data blocks.
        for i in (2..count)
            .step_by(17)
            .filter(|i| ![7, 11].contains(&(i % 50)))
        {
            fs::remove_file(dir.join(format!("entry-{i:07}"))).unwrap();
        }
    }

    fn directories(&mut self) {
        let dirs = self.dir("directories");
        let d = self.plan.dir_block_bytes;
        // The last but one has every form already.
        let most = scaled(d / 4, d / 6);
        for count in [0, 1, 2, 5, d / 100, d / 60, d / 22, d / 10, d / 6, d / 4] {
            if count <= most {
                self.populate(&dirs.join(format!("of-{count}")), count);
            }
        }
        let big = self.plan.big_dir_entries;
        self.populate(&dirs.join("big"), big);
        // Names gone in most blocks: whole blocks freed in the middle.
        let shrunk = dirs.join("shrunk");
        let names = scaled(d, d.min(4096));
        self.populate(&shrunk, names);
        for i in (0..names).filter(|i| i % (d / 4) > 9) {
            let path = shrunk.join(format!("entry-{i:07}"));
            if fs::remove_file(&path).is_err() {
                let _ = fs::remove_dir(&path);
            }
        }
        let deep: PathBuf = (0..40).map(|i| format!("d{i}")).collect();
        fs::create_dir_all(dirs.join(deep)).unwrap();
    }

    fn names(&mut self) {
        let dir = self.dir("names");
        for byte in (1..=255u8).filter(|byte| !b"/.".contains(byte)) {
            create(&dir.join(file_name(vec![byte])));
        }
        for i in 0..60u8 {
            let mut name = vec![b'n'; 255];
            name[usize::from(i)] = 0xf0 ^ i;
            create(&dir.join(file_name(name)));
        }
        create(&dir.join("..."));
        // One long name alone, inside the inode where that is large enough.
        let alone = self.dir("names-alone");
        create(&alone.join(file_name(vec![0xff; 255])));
        let short = self.dir("names-short");
        create(&short.join(file_name(b"\xc3(\xa0".to_vec())));
        create(&short.join(file_name(vec![b'x'; 100])));
        // Bit 0 of a byte and bit 7 of the next cancel out in the hash.
        let same = self.dir("names-of-one-hash");
        let count = self.plan.names_of_one_hash;
        let target = same.join(file_name(b"PPPPPPPPPPPPP".to_vec()));
        create(&target);
        for i in 1..count {
            let mut name = *b"PPPPPPPPPPPPP";
            for bit in (0..12).filter(|bit| i >> bit & 1 == 1) {
                name[bit] ^= 1;
                name[bit + 1] ^= 0x80;
            }
            fs::hard_link(&target, same.join(file_name(name.to_vec()))).unwrap();
        }
    }

    fn symlinks(&mut self, dir: &str) {
        let dir = self.dir(dir);
        let inode = self.plan.inode_bytes as usize;
        let lengths = [1, 2, 60, 255, 300, 500, 967, 968, 969, 1000, 1022, 1023];
        let around_inline = (inode - 180)..(inode - 172);
        for length in lengths.into_iter().chain(around_inline) {
            if length > 1023 || dir.join(format!("to-{length}")).symlink_metadata().is_ok() {
                continue;
            }
            // Components of up to 200 bytes, some of them not UTF-8.
            let target: Vec<u8> = (0..length)
                .map(|i| {
                    if i % 200 == 199 {
                        b'/'
                    } else {
                        0x41 + (i % 150) as u8
                    }
                })
                .collect();
            symlink(file_name(target), dir.join(format!("to-{length}"))).unwrap();
        }
        symlink("../names", dir.join("to-names")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
    }

    fn files(&mut self) {
        let dir = self.dir("files");
        let sizes = [
            0, 1, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 8192, 65_537, 300_000, 1_048_579,
        ];
        for size in sizes {
            let file = create(&dir.join(format!("of-{size}")));
            self.write(&file, 0, size);
        }
        let linked = dir.join("linked");
        let file = create(&linked);
        self.write(&file, 0, 5000);
        for i in 0..5 {
            fs::hard_link(&linked, self.root.join(format!("link-{i}"))).unwrap();
        }
    }

    fn sparse_files(&mut self) {
        let dir = self.dir("sparse");
        let file = create(&dir.join("8g"));
        file.set_len(8 << 30).unwrap();
        for offset in [0, (1 << 30) + 17, (4 << 30) - 3, (8 << 30) - 5000] {
            self.write(&file, offset, 5000);
        }
        create(&dir.join("hole-8g")).set_len(8 << 30).unwrap();
        create(&dir.join("hole-of-1-byte")).set_len(1).unwrap();
        create(&dir.join("hole-1p")).set_len((1 << 50) + 1).unwrap();
        let file = create(&dir.join("tail"));
        file.set_len(1_000_001).unwrap();
        self.write(&file, 300_000, 1);
        let file = create(&dir.join("scattered"));
        for _ in 0..100 {
            let offset = self.rng.random_range(0..16 << 20);
            let length = self.rng.random_range(1..20_000);
            self.write(&file, offset, length);
        }
    }

    fn preallocated_files(&mut self) {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        let dir = self.dir("preallocated");
        let file = create(&dir.join("inside"));
        sys::fallocate(&file, 0, 0, 1 << 20).unwrap();
        let file = create(&dir.join("beyond-an-empty-file"));
        sys::fallocate(&file, KEEP, 0, 1 << 20).unwrap();
        let file = create(&dir.join("beyond-the-end"));
        self.write(&file, 0, 10_001);
        sys::fallocate(&file, KEEP, 0, 1 << 20).unwrap();
        let file = create(&dir.join("far-beyond-the-end"));
        self.write(&file, 0, 10_001);
        sys::fallocate(&file, KEEP, 8 << 20, 1 << 20).unwrap();
        let file = create(&dir.join("partly-written"));
        sys::fallocate(&file, 0, 0, 4 << 20).unwrap();
        for _ in 0..40 {
            let offset = self.rng.random_range(0..4 << 20);
            let length = self.rng.random_range(1..30_000);
            self.write(&file, offset, length);
        }
        let file = create(&dir.join("punched"));
        self.write(&file, 0, 2 << 20);
        for _ in 0..20 {
            let (offset, length) = (self.rng.random_range(0..2 << 20), 20_000);
            sys::fallocate(&file, PUNCH, offset, length).unwrap();
            let offset = self.rng.random_range(0..2 << 20);
            sys::fallocate(&file, ZERO, offset, length).unwrap();
        }
    }

    fn shared_files(&mut self) {
        let dir = self.dir("shared");
        let source = create(&dir.join("source"));
        self.write(&source, 0, 3 << 20);
        source.sync_all().unwrap();
        for i in 0..6u64 {
            let clone = create(&dir.join(format!("clone-{i}")));
            sys::clone_file(&source, &clone).unwrap();
            for _ in 0..i * 4 {
                let offset = self.rng.random_range(0..3 << 20);
                let length = self.rng.random_range(1..30_000);
                self.write(&clone, offset, length);
            }
            clone.sync_all().unwrap();
        }
        let never_shared_twice = create(&dir.join("once"));
        self.write(&never_shared_twice, 0, 100_000);
        let clone_then_gone = create(&dir.join("gone"));
        sys::clone_file(&never_shared_twice, &clone_then_gone).unwrap();
        drop(clone_then_gone);
        fs::remove_file(dir.join("gone")).unwrap();
    }

    /// A file whose every second block is data, beside one with as many unwritten ones.
    fn many_extents(&mut self) {
        let dir = self.dir("many-extents");
        let block = self.plan.block_bytes;
        let count = self.plan.extents;
        let file = create(&dir.join("data-and-holes"));
        file.set_len(count * 2 * block).unwrap();
        let bytes = self.bytes(block as usize + 256);
        for i in 0..count {
            let from = i as usize % 256;
            let bytes = &bytes[from..from + block as usize];
            file.write_all_at(bytes, i * 2 * block).unwrap();
        }
        let file = create(&dir.join("all-kinds"));
        sys::fallocate(&file, 0, 0, count / 4 * 4 * block).unwrap();
        for i in 0..count / 4 {
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            sys::fallocate(&file, punch, i * 4 * block, block).unwrap();
            if i % 8 == 0 {
                self.write(&file, (i * 4 + 2) * block, 100);
            }
        }
    }

    fn nodes_and_owners(&mut self) {
        let dir = self.dir("nodes");
        for (name, kind, major, minor) in [
            ("fifo", libc::S_IFIFO, 0, 0),
            ("socket", libc::S_IFSOCK, 0, 0),
            ("char", libc::S_IFCHR, 4, 65),
            ("block", libc::S_IFBLK, 259, 70_000),
            ("whiteout", libc::S_IFCHR, 0, 0),
        ] {
            sys::make_node(&dir.join(name), kind | 0o640, major, minor).unwrap();
        }
        for (i, mode) in [0o0, 0o7777, 0o4755, 0o2711, 0o1777, 0o444]
            .into_iter()
            .enumerate()
        {
            let path = dir.join(format!("mode-{mode:o}"));
            create(&path);
            let id = [0, 1, 65_534, 65_536, 4_000_000_000, u32::MAX - 1][i];
            lchown(&path, Some(id), Some(u32::MAX - 1 - id)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    fn times(&mut self) {
        let dir = self.dir("times");
        // The kernel clamps to what the format can hold.
        let seconds = [
            -5_000_000_000,
            -2_147_483_649,
            -2_147_483_648,
            -1,
            0,
            1,
            2_147_483_647,
            2_147_483_648,
            4_102_444_800,
            16_299_260_424,
            16_299_260_425,
            99_999_999_999,
        ];
        for (i, &second) in seconds.iter().enumerate() {
            let path = dir.join(format!("at-{second}"));
            match i % 3 {
                0 => fs::create_dir(&path).unwrap(),
                1 => symlink("nowhere", &path).unwrap(),
                _ => drop(create(&path)),
            }
            let other = seconds[(i + 5) % seconds.len()];
            sys::set_times(&path, (second, 999_999_999), (other, i as i64)).unwrap();
        }
    }

    /// Attributes move the border between the forks, and may take the inode's room from the data
    /// fork.
    fn attributes(&mut self) {
        let dir = self.dir("attributes");
        for length in [1, 40, 150, 400, 3000, 60_000] {
            let value = self.bytes(length);
            let set = |path: &Path| sys::set_xattr(path, "trusted.xtent", &value).unwrap();
            let path = dir.join(format!("file-{length}"));
            let file = create(&path);
            self.write(&file, 0, 3000);
            set(&path);
            let path = dir.join(format!("symlink-{length}"));
            symlink("t".repeat(100), &path).unwrap();
            set(&path);
            let path = dir.join(format!("dir-{length}"));
            self.populate(&path, 4);
            set(&path);
        }
    }

    fn freed_inodes(&mut self) {
        let dir = self.dir("freed");
        for i in 0..600 {
            create(&dir.join(format!("f{i}")));
        }
        for i in (0..600).filter(|i| i % 3 != 0 || (100..300).contains(i)) {
            fs::remove_file(dir.join(format!("f{i}"))).unwrap();
        }
    }
}

/// Names, links and inodes made when free space is in single blocks: directories and their blocks
/// in many extents, and inode chunks of which only a part exists.
impl Filler<'_> {
    fn fragmented(&mut self) {
        let dir = self.dir("fragmented");
        let names = dir.join("names");
        fs::create_dir(&names).unwrap();
        let target = create(&dir.join("target"));
        drop(target);
        let root = File::open(self.root).unwrap();
        // What waits for write-back holds far more blocks than it will need.
        sys::sync_filesystem(&root).unwrap();
        sys::set_reserved_blocks(&root, 0).unwrap();
        let hog = create(&dir.join("hog"));
        let end = take_all_space(&hog);
        let block = self.plan.block_bytes;
        let free_bytes = 12 << 20;
        // Every second block, spread over all of the file and so over all allocation groups.
        punch(&hog, (0, end / 2), block, 1, 2, free_bytes);
        for i in 0..1200u32 {
            let mut name = format!("{i:08}").into_bytes();
            name.resize(255, b'.');
            if fs::hard_link(dir.join("target"), names.join(file_name(name))).is_err() {
                break;
            }
        }
        self.symlinks("fragmented/symlinks");
        // Runs too short for a chunk of inodes, long enough for half of one.
        let chunk = 64 * self.plan.inode_bytes / block;
        punch(&hog, (end / 2, end), block, chunk - 1, chunk, free_bytes);
        let inodes = dir.join("inodes");
        fs::create_dir(&inodes).unwrap();
        for i in 0..2000 {
            if File::create(inodes.join(format!("i{i}"))).is_err() {
                break;
            }
        }
    }
}

/// Preallocates until nothing is left; returns the file's end.
fn take_all_space(file: &File) -> u64 {
    let mut end = 0;
    let mut step = 256u64 << 20;
    while step >= 64 << 10 {
        match sys::fallocate(file, 0, end, step) {
            Ok(()) => end += step,
            Err(_) => step /= 2,
        }
    }
    end
}

/// Punches runs of `run` blocks out of each `stride`, evenly over the range, `total` bytes in all.
fn punch(file: &File, range: (u64, u64), block: u64, run: u64, stride: u64, total: u64) {
    let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let runs = (total / (run * block)).max(1);
    // Groups of 64 runs side by side.
    let groups = runs.div_ceil(64);
    let group_step = (range.1 - range.0) / groups / block * block;
    for group in 0..groups {
        let start = range.0.next_multiple_of(block) + group * group_step;
        for i in 0..64 {
            let offset = start + i * stride * block;
            if offset + stride * block <= range.1 {
                sys::fallocate(file, flags, offset, run * block).unwrap();
            }
        }
    }
}

//! Superblocks and inodes with one field changed and the checksum made right: what the kernel
//! refuses to mount is refused, and what it reads is read.
//!
//! `XTENT_RUNS` (60) superblocks of all changes, chosen by `XTENT_SEED`; all changes of inodes, in
//! an order that the seed gives.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use common::image::Image;
use common::judge::{ImageDisk, Judge};
use common::{kernel_is_here, number, sys};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use xtent::internals::xfs::dir::DirCursor;
use xtent::internals::xfs::format::{inode, set_checksum, superblock};
use xtent::internals::xfs::{Fs, FsOptions, Ino, Inode, InodeType, Recovery, symlink as link};

/// A field: its name, where it lies, its bytes.
type Field = (&'static str, usize, usize);

/// The superblock's, but for the magic, names, numbers that nothing depends on, and the checksum.
const SUPERBLOCK: [Field; 54] = [
    ("blocksize", 4, 4),
    ("dblocks", 8, 8),
    ("rblocks", 16, 8),
    ("rextents", 24, 8),
    ("uuid", 32, 1),
    ("logstart", 48, 8),
    ("rootino", 56, 8),
    ("rbmino", 64, 8),
    ("rsumino", 72, 8),
    ("rextsize", 80, 4),
    ("agblocks", 84, 4),
    ("agcount", 88, 4),
    ("rbmblocks", 92, 4),
    ("logblocks", 96, 4),
    ("versionnum", 100, 2),
    ("sectsize", 102, 2),
    ("inodesize", 104, 2),
    ("inopblock", 106, 2),
    ("blocklog", 120, 1),
    ("sectlog", 121, 1),
    ("inodelog", 122, 1),
    ("inopblog", 123, 1),
    ("agblklog", 124, 1),
    ("rextslog", 125, 1),
    ("inprogress", 126, 1),
    ("imax_pct", 127, 1),
    ("icount", 128, 8),
    ("ifree", 136, 8),
    ("fdblocks", 144, 8),
    ("frextents", 152, 8),
    ("uquotino", 160, 8),
    ("gquotino", 168, 8),
    ("qflags", 176, 2),
    ("flags", 178, 1),
    ("shared_vn", 179, 1),
    ("inoalignmt", 180, 4),
    ("unit", 184, 4),
    ("width", 188, 4),
    ("dirblklog", 192, 1),
    ("logsectlog", 193, 1),
    ("logsectsize", 194, 2),
    ("logsunit", 196, 4),
    ("features2", 200, 4),
    ("bad_features2", 204, 4),
    ("features_compat", 208, 4),
    ("features_ro_compat", 212, 4),
    ("features_incompat", 216, 4),
    ("features_log_incompat", 220, 4),
    ("spino_align", 228, 4),
    ("pquotino", 232, 8),
    ("lsn", 240, 8),
    ("meta_uuid", 248, 1),
    ("behind the last field", 264, 4),
    ("the end of the sector", 508, 4),
];

/// Fields of the inode, except those that make the kernel refuse all inodes of the cluster (magic,
/// version, next_unlinked), and the checksum.
const INODE: [Field; 31] = [
    ("mode", 2, 2),
    ("format", 5, 1),
    ("onlink", 6, 2),
    ("uid", 8, 4),
    ("gid", 12, 4),
    ("nlink", 16, 4),
    ("projid_lo", 20, 2),
    ("big_nextents", 24, 8),
    ("atime", 32, 8),
    ("mtime", 40, 8),
    ("ctime", 48, 8),
    ("size", 56, 8),
    ("nblocks", 64, 8),
    ("extsize", 72, 4),
    ("nextents", 76, 4),
    ("anextents", 80, 2),
    ("forkoff", 82, 1),
    ("aformat", 83, 1),
    ("dmevmask", 84, 4),
    ("dmstate", 88, 2),
    ("flags", 90, 2),
    ("generation", 92, 4),
    ("changecount", 104, 8),
    ("lsn", 112, 8),
    ("flags2", 120, 8),
    ("cowextsize", 128, 4),
    ("pad2", 132, 4),
    ("crtime", 144, 8),
    ("ino", 152, 8),
    ("fork, first word", 176, 8),
    ("fork, second word", 184, 8),
];

/// Values that a field may have instead.
fn values((name, _, len): Field, now: u64) -> Vec<u64> {
    let bits = 8 * u32::try_from(len).unwrap();
    let most = u64::MAX >> (64 - bits);
    let mut values = vec![
        0,
        1,
        now.wrapping_add(1),
        now.wrapping_sub(1),
        now << 1,
        now >> 1,
        most,
        1 << (bits - 1),
    ];
    if len <= 4 || name == "flags2" {
        values.extend((0..bits).map(|bit| now ^ (1 << bit)));
    }
    if name == "mode" {
        values.extend((0..16).map(|kind| now & 0xfff | kind << 12));
    }
    if name.ends_with("format") {
        values.extend(0..7);
    }
    let mut values: Vec<u64> = values.into_iter().map(|value| value & most).collect();
    values.sort_unstable();
    values.dedup();
    values.retain(|value| *value != now);
    values
}

fn get(raw: &[u8], (_, at, len): Field) -> u64 {
    let fold = |value, byte: &u8| value << 8 | u64::from(*byte);
    raw[at..at + len].iter().fold(0, fold)
}

fn put(raw: &mut [u8], (_, at, len): Field, value: u64) {
    raw[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
}

/// All changes of these fields of `raw`, shuffled.
fn changes(raw: &[u8], fields: &[Field], rng: &mut SmallRng) -> Vec<(Field, u64)> {
    let mut all = Vec::new();
    for field in fields {
        let values = values(*field, get(raw, *field));
        all.extend(values.into_iter().map(|value| (*field, value)));
    }
    all.shuffle(rng);
    all
}

const OPTIONS: FsOptions = FsOptions {
    norecovery: true,
    writable: false,
    cache_bytes: 1 << 20,
    recovery: Recovery::Refuse,
    replay_bytes: 0,
};

#[test]
fn superblocks() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let mut rng = SmallRng::seed_from_u64(seed);
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    File::create(mount.path().join("file")).unwrap();
    mount.unmount();
    let mut disk = ImageDisk::open(image.path(), 512);
    let judge = Judge::new(&image.path(), 512);
    let raw = disk.get(0, 512);
    let mut wrong = Vec::new();
    let mut tried = 0;
    let count = usize::try_from(number("XTENT_RUNS", 60)).unwrap();
    for (field, value) in changes(&raw, &SUPERBLOCK, &mut rng).into_iter().take(count) {
        tried += 1;
        let mut changed = raw.clone();
        put(&mut changed, field, value);
        set_checksum(&mut changed, superblock::CRC_OFFSET);
        disk.put(0, &changed);
        let kernel = judge.mounts("norecovery", |_| ());
        let xtent = Fs::open_with(&mut disk, &OPTIONS).and_then(|fs| {
            let root = fs.read_root(&mut disk)?;
            names(&fs, &mut disk, &root)
        });
        if xtent.is_ok() != kernel {
            let (name, now) = (field.0, get(&raw, field));
            wrong.push(format!(
                "{name} {now:#x} -> {value:#x}: the kernel mounts it: {kernel}; {xtent:?}"
            ));
        }
    }
    disk.put(0, &raw);
    println!("seed {seed}: {tried} changes tried");
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}

/// Reads a directory to its end.
fn names(fs: &Fs, disk: &mut ImageDisk, inode: &Inode) -> xtent::Result<()> {
    let mut cursor = DirCursor::new();
    while cursor.next_entry(fs, disk, inode)?.is_some() {}
    Ok(())
}

/// Groups of inodes.
const GROUPS: usize = 8;
/// The files of a group.
const KINDS: [&str; 5] = ["file", "dir", "link", "long", "node"];

/// Files of each kind, below a directory of their own: a group of inodes.
fn fill(root: &Path) {
    for group in 0..GROUPS {
        let dir = root.join(group.to_string());
        fs::create_dir(&dir).unwrap();
        let file = File::create(dir.join("file")).unwrap();
        file.write_all_at(&[7; 20_000], 0).unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        File::create(dir.join("dir/a")).unwrap();
        symlink("somewhere", dir.join("link")).unwrap();
        symlink("l".repeat(700), dir.join("long")).unwrap();
        sys::make_node(&dir.join("node"), libc::S_IFCHR | 0o600, 5, 1).unwrap();
    }
}

/// The files of all groups, one group after the other.
fn inodes_of(root: &Path) -> Vec<(PathBuf, Ino)> {
    let mut inodes = Vec::new();
    for group in 0..GROUPS {
        for name in KINDS {
            let path = Path::new(&group.to_string()).join(name);
            let stat = fs::symlink_metadata(root.join(&path)).unwrap();
            inodes.push((path, Ino(stat.ino())));
        }
    }
    inodes
}

/// What both show of a file.
type Shown = (u16, u32, u32, u64, i64, i64);

fn kernel_shows(path: &Path) -> std::io::Result<Shown> {
    let stat = fs::symlink_metadata(path)?;
    let kind = stat.file_type();
    if kind.is_file() && stat.len() < 64 << 20 {
        fs::read(path)?;
    } else if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            entry?;
        }
    } else if kind.is_symlink() {
        fs::read_link(path)?;
    }
    let mode = u16::try_from(stat.mode()).unwrap();
    let nlink = u32::try_from(stat.nlink()).unwrap();
    Ok((
        mode,
        nlink,
        stat.uid(),
        stat.len(),
        stat.mtime(),
        stat.mtime_nsec(),
    ))
}

fn xtent_shows(fs: &Fs, disk: &mut ImageDisk, ino: Ino) -> xtent::Result<Shown> {
    let inode = fs.read_inode(disk, ino)?;
    match inode.file_type {
        InodeType::Regular => drop(fs.extents(disk, &inode)?),
        InodeType::Directory => names(fs, disk, &inode)?,
        InodeType::Symlink => drop(link::read_link(fs, disk, &inode)?),
        _ => (),
    }
    let mtime = inode.mtime;
    Ok((
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.size,
        mtime.seconds,
        mtime.nanoseconds.into(),
    ))
}

#[test]
fn inodes() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let mut rng = SmallRng::seed_from_u64(seed);
    let image = Image::make(320 << 20, 512, &["-i", "nrext64=0"]);
    let mount = image.mount("");
    fill(mount.path());
    let inodes = inodes_of(mount.path());
    mount.unmount();
    let mut disk = ImageDisk::open(image.path(), 512);
    let judge = Judge::new(&image.path(), 512);
    let fs = Fs::open_with(&mut disk, &OPTIONS).unwrap();
    let mut queues = Vec::new();
    for (path, ino) in inodes {
        let addr = fs.read_inode(&mut disk, ino).unwrap().addr_bytes;
        let raw = disk.get(addr, 512);
        // The groups share the changes of a kind of file.
        let group = queues.len() / KINDS.len();
        let mut all = changes(&raw, &INODE, &mut rng);
        all.sort_unstable();
        let mut own: Vec<_> = all.into_iter().skip(group).step_by(GROUPS).collect();
        own.shuffle(&mut rng);
        queues.push((path, ino, addr, raw, own));
    }
    let mut wrong = Vec::new();
    let mut tried = 0;
    loop {
        let mut now = Vec::new();
        for (path, ino, addr, raw, changes) in &mut queues {
            let Some((field, value)) = changes.pop() else {
                continue;
            };
            let mut changed = raw.clone();
            put(&mut changed, field, value);
            set_checksum(&mut changed, inode::CRC_OFFSET);
            disk.put(*addr, &changed);
            let what = format!(
                "{}: {} {:#x} -> {value:#x}",
                path.display(),
                field.0,
                get(raw, field)
            );
            now.push((path.clone(), *ino, what));
        }
        if now.is_empty() {
            break;
        }
        tried += now.len();
        let fs = Fs::open_with(&mut disk, &OPTIONS).unwrap();
        let mounted = judge.mounts("norecovery", |root| {
            for (path, ino, what) in &now {
                let Ok(kernel) = kernel_shows(&root.join(path)) else {
                    continue;
                };
                match xtent_shows(&fs, &mut disk, *ino) {
                    Ok(xtent) if xtent == kernel => (),
                    xtent => wrong.push(format!("{what}: the kernel shows {kernel:?}; {xtent:?}")),
                }
            }
        });
        assert!(mounted, "the kernel mounts it whatever the inodes are");
    }
    println!("seed {seed}: {tried} changes tried");
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}

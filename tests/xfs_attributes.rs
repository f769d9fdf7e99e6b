//! Extended attributes that xtent sets and removes, in every form that they have on disk: the
//! kernel finds those of a model after a crash and after a clean end, and changes them further.
//!
//! `XTENT_RUNS` (4) disks of `XTENT_SEED`. A failure prints the seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use common::image::Image;
use common::judge::{ImageDisk, open_to_change};
use common::{kernel_is_here, number, random_bytes, scaled, sys};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::xfs::check::check;
use xtent::internals::xfs::format::attr::{FLAG_ROOT, FLAG_SECURE};
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fork, Fs, Ino, InodeId, SetHow, SpaceDenial};

/// Namespace and name.
type Name = (u8, Vec<u8>);
type Attrs = BTreeMap<Name, Vec<u8>>;

const NOW: InodeTimestamp = InodeTimestamp {
    seconds: 1_700_000_000,
    nanoseconds: 5,
};
/// Bytes of names of one file at most: `listxattr` returns 64 KiB.
const MOST_NAME_BYTES: usize = 40_000;

fn prefix(namespace: u8) -> &'static [u8] {
    match namespace {
        FLAG_ROOT => b"trusted.",
        FLAG_SECURE => b"security.",
        _ => b"user.",
    }
}

fn kernel_name((namespace, name): &Name) -> Vec<u8> {
    [prefix(*namespace), name].concat()
}

/// A file with its attributes.
struct Attributed {
    path: String,
    id: InodeId,
    /// `user` attributes are for ordinary files and directories.
    has_user: bool,
    attrs: Attrs,
}

struct Disk {
    image: Image,
    files: Vec<Attributed>,
    block: usize,
    what: String,
}

/// Files whose data forks have all forms; none has attributes.
fn populate(root: &Path) -> Vec<(&'static str, bool)> {
    let pieces = |name: &str, count: u64| {
        let file = File::create(root.join(name)).unwrap();
        for piece in 0..count {
            file.write_all_at(&[7; 100], piece * (128 << 10)).unwrap();
        }
    };
    pieces("empty", 0);
    pieces("one", 1);
    pieces("eight", 8);
    pieces("twelve", 12);
    pieces("sixteen", 16);
    pieces("many", 90);
    fs::create_dir(root.join("dir")).unwrap();
    File::create(root.join("dir/name")).unwrap();
    symlink("target", root.join("link")).unwrap();
    symlink("long".repeat(200), root.join("longlink")).unwrap();
    sys::make_node(&root.join("node"), 0o020_600, 1, 3).unwrap();
    vec![
        ("empty", true),
        ("one", true),
        ("eight", true),
        ("twelve", true),
        ("sixteen", true),
        ("many", true),
        ("dir", true),
        ("link", false),
        ("longlink", false),
        ("node", false),
    ]
}

impl Disk {
    fn new(rng: &mut SmallRng, block: usize) -> Self {
        let sector = match block {
            ..4096 => 512,
            _ => *[512, 4096].choose(rng).unwrap(),
        };
        let most = (block / 2).min(2048);
        let inodes: Vec<_> = [512, 1024, 2048]
            .into_iter()
            .filter(|i| *i <= most)
            .collect();
        let inode = format!("size={}", inodes.choose(rng).unwrap());
        let features = *["rmapbt=0,reflink=0", "rmapbt=1,reflink=1"]
            .choose(rng)
            .unwrap();
        let size = format!("size={block}");
        let large = format!("nrext64={}", rng.random_range(0..2));
        let data = "agcount=2";
        let args = [
            "-b", &size, "-i", &inode, "-i", &large, "-m", features, "-d", data,
        ];
        let what = format!("sectors of {sector}, {args:?}");
        let image = Image::make(800 << 20, sector, &args);
        let mount = image.mount("");
        let paths = populate(mount.path());
        let inos: Vec<_> = paths
            .iter()
            .map(|(path, _)| fs::symlink_metadata(mount.path().join(path)).unwrap().ino())
            .collect();
        mount.unmount();
        let mut device = ImageDisk::open(image.path(), sector);
        let fs = open_to_change(&mut device);
        let files = paths.iter().zip(inos).map(|((path, has_user), ino)| {
            let inode = fs.read_inode(&mut device, Ino(ino)).unwrap();
            Attributed {
                path: (*path).to_owned(),
                id: InodeId::of(&inode),
                has_user: *has_user,
                attrs: Attrs::new(),
            }
        });
        let files = files.collect();
        Self {
            image,
            files,
            block,
            what,
        }
    }

    fn open(&self) -> (ImageDisk, Fs) {
        let mut disk = ImageDisk::open(self.image.path(), self.image.sector_bytes());
        let fs = open_to_change(&mut disk);
        (disk, fs)
    }

    /// What the kernel says of an image.
    fn compare(&self, image: &Image) {
        self.compare_without_repair(image);
        image.assert_clean();
    }

    fn compare_without_repair(&self, image: &Image) {
        let mount = image.mount("");
        for file in &self.files {
            compare_file(&mount.path().join(&file.path), file, &self.what);
        }
        mount.unmount();
        let report = check(&mut ImageDisk::open(image.path(), image.sector_bytes())).unwrap();
        assert!(report.is_clean(), "{:?}; {}", report.findings, self.what);
    }
}

fn compare_file(path: &Path, file: &Attributed, what: &str) {
    let what = format!("{}; {what}", file.path);
    let mut found = sys::list_xattrs(path).unwrap();
    found.sort_unstable();
    let mut names: Vec<_> = file.attrs.keys().map(kernel_name).collect();
    names.sort_unstable();
    assert_eq!(found.len(), names.len(), "{what}");
    assert!(found == names, "other names; {what}");
    for (name, value) in &file.attrs {
        let found = sys::xattr(path, kernel_name(name)).unwrap();
        let shown = name.1.escape_ascii();
        assert!(
            found.as_ref() == Some(value),
            "{shown}: another value; {what}"
        );
    }
}

/// A name of few that are there, of one that collides with others, or any.
fn name(rng: &mut SmallRng, file: &Attributed) -> Name {
    let namespaces: &[u8] = match file.has_user {
        true => &[0, FLAG_ROOT, FLAG_SECURE],
        false => &[FLAG_ROOT, FLAG_SECURE],
    };
    let namespace = *namespaces.choose(rng).unwrap();
    let most = 255 - prefix(namespace).len();
    let len = match rng.random_range(0..10) {
        0 => rng.random_range(1..=most),
        1 => most,
        2 => 1,
        _ => rng.random_range(2..20),
    };
    let name = (0..len).map(|_| rng.random_range(0x21..0x7f)).collect();
    (namespace, name)
}

/// One of 256 names of one hash: a changed bit is undone by the next byte.
fn colliding(number: u32) -> Vec<u8> {
    let mut name = [0x41; 16];
    for (bit, pair) in name.chunks_mut(2).enumerate() {
        if number >> bit & 1 == 1 {
            pair[0] ^= 1;
            pair[1] ^= 0x80;
        }
    }
    name.to_vec()
}

fn value(rng: &mut SmallRng, block: usize) -> Vec<u8> {
    let len = match rng.random_range(0..40) {
        0 => 0,
        1 => 65536,
        2 | 3 => rng.random_range(0..=65536),
        4..=7 => rng.random_range(0..=block),
        8 => (block - 56) * rng.random_range(1..=2).min(65536 / block),
        9..=12 => rng.random_range(200..300),
        _ => rng.random_range(0..100),
    };
    random_bytes(rng.random(), len)
}

/// Changes attributes of a file, and the model with them.
fn change(
    rng: &mut SmallRng,
    file: &mut Attributed,
    (disk, fs): (&mut ImageDisk, &Fs),
    block: usize,
) {
    let name_bytes: usize = file.attrs.keys().map(|(_, name)| name.len() + 10).sum();
    let removes = name_bytes > MOST_NAME_BYTES || rng.random_range(0..100) < 35;
    let known: Vec<_> = file.attrs.keys().cloned().collect();
    let old = known.choose(rng).cloned();
    let name = match old {
        Some(old) if removes || rng.random_range(0..3) == 0 => old,
        _ => name(rng, file),
    };
    let key = (name.0, &name.1[..]);
    let is_there = file.attrs.contains_key(&name);
    if removes {
        let removed = fs.remove_attribute(disk, file.id, key, NOW);
        match removed {
            Ok(_) => assert!(is_there),
            Err(error) => assert!(!is_there && error.kind() == ErrorKind::NotFound, "{error}"),
        }
        file.attrs.remove(&name);
        return;
    }
    let value = value(rng, block);
    let how = *[SetHow::Any, SetHow::Create, SetHow::Replace]
        .choose(rng)
        .unwrap();
    let may = match how {
        SetHow::Any => true,
        SetHow::Create => !is_there,
        SetHow::Replace => is_there,
    };
    match fs.set_attribute(disk, file.id, key, &value, (how, NOW)) {
        Ok(_) => assert!(may),
        Err(error) => {
            let kinds = [ErrorKind::NotFound, ErrorKind::InvalidInput];
            assert!(!may && kinds.contains(&error.kind()), "{error}");
            return;
        }
    }
    file.attrs.insert(name, value);
}

/// What a reader of the filesystem sees before anything is in place.
fn compare_read(disk: &mut ImageDisk, fs: &Fs, file: &Attributed) {
    let inode = fs.read_inode(disk, file.id.ino).unwrap();
    let mut found = Attrs::new();
    fs.each_attribute(disk, &inode, &mut |namespace, name, value| {
        let old = found.insert((namespace, name.to_vec()), value.to_vec());
        assert!(old.is_none(), "twice");
        Ok(())
    })
    .unwrap();
    assert!(found == file.attrs, "{}", file.path);
}

/// The kernel changes attributes.
fn change_by_kernel(rng: &mut SmallRng, disk: &mut Disk) {
    let mount = disk.image.mount("");
    for file in &mut disk.files {
        let path = mount.path().join(&file.path);
        // Where it removes the fork of a long symbolic link, xfs_repair 6.1 complains.
        let changes = if file.path == "longlink" { 0 } else { 12 };
        for _ in 0..changes {
            let known: Vec<_> = file.attrs.keys().cloned().collect();
            let new = name(rng, file);
            match known.choose(rng).filter(|_| rng.random()) {
                Some(name) => {
                    sys::remove_xattr(&path, kernel_name(name)).unwrap();
                    file.attrs.remove(name);
                }
                None => {
                    let value = value(rng, disk.block);
                    sys::set_xattr(&path, kernel_name(&new), &value).unwrap();
                    file.attrs.insert(new, value);
                }
            }
        }
    }
    mount.unmount();
}

fn run_disk(seed: u64, block: usize, changes: u32) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut disk = Disk::new(&mut rng, block);
    disk.what = format!("XTENT_SEED={seed} block {block}; {}", disk.what);
    println!("{}", disk.what);
    for _ in 0..3 {
        let (mut device, fs) = disk.open();
        for number in 0..changes {
            // Most changes are of a few files.
            let most = disk.files.len();
            let index = rng.random_range(0..most).min(rng.random_range(0..most));
            let file = &mut disk.files[index];
            change(&mut rng, file, (&mut device, &fs), block);
            if number % 50 == 0 {
                compare_read(&mut device, &fs, file);
            }
            if rng.random_range(0..40) == 0 {
                fs.sync(&mut device).unwrap();
            }
        }
        fs.sync(&mut device).unwrap();
        let copy = Image::empty(0, disk.image.sector_bytes());
        fs::copy(disk.image.path(), copy.path()).unwrap();
        disk.compare(&copy);
        fs.clean_log(&mut device).unwrap();
        drop((device, fs));
        disk.compare(&disk.image);
        change_by_kernel(&mut rng, &mut disk);
        disk.image.assert_clean();
    }
    // All of them go again.
    let (mut device, fs) = disk.open();
    for file in &mut disk.files {
        // The kernel may have left an empty fork.
        let had_any = !file.attrs.is_empty();
        for (namespace, name) in std::mem::take(&mut file.attrs).into_keys() {
            fs.remove_attribute(&mut device, file.id, (namespace, &name), NOW)
                .unwrap();
        }
        let inode = fs.read_inode(&mut device, file.id.ino).unwrap();
        let stays = matches!(inode.data, Fork::Btree(_)) || file.path == "longlink";
        if had_any && !stays {
            assert!(!inode.has_attribute_fork(), "{}", file.path);
        }
    }
    fs.clean_log(&mut device).unwrap();
    drop((device, fs));
    disk.compare(&disk.image);
}

fn run_block(block: usize) {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    for run in 0..number("XTENT_RUNS", 2) {
        run_disk(seed + run, block, scaled(700, 100));
    }
}

#[test]
fn blocks_of_1_kib() {
    run_block(1024);
}

#[test]
fn blocks_of_4_kib() {
    run_block(4096);
}

#[test]
fn blocks_of_16_kib() {
    run_block(16384);
}

#[test]
fn blocks_of_64_kib() {
    run_block(65536);
}

#[test]
fn names_of_one_hash_are_found_in_many_leaves() {
    if !kernel_is_here() {
        return;
    }
    let mut rng = SmallRng::seed_from_u64(number("XTENT_SEED", 1));
    let mut disk = Disk::new(&mut rng, 1024);
    for round in 0..3 {
        let (mut device, fs) = disk.open();
        let file = &mut disk.files[0];
        for number in 0..500 {
            let name = match rng.random_range(0..4) {
                0 => name(&mut rng, file),
                _ => (0, colliding(rng.random_range(0..256))),
            };
            let key = (name.0, &name.1[..]);
            if rng.random_range(0..3) < round {
                let removed = fs.remove_attribute(&mut device, file.id, key, NOW);
                assert_eq!(removed.is_ok(), file.attrs.remove(&name).is_some());
            } else {
                let value = random_bytes(number, rng.random_range(0..700));
                fs.set_attribute(&mut device, file.id, key, &value, (SetHow::Any, NOW))
                    .unwrap();
                file.attrs.insert(name, value);
            }
            if number % 50 == 0 {
                compare_read(&mut device, &fs, file);
            }
        }
        fs.clean_log(&mut device).unwrap();
        drop((device, fs));
        // xfs_repair takes equal hashes in neighbouring leaves for damage, which the kernel makes.
        disk.compare_without_repair(&disk.image);
        let mount = disk.image.mount("");
        let file = &mut disk.files[0];
        let path = mount.path().join(&file.path);
        for name in file.attrs.keys().step_by(3).cloned().collect::<Vec<_>>() {
            sys::remove_xattr(&path, kernel_name(&name)).unwrap();
            file.attrs.remove(&name);
        }
        mount.unmount();
    }
}

#[test]
fn denied_space_leaves_nothing_behind() {
    if !kernel_is_here() || !cfg!(debug_assertions) {
        return;
    }
    let mut rng = SmallRng::seed_from_u64(number("XTENT_SEED", 1));
    let mut disk = Disk::new(&mut rng, 1024);
    let (mut device, fs) = disk.open();
    let mut denials = 0;
    for number in 0..400 {
        let index = number % 3;
        let file = &mut disk.files[index];
        let name = name(&mut rng, file);
        let value = value(&mut rng, 1024);
        let key = (name.0, &name.1[..]);
        for denied in 0.. {
            SpaceDenial::plan(denied..denied + 1);
            let set = fs.set_attribute(&mut device, file.id, key, &value, (SetHow::Any, NOW));
            let asked = SpaceDenial::plan(0..0);
            match set {
                // Without it there may be another way, as for the free list of a group.
                Ok(_) => {
                    file.attrs.insert(name.clone(), value.clone());
                    if asked <= denied {
                        break;
                    }
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}"),
            }
            denials += 1;
            if denials % 10 == 0 {
                compare_read(&mut device, &fs, file);
            }
        }
    }
    assert!(denials > 100, "{denials}");
    fs.clean_log(&mut device).unwrap();
    drop((device, fs));
    disk.compare(&disk.image);
}

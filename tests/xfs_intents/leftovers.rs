//! Files that were deleted while they were open when the log ended.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use xtent::volume::{OpenOptions, Volume};

use super::common::image::Image;
use super::common::{kernel_is_here, number, random_bytes, run, sys};
use super::{compare, disk_form};

/// Files of many forms, all of them open.
fn make_files(root: &Path, rng: &mut SmallRng) -> Vec<(PathBuf, File)> {
    let mut open = Vec::new();
    for number in 0..rng.random_range(10..150) {
        let path = root.join(format!("f{number}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        for _ in 0..*[0, 1, 5, 200].choose(rng).unwrap() {
            let at = rng.random_range(0..500) * 8192;
            file.write_all_at(&random_bytes(number, 4096), at).unwrap();
        }
        if rng.random_ratio(1, 3) {
            for name in 0..rng.random_range(1..8) {
                let value = vec![b'v'; rng.random_range(1..400)];
                sys::set_xattr(&path, format!("user.{name}"), &value).unwrap();
            }
        }
        if rng.random_ratio(1, 4) {
            let copy = File::create(root.join(format!("copy-{number}"))).unwrap();
            drop(sys::clone_file(&file, &copy));
        }
        symlink(
            "t".repeat(rng.random_range(1..1000)),
            root.join(format!("s{number}")),
        )
        .unwrap();
        open.push((path, file));
    }
    open
}

/// A disk that was cut off while deleted files of many forms were open; `is_small` for one with
/// sectors of 512 bytes and without a stripe unit of the log.
pub(crate) fn deleted_while_open(seed: u64, is_small: bool) -> (Image, String) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let features = format!(
        "rmapbt={},finobt={},reflink={}",
        rng.random_range(0..2),
        rng.random_range(0..2),
        rng.random_range(0..2)
    );
    let sparse = format!(
        "sparse={},nrext64={}",
        rng.random_range(0..2),
        rng.random_range(0..2)
    );
    let (sector_bytes, log, block) = disk_form(&mut rng, is_small);
    let args = [
        "-d",
        "agcount=3",
        "-l",
        &log,
        "-b",
        block,
        "-m",
        &features,
        "-i",
        &sparse,
    ];
    let image = Image::make(192 << 20, sector_bytes, &args);
    let mount = image.mount("");
    let root = mount.path();
    fs::write(root.join("data"), vec![1; 100_000]).unwrap();
    let mut open = make_files(root, &mut rng);
    let dir = root.join("dir");
    fs::create_dir(&dir).unwrap();
    open.push((dir.clone(), File::open(&dir).unwrap()));
    run("sync", &["-f", root.to_str().unwrap()]);
    for (path, _) in &open {
        if rng.random_ratio(3, 4) {
            drop(fs::remove_file(path).or_else(|_| fs::remove_dir(path)));
        }
    }
    run(
        "xfs_io",
        &["-x", "-c", "shutdown -f", root.to_str().unwrap()],
    );
    drop(open);
    mount.unmount();
    (image, format!("XTENT_RUNS=1 XTENT_SEED={seed}: {args:?}"))
}

#[test]
fn deleted_files_are_freed_as_by_the_kernel() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    for seed in seed..seed + number("XTENT_RUNS", 6) {
        let (image, what) = deleted_while_open(seed, false);
        compare(&image.path(), image.sector_bytes(), &what).unwrap();
    }
}

#[test]
fn a_volume_that_is_written_frees_deleted_files() {
    if !kernel_is_here() {
        return;
    }
    let (image, what) = deleted_while_open(number("XTENT_SEED", 1), true);
    let target = format!("image:{}", image.path().display());
    let volume = Volume::open(&target).unwrap();
    assert!(!volume.info().filesystem.log_dirty, "{what}");
    let mut io = volume.io().unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(&volume, &mut io, "/data")
        .unwrap();
    file.write_all_at(&mut io, &[3; 40_000], 30_000).unwrap();
    file.sync_data(&mut io).unwrap();
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
    let mount = image.mount("ro,norecovery");
    let mut expected = vec![1; 100_000];
    expected[30_000..70_000].fill(3);
    assert!(fs::read(mount.path().join("data")).unwrap() == expected);
    mount.unmount();
}

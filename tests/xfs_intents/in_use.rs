//! Disks that several threads change while they are copied, so that the log has parts of
//! operations.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::common::image::Image;
use super::common::{kernel_is_here, number, random_bytes, run, sys};
use super::exchange::{enable, exchange_is_here};
use super::{compare_but, disk_form, path_of};

/// Mode of fallocate(2): a hole, the length stays.
const PUNCH_HOLE: i32 = 3;

/// What one thread does to files of a disk until it is told to stop: changes that are made in
/// several steps.
fn use_files(root: &Path, thread: u64, seed: u64, is_used: &AtomicBool) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let files: Vec<_> = (0..6)
        .map(|n| root.join(format!("t{thread}-{n}")))
        .collect();
    let mut deleted = Vec::new();
    while is_used.load(Ordering::Relaxed) {
        let [path, other] = [(); 2].map(|()| files.choose(&mut rng).unwrap());
        let open = || {
            let mut options = File::options();
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
        };
        let Ok(file) = open() else { continue };
        match rng.random_range(0..14) {
            0..3 => {
                for _ in 0..rng.random_range(1..60) {
                    let at = rng.random_range(0..3_000_000) / 4096 * 4096;
                    drop(file.write_at(&random_bytes(thread, 4096), at));
                }
            }
            3 | 4 => {
                let at = rng.random_range(0..2_000_000);
                drop(sys::fallocate(&file, PUNCH_HOLE, at, 1_000_000));
            }
            5 | 6 => {
                let to = File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(other);
                drop(to.map(|to| sys::clone_file(&file, &to)));
            }
            7 => drop(file.set_len(rng.random_range(0..3_000_000))),
            8 => {
                deleted.push(file);
                drop(fs::remove_file(path));
                if deleted.len() > 3 {
                    deleted.remove(0);
                }
            }
            9 => drop(sys::set_xattr(
                path,
                "user.a",
                &vec![b'v'; rng.random_range(1..3000)],
            )),
            10 => drop(file.sync_all()),
            11 | 12 => {
                let Ok(second) = File::options().read(true).write(true).open(other) else {
                    continue;
                };
                let offsets = [(); 2].map(|()| rng.random_range(0..200) * 4096);
                let length = rng.random_range(1..400) * 4096;
                let only_written = rng.random_ratio(1, 3);
                let files = [&file, &second];
                drop(sys::exchange_range(files, offsets, length, only_written));
            }
            _ => drop(fs::remove_file(path)),
        }
    }
}

/// A disk that several threads use, copied in moments of use, by sharing its blocks.
pub(crate) fn copies_in_use(
    outer: &Path,
    seed: u64,
    has_exchange: bool,
) -> (Image, Vec<PathBuf>, String) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let features = format!(
        "rmapbt={},reflink={}",
        rng.random_range(0..2),
        u8::from(rng.random_ratio(3, 4))
    );
    let large = format!("nrext64={}", rng.random_range(0..2));
    let (sector_bytes, log, block) = disk_form(&mut rng, false);
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
        &large,
    ];
    let image = Image::make_in(outer, 128 << 20, sector_bytes, &args);
    if has_exchange {
        enable(&image);
    }
    let logbsize = match log.ends_with("256k") {
        true => "256k",
        false => *["32k", "64k", "256k"].choose(&mut rng).unwrap(),
    };
    let mount = image.mount(&format!("logbsize={logbsize}"));
    let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: {args:?}, {logbsize}");
    let is_used = AtomicBool::new(true);
    let mut copies = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (root, is_used) = (mount.path(), &is_used);
            let seed = rng.random();
            scope.spawn(move || use_files(root, thread, seed, is_used));
        }
        let syncer = mount.path().join("synced");
        for number in 0..6 {
            for _ in 0..rng.random_range(5..20) {
                // The log is forced between the steps of the others.
                let file = File::create(&syncer);
                drop(file.and_then(|file| file.sync_all()));
                std::thread::sleep(Duration::from_millis(rng.random_range(1..12)));
            }
            let copy = outer.join(format!("copy-{number}"));
            let paths = [path_of(&image), copy.to_str().unwrap().to_owned()];
            run("cp", &["--reflink=always", &paths[0], &paths[1]]);
            copies.push(copy);
        }
        is_used.store(false, Ordering::Relaxed);
    });
    mount.unmount();
    (image, copies, what)
}

#[test]
fn logs_of_the_kernel_in_use() {
    if !kernel_is_here() {
        return;
    }
    let has_exchange = exchange_is_here();
    let seed = number("XTENT_SEED", 1);
    let (mut logs, mut open, mut finished, mut refused) = (0, 0, 0, 0);
    for seed in seed..seed + number("XTENT_RUNS", 6).div_ceil(3) {
        let outer = Image::make(1500 << 20, 512, &[]);
        let mount = outer.mount("");
        let (image, copies, what) =
            copies_in_use(mount.path(), seed, has_exchange && seed % 2 == 1);
        for (number, copy) in copies.iter().enumerate() {
            let what = format!("{what}, copy {number}");
            let found = compare_but(copy, image.sector_bytes(), 16, &what);
            logs += 1;
            refused += u64::from(found.is_none());
            let found = found.unwrap_or(0);
            open += u64::from(found > 0);
            finished += found;
            fs::remove_file(copy).unwrap();
        }
        println!(
            "to seed {seed}: {logs} logs, {open} with intents, {finished} of them finished, \
             {refused} logs with others"
        );
        drop(image);
        mount.unmount();
    }
    assert!(refused < logs);
}

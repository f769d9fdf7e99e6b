//! Files on a disk of another process's target, which is killed and started again while they are
//! overwritten.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::volume::{Done, OpenOptions, Volume};

use super::alone;
use super::common::image::Image;
use super::common::nvmf::{Disk, Nvmf};
use super::common::{kernel_is_missing, loop_is_missing, number, random_bytes, skipped};

const BLOCK: usize = 4096;
const FILE_BYTES: usize = 16 << 20;
const PIECE: usize = 8 * BLOCK;
const DEPTH: usize = 8;

/// Overwrites random pieces of the file, and reads others, until it is told to stop.
fn overwrite(volume: &Volume, model: &mut [u8], seed: u64, stop: &AtomicBool, ended: &AtomicU64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(volume, &mut io, "/data").unwrap();
    while !stop.load(Ordering::Relaxed) {
        // Pieces beside each other, at a random place: they do not overlap.
        let first = rng.random_range(0..=FILE_BYTES / PIECE - DEPTH);
        for piece in first..first + DEPTH {
            let range = piece * PIECE..(piece + 1) * PIECE;
            let mut buf = io.alloc(PIECE).unwrap();
            let offset = range.start as u64;
            let submitted = if rng.random_bool(0.3) {
                io.submit_read(&file, offset, buf, piece as u64)
            } else {
                rng.fill(&mut buf[..]);
                model[range].copy_from_slice(&buf);
                io.submit_write(&file, offset, buf, piece as u64)
            };
            submitted.unwrap();
        }
        while io.outstanding() > 0 {
            let mut done: Vec<Done> = Vec::new();
            if io.poll(DEPTH, |one| done.push(one)) == 0 {
                io.relax();
                std::thread::yield_now();
            }
            for one in done {
                let at = usize::try_from(one.user_data).unwrap() * PIECE;
                assert_eq!(one.result.unwrap(), PIECE, "seed {seed}");
                assert!(one.buf[..] == model[at..at + PIECE], "seed {seed}: {at}");
                ended.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    file.sync_all(&mut io).unwrap();
}

#[test]
fn a_volume_is_overwritten_through_restarts_of_its_target() {
    let Some(_alone) = alone() else { return };
    if let Some(reason) = kernel_is_missing().or_else(loop_is_missing) {
        return skipped(&reason);
    }
    let seed = number("XTENT_SEED", 44);
    println!("XTENT_SEED={seed}");
    let image = Image::make(384 << 20, 4096, &[]);
    let mut model = random_bytes(seed, FILE_BYTES);
    let mount = image.mount("");
    let file = fs::File::create(mount.path().join("data")).unwrap();
    file.write_all_at(&model, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();

    let mut target = Nvmf::start(Disk::File {
        path: image.path(),
        block_bytes: 4096,
    });
    let name = format!("spdk:{}", target.tcp());
    let volume = Volume::open(&name).unwrap();
    let (stop, ended) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| overwrite(&volume, &mut model, seed, &stop, &ended));
        for round in 0..6 {
            let goal = ended.load(Ordering::Relaxed) + 100;
            while ended.load(Ordering::Relaxed) < goal && !worker.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            match round % 2 {
                0 => target.restart(),
                _ => target.disconnect_all(),
            }
        }
        let goal = ended.load(Ordering::Relaxed) + 100;
        while ended.load(Ordering::Relaxed) < goal && !worker.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(volume);
    target.kill();

    image.assert_clean();
    let mount = image.mount("ro");
    let bytes = fs::read(mount.path().join("data")).unwrap();
    mount.unmount();
    assert!(bytes == model, "seed {seed}: the kernel reads other bytes");
}

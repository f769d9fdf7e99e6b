//! Overwrite equality: random direct overwrites by two threads, then every byte as the kernel sees
//! it.
//!
//! `XTENT_RUNS` sets the number of overwrites on each stand, `XTENT_SEED` the seed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::target::TargetOptions;
use xtent::volume::{Done, File, Io, MountOptions, OpenOptions, Volume};

use super::common::{number, random_bytes, scaled};
use super::stand::{For, Stand};
use super::{Outcome, list};

list! { "overwrite", For::Files, random_overwrites_are_what_the_kernel_reads }

const MAX_BYTES: usize = 64 << 10;
/// Of the filesystem.
const FS_BLOCK: usize = 4096;
const DEPTH: usize = 16;
const THREADS: usize = 2;

/// Two files that grow by a block in turn, past every cache: no extent longer than a block.
pub(super) fn write_interleaved(dir: &Path, names: [&str; 2], blocks: usize) {
    let mut files = names.map(|name| {
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(dir.join(name))
            .unwrap()
    });
    let memory = vec![0xa5_u8; 8192];
    let skip = memory.as_ptr().align_offset(4096);
    for _ in 0..blocks {
        for file in &mut files {
            file.write_all(&memory[skip..skip + 4096]).unwrap();
        }
    }
}

/// Files of one extent, of thousands, and with a last block that is not full.
const FILES: [&str; 4] = ["plain", "shredded", "shredded-too", "odd"];

fn make_files(root: &Path, lba_bytes: usize) -> Vec<Vec<u8>> {
    let extents = scaled(3000, 1000);
    write_interleaved(root, ["shredded", "shredded-too"], extents);
    let mut models = vec![random_bytes(1, scaled(24 << 20, 6 << 20))];
    models.push(random_bytes(2, extents * FS_BLOCK));
    models.push(random_bytes(3, extents * FS_BLOCK));
    models.push(random_bytes(4, (1 << 20) + 3 * lba_bytes));
    for (name, model) in FILES.iter().zip(&models) {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join(name))
            .unwrap();
        file.write_all_at(model, 0).unwrap();
        file.sync_all().unwrap();
    }
    models
}

/// One thread's part of the files: its range, the expected content, the requests in flight.
struct Worker {
    rng: SmallRng,
    files: Vec<File>,
    /// The same, opened for durable writes.
    durable: Vec<File>,
    /// First byte and content of the part of each file that this thread alone touches.
    parts: Vec<(usize, Vec<u8>)>,
    /// File, first byte, length, and whether it is a read.
    flights: Vec<Option<(usize, usize, usize, bool)>>,
    /// Of the device, and so of every range.
    lba_bytes: usize,
    seed: u64,
}

impl Worker {
    fn run(&mut self, io: &mut Io, count: u64) {
        let mut left = count;
        while left > 0 {
            let Some((file, start, len)) = self.pick() else {
                self.reap(io, 1);
                continue;
            };
            let read = self.rng.random_range(0..8) == 0;
            let offset = (self.parts[file].0 + start) as u64;
            let mut buf = io.alloc(len).unwrap();
            if !read {
                self.rng.fill(&mut buf[..]);
                self.parts[file].1[start..start + len].copy_from_slice(&buf);
                left -= 1;
            }
            // A durable write waits for the image's own disk: few of them.
            let durable = self.rng.random_range(0..200) == 0;
            let handles = if durable { &self.durable } else { &self.files };
            let handle = handles[file].clone();
            if self.rng.random_range(0..5) == 0 {
                let done = if read {
                    handle.read_dma_at(io, &mut buf, offset)
                } else {
                    handle.write_dma_at(io, &mut buf, offset)
                };
                assert_eq!(done.unwrap(), len, "seed {}", self.seed);
                self.check(file, start, &buf);
                continue;
            }
            let slot = self.flights.iter().position(Option::is_none).unwrap();
            self.flights[slot] = Some((file, start, len, read));
            let submitted = if read {
                io.submit_read(&handle, offset, buf, slot as u64)
            } else {
                io.submit_write(&handle, offset, buf, slot as u64)
            };
            submitted.unwrap();
            if io.outstanding() == DEPTH {
                self.reap(io, 1);
            }
        }
        self.reap(io, DEPTH);
    }

    /// A range that nothing in flight touches, often across the border of two blocks of the
    /// filesystem.
    fn pick(&mut self) -> Option<(usize, usize, usize)> {
        let file = self.rng.random_range(0..self.files.len());
        let blocks = self.parts[file].1.len() / self.lba_bytes;
        let most = if self.rng.random_range(0..4) == 0 {
            MAX_BYTES / self.lba_bytes
        } else {
            12
        };
        let len = self.rng.random_range(1..=most.min(blocks));
        let start = self.rng.random_range(0..=blocks - len) * self.lba_bytes;
        let len = len * self.lba_bytes;
        let free = self
            .flights
            .iter()
            .flatten()
            .all(|&(f, s, l, _)| f != file || s + l <= start || start + len <= s);
        free.then_some((file, start, len))
    }

    fn check(&self, file: usize, start: usize, bytes: &[u8]) {
        let (offset, model) = &self.parts[file];
        assert!(
            model[start..start + bytes.len()] == *bytes,
            "seed {}: {} at {}",
            self.seed,
            FILES[file],
            offset + start
        );
    }

    /// Waits until at least `count` operations, or all, have ended.
    fn reap(&mut self, io: &mut Io, count: usize) {
        let target = io.outstanding().saturating_sub(count);
        while io.outstanding() > target {
            let mut ended: Vec<Done> = Vec::new();
            if io.poll(4, |done| ended.push(done)) == 0 {
                io.relax();
            }
            for done in ended {
                let slot = usize::try_from(done.user_data).unwrap();
                let (file, start, len, _) = self.flights[slot].take().unwrap();
                assert_eq!(done.result.unwrap(), len, "seed {}", self.seed);
                self.check(file, start, &done.buf);
            }
        }
    }
}

/// The part of a file that a thread has for itself.
fn part(model: &[u8], thread: usize, lba_bytes: usize) -> (usize, Vec<u8>) {
    let border = |i: usize| model.len() * i / THREADS / lba_bytes * lba_bytes;
    let (from, to) = (border(thread), border(thread + 1));
    (from, model[from..to].to_vec())
}

fn overwrite(target: &str, seed: u64, runs: u64, models: &mut [Vec<u8>]) {
    let options = TargetOptions::new().queue_depth(u32::try_from(DEPTH).unwrap());
    let volume = Volume::open_with(target, &options, &MountOptions::new()).unwrap();
    let lba_bytes = volume.info().target.lba_bytes as usize;
    let workers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let volume = volume.clone();
            let parts: Vec<_> = models
                .iter()
                .map(|model| part(model, thread, lba_bytes))
                .collect();
            std::thread::spawn(move || {
                let mut io = volume.io().unwrap();
                let mut open = |dsync: bool| -> Vec<File> {
                    let options = OpenOptions::new().read(true).write(true).dsync(dsync);
                    FILES
                        .iter()
                        .map(|name| options.open(&volume, &mut io, name).unwrap())
                        .collect()
                };
                let (files, durable) = (open(false), open(true));
                // Otherwise the borders that this is about are not there.
                let extents = files[1].fiemap(&mut io, 0, u64::MAX).unwrap().len();
                assert!(extents > scaled(1000, 300), "only {extents} extents");
                let mut worker = Worker {
                    rng: SmallRng::seed_from_u64(seed.wrapping_add(thread as u64)),
                    files,
                    durable,
                    parts,
                    flights: vec![None; DEPTH],
                    lba_bytes,
                    seed,
                };
                worker.run(&mut io, runs / THREADS as u64);
                worker.files[0].sync_all(&mut io).unwrap();
                worker.parts
            })
        })
        .collect();
    for worker in workers {
        for (model, (from, bytes)) in models.iter_mut().zip(worker.join().unwrap()) {
            model[from..from + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

fn random_overwrites_are_what_the_kernel_reads(stand: &Stand) -> Outcome {
    let mut disk = stand.disk()?;
    let seed = number("XTENT_SEED", 20_250);
    let runs = number("XTENT_RUNS", scaled(25_000, 4000));
    println!("{}: seed {seed}, {runs} overwrites", stand.name);
    disk.make(512 << 20, 512, &[]);
    let mount = disk.mount("");
    let mut models = make_files(mount.path(), stand.lba_bytes() as usize);
    mount.unmount();
    overwrite(&disk.target(""), seed, runs, &mut models);
    disk.assert_clean();
    let mount = disk.mount("ro");
    for (name, model) in FILES.iter().zip(&models) {
        let mut bytes = Vec::new();
        let mut file = fs::File::open(mount.path().join(name)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), model.len(), "seed {seed}: {name}");
        let wrong = bytes.iter().zip(model).position(|(a, b)| a != b);
        assert_eq!(
            wrong, None,
            "seed {seed}: {name}: the first byte that differs"
        );
    }
    mount.unmount();
    Ok(())
}

//! Random 4 KiB reads of a file by two threads, each with 32 in flight:
//! `depth32 TARGET PATH [READS]`.

use std::thread;
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::volume::{Done, File, Volume};

const DEPTH: usize = 32;
const BLOCK_BYTES: u64 = 4096;
const THREADS: u64 = 2;

fn main() -> xtent::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let reads = args.get(3).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let volume = Volume::open(&args[1])?;
    let file = volume.open_file(&mut volume.io()?, &args[2])?;
    let start = Instant::now();
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| {
            // Volumes and files are shared; each thread has an Io of its own.
            let (volume, file) = (volume.clone(), file.clone());
            thread::spawn(move || read(&volume, &file, reads / THREADS, seed))
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{reads} reads, {:.0} a second", reads as f64 / seconds);
    Ok(())
}

fn read(volume: &Volume, file: &File, reads: u64, seed: u64) -> xtent::Result<()> {
    let mut io = volume.io()?;
    let blocks = (file.len() / BLOCK_BYTES).max(1);
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut started = 0;
    let mut ended: Vec<Done> = Vec::new();
    for _ in 0..reads.min(DEPTH as u64) {
        let buf = io.alloc(4096)?;
        let offset = rng.random_range(0..blocks) * BLOCK_BYTES;
        io.submit_read(file, offset, buf, started)?;
        started += 1;
    }
    while io.outstanding() > 0 {
        if io.poll(DEPTH, |done| ended.push(done)) == 0 {
            io.relax();
        }
        for done in ended.drain(..) {
            done.result?;
            if started < reads {
                let offset = rng.random_range(0..blocks) * BLOCK_BYTES;
                io.submit_read(file, offset, done.buf, started)?;
                started += 1;
            }
        }
    }
    Ok(())
}

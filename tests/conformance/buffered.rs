//! Buffered files: bytes read through the page cache equal the kernel's, and bytes written through
//! it are those that the kernel reads afterwards, also together with direct I/O. `XTENT_RUNS` sets
//! the number of operations, `XTENT_SEED` the seed.

use std::fs;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::target::TargetOptions;
use xtent::volume::{Advice, File, Io, MountOptions, OpenOptions, RwFlags, Volume};

use super::common::disk::Disk;
use super::common::{number, random_bytes, scaled};
use super::files::filled;
use super::overwrite::write_interleaved;
use super::stand::{For, Stand};
use super::{Outcome, list};

list! { "buffered", For::Files,
    reads_are_the_kernels_bytes,
    blocks_that_are_missing_are_allocated_and_shared_ones_stop_a_write,
    views_lend_what_is_cached,
    what_was_written_stays_when_handles_go,
    overwrites_beside_direct_ones_are_what_the_kernel_reads,
}

/// Of the cache: small, so that pages go and writers wait.
const CACHE_BYTES: usize = 4 << 20;

fn open(disk: &mut Disk, options: &str) -> (Volume, Io) {
    let mount = MountOptions::new().cache_bytes(CACHE_BYTES);
    let volume = Volume::open_with(&disk.target(options), &TargetOptions::new(), &mount).unwrap();
    let io = volume.io().unwrap();
    (volume, io)
}

fn buffered() -> OpenOptions {
    OpenOptions::new().read(true).buffered(true)
}

/// A file through the page cache, and past it; both to be written to.
fn both(volume: &Volume, io: &mut Io, path: &str) -> (File, File) {
    let direct = OpenOptions::new().read(true).write(true);
    let cached = direct.buffered(true).open(volume, io, path).unwrap();
    (cached, direct.open(volume, io, path).unwrap())
}

/// All of a file through the cache.
fn all(file: &File, io: &mut Io) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.len()).unwrap()];
    assert_eq!(file.read_at(io, &mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn reads_are_the_kernels_bytes(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let seed = number("XTENT_SEED", 20_262);
    let names = ["odd", "sparse", "shared", "clone", "empty", "a/file"];
    let mount = disk.mount("ro");
    let kernel = names.map(|name| fs::read(mount.path().join(name)).unwrap());
    mount.unmount();
    let (volume, mut io) = open(&mut disk, ",readonly");
    let files = names.map(|name| buffered().open(&volume, &mut io, name).unwrap());
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..scaled(4000, 500) {
        let at = rng.random_range(0..files.len());
        let (file, bytes) = (&files[at], &kernel[at]);
        let offset = rng.random_range(0..bytes.len() + 100);
        let bits = rng.random_range(1..20);
        let len = rng.random_range(0..1 << bits);
        let wanted = &bytes[offset.min(bytes.len())..(offset + len).min(bytes.len())];
        let context = || format!("seed {seed}, round {round}: {} at {offset}", names[at]);
        let range = offset as u64..(offset + len) as u64;
        match rng.random_range(0..10) {
            0 => {
                let view = file.view(&mut io, range).unwrap();
                let view = view.as_deref().unwrap_or_default();
                assert!(wanted.starts_with(view), "{}", context());
                assert_eq!(view.is_empty(), wanted.is_empty(), "{}", context());
            }
            1 => {
                let advice = [
                    Advice::Normal,
                    Advice::Sequential,
                    Advice::Random,
                    Advice::WillNeed,
                    Advice::DontNeed,
                ];
                let advice = advice[rng.random_range(0..advice.len())];
                file.advise(&mut io, range, advice).unwrap();
            }
            how => {
                let flags = match how {
                    2 => RwFlags::DONTCACHE,
                    _ => RwFlags::empty(),
                };
                let mut buf = vec![0xee; len];
                let n = file
                    .read_with(&mut io, &mut buf, offset as u64, flags)
                    .unwrap();
                assert_eq!(n, wanted.len(), "{}", context());
                assert!(buf[..n] == *wanted, "{}", context());
                assert!(buf[n..].iter().all(|&byte| byte == 0xee), "{}", context());
            }
        }
    }
    for (file, bytes) in files.iter().zip(&kernel) {
        assert!(all(file, &mut io) == *bytes);
    }
    // DMA memory will do, too.
    let mut buf = io.alloc(1000).unwrap();
    assert_eq!(files[0].read_dma_at(&mut io, &mut buf, 77).unwrap(), 1000);
    assert!(buf[..] == kernel[0][77..1077]);
    let stats = io.cache_stats().unwrap();
    assert!(stats.hits > 0 && stats.misses > 0 && stats.ahead_used > 0);
    assert!(stats.used_pages <= stats.pages && stats.dirty_pages == 0);
    let write = OpenOptions::new().write(true).buffered(true);
    let error = write.open(&volume, &mut io, "odd").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    let direct = volume.open_file(&mut io, "empty").unwrap();
    let error = direct.sync_range(&mut io, 0..1).err();
    assert!(error.is_none(), "it is cached by another handle");
    Ok(())
}

fn blocks_that_are_missing_are_allocated_and_shared_ones_stop_a_write(stand: &Stand) -> Outcome {
    const MIB: u64 = 1 << 20;
    let mut disk = filled(stand)?;
    let (volume, mut io) = open(&mut disk, "");
    let (sparse, _) = both(&volume, &mut io, "sparse");
    let (shared, _) = both(&volume, &mut io, "shared");
    let (odd, _) = both(&volume, &mut io, "odd");
    let data = vec![7; 10_000];
    let error = shared.write_at(&mut io, &data, 100).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite, "{error}");
    assert!(error.to_string().contains("shared"), "{error}");
    let error = shared.view_mut(&mut io, 100..110).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite, "{error}");
    let error = sparse.write_at(&mut io, &data, u64::MAX - 5).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");

    let mut expected = all(&sparse, &mut io);
    let mut put = |at: u64, data: &[u8]| {
        let at = usize::try_from(at).unwrap();
        if expected.len() < at + data.len() {
            expected.resize(at + data.len(), 0);
        }
        expected[at..at + data.len()].copy_from_slice(data);
    };
    // In a hole, from data into one, in preallocated blocks, far past the end.
    for at in [0, MIB + 8000, 2 * MIB + 1, 5 * MIB - 3] {
        assert_eq!(sparse.write_at(&mut io, &data, at).unwrap(), data.len());
        put(at, &data);
    }
    let hole = 40_000;
    let mut view = sparse.view_mut(&mut io, hole..hole + 10).unwrap().unwrap();
    view.copy_from_slice(b"in a hole!");
    drop(view);
    put(hole, b"in a hole!");
    assert_eq!(
        sparse
            .view_mut(&mut io, 6 * MIB..7 * MIB)
            .unwrap()
            .map(drop),
        None
    );
    assert_eq!(sparse.len(), expected.len() as u64);
    assert!(
        all(&sparse, &mut io) == expected,
        "before it is written back"
    );

    let end = odd.len();
    assert_eq!(odd.write_at(&mut io, &data, end - 50).unwrap(), data.len());
    assert_eq!(odd.write_at(&mut io, &[], 1 << 40).unwrap(), 0);
    assert_eq!(odd.len(), end - 50 + data.len() as u64);
    let odd_bytes = all(&odd, &mut io);
    volume.sync(&mut io).unwrap();
    assert!(all(&sparse, &mut io) == expected, "after that");
    drop((sparse, shared, odd, io));
    volume.close().unwrap();

    let mount = disk.mount("ro");
    assert!(fs::read(mount.path().join("sparse")).unwrap() == expected);
    assert!(fs::read(mount.path().join("odd")).unwrap() == odd_bytes);
    Ok(())
}

fn views_lend_what_is_cached(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let (volume, mut io) = open(&mut disk, "");
    let (file, direct) = both(&volume, &mut io, "odd");
    let mut model = random_bytes(1, usize::try_from(file.len()).unwrap());
    let old = file.view(&mut io, 5000..6000).unwrap().unwrap();
    assert!(old[..] == model[5000..6000]);
    // In place, in a page that a view pins.
    {
        let mut place = file.view_mut(&mut io, 5100..5200).unwrap().unwrap();
        assert!(place[..] == model[5100..5200]);
        place.fill(0xaa);
    }
    assert!(
        old[..] == model[5000..6000],
        "what was lent does not change"
    );
    model[5100..5200].fill(0xaa);
    assert_eq!(io.cache_stats().unwrap().dirty_pages, 1);
    drop(old);
    for range in [0..4096, 4095..4097, 100_000..100_001] {
        let mut place = file.view_mut(&mut io, range.clone()).unwrap().unwrap();
        let start = usize::try_from(range.start).unwrap();
        let len = place.len();
        assert_eq!(
            len as u64,
            range.end.min(range.start / 4096 * 4096 + 4096) - range.start
        );
        assert!(place[..] == model[start..start + len]);
        place.fill(0xbb);
        model[start..start + len].fill(0xbb);
    }
    // Direct I/O sees it, and the cache what direct I/O wrote.
    let mut buf = io.alloc(8192).unwrap();
    direct.read_dma_at(&mut io, &mut buf, 4096).unwrap();
    assert!(buf[..] == model[4096..12_288]);
    buf.fill(0xcc);
    model[4096..12_288].fill(0xcc);
    direct.write_dma_at(&mut io, &mut buf, 4096).unwrap();
    let view = file.view(&mut io, 8000..u64::MAX).unwrap().unwrap();
    assert!(view[..] == [0xcc; 192]);
    drop(view);
    let end = file.len();
    let tail = file.view(&mut io, end - 3..u64::MAX).unwrap().unwrap();
    assert_eq!(tail.len(), 3);
    drop(tail);
    assert!(file.view(&mut io, end..u64::MAX).unwrap().is_none());
    assert!(file.view(&mut io, 5..5).unwrap().is_none());
    assert!(all(&file, &mut io) == model);
    let plain = volume.open_file(&mut io, "a/file").unwrap();
    let error = plain.view(&mut io, 0..5).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    Ok(())
}

fn what_was_written_stays_when_handles_go(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let (volume, mut io) = open(&mut disk, "");
    let (file, direct) = both(&volume, &mut io, "odd");
    let mut model = all(&file, &mut io);
    let write = |io: &mut Io, file: &File, model: &mut Vec<u8>, at: usize, byte: u8| {
        assert_eq!(file.write_at(io, &[byte; 100], at as u64).unwrap(), 100);
        model[at..at + 100].fill(byte);
    };
    write(&mut io, &file, &mut model, 4000, 1);
    drop((file, direct, io));
    let mut io = volume.io().unwrap();
    let (file, direct) = both(&volume, &mut io, "odd");
    let stats = io.cache_stats().unwrap();
    assert!(stats.dirty_pages > 0, "no sync was made: {stats:?}");
    assert!(all(&file, &mut io) == model);
    // A sync by a handle of another kind is a sync of the file.
    direct.sync_all(&mut io).unwrap();
    assert_eq!(io.cache_stats().unwrap().dirty_pages, 0);
    write(&mut io, &file, &mut model, 50_000, 2);
    file.sync_range(&mut io, 0..40_000).unwrap();
    assert!(io.cache_stats().unwrap().dirty_pages > 0);
    file.sync_range(&mut io, 50_050..50_060).unwrap();
    let durable = OpenOptions::new().write(true).buffered(true).dsync(true);
    let durable = durable.open(&volume, &mut io, "odd").unwrap();
    write(&mut io, &durable, &mut model, 60_000, 3);
    let stats = io.cache_stats().unwrap();
    assert_eq!(stats.dirty_pages, 0, "{stats:?}");
    write(&mut io, &file, &mut model, 70_000, 4);
    io.submit_sync(&direct, 1).unwrap();
    while io.poll(1, |done| assert_eq!(done.result.unwrap(), 0)) == 0 {
        io.relax();
    }
    let stats = io.cache_stats().unwrap();
    assert_eq!(stats.dirty_pages, 0, "{stats:?}");
    write(&mut io, &file, &mut model, 80_000, 5);
    volume.sync(&mut io).unwrap();
    assert_eq!(io.cache_stats().unwrap().dirty_pages, 0);
    // And bytes that were never synced are on the device when the volume is closed.
    write(&mut io, &file, &mut model, 90_000, 6);
    drop((volume, durable, direct, file, io));
    disk.assert_clean();
    let mount = disk.mount("ro");
    assert!(fs::read(mount.path().join("odd")).unwrap() == model);
    mount.unmount();
    Ok(())
}

const FILES: [&str; 3] = ["plain", "shredded", "odd"];

/// One thread's part of every file, from one byte to another, at page borders: no thread uses
/// direct I/O where others have cached pages. Of the last file it has every other stretch of bytes,
/// through the cache only.
struct Worker {
    rng: SmallRng,
    files: Vec<(File, File)>,
    parts: Vec<(usize, Vec<u8>)>,
    lba_bytes: usize,
    seed: u64,
}

impl Worker {
    fn run(&mut self, io: &mut Io, count: u64) {
        for _ in 0..count {
            let at = self.rng.random_range(0..self.files.len());
            let part = self.parts[at].1.len();
            let len = self.rng.random_range(1..=40_000.min(part));
            let start = self.rng.random_range(0..=part - len);
            if self.rng.random_range(0..4) == 0 {
                self.past_the_cache(io, at, start, len);
            } else {
                self.through_the_cache(io, at, start, len);
            }
        }
    }

    fn through_the_cache(&mut self, io: &mut Io, at: usize, start: usize, len: usize) {
        let file = self.files[at].0.clone();
        let (base, model) = &mut self.parts[at];
        let offset = (*base + start) as u64;
        let range = offset..offset + len as u64;
        let flags = match self.rng.random_range(0..8) {
            0 => RwFlags::DONTCACHE,
            _ => RwFlags::empty(),
        };
        match self.rng.random_range(0..20) {
            0 => file.sync_data(io).unwrap(),
            1 => file.sync_range(io, range).unwrap(),
            2 => file.advise(io, range, Advice::DontNeed).unwrap(),
            3 => file.advise(io, range, Advice::WillNeed).unwrap(),
            4 => {
                let view = file.view(io, range).unwrap().unwrap();
                let same = view[..] == model[start..start + view.len()];
                assert!(same, "seed {}: {} at {offset}", self.seed, FILES[at]);
            }
            5 => {
                let mut view = file.view_mut(io, range).unwrap().unwrap();
                self.rng.fill(&mut view[..]);
                model[start..start + view.len()].copy_from_slice(&view);
            }
            6..=11 => {
                let mut buf = vec![0; len];
                let n = file.read_with(io, &mut buf, offset, flags).unwrap();
                let same = n == len && buf == model[start..start + len];
                assert!(same, "seed {}: {} at {offset}", self.seed, FILES[at]);
            }
            _ => {
                let bytes = &mut model[start..start + len];
                self.rng.fill(&mut bytes[..]);
                assert_eq!(file.write_with(io, bytes, offset, flags).unwrap(), len);
            }
        }
    }

    fn past_the_cache(&mut self, io: &mut Io, at: usize, start: usize, len: usize) {
        let file = self.files[at].1.clone();
        let (base, model) = &mut self.parts[at];
        let start = start / self.lba_bytes * self.lba_bytes;
        let len = (len / self.lba_bytes).max(1) * self.lba_bytes;
        let len = len.min((model.len() - start) / self.lba_bytes * self.lba_bytes);
        if len == 0 {
            return;
        }
        let offset = (*base + start) as u64;
        let bytes = &mut model[start..start + len];
        let mut buf = io.alloc(len).unwrap();
        if self.rng.random_range(0..2) == 0 {
            assert_eq!(file.read_dma_at(io, &mut buf, offset).unwrap(), len);
            let same = buf[..] == *bytes;
            assert!(same, "seed {}: {} at {offset}", self.seed, FILES[at]);
            return;
        }
        self.rng.fill(&mut buf[..]);
        bytes.copy_from_slice(&buf);
        if self.rng.random_range(0..2) == 0 {
            assert_eq!(file.write_dma_at(io, &mut buf, offset).unwrap(), len);
            return;
        }
        io.submit_write(&file, offset, buf, 0).unwrap();
        while io.poll(1, |done| assert_eq!(done.result.unwrap(), len)) == 0 {
            io.relax();
        }
    }
}

/// Stretches of a file that one thread writes and no other, through the cache, many of them in one
/// page.
fn stripes(file: &File, io: &mut Io, model: &mut [u8], thread: usize, rng: &mut SmallRng) {
    const STRIPE: usize = 300;
    let count = model.len() / STRIPE / 2;
    for _ in 0..scaled(3000, 500) {
        let stripe = (rng.random_range(0..count) * 2 + thread) * STRIPE;
        let len = rng.random_range(1..=STRIPE);
        let at = stripe + rng.random_range(0..=STRIPE - len);
        if rng.random_range(0..3) == 0 {
            let mut buf = vec![0; len];
            assert_eq!(file.read_at(io, &mut buf, at as u64).unwrap(), len);
            assert!(buf == model[at..at + len], "stripes at {at}");
        } else {
            let bytes = &mut model[at..at + len];
            rng.fill(&mut bytes[..]);
            assert_eq!(file.write_at(io, bytes, at as u64).unwrap(), len);
        }
    }
}

fn work(volume: &Volume, thread: usize, models: &[Vec<u8>], seed: u64, runs: u64) -> Vec<Vec<u8>> {
    let mut io = volume.io().unwrap();
    let files = FILES.map(|name| both(volume, &mut io, name));
    let (striped, _) = both(volume, &mut io, "striped");
    let parts = models[..FILES.len()].iter().map(|model| {
        let border = model.len() / 2 / 4096 * 4096;
        let range = if thread == 0 {
            0..border
        } else {
            border..model.len()
        };
        (range.start, model[range].to_vec())
    });
    let mut worker = Worker {
        rng: SmallRng::seed_from_u64(seed.wrapping_add(thread as u64)),
        files: files.to_vec(),
        parts: parts.collect(),
        lba_bytes: io.block_bytes() as usize,
        seed,
    };
    worker.run(&mut io, runs);
    let mut stripe_model = models[FILES.len()].clone();
    stripes(
        &striped,
        &mut io,
        &mut stripe_model,
        thread,
        &mut worker.rng,
    );
    let mut parts: Vec<_> = worker.parts.into_iter().map(|(_, part)| part).collect();
    parts.push(stripe_model);
    parts
}

fn overwrites_beside_direct_ones_are_what_the_kernel_reads(stand: &Stand) -> Outcome {
    let mut disk = stand.disk()?;
    let seed = number("XTENT_SEED", 20_261);
    let runs = number("XTENT_RUNS", scaled(6000, 1000)) / 2;
    println!("{}: seed {seed}, {runs} operations a thread", stand.name);
    disk.make(320 << 20, 512, &[]);
    let mount = disk.mount("");
    write_interleaved(mount.path(), ["shredded", "shredded-too"], 800);
    let mut models = vec![
        random_bytes(1, 12 << 20),
        random_bytes(2, 800 * 4096),
        random_bytes(3, (1 << 20) + 777),
        random_bytes(4, 600 * 300),
    ];
    let names = [FILES[0], FILES[1], FILES[2], "striped"];
    for (name, model) in names.iter().zip(&models) {
        use std::os::unix::fs::FileExt;
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(mount.path().join(name)).unwrap();
        file.write_all_at(model, 0).unwrap();
        file.sync_all().unwrap();
    }
    mount.unmount();
    let (volume, io) = open(&mut disk, "");
    let threads: Vec<_> = std::thread::scope(|scope| {
        let (volume, models) = (&volume, &models);
        let run = |thread| scope.spawn(move || work(volume, thread, models, seed, runs));
        let threads = [run(0), run(1)];
        threads.map(|thread| thread.join().unwrap()).into()
    });
    for (at, model) in models.iter_mut().enumerate() {
        let [first, second] = [&threads[0][at], &threads[1][at]];
        if at < FILES.len() {
            *model = [&first[..], second].concat();
            continue;
        }
        for (index, byte) in model.iter_mut().enumerate() {
            *byte = threads[index / 300 % 2][at][index];
        }
    }
    // Not synced: the volume closes.
    drop((io, volume));
    disk.assert_clean();
    let mount = disk.mount("ro");
    for (name, model) in names.iter().zip(&models) {
        let bytes = fs::read(mount.path().join(name)).unwrap();
        assert_eq!(bytes.len(), model.len(), "{name}");
        let wrong = bytes.iter().zip(model).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "seed {seed}: {name}: the first wrong byte");
    }
    mount.unmount();
    Ok(())
}

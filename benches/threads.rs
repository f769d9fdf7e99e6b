//! What threads that read one file cost each other: `cargo bench --bench threads`.
//!
//! Two threads read 4 KiB at a depth of 32, from one file of an XFS: one map of its extents, one
//! heap, and a controller in memory each, which works in the thread that waits for it. One thread
//! alone, both together on one file, and both on a file each (another map, another heap) take
//! turns. Only turns in which no thread was taken off its processor count, so that a busy machine
//! changes how long this takes, and not what it says.
//!
//! Two threads on one file are to do 1.95 times what one does. Where the processors themselves
//! share something (the two threads of a core, a clock that depends on the load) it is 0.975 of
//! what two threads do that have nothing in common.
#[path = "cost/image.rs"]
mod image;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Instant;

use xtent::Error;
use xtent::internals::block::Queue;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::iomap::Versions;
use xtent::internals::iomap::direct::{Direct, DirectRequest, Ended, Hear, Of, Source, What};
use xtent::internals::mem::{DmaBuf, Heap, HeapConfig, HugePages};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions, QueuePair};
use xtent::internals::xfs::{FileMap, FileOps, Fs, MetaIo, dir};

const BLOCK_BYTES: usize = 4096;
const FILE_BLOCKS: u64 = 2048;
const DEPTH: usize = 32;
/// Batches of `DEPTH` reads in a turn: a millisecond or two.
const BATCHES: usize = 60;
/// Undisturbed rounds that are enough, and rounds after which there are no more.
const ENOUGH: usize = 101;
const MOST_ROUNDS: usize = 4_000;
/// What two threads on one file do at least, of what one does.
const WANTED: f64 = 1.95;

/// What all threads have of a file.
struct Shared {
    maps: Versions<FileMap>,
}

#[derive(Clone)]
struct Handle(Arc<Shared>);

impl Source for Handle {
    type Version = FileMap;
    type Ops<'a> = FileOps<'a>;

    #[inline]
    fn versions(&self) -> &Versions<FileMap> {
        &self.0.maps
    }

    #[inline]
    fn ops(map: &FileMap) -> FileOps<'_> {
        FileOps::new(map)
    }

    #[inline]
    fn size_bytes(map: &FileMap) -> u64 {
        map.size_bytes()
    }

    #[inline]
    fn key(&self) -> u64 {
        Arc::as_ptr(&self.0).addr() as u64
    }
}

struct Image(File);

impl MetaIo for Image {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        let read = self.0.read_exact_at(buf, addr);
        read.map_err(|error| Error::system("read", error))
    }

    fn capacity_bytes(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
}

fn open(image: &str) -> xtent::Result<(Handle, u64)> {
    let file = File::open(image).map_err(|error| Error::system("open", error))?;
    let mut io = Image(file);
    let fs = Fs::open(&mut io)?;
    let root = fs.read_root(&mut io)?;
    let found = dir::lookup(&fs, &mut io, &root, b"file")?;
    let (ino, _) = found.expect("the file that was put there");
    let inode = fs.read_inode(&mut io, ino)?;
    let maps = Versions::new(fs.file_map(&mut io, &inode)?);
    Ok((Handle(Arc::new(Shared { maps })), io.capacity_bytes()))
}

/// A thread's queue and memory.
struct Lane {
    file: Handle,
    pair: QueuePair,
    direct: Direct<Handle>,
    bufs: Vec<DmaBuf>,
    /// Where it reads next.
    at: u64,
}

struct TakeBack<'a>(&'a mut Vec<DmaBuf>);

impl Hear<Handle> for TakeBack<'_> {
    #[inline]
    fn hear(&mut self, ended: Ended, _: Of<'_, Handle>) {
        assert!(matches!(ended.result, Ok(BLOCK_BYTES)));
        self.0.push(ended.buf);
    }
}

impl Lane {
    fn new(file: &Handle, heap: &Heap, capacity_bytes: u64) -> xtent::Result<Self> {
        let device = EmuDevice::start(EmuConfig {
            medium: Medium::memory(capacity_bytes),
            lba_bytes: 512,
            mode: Mode::Inline,
            ..EmuConfig::default()
        })?;
        let controller = Controller::open(device, heap, ControllerOptions::default())?;
        let pair = controller.queue(
            1,
            QueueOptions {
                depth: DEPTH,
                ..QueueOptions::default()
            },
        )?;
        let limits = *pair.limits();
        let bufs = (0..DEPTH).map(|_| heap.alloc(BLOCK_BYTES, BLOCK_BYTES));
        Ok(Self {
            file: file.clone(),
            direct: Direct::new(DEPTH, &limits),
            bufs: bufs.collect::<xtent::Result<_>>()?,
            pair,
            at: 0,
        })
    }

    /// A turn: reads per nanosecond, if the thread kept its processor.
    fn turn(&mut self) -> Option<f64> {
        let before = preemptions();
        let start = Instant::now();
        for _ in 0..BATCHES {
            while let Some(buf) = self.bufs.pop() {
                self.at = (self.at + 7) % FILE_BLOCKS;
                let request = DirectRequest {
                    what: What::Read,
                    source: Some(&self.file),
                    offset: self.at * BLOCK_BYTES as u64,
                    buf,
                    user_data: 0,
                };
                // Now and then the queue has to look after its deadlines first.
                if let Err(request) = self.direct.submit_simple(&mut self.pair, request) {
                    let taken = self.direct.submit_in_full(&mut self.pair, request);
                    assert!(taken.is_ok());
                }
            }
            while self.bufs.len() < DEPTH {
                let mut hear = TakeBack(&mut self.bufs);
                self.direct.poll_queue(&mut self.pair, DEPTH, &mut hear);
                self.pair.relax();
            }
        }
        let ns = start.elapsed().as_nanos() as f64;
        (preemptions() == before).then_some((BATCHES * DEPTH) as f64 / ns)
    }
}

/// How often the calling thread was taken off its processor.
fn preemptions() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// What one thread did of a round, in reads per nanosecond: alone, with the other one on one file,
/// and with the other one on a file each. `None` where it was disturbed.
type Round = [Option<f64>; 3];

/// What the two threads share of the measurement; nothing of it is touched in a turn.
struct Control {
    barrier: Barrier,
    /// Threads that came to the starts of turns of both.
    ready: AtomicUsize,
    stop: AtomicBool,
    done: [Mutex<Vec<Round>>; 2],
}

impl Control {
    /// Both begin at once: a barrier wakes them one after the other.
    fn start_together(&self, starts: &mut usize) {
        *starts += 2;
        self.ready.fetch_add(1, Ordering::AcqRel);
        while self.ready.load(Ordering::Acquire) < *starts {
            std::hint::spin_loop();
        }
    }

    /// One of the two threads, until it is told to stop.
    fn thread(&self, number: usize, lanes: &mut [Lane; 2]) {
        let mut starts = 0;
        loop {
            self.barrier.wait();
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let [one_file, file_each] = lanes;
            let alone = (number == 0).then(|| one_file.turn()).flatten();
            self.barrier.wait();
            self.start_together(&mut starts);
            let together = one_file.turn();
            self.barrier.wait();
            self.start_together(&mut starts);
            let apart = file_each.turn();
            let mut done = self.done[number]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            done.push([alone, together, apart]);
            drop(done);
            self.barrier.wait();
            if number == 0 && (starts / 4).is_multiple_of(20) {
                let stop = self.ratios().0.len() >= ENOUGH || starts >= MOST_ROUNDS * 4;
                self.stop.store(stop, Ordering::Release);
            }
        }
    }

    /// What both do together to what one does alone, on one file and on a file each, for each round
    /// in which neither was disturbed.
    fn ratios(&self) -> (Vec<f64>, Vec<f64>) {
        let of = |number: usize| {
            let done = &self.done[number];
            done.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        let ratios = |kind: usize| {
            let rounds = of(0).into_iter().zip(of(1));
            let ratio = |(a, b): (Round, Round)| Some((a[kind]? + b[kind]?) / a[0]?);
            rounds.filter_map(ratio).collect()
        };
        (ratios(1), ratios(2))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn run() -> xtent::Result<ExitCode> {
    let dir = tempfile::tempdir().map_err(|error| Error::system("a directory", error))?;
    let image = image::make(dir.path(), FILE_BLOCKS * BLOCK_BYTES as u64)?;
    let (file, capacity_bytes) = open(&image)?;
    let heap = heap();
    let mut lanes = Vec::new();
    for _ in 0..2 {
        let own = open(&image)?.0;
        lanes.push([
            Lane::new(&file, &heap, capacity_bytes)?,
            Lane::new(&own, &self::heap(), capacity_bytes)?,
        ]);
    }
    let control = Control {
        barrier: Barrier::new(2),
        ready: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        done: Default::default(),
    };
    std::thread::scope(|scope| {
        for (number, lanes) in lanes.iter_mut().enumerate() {
            let control = &control;
            scope.spawn(move || control.thread(number, lanes));
        }
    });
    let (one_file, file_each) = control.ratios();
    let rounds = one_file.len();
    if rounds < ENOUGH {
        println!("SKIPPED: the processors are busy: {rounds} undisturbed rounds in {MOST_ROUNDS}");
        return Ok(ExitCode::SUCCESS);
    }
    let (one_file, file_each) = (median(one_file), median(file_each));
    println!("two_threads_one_file {one_file:.3}");
    println!("two_threads_file_each {file_each:.3}");
    // Of what the processors can do.
    let bound = WANTED.min(WANTED / 2.0 * file_each);
    if one_file < bound {
        eprintln!(
            "two threads on one file do {one_file:.3} times what one does: less than {bound:.3}"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn heap() -> Heap {
    Heap::new(HeapConfig {
        arena_bytes: 8 << 20,
        huge_pages: HugePages::Never,
        ..HeapConfig::default()
    })
}

fn main() -> ExitCode {
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("SKIPPED: rates need an optimised build; run `cargo bench --bench threads`");
        return ExitCode::SUCCESS;
    }
    if !image::is_possible() {
        println!("SKIPPED: needs mkfs.xfs (apt install xfsprogs, dnf install xfsprogs)");
        return ExitCode::SUCCESS;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("SKIPPED: needs two processors");
        return ExitCode::SUCCESS;
    }
    // The other thread would wait for one that panics for ever.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(101);
    }));
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

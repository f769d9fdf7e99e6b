//! More handles than the controller has queue pairs: the last pair is shared. Content, room,
//! wakeups, handles that are dropped in the middle, and callbacks that panic.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use common::image::Image;
use common::sys;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Fault, FaultPlan, Medium, Mode, Scope};
use xtent::internals::nvme::ControllerOptions;
use xtent::internals::target_on_device;
use xtent::target::{HugePages, TargetOptions, Wait};
use xtent::volume::{File, Io, MountOptions, OpenOptions, SubmitReason, Volume};

const THREADS: usize = 8;
const BLOCK: usize = 4096;
/// Blocks of the file that one thread reads and writes.
const BLOCKS: usize = 32;

const ONE: Few = Few {
    queues: 1,
    vectors: 129,
};

/// A disk, without its zeroes.
struct Disk {
    len: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

/// A controller that is short of something.
#[derive(Clone, Copy)]
struct Few {
    queues: u16,
    vectors: u16,
}

/// A volume with a file of zeroes, on such a controller.
fn volume(disk: &Disk, few: Few, mode: Mode, wait: Wait, faults: FaultPlan) -> Volume {
    let mut medium = Medium::memory(disk.len);
    for (at, piece) in &disk.pieces {
        medium.write_at(*at, piece).unwrap();
    }
    // Short where commands are lost.
    let timeout = match faults.rates.is_empty() {
        true => Duration::from_secs(60),
        false => Duration::from_millis(300),
    };
    let config = EmuConfig {
        medium,
        mode,
        max_io_queues: few.queues,
        interrupt_vectors: few.vectors,
        faults,
        ..EmuConfig::default()
    };
    let options = TargetOptions::new()
        .huge_pages(HugePages::Never)
        .wait(wait)
        .command_timeout(timeout)
        .queue_depth(8);
    let device = EmuDevice::start(config).unwrap();
    let target = target_on_device(device, &options, ControllerOptions::default()).unwrap();
    assert_eq!(target.info().max_queue_pairs, u32::from(few.queues));
    Volume::on(target, &MountOptions::new()).unwrap()
}

fn disk() -> Option<Disk> {
    if !common::has_tool("mkfs.xfs") {
        common::skipped("mkfs.xfs is not installed");
        return None;
    }
    let image = Image::empty(320 << 20, 512);
    let at = |name: &str| image.path().with_file_name(name).display().to_string();
    std::fs::write(at("data"), vec![0; THREADS * BLOCKS * BLOCK]).unwrap();
    let tree = format!(
        "/dev/null\n0 0\nd--755 0 0\ndata ---644 0 0 {}\n$\n",
        at("data")
    );
    std::fs::write(at("proto"), tree).unwrap();
    let path = image.path().display().to_string();
    common::run("mkfs.xfs", &["-q", "-f", "-p", &at("proto"), &path]);
    let bytes = std::fs::read(image.path()).unwrap();
    let pieces = bytes.chunks(1 << 16).zip((0..).step_by(1 << 16));
    Some(Disk {
        len: bytes.len() as u64,
        pieces: pieces
            .filter(|(piece, _)| piece.iter().any(|&byte| byte != 0))
            .map(|(piece, at)| (at, piece.to_vec()))
            .collect(),
    })
}

fn opened(volume: &Volume, io: &mut Io) -> File {
    let options = OpenOptions::new().read(true).write(true);
    options.open(volume, io, "data").unwrap()
}

/// One thread: what its blocks hold, and which of them are in flight.
struct Worker {
    first: usize,
    blocks: Vec<u8>,
    busy: [bool; BLOCKS],
    rng: StdRng,
    /// It waits for the descriptor, too. A device that loses commands needs polls.
    arms: bool,
}

impl Worker {
    /// Submits a read or write of a block that is not in flight.
    fn start(&mut self, io: &mut Io, file: &File) {
        let block = self.rng.random_range(0..BLOCKS);
        if self.busy[block] {
            return;
        }
        let offset = ((self.first + block) * BLOCK) as u64;
        let mut buf = io.alloc(BLOCK).unwrap();
        let submitted = if self.rng.random_bool(0.4) {
            let byte = self.rng.random();
            buf.fill(byte);
            let result = io.submit_write(file, offset, buf, block as u64);
            if result.is_ok() {
                self.blocks[block] = byte;
            }
            result
        } else {
            io.submit_read(file, offset, buf, block as u64)
        };
        match submitted {
            Ok(()) => self.busy[block] = true,
            Err(error) => assert!(matches!(error.reason, SubmitReason::Full), "{error}"),
        }
    }

    /// Polls, sometimes with a callback that panics.
    fn poll(&mut self, io: &mut Io) -> usize {
        let (blocks, busy) = (&self.blocks, &mut self.busy);
        let mut panics = self.rng.random_bool(0.02);
        let before = io.outstanding();
        let polled = catch_unwind(AssertUnwindSafe(|| {
            io.poll(self.rng.random_range(1..9), |done| {
                let block = usize::try_from(done.user_data).unwrap();
                assert!(std::mem::take(&mut busy[block]), "{block} ended twice");
                assert_eq!(done.result.unwrap(), BLOCK);
                assert!(
                    done.buf.iter().all(|&byte| byte == blocks[block]),
                    "{block}"
                );
                if std::mem::take(&mut panics) {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
            })
        }));
        match polled {
            Ok(ended) => ended,
            Err(panic) if panic.is::<&str>() => before - io.outstanding(),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Waits as a program may: by `relax`, or by the descriptor.
    fn wait(&mut self, io: &mut Io) {
        if !self.arms || self.rng.random_bool(0.5) || !io.arm() {
            return io.relax();
        }
        assert!(sys::is_readable(&io.as_fd()), "never woken");
    }

    fn run(&mut self, volume: &Volume, handles: usize) {
        for _ in 0..handles {
            let mut io = volume.io().unwrap();
            let file = opened(volume, &mut io);
            for _ in 0..60 {
                self.start(&mut io, &file);
                if self.rng.random_bool(0.3) && self.poll(&mut io) == 0 && io.outstanding() > 0 {
                    self.wait(&mut io);
                }
            }
            // One handle in two goes with operations in flight: they end first.
            while self.rng.random_bool(0.97) && io.outstanding() > 0 {
                if self.poll(&mut io) == 0 {
                    self.wait(&mut io);
                }
            }
            drop(io);
            self.busy = [false; BLOCKS];
        }
        let mut io = volume.io().unwrap();
        let file = opened(volume, &mut io);
        for block in 0..BLOCKS {
            let mut bytes = [0; BLOCK];
            let offset = ((self.first + block) * BLOCK) as u64;
            file.read_exact_at(&mut io, &mut bytes, offset).unwrap();
            assert!(
                bytes.iter().all(|&byte| byte == self.blocks[block]),
                "{block}"
            );
        }
    }
}

/// All threads on one volume.
fn campaign(volume: &Volume, seed: u64, handles: usize, arms: bool) {
    let together = Arc::new(std::sync::Barrier::new(THREADS));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let together = Arc::clone(&together);
            scope.spawn(move || {
                // More than the controller has, all of them at once.
                let io = volume.io().unwrap();
                together.wait();
                drop(io);
                let mut worker = Worker {
                    first: thread * BLOCKS,
                    blocks: vec![0; BLOCKS],
                    busy: [false; BLOCKS],
                    rng: StdRng::seed_from_u64(seed * 1000 + thread as u64),
                    arms,
                };
                worker.run(volume, handles);
            });
        }
    });
}

#[test]
fn eight_threads_share_one_or_two_queue_pairs() {
    let Some(disk) = disk() else { return };
    let seed = common::number("XTENT_SEED", 1);
    let runs = common::number("XTENT_RUNS", 2);
    for run in seed..seed + runs {
        println!("XTENT_SEED={run}");
        for queues in [1, 2] {
            let few = Few {
                queues,
                vectors: 129,
            };
            for (mode, wait) in [
                (Mode::Inline, Wait::Poll),
                (Mode::Threaded, Wait::Poll),
                (Mode::Threaded, Wait::Interrupt),
                (Mode::Threaded, Wait::Adaptive { spins: 20 }),
            ] {
                let volume = volume(&disk, few, mode, wait, FaultPlan::default());
                campaign(&volume, run, 30, true);
            }
        }
    }
}

#[test]
fn a_controller_may_run_out_of_interrupt_vectors_first() {
    let Some(disk) = disk() else { return };
    let seed = common::number("XTENT_SEED", 1);
    println!("XTENT_SEED={seed}");
    for vectors in [1, 2] {
        let few = Few {
            queues: 64,
            vectors,
        };
        let faults = FaultPlan::default();
        let volume = volume(&disk, few, Mode::Threaded, Wait::Interrupt, faults);
        campaign(&volume, seed, 30, true);
    }
}

#[test]
fn resets_and_lost_commands_end_the_chains_of_all_handles() {
    let Some(disk) = disk() else { return };
    let seed = common::number("XTENT_SEED", 1);
    println!("XTENT_SEED={seed}");
    for wait in [Wait::Poll, Wait::Interrupt] {
        let delay_ns = 5_000_000;
        let faults = FaultPlan::none(seed)
            .rate(Scope::Io, Fault::Late { delay_ns }, 5000)
            .rate(Scope::Io, Fault::Lost, 1000)
            .rate(Scope::Io, Fault::LostInterrupt, 1000)
            .rate(Scope::Io, Fault::Fatal, 300);
        let volume = volume(&disk, ONE, Mode::Threaded, wait, faults);
        campaign(&volume, seed, 1, false);
    }
}

/// A handle that leaves everything in flight and never polls again leaves room to the others.
#[test]
fn a_handle_that_does_not_poll_stops_no_other_one() {
    let Some(disk) = disk() else { return };
    for wait in [Wait::Poll, Wait::Interrupt] {
        let volume = volume(&disk, ONE, Mode::Threaded, wait, FaultPlan::default());
        let mut handles: Vec<Io> = (0..40).map(|_| volume.io().unwrap()).collect();
        let file = opened(&volume, &mut handles[0]);
        for io in &mut handles {
            loop {
                let buf = io.alloc(BLOCK).unwrap();
                if io.submit_read(&file, 0, buf, 0).is_err() {
                    break;
                }
            }
            assert!(io.outstanding() > 0);
        }
        for io in handles.iter_mut().rev() {
            let mut bytes = [1; BLOCK];
            file.read_exact_at(io, &mut bytes, 0).unwrap();
            assert_eq!(bytes, [0; BLOCK]);
        }
        // The first and the last are left with what they have in flight.
        drop(handles);
        volume.io().unwrap();
    }
}

#[test]
fn buffered_files_share_it_too_and_raw_handles_do_not() {
    let Some(disk) = disk() else { return };
    let volume = volume(&disk, ONE, Mode::Inline, Wait::Poll, FaultPlan::default());
    let mut handles: Vec<Io> = (0..3).map(|_| volume.io().unwrap()).collect();
    let options = OpenOptions::new().read(true).write(true).buffered(true);
    for (n, io) in (1..).zip(&mut handles) {
        let file = options.open(&volume, io, "data").unwrap();
        file.write_at(io, &[n; 10_000], 5).unwrap();
        file.sync_data(io).unwrap();
    }
    for io in &mut handles {
        let direct = opened(&volume, io);
        let mut bytes = [0; 10_000];
        direct.read_exact_at(io, &mut bytes, 5).unwrap();
        assert_eq!(bytes, [3; 10_000]);
    }
    let error = volume.target().raw(1, BLOCK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
}

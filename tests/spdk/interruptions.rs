//! Connections that are cut and targets that are killed under load: every operation ends once, and
//! what was written is there.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::block::{Completion, Op, Queue, Status};
use xtent::internals::mem::Segment;
use xtent::internals::spdk::{SpdkController, SpdkControllerOptions, SpdkQueue, SpdkQueueOptions};

use super::common::number;
use super::common::nvmf::{Disk, Nvmf};
use super::rig::{Memory, chain, drain};
use super::{alone, open};

const BLOCK: usize = 4096;
/// Each thread has so many pieces of so many blocks.
const PIECES: usize = 256;
const PIECE: usize = 4;
const DEPTH: usize = 16;

fn options() -> SpdkControllerOptions {
    SpdkControllerOptions {
        connect_timeout: Duration::from_secs(60),
        loss_timeout: Duration::from_secs(300),
        ..SpdkControllerOptions::default()
    }
}

/// A piece of the disk, its memory, and the bytes that it must have.
struct Piece {
    segment: Segment,
    model: Vec<u8>,
    /// What an operation on it writes; `None` for a read, or none.
    writes: Option<Vec<u8>>,
    busy: bool,
}

/// What one thread does to its part of the disk.
struct Load<'a> {
    memory: &'a Memory,
    thread: usize,
    rng: StdRng,
    pieces: Vec<Piece>,
}

impl<'a> Load<'a> {
    fn new(memory: &'a Memory, thread: usize, seed: u64) -> Self {
        let piece = |_| Piece {
            segment: memory
                .lend(PIECE * BLOCK)
                .segment(0..PIECE * BLOCK)
                .unwrap(),
            model: vec![0; PIECE * BLOCK],
            writes: None,
            busy: false,
        };
        Self {
            memory,
            thread,
            rng: StdRng::seed_from_u64(seed + thread as u64),
            pieces: (0..PIECES).map(piece).collect(),
        }
    }

    fn lba(&self, at: usize) -> u64 {
        ((self.thread * PIECES + at) * PIECE) as u64
    }

    /// One more operation, on a random piece; false when there is no room, or the piece has one.
    fn submit(&mut self, queue: &mut impl Queue) -> bool {
        let at = self.rng.random_range(0..PIECES);
        let lba = self.lba(at);
        let piece = &mut self.pieces[at];
        if piece.busy {
            return false;
        }
        let mut op = Op::Read;
        if self.rng.random_bool(0.5) {
            let mut bytes = vec![0; PIECE * BLOCK];
            self.rng.fill(&mut bytes[..]);
            self.memory.fill(&[piece.segment], &bytes);
            (op, piece.writes) = (Op::Write, Some(bytes));
        }
        let segments = [piece.segment];
        let chain = chain(op, lba, PIECE as u64, &segments, at as u64);
        piece.busy = queue.submit(&chain).is_ok();
        if !piece.busy {
            // Full: the keeper is at this queue. The memory is still ours.
            piece.writes = None;
        }
        piece.busy
    }

    fn end(&mut self, Completion { token, status }: Completion) {
        let piece = &mut self.pieces[usize::try_from(token).unwrap()];
        assert!(std::mem::take(&mut piece.busy), "{token} ended twice");
        assert_eq!(status, Status::Success, "thread {}, {token}", self.thread);
        match piece.writes.take() {
            Some(bytes) => piece.model = bytes,
            None => assert!(
                self.memory.bytes(&[piece.segment]) == piece.model,
                "piece {token}"
            ),
        }
    }

    fn check(&self, queue: &mut impl Queue) {
        for (at, piece) in self.pieces.iter().enumerate() {
            let segments = [piece.segment];
            let chain = chain(Op::Read, self.lba(at), PIECE as u64, &segments, 7);
            queue.submit(&chain).unwrap();
            assert_eq!(drain(queue)[&7], Status::Success);
            assert!(
                self.memory.bytes(&segments) == piece.model,
                "piece {at} in the end"
            );
        }
    }
}

/// Overwrites and reads random pieces until it is told to stop; then reads all of them.
fn run(mut load: Load<'_>, controller: &Arc<SpdkController>, stop: &AtomicBool, ended: &AtomicU64) {
    let options = SpdkQueueOptions {
        depth: DEPTH,
        timeout: Duration::from_secs(20),
        retries: 1000,
        ..SpdkQueueOptions::default()
    };
    let mut queue = controller.queue(options).unwrap();
    while !stop.load(Ordering::Relaxed) || queue.outstanding() > 0 {
        while queue.outstanding() < DEPTH && !stop.load(Ordering::Relaxed) {
            if !load.submit(&mut queue) {
                break;
            }
        }
        let polled = queue.poll(DEPTH, &mut |completion| {
            load.end(completion);
            ended.fetch_add(1, Ordering::Relaxed);
        });
        if polled == 0 {
            queue.relax();
            std::thread::yield_now();
        }
    }
    load.check(&mut queue);
}

/// Two threads under load while `interrupt` is called `rounds` times, each time after some
/// operations.
fn interrupted(id: &str, rounds: u64, mut interrupt: impl FnMut(u64, &SpdkController)) {
    let seed = number("XTENT_SEED", 43);
    println!("XTENT_SEED={seed}");
    let (controller, memory) = open(id, options());
    let (stop, ended) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (controller, memory, stop, ended) = (&controller, &memory, &stop, &ended);
                scope.spawn(move || run(Load::new(memory, thread, seed), controller, stop, ended))
            })
            .collect();
        for round in 0..rounds {
            let goal = ended.load(Ordering::Relaxed) + 20 + 37 * (round % 5);
            while ended.load(Ordering::Relaxed) < goal && threads.iter().all(|t| !t.is_finished()) {
                std::thread::sleep(Duration::from_millis(1));
            }
            interrupt(round, &controller);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        controller.stats().resets >= rounds / 2,
        "{:?}",
        controller.stats()
    );
}

/// A target whose disk outlives it, and the directory that this is in.
fn file_target() -> (Nvmf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let disk = Disk::File {
        path,
        block_bytes: 4096,
    };
    (Nvmf::start(disk), dir)
}

#[test]
fn connections_are_cut_and_targets_killed_under_load_and_no_byte_is_lost() {
    let Some(_alone) = alone() else { return };
    let (mut target, _dir) = file_target();
    let rounds = number("XTENT_RUNS", 50);
    let id = target.tcp();
    interrupted(&id, rounds, |round, controller| match round % 10 {
        9 => target.restart(),
        0 | 5 => controller.reset(),
        _ => target.disconnect_all(),
    });
}

#[test]
fn a_controller_on_a_socket_is_reset_under_load_and_survives_its_server() {
    let Some(_alone) = alone() else { return };
    let (mut target, _dir) = file_target();
    let id = target.vfio_user();
    interrupted(&id, 10, |round, controller| match round {
        6 => {
            target.restart();
            controller.reset();
        }
        _ => controller.reset(),
    });
}

#[test]
fn a_target_that_stays_away_ends_everything() {
    let Some(_alone) = alone() else { return };
    let (mut target, _dir) = file_target();
    let options = SpdkControllerOptions {
        loss_timeout: Duration::from_secs(1),
        ..options()
    };
    let (controller, memory) = open(&target.tcp(), options);
    let mut queue = controller.queue(SpdkQueueOptions::default()).unwrap();
    let lent = memory.lend(BLOCK);
    let segment = [lent.segment(0..BLOCK).unwrap()];
    target.kill();
    fifty_end(&mut queue, Op::Write, &segment, Status::Gone);
    assert!(queue.submit(&chain(Op::Read, 0, 1, &segment, 1)).is_err());
    assert!(controller.queue(SpdkQueueOptions::default()).is_err());
}

/// Fifty commands of one block each end, all of them with this status.
fn fifty_end(queue: &mut SpdkQueue, op: Op, segment: &[Segment; 1], wanted: Status) {
    for token in 0..50 {
        queue.submit(&chain(op, token, 1, segment, token)).unwrap();
    }
    let ended = drain_slowly(queue);
    assert_eq!(ended.len(), 50);
    assert!(ended.iter().all(|&status| status == wanted), "{ended:?}");
}

/// A controller on a socket, with commands of which its server, which lives, does nothing any more.
fn silenced(silence: impl FnOnce(&Nvmf), speak: impl FnOnce(&Nvmf)) {
    let (target, _dir) = file_target();
    let id = target.vfio_user();
    let options = SpdkControllerOptions {
        connect_timeout: Duration::from_secs(20),
        ..options()
    };
    let (controller, memory) = open(&id, options);
    let options = SpdkQueueOptions {
        timeout: Duration::from_secs(1),
        ..SpdkQueueOptions::default()
    };
    let mut queue = controller.queue(options).unwrap();
    let lent = memory.lend(BLOCK);
    let segment = [lent.segment(0..BLOCK).unwrap()];
    silence(&target);
    fifty_end(&mut queue, Op::Read, &segment, Status::Unfenced);
    speak(&target);
    assert!(queue.submit(&chain(Op::Read, 0, 1, &segment, 1)).is_err());
    assert!(controller.queue(SpdkQueueOptions::default()).is_err());
    drop((queue, controller));
    // SPDK still has it.
    let again = SpdkController::open(&id.parse().unwrap(), None, SpdkControllerOptions::default());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn a_server_that_hangs_ends_everything_and_the_memory_is_left_to_it() {
    let Some(_alone) = alone() else { return };
    silenced(
        |target| target.signal("STOP"),
        |target| target.signal("CONT"),
    );
}

#[test]
fn a_server_that_hangs_up_ends_everything_and_the_memory_is_left_to_it() {
    let Some(_alone) = alone() else { return };
    silenced(Nvmf::hang_up, |_| {});
}

#[test]
fn a_server_that_does_not_answer_is_not_waited_for() {
    let Some(_alone) = alone() else { return };
    let (target, _dir) = file_target();
    let options = SpdkControllerOptions {
        connect_timeout: Duration::from_secs(2),
        ..SpdkControllerOptions::default()
    };
    target.signal("STOP");
    for id in [target.vfio_user(), target.tcp()] {
        let error = SpdkController::open(&id.parse().unwrap(), None, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
    }
    target.signal("CONT");
    SpdkController::open(&target.vfio_user().parse().unwrap(), None, options).unwrap();
}

#[test]
fn commands_past_their_deadline_are_aborted() {
    let Some(_alone) = alone() else { return };
    let target = Nvmf::start(Disk::Slow {
        mib: 64,
        micros: 600_000_000,
    });
    let (controller, memory) = open(&target.tcp(), options());
    let options = SpdkQueueOptions {
        timeout: Duration::from_secs(1),
        ..SpdkQueueOptions::default()
    };
    let mut queue = controller.queue(options).unwrap();
    let lent = memory.lend(BLOCK);
    let segment = [lent.segment(0..BLOCK).unwrap()];
    for token in 0..50 {
        queue
            .submit(&chain(Op::Read, token, 1, &segment, token))
            .unwrap();
    }
    let ended = drain_slowly(&mut queue);
    assert_eq!(ended.len(), 50);
    assert!(
        ended.iter().all(|&status| status == Status::TimedOut),
        "{ended:?}"
    );
    let stats = controller.stats();
    assert_eq!((stats.timeouts, stats.resets), (50, 0));
}

fn drain_slowly(queue: &mut impl Queue) -> Vec<Status> {
    let mut ended = Vec::new();
    while queue.outstanding() > 0 {
        if queue.poll(64, &mut |completion| ended.push(completion.status)) == 0 {
            queue.relax();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    ended
}

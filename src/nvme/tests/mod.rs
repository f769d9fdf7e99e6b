//! The driver against the scripted device.

mod events;
mod hostile;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fake::{BLOCK, BLOCKS, Fake, FakeCompletion};
use super::spec;
use super::{Controller, ControllerOptions, QueueOptions, QueuePair};
use crate::block::{Chain, ChainFlags, Completion, Op, Queue, Refused, Status};
use crate::error::ErrorKind;
use crate::mem::{Heap, HeapConfig, HugePages, Lent, Segment};
use crate::units::Lba;

struct Rig {
    fake: Arc<Fake>,
    heap: Heap,
}

const DEADLINE: Duration = Duration::from_millis(20);

impl Rig {
    fn new() -> Self {
        let heap = Heap::new(HeapConfig {
            arena_bytes: 4 << 20,
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        Self {
            fake: Fake::new(),
            heap,
        }
    }

    fn open(&self) -> crate::Result<Arc<Controller>> {
        let options = ControllerOptions {
            admin_timeout: DEADLINE,
            ..Default::default()
        };
        Controller::open(self.fake.clone(), &self.heap, options)
    }

    fn pair(&self, depth: usize) -> (Arc<Controller>, QueuePair) {
        let controller = self.open().unwrap();
        let pair = controller.queue(1, options(depth)).unwrap();
        (controller, pair)
    }

    fn lend(&self, len: usize) -> Lent {
        self.heap.alloc(len, 4096).unwrap().lend()
    }
}

fn options(depth: usize) -> QueueOptions {
    QueueOptions {
        depth,
        timeout: DEADLINE,
        ..Default::default()
    }
}

fn chain(op: Op, lba: u64, segments: &[Segment], token: u64) -> Chain<'_> {
    let bytes: u64 = segments.iter().map(|s| u64::from(s.len_bytes())).sum();
    Chain {
        op,
        flags: ChainFlags::empty(),
        lba: Lba(lba),
        blocks: bytes / BLOCK as u64,
        segments,
        token,
    }
}

/// Polls until nothing is outstanding, bounded; each token with its status, at most once.
fn drain(pair: &mut QueuePair) -> BTreeMap<u64, Status> {
    let mut ended = BTreeMap::new();
    for _ in 0..2_000_000 {
        pair.poll(usize::MAX, &mut |Completion { token, status }| {
            assert_eq!(ended.insert(token, status), None, "{token} ended twice");
        });
        if pair.outstanding() == 0 {
            return ended;
        }
        pair.relax();
    }
    panic!("{} operations never ended", pair.outstanding());
}

fn read_many(pair: &mut QueuePair, memory: &Lent, count: u64) -> BTreeMap<u64, Status> {
    for token in 0..count {
        let at = usize::try_from(token).unwrap() * BLOCK;
        let segment = [memory.segment(at..at + BLOCK).unwrap()];
        pair.submit(&chain(Op::Read, token, &segment, token))
            .unwrap();
    }
    drain(pair)
}

#[test]
fn writes_are_read_back_over_many_wraps_of_every_depth() {
    for depth in [1, 2, 3, 31, 1024] {
        let rig = Rig::new();
        let (controller, mut pair) = rig.pair(depth);
        let depth = pair.limits().depth;
        let mut rng = StdRng::seed_from_u64(depth as u64);
        for round in 0..(3000 / depth).max(4) {
            let mut buf = rig.heap.alloc(depth * BLOCK, 4096).unwrap();
            rng.fill(&mut buf[..]);
            let want = buf.to_vec();
            let (from, to) = (buf.lend(), rig.lend(depth * BLOCK));
            for (op, memory) in [(Op::Write, &from), (Op::Read, &to)] {
                for n in 0..depth {
                    let segment = [memory.segment(n * BLOCK..(n + 1) * BLOCK).unwrap()];
                    pair.submit(&chain(op, n as u64, &segment, n as u64))
                        .unwrap();
                }
                let one_more = [memory.segment(0..BLOCK).unwrap()];
                let refused = pair.submit(&chain(op, 0, &one_more, 0));
                assert_eq!(refused, Err(Refused::Full));
                assert!(drain(&mut pair).values().all(|s| s.is_success()));
            }
            assert!(*to.take_back() == *want, "depth {depth} round {round}");
            drop(from.take_back());
        }
        assert_eq!(controller.stats(), super::ControllerStats::default());
    }
}

#[test]
fn wrong_chains_are_refused_by_reason() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(4);
    let bring_up = rig.fake.state().commands;
    let memory = rig.lend(8192);
    let good = [memory.segment(0..BLOCK).unwrap()];
    let short = [memory.segment(0..BLOCK - 4).unwrap()];
    let odd = [memory.segment(2..BLOCK + 2).unwrap()];
    let mut refuse = |change: fn(&mut Chain<'_>), segments: &[Segment], word: &str| {
        let mut wrong = chain(Op::Read, 0, &good, 0);
        change(&mut wrong);
        let wrong = Chain { segments, ..wrong };
        match pair.submit(&wrong) {
            Err(Refused::Invalid(why)) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?} for {wrong:?}"),
        }
    };
    refuse(|c| c.blocks = 0, &good, "at least one block");
    refuse(|c| c.lba = Lba(BLOCKS), &good, "not on the device");
    refuse(|c| c.lba = Lba(u64::MAX), &good, "not on the device");
    refuse(|_| (), &short, "same length");
    refuse(|_| (), &odd, "aligned");
    refuse(|_| (), &[], "same length");
    refuse(|c| c.op = Op::Flush, &good, "have memory");
    refuse(|c| c.op = Op::Flush, &[], "no range");
    refuse(|c| c.op = Op::Deallocate, &good, "have memory");
    let zero = |c: &mut Chain<'_>| (c.op, c.lba) = (Op::WriteZeroes, Lba(BLOCKS));
    refuse(zero, &[], "not on the device");
    let fua = |c: &mut Chain<'_>| (c.op, c.flags) = (Op::Deallocate, ChainFlags::FUA);
    refuse(fua, &[], "FUA");
    assert_eq!(pair.outstanding(), 0);
    assert_eq!(rig.fake.state().commands, bring_up, "nothing else was sent");
    assert!(
        read_many(&mut pair, &memory, 4)
            .values()
            .all(|s| s.is_success())
    );
    let mut read_only = controller
        .queue(
            1,
            QueueOptions {
                read_only: true,
                ..options(2)
            },
        )
        .unwrap();
    let write = chain(Op::Write, 0, &good, 0);
    assert_eq!(read_only.submit(&write), Err(Refused::ReadOnly));
}

#[test]
fn bring_up_names_what_did_not_happen() {
    type Change = fn(&Fake);
    let cases: [(Change, ErrorKind, &str); 6] = [
        (
            |f| f.state().never_ready = true,
            ErrorKind::Timeout,
            "CSTS.RDY did not become 1",
        ),
        (
            |f| f.gone.store(true, Ordering::Relaxed),
            ErrorKind::DeviceGone,
            "all ones",
        ),
        (
            |f| f.state().controller.sqes = 0,
            ErrorKind::Corrupt,
            "SQES",
        ),
        (
            |f| f.state().controller.nn.set(0),
            ErrorKind::Corrupt,
            "NN 0",
        ),
        (
            |f| f.state().script = Box::new(|_, _, _| vec![]),
            ErrorKind::Timeout,
            "identify controller",
        ),
        (
            |f| {
                f.state().script = Box::new(|_, _, answer| {
                    vec![FakeCompletion {
                        status: spec::SC_INTERNAL,
                        ..answer
                    }]
                });
            },
            ErrorKind::Io,
            "internal error",
        ),
    ];
    for (change, kind, word) in cases {
        let rig = Rig::new();
        change(&rig.fake);
        let error = rig.open().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains("fake"), "{error}");
        assert_eq!(rig.heap.used_bytes(), 0, "all memory came back: {error}");
    }
}

#[test]
fn namespaces_that_cannot_be_used_are_refused_by_name() {
    let rig = Rig::new();
    rig.fake.state().namespace.lbaf[0].data_shift = 14;
    let controller = rig.open().unwrap();
    let error = controller.queue(1, options(4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("2^14"), "{error}");
    let error = controller.queue(2, options(4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = controller.queue(1, options(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn queues_run_out_and_come_back() {
    let rig = Rig::new();
    let controller = rig.open().unwrap();
    let many: Vec<_> = (0..8)
        .map(|_| controller.queue(1, options(4)).unwrap())
        .collect();
    let error = controller.queue(1, options(4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    drop(many);
    let mut pair = controller.queue(1, options(4)).unwrap();
    let memory = rig.lend(4096);
    assert!(
        read_many(&mut pair, &memory, 4)
            .values()
            .all(|s| s.is_success())
    );
    drop(memory.take_back());
    drop(pair);
    drop(controller);
    assert_eq!(rig.fake.shutdowns(), 1);
    assert_eq!(rig.heap.used_bytes(), 0);
}

#[test]
fn a_flush_is_sent_when_the_write_cache_came_back_by_a_reset_that_the_queue_has_not_seen() {
    let rig = Rig::new();
    rig.fake.state().controller.vwc = 0;
    let (controller, mut first) = rig.pair(4);
    let flush = Chain {
        op: Op::Flush,
        blocks: 0,
        ..chain(Op::Flush, 0, &[], 0)
    };
    let flushes = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counter = Arc::clone(&flushes);
    rig.fake.state().script = Box::new(move |queue, command, answer| {
        let is_flush = queue > 0 && command.opcode == spec::OPC_FLUSH;
        counter.fetch_add(u32::from(is_flush), Ordering::Relaxed);
        vec![answer]
    });
    let flush_once = |pair: &mut QueuePair| {
        pair.submit(&flush).unwrap();
        assert!(drain(pair)[&0].is_success());
        flushes.load(Ordering::Relaxed)
    };
    assert_eq!(flush_once(&mut first), 0, "there is no write cache");
    rig.fake.state().controller.vwc = 1;
    controller.reset(&mut controller.admin()).unwrap();
    // Another queue may have written into the cache by now.
    assert_eq!(flush_once(&mut first), 1);
    assert!(first.limits().volatile_write_cache);
}

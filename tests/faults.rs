//! Mixed operations on a flaky controller: each ends exactly once, data is what a model of the
//! blocks allows, and the reset path is really taken.
//!
//! `XTENT_RUNS` says how many seeded runs (500), `XTENT_SEED` the first seed (1). A failure prints
//! its seed.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod rig;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rig::{Memory, drain};
use xtent::internals::block::{Chain, ChainFlags, Completion, Op, Queue, Refused, Status};
use xtent::internals::device::Device;
use xtent::internals::device::emu::{
    EmuConfig, EmuDevice, Fault, FaultPlan, FaultRule, Medium, Mode, Scope,
};
use xtent::internals::mem::{Lent, Segment};
use xtent::internals::nvme::spec::{ADM_ABORT, OPC_READ};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions, QueuePair};
use xtent::internals::units::Lba;

const BLOCKS: u64 = 192;
const MOST_BLOCKS: u64 = 24;
const MOST_BYTES: usize = 24 * 4096;
const OPERATIONS: u64 = 60;
const SLOTS: usize = 16;

/// Possible content of one block: one tag if certain, several after failed writes. 0 is zeroes.
type Block = Vec<u64>;

struct Operation {
    op: Op,
    lba: u64,
    blocks: u64,
    tag: u64,
    slot: usize,
    segments: Vec<Segment>,
}

struct Run<'a> {
    memory: &'a Memory,
    slots: &'a [Lent],
    rng: StdRng,
    model: Vec<Block>,
    busy: Vec<bool>,
    flying: Vec<Option<Operation>>,
    free_slots: Vec<usize>,
    block_bytes: usize,
    ended: u64,
}

/// Prints the seed of a run that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with XTENT_SEED={} XTENT_RUNS=1", self.0);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

#[test]
fn every_operation_ends_once_and_data_equals_the_model() {
    let (runs, first) = (number("XTENT_RUNS", 500), number("XTENT_SEED", 1));
    let memory = Memory::new();
    let slots: Vec<_> = (0..SLOTS).map(|_| memory.lend(MOST_BYTES + 8192)).collect();
    let (mut with_reset, mut retried, mut failed) = (0, 0, 0);
    for seed in first..first + runs {
        let _seed = Seed(seed);
        let (resets, retries, errors) = run(seed, &memory, &slots);
        with_reset += u64::from(resets > 0);
        retried += retries;
        failed += errors;
    }
    println!(
        "{runs} runs from seed {first}: {with_reset} with a reset, {retried} commands sent again, \
         {failed} operations failed"
    );
    assert!(
        runs < 50 || with_reset * 10 >= runs,
        "only {with_reset} of {runs} runs took the reset path"
    );
}

fn run(seed: u64, memory: &Memory, slots: &[Lent]) -> (u64, u64, u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let block_bytes = if rng.random() { 512 } else { 4096 };
    let device = EmuDevice::start(EmuConfig {
        medium: Medium::memory(BLOCKS * block_bytes as u64),
        lba_bytes: u32::try_from(block_bytes).unwrap(),
        mdts: [0, 1, 2, 5][rng.random_range(0..4)],
        noiob_blocks: [0, 0, 8, 10][rng.random_range(0..4)],
        volatile_write_cache: rng.random_bool(0.7),
        mode: Mode::Stepped,
        tick_ns: 20_000,
        faults: plan(seed, &mut rng),
        ..EmuConfig::default()
    })
    .unwrap();
    let controller =
        Controller::open(device.clone(), &memory.heap, ControllerOptions::default()).unwrap();
    let options = QueueOptions {
        depth: [1, 2, 5, 16][rng.random_range(0..4)],
        timeout: Duration::from_millis(2),
        retries: rng.random_range(0..5),
        ..QueueOptions::default()
    };
    let mut pair = controller.queue(1, options).unwrap();
    let mut run = Run {
        memory,
        slots,
        rng,
        model: vec![vec![0]; usize::try_from(BLOCKS).unwrap()],
        busy: vec![false; usize::try_from(BLOCKS).unwrap()],
        flying: Vec::new(),
        free_slots: (0..slots.len()).collect(),
        block_bytes,
        ended: 0,
    };
    let errors = run.mix(&mut pair);
    device.set_faults(FaultPlan::none(seed));
    run.read_all(&mut pair);
    let stats = controller.stats();
    assert_eq!(stats.leaked_bytes, 0);
    drop(pair);
    assert_eq!(Arc::strong_count(&controller), 1);
    (stats.resets, stats.retries, errors)
}

/// A controller that takes no command any more: neither those that were sent, nor the aborts, until
/// it is reset, and for a while not even then.
#[test]
fn a_controller_that_stops_answering_is_reset_and_operations_end_in_time() {
    const TIMEOUT: Duration = Duration::from_millis(2);
    const DEPTH: u64 = 16;
    const RETRIES: u8 = 2;
    let memory = Memory::new();
    let device = EmuDevice::start(EmuConfig {
        medium: Medium::memory(1 << 20),
        mode: Mode::Stepped,
        tick_ns: 20_000,
        ..EmuConfig::default()
    })
    .unwrap();
    let options = ControllerOptions {
        admin_timeout: TIMEOUT,
        ..ControllerOptions::default()
    };
    let controller = Controller::open(device.clone(), &memory.heap, options).unwrap();
    let options = QueueOptions {
        timeout: TIMEOUT,
        retries: RETRIES,
        ..QueueOptions::default()
    };
    let mut queues = [(); 2].map(|()| controller.queue(1, options.clone()).unwrap());
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).unwrap()];
    let read_all = |queues: &mut [QueuePair; 2]| {
        for pair in &mut *queues {
            for token in 0..DEPTH {
                let chain = rig::chain(Op::Read, token, 1, &segments, token);
                pair.submit(&chain).unwrap();
            }
        }
        let ended = queues.each_mut().map(drain);
        ended.map(|ended| ended.into_values().collect::<Vec<_>>())
    };
    let silent = |opcode, scope, times| {
        let rule = FaultRule::new(Fault::Lost).on(scope).opcode(opcode);
        device.inject(rule.times(times));
    };
    let all = vec![Status::Success; usize::try_from(DEPTH).unwrap()];

    // Once: a reset brings them all through.
    silent(OPC_READ, Scope::Io, 2 * DEPTH);
    silent(ADM_ABORT, Scope::Admin, 1);
    assert_eq!(read_all(&mut queues), [all.clone(), all.clone()]);
    let resets = controller.stats().resets;
    assert!(resets > 0, "{:?}", controller.stats());

    // For good: all end, no later than the retries allow.
    silent(OPC_READ, Scope::Io, u64::MAX);
    silent(ADM_ABORT, Scope::Admin, u64::MAX);
    let start = device.now_ns();
    let ended = read_all(&mut queues);
    // Each attempt: the deadline, the look at it, the abort's own deadline; of one queue after the
    // other.
    let most = TIMEOUT * 2 * 3 * (u32::from(RETRIES) + 1);
    let took = Duration::from_nanos(device.now_ns() - start);
    assert!(took < most, "it took {took:?} of the device's clock");
    for status in ended.iter().flatten() {
        assert!(
            matches!(status, Status::TimedOut | Status::Reset),
            "{status:?}"
        );
    }
    assert!(controller.stats().resets > resets);

    // And it comes back.
    device.set_faults(FaultPlan::none(1));
    assert_eq!(read_all(&mut queues), [all.clone(), all]);
    assert_eq!(controller.stats().leaked_bytes, 0);
}

/// A flaky controller, whose aborts often fail and which stops for good now and then.
fn plan(seed: u64, rng: &mut StdRng) -> FaultPlan {
    FaultPlan::flaky(seed, [1_000, 5_000, 20_000][rng.random_range(0..3)])
        .rate(Scope::Admin, Fault::AbortFails, 300_000)
        .rate(Scope::Io, Fault::WrongPhase, 1_000)
        .rate(Scope::Io, Fault::Fatal, 1_000)
}

impl Run<'_> {
    /// Operations on disjoint ranges, several at a time; how many failed.
    fn mix(&mut self, pair: &mut QueuePair) -> u64 {
        let mut errors = 0;
        let mut submitted = 0;
        while self.ended < OPERATIONS {
            let depth = pair.limits().depth;
            while submitted < OPERATIONS
                && pair.outstanding() < depth
                && self.submit_one(pair, submitted)
            {
                submitted += 1;
            }
            let mut done = Vec::new();
            let budget = self.rng.random_range(1..8);
            pair.poll(budget, &mut |completion| done.push(completion));
            assert!(done.len() <= budget);
            errors += done.iter().filter(|c| !c.status.is_success()).count() as u64;
            for completion in done {
                self.finish(completion);
            }
            pair.relax();
        }
        assert_eq!(pair.outstanding(), 0);
        errors
    }

    /// False when there is no room for one more.
    fn submit_one(&mut self, pair: &mut QueuePair, token: u64) -> bool {
        let op = match self.rng.random_range(0..100) {
            0..45 => Op::Write,
            45..80 => Op::Read,
            80..87 => Op::Flush,
            87..95 => Op::WriteZeroes,
            _ => Op::Deallocate,
        };
        let blocks = self.rng.random_range(1..=MOST_BLOCKS);
        let lba = self.rng.random_range(0..=BLOCKS - blocks);
        let range = usize::try_from(lba).unwrap()..usize::try_from(lba + blocks).unwrap();
        let Some(&slot) = self.free_slots.last() else {
            return false;
        };
        if op != Op::Flush && self.busy[range.clone()].contains(&true) {
            return false;
        }
        let (mut segments, tag) = (Vec::new(), (token + 1) << 20);
        if matches!(op, Op::Read | Op::Write) {
            segments = self.segments(slot, usize::try_from(blocks).unwrap() * self.block_bytes);
            let bytes = match op {
                Op::Write => self.content(lba, blocks, tag),
                _ => vec![0xee; usize::try_from(blocks).unwrap() * self.block_bytes],
            };
            self.memory.fill(&segments, &bytes);
        }
        let fua = matches!(op, Op::Write | Op::WriteZeroes) && self.rng.random_bool(0.1);
        let chain = Chain {
            op,
            flags: if fua {
                ChainFlags::FUA
            } else {
                ChainFlags::empty()
            },
            lba: Lba(lba),
            blocks: if op == Op::Flush { 0 } else { blocks },
            segments: &segments,
            token,
        };
        match pair.submit(&chain) {
            Ok(()) => {}
            // An operation that has ended, and was not handed over yet, counts.
            Err(Refused::Full) => return false,
            Err(refused) => panic!("{refused:?}"),
        }
        if op != Op::Flush {
            self.busy[range].fill(true);
        }
        self.free_slots.pop();
        assert_eq!(self.flying.len() as u64, token);
        self.flying.push(Some(Operation {
            op,
            lba,
            blocks,
            tag,
            slot,
            segments,
        }));
        true
    }

    /// Memory in one piece or two, at any dword, with a seam that commands can cross or end at.
    fn segments(&mut self, slot: usize, len: usize) -> Vec<Segment> {
        let lent = &self.slots[slot];
        let offset = 4 * self.rng.random_range(0..1024);
        let blocks = len / self.block_bytes;
        if blocks == 1 || self.rng.random() {
            return vec![lent.segment(offset..offset + len).unwrap()];
        }
        let first = self.rng.random_range(1..blocks) * self.block_bytes;
        let gap = offset + first + 4;
        vec![
            lent.segment(offset..offset + first).unwrap(),
            lent.segment(gap..gap + len - first).unwrap(),
        ]
    }

    fn content(&self, lba: u64, blocks: u64, tag: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for lba in lba..lba + blocks {
            bytes.extend((tag | lba).to_le_bytes().repeat(self.block_bytes / 8));
        }
        bytes
    }

    fn finish(&mut self, completion: Completion) {
        let token = usize::try_from(completion.token).unwrap();
        let operation = self.flying[token].take().expect("ends only once");
        self.ended += 1;
        self.free_slots.push(operation.slot);
        let ok = match completion.status {
            Status::Success => true,
            Status::Gone => panic!("the controller was given up"),
            _ => false,
        };
        if operation.op == Op::Flush {
            return;
        }
        let bytes = self.memory.bytes(&operation.segments);
        for n in 0..operation.blocks {
            let at = usize::try_from(operation.lba + n).unwrap();
            self.busy[at] = false;
            let block = &mut self.model[at];
            match operation.op {
                Op::Write if ok => *block = vec![operation.tag],
                Op::Write => block.push(operation.tag),
                Op::WriteZeroes if ok => *block = vec![0],
                Op::WriteZeroes | Op::Deallocate => block.push(0),
                _ if ok => {
                    let from = usize::try_from(n).unwrap() * self.block_bytes;
                    let found = &bytes[from..from + self.block_bytes];
                    check(block, operation.lba + n, found);
                }
                _ => {}
            }
        }
    }

    fn read_all(&mut self, pair: &mut QueuePair) {
        for lba in 0..BLOCKS {
            let segments = [self.slots[0].segment(0..self.block_bytes).unwrap()];
            pair.submit(&rig::chain(Op::Read, lba, 1, &segments, lba))
                .unwrap();
            assert_eq!(drain(pair)[&lba], Status::Success);
            let found = self.memory.bytes(&segments);
            check(&mut self.model[usize::try_from(lba).unwrap()], lba, &found);
        }
    }
}

/// The block is one of those allowed, whole; from now on it is this one.
fn check(block: &mut Block, lba: u64, found: &[u8]) {
    let tag = block.iter().copied().find(|&tag| {
        let word = if tag == 0 { 0 } else { tag | lba };
        found.chunks_exact(8).all(|w| w == word.to_le_bytes())
    });
    match tag {
        Some(tag) => *block = vec![tag],
        None => panic!(
            "block {lba} begins with {:02x?}; allowed are the tags {block:x?}",
            &found[..16]
        ),
    }
}

//! Memory that no list of pages can say: one command with a scatter-gather list, or several
//! without.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod rig;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rig::{Memory, chain, drain};
use xtent::internals::block::{Op, Queue, Refused, Status};
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Fault, FaultRule, Medium, Mode, Scope};
use xtent::internals::mem::{Lent, Segment};
use xtent::internals::nvme::{
    Controller, ControllerOptions, ControllerStats, QueueOptions, QueuePair,
};

const MEDIUM_BYTES: u64 = 8 << 20;

fn open(
    config: EmuConfig,
    sgl: bool,
    memory: &Memory,
) -> (Arc<EmuDevice>, Arc<Controller>, QueuePair) {
    let device = EmuDevice::start(EmuConfig {
        medium: Medium::memory(MEDIUM_BYTES),
        mode: Mode::Stepped,
        ..config
    })
    .unwrap();
    let options = ControllerOptions {
        sgl,
        ..ControllerOptions::default()
    };
    let controller = Controller::open(device.clone(), &memory.heap, options).unwrap();
    let options = QueueOptions {
        depth: 5,
        max_segments: 1024,
        ..QueueOptions::default()
    };
    let pair = controller.queue(1, options).unwrap();
    (device, controller, pair)
}

/// `len` bytes in pieces of dwords, anywhere.
fn shreds(lent: &Lent, rng: &mut StdRng, len: usize, most_pieces: usize) -> Vec<Segment> {
    let mut list = Vec::new();
    let (mut at, mut left) = (4 * rng.random_range(0..1024), len);
    while left > 0 {
        let take = if list.len() + 1 == most_pieces {
            left
        } else {
            4 * rng.random_range(1..=left / 4)
        };
        list.push(lent.segment(at..at + take).unwrap());
        left -= take;
        at += take + 4 * rng.random_range(0..16);
    }
    list
}

fn run(pair: &mut QueuePair, op: Op, lba: u64, blocks: u64, list: &[Segment]) -> Status {
    pair.submit(&chain(op, lba, blocks, list, 1)).unwrap();
    drain(pair)[&1]
}

#[test]
fn shreds_of_memory_are_read_back() {
    let memory = Memory::new();
    let seed = 5;
    let mut rng = StdRng::seed_from_u64(seed);
    let (from, to) = (memory.lend(512 << 10), memory.lend(512 << 10));
    for lba_bytes in [512usize, 4096] {
        for (mdts, noiob_blocks) in [(0, 0), (1, 0), (5, 8), (0, 100)] {
            let config = EmuConfig {
                lba_bytes: u32::try_from(lba_bytes).unwrap(),
                mdts,
                noiob_blocks,
                ..EmuConfig::default()
            };
            let (device, controller, mut pair) = open(config, true, &memory);
            assert!(controller.info().sgl);
            for round in 0..40 {
                let blocks = rng.random_range(1..=24usize);
                let lba = rng.random_range(0..MEDIUM_BYTES / lba_bytes as u64 - 24);
                let mut want = vec![0; blocks * lba_bytes];
                rng.fill(&mut want[..]);
                let source = shreds(&from, &mut rng, want.len(), 250);
                let target = shreds(&to, &mut rng, want.len(), 250);
                memory.fill(&source, &want);
                let wrote = run(&mut pair, Op::Write, lba, blocks as u64, &source);
                let read = run(&mut pair, Op::Read, lba, blocks as u64, &target);
                assert_eq!((wrote, read), (Status::Success, Status::Success));
                assert!(
                    memory.bytes(&target) == want,
                    "seed {seed}: {lba_bytes} {mdts} {noiob_blocks} round {round}"
                );
            }
            assert!(device.stats().sgl_commands > 0);
            assert_eq!(controller.stats(), ControllerStats::default());
        }
    }
}

#[test]
fn one_command_where_pages_need_several() {
    let memory = Memory::new();
    let lent = memory.lend(1 << 20);
    // 20 blocks, each somewhere else, none at a page.
    let blocks: Vec<_> = (0..20)
        .map(|n| lent.segment(n * 8192 + 512..n * 8192 + 1024).unwrap())
        .collect();
    let pages: Vec<_> = (0..20)
        .map(|n| lent.segment(n * 8192..n * 8192 + 4096).unwrap())
        .collect();
    for (sgl, offered, commands, by_sgl) in [
        (true, true, 1, 1),
        (false, true, 20, 0),
        (true, false, 20, 0),
    ] {
        let config = EmuConfig {
            sgl: offered,
            mdts: 0,
            ..EmuConfig::default()
        };
        let (device, controller, mut pair) = open(config, sgl, &memory);
        assert_eq!(controller.info().sgl, offered);
        let before = device.stats();
        assert_eq!(run(&mut pair, Op::Read, 0, 20, &blocks), Status::Success);
        let after = device.stats();
        assert_eq!(after.commands - before.commands, commands);
        assert_eq!(after.sgl_commands, by_sgl);
        // Whole pages, wherever they are, go as they always did.
        assert_eq!(run(&mut pair, Op::Read, 0, 160, &pages), Status::Success);
        let last = device.stats();
        assert_eq!(last.commands - after.commands, 1);
        assert_eq!(last.sgl_commands, by_sgl);
        // A seam within a block needs the list.
        let split = [
            lent.segment(0..100).unwrap(),
            lent.segment(8192..8604).unwrap(),
        ];
        let result = pair.submit(&chain(Op::Read, 0, 1, &split, 2));
        if by_sgl == 1 {
            assert_eq!((result, drain(&mut pair)[&2]), (Ok(()), Status::Success));
        } else {
            assert!(matches!(result, Err(Refused::Invalid(why)) if why.contains("seam")));
        }
    }
}

#[test]
fn more_pieces_than_a_list_has_room_for_take_more_commands() {
    let memory = Memory::new();
    let lent = memory.lend(2 << 20);
    let blocks: Vec<_> = (0..1000)
        .map(|n| lent.segment(n * 1024 + 512..n * 1024 + 1024).unwrap())
        .collect();
    let config = EmuConfig {
        mdts: 0,
        ..EmuConfig::default()
    };
    let (device, _controller, mut pair) = open(config, true, &memory);
    let want: Vec<u8> = (0..1000 * 512u32).map(|n| n.to_le_bytes()[1]).collect();
    memory.fill(&blocks, &want);
    let before = device.stats().commands;
    assert_eq!(run(&mut pair, Op::Write, 7, 1000, &blocks), Status::Success);
    assert_eq!(device.stats().commands - before, 4);
    memory.fill(&blocks, &vec![0; want.len()]);
    assert_eq!(run(&mut pair, Op::Read, 7, 1000, &blocks), Status::Success);
    assert!(memory.bytes(&blocks) == want);
}

#[test]
fn lists_are_sent_again_after_a_reset() {
    let memory = Memory::new();
    let mut rng = StdRng::seed_from_u64(1);
    let (from, to) = (memory.lend(64 << 10), memory.lend(64 << 10));
    let (device, controller, mut pair) = open(EmuConfig::default(), true, &memory);
    let mut want = vec![0; 8192];
    rng.fill(&mut want[..]);
    let source = shreds(&from, &mut rng, want.len(), 20);
    let target = shreds(&to, &mut rng, want.len(), 20);
    memory.fill(&source, &want);
    for (op, list) in [(Op::Write, &source), (Op::Read, &target)] {
        device.inject(FaultRule::new(Fault::Fatal).on(Scope::Io));
        assert_eq!(run(&mut pair, op, 3, 16, list), Status::Success);
    }
    assert_eq!(controller.stats().resets, 2);
    assert!(memory.bytes(&target) == want);
}

//! Seeded checkpoints on logs of every geometry, with power cuts: a replay gives what a model has.
//! tests/xfs_log_write.rs asks the kernel.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::collections::HashSet;

use super::super::BB;
use super::*;
use world::{Outstanding, World};

mod items;
mod world;

fn live(sector: u32, stripe: u32, log_blocks: u32, seed: u64) -> World {
    let mut world = World::new(sector, stripe, log_blocks, seed);
    world.live(3);
    world
}

#[test]
fn replay_gives_what_was_written_on_logs_of_every_geometry() {
    let (mut wrapped, mut ended_at_end) = (0, 0);
    for sector in [512, 4096] {
        for stripe in [0, 4 << 10, 32 << 10, 48 << 10, 64 << 10, 256 << 10] {
            // Blocks of 4096 bytes: a multiple of every stripe unit, and one of none.
            for log_blocks in [1536, 1543] {
                let world = live(sector, stripe, log_blocks, u64::from(stripe ^ log_blocks));
                wrapped += world.wrapped;
                ended_at_end += world.ended_at_end;
            }
        }
    }
    assert!(
        wrapped > 10 && ended_at_end > 10,
        "{wrapped}, {ended_at_end}"
    );
}

#[test]
fn replay_gives_what_was_written_on_small_logs() {
    for seed in 0..6 {
        live(512, 0, 512, seed);
        live(4096, 32 << 10, 515, seed);
    }
}

/// More blocks than the search for the head looks at.
#[test]
fn large_checkpoints_are_lost_whole_or_not_at_all() {
    for seed in 0..20 {
        let mut world = World::new(512, 0, 2560, seed);
        world.checkpoint();
        let before = world.truth.clone();
        let items = (0..10).flat_map(|_| world.change(usize::MAX).1);
        let items: Vec<_> = items.collect();
        let blocks = world.writer.checkpoint_blocks(&items);
        assert!(blocks > 4200, "{blocks} blocks, {}", world.what);
        world.cut_at(&items, before);
        world.checkpoint();
        world.check();
    }
}

#[test]
fn cycle_numbers_step_over_the_magic_number_of_records() {
    let mut world = World::new(512, 0, 512, 1);
    let cycle = RECORD_MAGIC - 1;
    let lsn = u64::from(cycle) << 32 | (world.writer.blocks() - 9);
    world.writer.head = LogHead::at(lsn);
    world.writer.written_tail = lsn - 2;
    // As if that cycle had been written.
    for block in 0..world.writer.blocks() as usize {
        let at = world.writer.log.addr_bytes as usize + block * BB;
        let cycle = cycle - u32::from(block as u64 >= world.writer.blocks() - 9);
        world.disk.bytes[at..at + BB].fill(0);
        world.disk.bytes[at..at + 4].copy_from_slice(&cycle.to_be_bytes());
    }
    let (changed, items) = world.change(12);
    let built = world.writer.checkpoint(&items, lsn).unwrap();
    assert_eq!(built.records[0].writes.len(), 2);
    let word = built.records[0].writes[1].bytes.first_chunk().copied();
    assert_eq!(word.map(u32::from_be_bytes), Some(RECORD_MAGIC + 1));
    assert_eq!(world.writer.lsn() >> 32, u64::from(RECORD_MAGIC) + 1);
    world.write(&built, &HashSet::new());
    world.outstanding.push_back(Outstanding { lsn, changed });
    let (_, items) = world.change(1);
    let built = world.writer.checkpoint(&items, lsn).unwrap();
    world.write(&built, &HashSet::new());
    assert_eq!(built.lsn >> 32, u64::from(RECORD_MAGIC) + 1);
}

#[test]
fn regions_are_cut_anywhere() {
    // A region that ends where the record ends, or up to a few bytes before.
    for short in 0..40_usize {
        let mut world = World::new(512, 0, 1024, short as u64);
        let room = world.writer.log.record_bytes() - world.writer.log.header_bytes();
        let used = 12 + 28 + 12;
        let mut item = LogItem::default();
        item.push(&vec![7; room - used - short * 4], &[]);
        item.push(&[8; 8], &[]);
        let mut last = LogItem::default();
        last.push(&[9; 60_000], &[]);
        let built = world.writer.checkpoint(&[item, last], world.writer.lsn());
        let built = built.unwrap();
        let lengths = built
            .records
            .iter()
            .map(|record| record.writes[0].bytes.len());
        assert_eq!(lengths.max(), Some(32 << 10));
        assert_eq!(built.records.len(), 3);
        world.write(&built, &HashSet::new());
        assert_eq!(
            items::regions_of(&mut world),
            [room - used - short * 4, 8, 60_000]
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut world = World::new(512, 0, 512, 3);
    let (_, items) = world.change(10);
    let lsn = world.writer.lsn();
    let tail = world.writer.written_tail();
    let kind = |result: Result<BuiltCheckpoint>| result.unwrap_err().kind();
    let refused = kind(world.writer.checkpoint(&items, lsn + 1));
    assert_eq!(refused, ErrorKind::InvalidInput);
    let mut large = LogItem::default();
    large.push(&vec![1; 2 << 20], &[]);
    assert_eq!(
        kind(world.writer.checkpoint(&[large], lsn)),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        (world.writer.lsn(), world.writer.written_tail()),
        (lsn, tail)
    );
    // The tail stays: at some time the log is full, and the head is before it.
    let mut blocks = 0;
    let first = lsn;
    let full = loop {
        let free = world.writer.free_blocks(first);
        let (_, items) = world.change(10);
        let lsn = world.writer.lsn();
        match world.writer.checkpoint(&items, first) {
            Ok(built) => {
                let now = world.writer.free_blocks(first);
                blocks += free - now;
                assert!(built.lsn == lsn && now < free);
            }
            Err(error) => {
                assert_eq!(world.writer.lsn(), lsn);
                break error.kind();
            }
        }
    };
    assert_eq!(full, ErrorKind::WouldBlock);
    assert!(blocks < world.writer.blocks());
    assert_eq!(
        world.writer.free_blocks(first),
        world.writer.blocks() - blocks - 1
    );
    // Of another cycle, ahead, or outside of the log.
    for wrong in [
        0,
        first - 1,
        first + (9 << 32),
        first + world.writer.blocks(),
        world.writer.lsn() + 1,
    ] {
        assert_eq!(world.writer.free_blocks(wrong), 0, "{wrong:#x}");
    }
}

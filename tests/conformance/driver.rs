//! The driver: blocks of every size in every shape of memory, every depth, several threads, a
//! device that is cut off under them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::block::{Chain, ChainFlags, Op, Queue, Refused, Status};
use xtent::internals::mem::Segment;
use xtent::internals::nvme::QueueOptions;

use super::common::{number, scaled};
use super::rig::{Memory, chain, drain};
use super::stand::{For, Rig, RigQueue, Stand, Troubles};
use super::{Outcome, Test, list};

list! { "driver", For::Driver,
    every_size_reads_back_what_was_written,
    every_depth_wraps_its_rings,
    threads_with_a_queue_each_share_a_controller,
    operations_without_memory_do_what_they_say,
}

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = each();
    // It waits for deadlines, and the shape of commands says nothing about it.
    let slow = Test::each(
        "driver::a_device_that_is_cut_off_under_its_threads_comes_up_again",
        For::Driver,
        a_device_that_is_cut_off_under_its_threads_comes_up_again,
    );
    tests.push(slow.dealt());
    tests
}

/// The part of the disk that random operations touch.
const RANGE_BYTES: u64 = 8 << 20;

/// Longer than anything takes, short enough that silence is noticed.
const TIMEOUT: Duration = Duration::from_secs(30);

fn queue(rig: &dyn Rig, depth: usize, timeout: Duration) -> RigQueue {
    rig.queue(QueueOptions {
        depth,
        timeout,
        retries: 20,
        ..QueueOptions::default()
    })
}

/// A random list of segments of `len` bytes in `lent`: seams at pages, or at blocks anywhere.
fn scattered(memory: &Memory, rng: &mut StdRng, len: usize, block: usize) -> Vec<Segment> {
    let lent = memory.lend(2 * len + 64 * 4096);
    let mut list = Vec::new();
    let (mut at, mut left) = (4 * rng.random_range(0..1024), len);
    while left > 0 && list.len() < 15 {
        let blocks = rng.random_range(1..=left / block);
        let mut take = blocks * block;
        let to_page = (at + take).next_multiple_of(4096) - at;
        if (left - take.min(left)) > 4096 && to_page <= left && to_page.is_multiple_of(block) {
            take = to_page;
        }
        list.push(lent.segment(at..at + take).unwrap());
        left -= take;
        at += take + 4 * rng.random_range(0..64);
    }
    if left > 0 {
        list.push(lent.segment(at..at + left).unwrap());
    }
    list
}

fn every_size_reads_back_what_was_written(stand: &Stand) -> Outcome {
    let seed = number("XTENT_SEED", 1);
    let (rig, memory) = stand.open();
    let mut pair = queue(&*rig, 7, TIMEOUT);
    let block_bytes = pair.limits().block_bytes;
    let block = block_bytes as usize;
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..12u64 {
        let most = if round % 4 == 0 { 300 } else { 40 };
        let blocks = rng.random_range(1..=most);
        let lba = rng.random_range(0..=RANGE_BYTES / u64::from(block_bytes) - blocks as u64);
        let mut want = vec![0; blocks * block];
        rng.fill(&mut want[..]);
        let from = scattered(&memory, &mut rng, want.len(), block);
        let to = scattered(&memory, &mut rng, want.len(), block);
        memory.fill(&from, &want);
        for (op, list) in [(Op::Write, &from), (Op::Read, &to)] {
            let chain = chain(op, lba, blocks as u64, list, round);
            pair.submit(&chain).unwrap();
            assert_eq!(drain(&mut pair)[&round], Status::Success);
        }
        let same = memory.bytes(&to) == want;
        assert!(same, "seed {seed}, round {round}: {blocks} blocks at {lba}");
    }
    assert_eq!(rig.troubles(), Troubles::default());
    Ok(())
}

fn every_depth_wraps_its_rings(stand: &Stand) -> Outcome {
    let (rig, memory) = stand.open();
    let most = rig.most_depth();
    for depth in [1, 2, 3, 64, 1023.min(most)] {
        let mut pair = queue(&*rig, depth, TIMEOUT);
        assert_eq!(pair.limits().depth, depth);
        let block = pair.limits().block_bytes as usize;
        let lent = memory.lend(block);
        let segments = [lent.segment(0..block).unwrap()];
        for round in 0..(scaled(5000, 1000) / depth as u64).max(5) {
            for token in 0..depth as u64 {
                let lba = (round + token) % 1000;
                pair.submit(&chain(Op::Read, lba, 1, &segments, token))
                    .unwrap();
            }
            let more = chain(Op::Read, 0, 1, &segments, 0);
            assert_eq!(pair.submit(&more), Err(Refused::Full));
            let ended = drain(&mut pair);
            assert_eq!(ended.len(), depth);
            assert!(ended.values().all(|status| status.is_success()));
        }
    }
    assert_eq!(rig.troubles(), Troubles::default());
    Ok(())
}

const THREADS: u64 = 4;
const SLOTS: usize = 16;

/// One thread writes its blocks and reads them back, `rounds` times, in its own part of the disk.
fn write_and_read(memory: &Memory, pair: &mut RigQueue, thread: u64, rounds: u8) {
    let block = pair.limits().block_bytes as usize;
    let lent = memory.lend(SLOTS * block);
    let list: Vec<_> = (0..SLOTS)
        .map(|n| [lent.segment(n * block..(n + 1) * block).unwrap()])
        .collect();
    for round in 0..rounds {
        for op in [Op::Write, Op::Read] {
            for (n, segments) in (0..).zip(&list) {
                let byte = if op == Op::Write { round } else { 0xff };
                memory.fill(segments, &vec![byte; block]);
                let lba = thread * 1000 + n;
                pair.submit(&chain(op, lba, 1, segments, n)).unwrap();
            }
            let ended = drain(pair);
            assert!(ended.values().all(|s| s.is_success()), "{ended:?}");
        }
        for segments in &list {
            assert!(
                memory.bytes(segments) == vec![round; block],
                "round {round}"
            );
        }
    }
}

fn threads_with_a_queue_each_share_a_controller(stand: &Stand) -> Outcome {
    let (rig, memory) = stand.open();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rig, memory) = (&*rig, &memory);
            scope.spawn(move || {
                let mut pair = queue(rig, SLOTS, TIMEOUT);
                write_and_read(memory, &mut pair, thread, scaled(60, 20));
            });
        }
    });
    assert_eq!(rig.troubles(), Troubles::default());
    Ok(())
}

/// Sets the flag when it is dropped, also by a panic, so that no thread waits for one that failed.
struct AtLast<'a>(&'a AtomicBool);

impl Drop for AtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn a_device_that_is_cut_off_under_its_threads_comes_up_again(stand: &Stand) -> Outcome {
    // Some devices that were cut off are detected by their silence only. Admin commands have more
    // time: on a busy machine those of the reset may take long, too.
    let silence = Duration::from_secs(1);
    let (rig, memory) = stand.open();
    let cut = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rig, memory, cut) = (&*rig, &memory, &cut);
            scope.spawn(move || {
                let mut pair = queue(rig, SLOTS, silence);
                let at_last = (thread == 1).then(|| AtLast(cut));
                write_and_read(memory, &mut pair, thread, 5);
                if at_last.is_some() {
                    rig.cut_off();
                }
                drop(at_last);
                // No thread ends before the others have noticed.
                while !cut.load(Ordering::Relaxed) {
                    write_and_read(memory, &mut pair, thread, 1);
                }
                write_and_read(memory, &mut pair, thread, 5);
            });
        }
    });
    assert!(rig.troubles().resets >= 1, "{:?}", rig.troubles());
    Ok(())
}

fn operations_without_memory_do_what_they_say(stand: &Stand) -> Outcome {
    let (rig, memory) = stand.open();
    let mut pair = queue(&*rig, 2, TIMEOUT);
    let block = pair.limits().block_bytes as usize;
    let lent = memory.lend(block);
    let segments = [lent.segment(0..block).unwrap()];
    memory.fill(&segments, &vec![7; block]);
    let fua = Chain {
        flags: ChainFlags::FUA,
        ..chain(Op::Write, 140_000, 1, &segments, 1)
    };
    pair.submit(&fua).unwrap();
    assert!(drain(&mut pair)[&1].is_success());
    pair.submit(&chain(Op::Flush, 0, 0, &[], 2)).unwrap();
    assert_eq!(pair.outstanding(), 1);
    assert!(drain(&mut pair)[&2].is_success());
    // Three commands of at most 65,536 blocks, through two trackers.
    pair.submit(&chain(Op::WriteZeroes, 10, 150_000, &[], 3))
        .unwrap();
    assert!(drain(&mut pair)[&3].is_success());
    pair.submit(&chain(Op::Read, 140_000, 1, &segments, 4))
        .unwrap();
    assert!(drain(&mut pair)[&4].is_success());
    assert!(memory.bytes(&segments) == vec![0; block]);
    if !pair.limits().deallocate {
        return Ok(());
    }
    pair.submit(&chain(Op::Deallocate, 0, 160_000, &[], 5))
        .unwrap();
    assert!(drain(&mut pair)[&5].is_success());
    Ok(())
}

//! Blocks of every size in every shape of memory read back as written; invalid requests are
//! refused.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::block::{Op, Queue, Refused, Status};
use xtent::internals::mem::Segment;
use xtent::internals::spdk::{SpdkControllerOptions, SpdkQueue, SpdkQueueOptions};
use xtent::internals::units::Iova;

use super::common::number;
use super::rig::{Memory, chain, drain};
use super::{alone, memory_target, open};

const RANGE_BYTES: usize = 8 << 20;

/// A random list of segments, in whole blocks, of `len` bytes.
fn scattered(memory: &Memory, rng: &mut StdRng, len: usize, block: usize) -> Vec<Segment> {
    let lent = memory.lend(2 * len + 16 * 4096);
    let (mut list, mut at, mut left) = (Vec::new(), 0, len);
    while left > 0 {
        let take = if list.len() == 7 {
            left
        } else {
            rng.random_range(1..=left / block) * block
        };
        list.push(lent.segment(at..at + take).unwrap());
        at += take + 4 * rng.random_range(0..1024);
        left -= take;
    }
    list
}

fn run(queue: &mut SpdkQueue, memory: &Memory, block: usize) {
    let seed = number("XTENT_SEED", 41);
    println!("XTENT_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let blocks = RANGE_BYTES / block;
    let mut model = vec![0; RANGE_BYTES];
    let zeroed = queue.limits().write_zeroes;
    let op = if zeroed { Op::WriteZeroes } else { Op::Flush };
    let whole = if zeroed { blocks as u64 } else { 0 };
    queue.submit(&chain(op, 0, whole, &[], 0)).unwrap();
    assert!(drain(queue).values().all(|status| status.is_success()));
    for round in 0..200 {
        let most = if round % 10 == 0 { 2 << 20 } else { 64 << 10 };
        let count = rng.random_range(1..=most / block);
        let first = rng.random_range(0..=blocks - count);
        let bytes = first * block..(first + count) * block;
        let list = scattered(memory, &mut rng, count * block, block);
        let (lba, count) = (first as u64, count as u64);
        match round % 5 {
            0..2 => {
                rng.fill(&mut model[bytes.clone()]);
                memory.fill(&list, &model[bytes]);
                queue
                    .submit(&chain(Op::Write, lba, count, &list, round))
                    .unwrap();
            }
            2 if zeroed => {
                model[bytes].fill(0);
                queue
                    .submit(&chain(Op::WriteZeroes, lba, count, &[], round))
                    .unwrap();
            }
            _ => {
                queue
                    .submit(&chain(Op::Read, lba, count, &list, round))
                    .unwrap();
                assert_eq!(drain(queue)[&round], Status::Success);
                assert!(memory.bytes(&list) == model[bytes], "round {round}");
                continue;
            }
        }
        assert_eq!(drain(queue)[&round], Status::Success);
    }
}

#[expect(unsafe_code, reason = "names an address that is mapped nowhere")]
fn refusals(queue: &mut SpdkQueue, memory: &Memory, block: u32) {
    let lent = memory.lend(block as usize);
    let segment = lent.segment(0..block as usize).unwrap();
    // SAFETY: the arenas of this test are far below.
    let nowhere = unsafe { Segment::anywhere(Iova(1 << 38), block) };
    let capacity = queue.limits().capacity_blocks;
    let mut refused = |op, lba, blocks, list: &[Segment]| {
        matches!(
            queue.submit(&chain(op, lba, blocks, list, 1)),
            Err(Refused::Invalid(_) | Refused::ReadOnly)
        )
    };
    assert!(refused(Op::Read, 0, 0, &[]));
    assert!(refused(Op::Read, 0, 1, &[]));
    assert!(refused(Op::Read, 0, 2, &[segment]));
    assert!(refused(Op::Read, capacity, 1, &[segment]));
    assert!(refused(Op::Read, u64::MAX, 1, &[segment]));
    assert!(refused(Op::Read, 0, 1, &[nowhere]));
    assert!(refused(Op::Flush, 0, 1, &[]));
    assert!(refused(Op::WriteZeroes, 0, 1, &[segment]));
    assert_eq!(queue.outstanding(), 0);
    let depth = queue.limits().depth;
    for token in 0..depth as u64 {
        queue
            .submit(&chain(Op::Read, token, 1, &[segment], token))
            .unwrap();
    }
    let one_more = queue.submit(&chain(Op::Read, 0, 1, &[segment], 9999));
    assert_eq!(one_more, Err(Refused::Full));
    assert_eq!(drain(queue).len(), depth);
}

fn over(block_bytes: u32, vfio_user: bool) {
    let Some(_alone) = alone() else { return };
    let target = memory_target(block_bytes);
    let id = if vfio_user {
        target.vfio_user()
    } else {
        target.tcp()
    };
    let (controller, memory) = open(&id, SpdkControllerOptions::default());
    assert_eq!(controller.info().block_bytes, block_bytes);
    for depth in [2, 200] {
        let mut queue = controller
            .queue(SpdkQueueOptions {
                depth,
                ..SpdkQueueOptions::default()
            })
            .unwrap();
        run(&mut queue, &memory, block_bytes as usize);
        refusals(&mut queue, &memory, block_bytes);
    }
    assert_eq!(controller.stats().resets, 0);
}

#[test]
fn blocks_read_back_what_was_written_over_tcp() {
    over(512, false);
}

#[test]
fn blocks_read_back_what_was_written_over_vfio_user() {
    over(4096, true);
}

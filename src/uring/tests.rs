//! Rings over files, and over a loop device where there may be one.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::{RingOptions, RingQueue, UringDisk};
use crate::block::{BlockRange, Chain, ChainFlags, Completion, Op, Queue, Refused, Status, Wait};
use crate::error::ErrorKind;
use crate::mem::{Heap, HeapConfig, HugePages, Lent, Segment};
use crate::sys::GateState;
use crate::units::Lba;

const BLOCK: usize = 4096;

fn heap() -> Heap {
    Heap::new(HeapConfig {
        arena_bytes: 2 << 20,
        huge_pages: HugePages::Never,
        ..HeapConfig::default()
    })
}

/// A disk of 64 blocks on a file; `None`, said why, where that cannot be.
fn disk(heap: &Heap) -> Option<(tempfile::NamedTempFile, UringDisk)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(&[1; 64 * BLOCK]).unwrap();
    let both = File::options().read(true).write(true).open(file.path());
    match UringDisk::open(both.unwrap(), file.path(), Some(4096), heap) {
        Ok(disk) => Some((file, disk)),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

fn queue(disk: &UringDisk, depth: usize, read_only: bool) -> Option<RingQueue> {
    let options = RingOptions {
        depth,
        read_only,
        wait: Wait::Interrupt,
        range: BlockRange::WHOLE,
    };
    match disk.queue(options) {
        Ok(queue) => Some(queue),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

fn chain(op: Op, lba: u64, blocks: u64, segments: &[Segment], token: u64) -> Chain<'_> {
    Chain {
        op,
        flags: ChainFlags::empty(),
        lba: Lba(lba),
        blocks,
        segments,
        token,
    }
}

fn finish(queue: &mut RingQueue) -> Vec<Completion> {
    let mut ended = Vec::new();
    while queue.outstanding() > 0 {
        if queue.poll(usize::MAX, &mut |end| ended.push(end)) == 0 {
            queue.relax();
        }
    }
    ended.sort_by_key(|end| end.token);
    ended
}

fn one(queue: &mut RingQueue, chain: &Chain<'_>) -> Status {
    queue.submit(chain).unwrap();
    let ended = finish(queue);
    assert_eq!((ended.len(), ended[0].token), (1, chain.token));
    ended[0].status
}

fn part(memory: &Lent, from: usize, blocks: usize) -> [Segment; 1] {
    [memory
        .segment(from * BLOCK..(from + blocks) * BLOCK)
        .unwrap()]
}

#[test]
fn what_is_written_is_read_at_any_depth() {
    let heap = heap();
    let Some((file, disk)) = disk(&heap) else {
        return;
    };
    let Some(mut queue) = queue(&disk, 8, false) else {
        return;
    };
    // An arena that the ring was not made with.
    let mut memory = heap.alloc(3 << 20, 4096).unwrap();
    for (n, block) in memory.chunks_mut(BLOCK).enumerate() {
        block.fill(u8::try_from(n % 251).unwrap());
    }
    let memory = memory.lend();
    for n in 0..8 {
        let mut write = chain(Op::Write, n * 8, 8, &[], n);
        let segments = part(&memory, usize::try_from(n * 8).unwrap(), 8);
        write.segments = &segments;
        if n % 2 == 1 {
            write.flags = ChainFlags::FUA;
        }
        queue.submit(&write).unwrap();
    }
    let spare = part(&memory, 0, 1);
    let ninth = chain(Op::Read, 0, 1, &spare, 9);
    assert_eq!(queue.submit(&ninth), Err(Refused::Full));
    let ended = finish(&mut queue);
    assert!(ended.iter().map(|end| end.token).eq(0..8));
    assert!(ended.iter().all(|end| end.status.is_success()), "{ended:?}");
    assert_eq!(
        one(&mut queue, &chain(Op::Flush, 0, 0, &[], 5)),
        Status::Success
    );
    let segments = part(&memory, 100, 64);
    assert_eq!(
        one(&mut queue, &chain(Op::Read, 0, 64, &segments, 6)),
        Status::Success
    );
    drop(queue);
    let memory = memory.take_back();
    assert_eq!(memory[100 * BLOCK..164 * BLOCK], memory[..64 * BLOCK]);
    assert_eq!(std::fs::read(file.path()).unwrap(), &memory[..64 * BLOCK]);
}

#[test]
fn ranges_are_zeroed_and_given_up() {
    let heap = heap();
    let Some((file, disk)) = disk(&heap) else {
        return;
    };
    let Some(mut queue) = queue(&disk, 2, false) else {
        return;
    };
    let mut zero = chain(Op::WriteZeroes, 4, 4, &[], 1);
    assert_eq!(one(&mut queue, &zero), Status::Success);
    zero.flags = ChainFlags::FUA;
    zero.lba = Lba(10);
    assert_eq!(one(&mut queue, &zero), Status::Success);
    assert_eq!(
        one(&mut queue, &chain(Op::Deallocate, 32, 32, &[], 2)),
        Status::Success
    );
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(bytes.len(), 64 * BLOCK, "it keeps its length");
    for (block, bytes) in bytes.chunks(BLOCK).enumerate().take(32) {
        let wanted = u8::from(!matches!(block, 4..8 | 10..14));
        assert!(bytes.iter().all(|&b| b == wanted), "block {block}");
    }
}

#[test]
fn what_is_wrong_is_refused_before_the_kernel_sees_it() {
    let heap = heap();
    let Some((_file, disk)) = disk(&heap) else {
        return;
    };
    let Some(mut queue) = queue(&disk, 2, true) else {
        return;
    };
    let memory = heap.alloc(8 * BLOCK, 4096).unwrap().lend();
    let (good, two) = (part(&memory, 0, 1), part(&memory, 0, 2));
    let stranger = [Segment::new(crate::units::Iova(0x1000), 4096)];
    let odd = [Segment::new(good[0].iova().offset(1), 4096)];
    let over = [Segment::new(
        good[0]
            .iova()
            .offset(2 << 20)
            .offset(0u64.wrapping_sub(2048)),
        4096,
    )];
    for wrong in [
        chain(Op::Write, 0, 1, &good, 0),
        chain(Op::WriteZeroes, 0, 1, &[], 0),
        chain(Op::Read, 64, 1, &good, 0),
        chain(Op::Read, u64::MAX, 1, &good, 0),
        chain(Op::Read, 0, 0, &good, 0),
        chain(Op::Read, 0, 1, &two, 0),
        chain(Op::Read, 0, 1, &[], 0),
        chain(Op::Read, 0, 1, &stranger, 0),
        chain(Op::Read, 0, 1, &odd, 0),
        chain(Op::Read, 0, 1, &over, 0),
        chain(Op::Flush, 0, 1, &[], 0),
    ] {
        let refused = queue.submit(&wrong);
        assert!(
            matches!(refused, Err(Refused::Invalid(_) | Refused::ReadOnly)),
            "{wrong:?}: {refused:?}"
        );
    }
    assert_eq!(queue.outstanding(), 0);
    assert!(
        disk.queue(RingOptions {
            depth: 0,
            read_only: true,
            wait: Wait::Poll,
            range: BlockRange::WHOLE,
        })
        .is_err()
    );
}

#[test]
fn what_the_kernel_has_is_not_given_up_when_the_gate_closes() {
    let heap = heap();
    let Some((_file, disk)) = disk(&heap) else {
        return;
    };
    let Some(mut queue) = queue(&disk, 4, false) else {
        return;
    };
    let memory = heap.alloc(2 * BLOCK, 4096).unwrap().lend();
    let (first, second) = (part(&memory, 0, 1), part(&memory, 1, 1));
    queue.submit(&chain(Op::Read, 0, 1, &first, 1)).unwrap();
    // It tells the kernel.
    queue.relax();
    queue.submit(&chain(Op::Read, 1, 1, &second, 2)).unwrap();
    disk.held.gate().set(GateState::Closed);
    let ended: Vec<_> = finish(&mut queue).iter().map(|end| end.status).collect();
    assert_eq!(ended, [Status::Success, Status::Gone]);
    let refused = queue.submit(&chain(Op::Read, 0, 1, &first, 3));
    assert_eq!(refused, Err(Refused::Gone));
    drop(queue);
    let memory = memory.take_back();
    assert!(memory[..BLOCK].iter().all(|&byte| byte == 1));
}

#[test]
fn neither_waiting_nor_dropping_writes_past_a_closed_gate() {
    let heap = heap();
    let Some((file, disk)) = disk(&heap) else {
        return;
    };
    let Some(mut queue) = queue(&disk, 4, false) else {
        return;
    };
    let memory = heap.alloc(BLOCK, 4096).unwrap().lend();
    let segments = part(&memory, 0, 1);
    queue.submit(&chain(Op::Write, 0, 1, &segments, 1)).unwrap();
    disk.held.gate().set(GateState::Closed);
    queue.relax();
    drop(queue);
    // The memory is zeroes.
    let now = std::fs::read(file.path()).unwrap();
    assert!(now.iter().all(|&byte| byte == 1), "it was written");
    drop(memory.take_back());
}

#[test]
fn a_disk_that_became_shorter_is_an_error_of_the_read() {
    let heap = heap();
    let Some((file, disk)) = disk(&heap) else {
        return;
    };
    let Some(mut queue) = queue(&disk, 2, false) else {
        return;
    };
    let memory = heap.alloc(8 * BLOCK, 4096).unwrap().lend();
    file.as_file().set_len(4 * 4096).unwrap();
    let segments = part(&memory, 0, 8);
    let status = one(&mut queue, &chain(Op::Read, 0, 8, &segments, 0));
    assert_eq!(status, Status::Device { sct: 2, sc: 0x81 });
    let segments = part(&memory, 0, 4);
    assert!(one(&mut queue, &chain(Op::Read, 0, 4, &segments, 0)).is_success());
}

#[test]
fn without_direct_io_there_is_no_disk() {
    let heap = heap();
    for (path, kind) in [
        ("/proc/version", ErrorKind::Unsupported),
        ("/dev/null", ErrorKind::Unsupported),
    ] {
        let error = UringDisk::open(File::open(path).unwrap(), Path::new(path), None, &heap);
        assert_eq!(error.unwrap_err().kind(), kind, "{path}");
    }
}

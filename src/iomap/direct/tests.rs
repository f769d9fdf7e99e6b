//! Direct operations over a queue that is full, late, out of order and failing, as told by a seed.
//! The real driver and controller run the same operations in `tests/`; they do not misbehave on
//! demand in every step.

mod limits;
mod references;
mod versions;

use std::collections::HashSet;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::super::testing::TestLayout;
use super::super::{MapFlags, MappingKind, Versions};
use super::{Direct, DirectRequest, Ended, Hear, Of, Rejected, Source, What};
use crate::block::{
    Chain, ChainFlags, Completion, DeallocateGrain, Limits, Op, Queue, Refused, Status,
};
use crate::error::ErrorKind;
use crate::mem::{DmaBuf, DmaSpace, Heap, HeapConfig, HugePages};

const BLOCK: u64 = 512;

#[derive(Debug)]
struct TestFile {
    /// As it is at first.
    layout: TestLayout,
    versions: Versions<TestVersion>,
}

/// A layout and a size.
type TestVersion = (TestLayout, u64);

impl TestFile {
    fn new(layout: TestLayout, size: u64) -> Arc<Self> {
        Arc::new(Self {
            versions: Versions::new((layout.clone(), size)),
            layout,
        })
    }

    fn size(&self) -> u64 {
        self.versions.now().0.1
    }
}

impl Source for Arc<TestFile> {
    type Version = TestVersion;
    type Ops<'a> = TestLayout;

    fn versions(&self) -> &Versions<TestVersion> {
        &self.versions
    }

    fn ops((layout, _): &TestVersion) -> TestLayout {
        layout.clone()
    }

    fn size_bytes((_, size): &TestVersion) -> u64 {
        *size
    }

    fn key(&self) -> u64 {
        Arc::as_ptr(self).addr() as u64
    }
}

/// Blocks in memory, as a device that answers when and how the generator says.
struct RamQueue {
    limits: Limits,
    space: Arc<DmaSpace>,
    bytes: Vec<u8>,
    bad: HashSet<u64>,
    /// These blocks end as if the device were gone, and not cut off.
    unfenced: HashSet<u64>,
    pending: Vec<Completion>,
    rng: SmallRng,
    log: Vec<(Op, ChainFlags)>,
}

impl RamQueue {
    fn transfer(&mut self, chain: &Chain<'_>) -> Status {
        let error = Status::Device { sct: 2, sc: 0x81 };
        if (chain.lba.0..chain.lba.0 + chain.blocks).any(|block| self.unfenced.contains(&block)) {
            return Status::Unfenced;
        }
        if (chain.lba.0..chain.lba.0 + chain.blocks).any(|block| self.bad.contains(&block)) {
            return error;
        }
        let mut at = usize::try_from(chain.lba.0 * BLOCK).unwrap();
        for segment in chain.segments {
            let len = segment.len_bytes() as usize;
            let Ok(range) = self.space.translate(segment.iova(), len) else {
                return error;
            };
            match chain.op {
                Op::Read => range.copy_from(&self.bytes[at..at + len]),
                _ => range.copy_to(&mut self.bytes[at..at + len]),
            }
            at += len;
        }
        Status::Success
    }
}

impl Queue for RamQueue {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        if self.pending.len() == self.limits.depth || self.rng.random_range(0..4) == 0 {
            return Err(Refused::Full);
        }
        if chain.lba.0 + chain.blocks > self.limits.capacity_blocks {
            return Err(Refused::Invalid("the range is outside the device"));
        }
        if self.limits.read_only && chain.op == Op::Write {
            return Err(Refused::ReadOnly);
        }
        self.log.push((chain.op, chain.flags));
        let status = self.transfer(chain);
        self.pending.push(Completion {
            token: chain.token,
            status,
        });
        Ok(())
    }

    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        self.pending.shuffle(&mut self.rng);
        let keep = self.rng.random_range(0..=self.pending.len());
        let mut count = 0;
        while self.pending.len() > keep && count < budget {
            done(self.pending.pop().unwrap());
            count += 1;
        }
        count
    }

    fn outstanding(&self) -> usize {
        self.pending.len()
    }

    fn relax(&mut self) {}
}

struct Bench {
    heap: Heap,
    queue: RamQueue,
    direct: Direct<Arc<TestFile>>,
}

fn bench(seed: u64, volatile_write_cache: bool, fua: bool) -> Bench {
    let heap = Heap::new(HeapConfig {
        huge_pages: HugePages::Never,
        arena_bytes: 2 << 20,
        ..Default::default()
    });
    let space = Arc::new(DmaSpace::default());
    heap.attach(space.clone()).unwrap();
    let capacity_blocks = 8192;
    let limits = Limits {
        block_bytes: 512,
        capacity_blocks,
        max_segments: 1,
        dma_align_bytes: 4,
        max_transfer_bytes: None,
        volatile_write_cache,
        fua,
        write_zeroes: false,
        deallocate: false,
        deallocate_grain: DeallocateGrain::ANY,
        read_only: false,
        depth: 4,
    };
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut bytes = vec![0; 8192 * 512];
    rng.fill(&mut bytes[..]);
    let queue = RamQueue {
        limits,
        space,
        bytes,
        bad: HashSet::new(),
        unfenced: HashSet::new(),
        pending: Vec::new(),
        rng,
        log: Vec::new(),
    };
    Bench {
        heap,
        direct: Direct::new(8, &limits),
        queue,
    }
}

impl Bench {
    fn buf(&self, len: u64) -> DmaBuf {
        self.heap
            .alloc(usize::try_from(len).unwrap(), 4096)
            .unwrap()
    }

    fn run(&mut self, file: &Arc<TestFile>, what: What, offset: u64, buf: DmaBuf) -> Outcome {
        let request = DirectRequest {
            what,
            source: Some(file),
            offset,
            buf,
            user_data: 7,
        };
        let kept = self.direct.submit_kept(&mut self.queue, request)?;
        for _ in 0..100_000 {
            self.direct.poll(
                &mut self.queue,
                1,
                &mut Heard(|_, _| panic!("nothing else is in flight")),
            );
            if let Some(ended) = self.direct.take(kept, |_, _| ()) {
                return Ok(ended);
            }
        }
        panic!("the operation did not end");
    }
}

/// A closure that hears.
struct Heard<F>(F);

impl<F: FnMut(Ended, Option<Arc<TestFile>>)> Hear<Arc<TestFile>> for Heard<F> {
    fn hear(&mut self, ended: Ended, of: Of<'_, Arc<TestFile>>) {
        (self.0)(ended, of.source().cloned());
    }
}

type Outcome = Result<Ended, Rejected>;

fn file(extents: &[(MappingKind, u64)], size: u64) -> Arc<TestFile> {
    TestFile::new(TestLayout::new(extents), size)
}

const PLAIN: What = What::Write {
    dsync: false,
    through_last_block: false,
};
const DURABLE: What = What::Write {
    dsync: true,
    through_last_block: false,
};

/// The file's bytes, whole blocks, beyond the size too.
fn content(file: &TestFile, device: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mapping in &file.layout.mappings {
        let len = usize::try_from(mapping.length).unwrap();
        if mapping.kind == MappingKind::Mapped {
            let at = usize::try_from(mapping.addr).unwrap();
            bytes.extend_from_slice(&device[at..at + len]);
        } else {
            bytes.resize(bytes.len() + len, 0);
        }
    }
    bytes
}

#[test]
fn reads_of_any_layout_equal_the_model_and_stop_at_the_first_failure() {
    for seed in 0..400 {
        let mut bench = bench(seed, true, true);
        let mut rng = SmallRng::seed_from_u64(seed);
        let kinds = [
            MappingKind::Mapped,
            MappingKind::Mapped,
            MappingKind::Hole,
            MappingKind::Unwritten,
        ];
        let extents: Vec<_> = (0..rng.random_range(1..12))
            .map(|_| {
                (
                    kinds[rng.random_range(0..4)],
                    BLOCK * rng.random_range(1..20),
                )
            })
            .collect();
        let total: u64 = extents.iter().map(|e| e.1).sum();
        let file = file(&extents, rng.random_range(0..=total));
        for _ in 0..rng.random_range(0..3) {
            bench.queue.bad.insert(2048 + rng.random_range(0..1500));
        }
        let model = content(&file, &bench.queue.bytes);
        for _ in 0..10 {
            let offset = BLOCK * rng.random_range(0..=total / BLOCK + 2);
            let len = BLOCK * rng.random_range(0..64);
            let mut buf = bench.buf(len);
            buf.fill(0xee);
            let ended = bench.run(&file, What::Read, offset, buf).unwrap();
            let want = file.size().saturating_sub(offset).min(len);
            let good = first_bad(&file, &bench.queue, offset, want);
            match &ended.result {
                Ok(n) => assert_eq!((*n as u64, good), (want, want), "seed {seed}"),
                Err(error) => {
                    assert!(good < want, "seed {seed}");
                    assert_eq!(error.kind(), ErrorKind::Io, "seed {seed}");
                    assert_eq!(error.bytes_done(), Some(good), "seed {seed}");
                    assert_eq!(error.offset(), Some(offset + good), "seed {seed}");
                }
            }
            let at = usize::try_from(offset.min(file.size())).unwrap();
            let good = usize::try_from(good).unwrap();
            assert_eq!(ended.buf[..good], model[at..at + good], "seed {seed}");
            let tail = usize::try_from(want.next_multiple_of(BLOCK)).unwrap();
            let want = usize::try_from(want).unwrap();
            assert!(ended.buf[want..tail].iter().all(|&b| b == 0), "seed {seed}");
            assert!(ended.buf[tail..].iter().all(|&b| b == 0xee), "seed {seed}");
        }
        assert_eq!(bench.direct.outstanding(), 0);
    }
}

/// Bytes from `offset` up to the mapping's part that has the first bad block, `want` without one.
fn first_bad(file: &TestFile, queue: &RamQueue, offset: u64, want: u64) -> u64 {
    let end = offset + want.next_multiple_of(BLOCK);
    for mapping in &file.layout.mappings {
        let (from, to) = (mapping.offset.max(offset), mapping.end().min(end));
        if mapping.kind == MappingKind::Mapped && from < to {
            let first = mapping.addr_at(from) / BLOCK;
            if (first..first + (to - from) / BLOCK).any(|block| queue.bad.contains(&block)) {
                return (from - offset).min(want);
            }
        }
    }
    want
}

#[test]
fn overwrites_change_just_their_bytes() {
    for seed in 0..200 {
        let mut bench = bench(seed, seed % 2 == 0, seed % 3 == 0);
        let mut rng = SmallRng::seed_from_u64(seed);
        let extents: Vec<_> = (0..rng.random_range(1..12))
            .map(|_| (MappingKind::Mapped, BLOCK * rng.random_range(1..20)))
            .collect();
        let total: u64 = extents.iter().map(|e| e.1).sum();
        let file = file(&extents, total);
        let mut model = content(&file, &bench.queue.bytes);
        for _ in 0..10 {
            let blocks = total / BLOCK;
            let first = rng.random_range(0..blocks);
            let len = BLOCK * rng.random_range(1..=blocks - first);
            let mut buf = bench.buf(len);
            rng.fill(&mut buf[..]);
            let at = usize::try_from(first * BLOCK).unwrap();
            model[at..at + buf.len()].copy_from_slice(&buf);
            let what = if rng.random() { PLAIN } else { DURABLE };
            let ended = bench.run(&file, what, first * BLOCK, buf).unwrap();
            assert_eq!(ended.result.unwrap() as u64, len, "seed {seed}");
        }
        assert_eq!(model, content(&file, &bench.queue.bytes), "seed {seed}");
    }
}

#[test]
fn a_write_that_is_not_all_overwrite_writes_nothing() {
    for (kind, expected) in [
        (MappingKind::Hole, ErrorKind::NotOverwrite),
        (MappingKind::Unwritten, ErrorKind::NotOverwrite),
        (MappingKind::Inline, ErrorKind::NotOverwrite),
        (MappingKind::Delalloc, ErrorKind::Io),
    ] {
        let mut bench = bench(1, true, true);
        let file = file(&[(MappingKind::Mapped, 4096), (kind, 4096)], 8192);
        let buf = bench.buf(8192);
        let rejected = bench.run(&file, PLAIN, 0, buf).unwrap_err();
        let error = rejected.error.unwrap();
        assert_eq!((error.kind(), error.offset()), (expected, Some(4096)));
        assert_eq!(rejected.buf.len(), 8192);
        assert!(bench.queue.log.is_empty());
        assert_eq!(bench.direct.outstanding(), 0);
    }
    let mut bench = bench(1, true, true);
    let mut layout = TestLayout::new(&[(MappingKind::Mapped, 4096), (MappingKind::Mapped, 4096)]);
    layout.mappings[1].flags = MapFlags::SHARED;
    let file = TestFile::new(layout, 8192);
    let buf = bench.buf(8192);
    let error = bench.run(&file, PLAIN, 0, buf).unwrap_err().error.unwrap();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite);
    let buf = bench.buf(4096);
    let error = bench
        .run(&file, PLAIN, 8192, buf)
        .unwrap_err()
        .error
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite, "past the end");
    assert!(bench.queue.log.is_empty());
}

#[test]
fn delalloc_fails_a_read_and_inline_is_copied() {
    let mut bench = bench(2, true, true);
    let file = file(
        &[(MappingKind::Mapped, 4096), (MappingKind::Delalloc, 4096)],
        8192,
    );
    let buf = bench.buf(8192);
    let ended = bench.run(&file, What::Read, 0, buf).unwrap();
    let error = ended.result.unwrap_err();
    assert_eq!(
        (error.kind(), error.bytes_done()),
        (ErrorKind::Io, Some(4096))
    );
    let buf = bench.buf(4096);
    let ended = bench.run(&file, What::Read, 4096, buf).unwrap();
    assert_eq!(ended.result.unwrap_err().kind(), ErrorKind::Io);
    let mut layout = TestLayout::new(&[(MappingKind::Inline, 600)]);
    layout.inline = (0..600u16).map(|i| i.to_be_bytes()[1]).collect();
    let file = TestFile::new(layout.clone(), 600);
    let buf = bench.buf(1024);
    let mut layout_1024 = layout;
    layout_1024.mappings[0].length = 1024;
    let ended = bench
        .run(&TestFile::new(layout_1024.clone(), 600), What::Read, 0, buf)
        .unwrap();
    assert_eq!(ended.result.unwrap(), 600);
    assert_eq!(ended.buf[..600], layout_1024.inline[..]);
    assert!(ended.buf[600..].iter().all(|&b| b == 0));
    let buf = bench.buf(512);
    let ended = bench.run(&file, What::Read, 512, buf).unwrap();
    assert_eq!(ended.result.unwrap(), 88);
    assert_eq!(ended.buf[..88], layout_1024.inline[512..]);
}

#[test]
fn misaligned_is_refused_with_the_alignment() {
    let mut bench = bench(3, true, true);
    let file = file(&[(MappingKind::Mapped, 4096)], 4096);
    for (offset, len) in [(1, 512), (0, 511), (256, 256)] {
        for what in [What::Read, PLAIN] {
            let buf = bench.buf(len);
            let error = bench
                .run(&file, what, offset, buf)
                .unwrap_err()
                .error
                .unwrap();
            assert_eq!(error.kind(), ErrorKind::Misaligned);
            assert!(
                error.to_string().contains("multiples of 512 bytes"),
                "{error}"
            );
        }
    }
}

#[test]
fn many_operations_share_the_queue_and_each_ends_once() {
    for seed in 0..100 {
        let mut bench = bench(seed, true, false);
        let mut rng = SmallRng::seed_from_u64(seed);
        let extents = [
            (MappingKind::Mapped, 8192),
            (MappingKind::Mapped, 4096),
            (MappingKind::Mapped, 8192),
        ];
        let file = file(&extents, 20_480);
        let mut waiting = HashSet::new();
        let mut next = 0;
        while next < 200 || !waiting.is_empty() {
            if next < 200 && rng.random() {
                let blocks = rng.random_range(1..40);
                let request = DirectRequest {
                    what: [What::Read, DURABLE, What::Flush][rng.random_range(0..3)],
                    source: Some(&file),
                    offset: 0,
                    buf: bench.buf(blocks * BLOCK),
                    user_data: next,
                };
                match bench.direct.submit(&mut bench.queue, request) {
                    Ok(()) => assert!(waiting.insert(next)),
                    Err(rejected) => {
                        assert!(
                            rejected.error.is_none() && waiting.len() == 8,
                            "seed {seed}"
                        );
                        assert_eq!(rejected.buf.len() as u64, blocks * BLOCK);
                    }
                }
                next += 1;
            }
            bench.direct.poll(
                &mut bench.queue,
                3,
                &mut Heard(|ended: Ended, of: Option<_>| {
                    assert!(of.is_none_or(|of| Arc::ptr_eq(&of, &file)), "seed {seed}");
                    assert!(ended.result.is_ok(), "seed {seed}");
                    assert!(waiting.remove(&ended.user_data), "seed {seed}");
                }),
            );
            assert_eq!(bench.direct.outstanding(), waiting.len(), "seed {seed}");
        }
    }
}

#[test]
fn a_mapping_outside_the_device_or_inside_a_block_is_an_error() {
    let mut bench = bench(5, true, true);
    let mut layout = TestLayout::new(&[(MappingKind::Mapped, 4096)]);
    for addr in [1 << 40, 100, !0xfff] {
        layout.mappings[0].addr = addr;
        let file = TestFile::new(layout.clone(), 4096);
        let buf = bench.buf(4096);
        let ended = bench.run(&file, What::Read, 0, buf).unwrap();
        assert_eq!(
            ended.result.unwrap_err().kind(),
            ErrorKind::Corrupt,
            "{addr}"
        );
    }
}

#[test]
fn a_failed_write_reports_what_lies_before_the_failure() {
    for (fua, bad, expected) in [
        (true, 2, 8192),
        (false, 2, 8192),
        (true, 0, 0),
        (false, 0, 0),
    ] {
        let mut bench = bench(6, true, fua);
        let file = file(&[(MappingKind::Mapped, 4096); 3], 12_288);
        bench
            .queue
            .bad
            .insert(file.layout.mappings[bad].addr / BLOCK + 3);
        let buf = bench.buf(12_288);
        let ended = bench.run(&file, DURABLE, 0, buf).unwrap();
        let error = ended.result.unwrap_err();
        assert_eq!(
            (error.kind(), error.bytes_done()),
            (ErrorKind::Io, Some(expected))
        );
        let flushes = bench.queue.log.iter().filter(|(op, _)| *op == Op::Flush);
        let due = !fua && expected > 0;
        assert_eq!(
            flushes.count(),
            usize::from(due),
            "a write that was reported is durable"
        );
    }
}

#[test]
fn a_write_may_fill_the_last_block_when_told_so() {
    let mut bench = bench(8, true, true);
    let file = file(&[(MappingKind::Mapped, 4096)], 3000);
    let buf = bench.buf(1024);
    let error = bench.run(&file, PLAIN, 2048, buf).unwrap_err().error;
    assert_eq!(error.unwrap().kind(), ErrorKind::NotOverwrite);
    let through = What::Write {
        dsync: false,
        through_last_block: true,
    };
    let mut buf = bench.buf(1024);
    buf.fill(5);
    let ended = bench.run(&file, through, 2048, buf).unwrap();
    assert_eq!(ended.result.unwrap(), 1024);
    let bytes = content(&file, &bench.queue.bytes);
    assert!(bytes[2048..3072].iter().all(|&b| b == 5));
    let buf = bench.buf(1024);
    let error = bench.run(&file, through, 2560, buf).unwrap_err().error;
    assert_eq!(error.unwrap().kind(), ErrorKind::NotOverwrite);
}

#[test]
fn memory_that_the_device_was_not_cut_off_from_is_not_given_back() {
    for seed in 0..50 {
        let mut bench = bench(seed, true, true);
        let hole = (MappingKind::Hole, 4 * BLOCK);
        let extent = (MappingKind::Mapped, 8 * BLOCK);
        let file = file(&[extent, hole, extent], 20 * BLOCK);
        let last = file.layout.mappings[2].addr / BLOCK;
        bench.queue.unfenced.insert(last + 3);
        let used = bench.heap.used_bytes();
        let buf = bench.buf(20 * BLOCK);
        let ended = bench.run(&file, What::Read, 0, buf).unwrap();
        // The first blocks are good; but where they are, the device may still write.
        let error = ended.result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeviceGone, "seed {seed}");
        assert!(ended.buf.is_empty());
        assert!(bench.heap.used_bytes() > used, "seed {seed}: it is leaked");
        let buf = bench.buf(8 * BLOCK);
        let ended = bench.run(&file, What::Read, 0, buf).unwrap();
        assert_eq!(ended.result.unwrap(), 8 * 512, "others are not");
        assert_eq!(ended.buf.len(), 8 * 512);
    }
}

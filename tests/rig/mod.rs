//! A driver over an embedded controller, for tests: buffers that are with the device for good, and
//! a view of them by a second mapping, as another device would have it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test crate that includes this module uses its own part of it"
)]
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

use std::collections::BTreeMap;
use std::sync::Arc;

use xtent::internals::block::{Chain, ChainFlags, Completion, Op, Queue, Status};
use xtent::internals::mem::{DmaSpace, Heap, HeapConfig, HugePages, Lent, Segment};
use xtent::internals::units::Lba;

/// Memory that stays lent, with a window into it.
pub struct Memory {
    pub heap: Heap,
    window: Arc<DmaSpace>,
}

impl Memory {
    pub fn new() -> Self {
        let heap = Heap::new(HeapConfig {
            arena_bytes: 8 << 20,
            huge_pages: HugePages::Never,
            // For the devices that are in another process, or as if.
            shareable: true,
            ..HeapConfig::default()
        });
        Self::on(heap)
    }

    /// Memory of this heap.
    pub fn on(heap: Heap) -> Self {
        let window = Arc::new(DmaSpace::default());
        heap.attach(window.clone()).unwrap();
        Self { heap, window }
    }

    pub fn lend(&self, len_bytes: usize) -> Lent {
        self.heap.alloc(len_bytes, 4096).unwrap().lend()
    }

    /// Fills segments; no command is on them.
    #[expect(unsafe_code, reason = "plays the program's side of lent memory")]
    pub fn fill(&self, segments: &[Segment], mut bytes: &[u8]) {
        for segment in segments {
            let len = segment.len_bytes() as usize;
            // SAFETY: the memory is lent, and no command is on it (the caller's promise).
            let range = unsafe { self.window.reach(segment.iova(), len) }.unwrap();
            range.copy_from(&bytes[..len]);
            bytes = &bytes[len..];
        }
    }

    /// The bytes of segments; no command is on them.
    #[expect(unsafe_code, reason = "plays the program's side of lent memory")]
    pub fn bytes(&self, segments: &[Segment]) -> Vec<u8> {
        let mut all = Vec::new();
        for segment in segments {
            let len = segment.len_bytes() as usize;
            let at = all.len();
            all.resize(at + len, 0);
            // SAFETY: as in `fill`.
            let range = unsafe { self.window.reach(segment.iova(), len) }.unwrap();
            range.copy_to(&mut all[at..]);
        }
        all
    }
}

/// A chain over `segments`, or over `blocks` blocks without memory.
pub fn chain(op: Op, lba: u64, blocks: u64, segments: &[Segment], token: u64) -> Chain<'_> {
    Chain {
        op,
        flags: ChainFlags::empty(),
        lba: Lba(lba),
        blocks,
        segments,
        token,
    }
}

/// Polls until nothing is outstanding, bounded; each token with its status.
pub fn drain(pair: &mut impl Queue) -> BTreeMap<u64, Status> {
    let mut ended = BTreeMap::new();
    for _ in 0..50_000_000u64 {
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

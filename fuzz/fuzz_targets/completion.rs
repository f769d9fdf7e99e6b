#![no_main]
//! The completion path against a controller that writes whatever it likes into the completion ring.
//!
//! The input is a program: submit, step, poll, let time pass, and scribble on the I/O completion
//! ring. When it ends the scribbling stops, and every operation must end exactly once, by itself or
//! by recovery.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use xtent::internals::block::{Chain, ChainFlags, Completion, Op, Queue};
use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::mem::{Arena, DmaSpace, Doorbell, Heap, HeapConfig, HugePages, Lent, Mapper};
use xtent::internals::nvme::spec::{ADM_CREATE_CQ, CQE_BYTES, REG_ASQ, SQE_BYTES};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions};
use xtent::internals::units::{Iova, Lba};

const DEPTH: usize = 8;
const BLOCK_BYTES: usize = 512;
const ADMIN_ENTRIES_SCANNED: usize = 64;

/// The embedded controller behind a tap that knows where the rings are and alters completions.
struct Tap {
    inner: Arc<EmuDevice>,
    memory: Arc<Memory>,
    admin_queue: AtomicU64,
}

/// Maps arenas in the controller and in a view of our own.
struct Memory {
    inner: Arc<dyn Mapper>,
    view: DmaSpace,
}

impl Mapper for Memory {
    fn map(&self, arena: &Arc<Arena>) -> xtent::Result<()> {
        self.inner.map(arena)?;
        self.view.map(arena)
    }

    fn unmap(&self, arena: &Arc<Arena>) -> xtent::Result<()> {
        self.view.unmap(arena)?;
        self.inner.unmap(arena)
    }
}

impl Device for Tap {
    fn name(&self) -> &str {
        "tapped controller"
    }
    fn read32(&self, offset: u32) -> u32 {
        self.inner.read32(offset)
    }
    fn read64(&self, offset: u32) -> u64 {
        self.inner.read64(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        self.inner.write32(offset, value);
    }
    fn write64(&self, offset: u32, value: u64) {
        if offset == REG_ASQ {
            self.admin_queue.store(value, Ordering::Relaxed);
        }
        self.inner.write64(offset, value);
    }
    fn doorbell(&self, offset: u32) -> xtent::Result<Doorbell> {
        self.inner.doorbell(offset)
    }
    fn mapper(&self) -> Arc<dyn Mapper> {
        self.memory.clone()
    }
    fn stop_dma(&self) -> xtent::Result<()> {
        self.inner.stop_dma()
    }
    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }
    fn relax(&self, silent: u32, outstanding: u32) {
        self.inner.relax(silent, outstanding);
    }
}

impl Tap {
    /// Address and entries of the I/O completion ring that was created last, read from the admin
    /// queue.
    fn completion_ring(&self) -> Option<(Iova, usize)> {
        let admin = Iova(self.admin_queue.load(Ordering::Relaxed));
        (0..ADMIN_ENTRIES_SCANNED)
            .filter_map(|n| {
                let entry = admin.offset((n * SQE_BYTES) as u64);
                // SAFETY: rings are touched by atomic words only.
                let entry = unsafe { self.memory.view.reach(entry, SQE_BYTES) }.ok()?;
                let opcode = entry.load_u64(0)? as u8;
                let (prp1, cdw10) = (entry.load_u64(24)?, entry.load_u64(40)?);
                (opcode == ADM_CREATE_CQ)
                    .then_some((Iova(prp1), (cdw10 >> 16 & 0xffff) as usize + 1))
            })
            .last()
    }

    /// Writes the last two dwords of a completion entry; the second one carries the phase.
    fn scribble(&self, slot: u8, dw2: u32, dw3: u32) {
        let Some((ring, entries)) = self.completion_ring() else {
            return;
        };
        let at = ring.offset(((usize::from(slot) % entries) * CQE_BYTES) as u64);
        // SAFETY: as above.
        let Ok(entry) = (unsafe { self.memory.view.reach(at, CQE_BYTES) }) else {
            return;
        };
        entry.store_u32(8, dw2, Ordering::Relaxed);
        entry.store_u32(12, dw3, Ordering::Release);
    }
}

/// A lent buffer never comes back outside of the crate, so one lasts for all inputs.
static MEMORY: OnceLock<(Heap, Lent)> = OnceLock::new();

fn lasting_memory() -> (Heap, Lent) {
    let heap = Heap::new(HeapConfig {
        arena_bytes: 2 << 20,
        huge_pages: HugePages::Never,
        ..HeapConfig::default()
    });
    let buf = heap.alloc(BLOCK_BYTES, 4096).expect("memory");
    (heap, buf.lend())
}

fn word(bytes: &mut impl Iterator<Item = u8>) -> u32 {
    (0..4).fold(0, |word, _| {
        word << 8 | u32::from(bytes.next().unwrap_or(0))
    })
}

fuzz_target!(|data: &[u8]| {
    let inner = EmuDevice::start(EmuConfig {
        medium: Medium::memory(1 << 20),
        mode: Mode::Stepped,
        tick_ns: 100_000,
        ..EmuConfig::default()
    })
    .expect("a valid configuration");
    let view = Arc::new(Memory {
        inner: inner.mapper(),
        view: DmaSpace::default(),
    });
    let tap = Arc::new(Tap {
        inner,
        memory: view,
        admin_queue: AtomicU64::new(0),
    });
    let (heap, memory) = MEMORY.get_or_init(lasting_memory);
    let admin = ControllerOptions {
        admin_timeout: Duration::from_millis(100),
        ..Default::default()
    };
    let controller = Controller::open(tap.clone(), heap, admin).expect("nothing is hostile yet");
    let options = QueueOptions {
        depth: DEPTH,
        timeout: Duration::from_millis(20),
        ..Default::default()
    };
    let mut queue = controller
        .queue(1, options)
        .expect("nothing is hostile yet");
    let segment = memory.segment(0..BLOCK_BYTES).expect("inside");

    let ends = Mutex::new(Vec::<u32>::new());
    let mut ended = |completion: Completion| {
        ends.lock().expect("one thread")[completion.token as usize] += 1;
    };
    let mut bytes = data.iter().copied();
    while let Some(action) = bytes.next() {
        match action % 6 {
            0 => {
                let token = ends.lock().expect("one thread").len() as u64;
                let op = if action & 0x40 == 0 {
                    Op::Read
                } else {
                    Op::Write
                };
                let chain = Chain {
                    op,
                    flags: ChainFlags::empty(),
                    lba: Lba(u64::from(action)),
                    blocks: 1,
                    segments: &[segment],
                    token,
                };
                if queue.submit(&chain).is_ok() {
                    ends.lock().expect("one thread").push(0);
                }
            }
            1 => {
                tap.inner.step(usize::from(action >> 3));
            }
            2 => {
                queue.poll(usize::from(action >> 3), &mut ended);
            }
            3 | 4 => {
                let slot = bytes.next().unwrap_or(0);
                let (dw2, dw3) = (word(&mut bytes), word(&mut bytes));
                tap.scribble(slot, dw2, dw3);
            }
            _ => {
                tap.inner.advance_ns(u64::from(action) * 1_000_000);
                queue.relax();
            }
        }
    }
    for _ in 0..200_000 {
        if queue.outstanding() == 0 {
            break;
        }
        queue.poll(usize::MAX, &mut ended);
        queue.relax();
    }
    assert_eq!(queue.outstanding(), 0, "an operation never ended");
    let ends = ends.lock().expect("one thread");
    assert!(
        ends.iter().all(|&count| count == 1),
        "operations ended {ends:?} times"
    );
});

//! A host small enough to be wrong on purpose.

use std::sync::Arc;

use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Mode};
use xtent::internals::mem::{DmaBuf, Doorbell, Heap, HeapConfig, HugePages, SharedWords};
use xtent::internals::nvme::spec::{
    ADM_CREATE_CQ, ADM_CREATE_SQ, CC_EN, CC_IOCQES_SHIFT, CC_IOSQES_SHIFT, CSTS_RDY, Capabilities,
    Command, OPC_READ, OPC_WRITE, PAGE_BYTES, REG_ACQ, REG_AQA, REG_ASQ, REG_CAP, REG_CC, REG_CSTS,
    StatusField, cq_doorbell_offset, sq_doorbell_offset,
};
use zerocopy::little_endian::{U16, U32, U64};

/// CC of an enabled controller with entries of 64 and 16 bytes.
pub(crate) const CC_ENABLED: u32 = CC_EN | 6 << CC_IOSQES_SHIFT | 4 << CC_IOCQES_SHIFT;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cqe {
    pub(crate) result: u32,
    pub(crate) sq_head: u16,
    pub(crate) sq: u16,
    pub(crate) cid: u16,
    pub(crate) status: StatusField,
}

pub(crate) struct Sq {
    pub(crate) ring: SharedWords,
    pub(crate) size: u32,
    pub(crate) tail: u32,
    pub(crate) bell: Doorbell,
}

impl Sq {
    /// Puts a command into the ring; the device hears of it by `ring`.
    pub(crate) fn push(&mut self, command: Command) {
        let words: [U64; 8] = zerocopy::transmute!(command);
        self.ring
            .store_64_bytes(self.tail as usize * 64, &words.map(U64::get));
        self.tail = (self.tail + 1) % self.size;
    }

    pub(crate) fn ring(&self) {
        self.bell.ring(self.tail);
    }
}

pub(crate) struct Cq {
    pub(crate) ring: SharedWords,
    pub(crate) size: u32,
    pub(crate) head: u32,
    phase: u32,
    pub(crate) bell: Doorbell,
}

impl Cq {
    /// Takes an entry; the device hears of it by `consume`.
    pub(crate) fn pop(&mut self) -> Option<Cqe> {
        let at = self.head as usize * 16;
        let last = self.ring.load_u32_acquire(at + 12);
        if last >> 16 & 1 != self.phase {
            return None;
        }
        let ids = self.ring.load_u32(at + 8);
        self.head = (self.head + 1) % self.size;
        self.phase ^= u32::from(self.head == 0);
        Some(Cqe {
            result: self.ring.load_u32(at),
            sq_head: low16(ids),
            sq: low16(ids >> 16),
            cid: low16(last),
            status: StatusField::from_dw3(last),
        })
    }

    pub(crate) fn consume(&self) {
        self.bell.ring(self.head);
    }
}

pub(crate) fn low16(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap()
}

pub(crate) struct Host {
    pub(crate) device: Arc<EmuDevice>,
    pub(crate) heap: Heap,
    pub(crate) admin_sq: Sq,
    pub(crate) admin_cq: Cq,
    next_cid: u16,
}

pub(crate) fn small_heap() -> Heap {
    Heap::new(HeapConfig {
        arena_bytes: 4 << 20,
        huge_pages: HugePages::Never,
        ..HeapConfig::default()
    })
}

/// A stepped device of 4096-byte blocks on 16 MiB of memory.
pub(crate) fn stepped() -> EmuConfig {
    EmuConfig {
        mode: Mode::Stepped,
        lba_bytes: 4096,
        medium: xtent::internals::device::emu::Medium::memory(16 << 20),
        ..EmuConfig::default()
    }
}

pub(crate) fn rings(device: &EmuDevice, heap: &Heap, sq: (u16, u32), cq: (u16, u32)) -> (Sq, Cq) {
    let stride = Capabilities(device.read64(REG_CAP)).doorbell_stride_bytes();
    let shared = |bytes: u32| {
        let bytes = (bytes as usize).next_multiple_of(PAGE_BYTES);
        SharedWords::new(heap.alloc(bytes, PAGE_BYTES).unwrap())
    };
    let bell = |offset| device.doorbell(offset).unwrap();
    (
        Sq {
            ring: shared(sq.1 * 64),
            size: sq.1,
            tail: 0,
            bell: bell(sq_doorbell_offset(sq.0, stride)),
        },
        Cq {
            ring: shared(cq.1 * 16),
            size: cq.1,
            head: 0,
            phase: 1,
            bell: bell(cq_doorbell_offset(cq.0, stride)),
        },
    )
}

impl Host {
    /// Attached to the device, with an admin queue of 16 entries, not yet enabled.
    pub(crate) fn attach(config: EmuConfig) -> Self {
        let device = EmuDevice::start(config).unwrap();
        let heap = small_heap();
        heap.attach(device.mapper()).unwrap();
        let (admin_sq, admin_cq) = rings(&device, &heap, (0, 16), (0, 16));
        Self {
            device,
            heap,
            admin_sq,
            admin_cq,
            next_cid: 0,
        }
    }

    /// Enabled and ready.
    pub(crate) fn new(config: EmuConfig) -> Self {
        let mut host = Self::attach(config);
        host.enable(CC_ENABLED);
        assert!(host.wait(|host| host.csts() & CSTS_RDY != 0), "not ready");
        host
    }

    /// Enables the controller with a fresh admin queue; does not wait.
    pub(crate) fn enable(&mut self, cc: u32) {
        self.admin_sq.tail = 0;
        self.admin_cq.head = 0;
        self.admin_cq.phase = 1;
        self.admin_cq.ring.clear();
        self.device.write32(REG_AQA, 15 << 16 | 15);
        self.device.write64(REG_ASQ, self.admin_sq.ring.iova().0);
        self.device.write64(REG_ACQ, self.admin_cq.ring.iova().0);
        self.device.write32(REG_CC, cc);
    }

    pub(crate) fn csts(&self) -> u32 {
        self.device.read32(REG_CSTS)
    }

    /// Relaxes until it is so; gives up after a second of the device's clock.
    pub(crate) fn wait(&mut self, mut so: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.device.now_ns() + 1_000_000_000;
        while self.device.now_ns() < end {
            if so(self) {
                return true;
            }
            self.device.relax(0, 0);
        }
        false
    }

    pub(crate) fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }

    /// One admin command, from submission to end.
    pub(crate) fn admin(&mut self, command: Command) -> Cqe {
        let cid = self.submit_admin(command);
        let cqe = self.admin_end().expect("the admin command did not end");
        assert_eq!(cqe.cid, cid);
        cqe
    }

    pub(crate) fn submit_admin(&mut self, mut command: Command) -> u16 {
        let cid = self.cid();
        command.cid = U16::new(cid);
        self.admin_sq.push(command);
        self.admin_sq.ring();
        cid
    }

    /// The next completion of the admin queue.
    pub(crate) fn admin_end(&mut self) -> Option<Cqe> {
        let mut cqe = None;
        self.wait(|host| {
            cqe = host.admin_cq.pop();
            cqe.is_some()
        });
        self.admin_cq.consume();
        cqe
    }

    /// A queue pair with id `id` of `entries` entries.
    pub(crate) fn pair(&mut self, id: u16, entries: u32) -> Pair {
        let (sq, cq) = rings(&self.device, &self.heap, (id, entries), (id, entries));
        let made = self.admin(create_cq(id, entries, cq.ring.iova().0));
        assert_eq!(made.status, StatusField::SUCCESS);
        let made = self.admin(create_sq(id, id, entries, sq.ring.iova().0));
        assert_eq!(made.status, StatusField::SUCCESS);
        Pair { sq, cq }
    }

    pub(crate) fn buf(&self, bytes: usize) -> DmaBuf {
        self.heap.alloc(bytes, PAGE_BYTES).unwrap()
    }

    /// One I/O command, from submission to end.
    pub(crate) fn io(&mut self, pair: &mut Pair, command: Command) -> Cqe {
        let cid = self.submit(pair, command);
        let cqe = self.end(pair).expect("the command did not end");
        assert_eq!(cqe.cid, cid);
        cqe
    }

    pub(crate) fn submit(&mut self, pair: &mut Pair, mut command: Command) -> u16 {
        let cid = self.cid();
        command.cid = U16::new(cid);
        pair.sq.push(command);
        pair.sq.ring();
        cid
    }

    /// The next completion of a queue.
    pub(crate) fn end(&mut self, pair: &mut Pair) -> Option<Cqe> {
        let mut cqe = None;
        self.wait(|_| {
            cqe = pair.cq.pop();
            cqe.is_some()
        });
        pair.cq.consume();
        cqe
    }
}

pub(crate) struct Pair {
    pub(crate) sq: Sq,
    pub(crate) cq: Cq,
}

pub(crate) fn command(opcode: u8, nsid: u32, prp1: u64, prp2: u64, dwords: &[u32]) -> Command {
    let mut command = Command {
        opcode,
        nsid: U32::new(nsid),
        prp1: U64::new(prp1),
        prp2: U64::new(prp2),
        ..Command::default()
    };
    for (to, from) in command.cdw10_15.iter_mut().zip(dwords) {
        *to = U32::new(*from);
    }
    command
}

pub(crate) fn create_cq(id: u16, entries: u32, iova: u64) -> Command {
    let dw10 = u32::from(id) | (entries - 1) << 16;
    command(ADM_CREATE_CQ, 0, iova, 0, &[dw10, 1])
}

pub(crate) fn create_sq(id: u16, cq: u16, entries: u32, iova: u64) -> Command {
    let dw10 = u32::from(id) | (entries - 1) << 16;
    command(ADM_CREATE_SQ, 0, iova, 0, &[dw10, 1 | u32::from(cq) << 16])
}

/// `blocks` at `lba` with one or two pages of memory.
pub(crate) fn rw(opcode: u8, lba: u64, blocks: u32, prp1: u64, prp2: u64) -> Command {
    let lba_low = u32::try_from(lba & 0xffff_ffff).unwrap();
    let lba_high = u32::try_from(lba >> 32).unwrap();
    command(opcode, 1, prp1, prp2, &[lba_low, lba_high, blocks - 1])
}

pub(crate) fn read(lba: u64, buf: &DmaBuf) -> Command {
    rw(OPC_READ, lba, 1, buf.iova().0, 0)
}

pub(crate) fn write(lba: u64, buf: &DmaBuf) -> Command {
    rw(OPC_WRITE, lba, 1, buf.iova().0, 0)
}

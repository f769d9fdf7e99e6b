//! The two rings of a queue pair (sections 3.3.1 and 3.3.3): entries in shared memory, a tail or
//! head, the phase, and the doorbell, which is rung once for a batch.

use std::sync::Arc;

use super::bell::{Bell, ShadowDoorbells};
use super::spec::{CQE_BYTES, SQE_BYTES, StatusField};
use crate::mem::{DmaBuf, SharedWords};
use crate::units::Iova;

/// The host's side of a submission queue. The entries are a power of two.
#[derive(Debug)]
pub(super) struct SubmissionRing {
    words: SharedWords,
    bell: Bell,
    mask: u32,
    tail: u32,
    /// What the device was last told.
    rung: u32,
}

impl SubmissionRing {
    pub(super) fn new(memory: DmaBuf, bell: Bell, entries: u32) -> Self {
        assert!(entries.is_power_of_two() && memory.len() == entries as usize * SQE_BYTES);
        Self {
            words: SharedWords::new(memory),
            bell,
            mask: entries - 1,
            tail: 0,
            rung: 0,
        }
    }

    /// Writes an entry at the tail. The caller knows that there is room: it has fewer commands
    /// outstanding than the ring has entries.
    #[inline]
    pub(super) fn push(&mut self, entry: &[u64; 8]) {
        self.words
            .store_64_bytes(self.tail as usize * SQE_BYTES, entry);
        self.tail = (self.tail + 1) & self.mask;
    }

    /// Tells the device of all that was pushed since it was told last.
    #[inline]
    pub(super) fn ring(&mut self) {
        if self.tail != self.rung {
            if self.bell.is_heard_through_caches() {
                let mut at = self.rung;
                while at != self.tail {
                    self.words.demote_line(at as usize * SQE_BYTES);
                    at = (at + 1) & self.mask;
                }
            }
            self.bell.ring(self.rung, self.tail);
            self.rung = self.tail;
        }
    }

    /// As [`ring`](Self::ring), when that takes nothing but a store to the register; false, and
    /// nothing done, otherwise. For the hot path, which calls no function.
    #[inline(always)]
    pub(super) fn ring_register(&mut self) -> bool {
        if self.tail == self.rung {
            return true;
        }
        let plain = self.bell.ring_register(self.tail);
        if plain {
            self.rung = self.tail;
        }
        plain
    }

    /// As new, for a queue that the device does not have (any more), with or without a shadow of
    /// its doorbell.
    pub(super) fn restart(&mut self, shadows: Option<&Arc<ShadowDoorbells>>) {
        self.words.clear();
        self.tail = 0;
        self.rung = 0;
        self.bell.shadow_by(shadows, 0, false);
    }

    /// Shadows the doorbell of the admin queue, which is running. It is always rung as well: not
    /// every controller looks at the shadow of that one. `ahead` commands are about to follow.
    pub(super) fn shadow_admin(&mut self, shadows: &Arc<ShadowDoorbells>, ahead: u32) {
        let tail = (self.tail + ahead) & self.mask;
        self.bell.shadow_by(Some(shadows), tail, true);
    }

    pub(super) fn is_shadowed(&self) -> bool {
        self.bell.is_shadowed()
    }

    /// The device was told of all.
    pub(super) fn is_rung(&self) -> bool {
        self.tail == self.rung
    }

    /// Tells a device with shadow doorbells once more.
    pub(super) fn insist(&self) {
        self.bell.insist(self.rung);
    }

    pub(super) fn iova(&self) -> Iova {
        self.words.iova()
    }

    pub(super) fn entries(&self) -> u32 {
        self.mask + 1
    }

    /// Never gives the memory back: the device may still use it. Returns its length in bytes.
    pub(super) fn leak(&mut self) -> usize {
        leak(&mut self.words)
    }
}

/// The words of a completion queue entry that every completion needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct CqEntry {
    /// SQ head in the low half, SQ id in the high half.
    pub(super) dw2: u32,
    dw3: u32,
}

impl CqEntry {
    #[inline]
    pub(super) fn cid(self) -> u16 {
        (self.dw3 & 0xffff) as u16
    }

    #[inline]
    pub(super) fn status(self) -> StatusField {
        StatusField::from_dw3(self.dw3)
    }

    pub(super) fn sq_id(self) -> u32 {
        self.dw2 >> 16
    }
}

/// The host's side of a completion queue.
#[derive(Debug)]
pub(super) struct CompletionRing {
    words: SharedWords,
    bell: Bell,
    mask: u32,
    head: u32,
    rung: u32,
    /// How many entries may be taken before the device is told.
    lag: u32,
    /// What bit 16 of a new entry is, in place.
    phase: u32,
}

const PHASE: u32 = 1 << 16;
/// Completion queue entries per 64-byte cache line.
const ENTRIES_A_LINE: u32 = 4;

impl CompletionRing {
    /// For at most so many commands outstanding.
    pub(super) fn new(memory: DmaBuf, bell: Bell, entries: u32, commands: u32) -> Self {
        assert!(entries.is_power_of_two() && memory.len() == entries as usize * CQE_BYTES);
        Self {
            words: SharedWords::new(memory),
            bell,
            mask: entries - 1,
            head: 0,
            rung: 0,
            lag: lag(entries, commands),
            phase: PHASE,
        }
    }

    /// The entry at the head, when the device has written it. What the device wrote before the
    /// entry (the data of a read) is visible from here on.
    #[inline]
    pub(super) fn peek(&self) -> Option<CqEntry> {
        let at = self.head as usize * CQE_BYTES;
        let dw3 = self.words.load_u32_acquire(at + 12);
        if dw3 & PHASE != self.phase {
            return None;
        }
        let dw2 = self.words.load_u32(at + 8);
        Some(CqEntry { dw2, dw3 })
    }

    /// Dword 0 of the entry at the head: the result of an admin command.
    pub(super) fn dw0(&self) -> u32 {
        self.words.load_u32(self.head as usize * CQE_BYTES)
    }

    /// Goes past the entry at the head.
    #[inline]
    pub(super) fn pop(&mut self) {
        self.head = (self.head + 1) & self.mask;
        if self.head == 0 {
            self.phase ^= PHASE;
        }
    }

    /// Where the next entry is expected.
    pub(super) fn head(&self) -> u32 {
        self.head
    }

    /// Gives the device back all entries that were popped since it was told last.
    #[inline]
    pub(super) fn ring(&mut self) {
        if self.head != self.rung {
            if self.bell.is_heard_through_caches() {
                // All but the line at the head, which is looked at.
                let mut line = self.rung / ENTRIES_A_LINE;
                while line != self.head / ENTRIES_A_LINE {
                    self.words
                        .demote_line((line * ENTRIES_A_LINE) as usize * CQE_BYTES);
                    line = (line + 1) & (self.mask / ENTRIES_A_LINE);
                }
            }
            self.bell.ring(self.rung, self.head);
            self.rung = self.head;
        }
    }

    /// Gives the device back what was popped, once that is worth a doorbell. The device has room
    /// for every command that is outstanding all the same, so it cannot tell the difference.
    ///
    /// The doorbell shares a cache line with that of the submission queue, which a controller that
    /// is a program keeps looking at; and on PCI it is a write across the bus.
    #[inline]
    pub(super) fn give_back(&mut self) {
        if self.owes() {
            self.ring();
        }
    }

    /// Giving back what was popped is worth a doorbell.
    #[inline(always)]
    pub(super) fn owes(&self) -> bool {
        self.head.wrapping_sub(self.rung) & self.mask > self.lag
    }

    /// As new, for a queue that the device does not have (any more), with or without a shadow of
    /// its doorbell.
    pub(super) fn restart(&mut self, shadows: Option<&Arc<ShadowDoorbells>>) {
        self.words.clear();
        self.head = 0;
        self.rung = 0;
        self.phase = PHASE;
        self.bell.shadow_by(shadows, 0, false);
    }

    /// As [`SubmissionRing::shadow_admin`].
    pub(super) fn shadow_admin(&mut self, shadows: &Arc<ShadowDoorbells>) {
        self.bell.shadow_by(Some(shadows), self.rung, true);
    }

    /// The device was told of all.
    pub(super) fn is_rung(&self) -> bool {
        self.head == self.rung
    }

    /// Tells a device with shadow doorbells once more.
    pub(super) fn insist(&self) {
        self.bell.insist(self.rung);
    }

    pub(super) fn iova(&self) -> Iova {
        self.words.iova()
    }

    #[inline]
    pub(super) fn entries(&self) -> u32 {
        self.mask + 1
    }

    /// Never gives the memory back: the device may still use it. Returns its length in bytes.
    pub(super) fn leak(&mut self) -> usize {
        leak(&mut self.words)
    }
}

/// Completion entries whose return to the device may be delayed: at most a quarter of the ring, and
/// at most the spare ones. A ring is full with one entry free.
fn lag(entries: u32, commands: u32) -> u32 {
    let spare = (entries - 1).saturating_sub(commands);
    spare.min(entries / 4)
}

pub(super) fn leak(words: &mut SharedWords) -> usize {
    let empty = SharedWords::new(DmaBuf::default());
    let lost = std::mem::replace(words, empty);
    let len_bytes = lost.len_bytes();
    std::mem::forget(lost);
    len_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Doorbell;
    use crate::mem::{DmaSpace, Heap, HeapConfig, HugePages};
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Rig {
        heap: Heap,
        space: Arc<DmaSpace>,
        bells: Arc<[AtomicU32]>,
    }

    impl Rig {
        fn new() -> Self {
            let heap = Heap::new(HeapConfig {
                arena_bytes: 2 << 20,
                huge_pages: HugePages::Never,
                ..Default::default()
            });
            let space = Arc::new(DmaSpace::default());
            heap.attach(space.clone()).unwrap();
            let bells = (0..2).map(|_| AtomicU32::new(99)).collect();
            Self { heap, space, bells }
        }

        fn bell(&self, index: usize) -> Bell {
            Doorbell::in_memory(&self.bells, index).unwrap().into()
        }
    }

    #[test]
    fn a_batch_rings_once_and_the_tail_wraps() {
        let rig = Rig::new();
        let memory = rig.heap.alloc(4 * SQE_BYTES, 4096).unwrap();
        let mut sq = SubmissionRing::new(memory, rig.bell(0), 4);
        sq.ring();
        assert_eq!(rig.bells[0].load(Ordering::Relaxed), 99, "nothing to say");
        for round in 0..10u64 {
            for n in 0..3 {
                sq.push(&[round * 3 + n; 8]);
            }
            sq.ring();
            let tail = u32::try_from((round + 1) * 3 % 4).unwrap();
            assert_eq!(rig.bells[0].load(Ordering::Relaxed), tail);
            let range = rig.space.translate(sq.iova(), 4 * SQE_BYTES).unwrap();
            let last = usize::try_from((round * 3 + 2) % 4).unwrap();
            assert_eq!(range.load_u64(last * SQE_BYTES + 56), Some(round * 3 + 2));
        }
    }

    #[test]
    fn the_phase_tells_new_entries_over_many_wraps() {
        let rig = Rig::new();
        let memory = rig.heap.alloc(8 * CQE_BYTES, 4096).unwrap();
        let mut cq = CompletionRing::new(memory, rig.bell(1), 8, 7);
        let range = rig.space.translate(cq.iova(), 8 * CQE_BYTES).unwrap();
        let (mut at, mut phase) = (0usize, 1u32);
        for n in 0..100u32 {
            assert!(cq.peek().is_none(), "entry {n} is not there yet");
            assert!(range.store_u32(at * CQE_BYTES, n, Ordering::Relaxed));
            let dw3 = (n & 0xff) | phase << 16 | StatusField::of(1, 2).to_dw3();
            assert!(range.store_u32(at * CQE_BYTES + 12, dw3, Ordering::Release));
            at = (at + 1) % 8;
            phase ^= u32::from(at == 0);
            let entry = cq.peek().unwrap();
            assert_eq!((u32::from(entry.cid()), cq.dw0()), (n & 0xff, n));
            assert_eq!((entry.status().sct(), entry.status().sc()), (1, 2));
            cq.pop();
            cq.give_back();
            assert_eq!(rig.bells[1].load(Ordering::Relaxed) as usize, at);
        }
    }

    #[test]
    fn entries_are_given_back_late_but_never_too_late() {
        let rig = Rig::new();
        for (entries, commands, wanted) in [(128, 1, 32), (16, 8, 4), (16, 13, 2), (16, 15, 0)] {
            assert_eq!(lag(entries, commands), wanted);
            let memory = rig.heap.alloc(entries as usize * CQE_BYTES, 4096).unwrap();
            let mut cq = CompletionRing::new(memory, rig.bell(1), entries, commands);
            for n in 1..=1000 {
                cq.pop();
                cq.give_back();
                let held = (n - cq.rung) & (entries - 1);
                assert!(held <= wanted, "{held} kept back of {wanted}");
                assert!(held + commands < entries, "the device has no room");
            }
        }
    }
}

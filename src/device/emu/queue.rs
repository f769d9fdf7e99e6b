//! The device's end of submission and completion queues (sections 3.3.1 and 3.3.3).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use zerocopy::little_endian::U64;

use crate::mem::{DmaFault, DmaRange, DmaSpace};
use crate::nvme::spec::{CQE_BYTES, Command, SQE_BYTES, StatusField};
use crate::units::Iova;

/// What a look at a doorbell showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DoorbellState {
    Same,
    New,
    Invalid,
}

/// Host memory of a ring, looked up once and again whenever the host's mappings change.
#[derive(Debug)]
struct EmuRing {
    base: Iova,
    len_bytes: usize,
    memory: Option<DmaRange>,
}

impl EmuRing {
    fn new(base: Iova, len_bytes: usize, space: &DmaSpace) -> Result<Self, DmaFault> {
        Ok(Self {
            base,
            len_bytes,
            memory: Some(space.translate(base, len_bytes)?),
        })
    }

    fn remap(&mut self, space: &DmaSpace) {
        self.memory = space.translate(self.base, self.len_bytes).ok();
    }
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct Sq {
    pub(super) cq: u16,
    pub(super) size: u32,
    /// Next entry to fetch.
    pub(super) head: u32,
    /// One past the last entry that the host submitted.
    pub(super) tail: u32,
    /// Of the command that completed last.
    pub(super) last_cid: u16,
    /// With a shadow doorbell: it is looked at.
    pub(super) awake: bool,
    /// A fault: the next event index is garbage.
    pub(super) spoilt_event: bool,
    refused: Option<u32>,
    ring: EmuRing,
}

impl Sq {
    pub(super) fn new(cq: u16, size: u32, base: Iova, space: &DmaSpace) -> Result<Self, DmaFault> {
        Ok(Self {
            cq,
            size,
            head: 0,
            tail: 0,
            last_cid: 0,
            awake: false,
            spoilt_event: false,
            refused: None,
            ring: EmuRing::new(base, size as usize * SQE_BYTES, space)?,
        })
    }

    pub(super) fn remap(&mut self, space: &DmaSpace) {
        self.ring.remap(space);
    }

    /// Takes a new tail from the doorbell.
    #[inline]
    pub(super) fn observe(&mut self, value: u32) -> DoorbellState {
        if value == self.tail {
            return DoorbellState::Same;
        }
        if value < self.size {
            self.tail = value;
            self.refused = None;
            return DoorbellState::New;
        }
        refuse(&mut self.refused, value)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Takes the next entry. `None` when its memory is no longer mapped.
    #[inline]
    pub(super) fn fetch(&mut self) -> Option<Command> {
        let memory = self.ring.memory.as_ref()?;
        let at = self.head as usize * SQE_BYTES;
        let mut words = [U64::ZERO; SQE_BYTES / 8];
        for (n, word) in words.iter_mut().enumerate() {
            *word = U64::new(memory.load_u64(at + n * 8)?);
        }
        self.head += 1;
        if self.head == self.size {
            self.head = 0;
        }
        Some(zerocopy::transmute!(words))
    }
}

/// Counts a bad value once, however often it is looked at.
fn refuse(refused: &mut Option<u32>, value: u32) -> DoorbellState {
    if refused.replace(value) == Some(value) {
        DoorbellState::Same
    } else {
        DoorbellState::Invalid
    }
}

/// A completion queue entry to be posted.
#[derive(Debug, Clone, Copy)]
pub(super) struct EmuCqEntry {
    pub(super) result: u32,
    pub(super) sq_head: u32,
    pub(super) sq: u16,
    pub(super) cid: u16,
    pub(super) status: StatusField,
    /// A fault: posted with the phase of the round before.
    pub(super) wrong_phase: bool,
}

/// A completion queue. What finds it full waits in `pending`: nothing that the host did not consume
/// is overwritten.
#[derive(Debug)]
pub(super) struct Cq {
    pub(super) size: u32,
    /// Submission queues that complete here.
    pub(super) sqs: u32,
    /// Entries posted since its creation.
    pub(super) posts: u64,
    pub(super) pending: VecDeque<EmuCqEntry>,
    /// What its entries interrupt by.
    pub(super) vector: Option<u16>,
    head: u32,
    tail: u32,
    phase: bool,
    refused: Option<u32>,
    ring: EmuRing,
}

impl Cq {
    pub(super) fn new(size: u32, base: Iova, space: &DmaSpace) -> Result<Self, DmaFault> {
        Ok(Self {
            size,
            sqs: 0,
            posts: 0,
            pending: VecDeque::new(),
            vector: None,
            head: 0,
            tail: 0,
            phase: true,
            refused: None,
            ring: EmuRing::new(base, size as usize * CQE_BYTES, space)?,
        })
    }

    pub(super) fn remap(&mut self, space: &DmaSpace) {
        self.ring.remap(space);
    }

    /// Takes a new head from the doorbell. Entries that were never posted cannot be consumed.
    #[inline]
    pub(super) fn observe(&mut self, value: u32) -> DoorbellState {
        if value == self.head {
            return DoorbellState::Same;
        }
        let distance = |to: u32| (to + self.size - self.head) % self.size;
        if value < self.size && distance(value) <= distance(self.tail) {
            self.head = value;
            self.refused = None;
            return DoorbellState::New;
        }
        refuse(&mut self.refused, value)
    }

    fn next(&self) -> u32 {
        if self.tail + 1 == self.size {
            0
        } else {
            self.tail + 1
        }
    }

    /// An entry can be posted at once.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.pending.is_empty() && self.next() != self.head
    }

    /// Posts what waits, as far as there is room. `false` when the queue's memory is no longer
    /// mapped.
    pub(super) fn drain(&mut self) -> bool {
        while self.next() != self.head {
            let Some(entry) = self.pending.pop_front() else {
                break;
            };
            if !self.write(entry) {
                return false;
            }
        }
        true
    }

    /// Posts an entry, now or when there is room. `false` when the queue's memory is no longer
    /// mapped.
    #[inline]
    pub(super) fn post(&mut self, entry: EmuCqEntry) -> bool {
        if !self.has_room() {
            self.pending.push_back(entry);
            return true;
        }
        self.write(entry)
    }

    #[inline]
    fn write(&mut self, entry: EmuCqEntry) -> bool {
        let Some(memory) = &self.ring.memory else {
            return false;
        };
        let at = self.tail as usize * CQE_BYTES;
        let phase = u32::from(self.phase != entry.wrong_phase) << 16;
        let head_and_sq = entry.sq_head & 0xffff | u32::from(entry.sq) << 16;
        let last = u32::from(entry.cid) | phase | entry.status.to_dw3();
        // The word with the phase goes last, with release: who sees it sees the rest, and the data.
        let written = memory.store_u32(at, entry.result, Ordering::Relaxed)
            && memory.store_u32(at + 4, 0, Ordering::Relaxed)
            && memory.store_u32(at + 8, head_and_sq, Ordering::Relaxed)
            && memory.store_u32(at + 12, last, Ordering::Release);
        self.tail = self.next();
        self.phase ^= self.tail == 0;
        self.posts += 1;
        written
    }
}

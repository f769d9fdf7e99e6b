//! The slots of a queue's core, one for each chain, and lists of slots.
//!
//! Everything is in cells: callbacks of SPDK come back to it while the caller is at work on it.

use std::cell::Cell;
use std::ptr::NonNull;

use crate::block::{Op, Status, Token};

/// No slot, no command; the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// A piece of a chain's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpdkPiece {
    pub(super) base: NonNull<u8>,
    pub(super) len_bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpdkSlotState {
    Free,
    /// On the waiting list: not all of it was sent.
    Waiting,
    /// All of it was sent.
    Sent,
    /// On the list of completed chains to deliver.
    Ended,
}

/// A chain.
pub(super) struct SpdkSlot {
    pub(super) state: Cell<SpdkSlotState>,
    pub(super) token: Cell<Token>,
    pub(super) op: Cell<Op>,
    pub(super) flags: Cell<u32>,
    pub(super) lba: Cell<u64>,
    pub(super) blocks: Cell<u64>,
    /// Blocks that commands were sent for; for a flush, 1 when it was sent.
    pub(super) sent: Cell<u64>,
    /// The piece of memory, and the offset in it, that `sent` has come to.
    pub(super) piece: Cell<u32>,
    pub(super) offset_bytes: Cell<u32>,
    pub(super) pieces: Cell<u32>,
    /// Commands that SPDK has.
    pub(super) pending: Cell<u32>,
    /// A command was lost with its connection: the chain is to be sent again.
    pub(super) again: Cell<bool>,
    pub(super) tries: Cell<u32>,
    /// The first error.
    pub(super) status: Cell<Status>,
    pub(super) next: Cell<u32>,
}

/// How far the deadline of a command has been enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpdkStage {
    Sent,
    Aborted,
}

#[derive(Debug)]
pub(super) struct SpdkSlotList {
    pub(super) head: Cell<u32>,
    pub(super) tail: Cell<u32>,
}

impl SpdkSlotList {
    pub(super) fn new() -> Self {
        Self {
            head: Cell::new(NONE),
            tail: Cell::new(NONE),
        }
    }

    pub(super) fn push(&self, slots: &[SpdkSlot], index: u32) {
        slots[index as usize].next.set(NONE);
        match self.head.get() {
            NONE => self.head.set(index),
            _ => slots[self.tail.get() as usize].next.set(index),
        }
        self.tail.set(index);
    }

    pub(super) fn pop(&self, slots: &[SpdkSlot]) -> Option<u32> {
        let index = self.head.get();
        if index == NONE {
            return None;
        }
        self.head.set(slots[index as usize].next.get());
        Some(index)
    }
}

impl SpdkSlot {
    pub(super) fn free(next: u32) -> Self {
        Self {
            state: Cell::new(SpdkSlotState::Free),
            token: Cell::new(0),
            op: Cell::new(Op::Flush),
            flags: Cell::new(0),
            lba: Cell::new(0),
            blocks: Cell::new(0),
            sent: Cell::new(0),
            piece: Cell::new(0),
            offset_bytes: Cell::new(0),
            pieces: Cell::new(0),
            pending: Cell::new(0),
            again: Cell::new(false),
            tries: Cell::new(0),
            status: Cell::new(Status::Success),
            next: Cell::new(next),
        }
    }

    /// Nothing of it is sent.
    #[inline]
    pub(super) fn restart(&self) {
        self.sent.set(0);
        self.piece.set(0);
        self.offset_bytes.set(0);
        self.pending.set(0);
        self.again.set(false);
        self.status.set(Status::Success);
    }
}

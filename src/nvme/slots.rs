//! What a queue pair remembers of its chains and commands. All of it is allocated when the pair is
//! made.

use super::spec::OPC_FLUSH;
use super::split::Cursor;
use crate::block::{Status, Token};
use crate::mem::Segment;

/// No tracker, no chain; the end of a list.
pub(super) const NONE: u16 = u16::MAX;

/// Instead of a slot's index: the command is the whole chain, and its tracker has the token.
pub(super) const SINGLE: u16 = u16::MAX - 1;

/// A command slot: 64 bytes, so that one cache line has all that its end needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tracker {
    /// Identifies this use: sequence | slot.
    pub(super) cid: u16,
    /// The slot of the chain it belongs to, or [`SINGLE`]; [`NONE`] when no command is outstanding
    /// here.
    pub(super) chain: u16,
    pub(super) next_free: u16,
    pub(super) retries: u8,
    pub(super) stage: CommandStage,
    /// When the watch first saw this use, in nanoseconds; 0 before.
    pub(super) seen_ns: u64,
    /// Words 0 and 3 to 6 of the entry; the others are zero. Kept for sending it again.
    pub(super) entry: [u64; 5],
    /// Of a [`SINGLE`].
    pub(super) token: Token,
}
const _: () = assert!(size_of::<Tracker>() == 64);

/// How far the deadline of a command has been enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandStage {
    /// Sent; within its deadline as far as is known.
    Sent,
    /// Past its deadline; the controller says that it aborted the command.
    Aborted,
    /// Past its deadline, and the controller did not abort it: a reset is next.
    Stuck,
}

/// The caller's work, when it is more than one command or not yet sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairSlot {
    pub(super) token: Token,
    /// The next block that no command covers yet.
    pub(super) lba: u64,
    /// Blocks that no command covers yet; 1 for a flush that was not sent.
    pub(super) left: u64,
    /// The memory, when it is one segment; longer lists are in the pair's table.
    pub(super) first: Segment,
    pub(super) at: Cursor,
    pub(super) segments: usize,
    /// Commands outstanding.
    pub(super) pending: u16,
    /// The next slot in the list that this one is on: free, waiting or ended.
    pub(super) next: u16,
    /// CDW12 without the number of blocks.
    pub(super) control: u32,
    pub(super) opcode: u8,
    /// On the waiting list: there were too few trackers for all of it.
    pub(super) waiting: bool,
    /// The first error.
    pub(super) status: Status,
}

impl Tracker {
    /// A tracker on the free list, named by its place.
    pub(super) fn free((cid, next_free): (u16, u16)) -> Self {
        Self {
            cid,
            chain: NONE,
            next_free,
            retries: 0,
            stage: CommandStage::Sent,
            seen_ns: 0,
            entry: [0; 5],
            token: 0,
        }
    }
}

impl Tracker {
    /// Begins a new use.
    #[inline]
    pub(super) fn start(&mut self, chain: u16, entry: [u64; 5], token: Token) {
        self.chain = chain;
        self.retries = 0;
        self.stage = CommandStage::Sent;
        self.seen_ns = 0;
        self.entry = entry;
        self.token = token;
    }
}

impl PairSlot {
    /// A slot on the free list.
    pub(super) fn free(next: u16) -> Self {
        Self {
            token: 0,
            lba: 0,
            left: 0,
            first: Segment::default(),
            at: Cursor::default(),
            segments: 0,
            pending: 0,
            next,
            control: 0,
            opcode: OPC_FLUSH,
            waiting: false,
            status: Status::Success,
        }
    }
}

/// A first-in-first-out list through [`PairSlot::next`].
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotList {
    pub(super) head: u16,
    tail: u16,
}

impl SlotList {
    pub(super) const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
    };

    pub(super) fn push(&mut self, slots: &mut [PairSlot], index: u16) {
        slots[usize::from(index)].next = NONE;
        if self.head == NONE {
            self.head = index;
        } else {
            slots[usize::from(self.tail)].next = index;
        }
        self.tail = index;
    }

    pub(super) fn pop(&mut self, slots: &[PairSlot]) -> Option<u16> {
        let index = self.head;
        if index == NONE {
            return None;
        }
        self.head = slots[usize::from(index)].next;
        Some(index)
    }
}

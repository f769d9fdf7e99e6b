//! What a queue and its controller's keeper share: an SPDK queue pair, the chains on it, and the
//! commands that SPDK has.
//!
//! A chain is cut into commands of at most the largest transfer; SPDK cuts further where it must. A
//! command that the transport lost sends its whole chain again. Everything here is changed by one
//! thread at a time: by the owner inside its gate, and otherwise by the thread that holds `lock`.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use spdk_sys as ffi;

use super::gate::Gate;
use super::slots::{NONE, SpdkPiece, SpdkSlot, SpdkSlotList, SpdkSlotState, SpdkStage};
use crate::block::{Chain, ChainFlags, Completion, Limits, Op, Status};

/// Most blocks of one command (NLB has 16 bits, NVM command set 1.0c, 3.2.4).
const NLB_MAX_BLOCKS: u64 = 1 << 16;

/// Force unit access, in the upper half of dword 12.
const IO_FUA: u32 = 1 << 30;
/// Status codes (base specification 2.0c, figures 93 and 94): the command was aborted by an abort
/// command, because its queue was deleted; and the type of path related ones.
const SC_ABORT_REQUESTED: u8 = 0x07;
const SC_SQ_DELETED: u8 = 0x08;
const SCT_PATH: u8 = 3;

/// How a core is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct CoreShape {
    pub(super) limits: Limits,
    /// The block of the namespace where block 0 of a chain lies.
    pub(super) first_block: u64,
    pub(super) commands: usize,
    /// How often a chain is sent again.
    pub(super) retries: u32,
}

/// A command that SPDK has: its address is the callback's argument.
pub(super) struct SpdkCommand {
    pub(super) core: Cell<*const Core>,
    pub(super) slot: Cell<u32>,
    pub(super) busy: Cell<bool>,
    pub(super) next: Cell<u32>,
    /// When the watch first saw it, in nanoseconds; 0 before.
    pub(super) seen_ns: Cell<u64>,
    pub(super) stage: Cell<SpdkStage>,
    /// Its first piece of memory and the offset in it, and where SPDK is reading the list.
    pub(super) first: Cell<(u32, u32)>,
    pub(super) at: Cell<(u32, u32)>,
}

pub(super) struct Core {
    pub(super) gate: Gate,
    /// For threads other than the owner inside the gate.
    pub(super) lock: Mutex<()>,
    /// The queue has an owner. Without one the thread that holds `cores` frees the queue pair, if
    /// any.
    pub(super) owned: AtomicBool,
    /// Null while there is none.
    pub(super) qpair: Cell<*mut ffi::spdk_nvme_qpair>,
    pub(super) ns: Cell<*mut ffi::spdk_nvme_ns>,
    pub(super) shape: CoreShape,
    pub(super) slots: Box<[SpdkSlot]>,
    commands: Box<[SpdkCommand]>,
    /// `max_segments` for each slot.
    pieces: Box<[Cell<SpdkPiece>]>,
    free_slot: Cell<u32>,
    free_command: Cell<u32>,
    waiting: SpdkSlotList,
    ended: SpdkSlotList,
    /// Slots that are not free.
    pub(super) outstanding: Cell<u32>,
    /// Commands that SPDK has.
    pub(super) in_flight: Cell<u32>,
}

impl SpdkCommand {
    pub(super) fn free(next: u32) -> Self {
        Self {
            core: Cell::new(ptr::null()),
            slot: Cell::new(NONE),
            busy: Cell::new(false),
            next: Cell::new(next),
            seen_ns: Cell::new(0),
            stage: Cell::new(SpdkStage::Sent),
            first: Cell::new((0, 0)),
            at: Cell::new((0, 0)),
        }
    }
}

// SAFETY: the cells and pointers are used by one thread at a time: the owner inside of its gate
// while the generation is its own, else the thread that holds `lock` (see `gate.rs`); SPDK allows a
// queue pair to be used by changing threads, one at a time. Memory of chains is lent to the device
// and not touched from here.
unsafe impl Send for Core {}
// SAFETY: as above; `gate`, `lock` and `owned` are atomics and a mutex.
unsafe impl Sync for Core {}

impl Core {
    pub(super) fn new(shape: CoreShape) -> Self {
        let depth = u32::try_from(shape.limits.depth).unwrap_or(NONE - 1);
        let commands = u32::try_from(shape.commands).unwrap_or(NONE - 1);
        let next = |index: u32, count: u32| if index + 1 < count { index + 1 } else { NONE };
        Self {
            gate: Gate::default(),
            lock: Mutex::new(()),
            owned: AtomicBool::new(true),
            qpair: Cell::new(ptr::null_mut()),
            ns: Cell::new(ptr::null_mut()),
            shape,
            slots: (0..depth)
                .map(|index| SpdkSlot::free(next(index, depth)))
                .collect(),
            commands: (0..commands)
                .map(|index| SpdkCommand::free(next(index, commands)))
                .collect(),
            pieces: (0..shape.limits.depth * shape.limits.max_segments)
                .map(|_| {
                    Cell::new(SpdkPiece {
                        base: NonNull::dangling(),
                        len_bytes: 0,
                    })
                })
                .collect(),
            free_slot: Cell::new(0),
            free_command: Cell::new(0),
            waiting: SpdkSlotList::new(),
            ended: SpdkSlotList::new(),
            outstanding: Cell::new(0),
            in_flight: Cell::new(0),
        }
    }

    /// Takes a chain that was checked, with its memory; false when there is no room. It is on the
    /// waiting list then, to be sent by [`Core::send_waiting`].
    #[inline]
    pub(super) fn take(
        &self,
        chain: &Chain<'_>,
        mut piece: impl FnMut(usize) -> SpdkPiece,
    ) -> bool {
        let index = self.free_slot.get();
        let Some(slot) = self.slots.get(index as usize) else {
            return false;
        };
        self.free_slot.set(slot.next.get());
        let table = index as usize * self.shape.limits.max_segments;
        for at in 0..chain.segments.len() {
            self.pieces[table + at].set(piece(at));
        }
        let fua = chain.flags.contains(ChainFlags::FUA)
            && matches!(chain.op, Op::Write | Op::WriteZeroes);
        slot.token.set(chain.token);
        slot.op.set(chain.op);
        slot.flags.set(if fua { IO_FUA } else { 0 });
        // No overflow: the queue has checked that the range is on the device; a flush has no range.
        let lba = chain.lba.0.wrapping_add(self.shape.first_block);
        slot.lba.set(lba);
        slot.blocks.set(chain.blocks.max(1));
        slot.pieces
            .set(u32::try_from(chain.segments.len()).unwrap_or(0));
        slot.tries.set(0);
        slot.restart();
        self.outstanding.set(self.outstanding.get() + 1);
        self.wait(index);
        true
    }

    fn wait(&self, index: u32) {
        self.slots[index as usize].state.set(SpdkSlotState::Waiting);
        self.waiting.push(&self.slots, index);
    }

    /// Sends what waits, as far as there is room. The queue pair must be there.
    #[inline]
    pub(super) fn send_waiting(&self) {
        while self.waiting.head.get() != NONE {
            let index = self.waiting.head.get();
            if !self.send(index) {
                return;
            }
            self.waiting.pop(&self.slots);
            let slot = &self.slots[index as usize];
            slot.state.set(SpdkSlotState::Sent);
            if slot.pending.get() == 0 {
                self.settle(index);
            }
        }
    }

    /// Sends commands for a chain; false when there was no room for all of it.
    fn send(&self, index: u32) -> bool {
        let slot = &self.slots[index as usize];
        while slot.sent.get() < slot.blocks.get() {
            // What a command of it has met already would only be met again.
            if slot.again.get() || slot.status.get() != Status::Success {
                return true;
            }
            let Some(command) = self.commands.get(self.free_command.get() as usize) else {
                return false;
            };
            let left = slot.blocks.get() - slot.sent.get();
            let blocks = left.min(self.most_blocks(slot.op.get()));
            command.slot.set(index);
            command.core.set(self);
            command
                .first
                .set((slot.piece.get(), slot.offset_bytes.get()));
            // All of it before SPDK has it: it may end there and then.
            self.free_command.set(command.next.get());
            command.busy.set(true);
            command.seen_ns.set(0);
            command.stage.set(SpdkStage::Sent);
            slot.pending.set(slot.pending.get() + 1);
            self.in_flight.set(self.in_flight.get() + 1);
            let rc = self.issue(slot, command, blocks);
            if rc != 0 && command.busy.get() {
                self.release(command);
                slot.pending.set(slot.pending.get() - 1);
                // The connection is gone, or there is no room: later.
                if rc == -libc::ENXIO || (rc == -libc::ENOMEM && self.in_flight.get() > 0) {
                    return false;
                }
                slot.status.set(REFUSED);
                return true;
            }
            slot.sent.set(slot.sent.get() + blocks);
            self.advance(slot, blocks);
        }
        true
    }

    fn most_blocks(&self, op: Op) -> u64 {
        let limits = &self.shape.limits;
        match op {
            Op::Read | Op::Write => {
                let bytes = limits.max_transfer_bytes.unwrap_or(u32::MAX);
                u64::from(bytes / limits.block_bytes).clamp(1, NLB_MAX_BLOCKS)
            }
            Op::WriteZeroes => NLB_MAX_BLOCKS,
            Op::Deallocate | Op::Flush => u64::from(u32::MAX),
        }
    }

    /// Goes past the memory of `blocks` blocks.
    #[inline]
    fn advance(&self, slot: &SpdkSlot, blocks: u64) {
        if slot.pieces.get() == 0 {
            return;
        }
        let mut left = blocks * u64::from(self.shape.limits.block_bytes);
        while left > 0 {
            let len = self.piece(slot, slot.piece.get()).len_bytes;
            let here = u64::from(len - slot.offset_bytes.get());
            if left < here {
                // Less than a piece, which fits.
                let less = u32::try_from(left).unwrap_or(0);
                slot.offset_bytes.set(slot.offset_bytes.get() + less);
                return;
            }
            left -= here;
            slot.piece.set(slot.piece.get() + 1);
            slot.offset_bytes.set(0);
        }
    }

    pub(super) fn piece(&self, slot: &SpdkSlot, at: u32) -> SpdkPiece {
        // SAFETY: pointer arithmetic inside of one slice: `slot` is an element of `self.slots`.
        let index = unsafe { ptr::from_ref(slot).offset_from(self.slots.as_ptr()) };
        let table = usize::try_from(index).unwrap_or(0) * self.shape.limits.max_segments;
        self.pieces[table + at as usize].get()
    }

    /// SPDK does not have the command any more.
    #[inline]
    fn release(&self, command: &SpdkCommand) {
        // SAFETY: pointer arithmetic inside of one slice: `command` is an element of
        // `self.commands`.
        let place = unsafe { ptr::from_ref(command).offset_from(self.commands.as_ptr()) };
        command.busy.set(false);
        command.next.set(self.free_command.get());
        self.free_command.set(u32::try_from(place).unwrap_or(NONE));
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// A command has ended.
    #[inline]
    pub(super) fn end_command(&self, command: &SpdkCommand, sct: u8, sc: u8) {
        if !command.busy.get() {
            return;
        }
        self.release(command);
        let index = command.slot.get();
        let slot = &self.slots[index as usize];
        slot.pending.set(slot.pending.get() - 1);
        if (sct, sc) != (0, 0) {
            note_error(slot, command.stage.get(), sct, sc);
        }
        if slot.pending.get() == 0 && slot.state.get() == SpdkSlotState::Sent {
            self.settle(index);
        }
    }

    /// Nothing of a chain is outstanding, and nothing of it waits: it has ended, or it is sent
    /// again.
    fn settle(&self, index: u32) {
        let slot = &self.slots[index as usize];
        if slot.again.get() && slot.tries.get() < self.shape.retries {
            slot.tries.set(slot.tries.get() + 1);
            slot.restart();
            self.wait(index);
            return;
        }
        if slot.again.get() {
            slot.status.set(Status::Reset);
        }
        slot.state.set(SpdkSlotState::Ended);
        self.ended.push(&self.slots, index);
    }

    /// The next chain that has ended.
    #[inline]
    pub(super) fn next_ended(&self) -> Option<Completion> {
        let index = self.ended.pop(&self.slots)?;
        let slot = &self.slots[index as usize];
        slot.state.set(SpdkSlotState::Free);
        slot.next.set(self.free_slot.get());
        self.free_slot.set(index);
        self.outstanding.set(self.outstanding.get() - 1);
        Some(Completion {
            token: slot.token.get(),
            status: slot.status.get(),
        })
    }

    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        self.ended.head.get() != NONE
    }

    /// Ends all chains permanently: no chain may be submitted any more. The memory of those of
    /// which SPDK has commands is leaked: the device may still write to it.
    pub(super) fn end_all(&self) {
        let end = |index: u32, slot: &SpdkSlot| {
            slot.status.set(match slot.pending.get() {
                0 => Status::Gone,
                _ => Status::Unfenced,
            });
            slot.state.set(SpdkSlotState::Ended);
            self.ended.push(&self.slots, index);
        };
        while let Some(index) = self.waiting.pop(&self.slots) {
            end(index, &self.slots[index as usize]);
        }
        for (index, slot) in (0..).zip(&self.slots) {
            if slot.state.get() == SpdkSlotState::Sent {
                end(index, slot);
            }
        }
    }

    /// The queue pair is gone: chains that were sent in part begin anew.
    pub(super) fn rewind(&self) {
        let mut index = self.waiting.head.get();
        while let Some(slot) = self.slots.get(index as usize) {
            if slot.sent.get() > 0 || slot.again.get() {
                slot.restart();
            }
            index = slot.next.get();
        }
    }

    /// Scans the commands: `overdue` is called with those past their deadline (stage and age) and
    /// returns the action; true when one of them requests a reset of the controller.
    pub(super) fn look(
        &self,
        now_ns: u64,
        mut overdue: impl FnMut(SpdkStage, u64, *mut c_void) -> Overdue,
    ) -> bool {
        for command in self.commands.iter().filter(|command| command.busy.get()) {
            if command.seen_ns.get() == 0 {
                command.seen_ns.set(now_ns.max(1));
            }
            let age = now_ns.saturating_sub(command.seen_ns.get());
            let argument = ptr::from_ref(command).cast_mut().cast::<c_void>();
            match overdue(command.stage.get(), age, argument) {
                Overdue::No => {}
                Overdue::Aborted => {
                    command.stage.set(SpdkStage::Aborted);
                    command.seen_ns.set(now_ns.max(1));
                }
                Overdue::Reset => return true,
            }
        }
        false
    }
}

/// What was done of a command's age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    No,
    Aborted,
    Reset,
}

/// A command that SPDK does not take, though it was checked: this controller wants something else.
/// The status is that of an invalid field.
const REFUSED: Status = Status::Device { sct: 0, sc: 2 };

#[cold]
fn note_error(slot: &SpdkSlot, stage: SpdkStage, sct: u8, sc: u8) {
    let cut_off = matches!((sct, sc), (0, SC_SQ_DELETED) | (SCT_PATH, _));
    let aborted = (sct, sc) == (0, SC_ABORT_REQUESTED);
    if cut_off || (aborted && stage == SpdkStage::Sent) {
        slot.again.set(true);
    } else if slot.status.get() == Status::Success {
        slot.status.set(match aborted {
            true => Status::TimedOut,
            false => Status::Device { sct, sc },
        });
    }
}

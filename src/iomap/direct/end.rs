//! The end of operations: chains that end, and who hears of the operations that end with them.

use super::slot::{DirectSlot, DirectStage, Ended, Hear, Of, OperationKind, WrittenData};
use super::source::Source;
use super::{Direct, OperationToken, SLOT_BITS};
use crate::block::{Completion, Token};
use crate::error::Error;

impl<S: Source> Direct<S> {
    /// A chain has ended. The operation, when it has ended with it and is to be handed over, and
    /// its file.
    #[inline(always)]
    pub(super) fn ended_by(&mut self, completion: Completion) -> Option<(Ended, u32)> {
        let index = index_of(completion.token);
        let slot = self.slots.get_mut(usize::from(index))?;
        if slot.stage != DirectStage::Simple || !completion.status.is_success() {
            let index = self.completed(completion)?;
            return Some(self.hand_over(index));
        }
        let ended = slot.finish_simple();
        let source = slot.source;
        slot.next_free = self.free;
        self.free = index;
        self.polled -= 1;
        self.sources.end(source);
        Some((ended, source))
    }

    /// A chain has ended. The operation, when it has ended with it and is to be handed over.
    #[inline(never)]
    pub(super) fn completed(&mut self, completion: Completion) -> Option<u16> {
        let index = index_of(completion.token);
        let slot = self.slots.get_mut(usize::from(index))?;
        if slot.stage == DirectStage::Simple {
            slot.unfold(slot.report);
        }
        // An engine hands each chain over once; one that does not must not end another operation.
        if slot.in_flight == 0 {
            return None;
        }
        slot.in_flight -= 1;
        if !completion.status.is_success() {
            slot.fail_chain(completion, self.grid.block_shift);
        }
        if slot.in_flight > 0 || slot.stage != DirectStage::Submitted {
            return None;
        }
        self.settle(index)
    }

    /// All chains of an operation have ended: it is over, unless a flush is still due. Its number
    /// when it is to be handed over.
    fn settle(&mut self, index: u16) -> Option<u16> {
        let slot = &mut self.slots[usize::from(index)];
        if slot.without_fua && slot.needs_flush() {
            self.wait_for_room(index);
            return None;
        }
        if slot.is_allocated && slot.failed_at == u64::MAX {
            slot.stage = DirectStage::Written;
            self.written.push_back(index);
            self.is_due = true;
            return None;
        }
        self.finish_slot(index)
    }

    fn finish_slot(&mut self, index: u16) -> Option<u16> {
        let slot = &mut self.slots[usize::from(index)];
        slot.stage = DirectStage::Ended;
        self.sources.ended(slot.source, slot.is_stuck);
        if slot.kind == OperationKind::Read && slot.end - slot.start > slot.report {
            slot.zero_tail();
        }
        (!slot.kept).then_some(index)
    }

    /// A write to allocated blocks whose data is on the device. It has not ended, and counts as in
    /// flight, until [`Direct::end_written`].
    pub fn next_written(&mut self) -> Option<WrittenData<S>> {
        let index = self.written.pop_front()?;
        self.is_due = self.is_waiting() || self.has_written();
        let slot = &self.slots[usize::from(index)];
        let source = self.sources.get(slot.source)?.clone();
        Some(WrittenData {
            operation: OperationToken(index),
            source,
            range: slot.start..slot.data_end,
            dsync: slot.dsync,
        })
    }

    /// Whether [`Direct::next_written`] has one.
    #[inline]
    pub fn has_written(&self) -> bool {
        !self.written.is_empty()
    }

    /// The file of a write was changed, or could not be. The operation has ended.
    pub fn end_written(&mut self, operation: OperationToken, result: Result<(), Error>) {
        let index = operation.0;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        if slot.stage != DirectStage::Written {
            return;
        }
        if let Err(error) = result {
            slot.fail(0, error);
        }
        if let Some(index) = self.finish_slot(index) {
            self.ended.push_back(index);
        }
    }

    /// As [`Direct::settle`], outside of a poll.
    #[cold]
    pub(super) fn settle_early(&mut self, index: u16) {
        if let Some(index) = self.settle(index) {
            self.ended.push_back(index);
        }
    }

    #[inline(always)]
    pub(super) fn of(&self, number: u32) -> Of<'_, S> {
        Of {
            sources: &self.sources,
            number,
        }
    }

    /// The operation, when it has ended. `look` sees it with its file.
    #[inline]
    pub fn take(
        &mut self,
        kept: OperationToken,
        look: impl FnOnce(&Ended, &Of<'_, S>),
    ) -> Option<Ended> {
        let slot = self.slots.get(usize::from(kept.0))?;
        if slot.stage != DirectStage::Ended || !slot.kept {
            return None;
        }
        let (ended, source) = self.hand_over(kept.0);
        look(&ended, &self.of(source));
        Some(ended)
    }

    /// Whether a kept operation has not ended yet.
    #[cold]
    pub fn has_unfinished_kept(&self) -> bool {
        let unfinished = |slot: &DirectSlot| slot.kept && slot.is_unfinished();
        self.slots.iter().any(unfinished)
    }

    /// Hands over every kept operation that has ended and was never taken: its owner was leaked.
    #[cold]
    pub fn take_all_kept(&mut self, mut done: impl FnMut(Ended, Of<'_, S>)) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.kept && slot.stage == DirectStage::Ended {
                let (ended, source) = self.hand_over(u16::try_from(index).unwrap_or(u16::MAX));
                done(ended, self.of(source));
            }
        }
    }

    /// Hands over every operation, when the owner of the queue goes away: those that have ended,
    /// kept ones included, and those that will not end any more. The memory of the latter is leaked
    /// where the device may still have it.
    #[cold]
    pub fn take_all(&mut self, mut done: impl FnMut(Ended, Of<'_, S>)) {
        self.ended.clear();
        self.waiting.clear();
        self.written.clear();
        self.is_due = false;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.stage == DirectStage::Free {
                continue;
            }
            if slot.is_unfinished() {
                slot.give_up();
                self.sources.ended(slot.source, slot.is_stuck);
            }
            let (ended, source) = self.hand_over(u16::try_from(index).unwrap_or(u16::MAX));
            done(ended, self.of(source));
        }
    }

    /// Hands over what has ended without a poll, at most `budget` of it; returns how many.
    #[cold]
    #[inline(never)]
    pub fn drain(&mut self, budget: usize, hear: &mut impl Hear<S>) -> usize {
        let mut count = 0;
        while count < budget
            && let Some(index) = self.ended.pop_front()
        {
            count += 1;
            let (ended, source) = self.hand_over(index);
            hear.hear(ended, self.of(source));
        }
        count
    }

    /// Gives up an operation's slot; what it was, and its file.
    fn hand_over(&mut self, index: u16) -> (Ended, u32) {
        let slot = &mut self.slots[usize::from(index)];
        if slot.kept {
            self.kept -= 1;
        } else {
            self.polled -= 1;
        }
        let source = slot.source;
        self.sources.handed_over(source);
        slot.next_free = self.free;
        self.free = index;
        (slot.finish(), source)
    }
}

/// The slot that a chain's token names.
#[inline(always)]
fn index_of(token: Token) -> u16 {
    (token & ((1 << SLOT_BITS) - 1)) as u16
}

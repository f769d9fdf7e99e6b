//! State of a queue pair, and the guards that end a poll of it.

use std::fmt;
use std::sync::Arc;

use super::controller::Controller;
use super::dataset::DatasetLimits;
use super::queue::{CompletionRing, SubmissionRing};
use super::sleeper::Sleeper;
use super::slots::{NONE, PairSlot, SlotList, Tracker};
use super::split::SplitLimits;
use super::watch::PairWatch;
use crate::block::{BlockRange, Limits};
use crate::mem::{Segment, SharedWords};

/// Polls between two looks at the clock, where the caller never relaxes.
pub(super) const POLLS_PER_LOOK: u32 = 4096;

/// A submission and a completion queue on one namespace. Belongs to one thread at a time.
///
/// Dropping it waits for in-flight commands, bounded by the deadline of a command, and deletes the
/// queues.
pub struct QueuePair {
    pub(super) sq: SubmissionRing,
    pub(super) cq: CompletionRing,
    /// The controller's generation that these rings belong to.
    pub(super) generation: u64,
    pub(super) controller: Arc<Controller>,
    /// Polls until the next look at the clock; 0 asks for attention at once. It is 0 whenever a
    /// chain waits or has ended elsewhere than in `reap`, and when the controller is gone.
    pub(super) countdown: u32,
    pub(super) free_tracker: u16,
    pub(super) free_slot: u16,
    /// The bits of a command id that name its tracker: the entries of the rings less one.
    pub(super) cid_mask: u16,
    /// What dword 2 of every completion starts with.
    pub(super) sq_id_word: u32,
    pub(super) outstanding: u32,
    pub(super) waiting: SlotList,
    /// Chains that ended elsewhere than in `reap`.
    pub(super) ended: SlotList,
    pub(super) trackers: Box<[Tracker]>,
    pub(super) slots: Box<[PairSlot]>,
    pub(super) geometry: SplitLimits,
    /// What one dataset management command may cover.
    pub(super) dataset: DatasetLimits,
    /// The controller takes scatter-gather lists.
    pub(super) sgl: bool,
    /// The namespace id, in its place in word 0.
    pub(super) nsid_word: u64,
    pub(super) limits: Limits,
    /// The blocks of the namespace that chains count in.
    pub(super) range: BlockRange,
    /// The most blocks of a chain that [`submit`](crate::block::Queue::submit) sends as it is: not
    /// more than a command may have, nor than the range has.
    pub(super) most_plain_blocks: u32,
    /// A page for each tracker: its PRP list, or its dataset management ranges.
    pub(super) lists: SharedWords,
    /// `limits.max_segments` for each slot.
    pub(super) segments: Box<[Segment]>,
    pub(super) id: u16,
    pub(super) watch: PairWatch,
    /// Of a queue that waits by interrupts.
    pub(super) sleeper: Option<Sleeper>,
}

/// The id of a tracker's next use: one more in the bits above those that name it.
#[inline]
pub(super) fn next_cid(cid: u16, mask: u16) -> u16 {
    cid.wrapping_add(mask).wrapping_add(1)
}

/// Dropped only when the callback of a poll panics: the next poll continues this one.
pub(super) struct Unwinding<'a>(pub(super) &'a mut QueuePair);

impl Drop for Unwinding<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.countdown = 0;
    }
}

/// Gives consumed completion entries back to the device at the end of a poll, also when its
/// callback panics: a device whose completion queue is full would never complete another command.
pub(super) struct GiveBack<'a>(pub(super) &'a mut QueuePair);

impl Drop for GiveBack<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.cq.give_back();
    }
}

/// Makes the next poll handle the waiting chains, also when the callback panics.
pub(super) struct AttendAgain<'a>(pub(super) &'a mut QueuePair);

impl Drop for AttendAgain<'_> {
    fn drop(&mut self) {
        let pair = &mut *self.0;
        if pair.waiting.head != NONE || pair.ended.head != NONE {
            pair.countdown = 0;
        }
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("id", &self.id)
            .field("limits", &self.limits)
            .field("outstanding", &self.outstanding)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

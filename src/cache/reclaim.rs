//! Page replacement.
//!
//! [`Policy::S3Fifo`] has two queues. New pages enter a small one; pages that were used twice, or
//! that come back soon after their eviction (ghosts), are in the main one. [`Policy::Clock`] has
//! the main queue only. A hit changes no queue: it increments a byte beside the page's word, up to
//! 3.
//!
//! New pages also go to the main queue while it is not full: of a loop that is larger than the
//! cache the main queue then keeps a part, which pages that are used equally rarely do not
//! displace.
//!
//! `policy_tests.rs` measures both, beside caches of other crates.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crossbeam_queue::ArrayQueue;

use super::ghosts::Ghosts;
use crate::mem::pages::sync::atomic::{AtomicBool, AtomicU32};
use crate::mem::pages::{FrameRun, PageTable};

/// Of so many pages one is in the small queue.
const SMALL_SHARE: usize = 50;

/// What decides which pages stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// A small queue, a main one, and ghosts.
    #[default]
    S3Fifo,
    /// One queue, in which what was used gets another round.
    Clock,
}

/// What came of asking for a victim.
pub(super) enum Victim {
    /// A page's frame, from this slot; and whether it was read ahead and never used.
    Frame(FrameRun, u32, bool),
    /// Everything is dirty or held.
    Nothing,
}

/// The queues.
#[derive(Debug)]
pub(super) struct Reclaim {
    small: ArrayQueue<u32>,
    main: ArrayQueue<u32>,
    /// For each frame, whether it is in one of the queues: at most once.
    queued: Box<[AtomicBool]>,
    /// For each frame, the slot that it was last put into.
    owner: Box<[AtomicU32]>,
    small_frames: usize,
    /// Below this, the main queue takes what leaves the small one, used or not. It is less than
    /// what the small queue leaves it: some frames are free, and they must not count as room.
    main_frames: usize,
    policy: Policy,
    ghosts: Ghosts,
}

impl Reclaim {
    pub(super) fn new(frames: u32, policy: Policy) -> Self {
        let count = frames as usize;
        Self {
            small: ArrayQueue::new(count),
            main: ArrayQueue::new(count),
            queued: (0..count).map(|_| AtomicBool::new(false)).collect(),
            owner: (0..count).map(|_| AtomicU32::new(0)).collect(),
            small_frames: (count / SMALL_SHARE).max(1),
            main_frames: count - 2 * (count / SMALL_SHARE).max(1),
            policy,
            ghosts: Ghosts::new(if policy == Policy::S3Fifo { count } else { 0 }),
        }
    }

    /// A frame is about to be put into a slot. Before it is there: afterwards it may be another's
    /// already.
    pub(super) fn set_owner(&self, frame: u32, slot: u32) {
        self.owner[frame as usize].store(slot, Relaxed);
    }

    /// A frame was put into a slot for a page with this hash.
    pub(super) fn track(&self, frame: u32, hash: u64) {
        let proven = self.policy == Policy::Clock || self.ghosts.contains(hash);
        self.enqueue(if proven { &self.main } else { &self.small }, frame);
    }

    /// The page of a slot is in another frame now; its past counts on.
    pub(super) fn moved(&self, frame: u32) {
        self.enqueue(&self.main, frame);
    }

    /// A frame that was given back and taken anew may still be in a queue: it keeps that place.
    fn enqueue(&self, queue: &ArrayQueue<u32>, frame: u32) {
        if !self.queued[frame as usize].swap(true, AcqRel) {
            // Each queue has room for all frames.
            let _ = queue.push(frame);
        }
    }

    fn dequeue(&self, queue: &ArrayQueue<u32>) -> Option<u32> {
        let frame = queue.pop()?;
        // Cleared before the frame is examined: a thread that puts it into a slot later queues it
        // again.
        self.queued[frame as usize].swap(false, AcqRel);
        Some(frame)
    }

    /// The page that is to go. `hash` gives a slot's page.
    pub(super) fn victim(&self, pages: &PageTable, hash: impl Fn(u32) -> u64) -> Victim {
        // Every page is looked at a few times at most: its uses are counted down on the way.
        let mut budget = 4 * (self.small.len() + self.main.len()) + 16;
        // One pass over the small queue is enough: all of its pages may be dirty.
        let mut round = self.small.len();
        while budget > 0 {
            budget -= 1;
            let small_is_large = round > 0 && self.small.len() > self.small_frames;
            let found = if small_is_large || self.main.is_empty() {
                round = round.saturating_sub(1);
                self.look_at_small(pages, &hash)
            } else {
                self.look_at_main(pages)
            };
            match found {
                Ok(Some((frame, slot, ahead))) => return Victim::Frame(frame, slot, ahead),
                Ok(None) => {}
                Err(()) => return Victim::Nothing,
            }
        }
        Victim::Nothing
    }

    /// One step: a frame, nothing yet, or nothing to be had (an empty queue).
    fn look_at_small(
        &self,
        pages: &PageTable,
        hash: &impl Fn(u32) -> u64,
    ) -> Result<Option<(FrameRun, u32, bool)>, ()> {
        let frame = self.dequeue(&self.small).ok_or(())?;
        let slot = self.owner[frame as usize].load(Acquire);
        let look = pages.look(slot);
        if !look.present || look.frame != frame {
            return Ok(None);
        }
        if !look.reclaimable {
            self.enqueue(&self.small, frame);
            return Ok(None);
        }
        if look.uses > 1 || self.main.len() < self.main_frames {
            pages.set_uses(slot, frame, 0);
            self.enqueue(&self.main, frame);
            return Ok(None);
        }
        self.ghosts.insert(hash(slot));
        Ok(self.evict(pages, frame, slot, look.ahead, &self.small))
    }

    fn look_at_main(&self, pages: &PageTable) -> Result<Option<(FrameRun, u32, bool)>, ()> {
        let frame = self.dequeue(&self.main).ok_or(())?;
        let slot = self.owner[frame as usize].load(Acquire);
        let look = pages.look(slot);
        if !look.present || look.frame != frame {
            return Ok(None);
        }
        if !look.reclaimable || look.uses > 0 {
            if look.uses > 0 {
                pages.set_uses(slot, frame, look.uses - 1);
            }
            self.enqueue(&self.main, frame);
            return Ok(None);
        }
        Ok(self.evict(pages, frame, slot, look.ahead, &self.main))
    }

    /// Evicts a page. A page that was pinned or modified since returns to its queue.
    fn evict(
        &self,
        pages: &PageTable,
        frame: u32,
        slot: u32,
        ahead: bool,
        back: &ArrayQueue<u32>,
    ) -> Option<(FrameRun, u32, bool)> {
        let taken = pages.take(slot, frame);
        if taken.is_none() {
            self.enqueue(back, frame);
        }
        taken.map(|frame| (frame, slot, ahead))
    }
}

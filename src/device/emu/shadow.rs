//! The device's side of doorbells: registers, and their shadows in host memory (section 5.8 and
//! annex B.5).
//!
//! Without shadows the controller looks at the registers all the time. With them it goes by the
//! book: a write to the register of a submission queue wakes the queue; while it is awake the tail
//! is read from its shadow; before it sleeps again the event index says so, and the shadow is
//! looked at once more. The admin queue keeps to its registers. Heads of completion queues are read
//! from their shadows whenever there is something to post, so that the host need never write those
//! registers.

use std::sync::atomic::{Ordering, fence};

use rand::Rng;

use super::bits::low16;
use super::controller::EmuController;
use super::queue::DoorbellState;
use super::shadow_pages::{EmuShadows, ShadowPage};
use crate::nvme::spec::{Command, PAGE_BYTES, StatusField};

/// In the register of a shadowed submission queue: nothing was written since it was looked at last.
const NO_WRITE: u32 = u32::MAX;

impl EmuController {
    /// Doorbell Buffer Config.
    pub(super) fn take_shadows(&mut self, command: &Command) -> Result<(), StatusField> {
        let (values, events) = (command.prp1.get(), command.prp2.get());
        self.shadows = Some(EmuShadows {
            values: ShadowPage::new(values, &self.space)?,
            events: ShadowPage::new(events, &self.space)?,
        });
        for id in 1..=self.offer.max_io_queues {
            self.clear_doorbell(id, false);
            // What came by the register before is in the shadow too.
            if let Some(Some(sq)) = self.sqs.get_mut(usize::from(id)) {
                sq.awake = true;
            }
        }
        Ok(())
    }

    fn index(&self, id: u16, completion: bool) -> usize {
        (2 * usize::from(id) + usize::from(completion)) << self.offer.stride_shift
    }

    /// Where a doorbell's shadow is in both pages, if it has one.
    fn shadow_place(&self, id: u16, completion: bool) -> Option<usize> {
        if self.shadows.is_none() || id == 0 {
            return None;
        }
        let place = self.index(id, completion) * 4;
        (place < PAGE_BYTES).then_some(place)
    }

    /// A doorbell's value for a queue that is new.
    pub(super) fn clear_doorbell(&self, id: u16, completion: bool) {
        let shadowed = !completion && self.shadow_place(id, completion).is_some();
        if let Some(word) = self.doorbells.get(self.index(id, completion)) {
            word.store(if shadowed { NO_WRITE } else { 0 }, Ordering::Relaxed);
        }
    }

    fn register(&self, id: u16, completion: bool) -> u32 {
        self.doorbells
            .get(self.index(id, completion))
            .map_or(0, |word| u32::from_le(word.load(Ordering::Acquire)))
    }

    /// The tail of a submission queue; `None` when the memory that it is in is not mapped any more.
    #[inline]
    pub(super) fn tail(&mut self, id: u16) -> Option<u32> {
        match self.shadow_place(id, false) {
            None => Some(self.register(id, false)),
            Some(place) => self.shadow_tail(id, place),
        }
    }

    fn shadow_tail(&mut self, id: u16, place: usize) -> Option<u32> {
        let register = self.doorbells.get(self.index(id, false))?;
        let rung = register.load(Ordering::Relaxed) != NO_WRITE
            && register.swap(NO_WRITE, Ordering::AcqRel) != NO_WRITE;
        let (Some(Some(sq)), Some(shadows)) = (self.sqs.get_mut(usize::from(id)), &self.shadows)
        else {
            return Some(0);
        };
        if rung {
            sq.awake = true;
            self.stats.wakeups += 1;
        }
        if !sq.awake {
            return Some(sq.tail);
        }
        let tail = shadows.values.load(place)?;
        if tail != sq.tail || !sq.is_empty() {
            return Some(tail);
        }
        let event = if std::mem::take(&mut sq.spoilt_event) {
            self.faults.rng.random()
        } else {
            tail
        };
        shadows.events.store(place, event)?;
        fence(Ordering::SeqCst);
        // What the host stored before it saw the event index is seen here.
        let tail = shadows.values.load(place)?;
        sq.awake = tail != sq.tail;
        Some(tail)
    }

    /// The head of a completion queue; `None` as for [`EmuController::tail`].
    #[inline]
    pub(super) fn head(&self, id: u16) -> Option<u32> {
        let Some(place) = self.shadow_place(id, true) else {
            return Some(self.register(id, true));
        };
        let shadows = self.shadows.as_ref()?;
        let head = shadows.values.load(place)?;
        // Behind the head: going on from there passes it only after the longest way round.
        let event = u32::from(low16(head).wrapping_sub(1));
        shadows.events.store(place, event)?;
        Some(head)
    }

    /// Posts what waited for room in its completion queue.
    pub(super) fn drain_backlog(&mut self) {
        self.backlog = false;
        for id in 0..self.offer.max_io_queues + 1 {
            let waits = |cq: &super::queue::Cq| !cq.pending.is_empty();
            if !matches!(self.cqs.get(usize::from(id)), Some(Some(cq)) if waits(cq)) {
                continue;
            }
            let Some(value) = self.head(id) else {
                return self.fail();
            };
            let Some(Some(cq)) = self.cqs.get_mut(usize::from(id)) else {
                continue;
            };
            let seen = cq.observe(value);
            let mapped = cq.drain();
            self.backlog |= !cq.pending.is_empty();
            self.due.extend(cq.vector);
            self.note(seen);
            if !mapped {
                return self.fail();
            }
        }
    }

    /// Counts what a look at a doorbell showed.
    pub(super) fn note(&mut self, seen: DoorbellState) {
        match seen {
            DoorbellState::Same => {}
            DoorbellState::New => self.stats.doorbell_writes += 1,
            DoorbellState::Invalid => {
                self.stats.doorbell_writes += 1;
                self.stats.invalid_doorbells += 1;
                self.raise_invalid_doorbell();
            }
        }
    }
}

//! Free frames, in power-of-two runs that are merged with their neighbours (buddy allocation).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::mem::pages::FrameRun;

/// Runs have at most `1 << MAX_ORDER` frames: 2 MiB.
pub(super) const MAX_ORDER: u32 = 9;
/// Single frames that are kept at hand, unjoined.
const AT_HAND: usize = 64;

#[derive(Debug, Default)]
struct FreeState {
    at_hand: Vec<FrameRun>,
    /// By order, then by first frame.
    runs: [BTreeMap<u32, FrameRun>; MAX_ORDER as usize + 1],
    frames: usize,
}

/// The free frames.
#[derive(Debug, Default)]
pub(super) struct FreeFrames(Mutex<FreeState>);

impl FreeFrames {
    fn lock(&self) -> MutexGuard<'_, FreeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free frames.
    pub(super) fn len(&self) -> usize {
        self.lock().frames
    }

    /// Frames side by side: as many as are wanted (rounded down to a power of two), or as many as
    /// there are in one piece.
    pub(super) fn take(&self, wanted: u32) -> Option<FrameRun> {
        let mut state = self.lock();
        let order = wanted.max(1).ilog2().min(MAX_ORDER);
        if order == 0
            && let Some(frame) = state.at_hand.pop()
        {
            state.frames -= 1;
            return Some(frame);
        }
        let found = (order..=MAX_ORDER)
            .find(|&order| !state.runs[order as usize].is_empty())
            .or_else(|| {
                (0..order)
                    .rev()
                    .find(|&order| !state.runs[order as usize].is_empty())
            });
        let Some(found) = found else {
            let frame = state.at_hand.pop()?;
            state.frames -= 1;
            return Some(frame);
        };
        let (_, mut run) = state.runs[found as usize].pop_first()?;
        let mut have = found;
        // The upper halves stay.
        while have > order {
            have -= 1;
            let mut lower = run.split_first(1 << have);
            std::mem::swap(&mut lower, &mut run);
            state.runs[have as usize].insert(lower.first(), lower);
        }
        state.frames -= 1 << have;
        Some(run)
    }

    /// Frames back.
    pub(super) fn give(&self, run: FrameRun) {
        self.lock().give(run);
    }

    /// Several runs back, at once.
    pub(super) fn give_all(&self, runs: impl IntoIterator<Item = FrameRun>) {
        let mut state = self.lock();
        for run in runs {
            state.give(run);
        }
    }
}

impl FreeState {
    fn give(&mut self, mut run: FrameRun) {
        self.frames += run.count() as usize;
        if run.count() == 1 && self.at_hand.len() < AT_HAND {
            self.at_hand.push(run);
            return;
        }
        while run.count() > 0 {
            let aligned = run.first().trailing_zeros().min(MAX_ORDER);
            let order = aligned.min(run.count().ilog2());
            self.insert(run.split_first(1 << order), order);
        }
    }

    fn insert(&mut self, mut run: FrameRun, mut order: u32) {
        while order < MAX_ORDER {
            let buddy = run.first() ^ (1 << order);
            let Some(other) = self.runs[order as usize].remove(&buddy) else {
                break;
            };
            let (mut lower, upper) = if other.first() < run.first() {
                (other, run)
            } else {
                (run, other)
            };
            let joined = lower.join(upper);
            debug_assert!(joined.is_ok(), "buddies are neighbours");
            run = lower;
            order += 1;
        }
        self.runs[order as usize].insert(run.first(), run);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::mem::pages::PageTable;
    use crate::mem::{Heap, HeapConfig, HugePages};

    #[test]
    fn no_frame_is_lost_or_given_twice_and_runs_are_joined() {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let (_table, run) = PageTable::new(&heap, 1024, 8).unwrap();
        let free = FreeFrames::default();
        free.give(run);
        let mut rng = SmallRng::seed_from_u64(5);
        let mut taken: Vec<FrameRun> = Vec::new();
        let mut owned = vec![false; 1024];
        for _ in 0..20_000 {
            if rng.random_bool(0.5)
                && let Some(run) = free.take(rng.random_range(1..=300))
            {
                for frame in run.first()..run.first() + run.count() {
                    assert!(!std::mem::replace(&mut owned[frame as usize], true));
                }
                taken.push(run);
            } else if !taken.is_empty() {
                let run = taken.swap_remove(rng.random_range(0..taken.len()));
                for frame in run.first()..run.first() + run.count() {
                    owned[frame as usize] = false;
                }
                free.give(run);
            }
            let held = owned.iter().filter(|owned| **owned).count();
            assert_eq!(free.len() + held, 1024);
        }
        free.give_all(taken.drain(..));
        let singles: Vec<_> = (0..AT_HAND).map_while(|_| free.take(1)).collect();
        let state = free.lock();
        assert!(state.runs[..5].iter().map(BTreeMap::len).sum::<usize>() <= 2 * AT_HAND);
        drop(state);
        free.give_all(singles);
        assert_eq!(free.len(), 1024);
    }
}

//! A seam for tests: at any point where space is asked for it can be denied. Without debug
//! assertions nothing of it is in the code.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static STATE: Cell<SpaceDenial> = const { Cell::new(SpaceDenial::NONE) };
}

/// Which requests for space of this thread are denied. For tests.
#[derive(Debug, Clone, Copy)]
pub struct SpaceDenial {
    asked: u64,
    first: u64,
    end: u64,
}

impl SpaceDenial {
    const NONE: Self = Self {
        asked: 0,
        first: 0,
        end: 0,
    };

    /// Counts requests from now on, and denies those with the numbers of a range; returns how many
    /// there were since the last call. Always 0 without debug assertions, where nothing is denied.
    pub fn plan(denied: Range<u64>) -> u64 {
        let plan = Self {
            asked: 0,
            first: denied.start,
            end: denied.end,
        };
        STATE.replace(plan).asked
    }

    /// Whether the next request is denied.
    pub(super) fn next() -> bool {
        if !cfg!(debug_assertions) {
            return false;
        }
        let mut state = STATE.get();
        let number = state.asked;
        state.asked = number.saturating_add(1);
        STATE.set(state);
        (state.first..state.end).contains(&number)
    }
}

//! Chains of blocks that come back to themselves.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// Detects a circle in constant memory (Brent's algorithm): the chain is compared with one of its
/// blocks, which is moved on at each power of two of steps.
#[derive(Debug)]
pub(super) struct Circle {
    mark: u64,
    steps: u64,
    limit: u64,
}

impl Circle {
    /// A chain that begins with this block.
    pub(super) fn new(start: u64) -> Self {
        Self {
            mark: start,
            steps: 0,
            limit: 1,
        }
    }

    /// Goes on to the next block; whether the chain was there before.
    pub(super) fn closes_at(&mut self, next: u64) -> bool {
        if next == self.mark {
            return true;
        }
        self.steps = self.steps.saturating_add(1);
        if self.steps == self.limit {
            self.mark = next;
            self.steps = 0;
            self.limit = self.limit.saturating_mul(2);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::Circle;

    #[test]
    fn circles_of_any_length_after_any_way_are_found_and_chains_are_not() {
        for way in 0..20_u64 {
            for length in 1..40_u64 {
                let block = |step: u64| {
                    if step < way {
                        step
                    } else {
                        way + (step - way) % length
                    }
                };
                let mut circle = Circle::new(block(0));
                let closed = (1..).find(|&step| circle.closes_at(block(step)));
                assert!(closed.is_some_and(|steps| steps <= 4 * (way + length)));
            }
        }
        let mut chain = Circle::new(0);
        assert!((1..10_000).all(|step| !chain.closes_at(step)));
    }
}

//! Which pages were evicted not long ago.

use std::sync::atomic::Ordering::Relaxed;

use crate::mem::pages::sync::atomic::{AtomicU32, AtomicU64};

/// Pages that were evicted not long ago: fingerprints, overwritten by what falls into the same
/// place.
#[derive(Debug)]
pub(super) struct Ghosts {
    /// Fingerprint above, time of eviction below.
    marks: Box<[AtomicU64]>,
    now: AtomicU32,
    lifetime: u32,
}

impl Ghosts {
    /// Remembers about so many.
    pub(super) fn new(pages: usize) -> Self {
        let len = if pages == 0 {
            0
        } else {
            (2 * pages).next_power_of_two()
        };
        Self {
            marks: (0..len).map(|_| AtomicU64::new(0)).collect(),
            now: AtomicU32::new(1),
            lifetime: u32::try_from(pages).unwrap_or(u32::MAX),
        }
    }

    fn place(&self, hash: u64) -> Option<(&AtomicU64, u64)> {
        let mask = (self.marks.len() as u64).checked_sub(1)?;
        let mark = self.marks.get(usize::try_from((hash >> 8) & mask).ok()?)?;
        Some((mark, hash & !u64::from(u32::MAX)))
    }

    pub(super) fn insert(&self, hash: u64) {
        let now = self.now.fetch_add(1, Relaxed);
        if let Some((mark, fingerprint)) = self.place(hash) {
            mark.store(fingerprint | u64::from(now), Relaxed);
        }
    }

    pub(super) fn contains(&self, hash: u64) -> bool {
        let Some((mark, fingerprint)) = self.place(hash) else {
            return false;
        };
        let found = mark.load(Relaxed);
        let age = self.now.load(Relaxed).wrapping_sub(low(found));
        found != 0 && found & !u64::from(u32::MAX) == fingerprint && age <= self.lifetime
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
fn low(mark: u64) -> u32 {
    mark as u32
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::super::index::key_hash;
    use super::*;

    #[test]
    fn ghosts_are_remembered_for_a_while() {
        let ghosts = Ghosts::new(100);
        ghosts.insert(key_hash(1, 1));
        assert!(ghosts.contains(key_hash(1, 1)));
        assert!(!ghosts.contains(key_hash(1, 2)));
        for no in 0..150 {
            ghosts.insert(key_hash(2, no));
        }
        assert!(!ghosts.contains(key_hash(1, 1)));
    }
}

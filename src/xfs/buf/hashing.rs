//! Hashing of addresses of buffers: a multiplication by a random number, so that the addresses that
//! a disk names do not decide what collides, and one that spreads what an unlucky number left
//! together.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes [`AddressHasher`]s of one table.
#[derive(Debug, Clone, Copy)]
pub(super) struct AddressHashing {
    factor: u64,
    start: u64,
}

/// An odd number with its bits in no order: the fraction of the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Both halves of a product.
#[inline]
fn folded(number: u64, factor: u64) -> u64 {
    let product = u128::from(number).wrapping_mul(factor.into());
    let [low, high] = [product, product >> 64].map(|part| part & u128::from(u64::MAX));
    u64::try_from(low ^ high).unwrap_or(0)
}

/// Hashes one number.
#[derive(Debug)]
pub(super) struct AddressHasher {
    factor: u64,
    hash: u64,
}

impl AddressHashing {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self {
            factor: random.hash_one(1) | 1,
            start: random.hash_one(2),
        }
    }
}

impl BuildHasher for AddressHashing {
    type Hasher = AddressHasher;

    #[inline]
    fn build_hasher(&self) -> AddressHasher {
        AddressHasher {
            factor: self.factor,
            hash: self.start,
        }
    }
}

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.hash = folded(folded(self.hash ^ number, self.factor), SPREAD);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_of_blocks_are_spread() {
        for _ in 0..16 {
            let hashing = AddressHashing::new();
            for shift in [9, 12, 14, 16, 30] {
                let hashes = (0..4096_u64).map(|n| hashing.hash_one(n << shift));
                let low: HashSet<u64> = hashes.clone().map(|hash| hash & 0xffff).collect();
                let high: HashSet<u64> = hashes.map(|hash| hash >> 48).collect();
                assert!(low.len() > 2000, "{} of 4096", low.len());
                assert!(high.len() > 2000, "{} of 4096", high.len());
            }
        }
    }
}

//! Which 128-byte chunks of a buffer were changed: the dirty map of a buffer's log item.

/// Chunks of the largest buffer, 64 KiB.
const MOST_CHUNKS: usize = 512;
const WORDS: usize = MOST_CHUNKS / 64;

/// A set of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct ChunkMap([u64; WORDS]);

impl ChunkMap {
    /// The first `count` chunks.
    pub(in super::super) fn first(count: usize) -> Self {
        let mut map = Self::default();
        for index in 0..count.min(MOST_CHUNKS) {
            map.set(index);
        }
        map
    }

    /// Adds a chunk. One behind the largest buffer is ignored.
    pub(in super::super) fn set(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1_u64.wrapping_shl(u32::try_from(index % 64).unwrap_or(0));
        }
    }

    pub(in super::super) fn has(&self, index: usize) -> bool {
        let word = self.0.get(index / 64).copied().unwrap_or(0);
        word.wrapping_shr(u32::try_from(index % 64).unwrap_or(0)) & 1 == 1
    }

    /// Number of chunks.
    pub(in super::super) fn len(&self) -> u32 {
        self.0
            .iter()
            .fold(0, |sum, word| sum.saturating_add(word.count_ones()))
    }

    /// Adds all chunks of another set.
    pub(in super::super) fn merge(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }

    /// The words of a log item's dirty map for a buffer of `chunks` chunks, 32 bits each.
    pub(in super::super) fn words(&self, chunks: usize) -> impl Iterator<Item = u32> + '_ {
        (0..chunks.div_ceil(32)).map(|word| {
            let pair = self.0.get(word / 2).copied().unwrap_or(0);
            let half = if word % 2 == 0 {
                pair
            } else {
                pair.wrapping_shr(32)
            };
            u32::try_from(half & u64::from(u32::MAX)).unwrap_or(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_log() {
        let mut map = ChunkMap::default();
        for index in [0, 31, 33, 127, 511, 512] {
            map.set(index);
        }
        assert_eq!(map.len(), 5, "512 lies behind the largest buffer");
        let words: Vec<u32> = map.words(512).collect();
        assert_eq!(words.len(), 16);
        assert!(words.starts_with(&[1 | 1 << 31, 2, 0, 1 << 31]));
        assert_eq!(words.last(), Some(&(1 << 31)));
        assert!(map.has(33) && !map.has(34));
        let mut other = ChunkMap::first(3);
        assert_eq!(other.words(3).collect::<Vec<_>>(), [7]);
        other.merge(&map);
        assert_eq!(other.len(), 7);
    }
}

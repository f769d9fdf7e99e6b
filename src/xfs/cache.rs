//! Metadata blocks in memory: checked once, kept while there is room, shared by threads.
//!
//! A block is found again only under the address, length, kind and owner that it was checked for.
//! Bounded, with CLOCK eviction.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a cached block was checked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum BlockKind {
    /// AGF.
    Agf,
    /// AGI.
    Agi,
    /// Block of an inode btree.
    Inobt,
    /// Block of the btree of free space by block number.
    Bnobt,
    /// Block of the btree of free space by length.
    Cntbt,
    /// Block of the refcount btree.
    Refcount,
    /// Block of a fork's extent btree.
    Bmbt,
    /// Inodes, each checked when it is used.
    Inodes,
    /// Data, leaf or free block of a directory.
    Directory,
    /// Block of a remote symbolic link.
    Symlink,
    /// Block of extended attributes.
    Attribute,
    /// Block of a remote value of an extended attribute.
    AttributeValue,
}

/// What identifies a checked block: its address on the device, length, kind, and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) addr_bytes: u64,
    pub(crate) len_bytes: usize,
    pub(crate) kind: BlockKind,
    pub(crate) owner: u64,
}

#[derive(Debug)]
struct MetaSlot {
    data: Arc<[u8]>,
    used: bool,
}

#[derive(Debug, Default)]
struct MetaCacheInner {
    slots: BTreeMap<Key, MetaSlot>,
    hand: VecDeque<Key>,
    bytes: usize,
    /// Counts changes of blocks: what was read before one is not kept after it.
    changes: u64,
    /// The range that was forgotten last, while nothing was kept since.
    forgotten: Option<(u64, usize)>,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct MetaCache {
    limit_bytes: usize,
    inner: Mutex<MetaCacheInner>,
}

impl MetaCache {
    /// An empty cache of at most `limit_bytes`.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, MetaCacheInner> {
        // Nothing between lock and unlock leaves the maps half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block, if it is there.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<[u8]>> {
        let mut inner = self.lock();
        let slot = inner.slots.get_mut(key)?;
        slot.used = true;
        Some(Arc::clone(&slot.data))
    }

    /// To be given to [`MetaCache::put`] with a block that is read from the device afterwards.
    pub(crate) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Blocks in a range of the device were changed: they are read again.
    pub(crate) fn forget(&self, addr_bytes: u64, len_bytes: usize) {
        const LARGEST_BYTES: u64 = 64 << 10;
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.changes = inner.changes.wrapping_add(1);
        if inner.forgotten.replace((addr_bytes, len_bytes)) == Some((addr_bytes, len_bytes)) {
            return;
        }
        let end = addr_bytes.saturating_add(len_bytes as u64);
        let from = Key {
            addr_bytes: addr_bytes.saturating_sub(LARGEST_BYTES),
            len_bytes: 0,
            kind: BlockKind::Agf,
            owner: 0,
        };
        loop {
            let old = inner
                .slots
                .range(from..)
                .map(|(key, _)| *key)
                .take_while(|key| key.addr_bytes < end)
                .find(|key| key.addr_bytes.saturating_add(key.len_bytes as u64) > addr_bytes);
            let Some(key) = old else {
                return;
            };
            if let Some(gone) = inner.slots.remove(&key) {
                inner.bytes = inner.bytes.saturating_sub(gone.data.len());
            }
        }
    }

    /// Keeps a block that was checked. One larger than the whole cache is not kept, nor one that
    /// was read before a change (`changes`).
    pub(crate) fn put(&self, key: Key, data: Arc<[u8]>, changes: u64) {
        if data.len() > self.limit_bytes {
            return;
        }
        let mut inner = self.lock();
        if inner.changes != changes {
            return;
        }
        let inner = &mut *inner;
        inner.forgotten = None;
        let len = data.len();
        let slot = MetaSlot { data, used: false };
        if let Some(old) = inner.slots.insert(key, slot) {
            inner.bytes = inner.bytes.saturating_sub(old.data.len());
        } else {
            inner.hand.push_back(key);
        }
        inner.bytes = inner.bytes.saturating_add(len);
        // Keys of blocks that were forgotten.
        if inner.hand.len() > inner.slots.len().saturating_mul(2).saturating_add(64) {
            let mut seen = BTreeSet::new();
            let slots = &inner.slots;
            inner
                .hand
                .retain(|key| slots.contains_key(key) && seen.insert(*key));
        }
        while inner.bytes > self.limit_bytes {
            let Some(oldest) = inner.hand.pop_front() else {
                break;
            };
            match inner.slots.get_mut(&oldest) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    inner.hand.push_back(oldest);
                }
                Some(_) => {
                    if let Some(gone) = inner.slots.remove(&oldest) {
                        inner.bytes = inner.bytes.saturating_sub(gone.data.len());
                    }
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(addr_bytes: u64) -> Key {
        Key {
            addr_bytes,
            len_bytes: 100,
            kind: BlockKind::Inobt,
            owner: 0,
        }
    }

    #[test]
    fn stays_within_its_bound_and_keeps_what_is_used() {
        let cache = MetaCache::new(1000);
        for addr in 0..10 {
            cache.put(key(addr), vec![0; 100].into(), 0);
        }
        assert!(cache.get(&key(0)).is_some());
        for addr in 10..15 {
            cache.put(key(addr), vec![0; 100].into(), 0);
            assert!(cache.lock().bytes <= 1000);
        }
        assert!(cache.get(&key(0)).is_some(), "was used: a second chance");
        assert!(cache.get(&key(1)).is_none(), "was not used: gone");
        assert!(cache.get(&key(14)).is_some());
        cache.put(key(99), vec![0; 1001].into(), 0);
        assert!(cache.get(&key(99)).is_none(), "larger than the cache");
        let inner = cache.lock();
        assert_eq!(inner.slots.len(), inner.hand.len());
    }

    #[test]
    fn a_changed_block_is_forgotten_and_its_old_content_is_not_kept() {
        let cache = MetaCache::new(1000);
        let before = cache.changes();
        cache.put(key(500), vec![0; 100].into(), before);
        cache.put(key(600), vec![0; 100].into(), before);
        cache.forget(600, 512);
        assert!(cache.get(&key(500)).is_some());
        assert!(cache.get(&key(600)).is_none());
        cache.put(key(600), vec![0; 100].into(), before);
        assert!(cache.get(&key(600)).is_none(), "read before the change");
        cache.put(key(600), vec![1; 100].into(), cache.changes());
        cache.forget(0, 501);
        assert!(cache.get(&key(500)).is_none(), "its first byte was changed");
        assert!(cache.get(&key(600)).is_some());
        for _ in 0..1000 {
            cache.forget(600, 1);
            cache.put(key(600), vec![1; 100].into(), cache.changes());
        }
        assert!(
            cache.lock().hand.len() < 100,
            "forgotten blocks take no memory"
        );
    }

    #[test]
    fn another_owner_or_kind_is_another_block() {
        let cache = MetaCache::new(1000);
        cache.put(key(1), vec![0; 100].into(), 0);
        let other = Key { owner: 7, ..key(1) };
        assert!(cache.get(&other).is_none());
    }
}

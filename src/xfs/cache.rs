//! Metadata blocks in memory: checked once, kept while there is room, shared by threads.
//!
//! A block is found again only under the address, length, kind and owner that it was checked for.
//! Bounded, with CLOCK eviction.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a cached block was checked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    slots: HashMap<Key, MetaSlot>,
    hand: VecDeque<Key>,
    bytes: usize,
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

    /// Keeps a block that was checked. One larger than the whole cache is not kept.
    pub(crate) fn put(&self, key: Key, data: Arc<[u8]>) {
        if data.len() > self.limit_bytes {
            return;
        }
        let mut inner = self.lock();
        let inner = &mut *inner;
        let len = data.len();
        let slot = MetaSlot { data, used: false };
        if let Some(old) = inner.slots.insert(key, slot) {
            inner.bytes = inner.bytes.saturating_sub(old.data.len());
        } else {
            inner.hand.push_back(key);
        }
        inner.bytes = inner.bytes.saturating_add(len);
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
            cache.put(key(addr), vec![0; 100].into());
        }
        assert!(cache.get(&key(0)).is_some());
        for addr in 10..15 {
            cache.put(key(addr), vec![0; 100].into());
            assert!(cache.lock().bytes <= 1000);
        }
        assert!(cache.get(&key(0)).is_some(), "was used: a second chance");
        assert!(cache.get(&key(1)).is_none(), "was not used: gone");
        assert!(cache.get(&key(14)).is_some());
        cache.put(key(99), vec![0; 1001].into());
        assert!(cache.get(&key(99)).is_none(), "larger than the cache");
        let inner = cache.lock();
        assert_eq!(inner.slots.len(), inner.hand.len());
    }

    #[test]
    fn another_owner_or_kind_is_another_block() {
        let cache = MetaCache::new(1000);
        cache.put(key(1), vec![0; 100].into());
        let other = Key { owner: 7, ..key(1) };
        assert!(cache.get(&other).is_none());
    }
}

//! From a page of a file to its slot, without a lock.
//!
//! Eight pages side by side in a file are a *leaf*: a group of slots of the page table. A hash
//! table leads from file and leaf number to the leaf. All leaves are made at the start and have
//! numbers; a reader that follows a stale chain, or finds a leaf that is another's by now, notices
//! when it compares the key once more *after* it pinned or locked a slot: a leaf with anything in
//! it does not change hands. So nothing is ever freed under a reader, and a lookup writes nothing.
//!
//! A leaf is linked and unlinked under the lock of its shard. `live` counts its slots that are not
//! empty and the reservations on it; it grows under that lock only, and at 0 the leaf may go.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, PoisonError};

use crossbeam_utils::CachePadded;

use crate::mem::pages::sync::atomic::AtomicU32;
use crate::mem::pages::sync::{ArrayQueue, Mutex, MutexGuard, RwLock};
use crate::mem::pages::{GROUP_SLOTS, Groups};

/// Pages of a leaf, as a power of two.
pub(super) const LEAF_SHIFT: u32 = GROUP_SLOTS.trailing_zeros();
/// Pages of a leaf.
pub(super) const LEAF_PAGES: u32 = GROUP_SLOTS;
const NONE: u32 = u32::MAX;
/// Chains are short; a longer walk has gone astray, or can afford the lock.
const MAX_HOPS: usize = 64;
const SHARDS: usize = if cfg!(loom) { 1 } else { 64 };
/// Leaves side by side whose buckets are side by side, too: a cache line of buckets for half a MiB
/// of a file.
const NEIGHBOURS: u32 = if cfg!(loom) { 2 } else { 16 };

/// A file's leaves, in order. Changed only when a leaf is linked, unlinked or gets its first dirty
/// page.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Leaves that exist.
    pub(super) leaves: Mutex<BTreeSet<u64>>,
    /// Leaves that may have dirty pages.
    pub(super) dirty: Mutex<BTreeSet<u64>>,
}

impl Lists {
    pub(super) fn leaves(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn dirty(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leaves of all files.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Box<[AtomicU32]>,
    shift: u32,
    groups: Groups,
    free: ArrayQueue<u32>,
    shards: Box<[CachePadded<Mutex<()>>]>,
    files: RwLock<Vec<Option<Arc<Lists>>>>,
}

impl Index {
    /// An index with these leaves.
    pub(super) fn new(groups: &Groups) -> Self {
        let leaves = u32::try_from(groups.len()).unwrap_or(NONE);
        let buckets = (leaves / 2).max(NEIGHBOURS).next_power_of_two();
        let free = ArrayQueue::new(leaves as usize);
        for leaf in 0..leaves {
            let _ = free.push(leaf);
        }
        Self {
            buckets: (0..buckets).map(|_| AtomicU32::new(NONE)).collect(),
            shift: 64 - buckets.trailing_zeros(),
            groups: groups.clone(),
            free,
            shards: (0..SHARDS).map(|_| CachePadded::default()).collect(),
            files: RwLock::default(),
        }
    }

    /// A number for a file, and its lists.
    pub(super) fn add_file(&self) -> (u32, Arc<Lists>) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let lists = Arc::new(Lists::default());
        let free = files.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            files.push(None);
            files.len() - 1
        });
        files[at] = Some(Arc::clone(&lists));
        (u32::try_from(at).unwrap_or(NONE), lists)
    }

    /// Forgets a file that has no leaves any more.
    pub(super) fn remove_file(&self, file: u32) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = files.get_mut(file as usize) {
            *entry = None;
        }
    }

    fn lists(&self, file: u32) -> Option<Arc<Lists>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(file as usize)?.clone()
    }

    #[inline(always)]
    fn bucket(&self, salt: u64, no: u64) -> usize {
        let neighbours = u64::from(NEIGHBOURS);
        let hash = spread(salt ^ (no / neighbours));
        let group = (hash >> self.shift) & !(neighbours - 1);
        usize::try_from(group | ((no ^ hash) & (neighbours - 1))).unwrap_or(0)
    }

    fn shard(&self, file: u32, no: u64) -> MutexGuard<'_, ()> {
        let shard = self.bucket(salt_of(file), no) % SHARDS;
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a leaf has this key now.
    #[inline]
    pub(super) fn is(&self, leaf: u32, file: u32, no: u64) -> bool {
        self.groups.tag(leaf).is(file, no)
    }

    /// The first leaf where this key belongs, whatever its own is: most often the one. `salt` is
    /// the file's.
    #[inline(always)]
    pub(super) fn head(&self, salt: u64, no: u64) -> u32 {
        self.buckets[self.bucket(salt, no)].load(Acquire)
    }

    /// The leaf with this key, probably: to be asked again with [`Index::is`] once a slot of it is
    /// held. `None` says little while others change the index.
    pub(super) fn find(&self, file: u32, no: u64) -> Option<u32> {
        let mut at = self.head(salt_of(file), no);
        for _ in 0..MAX_HOPS {
            let tag = self.groups.get(at)?;
            if tag.is(file, no) {
                return Some(at);
            }
            at = tag.next.load(Acquire);
        }
        None
    }

    /// The leaf with this key, made where it is missing, with a reservation on it. `None` when
    /// there are no more leaves.
    pub(super) fn reserve(&self, file: u32, lists: &Lists, no: u64) -> Option<u32> {
        let _shard = self.shard(file, no);
        if let Some(leaf) = self.find_locked(file, no) {
            self.groups.tag(leaf).live.fetch_add(1, AcqRel);
            return Some(leaf);
        }
        let leaf = self.free.pop()?;
        let bucket = &self.buckets[self.bucket(salt_of(file), no)];
        let header = self.groups.tag(leaf);
        header.no.store(no, Release);
        header.file.store(file, Release);
        header.live.store(1, Release);
        header.listed.store(0, Release);
        header.next.store(bucket.load(Relaxed), Release);
        bucket.store(leaf, Release);
        lists.leaves().insert(no);
        Some(leaf)
    }

    /// The leaf with this key, where there is one, with a reservation on it.
    pub(super) fn hold(&self, file: u32, no: u64) -> Option<u32> {
        let _shard = self.shard(file, no);
        let leaf = self.find_locked(file, no)?;
        self.groups.tag(leaf).live.fetch_add(1, AcqRel);
        Some(leaf)
    }

    fn find_locked(&self, file: u32, no: u64) -> Option<u32> {
        let mut at = self.buckets[self.bucket(salt_of(file), no)].load(Acquire);
        while at != NONE {
            if self.is(at, file, no) {
                return Some(at);
            }
            at = self.groups.tag(at).next.load(Acquire);
        }
        None
    }

    /// A slot was emptied or a reservation ends. The last one unlinks the leaf.
    pub(super) fn release(&self, leaf: u32) {
        let header = self.groups.tag(leaf);
        // Still held, so the key is what it is.
        let (file, no) = (header.file.load(Acquire), header.no.load(Acquire));
        if header.live.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        let _shard = self.shard(file, no);
        if header.live.load(Acquire) != 0 || !self.is(leaf, file, no) {
            return;
        }
        let mut link = &self.buckets[self.bucket(salt_of(file), no)];
        loop {
            let at = link.load(Acquire);
            if at == leaf {
                link.store(header.next.load(Acquire), Release);
                break;
            }
            let Some(next) = self.groups.get(at) else {
                return;
            };
            link = &next.next;
        }
        header.file.store(NONE, Release);
        if let Some(lists) = self.lists(file) {
            lists.leaves().remove(&no);
        }
        let _ = self.free.push(leaf);
    }

    /// The key of a leaf that is held.
    pub(super) fn key(&self, leaf: u32) -> (u32, u64) {
        let header = self.groups.tag(leaf);
        (header.file.load(Acquire), header.no.load(Acquire))
    }

    /// Enters a held leaf into its file's list of dirty ones, after a page of it was made dirty, or
    /// locked for that.
    #[inline]
    pub(super) fn list_dirty(&self, leaf: u32, lists: &Lists, no: u64) {
        let listed = &self.groups.tag(leaf).listed;
        // The mark is set only while the entry exists. This read-modify-write is ordered with the
        // mark's changes: either it comes before the removal, and the remover sees the page, or
        // this thread sees that the entry is gone.
        if listed.fetch_or(0, AcqRel) == 0 {
            let mut dirty = lists.dirty();
            dirty.insert(no);
            listed.swap(1, AcqRel);
        }
    }

    /// Takes a held leaf out of the list, unless `has_dirty` finds a page of it that is dirty or
    /// about to be. No other thread sees the list in between: a dirty page is always either listed
    /// or counted as being in writeback.
    pub(super) fn unlist_clean(
        &self,
        leaf: u32,
        lists: &Lists,
        no: u64,
        has_dirty: impl FnOnce() -> bool,
    ) {
        let listed = &self.groups.tag(leaf).listed;
        let mut dirty = lists.dirty();
        listed.swap(0, AcqRel);
        if has_dirty() {
            dirty.insert(no);
            listed.swap(1, AcqRel);
        } else {
            dirty.remove(&no);
        }
    }

    /// Takes the entry of a leaf that is no more out of the list; not that of one that came back
    /// meanwhile.
    pub(super) fn unlist_gone(&self, file: u32, lists: &Lists, no: u64) {
        let mut dirty = lists.dirty();
        let Some(leaf) = self.hold(file, no) else {
            dirty.remove(&no);
            return;
        };
        drop(dirty);
        self.release(leaf);
    }

    /// Leaves in use.
    pub(super) fn len(&self) -> usize {
        self.groups.len() - self.free.len()
    }
}

/// Spreads keys over 64 bits; the high ones are the best.
pub(super) fn key_hash(file: u32, no: u64) -> u64 {
    spread(salt_of(file) ^ no)
}

/// What tells a file's keys from another's.
pub(super) fn salt_of(file: u32) -> u64 {
    spread(file.into()).rotate_left(23)
}

#[inline(always)]
fn spread(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::pages::PageTable;
    use crate::mem::{Heap, HeapConfig, HugePages};

    fn index(leaves: u32) -> Index {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let (table, _) = PageTable::new(&heap, 1, leaves * LEAF_PAGES).unwrap();
        Index::new(table.groups())
    }

    #[test]
    fn leaves_come_and_go_with_their_reservations() {
        let index = index(16);
        let (file, lists) = index.add_file();
        let (other, other_lists) = index.add_file();
        assert_ne!(file, other);
        let a = index.reserve(file, &lists, 7).unwrap();
        assert_eq!(index.reserve(file, &lists, 7), Some(a));
        let b = index.reserve(other, &other_lists, 7).unwrap();
        assert_ne!(a, b);
        assert_eq!(index.find(file, 7), Some(a));
        assert_eq!(index.find(file, 8), None);
        assert!(lists.leaves().contains(&7));
        index.release(a);
        assert_eq!(index.find(file, 7), Some(a));
        index.release(a);
        assert_eq!((index.find(file, 7), index.hold(file, 7)), (None, None));
        assert!(lists.leaves().is_empty());
        assert_eq!(index.find(other, 7), Some(b));
        assert_eq!(index.len(), 1);
        index.remove_file(file);
        assert_eq!(index.add_file().0, file);
    }

    #[test]
    fn there_are_so_many_leaves_and_no_more() {
        let index = index(4);
        let (file, lists) = index.add_file();
        let leaves: Vec<_> = (0..4)
            .map(|no| index.reserve(file, &lists, no).unwrap())
            .collect();
        assert_eq!(index.reserve(file, &lists, 9), None);
        assert_eq!(index.reserve(file, &lists, 3), Some(leaves[3]));
        index.release(leaves[1]);
        assert!(index.reserve(file, &lists, 9).is_some());
    }
}

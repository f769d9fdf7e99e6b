//! From a page of a file to its slot, without a lock.
//!
//! Eight pages side by side in a file are a *leaf*: eight slots of the page table, one cache line. A hash table leads
//! from file and leaf number to the leaf. All leaves are made at the start and have numbers; a reader that follows a
//! stale chain, or finds a leaf that is another's by now, notices when it compares the key once more *after* it pinned or
//! locked a slot: a leaf with anything in it does not change hands. So nothing is ever freed under a reader, and a
//! lookup writes nothing.
//!
//! A leaf is linked and unlinked under the lock of its shard. `live` counts its slots that are not empty and the
//! reservations on it; it grows under that lock only, and at 0 the leaf may go.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::mem::pages::sync::atomic::{AtomicU32, AtomicU64};

/// Pages of a leaf, as a power of two.
pub(super) const LEAF_SHIFT: u32 = 3;
/// Pages of a leaf.
pub(super) const LEAF_PAGES: u32 = 1 << LEAF_SHIFT;
const NONE: u32 = u32::MAX;
/// Chains are short; a longer walk has gone astray, or can afford the lock.
const MAX_HOPS: usize = 64;
const SHARDS: usize = 64;

/// What is known of a file's pages, in order. Only changed where a leaf comes or goes, or gets its first dirty page.
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

#[derive(Debug)]
struct Header {
    file: AtomicU32,
    next: AtomicU32,
    live: AtomicU32,
    /// 1 while the leaf is in its file's list of dirty ones.
    listed: AtomicU32,
    no: AtomicU64,
}

/// The leaves of all files.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Box<[AtomicU32]>,
    shift: u32,
    headers: Box<[Header]>,
    free: ArrayQueue<u32>,
    shards: Box<[CachePadded<Mutex<()>>]>,
    files: RwLock<Vec<Option<Arc<Lists>>>>,
}

impl Index {
    /// An index of at most `leaves` leaves.
    pub(super) fn new(leaves: u32) -> Self {
        let buckets = (leaves / 2).max(2).next_power_of_two();
        let free = ArrayQueue::new(leaves as usize);
        for leaf in 0..leaves {
            let _ = free.push(leaf);
        }
        let header = |_| Header {
            file: AtomicU32::new(NONE),
            next: AtomicU32::new(NONE),
            live: AtomicU32::new(0),
            listed: AtomicU32::new(0),
            no: AtomicU64::new(0),
        };
        Self {
            buckets: (0..buckets).map(|_| AtomicU32::new(NONE)).collect(),
            shift: 64 - buckets.trailing_zeros(),
            headers: (0..leaves).map(header).collect(),
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

    #[inline]
    fn bucket(&self, file: u32, no: u64) -> usize {
        let hash = key_hash(file, no);
        usize::try_from(hash >> self.shift).unwrap_or(0)
    }

    fn shard(&self, file: u32, no: u64) -> MutexGuard<'_, ()> {
        let shard = self.bucket(file, no) % SHARDS;
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a leaf has this key now.
    #[inline]
    pub(super) fn is(&self, leaf: u32, file: u32, no: u64) -> bool {
        let header = &self.headers[leaf as usize];
        header.file.load(Acquire) == file && header.no.load(Acquire) == no
    }

    /// The leaf with this key, probably: to be asked again with [`Index::is`] once a slot of it is held. `None` says
    /// little while others change the index.
    #[inline(always)]
    pub(super) fn find(&self, file: u32, no: u64) -> Option<u32> {
        let at = self.buckets[self.bucket(file, no)].load(Acquire);
        let header = self.headers.get(at as usize)?;
        if header.file.load(Acquire) == file && header.no.load(Acquire) == no {
            return Some(at);
        }
        self.find_behind(header, file, no)
    }

    #[inline(never)]
    fn find_behind<'a>(&'a self, mut header: &'a Header, file: u32, no: u64) -> Option<u32> {
        for _ in 0..MAX_HOPS {
            let at = header.next.load(Acquire);
            header = self.headers.get(at as usize)?;
            if header.file.load(Acquire) == file && header.no.load(Acquire) == no {
                return Some(at);
            }
        }
        None
    }

    /// The leaf with this key, made where it is missing, with a reservation on it. `None` when there are no more leaves.
    pub(super) fn reserve(&self, file: u32, lists: &Lists, no: u64) -> Option<u32> {
        let _shard = self.shard(file, no);
        if let Some(leaf) = self.find_locked(file, no) {
            self.headers[leaf as usize].live.fetch_add(1, AcqRel);
            return Some(leaf);
        }
        let leaf = self.free.pop()?;
        let bucket = &self.buckets[self.bucket(file, no)];
        let header = &self.headers[leaf as usize];
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
        self.headers[leaf as usize].live.fetch_add(1, AcqRel);
        Some(leaf)
    }

    fn find_locked(&self, file: u32, no: u64) -> Option<u32> {
        let mut at = self.buckets[self.bucket(file, no)].load(Acquire);
        while at != NONE {
            if self.is(at, file, no) {
                return Some(at);
            }
            at = self.headers[at as usize].next.load(Acquire);
        }
        None
    }

    /// A slot was emptied or a reservation ends. The last one unlinks the leaf.
    pub(super) fn release(&self, leaf: u32) {
        let header = &self.headers[leaf as usize];
        // Still held, so the key is what it is.
        let (file, no) = (header.file.load(Acquire), header.no.load(Acquire));
        if header.live.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        let _shard = self.shard(file, no);
        if header.live.load(Acquire) != 0 || !self.is(leaf, file, no) {
            return;
        }
        let mut link = &self.buckets[self.bucket(file, no)];
        loop {
            let at = link.load(Acquire);
            if at == leaf {
                link.store(header.next.load(Acquire), Release);
                break;
            }
            let Some(next) = self.headers.get(at as usize) else {
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
        let header = &self.headers[leaf as usize];
        (header.file.load(Acquire), header.no.load(Acquire))
    }

    /// Enters a held leaf into its file's list of dirty ones, after a page of it was made dirty.
    #[inline]
    pub(super) fn list_dirty(&self, leaf: u32, lists: &Lists, no: u64) {
        if self.headers[leaf as usize].listed.swap(1, AcqRel) == 0 {
            lists.dirty().insert(no);
        }
    }

    /// Takes a held leaf out of the list, before its pages are looked at: what becomes dirty from here on enters it
    /// anew.
    pub(super) fn unlist_dirty(&self, leaf: u32, lists: &Lists, no: u64) {
        lists.dirty().remove(&no);
        self.headers[leaf as usize].listed.swap(0, AcqRel);
    }

    /// Leaves in use.
    pub(super) fn len(&self) -> usize {
        self.headers.len() - self.free.len()
    }
}

/// Spreads keys over 64 bits; the high ones are the best.
#[inline]
pub(super) fn key_hash(file: u32, no: u64) -> u64 {
    let mixed = no
        ^ u64::from(file)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_come_and_go_with_their_reservations() {
        let index = Index::new(16);
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
        let index = Index::new(4);
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

//! Files in core: what all handles of a file share, by inode number, and the page cache of the
//! volume.
//!
//! A file that is cached stays here when its last handle is gone, with its pages; dirty ones wait
//! for a sync, clean ones serve the next open. When there are too many the longest unused go, but
//! never one that is dirty. An open or close takes O(log n), for n files in core.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(super) use super::inode::{CoreInode, locked};
use super::{CacheStats, Metadata, MountOptions};
use crate::cache::{Cache, CacheConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::HUGE_PAGE_BYTES;
use crate::target::drive::HugePageCount;
use crate::target::shared::TargetShared;
use crate::xfs::InodeId;

/// Files without handles that are kept for their pages.
const MOST_UNUSED: usize = 4096;
/// Of these, how many are looked at when a handle is closed and there are more.
const LOOKS_PER_CLOSE: usize = 4;
/// The cache's size where nothing was said and hugepages are scarce.
const DEFAULT_CACHE_BYTES: usize = 64 << 20;

/// The files of a volume that are in core.
#[derive(Debug)]
pub(super) struct Inodes {
    table: Mutex<Table>,
    cache: Mutex<Option<Cache>>,
    cache_bytes: Option<usize>,
    dirty_percent: u8,
    memory_limit_bytes: usize,
    /// Only this volume changes files: those in core are newer than the disk.
    is_truth: bool,
}

#[derive(Debug, Default)]
struct Table {
    /// Files with handles, and cached ones without, by inode number.
    entries: BTreeMap<u64, InodeEntry>,
    /// Those without handles, by [`InodeEntry::closed`].
    unused: BTreeMap<u64, u64>,
    /// Counts closings: the lower its number, the longer a file is unused.
    turn: u64,
    /// Closed files with blocks past their end that they do not need any more.
    spare: Vec<InodeId>,
    /// Numbers of closed files whose times are marked: they stay until those are noted.
    marked: Vec<u64>,
    #[cfg(test)]
    looks: usize,
}

#[derive(Debug)]
struct InodeEntry {
    inode: Arc<CoreInode>,
    /// It is cached, and stays when its last handle is gone.
    is_kept: bool,
    handles: usize,
    /// When its last handle was closed.
    closed: u64,
}

/// A handle of a file in core; the file is open for as long as it exists.
#[derive(Debug)]
pub(super) struct OpenInode {
    inode: Arc<CoreInode>,
    inodes: Arc<Inodes>,
}

impl OpenInode {
    #[inline]
    pub(super) fn core(&self) -> &Arc<CoreInode> {
        &self.inode
    }
}

/// A handle that a program has. The file in core lives longer: operations and queues name it.
#[derive(Debug)]
pub(super) struct UserHandle {
    inode: Arc<CoreInode>,
    inodes: Arc<Inodes>,
}

impl UserHandle {
    pub(super) fn new(open: &OpenInode) -> Self {
        open.inode.users().fetch_add(1, Relaxed);
        Self {
            inode: Arc::clone(&open.inode),
            inodes: Arc::clone(&open.inodes),
        }
    }
}

impl Drop for UserHandle {
    fn drop(&mut self) {
        // In one order with `keep_spare`, so that one of both finds the blocks.
        if self.inode.users().fetch_sub(1, SeqCst) > 1 {
            return;
        }
        // The time of the close.
        self.inode.date_mark();
        let (has_spare, is_marked) = (self.inode.take_spare(), self.inode.is_marked());
        if has_spare || is_marked {
            let mut table = locked(&self.inodes.table);
            table.spare.extend(has_spare.then(|| self.inode.id()));
            table.marked.extend(is_marked.then_some(self.inode.ino));
        }
    }
}

impl Deref for OpenInode {
    type Target = CoreInode;

    #[inline]
    fn deref(&self) -> &CoreInode {
        &self.inode
    }
}

impl Drop for OpenInode {
    fn drop(&mut self) {
        let gone = locked(&self.inodes.table).close(&self.inode);
        // Their pages go with them, which takes a while: not under the lock.
        drop(gone);
    }
}

impl Inodes {
    /// `is_truth`: only this volume changes its files.
    pub(super) fn new(options: &MountOptions, memory_limit_bytes: usize, is_truth: bool) -> Self {
        Self {
            table: Mutex::default(),
            cache: Mutex::new(None),
            cache_bytes: options.cache_bytes,
            dirty_percent: options.cache_dirty_percent,
            memory_limit_bytes,
            is_truth,
        }
    }

    /// The file with this number and generation, if it is in core. Where others may change files
    /// (the volume is read-only, or was opened although it is in use), one with other metadata is
    /// not it.
    pub(super) fn find(self: &Arc<Self>, metadata: &Metadata) -> Option<OpenInode> {
        let inode = locked(&self.table).find(metadata, self.is_truth)?;
        Some(self.opened(inode))
    }

    /// Adds a file that was not found, or finds the one that another thread added meanwhile: both
    /// under one lock, for two files in core would not know of each other's pages.
    pub(super) fn add(self: &Arc<Self>, inode: CoreInode) -> OpenInode {
        let mut table = locked(&self.table);
        if let Some(found) = table.find(&inode.metadata(), self.is_truth) {
            return self.opened(found);
        }
        let inode = Arc::new(inode);
        let old = table.insert(&inode);
        drop(table);
        // Its pages may go with it, which takes a while.
        drop(old);
        self.opened(inode)
    }

    /// The file with this number, if it is in core.
    pub(super) fn in_core(&self, ino: u64) -> Option<Arc<CoreInode>> {
        let table = locked(&self.table);
        Some(Arc::clone(&table.entries.get(&ino)?.inode))
    }

    /// Closed files with blocks past their end that were allocated for them to grow: they are the
    /// caller's to free.
    pub(super) fn take_spare(&self) -> Vec<InodeId> {
        std::mem::take(&mut locked(&self.table).spare)
    }

    /// Files in core with blocks past their end that were allocated for them to grow. They stay in
    /// core meanwhile: who opens one of them has the same locks.
    pub(super) fn with_spare(self: &Arc<Self>) -> Vec<OpenInode> {
        let mut table = locked(&self.table);
        let Table {
            entries, unused, ..
        } = &mut *table;
        let with_spare = entries.values_mut().filter(|entry| entry.inode.has_spare());
        let opened = with_spare.map(|entry| {
            if entry.handles == 0 {
                unused.remove(&entry.closed);
            }
            entry.handles += 1;
            self.opened(Arc::clone(&entry.inode))
        });
        opened.collect()
    }

    /// Such blocks of a file could not be freed yet.
    pub(super) fn keep_spare(&self, inode: &CoreInode) {
        inode.note_spare();
        // Its last handle may have been closed meanwhile, and did not find them.
        if inode.users().load(SeqCst) == 0 && inode.take_spare() {
            locked(&self.table).spare.push(inode.id());
        }
    }

    /// Closed files whose times are marked: they are the caller's to note.
    pub(super) fn take_closed_marked(&self) -> Vec<Arc<CoreInode>> {
        let mut table = locked(&self.table);
        if table.marked.is_empty() {
            return Vec::new();
        }
        let numbers = std::mem::take(&mut table.marked);
        let entries = numbers.iter().filter_map(|ino| table.entries.get(ino));
        let closed = entries.filter(|entry| entry.inode.users().load(Relaxed) == 0);
        closed.map(|entry| Arc::clone(&entry.inode)).collect()
    }

    /// All files whose times are marked, and closed ones whose times were.
    pub(super) fn marked(&self) -> Vec<Arc<CoreInode>> {
        let closed = self.take_closed_marked();
        let table = locked(&self.table);
        let inodes = table.entries.values().map(|entry| &entry.inode);
        let marked = inodes.filter(|inode| inode.is_marked());
        closed.into_iter().chain(marked.map(Arc::clone)).collect()
    }

    /// The times of a file were noted: if it is closed and not cached it goes.
    pub(super) fn forget_closed(&self, inode: &Arc<CoreInode>) {
        let gone = locked(&self.table).forget_closed(inode);
        drop(gone);
    }

    /// A handle that the table has counted.
    fn opened(self: &Arc<Self>, inode: Arc<CoreInode>) -> OpenInode {
        OpenInode {
            inode,
            inodes: Arc::clone(self),
        }
    }

    /// Has the file cached from now on, and kept.
    pub(super) fn begin_caching(
        &self,
        inode: &OpenInode,
        target: &TargetShared,
        block_bytes: u32,
    ) -> Result<()> {
        if inode.pages().is_some() {
            return Ok(());
        }
        {
            let mut cache = locked(&self.cache);
            if inode.pages().is_some() {
                return Ok(());
            }
            let cache = match &mut *cache {
                Some(cache) => cache,
                none => none.insert(self.make_cache(target)?),
            };
            inode.begin_caching(cache, block_bytes)?;
        }
        locked(&self.table).keep(&inode.inode);
        Ok(())
    }

    fn make_cache(&self, target: &TargetShared) -> Result<Cache> {
        let config = CacheConfig {
            limit_bytes: self.cache_bytes.unwrap_or_else(|| {
                let free = HugePageCount::now().map_or(0, |count| count.free);
                default_bytes(free).min(self.memory_limit_bytes / 2)
            }),
            background_percent: self.dirty_percent / 2,
            hard_percent: self.dirty_percent,
            // The deadlines of a command and its abort, for each try, and those of resets in
            // between.
            wait_limit: target
                .command_timeout
                .saturating_mul(8)
                .saturating_add(Duration::from_secs(60)),
            ..CacheConfig::default()
        };
        Cache::new(&target.heap, config)
            .map_err(|error| error.during("make the page cache").on_device(&*target.name))
    }

    /// The cache, when there is one.
    pub(super) fn cache(&self) -> Option<Cache> {
        locked(&self.cache).clone()
    }

    /// What the cache counted.
    pub(super) fn stats(&self) -> Option<CacheStats> {
        self.cache().map(|cache| cache.stats())
    }

    /// All files that are cached.
    pub(super) fn cached(&self) -> Vec<Arc<CoreInode>> {
        self.cached_if(|_| true)
    }

    /// Those of them that may be dirty.
    pub(super) fn dirty(&self) -> Vec<Arc<CoreInode>> {
        self.cached_if(CoreInode::may_be_dirty)
    }

    fn cached_if(&self, is_wanted: impl Fn(&CoreInode) -> bool) -> Vec<Arc<CoreInode>> {
        let table = locked(&self.table);
        let entries = table.entries.values().filter(|entry| entry.is_kept);
        let wanted = entries.filter(|entry| is_wanted(&entry.inode));
        wanted.map(|entry| Arc::clone(&entry.inode)).collect()
    }
}

impl Table {
    /// A file with one more handle.
    fn find(&mut self, metadata: &Metadata, is_truth: bool) -> Option<Arc<CoreInode>> {
        let entry = self.entries.get_mut(&metadata.ino)?;
        let inode = &entry.inode;
        let is_it = match is_truth {
            true => inode.generation == metadata.generation,
            false => inode.metadata() == *metadata || inode.may_be_dirty(),
        };
        if !is_it {
            return None;
        }
        if entry.handles == 0 {
            self.unused.remove(&entry.closed);
        }
        entry.handles += 1;
        Some(Arc::clone(&entry.inode))
    }

    /// Adds a file with one handle. Returns the one that it takes the place of.
    fn insert(&mut self, inode: &Arc<CoreInode>) -> Option<InodeEntry> {
        let entry = InodeEntry {
            inode: Arc::clone(inode),
            is_kept: false,
            handles: 1,
            closed: 0,
        };
        let old = self.entries.insert(inode.ino, entry)?;
        if old.handles == 0 {
            self.unused.remove(&old.closed);
        }
        Some(old)
    }

    /// The entry of a file, unless another one has taken its place.
    fn entry_of(&mut self, inode: &Arc<CoreInode>) -> Option<&mut InodeEntry> {
        let entry = self.entries.get_mut(&inode.ino)?;
        Arc::ptr_eq(&entry.inode, inode).then_some(entry)
    }

    fn keep(&mut self, inode: &Arc<CoreInode>) {
        if let Some(entry) = self.entry_of(inode) {
            entry.is_kept = true;
        }
    }

    /// One handle less. Returns evicted inodes, to be dropped when the table is not locked.
    fn close(&mut self, inode: &Arc<CoreInode>) -> Vec<InodeEntry> {
        let turn = self.turn;
        let Some(entry) = self.entry_of(inode) else {
            return Vec::new();
        };
        entry.handles -= 1;
        if entry.handles > 0 {
            return Vec::new();
        }
        let is_kept = entry.is_kept;
        entry.closed = turn;
        let is_marked = inode.is_marked();
        if !is_kept && !is_marked {
            return self.entries.remove(&inode.ino).into_iter().collect();
        }
        self.turn += 1;
        if is_marked {
            self.marked.push(inode.ino);
        }
        if !is_kept {
            return Vec::new();
        }
        self.unused.insert(turn, inode.ino);
        self.give_up_unused()
    }

    /// Removes a file without handles that was kept for the marks of its times alone.
    fn forget_closed(&mut self, inode: &Arc<CoreInode>) -> Option<InodeEntry> {
        let entry = self.entry_of(inode)?;
        if entry.handles > 0 || entry.is_kept || inode.is_marked() {
            return None;
        }
        self.entries.remove(&inode.ino)
    }

    /// The longest unused, where too many are kept without handles. A close adds one at most, so a
    /// few looks are enough.
    fn give_up_unused(&mut self) -> Vec<InodeEntry> {
        let mut gone = Vec::new();
        for _ in 0..LOOKS_PER_CLOSE {
            if self.unused.len() <= MOST_UNUSED {
                break;
            }
            let Some((_, ino)) = self.unused.pop_first() else {
                break;
            };
            #[cfg(test)]
            {
                self.looks += 1;
            }
            let Some(entry) = self.entries.get_mut(&ino) else {
                continue;
            };
            // Dirty, marked, or being written back; the handle that is closing has a reference as
            // well, but is the newest.
            if entry.inode.may_be_dirty()
                || entry.inode.is_marked()
                || Arc::strong_count(&entry.inode) > 1
            {
                entry.closed = self.turn;
                self.unused.insert(self.turn, ino);
                self.turn += 1;
            } else {
                gone.extend(self.entries.remove(&ino));
            }
        }
        gone
    }
}

/// An eighth of the free hugepages; but 64 MiB, as far as that is no more than half of them.
/// Without any it is ordinary memory.
fn default_bytes(free_huge_pages: u64) -> usize {
    let free = usize::try_from(free_huge_pages)
        .unwrap_or(usize::MAX)
        .saturating_mul(HUGE_PAGE_BYTES);
    match free {
        0 => DEFAULT_CACHE_BYTES,
        free => (free / 8).max(DEFAULT_CACHE_BYTES.min(free / 2)),
    }
}

/// For a buffered call on a file that was opened for direct I/O.
#[cold]
pub(super) fn not_buffered() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "the file was not opened for buffered I/O (OpenOptions::buffered)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xfs::FileMap;

    fn inode(generation: u32) -> CoreInode {
        numbered(131, generation)
    }

    fn numbered(ino: u64, generation: u32) -> CoreInode {
        let metadata = Metadata::of_test(ino, generation);
        CoreInode::new(metadata, FileMap::empty())
    }

    #[test]
    fn two_who_found_a_file_missing_and_add_it_have_one() {
        let inodes = Arc::new(Inodes::new(&MountOptions::default(), usize::MAX, false));
        let (first, second) = (inode(1), inode(1));
        assert!(inodes.find(&first.metadata()).is_none());
        assert!(inodes.find(&second.metadata()).is_none());
        let first = inodes.add(first);
        assert!(Arc::ptr_eq(&first.inode, &inodes.add(second).inode));
        let found = inodes.find(&first.metadata());
        assert!(found.is_some_and(|found| Arc::ptr_eq(&first.inode, &found.inode)));
        let next = inodes.add(inode(2));
        assert!(
            !Arc::ptr_eq(&first.inode, &next.inode),
            "another file of that number"
        );
        drop((first, next));
        assert!(inodes.find(&inode(2).metadata()).is_none(), "it is closed");
    }

    #[test]
    fn a_file_is_found_by_number_and_generation_where_no_one_else_changes_it() {
        for is_truth in [false, true] {
            let options = MountOptions::default();
            let inodes = Arc::new(Inodes::new(&options, usize::MAX, is_truth));
            let first = inodes.add(inode(1));
            let on_disk = first.metadata();
            let now = Metadata {
                len_bytes: 5,
                ..on_disk
            };
            first.replace(now, FileMap::empty());
            assert_eq!(first.metadata(), now);
            assert_eq!(inodes.find(&on_disk).is_some(), is_truth);
            assert!(inodes.find(&now).is_some());
            let added = inodes.add(inode(1));
            assert_eq!(Arc::ptr_eq(&first.inode, &added.inode), is_truth);
            assert!(inodes.find(&inode(2).metadata()).is_none());
        }
    }

    #[test]
    fn opens_and_closes_look_at_few_files_however_many_are_open() {
        let inodes = Arc::new(Inodes::new(&MountOptions::default(), usize::MAX, false));
        let count = 100_000;
        let open = |ino| {
            let file = inodes.add(numbered(ino, 1));
            locked(&inodes.table).keep(&file.inode);
            file
        };
        let mut files: Vec<_> = (0..count).map(open).collect();
        assert_eq!(locked(&inodes.table).looks, 0, "none is unused");
        // Every other one goes, and comes back or not.
        let mut number = 0..count;
        files.retain(|_| number.next().is_some_and(|n| n % 2 == 0));
        let closed = count - files.len() as u64;
        {
            let table = locked(&inodes.table);
            assert_eq!(table.unused.len(), MOST_UNUSED);
            assert_eq!(table.entries.len(), files.len() + MOST_UNUSED);
            assert!(
                table.looks as u64 <= closed,
                "one for each that was too much"
            );
        }
        let last = inodes.find(&numbered(count - 1, 1).metadata());
        assert!(last.is_some(), "the last one that was closed is kept");
        assert_eq!(locked(&inodes.table).unused.len(), MOST_UNUSED - 1);
        assert!(inodes.find(&numbered(1, 1).metadata()).is_none());
        drop((files, last));
        let table = locked(&inodes.table);
        assert_eq!(table.entries.len(), MOST_UNUSED);
        assert!(table.looks as u64 <= count);
    }

    #[test]
    fn files_that_are_in_use_or_closed_without_pages_are_not_kept_for_long() {
        let inodes = Arc::new(Inodes::new(&MountOptions::default(), usize::MAX, false));
        drop(inodes.add(numbered(1, 1)));
        assert!(locked(&inodes.table).entries.is_empty(), "it has no pages");
        let first = inodes.add(numbered(1, 1));
        locked(&inodes.table).keep(&first.inode);
        let written_back = Arc::clone(&first.inode);
        drop(first);
        for ino in 2..2 + 2 * MOST_UNUSED as u64 {
            let file = inodes.add(numbered(ino, 1));
            locked(&inodes.table).keep(&file.inode);
        }
        let found = inodes.find(&written_back.metadata());
        assert!(found.is_some_and(|found| Arc::ptr_eq(&found.inode, &written_back)));
        assert_eq!(locked(&inodes.table).unused.len(), MOST_UNUSED);
    }

    #[test]
    fn the_default_leaves_most_hugepages_to_others() {
        assert_eq!(default_bytes(0), 64 << 20);
        assert_eq!(default_bytes(16), 16 << 20);
        assert_eq!(default_bytes(64), 64 << 20);
        assert_eq!(default_bytes(1024), 256 << 20);
        assert!(default_bytes(u64::MAX) > 1 << 40);
    }
}

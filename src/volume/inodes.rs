//! Files in core: what all handles of a file share, by inode number, and the page cache of the volume.
//!
//! A file that is cached stays here when its last handle is gone, with its pages; dirty ones wait for a sync, clean ones
//! serve whoever opens it again. When there are too many the longest unused go, but never one that is dirty.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::mounted::VolumeShared;
use super::{CacheStats, Metadata, MountOptions};
use crate::cache::{Cache, CacheConfig, ErrorCursor, FileCache};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::HUGE_PAGE_BYTES;
use crate::target::drive::HugePageCount;
use crate::xfs::FileMap;

/// Files without handles that are kept for their pages.
const MOST_UNUSED: usize = 4096;
/// The cache's size where nothing was said and hugepages are scarce.
const DEFAULT_CACHE_BYTES: usize = 64 << 20;

/// A file in core.
#[derive(Debug)]
pub(super) struct CoreInode {
    pub(super) metadata: Metadata,
    pub(super) map: FileMap,
    cached: OnceLock<Cached>,
}

#[derive(Debug)]
struct Cached {
    pages: FileCache,
    /// The failures that a sync of the volume has told.
    heard: Mutex<ErrorCursor>,
}

impl CoreInode {
    pub(super) fn new(metadata: Metadata, map: FileMap) -> Self {
        Self {
            metadata,
            map,
            cached: OnceLock::new(),
        }
    }

    /// Its pages, once it was opened buffered.
    #[inline]
    pub(super) fn pages(&self) -> Option<&FileCache> {
        self.cached.get().map(|cached| &cached.pages)
    }

    pub(super) fn may_be_dirty(&self) -> bool {
        self.pages().is_some_and(FileCache::may_be_dirty)
    }

    /// For a sync of the volume: a failure that none before has told.
    pub(super) fn check_errors(&self) -> Result<()> {
        self.cached.get().map_or(Ok(()), |cached| {
            cached.pages.check_errors(&mut locked(&cached.heard))
        })
    }
}

/// The files of a volume that are in core.
#[derive(Debug)]
pub(super) struct Inodes {
    table: Mutex<Table>,
    cache: Mutex<Option<Cache>>,
    cache_bytes: Option<usize>,
    dirty_percent: u8,
    memory_limit_bytes: usize,
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<u64, Entry>,
    /// Counts openings: whose number is low was opened long ago.
    turn: u64,
    /// As many entries are worth a look for those that nobody has any more.
    crowd: usize,
}

#[derive(Debug)]
struct Entry {
    inode: Weak<CoreInode>,
    /// The same, where it is cached.
    kept: Option<Arc<CoreInode>>,
    turn: u64,
}

impl Inodes {
    pub(super) fn new(options: &MountOptions, memory_limit_bytes: usize) -> Self {
        Self {
            table: Mutex::default(),
            cache: Mutex::new(None),
            cache_bytes: options.cache_bytes,
            dirty_percent: options.cache_dirty_percent,
            memory_limit_bytes,
        }
    }

    /// The file with this metadata, if somebody has it. One that was changed from outside meanwhile (the volume was opened
    /// although it is in use) is not it.
    pub(super) fn find(&self, metadata: &Metadata) -> Option<Arc<CoreInode>> {
        locked(&self.table).find(metadata)
    }

    /// Adds a file that was not found, or finds the one that somebody added meanwhile: both under one lock, for two files in
    /// core would not know of each other's pages.
    pub(super) fn add(&self, inode: CoreInode) -> Arc<CoreInode> {
        let mut table = locked(&self.table);
        if let Some(found) = table.find(&inode.metadata) {
            return found;
        }
        let inode = Arc::new(inode);
        let entry = Entry {
            inode: Arc::downgrade(&inode),
            kept: None,
            turn: table.turn,
        };
        let old = table.entries.insert(inode.metadata.ino, entry);
        if table.entries.len() > table.crowd {
            table
                .entries
                .retain(|_, entry| entry.inode.strong_count() > 0);
            table.crowd = (2 * table.entries.len()).max(1024);
        }
        drop(table);
        // Its pages may go with it, which takes a while.
        drop(old);
        inode
    }

    /// Has the file cached from now on, and kept.
    pub(super) fn begin_caching(
        &self,
        inode: &Arc<CoreInode>,
        volume: &VolumeShared,
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
                none => none.insert(self.make_cache(volume)?),
            };
            let pages = FileCache::new(cache, inode.map.size_bytes(), volume.block_bytes())?;
            let heard = Mutex::new(pages.error_cursor());
            let _ = inode.cached.set(Cached { pages, heard });
        }
        let mut table = locked(&self.table);
        if let Some(entry) = table.entries.get_mut(&inode.metadata.ino)
            && std::ptr::eq(entry.inode.as_ptr(), Arc::as_ptr(inode))
        {
            entry.kept = Some(Arc::clone(inode));
        }
        let gone = table.give_up_unused();
        drop(table);
        drop(gone);
        Ok(())
    }

    fn make_cache(&self, volume: &VolumeShared) -> Result<Cache> {
        let config = CacheConfig {
            limit_bytes: self.cache_bytes.unwrap_or_else(|| {
                let free = HugePageCount::now().map_or(0, |count| count.free);
                default_bytes(free).min(self.memory_limit_bytes / 2)
            }),
            background_percent: self.dirty_percent / 2,
            hard_percent: self.dirty_percent,
            // The deadlines of a command and its abort, for each try, and those of resets in between.
            wait_limit: volume
                .target
                .command_timeout
                .saturating_mul(8)
                .saturating_add(Duration::from_secs(60)),
            ..CacheConfig::default()
        };
        Cache::new(&volume.target.heap, config).map_err(|error| {
            error
                .during("make the page cache")
                .on_device(&*volume.target.name)
        })
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
        let table = locked(&self.table);
        let kept = table
            .entries
            .values()
            .filter_map(|entry| entry.kept.clone());
        kept.collect()
    }

    /// Those of them that may be dirty.
    pub(super) fn dirty(&self) -> Vec<Arc<CoreInode>> {
        let mut files = self.cached();
        files.retain(|file| file.may_be_dirty());
        files
    }
}

impl Table {
    fn find(&mut self, metadata: &Metadata) -> Option<Arc<CoreInode>> {
        self.turn += 1;
        let entry = self.entries.get_mut(&metadata.ino)?;
        let found = entry.inode.upgrade()?;
        if found.metadata != *metadata && !found.may_be_dirty() {
            return None;
        }
        entry.turn = self.turn;
        Some(found)
    }

    /// The quarter that was not opened for the longest time, where too many are kept without handles. To be dropped when
    /// the table is not locked any more.
    fn give_up_unused(&mut self) -> Vec<Arc<CoreInode>> {
        // Others get at one only through this table.
        let is_unused = |kept: &Arc<CoreInode>| Arc::strong_count(kept) == 1;
        let kept = |entry: &Entry| entry.kept.as_ref().is_some_and(is_unused);
        if self.entries.len() <= MOST_UNUSED {
            return Vec::new();
        }
        let mut unused: Vec<(u64, u64)> = self
            .entries
            .iter()
            .filter(|(_, entry)| kept(entry))
            .map(|(&ino, entry)| (entry.turn, ino))
            .collect();
        if unused.len() <= MOST_UNUSED {
            return Vec::new();
        }
        unused.sort_unstable();
        unused.truncate(MOST_UNUSED / 4);
        let mut gone = Vec::with_capacity(unused.len());
        for (_, ino) in unused {
            let clean = self
                .entries
                .get(&ino)
                .and_then(|entry| entry.kept.as_ref())
                .is_some_and(|inode| !inode.may_be_dirty());
            if clean {
                gone.extend(self.entries.remove(&ino).and_then(|entry| entry.kept));
            }
        }
        gone
    }
}

/// An eighth of the free hugepages; but 64 MiB, as far as that is no more than half of them. Without any it is
/// ordinary memory.
fn default_bytes(free_huge_pages: u64) -> usize {
    let free = usize::try_from(free_huge_pages)
        .unwrap_or(usize::MAX)
        .saturating_mul(HUGE_PAGE_BYTES);
    match free {
        0 => DEFAULT_CACHE_BYTES,
        free => (free / 8).max(DEFAULT_CACHE_BYTES.min(free / 2)),
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    use super::super::Timestamp;
    use super::*;

    fn inode(generation: u32) -> CoreInode {
        let time = Timestamp::default();
        let metadata = Metadata {
            ino: 131,
            generation,
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            project: 0,
            rdev: 0,
            len_bytes: 0,
            blocks_512: 0,
            block_bytes: 4096,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            xfs_flags: 0,
            xfs_flags2: 0,
        };
        CoreInode::new(metadata, FileMap::empty())
    }

    #[test]
    fn two_who_found_a_file_missing_and_add_it_have_one() {
        let inodes = Inodes::new(&MountOptions::default(), usize::MAX);
        let (first, second) = (inode(1), inode(1));
        assert!(inodes.find(&first.metadata).is_none());
        assert!(inodes.find(&second.metadata).is_none());
        let first = inodes.add(first);
        assert!(Arc::ptr_eq(&first, &inodes.add(second)));
        let found = inodes.find(&first.metadata);
        assert!(found.is_some_and(|found| Arc::ptr_eq(&first, &found)));
        let next = inodes.add(inode(2));
        assert!(!Arc::ptr_eq(&first, &next), "another file of that number");
        drop((first, next));
        assert!(inodes.find(&inode(2).metadata).is_none(), "nobody has it");
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

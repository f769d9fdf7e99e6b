//! A file in core: what all of its handles share.

use std::cmp::Ordering;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::Metadata;
use super::metadata::Timestamp;
use super::space_lock::SpaceLock;
use crate::cache::{Cache, ErrorCursor, FileCache};
use crate::error::Result;
use crate::iomap::Versions;
use crate::xfs::format::inode::InodeTimestamp;
use crate::xfs::{CommitTicket, FileMap, FileState, Ino, InodeId, MapChange, MapPart};

mod marks;

/// A file in core. Its number and generation say which file it is; all else may change.
#[derive(Debug)]
pub(super) struct CoreInode {
    pub(super) ino: u64,
    pub(super) generation: u32,
    maps: Versions<FileMap>,
    /// Extents of a part of the file may not be loaded.
    is_partial: AtomicBool,
    /// Mappings of maps with lower numbers may not be those of the file any more.
    valid_from: AtomicU64,
    /// Of the current map.
    size_bytes: AtomicU64,
    cached: OnceLock<CachedInode>,
    space: SpaceLock,
    /// A thread writes pages back to blocks without data that are larger than pages: see
    /// [`hold_unwritten`](crate::iomap::buffered::CachedOps::hold_unwritten). After the space.
    pub(super) unwritten: AtomicBool,
    /// Blocks past its end were allocated for it to grow.
    has_spare: AtomicBool,
    /// Its dirty pages may be of blocks without data on disk, or past its end there.
    needs_metadata: AtomicBool,
    /// Handles that programs have.
    users: AtomicUsize,
    /// Number of the checkpoint that has the newest change of its blocks or length; 0 for none.
    newest_change: AtomicU64,
    /// What operations have to look after.
    marks: AtomicU8,
    /// Writes leave its times as they are.
    has_fixed_times: bool,
    /// Locked while any of the above changes.
    state: Mutex<CoreState>,
}

#[derive(Debug)]
struct CoreState {
    metadata: Metadata,
    /// The part of the file whose blocks are being changed.
    changing: Option<MapChange>,
    /// The times of the file, where they are in no transaction yet.
    due: Option<InodeTimestamp>,
    /// The times may have been looked at since they were dated.
    is_seen: bool,
}

#[derive(Debug)]
struct CachedInode {
    pages: FileCache,
    /// The failures that a sync of the volume has told.
    heard: Mutex<ErrorCursor>,
}

impl CoreInode {
    pub(super) fn new(metadata: Metadata, map: FileMap) -> Self {
        let inode = Self {
            ino: metadata.ino,
            generation: metadata.generation,
            size_bytes: AtomicU64::new(map.size_bytes()),
            is_partial: AtomicBool::new(map.is_partial()),
            maps: Versions::new(map),
            valid_from: AtomicU64::new(0),
            cached: OnceLock::new(),
            space: SpaceLock::default(),
            unwritten: AtomicBool::new(false),
            has_spare: AtomicBool::new(false),
            needs_metadata: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            newest_change: AtomicU64::new(0),
            marks: AtomicU8::new(0),
            has_fixed_times: false,
            state: Mutex::new(CoreState {
                metadata,
                changing: None,
                due: None,
                is_seen: true,
            }),
        };
        inode.note_privileges(&metadata);
        inode
    }

    /// Which file it is.
    pub(super) fn id(&self) -> InodeId {
        InodeId {
            ino: Ino(self.ino),
            generation: self.generation,
        }
    }

    /// The number of its current map: it changes with each change of the map, and no other file
    /// ever has the same.
    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.maps.number()
    }

    /// Whether the mappings of the map with this number are still those of the file. Loading more
    /// extents makes a new map, and changes no mapping.
    #[inline]
    pub(super) fn is_valid(&self, number: u64) -> bool {
        number >= self.valid_from.load(Acquire)
    }

    /// Whether extents of a part of the file may not be loaded. Exact while its space is locked.
    #[inline]
    pub(super) fn is_partial(&self) -> bool {
        self.is_partial.load(Acquire)
    }

    /// Replaces the map by one with other mappings.
    fn replace_map(&self, map: FileMap) -> u64 {
        // First: no mapping of the old map is believed when the new one is there.
        self.valid_from.store(self.maps.number() + 1, Release);
        self.is_partial.store(map.is_partial(), Release);
        self.maps.replace(map)
    }

    /// Its map, in versions.
    #[inline]
    pub(super) fn maps(&self) -> &Versions<FileMap> {
        &self.maps
    }

    /// Locked while blocks are added, moved or freed.
    pub(super) fn space(&self) -> &SpaceLock {
        &self.space
    }

    /// Its metadata, as known now.
    pub(super) fn metadata(&self) -> Metadata {
        let mut state = locked(&self.state);
        self.date(&mut state);
        state.is_seen = true;
        self.with_len(state.metadata)
    }

    /// Metadata of the file as the disk has it, with the newer values in core: the length that the
    /// page cache has, and the times.
    pub(super) fn with_newer(&self, metadata: Metadata) -> Metadata {
        if self.has_fixed_times {
            return self.with_len(metadata);
        }
        let Metadata {
            mtime,
            ctime,
            has_privileges,
            ..
        } = self.metadata();
        self.with_len(Metadata {
            mtime,
            ctime,
            has_privileges,
            ..metadata
        })
    }

    fn with_len(&self, metadata: Metadata) -> Metadata {
        match self.is_longer_in_core() {
            true => Metadata {
                len_bytes: self.size_bytes(),
                ..metadata
            },
            false => metadata,
        }
    }

    /// The page cache's size is not less than that on disk, after a change that failed.
    pub(super) fn keep_disk_size(&self) {
        let _unchanged = locked(&self.state);
        if let Some(pages) = self.pages() {
            pages.grow(self.size_bytes.load(Acquire));
        }
    }

    /// The page cache's size is that on disk: nothing is dirty past it, and the space is locked.
    pub(super) fn take_disk_size(&self) {
        let _unchanged = locked(&self.state);
        if let Some(pages) = self.pages() {
            pages.set_size(self.size_bytes.load(Acquire));
        }
    }

    /// Bytes of the file as the disk has it.
    #[inline]
    pub(super) fn disk_bytes(&self) -> u64 {
        self.size_bytes.load(Acquire)
    }

    /// Whether the page cache has data past the end of the file as the disk has it.
    pub(super) fn is_longer_in_core(&self) -> bool {
        self.pages()
            .is_some_and(|pages| pages.size_bytes() > self.size_bytes.load(Acquire))
    }

    /// Bytes of the file, as known now: with those that only the page cache has.
    #[inline]
    pub(super) fn size_bytes(&self) -> u64 {
        match self.pages() {
            Some(pages) => pages.size_bytes(),
            None => self.size_bytes.load(Acquire),
        }
    }

    /// As [`CoreInode::read_again`], with these. Returns the map's number.
    #[cfg(test)]
    pub(super) fn replace(&self, metadata: Metadata, map: FileMap) -> u64 {
        self.set(&mut locked(&self.state), metadata, map)
    }

    /// Replaces metadata and map by what `read` reads, while no other change of the file comes
    /// between; a change of its blocks is over. Operations that begin from now on use the new ones,
    /// by whatever handle. The page cache's size follows where the map's changes; a size that grew
    /// in the cache before stays.
    ///
    /// Operations in flight go on with the map that they began with, so blocks that the new one
    /// does not have must not be given to another file before they have ended: see
    /// [`CoreInode::begin_change`].
    ///
    /// The page cache's pages are the caller's to change, while it keeps buffered writers of the
    /// file away: where data goes, once before, so that no dirty page has lost its blocks, and once
    /// after, because reads that began before may have brought old data. In the range of blocks
    /// that are taken away nothing is in writeback then, and no read that began before is believed.
    /// If blocks may be shared and the file is open for writing, `learn_sharing` comes before.
    pub(super) fn read_again(
        &self,
        read: impl FnOnce() -> Result<(Metadata, FileMap)>,
    ) -> Result<()> {
        let mut state = locked(&self.state);
        state.changing = None;
        let (metadata, map) = read()?;
        self.set(&mut state, metadata, map);
        Ok(())
    }

    /// Marks a part of the file, of whole blocks, for a change: until [`CoreInode::read_again`] or
    /// [`CoreInode::update`] operations that begin find a hole in the part that goes, and writes of
    /// the frozen part are refused, so that they wait for the space of the file. Returns the map's
    /// number, for [`CoreInode::is_quiet`].
    pub(super) fn begin_change(&self, change: MapChange) -> u64 {
        let mut state = locked(&self.state);
        let number = self.replace_map(self.maps.now().0.changing(&change));
        state.changing = Some(change);
        number
    }

    /// Takes over what `change` makes of a part of the file, while no other change of the file
    /// comes between. With `is_over`, a change that was begun is over.
    pub(super) fn update(
        &self,
        is_over: bool,
        change: impl FnOnce() -> Result<FileState>,
    ) -> Result<()> {
        self.update_map(is_over, |_| Ok((change()?, ())))
    }

    /// As [`CoreInode::update`]; `change` sees the map as it was, and has something to return.
    #[inline]
    pub(super) fn update_map<R>(
        &self,
        is_over: bool,
        change: impl FnOnce(&FileMap) -> Result<(FileState, R)>,
    ) -> Result<R> {
        self.update_locked(&mut locked(&self.state), is_over, change)
    }

    #[inline]
    fn update_locked<R>(
        &self,
        now: &mut CoreState,
        is_over: bool,
        change: impl FnOnce(&FileMap) -> Result<(FileState, R)>,
    ) -> Result<R> {
        let (map, _) = self.maps.now();
        let changed = change(&map);
        if is_over {
            now.changing = None;
        }
        let (mut state, value) = changed?;
        if let Some(changing) = &now.changing {
            state.mark(changing);
        }
        let before = self.size_bytes.load(Acquire);
        if map.has(&state) && before <= state.size_bytes {
            map.grow(state.size_bytes);
        } else {
            self.replace_map(map.with(&state));
        }
        self.set_size(before, state.size_bytes);
        now.metadata.len_bytes = state.size_bytes;
        now.metadata.blocks_512 = state.blocks_512;
        now.metadata.mtime = Timestamp::of(state.mtime);
        now.metadata.ctime = Timestamp::of(state.ctime);
        Self::show_due(now);
        Ok(value)
    }

    /// Takes over extents that were not loaded. For users of the file nothing changes; `read` reads
    /// them while no other change of the file comes between.
    pub(super) fn load(&self, read: impl FnOnce() -> Result<MapPart>) -> Result<()> {
        let state = locked(&self.state);
        let part = read()?;
        let mut map = self.maps.now().0.loaded(part);
        if let Some(change) = &state.changing {
            map = map.changing(change);
        }
        let is_partial = map.is_partial();
        self.maps.replace(map);
        self.is_partial.store(is_partial, Release);
        Ok(())
    }

    fn set(&self, state: &mut CoreState, metadata: Metadata, map: FileMap) -> u64 {
        let (before, after) = (self.size_bytes.load(Acquire), map.size_bytes());
        let number = self.replace_map(map);
        self.set_size(before, after);
        state.metadata = metadata;
        self.note_privileges(&state.metadata);
        Self::show_due(state);
        number
    }

    fn set_size(&self, before: u64, after: u64) {
        self.size_bytes.store(after, Release);
        if let Some(pages) = self.pages() {
            match after.cmp(&before) {
                Ordering::Greater => pages.grow(after),
                Ordering::Less => pages.set_size(after),
                Ordering::Equal => {}
            }
        }
    }

    /// Notes the transaction of a change of its blocks or length, before the change is in its map.
    pub(super) fn note_change(&self, ticket: CommitTicket) {
        self.newest_change.fetch_max(ticket.number(), AcqRel);
    }

    /// The newest transaction that was noted.
    #[inline]
    pub(super) fn newest_change(&self) -> Option<CommitTicket> {
        match self.newest_change.load(Acquire) {
            0 => None,
            number => Some(CommitTicket::of(number)),
        }
    }

    pub(super) fn users(&self) -> &AtomicUsize {
        &self.users
    }

    /// Whether writing its pages back changes metadata, as far as is known.
    pub(super) fn needs_metadata(&self) -> bool {
        self.needs_metadata.load(Acquire)
    }

    /// Notes that writing its pages back will change metadata.
    pub(super) fn note_needs_metadata(&self) {
        self.needs_metadata.store(true, Release);
    }

    /// Notes that blocks past the end of the file were allocated for it to grow.
    pub(super) fn note_spare(&self) {
        self.has_spare.store(true, SeqCst);
    }

    /// Whether that was noted.
    pub(super) fn has_spare(&self) -> bool {
        self.has_spare.load(Relaxed)
    }

    /// Whether that was noted since the last call.
    pub(super) fn take_spare(&self) -> bool {
        self.has_spare.swap(false, SeqCst)
    }

    /// Whether no direct operation is in flight that began before [`CoreInode::begin_change`]
    /// returned this number, so that it may still read or write blocks that were taken away. An
    /// operation of a handle that was leaked, or that the device was not cut off from, is in flight
    /// forever. Buffered I/O does not count: its writes to the blocks end before the caller of
    /// [`CoreInode::begin_change`] has invalidated their pages, and its reads from them are
    /// discarded.
    pub(super) fn is_quiet(&self, number: u64) -> bool {
        self.maps.is_quiet(number)
    }

    /// Replaces the metadata alone: mode, owner, times and flags; the map stays.
    pub(super) fn change_metadata<R>(&self, change: impl FnOnce(&mut Metadata) -> R) -> R {
        let mut state = locked(&self.state);
        let value = change(&mut state.metadata);
        self.note_privileges(&state.metadata);
        Self::show_due(&mut state);
        value
    }

    /// Has its pages cached from now on.
    pub(super) fn begin_caching(&self, cache: &Cache, block_bytes: u32) -> Result<()> {
        // So that the size does not change meanwhile.
        let _unchanged = locked(&self.state);
        let pages = FileCache::new(cache, self.size_bytes(), block_bytes)?;
        let heard = Mutex::new(pages.error_cursor());
        let _ = self.cached.set(CachedInode { pages, heard });
        self.note_cached();
        Ok(())
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

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

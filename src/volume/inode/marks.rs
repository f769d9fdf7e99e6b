//! What an operation on a file has to look after besides the data, in one word that costs a look on
//! the hot path: cached pages, privileges, the times.
//!
//! A write that changes neither blocks nor length of a file only *marks* its times, as POSIX has it
//! ("marked for update"). That is a look at the word, and a store where it is not marked yet: no
//! clock is read. It is done when the data is on the device, or in the page cache; a mark that was
//! made before could be taken while the old data is still there. A mark is *dated* when the times
//! are shown, when the last handle is closed, and when it is *noted*, in a transaction: before a
//! sync of all of the file, a sync of the volume and its close, and before changes that set times
//! themselves. A mark that cannot be noted stays. One that comes to the times that the file has is
//! none: see `clock.rs`.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use super::super::Metadata;
use super::super::clock::{now, now_after};
use super::super::metadata::Timestamp;
use super::{CoreInode, CoreState, locked};
use crate::cache::FileCache;
use crate::error::Result;
use crate::sys::heavy_barrier;
use crate::xfs::format::inode::InodeTimestamp;
use crate::xfs::{CommitTicket, FileMap, FileState, times_after};

/// It may have cached pages.
const CACHED: u8 = 1;
/// Before its content is changed, privileges have to be taken away.
const PRIVILEGED: u8 = 1 << 1;
/// It was written to since its times were dated. Of a file whose times stay, always.
const WRITTEN: u8 = 1 << 2;
/// Its times were dated ([`CoreState::due`]) and are in no transaction yet.
const DUE: u8 = 1 << 3;

impl CoreInode {
    /// Writes leave its times as they are: metadata may not be changed.
    pub(in super::super) fn with_fixed_times(mut self) -> Self {
        self.has_fixed_times = true;
        *self.marks.get_mut() |= WRITTEN;
        self
    }

    /// Whether a direct operation has to look for cached pages or privileges before it begins.
    #[inline(always)]
    pub(in super::super) fn needs_care(&self) -> bool {
        self.marks.load(Acquire) & (CACHED | PRIVILEGED) != 0
    }

    /// Whether nothing is to be done after a direct write: it is marked, and not cached.
    #[inline(always)]
    pub(in super::super) fn is_only_marked(&self) -> bool {
        self.marks.load(Acquire) == WRITTEN
    }

    /// Whether its content may not be changed before privileges were taken away.
    #[inline]
    pub(in super::super) fn has_privileges(&self) -> bool {
        self.marks.load(Acquire) & PRIVILEGED != 0
    }

    /// As its metadata has it, while that is locked.
    pub(super) fn note_privileges(&self, metadata: &Metadata) {
        match metadata.has_privileges {
            true => self.marks.fetch_or(PRIVILEGED, AcqRel),
            false => self.marks.fetch_and(!PRIVILEGED, AcqRel),
        };
    }

    pub(super) fn note_cached(&self) {
        self.marks.fetch_or(CACHED, AcqRel);
    }

    /// Marks the times after a write.
    #[inline]
    pub(in super::super) fn mark_written(&self) {
        if self.marks.load(Acquire) & WRITTEN == 0 {
            self.mark();
        }
    }

    #[cold]
    fn mark(&self) {
        self.marks.fetch_or(WRITTEN, Release);
    }

    /// Whether the times have a mark that is not noted.
    pub(in super::super) fn is_marked(&self) -> bool {
        let by_view = || self.pages().is_some_and(FileCache::is_written_by_view);
        !self.has_fixed_times && (self.marks.load(Acquire) & (WRITTEN | DUE) != 0 || by_view())
    }

    /// Dates a mark: the times of the file are those of now.
    pub(in super::super) fn date_mark(&self) {
        if self.is_marked() {
            self.date(&mut locked(&self.state));
        }
    }

    pub(super) fn date(&self, state: &mut CoreState) {
        let pages = self.pages();
        let by_view = pages.is_some_and(FileCache::is_written_by_view);
        let is_written = self.marks.load(Acquire) & WRITTEN != 0;
        if self.has_fixed_times || !(is_written || by_view) {
            return;
        }
        // First: the file is never seen without either.
        self.marks.fetch_or(DUE, AcqRel);
        self.marks.fetch_and(!WRITTEN, AcqRel);
        if let Some(pages) = pages {
            pages.forget_written_by_view();
            // A write that found the mark has its data in the cache before the clock is read.
            heavy_barrier();
        }
        let shown = (state.metadata.mtime, state.metadata.ctime);
        let due = state
            .due
            .replace(now_after(shown.1.on_disk(), state.is_seen));
        Self::show_due(state);
        if shown != (state.metadata.mtime, state.metadata.ctime) {
            state.is_seen = false;
        } else if due.is_none() {
            // Dated and noted since the clock went on.
            self.settle(state);
        }
    }

    /// Shows the times that are in no transaction yet.
    pub(super) fn show_due(state: &mut CoreState) {
        let Some(due) = state.due else { return };
        let metadata = &mut state.metadata;
        let shown = (metadata.mtime.on_disk(), metadata.ctime.on_disk());
        let (mtime, ctime) = times_after(shown, due);
        (metadata.mtime, metadata.ctime) = (Timestamp::of(mtime), Timestamp::of(ctime));
    }

    /// The times are in a transaction.
    fn settle(&self, state: &mut CoreState) {
        state.due = None;
        self.marks.fetch_and(!DUE, AcqRel);
    }

    /// Has a mark noted, by `note`, at the time that it is given; does nothing without one. Other
    /// threads that want it noted wait.
    pub(in super::super) fn note_mark(
        &self,
        note: impl FnOnce(InodeTimestamp) -> Result<FileState>,
    ) -> Result<()> {
        if !self.is_marked() {
            return Ok(());
        }
        let mut state = locked(&self.state);
        self.date(&mut state);
        let Some(due) = state.due else { return Ok(()) };
        let noted = note(due)?;
        self.settle(&mut state);
        state.metadata.mtime = Timestamp::of(noted.mtime);
        state.metadata.ctime = Timestamp::of(noted.ctime);
        Ok(())
    }

    /// As [`CoreInode::update_map`], of a change that sets the times to the one it is given: marks
    /// are noted with it.
    pub(in super::super) fn update_written(
        &self,
        change: impl FnOnce(&FileMap, InodeTimestamp) -> Result<(FileState, CommitTicket)>,
    ) -> Result<CommitTicket> {
        let mut state = locked(&self.state);
        if self.is_marked() {
            self.date(&mut state);
        }
        let ticket = self.update_locked(&mut state, false, |map| change(map, now()))?;
        if state.due.is_some() {
            self.settle(&mut state);
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::error::{Error, ErrorKind};

    const OLD: Timestamp = Timestamp {
        seconds: 5,
        nanoseconds: 0,
    };

    fn inode(has_privileges: bool) -> CoreInode {
        let metadata = Metadata {
            atime: OLD,
            mtime: OLD,
            ctime: OLD,
            has_privileges,
            ..Metadata::of_test(131, 1)
        };
        CoreInode::new(metadata, FileMap::empty())
    }

    fn failed() -> Error {
        Error::new(ErrorKind::Io, "the log could not be written")
    }

    #[test]
    fn a_mark_stays_until_it_is_noted() {
        let inode = inode(false);
        assert!(!inode.is_marked() && !inode.is_only_marked());
        inode.note_mark(|_| panic!("there is no mark")).unwrap();
        inode.mark_written();
        assert!(inode.is_marked() && inode.is_only_marked());
        let at = Cell::new(None);
        let fails = |due| {
            at.set(Some(due));
            Err(failed())
        };
        inode.note_mark(fails).unwrap_err();
        let first = at.get().unwrap();
        assert!(inode.is_marked() && !inode.is_only_marked());
        let shown = inode.metadata();
        assert_eq!(
            (shown.mtime, shown.ctime),
            (Timestamp::of(first), Timestamp::of(first))
        );
        assert_eq!(shown.atime, OLD);
        // It keeps its time, unless there is another write.
        inode.note_mark(fails).unwrap_err();
        assert_eq!(at.get(), Some(first));
        inode.mark_written();
        assert!(inode.metadata().mtime > shown.mtime, "they were looked at");
        inode.note_mark(fails).unwrap_err();
        assert!(at.get() > Some(first));
        // A change that sets the times itself, and fails.
        let changed = inode.update_written(|_, _| Err(failed()));
        changed.unwrap_err();
        assert!(inode.is_marked());
        // Metadata that was read from the disk does not hide it.
        inode.change_metadata(|metadata| (metadata.mtime, metadata.ctime) = (OLD, OLD));
        assert_eq!(Some(inode.metadata().mtime.on_disk()), at.get());
    }

    #[test]
    fn fixed_times_are_never_marked() {
        let inode = inode(true).with_fixed_times();
        assert!(inode.has_privileges() && inode.needs_care() && !inode.is_marked());
        inode.change_metadata(|metadata| metadata.has_privileges = false);
        assert!(!inode.has_privileges() && !inode.needs_care());
        assert!(inode.is_only_marked(), "no write has more to do");
        inode.mark_written();
        inode.note_mark(|_| panic!("there is no mark")).unwrap();
        assert_eq!(inode.metadata().mtime, OLD);
    }
}

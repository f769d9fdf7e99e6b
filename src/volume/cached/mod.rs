//! Buffered files: a thread's way through the page cache, and what reads, writes and syncs do on
//! it.

mod background;
mod buffered;
mod file;
mod ops;
mod size;
mod write;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam_utils::Backoff;

use super::Io;
use super::core::IoCore;
use super::file_shared::FileShared;
use super::inodes::{CoreInode, locked, not_buffered};
use super::shared::VolumeShared;
use crate::cache::{Cache, FileCache, Pressure};
use crate::error::Result;
use crate::iomap::buffered::{Buffered, ReadAhead, drop_clean};
use crate::iomap::direct::What;
use crate::target::engine::{EngineQueue, TargetEngine};
use crate::xfs::needs_extents;

pub(super) use background::Background;
pub(super) use buffered::BufferedIo;
use buffered::Reader;
pub use file::{Advice, RwFlags};
pub(super) use ops::{InodeOps, MetaCore};
pub(super) use size::{clear_pages, settle_pages};
pub(super) use write::{write, write_all};

/// Handles of files whose way of reading a thread remembers.
const READERS: usize = 32;
/// Bytes behind a read whose extents are loaded with its own.
const LOAD_AHEAD_BYTES: u64 = 1 << 20;
/// How long a writer looks in vain for something to write back, where too much is dirty.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a writer sleeps while enough is written back in the background for it to go on.
const MOMENT: Duration = Duration::from_micros(50);

impl BufferedIo {
    pub(super) fn new(volume: &VolumeShared) -> Result<Self> {
        let cache = volume.inodes.cache().ok_or_else(not_buffered)?;
        volume
            .background
            .yield_to(|| Self::on(&volume.target, &cache, TargetEngine::queue_or_share))
    }

    /// For reads of a file by one of its handles.
    #[inline]
    fn reader(&mut self, file: &FileShared) -> (&mut Buffered<EngineQueue>, &mut ReadAhead) {
        let advice = file.advice.load(Relaxed);
        if self.last.handle != file.id || self.last.advice != advice {
            self.find_reader(file.id, advice);
        }
        (&mut self.inner, &mut self.last.ahead)
    }

    #[cold]
    fn find_reader(&mut self, handle: u64, advice: u8) {
        if self.last.handle != handle {
            self.change_reader(handle);
        }
        if self.last.advice != advice || self.last.handle != handle {
            self.last = Reader {
                handle,
                advice,
                ahead: ReadAhead::new(file::advice_of(advice)),
            };
        }
    }

    /// Makes a handle's reader the last one, if it is remembered; else one that may be replaced.
    fn change_reader(&mut self, handle: u64) {
        let known = self
            .others
            .iter()
            .position(|reader| reader.handle == handle);
        let at = match known {
            Some(at) => at,
            None if self.others.len() < READERS - 1 => {
                self.others.push(Reader::default());
                self.others.len() - 1
            }
            None => {
                self.replace = (self.replace + 1) % self.others.len();
                self.replace
            }
        };
        std::mem::swap(&mut self.last, &mut self.others[at]);
    }
}

impl FileShared {
    /// Its pages, of a file that was opened buffered.
    #[inline]
    fn pages(&self) -> Result<&FileCache> {
        self.inode.pages().ok_or_else(not_buffered)
    }

    #[inline]
    fn core(&self) -> &Arc<CoreInode> {
        self.inode.core()
    }
}

/// Reads through the cache; fewer bytes only at the end of the file.
#[inline]
pub(super) fn read(file: &FileShared, io: &mut Io, buf: &mut [u8], offset: u64) -> Result<usize> {
    let pages = file.pages()?;
    let (inner, ahead) = io.buffered()?.reader(file);
    match inner.read_hit(pages, ahead, offset, buf) {
        (done, true) => Ok(done),
        (done, false) => read_on(file, io, buf, offset, done),
    }
}

#[inline(never)]
fn read_on(
    file: &FileShared,
    io: &mut Io,
    buf: &mut [u8],
    offset: u64,
    done: usize,
) -> Result<usize> {
    let pages = file.pages()?;
    let (buffered, mut ops) = io.cached(file.core())?;
    let (inner, ahead) = buffered.reader(file);
    match inner.read_on(pages, &mut ops, ahead, offset, buf, done) {
        Err(error) if needs_extents(&error) => read_loaded(file, io, buf, offset),
        other => other,
    }
}

/// As [`read`], after the extents of the range were loaded, and some that read-ahead needs.
#[cold]
fn read_loaded(file: &FileShared, io: &mut Io, buf: &mut [u8], offset: u64) -> Result<usize> {
    let end = offset.saturating_add(buf.len() as u64);
    let range = offset..end.saturating_add(LOAD_AHEAD_BYTES);
    io.run_loaded(file, &range, |io| {
        let pages = file.pages()?;
        let (buffered, mut ops) = io.cached(file.core())?;
        let (inner, ahead) = buffered.reader(file);
        inner.read(pages, &mut ops, ahead, offset, buf)
    })
}

/// Waits until less than the hard share of the cache is dirty, where files are written back in the
/// background; else writes files of the volume back until then. False when nothing got on.
fn write_others_back(io: &mut Io) -> Result<bool> {
    if wait_for_background(io.buffered()?.inner.cache()) {
        return Ok(true);
    }
    let mut first_error = None;
    let mut count = 0;
    for other in io.volume_shared().inodes.dirty() {
        let Some(pages) = other.pages() else { continue };
        let (buffered, mut ops) = io.cached(&other)?;
        let inner = &mut buffered.inner;
        if inner.cache().pressure() < Pressure::Hard {
            return Ok(true);
        }
        match inner.write_out(pages, &mut ops, 0..u64::MAX, usize::MAX) {
            Ok(pages) => count += pages,
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    if count > 0 {
        return Ok(true);
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    // Other threads are at it.
    let in_writeback = io.buffered()?.inner.cache().in_writeback() > 0;
    if in_writeback {
        std::thread::sleep(MOMENT);
    }
    Ok(in_writeback)
}

/// True when enough was written back in the background; false when it is for others to do that, by
/// now.
fn wait_for_background(cache: &Cache) -> bool {
    let backoff = Backoff::new();
    while cache.has_background() {
        if cache.pressure() < Pressure::Hard {
            return true;
        }
        if backoff.is_completed() {
            std::thread::sleep(MOMENT);
        } else {
            backoff.snooze();
        }
    }
    false
}

/// Makes a cached file durable; tells failures once to each handle.
pub(super) fn sync(file: &FileShared, io: &mut Io) -> Result<()> {
    let pages = file.pages()?;
    let mut heard = locked(&file.heard);
    let (buffered, mut ops) = io.cached(file.core())?;
    buffered
        .inner
        .sync(pages, &mut ops, 0..u64::MAX, &mut heard)
}

/// Writes all dirty pages of a file back.
#[cold]
pub(super) fn write_file_back(file: &FileShared, io: &mut Io) -> Result<()> {
    let Some(pages) = file.inode.pages() else {
        return Ok(());
    };
    let (buffered, mut ops) = io.cached(file.core())?;
    buffered.write_back(pages, &mut ops, 0..u64::MAX)
}

/// Makes all files durable.
pub(super) fn sync_volume(volume: &VolumeShared, io: &mut Io) -> Result<()> {
    let is_cached = volume.inodes.cache().is_some();
    if is_cached {
        for file in volume.inodes.dirty() {
            let (buffered, mut ops) = io.cached(&file)?;
            write_back(buffered, &file, &mut ops);
        }
    }
    io.free_spare();
    let noted = volume.note_all_times(&mut io.core);
    volume.fs.sync(&mut io.core)?;
    if is_cached {
        let mut files = volume.inodes.cached().into_iter();
        files.try_for_each(|file| file.check_errors())?;
    }
    noted
}

/// Writes all of a file back. What fails is kept for those who sync.
fn write_back(buffered: &mut BufferedIo, file: &CoreInode, ops: &mut InodeOps<'_>) {
    if let Some(pages) = file.pages() {
        let _ = buffered.inner.write_back(pages, ops, 0..u64::MAX);
    }
}

/// Writes files back with queues of its own.
fn write_files_back(volume: &VolumeShared, files: &[Arc<CoreInode>]) -> Result<()> {
    let mut buffered = BufferedIo::new(volume)?;
    let mut core = volume.background.yield_to(|| IoCore::new(&volume.target))?;
    for file in files {
        let mut ops = InodeOps::new(file, &volume.fs, MetaCore::Here(&mut core));
        write_back(&mut buffered, file, &mut ops);
    }
    buffered.inner.flush_device()
}

/// Writes back all that is dirty and flushes the device, with queues of its own: the volume is to
/// be closed, and has no other handles if this `is_last`. The first failure, also one from before
/// that no sync of the volume has told.
pub(super) fn write_all_back(volume: &VolumeShared, is_last: bool) -> Result<()> {
    let mut result = Ok(());
    if volume.inodes.cache().is_some() {
        let files = volume.inodes.cached();
        if files.iter().any(|file| file.may_be_dirty()) {
            result = write_files_back(volume, &files);
        }
        for file in files {
            result = result.and(file.check_errors());
        }
    }
    if volume.is_written.load(Relaxed) {
        let core = volume.background.yield_to(|| IoCore::new(&volume.target));
        // The filesystem is consistent whether or not all pages were written back.
        result = result.and(core.and_then(|mut core| {
            let freed = match is_last {
                true => free_spare_at_last(volume, &mut core),
                false => Ok(()),
            };
            let noted = volume.note_all_times(&mut core);
            volume.fs.sync(&mut core)?;
            freed.and(noted).and(volume.fs.clean_log(&mut core))
        }));
    }
    result
}

/// The last handle is dropped, and the flusher has ended: dirty pages are written back, and what
/// was changed of the filesystem is put in place. Failures are only logged.
pub(super) fn write_back_at_last(volume: &VolumeShared) {
    write_pages_at_last(volume);
    if !volume.fs.is_changed() && volume.inodes.marked().is_empty() {
        return;
    }
    let result = IoCore::new(&volume.target).and_then(|mut core| {
        let freed = free_spare_at_last(volume, &mut core);
        let noted = volume.note_all_times(&mut core);
        volume.fs.clean_log(&mut core).and(freed).and(noted)
    });
    if let Err(error) = result {
        tracing::error!(
            target_name = &*volume.target.name,
            %error,
            "the log could not be written when the volume was dropped: changes since the last sync are lost"
        );
    }
}

/// Frees the blocks past the ends of files that were allocated for them to grow: none is open.
fn free_spare_at_last(volume: &VolumeShared, core: &mut IoCore) -> Result<()> {
    let files = volume.inodes.take_spare();
    let freed = files
        .into_iter()
        .map(|file| volume.fs.free_spare(core, file, 0));
    // All of them, whatever becomes of one.
    freed.fold(Ok(()), Result::and)
}

fn write_pages_at_last(volume: &VolumeShared) {
    let dirty = volume.inodes.dirty();
    if dirty.is_empty() {
        return;
    }
    let result = write_files_back(volume, &dirty);
    let left = dirty.iter().filter(|file| file.may_be_dirty()).count();
    if left > 0 || result.is_err() {
        tracing::error!(
            target_name = &*volume.target.name,
            files = left.max(1),
            error = result.err().map(tracing::field::display),
            "not all that was written to files could be written back when the volume was dropped; it is lost"
        );
    }
}

/// Before direct I/O on a cached file. A write waits a while for mutable views of what it
/// overwrites where it `waits`.
#[cold]
pub(super) fn before_direct(
    file: &FileShared,
    io: &mut Io,
    what: What,
    (offset, len): (u64, usize),
    waits: bool,
) -> Result<()> {
    let pages = file.pages()?;
    let range = offset..offset.saturating_add(len as u64);
    match what {
        What::DeviceRead | What::DeviceWrite { .. } | What::Discard { .. } => Ok(()),
        What::Flush => {
            if pages.may_be_dirty() {
                let (buffered, mut ops) = io.cached(file.core())?;
                // Its failures are in the file's log.
                let _ = buffered.inner.write_back(pages, &mut ops, 0..u64::MAX);
            }
            pages.check_errors(&mut locked(&file.heard))
        }
        What::Read if !pages.may_be_dirty() => Ok(()),
        What::Read => {
            // A direct read ends where the disk says that the file does.
            let range = match file.inode.is_longer_in_core() {
                true => 0..u64::MAX,
                false => range,
            };
            let (buffered, mut ops) = io.cached(file.core())?;
            buffered.inner.before_direct_read(pages, &mut ops, range)
        }
        What::Write { .. } => {
            if waits {
                pages.await_views_mut(range.clone())?;
            } else {
                pages.check_views_mut(range.clone())?;
            }
            // After that: a view that ends makes its page dirty.
            if pages.may_be_dirty() {
                let (buffered, mut ops) = io.cached(file.core())?;
                buffered.inner.before_direct_write(pages, &mut ops, range)
            } else {
                drop_clean(pages, range)
            }
        }
    }
}

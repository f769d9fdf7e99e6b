//! Buffered files: a thread's way through the page cache, and what reads, writes and syncs do on
//! it.

mod background;
mod buffered;
mod file;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam_utils::Backoff;

use super::core::{IoCore, no_slot};
use super::inodes::{CoreInode, locked, not_buffered};
use super::shared::{FileShared, VolumeShared};
use super::{DmaBuf, Io};
use crate::cache::{BoundedWait, Cache, FileCache, Pressure};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::buffered::{Buffered, ReadAhead, drop_clean};
use crate::iomap::direct::{DirectRequest, What};
use crate::iomap::{IterFlags, Ops};
use crate::target::engine::{EngineQueue, TargetEngine};
use crate::xfs::FileOps;

pub(super) use background::Background;
pub(super) use buffered::BufferedIo;
use buffered::Reader;
pub use file::{Advice, RwFlags};

/// Handles of files whose way of reading a thread remembers.
const READERS: usize = 32;
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
    fn ops(&self) -> FileOps<'_> {
        FileOps::new(&self.inode.map)
    }
}

/// Reads through the cache; fewer bytes only at the end of the file.
#[inline]
pub(super) fn read(file: &FileShared, io: &mut Io, buf: &mut [u8], offset: u64) -> Result<usize> {
    let pages = file.pages()?;
    let (buffered, ahead) = io.buffered()?.reader(file);
    buffered.read(pages, &mut file.ops(), ahead, offset, buf)
}

/// Overwrites through the cache; fewer bytes where it came to what cannot be overwritten later than
/// at its first byte.
#[inline]
pub(super) fn write(file: &FileShared, io: &mut Io, data: &[u8], offset: u64) -> Result<usize> {
    let pages = file.pages()?;
    let left = pages.size_bytes().saturating_sub(offset);
    let want = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
    if want == 0 {
        if data.is_empty() {
            return Ok(0);
        }
        let refused = file
            .ops()
            .begin(offset, data.len() as u64, IterFlags::WRITE);
        return refused.map(|_| 0);
    }
    let written = write_within(file, io, &data[..want], offset);
    if file.options.dsync {
        // What a failed write did is durable as well, for it counts as done.
        let done = match &written {
            Ok(done) => *done as u64,
            Err(error) => error.bytes_done().unwrap_or(0),
        };
        let buffered = &mut io.buffered()?.inner;
        buffered.write_back(pages, &mut file.ops(), offset..offset + done)?;
        buffered.flush_device()?;
    }
    written
}

/// Writes inside of the file. Of nothing, it sees to it that not too much is dirty.
#[inline]
fn write_within(file: &FileShared, io: &mut Io, data: &[u8], offset: u64) -> Result<usize> {
    let pages = file.pages()?;
    let buffered = &mut io.buffered()?.inner;
    let written = buffered.write(pages, &mut file.ops(), offset, data)?;
    if written.throttled {
        return write_on(file, io, data, offset, written.bytes);
    }
    Ok(written.bytes)
}

/// Goes on with a write that stopped because too much is dirty.
#[cold]
fn write_on(
    file: &FileShared,
    io: &mut Io,
    data: &[u8],
    offset: u64,
    mut done: usize,
) -> Result<usize> {
    let pages = file.pages()?;
    let mut patience = BoundedWait::new(PATIENCE);
    let mut goes_on = true;
    while goes_on {
        let result = write_others_back(io).and_then(|got_on| {
            goes_on = got_on || patience.wait();
            let at = offset + done as u64;
            let buffered = &mut io.buffered()?.inner;
            buffered.write(pages, &mut file.ops(), at, &data[done..])
        });
        match result {
            Ok(written) => {
                done += written.bytes;
                if !written.throttled {
                    return Ok(done);
                }
            }
            Err(error) => return stopped(error, done),
        }
    }
    let error = Error::new(
        ErrorKind::Busy,
        "too much of the page cache is dirty, and others do not get it written back",
    );
    stopped(error, done)
}

/// The result of an operation that stopped after so many bytes. What cannot be overwritten ends a
/// write early; a failure is an error.
#[cold]
fn stopped(error: Error, done: usize) -> Result<usize> {
    if done > 0 && error.kind() == ErrorKind::NotOverwrite {
        return Ok(done);
    }
    Err(error.after_bytes(done))
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
        let buffered = &mut io.buffered()?.inner;
        if buffered.cache().pressure() < Pressure::Hard {
            return Ok(true);
        }
        let ops = &mut FileOps::new(&other.map);
        match buffered.write_out(pages, ops, 0..u64::MAX, usize::MAX) {
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

/// As [`write()`], and an error where not all of it can be written.
pub(super) fn write_all(file: &FileShared, io: &mut Io, data: &[u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < data.len() {
        // What stopped it is told by the next call.
        done += write(file, io, &data[done..], offset.saturating_add(done as u64))
            .map_err(|error| error.after_bytes(done))?;
    }
    Ok(())
}

/// Makes a cached file durable; tells failures once to each handle.
pub(super) fn sync(file: &FileShared, io: &mut Io) -> Result<()> {
    let pages = file.pages()?;
    let mut heard = locked(&file.heard);
    let buffered = &mut io.buffered()?.inner;
    buffered.sync(pages, &mut file.ops(), 0..u64::MAX, &mut heard)
}

/// Makes all files durable.
pub(super) fn sync_volume(volume: &VolumeShared, io: &mut Io) -> Result<()> {
    if volume.inodes.cache().is_some() {
        let buffered = &mut io.buffered()?.inner;
        for file in volume.inodes.dirty() {
            write_back(buffered, &file);
        }
        buffered.flush_device()?;
        let mut files = volume.inodes.cached().into_iter();
        return files.try_for_each(|file| file.check_errors());
    }
    flush(&mut io.core)
}

/// Makes durable what completed before.
fn flush(core: &mut IoCore) -> Result<()> {
    let flush = DirectRequest {
        what: What::Flush,
        source: None,
        offset: 0,
        buf: DmaBuf::default(),
        user_data: 0,
    };
    let ended = core.run(flush);
    let ended = ended.map_err(|rejected| rejected.error.unwrap_or_else(no_slot))?;
    ended.result.map(|_| ())
}

/// Writes all of a file back. What fails is kept for those who sync.
fn write_back(buffered: &mut Buffered<EngineQueue>, file: &CoreInode) {
    if let Some(pages) = file.pages() {
        let _ = buffered.write_back(pages, &mut FileOps::new(&file.map), 0..u64::MAX);
    }
}

/// Writes back all that is dirty and flushes the device, with queues of its own: the volume is to
/// be closed. The first failure, also one from before that no sync of the volume has told.
pub(super) fn write_all_back(volume: &VolumeShared) -> Result<()> {
    let mut result = Ok(());
    if volume.inodes.cache().is_some() {
        let files = volume.inodes.cached();
        if files.iter().any(|file| file.may_be_dirty()) {
            result = BufferedIo::new(volume).map(|mut io| {
                files
                    .iter()
                    .for_each(|file| write_back(&mut io.inner, file));
            });
        }
        for file in files {
            result = result.and(file.check_errors());
        }
    }
    if volume.is_written.load(Relaxed) {
        let core = volume.background.yield_to(|| IoCore::new(&volume.target));
        result = result.and(core.and_then(|mut core| flush(&mut core)));
    }
    result
}

/// The last handle is dropped, and the flusher has ended: dirty pages are written back. Failures
/// are only logged.
pub(super) fn write_back_at_last(volume: &VolumeShared) {
    let dirty = volume.inodes.dirty();
    if dirty.is_empty() {
        return;
    }
    let result = BufferedIo::new(volume).and_then(|mut io| {
        for file in &dirty {
            write_back(&mut io.inner, file);
        }
        io.inner.flush_device()
    });
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
    let ops = &mut file.ops();
    match what {
        What::DeviceRead | What::DeviceWrite => Ok(()),
        What::Flush => {
            if pages.may_be_dirty() {
                // Its failures are in the file's log.
                let _ = io.buffered()?.inner.write_back(pages, ops, 0..u64::MAX);
            }
            pages.check_errors(&mut locked(&file.heard))
        }
        What::Read if !pages.may_be_dirty() => Ok(()),
        What::Read => io.buffered()?.inner.before_direct_read(pages, ops, range),
        What::Write { .. } => {
            if waits {
                pages.await_views_mut(range.clone())?;
            } else {
                pages.check_views_mut(range.clone())?;
            }
            // After that: a view that ends makes its page dirty.
            if pages.may_be_dirty() {
                io.buffered()?.inner.before_direct_write(pages, ops, range)
            } else {
                drop_clean(pages, range)
            }
        }
    }
}

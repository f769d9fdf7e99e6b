//! A thread's way to a volume: its queue pair, its memory, its operations in flight.

use std::fmt;
use std::sync::Arc;

use super::allocating::Handing;
use super::cached::{BufferedIo, InodeOps, MetaCore};
use super::core::{IoCore, after_direct, operation_name, request_name};
use super::extents::is_for_extents;
use super::file_shared::FileShared;
use super::inodes::CoreInode;
use super::shared::VolumeShared;
use super::{CacheStats, DmaBuf, File, Io, cached};
use crate::block::Queue;
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::{DirectRequest, Ended, Hear, Of, OperationKind, Rejected, What};

/// An operation that has ended.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let file = volume.open_file(&mut io, "/data")?;
/// let buf = io.alloc(4096)?;
/// io.submit_read(&file, 0, buf, 7)?;
/// while io.outstanding() > 0 {
///     io.poll(16, |done| println!("operation {}: {:?}", done.user_data, done.result));
///     io.relax();
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Done {
    /// What it was submitted with.
    pub user_data: u64,
    /// Its buffer; empty for a sync, and where the device is gone without being cut off from
    /// memory.
    pub buf: DmaBuf,
    /// Bytes read (fewer than asked only at the end of the file) or written (all of them).
    /// Otherwise the error, with the bytes that were done before it, contiguous from the offset
    /// ([`Error::bytes_done`]).
    pub result: Result<usize>,
}

/// Why an operation was not taken.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let file = volume.open_file(&mut io, "/data")?;
/// use xtent::volume::SubmitReason;
/// let submitted = io.submit_sync(&file, 0);
/// let is_full = submitted.is_err_and(|error| matches!(error.reason, SubmitReason::Full));
/// # let _ = is_full;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum SubmitReason {
    /// As many operations are in flight as this handle has room for: poll, then submit again.
    Full,
    /// It will never be taken as it is.
    Error(Error),
}

/// An operation that was not taken, with its buffer.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let file = volume.open_file(&mut io, "/data")?;
/// use xtent::volume::SubmitReason;
/// let buf = io.alloc(4096)?;
/// if let Err(error) = io.submit_read(&file, 0, buf, 0) {
///     match error.reason {
///         SubmitReason::Full => println!("poll first; the buffer is {:?}", error.buf.len()),
///         SubmitReason::Error(error) => return Err(error),
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct SubmitError {
    /// The buffer, unchanged.
    pub buf: DmaBuf,
    /// Why.
    pub reason: SubmitReason,
}

impl fmt::Debug for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            SubmitReason::Full => {
                f.write_str("as many operations are in flight as there is room for")
            }
            SubmitReason::Error(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SubmitError {}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        match error.reason {
            SubmitReason::Full => Error::new(ErrorKind::WouldBlock, error.to_string()),
            SubmitReason::Error(error) => error,
        }
    }
}

impl Io {
    pub(super) fn new(volume: &Arc<VolumeShared>) -> Result<Self> {
        let core = volume.background.yield_to(|| IoCore::new(&volume.target))?;
        Ok(Self {
            depth: volume.target.queue_depth,
            volume: Arc::clone(volume),
            buffered: None,
            always_ready: super::event::always_ready()?,
            core,
        })
    }

    pub(super) fn volume_shared(&self) -> &Arc<VolumeShared> {
        &self.volume
    }

    #[inline]
    pub(super) fn check_volume(&self, volume: &Arc<VolumeShared>) -> Result<()> {
        if Arc::ptr_eq(volume, &self.volume) {
            return Ok(());
        }
        Err(other_volume())
    }

    #[inline]
    pub(super) fn check_read(&self, file: &File) -> Result<()> {
        self.check_volume(&file.volume)?;
        if file.shared.options.read {
            return Ok(());
        }
        Err(not_opened_for("reading"))
    }

    #[inline]
    pub(super) fn check_write(&self, file: &File) -> Result<()> {
        self.check_volume(&file.volume)?;
        if file.shared.options.write {
            return Ok(());
        }
        Err(not_opened_for("writing"))
    }

    /// For the start of a call with several operations in flight: ends those of a reader that was
    /// leaked.
    #[inline]
    pub(super) fn reclaim_kept(&mut self) {
        if self.core.direct.to_take() != 0 {
            self.core.reclaim_kept();
        }
    }

    /// This thread's way through the page cache.
    #[inline]
    pub(super) fn buffered(&mut self) -> Result<&mut BufferedIo> {
        if self.buffered.is_none() {
            self.buffered = Some(Box::new(BufferedIo::new(&self.volume)?));
        }
        self.buffered.as_deref_mut().ok_or_else(no_queue)
    }

    /// This thread's way through the page cache, and a file's mappings for it.
    #[inline]
    pub(super) fn cached<'a>(
        &'a mut self,
        inode: &'a Arc<CoreInode>,
    ) -> Result<(&'a mut BufferedIo, InodeOps<'a>)> {
        self.buffered()?;
        let Self {
            volume,
            core,
            buffered,
            ..
        } = self;
        let ops = InodeOps::new(inode, &volume.fs, MetaCore::Here(core));
        buffered
            .as_deref_mut()
            .map(|buffered| (buffered, ops))
            .ok_or_else(no_queue)
    }

    /// To be called before direct I/O. Of a file that is cached, writes dirty pages to the device
    /// and, before a write, drops the range from the cache. Before a write, takes privileges away.
    #[inline]
    pub(super) fn before_direct(
        &mut self,
        file: &File,
        what: What,
        offset: u64,
        len: usize,
    ) -> Result<()> {
        if !file.shared.inode.needs_care() {
            return Ok(());
        }
        self.take_care(&file.shared, what, (offset, len), true)
    }

    /// As [`Io::before_direct`], without a wait for mutable views.
    #[inline]
    fn before_submit(&mut self, file: &File, what: What, offset: u64, len: usize) -> Result<()> {
        if !file.shared.inode.needs_care() {
            return Ok(());
        }
        self.take_care(&file.shared, what, (offset, len), false)
    }

    #[cold]
    fn take_care(
        &mut self,
        file: &FileShared,
        what: What,
        range: (u64, usize),
        waits: bool,
    ) -> Result<()> {
        if matches!(what, What::Write { .. }) && range.1 > 0 {
            self.remove_privileges(&file.inode)?;
        }
        match file.inode.pages() {
            Some(_) => cached::before_direct(file, self, what, range, waits),
            None => Ok(()),
        }
    }

    /// Page cache counters of the volume, with all operations of this thread; other threads add
    /// theirs now and then. `None` when no buffered file was opened yet.
    pub fn cache_stats(&mut self) -> Option<CacheStats> {
        if let Some(buffered) = &mut self.buffered {
            buffered.flush_tally();
        }
        self.volume.inodes.stats()
    }

    /// Memory must be reachable by the device: another heap's may not be.
    #[inline]
    pub(super) fn check_memory(&self, buf: &DmaBuf) -> Result<()> {
        if self.core.heap.owns(buf) {
            return Ok(());
        }
        Err(foreign_memory())
    }

    #[inline]
    #[expect(clippy::unused_self, reason = "reads as the maker of a request")]
    pub(super) fn request<'a>(
        &self,
        file: &'a File,
        what: What,
        offset: u64,
        buf: DmaBuf,
        user_data: u64,
    ) -> DirectRequest<'a, Arc<FileShared>> {
        DirectRequest {
            what,
            source: Some(&file.shared),
            offset,
            buf,
            user_data,
        }
    }

    /// A zeroed buffer for direct I/O: any length, aligned to 4 KiB. It may be used with any `Io`
    /// of the same volume.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfMemory`].
    pub fn alloc(&self, len_bytes: usize) -> Result<DmaBuf> {
        self.core.alloc(len_bytes)
    }

    /// What offsets and lengths of direct I/O are multiples of, in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.core.block_bytes
    }

    /// Operations that can be in flight at once.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Starts a read of `buf.len()` bytes at `offset`. It ends at a later [`Io::poll`].
    ///
    /// # Errors
    /// [`SubmitError`] with the buffer; nothing was started then.
    #[inline]
    pub fn submit_read(
        &mut self,
        file: &File,
        offset: u64,
        buf: DmaBuf,
        user_data: u64,
    ) -> Result<(), SubmitError> {
        if let Err(error) = self.check_read(file) {
            return Err(refused(file, buf, error, "read", offset));
        }
        self.submit(file, What::Read, offset, buf, user_data)
    }

    /// Starts a write of `buf.len()` bytes at `offset`. It ends at a later [`Io::poll`]. Where the
    /// file has no blocks there, they are allocated now, which may wait for metadata.
    ///
    /// # Errors
    /// As [`File::write_dma_at`], in a [`SubmitError`] with the buffer; nothing was started then.
    /// [`ErrorKind::Busy`] at once while a mutable view of a page of the range is lent.
    #[inline]
    pub fn submit_write(
        &mut self,
        file: &File,
        offset: u64,
        buf: DmaBuf,
        user_data: u64,
    ) -> Result<(), SubmitError> {
        if let Err(error) = self.check_write(file) {
            return Err(refused(file, buf, error, "write", offset));
        }
        self.submit(file, file.plain_write(), offset, buf, user_data)
    }

    /// Starts making durable what was completed before, as [`File::sync_data`]. It ends at a later
    /// [`Io::poll`]. Where metadata was changed it waits for the log to be written.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was started then.
    pub fn submit_sync(&mut self, file: &File, user_data: u64) -> Result<(), SubmitError> {
        let none = DmaBuf::default();
        let checked = self
            .check_volume(&file.volume)
            .and_then(|()| self.before_direct(file, What::Flush, 0, 0))
            .and_then(|()| self.log_changes());
        if let Err(error) = checked {
            return Err(refused(file, none, error, "sync", 0));
        }
        self.submit(file, What::Flush, 0, none, user_data)
    }

    /// Before a sync that is only submitted: writes the log, which is waited for.
    fn log_changes(&mut self) -> Result<()> {
        if !self.volume.fs.has_unlogged() {
            return Ok(());
        }
        self.volume.fs.sync(&mut self.core)
    }

    #[inline(always)]
    fn submit(
        &mut self,
        file: &File,
        what: What,
        offset: u64,
        buf: DmaBuf,
        user_data: u64,
    ) -> Result<(), SubmitError> {
        if self.outstanding() >= self.depth {
            return Err(full(buf));
        }
        if let Err(error) = self.check_memory(&buf) {
            return Err(refused(file, buf, error, "use memory for I/O", offset));
        }
        if what != What::Flush
            && let Err(error) = self.before_submit(file, what, offset, buf.len())
        {
            return Err(refused(file, buf, error, "write cached pages back", offset));
        }
        let request = self.request(file, what, offset, buf, user_data);
        match self
            .core
            .direct
            .submit_simple(&mut self.core.queue, request)
        {
            Ok(()) => {
                if matches!(what, What::Write { dsync: true, .. }) {
                    self.log_overwritten(file);
                }
                Ok(())
            }
            Err(request) => self.submit_in_full(file, request),
        }
    }

    #[cold]
    fn log_overwritten(&mut self, file: &File) {
        // A failure shuts the filesystem down, and the next sync tells it.
        let _ = self.log_file(&file.shared);
    }

    /// As [`Io::submit`], of operations other than those of one chain. Where a write needs blocks
    /// it has them allocated.
    #[cold]
    #[inline(never)]
    fn submit_in_full(
        &mut self,
        file: &File,
        request: DirectRequest<'_, Arc<FileShared>>,
    ) -> Result<(), SubmitError> {
        let (what, offset, user_data) = (request.what, request.offset, request.user_data);
        let IoCore { direct, queue, .. } = &mut self.core;
        let mut started = direct.submit_in_full(queue, request);
        if let Err(rejected) = started {
            started = match is_for_extents(&rejected) {
                true => {
                    self.start_loaded(file, rejected, (what, offset, user_data), |core, again| {
                        core.direct.submit_in_full(&mut core.queue, again)
                    })
                }
                false => Err(rejected),
            };
        }
        let rejected = match started {
            Ok(()) => {
                if matches!(what, What::Write { dsync: true, .. }) {
                    self.log_overwritten(file);
                }
                return Ok(());
            }
            Err(rejected) if rejected.needs_blocks(what) => rejected,
            Err(rejected) => return Err(rejected_as(file, rejected, what, offset)),
        };
        let buf = rejected.buf;
        let end = offset.saturating_add(buf.len() as u64);
        match self.start_allocating(file, buf, (offset, end), Handing::Polled(user_data)) {
            Ok(_) => Ok(()),
            Err(rejected) => Err(rejected_as(file, rejected, what, offset)),
        }
    }

    /// Tells the device of what was submitted, and hands every operation that has ended to `done`,
    /// at most `budget` of them; returns how many. Never waits, but for the metadata of writes that
    /// needed blocks, and the log where these are to be durable. If `done` panics, the operation
    /// that it was called with counts as handed over, and the handle stays usable.
    #[inline]
    pub fn poll(&mut self, budget: usize, done: impl FnMut(Done)) -> usize {
        let volume = &*self.volume;
        let IoCore { direct, queue, .. } = &mut self.core;
        let mut callback = Callback { done, volume };
        let count = direct.poll_queue(queue, budget, &mut callback);
        if !direct.is_due() {
            return count;
        }
        let Callback { done, .. } = callback;
        self.poll_rest(budget, count, done)
    }

    /// The rest of a poll: operations that wait for room go on, and of writes that needed blocks
    /// the file is changed, which may wait for the log.
    #[cold]
    #[inline(never)]
    fn poll_rest(&mut self, budget: usize, mut count: usize, mut done: impl FnMut(Done)) -> usize {
        let volume = &*self.volume;
        let IoCore { direct, queue, .. } = &mut self.core;
        let mut callback = Callback {
            done: &mut done,
            volume,
        };
        count += direct.go_on(queue, budget - count, &mut callback);
        if self.end_writes() > 0 {
            let volume = &*self.volume;
            let mut callback = Callback {
                done: &mut done,
                volume,
            };
            count += self.core.direct.drain(budget - count, &mut callback);
        }
        count
    }

    /// Operations submitted and not yet handed over.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.core.direct.to_hand_over()
    }

    /// To be called between polls that found nothing, by a caller with nothing else to do. Unless
    /// the volume was opened for polling ([`crate::target::TargetOptions::wait`]) it may sleep
    /// here, while operations are in flight, until one may have ended.
    #[inline]
    pub fn relax(&mut self) {
        self.core.queue.relax();
    }
}

/// Of [`Io::poll`].
struct Callback<'a, F> {
    done: F,
    volume: &'a VolumeShared,
}

impl<F: FnMut(Done)> Hear<Arc<FileShared>> for Callback<'_, F> {
    #[inline(always)]
    fn hear(&mut self, ended: Ended, of: Of<'_, Arc<FileShared>>) {
        after_direct(&ended, &of);
        let result = match ended.result {
            Ok(n) => Ok(n),
            Err(error) => Err(explained(
                self.volume,
                error.at_offset(ended.offset),
                ended.kind,
                &of,
            )),
        };
        (self.done)(Done {
            user_data: ended.user_data,
            buf: ended.buf,
            result,
        });
    }
}

#[cold]
#[inline(never)]
fn explained(
    volume: &VolumeShared,
    error: Error,
    kind: OperationKind,
    of: &Of<'_, Arc<FileShared>>,
) -> Error {
    let path = of.source().map_or(&[][..], |file| &file.path);
    volume.explain(error, operation_name(kind), path)
}

#[cold]
fn full(buf: DmaBuf) -> SubmitError {
    SubmitError {
        buf,
        reason: SubmitReason::Full,
    }
}

#[cold]
fn refused(
    file: &File,
    buf: DmaBuf,
    error: Error,
    operation: &'static str,
    offset: u64,
) -> SubmitError {
    SubmitError {
        buf,
        reason: SubmitReason::Error(file.explain(error, operation, offset)),
    }
}

#[cold]
fn rejected_as(file: &File, rejected: Rejected, what: What, offset: u64) -> SubmitError {
    match rejected.error {
        Some(error) => refused(file, rejected.buf, error, request_name(what), offset),
        None => full(rejected.buf),
    }
}

#[cold]
fn no_queue() -> Error {
    Error::new(ErrorKind::OutOfMemory, "no queue for buffered I/O")
}

#[cold]
fn other_volume() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "the Io belongs to another volume: take one from the volume that the file is of",
    )
}

#[cold]
fn not_opened_for(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("the file was not opened for {what}"),
    )
}

#[cold]
fn foreign_memory() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "the buffer is not of this volume: take it from Io::alloc",
    )
}

//! The part of an [`super::Io`] that needs no filesystem: queue, operations, bounce memory,
//! metadata reads and writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::file_shared::FileShared;
use crate::block::Queue;
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::buffered::drop_stale;
use crate::iomap::direct::{
    Direct, DirectRequest, Ended, Of, OperationKind, OperationToken, Rejected, What,
};
use crate::mem::{DmaBuf, Heap};
use crate::target::BUFFER_ALIGN_BYTES;
use crate::target::engine::{EngineOptions, EngineQueue};
use crate::target::shared::TargetShared;
use crate::xfs::MetaIo;

/// Size of one bounce buffer: large enough that a command a piece keeps a fast disk busy.
pub(super) const BOUNCE_BYTES: usize = 256 << 10;
/// Bounce buffers in flight at once.
pub(super) const BOUNCE_COUNT: usize = 8;
/// Slots beyond the caller's depth: blocking calls go on although that is used up.
const RESERVED_SLOTS: usize = BOUNCE_COUNT + 2;
/// One thread's queue on a target and the operations on it.
#[derive(Debug)]
pub(super) struct IoCore {
    pub(super) queue: EngineQueue,
    pub(super) direct: Direct<Arc<FileShared>>,
    pub(super) heap: Heap,
    pub(super) target: Arc<TargetShared>,
    pub(super) block_bytes: u32,
    /// Bounce buffers at rest.
    spare: Vec<DmaBuf>,
    patience: Duration,
}

impl IoCore {
    pub(super) fn new(target: &Arc<TargetShared>) -> Result<Self> {
        let queue = target
            .engine
            .queue_or_share(EngineOptions {
                depth: target.queue_depth,
                max_segments: 1,
                timeout: target.command_timeout,
                read_only: target.info.read_only,
                wait: target.wait,
                range: target.range,
            })
            .map_err(|error| error.during("open a queue").on_device(&*target.name))?;
        let limits = *queue.limits();
        Ok(Self {
            direct: Direct::new(target.queue_depth + RESERVED_SLOTS, &limits),
            queue,
            heap: target.heap.clone(),
            target: Arc::clone(target),
            block_bytes: limits.block_bytes,
            spare: Vec::with_capacity(BOUNCE_COUNT),
            patience: target
                .command_timeout
                .saturating_add(Duration::from_secs(10)),
        })
    }

    pub(super) fn alloc(&self, len_bytes: usize) -> Result<DmaBuf> {
        self.heap
            .alloc(len_bytes, BUFFER_ALIGN_BYTES)
            .map_err(|error| {
                error
                    .during("allocate DMA memory")
                    .on_device(&*self.target.name)
            })
    }

    /// A bounce buffer, at rest or new. To be given back with [`IoCore::rest`].
    pub(super) fn bounce(&mut self) -> Result<DmaBuf> {
        match self.spare.pop() {
            Some(buf) => Ok(buf),
            None => self.alloc(BOUNCE_BYTES),
        }
    }

    /// Takes a bounce buffer back.
    pub(super) fn rest(&mut self, buf: DmaBuf) {
        if buf.len() == BOUNCE_BYTES && self.spare.len() < BOUNCE_COUNT {
            self.spare.push(buf);
        }
    }

    /// Runs one operation to its end; other operations go on meanwhile.
    #[inline]
    pub(super) fn run(
        &mut self,
        request: DirectRequest<'_, Arc<FileShared>>,
    ) -> Result<Ended, Rejected> {
        let kept = self.submit_kept(request)?;
        // The device may still have the memory: it is not given back.
        self.wait(kept)
            .map_err(|error| Rejected::error(error, DmaBuf::default()))
    }

    /// Starts an operation that is waited for. Blocking calls have slots of their own, so there is
    /// room.
    #[inline]
    pub(super) fn submit_kept(
        &mut self,
        request: DirectRequest<'_, Arc<FileShared>>,
    ) -> Result<OperationToken, Rejected> {
        self.direct
            .submit_kept(&mut self.queue, request)
            .map_err(|rejected| Rejected {
                error: rejected.error.or_else(|| Some(no_slot())),
                ..rejected
            })
    }

    /// Waits for a kept operation that is no write to allocated blocks. The engine's deadlines see
    /// to it that it ends.
    #[inline]
    pub(super) fn wait(&mut self, kept: OperationToken) -> Result<Ended> {
        let mut idle = 0;
        loop {
            if let Some(ended) = self.look_after(kept, &mut idle)? {
                return Ok(ended);
            }
        }
    }

    /// One turn of a wait for a kept operation; `idle` counts those in which nothing was in flight.
    #[inline]
    pub(super) fn look_after(
        &mut self,
        kept: OperationToken,
        idle: &mut u32,
    ) -> Result<Option<Ended>> {
        let progress = self.direct.progress(&mut self.queue);
        let ended = self.direct.take(kept, after_any);
        if ended.is_none() && progress == 0 {
            self.queue.relax();
            if self.queue.outstanding() == 0 {
                *idle += 1;
                if *idle > 10_000 {
                    return Err(lost());
                }
            }
        }
        Ok(ended)
    }

    /// Reads device bytes into ordinary memory, in pieces of a bounce buffer.
    fn read_device(&mut self, addr_bytes: u64, to: &mut [u8]) -> Result<()> {
        let mut at = addr_bytes;
        for piece in to.chunks_mut(BOUNCE_BYTES) {
            let buf = self.piece(piece.len())?;
            let buf = self.run_on_device(What::DeviceRead, at, buf)?;
            piece.copy_from_slice(&buf[..piece.len()]);
            at = at.saturating_add(piece.len() as u64);
            self.rest(buf);
        }
        Ok(())
    }

    /// Writes ordinary memory to the device, in pieces of a bounce buffer. With `dsync` it is
    /// durable when this returns.
    fn write_device(&mut self, addr_bytes: u64, from: &[u8], dsync: bool) -> Result<()> {
        let mut at = addr_bytes;
        for piece in from.chunks(BOUNCE_BYTES) {
            let mut buf = self.piece(piece.len())?;
            buf[..piece.len()].copy_from_slice(piece);
            let buf = self.run_on_device(What::DeviceWrite { dsync }, at, buf)?;
            at = at.saturating_add(piece.len() as u64);
            self.rest(buf);
        }
        Ok(())
    }

    /// DMA memory of this length, at most that of a bounce buffer.
    fn piece(&mut self, len_bytes: usize) -> Result<DmaBuf> {
        if len_bytes == BOUNCE_BYTES {
            self.bounce()
        } else {
            self.alloc(len_bytes)
        }
    }

    /// Runs one operation on the device itself, and returns its memory.
    fn run_on_device(&mut self, what: What, addr_bytes: u64, buf: DmaBuf) -> Result<DmaBuf> {
        let request = DirectRequest {
            what,
            source: None,
            offset: addr_bytes,
            buf,
            user_data: 0,
        };
        let ended = self
            .run(request)
            .map_err(|rejected| rejected.error.unwrap_or_else(no_slot))?;
        ended.result?;
        Ok(ended.buf)
    }
}

/// After a direct write, whether it went well or not: the times of the file are marked, and what
/// was read into the page cache meanwhile goes.
#[inline(always)]
pub(super) fn after_direct(ended: &Ended, of: &Of<'_, Arc<FileShared>>) {
    if ended.kind == OperationKind::Write
        && let Some(file) = of.source()
        && !file.inode.is_only_marked()
    {
        after_write(file, ended.offset, ended.buf.len(), ended.is_noted);
    }
}

/// [`after_direct`] of an operation that is not polled.
fn after_any(ended: &Ended, of: &Of<'_, Arc<FileShared>>) {
    after_direct(ended, of);
}

#[cold]
fn after_write(file: &FileShared, offset: u64, len: usize, is_noted: bool) {
    if !is_noted {
        file.inode.mark_written();
    }
    if let Some(pages) = file.inode.pages() {
        // Without its buffer it is not known how far it went.
        let end = match len {
            0 => u64::MAX,
            len => offset.saturating_add(len as u64),
        };
        drop_stale(pages, offset..end);
    }
}

/// The operation's name in messages.
pub(super) fn operation_name(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Read | OperationKind::DeviceRead => "read",
        OperationKind::Write | OperationKind::DeviceWrite => "write",
        OperationKind::Flush => "sync",
        OperationKind::Discard => "discard",
    }
}

/// The operation's name in messages, of one that was not started.
pub(super) fn request_name(what: What) -> &'static str {
    match what {
        What::Read | What::DeviceRead => "read",
        What::Write { .. } | What::DeviceWrite { .. } => "write",
        What::Flush => "sync",
        What::Discard { .. } => "discard",
    }
}

#[cold]
pub(super) fn no_slot() -> Error {
    Error::new(
        ErrorKind::WouldBlock,
        "every operation slot of this thread is in use",
    )
}

#[cold]
fn lost() -> Error {
    Error::new(
        ErrorKind::DeviceGone,
        "the engine lost an operation and has nothing in flight",
    )
}

impl MetaIo for IoCore {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.read_device(addr_bytes, buf)
            .map_err(|error| error.at_offset(addr_bytes).on_device(&*self.target.name))
    }

    fn write_at(&mut self, addr_bytes: u64, buf: &[u8]) -> Result<()> {
        self.write_device(addr_bytes, buf, false)
            .map_err(|error| error.at_offset(addr_bytes).on_device(&*self.target.name))
    }

    fn write_durable_at(&mut self, addr_bytes: u64, buf: &[u8]) -> Result<()> {
        // Both commands only where there is a write cache.
        self.flush()?;
        self.write_device(addr_bytes, buf, true)
            .map_err(|error| error.at_offset(addr_bytes).on_device(&*self.target.name))
    }

    fn flush(&mut self) -> Result<()> {
        self.run_on_device(What::Flush, 0, DmaBuf::default())
            .map_err(|error| error.on_device(&*self.target.name))?;
        self.target.look_again()
    }

    fn discard(&mut self, addr_bytes: u64, len_bytes: u64) -> Result<()> {
        // What the device would not deallocate at best is not worth a command, as for XFS with the
        // kernel's discard_granularity.
        let block = u64::from(self.block_bytes.max(1));
        let blocks = addr_bytes / block..addr_bytes.saturating_add(len_bytes) / block;
        let blocks = self.queue.limits().deallocate_grain.within(blocks);
        if blocks.is_empty() {
            return Ok(());
        }
        let addr_bytes = blocks.start.saturating_mul(block);
        let len_bytes = blocks
            .end
            .saturating_sub(blocks.start)
            .saturating_mul(block);
        let what = What::Discard { len_bytes };
        self.run_on_device(what, addr_bytes, DmaBuf::default())
            .map(drop)
            .map_err(|error| error.at_offset(addr_bytes).on_device(&*self.target.name))
    }

    fn capacity_bytes(&self) -> u64 {
        // As the device says by now: a namespace may grow or shrink.
        let blocks = self.queue.limits().capacity_blocks;
        blocks.saturating_mul(self.block_bytes.into())
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn mbr_sector_bytes(&self) -> Option<u32> {
        self.target.mbr_sector_bytes()
    }
}

impl IoCore {
    /// How long an operation takes at most.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Polls while `unfinished` says so, at most until every deadline of the device has passed.
    fn poll_while(&mut self, unfinished: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while unfinished(self) {
            if self.direct.progress(&mut self.queue) == 0 {
                self.queue.relax();
                if start.elapsed() > self.patience {
                    return;
                }
            }
        }
    }

    /// As [`IoCore::poll_while`], while anything is in flight.
    pub(super) fn poll_to_end(&mut self) {
        self.poll_while(|core| core.queue.outstanding() > 0 || core.direct.is_waiting());
    }

    /// Ends the operations of a reader that was leaked (`mem::forget`): nothing else takes them,
    /// and they hold the slots and bounce buffers of blocking calls. For the start of a call that
    /// has no such operations yet.
    #[cold]
    pub(super) fn reclaim_kept(&mut self) {
        self.poll_while(|core| core.direct.has_unfinished_kept());
        let spare = &mut self.spare;
        self.direct.take_all_kept(|ended, of| {
            after_any(&ended, &of);
            if ended.buf.len() == BOUNCE_BYTES && spare.len() < BOUNCE_COUNT {
                spare.push(ended.buf);
            }
        });
    }
}

impl Drop for IoCore {
    /// Waits for requests in flight, at most until every deadline of the device has passed, and
    /// completes all operations that were not delivered: pages that a direct write made stale are
    /// dropped, and the memory goes back to its heap. Only memory that the device may still access
    /// is leaked.
    fn drop(&mut self) {
        if self.direct.outstanding() == 0 {
            return;
        }
        self.poll_to_end();
        self.direct.take_all(|ended, of| after_any(&ended, &of));
    }
}

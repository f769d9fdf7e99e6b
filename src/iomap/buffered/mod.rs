//! Reads and writes through the page cache.
//!
//! As `iomap_file_buffered_write`, `iomap_read_folio` and `iomap_writepages` of Linux, in their
//! order: for each mapping, divide by page; find or allocate the page; read in what a partial write
//! needs; copy; mark page and file dirty; then balance. A mapping is requested once and serves all
//! of its pages. A page that was read is published only while the mark that was set *before* the
//! request for the mapping is still there and the mapping is still current; so a read never hides
//! data that another thread wrote, wrote back and evicted meanwhile.
//!
//! A [`Buffered`] belongs to one thread and has a queue of its own. Writeback begins and ends
//! inside a call: no thread waits for I/O of a thread that is not polling. Only read-ahead stays in
//! flight between calls, and a thread that needs a page that another one reads ahead takes it over.

mod ahead;
mod direct;
mod ioend;
mod large;
mod read;
mod ring;
mod room;
mod truncate;
mod write;
mod writeback;

use std::time::Duration;

use crate::block::Queue;
use crate::cache::{BoundedWait, Cache, Tally};
use crate::error::{Error, ErrorKind, Result};

use super::{Mapping, Ops};
use ahead::InFlight;
use ring::ChainRing;

pub use ahead::{ReadAdvice, ReadAhead, Validity};
pub(crate) use direct::{drop_clean, drop_stale};

/// What a filesystem adds to [`Ops`] for files that are cached.
pub trait CachedOps: Ops {
    /// Whether a mapping from before still holds.
    fn is_current(&self, mapping: &Mapping) -> bool;

    /// The same for later, when this value is gone: for pages that are read ahead.
    fn validity(&self) -> Validity;

    /// The destination of dirty bytes from `pos` on: a mapping that covers `pos`, of
    /// [`super::MappingKind::Mapped`] or [`super::MappingKind::Unwritten`]. Delayed allocations are
    /// made now; shared blocks are replaced by others. The pages are marked as in writeback, so
    /// they stay during the call.
    ///
    /// # Errors
    /// Whatever keeps the bytes from having blocks; they stay dirty.
    fn map_writeback(&mut self, pos: u64, len: u64) -> Result<Mapping>;

    /// Before data is written to blocks without data that have several pages: until
    /// [`CachedOps::release_unwritten`] no other thread writes data of the file to such blocks. May
    /// wait for another thread's writeback.
    ///
    /// # Errors
    /// The other thread does not get on.
    fn hold_unwritten(&mut self) -> Result<()> {
        Ok(())
    }

    /// The end of [`CachedOps::hold_unwritten`].
    fn release_unwritten(&mut self) {}

    /// Zeroes bytes on the device: blocks without data that are going to get some in a part. Waits
    /// for the device.
    ///
    /// # Errors
    /// The device's.
    fn zero_unwritten(&mut self, addr_bytes: u64, len_bytes: u64) -> Result<()> {
        let _ = (addr_bytes, len_bytes);
        Ok(())
    }

    /// Bytes are on the device, at `mapping`: blocks that were unwritten are converted, new ones
    /// take the place of shared ones, the size on disk grows. Before the pages count as written.
    ///
    /// # Errors
    /// As [`CachedOps::map_writeback`].
    fn written_back(&mut self, pos: u64, len: u64, mapping: &Mapping) -> Result<()>;

    /// What was written back so far is to outlive a loss of power. `flush` makes the device's own
    /// cache durable, as far as it is volatile; a filesystem with changes to log looks at them
    /// first, flushes, and logs them then, so that the log says nothing of data that may be lost.
    ///
    /// # Errors
    /// Those of the flush and of the filesystem's log.
    fn commit(&mut self, flush: &mut dyn FnMut() -> Result<()>) -> Result<()>;
}

/// How far a write came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes that are in the cache.
    pub bytes: usize,
    /// It stopped because too much is dirty, none of it of this file, or it is being written back
    /// in the background: wait for that, or write other files back, and go on.
    pub throttled: bool,
}

/// One thread's buffered operations over one [`Queue`].
#[derive(Debug)]
pub struct Buffered<Q> {
    ring: ChainRing<Q>,
    cache: Cache,
    tally: Tally,
    in_flight: Vec<InFlight>,
    /// Since no page could be had.
    starved: Option<BoundedWait>,
    /// Whether to wait for pages that another thread writes to, before writing them back.
    waits: bool,
}

/// How long no page can be had, while there is nothing that any thread writes back, before that is
/// an error: what other threads read meanwhile comes free.
const STARVED: Duration = Duration::from_millis(200);

/// How often an operation begins anew because others were in its way.
const PATIENCE: u32 = 100_000;

impl<Q: Queue> Buffered<Q> {
    /// Over a queue that is used for nothing else. The queue's device must reach the cache's
    /// memory.
    pub fn new(queue: Q, cache: &Cache) -> Self {
        Self {
            ring: ChainRing::new(queue),
            cache: cache.clone(),
            tally: Tally::default(),
            in_flight: Vec::new(),
            starved: None,
            waits: true,
        }
    }

    /// For the flusher only: pages that another thread writes to are skipped from now on, not
    /// waited for.
    pub fn wait_for_nobody(&mut self) {
        self.waits = false;
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// This thread's counts, for a file's hits that are done without [`Buffered`].
    #[inline]
    pub fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Has the filesystem make durable what was written back.
    ///
    /// # Errors
    /// The device's and the filesystem's.
    pub fn commit<O: CachedOps>(&mut self, ops: &mut O) -> Result<()> {
        let ring = &mut self.ring;
        ops.commit(&mut || ring.flush())
    }

    /// Makes durable what was written before, on the device.
    ///
    /// # Errors
    /// The device's.
    pub fn flush_device(&mut self) -> Result<()> {
        self.ring.flush()
    }
}

impl<Q> Drop for Buffered<Q> {
    fn drop(&mut self) {
        self.tally.flush(&self.cache);
    }
}

#[cold]
fn no_memory() -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        "every cached page is dirty or held by views: none can be reclaimed",
    )
}

/// A page that another thread has locked, or writes back, and that does not get on.
#[cold]
fn stuck(pos: u64) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "another thread writes to the page, or writes it back, and does not get on",
    )
    .at_offset(pos)
}

#[cold]
fn in_the_way(pos: u64) -> Error {
    Error::new(
        ErrorKind::Busy,
        "other threads keep changing the page: give up holding views on it, or try again",
    )
    .at_offset(pos)
}

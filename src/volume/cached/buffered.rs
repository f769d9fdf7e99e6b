//! A thread's way through the page cache.

use std::ops::Range;

use super::InodeOps;
use crate::cache::{Cache, FileCache};
use crate::error::Result;
use crate::iomap::buffered::{Buffered, ReadAhead};
use crate::target::engine::{EngineOptions, EngineQueue, TargetEngine};
use crate::target::shared::TargetShared;

/// Chains in flight: read-ahead and writeback are few and large.
const DEPTH: usize = 64;
/// Pieces of memory in a chain: pages of the cache seldom lie side by side where they were read one
/// by one.
const MAX_SEGMENTS: usize = 128;

/// One thread's way through the cache, on a queue of its own.
#[derive(Debug)]
pub(in super::super) struct BufferedIo {
    pub(super) inner: Buffered<EngineQueue>,
    /// The one that read last: it needs no search and no index.
    pub(super) last: Reader,
    pub(super) others: Vec<Reader>,
    /// Which of the others was replaced last.
    pub(super) replace: usize,
}

/// How a thread goes through a file by one handle.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) handle: u64,
    pub(super) advice: u8,
    pub(super) ahead: ReadAhead,
}

impl BufferedIo {
    /// On a target, with the page cache of its volume, and a queue that is made so.
    pub(super) fn on(
        target: &TargetShared,
        cache: &Cache,
        make: impl FnOnce(&TargetEngine, EngineOptions) -> Result<EngineQueue>,
    ) -> Result<Self> {
        let options = EngineOptions {
            depth: DEPTH,
            max_segments: MAX_SEGMENTS,
            timeout: target.command_timeout,
            read_only: target.info.read_only,
            wait: target.wait,
            range: target.range,
        };
        let queue = make(&target.engine, options)
            .map_err(|error| error.during("open a queue").on_device(&*target.name))?;
        Ok(Self {
            inner: Buffered::new(queue, cache),
            last: Reader::default(),
            others: Vec::new(),
            replace: 0,
        })
    }

    /// Writes the dirty pages of a range back, and waits for that.
    pub(in super::super) fn write_back(
        &mut self,
        pages: &FileCache,
        ops: &mut InodeOps<'_>,
        range: Range<u64>,
    ) -> Result<()> {
        self.inner.write_back(pages, ops, range)
    }

    /// Adds what this thread counted to what all have.
    pub(in super::super) fn flush_tally(&mut self) {
        let cache = self.inner.cache().clone();
        self.inner.tally().flush(&cache);
    }
}

impl Drop for BufferedIo {
    /// Waits for read-ahead: the device writes to the cache's memory.
    fn drop(&mut self) {
        self.inner.settle();
    }
}

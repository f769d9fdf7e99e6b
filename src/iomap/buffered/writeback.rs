//! Writeback.
//!
//! Blocks without data that are larger than a page: [`super::large`].
//!
//! Dirty pages are taken in file order, each with its mapping (one serves all the pages that it
//! covers), and pages that are contiguous in the file and on the device become one *ioend*, one
//! chain of commands. When it is on the device the filesystem is notified, and only then the pages
//! are clean. Failed pages stay dirty, and each handle that syncs gets the error once. Bytes beyond
//! the end of the file in its last block are always zero in cached pages: reads zero them, writes
//! do not reach them, truncation zeroes them; so they are zero on the device.

use std::ops::Range;

use super::super::Mapping;
use super::ioend::{Ioend, map};
use super::large::{LargeBlocks, spoilt};
use super::room::{offset_in, outside, runs};
use super::{Buffered, CachedOps, stuck};
use crate::block::Queue;
use crate::cache::{DirtyPage, ErrorCursor, FileCache};
use crate::error::{Error, Result};
use crate::mem::Segment;
use crate::mem::pages::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;
/// Pages that are taken at once: 8 MiB.
const BATCH_PAGES: usize = 2048;
impl<Q: Queue> Buffered<Q> {
    /// Writes dirty pages of a range back, at most about `most` of them, and waits for that. What
    /// others write back right now is left to them. Returns how many pages it was.
    ///
    /// # Errors
    /// The first failure, which is kept for those who sync as well.
    pub fn write_out<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        range: Range<u64>,
        most: usize,
    ) -> Result<usize> {
        let mut from = range.start / PAGE;
        let end = range.end.div_ceil(PAGE);
        let mut count = 0;
        let mut first_error = None;
        while count < most {
            let (mut taken, mut left) = (Vec::new(), None);
            let batch = BATCH_PAGES.min(most - count);
            let next = file.take_dirty_pages(from..end, batch, self.waits, &mut taken, &mut left);
            count += taken.len();
            if let Some(pos) = left {
                first_error.get_or_insert(noted(file, pos));
            }
            if let Err(error) = self.write_batch(file, ops, taken) {
                first_error.get_or_insert(error);
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        first_error.map_or(Ok(count), Err)
    }

    /// Writes a range back, and waits for other threads that write it back already. The device is
    /// not flushed.
    ///
    /// # Errors
    /// The last failure, which is kept for those who sync as well.
    pub fn write_back<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        range: Range<u64>,
    ) -> Result<()> {
        let mut result = Ok(());
        // Pages that others were writing back in the first round may be dirty again, since before
        // this was called.
        for _ in 0..2 {
            let written = self.write_out(file, ops, range.clone(), usize::MAX);
            result = written.map(|_| ());
            if !file.await_writeback() {
                return Err(noted(file, range.start));
            }
        }
        result
    }

    /// Makes a range durable: data written back and flushed, then the filesystem's own commit.
    /// Failures since the cursor last heard of any are told, once.
    ///
    /// # Errors
    /// The last of those failures; the device's and the filesystem's.
    pub fn sync<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        range: Range<u64>,
        cursor: &mut ErrorCursor,
    ) -> Result<()> {
        // A failure is in the file's log, which is asked below.
        let _ = self.write_back(file, ops, range.clone());
        if let Err(error) = self.commit(ops) {
            file.note_error(&error, range.start);
        }
        self.tally.flush(&self.cache);
        file.check_errors(cursor)
    }

    fn write_batch<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        taken: Vec<DirtyPage>,
    ) -> Result<()> {
        let mut failed = vec![false; taken.len()];
        let mut first_error: Option<Error> = None;
        let mut ioends = self.gather(file, ops, &taken, &mut failed, &mut first_error);
        for ioend in &mut ioends {
            if let Some(task) = ioend.task {
                let ended = self.ring.wait(task);
                ioend.failed = ioend.failed.take().or(ended.result.err());
            }
        }
        // Each of them is on the device, or has failed, before a block becomes a written one.
        let mut spoilt = spoilt(file, &taken, &failed, &ioends);
        for (index, ioend) in ioends.iter_mut().enumerate() {
            let result = match ioend.failed.take().or_else(|| spoilt.remove(&index)) {
                Some(error) => Err(error),
                None => ops.written_back(ioend.pos, ioend.len, &ioend.mapping),
            };
            if let Err(error) = result {
                let error = error.at_offset(ioend.pos);
                file.note_error(&error, ioend.pos);
                first_error.get_or_insert(error);
                failed[ioend.pages.clone()].fill(true);
            }
        }
        ops.release_unwritten();
        for (page, failed) in taken.into_iter().zip(failed) {
            file.written(page, !failed);
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Makes ioends of pages, and submits each when it is as long as it gets.
    fn gather<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        taken: &[DirtyPage],
        failed: &mut [bool],
        first_error: &mut Option<Error>,
    ) -> Vec<Ioend> {
        let size = file.size_bytes();
        let block = file.whole_block_bytes();
        let mut large = LargeBlocks::new(file, size);
        let mut ioends: Vec<Ioend> = Vec::new();
        for (index, page) in taken.iter().enumerate() {
            let start = page.page() * PAGE;
            for run in runs(page.granules()) {
                // Beyond the end of the file there is nothing to be kept.
                let end = (start + run.end as u64).min(size.next_multiple_of(block));
                let range = start + run.start as u64..end;
                let gathered =
                    self.gather_run(file, ops, (index, taken), range, &mut large, &mut ioends);
                if let Err(error) = gathered {
                    file.note_error(&error, error.offset().unwrap_or(start));
                    first_error.get_or_insert(error);
                    failed[index] = true;
                }
            }
        }
        if let Some(last) = ioends.last_mut() {
            last.submit(&mut self.ring);
        }
        for ioend in &mut ioends {
            // The size on disk grows to the end of the file at most.
            ioend.len = ioend.len.min(size.saturating_sub(ioend.pos));
        }
        ioends
    }

    /// Adds dirty bytes of one page to the ioends: all of them, or it is an error. The size is the
    /// one that the range was cut at: the file's own may shrink meanwhile.
    fn gather_run<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        (index, taken): (usize, &[DirtyPage]),
        range: Range<u64>,
        large: &mut LargeBlocks,
        ioends: &mut Vec<Ioend>,
    ) -> Result<()> {
        let page = &taken[index];
        let mut pos = range.start;
        while pos < range.end {
            let last = ioends.last().map(|ioend| ioend.mapping);
            // A page behind the end, in its block, has zeroes for a write that comes.
            let want = match range.end.min(large.size_bytes()).checked_sub(pos) {
                None | Some(0) => range.end - pos,
                Some(inside) => inside,
            };
            let mapping = map(ops, last, pos, want)
                .and_then(|mapping| large.prepare(ops, (index, taken), pos, want, mapping))
                .map_err(|error| error.at_offset(pos))?;
            let len = range.end.min(mapping.end()) - pos;
            let from = offset_in(pos, page.page() * PAGE);
            let segment = file.segment_of(page, from..from.saturating_add(offset_in(len, 0)));
            let segment = segment.ok_or_else(|| outside().at_offset(pos))?;
            self.append(ioends, mapping, pos, len, index, segment);
            pos += len;
        }
        Ok(())
    }

    /// Adds bytes to the last ioend, or begins another.
    fn append(
        &mut self,
        ioends: &mut Vec<Ioend>,
        mapping: Mapping,
        pos: u64,
        len: u64,
        page: usize,
        segment: Segment,
    ) {
        let most_segments = self.ring.limits().max_segments.max(1);
        if let Some(last) = ioends.last_mut() {
            if last.takes(&mapping, pos, len, &segment, most_segments) {
                last.len += len;
                last.pages.end = page + 1;
                last.add(segment);
                return;
            }
            last.submit(&mut self.ring);
        }
        ioends.push(Ioend {
            pos,
            len,
            mapping,
            pages: page..page + 1,
            segments: vec![segment],
            task: None,
            failed: None,
        });
    }
}

/// The error of a page that is not written back because of another thread, in the file's log as
/// well.
#[cold]
fn noted(file: &FileCache, pos: u64) -> Error {
    let error = stuck(pos);
    file.note_error(&error, pos);
    error
}

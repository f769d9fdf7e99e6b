//! Buffered reads, and reading ahead.

use std::ops::Range;
use std::time::Duration;

use super::super::{Iter, IterFlags, Ops};
use super::ahead::{InFlight, ReadAhead};
use super::ring::TaskId;
use super::room::{bring, offset_in, runs, zero_tail};
use super::{Buffered, CachedOps, PATIENCE, in_the_way};
use crate::block::Queue;
use crate::cache::{BoundedWait, FileCache, Fill, LOCK_LIMIT, PageState};
use crate::error::{Error, Result};
use crate::mem::pages::PAGE_BYTES;

/// Most pages that are read at once.
const MOST_PAGES: u64 = 512;
const PAGE: u64 = PAGE_BYTES as u64;
/// How long another thread's reading of a page is waited for before it is taken over.
const OTHERS_LIMIT: Duration = Duration::from_micros(500);

impl<Q: Queue> Buffered<Q> {
    /// Reads from `pos` on; fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// The device's and the filesystem's, with the bytes that were read before.
    #[inline]
    pub fn read<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        ahead: &mut ReadAhead,
        pos: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        match self.read_hit(file, ahead, pos, buf) {
            (done, true) => Ok(done),
            (done, false) => self.read_on(file, ops, ahead, pos, buf, done),
        }
    }

    /// What a read can do without the filesystem: the bytes that it read, and whether that is all
    /// that there is to be done.
    #[inline]
    pub fn read_hit(
        &mut self,
        file: &FileCache,
        ahead: &mut ReadAhead,
        pos: u64,
        buf: &mut [u8],
    ) -> (usize, bool) {
        let done = file.read_hit(&mut self.tally, pos, buf);
        (done, done == buf.len() && !ahead.hit(pos, done))
    }

    /// Goes on with a read of which some bytes are done.
    ///
    /// # Errors
    /// As [`Buffered::read`].
    #[inline(never)]
    pub fn read_on<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        ahead: &mut ReadAhead,
        pos: u64,
        buf: &mut [u8],
        mut done: usize,
    ) -> Result<usize> {
        self.collect_ahead();
        let (mut tries, mut patience) = (PATIENCE, BoundedWait::new(LOCK_LIMIT));
        loop {
            let at = pos + done as u64;
            let hit = file.read_pages(&mut self.tally, at, &mut buf[done..]);
            if hit > 0 {
                done += hit;
                patience = BoundedWait::new(LOCK_LIMIT);
            }
            let at = pos + done as u64;
            if done == buf.len() || at >= file.size_bytes() {
                break;
            }
            tries = tries
                .checked_sub(1)
                .ok_or_else(|| in_the_way(at).after_bytes(done))?;
            match self.read_miss(file, ops, ahead, at, &mut buf[done..], &mut patience) {
                Ok(more) => done += more,
                Err(error) => return Err(error.after_bytes(done)),
            }
        }
        if ahead.hit(pos, done) {
            let (first, pages) = ahead.advance();
            if first * PAGE < file.size_bytes() {
                self.start_ahead(file, ops, first, pages);
            } else {
                ahead.stop();
            }
        }
        Ok(done)
    }

    /// One step where a page is missing: what was read beyond what the cache has now.
    fn read_miss<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        ahead: &mut ReadAhead,
        at: u64,
        buf: &mut [u8],
        patience: &mut BoundedWait,
    ) -> Result<usize> {
        let page = at / PAGE;
        let from = usize::try_from(at % PAGE).unwrap_or(0);
        let to = PAGE_BYTES.min(from + buf.len());
        match file.state(page, from, to) {
            // It came since it was looked for, or another thread writes to it.
            PageState::There if patience.wait() => Ok(0),
            PageState::There => Err(in_the_way(at)),
            PageState::Filling => {
                self.await_page(file, page);
                Ok(0)
            }
            PageState::Partial => {
                self.complete_page(file, ops, page)?;
                Ok(0)
            }
            PageState::Absent => {
                let size = file.size_bytes();
                let end = (at + buf.len() as u64).min(size);
                let wanted = (end.div_ceil(PAGE) - page).min(MOST_PAGES);
                let wanted = u32::try_from(wanted).unwrap_or(1).max(1);
                let more = ahead.miss(at, page, wanted);
                let Some(fill) = self.begin_fill(file, ops, page, wanted)? else {
                    return Ok(0);
                };
                self.tally.missed(fill.len() as u64);
                let limit = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
                let len = buf.len().min(limit);
                let task = self.ring.task();
                let begun = self.fill_from_disk(ops, &fill_range(&fill, size), task, fill);
                if more > 0 {
                    self.start_ahead(file, ops, page + u64::from(wanted), more);
                }
                self.end_fill(ops, begun, false, at, &mut buf[..len])
            }
        }
    }

    /// Marks absent pages for reading: `None` when they are not absent any more, or memory is short
    /// and was seen to.
    fn begin_fill<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        page: u64,
        wanted: u32,
    ) -> Result<Option<Fill>> {
        // Not all of a small cache at once: others read too.
        let most = u32::try_from(self.cache.pages() / 16).unwrap_or(u32::MAX);
        match file.begin_fill(page, wanted.min(most.max(1))) {
            Some(None) => {
                self.make_clean(file, ops)?;
                Ok(None)
            }
            other => {
                self.starved = None;
                Ok(other.flatten())
            }
        }
    }

    /// Submits what a fill's pages need.
    fn fill_from_disk<O: Ops>(
        &mut self,
        ops: &mut O,
        range: &FillRange,
        task: TaskId,
        mut fill: Fill,
    ) -> InFlightOrFailed {
        let start = fill.page() * PAGE;
        let total = fill.len() * PAGE_BYTES;
        let block = u64::from(self.ring.limits().block_bytes);
        let mut used = Vec::new();
        let mut iter = Iter::new(start, range.end - start, IterFlags::empty());
        let ring = &mut self.ring;
        let result = iter.run(ops, |ops, span| {
            bring(
                ring,
                task,
                ops,
                span.mapping,
                span.pos,
                span.len,
                start,
                &mut fill,
            )?;
            used.push(*span.mapping);
            Ok(span.len)
        });
        // What lies beyond the file's last block. (The rest of that block is zeroed when it has
        // been read.)
        let read = offset_in(range.end.next_multiple_of(block), start).min(total);
        fill.put(read, total - read, &[]);
        InFlightOrFailed {
            in_flight: InFlight {
                task,
                fill,
                used,
                validity: None,
                failed: result.is_err(),
            },
            error: result.err(),
            end: range.end,
        }
    }

    /// Waits for a fill, and gives its pages to the cache if all went well; else they are absent
    /// again.
    fn end_fill<O: CachedOps>(
        &mut self,
        ops: &mut O,
        begun: InFlightOrFailed,
        ahead: bool,
        pos: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        let InFlightOrFailed {
            in_flight,
            error,
            end,
        } = begun;
        let ended = self.ring.wait(in_flight.task);
        let mut fill = in_flight.fill;
        if let Some(error) = error.or(ended.result.err()) {
            fill.abandon(ended.lost);
            return Err(error.at_offset(pos));
        }
        if !in_flight.used.iter().all(|mapping| ops.is_current(mapping)) {
            fill.abandon(false);
            return Ok(0);
        }
        zero_behind(&mut fill, end);
        Ok(fill.finish(ahead, pos, buf))
    }

    /// Starts to read pages ahead; pages that are cached already end the run.
    fn start_ahead<O: CachedOps>(&mut self, file: &FileCache, ops: &mut O, page: u64, pages: u32) {
        let size = file.size_bytes();
        let last = size.div_ceil(PAGE);
        let mut page = page;
        let most = self.cache.pages() as u64 / 32;
        let mut left = u64::from(pages).min(last.saturating_sub(page)).min(most);
        while left > 0 {
            let wanted = u32::try_from(left.min(MOST_PAGES)).unwrap_or(1);
            // No page is worth writing others back for.
            let Some(Some(fill)) = file.begin_fill(page, wanted) else {
                return;
            };
            let len = fill.len() as u64;
            let task = self.ring.task();
            let begun = self.fill_from_disk(ops, &fill_range(&fill, size), task, fill);
            self.in_flight.push(InFlight {
                validity: Some(ops.validity()),
                ..begun.in_flight
            });
            page += len;
            left -= len;
        }
        // So that the device hears of it.
        self.ring.poll();
    }

    /// Starts to read the uncached part of a range, without waiting; at most an eighth of the
    /// cache, together with what this thread reads ahead already.
    pub fn read_ahead<O: CachedOps>(&mut self, file: &FileCache, ops: &mut O, range: Range<u64>) {
        self.collect_ahead();
        let size = file.size_bytes();
        let end = range.end.min(size).div_ceil(PAGE);
        let in_flight: u64 = self
            .in_flight
            .iter()
            .map(|ahead| ahead.fill.len() as u64)
            .sum();
        let mut left = (self.cache.pages() as u64 / 8).saturating_sub(in_flight);
        let mut page = range.start / PAGE;
        while page < end && left > 0 {
            if file.state(page, 0, PAGE_BYTES) != PageState::Absent {
                page += 1;
                continue;
            }
            let wanted = (end - page).min(left).min(MOST_PAGES);
            let wanted = u32::try_from(wanted).unwrap_or(1);
            let fill = match file.begin_fill(page, wanted) {
                Some(Some(fill)) => fill,
                // No page is worth writing others back for.
                Some(None) => break,
                None => {
                    page += 1;
                    continue;
                }
            };
            let len = fill.len() as u64;
            let task = self.ring.task();
            let begun = self.fill_from_disk(ops, &fill_range(&fill, size), task, fill);
            self.in_flight.push(InFlight {
                validity: Some(ops.validity()),
                ..begun.in_flight
            });
            page += len;
            left = left.saturating_sub(len);
        }
        self.ring.poll();
    }

    /// Gives the cache what has been read ahead by now.
    pub(super) fn collect_ahead(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        self.ring.poll();
        let mut at = 0;
        while at < self.in_flight.len() {
            if self.ring.is_over(self.in_flight[at].task) {
                let ended = self.in_flight.swap_remove(at);
                self.end_ahead(ended);
            } else {
                at += 1;
            }
        }
    }

    fn end_ahead(&mut self, in_flight: InFlight) {
        let ended = self.ring.end(in_flight.task);
        let mut fill = in_flight.fill;
        let current = in_flight
            .validity
            .is_some_and(|validity| in_flight.used.iter().all(|used| validity.holds(used)));
        if in_flight.failed || ended.result.is_err() || !current {
            fill.abandon(ended.lost);
            return;
        }
        let size = fill.file().size_bytes();
        zero_behind(&mut fill, size);
        fill.finish(true, 0, &mut []);
    }

    /// The page is being read: waits for the end if this thread reads it, else for a limited time.
    pub(super) fn await_page(&mut self, file: &FileCache, page: u64) {
        let mine = self.in_flight.iter().position(|in_flight| {
            let first = in_flight.fill.page();
            in_flight.fill.file().is(file)
                && (first..first + in_flight.fill.len() as u64).contains(&page)
        });
        if let Some(at) = mine {
            let task = self.in_flight[at].task;
            self.ring.finish(task);
            let ended = self.in_flight.swap_remove(at);
            self.end_ahead(ended);
            // Where it failed the mark may be another's by now, or gone.
            return;
        }
        let mut patience = BoundedWait::new(OTHERS_LIMIT);
        while file.state(page, 0, PAGE_BYTES) == PageState::Filling {
            if !patience.wait() {
                return file.supersede(page);
            }
        }
    }

    /// Reads the granules of a partly valid page that are not up to date.
    fn complete_page<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        page: u64,
    ) -> Result<()> {
        let Some(merge) = file.begin_merge(page) else {
            return Ok(());
        };
        let Some(mut merge) = merge else {
            return self.make_clean(file, ops);
        };
        let task = self.ring.task();
        let mut used = Vec::new();
        let missing = merge.missing();
        let start = page * PAGE;
        let end = file
            .size_bytes()
            .next_multiple_of(file.block_bytes() as u64);
        let mut submitted = Ok(());
        for run in runs(missing) {
            let (first, last) = (start + run.start as u64, start + run.end as u64);
            let mut iter = Iter::new(
                first,
                last.min(end).saturating_sub(first),
                IterFlags::empty(),
            );
            let ring = &mut self.ring;
            let brought = iter.run(ops, |ops, span| {
                bring(
                    ring,
                    task,
                    ops,
                    span.mapping,
                    span.pos,
                    span.len,
                    start,
                    &mut merge,
                )?;
                used.push(*span.mapping);
                Ok(span.len)
            });
            submitted = submitted.and(brought.map(|_| ()));
        }
        let ended = self.ring.wait(task);
        if let Err(error) = submitted.and(ended.result) {
            merge.abandon(ended.lost);
            return Err(error.at_offset(page * PAGE));
        }
        if used.iter().all(|mapping| ops.is_current(mapping)) {
            zero_tail(&mut merge, page * PAGE, missing, file.size_bytes());
            merge.finish();
        } else {
            merge.abandon(false);
        }
        Ok(())
    }

    /// Waits for all that is read ahead.
    pub fn settle(&mut self) {
        while let Some(in_flight) = self.in_flight.pop() {
            self.ring.finish(in_flight.task);
            self.end_ahead(in_flight);
        }
    }
}

/// A fill that was begun.
struct InFlightOrFailed {
    in_flight: InFlight,
    error: Option<Error>,
    /// The end of the file, or of the pages.
    end: u64,
}

/// How far a fill's pages are to be read.
struct FillRange {
    end: u64,
}

fn fill_range(fill: &Fill, size: u64) -> FillRange {
    let start = fill.page() * PAGE;
    FillRange {
        end: (start + fill.len() as u64 * PAGE).min(size).max(start),
    }
}

/// Zeroes a fill from this file position on, when nothing of it is in flight any more.
fn zero_behind(fill: &mut Fill, end: u64) {
    let start = fill.page() * PAGE;
    let total = fill.len() * PAGE_BYTES;
    let from = offset_in(end.max(start), start).min(total);
    fill.put(from, total - from, &[]);
}

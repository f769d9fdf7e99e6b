//! Buffered writes.

use std::ops::Range;
use std::time::Duration;

use super::super::{Iter, IterFlags, MapFlags, MappingKind, Span};
use super::ring::{ChainRing, TaskId};
use super::room::{Room, bring, offset_in, outside, runs, zero_tail};
use super::{Buffered, CachedOps, PATIENCE, STARVED, Written, in_the_way, no_memory};
use crate::block::Queue;
use crate::cache::{BoundedWait, FileCache, LOCK_LIMIT, PageState, Pressure, Writing, Wrote};
use crate::error::{ErrorKind, Result};
use crate::mem::pages::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;
/// Bytes that are written between two looks at how much is dirty.
const STEP_BYTES: u64 = 1 << 20;
/// How long a thread sleeps while others write pages back that it needs.
const MOMENT: Duration = Duration::from_micros(50);
/// Pages that a writer writes back where the background share is reached.
const BACKGROUND_PAGES: usize = 512;

impl<Q: Queue> Buffered<Q> {
    /// Writes into the cache; the file grows by the part beyond its end. Cached pages are
    /// overwritten without asking the filesystem. Writes that allocate or grow are for one thread
    /// at a time: the caller holds the lock of the file.
    ///
    /// # Errors
    /// The filesystem's and the device's, with the number of bytes written before. A write that
    /// reaches a range that cannot be overwritten ends there, without an error unless that is its
    /// first byte.
    #[inline]
    pub fn write<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        pos: u64,
        data: &[u8],
    ) -> Result<Written> {
        let (bytes, is_enough) = self.write_hit(file, pos, data);
        if is_enough {
            return Ok(Written {
                bytes,
                throttled: false,
            });
        }
        self.write_on(file, ops, pos, data, bytes)
    }

    /// What a write can do without the filesystem: the bytes that it wrote to pages that may be
    /// written to, and whether that is all that there is to be done.
    #[inline]
    pub fn write_hit(&mut self, file: &FileCache, pos: u64, data: &[u8]) -> (usize, bool) {
        let bytes = file.write_hit(&mut self.tally, pos, data);
        let is_enough = bytes == data.len() && self.cache.pressure() == Pressure::None;
        (bytes, is_enough)
    }

    #[inline(never)]
    fn write_on<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        pos: u64,
        data: &[u8],
        done: usize,
    ) -> Result<Written> {
        let size = file.size_bytes();
        if pos > size {
            self.zero_block_of(file, ops, size, pos)?;
        }
        let from = pos + done as u64;
        let mut iter = Iter::new(from, (data.len() - done) as u64, IterFlags::WRITE);
        let mut patience = PATIENCE;
        loop {
            let bytes = offset_in(iter.pos, pos);
            match self.balance(file, ops) {
                Ok(true) => {}
                Ok(false) => {
                    return Ok(Written {
                        bytes,
                        throttled: true,
                    });
                }
                Err(error) => return Err(error.after_bytes(bytes)),
            }
            let stepped = iter.step(ops, |ops, span| {
                let rest = &data[offset_in(span.pos, pos)..];
                self.write_span(file, ops, &span, rest, true)
            });
            match stepped {
                Ok(true) => {}
                // No progress: the mapping changed under it, and is asked for again.
                Ok(false) if iter.remaining > 0 && patience > 0 => patience -= 1,
                Ok(false) if iter.remaining > 0 => {
                    return Err(in_the_way(iter.pos).after_bytes(offset_in(iter.pos, pos)));
                }
                Ok(false) => break,
                Err(error) if error.kind() == ErrorKind::NotOverwrite && iter.pos > pos => break,
                Err(error) => return Err(error.after_bytes(offset_in(iter.pos, pos))),
            }
        }
        Ok(Written {
            bytes: offset_in(iter.pos, pos),
            throttled: false,
        })
    }

    /// Zeroes bytes of the file that are not zero already: cached ones, and those of written
    /// blocks. Holes and preallocated blocks stay as they are. The size stays too.
    ///
    /// # Errors
    /// As [`Buffered::write`].
    pub fn zero_range<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        range: Range<u64>,
    ) -> Result<()> {
        let zeroes = [0; PAGE_BYTES];
        let mut iter = Iter::new(range.start, range.end - range.start, IterFlags::ZERO);
        while iter.remaining > 0 {
            let mut plain = 0;
            iter.step(ops, |_, span| {
                // Up to the end of the page.
                let len = span.len.min(PAGE - span.pos % PAGE);
                let cached = file.state_of(span.pos, offset_in(len, 0)) != PageState::Absent;
                let is_zero = match span.mapping.kind {
                    MappingKind::Mapped | MappingKind::Inline => false,
                    MappingKind::Hole => true,
                    // What only the cache has must be zeroed too.
                    MappingKind::Unwritten | MappingKind::Delalloc => !cached,
                };
                if is_zero {
                    return Ok(len);
                }
                plain = len;
                Ok(0)
            })?;
            if plain == 0 {
                continue;
            }
            let mut write = Iter::new(iter.pos, plain, IterFlags::WRITE.union(IterFlags::ZERO));
            let mut patience = PATIENCE;
            while write.remaining > 0 {
                patience = patience
                    .checked_sub(1)
                    .ok_or_else(|| in_the_way(write.pos))?;
                write.step(ops, |ops, span| {
                    self.write_span(file, ops, &span, &zeroes[..offset_in(span.len, 0)], false)
                })?;
            }
            iter.pos += plain;
            iter.remaining -= plain;
        }
        Ok(())
    }

    /// What lies between the old end of a file and the end of its block, or of the write that
    /// comes: it becomes part of the file.
    fn zero_block_of<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        size: u64,
        pos: u64,
    ) -> Result<()> {
        let end = pos.min(size.next_multiple_of(file.whole_block_bytes()));
        if end > size {
            self.zero_range(file, ops, size..end)?;
        }
        Ok(())
    }

    /// Writes back where too much is dirty, unless that is done in the background. False when it
    /// still is, and there is nothing to be done about it with this file.
    fn balance<O: CachedOps>(&mut self, file: &FileCache, ops: &mut O) -> Result<bool> {
        match self.cache.pressure() {
            Pressure::None => Ok(true),
            // It is being written back.
            Pressure::Background if self.cache.has_background() => Ok(true),
            Pressure::Hard if self.cache.has_background() => Ok(false),
            Pressure::Background => {
                // What fails here is told to who syncs.
                let _ = self.write_out(file, ops, 0..u64::MAX, BACKGROUND_PAGES);
                Ok(true)
            }
            Pressure::Hard => {
                self.write_out(file, ops, 0..u64::MAX, usize::MAX)?;
                Ok(self.cache.pressure() < Pressure::Hard)
            }
        }
    }

    /// No page was free: writes the file back and ends read-ahead, so that pages can be reclaimed.
    /// Where that frees no page, other threads have to.
    ///
    /// # Errors
    /// A writeback error; or no free page within the time limit.
    pub fn make_clean<O: CachedOps>(&mut self, file: &FileCache, ops: &mut O) -> Result<()> {
        self.settle();
        if self.write_out(file, ops, 0..u64::MAX, usize::MAX)? > 0 {
            self.starved = None;
            return Ok(());
        }
        if self.cache.in_writeback() > 0 {
            // That can be reclaimed soon; it ends by the deadlines of the device.
            std::thread::sleep(MOMENT);
            return Ok(());
        }
        let patience = self
            .starved
            .get_or_insert_with(|| BoundedWait::new(STARVED));
        if !patience.wait() {
            self.starved = None;
            return Err(no_memory());
        }
        Ok(())
    }

    /// Copies data into the pages of a mapping, up to the first one that needs a check of its dirty
    /// state.
    fn write_span<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        span: &Span<'_>,
        data: &[u8],
        grow: bool,
    ) -> Result<u64> {
        let want = span.len.min(STEP_BYTES).min(data.len() as u64);
        let mut done = 0;
        while done < want {
            let pos = span.pos + done;
            let len = (PAGE - pos % PAGE).min(want - done);
            let piece = &data[offset_in(done, 0)..offset_in(done + len, 0)];
            match self.write_piece(file, ops, span, pos, piece, grow) {
                Ok(true) => done += len,
                Ok(false) => break,
                // Said when it is tried again.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            if self.cache.pressure() == Pressure::Hard {
                break;
            }
        }
        Ok(done)
    }

    /// Data into one page; false when the mapping is out of date.
    fn write_piece<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        span: &Span<'_>,
        pos: u64,
        data: &[u8],
        grow: bool,
    ) -> Result<bool> {
        let mut patience = BoundedWait::new(LOCK_LIMIT);
        let writing = Writing::Asked {
            grow,
            backed: is_backed(span, pos),
        };
        for _ in 0..PATIENCE {
            // A write to an uncached page needs a valid mapping.
            if !span_is_current(ops, span) {
                return Ok(false);
            }
            match file.write_cached(pos, data, writing) {
                Wrote::Yes => return Ok(true),
                Wrote::NoFrame => {
                    self.make_clean(file, ops)?;
                    continue;
                }
                Wrote::Missing => {}
            }
            let page = pos / PAGE;
            let needed = file.needed(pos, data.len());
            match file.state_of(pos, data.len()) {
                PageState::Filling => self.await_page(file, page),
                PageState::Absent if needed == 0 => match file.write_absent(pos, data, writing) {
                    Some(true) => return Ok(true),
                    Some(false) => {}
                    None => self.make_clean(file, ops)?,
                },
                PageState::Absent => match file.begin_fill(page, 1) {
                    None => {}
                    Some(None) => self.make_clean(file, ops)?,
                    Some(Some(fill)) => {
                        self.tally.missed(1);
                        let needed = file.needed(pos, data.len());
                        if self.read_and_write(file, ops, span, fill, needed, pos, data, writing)? {
                            return Ok(true);
                        }
                    }
                },
                PageState::Partial => match file.begin_merge(page) {
                    None => {}
                    Some(None) => self.make_clean(file, ops)?,
                    Some(Some(merge)) => {
                        let needed = file.needed(pos, data.len()) & merge.missing();
                        if self
                            .read_and_write(file, ops, span, merge, needed, pos, data, writing)?
                        {
                            return Ok(true);
                        }
                    }
                },
                PageState::There if patience.wait() => {}
                PageState::There => break,
            }
        }
        Err(in_the_way(pos))
    }

    /// Reads the blocks that the data covers in part, puts the data over them, and gives the page
    /// to the cache.
    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where all of it meets"
    )]
    fn read_and_write<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        span: &Span<'_>,
        mut room: impl Room,
        needed: u8,
        pos: u64,
        data: &[u8],
        writing: Writing,
    ) -> Result<bool> {
        let task = self.ring.task();
        let read = read_needed(
            &mut self.ring,
            task,
            file,
            ops,
            span,
            needed,
            pos,
            &mut room,
        );
        let ended = self.ring.wait(task);
        if let Err(error) = read.and(ended.result) {
            room.abandon(ended.lost);
            return Err(error.at_offset(pos));
        }
        if !span_is_current(ops, span) {
            room.abandon(false);
            return Ok(false);
        }
        zero_tail(&mut room, pos - pos % PAGE, needed, file.size_bytes());
        Ok(room.finish_write(pos, data, writing))
    }
}

/// Whether all of a page is written blocks of its own: then it may become dirty again without
/// asking.
fn is_backed(span: &Span<'_>, pos: u64) -> bool {
    let mapping = span.mapping;
    let start = pos - pos % PAGE;
    let special = MapFlags::SHARED.union(MapFlags::NEW);
    mapping.kind == MappingKind::Mapped
        && !mapping.flags.intersects(special)
        && span.source.is_none()
        && mapping.offset <= start
        && start + PAGE <= mapping.end()
}

fn span_is_current<O: CachedOps>(ops: &O, span: &Span<'_>) -> bool {
    ops.is_current(span.mapping) && span.source.is_none_or(|source| ops.is_current(source))
}

/// The blocks of a page that a write covers in part, from where the mapping that it writes to says.
#[expect(clippy::too_many_arguments, reason = "a step of two operations")]
fn read_needed<O: CachedOps, Q: Queue>(
    ring: &mut ChainRing<Q>,
    task: TaskId,
    file: &FileCache,
    ops: &O,
    span: &Span<'_>,
    needed: u8,
    pos: u64,
    room: &mut impl Room,
) -> Result<()> {
    let start = pos - pos % PAGE;
    let mapping = span.source.unwrap_or(span.mapping);
    // Blocks beyond the end of the file hold nothing.
    let behind = file
        .size_bytes()
        .next_multiple_of(file.block_bytes() as u64);
    for run in runs(needed) {
        let (first, last) = (start + run.start as u64, start + run.end as u64);
        let end = last.min(behind).max(first);
        room.put(offset_in(end, start), offset_in(last, end), &[]);
        if end == first {
            continue;
        }
        // A mapping has whole blocks, so all of them, but for data inside of an inode, which ends
        // with the file.
        let inline = mapping.kind == MappingKind::Inline;
        if first < mapping.offset || (end > mapping.end() && !inline) {
            return Err(outside());
        }
        bring(ring, task, ops, mapping, first, end - first, start, room)?;
    }
    Ok(())
}

//! Direct reads and overwrites: one chain of commands per mapping, several mappings in flight, polled.
//!
//! As `iomap_dio_rw` of Linux, turned inside out: an operation is a slot in [`Direct`], not a stack frame,
//! so that it never waits. It goes through its range mapping by mapping; when the queue has no room it
//! stays where it is and goes on at a later [`Direct::poll`]. It ends when the last of its chains has.
//! Where the kernel polls single-request I/O only, all of this is polled.
//!
//! An operation owns its buffer while it runs, as [`Lent`]. Nothing here allocates but [`Direct::new`].

use std::collections::VecDeque;

use super::direct_slot::{Kind as SlotKind, Slot, Stage};
use super::{Iter, IterFlags, Kind, MapFlags, Ops, Span};
use crate::block::{Chain, ChainFlags, Completion, Limits, Op, Queue, Refused, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{DmaBuf, Segment};
use crate::units::Lba;

pub use super::direct_slot::{Ended, Kind as EndedKind, Rejected, Request, Source, What};

/// The longest piece of a mapping that goes into one chain: what a [`Segment`] can hold, in whole blocks.
const MAX_CHAIN_BYTES: u64 = 1 << 30;
/// Below it a token's slot number, above it the chain's first block, counted from the operation's start.
const SLOT_BITS: u32 = 16;
/// The block number of a flush that follows a durable write.
const FLUSH_BLOCK: u64 = (1 << (64 - SLOT_BITS)) - 1;

/// One thread's direct operations over one [`Queue`].
///
/// `S` is what an operation keeps of its file: cheap to move, and able to answer for its mappings.
#[derive(Debug)]
pub struct Direct<S> {
    slots: Box<[Slot<S>]>,
    free: Vec<u16>,
    /// Operations that have more to submit, in the order they came.
    waiting: VecDeque<u16>,
    /// Operations that have ended and were not handed over yet.
    ended: VecDeque<u16>,
    block_mask: u64,
    block_shift: u32,
    dma_mask: u64,
    read_only: bool,
    /// What makes a durable write durable: nothing, FUA, or a flush after it.
    durability: Durability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    Already,
    Fua,
    FlushAfter,
}

/// Names a kept operation until [`Direct::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept(u16);

/// How far an operation came with the queue.
enum Issued {
    /// Everything is submitted, or has failed.
    All,
    /// The queue is full.
    Blocked,
}

impl<S: Source> Direct<S> {
    /// Room for `operations` (at most 65,535) over a queue with these limits.
    pub fn new(operations: usize, limits: &Limits) -> Self {
        let count = u16::try_from(operations).unwrap_or(u16::MAX);
        let durability = match (limits.volatile_write_cache, limits.fua) {
            (false, _) => Durability::Already,
            (true, true) => Durability::Fua,
            (true, false) => Durability::FlushAfter,
        };
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            free: (0..count).rev().collect(),
            waiting: VecDeque::with_capacity(count.into()),
            ended: VecDeque::with_capacity(count.into()),
            block_mask: u64::from(limits.block_bytes) - 1,
            block_shift: limits.block_bytes.trailing_zeros(),
            dma_mask: u64::from(limits.dma_align_bytes.max(1)) - 1,
            read_only: limits.read_only,
            durability,
        }
    }

    /// Operations that were taken and not yet handed over.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether an operation waits for room in the queue.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Starts an operation; it is handed over by a later [`Direct::poll`].
    ///
    /// # Errors
    /// [`Rejected`] with the buffer; nothing was started then. In particular a write that is not entirely an
    /// overwrite is refused here, before any of it is written.
    #[inline]
    pub fn submit<Q: Queue>(&mut self, queue: &mut Q, request: Request<S>) -> Result<(), Rejected> {
        self.start(queue, request, false).map(|_| ())
    }

    /// Starts an operation that stays after its end until [`Direct::take`]: what a blocking call waits for.
    ///
    /// # Errors
    /// As [`Direct::submit`].
    #[inline]
    pub fn submit_kept<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: Request<S>,
    ) -> Result<Kept, Rejected> {
        self.start(queue, request, true).map(Kept)
    }

    /// The operation, when it has ended.
    #[inline]
    pub fn take(&mut self, kept: Kept) -> Option<Ended<S>> {
        let slot = self.slots.get(usize::from(kept.0))?;
        (slot.stage == Stage::Ended && slot.kept).then(|| self.hand_over(kept.0))
    }

    /// Polls the queue and goes on with operations that wait for room, without handing anything over: for
    /// whoever waits for a kept operation. Returns the chains that have ended.
    #[inline]
    pub fn progress<Q: Queue>(&mut self, queue: &mut Q) -> usize {
        let budget = self.slots.len();
        let count = queue.poll(budget, &mut |completion| self.completed(completion));
        if !self.waiting.is_empty() {
            self.resume(queue);
        }
        count
    }

    /// Polls the queue, goes on with operations that wait for room, and hands those that have ended to
    /// `done`, at most `budget` of them; returns how many.
    #[inline]
    pub fn poll<Q: Queue>(
        &mut self,
        queue: &mut Q,
        budget: usize,
        mut done: impl FnMut(Ended<S>),
    ) -> usize {
        queue.poll(budget.max(1), &mut |completion| self.completed(completion));
        if !self.waiting.is_empty() {
            self.resume(queue);
        }
        let mut count = 0;
        while count < budget {
            let Some(index) = self.ended.pop_front() else {
                break;
            };
            done(self.hand_over(index));
            count += 1;
        }
        count
    }

    #[inline]
    fn start<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: Request<S>,
        kept: bool,
    ) -> Result<u16, Rejected> {
        let Some(&index) = self.free.last() else {
            return Err(Rejected::full(request.buf));
        };
        let slot = self.prepare(request, kept)?;
        let at = usize::from(index);
        self.slots[at] = slot;
        let slot = &mut self.slots[at];
        if slot.kind == SlotKind::Write
            && let Some(source) = &slot.source
            && let Err(error) = check_overwrite(source, slot.pos, slot.end - slot.pos)
        {
            return Err(slot.reject(error));
        }
        self.free.pop();
        // Whoever waits goes first.
        if self.waiting.is_empty() {
            self.proceed(queue, index);
        } else {
            self.waiting.push_back(index);
        }
        Ok(index)
    }

    /// The slot for a request that may be started, as far as can be seen without its mappings.
    #[inline]
    fn prepare(&self, request: Request<S>, kept: bool) -> Result<Slot<S>, Rejected> {
        let len = request.buf.len() as u64;
        let offset = request.offset;
        if ((offset | len) & self.block_mask) | (request.buf.iova().0 & self.dma_mask) != 0 {
            return Err(Rejected::error(
                self.misaligned(offset, &request.buf),
                request.buf,
            ));
        }
        let mut slot = Slot {
            stage: Stage::Running,
            kept,
            start: offset,
            pos: offset,
            end: offset,
            user_data: request.user_data,
            ..Slot::default()
        };
        match request.what {
            What::Read => {
                slot.kind = SlotKind::Read;
                let size = request.source.as_ref().map_or(0, Source::size_bytes);
                // Whole blocks are read, what lies beyond the size is zeroed and not reported.
                slot.report = len.min(size.saturating_sub(offset));
                slot.end = offset + ((slot.report + self.block_mask) & !self.block_mask);
            }
            What::Write { dsync, .. } => {
                let Some(source) = &request.source else {
                    return Err(Rejected::error(
                        internal("a write needs a file"),
                        request.buf,
                    ));
                };
                let size = source.size_bytes();
                let limit = match request.what {
                    What::Write {
                        through_last_block: true,
                        ..
                    } => size.saturating_add(self.block_mask) & !self.block_mask,
                    _ => size,
                };
                if self.read_only {
                    return Err(Rejected::error(read_only(), request.buf));
                }
                let end = offset.checked_add(len).filter(|&end| end <= limit);
                let Some(end) = end else {
                    return Err(Rejected::error(past_end(size), request.buf));
                };
                slot.kind = SlotKind::Write;
                slot.dsync = dsync;
                slot.report = len;
                // What reaches beyond the size belongs to the last block, not to the file.
                slot.end = end.min(size).max(offset);
            }
            What::Flush => slot.kind = SlotKind::Flush,
            What::DeviceRead => {
                slot.kind = SlotKind::DeviceRead;
                slot.report = len;
                slot.end = offset.saturating_add(len);
            }
        }
        slot.lent = Some(request.buf.lend());
        slot.source = request.source;
        Ok(slot)
    }

    #[cold]
    fn misaligned(&self, offset: u64, buf: &DmaBuf) -> Error {
        let block = self.block_mask + 1;
        let dma = self.dma_mask + 1;
        Error::new(
            ErrorKind::Misaligned,
            format!(
                "direct I/O needs an offset and a length that are multiples of {block} bytes and memory at \
                 a multiple of {dma}: this is {} bytes at offset {offset}, memory at {}",
                buf.len(),
                buf.iova()
            ),
        )
    }

    /// Submits as much of an operation as the queue takes; ends it when nothing is in flight after that.
    #[inline]
    fn proceed<Q: Queue>(&mut self, queue: &mut Q, index: u16) {
        let at = usize::from(index);
        if let Issued::Blocked = self.issue(queue, index) {
            self.waiting.push_back(index);
            return;
        }
        self.slots[at].stage = Stage::Submitted;
        if self.slots[at].in_flight == 0 {
            self.settle(index);
        }
    }

    #[inline]
    fn issue<Q: Queue>(&mut self, queue: &mut Q, index: u16) -> Issued {
        let durability = self.durability;
        let shift = self.block_shift;
        let slot = &mut self.slots[usize::from(index)];
        let result = match slot.kind {
            SlotKind::Read | SlotKind::Write => issue_file(slot, queue, index, shift, durability),
            SlotKind::DeviceRead => issue_device(slot, queue, index, shift),
            SlotKind::Flush => issue_flush(slot, queue, index),
        };
        match result {
            Ok(issued) => issued,
            Err(error) => {
                let at = slot.pos - slot.start;
                slot.fail(at, error);
                Issued::All
            }
        }
    }

    #[inline]
    fn completed(&mut self, completion: Completion) {
        let index = (completion.token & ((1 << SLOT_BITS) - 1)) as u16;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        // An engine hands each chain over once; one that does not must not end another operation.
        if slot.in_flight == 0 {
            return;
        }
        slot.in_flight -= 1;
        if !completion.status.is_success() {
            let block = completion.token >> SLOT_BITS;
            let at = if block == FLUSH_BLOCK {
                0
            } else {
                block << self.block_shift
            };
            if let Some(error) = completion.status.error() {
                slot.fail(at, error);
            }
        }
        if slot.in_flight == 0 && slot.stage == Stage::Submitted {
            self.settle(index);
        }
    }

    /// All chains of an operation have ended: it is over, unless a flush is still due.
    #[inline]
    fn settle(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        let wrote_something = slot.failed_at > 0 && slot.report > 0;
        if slot.kind == SlotKind::Write
            && slot.dsync
            && self.durability == Durability::FlushAfter
            && wrote_something
        {
            slot.kind = SlotKind::Flush;
            slot.flush_after = true;
            slot.stage = Stage::Running;
            self.waiting.push_back(index);
            return;
        }
        slot.stage = Stage::Ended;
        if slot.kind == SlotKind::Read && slot.end - slot.start > slot.report {
            slot.zero_tail();
        }
        if !slot.kept {
            self.ended.push_back(index);
        }
    }

    #[cold]
    fn resume<Q: Queue>(&mut self, queue: &mut Q) {
        while let Some(&index) = self.waiting.front() {
            if let Issued::Blocked = self.issue(queue, index) {
                return;
            }
            self.waiting.pop_front();
            let slot = &mut self.slots[usize::from(index)];
            slot.stage = Stage::Submitted;
            if slot.in_flight == 0 {
                self.settle(index);
            }
        }
    }

    #[inline]
    fn hand_over(&mut self, index: u16) -> Ended<S> {
        self.free.push(index);
        self.slots[usize::from(index)].finish()
    }
}

/// Looks at every mapping of a write before any of it is submitted. For a write inside one mapping, the
/// usual case, that is one look.
///
/// # Errors
/// [`ErrorKind::NotOverwrite`] with the first byte that cannot be overwritten; the filesystem's.
#[inline]
pub fn check_overwrite<S: Source>(source: &S, offset: u64, len: u64) -> Result<()> {
    let mut ops = source.ops();
    Iter::new(offset, len, WRITE_FLAGS).run(&mut ops, |_, span| {
        overwritable(&span)?;
        Ok(span.len)
    })?;
    Ok(())
}

const WRITE_FLAGS: IterFlags = IterFlags::WRITE
    .union(IterFlags::DIRECT)
    .union(IterFlags::OVERWRITE_ONLY);

#[inline]
fn token(index: u16, block: u64) -> Token {
    u64::from(index) | block << SLOT_BITS
}

/// Mappings one after the other, until the range's end, an error or a full queue.
#[inline]
fn issue_file<S: Source, Q: Queue>(
    slot: &mut Slot<S>,
    queue: &mut Q,
    index: u16,
    shift: u32,
    durability: Durability,
) -> Result<Issued> {
    // A failure met earlier keeps what is left from being tried.
    if slot.failed_at != u64::MAX || slot.pos >= slot.end {
        return Ok(Issued::All);
    }
    let Slot {
        source,
        lent,
        pos,
        start,
        in_flight,
        ..
    } = slot;
    let (Some(source), Some(lent)) = (source.as_ref(), lent.as_mut()) else {
        return Err(internal("the operation has no file or no memory"));
    };
    let write = slot.kind == SlotKind::Write;
    let iter_flags = if write {
        WRITE_FLAGS
    } else {
        IterFlags::DIRECT
    };
    let flags = if write && slot.dsync && durability == Durability::Fua {
        ChainFlags::FUA
    } else {
        ChainFlags::empty()
    };
    let mut ops = source.ops();
    let mut iter = Iter::new(*pos, slot.end - *pos, iter_flags);
    let mut blocked = false;
    let result = iter.run(&mut ops, |ops, span| {
        let from = span.pos - *start;
        if write {
            overwritable(&span)?;
        } else if span.mapping.kind != Kind::Mapped {
            fill(ops, lent, from, &span)?;
            return Ok(span.len);
        }
        // A write that ends in the file's last block writes that block whole.
        let mask = (1 << shift) - 1;
        let len = (span.len.min(MAX_CHAIN_BYTES) + mask) & !mask;
        let addr = span.mapping.addr_at(span.pos);
        if len > span.mapping.end() - span.pos {
            return Err(split_block(addr, span.mapping.end() - span.pos));
        }
        let (lba, blocks) = blocks_of(addr, len, shift)?;
        let segment = usize::try_from(from)
            .ok()
            .and_then(|from| lent.segment(from..from + usize::try_from(len).ok()?))
            .ok_or_else(|| internal("the range is outside the operation's memory"))?;
        let op = if write { Op::Write } else { Op::Read };
        let token = token(index, from >> shift);
        let taken = submit_one(queue, op, flags, lba, blocks, &[segment], token)?;
        if !taken {
            blocked = true;
            return Ok(0);
        }
        *in_flight += 1;
        Ok(len.min(span.len))
    });
    *pos = iter.pos;
    result?;
    if blocked {
        return Ok(Issued::Blocked);
    }
    if iter.remaining > 0 {
        return Err(internal("the mapping allows no progress"));
    }
    Ok(Issued::All)
}

/// `false` when the queue is full.
#[inline]
fn submit_one<Q: Queue>(
    queue: &mut Q,
    op: Op,
    flags: ChainFlags,
    lba: Lba,
    blocks: u64,
    segments: &[Segment],
    token: Token,
) -> Result<bool> {
    let chain = Chain {
        op,
        flags,
        lba,
        blocks,
        segments,
        token,
    };
    match queue.submit(&chain) {
        Ok(()) => Ok(true),
        Err(Refused::Full) => Ok(false),
        Err(refused) => Err(refusal(refused)),
    }
}

#[cold]
fn refusal(refused: Refused) -> Error {
    match refused {
        // The range came from the disk's content: it points outside the device or into the middle of a block.
        Refused::Invalid(why) => Error::new(
            ErrorKind::Corrupt,
            format!("the mapping makes a command that the device cannot do: {why}"),
        ),
        Refused::Full | Refused::Gone => Error::new(ErrorKind::DeviceGone, "the device is gone"),
    }
}

/// A read of what has no blocks: zeroes, or the inode's own bytes.
fn fill<O: Ops>(
    ops: &mut O,
    lent: &mut crate::mem::Lent,
    from: u64,
    span: &Span<'_>,
) -> Result<()> {
    let start = usize::try_from(from).unwrap_or(usize::MAX);
    let len = usize::try_from(span.len).unwrap_or(usize::MAX);
    let range = start..start.saturating_add(len);
    match span.mapping.kind {
        Kind::Hole | Kind::Unwritten | Kind::Mapped => lent.zero(range),
        Kind::Inline => {
            let data = ops.inline_data(span.mapping);
            let skip = usize::try_from(span.pos - span.mapping.offset).unwrap_or(usize::MAX);
            let bytes = data.get(skip..).unwrap_or_default();
            let bytes = &bytes[..bytes.len().min(len)];
            // What the inode does not have of it is beyond the end of the file.
            lent.zero(range);
            lent.fill(start, bytes);
        }
        Kind::Delalloc => {
            return Err(Error::new(
                ErrorKind::Io,
                "direct I/O met space that is promised but not allocated",
            ));
        }
    }
    Ok(())
}

#[inline]
fn overwritable(span: &Span<'_>) -> Result<()> {
    let mapping = span.mapping;
    let special = MapFlags::SHARED.union(MapFlags::NEW);
    if mapping.kind == Kind::Mapped && !mapping.flags.intersects(special) && span.source.is_none() {
        return Ok(());
    }
    Err(not_overwrite(span))
}

#[cold]
fn not_overwrite(span: &Span<'_>) -> Error {
    let (kind, what) = match span.mapping.kind {
        Kind::Hole => (ErrorKind::NotOverwrite, "a hole: it needs allocation"),
        Kind::Unwritten => (
            ErrorKind::NotOverwrite,
            "preallocated space: it needs conversion",
        ),
        Kind::Inline => (
            ErrorKind::NotOverwrite,
            "data inside the inode: it needs the log",
        ),
        Kind::Delalloc => (ErrorKind::Io, "space that is promised but not allocated"),
        Kind::Mapped => (
            ErrorKind::NotOverwrite,
            "shared blocks: it needs copy-on-write",
        ),
    };
    Error::new(
        kind,
        format!("the write meets {what}, which is not supported yet"),
    )
    .at_offset(span.pos)
}

/// The blocks of a device byte range, which must be whole.
#[inline]
fn blocks_of(addr: u64, len: u64, shift: u32) -> Result<(Lba, u64)> {
    if (addr | len) & ((1 << shift) - 1) != 0 {
        return Err(split_block(addr, len));
    }
    Ok((Lba(addr >> shift), len >> shift))
}

#[cold]
fn split_block(addr: u64, len: u64) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the mapping of {len} bytes at device byte {addr} splits a block of the device"),
    )
}

fn issue_device<S, Q: Queue>(
    slot: &mut Slot<S>,
    queue: &mut Q,
    index: u16,
    shift: u32,
) -> Result<Issued> {
    while slot.failed_at == u64::MAX && slot.pos < slot.end {
        let len = (slot.end - slot.pos).min(MAX_CHAIN_BYTES);
        let from = slot.pos - slot.start;
        let (lba, blocks) = blocks_of(slot.pos, len, shift)?;
        let segment = slot
            .lent
            .as_ref()
            .zip(usize::try_from(from).ok().zip(usize::try_from(len).ok()))
            .and_then(|(lent, (from, len))| lent.segment(from..from + len))
            .ok_or_else(|| internal("the range is outside the operation's memory"))?;
        let token = token(index, from >> shift);
        let none = ChainFlags::empty();
        if !submit_one(queue, Op::Read, none, lba, blocks, &[segment], token)? {
            return Ok(Issued::Blocked);
        }
        slot.in_flight += 1;
        slot.pos += len;
    }
    Ok(Issued::All)
}

fn issue_flush<S, Q: Queue>(slot: &mut Slot<S>, queue: &mut Q, index: u16) -> Result<Issued> {
    let token = token(index, FLUSH_BLOCK);
    let none = ChainFlags::empty();
    if !submit_one(queue, Op::Flush, none, Lba(0), 0, &[], token)? {
        return Ok(Issued::Blocked);
    }
    slot.in_flight += 1;
    Ok(Issued::All)
}

#[cold]
fn internal(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

#[cold]
fn read_only() -> Error {
    Error::new(ErrorKind::ReadOnly, "the device may only be read")
}

#[cold]
fn past_end(size: u64) -> Error {
    Error::new(
        ErrorKind::NotOverwrite,
        format!(
            "the write goes past the end of the file at byte {size}, and growing a file is not supported yet"
        ),
    )
}

//! Submitting an operation: mapping by mapping, as far as the queue takes it.

use super::super::{Iter, IterFlags, MapFlags, MappingKind, Ops, Span};
use super::slot::{DirectSlot, OperationKind};
use super::source::Source;
use super::{FLUSH_BLOCK, Issued, MAX_CHAIN_BYTES, SLOT_BITS, internal};
use crate::block::{Chain, ChainFlags, Limits, Op, Queue, Refused, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Lent, Segment};
use crate::units::Lba;

/// Looks at every mapping of a write before any of it is submitted. For a write inside one mapping,
/// the usual case, that is one look.
///
/// # Errors
/// [`ErrorKind::NotOverwrite`] with the first byte that cannot be overwritten; the filesystem's.
#[inline]
pub(super) fn check_blocks<S: Source>(
    version: &S::Version,
    offset: u64,
    len: u64,
    flags: IterFlags,
) -> Result<()> {
    let mut ops = S::ops(version);
    Iter::new(offset, len, flags).run(&mut ops, |_, span| {
        writable(&span, flags)?;
        Ok(span.len)
    })?;
    Ok(())
}

/// As [`check_blocks`], of all that an operation has not submitted.
pub(super) fn check_write<S: Source>(version: &S::Version, slot: &DirectSlot) -> Result<()> {
    check_blocks::<S>(version, slot.pos, slot.end - slot.pos, write_flags(slot))
}

fn write_flags(slot: &DirectSlot) -> IterFlags {
    match slot.is_allocated {
        true => ALLOCATED_FLAGS,
        false => WRITE_FLAGS,
    }
}

pub(super) const WRITE_FLAGS: IterFlags = IterFlags::WRITE
    .union(IterFlags::DIRECT)
    .union(IterFlags::OVERWRITE_ONLY);
pub(super) const ALLOCATED_FLAGS: IterFlags = IterFlags::WRITE
    .union(IterFlags::DIRECT)
    .union(IterFlags::ALLOCATED);

/// Whether a durable write is sent with FUA, by what the device says now: a reset may change it.
/// One that is sent without may have a flush after it.
#[inline]
pub(super) fn wants_fua(limits: &Limits) -> bool {
    limits.volatile_write_cache && limits.fua
}

#[inline]
pub(super) fn token(index: u16, block: u64) -> Token {
    u64::from(index) | block << SLOT_BITS
}

/// Mappings one after the other, until the range's end, an error or a full queue. With `first`, a
/// write is looked at as a whole before anything of it is submitted; inside one mapping that is the
/// same look.
#[inline(never)]
pub(super) fn file<S: Source, Q: Queue>(
    slot: &mut DirectSlot,
    version: Option<&S::Version>,
    queue: &mut Q,
    (index, shift): (u16, u32),
    first: bool,
) -> Result<Issued> {
    // After a failure the rest is not tried.
    if slot.failed_at != u64::MAX || slot.pos >= slot.end {
        return Ok(Issued::All);
    }
    let Some(version) = version else {
        return Err(internal("the operation has no file"));
    };
    let write = slot.kind == OperationKind::Write;
    let (op, iter_flags) = if write {
        (Op::Write, write_flags(slot))
    } else {
        (Op::Read, IterFlags::DIRECT)
    };
    let dsync = slot.dsync && !slot.is_allocated;
    let flags = if write && dsync && wants_fua(queue.limits()) {
        ChainFlags::FUA
    } else {
        slot.without_fua = dsync;
        ChainFlags::empty()
    };
    let lent = &mut slot.lent;
    let start = slot.start;
    let in_flight = &mut slot.in_flight;
    let mut unchecked = write && first;
    let mut blocked = false;
    let mut ops = S::ops(version);
    let mut iter = Iter::new(slot.pos, slot.end - slot.pos, iter_flags);
    loop {
        let left = iter.remaining;
        let step = iter.step(&mut ops, |ops, span| {
            let from = span.pos - start;
            if write {
                writable(&span, iter_flags)?;
                if unchecked && span.len < left {
                    let behind = span.pos + span.len;
                    check_blocks::<S>(version, behind, left - span.len, iter_flags)?;
                }
                unchecked = false;
            } else if span.mapping.kind != MappingKind::Mapped {
                fill(ops, lent, from, &span)?;
                return Ok(span.len);
            }
            let (lba, blocks, len) = blocks_of(&span, shift)?;
            let segment = segment_of(lent, from, len)?;
            let token = token(index, from >> shift);
            if !submit_one(queue, op, flags, lba, blocks, &[segment], token)? {
                blocked = true;
                return Ok(0);
            }
            *in_flight += 1;
            Ok(len.min(span.len))
        });
        slot.pos = iter.pos;
        match step {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(error),
        }
    }
    if blocked {
        return Ok(Issued::Blocked);
    }
    if iter.remaining > 0 {
        return Err(internal("the mapping allows no progress"));
    }
    Ok(Issued::All)
}

#[inline]
fn segment_of(lent: &Lent, from: u64, len: u64) -> Result<Segment> {
    let range = usize::try_from(from).ok().zip(usize::try_from(len).ok());
    range
        .and_then(|(from, len)| lent.segment(from..from.checked_add(len)?))
        .ok_or_else(|| internal("the range is outside the operation's memory"))
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
        Err(refused) => Err(refused.of_mapping()),
    }
}

/// A read of what has no blocks: zeroes, or the inode's own bytes.
fn fill<O: Ops>(ops: &mut O, lent: &mut Lent, from: u64, span: &Span<'_>) -> Result<()> {
    let start = usize::try_from(from).unwrap_or(usize::MAX);
    let len = usize::try_from(span.len).unwrap_or(usize::MAX);
    let range = start..start.saturating_add(len);
    match span.mapping.kind {
        MappingKind::Hole | MappingKind::Unwritten | MappingKind::Mapped => lent.zero(range),
        MappingKind::Inline => {
            let data = ops.inline_data(span.mapping);
            let skip = usize::try_from(span.pos - span.mapping.offset).unwrap_or(usize::MAX);
            let bytes = data.get(skip..).unwrap_or_default();
            let bytes = &bytes[..bytes.len().min(len)];
            // What the inode does not have of it is beyond the end of the file.
            lent.zero(range);
            lent.fill(start, bytes);
        }
        MappingKind::Delalloc => {
            return Err(Error::new(
                ErrorKind::Io,
                "direct I/O met space that is promised but not allocated",
            ));
        }
    }
    Ok(())
}

#[inline]
fn writable(span: &Span<'_>, flags: IterFlags) -> Result<()> {
    let mapping = span.mapping;
    let special = MapFlags::SHARED.union(MapFlags::NEW);
    let is_allocated =
        flags.contains(IterFlags::ALLOCATED) && mapping.kind == MappingKind::Unwritten;
    if (mapping.kind == MappingKind::Mapped || is_allocated)
        && !mapping.flags.intersects(special)
        && span.source.is_none()
    {
        return Ok(());
    }
    Err(not_overwrite(span))
}

#[cold]
fn not_overwrite(span: &Span<'_>) -> Error {
    let (kind, what) = match span.mapping.kind {
        MappingKind::Hole => (ErrorKind::NotOverwrite, "a hole: it needs allocation"),
        MappingKind::Unwritten => (
            ErrorKind::NotOverwrite,
            "preallocated space: it needs conversion",
        ),
        MappingKind::Inline => (
            ErrorKind::NotOverwrite,
            "data inside the inode: it needs the log",
        ),
        MappingKind::Delalloc => (ErrorKind::Io, "space that is promised but not allocated"),
        MappingKind::Mapped => (
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

/// The blocks of a span for one chain, and their bytes: whole blocks inside the mapping. A write
/// that ends in the file's last block writes that block whole.
#[inline]
fn blocks_of(span: &Span<'_>, shift: u32) -> Result<(Lba, u64, u64)> {
    let mask = (1 << shift) - 1;
    let addr = span.mapping.addr_at(span.pos);
    let len = (span.len.min(MAX_CHAIN_BYTES) + mask) & !mask;
    let behind = span.mapping.end() - span.pos;
    if len > behind || addr & mask != 0 {
        return Err(split_block(addr, behind));
    }
    Ok((Lba(addr >> shift), len >> shift, len))
}

#[cold]
fn split_block(addr: u64, len: u64) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the mapping of {len} bytes at device byte {addr} splits a block of the device"),
    )
}

/// A read of the device itself, or a write to it.
pub(super) fn device<Q: Queue>(
    slot: &mut DirectSlot,
    queue: &mut Q,
    index: u16,
    shift: u32,
) -> Result<Issued> {
    let op = match slot.kind {
        OperationKind::DeviceWrite => Op::Write,
        _ => Op::Read,
    };
    let flags = match slot.dsync && wants_fua(queue.limits()) {
        true => ChainFlags::FUA,
        false => {
            slot.without_fua = slot.dsync;
            ChainFlags::empty()
        }
    };
    while slot.failed_at == u64::MAX && slot.pos < slot.end {
        let len = (slot.end - slot.pos).min(MAX_CHAIN_BYTES);
        let from = slot.pos - slot.start;
        let segment = segment_of(&slot.lent, from, len)?;
        let (lba, blocks) = (Lba(slot.pos >> shift), len >> shift);
        let token = token(index, from >> shift);
        if !submit_one(queue, op, flags, lba, blocks, &[segment], token)? {
            return Ok(Issued::Blocked);
        }
        slot.in_flight += 1;
        slot.pos += len;
    }
    Ok(Issued::All)
}

/// A flush. One that follows a durable write is sent only where there is a write cache, now that
/// the write has ended.
pub(super) fn flush<Q: Queue>(slot: &mut DirectSlot, queue: &mut Q, index: u16) -> Result<Issued> {
    if slot.flush_after && !queue.limits().volatile_write_cache {
        return Ok(Issued::All);
    }
    let token = token(index, FLUSH_BLOCK);
    let none = ChainFlags::empty();
    if !submit_one(queue, Op::Flush, none, Lba(0), 0, &[], token)? {
        return Ok(Issued::Blocked);
    }
    slot.in_flight += 1;
    Ok(Issued::All)
}

/// Blocks of the device that are not needed any more, in one chain.
pub(super) fn discard<Q: Queue>(
    slot: &mut DirectSlot,
    queue: &mut Q,
    index: u16,
    shift: u32,
) -> Result<Issued> {
    let (lba, blocks) = (Lba(slot.pos >> shift), (slot.end - slot.pos) >> shift);
    let none = ChainFlags::empty();
    if blocks > 0 && slot.failed_at == u64::MAX {
        if !submit_one(
            queue,
            Op::Deallocate,
            none,
            lba,
            blocks,
            &[],
            token(index, 0),
        )? {
            return Ok(Issued::Blocked);
        }
        slot.in_flight += 1;
        slot.pos = slot.end;
    }
    Ok(Issued::All)
}

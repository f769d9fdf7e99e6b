//! Ordinary memory: reads and overwrites through bounce buffers, several in flight.

use std::ops::Range;

use super::allocating::Handing;
use super::core::{BOUNCE_BYTES, BOUNCE_COUNT, no_slot};
use super::{DmaBuf, File, Io};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::{OperationToken, What};
use crate::xfs::needs_extents;

/// What a write does where it covers a block in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// Refuses, as direct I/O does.
    Aligned,
    /// Reads the block first and writes it back whole.
    ReadFirst,
}

/// Pieces of one round.
type Round = [Option<(OperationToken, usize)>; BOUNCE_COUNT];

/// Fills `to` from `offset`, up to the end of the file; returns the bytes read.
pub(super) fn read(file: &File, io: &mut Io, to: &mut [u8], offset: u64) -> Result<usize> {
    io.reclaim_kept();
    let left = file.len().saturating_sub(offset);
    let total = usize::try_from(left).map_or(to.len(), |left| left.min(to.len()));
    let mut done = 0;
    while done < total {
        let n = read_round(file, io, &mut to[done..total], offset + done as u64)
            .map_err(|error| error.after_bytes(done))?;
        done += n;
    }
    Ok(total)
}

/// One round of reads: as many bounce buffers as there are, all in flight together.
fn read_round(file: &File, io: &mut Io, to: &mut [u8], offset: u64) -> Result<usize> {
    let block = u64::from(io.block_bytes());
    let first = offset & !(block - 1);
    let skip = usize::try_from(offset - first).unwrap_or(0);
    let want = (skip + to.len()).min(BOUNCE_BYTES * BOUNCE_COUNT);
    let mut round = Round::default();
    let mut started = Ok(());
    for (index, at) in (0..want).step_by(BOUNCE_BYTES).enumerate() {
        let len = (want - at).min(BOUNCE_BYTES);
        match start(file, io, What::Read, first + at as u64, None) {
            Ok(kept) => round[index] = Some((kept, len)),
            Err(error) => {
                started = Err(error);
                break;
            }
        }
    }
    // Whatever was started is waited for, also after a failure: its memory is ours only then.
    let mut copied = 0;
    let mut result = started;
    for (index, piece) in round.into_iter().enumerate() {
        let Some((kept, len)) = piece else { continue };
        let ended = io.core.wait(kept)?;
        let (n, failure) = done_of(ended.result);
        if result.is_ok() {
            let skip = if index == 0 { skip } else { 0 };
            let bytes = ended.buf.get(skip..n.min(len)).unwrap_or_default();
            let fits = bytes.len().min(to.len() - copied);
            to[copied..copied + fits].copy_from_slice(&bytes[..fits]);
            copied += fits;
            result = match failure {
                Some(error) => Err(error),
                None if fits < len - skip => Err(cut_short(offset + copied as u64)),
                None => Ok(()),
            };
        }
        io.core.rest(ended.buf);
    }
    result
        .map(|()| copied)
        .map_err(|error| error.with_bytes_done(copied))
}

/// The bytes that an operation did, and its failure.
pub(super) fn done_of(result: Result<usize>) -> (usize, Option<Error>) {
    match result {
        Ok(n) => (n, None),
        Err(error) => {
            let done = error.bytes_done().unwrap_or(0);
            (usize::try_from(done).unwrap_or(0), Some(error))
        }
    }
}

/// Starts one piece. Reads take a bounce buffer of their own.
fn start(
    file: &File,
    io: &mut Io,
    what: What,
    offset: u64,
    buf: Option<DmaBuf>,
) -> Result<OperationToken> {
    let buf = match buf {
        Some(buf) => buf,
        None => io.core.bounce()?,
    };
    if let Err(error) = io.before_direct(file, what, offset, buf.len()) {
        io.core.rest(buf);
        return Err(error);
    }
    match io.submit_kept(file, what, offset, buf) {
        Ok(kept) => Ok(kept),
        Err(rejected) => {
            io.core.rest(rejected.buf);
            Err(rejected.error.unwrap_or_else(no_slot))
        }
    }
}

#[cold]
fn cut_short(offset: u64) -> Error {
    Error::new(ErrorKind::Io, "the device failed within the range").at_offset(offset)
}

/// Overwrites all of `from` at `offset`. Checks the whole range before anything is written.
pub(super) fn write(
    file: &File,
    io: &mut Io,
    from: &[u8],
    offset: u64,
    edges: Edges,
) -> Result<()> {
    let block = u64::from(io.block_bytes());
    let len = from.len() as u64;
    if edges == Edges::Aligned && (offset | len) & (block - 1) != 0 {
        return Err(Error::new(
            ErrorKind::Misaligned,
            format!(
                "direct I/O needs an offset and a length that are multiples of {block} bytes: this is \
                 {len} bytes at offset {offset}"
            ),
        ));
    }
    if len > 0 {
        // Before blocks are allocated.
        io.remove_privileges(&file.shared.inode)?;
    }
    let target = WriteTarget::of(file, io, offset, len)?;
    io.reclaim_kept();
    let mut done = 0;
    while done < from.len() {
        done += write_round(file, io, &from[done..], offset + done as u64, target)
            .map_err(|error| error.after_bytes(done))?;
    }
    Ok(())
}

/// Where a write goes, as a whole.
#[derive(Debug, Clone, Copy)]
struct WriteTarget {
    /// Written blocks of the file. Otherwise blocks that are allocated for it.
    is_overwrite: bool,
    /// The end of the data.
    end: u64,
}

impl WriteTarget {
    /// Checks the whole range, and has blocks allocated for it where they are missing.
    fn of(file: &File, io: &mut Io, offset: u64, len: u64) -> Result<Self> {
        let end = offset.checked_add(len).ok_or_else(|| {
            let detail = "the range ends beyond the largest possible file";
            Error::new(ErrorKind::InvalidInput, detail)
        })?;
        if len == 0 {
            let is_overwrite = true;
            return Ok(Self { is_overwrite, end });
        }
        let overwrite = match end <= file.len() {
            true => check_overwrite(file, io, offset..end),
            false => Err(Error::new(ErrorKind::NotOverwrite, "")),
        };
        let is_overwrite = match overwrite {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotOverwrite => {
                drop(file.make_room(io, &(offset..end))?);
                false
            }
            Err(error) => return Err(error),
        };
        Ok(Self { is_overwrite, end })
    }
}

fn check_overwrite(file: &File, io: &mut Io, range: Range<u64>) -> Result<()> {
    let check = |io: &mut Io| {
        let len = range.end - range.start;
        let direct = &mut io.core.direct;
        direct.check_overwrite(&file.shared, range.start, len)
    };
    match check(io) {
        Err(error) if needs_extents(&error) => io.run_loaded(&file.shared, &range, check),
        other => other,
    }
}

/// Starts the write of one piece.
fn start_write(
    file: &File,
    io: &mut Io,
    (buf, first): (DmaBuf, u64),
    target: WriteTarget,
) -> Result<OperationToken> {
    let what = What::Write {
        dsync: file.shared.options.dsync,
        through_last_block: true,
    };
    if let Err(error) = io.before_direct(file, what, first, buf.len()) {
        io.core.rest(buf);
        return Err(error);
    }
    let allocating =
        |io: &mut Io, buf| io.start_allocating(file, buf, (first, target.end), Handing::Kept);
    let started = if target.is_overwrite {
        match io.submit_kept(file, what, first, buf) {
            // The file is being changed there.
            Err(rejected) if rejected.needs_blocks(what) => allocating(io, rejected.buf),
            started => {
                if started.is_ok() && file.shared.options.dsync {
                    // A failure shuts the filesystem down, and the next sync tells it.
                    let _ = io.log_file(&file.shared);
                }
                started
            }
        }
    } else {
        allocating(io, buf)
    };
    started.map_err(|rejected| {
        io.core.rest(rejected.buf);
        rejected.error.unwrap_or_else(no_slot)
    })
}

/// One round of writes. Returns the bytes written; a failure counts those before it.
fn write_round(
    file: &File,
    io: &mut Io,
    from: &[u8],
    offset: u64,
    target: WriteTarget,
) -> Result<usize> {
    let mut round = Round::default();
    let mut started = Ok(());
    let mut taken = 0;
    for slot in &mut round {
        if taken == from.len() {
            break;
        }
        let begun = fill_piece(file, io, &from[taken..], offset + taken as u64)
            .and_then(|(buf, first, n)| Ok((start_write(file, io, (buf, first), target)?, n)));
        match begun {
            Ok((kept, n)) => {
                *slot = Some((kept, n));
                taken += n;
            }
            Err(error) => {
                started = Err(error);
                break;
            }
        }
    }
    let mut failure = None;
    let mut done = 0;
    for (kept, n) in round.into_iter().flatten() {
        let ended = io.wait(kept)?;
        if failure.is_none() {
            // A piece may begin before the bytes that it has of `from`.
            let skip = usize::try_from((offset + done as u64).saturating_sub(ended.offset));
            let (whole, error) = done_of(ended.result);
            done += whole.saturating_sub(skip.unwrap_or(0)).min(n);
            failure = error;
        }
        io.core.rest(ended.buf);
    }
    // What could not be started comes after all that was.
    match failure.or(started.err()) {
        Some(error) => Err(error.with_bytes_done(done)),
        None => Ok(taken),
    }
}

/// A buffer of whole blocks with the beginning of `from` in it, where it goes, and the bytes of
/// `from` in it.
fn fill_piece(file: &File, io: &mut Io, from: &[u8], offset: u64) -> Result<(DmaBuf, u64, usize)> {
    let block = io.block_bytes() as usize;
    let skip = usize::try_from(offset & (block as u64 - 1)).unwrap_or(0);
    let first = offset - skip as u64;
    let n = from.len().min(BOUNCE_BYTES - skip);
    let whole = (skip + n).next_multiple_of(block);
    let mut buf = if whole == BOUNCE_BYTES {
        io.core.bounce()?
    } else {
        io.core.alloc(whole)?
    };
    if skip > 0 {
        read_block(file, io, first, &mut buf[..block])?;
    }
    let tail = whole - block;
    if !(skip + n).is_multiple_of(block) && (tail > 0 || skip == 0) {
        read_block(file, io, first + tail as u64, &mut buf[tail..])?;
    }
    buf[skip..skip + n].copy_from_slice(&from[..n]);
    Ok((buf, first, n))
}

/// Reads one block of the file into ordinary memory; what lies beyond the end is zeroes.
fn read_block(file: &File, io: &mut Io, offset: u64, to: &mut [u8]) -> Result<()> {
    let buf = io.core.alloc(to.len())?;
    let kept = start(file, io, What::Read, offset, Some(buf))?;
    let ended = io.core.wait(kept)?;
    ended.result?;
    to.copy_from_slice(&ended.buf);
    Ok(())
}

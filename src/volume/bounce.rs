//! Ordinary memory: reads and overwrites through bounce buffers, several in flight.

use super::core::{BOUNCE_BYTES, BOUNCE_COUNT, no_slot};
use super::{DmaBuf, File, Io};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::{OperationToken, What, check_overwrite};

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
    let request = io.request(file, what, offset, buf, 0);
    match io.core.submit_kept(request) {
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
    let size = file.len();
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
    if offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(Error::new(
            ErrorKind::NotOverwrite,
            format!(
                "{len} bytes go past the end of the file at byte {size}: growing is not supported yet"
            ),
        ));
    }
    check_overwrite(&file.shared, offset, len)?;
    io.reclaim_kept();
    let mut done = 0;
    while done < from.len() {
        done += write_round(file, io, &from[done..], offset + done as u64)
            .map_err(|error| error.after_bytes(done))?;
    }
    Ok(())
}

/// One round of writes. Returns the bytes written; a failure counts those before it.
fn write_round(file: &File, io: &mut Io, from: &[u8], offset: u64) -> Result<usize> {
    let what = What::Write {
        dsync: file.shared.options.dsync,
        through_last_block: true,
    };
    let mut round = Round::default();
    let mut started = Ok(());
    let mut taken = 0;
    for slot in &mut round {
        if taken == from.len() {
            break;
        }
        let begun = fill_piece(file, io, &from[taken..], offset + taken as u64)
            .and_then(|(buf, first, n)| Ok((start(file, io, what, first, Some(buf))?, n)));
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
        let ended = io.core.wait(kept)?;
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

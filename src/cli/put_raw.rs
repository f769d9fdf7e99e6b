//! `xtent put --raw`: a local file onto the blocks of a target.

use std::fs::File as HostFile;
use std::io::Read;
use std::path::Path;

use xtent::ErrorKind;
use xtent::internals::block::Op;
use xtent::internals::target::RawIo;
use xtent::internals::units::Lba;
use xtent::target::Target;

use super::failure::{CORRUPT, DEVICE, Failure, OPERATION, check_interrupted, complain};
use crate::bench::progress::Progress;

const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 4;

/// Writes all of `local` from the target's first block on. A last block that it fills in part is
/// filled up with zeroes; blocks behind it stay.
pub(super) fn run(
    target: &Target,
    local: &mut HostFile,
    path: &Path,
    verify: bool,
) -> Result<(), Failure> {
    let failed = |error| Failure::local("cannot read", path, error);
    let len_bytes = local.metadata().map_err(failed)?.len();
    let info = target.info();
    if len_bytes > info.capacity_bytes {
        let text = format!(
            "{} has {len_bytes} bytes, and {} has {}: nothing was written",
            path.display(),
            info.target,
            info.capacity_bytes
        );
        return Err(Failure::new(OPERATION, text));
    }
    let block = u64::from(info.lba_bytes);
    let progress = Progress::bytes(if verify { len_bytes * 2 } else { len_bytes });
    progress.message(info.target.clone());
    let chunk = CHUNK_BYTES as u64;
    // Whole chunks, then the blocks of the rest one by one: a slot has one size.
    let whole = len_bytes / chunk * chunk;
    let mut raw = target.raw(CHUNKS_IN_FLIGHT, CHUNK_BYTES)?;
    let mut crc = write(&mut raw, local, path, 0..whole, block, &progress)?;
    let mut rest = target.raw(CHUNKS_IN_FLIGHT, info.lba_bytes as usize)?;
    crc = crc.wrapping_add(write(
        &mut rest,
        local,
        path,
        whole..len_bytes,
        block,
        &progress,
    )?);
    raw.flush()?;
    if verify {
        let mut read = read_back(&mut raw, 0..whole, block, &progress)?;
        read = read.wrapping_add(read_back(&mut rest, whole..len_bytes, block, &progress)?);
        if read != crc {
            let text = format!(
                "verify {}: what was read back is not what was written",
                info.target
            );
            return Err(Failure::new(CORRUPT, text));
        }
    }
    Ok(())
}

type ByteSpan = std::ops::Range<u64>;

/// Does `op` on every slot-sized piece of the span, several at a time: `before` fills a slot's
/// buffer, `after` sees it when the operation has ended.
fn each(
    raw: &mut RawIo,
    op: Op,
    span: ByteSpan,
    block: u64,
    mut before: impl FnMut(&mut [u8]) -> Result<(), Failure>,
    mut after: impl FnMut(u64, &[u8]),
) -> Result<(), Failure> {
    let mut at = [0; CHUNKS_IN_FLIGHT];
    let mut free: Vec<usize> = (0..CHUNKS_IN_FLIGHT).collect();
    let (mut next, mut failure) = (span.start, None);
    // The slot with the piece at `next`, where the target did not take it yet.
    let mut filled = None;
    loop {
        while next < span.end
            && failure.is_none()
            && xtent::internals::sys::interrupted().is_none()
            && let Some(slot) = filled.or_else(|| free.pop())
        {
            let buffer = raw.slot_mut(slot).unwrap_or_default();
            let piece = buffer.len() as u64;
            if filled.is_none()
                && let Err(error) = before(buffer)
            {
                failure = Some(error);
                free.push(slot);
                break;
            }
            filled = Some(slot);
            match raw.submit(slot, op, Lba(next / block)) {
                Ok(()) => (filled, at[slot], next) = (None, next, next + piece),
                // Writes pause while another program has the file behind the target open.
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    failure = Some(error.into());
                    break;
                }
            }
        }
        let is_stopped = failure.is_some() || xtent::internals::sys::interrupted().is_some();
        if raw.outstanding() == 0 && (filled.is_none() || is_stopped) {
            break;
        }
        let mut ended = Vec::new();
        if raw.poll(|slot, status| ended.push((slot, status))) == 0 {
            raw.relax();
        }
        for (slot, status) in ended {
            free.push(slot);
            match raw.error(status) {
                None => after(at[slot], raw.slot_mut(slot).unwrap_or_default()),
                Some(error) => {
                    let error = error.at_offset(at[slot]);
                    failure.get_or_insert(Failure::new(DEVICE, error.to_string()));
                }
            }
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => check_interrupted(),
    }
}

/// The sum of the checksums of the pieces, each with its place: it does not matter which ends
/// first.
fn checksum(at: u64, piece: &[u8]) -> u64 {
    u64::from(crc32c::crc32c_append(
        crc32c::crc32c(&at.to_le_bytes()),
        piece,
    ))
}

fn write(
    raw: &mut RawIo,
    local: &mut HostFile,
    path: &Path,
    span: ByteSpan,
    block: u64,
    progress: &Progress,
) -> Result<u64, Failure> {
    let (mut next, mut crc, end) = (span.start, 0u64, span.end);
    let fill = |buffer: &mut [u8]| {
        let want = usize::try_from(end - next)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let failed = |error| Failure::local("cannot read", path, error);
        local.read_exact(&mut buffer[..want]).map_err(failed)?;
        buffer[want..].fill(0);
        crc = crc.wrapping_add(checksum(next, buffer));
        next += buffer.len() as u64;
        Ok(())
    };
    let result = each(raw, Op::Write, span, block, fill, |_, piece| {
        progress.add(piece.len() as u64)
    });
    if result.is_err() && next > 0 {
        complain("the target may be overwritten in part now");
    }
    result.map(|()| crc)
}

fn read_back(
    raw: &mut RawIo,
    span: ByteSpan,
    block: u64,
    progress: &Progress,
) -> Result<u64, Failure> {
    let mut crc = 0u64;
    // Stale content must not pass for what was read.
    let clear = |buffer: &mut [u8]| {
        buffer.fill(0);
        Ok(())
    };
    each(raw, Op::Read, span, block, clear, |at, piece| {
        progress.add(piece.len() as u64);
        crc = crc.wrapping_add(checksum(at, piece));
    })?;
    Ok(crc)
}

//! Operations that change the length, space or content of a file.

use std::ops::Range;

use rand::Rng;
use rand::rngs::SmallRng;
use xtent::ErrorKind;
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fs, Ino, InodeId, MetaIo};

use super::random_bytes;
use super::space::at;

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceOpKind {
    SetLen,
    Allocate,
    Punch,
    Zero,
    Collapse,
    Insert,
    /// Anywhere.
    Write,
    /// At the end.
    Append,
    /// The whole content.
    Replace,
}

/// An operation on one file; ranges in bytes.
#[derive(Debug, Clone)]
pub enum SpaceOp {
    SetLen(u64),
    Allocate(Range<u64>, bool),
    Punch(Range<u64>),
    Zero(Range<u64>, bool),
    Collapse(Range<u64>),
    Insert(Range<u64>),
    /// Data of a seed.
    Write(Range<u64>, u64),
    /// A content of this length, of a seed.
    Replace(u64, u64),
}

impl SpaceOp {
    /// An operation of a kind that is legal on a file of `size` bytes, or of another kind where
    /// none is.
    pub fn random(
        kind: SpaceOpKind,
        (size, most): (u64, u64),
        block: u64,
        rng: &mut SmallRng,
    ) -> Self {
        let longest = (size / 2).max(4 * block).min(most / 4);
        let start = rng.random_range(0..size.max(1) + 2 * block);
        let mut range = start..start + rng.random_range(1..=longest);
        if rng.random_range(0..3) == 0 {
            range = range.start / block * block..range.end.next_multiple_of(block);
        }
        let first = rng.random_range(0..(size.saturating_sub(1) / block).max(1));
        let count = rng.random_range(1..=(longest / block).max(1));
        let whole = first * block..(first + count) * block;
        match kind {
            SpaceOpKind::Append | SpaceOpKind::Write => {
                if kind == SpaceOpKind::Append {
                    range = size..size + (range.end - range.start).min(longest);
                }
                match range.end <= most {
                    true => Self::Write(range, rng.random()),
                    false => Self::SetLen(most / 2),
                }
            }
            SpaceOpKind::Replace => Self::Replace(range.end.min(most), rng.random()),
            SpaceOpKind::SetLen if rng.random() => Self::SetLen(size - size.min(longest) / 2),
            SpaceOpKind::SetLen => Self::SetLen(range.end.min(most)),
            SpaceOpKind::Allocate => {
                let keep = range.end > most || rng.random();
                Self::Allocate(range, keep)
            }
            SpaceOpKind::Punch => Self::Punch(range),
            SpaceOpKind::Zero => {
                let keep = range.end > most || rng.random();
                Self::Zero(range, keep)
            }
            SpaceOpKind::Collapse => {
                let end = whole.end.min(size.saturating_sub(1) / block * block);
                match whole.start < end {
                    true => Self::Collapse(whole.start..end),
                    false => Self::SetLen(most / 2),
                }
            }
            SpaceOpKind::Insert => {
                match whole.start < size && size + whole.end - whole.start <= most {
                    true => Self::Insert(whole),
                    false => Self::SetLen(most / 2),
                }
            }
        }
    }

    /// Does it.
    pub fn run(
        &self,
        fs: &Fs,
        io: &mut impl MetaIo,
        file: InodeId,
        now: InodeTimestamp,
    ) -> xtent::Result<()> {
        match self.clone() {
            Self::SetLen(len) => fs.set_len(io, file, len, now),
            Self::Allocate(range, keep) => fs.allocate_range(io, file, range, keep, now),
            Self::Punch(range) => fs.punch_hole(io, file, range, now),
            Self::Zero(range, keep) => fs.zero_range(io, file, range, keep, now),
            Self::Collapse(range) => fs.collapse_range(io, file, range, now),
            Self::Insert(range) => fs.insert_range(io, file, range, now),
            Self::Write(range, seed) => {
                fs.allocate_for_write(io, file, &range, true)?;
                write_data(fs, io, file.ino, &range, seed)?;
                fs.note_written(io, file, &range, Some(now)).map(|_| ())
            }
            Self::Replace(len, seed) => {
                let staged = fs.stage_content(io, file, len)?;
                let mut data = data_of(&(0..len), seed);
                for place in staged.places() {
                    data.resize(data.len().max(at(place.end - place.start)), 0);
                    let rest = data.split_off(at(place.end - place.start));
                    io.write_at(place.start, &data)?;
                    data = rest;
                }
                match fs.replace_content(io, file, &staged, now) {
                    Ok(_) => fs.drop_old(io, file, &staged),
                    Err(error) => {
                        fs.drop_staged(io, file, &staged)?;
                        Err(error)
                    }
                }
            }
        }
    }

    /// Whether it may fail so.
    pub fn may_fail(&self, error: &xtent::Error) -> bool {
        match error.kind() {
            ErrorKind::NoSpace => true,
            // Contents of very many extents.
            ErrorKind::Unsupported => matches!(self, Self::Replace(..)),
            _ => false,
        }
    }
}

pub fn data_of(range: &Range<u64>, seed: u64) -> Vec<u8> {
    random_bytes(seed, at(range.end - range.start))
}

/// Writes to the blocks of a file, as a direct write does: whole sectors.
fn write_data(
    fs: &Fs,
    io: &mut impl MetaIo,
    ino: Ino,
    range: &Range<u64>,
    seed: u64,
) -> xtent::Result<()> {
    let data = data_of(range, seed);
    let sector = u64::from(io.block_bytes());
    let inode = fs.read_inode(io, ino)?;
    let block = u64::from(fs.geometry().block_bytes);
    for extent in fs.extents(io, &inode)?.as_slice() {
        let start = extent.offset_blocks * block;
        let part = range.start.max(start)..range.end.min(start + extent.blocks * block);
        if part.is_empty() {
            continue;
        }
        let whole = part.start / sector * sector..part.end.next_multiple_of(sector);
        let addr = fs.geometry().block_addr(extent.start_block) + (whole.start - start);
        let mut bytes = vec![0; at(whole.end - whole.start)];
        io.read_at(addr, &mut bytes)?;
        let from = &data[at(part.start - range.start)..at(part.end - range.start)];
        bytes[at(part.start - whole.start)..][..from.len()].copy_from_slice(from);
        io.write_at(addr, &bytes)?;
    }
    Ok(())
}

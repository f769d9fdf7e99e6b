//! The content of a regular file in an archive. A file with holes has only its data there, behind a
//! map of it: the number of pieces, and offset and length of each, one number a line (GNU tar's
//! sparse format 1.0).
//!
//! The map may be longer than memory: it is not kept, but made from the file's extents whenever it
//! is needed.

use std::io::{BufRead, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use xtent::volume::{File, Io};

use super::member::{BLOCK_BYTES, decimal_digits};
use crate::cli::failure::{Failure, OPERATION, check_interrupted};
use crate::cli::get::read::{CHUNK_BYTES, READ_AHEAD_BYTES, ended_early};

/// Why content is not complete.
pub(super) enum Stop {
    /// The volume: the archive goes on.
    Read(Failure),
    /// The archive itself.
    Write(Failure),
}

impl From<xtent::Error> for Stop {
    fn from(error: xtent::Error) -> Self {
        Self::Read(error.into())
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Read(failure) | Stop::Write(failure) => failure,
        }
    }
}

/// What a file has.
#[derive(Debug, Default)]
pub(super) struct TarContent {
    len_bytes: u64,
    data_bytes: u64,
    /// Pieces of data, with an empty one at the end of a file that ends in a hole.
    pieces: u64,
    /// Bytes of the map, without its first line.
    map_bytes: u64,
    /// All data was read already.
    is_read: bool,
}

impl TarContent {
    /// Looks at a file, and reads a short one into `chunk`.
    pub(super) fn of(file: &File, io: &mut Io, chunk: &mut Vec<u8>) -> Result<Self, Stop> {
        let mut content = Self {
            len_bytes: file.len(),
            ..Self::default()
        };
        each_piece(file, io, |_, piece| {
            content.data_bytes += piece.end - piece.start;
            content.pieces += 1;
            content.map_bytes += map_line_bytes(&piece);
            Ok(())
        })?;
        if content.data_bytes <= CHUNK_BYTES as u64 {
            chunk.clear();
            each_piece(file, io, |io, piece| {
                read_by_chunks(file, io, piece, &mut |bytes| {
                    chunk.extend_from_slice(bytes);
                    Ok(())
                })
            })?;
            if chunk.len() as u64 != content.data_bytes {
                return Err(changed(file));
            }
            content.is_read = true;
        }
        Ok(content)
    }

    pub(super) fn has_holes(&self) -> bool {
        self.data_bytes < self.len_bytes
    }

    fn whole_map_bytes(&self) -> u64 {
        decimal_digits(self.pieces) as u64 + 1 + self.map_bytes
    }

    /// Bytes that it takes in the archive.
    pub(super) fn archived_bytes(&self) -> u64 {
        if !self.has_holes() {
            return self.data_bytes;
        }
        self.whole_map_bytes().next_multiple_of(BLOCK_BYTES as u64) + self.data_bytes
    }

    /// Writes all of it by `put`.
    pub(super) fn write(
        &self,
        file: &File,
        io: &mut Io,
        chunk: &[u8],
        put: &mut impl FnMut(&[u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if self.has_holes() {
            self.write_map(file, io, put)?;
        }
        if self.is_read {
            return put(chunk);
        }
        each_piece(file, io, |io, piece| {
            if piece.end - piece.start >= READ_AHEAD_BYTES {
                read_ahead(file, io, piece, put)
            } else {
                read_by_chunks(file, io, piece, put)
            }
        })
    }

    fn write_map(
        &self,
        file: &File,
        io: &mut Io,
        put: &mut impl FnMut(&[u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        put(format!("{}\n", self.pieces).as_bytes())?;
        let mut left = self.map_bytes;
        each_piece(file, io, |_, piece| {
            left = left
                .checked_sub(map_line_bytes(&piece))
                .ok_or_else(|| changed(file))?;
            put(format!("{}\n{}\n", piece.start, piece.end - piece.start).as_bytes())
        })?;
        if left != 0 {
            return Err(changed(file));
        }
        let bytes = self.whole_map_bytes();
        let rest = bytes.next_multiple_of(BLOCK_BYTES as u64) - bytes;
        let rest = usize::try_from(rest).unwrap_or(0);
        put(&[0; BLOCK_BYTES][..rest])
    }
}

fn map_line_bytes(piece: &Range<u64>) -> u64 {
    (decimal_digits(piece.start) + decimal_digits(piece.end - piece.start)) as u64 + 2
}

/// Gives the pieces of data in order; an empty one at the end where the file ends in a hole.
fn each_piece(
    file: &File,
    io: &mut Io,
    mut each: impl FnMut(&mut Io, Range<u64>) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let len_bytes = file.len();
    let mut at = 0;
    while let Some(start) = file.seek_data(io, at)? {
        check_interrupted().map_err(Stop::Write)?;
        let end = file.seek_hole(io, start)?.unwrap_or(len_bytes);
        let end = end.min(len_bytes);
        if end <= start {
            break;
        }
        each(io, start..end)?;
        at = end;
    }
    if at < len_bytes {
        each(io, len_bytes..len_bytes)?;
    }
    Ok(())
}

fn read_by_chunks(
    file: &File,
    io: &mut Io,
    piece: Range<u64>,
    put: &mut impl FnMut(&[u8]) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut at = piece.start;
    let len = usize::try_from(piece.end - at).unwrap_or(usize::MAX);
    let mut chunk = vec![0; len.min(CHUNK_BYTES)];
    while at < piece.end {
        check_interrupted().map_err(Stop::Write)?;
        let left = usize::try_from(piece.end - at).unwrap_or(usize::MAX);
        let wanted = left.min(chunk.len());
        let n = file.read_at(io, &mut chunk[..wanted], at)?;
        if n == 0 {
            return Err(Stop::Read(ended_early(file)));
        }
        put(&chunk[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Reads a long piece, with several reads in flight.
fn read_ahead(
    file: &File,
    io: &mut Io,
    piece: Range<u64>,
    put: &mut impl FnMut(&[u8]) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let failed = |error: std::io::Error| Stop::Read(error.into());
    let mut reader = file.reader(io)?;
    reader.seek(SeekFrom::Start(piece.start)).map_err(failed)?;
    let mut at = piece.start;
    while at < piece.end {
        check_interrupted().map_err(Stop::Write)?;
        let left = usize::try_from(piece.end - at).unwrap_or(usize::MAX);
        let bytes = reader.fill_buf().map_err(failed)?;
        let n = bytes.len().min(left);
        if n == 0 {
            return Err(Stop::Read(ended_early(file)));
        }
        put(&bytes[..n])?;
        reader.consume(n);
        at += n as u64;
    }
    Ok(())
}

#[cold]
pub(super) fn changed(file: &File) -> Stop {
    let path = file.path().as_os_str().as_bytes().escape_ascii();
    let text = format!("{path}: its extents changed while it was read");
    Stop::Read(Failure::new(OPERATION, text))
}

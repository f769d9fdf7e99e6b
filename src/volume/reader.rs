//! `std::io` over a file: read ahead in large pieces.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

use super::bounce::done_of;
use super::core::{BOUNCE_BYTES, BOUNCE_COUNT};
use super::whole::target_of;
use super::{DmaBuf, File, Io};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::direct::{OperationToken, What};

/// Reads a file from front to back with several large reads in flight, by [`File::reader`].
///
/// As a [`BufRead`] it copies nothing: [`BufRead::fill_buf`] is the memory that the device wrote.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let file = volume.open_file(&mut io, "/data")?;
/// use std::io::BufRead;
/// for line in file.reader(&mut io)?.lines() {
///     println!("{}", line.expect("readable"));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileReader<'io> {
    file: File,
    io: &'io mut Io,
    position: u64,
    /// The piece that has the position, and its first byte.
    front: Option<ReaderPiece>,
    /// Pieces in flight, one after the other.
    ahead: VecDeque<(u64, OperationToken)>,
    /// First byte of the next piece.
    next: u64,
}

#[derive(Debug)]
struct ReaderPiece {
    start: u64,
    len: usize,
    buf: DmaBuf,
}

impl<'io> FileReader<'io> {
    pub(super) fn new(file: File, io: &'io mut Io) -> Self {
        io.reclaim_kept();
        Self {
            file,
            io,
            position: 0,
            front: None,
            ahead: VecDeque::with_capacity(BOUNCE_COUNT),
            next: 0,
        }
    }

    /// The bytes at the position that are here; empty at the end of the file. Waits for the device.
    fn available(&mut self) -> Result<&[u8]> {
        let position = self.position;
        if position >= self.file.len() {
            return Ok(&[]);
        }
        if self.in_front().is_none() {
            self.advance()?;
        }
        match (self.in_front(), &self.front) {
            (Some(skip), Some(piece)) => Ok(&piece.buf[skip..piece.len]),
            _ => Err(Error::new(
                ErrorKind::Io,
                "the device failed within the range",
            )),
        }
    }

    /// Where the position lies in the front piece.
    fn in_front(&self) -> Option<usize> {
        let piece = self.front.as_ref()?;
        let skip = usize::try_from(self.position.checked_sub(piece.start)?).ok()?;
        (skip < piece.len).then_some(skip)
    }

    /// Makes the piece that has the position the front one.
    fn advance(&mut self) -> Result<()> {
        if let Some(piece) = self.front.take() {
            self.io.core.rest(piece.buf);
        }
        let wanted = self.position - self.position % u64::from(self.io.block_bytes());
        if self
            .ahead
            .front()
            .is_some_and(|&(start, _)| start != wanted)
            || self.ahead.is_empty()
        {
            self.give_up_ahead();
            self.next = wanted;
        }
        self.fill_ahead()?;
        let Some((start, kept)) = self.ahead.pop_front() else {
            return Ok(());
        };
        let ended = self.io.core.wait(kept)?;
        let (len, failure) = done_of(ended.result);
        let is_there = start + len as u64 > self.position;
        match failure {
            // Data read before a failure comes first; the failure recurs with the read of the rest.
            None | Some(_) if is_there => {
                self.front = Some(ReaderPiece {
                    start,
                    len,
                    buf: ended.buf,
                });
            }
            Some(error) => {
                self.io.core.rest(ended.buf);
                self.give_up_ahead();
                return Err(error.with_bytes_done(0));
            }
            None => self.io.core.rest(ended.buf),
        }
        // One place is free again.
        self.fill_ahead()
    }

    fn fill_ahead(&mut self) -> Result<()> {
        // One buffer of the pool is the front piece's.
        while self.ahead.len() < BOUNCE_COUNT - 1 && self.next < self.file.len() {
            let buf = self.io.core.bounce()?;
            let met = self
                .io
                .before_direct(&self.file, What::Read, self.next, buf.len());
            if let Err(error) = met {
                self.io.core.rest(buf);
                return Err(error);
            }
            match self.io.submit_kept(&self.file, What::Read, self.next, buf) {
                Ok(kept) => self.ahead.push_back((self.next, kept)),
                Err(rejected) => {
                    self.io.core.rest(rejected.buf);
                    // The pieces in flight come first; when there are none, that is the answer.
                    return match rejected.error {
                        Some(error) if self.ahead.is_empty() => Err(error),
                        _ => Ok(()),
                    };
                }
            }
            self.next += BOUNCE_BYTES as u64;
        }
        Ok(())
    }

    /// Waits for the reads in flight and discards them.
    fn give_up_ahead(&mut self) {
        while let Some((_, kept)) = self.ahead.pop_front() {
            if let Ok(ended) = self.io.core.wait(kept) {
                self.io.core.rest(ended.buf);
            }
        }
    }
}

impl Drop for FileReader<'_> {
    fn drop(&mut self) {
        self.give_up_ahead();
        if let Some(piece) = self.front.take() {
            self.io.core.rest(piece.buf);
        }
    }
}

impl BufRead for FileReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let position = self.position;
        let file = self.file.clone();
        self.available()
            .map_err(|error| file.explain(error, "read", position).into())
    }

    fn consume(&mut self, amount: usize) {
        self.position = self.position.saturating_add(amount as u64);
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let here = self.fill_buf()?;
        let n = here.len().min(buf.len());
        buf[..n].copy_from_slice(&here[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl Seek for FileReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = target_of(to, self.position, self.file.len())?;
        Ok(self.position)
    }
}

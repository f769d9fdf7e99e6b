//! `std::io` over a file: read ahead in large pieces.

use std::io::{self, Read, Seek, SeekFrom};

use super::{File, Io};
use crate::error::Result;

/// Reads a file from front to back with several large reads in flight, by [`File::reader`].
#[derive(Debug)]
pub struct FileReader<'io> {
    file: File,
    io: &'io mut Io,
    position: u64,
}

impl<'io> FileReader<'io> {
    pub(super) fn new(file: File, io: &'io mut Io) -> Result<Self> {
        Ok(Self {
            file,
            io,
            position: 0,
        })
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_into(self.io, buf, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for FileReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.file.len_bytes().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek before the start or past the end of 64 bits",
            )
        })?;
        Ok(self.position)
    }
}

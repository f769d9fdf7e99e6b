//! xtent's page cache under load: calls that return when they are done, into and out of ordinary
//! memory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use xtent::volume::{File, Io, OpenOptions, Volume};
use xtent::{Error, ErrorKind, Result};

use super::{Engine, LoadOp};

/// A file of a volume, through its page cache. Every byte is copied once, as by `pread` and
/// `pwrite`.
#[derive(Debug)]
pub(crate) struct BufferedEngine {
    io: Io,
    file: File,
    buffer: Vec<u8>,
    ended: Option<Result<usize>>,
}

impl BufferedEngine {
    pub(crate) fn new(
        volume: &Volume,
        path: &[u8],
        write: bool,
        block_bytes: usize,
    ) -> Result<Self> {
        let mut io = volume.io()?;
        let options = OpenOptions::new().read(true).write(write).buffered(true);
        let file = options.open(volume, &mut io, OsStr::from_bytes(path))?;
        Ok(Self {
            io,
            file,
            buffer: super::zeroed(block_bytes)?,
            ended: None,
        })
    }
}

impl Engine for BufferedEngine {
    fn slot_mut(&mut self, _: usize) -> &mut [u8] {
        &mut self.buffer
    }

    #[inline]
    fn submit(&mut self, _: usize, op: LoadOp, offset_bytes: u64) -> Result<()> {
        if self.ended.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "buffered I/O has one operation at a time",
            ));
        }
        let io = &mut self.io;
        self.ended = Some(match op {
            LoadOp::Read => self.file.read_at(io, &mut self.buffer, offset_bytes),
            LoadOp::Write => self.file.write_at(io, &self.buffer, offset_bytes),
        });
        Ok(())
    }

    #[inline]
    fn poll(&mut self, done: &mut impl FnMut(usize, Result<usize>)) -> Result<()> {
        if let Some(result) = self.ended.take() {
            done(0, result);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data(&mut self.io)
    }
}

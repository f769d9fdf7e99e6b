//! xtent's page cache under load: calls that return when they are done, into and out of ordinary
//! memory.

use xtent::volume::{File, Io, SetTime, Volume};
use xtent::{Error, ErrorKind, Result};

use super::workload::Workload;
use super::xtent_engine::{open, sync};
use super::{Engine, LoadOp, SyncKind};

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
    pub(crate) fn new(volume: &Volume, path: &[u8], workload: &Workload) -> Result<Self> {
        let mut io = volume.io()?;
        let file = open(volume, &mut io, path, workload)?;
        Ok(Self {
            io,
            file,
            buffer: super::zeroed(workload.block_bytes)?,
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

    fn sync(&mut self, kind: SyncKind) -> Result<()> {
        sync(&self.file, &mut self.io, kind)
    }

    fn touch(&mut self) -> Result<()> {
        self.file.set_times(&mut self.io, None, Some(SetTime::Now))
    }
}

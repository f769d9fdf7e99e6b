//! xtent itself under load: many operations in flight on one thread's queue pair.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use xtent::volume::{DmaBuf, File, Io, OpenOptions, SetTime, SubmitReason, Volume};
use xtent::{Error, ErrorKind, Result};

use super::workload::{Workload, WriteSync};
use super::{Engine, LoadOp, SyncKind};

/// A file of a volume, through this thread's [`Io`]. Buffers are DMA memory: nothing is copied.
#[derive(Debug)]
pub(crate) struct XtentEngine {
    io: Io,
    file: File,
    /// `None` while the device has it.
    buffers: Vec<Option<DmaBuf>>,
}

impl XtentEngine {
    pub(crate) fn new(volume: &Volume, path: &[u8], workload: &Workload) -> Result<Self> {
        let depth = workload.iodepth;
        let mut io = volume.io()?;
        if io.depth() < depth {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "--iodepth {depth} is more than the target was opened for ({})",
                    io.depth()
                ),
            ));
        }
        let file = open(volume, &mut io, path, workload)?;
        let buffers = (0..depth)
            .map(|_| io.alloc(workload.block_bytes).map(Some))
            .collect::<Result<_>>()?;
        Ok(Self { io, file, buffers })
    }
}

/// Opens the file of a workload.
pub(super) fn open(volume: &Volume, io: &mut Io, path: &[u8], workload: &Workload) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(workload.rw.writes())
        .buffered(workload.buffered)
        .dsync(workload.sync != WriteSync::None)
        .open(volume, io, OsStr::from_bytes(path))
}

/// A sync of a file of a volume.
pub(super) fn sync(file: &File, io: &mut Io, kind: SyncKind) -> Result<()> {
    match kind {
        SyncKind::Data => file.sync_data(io),
        SyncKind::All => file.sync_all(io),
    }
}

impl Engine for XtentEngine {
    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        match self.buffers.get_mut(slot) {
            Some(Some(buffer)) => buffer,
            _ => &mut [],
        }
    }

    #[inline]
    fn submit(&mut self, slot: usize, op: LoadOp, offset_bytes: u64) -> Result<()> {
        let Some(buffer) = self.buffers.get_mut(slot).and_then(Option::take) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the slot is in flight"));
        };
        let result = match op {
            LoadOp::Read => self
                .io
                .submit_read(&self.file, offset_bytes, buffer, slot as u64),
            LoadOp::Write => self
                .io
                .submit_write(&self.file, offset_bytes, buffer, slot as u64),
        };
        result.map_err(|refused| {
            self.buffers[slot] = Some(refused.buf);
            match refused.reason {
                SubmitReason::Error(error) => error,
                SubmitReason::Full => Error::new(
                    ErrorKind::WouldBlock,
                    "the queue is full although the depth was kept",
                ),
            }
        })
    }

    #[inline]
    fn poll(&mut self, done: &mut impl FnMut(usize, Result<usize>)) -> Result<()> {
        let buffers = &mut self.buffers;
        // While the one half is filled anew the device has the other.
        let budget = buffers.len().div_ceil(2);
        let ended = self.io.poll(budget, |end| {
            let slot = usize::try_from(end.user_data).unwrap_or(usize::MAX);
            if let Some(buffer) = buffers.get_mut(slot) {
                *buffer = Some(end.buf);
                done(slot, end.result);
            }
        });
        if ended == 0 {
            self.io.relax();
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

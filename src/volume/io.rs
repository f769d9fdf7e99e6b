//! A thread's way to a volume: its queue pair, its memory, its operations in flight.

use std::fmt;

use super::{DmaBuf, File};
use crate::error::{Error, Result};

/// One thread's handle to a volume. Not shared: every thread takes its own from
/// [`super::Volume::io`]. It may move to another thread.
///
/// Blocking calls are on [`File`]; here are the calls for many operations in flight:
///
/// ```no_run
/// # use xtent::volume::{Volume, VolumeOptions};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img", &VolumeOptions::default())?;
/// let mut io = volume.io()?;
/// let file = volume.open_file(&mut io, "/data")?;
/// for i in 0..8 {
///     let buf = io.alloc(4096)?;
///     io.submit_read(&file, i * 4096, buf, i)?;
/// }
/// while io.outstanding() > 0 {
///     let ended = io.poll(8, |done| println!("{}: {:?}", done.user_data, done.result));
///     if ended == 0 {
///         io.relax();
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Io {
    depth: usize,
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Done {
    /// What it was submitted with.
    pub user_data: u64,
    /// Its buffer; empty for a sync.
    pub buf: DmaBuf,
    /// Bytes read or written, contiguous from the offset, up to the first failure if there was one;
    /// the error when there are none.
    pub result: Result<usize>,
}

/// Why an operation was not taken.
#[derive(Debug)]
pub enum SubmitReason {
    /// As many operations are in flight as this handle has room for: poll, then submit again.
    Full,
    /// It will never be taken as it is.
    Error(Error),
}

/// An operation that was not taken, with its buffer.
pub struct SubmitError {
    /// The buffer, unchanged.
    pub buf: DmaBuf,
    /// Why.
    pub reason: SubmitReason,
}

impl fmt::Debug for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            SubmitReason::Full => {
                f.write_str("as many operations are in flight as there is room for")
            }
            SubmitReason::Error(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SubmitError {}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        match error.reason {
            SubmitReason::Full => Error::new(crate::ErrorKind::OutOfMemory, error.to_string()),
            SubmitReason::Error(error) => error,
        }
    }
}

impl Io {
    /// A zeroed buffer for direct I/O: any length, aligned to 4 KiB.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfMemory`].
    pub fn alloc(&self, len_bytes: usize) -> Result<DmaBuf> {
        let _ = len_bytes;
        Err(super::open::not_yet())
    }

    /// What offsets and lengths of direct I/O are multiples of, in bytes.
    pub fn block_bytes(&self) -> u32 {
        512
    }

    /// Operations that can be in flight at once.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Starts a read of `buf.len()` bytes at `offset`. It ends at a later [`Io::poll`].
    ///
    /// # Errors
    /// [`SubmitError`] with the buffer; nothing was started then.
    pub fn submit_read(
        &mut self,
        file: &File,
        offset: u64,
        buf: DmaBuf,
        user_data: u64,
    ) -> Result<(), SubmitError> {
        let _ = (file, offset, user_data);
        Err(SubmitError {
            buf,
            reason: SubmitReason::Error(super::open::not_yet()),
        })
    }

    /// Starts an overwrite of `buf.len()` bytes at `offset`. It ends at a later [`Io::poll`].
    ///
    /// # Errors
    /// [`SubmitError`] with the buffer; nothing was started then.
    pub fn submit_write(
        &mut self,
        file: &File,
        offset: u64,
        buf: DmaBuf,
        user_data: u64,
    ) -> Result<(), SubmitError> {
        let _ = (file, offset, user_data);
        Err(SubmitError {
            buf,
            reason: SubmitReason::Error(super::open::not_yet()),
        })
    }

    /// Starts making durable what was completed before. It ends at a later [`Io::poll`].
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was started then.
    pub fn submit_sync(&mut self, file: &File, user_data: u64) -> Result<(), SubmitError> {
        let _ = (file, user_data);
        Err(SubmitError {
            buf: DmaBuf::default(),
            reason: SubmitReason::Error(super::open::not_yet()),
        })
    }

    /// Tells the device of what was submitted, and hands every operation that has ended to `done`, at most
    /// `budget` of them; returns how many. Never waits.
    pub fn poll(&mut self, budget: usize, done: impl FnMut(Done)) -> usize {
        let _ = (budget, done);
        0
    }

    /// Operations submitted and not yet handed over.
    pub fn outstanding(&self) -> usize {
        0
    }

    /// To be called between polls that found nothing, by a caller with nothing else to do.
    pub fn relax(&mut self) {}
}

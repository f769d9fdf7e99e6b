//! Calls of a [`File`] made of several others: exact and vectored reads, vectored writes, `std::io`
//! writes.

use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom, Write};

use super::{File, Io};
use crate::error::{Error, ErrorKind, Result};

impl File {
    /// Reads all of `buf`, at any offset and length, as
    /// [`std::os::unix::fs::FileExt::read_exact_at`].
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] when the file ends before, with the bytes that were read
    /// ([`Error::bytes_done`]), which are in `buf`; as [`File::read_at`].
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let mut header = [0; 100];
    /// volume.open_file(&mut io, "/data")?.read_exact_at(&mut io, &mut header, 4000)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_exact_at(&self, io: &mut Io, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            match self.read_at(io, &mut buf[done..], at) {
                Ok(0) => {
                    let error = Error::new(ErrorKind::UnexpectedEof, "the file ends before");
                    return Err(self.explain(error.with_bytes_done(done), "read", offset));
                }
                Ok(n) => done += n,
                Err(error) => return Err(error.after_bytes(done)),
            }
        }
        Ok(())
    }

    /// Reads into several buffers, one after the other, as preadv(2): returns the bytes read, fewer
    /// than asked only at the end of the file. The buffers are filled by separate operations.
    ///
    /// # Errors
    /// As [`File::read_at`]; the bytes done count from the first buffer.
    pub fn read_vectored_at(
        &self,
        io: &mut Io,
        bufs: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> Result<usize> {
        let bufs = bufs.iter_mut().map(|buf| (buf.len(), buf));
        in_turn(bufs, offset, |buf, at| self.read_at(io, buf, at))
    }

    /// Overwrites with several buffers, one after the other, as pwritev(2): returns the bytes
    /// written. For direct I/O the length of each buffer must be a multiple of [`Io::block_bytes`],
    /// as for the kernel's O_DIRECT. The buffers are written by separate operations.
    ///
    /// # Errors
    /// As [`File::write_at`]; the bytes done count from the first buffer.
    pub fn write_vectored_at(
        &self,
        io: &mut Io,
        bufs: &[IoSlice<'_>],
        offset: u64,
    ) -> Result<usize> {
        let bufs = bufs.iter().map(|buf| (buf.len(), buf));
        in_turn(bufs, offset, |buf, at| self.write_at(io, buf, at))
    }

    /// A writer that overwrites from the file's start, for programs that write to
    /// [`std::io::Write`].
    ///
    /// # Errors
    /// When the file was not opened for writing or `io` belongs to another volume.
    ///
    /// ```no_run
    /// # use xtent::volume::{OpenOptions, Volume};
    /// # use std::io::{BufWriter, Write};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let file = OpenOptions::new().write(true).open(&volume, &mut io, "/data")?;
    /// let mut writer = BufWriter::with_capacity(1 << 20, file.writer(&mut io)?);
    /// writeln!(writer, "a line")?;
    /// writer.flush()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn writer<'io>(&self, io: &'io mut Io) -> Result<FileWriter<'io>> {
        io.check_write(self)
            .map_err(|error| self.explain(error, "write", 0))?;
        Ok(FileWriter {
            file: self.clone(),
            io,
            position: 0,
        })
    }
}

/// Does one operation for each buffer, given with its length, up to the first that comes short; the
/// bytes done.
fn in_turn<B>(
    bufs: impl Iterator<Item = (usize, B)>,
    offset: u64,
    mut operation: impl FnMut(B, u64) -> Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    for (len, buf) in bufs {
        let at = offset.saturating_add(done as u64);
        let n = operation(buf, at).map_err(|error| error.after_bytes(done))?;
        done += n;
        if n < len {
            break;
        }
    }
    Ok(done)
}

/// Overwrites a file from front to back, by [`File::writer`].
///
/// Each call is one blocking [`File::write_all_at`]: wrap it in a [`std::io::BufWriter`] with a
/// large buffer. `flush` does nothing, as that of [`std::fs::File`]: [`File::sync_data`] makes data
/// durable.
///
/// ```no_run
/// # use xtent::volume::{OpenOptions, Volume};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let options = OpenOptions::new().write(true).buffered(true);
/// # let file = options.open(&volume, &mut io, "/data")?;
/// use std::io::Write;
/// let mut writer = file.writer(&mut io)?;
/// writeln!(writer, "overwrites the first line").expect("writable");
/// writer.flush().expect("durable");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileWriter<'io> {
    file: File,
    io: &'io mut Io,
    position: u64,
}

impl Write for FileWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(self.io, buf, self.position)?;
        self.position += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for FileWriter<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = target_of(to, self.position, self.file.len())?;
        Ok(self.position)
    }
}

/// Where a seek leads to.
pub(super) fn target_of(to: SeekFrom, position: u64, len: u64) -> io::Result<u64> {
    let target = match to {
        SeekFrom::Start(offset) => Some(offset),
        SeekFrom::End(delta) => len.checked_add_signed(delta),
        SeekFrom::Current(delta) => position.checked_add_signed(delta),
    };
    target.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "seek before the start or past the end of 64 bits",
        )
    })
}

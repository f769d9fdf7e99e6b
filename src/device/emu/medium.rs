//! Where an embedded controller keeps its blocks: a file, or memory that is taken when it is
//! written.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::host_range::HostRange;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{DmaRange, DmaSpace};
use crate::nvme::spec::{
    SC_CAPACITY_EXCEEDED, SC_DATA_TRANSFER, SC_NAMESPACE_WRITE_PROTECTED, SC_UNRECOVERED_READ,
    SC_WRITE_FAULT, StatusField,
};
use crate::sys::{self, GateWriter, HeldFile};

/// Bytes of memory that are taken at a time. The system backs them page by page as they are
/// touched.
const CHUNK_BYTES: usize = 2 << 20;

/// A file or memory behind an embedded controller.
///
/// Memory is sparse: `Medium::memory(8 << 30)` uses memory for written blocks only, not 8 GiB.
pub struct Medium {
    store: Store,
    len_bytes: u64,
    read_only: bool,
}

enum Store {
    Memory(Vec<Option<Box<[u8]>>>),
    File(FileStore),
}

/// A file whose writes can be stopped by the watcher of its lease.
struct FileStore {
    held: Arc<HeldFile>,
    writer: GateWriter,
    /// The process may not write beyond it (`RLIMIT_FSIZE`): the kernel would end it with SIGXFSZ.
    limit_bytes: u64,
}

impl FileStore {
    fn new(held: Arc<HeldFile>) -> Self {
        Self {
            writer: held.gate().writer(),
            limit_bytes: sys::file_size_limit(),
            held,
        }
    }

    /// Runs a write that ends at byte `end`, unless it may not be.
    #[inline]
    fn writing<T>(
        &mut self,
        end: u64,
        write: impl FnOnce(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        if end > self.limit_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if !self.writer.enter_waiting() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let result = if self.held.has(end) {
            write(self.held.file())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        };
        self.writer.leave();
        result
    }
}

impl Medium {
    /// Memory of `len_bytes`, all zeroes.
    pub fn memory(len_bytes: u64) -> Self {
        // More chunks than a host can address make no medium; the length says so where it is
        // checked.
        let chunks = usize::try_from(len_bytes.div_ceil(CHUNK_BYTES as u64)).unwrap_or(0);
        let mut store = Vec::new();
        let enough = store.try_reserve_exact(chunks).is_ok();
        if enough {
            store.resize_with(chunks, || None);
        }
        Self {
            store: Store::Memory(store),
            len_bytes: if enough { len_bytes } else { 0 },
            read_only: false,
        }
    }

    /// The file (or block device) at `path`. Its length now is the medium's length.
    ///
    /// # Errors
    /// Those of opening it, with the path.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self> {
        let path = path.as_ref();
        let name = path.as_os_str().as_encoded_bytes();
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|e| Error::system("cannot open the image", e).at_path(name))?;
        Self::file(file, read_only).map_err(|e| e.at_path(name))
    }

    /// An open file (or block device). With `read_only` the namespace is write protected.
    ///
    /// # Errors
    /// When its length cannot be found, or it is a directory.
    pub fn file(file: File, read_only: bool) -> Result<Self> {
        let held = HeldFile::unwatched(file)
            .map_err(|e| Error::system("cannot find the image's length", e))?;
        Self::held(Arc::new(held), read_only)
    }

    /// As [`Medium::file`]; writes stop when the file is lost to another process.
    ///
    /// # Errors
    /// As [`Medium::file`].
    pub fn held(held: Arc<HeldFile>, read_only: bool) -> Result<Self> {
        let system = |e| Error::system("cannot find the image's length", e);
        let mut file: &File = held.file();
        if file.metadata().map_err(system)?.is_dir() {
            return Err(Error::new(
                ErrorKind::IsADirectory,
                "an image must be a file or a block device, not a directory",
            ));
        }
        let len_bytes = file.seek(SeekFrom::End(0)).map_err(system)?;
        Ok(Self {
            store: Store::File(FileStore::new(held)),
            len_bytes,
            read_only,
        })
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes of memory taken so far; 0 for a file.
    pub fn taken_bytes(&self) -> u64 {
        match &self.store {
            Store::Memory(chunks) => (chunks.iter().flatten().count() * CHUNK_BYTES) as u64,
            Store::File(_) => 0,
        }
    }

    /// Reads bytes without a controller (for tools and tests).
    ///
    /// # Errors
    /// Past the end, or when the file cannot be read.
    pub fn read_at(&self, offset_bytes: u64, to: &mut [u8]) -> Result<()> {
        self.check_range("read", offset_bytes, to.len())?;
        self.copy_out(offset_bytes, to).map_err(|e| {
            Error::system("cannot read the medium", e)
                .during("read")
                .at_offset(offset_bytes)
        })
    }

    /// Writes bytes without a controller (for tools and tests).
    ///
    /// # Errors
    /// Past the end, or when the file cannot be written.
    pub fn write_at(&mut self, offset_bytes: u64, from: &[u8]) -> Result<()> {
        self.check_range("write", offset_bytes, from.len())?;
        self.copy_in(offset_bytes, from).map_err(|e| {
            Error::system("cannot write the medium", e)
                .during("write")
                .at_offset(offset_bytes)
        })
    }

    fn check_range(&self, operation: &'static str, offset: u64, len: usize) -> Result<()> {
        let end = offset.checked_add(len as u64);
        if end.is_some_and(|end| end <= self.len_bytes) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{len} bytes run past the medium's {} bytes", self.len_bytes),
        )
        .during(operation)
        .at_offset(offset))
    }

    /// Copies bytes out. The range lies inside the medium.
    pub(super) fn copy_out(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        match &self.store {
            Store::File(file) => file.held.file().read_exact_at(to, offset),
            Store::Memory(chunks) => {
                let mut to = to;
                for (at, range) in pieces(offset, to.len() as u64) {
                    let (here, rest) = to.split_at_mut(range.len());
                    match chunks.get(at).and_then(Option::as_ref) {
                        Some(chunk) => here.copy_from_slice(&chunk[range]),
                        None => here.fill(0),
                    }
                    to = rest;
                }
                Ok(())
            }
        }
    }

    /// Copies bytes in. The range lies inside the medium.
    pub(super) fn copy_in(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        match &mut self.store {
            Store::File(file) => file.writing(offset + from.len() as u64, |file| {
                file.write_all_at(from, offset)
            }),
            Store::Memory(chunks) => {
                let mut from = from;
                for (at, range) in pieces(offset, from.len() as u64) {
                    let (here, rest) = from.split_at(range.len());
                    chunk(chunks, at)?[range].copy_from_slice(here);
                    from = rest;
                }
                Ok(())
            }
        }
    }

    /// Device to host memory. The range lies inside the medium.
    pub(super) fn read(&self, offset: u64, transfer: Transfer<'_>) -> Result<(), StatusField> {
        let mut offset = offset;
        for segment in transfer.segments {
            let len = u64::from(segment.len_bytes);
            match &self.store {
                Store::File(file) => transfer.file(segment, offset, SC_UNRECOVERED_READ, {
                    |range, at| range.read_file(file.held.file(), at)
                })?,
                Store::Memory(chunks) => {
                    let mut done = 0;
                    for (at, range) in pieces(offset, len) {
                        let host = transfer.translate(segment, done, range.len())?;
                        done += range.len();
                        match chunks.get(at).and_then(Option::as_ref) {
                            Some(chunk) => host.copy_from(&chunk[range]),
                            None => host.zero(),
                        }
                    }
                }
            }
            offset += len;
        }
        Ok(())
    }

    /// Host memory to device. The range lies inside the medium.
    pub(super) fn write(&mut self, offset: u64, transfer: Transfer<'_>) -> Result<(), StatusField> {
        let mut offset = offset;
        for segment in transfer.segments {
            let len = u64::from(segment.len_bytes);
            match &mut self.store {
                Store::File(file) => transfer.file(segment, offset, SC_WRITE_FAULT, {
                    |range, at| {
                        let end = at + range.len_bytes() as u64;
                        file.writing(end, |file| range.write_file(file, at))
                    }
                })?,
                Store::Memory(chunks) => {
                    let mut done = 0;
                    for (at, range) in pieces(offset, len) {
                        let host = transfer.translate(segment, done, range.len())?;
                        done += range.len();
                        let chunk = chunk(chunks, at).map_err(|e| write_status(&e))?;
                        host.copy_to(&mut chunk[range]);
                    }
                }
            }
            offset += len;
        }
        Ok(())
    }

    /// Makes a range read as zeroes; with `free` its space may be given up. The range lies inside.
    pub(super) fn zero(&mut self, offset: u64, len: u64, free: bool) -> Result<(), StatusField> {
        match &mut self.store {
            Store::File(file) => file
                .writing(offset + len, |file| zero_file(file, offset, len, free))
                .map_err(|e| write_status(&e)),
            Store::Memory(chunks) => {
                for (at, range) in pieces(offset, len) {
                    let Some(slot) = chunks.get_mut(at) else {
                        break;
                    };
                    if range.len() == CHUNK_BYTES {
                        *slot = None;
                    } else if let Some(chunk) = slot {
                        chunk[range].fill(0);
                    }
                }
                Ok(())
            }
        }
    }

    /// Makes everything written durable, and looks whether the file is still this process's alone:
    /// an error when it is not, for then it may not be what was written.
    pub(super) fn flush(&mut self) -> Result<(), StatusField> {
        if let Store::File(file) = &self.store
            && !self.read_only
        {
            let _ = file.held.look_again();
        }
        self.settle()
    }

    /// As [`Medium::flush`] without the look, for durable writes: an error when an earlier look, or
    /// the file's watcher, found that it was lost.
    pub(super) fn settle(&mut self) -> Result<(), StatusField> {
        match &self.store {
            Store::File(file) if !self.read_only => {
                let synced = file.held.file().sync_data();
                match file.held.lost() {
                    Some(_) => Err(write_status(&io::ErrorKind::ReadOnlyFilesystem.into())),
                    None => synced.map_err(|e| write_status(&e)),
                }
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.store {
            Store::Memory(_) => "memory",
            Store::File(_) => "file",
        };
        let access = if self.read_only { ", read-only" } else { "" };
        write!(f, "Medium({kind} of {} bytes{access})", self.len_bytes)
    }
}

/// The host memory of a command, as device addresses that are looked up when they are used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) space: &'a DmaSpace,
    pub(super) segments: &'a [HostRange],
}

impl Transfer<'_> {
    #[inline]
    fn translate(
        &self,
        segment: &HostRange,
        skip: usize,
        len: usize,
    ) -> Result<DmaRange, StatusField> {
        self.space
            .translate(segment.iova.offset(skip as u64), len)
            .map_err(|_| SC_DATA_TRANSFER)
    }

    /// Moves a segment by `pread` or `pwrite`, again and again until it is all moved.
    fn file(
        &self,
        segment: &HostRange,
        offset: u64,
        short: StatusField,
        mut io: impl FnMut(&DmaRange, u64) -> io::Result<usize>,
    ) -> Result<(), StatusField> {
        let len = segment.len_bytes as usize;
        let mut done = 0;
        while done < len {
            let host = self.translate(segment, done, len - done)?;
            match io(&host, offset + done as u64) {
                // The file became shorter than it was.
                Ok(0) => return Err(short),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if short == SC_UNRECOVERED_READ => return Err(short),
                Err(e) => return Err(write_status(&e)),
            }
        }
        Ok(())
    }

    /// All of the host memory, one after the other, into `to`, which is as long.
    pub(super) fn gather(&self, to: &mut [u8]) -> Result<(), StatusField> {
        let mut to = to;
        for segment in self.segments {
            let host = self.translate(segment, 0, segment.len_bytes as usize)?;
            let (here, rest) = to
                .split_at_mut_checked(host.len_bytes())
                .ok_or(SC_DATA_TRANSFER)?;
            host.copy_to(here);
            to = rest;
        }
        Ok(())
    }

    /// `from` into the host memory, which is as long.
    pub(super) fn scatter(&self, from: &[u8]) -> Result<(), StatusField> {
        let mut from = from;
        for segment in self.segments {
            let host = self.translate(segment, 0, segment.len_bytes as usize)?;
            let (here, rest) = from
                .split_at_checked(host.len_bytes())
                .ok_or(SC_DATA_TRANSFER)?;
            host.copy_from(here);
            from = rest;
        }
        Ok(())
    }
}

/// The status of a write that failed on the host.
pub(super) fn write_status(error: &io::Error) -> StatusField {
    match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::OutOfMemory => SC_CAPACITY_EXCEEDED,
        // Another process has the file.
        io::ErrorKind::ReadOnlyFilesystem => SC_NAMESPACE_WRITE_PROTECTED.do_not_retry(),
        _ => SC_WRITE_FAULT,
    }
}

/// A byte range of the medium as ranges of chunks.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, Range<usize>)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let skip = at % CHUNK_BYTES as u64;
        let take = (CHUNK_BYTES as u64 - skip).min(end - at);
        let chunk = usize::try_from(at / CHUNK_BYTES as u64).ok()?;
        let start = usize::try_from(skip).ok()?;
        let range = start..start + usize::try_from(take).ok()?;
        at += take;
        Some((chunk, range))
    })
}

/// The chunk, taken now if it was not.
fn chunk(chunks: &mut [Option<Box<[u8]>>], at: usize) -> io::Result<&mut [u8]> {
    let slot = chunks
        .get_mut(at)
        .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
    match slot {
        Some(chunk) => Ok(chunk),
        None => {
            let zeroes = sys::zeroed_bytes(CHUNK_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(slot.insert(zeroes))
        }
    }
}

fn zero_file(file: &File, offset: u64, len: u64, free: bool) -> io::Result<()> {
    let cheap = if free {
        sys::punch_hole(file, offset, len)
    } else {
        sys::zero_range(file, offset, len).or_else(|_| sys::punch_hole(file, offset, len))
    };
    match cheap {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
        done => return done,
    }
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = offset;
    while at < offset + len {
        let n = (offset + len - at).min(ZEROES.len() as u64);
        let piece = usize::try_from(n).map_or(&ZEROES[..], |n| &ZEROES[..n]);
        file.write_all_at(piece, at)?;
        at += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_when_written_and_given_back_when_zeroed() {
        let mut medium = Medium::memory(8 << 40);
        assert_eq!(medium.taken_bytes(), 0);
        let at = (3 << 40) + CHUNK_BYTES as u64 - 100;
        medium.write_at(at, &[7; 300]).unwrap();
        assert_eq!(medium.taken_bytes(), 2 * CHUNK_BYTES as u64);
        let mut bytes = [1; 302];
        medium.read_at(at - 1, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[1], bytes[300], bytes[301]), (0, 7, 7, 0));
        medium.zero(3 << 40, CHUNK_BYTES as u64, true).unwrap();
        assert_eq!(medium.taken_bytes(), CHUNK_BYTES as u64);
        medium.zero(at, 150, false).unwrap();
        medium.read_at(at - 1, &mut bytes).unwrap();
        assert_eq!((bytes[150], bytes[151]), (0, 7));
    }

    #[test]
    fn ranges_past_the_end_are_refused() {
        let mut medium = Medium::memory(4096);
        assert!(medium.write_at(4090, &[0; 7]).is_err());
        assert!(medium.read_at(u64::MAX, &mut [0; 1]).is_err());
        assert_eq!(Medium::memory(u64::MAX).len_bytes(), 0);
    }

    #[test]
    fn a_flush_of_a_file_that_was_lost_is_an_error() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let file = open();
        file.set_len(8192).unwrap();
        let held = Arc::new(HeldFile::looked_at(file).unwrap());
        let mut medium = Medium::held(held, false).unwrap();
        medium.write_at(0, &[1; 4096]).unwrap();
        assert_eq!((medium.flush(), medium.settle()), (Ok(()), Ok(())));
        open().set_len(4096).unwrap();
        let lost = Err(SC_NAMESPACE_WRITE_PROTECTED.do_not_retry());
        assert_eq!((medium.flush(), medium.settle()), (lost, lost));
    }

    #[test]
    fn a_file_zeroes_with_and_without_freeing() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 256 << 10], 0).unwrap();
        let mut medium = Medium::file(file, false).unwrap();
        medium.zero(4096, 100 << 10, false).unwrap();
        medium.zero(128 << 10, 512, true).unwrap();
        let mut bytes = vec![1; 256 << 10];
        medium.read_at(0, &mut bytes).unwrap();
        assert_eq!((bytes[4095], bytes[4096], bytes[104 << 10]), (9, 0, 9));
        assert_eq!(bytes[128 << 10..(128 << 10) + 513][510..], [0, 0, 9]);
        assert!(Medium::open("/", true).is_err());
    }
}

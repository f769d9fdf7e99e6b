//! What a [`File`] offers beyond reads and writes when it is opened buffered: views, hints, parts
//! of syncs.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use bitflags::bitflags;

use super::super::inodes::locked;
use super::super::{File, Io, View, ViewMut};
use super::write::{lock_blocks, make_way, stopped};
use super::{read, write};
use crate::cache::{BoundedWait, FileCache, LOCK_LIMIT, NotLent, Tally};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::buffered;
use crate::mem::pages::{PAGE_BYTES, Which};

const PAGE: u64 = PAGE_BYTES as u64;
/// Pages that an uncached read or write goes through at once.
const STREAM_PAGES: usize = 512;

/// What a program says of the I/O to come, as with `posix_fadvise`.
///
/// ```no_run
/// # use xtent::volume::{OpenOptions, Volume};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let options = OpenOptions::new().write(true).buffered(true);
/// # let file = options.open(&volume, &mut io, "/data")?;
/// use xtent::volume::Advice;
/// file.advise(&mut io, 0..1 << 20, Advice::WillNeed)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Nothing: sequential reads are noticed, and read ahead of. For the whole file, by this
    /// handle.
    Normal,
    /// From front to back: read ahead as far as it goes. For the whole file, by this handle.
    Sequential,
    /// Anywhere: nothing is read that was not asked for. For the whole file, by this handle.
    Random,
    /// The range is needed soon: what of it is not cached begins to be read, an eighth of the cache
    /// at most.
    WillNeed,
    /// The range is not needed any more: it is written back where it is dirty, and its pages go.
    DontNeed,
}

/// As `file::advice` has it.
pub(super) fn advice_of(code: u8) -> buffered::ReadAdvice {
    match code {
        1 => buffered::ReadAdvice::Sequential,
        2 => buffered::ReadAdvice::Random,
        _ => buffered::ReadAdvice::Normal,
    }
}

bitflags! {
    /// How one read or write is done.
    ///
    /// ```no_run
    /// # use xtent::volume::{OpenOptions, Volume};
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// # let options = OpenOptions::new().write(true).buffered(true);
    /// # let file = options.open(&volume, &mut io, "/data")?;
    /// use xtent::volume::RwFlags;
    /// let mut buf = vec![0; 65536];
    /// file.read_with(&mut io, &mut buf, 0, RwFlags::DONTCACHE)?;
    /// # Ok(())
    /// # }
    /// ```
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct RwFlags: u8 {
        /// As Linux's `RWF_DONTCACHE`: pages that the call brought into the cache are dropped after
        /// it, so that a stream that is read once does not fill the cache; a write is on the device
        /// when the call returns (durable only after a sync). Best with pieces of 1 MiB and more:
        /// there is no read-ahead. No effect on direct I/O.
        const DONTCACHE = 1;
    }
}

impl File {
    /// As [`File::read_at`], in a way of its own.
    ///
    /// # Errors
    /// As [`File::read_at`].
    pub fn read_with(
        &self,
        io: &mut Io,
        buf: &mut [u8],
        offset: u64,
        flags: RwFlags,
    ) -> Result<usize> {
        if !self.shared.options.buffered || !flags.contains(RwFlags::DONTCACHE) {
            return self.read_at(io, buf, offset);
        }
        io.check_read(self)
            .and_then(|()| self.stream_in(io, buf, offset))
            .map_err(|error| self.explain(error, "read", offset))
    }

    /// As [`File::write_at`], in a way of its own.
    ///
    /// # Errors
    /// As [`File::write_at`].
    pub fn write_with(
        &self,
        io: &mut Io,
        buf: &[u8],
        offset: u64,
        flags: RwFlags,
    ) -> Result<usize> {
        if !self.shared.options.buffered || !flags.contains(RwFlags::DONTCACHE) {
            return self.write_at(io, buf, offset);
        }
        io.check_write(self)
            .and_then(|()| self.stream_out(io, buf, offset))
            .map_err(|error| self.explain(error, "write", offset))
    }

    fn stream_in(&self, io: &mut Io, buf: &mut [u8], offset: u64) -> Result<usize> {
        let end = offset.saturating_add(buf.len() as u64);
        io.load_extents(&self.shared, &(offset..end))?;
        let pages = self.shared.pages()?;
        stream(pages, offset, buf.len(), |at, part| {
            let (buffered, mut ops) = io.cached(self.shared.core())?;
            // Pages read ahead would not be used.
            let mut ahead = buffered::ReadAhead::new(buffered::ReadAdvice::Random);
            buffered
                .inner
                .read(pages, &mut ops, &mut ahead, at, &mut buf[part])
        })
    }

    fn stream_out(&self, io: &mut Io, buf: &[u8], offset: u64) -> Result<usize> {
        let pages = self.shared.pages()?;
        stream(pages, offset, buf.len(), |at, part| {
            let n = write(&self.shared, io, &buf[part], at)?;
            let (buffered, mut ops) = io.cached(self.shared.core())?;
            let range = at..at.saturating_add(n as u64);
            buffered.inner.write_back(pages, &mut ops, range)?;
            Ok(n)
        })
    }

    /// Writes the dirty pages of a range back and waits for that: they then survive the end of the
    /// process. As `sync_file_range`, this is not a sync: the device's write cache is not flushed.
    ///
    /// # Errors
    /// As [`File::sync_data`]; [`ErrorKind::InvalidInput`] for a file that was not opened buffered.
    pub fn sync_range(&self, io: &mut Io, range: Range<u64>) -> Result<()> {
        let shared = &*self.shared;
        let run = |io: &mut Io| {
            io.check_volume(&self.volume)?;
            let pages = shared.pages()?;
            // Its failures are in the file's log, too.
            let (buffered, mut ops) = io.cached(shared.core())?;
            let result = buffered.inner.write_back(pages, &mut ops, range.clone());
            pages.check_errors(&mut locked(&shared.heard)).and(result)
        };
        run(io).map_err(|error| self.explain(error, "sync", range.start))
    }

    /// Says what I/O is to come. A hint: nothing depends on it but time. Without effect on direct
    /// I/O.
    ///
    /// # Errors
    /// For [`Advice::DontNeed`] those of writing back.
    pub fn advise(&self, io: &mut Io, range: Range<u64>, advice: Advice) -> Result<()> {
        let shared = &*self.shared;
        let run = |io: &mut Io| {
            io.check_volume(&self.volume)?;
            if !shared.options.buffered {
                return Ok(());
            }
            if advice == Advice::WillNeed {
                io.load_extents(shared, &range)?;
            }
            let pages = shared.pages()?;
            let (buffered, mut ops) = io.cached(shared.core())?;
            let inner = &mut buffered.inner;
            match advice {
                Advice::Normal => shared.advice.store(0, Relaxed),
                Advice::Sequential => shared.advice.store(1, Relaxed),
                Advice::Random => shared.advice.store(2, Relaxed),
                Advice::WillNeed => inner.read_ahead(pages, &mut ops, range.clone()),
                Advice::DontNeed => {
                    inner.write_back(pages, &mut ops, range.clone())?;
                    // The last page is needed no more than the end of the file.
                    let end = if range.end >= pages.size_bytes() {
                        u64::MAX
                    } else {
                        range.end
                    };
                    // Advice: pages in use stay.
                    let _ = pages.invalidate(range.start..end, Which::Clean, false);
                }
            }
            Ok(())
        };
        run(io).map_err(|error| self.explain(error, "advise", range.start))
    }

    /// Lends bytes of the cache itself, from the start of the range on and to the end of the range,
    /// of the page (4 KiB) or of the file, whichever comes first; uncached bytes are read. `None`
    /// at and beyond the end of the file. Lent bytes do not change: a writer to the page writes to
    /// a copy.
    ///
    /// # Errors
    /// The device's; [`ErrorKind::InvalidInput`] for a file that was not opened buffered.
    ///
    /// ```no_run
    /// # use xtent::volume::{OpenOptions, Volume};
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// let mut io = volume.io()?;
    /// let file = OpenOptions::new().read(true).buffered(true).open(&volume, &mut io, "/data")?;
    /// let mut at = 0;
    /// while let Some(bytes) = file.view(&mut io, at..u64::MAX)? {
    ///     println!("{} bytes at {at}", bytes.len());
    ///     at += bytes.len() as u64;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn view(&self, io: &mut Io, range: Range<u64>) -> Result<Option<View<'_>>> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        if let Err(error) = io.check_read(self) {
            return Err(self.explain(error, "view", range.start));
        }
        if let Some(pages) = self.shared.inode.pages()
            && let Ok(buffered) = io.buffered()
            && let Some(view) = pages.view(buffered.inner.tally(), range.start, len)
        {
            return Ok(Some(view));
        }
        self.view_missing(io, range.start, len)
            .map_err(|error| self.explain(error, "view", range.start))
    }

    #[cold]
    fn view_missing(&self, io: &mut Io, pos: u64, len: usize) -> Result<Option<View<'_>>> {
        let pages = self.shared.pages()?;
        if len == 0 || pos >= pages.size_bytes() {
            return Ok(None);
        }
        let mut patience = BoundedWait::new(LOCK_LIMIT);
        loop {
            self.bring(io, pos, len)?;
            // What had to be read was a miss, and is not to count as a hit as well.
            if let Some(view) = pages.view(&mut Tally::default(), pos, len) {
                return Ok(Some(view));
            }
            if !pages.copy_full(pos) {
                let (buffered, mut ops) = io.cached(self.shared.core())?;
                buffered.inner.make_clean(pages, &mut ops)?;
            }
            if !patience.wait() {
                return Err(in_the_way(pos));
            }
        }
    }

    /// Reads the uncached part of a range into the cache, up to the end of its first page.
    fn bring(&self, io: &mut Io, pos: u64, len: usize) -> Result<()> {
        let mut bytes = [0; PAGE_BYTES];
        let in_page = PAGE_BYTES - usize::try_from(pos % PAGE).unwrap_or(0);
        read(&self.shared, io, &mut bytes[..len.min(in_page)], pos).map(|_| ())
    }

    /// Lends cached bytes as [`File::view`] does, to be written to. They are a copy of the page,
    /// which takes the page's place when the view is dropped: until then other calls see what was
    /// there before, and do not wait. Where the page was written to meanwhile, only the bytes of
    /// the view are put over it. A direct write to the page waits for the view and fails with
    /// [`ErrorKind::Busy`] after 2 s. A view that is leaked (`mem::forget`) writes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::NotOverwrite`] as for [`File::write_at`]; otherwise as [`File::view`].
    pub fn view_mut(&self, io: &mut Io, range: Range<u64>) -> Result<Option<ViewMut<'_>>> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        io.check_write(self)
            .and_then(|()| self.lend_mut(io, range.start, len))
            .map_err(|error| self.explain(error, "view to write", range.start))
    }

    fn lend_mut(&self, io: &mut Io, pos: u64, len: usize) -> Result<Option<ViewMut<'_>>> {
        let pages = self.shared.pages()?;
        let left = pages.size_bytes().saturating_sub(pos);
        let in_page = (PAGE - pos % PAGE).min(left);
        let wanted = in_page.min(len as u64);
        if wanted == 0 {
            return Ok(None);
        }
        io.remove_privileges(&self.shared.inode)?;
        // Where too much is dirty some is written back first, as for any write.
        make_way(&self.shared, io)?;
        if let Some(view) = pages.view_mut(pos, len) {
            return Ok(Some(view));
        }
        let start = pos - pos % PAGE;
        let _space = lock_blocks(io, self.shared.core(), &(pos..pos + wanted))?;
        let wanted = usize::try_from(wanted).unwrap_or(PAGE_BYTES);
        let mut patience = BoundedWait::new(LOCK_LIMIT);
        loop {
            match pages.view_mut_asked(pos, wanted) {
                Ok(view) => return Ok(Some(view)),
                Err(NotLent::Missing) => self.bring(io, start, PAGE_BYTES)?,
                Err(NotLent::NoFrame) => {
                    let (buffered, mut ops) = io.cached(self.shared.core())?;
                    buffered.inner.make_clean(pages, &mut ops)?;
                }
            }
            if !patience.wait() {
                return Err(in_the_way(pos));
            }
        }
    }
}

/// Goes through a range piece by piece, up to the first that is not done as a whole; what was not
/// cached before a piece is not after it. Returns the bytes done.
fn stream(
    pages: &FileCache,
    offset: u64,
    len: usize,
    mut piece: impl FnMut(u64, Range<usize>) -> Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    while done < len {
        let at = offset.saturating_add(done as u64);
        let wanted = piece_len(at, len - done);
        let was = CachedRange::look(pages, at, wanted);
        let result = piece(at, done..done + wanted);
        was.drop_others(pages);
        match result {
            Ok(n) if n < wanted => return Ok(done + n),
            Ok(n) => done += n,
            Err(error) => return stopped(error, done),
        }
    }
    Ok(done)
}

/// The next piece of a stream: up to a border of so many pages.
fn piece_len(at: u64, len: usize) -> usize {
    let most = STREAM_PAGES * PAGE_BYTES;
    let skip = usize::try_from(at % most as u64).unwrap_or(0);
    len.min(most - skip)
}

/// Which of a range's pages were cached before it was gone through.
struct CachedRange {
    first: u64,
    count: u64,
    bits: [u64; STREAM_PAGES / 64],
}

impl CachedRange {
    fn look(pages: &FileCache, pos: u64, len: usize) -> Self {
        let first = pos / PAGE;
        let count =
            (pos.saturating_add(len as u64).div_ceil(PAGE) - first).min(STREAM_PAGES as u64);
        let mut bits = [0; STREAM_PAGES / 64];
        for index in 0..count {
            if pages.is_cached(first + index, 0, PAGE_BYTES) {
                let at = usize::try_from(index).unwrap_or(0);
                bits[at / 64] |= 1 << (at % 64);
            }
        }
        Self { first, count, bits }
    }

    fn had(&self, index: u64) -> bool {
        let at = usize::try_from(index).unwrap_or(0);
        self.bits[at / 64] >> (at % 64) & 1 != 0
    }

    /// Drops the pages that were not there, where they are clean.
    fn drop_others(&self, pages: &FileCache) {
        let mut at = 0;
        while at < self.count {
            let from = at;
            while at < self.count && !self.had(at) {
                at += 1;
            }
            if at > from {
                let range = (self.first + from) * PAGE..(self.first + at) * PAGE;
                let _ = pages.invalidate(range, Which::Clean, true);
            }
            at += 1;
        }
    }
}

#[cold]
fn in_the_way(pos: u64) -> Error {
    Error::new(
        ErrorKind::Busy,
        "other threads keep changing the page, or views hold all pages of the cache: drop views, or try again",
    )
    .at_offset(pos)
}

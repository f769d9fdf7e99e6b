//! The cached bytes themselves, lent.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::Duration;

use super::file::{FileCache, FileInner, Writing, leaf_of, place};
use super::fill::Installed;
use super::index::LEAF_PAGES;
use super::stats::Tally;
use super::wait::BoundedWait;
use crate::error::{Error, ErrorKind};
use crate::mem::pages::{Blocked, FrameRun, GRANULE_BYTES, PAGE_BYTES, Pin};

const PAGE: u64 = PAGE_BYTES as u64;
/// How long a direct write that may wait does so for mutable views of what it overwrites.
const VIEW_LIMIT: Duration = Duration::from_secs(2);

/// Bytes of a cached page. They do not change while this lives: a writer to the page writes to a
/// copy that replaces it, so the view shows the content at the time when it was made.
///
/// ```no_run
/// # use xtent::volume::{OpenOptions, Volume};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let options = OpenOptions::new().write(true).buffered(true);
/// # let file = options.open(&volume, &mut io, "/data")?;
/// if let Some(view) = file.view(&mut io, 0..4096)? {
///     println!("the first byte is {}", view[0]);
/// }
/// # Ok(())
/// # }
/// ```
pub struct View<'a> {
    pin: Pin<'a>,
    from: usize,
    to: usize,
}

impl Deref for View<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.pin.bytes()[self.from..self.to]
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} bytes)", self.len())
    }
}

/// Bytes of a cached page, to be written to. It is a copy of the page, which takes the page's place
/// when this is dropped: until then others see what was there before, and none of them waits. Where
/// the page was written to meanwhile, only the bytes of this view are put over it. A view that is
/// leaked (`mem::forget`) writes nothing, and keeps its memory until the cache is gone.
///
/// ```no_run
/// # use xtent::volume::{OpenOptions, Volume};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let options = OpenOptions::new().write(true).buffered(true);
/// # let file = options.open(&volume, &mut io, "/data")?;
/// if let Some(mut view) = file.view_mut(&mut io, 0..4096)? {
///     view[0] = b'x';
/// }
/// file.sync_data(&mut io)?;
/// # Ok(())
/// # }
/// ```
pub struct ViewMut<'a> {
    file: &'a FileCache,
    page: u64,
    range: Range<usize>,
    /// Both until it is dropped: the page as it was found, and the copy.
    found: Option<(Pin<'a>, FrameRun)>,
}

impl Deref for ViewMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let table = self.file.cache().table();
        let copy = self.found.as_ref().map(|(_, copy)| table.bytes(copy));
        copy.map_or(&[], |bytes| &bytes[self.range.clone()])
    }
}

impl DerefMut for ViewMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let table = self.file.cache().table();
        let copy = self.found.as_mut().map(|(_, copy)| table.bytes_mut(copy));
        copy.map_or(&mut [], |bytes| &mut bytes[self.range.clone()])
    }
}

impl Drop for ViewMut<'_> {
    fn drop(&mut self) {
        let inner = &*self.file.0;
        if let Some((pin, copy)) = self.found.take() {
            inner.put_view(self.page, self.range.clone(), pin, copy);
            inner.written_by_view.store(1, Release);
        }
        inner.end_view(self.page);
    }
}

impl fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ViewMut({} bytes at {})",
            self.range.len(),
            self.range.start
        )
    }
}

/// Why no mutable view is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotLent {
    /// The page, or a needed part of it, is not cached, or the filesystem must supply the mapping
    /// first.
    Missing,
    /// There is no frame for the copy.
    NoFrame,
}

impl FileCache {
    /// Lends cached bytes from `pos` on: at most `len`, and at most to the end of the page or of
    /// the file. `None` where they are not cached.
    #[inline]
    pub fn view(&self, tally: &mut Tally, pos: u64, len: usize) -> Option<View<'_>> {
        let (page, from) = place(pos);
        let to = self.end_in_page(pos, from, len)?;
        let pin = self.0.pin(&mut tally.guess, page, from, to)?;
        tally.hits += 1;
        Some(View { pin, from, to })
    }

    /// Lends cached bytes to be written to, as [`FileCache::view`]. `None` where they are not
    /// cached, the filesystem must be asked first (see [`FileCache::write_hit`]), or there is no
    /// frame for a copy of the page.
    pub fn view_mut(&self, pos: u64, len: usize) -> Option<ViewMut<'_>> {
        self.lend_mut(pos, len, Writing::Hit).ok()
    }

    /// The same, where the filesystem has been asked: the range may be overwritten.
    pub(crate) fn view_mut_asked(&self, pos: u64, len: usize) -> Result<ViewMut<'_>, NotLent> {
        self.lend_mut(pos, len, ASKED)
    }

    fn lend_mut(&self, pos: u64, len: usize, writing: Writing) -> Result<ViewMut<'_>, NotLent> {
        let (page, from) = place(pos);
        let to = self.end_in_page(pos, from, len).ok_or(NotLent::Missing)?;
        let inner = self.0.cache.inner();
        let mut copy = inner.frames(1).ok_or(NotLent::NoFrame)?;
        // Before the page is looked at: a direct write waits for this view, or this sees what it
        // leaves.
        self.0.lent.add(page);
        // A mutable view is also readable: its range must be up to date.
        let touched = self.0.touched(from, to);
        let pin = self.0.pin_slowly(page, touched);
        let fits =
            |pin: &Pin<'_>| pin.claims(writing.claim(touched)) && inner.pages.begin_lending(pin);
        let Some(pin) = pin.filter(fits) else {
            self.0.end_view(page);
            inner.give_back(copy);
            return Err(NotLent::Missing);
        };
        let bytes = inner.pages.bytes_mut(&mut copy);
        bytes.copy_from_slice(pin.bytes());
        Ok(ViewMut {
            file: self,
            page,
            range: from..to,
            found: Some((pin, copy)),
        })
    }

    /// Whether a mutable view has written to the file since that was forgotten.
    pub(crate) fn is_written_by_view(&self) -> bool {
        self.0.written_by_view.load(Acquire) != 0
    }

    /// Forgets that a mutable view has written to the file.
    pub(crate) fn forget_written_by_view(&self) {
        self.0.written_by_view.swap(0, AcqRel);
    }

    /// Waits until no mutable view of a range's pages is lent.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] with the position of a page of which one is held for longer than
    /// [`VIEW_LIMIT`].
    pub(crate) fn await_views_mut(&self, range: Range<u64>) -> Result<(), Error> {
        self.views_mut_gone(range, VIEW_LIMIT)
    }

    /// As [`FileCache::await_views_mut`], without waiting.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] with the position of a page of which a mutable view is lent.
    pub(crate) fn check_views_mut(&self, range: Range<u64>) -> Result<(), Error> {
        self.views_mut_gone(range, Duration::ZERO)
    }

    #[cold]
    fn views_mut_gone(&self, range: Range<u64>, limit: Duration) -> Result<(), Error> {
        let inner = &*self.0;
        if inner.lent.is_empty() {
            return Ok(());
        }
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        let mut held = None;
        let over = inner.waiters.wait(limit, || {
            held = inner.lent.first_in(pages.clone());
            held.is_none()
        });
        if over {
            return Ok(());
        }
        let what =
            "a mutable view (view_mut) of the page is held: drop it before direct writes there";
        Err(Error::new(ErrorKind::Busy, what).at_offset(held.unwrap_or(0) * PAGE))
    }

    #[inline]
    fn end_in_page(&self, pos: u64, from: usize, len: usize) -> Option<usize> {
        let left = self.size_bytes().saturating_sub(pos);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let len = len.min(PAGE_BYTES - from).min(left);
        (len > 0).then_some(from + len)
    }
}

const ASKED: Writing = Writing::Asked {
    grow: false,
    backed: false,
};

impl FileInner {
    /// A mutable view is gone: with the last one the page may go, too.
    fn end_view(&self, page: u64) {
        // Of all of them together.
        let mut patience = BoundedWait::for_lock();
        self.lent.remove(page, |page| {
            loop {
                if self.take_mark(page) {
                    break true;
                }
                if !patience.wait() {
                    break false;
                }
            }
        });
        self.waiters.wake();
    }

    /// Has a page go as any other again; false while another thread writes to it.
    fn take_mark(&self, page: u64) -> bool {
        let inner = self.cache.inner();
        let (no, slot) = leaf_of(page);
        let Some(leaf) = inner.index.hold(self.id, no) else {
            return true;
        };
        let ended = inner.pages.end_lending(leaf * LEAF_PAGES + slot);
        inner.index.release(leaf);
        ended
    }

    /// A mutable view ends: its copy of the page takes the page's place, or, where that has changed
    /// or gone since, its bytes are written as by any other write. What lies behind the end of the
    /// file by now is not written.
    fn put_view(&self, page: u64, range: Range<usize>, pin: Pin<'_>, copy: FrameRun) {
        let inner = self.cache.inner();
        let left = self.size_bytes.load(Acquire).saturating_sub(page * PAGE);
        let end = usize::try_from(left).map_or(range.end, |left| left.min(range.end));
        if end <= range.start {
            drop(pin);
            inner.give_back(copy);
            return;
        }
        let mut copy = copy;
        if end == range.end {
            let (no, _) = leaf_of(page);
            let slot = pin.slot();
            let marks = self.marks(range.start, range.end);
            match self.swap_in(slot / LEAF_PAGES, no, pin, slot, copy, marks, ASKED) {
                Ok(()) => return,
                Err(back) => copy = back,
            }
        } else {
            // It was cut short, and so was the page.
            drop(pin);
        }
        if let Err(error) = self.write_view(page, range.start..end, copy) {
            self.errors.note(&error, page * PAGE + range.start as u64);
        }
    }

    /// Writes a part of a page, of which `frame` holds the bytes as they were, and is the memory
    /// for what takes its place.
    #[cold]
    fn write_view(&self, page: u64, range: Range<usize>, mut frame: FrameRun) -> Result<(), Error> {
        let inner = self.cache.inner();
        let (no, slot) = leaf_of(page);
        let marks = self.marks(range.start, range.end);
        let mut source = [0; PAGE_BYTES];
        source.copy_from_slice(inner.pages.bytes(&frame));
        // What lies behind the end of the file is zero.
        let left = self.size_bytes.load(Acquire).saturating_sub(page * PAGE);
        if let Some(behind) = usize::try_from(left)
            .ok()
            .and_then(|left| source.get_mut(left..))
        {
            behind.fill(0);
        }
        let mut patience = BoundedWait::for_lock();
        loop {
            let leaf = inner.index.find(self.id, no);
            let at = leaf.map(|leaf| leaf * LEAF_PAGES + slot);
            let pinned = at.map(|at| inner.pages.pin_reserved(at, 0));
            match (leaf, at, pinned) {
                (Some(leaf), Some(at), Some(Ok(pin))) if inner.index.is(leaf, self.id, no) => {
                    let to = inner.pages.bytes_mut(&mut frame);
                    to.copy_from_slice(pin.bytes());
                    merge(to, &source, &range, marks.touched, pin.uptodate());
                    match self.swap_in(leaf, no, pin, at, frame, marks, ASKED) {
                        Ok(()) => return Ok(()),
                        Err(back) => frame = back,
                    }
                }
                (_, Some(at), Some(Err(Blocked::Ahead))) => inner.arrived(at),
                (_, None, _) | (_, _, Some(Err(Blocked::Absent | Blocked::Filling))) => {
                    inner.pages.bytes_mut(&mut frame).copy_from_slice(&source);
                    match self.install(page, frame, marks.touched, 0, ASKED) {
                        Installed::Yes => return Ok(()),
                        Installed::There(back) | Installed::NoLeaf(back) => frame = back,
                    }
                }
                _ => {}
            }
            if !patience.wait() {
                inner.give_back(frame);
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "what was written to a mutable view is lost: other threads do not let go of the page",
                ));
            }
        }
    }
}

/// Puts a range's bytes over a page, of which these granules are up to date; those that the range
/// touches and that are not come from the source as a whole.
fn merge(to: &mut [u8], source: &[u8], range: &Range<usize>, touched: u8, uptodate: u8) {
    for granule in (0..PAGE_BYTES / GRANULE_BYTES).filter(|granule| touched >> granule & 1 != 0) {
        let all = granule * GRANULE_BYTES..(granule + 1) * GRANULE_BYTES;
        let part = match uptodate >> granule & 1 {
            0 => all,
            _ => all.start.max(range.start)..all.end.min(range.end),
        };
        if part.start < part.end {
            to[part.clone()].copy_from_slice(&source[part]);
        }
    }
}

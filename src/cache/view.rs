//! The cached bytes themselves, lent.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};

use super::file::{FileCache, Writing, place};
use super::index::LEAF_SHIFT;
use super::stats::Tally;
use crate::mem::pages::{PAGE_BYTES, Pin, WriteLock};

/// Bytes of a cached page. They do not change while this lives: who writes to the page meanwhile writes to a copy, which
/// takes its place; so this is what the file held when it was lent.
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

/// Bytes of a cached page, to be written to in place. Whoever wants to read or write the page meanwhile waits; so it is
/// for a moment. The page is dirty when this is dropped.
pub struct ViewMut<'a> {
    file: &'a FileCache,
    lock: Option<WriteLock<'a>>,
    leaf: u32,
    page: u64,
    range: Range<usize>,
    /// The blocks of all of the page are there, and its own.
    backed: bool,
}

impl Deref for ViewMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let range = self.range.clone();
        self.lock
            .as_ref()
            .map_or(&[], |lock| &lock.bytes_ref()[range])
    }
}

impl DerefMut for ViewMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let range = self.range.clone();
        self.lock
            .as_mut()
            .map_or(&mut [], |lock| &mut lock.bytes()[range])
    }
}

impl Drop for ViewMut<'_> {
    fn drop(&mut self) {
        if let Some(mut lock) = self.lock.take() {
            let touched = self.file.0.touched(self.range.start, self.range.end);
            self.file
                .0
                .mark_written(&mut lock, self.leaf, self.page, touched, self.backed);
        }
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

impl FileCache {
    /// Lends cached bytes from `pos` on: at most `len`, and at most to the end of the page or of the file. `None` where
    /// they are not cached.
    #[inline]
    pub fn view(&self, tally: &mut Tally, pos: u64, len: usize) -> Option<View<'_>> {
        let (page, from) = place(pos);
        let to = self.end_in_page(pos, from, len)?;
        let pin = self.0.pin(&mut tally.guess, page, from, to)?;
        tally.hits += 1;
        Some(View { pin, from, to })
    }

    /// Lends cached bytes to be written to, as [`FileCache::view`]. `None` where they are not cached, somebody holds on
    /// to the page, or the filesystem must be asked first (see [`FileCache::write_hit`]).
    pub fn view_mut(&self, pos: u64, len: usize) -> Option<ViewMut<'_>> {
        self.lend_mut(pos, len, Writing::Hit)
    }

    /// The same, where the filesystem has been asked: the range may be overwritten, and, if it is `backed`, all of its page.
    pub(crate) fn view_mut_of(&self, pos: u64, len: usize, backed: bool) -> Option<ViewMut<'_>> {
        let grow = false;
        self.lend_mut(pos, len, Writing::Asked { grow, backed })
    }

    fn lend_mut(&self, pos: u64, len: usize, writing: Writing) -> Option<ViewMut<'_>> {
        let (page, from) = place(pos);
        let to = self.end_in_page(pos, from, len)?;
        // What is lent can be read too.
        let touched = self.0.touched(from, to);
        let claim = writing.claim(touched);
        let (lock, leaf) = self.0.lock(page, touched, claim).ok()?;
        if pos + (to - from) as u64 > self.size_bytes() {
            return None;
        }
        debug_assert_eq!(page >> LEAF_SHIFT, pos >> (LEAF_SHIFT + 12));
        Some(ViewMut {
            file: self,
            lock: Some(lock),
            leaf,
            page,
            range: from..to,
            backed: writing.backed(),
        })
    }

    #[inline]
    fn end_in_page(&self, pos: u64, from: usize, len: usize) -> Option<usize> {
        let left = self.size_bytes().saturating_sub(pos);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let len = len.min(PAGE_BYTES - from).min(left);
        (len > 0).then_some(from + len)
    }
}

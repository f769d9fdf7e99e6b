//! Cached pages beside changes of a file's space. The caller has locked the space exclusively: no
//! page becomes dirty but those that are, or were before.

use std::ops::Range;
use std::sync::Arc;

use super::super::Io;
use super::super::inodes::CoreInode;
use super::super::ranges::outward;
use crate::cache::FileCache;
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::buffered::drop_clean;
use crate::mem::pages::{PAGE_BYTES, Which};

/// How often pages of a range are written back that become dirty again.
const TRIES: u32 = 10_000;

/// Before blocks of a range are moved, freed or zeroed: nothing of it is cached after, and the file
/// on disk is as long as in the cache. Pages behind a `new_len` are not written back. Waits for
/// mutable views of the range.
pub(in super::super) fn clear_pages(
    io: &mut Io,
    inode: &Arc<CoreInode>,
    range: &Range<u64>,
    new_len: Option<u64>,
) -> Result<()> {
    let Some(pages) = inode.pages().filter(|_| !range.is_empty()) else {
        return Ok(());
    };
    if let Some(len) = new_len {
        // Of the page that is cut off there.
        io.load_pages(inode, &(len..len.saturating_add(1)))?;
    }
    let cut = match new_len.filter(|len| *len < pages.size_bytes()) {
        Some(len) => io
            .cached(inode)
            .and_then(|(buffered, mut ops)| buffered.inner.set_size(pages, &mut ops, len)),
        None => Ok(()),
    };
    let cleared = cut.and_then(|()| write_and_drop(io, inode, pages, &whole_pages(pages, range)));
    if cleared.is_err() {
        inode.keep_disk_size();
    }
    cleared
}

fn write_and_drop(
    io: &mut Io,
    inode: &Arc<CoreInode>,
    pages: &FileCache,
    range: &Range<u64>,
) -> Result<()> {
    for _ in 0..TRIES {
        pages.await_views_mut(range.clone())?;
        let dirty = match inode.is_longer_in_core() {
            true => 0..u64::MAX,
            false => range.clone(),
        };
        if pages.may_be_dirty() {
            let (buffered, mut ops) = io.cached(inode)?;
            buffered.write_back(pages, &mut ops, dirty)?;
        }
        let left = pages.invalidate(range.clone(), Which::Clean, true);
        if let Some(pos) = left.stuck {
            return Err(in_the_way(pos));
        }
        if left.kept == 0 && pages.check_views_mut(range.clone()).is_ok() {
            return Ok(());
        }
    }
    Err(in_the_way(range.start))
}

/// After a change: what was read meanwhile is cached no more, and the length is that on disk.
pub(in super::super) fn settle_pages(inode: &CoreInode, range: &Range<u64>) -> Result<()> {
    let Some(pages) = inode.pages() else {
        return Ok(());
    };
    inode.take_disk_size();
    drop_clean(pages, whole_pages(pages, range))
}

/// The pages of a range, and where blocks are larger those of its blocks: an operation reads and
/// writes blocks that it covers in part.
fn whole_pages(pages: &FileCache, range: &Range<u64>) -> Range<u64> {
    outward(range, pages.whole_block_bytes().max(PAGE_BYTES as u64))
}

#[cold]
fn in_the_way(pos: u64) -> Error {
    Error::new(
        ErrorKind::Busy,
        "other threads keep writing to cached pages of the range",
    )
    .at_offset(pos)
}

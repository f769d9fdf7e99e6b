//! Writeback of pages to blocks that are larger than they, and have no data yet.
//!
//! A block becomes a written one as a whole, so all of it must be on the device before: bytes that
//! are not written here would show what the block had before. Where the pages that are written back
//! together are all of a block, they are enough. Otherwise the block is zeroed on the device first,
//! and the pages are written over the zeroes: bytes of the block that only the cache has, or that
//! nothing was written to, are zeroes on the device until their own page is written back.
//!
//! Two threads that write pages of one block back would zero what the other has written. So one
//! thread at a time does that, from before it asks for the mapping until the block is a written one
//! ([`CachedOps::hold_unwritten`]): who comes after finds a written block, and only overwrites. A
//! block whose data has not reached the device, in any part of it, stays as it was.
//!
//! After a crash in between the block has no data, and reads as zeroes; the change to a written
//! one is logged after the zeroes and the data, and is durable only with them.

use std::collections::BTreeMap;

use super::super::{Mapping, MappingKind};
use super::CachedOps;
use super::ioend::{Ioend, map};
use crate::cache::{DirtyPage, FileCache};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::pages::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;
/// All granules of a page.
const WHOLE: u8 = u8::MAX;

/// The blocks of a file, while a batch of its pages is mapped.
pub(super) struct LargeBlocks {
    block: u64,
    size: u64,
    /// No other thread writes to blocks without data.
    is_held: bool,
    /// Blocks that end here, or before, need nothing more.
    ready_to: u64,
}

impl LargeBlocks {
    /// For a file of this size, at which the batch is cut.
    pub(super) fn new(file: &FileCache, size_bytes: u64) -> Self {
        Self {
            block: file.whole_block_bytes(),
            size: size_bytes,
            is_held: false,
            ready_to: 0,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Before dirty bytes at `pos`, of the page `index` of those that are written back together, go
    /// to a mapping: makes its block ready. Pages are given in the order of the file. Returns the
    /// mapping that holds now.
    ///
    /// # Errors
    /// Those of [`CachedOps::map_writeback`] and [`CachedOps::zero_unwritten`].
    pub(super) fn prepare<O: CachedOps>(
        &mut self,
        ops: &mut O,
        (index, taken): (usize, &[DirtyPage]),
        pos: u64,
        len: u64,
        mapping: Mapping,
    ) -> Result<Mapping> {
        if self.block <= PAGE || mapping.kind != MappingKind::Unwritten {
            return Ok(mapping);
        }
        let mut mapping = mapping;
        if !self.is_held {
            ops.hold_unwritten()?;
            self.is_held = true;
            // Another thread may have written to the block meanwhile.
            mapping = map(ops, None, pos, len)?;
            if mapping.kind != MappingKind::Unwritten {
                return Ok(mapping);
            }
        }
        let start = pos - pos % self.block;
        if start < self.ready_to {
            return Ok(mapping);
        }
        if !self.is_all_of(start, taken.get(index..).unwrap_or_default()) {
            let addr = mapping.addr_at(pos).checked_sub(pos - start);
            let addr = addr.filter(|_| mapping.offset <= start);
            let addr = addr.filter(|_| start.saturating_add(self.block) <= mapping.end());
            let addr = addr.ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, "a mapping that ends inside of a block")
            })?;
            ops.zero_unwritten(addr, self.block)?;
        }
        self.ready_to = start.saturating_add(self.block);
        Ok(mapping)
    }

    /// Whether these pages begin with all of the block at `start`, dirty as a whole.
    fn is_all_of(&self, start: u64, taken: &[DirtyPage]) -> bool {
        let end = start.saturating_add(self.block);
        let pages = start / PAGE..end / PAGE;
        let mut found = pages.clone().zip(taken);
        let count = usize::try_from(self.block / PAGE).unwrap_or(usize::MAX);
        end <= self.size
            && taken.len() >= count
            && found.all(|(page, taken)| taken.page() == page && taken.granules() == WHOLE)
    }
}

/// The ioends, by index, that must not become written because of others, with the reason: a block
/// that they share with a page that failed would show what it had before.
pub(super) fn spoilt(
    file: &FileCache,
    taken: &[DirtyPage],
    failed: &[bool],
    ioends: &[Ioend],
) -> BTreeMap<usize, Error> {
    let block = file.whole_block_bytes();
    let mut found = BTreeMap::new();
    if block <= PAGE {
        return found;
    }
    let pages = taken.iter().zip(failed).filter(|(_, failed)| **failed);
    let pages = pages.map(|(page, _)| page.page() * PAGE..page.page() * PAGE + PAGE);
    let others = ioends.iter().filter(|ioend| ioend.failed.is_some());
    let others = others.map(|ioend| ioend.pos..ioend.pos + ioend.len.max(1));
    let bad: Vec<_> = pages
        .chain(others)
        .map(|range| range.start / block..range.end.div_ceil(block))
        .collect();
    for (index, ioend) in ioends.iter().enumerate() {
        let blocks = ioend.pos / block..(ioend.pos + ioend.len).div_ceil(block);
        let touches = bad
            .iter()
            .any(|bad| bad.start < blocks.end && blocks.start < bad.end);
        if touches && ioend.failed.is_none() && ioend.mapping.kind == MappingKind::Unwritten {
            let error = Error::new(
                ErrorKind::Io,
                "another part of the block could not be written back",
            );
            found.insert(index, error);
        }
    }
    found
}

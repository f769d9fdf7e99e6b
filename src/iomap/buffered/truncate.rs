//! A file's size, changed.

use super::{Buffered, CachedOps, PATIENCE, in_the_way, stuck};
use crate::block::Queue;
use crate::cache::FileCache;
use crate::error::Result;
use crate::mem::pages::{PAGE_BYTES, Which};

const PAGE: u64 = PAGE_BYTES as u64;

impl<Q: Queue> Buffered<Q> {
    /// Gives a file another size, in memory: zeroes what was or comes behind its end in the last
    /// block, and drops the pages behind it. The filesystem takes its blocks back after; nothing of
    /// them is in use then. The caller's lock keeps other writers that allocate or grow away.
    ///
    /// # Errors
    /// The filesystem's and the device's; the size is as before then, or as wanted.
    pub fn set_size<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        size_bytes: u64,
    ) -> Result<()> {
        let before = file.size_bytes();
        let block = file.block_bytes() as u64;
        if size_bytes >= before {
            let end = size_bytes.min(before.next_multiple_of(file.whole_block_bytes()));
            if end > before {
                self.zero_range(file, ops, before..end)?;
            }
            file.set_size(size_bytes);
            return Ok(());
        }
        file.await_views_mut(size_bytes..before)?;
        let end = before.min(size_bytes.next_multiple_of(block));
        if end > size_bytes {
            self.zero_range(file, ops, size_bytes..end)?;
        }
        // From here on no write begins behind it. A writer that began before holds the lock of a
        // page, and is waited for below.
        file.set_size(size_bytes);
        let page = size_bytes - size_bytes % PAGE;
        if size_bytes > page {
            // The last page may have other blocks behind the end: it goes as a whole, after it was
            // written back.
            let mut patience = PATIENCE;
            loop {
                let left = file.invalidate(page..page + PAGE, Which::Clean, true);
                if let Some(pos) = left.stuck {
                    return Err(stuck(pos));
                }
                if left.kept == 0 {
                    break;
                }
                patience = patience.checked_sub(1).ok_or_else(|| in_the_way(page))?;
                self.write_out(file, ops, page..page + PAGE, usize::MAX)?;
                if !file.await_writeback() {
                    return Err(stuck(page));
                }
            }
        }
        let behind = size_bytes.next_multiple_of(PAGE)..u64::MAX;
        match file.invalidate(behind, Which::All, true).stuck {
            Some(pos) => Err(stuck(pos)),
            None => Ok(()),
        }
    }
}

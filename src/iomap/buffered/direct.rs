//! Direct I/O beside cached pages: flush before, invalidate before and after a write.

use std::ops::Range;

use super::{Buffered, CachedOps, stuck};
use crate::block::Queue;
use crate::cache::FileCache;
use crate::error::Result;
use crate::mem::pages::Which;

impl<Q: Queue> Buffered<Q> {
    /// Before a direct read of a range: what is dirty in it is on the device after.
    ///
    /// # Errors
    /// As [`Buffered::write_back`].
    pub fn before_direct_read<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        range: Range<u64>,
    ) -> Result<()> {
        if !file.may_be_dirty() {
            return Ok(());
        }
        self.write_back(file, ops, range)
    }

    /// Before a direct write of a range: nothing of it is cached after, but for what others write to meanwhile.
    ///
    /// # Errors
    /// As [`Buffered::write_out`]; [`crate::ErrorKind::Busy`] while a mutable view of a page of the range is lent.
    pub fn before_direct_write<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        range: Range<u64>,
    ) -> Result<()> {
        file.await_views_mut(range.clone())?;
        self.before_direct_read(file, ops, range.clone())?;
        match file.invalidate(range, Which::Clean, true).stuck {
            Some(pos) => Err(stuck(pos)),
            None => Ok(()),
        }
    }

    /// After a direct write of a range: what was read into the cache meanwhile goes. What was written there meanwhile
    /// stays, and will be written back over it.
    pub fn after_direct_write(&mut self, file: &FileCache, range: Range<u64>) {
        file.invalidate(range, Which::Stale, true);
    }
}

//! Direct I/O beside cached pages: flush before, invalidate before and after a write.

use std::ops::Range;

use super::{Buffered, CachedOps, stuck};
use crate::block::Queue;
use crate::cache::FileCache;
use crate::error::Result;
use crate::mem::pages::Which;

impl<Q: Queue> Buffered<Q> {
    /// Before a direct read of a range: writes its dirty pages to the device.
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

    /// Before a direct write of a range: nothing of it is cached after, but for what others write
    /// to meanwhile.
    ///
    /// # Errors
    /// As [`Buffered::write_out`]; [`crate::ErrorKind::Busy`] while a mutable view of a page of the
    /// range is lent.
    pub fn before_direct_write<O: CachedOps>(
        &mut self,
        file: &FileCache,
        ops: &mut O,
        range: Range<u64>,
    ) -> Result<()> {
        file.await_views_mut(range.clone())?;
        self.before_direct_read(file, ops, range.clone())?;
        drop_clean(file, range)
    }

    /// After a direct write of a range: what was read into the cache meanwhile goes. What was
    /// written there meanwhile stays, and will be written back over it. A page that does not go is
    /// a failure that the next sync of the file tells.
    pub fn after_direct_write(&mut self, file: &FileCache, range: Range<u64>) {
        drop_stale(file, range);
    }
}

/// What [`Buffered::before_direct_write`] does last, and all that it does where no page is dirty.
///
/// # Errors
/// [`crate::ErrorKind::Timeout`] when another thread does not let go of a page.
pub(crate) fn drop_clean(file: &FileCache, range: Range<u64>) -> Result<()> {
    match file.invalidate(range, Which::Clean, true).stuck {
        Some(pos) => Err(stuck(pos)),
        None => Ok(()),
    }
}

/// As [`Buffered::after_direct_write`].
pub(crate) fn drop_stale(file: &FileCache, range: Range<u64>) {
    if let Some(pos) = file.invalidate(range, Which::Stale, true).stuck {
        file.note_error(&stuck(pos), pos);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::{Cache, CacheConfig, DirtyPage};
    use crate::error::ErrorKind;
    use crate::mem::{Heap, HeapConfig, HugePages};

    #[test]
    fn a_page_that_does_not_go_is_an_error_before_and_told_after() {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let config = CacheConfig {
            limit_bytes: 1 << 20,
            wait_limit: Duration::from_millis(5),
            ..CacheConfig::default()
        };
        let file = FileCache::new(&Cache::new(&heap, config).unwrap(), 8192, 4096).unwrap();
        let fill = file.begin_fill(1, 1).unwrap().unwrap();
        fill.finish(false, 0, &mut []);
        let asked = crate::cache::Writing::Asked {
            grow: false,
            backed: true,
        };
        file.write_cached(4096, &[1], asked);
        let mut taken: Vec<DirtyPage> = Vec::new();
        file.take_dirty(0..u64::MAX, usize::MAX, true, &mut taken);
        assert_eq!(taken.len(), 1, "one is written back from here on");
        let mut heard = file.error_cursor();
        let error = drop_clean(&file, 0..8192).unwrap_err();
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::Timeout, Some(4096))
        );
        file.check_errors(&mut heard).unwrap();
        drop_stale(&file, 0..8192);
        let error = file.check_errors(&mut heard).unwrap_err();
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::Timeout, Some(4096))
        );
        taken.into_iter().for_each(|page| file.written(page, true));
        drop_stale(&file, 0..8192);
        file.check_errors(&mut heard).unwrap();
    }
}

//! What buffered I/O asks of a file beyond [`crate::iomap::Ops`]. Nothing is allocated here and no
//! mapping ever changes, so there is little to say: dirty bytes go where they came from.

use super::FileOps;
use crate::error::Result;
use crate::iomap::buffered::CachedOps;
use crate::iomap::{IterFlags, Mapping, Ops};

impl CachedOps for FileOps<'_> {
    #[inline]
    fn is_current(&self, _: &Mapping) -> bool {
        true
    }

    /// Blocks that may be overwritten; [`crate::ErrorKind::NotOverwrite`] for all others, which no
    /// write let through.
    fn map_writeback(&mut self, pos: u64, len: u64) -> Result<Mapping> {
        self.begin(pos, len, IterFlags::WRITE)
            .map(|(mapping, _)| mapping)
    }

    fn written_back(&mut self, _: u64, _: u64, _: &Mapping) -> Result<()> {
        Ok(())
    }

    fn commit(&mut self, flush: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        flush()
    }
}

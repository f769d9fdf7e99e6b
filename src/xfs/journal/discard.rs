//! Discarding freed blocks: the device is told that their content is no longer needed, as the
//! kernel does with the mount option `discard`.
//!
//! Blocks are discarded when the checkpoint that freed them is durable, and are busy until that is
//! done, so no file gets them before. Metadata may have got some meanwhile: only those that are
//! free now are discarded. Metadata that gets blocks while the device discards is not written
//! before, because that needs the lock of the log's writer, which is held.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::super::MetaIo;
use super::super::alloc;
use super::super::trans::Trans;
use super::Journal;
use crate::error::Result;

impl Journal {
    /// From now on blocks that are freed are discarded.
    pub(in super::super) fn discard_freed(&self) {
        self.discards.store(true, Relaxed);
    }

    /// Discards what checkpoints up to this one freed, where that is wanted, as
    /// xlog_cil_committed() and xfs_discard_extents(). The caller has locked the writer. A failure
    /// does no harm: it is told once.
    pub(super) fn discard(&self, io: &mut dyn MetaIo, checkpoint: u64) {
        if !self.discards.load(Relaxed) {
            return;
        }
        let discarded = self.freed_ranges(io, checkpoint).and_then(|ranges| {
            // All of them, though one fails: this is the only time that they are.
            let mut result = Ok(());
            for range in ranges {
                let len_bytes = range.end.saturating_sub(range.start);
                let discarded = io.discard(range.start, len_bytes);
                result = result.and(discarded);
            }
            result
        });
        if let Err(error) = discarded
            && !self.has_warned.swap(true, Relaxed)
        {
            tracing::warn!(
                %error,
                "freed blocks could not be discarded; later failures are not reported"
            );
        }
    }

    /// Device bytes that checkpoints up to this one freed, and that are free now.
    fn freed_ranges(&self, io: &mut dyn MetaIo, checkpoint: u64) -> Result<Vec<Range<u64>>> {
        let mut state = self.state();
        let freed = state.busy.freed_until(checkpoint);
        let mut trans = Trans::begin(&mut state, io)?;
        let mut ranges = Vec::with_capacity(freed.len());
        for (ag, blocks) in freed {
            for part in alloc::free_parts(&mut trans, ag, &blocks)? {
                let geometry = trans.geometry();
                let start = geometry.ag_block_addr(ag, part.start);
                let blocks = part.end.saturating_sub(part.start);
                let end = start.saturating_add(geometry.bytes(blocks.into()));
                ranges.push(start..end);
            }
        }
        Ok(ranges)
    }
}

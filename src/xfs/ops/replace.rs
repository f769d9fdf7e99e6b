//! The whole content of a file replaced at once: after a crash it has the old content or the new
//! one.
//!
//! The new content goes to blocks far behind the end of the file, where no reader looks; after a
//! crash they are there still, and belong to the file as preallocated ones do. One transaction
//! then moves the old blocks behind the end, and the new ones to the start. The old ones are freed
//! when no read that began before is at them.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use super::super::bmap::{self, ForkId};
use super::super::extents::Extent;
use super::super::format::inode::InodeTimestamp;
use super::super::trans::{CommitTicket, Trans};
use super::super::{Fs, MetaIo};
use super::core::{InodeId, core_of};
use super::space::{Change, check_len, set_size};
use crate::error::{Error, ErrorKind, Result};

/// Blocks for the new content of a file.
#[derive(Debug)]
pub struct StagedContent {
    /// Where they are in the file. The content before lies in front of them.
    blocks: Range<u64>,
    len_bytes: u64,
    /// Where they are on the device: addresses in bytes, in the order of the content.
    places: Vec<Range<u64>>,
}

impl StagedContent {
    /// Where the content goes on the device: addresses in bytes, in its order. Its last block is
    /// whole.
    pub fn places(&self) -> &[Range<u64>] {
        &self.places
    }

    /// Blocks of the file where the content before is afterwards.
    fn old_blocks(&self) -> Range<u64> {
        let first = self.blocks.start;
        first..first.saturating_mul(2)
    }
}

impl Fs {
    /// Allocates blocks for a new content of a file, of this length. They are to be written, and
    /// given to [`Fs::replace_content`] or [`Fs::drop_staged`], while nothing else changes the
    /// space of the file.
    ///
    /// # Errors
    /// As [`Fs::set_len`]; [`ErrorKind::NoSpace`], with everything as it was;
    /// [`ErrorKind::InvalidInput`] where the file has blocks too near to the largest offset.
    pub fn stage_content(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        len_bytes: u64,
    ) -> Result<StagedContent> {
        let core = self.changeable(io, file, Change::Any)?;
        check_len(len_bytes)?;
        let id = ForkId::data(file.ino);
        let last = self.look(io, |trans| bmap::last_extent(trans, id))?;
        let count = self.blocks_for(len_bytes);
        let first = last
            .map_or(0, |last| last.end_blocks())
            .max(self.blocks_for(core.size.get()))
            .max(count);
        if first.saturating_mul(2) > self.geometry().limit_blocks() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the file has data too near to the largest offset to be replaced at once",
            ));
        }
        // Beside the content that there is.
        self.check_free(io, count)?;
        let mut staged = StagedContent {
            blocks: first..first.saturating_add(count),
            len_bytes,
            places: Vec::new(),
        };
        let found = self
            .fill_unwritten(io, file, staged.blocks.clone(), None)
            .and_then(|()| self.look(io, |trans| bmap::parts_in(trans, id, &staged.blocks)));
        match found {
            Ok(extents) => {
                staged.places = extents.iter().map(|extent| self.place_of(extent)).collect();
                Ok(staged)
            }
            Err(error) => {
                // What cannot be freed stays behind the end, as the file's reserve.
                drop(self.drop_staged(io, file, &staged));
                Err(error)
            }
        }
    }

    /// Makes staged blocks, which have their data on the device, the content of the file. The
    /// content before lies behind the end then, until [`Fs::drop_old`]. Nothing is written to the
    /// file meanwhile. When the transaction is durable the data is, too.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the old and the new content have too many extents for one
    /// transaction; otherwise as [`Fs::set_len`]. Nothing was changed then.
    pub fn replace_content(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        staged: &StagedContent,
        now: InodeTimestamp,
    ) -> Result<CommitTicket> {
        let id = ForkId::data(file.ino);
        let by = staged.blocks.start;
        let ((), ticket) = self.transact(io, |trans| {
            core_of(trans, file)?;
            let new = bmap::parts_in(trans, id, &staged.blocks)?;
            let old = bmap::parts_in(trans, id, &(0..by))?;
            bmap::detach(trans, id, staged.blocks.clone())?;
            for extent in &old {
                bmap::detach(trans, id, extent.offset_blocks..extent.end_blocks())?;
                self.check_size(trans)?;
            }
            let moved = |extent: &Extent, offset_blocks: u64, unwritten: bool| Extent {
                offset_blocks,
                unwritten,
                ..*extent
            };
            for extent in &new {
                let start = extent.offset_blocks.saturating_sub(by);
                bmap::attach(trans, id, &moved(extent, start, false))?;
                self.check_size(trans)?;
            }
            for extent in &old {
                let behind = extent.offset_blocks.saturating_add(by);
                bmap::attach(trans, id, &moved(extent, behind, extent.unwritten))?;
                self.check_size(trans)?;
            }
            set_size(trans, file, Some(staged.len_bytes), now).map(|_| ())
        })?;
        Ok(ticket)
    }

    /// Frees the content before, when no read that began before is in flight.
    ///
    /// # Errors
    /// As [`Fs::set_len`].
    pub fn drop_old(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        staged: &StagedContent,
    ) -> Result<()> {
        self.unmap_all(io, file, staged.old_blocks())
    }

    /// Frees staged blocks again.
    ///
    /// # Errors
    /// As [`Fs::set_len`].
    pub fn drop_staged(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        staged: &StagedContent,
    ) -> Result<()> {
        self.unmap_all(io, file, staged.blocks.clone())
    }

    fn place_of(&self, extent: &Extent) -> Range<u64> {
        let start = self.geometry().block_addr(extent.start_block);
        start..start.saturating_add(self.geometry().bytes(extent.blocks))
    }

    /// Checks that a checkpoint has room for a transaction.
    fn check_size(&self, trans: &Trans<'_>) -> Result<()> {
        if trans.edited_bytes() <= self.most_transaction_bytes() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "the content is in too many pieces to be replaced in one transaction of this log: \
             replace it in parts",
        ))
    }
}

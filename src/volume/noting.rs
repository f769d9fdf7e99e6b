//! The change of a file when data of it is on the device: by direct writes that needed blocks, and
//! by pages that were written back.

use std::ops::Range;

use super::core::IoCore;
use super::inode::CoreInode;
use crate::error::Result;
use crate::xfs::{CommitTicket, Fs};

/// Notes that a range of a file has data. Returns the transaction.
///
/// # Errors
/// As [`Fs::note_written`].
pub(super) fn note_written(
    fs: &Fs,
    core: &mut IoCore,
    inode: &CoreInode,
    range: &Range<u64>,
) -> Result<CommitTicket> {
    inode.update_written(|map, now| {
        let id = inode.id();
        // The map is that of the filesystem: whatever changes written blocks into others does so
        // under this lock, or waits for the writes in flight first.
        let (state, ticket) = match range.start <= map.size_bytes() && map.is_written(range) {
            true => fs.note_grown(core, id, range.end, now)?,
            false => fs.note_written(core, id, range, now)?,
        };
        inode.note_change(ticket);
        Ok((state, ticket))
    })
}

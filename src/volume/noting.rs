//! The change of a file when data of it is on the device: by direct writes that needed blocks, and
//! by pages that were written back.

use std::ops::Range;

use super::core::IoCore;
use super::inode::CoreInode;
use crate::error::Result;
use crate::xfs::format::inode::InodeTimestamp;
use crate::xfs::{CommitTicket, FileMap, FileState, Fs};

/// Notes that a range of a file has data, by a direct write: at this moment. Returns the
/// transaction.
///
/// # Errors
/// As [`Fs::note_written`].
pub(super) fn note_written(
    fs: &Fs,
    core: &mut IoCore,
    inode: &CoreInode,
    range: &Range<u64>,
) -> Result<CommitTicket> {
    inode.update_written(|map, now| note(fs, core, inode, (map, range), Some(now)))
}

/// As [`note_written`], by pages that were written back. The times of the file are those of the
/// writes to the pages, or were set since.
pub(super) fn note_written_back(
    fs: &Fs,
    core: &mut IoCore,
    inode: &CoreInode,
    range: &Range<u64>,
) -> Result<CommitTicket> {
    inode.update_map(false, |map| note(fs, core, inode, (map, range), None))
}

fn note(
    fs: &Fs,
    core: &mut IoCore,
    inode: &CoreInode,
    (map, range): (&FileMap, &Range<u64>),
    now: Option<InodeTimestamp>,
) -> Result<(FileState, CommitTicket)> {
    let id = inode.id();
    // The map is that of the filesystem: whatever changes written blocks into others does so under
    // this lock, or waits for the writes in flight first.
    let (state, ticket) = match range.start <= map.size_bytes() && map.is_written(range) {
        true => fs.note_grown(core, id, range.end, now)?,
        false => fs.note_written(core, id, range, now)?,
    };
    inode.note_change(ticket);
    Ok((state, ticket))
}

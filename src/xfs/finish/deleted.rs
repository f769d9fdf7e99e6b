//! Blocks of inodes that recovery frees: of those that were deleted while they were open, in the
//! unlinked lists of the groups; and of files behind their end.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::bmap::{self, ForkId};
use super::super::corrupt;
use super::super::format::ag::NULL_AG;
use super::super::format::inode::{
    FLAG_APPEND, FLAG_PREALLOCATED, FLAG_REALTIME, FORMAT_BTREE, FORMAT_EXTENTS, InodeCore, S_IFMT,
    S_IFREG,
};
use super::super::geometry::Ino;
use super::super::trans::Trans;
use super::super::tree::ForkKind;
use super::inodes::{
    END_BLOCKS, bad_inode, core_of, edit_agi, edit_core, free_inode, read_agi, used_inode,
};
use crate::error::{Error, ErrorKind, Result};

/// Lists of a group.
const BUCKETS: u32 = 64;
/// Extents that one transaction frees.
const MOST_EXTENTS: usize = 4;

/// Frees the first inode of the first list of a group that is not empty, or some blocks of it.
/// Whether there was one. To be called until there is none: each call is one transaction.
///
/// An inode is freed as by xfs_inactive(): blocks of the file from its end, in parts; then the
/// attribute fork and the inode at once, because half of an attribute fork would be damage.
///
/// Log items for the freed blocks of directories and attributes, which would keep a replay from
/// writing to them, are not needed: these blocks are not used again but for logged btree blocks
/// before the log is clean.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when the list or the inode is damaged; [`ErrorKind::Unsupported`] for a
/// file of the realtime section; [`ErrorKind::NoSpace`] when a btree has to grow and cannot; the
/// device's. The transaction must be dropped then.
pub(in super::super) fn free_first(t: &mut Trans<'_>, ag: u32) -> Result<bool> {
    let agi = read_agi(t, ag)?;
    let heads = agi.unlinked.iter().zip(0..BUCKETS);
    let first = heads
        .map(|(head, bucket)| (head.get(), bucket))
        .find(|(head, _)| *head != NULL_AG);
    let Some((ag_ino, bucket)) = first else {
        return Ok(false);
    };
    let bad = |what: &str| {
        let text = format!("unlinked list {bucket} of group {ag}: {what}; run xfs_repair");
        corrupt(0, text)
    };
    if ag_ino.checked_rem(BUCKETS) != Some(bucket) {
        return Err(bad("it begins with an inode of another list"));
    }
    let bits = t
        .geometry()
        .ag_block_log
        .saturating_add(t.geometry().inopb_log);
    let ino = Ino(u64::from(ag).wrapping_shl(bits) | u64::from(ag_ino));
    if t.geometry().split_inode(ino) != Some((ag, ag_ino)) {
        return Err(bad("it begins with an impossible inode"));
    }
    let used = used_inode(t, ino)?;
    let core = core_of(t, ino)?;
    if core.mode.get() == 0 || core.nlink.get() != 0 {
        return Err(bad_inode(
            t,
            ino,
            "it is in an unlinked list, and not deleted",
        ));
    }
    if core.flags.get() & FLAG_REALTIME != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{ino} was deleted and lies in the realtime section: mount the filesystem once \
                 with the kernel and unmount it"
            ),
        ));
    }
    if !free_data(t, ino, &core)? {
        return Ok(true);
    }
    free_fork(t, ino, ForkKind::Attribute, core.forkoff != 0, core.aformat)?;
    let rest = core_of(t, ino)?.nblocks.get();
    if rest != 0 {
        let what = format!("it has {rest} blocks that are in no fork");
        return Err(bad_inode(t, ino, &what));
    }
    let next = core.next_unlinked.get();
    edit_agi(t, ag, |agi| {
        let index = usize::try_from(bucket).unwrap_or(0);
        if let Some(head) = agi.unlinked.get_mut(index) {
            head.set(next);
        }
    })?;
    edit_core(t, ino, |core| core.next_unlinked = NULL_AG.into())?;
    free_inode(t, ino, &used)?;
    Ok(true)
}

/// Frees blocks of the data fork. Whether it has none any more.
fn free_data(t: &mut Trans<'_>, ino: Ino, core: &InodeCore) -> Result<bool> {
    if core.mode.get() & S_IFMT != S_IFREG {
        // Half of a directory or of a symbolic link would be damage.
        free_fork(t, ino, ForkKind::Data, true, core.format)?;
        return Ok(true);
    }
    if !matches!(core.format, FORMAT_EXTENTS | FORMAT_BTREE) {
        return Err(bad_inode(t, ino, "a file whose data is not in extents"));
    }
    if core.size.get() != 0 {
        edit_core(t, ino, |core| core.size = 0.into())?;
    }
    let done = bmap::unmap(t, ForkId::data(ino), 0..END_BLOCKS, MOST_EXTENTS)?;
    Ok(done.rest.is_empty())
}

/// Frees all blocks of a fork at once.
fn free_fork(
    t: &mut Trans<'_>,
    ino: Ino,
    fork: ForkKind,
    is_there: bool,
    format: u8,
) -> Result<()> {
    if !is_there || !matches!(format, FORMAT_EXTENTS | FORMAT_BTREE) {
        return Ok(());
    }
    let id = ForkId { ino, fork };
    // Those of attributes that were changed by an intent.
    for extent in bmap::parts_in(t, id, &(0..END_BLOCKS))? {
        let geometry = t.geometry();
        let addr = geometry.block_addr(extent.start_block);
        let bytes = geometry.bytes(extent.blocks);
        t.discard_within(addr, bytes);
    }
    let mut rest = 0..END_BLOCKS;
    while !rest.is_empty() {
        rest = bmap::unmap(t, id, rest, MOST_EXTENTS)?.rest;
    }
    Ok(())
}

/// Frees blocks of a file behind its end, as the kernel does with a file whose mappings it changed
/// for recovery: xfs_can_free_eofblocks() and xfs_free_eofblocks(). Whether there may be more.
///
/// # Errors
/// As [`free_first`].
pub(in super::super) fn free_behind_end(t: &mut Trans<'_>, ino: Ino) -> Result<bool> {
    used_inode(t, ino)?;
    let core = core_of(t, ino)?;
    let kept = FLAG_PREALLOCATED | FLAG_APPEND | FLAG_REALTIME;
    let is_file =
        core.mode.get() & S_IFMT == S_IFREG && matches!(core.format, FORMAT_EXTENTS | FORMAT_BTREE);
    if !is_file || core.nlink.get() == 0 || core.size.get() == 0 || core.flags.get() & kept != 0 {
        return Ok(false);
    }
    let block = u64::from(t.geometry().block_bytes.max(1));
    let end = core.size.get().div_ceil(block).min(END_BLOCKS);
    let done = bmap::unmap(t, ForkId::data(ino), end..END_BLOCKS, MOST_EXTENTS)?;
    Ok(!done.rest.is_empty())
}

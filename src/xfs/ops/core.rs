//! The core of an inode that an operation changes.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::super::format::inode::{self as layout, InodeCore, InodeTimestamp};
use super::super::superblock::Features;
use super::super::trans::Trans;
use super::super::{Ino, Inode, corrupt};
use crate::error::{Error, ErrorKind, Result};

/// A file: its number, and its generation, which tells it from another one that has the number
/// later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeId {
    /// Inode number.
    pub ino: Ino,
    /// Inode generation.
    pub generation: u32,
}

impl InodeId {
    /// That of an inode that was read.
    pub fn of(inode: &Inode) -> Self {
        Self {
            ino: inode.ino,
            generation: inode.generation,
        }
    }
}

/// The core of an inode in use.
pub(super) fn core_of(trans: &mut Trans<'_>, id: InodeId) -> Result<InodeCore> {
    let raw = trans.inode(id.ino)?;
    let (core, _) = InodeCore::read_from_prefix(raw).map_err(|_| too_short(id))?;
    check_identity(&core, id)?;
    Ok(core)
}

/// The core of an inode in use, to be changed: its change time is `now`, and its change count one
/// higher. And whether its time stamps are large ones.
pub(super) fn changed_core<'t>(
    trans: &'t mut Trans<'_>,
    id: InodeId,
    now: InodeTimestamp,
) -> Result<(&'t mut InodeCore, bool)> {
    let features = *trans.features();
    changed_core_in(trans.edit_inode(id.ino)?, &features, id, now)
}

/// As [`changed_core`], of the bytes of the inode.
pub(super) fn changed_core_in<'r>(
    raw: &'r mut [u8],
    features: &Features,
    id: InodeId,
    now: InodeTimestamp,
) -> Result<(&'r mut InodeCore, bool)> {
    let (core, bigtime) = logged_core_in(raw, features, id)?;
    core.ctime = now.encode(bigtime).into();
    core.changecount = core.changecount.get().wrapping_add(1).into();
    Ok((core, bigtime))
}

/// The core of an inode in use, to be logged with its times as they are. And whether its time
/// stamps are large ones.
pub(super) fn logged_core_in<'r>(
    raw: &'r mut [u8],
    features: &Features,
    id: InodeId,
) -> Result<(&'r mut InodeCore, bool)> {
    let (core, _) = InodeCore::mut_from_prefix(raw).map_err(|_| too_short(id))?;
    check_identity(core, id)?;
    let bigtime = with_large_times(core, features);
    Ok((core, bigtime))
}

#[cold]
fn too_short(id: InodeId) -> Error {
    corrupt(0, format!("{} is too short", id.ino))
}

fn check_identity(core: &InodeCore, id: InodeId) -> Result<()> {
    if core.generation.get() == id.generation && core.mode.get() != 0 {
        return check_replayable(core)
            .map_err(|what| corrupt(0, format!("{}: {what}; run xfs_repair", id.ino)));
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format!("{} is not in use any more", id.ino),
    ))
}

/// What a replay of the log, the kernel's or ours, refuses: an inode that is logged so makes the
/// filesystem unusable after a crash. As xfs_dinode_verify().
fn check_replayable(core: &InodeCore) -> Result<(), &'static str> {
    let is_large = core.flags2.get() & layout::FLAG2_NREXT64 != 0;
    let (data, attributes) = match is_large {
        true => (core.big_nextents.get(), u64::from(core.nextents.get())),
        false => (core.nextents.get().into(), core.anextents.get().into()),
    };
    if data.saturating_add(attributes) > core.nblocks.get() {
        return Err("it has more extents than blocks");
    }
    if core.forkoff == 0 && (core.aformat != layout::FORMAT_EXTENTS || attributes != 0) {
        return Err("it has no attribute fork, but attributes");
    }
    Ok(())
}

/// Gives an inode large time stamps where the filesystem has them, as xfs_inode_item_precommit()
/// does with every inode that is logged. Returns whether it has them.
fn with_large_times(core: &mut InodeCore, features: &Features) -> bool {
    let flags = core.flags2.get();
    if flags & layout::FLAG2_BIGTIME != 0 {
        return true;
    }
    if !features.bigtime() {
        return false;
    }
    for time in [
        &mut core.atime,
        &mut core.mtime,
        &mut core.ctime,
        &mut core.crtime,
    ] {
        *time = InodeTimestamp::decode(time.get(), false)
            .encode(true)
            .into();
    }
    core.flags2 = (flags | layout::FLAG2_BIGTIME).into();
    true
}

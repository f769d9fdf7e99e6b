//! Privileges of a file that is written to: the kernel's file_remove_privs().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::super::format::attr;
use super::super::format::inode::{self as layout, InodeCore, InodeTimestamp};
use super::super::overwrite::{CAPABILITY, without_privileges};
use super::super::trans::CommitTicket;
use super::super::{Fs, MetaIo, corrupt};
use super::core::{InodeId, changed_core};
use crate::error::{Error, ErrorKind, Result};

impl Fs {
    /// Takes the privileges of a file away that a write by another than their owner must not leave:
    /// the set-user-ID bit, the set-group-ID bit of a file that its group may execute, and file
    /// capabilities. Does nothing where there are none. In memory only, until the transaction that
    /// it returns is in the log.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is not the same file any more; [`ErrorKind::NotOverwrite`]
    /// for capabilities that are not in the inode; [`ErrorKind::ReadOnly`] where metadata may not
    /// be changed; [`ErrorKind::Corrupt`] for a broken attribute fork; those of reading and of the
    /// log.
    pub fn remove_privileges(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        now: InodeTimestamp,
    ) -> Result<Option<CommitTicket>> {
        let inode = self.read_inode(io, file.ino)?;
        if inode.generation != file.generation {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{} is not in use any more", file.ino),
            ));
        }
        let has_capabilities = self.has_capabilities(io, &inode)?;
        if without_privileges(inode.mode) == inode.mode && !has_capabilities {
            return Ok(None);
        }
        if has_capabilities {
            inode.check_short_attributes()?;
        }
        let has_parents = self.features().parent();
        let ((), ticket) = self.transact(io, |trans| {
            let (core, _) = changed_core(trans, file, now)?;
            core.mode = without_privileges(core.mode.get()).into();
            if has_capabilities {
                let raw = trans.edit_inode(file.ino)?;
                remove_short(raw, has_parents, CAPABILITY)
                    .map_err(|what| corrupt(0, format!("attributes of {}: {what}", file.ino)))?;
            }
            Ok(())
        })?;
        Ok(Some(ticket))
    }
}

/// Removes an attribute in short form from the bytes of an inode, as xfs_attr_sf_removename(): the
/// entries behind it move up, and the fork stays where it is. An empty one goes, unless the data
/// fork is a btree, whose root has the size of its fork, or the filesystem has parent pointers.
fn remove_short(
    raw: &mut [u8],
    has_parents: bool,
    (namespace, name): (u8, &[u8]),
) -> Result<(), &'static str> {
    let (core, literal) = InodeCore::mut_from_prefix(raw).map_err(|_| "too short")?;
    if core.aformat != layout::FORMAT_LOCAL || core.forkoff == 0 {
        return Err("not in the inode");
    }
    let start = usize::from(core.forkoff).saturating_mul(8);
    let fork = literal.get_mut(start..).ok_or("outside of the inode")?;
    let is_empty = attr::remove_short_entry(fork, namespace, name)?;
    if is_empty && core.format != layout::FORMAT_BTREE && !has_parents {
        // As xfs_attr_fork_remove().
        fork.fill(0);
        core.forkoff = 0;
        core.aformat = layout::FORMAT_EXTENTS;
    }
    Ok(())
}

//! Privileges of a file that is written to: the kernel's file_remove_privs().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::attr::{self, AttrKey};
use super::super::format::inode::InodeTimestamp;
use super::super::overwrite::{CAPABILITY, without_privileges};
use super::super::trans::CommitTicket;
use super::super::{Fs, MetaIo};
use super::core::{InodeId, changed_core};
use crate::error::{Error, ErrorKind, Result};

impl Fs {
    /// Takes the privileges of a file away that a write by another than their owner must not leave:
    /// the set-user-ID bit, the set-group-ID bit of a file that its group may execute, and file
    /// capabilities. Does nothing where there are none. In memory only, until the transaction that
    /// it returns is in the log.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is not the same file any more; [`ErrorKind::ReadOnly`] where
    /// metadata may not be changed; [`ErrorKind::Corrupt`] for a broken attribute fork; those of
    /// reading and of the log.
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
        let ((), ticket) = self.transact(io, |trans| {
            let (core, _) = changed_core(trans, file, now)?;
            core.mode = without_privileges(core.mode.get()).into();
            if has_capabilities {
                attr::remove(trans, file.ino, &capability_key())?;
            }
            Ok(())
        })?;
        Ok(Some(ticket))
    }
}

/// The attribute that holds the capabilities of a file.
pub(super) fn capability_key() -> AttrKey<'static> {
    let (namespace, name) = CAPABILITY;
    AttrKey::new(namespace, name)
}

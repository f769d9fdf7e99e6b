//! Extended attributes are set and removed: the kernel's xfs_attr_set().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::attr::{self, AttrKey, SetHow};
use super::super::format::inode::InodeTimestamp;
use super::super::trans::CommitTicket;
use super::super::{Fs, MetaIo};
use super::core::{InodeId, changed_core};
use crate::error::{Error, ErrorKind, Result};

impl Fs {
    /// Sets an extended attribute of a namespace ([`FLAG_ROOT`], [`FLAG_SECURE`], or 0 for `user`).
    /// In memory only, until the transaction that it returns is in the log; a value that has blocks
    /// of its own is on the device then already. Waits for the device where metadata is read, and
    /// for such a value.
    ///
    /// Immutable files, rights and what the attribute means (capabilities, access control lists)
    /// are for the caller.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is not the same file any more, or has no such attribute;
    /// [`ErrorKind::InvalidInput`] when it has, with [`SetHow::Create`], or for an impossible name
    /// or value; [`ErrorKind::NoSpace`], with nothing changed; [`ErrorKind::Unsupported`] when the
    /// content of the inode leaves no room for its first attribute; [`ErrorKind::ReadOnly`] where
    /// metadata may not be changed; [`ErrorKind::Corrupt`] for broken attributes; those of reading
    /// and of the log.
    ///
    /// [`FLAG_ROOT`]: super::super::format::attr::FLAG_ROOT
    /// [`FLAG_SECURE`]: super::super::format::attr::FLAG_SECURE
    pub fn set_attribute(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        (namespace, name): (u8, &[u8]),
        value: &[u8],
        (how, now): (SetHow, InodeTimestamp),
    ) -> Result<CommitTicket> {
        let key = AttrKey::new(namespace, name);
        let set = self.transact(io, |trans| {
            changed_core(trans, file, now)?;
            attr::set(trans, file.ino, &key, value, how)
        });
        set.map(|((), ticket)| ticket)
    }

    /// Removes an extended attribute. As [`Fs::set_attribute`].
    ///
    /// # Errors
    /// As [`Fs::set_attribute`].
    pub fn remove_attribute(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        (namespace, name): (u8, &[u8]),
        now: InodeTimestamp,
    ) -> Result<CommitTicket> {
        let key = AttrKey::new(namespace, name);
        let removed = self.transact(io, |trans| {
            changed_core(trans, file, now)?;
            match attr::remove(trans, file.ino, &key)? {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no attribute {}", name.escape_ascii()),
                )),
            }
        });
        removed.map(|((), ticket)| ticket)
    }
}

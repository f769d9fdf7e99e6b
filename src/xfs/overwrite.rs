//! Which files may be written to: what the kernel refuses, and what a write has to take away first.
//!
//! Asked at open. While a volume is open for writing nothing else writes to it, and it gives no
//! file capabilities; set-user-ID and set-group-ID bits that are set through it later are taken
//! away by the next write, as those from before ([`Fs::remove_privileges`]).
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::attr_fork::AttrFork;
use super::format::attr::{self, Attribute, FLAG_SECURE, NAMESPACE};
use super::format::inode as layout;
use super::{Fs, Inode, InodeType, MetaIo};
use crate::error::{Error, ErrorKind, Result};

/// The flags that keep a file's content and its inode as they are.
pub(super) const PROTECTED: [u16; 2] = [layout::FLAG_IMMUTABLE, layout::FLAG_APPEND];

/// Namespace and name of the attribute that holds the capabilities of a file.
pub(super) const CAPABILITY: (u8, &[u8]) = (FLAG_SECURE, b"capability");

/// Checks that an inode has none of these flags of [`PROTECTED`].
///
/// # Errors
/// [`ErrorKind::PermissionDenied`], as the kernel (EPERM), naming the flag.
pub(super) fn check_flags(flags: u16, forbidden: &[u16]) -> Result<()> {
    let Some(flag) = forbidden.iter().find(|flag| flags & **flag != 0) else {
        return Ok(());
    };
    let (name, letter) = match *flag {
        layout::FLAG_APPEND => ("append-only", 'a'),
        _ => ("immutable", 'i'),
    };
    let detail = format!("the file is {name}: remove the flag with chattr -{letter}");
    Err(Error::new(ErrorKind::PermissionDenied, detail))
}

/// A mode without set-user-ID, and without set-group-ID where the group may execute: as
/// setattr_should_drop_suidgid(). Set-group-ID without that right is no privilege, but the sign of
/// mandatory locking; the kernel takes it away too, from a caller who is not of the group, but here
/// callers have no identity.
pub(super) fn without_privileges(mode: u16) -> u16 {
    let group = layout::S_ISGID | layout::S_IXGRP;
    let mode = match mode & group == group {
        true => mode & !layout::S_ISGID,
        false => mode,
    };
    mode & !layout::S_ISUID
}

impl Inode {
    /// Whether a write may have to call [`Fs::remove_privileges`] first: attributes in blocks may
    /// be capabilities.
    pub fn may_have_privileges(&self) -> bool {
        let in_blocks = |fork: &AttrFork| match fork.form {
            layout::FORMAT_EXTENTS => fork.nextents > 0,
            form => form != layout::FORMAT_LOCAL,
        };
        let is_file = self.file_type == InodeType::Regular;
        self.has_privileges() || is_file && self.attributes.as_ref().is_some_and(in_blocks)
    }

    /// Whether the inode itself says that a write has to call [`Fs::remove_privileges`] first.
    pub fn has_privileges(&self) -> bool {
        let is_it = |entry: &Attribute<'_>| {
            (entry.flags & NAMESPACE, entry.name) == CAPABILITY
                && entry.flags & attr::FLAG_INCOMPLETE == 0
        };
        let has_capabilities = |fork: &AttrFork| {
            fork.form == layout::FORMAT_LOCAL
                && attr::short_entries(&fork.raw).is_ok_and(|entries| entries.iter().any(is_it))
        };
        self.file_type == InodeType::Regular
            && (without_privileges(self.mode) != self.mode
                || self.attributes.as_ref().is_some_and(has_capabilities))
    }
}

impl Fs {
    /// Whether an inode has file capabilities.
    pub(super) fn has_capabilities(&self, io: &mut impl MetaIo, inode: &Inode) -> Result<bool> {
        let (namespace, name) = CAPABILITY;
        self.has_attribute(io, inode, namespace, name)
    }

    /// Checks that the content of a file may be written to. A file with set-user-ID, set-group-ID
    /// or file capabilities may where metadata may be changed: see [`Fs::remove_privileges`].
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] for an immutable or append-only file, as the kernel (EPERM),
    /// naming the flag. [`ErrorKind::NotOverwrite`] for a file with privileges where metadata may
    /// not be changed. [`ErrorKind::Corrupt`] for a broken attribute fork.
    pub fn check_overwrite(&self, io: &mut impl MetaIo, inode: &Inode) -> Result<()> {
        check_flags(inode.flags, &PROTECTED)?;
        if inode.file_type != InodeType::Regular {
            return Ok(());
        }
        let has_capabilities = self.has_capabilities(io, inode)?;
        let (what, remedy) = if inode.mode & layout::S_ISUID != 0 {
            ("the set-user-ID bit", "chmod u-s")
        } else if without_privileges(inode.mode) != inode.mode {
            ("the set-group-ID bit", "chmod g-s")
        } else if has_capabilities {
            ("capabilities (security.capability)", "setcap -r")
        } else {
            return Ok(());
        };
        if let Err(error) = self.check_changeable() {
            return Err(Error::new(
                ErrorKind::NotOverwrite,
                format!(
                    "the file has {what}, which a write must take away: remove it with {remedy}; {}",
                    error.detail()
                ),
            ));
        }
        Ok(())
    }
}

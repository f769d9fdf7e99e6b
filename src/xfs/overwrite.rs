//! Which files may be overwritten: what the kernel refuses, and what it does before a write that is
//! not done here.
//!
//! Asked at open. While a volume is open for writing nothing else writes to it; a set-user-ID bit
//! that is set through it later stays, as writes by root leave it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::format::attr::FLAG_SECURE;
use super::format::inode as layout;
use super::{Fs, Inode, InodeType, MetaIo};
use crate::error::{Error, ErrorKind, Result};

/// The flags that keep a file's content and its inode as they are.
pub(super) const PROTECTED: [u16; 2] = [layout::FLAG_IMMUTABLE, layout::FLAG_APPEND];

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

impl Fs {
    /// Checks that the content of a file may be overwritten.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] for an immutable or append-only file, as the kernel (EPERM),
    /// naming the flag. [`ErrorKind::NotOverwrite`] for a file with set-user-ID, set-group-ID or
    /// file capabilities, which a write has to take away. [`ErrorKind::Corrupt`] for a broken
    /// attribute fork.
    pub fn check_overwrite(&self, io: &mut impl MetaIo, inode: &Inode) -> Result<()> {
        check_flags(inode.flags, &PROTECTED)?;
        if inode.file_type != InodeType::Regular {
            return Ok(());
        }
        // As setattr_should_drop_suidgid(): set-group-ID without the right to execute is no
        // privilege.
        let group = layout::S_ISGID | layout::S_IXGRP;
        let privilege = if inode.mode & layout::S_ISUID != 0 {
            Some(("the set-user-ID bit", "chmod u-s"))
        } else if inode.mode & group == group {
            Some(("the set-group-ID bit", "chmod g-s"))
        } else if self.has_attribute(io, inode, FLAG_SECURE, b"capability")? {
            Some(("capabilities (security.capability)", "setcap -r"))
        } else {
            None
        };
        match privilege {
            Some((what, remedy)) => Err(Error::new(
                ErrorKind::NotOverwrite,
                format!(
                    "the file has {what}, which a write must take away, and xtent cannot do that \
                     yet: remove it with {remedy}"
                ),
            )),
            None => Ok(()),
        }
    }
}

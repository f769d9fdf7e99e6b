//! Which files may be overwritten: what the kernel refuses, and what it does before a write that is
//! not done here.
//!
//! Asked at open. Nothing changes the answer later: while a volume is open for writing nothing else
//! writes to it, and xtent changes neither flags nor modes nor attributes.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::format::attr::FLAG_SECURE;
use super::format::inode as layout;
use super::{Fs, Inode, InodeType, MetaIo};
use crate::error::{Error, ErrorKind, Result};

impl Fs {
    /// Checks that the content of a file may be overwritten.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] for an immutable or append-only file, as the kernel (EPERM),
    /// naming the flag. [`ErrorKind::NotOverwrite`] for a file with set-user-ID, set-group-ID or
    /// file capabilities, which a write has to take away. [`ErrorKind::Corrupt`] for a broken
    /// attribute fork.
    pub fn check_overwrite(&self, io: &mut impl MetaIo, inode: &Inode) -> Result<()> {
        for (flag, name, letter) in [
            (layout::FLAG_IMMUTABLE, "immutable", 'i'),
            (layout::FLAG_APPEND, "append-only", 'a'),
        ] {
            if inode.flags & flag != 0 {
                let detail = format!("the file is {name}: remove the flag with chattr -{letter}");
                return Err(Error::new(ErrorKind::PermissionDenied, detail));
            }
        }
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

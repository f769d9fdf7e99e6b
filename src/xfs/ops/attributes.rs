//! Mode, owner, times and project of an inode: the kernel's xfs_setattr_nonsize().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::attr::{self, SetHow};
use super::super::format::inode::{self as layout, InodeTimestamp};
use super::super::overwrite::{PROTECTED, check_flags, without_privileges};
use super::super::trans::Trans;
use super::super::{Fs, Ino, Inode, MetaIo};
use super::acl::acl_key;
use super::core::{InodeId, changed_core};
use super::privileges::capability_key;
use crate::error::{Error, ErrorKind, Result};

/// A new time stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// That of the change.
    Now,
    /// This one.
    At(InodeTimestamp),
}

/// Changes of an inode; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InodeUpdate {
    /// Permissions with set-user-ID, set-group-ID and sticky: the lower 12 bits of the mode.
    pub permissions: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Project.
    pub project: Option<u32>,
    /// Last access.
    pub accessed: Option<NewTime>,
    /// Last change of the content.
    pub modified: Option<NewTime>,
}

impl InodeUpdate {
    fn changes_owner(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }
}

impl Fs {
    /// Changes an inode as root may; `now` is the time of the change. In memory only, until
    /// [`Fs::sync`]. A new owner takes set-user-ID, set-group-ID and file capabilities away from
    /// all but directories, as the kernel's chown_common(). An access control list changes with the
    /// permissions, as by posix_acl_chmod().
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] for an immutable or append-only inode;
    /// [`ErrorKind::ReadOnly`] where metadata may not be changed; those of reading and of the log.
    pub fn update_inode(
        &self,
        io: &mut impl MetaIo,
        ino: Ino,
        update: &InodeUpdate,
        now: InodeTimestamp,
    ) -> Result<()> {
        let inode = self.read_inode(io, ino)?;
        if *update == InodeUpdate::default() {
            return Ok(());
        }
        self.check_update(&inode, update)?;
        let list = match update.permissions {
            Some(permissions) => self.acl_with(io, &inode, permissions)?,
            None => None,
        };
        self.transact(io, |trans| {
            update_in(trans, &inode, update, now)?;
            match &list {
                Some(list) => attr::set(trans, ino, &acl_key(), list, SetHow::Replace),
                None => Ok(()),
            }
        })
        .map(|_| ())
    }

    fn check_update(&self, inode: &Inode, update: &InodeUpdate) -> Result<()> {
        if self.is_internal(inode.ino) {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("{} is one of the filesystem itself", inode.ino),
            ));
        }
        // As utimensat(2): both times of an append-only file may be set to now.
        let only_touched = *update
            == InodeUpdate {
                accessed: Some(NewTime::Now),
                modified: Some(NewTime::Now),
                ..InodeUpdate::default()
            };
        // As FS_IOC_FSSETXATTR, which these flags themselves are changed with.
        let only_project = *update
            == InodeUpdate {
                project: update.project,
                ..InodeUpdate::default()
            };
        match (only_project, only_touched) {
            (true, _) => {}
            (_, true) => check_flags(inode.flags, &[layout::FLAG_IMMUTABLE])?,
            (_, false) => check_flags(inode.flags, &PROTECTED)?,
        }
        Ok(())
    }
}

fn update_in(
    trans: &mut Trans<'_>,
    inode: &Inode,
    update: &InodeUpdate,
    now: InodeTimestamp,
) -> Result<()> {
    let (core, bigtime) = changed_core(trans, InodeId::of(inode), now)?;
    let mut mode = core.mode.get();
    if let Some(permissions) = update.permissions {
        mode = (mode & layout::S_IFMT) | (permissions & !layout::S_IFMT);
    }
    let loses_privileges = update.changes_owner() && mode & layout::S_IFMT != layout::S_IFDIR;
    if loses_privileges {
        mode = without_privileges(mode);
    }
    core.mode = mode.into();
    if let Some(uid) = update.uid {
        core.uid = uid.into();
    }
    if let Some(gid) = update.gid {
        core.gid = gid.into();
    }
    if let Some(project) = update.project {
        let [h0, h1, l0, l1] = project.to_be_bytes();
        core.projid_hi = u16::from_be_bytes([h0, h1]).into();
        core.projid_lo = u16::from_be_bytes([l0, l1]).into();
    }
    let time = |time: NewTime| match time {
        NewTime::Now => now.encode(bigtime),
        NewTime::At(time) => time.encode(bigtime),
    };
    if let Some(accessed) = update.accessed {
        core.atime = time(accessed).into();
    }
    if let Some(modified) = update.modified {
        core.mtime = time(modified).into();
    }
    if loses_privileges {
        attr::remove(trans, inode.ino, &capability_key())?;
    }
    Ok(())
}

//! Changes of metadata: permissions, owners, projects, times.
//!
//! A change is in memory when the call returns, and every later call of the volume sees it. It is
//! durable after [`Volume::sync`], or a sync of any file of the volume; when the process ends
//! without [`Volume::close`], the filesystem is as after one of the syncs or later.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use super::clock::now;
use super::path::bytes_of;
use super::{DirEntry, File, Io, Metadata, Timestamp, Volume, walk};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::{Ino, InodeType, InodeUpdate, NewTime};

/// The permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// A time stamp to be set.
///
/// ```no_run
/// # use xtent::volume::{SetTime, Volume};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let modified = volume.metadata(&mut io, "/original")?.mtime;
/// volume.set_times(&mut io, "/copy", Some(SetTime::Now), Some(SetTime::At(modified)))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the change (`UTIME_NOW`).
    Now,
    /// This time. Where the filesystem cannot express it, the nearest that it can.
    At(Timestamp),
}

fn new_time(time: SetTime) -> Result<NewTime> {
    match time {
        SetTime::Now => Ok(NewTime::Now),
        SetTime::At(at) if at.nanoseconds < 1_000_000_000 => Ok(NewTime::At(at.on_disk())),
        SetTime::At(_) => Err(Error::new(
            ErrorKind::InvalidInput,
            "a time has a second of nanoseconds or more",
        )),
    }
}

fn permissions(mode: u32) -> Result<InodeUpdate> {
    let permissions = u16::try_from(mode).ok();
    let permissions = permissions.filter(|_| mode & !PERMISSIONS == 0);
    if permissions.is_none() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{mode:o} has bits that are no permissions (at most 7777)"),
        ));
    }
    Ok(InodeUpdate {
        permissions,
        ..InodeUpdate::default()
    })
}

/// `u32::MAX` is the kernel's way to say that an owner stays as it is, and so no owner.
fn owner(uid: Option<u32>, gid: Option<u32>) -> Result<InodeUpdate> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} is no number of a user or group", u32::MAX),
        ));
    }
    Ok(InodeUpdate {
        uid,
        gid,
        ..InodeUpdate::default()
    })
}

fn project(project: u32) -> Result<InodeUpdate> {
    Ok(InodeUpdate {
        project: Some(project),
        ..InodeUpdate::default()
    })
}

fn times(accessed: Option<SetTime>, modified: Option<SetTime>) -> Result<InodeUpdate> {
    Ok(InodeUpdate {
        accessed: accessed.map(new_time).transpose()?,
        modified: modified.map(new_time).transpose()?,
        ..InodeUpdate::default()
    })
}

impl Volume {
    /// Changes the permissions of the file at a path, with the set-user-ID, set-group-ID and sticky
    /// bits: `mode` has the lower 12 bits of `st_mode`. Symbolic links are followed. As chmod(2) by
    /// root: an access control list changes with it.
    ///
    /// # Errors
    /// When the path leads nowhere; [`ErrorKind::ReadOnly`] where metadata may not be changed;
    /// [`ErrorKind::PermissionDenied`] for an immutable or append-only file; those of the device.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// volume.set_permissions(&mut io, "/data", 0o640)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_permissions(&self, io: &mut Io, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let update = permissions(mode);
        self.change(io, path.as_ref(), true, update, "change permissions")
    }

    /// Changes owner and group of the file at a path; `None` leaves one as it is. Symbolic links
    /// are followed. As chown(2) by root: set-user-ID, set-group-ID and file capabilities are taken
    /// away, except from directories.
    ///
    /// # Errors
    /// As [`Volume::set_permissions`].
    pub fn set_owner(
        &self,
        io: &mut Io,
        path: impl AsRef<Path>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        let update = owner(uid, gid);
        self.change(io, path.as_ref(), true, update, "change owner")
    }

    /// As [`Volume::set_owner`], of a symbolic link itself, as lchown(2).
    ///
    /// # Errors
    /// As [`Volume::set_owner`].
    pub fn set_symlink_owner(
        &self,
        io: &mut Io,
        path: impl AsRef<Path>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        let update = owner(uid, gid);
        self.change(io, path.as_ref(), false, update, "change owner")
    }

    /// Changes the project of the file at a path, which quotas count by. Symbolic links are
    /// followed. As the ioctl FS_IOC_FSSETXATTR by root, with no other change; `chattr -p`.
    ///
    /// # Errors
    /// As [`Volume::set_permissions`], but for immutable and append-only files.
    pub fn set_project(&self, io: &mut Io, path: impl AsRef<Path>, number: u32) -> Result<()> {
        let update = project(number);
        self.change(io, path.as_ref(), true, update, "change project")
    }

    /// Changes the times of the last access and of the last change of the content of the file at a
    /// path; `None` leaves one as it is. Symbolic links are followed. As utimensat(2).
    ///
    /// # Errors
    /// As [`Volume::set_permissions`].
    pub fn set_times(
        &self,
        io: &mut Io,
        path: impl AsRef<Path>,
        accessed: Option<SetTime>,
        modified: Option<SetTime>,
    ) -> Result<()> {
        let update = times(accessed, modified);
        self.change(io, path.as_ref(), true, update, "change times")
    }

    /// As [`Volume::set_times`], of a symbolic link itself.
    ///
    /// # Errors
    /// As [`Volume::set_times`].
    pub fn set_symlink_times(
        &self,
        io: &mut Io,
        path: impl AsRef<Path>,
        accessed: Option<SetTime>,
        modified: Option<SetTime>,
    ) -> Result<()> {
        let update = times(accessed, modified);
        self.change(io, path.as_ref(), false, update, "change times")
    }

    fn change(
        &self,
        io: &mut Io,
        path: &Path,
        follow: bool,
        update: Result<InodeUpdate>,
        operation: &'static str,
    ) -> Result<()> {
        let path = bytes_of(path);
        let shared = &self.shared;
        let inode = walk::resolve(self, io, path, follow, operation)?;
        shared
            .check_writable()
            .and(update)
            .and_then(|update| shared.update(io, inode.ino, &update))
            .map_err(|error| shared.explain(error, operation, path))
    }
}

impl super::shared::VolumeShared {
    fn update(&self, io: &mut Io, ino: Ino, update: &InodeUpdate) -> Result<()> {
        self.is_written.store(true, Relaxed);
        if let Some(inode) = self.inodes.in_core(ino.0) {
            // What was written before must not come after times that are set.
            self.note_times(&mut io.core, &inode)?;
        }
        self.fs.update_inode(&mut io.core, ino, update, now())?;
        self.refresh_metadata(io, ino)
    }

    /// Reads the metadata of a file that is in core again.
    pub(super) fn refresh_metadata(&self, io: &mut Io, ino: Ino) -> Result<()> {
        let Some(inode) = self.inodes.in_core(ino.0) else {
            return Ok(());
        };
        // Read while it is locked: of several changes at once the last one is read last.
        inode.change_metadata(|metadata| {
            let read = self.fs.read_inode(&mut io.core, ino)?;
            *metadata = Metadata::of(&read, self.block_bytes());
            Ok(())
        })
    }
}

impl DirEntry {
    /// As [`Volume::set_permissions`]; a symbolic link is not followed, and has no permissions of
    /// its own.
    ///
    /// # Errors
    /// As [`Volume::set_permissions`]; [`ErrorKind::Unsupported`] for a symbolic link, as
    /// fchmodat(2).
    pub fn set_permissions(&self, io: &mut Io, mode: u32) -> Result<()> {
        self.change(io, permissions(mode), "change permissions")
    }

    /// As [`Volume::set_owner`]; a symbolic link is not followed.
    ///
    /// # Errors
    /// As [`Volume::set_owner`].
    pub fn set_owner(&self, io: &mut Io, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.change(io, owner(uid, gid), "change owner")
    }

    /// As [`Volume::set_project`]; a symbolic link is not followed, and can have a project, too.
    ///
    /// # Errors
    /// As [`Volume::set_project`].
    pub fn set_project(&self, io: &mut Io, number: u32) -> Result<()> {
        self.change(io, project(number), "change project")
    }

    /// As [`Volume::set_times`]; a symbolic link is not followed.
    ///
    /// # Errors
    /// As [`Volume::set_times`].
    pub fn set_times(
        &self,
        io: &mut Io,
        accessed: Option<SetTime>,
        modified: Option<SetTime>,
    ) -> Result<()> {
        self.change(io, times(accessed, modified), "change times")
    }

    fn change(
        &self,
        io: &mut Io,
        update: Result<InodeUpdate>,
        operation: &'static str,
    ) -> Result<()> {
        let volume = self.volume();
        volume
            .check_writable()
            .and(update)
            .and_then(|update| {
                let inode = self.inode(io)?;
                if update.permissions.is_some() && inode.file_type == InodeType::Symlink {
                    let detail = "a symbolic link has no permissions of its own";
                    return Err(Error::new(ErrorKind::Unsupported, detail));
                }
                volume.update(io, inode.ino, &update)
            })
            .map_err(|error| self.explain(error, operation))
    }
}

impl File {
    /// As [`Volume::set_permissions`], of the open file.
    ///
    /// # Errors
    /// As [`Volume::set_permissions`].
    pub fn set_permissions(&self, io: &mut Io, mode: u32) -> Result<()> {
        self.change(io, permissions(mode), "change permissions")
    }

    /// As [`Volume::set_owner`], of the open file.
    ///
    /// # Errors
    /// As [`Volume::set_owner`].
    pub fn set_owner(&self, io: &mut Io, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.change(io, owner(uid, gid), "change owner")
    }

    /// As [`Volume::set_project`], of the open file.
    ///
    /// # Errors
    /// As [`Volume::set_project`].
    pub fn set_project(&self, io: &mut Io, number: u32) -> Result<()> {
        self.change(io, project(number), "change project")
    }

    /// As [`Volume::set_times`], of the open file.
    ///
    /// # Errors
    /// As [`Volume::set_times`].
    pub fn set_times(
        &self,
        io: &mut Io,
        accessed: Option<SetTime>,
        modified: Option<SetTime>,
    ) -> Result<()> {
        self.change(io, times(accessed, modified), "change times")
    }

    fn change(
        &self,
        io: &mut Io,
        update: Result<InodeUpdate>,
        operation: &'static str,
    ) -> Result<()> {
        let ino = Ino(self.shared.inode.ino);
        io.check_volume(&self.volume)
            .and_then(|()| self.volume.check_writable())
            .and(update)
            .and_then(|update| self.volume.update(io, ino, &update))
            .map_err(|error| self.explain(error, operation, 0))
    }
}

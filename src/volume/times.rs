//! Times and privileges of files that are written to, where metadata may be waited for.

use std::sync::Arc;

use super::Io;
use super::Metadata;
use super::clock::now;
use super::core::IoCore;
use super::inodes::CoreInode;
use super::shared::VolumeShared;
use crate::error::{Error, Result};
use crate::xfs::Ino;

impl VolumeShared {
    /// Notes the times of a file whose writes marked them: the kernel's file_update_time(), later.
    pub(super) fn note_times(&self, core: &mut IoCore, inode: &CoreInode) -> Result<()> {
        inode.note_mark(|at| self.fs.note_times(core, inode.id(), at))
    }

    /// As [`VolumeShared::note_times`], of all files. All of them, whatever becomes of one.
    pub(super) fn note_all_times(&self, core: &mut IoCore) -> Result<()> {
        let marked = self.inodes.marked().into_iter();
        let noted = marked.map(|inode| self.note_closed_file(core, &inode));
        noted.fold(Ok(()), Result::and)
    }

    /// As [`VolumeShared::note_times`], of files that were closed: they are in core until then. A
    /// failure is told by the next sync of the volume, or when it is closed.
    pub(super) fn note_closed(&self, io: &mut Io) {
        for inode in self.inodes.take_closed_marked() {
            if let Err(error) = self.note_closed_file(&mut io.core, &inode) {
                note_times_left(self, &error);
            }
        }
    }

    fn note_closed_file(&self, core: &mut IoCore, inode: &Arc<CoreInode>) -> Result<()> {
        self.note_times(core, inode)?;
        self.inodes.forget_closed(inode);
        Ok(())
    }
}

#[cold]
fn note_times_left(volume: &VolumeShared, error: &Error) {
    tracing::warn!(
        target_name = &*volume.target.name,
        %error,
        "the times of a closed file that was written to could not be changed yet"
    );
}

impl Io {
    /// Before the content of a file is changed: takes its privileges away, where it has any.
    #[inline]
    pub(super) fn remove_privileges(&mut self, inode: &CoreInode) -> Result<()> {
        match inode.has_privileges() {
            true => self.remove_found(inode),
            false => Ok(()),
        }
    }

    #[cold]
    fn remove_found(&mut self, inode: &CoreInode) -> Result<()> {
        let Self { volume, core, .. } = self;
        // Before, or a mark that is older than this would look newer than the change count says.
        volume.note_times(core, inode)?;
        inode.change_metadata(|metadata| {
            let removed = volume.fs.remove_privileges(core, inode.id(), now())?;
            if let Some(ticket) = removed {
                // A write that is to be durable is so with this.
                inode.note_change(ticket);
            }
            let read = volume.fs.read_inode(core, Ino(inode.ino))?;
            *metadata = Metadata {
                // What else there is was looked at.
                has_privileges: read.has_privileges(),
                ..Metadata::of(&read, volume.block_bytes())
            };
            Ok(())
        })
    }
}

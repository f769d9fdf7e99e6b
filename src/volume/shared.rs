//! What the handles of a volume share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::Metadata;
use super::cached::Background;
use super::inodes::Inodes;
use crate::error::{Error, ErrorKind, Result};
use crate::target::claims::Claim;
use crate::target::shared::TargetShared;
use crate::xfs::{Fs, Inode};

#[derive(Debug)]
pub(super) struct VolumeShared {
    pub(super) fs: Arc<Fs>,
    pub(super) inodes: Arc<Inodes>,
    pub(super) background: Background,
    pub(super) target: Arc<TargetShared>,
    /// A file was opened for writing.
    pub(super) is_written: AtomicBool,
    /// What drop would do was done.
    pub(super) is_closed: bool,
    /// The volume was opened for reading only.
    pub(super) read_only: Option<&'static str>,
    /// Given up last.
    pub(super) _claim: Option<Claim>,
}

impl VolumeShared {
    /// Bytes in a block of the filesystem.
    pub(super) fn block_bytes(&self) -> u32 {
        self.fs.geometry().block_bytes
    }

    /// Metadata of an inode that was just read, with newer values in core.
    pub(super) fn metadata_of(&self, inode: &Inode) -> Metadata {
        let metadata = Metadata::of(inode, self.block_bytes());
        match self.inodes.in_core(metadata.ino) {
            Some(found) if found.generation == metadata.generation => found.with_newer(metadata),
            _ => metadata,
        }
    }

    /// Whether files may be opened for writing.
    pub(super) fn check_writable(&self) -> Result<()> {
        if let Some(why) = self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, why));
        }
        match self.fs.read_only_reason() {
            Some(why) => Err(Error::new(
                ErrorKind::ReadOnly,
                format!("the filesystem may only be read: {why}"),
            )),
            None => Ok(()),
        }
    }

    /// An error with the path and the target it belongs to.
    #[cold]
    pub(super) fn explain(&self, error: Error, operation: &'static str, path: &[u8]) -> Error {
        let error = match error.kind() {
            ErrorKind::Io | ErrorKind::DeviceGone if operation != "read" => self.target.why(error),
            _ => error,
        };
        error
            .during(operation)
            .at_path(path)
            .on_device(&*self.target.name)
    }
}

//! Targets and volumes: opening them, and what they are.

use std::sync::Arc;

use super::{
    File, FilesystemInfo, Io, Metadata, OpenOptions, PathBytes, ReadDir, TargetInfo, VolumeInfo,
    VolumeOptions,
};
use crate::error::{Error, ErrorKind, Result};

/// A controller's namespace, opened, whatever is on it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Target {
    shared: Arc<TargetShared>,
}

#[derive(Debug)]
struct TargetShared {
    info: TargetInfo,
}

impl Target {
    /// Opens a target such as `image:disk.img` or `ram:1G` (see [`super::TargetSpec`]).
    ///
    /// # Errors
    /// A target that is wrong, missing, in use or of a kind that this build cannot open; a controller that
    /// does not come up.
    ///
    /// ```
    /// use xtent::volume::{Target, VolumeOptions};
    /// # fn main() -> xtent::Result<()> {
    /// # if false {
    /// let target = Target::open("ram:64M", &VolumeOptions::default())?;
    /// println!("{}: {} bytes", target.info().model, target.info().capacity_bytes);
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(target: &str, options: &VolumeOptions) -> Result<Self> {
        let _ = options;
        Err(not_yet().on_device(target))
    }

    /// What stands behind it.
    pub fn info(&self) -> &TargetInfo {
        &self.shared.info
    }
}

/// A filesystem on a target. Cheap to clone; shared by all threads.
#[derive(Debug, Clone)]
pub struct Volume {
    shared: Arc<VolumeShared>,
}

#[derive(Debug)]
struct VolumeShared {
    target: Target,
    filesystem: FilesystemInfo,
}

impl Volume {
    /// Opens the filesystem on a target.
    ///
    /// # Errors
    /// Those of [`Target::open`]; a target without XFS, with a dirty log, with features that are not
    /// supported, or with metadata that contradicts itself.
    pub fn open(target: &str, options: &VolumeOptions) -> Result<Self> {
        Self::on(Target::open(target, options)?, options)
    }

    /// Opens the filesystem on a target that is open already.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn on(target: Target, options: &VolumeOptions) -> Result<Self> {
        let _ = options;
        Err(not_yet().on_device(target.info().target.as_str()))
    }

    /// The target below.
    pub fn target(&self) -> &Target {
        &self.shared.target
    }

    /// Controller, namespace and filesystem.
    pub fn info(&self) -> VolumeInfo {
        VolumeInfo {
            target: self.shared.target.info().clone(),
            filesystem: self.shared.filesystem.clone(),
        }
    }

    /// A handle for the calling thread: a queue pair and memory of its own.
    ///
    /// # Errors
    /// When the controller has no queue pair left, or memory is short.
    pub fn io(&self) -> Result<Io> {
        Err(not_yet())
    }

    /// What is known of the file that `path` leads to; symbolic links are followed.
    ///
    /// # Errors
    /// When the path leads nowhere or the disk cannot be read.
    pub fn metadata(&self, io: &mut Io, path: impl PathBytes) -> Result<Metadata> {
        let _ = io;
        Err(not_yet().at_path(path.path_bytes()))
    }

    /// What is known of the file at `path`; a symbolic link in the last place is not followed.
    ///
    /// # Errors
    /// When the path leads nowhere or the disk cannot be read.
    pub fn symlink_metadata(&self, io: &mut Io, path: impl PathBytes) -> Result<Metadata> {
        let _ = io;
        Err(not_yet().at_path(path.path_bytes()))
    }

    /// The entries of a directory, without `.` and `..`, in the directory's own order.
    ///
    /// # Errors
    /// When the path leads to no directory or the disk cannot be read.
    pub fn read_dir(&self, io: &mut Io, path: impl PathBytes) -> Result<ReadDir> {
        let _ = io;
        Err(not_yet().at_path(path.path_bytes()))
    }

    /// Where a symbolic link points to.
    ///
    /// # Errors
    /// When the path leads to no symbolic link or the disk cannot be read.
    pub fn read_link(&self, io: &mut Io, path: impl PathBytes) -> Result<Vec<u8>> {
        let _ = io;
        Err(not_yet().at_path(path.path_bytes()))
    }

    /// Opens an ordinary file for reading.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_file(&self, io: &mut Io, path: impl PathBytes) -> Result<File> {
        OpenOptions::new().read(true).open(self, io, path)
    }
}

pub(super) fn not_yet() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this build has no engine for the target",
    )
}

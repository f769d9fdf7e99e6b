//! A filesystem on a target, and all that is shared of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::cached::Background;
use super::core::IoCore;
use super::inodes::Inodes;
use super::path::{bytes_of, path_from};
use super::shared::VolumeShared;
use super::{
    CacheStats, File, FilesystemInfo, Io, Metadata, MountOptions, OpenOptions, ReadDir, Statfs,
    Volume, VolumeInfo, cached, walk,
};
use crate::block::Queue;
use crate::error::{Error, ErrorKind, Result};
use crate::target::claims::{Claim, Use};
use crate::target::shared::TargetShared;
use crate::target::{Target, TargetOptions};
use crate::xfs::format::acl::ACCESS_NAME;
use crate::xfs::format::attr::FLAG_ROOT;
use crate::xfs::{Fs, FsOptions, Ino, Recovery};

impl Drop for VolumeShared {
    /// Writes back dirty pages. Failures are only logged: call [`Volume::close`] to get them.
    fn drop(&mut self) {
        if !self.is_closed {
            self.background.end();
            cached::write_back_at_last(self);
        }
    }
}

/// A device has one filesystem open that may write, or any number that may not. What was opened
/// although it is in use elsewhere is not kept from that.
fn claim(target: &TargetShared, read_only: bool) -> Result<Option<Claim>> {
    if target.in_use {
        return Ok(None);
    }
    let what = match read_only {
        true => Use::MountReadOnly,
        false => Use::Mount,
    };
    Claim::new(&target.identity, what).map(Some)
}

/// Why files of a volume opened with these options may not be written, if they may not.
fn read_only_reason(target: &TargetShared, options: &MountOptions) -> Option<&'static str> {
    if target.info.read_only {
        Some("the target is read-only")
    } else if options.read_only {
        Some("the volume was opened read-only")
    } else if options.no_recovery || target.no_recovery {
        // As the kernel, which mounts with norecovery only together with ro.
        Some("the volume was opened without recovery of the log (norecovery)")
    } else {
        None
    }
}

/// Tells what was done with a log that held changes.
fn log_replay(fs: &Fs, target_name: &str, is_read_only: bool) {
    let checkpoints = fs.replayed_checkpoints();
    if fs.is_unrecovered() || checkpoints == 0 {
        return;
    }
    if !fs.info().log_dirty {
        tracing::info!(
            target_name,
            checkpoints,
            "the log was replayed on the device"
        );
    } else if is_read_only {
        tracing::info!(target_name, checkpoints, "the log was replayed into memory");
    } else {
        tracing::warn!(
            target_name,
            checkpoints,
            "the log was replayed into memory, and stays as it is on the device: something is left to \
             free, which the kernel does when it mounts the filesystem"
        );
    }
}

/// Has freed blocks discarded, where the device offers that.
fn discard_freed(fs: &Fs, io: &IoCore, target_name: &str) {
    if io.queue.limits().deallocate {
        fs.discard_freed();
    } else if fs.check_changeable().is_ok() {
        tracing::warn!(
            target_name,
            "discard: the device does not offer to deallocate blocks, so freed ones are not discarded"
        );
    }
}

/// What happens to a log that holds changes. A device that may be in use elsewhere is not written.
fn recovery(
    target: &TargetShared,
    options: &MountOptions,
    read_only: Option<&'static str>,
) -> Recovery {
    if options.no_replay || target.no_replay {
        Recovery::Refuse
    } else if read_only.is_some() || target.in_use {
        Recovery::InMemory
    } else {
        Recovery::OnDevice
    }
}

impl Volume {
    /// Opens a target such as `image:disk.img` and mounts the filesystem on it, with default
    /// options.
    ///
    /// # Errors
    /// Those of [`Target::open`] and of [`Volume::on`].
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// let volume = Volume::open("image:disk.img")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(target: &str) -> Result<Self> {
        Self::open_with(target, &TargetOptions::new(), &MountOptions::new())
    }

    /// As [`Volume::open`], with options. A target that is mounted for reading only is opened for
    /// reading only.
    ///
    /// # Errors
    /// As [`Volume::open`].
    ///
    /// ```no_run
    /// # use xtent::{target::TargetOptions, volume::{MountOptions, Volume}};
    /// # fn main() -> xtent::Result<()> {
    /// let target = TargetOptions::new().queue_depth(32);
    /// let mount = MountOptions::new().read_only(true);
    /// let volume = Volume::open_with("image:disk.img", &target, &mount)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_with(target: &str, options: &TargetOptions, mount: &MountOptions) -> Result<Self> {
        let read_only = options.read_only || mount.read_only || mount.no_recovery;
        let options = options.clone().read_only(read_only);
        Self::on(Target::open(target, &options)?, mount)
    }

    /// Mounts the filesystem on a target that is open already.
    ///
    /// # Errors
    /// A target without XFS, with features that are not supported, with a log that cannot be
    /// replayed (see [`MountOptions::no_replay`]), or with corrupt metadata. [`ErrorKind::Busy`]
    /// while this process has another filesystem on the same device open, through this target or
    /// another one, or a `RawIo` that writes. Several that are read-only may be open at once.
    ///
    /// ```
    /// use xtent::target::{Target, TargetOptions};
    /// use xtent::volume::{MountOptions, Volume};
    /// # fn main() -> xtent::Result<()> {
    /// let target = Target::open("ram:64M", &TargetOptions::new())?;
    /// let error = Volume::on(target, &MountOptions::new()).unwrap_err();
    /// assert_eq!(error.kind(), xtent::ErrorKind::NotXfs); // memory is zeroed
    /// # Ok(())
    /// # }
    /// ```
    pub fn on(target: Target, options: &MountOptions) -> Result<Self> {
        let target = target.shared;
        let read_only = read_only_reason(&target, options);
        let claim = claim(&target, read_only.is_some())
            .map_err(|error| error.during("open").on_device(&*target.name))?;
        let mut io = IoCore::new(&target)?;
        let writable = read_only.is_none() && !target.in_use;
        let fs_options = FsOptions {
            norecovery: options.no_recovery || target.no_recovery,
            writable,
            recovery: recovery(&target, options, read_only),
            ..FsOptions::default()
        };
        let fs = Fs::open_with(&mut io, &fs_options)
            .map_err(|error| error.during("open").on_device(&*target.name))?;
        if fs.is_unrecovered() {
            tracing::warn!(
                target_name = &*target.name,
                "norecovery: the log was not replayed, so this is an old state of the filesystem: what was \
                 changed last is missing, and files and directories may be inconsistent"
            );
        }
        log_replay(&fs, &target.name, read_only.is_some());
        if target.discard.unwrap_or(options.discard) {
            discard_freed(&fs, &io, &target.name);
        }
        Ok(Self {
            shared: Arc::new(VolumeShared {
                fs: Arc::new(fs),
                inodes: Arc::new(Inodes::new(options, target.memory_limit_bytes, writable)),
                background: Background::new(options),
                target,
                is_written: AtomicBool::new(false),
                is_closed: false,
                read_only,
                _claim: claim,
            }),
        })
    }

    /// Closes the volume: ends the background flusher, writes back dirty pages, flushes the
    /// device's write cache, and returns what failed. To be called on the last handle, when every
    /// [`Io`], [`File`], [`ReadDir`] and clone is gone.
    ///
    /// # Errors
    /// The first failure of writing back or of the flush, and a failure of writing back before that
    /// no sync of the volume has reported: pages that are still dirty are lost then.
    /// [`ErrorKind::Busy`] when there are other handles: everything written before was written back
    /// and flushed all the same, but the volume stays open, and the last handle to be dropped
    /// writes back later writes.
    ///
    /// ```
    /// # use xtent::volume::{OpenOptions, Volume};
    /// # fn overwrite() -> xtent::Result<()> {
    /// let volume = Volume::open("image:disk.img")?;
    /// let mut io = volume.io()?;
    /// let file = OpenOptions::new().write(true).buffered(true).open(&volume, &mut io, "/data")?;
    /// file.write_all_at(&mut io, b"text", 100)?;
    /// drop((file, io));
    /// volume.close()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(self) -> Result<()> {
        let name = self.shared.target.name.clone();
        let explain = |error: Error| error.during("close").on_device(&*name);
        let handles = Arc::strong_count(&self.shared) - 1;
        let written = match handles {
            0 => Ok(()),
            _ => cached::write_all_back(&self.shared, false),
        };
        // Of several that are closed at once, one is the last.
        let Some(mut shared) = Arc::into_inner(self.shared) else {
            let busy = format!(
                "{handles} other handles (Io, File, ReadDir or Volume) are open: the volume stays open until they are \
                 dropped"
            );
            return written
                .and(Err(Error::new(ErrorKind::Busy, busy)))
                .map_err(explain);
        };
        shared.background.end();
        let last = cached::write_all_back(&shared, true);
        shared.is_closed = true;
        written.and(last).map_err(explain)
    }

    /// The target below.
    pub fn target(&self) -> Target {
        Target {
            shared: Arc::clone(&self.shared.target),
        }
    }

    /// Controller, namespace and filesystem.
    pub fn info(&self) -> VolumeInfo {
        VolumeInfo {
            target: self.shared.target.info.clone(),
            filesystem: FilesystemInfo::of(&self.shared.fs, self.shared.read_only),
        }
    }

    /// Blocks and inodes as they are now: the kernel's statfs(2), also while files grow. Of a
    /// volume whose metadata may not be changed they are those that the disk tells, and what the
    /// kernel withholds for its own metadata counts as free. Waits for metadata.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the header of an allocation group is
    /// wrong; the device's.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let now = volume.statfs(&mut io)?;
    /// println!("{} of {} blocks are free", now.free_blocks, now.blocks);
    /// # Ok(())
    /// # }
    /// ```
    pub fn statfs(&self, io: &mut Io) -> Result<Statfs> {
        let shared = &self.shared;
        let usage = io
            .check_volume(shared)
            .and_then(|()| shared.fs.usage(&mut io.core))
            .map_err(|error| shared.explain(error, "statfs", b"/"))?;
        Ok(Statfs {
            block_bytes: shared.block_bytes(),
            blocks: usage.blocks,
            free_blocks: usage.free_blocks,
            inodes: usage.inodes,
            free_inodes: usage.free_inodes,
        })
    }

    /// Page cache counters. Threads count hits and misses for themselves and add them up now and
    /// then: when their [`Io`] goes, and with [`Io::cache_stats`]. `None` when no buffered file was
    /// opened yet.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.shared.inodes.stats()
    }

    /// A handle for the calling thread: a queue pair and memory of its own. Where the controller
    /// has no more queue pairs, or interrupt vectors, the handle shares the last one with others,
    /// by a lock.
    ///
    /// # Errors
    /// When there is no queue pair to share (others use all of them), or memory is short.
    pub fn io(&self) -> Result<Io> {
        Io::new(&self.shared)
    }

    /// Makes durable what was written to any file of the volume before, into the page cache or past
    /// it.
    ///
    /// # Errors
    /// The device's. A failure of writing a file back that no sync of the volume has told yet;
    /// there may be more of them, for the next one to tell.
    pub fn sync(&self, io: &mut Io) -> Result<()> {
        io.check_volume(&self.shared)
            .and_then(|()| cached::sync_volume(&self.shared, io))
            .and_then(|()| self.shared.target.look_again())
            .map_err(|error| {
                self.shared
                    .target
                    .why(error)
                    .during("sync")
                    .on_device(&*self.shared.target.name)
            })
    }

    /// Metadata of the file that `path` leads to; symbolic links are followed.
    ///
    /// # Errors
    /// When the path leads nowhere or the disk cannot be read.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// let mut io = volume.io()?;
    /// println!("{} bytes", volume.metadata(&mut io, "/etc/hosts")?.len_bytes);
    /// # Ok(())
    /// # }
    /// ```
    pub fn metadata(&self, io: &mut Io, path: impl AsRef<Path>) -> Result<Metadata> {
        let inode = walk::resolve(self, io, bytes_of(path.as_ref()), true, "stat")?;
        Ok(self.shared.metadata_of(&inode))
    }

    /// Metadata of the file at `path`; a symbolic link in the last place is not followed.
    ///
    /// # Errors
    /// When the path leads nowhere or the disk cannot be read.
    pub fn symlink_metadata(&self, io: &mut Io, path: impl AsRef<Path>) -> Result<Metadata> {
        let inode = walk::resolve(self, io, bytes_of(path.as_ref()), false, "stat")?;
        Ok(self.shared.metadata_of(&inode))
    }

    /// Calls `visit` with the name and the value of each extended attribute of a file, as
    /// listxattr() and getxattr() give them to root: also the access control lists, as
    /// `system.posix_acl_access` and `system.posix_acl_default` besides the `trusted` attributes
    /// that hold them on disk. `metadata` must be of this volume; at most 64 KiB of a value are in
    /// memory at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the attributes are broken; those of the device and of `visit`.
    #[doc(hidden)]
    pub fn each_xattr(
        &self,
        io: &mut Io,
        metadata: &Metadata,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        io.check_volume(&self.shared)?;
        if !metadata.has_attributes {
            return Ok(());
        }
        let ino = Ino(metadata.ino);
        super::xattr::each(&self.shared.fs, &mut io.core, ino, &mut visit)
    }

    /// Whether an inode has a POSIX access control list. Then the group bits of its mode are the
    /// list's mask, not the rights of its group (acl(5)).
    #[doc(hidden)]
    pub fn has_access_acl(&self, io: &mut Io, metadata: &Metadata) -> Result<bool> {
        io.check_volume(&self.shared)?;
        if !metadata.has_attributes {
            return Ok(false);
        }
        let (fs, ino) = (&self.shared.fs, Ino(metadata.ino));
        let inode = fs.read_inode(&mut io.core, ino)?;
        fs.has_attribute(&mut io.core, &inode, FLAG_ROOT, ACCESS_NAME)
    }

    /// The entries of a directory, without `.` and `..`, in the directory's own order.
    ///
    /// # Errors
    /// When the path leads to no directory or the disk cannot be read.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// let mut dir = volume.read_dir(&mut io, "/etc")?;
    /// while let Some(entry) = dir.next_entry(&mut io)? {
    ///     let len = entry.metadata(&mut io)?.len_bytes;
    ///     println!("{:>10} {}", len, entry.file_name().display());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_dir(&self, io: &mut Io, path: impl AsRef<Path>) -> Result<ReadDir> {
        let path = bytes_of(path.as_ref());
        let inode = walk::resolve(self, io, path, true, "read directory")?;
        ReadDir::new(&self.shared, inode, path)
    }

    /// Where a symbolic link points to.
    ///
    /// # Errors
    /// When the path leads to no symbolic link or the disk cannot be read.
    pub fn read_link(&self, io: &mut Io, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = bytes_of(path.as_ref());
        let inode = walk::resolve(self, io, path, false, "read link")?;
        crate::xfs::symlink::read_link(&self.shared.fs, &mut io.core, &inode)
            .map(path_from)
            .map_err(|error| self.shared.explain(error, "read link", path))
    }

    /// Opens an ordinary file for reading.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_file(&self, io: &mut Io, path: impl AsRef<Path>) -> Result<File> {
        OpenOptions::new().read(true).open(self, io, path)
    }
}

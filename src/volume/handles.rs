//! The handles of a program: the volume, a file, and what one thread does I/O with. Their calls are
//! in files by subject.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::cached::BufferedIo;
use super::core::IoCore;
use super::file_shared::FileShared;
use super::inodes::UserHandle;
use super::shared::VolumeShared;

/// A filesystem on a target. Cheap to clone; shared by all threads.
///
/// # What reaches the device, and when
///
/// Every handle ([`Io`], [`File`], a clone) keeps the volume open.
///
/// - [`Volume::close`] of the last handle writes back the dirty pages of the page cache, flushes
///   the device's write cache, and returns what failed.
/// - Dropping the last handle writes back as well, but a failure is only an event of `tracing`
///   (level error), and the device's write cache is flushed only if something was dirty.
/// - [`Volume::sync`], [`File::sync_data`] and writes to a file opened with [`OpenOptions::dsync`]
///   make data durable at once.
///
/// An end without destructors loses dirty pages: [`std::process::exit`], an abort, a signal that
/// ends the process, the return of `main` while other threads have handles, a handle that is leaked
/// (`std::mem::forget`, `Box::leak`, a cycle of `Arc`s) or kept in a `static`. The background
/// flusher, where one runs, writes back what has been dirty for [`MountOptions::dirty_expire`];
/// younger pages are lost. Completed direct writes are on the device, though maybe in its write
/// cache.
///
/// [`OpenOptions::dsync`]: super::OpenOptions::dsync
///
/// [`MountOptions::dirty_expire`]: super::MountOptions::dirty_expire
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// let volume = Volume::open("image:disk.img")?;
/// let mut io = volume.io()?;
/// println!("{:?}", volume.read_link(&mut io, "/link")?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Volume {
    pub(super) shared: Arc<VolumeShared>,
}

/// An open file. Cheap to clone; any thread may use it with its own [`Io`] of the same volume.
///
/// Direct I/O: offsets and lengths are multiples of [`Io::block_bytes`], memory comes from
/// [`Io::alloc`]. Reads into ordinary memory may have any alignment. A write to a hole or past the
/// end has blocks allocated first ([`crate::ErrorKind::NoSpace`] where there are none); when it
/// ends the file has its data, and is as long as that at least. Blocks shared with another file
/// refuse a write ([`crate::ErrorKind::NotOverwrite`]) before any of it is done. A file that grows
/// gets more blocks than it needs; they are freed when it is closed.
///
/// # Times and privileges
///
/// A write marks the times of the file for update, as POSIX has it; they are dated when they are
/// looked at ([`File::metadata`], [`Volume::metadata`] and the like), or when the file's last
/// handle is closed. In the filesystem, with the change count, they are after [`File::sync_all`],
/// [`Volume::sync`] and the end of the volume, as of writes that need blocks at once. Until then,
/// and after [`File::sync_data`] and writes with [`OpenOptions::dsync`](super::OpenOptions::dsync),
/// a crash may leave the data with the times from before. Times that are set after a write win.
/// Where metadata may not be changed (quotas, a log that is left to the kernel) overwrites leave
/// the times as they are.
///
/// The first write or change of space takes the set-user-ID bit away, the set-group-ID bit where
/// the group may execute, and file capabilities, before any data is written. The kernel spares the
/// two bits when the writer has the capability `CAP_FSETID`, as root has; callers of this library
/// have no identity, so no write is spared.
///
/// # Buffered files
///
/// Opened [buffered](super::OpenOptions::buffered), the blocking calls go through the page cache,
/// with any offset, length and memory. A write that needs blocks has them allocated when it is
/// called; the file on disk grows when its pages are written back. A write that reaches shared
/// blocks, or for which there is no space, stops there and returns the bytes written, or fails if
/// there are none. Filesystems with blocks of more than 4096 bytes are overwritten only. The calls
/// of [`Io`] that submit, and [`File::reader`], are direct I/O for every file. Both kinds may be
/// used on the same file: direct I/O finds what was written to the cache before, and drops from it
/// what it overwrites.
///
/// Dropping a `File` writes nothing back: dirty pages stay in the page cache of the volume. See
/// [`Volume`] for the data lost when a process ends without closing or syncing.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let file = volume.open_file(&mut io, "/data")?;
/// let mut buf = vec![0; 4096];
/// let bytes = file.read_at(&mut io, &mut buf, 0)?;
/// println!("{bytes} of {} bytes", file.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct File {
    pub(super) shared: Arc<FileShared>,
    pub(super) volume: Arc<VolumeShared>,
    /// Held while the program has the file open.
    pub(super) _user: Arc<UserHandle>,
}

/// One thread's handle to a volume. Not shared: every thread takes its own from [`Volume::io`]. It
/// may move to another thread.
///
/// Blocking calls are on [`File`]; here are the calls for many operations in flight:
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// let mut io = volume.io()?;
/// let file = volume.open_file(&mut io, "/data")?;
/// for i in 0..8 {
///     let buf = io.alloc(4096)?;
///     io.submit_read(&file, i * 4096, buf, i)?;
/// }
/// while io.outstanding() > 0 {
///     let ended = io.poll(8, |done| println!("{}: {:?}", done.user_data, done.result));
///     if ended == 0 {
///         io.relax();
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Io {
    /// Its descriptor where the queue has none.
    pub(super) always_ready: BorrowedFd<'static>,
    /// For buffered files; made when it is needed first.
    pub(super) buffered: Option<Box<BufferedIo>>,
    pub(super) core: IoCore,
    /// Most operations of the caller's in flight.
    pub(super) depth: usize,
    /// Goes last: the last one to go writes back, and wants a queue for that.
    pub(super) volume: Arc<VolumeShared>,
}

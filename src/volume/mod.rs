//! Volumes: mount a filesystem, walk paths, read and overwrite files.
//!
//! Layer 7. A [`Volume`] is shared by all threads. Each thread takes an [`Io`] of its own from it:
//! a queue pair on the controller, memory for DMA, and the operations in flight. A [`File`] is a
//! cheap handle that any thread may use together with its own `Io`; nothing on the way of a read or
//! write locks, allocates or calls the kernel.
//!
//! ```no_run
//! use xtent::volume::Volume;
//!
//! fn main() -> xtent::Result<()> {
//!     let volume = Volume::open("image:disk.img")?;
//!     let mut io = volume.io()?;
//!     let file = volume.open_file(&mut io, "/etc/hosts")?;
//!     let mut buf = [0; 4096];
//!     let n = file.read_at(&mut io, &mut buf, 0)?;
//!     println!("{}", String::from_utf8_lossy(&buf[..n]));
//!     Ok(())
//! }
//! ```
//!
//! Files are opened for direct I/O, or, with [`OpenOptions::buffered`], for I/O of any alignment
//! through a page cache that all handles of the volume share. Writes to the cache are on the device
//! after [`File::sync_data`], [`Volume::sync`], or when the last handle of the volume is gone.
//!
//! Paths are bytes, as XFS has them: not all of them are UTF-8. Every error names the operation,
//! the path, the offset and the target.
#![forbid(unsafe_code)]

#[cfg(feature = "futures")]
pub mod aio;
mod allocating;
mod bounce;
mod cached;
mod change;
pub(crate) mod check;
mod clock;
mod core;
mod dir;
mod event;
mod extents;
mod file;
mod file_shared;
mod handles;
mod info;
mod inode;
mod inodes;
mod io;
mod metadata;
mod mounted;
mod noting;
mod options;
mod path;
mod ranges;
mod reader;
mod replace;
#[cfg(test)]
mod replace_tests;
mod shared;
mod space;
mod space_lock;
mod space_wait;
mod times;
mod walk;
mod whole;
mod xattr;

pub use crate::cache::{CacheStats, View, ViewMut};
pub use crate::iomap::{FiemapExtent, FiemapFlags};
pub use crate::mem::DmaBuf;
pub use cached::{Advice, RwFlags};
pub use change::SetTime;
pub use dir::{DirEntries, DirEntry, ReadDir};
pub use handles::{File, Io, Volume};
pub use info::{FilesystemInfo, Statfs, VolumeInfo};
pub use io::{Done, SubmitError, SubmitReason};
pub use metadata::{FileType, Metadata, Timestamp};
pub use options::{MountOptions, OpenOptions};
pub use reader::FileReader;
pub use whole::FileWriter;

//! How a volume is mounted, and how a file is opened.

use std::time::Duration;

/// Options of a mount.
///
/// ```
/// use xtent::volume::MountOptions;
/// let options = MountOptions::new().read_only(true).cache_bytes(16 << 20);
/// # drop(options);
/// ```
#[derive(Debug, Clone)]
pub struct MountOptions {
    pub(super) read_only: bool,
    pub(super) no_recovery: bool,
    pub(super) no_replay: bool,
    pub(super) discard: bool,
    pub(super) cache_bytes: Option<usize>,
    pub(super) cache_dirty_percent: u8,
    pub(super) dirty_expire: Duration,
    pub(super) writeback_interval: Duration,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            no_recovery: false,
            no_replay: false,
            discard: false,
            cache_bytes: None,
            cache_dirty_percent: 20,
            dirty_expire: Duration::from_secs(30),
            writeback_interval: Duration::from_secs(5),
        }
    }
}

impl MountOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuse to open files for writing. Default: false.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Mount, for reading only, although the log holds changes: this shows an old state of the
    /// filesystem, in which files and directories may be inconsistent. A warning (`tracing`) says
    /// so each time. Default: false.
    #[must_use]
    pub fn no_recovery(mut self, yes: bool) -> Self {
        self.no_recovery = yes;
        self
    }

    /// Refuse a filesystem whose log holds changes ([`crate::ErrorKind::NeedsRecovery`]). Otherwise
    /// they are replayed: on the device, as the kernel does when it mounts, or into memory where
    /// the volume is read-only, which leaves the device as it is. Default: false.
    #[must_use]
    pub fn no_replay(mut self, yes: bool) -> Self {
        self.no_replay = yes;
        self
    }

    /// Discard blocks that are freed (NVMe deallocate), when that is durable and before they are
    /// used again, as the kernel's mount option. Syncs that make frees durable wait for it. A
    /// device that does not offer it is used without, with a warning (`tracing`). The target option
    /// `discard=on|off` takes precedence. Default: false.
    #[must_use]
    pub fn discard(mut self, yes: bool) -> Self {
        self.discard = yes;
        self
    }

    /// Size of the page cache of buffered files in bytes, including its own tables. The memory is
    /// allocated when the first buffered file is opened. Default: an eighth of the free hugepages,
    /// or 64 MiB if that is more.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// The most of the page cache that may be dirty, in percent, 1 to 90: a writer that would
    /// exceed it waits for writeback. Writeback in the background starts at half of it. Default:
    /// 20.
    #[must_use]
    pub fn cache_dirty_percent(mut self, percent: u8) -> Self {
        self.cache_dirty_percent = percent;
        self
    }

    /// Age at which dirty pages are written back in the background, to within one
    /// [`MountOptions::writeback_interval`]. Default: 30 s.
    #[must_use]
    pub fn dirty_expire(mut self, age: Duration) -> Self {
        self.dirty_expire = age;
        self
    }

    /// Period at which the flusher thread, while pages are dirty, looks for pages to write back. It
    /// uses a queue of its own while it has work. Zero for no flusher: then only writers over the
    /// dirty limit and syncs write back. Default: 5 s.
    #[must_use]
    pub fn writeback_interval(mut self, interval: Duration) -> Self {
        self.writeback_interval = interval;
        self
    }
}

/// How a file is opened.
///
/// ```no_run
/// # use xtent::volume::{OpenOptions, Volume};
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let file = OpenOptions::new().read(true).write(true).dsync(true).open(&volume, &mut io, "/db")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenOptions {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) dsync: bool,
    pub(super) buffered: bool,
}

impl OpenOptions {
    /// Neither reading nor writing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// For reading.
    #[must_use]
    pub fn read(mut self, yes: bool) -> Self {
        self.read = yes;
        self
    }

    /// For writing: overwriting existing data, within the file's length.
    #[must_use]
    pub fn write(mut self, yes: bool) -> Self {
        self.write = yes;
        self
    }

    /// Every write is durable when it returns. Always so for a file with the flag `S` (chattr +S).
    #[must_use]
    pub fn dsync(mut self, yes: bool) -> Self {
        self.dsync = yes;
        self
    }

    /// Through the page cache of the volume: reads and writes of any length, at any offset, from
    /// any memory. Writes reach the device later (see [`File::sync_data`](super::File::sync_data)),
    /// unless every write is to be durable.
    #[must_use]
    pub fn buffered(mut self, yes: bool) -> Self {
        self.buffered = yes;
        self
    }
}

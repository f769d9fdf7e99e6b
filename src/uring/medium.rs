//! What a ring works on: a block device or a file of the host, and the memory that it may use.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Arena, Heap, Mapper};
use crate::sys::{DirectAlign, FileId, HeldFile, file_serial, set_direct};

/// A block device or a file, opened for direct I/O, with the heap that its operations use.
#[derive(Debug)]
pub struct UringDisk {
    pub(super) held: Arc<HeldFile>,
    pub(super) info: DiskInfo,
    pub(super) arenas: Arc<UringArenas>,
}

/// Properties of the disk or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Bytes in a logical block.
    pub block_bytes: u32,
    /// Bytes in a logical block of the device itself, or the alignment of direct I/O on a file:
    /// `block_bytes` may be more.
    pub logical_block_bytes: u32,
    /// Whole blocks.
    pub capacity_blocks: u64,
    /// Alignment of memory in bytes.
    pub memory_align_bytes: u32,
    /// Completed writes may be lost with power until a flush.
    pub volatile_write_cache: bool,
    /// Whether it is a block device, not a file.
    pub is_device: bool,
    /// Model, or what kind of file it is.
    pub model: String,
    /// Serial number: of a file one derived from its inode; of a device without one its name.
    pub serial: String,
    /// Firmware revision, where the kernel knows it.
    pub firmware: String,
}

impl UringDisk {
    /// Takes over an open file or block device; `path` is what it was opened by. `block_bytes` asks
    /// for larger blocks than it has itself. Memory of `heap` can be used with it from then on.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it has no direct I/O or no such blocks; what the system
    /// says.
    pub fn open(file: File, path: &Path, block_bytes: Option<u32>, heap: &Heap) -> Result<Self> {
        let held =
            HeldFile::unwatched(file).map_err(|e| Error::system("cannot look at the file", e))?;
        Self::held(Arc::new(held), path, block_bytes, heap)
    }

    /// As [`UringDisk::open`]; writes stop when the file is lost to another process.
    ///
    /// # Errors
    /// As [`UringDisk::open`].
    pub fn held(
        held: Arc<HeldFile>,
        path: &Path,
        block_bytes: Option<u32>,
        heap: &Heap,
    ) -> Result<Self> {
        let mut file: &File = held.file();
        set_direct(file).map_err(|e| no_direct_io().because(e))?;
        let meta = file
            .metadata()
            .map_err(|e| Error::system("cannot look at the file", e))?;
        let is_device = meta.file_type().is_block_device();
        let sysfs = is_device.then(|| Sysfs::of(&meta));
        let align = match DirectAlign::of(file) {
            Ok(align) => align,
            Err(e) => return Err(no_direct_io().because(e)),
        };
        let least = sysfs
            .as_ref()
            .and_then(|sysfs| sysfs.queue("logical_block_size")?.parse().ok())
            .or(align.map(|align| align.offset_bytes))
            .unwrap_or(512)
            .max(512);
        let block_bytes = block_bytes.unwrap_or(least);
        if block_bytes < least || !block_bytes.is_power_of_two() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("blocks of {block_bytes} bytes: direct I/O here needs {least} at least"),
            ));
        }
        let len_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|e| Error::system("cannot find the length", e))?;
        let info = DiskInfo {
            block_bytes,
            logical_block_bytes: least,
            capacity_blocks: len_bytes / u64::from(block_bytes),
            memory_align_bytes: align.map_or(least, |align| align.memory_bytes).max(4),
            volatile_write_cache: sysfs
                .as_ref()
                .and_then(|sysfs| sysfs.queue("write_cache"))
                .is_none_or(|text| text != "write through"),
            is_device,
            model: sysfs
                .as_ref()
                .map_or("a file".into(), |s| s.device("model", "a block device")),
            serial: match &sysfs {
                Some(sysfs) => sysfs.device("serial", &name_of(path)),
                None => file_serial(FileId::of(&meta)),
            },
            firmware: sysfs
                .as_ref()
                .map_or(String::new(), |s| s.device("firmware_rev", "")),
        };
        if info.capacity_blocks == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "there is not one whole block in it",
            ));
        }
        let arenas = Arc::new(UringArenas::default());
        heap.attach(Arc::<UringArenas>::clone(&arenas))?;
        Ok(Self { held, info, arenas })
    }

    /// Properties of the disk or file.
    pub fn info(&self) -> &DiskInfo {
        &self.info
    }
}

fn no_direct_io() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "there is no direct I/O here: the filesystem (tmpfs, say) or the device does not offer it",
    )
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// What sysfs says of a block device or its disk.
struct Sysfs(PathBuf);

impl Sysfs {
    fn of(meta: &fs::Metadata) -> Self {
        // As the kernel's dev_t is encoded for user space (makedev(3)).
        let number = meta.rdev();
        let major = (number >> 8 & 0xfff) | (number >> 32 & !0xfff);
        let minor = (number & 0xff) | (number >> 12 & !0xff);
        let path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // A partition's disk is above it.
        if path.join("partition").exists()
            && let Ok(own) = fs::canonicalize(&path)
            && let Some(disk) = own.parent()
        {
            return Self(disk.to_owned());
        }
        Self(path)
    }

    fn read(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn queue(&self, name: &str) -> Option<String> {
        self.read(&format!("queue/{name}"))
    }

    fn device(&self, name: &str, otherwise: &str) -> String {
        self.read(&format!("device/{name}"))
            .unwrap_or_else(|| otherwise.to_owned())
    }
}

/// The arenas that operations may name, by device address.
#[derive(Debug, Default)]
pub(super) struct UringArenas(Mutex<Vec<Arc<Arena>>>);

impl UringArenas {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Arena>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The arena with this device address in it.
    pub(super) fn find(&self, iova: u64) -> Option<Arc<Arena>> {
        let arenas = self.lock();
        let found = arenas.iter().find(|arena| {
            iova.checked_sub(arena.iova().0)
                .is_some_and(|offset| offset < arena.len_bytes() as u64)
        });
        found.cloned()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Arena>> {
        self.lock().clone()
    }
}

impl Mapper for UringArenas {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        self.lock().push(Arc::clone(arena));
        Ok(())
    }

    /// Queues that know it already keep it mapped until they are dropped.
    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        self.lock().retain(|known| !Arc::ptr_eq(known, arena));
        Ok(())
    }
}

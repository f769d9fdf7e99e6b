//! Doorbells: 32-bit registers that the hot path writes.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{memory_file, punch_hole};

/// One 32-bit doorbell register, in a device's BAR or in the embedded controller's memory. Ringing
/// it is a store: no call, no dispatch.
pub struct Doorbell {
    register: NonNull<AtomicU32>,
    /// Whatever must live so that the register stays mapped.
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the register is an atomic, kept alive by `_keep`, and written by atomic stores only.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl Doorbell {
    /// The doorbell at `index` of an array in memory; `None` past its end.
    pub fn in_memory(array: &Arc<[AtomicU32]>, index: usize) -> Option<Self> {
        let register = NonNull::from(array.get(index)?);
        Some(Self {
            register,
            _keep: Arc::new(Arc::clone(array)),
        })
    }

    /// The doorbell at `index` of an array that can be shared; `None` past its end.
    pub fn in_array(array: &Arc<DoorbellArray>, index: usize) -> Option<Self> {
        let register = NonNull::from(array.get(index)?);
        Some(Self {
            register,
            _keep: Arc::<DoorbellArray>::clone(array),
        })
    }

    /// The doorbell at an address of mapped device memory.
    ///
    /// # Safety
    /// `register` is aligned to 4 bytes and stays a valid, mapped 32-bit register while `keep`
    /// lives.
    pub unsafe fn at(register: NonNull<AtomicU32>, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            register,
            _keep: keep,
        }
    }

    /// Writes the register. Everything stored before is visible to the device when it sees the
    /// value: x86-64 keeps stores to write-back memory in order before a later store to uncached
    /// memory (Intel's manual, volume 3, 10.2.2 and 13.3), and the store is a release for the
    /// compiler. Another processor would need a barrier here, as the kernel's `writel()` has.
    #[inline]
    pub fn ring(&self, value: u32) {
        // SAFETY: the register is valid while `_keep` lives (both constructors).
        let register = unsafe { self.register.as_ref() };
        register.store(value.to_le(), Ordering::Release);
    }
}

/// Where doorbells lie in a [`DoorbellArray`]'s file, in bytes: as in a BAR.
pub const DOORBELLS_IN_FILE: usize = 0x1000;

/// The doorbells of a controller that is no hardware: 32-bit words in a file in memory, which the
/// driver of another process can map.
pub struct DoorbellArray {
    base: NonNull<AtomicU32>,
    words: usize,
    mapped_bytes: usize,
    /// None where files may not be that long (`ulimit -f`).
    file: Option<File>,
}

// SAFETY: the mapping is owned, and its words are atomics.
unsafe impl Send for DoorbellArray {}
// SAFETY: as above.
unsafe impl Sync for DoorbellArray {}

impl DoorbellArray {
    /// `words` doorbells at zero.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn new(words: usize) -> Result<Arc<Self>> {
        Self::map(words)
            .map(Arc::new)
            .map_err(|e| Error::new(ErrorKind::OutOfMemory, "no memory for doorbells").because(e))
    }

    fn map(words: usize) -> io::Result<Self> {
        let mapped_bytes = words
            .max(1)
            .checked_mul(4)
            .and_then(|bytes| bytes.checked_next_multiple_of(4096))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let file = match memory_file(mapped_bytes + DOORBELLS_IN_FILE, false) {
            Ok(file) => Some(file),
            // Only a driver of another process needs it.
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => None,
            Err(error) => return Err(error),
        };
        let (flags, fd, offset) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd(), DOORBELLS_IN_FILE),
            None => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0),
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            words,
            mapped_bytes,
            file,
        })
    }

    /// Gives the memory of the words back, which read as zeroes then. For words that nothing here
    /// uses any more, while another process still has the file: what it touches is charged to it.
    pub(crate) fn give_back(&self) {
        if let Some(file) = &self.file {
            let len = self.mapped_bytes + DOORBELLS_IN_FILE;
            // Should it fail, the memory stays as long as the other process keeps the file.
            let _ = punch_hole(file, 0, len as u64);
        }
    }

    /// The file behind it, laid out as a BAR: the words, in whole pages, lie at
    /// [`DOORBELLS_IN_FILE`]. `None` where this process may not have files that long.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

impl Deref for DoorbellArray {
    type Target = [AtomicU32];

    #[inline]
    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: as many words are mapped while `self` lives, zeroed and aligned to a page; the
        // file's length is sealed, so they stay. Another process that maps it can store any value,
        // and each is a valid AtomicU32; here the words are accessed only as atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for DoorbellArray {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; a `Doorbell` keeps the array.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

impl fmt::Debug for DoorbellArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DoorbellArray({} words)", self.words)
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Doorbell({:p})", self.register)
    }
}

//! The device's view of host memory: what an IOMMU is to real hardware.
//!
//! The embedded controller reaches host memory only through a [`DmaSpace`]. A device address outside the
//! mapped arenas is a [`DmaFault`], never an access.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::arena::Arena;
use super::heap::Mapper;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Iova;

/// A device address that is not mapped, or a range that runs out of its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaFault {
    /// The first address of the refused range.
    pub iova: Iova,
    /// The refused length in bytes.
    pub len_bytes: usize,
}

/// The arenas mapped in one device, sorted by device address.
#[derive(Debug, Default)]
pub struct DmaSpace {
    arenas: RwLock<Vec<Arc<Arena>>>,
}

impl DmaSpace {
    /// The host memory behind a device range, which must lie in one arena.
    ///
    /// # Errors
    /// [`DmaFault`] for anything that is not mapped.
    pub fn translate(&self, iova: Iova, len_bytes: usize) -> Result<DmaRange, DmaFault> {
        let fault = DmaFault { iova, len_bytes };
        let arenas = self.arenas.read().unwrap_or_else(PoisonError::into_inner);
        let at = arenas.partition_point(|arena| arena.iova() <= iova);
        let arena = at
            .checked_sub(1)
            .and_then(|at| arenas.get(at))
            .ok_or(fault)?;
        let offset = usize::try_from(iova.0 - arena.iova().0).map_err(|_| fault)?;
        let end = offset.checked_add(len_bytes).ok_or(fault)?;
        if end > arena.len_bytes() {
            return Err(fault);
        }
        // SAFETY: offset <= end <= the arena's length.
        let base = unsafe { arena.base().add(offset) };
        Ok(DmaRange {
            base,
            len_bytes,
            _arena: Arc::clone(arena),
        })
    }
}

impl Mapper for DmaSpace {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut arenas = self.arenas.write().unwrap_or_else(PoisonError::into_inner);
        let at = arenas.partition_point(|a| a.iova() < arena.iova());
        if arenas.get(at).is_some_and(|a| Arc::ptr_eq(a, arena)) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the arena is mapped already",
            ));
        }
        arenas.insert(at, Arc::clone(arena));
        Ok(())
    }

    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut arenas = self.arenas.write().unwrap_or_else(PoisonError::into_inner);
        arenas.retain(|a| !Arc::ptr_eq(a, arena));
        Ok(())
    }
}

/// A range of mapped host memory, as a device uses it: by copies, and by atomic words for rings.
///
/// The program does not touch memory that is with the device, so copies meet no other access; a program
/// that breaks that rule (it cannot in safe code) gets torn data, as with real hardware.
#[derive(Debug)]
pub struct DmaRange {
    base: NonNull<u8>,
    len_bytes: usize,
    _arena: Arc<Arena>,
}

// SAFETY: raw memory of an arena kept alive by the `Arc`; access is by copies, as a device does them.
unsafe impl Send for DmaRange {}

impl DmaRange {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Copies host memory into `to`, from the range's start; as many bytes as both have.
    pub fn copy_to(&self, to: &mut [u8]) {
        let len = to.len().min(self.len_bytes);
        // SAFETY: both sides have at least len bytes; `to` is not DMA memory of this range (it is borrowed
        // mutably, and lent memory cannot be borrowed).
        unsafe { std::ptr::copy_nonoverlapping(self.base.as_ptr(), to.as_mut_ptr(), len) };
    }

    /// Copies `from` to the range's start; as many bytes as both have.
    pub fn copy_from(&self, from: &[u8]) {
        let len = from.len().min(self.len_bytes);
        // SAFETY: as in `copy_to`, with the direction turned.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr(), len) };
    }

    /// Zeroes the range.
    pub fn zero(&self) {
        // SAFETY: len_bytes bytes from base are mapped.
        unsafe { self.base.as_ptr().write_bytes(0, self.len_bytes) };
    }

    /// Reads from a file straight into the range; returns the bytes read, 0 at the file's end.
    ///
    /// # Errors
    /// The errno of `pread`.
    pub fn read_file(&self, file: &File, offset_bytes: u64) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset_bytes).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most len_bytes bytes to mapped memory of ours.
        let n = unsafe {
            libc::pread(
                file.as_raw_fd(),
                self.base.as_ptr().cast(),
                self.len_bytes,
                offset,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the range to a file; returns the bytes written.
    ///
    /// # Errors
    /// The errno of `pwrite`.
    pub fn write_file(&self, file: &File, offset_bytes: u64) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset_bytes).map_err(io::Error::other)?;
        // SAFETY: the kernel reads at most len_bytes bytes of mapped memory of ours.
        let n = unsafe {
            libc::pwrite(
                file.as_raw_fd(),
                self.base.as_ptr().cast(),
                self.len_bytes,
                offset,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// The 64-bit word at a byte offset; `None` when it is unaligned or outside.
    pub fn load_u64(&self, offset_bytes: usize) -> Option<u64> {
        let word = self.word::<AtomicU64>(offset_bytes)?;
        Some(u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// Stores a 32-bit word at a byte offset; false when it is unaligned or outside.
    pub fn store_u32(&self, offset_bytes: usize, value: u32, ordering: Ordering) -> bool {
        let Some(word) = self.word::<AtomicU32>(offset_bytes) else {
            return false;
        };
        word.store(value.to_le(), ordering);
        true
    }

    fn word<T>(&self, offset_bytes: usize) -> Option<&T> {
        let end = offset_bytes.checked_add(size_of::<T>())?;
        if end > self.len_bytes {
            return None;
        }
        // SAFETY: offset_bytes < len_bytes.
        let at: NonNull<T> = unsafe { self.base.add(offset_bytes) }.cast();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: T is AtomicU32 or AtomicU64 (the two callers): any bytes are valid, the address is aligned
        // and inside mapped memory, and the host touches ring memory by atomics only.
        Some(unsafe { at.as_ref() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Heap, HeapConfig, HugePages};
    use super::*;

    #[test]
    fn only_mapped_addresses_translate() {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            arena_bytes: 2 << 20,
            ..Default::default()
        });
        let space = Arc::new(DmaSpace::default());
        let buf = heap.alloc(4096, 4096).unwrap();
        let iova = buf.iova();
        assert!(space.translate(iova, 8).is_err());
        let mapper: Arc<dyn Mapper> = space.clone();
        heap.attach(Arc::clone(&mapper)).unwrap();
        let lent = buf.lend();
        space.translate(iova, 4096).unwrap().copy_from(&[9; 4096]);
        assert!(space.translate(iova, 3 << 20).is_err());
        assert!(space.translate(Iova(u64::MAX), usize::MAX).is_err());
        assert!(space.translate(Iova(0), 1).is_err());
        assert_eq!(lent.take_back()[4095], 9);
        heap.detach(&mapper).unwrap();
        assert!(space.translate(iova, 8).is_err());
    }

    #[test]
    fn words_are_checked() {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let space = Arc::new(DmaSpace::default());
        heap.attach(space.clone()).unwrap();
        let lent = heap.alloc(64, 64).unwrap().lend();
        let range = space
            .translate(lent.segment(0..64).unwrap().iova, 64)
            .unwrap();
        assert!(range.store_u32(4, 0x0102_0304, Ordering::Release));
        assert_eq!(range.load_u64(0), Some(0x0102_0304_0000_0000));
        assert_eq!(range.load_u64(4), None);
        assert_eq!(range.load_u64(64), None);
        assert!(!range.store_u32(62, 0, Ordering::Relaxed));
    }
}

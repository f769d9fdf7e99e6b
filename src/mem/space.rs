//! The device's view of host memory: what an IOMMU is to real hardware.
//!
//! The embedded controller reaches host memory only through a [`DmaSpace`]: arenas of this process,
//! or what another process shared ([`PeerMemory`]). A device address outside is a [`DmaFault`],
//! never an access.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crossbeam_utils::CachePadded;

use super::arena::Arena;
use super::heap_state::Mapper;
use super::peer::PeerMemory;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Iova;

/// A device address that is not mapped, or a range that runs out of its arena or mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaFault {
    /// The first address of the refused range.
    pub iova: Iova,
    /// The refused length in bytes.
    pub len_bytes: usize,
}

/// The memory that one device reaches, sorted by device address.
#[derive(Debug, Default)]
pub struct DmaSpace {
    regions: RwLock<Vec<DmaRegion>>,
    /// Whether a peer's memory is among them; a hint for [`DmaSpace::is_edge`].
    foreign: AtomicBool,
}

/// One range of device addresses and the memory behind it.
#[derive(Debug, Clone)]
struct DmaRegion {
    iova: Iova,
    len_bytes: usize,
    base: NonNull<u8>,
    /// References are counted for each device, and not with those of the arena: devices that work
    /// side by side would contend for that cache line.
    keep: Arc<CachePadded<Keep>>,
}

/// What keeps a region's memory mapped.
#[derive(Debug, Clone)]
enum Keep {
    Arena(Arc<Arena>),
    Peer(Arc<PeerMemory>),
}

fn counted(keep: Keep) -> Arc<CachePadded<Keep>> {
    Arc::new(CachePadded::new(keep))
}

// SAFETY: raw memory kept alive by the `Keep`; access is by copies and atomics, as a device does
// them.
unsafe impl Send for DmaRegion {}
// SAFETY: as above.
unsafe impl Sync for DmaRegion {}

impl DmaSpace {
    /// The host memory behind a device range, which must lie in one arena (or one mapping of a
    /// peer's).
    ///
    /// # Errors
    /// [`DmaFault`] for anything that is not mapped.
    pub(crate) fn translate(&self, iova: Iova, len_bytes: usize) -> Result<DmaRange, DmaFault> {
        let fault = DmaFault { iova, len_bytes };
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let at = regions.partition_point(|region| region.iova <= iova);
        let region = at
            .checked_sub(1)
            .and_then(|at| regions.get(at))
            .ok_or(fault)?;
        let offset = usize::try_from(iova.0 - region.iova.0).map_err(|_| fault)?;
        let end = offset.checked_add(len_bytes).ok_or(fault)?;
        if end > region.len_bytes {
            return Err(fault);
        }
        // SAFETY: offset <= end <= the region's length.
        let base = unsafe { region.base.add(offset) };
        Ok(DmaRange {
            base,
            len_bytes,
            _keep: Arc::clone(&region.keep),
        })
    }

    /// As [`DmaSpace::translate`], for tests that play the device from outside of the crate.
    ///
    /// # Safety
    /// The range is used only while its memory is with a device: no `DmaBuf` that lies there is
    /// borrowed, and no other thread uses a range of the same bytes, except by atomic words.
    ///
    /// # Errors
    /// [`DmaFault`] for anything that is not mapped.
    pub unsafe fn reach(&self, iova: Iova, len_bytes: usize) -> Result<DmaRange, DmaFault> {
        self.translate(iova, len_bytes)
    }

    /// Makes a peer's memory reachable, where it says.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it overlaps an existing mapping.
    pub fn map_peer(&self, memory: PeerMemory) -> Result<()> {
        let memory = Arc::new(memory);
        self.insert(DmaRegion {
            iova: memory.iova(),
            len_bytes: memory.len_bytes(),
            base: memory.base(),
            keep: counted(Keep::Peer(memory)),
        })?;
        self.foreign.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A peer has taken memory away, and an access has met that: it is not to be trusted any more.
    pub fn lost_peer_memory(&self) -> bool {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions
            .iter()
            .any(|region| matches!(&**region.keep, Keep::Peer(memory) if memory.is_lost()))
    }

    /// Makes a peer's memory unreachable, which was mapped with this very address and length; false
    /// when there is none such.
    pub fn unmap_peer(&self, iova: Iova, len_bytes: usize) -> bool {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let before = regions.len();
        regions.retain(|region| {
            let this = region.iova == iova && region.len_bytes == len_bytes;
            !(this && matches!(**region.keep, Keep::Peer(_)))
        });
        regions.len() < before
    }

    /// Makes all peers' memory unreachable.
    pub fn unmap_peers(&self) {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.retain(|region| !matches!(**region.keep, Keep::Peer(_)));
        self.foreign.store(false, Ordering::Relaxed);
    }

    /// Where, inside of a device range, one mapping of a peer's may end and the next one begin: the
    /// length before the first such place. Arenas never touch each other.
    pub fn edge_within(&self, iova: Iova, len_bytes: u64) -> Option<u64> {
        if !self.foreign.load(Ordering::Relaxed) {
            return None;
        }
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let at = regions.partition_point(|region| region.iova <= iova);
        let before = regions.get(at)?.iova.0 - iova.0;
        (before < len_bytes).then_some(before)
    }

    /// Whether a mapping of a peer's begins at an address: ranges on both sides of it are not one.
    pub fn is_edge(&self, iova: Iova) -> bool {
        if !self.foreign.load(Ordering::Relaxed) {
            return false;
        }
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions
            .binary_search_by_key(&iova, |region| region.iova)
            .is_ok()
    }

    fn insert(&self, region: DmaRegion) -> Result<()> {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let at = regions.partition_point(|r| r.iova < region.iova);
        let end = |r: &DmaRegion| r.iova.0.saturating_add(r.len_bytes as u64);
        let before = at.checked_sub(1).and_then(|at| regions.get(at));
        if before.is_some_and(|r| end(r) > region.iova.0)
            || regions.get(at).is_some_and(|r| end(&region) > r.iova.0)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the device addresses are mapped already",
            ));
        }
        regions.insert(at, region);
        Ok(())
    }
}

impl Mapper for DmaSpace {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        self.insert(DmaRegion {
            iova: arena.iova(),
            len_bytes: arena.len_bytes(),
            base: arena.base(),
            keep: counted(Keep::Arena(Arc::clone(arena))),
        })
    }

    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.retain(
            |region| !matches!(&**region.keep, Keep::Arena(mapped) if Arc::ptr_eq(mapped, arena)),
        );
        Ok(())
    }
}

/// A range of mapped host memory, as a device uses it: by copies, and by atomic words for rings.
///
/// The program does not touch memory that is with the device, so copies meet no other access; a
/// program that breaks that rule (it cannot in safe code) gets torn data, as with real hardware.
#[derive(Debug)]
pub struct DmaRange {
    base: NonNull<u8>,
    len_bytes: usize,
    _keep: Arc<CachePadded<Keep>>,
}

// SAFETY: raw memory kept alive by the `Keep`; access is by copies, as a device does them.
unsafe impl Send for DmaRange {}

impl DmaRange {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Copies host memory into `to`, from the range's start; as many bytes as both have.
    pub fn copy_to(&self, to: &mut [u8]) {
        let len = to.len().min(self.len_bytes);
        // SAFETY: both sides have at least len bytes; `to` is not DMA memory of this range (it is
        // borrowed mutably, and lent memory cannot be borrowed).
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

    /// The 32-bit word at a byte offset; `None` when it is unaligned or outside.
    pub fn load_u32(&self, offset_bytes: usize, ordering: Ordering) -> Option<u32> {
        let word = self.word::<AtomicU32>(offset_bytes)?;
        Some(u32::from_le(word.load(ordering)))
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
        // SAFETY: T is AtomicU32 or AtomicU64 (the two callers): any bytes are valid, the address
        // is aligned and inside mapped memory, and the host touches ring memory by atomics only.
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
            .translate(lent.segment(0..64).unwrap().iova(), 64)
            .unwrap();
        assert!(range.store_u32(4, 0x0102_0304, Ordering::Release));
        assert_eq!(range.load_u64(0), Some(0x0102_0304_0000_0000));
        assert_eq!(range.load_u64(4), None);
        assert_eq!(range.load_u64(64), None);
        assert!(!range.store_u32(62, 0, Ordering::Relaxed));
    }
}

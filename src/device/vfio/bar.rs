//! BAR 0: the controller's registers and doorbells, mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_MMAP;

use super::caps::VfioRegion;
use crate::mem::Doorbell;
use crate::sys::{Cover, Guard};

/// The most of the BAR that is mapped: all registers, and the doorbells of all 65,536 queue pairs
/// at the usual strides. A controller memory buffer may lie behind it.
const LIMIT_BYTES: u64 = 4 << 20;

/// The mapped parts of BAR 0. Doorbells keep it alive.
#[derive(Debug)]
pub(in crate::device) struct Bar {
    areas: Vec<BarArea>,
}

/// One mapped part. The kernel may exclude some ranges, such as the MSI-X table.
#[derive(Debug)]
struct BarArea {
    /// Offset in the BAR, in bytes.
    offset: u64,
    start: NonNull<u8>,
    len_bytes: usize,
    /// `None` only while the area is being unmapped.
    guard: Option<Guard>,
}

// SAFETY: the mapping is owned; its registers are read and written by volatile and atomic accesses,
// which any thread may do.
unsafe impl Send for BarArea {}
// SAFETY: as above.
unsafe impl Sync for BarArea {}

impl Bar {
    /// Maps what of the region may be mapped.
    ///
    /// # Errors
    /// The errno of `mmap`; [`io::ErrorKind::Unsupported`] when nothing may be mapped.
    pub(in crate::device) fn map(device: &File, region: &VfioRegion) -> io::Result<Self> {
        let areas = mappable(region, page_bytes())
            .into_iter()
            .map(|(offset, len_bytes)| BarArea::map(device, region, offset, len_bytes))
            .collect::<io::Result<Vec<_>>>()?;
        if areas.is_empty() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { areas })
    }

    /// Where the 32-bit register at `offset` is mapped, if it is.
    fn register(&self, offset: u32) -> Option<NonNull<AtomicU32>> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        self.areas.iter().find_map(|area| {
            let at = u64::from(offset).checked_sub(area.offset)?;
            let at = usize::try_from(at).ok()?;
            // SAFETY: the register lies wholly inside of the mapping.
            (at.checked_add(4)? <= area.len_bytes).then(|| unsafe { area.start.add(at) }.cast())
        })
    }

    /// Reads a register; `None` when it is not mapped.
    pub(in crate::device) fn read32(&self, offset: u32) -> Option<u32> {
        let register = self.register(offset)?;
        // SAFETY: aligned and mapped while `self` lives; device memory changes at any time, hence
        // volatile.
        Some(u32::from_le(unsafe {
            register.cast::<u32>().read_volatile()
        }))
    }

    /// Writes a register; `None` when it is not mapped. What was stored to memory before is visible
    /// to the device when it sees the value.
    pub(in crate::device) fn write32(&self, offset: u32, value: u32) -> Option<()> {
        let register = self.register(offset)?;
        // SAFETY: aligned and mapped while `self` lives, and only accessed as a register.
        let register = unsafe { register.as_ref() };
        register.store(value.to_le(), std::sync::atomic::Ordering::Release);
        Some(())
    }

    /// The doorbell at `offset`; `None` when it is not mapped.
    pub(in crate::device) fn doorbell(self: &Arc<Self>, offset: u32) -> Option<Doorbell> {
        let register = self.register(offset)?;
        // SAFETY: aligned, and mapped while the `Arc` that the doorbell keeps lives.
        Some(unsafe { Doorbell::at(register, Arc::<Self>::clone(self)) })
    }

    /// Whether an access has found the BAR absent.
    pub(in crate::device) fn vanished(&self) -> bool {
        self.areas.iter().any(BarArea::vanished)
    }

    /// Unmaps the device's memory and maps all ones in its place, for threads that still have a
    /// doorbell.
    ///
    /// # Errors
    /// The errno of `mmap`; parts of the BAR may then still be mapped.
    pub(in crate::device) fn let_go(&self) -> io::Result<()> {
        self.areas
            .iter()
            .filter_map(|area| area.guard.as_ref())
            .try_for_each(Guard::cover)
    }
}

impl BarArea {
    fn map(device: &File, region: &VfioRegion, offset: u64, len_bytes: usize) -> io::Result<Self> {
        let position = region
            .offset
            .checked_add(offset)
            .and_then(|at| libc::off_t::try_from(at).ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                device.as_raw_fd(),
                position,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A forked child shall not keep the device open. Should this fail, it does; nothing worse.
        // SAFETY: the mapping made above, of this length.
        unsafe { libc::madvise(start, len_bytes, libc::MADV_DONTFORK) };
        let start: NonNull<u8> = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut area = Self {
            offset,
            start,
            len_bytes,
            guard: None,
        };
        // SAFETY: whole pages that `area` owns; it drops its guard before it unmaps, and is
        // accessed only by volatile and atomic accesses.
        area.guard = Some(unsafe { Guard::new(start, len_bytes, Cover::Ones) }?);
        Ok(area)
    }

    fn vanished(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::tripped)
    }
}

impl Drop for BarArea {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the mapping that `map` made (or its replacement by `cover`); doorbells keep the
        // `Bar` alive, so no code accesses it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

/// The parts of a region to be mapped, `(offset, length)`, in whole pages and inside of it.
fn mappable(region: &VfioRegion, page_bytes: u64) -> Vec<(u64, usize)> {
    if region.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return Vec::new();
    }
    let whole = vec![(0, region.len_bytes)];
    let end = region.len_bytes.min(LIMIT_BYTES);
    region
        .sparse
        .as_ref()
        .unwrap_or(&whole)
        .iter()
        .filter_map(|&(offset, len_bytes)| {
            let first = offset.checked_next_multiple_of(page_bytes)?;
            let last = offset.checked_add(len_bytes)?.min(end) / page_bytes * page_bytes;
            let len_bytes = last.checked_sub(first).filter(|len| *len > 0)?;
            Some((first, usize::try_from(len_bytes).ok()?))
        })
        // Registers and doorbells need few; a longer list is not worth a guard each.
        .take(8)
        .collect()
}

fn page_bytes() -> u64 {
    // SAFETY: no memory is involved.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn region(len_bytes: u64, sparse: Option<Vec<(u64, u64)>>) -> VfioRegion {
        VfioRegion {
            flags: VFIO_REGION_INFO_FLAG_MMAP,
            offset: 0,
            len_bytes,
            sparse,
        }
    }

    #[test]
    fn whole_pages_inside_of_the_region_are_mapped() {
        let parts = |sparse| mappable(&region(0x4000, sparse), 4096);
        assert_eq!(parts(None), [(0, 0x4000)]);
        assert_eq!(
            parts(Some(vec![(0, 0x2000), (0x3000, 0x1000)])),
            [(0, 0x2000), (0x3000, 0x1000)]
        );
        assert_eq!(parts(Some(vec![(0x800, 0x2000)])), [(0x1000, 0x1000)]);
        let nonsense = vec![
            (0x4000, 0x1000),
            (u64::MAX, 1),
            (1, u64::MAX),
            (0, 0),
            (0x3000, 0x9000),
        ];
        assert_eq!(parts(Some(nonsense)), [(0x3000, 0x1000)]);
        let huge = mappable(&region(16 << 30, None), 4096);
        assert_eq!(huge, [(0, 4 << 20)]);
        let closed = VfioRegion {
            flags: 0,
            ..region(0x4000, None)
        };
        assert!(mappable(&closed, 4096).is_empty());
    }

    #[test]
    fn registers_are_found_through_the_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        file.write_all_at(&0x0102_0304_u32.to_le_bytes(), 0x3010)
            .unwrap();
        let region = region(0x4000, Some(vec![(0, 0x1000), (0x3000, 0x1000)]));
        let bar = Arc::new(Bar::map(&file, &region).unwrap());
        assert_eq!(bar.read32(0x3010), Some(0x0102_0304));
        assert_eq!(bar.read32(0x1000), None);
        assert_eq!(bar.read32(0x3ffc), Some(0));
        assert_eq!(bar.read32(0x3ffe), None);
        assert_eq!(bar.read32(0x4000), None);
        assert_eq!(bar.write32(0x1000, 1), None);
        bar.write32(8, 0xaabb_ccdd).unwrap();
        assert!(bar.doorbell(0x2000).is_none());
        let doorbell = bar.doorbell(0x3020).unwrap();
        doorbell.ring(9);
        let mut word = [0; 4];
        file.read_exact_at(&mut word, 0x3020).unwrap();
        assert_eq!(u32::from_le_bytes(word), 9);
        // Once let go, the file is not reached any more, and the doorbell does no harm.
        bar.let_go().unwrap();
        drop(bar);
        doorbell.ring(10);
        file.read_exact_at(&mut word, 0x3020).unwrap();
        assert_eq!(u32::from_le_bytes(word), 9);
    }

    #[test]
    fn a_bar_that_vanishes_reads_as_all_ones_and_says_so() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let bar = Arc::new(Bar::map(&file, &region(0x4000, None)).unwrap());
        let doorbell = bar.doorbell(0x1000).unwrap();
        assert!(!bar.vanished());
        file.set_len(0).unwrap();
        doorbell.ring(1);
        assert!(bar.vanished());
        assert_eq!(bar.read32(0x1c), Some(u32::MAX));
    }
}

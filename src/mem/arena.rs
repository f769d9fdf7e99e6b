//! One mapping of memory with its range of device addresses.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{
    HUGE_PAGE_BYTES, PageKind, Pages, Pinned, PinnedMemory, ProcessLimit, limit_error,
};
use crate::units::Iova;

/// What memory stands behind an arena.
pub type Backing = PageKind;

/// One mapping of DMA memory: a host address range and the device address range that stands for it.
///
/// The device range is unique in the process while the arena lives, so that a stale or wrong device
/// address hits nothing (an IOMMU fault) and never another buffer.
#[derive(Debug)]
pub struct Arena {
    pages: Pages,
    iova: Iova,
}

impl Arena {
    /// Makes an arena of at least `len_bytes` (rounded up to 2 MiB) out of hugepages.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when too few hugepages are free, or no device addresses are left.
    pub fn huge(len_bytes: usize) -> Result<Self> {
        let pages = Pages::huge(len_bytes).map_err(|e| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("cannot reserve {len_bytes} bytes of hugepages"),
            )
            .because(e)
        })?;
        Self::of(pages)
    }

    /// Makes an arena of at least `len_bytes` (rounded up to 2 MiB) out of ordinary, if possible
    /// locked, pages.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when the host has no memory or no device addresses are left.
    pub fn ordinary(len_bytes: usize) -> Result<Self> {
        let pages = Pages::ordinary(len_bytes).map_err(|e| {
            let what = format!("cannot reserve {len_bytes} bytes of memory");
            limit_error(what, e, ProcessLimit::Addresses)
        })?;
        Self::of(pages)
    }

    /// As [`Arena::huge`] or [`Arena::ordinary`], of memory that can be handed to another process
    /// as a file: see [`Arena::file`].
    ///
    /// # Errors
    /// As theirs.
    pub fn shared(len_bytes: usize, huge: bool) -> Result<Self> {
        let pages = Pages::shared(len_bytes, huge).map_err(|e| {
            let what = if huge {
                "hugepages"
            } else {
                "memory to be shared"
            };
            Error::new(
                ErrorKind::OutOfMemory,
                format!("cannot reserve {len_bytes} bytes of {what}"),
            )
            .because(e)
        })?;
        Self::of(pages)
    }

    /// An arena of memory that is there already.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when no device addresses are left.
    pub(crate) fn of(pages: Pages) -> Result<Self> {
        let iova = IOVAS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take(pages.len_bytes() as u64)
            .ok_or_else(|| Error::new(ErrorKind::OutOfMemory, "no device addresses are left"))?;
        Ok(Self {
            pages,
            iova: Iova(iova),
        })
    }

    /// The first byte in the host's address space.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.pages.base()
    }

    /// The first device address.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// The length in bytes, a multiple of 2 MiB.
    pub fn len_bytes(&self) -> usize {
        self.pages.len_bytes()
    }

    /// The file behind it, from its first byte on, if it was made to be shared.
    pub(crate) fn file(&self) -> Option<&File> {
        self.pages.file()
    }

    /// The whole of it, for operations of the kernel; kept mapped meanwhile.
    pub(crate) fn pinned(self: &Arc<Self>) -> PinnedMemory {
        // SAFETY: the arena is one mapping of this length, and keeps it until it is dropped. The
        // memory that the kernel may fill is lent, and no code reads lent memory.
        unsafe { PinnedMemory::new(self.base(), self.len_bytes(), Arc::<Self>::clone(self)) }
    }

    /// What memory stands behind it.
    pub fn backing(&self) -> Backing {
        self.pages.kind()
    }
}

impl Pinned for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        IOVAS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .give_back(self.iova.0);
    }
}

/// Device addresses start at 4 GiB, past the interrupt hole at 0xfee0_0000, and end at 39 bits, the
/// narrowest IOMMU met so far. A device whose own ranges are narrower refuses the mapping.
static IOVAS: Mutex<IovaRanges> = Mutex::new(IovaRanges {
    taken: Vec::new(),
    next: IOVA_FIRST,
});
const IOVA_FIRST: u64 = 1 << 32;
const IOVA_END: u64 = 1 << 39;

/// Next-fit over the whole space: a freed range is reused as late as possible, so that a stale DMA
/// faults.
struct IovaRanges {
    /// Sorted `(start, len)`.
    taken: Vec<(u64, u64)>,
    next: u64,
}

impl IovaRanges {
    fn take(&mut self, len: u64) -> Option<u64> {
        let start = self
            .fit(self.next, len)
            .or_else(|| self.fit(IOVA_FIRST, len))?;
        let at = self.taken.partition_point(|&(s, _)| s < start);
        self.taken.insert(at, (start, len));
        // A gap of one hugepage after each arena: running off its end faults.
        self.next = start + len + HUGE_PAGE_BYTES as u64;
        Some(start)
    }

    fn fit(&self, from: u64, len: u64) -> Option<u64> {
        let gap = HUGE_PAGE_BYTES as u64;
        let mut start = from;
        for &(s, l) in &self.taken {
            if start.checked_add(len)?.checked_add(gap)? <= s {
                return Some(start);
            }
            start = start.max(s + l + gap);
        }
        (start.checked_add(len)? <= IOVA_END).then_some(start)
    }

    fn give_back(&mut self, start: u64) {
        self.taken.retain(|&(s, _)| s != start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iova_ranges_do_not_overlap_and_wrap_around() {
        let mut ranges = IovaRanges {
            taken: Vec::new(),
            next: IOVA_FIRST,
        };
        let half = (IOVA_END - IOVA_FIRST) / 2 - (8 << 20);
        let a = ranges.take(half).unwrap();
        let b = ranges.take(half).unwrap();
        assert!(a + half < b);
        assert_eq!(ranges.take(half), None);
        ranges.give_back(a);
        assert_eq!(ranges.take(half), Some(a));
    }

    #[test]
    fn arenas_have_their_own_device_addresses() {
        let a = Arena::ordinary(1).unwrap();
        let b = Arena::ordinary(1).unwrap();
        assert_ne!(a.iova(), b.iova());
    }
}

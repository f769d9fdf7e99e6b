//! Memory for DMA: hugepages of 2 MiB, or ordinary locked pages; anonymous, or a file that can be
//! shared.

use std::alloc::Layout;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use super::{HUGE_PAGE_BYTES, memory_file};

/// What stands behind a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// 2 MiB hugepages: physically contiguous per page, never swapped.
    Huge,
    /// Ordinary pages, locked in memory by `mlock`.
    Locked,
    /// Ordinary pages that could not be locked (`RLIMIT_MEMLOCK` is too low).
    Pageable,
}

/// A private, zeroed memory mapping, aligned to 2 MiB; unmapped on drop.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    len_bytes: usize,
    kind: PageKind,
    /// How it was reserved, so that it is given back the same way.
    mapping: PageMapping,
}

enum PageMapping {
    /// By the `hugepage-rs` crate, with this layout.
    HugepageRs(Layout),
    /// By our own `mmap`: the whole reservation, of which `base` is the aligned part.
    Own {
        start: NonNull<u8>,
        len_bytes: usize,
    },
    /// The same, of which `base` is a mapping of this file.
    Shared {
        start: NonNull<u8>,
        len_bytes: usize,
        file: File,
    },
    /// Borrowed memory: dropping this value releases it to its owner.
    Lent { _owner: Box<dyn Send + Sync> },
}

impl fmt::Debug for PageMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HugepageRs(_) => "HugepageRs",
            Self::Own { .. } => "Own",
            Self::Shared { .. } => "Shared",
            Self::Lent { .. } => "Lent",
        })
    }
}

// SAFETY: `Pages` owns its mapping; it hands out only the address, and unmapping from another
// thread is what munmap allows.
unsafe impl Send for Pages {}
// SAFETY: a shared `Pages` has only getters of plain values.
unsafe impl Sync for Pages {}

impl Pages {
    /// Reserves `len_bytes` (rounded up to 2 MiB) of hugepages.
    ///
    /// Every page is faulted in before this returns, so that none is missing later.
    ///
    /// # Errors
    /// The errno of `mmap`, usually `ENOMEM`: not enough free hugepages are reserved. The errno of
    /// `madvise`: `EFAULT` where a hugetlb control group allows fewer.
    pub fn huge(len_bytes: usize) -> io::Result<Self> {
        let len_bytes = len_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let pages = if default_huge_page_bytes() == Some(HUGE_PAGE_BYTES) {
            Self::huge_by_crate(len_bytes)
        } else {
            // hugepage-rs knows only the default size, which is another one here (1 GiB, say).
            Self::map(
                len_bytes,
                libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
                PageKind::Huge,
            )
        }?;
        pages.populate()?;
        Ok(pages)
    }

    fn huge_by_crate(len_bytes: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len_bytes, HUGE_PAGE_BYTES)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: the layout's size is not zero (at least one hugepage).
        let base = unsafe { hugepage_rs::alloc(layout) };
        let base = NonNull::new(base).ok_or_else(io::Error::last_os_error)?;
        let pages = Self {
            base,
            len_bytes,
            kind: PageKind::Huge,
            mapping: PageMapping::HugepageRs(layout),
        };
        pages.keep_from_children();
        Ok(pages)
    }

    /// Reserves `len_bytes` (rounded up to 2 MiB) of ordinary pages and locks them where the limit
    /// allows.
    ///
    /// # Errors
    /// The errno of `mmap`.
    pub fn ordinary(len_bytes: usize) -> io::Result<Self> {
        let len_bytes = len_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let mut pages = Self::map(len_bytes, 0, PageKind::Pageable)?;
        // SAFETY: the range is a mapping of ours, of exactly this length.
        if unsafe { libc::mlock(pages.base.as_ptr().cast(), pages.len_bytes) } == 0 {
            pages.kind = PageKind::Locked;
        }
        Ok(pages)
    }

    /// As [`Pages::huge`] or [`Pages::ordinary`], of a file that another process can map: see
    /// [`Pages::file`].
    ///
    /// # Errors
    /// The errno of `memfd_create`, `ftruncate` or `mmap`.
    pub fn shared(len_bytes: usize, huge: bool) -> io::Result<Self> {
        let impossible = || io::Error::from_raw_os_error(libc::ENOMEM);
        let len_bytes = len_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let file = memory_file(len_bytes, huge)?;
        let reserved = len_bytes
            .checked_add(HUGE_PAGE_BYTES)
            .ok_or_else(impossible)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory. It
        // only reserves the addresses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start: NonNull<u8> = NonNull::new(start.cast()).ok_or_else(impossible)?;
        let skip = start.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: skip < 2 MiB, the slack of the reservation.
        let base = unsafe { start.add(skip) };
        let mut pages = Self {
            base,
            len_bytes,
            kind: if huge {
                PageKind::Huge
            } else {
                PageKind::Pageable
            },
            mapping: PageMapping::Shared {
                start,
                len_bytes: reserved,
                file,
            },
        };
        let PageMapping::Shared { file, .. } = &pages.mapping else {
            return Err(impossible());
        };
        // SAFETY: replaces a part of the reservation above, which is not in use yet.
        let mapped = unsafe {
            libc::mmap(
                base.as_ptr().cast(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is a mapping of ours, of exactly this length.
        if !huge && unsafe { libc::mlock(base.as_ptr().cast(), len_bytes) } == 0 {
            pages.kind = PageKind::Locked;
        }
        pages.keep_from_children();
        if huge {
            pages.populate()?;
        }
        Ok(pages)
    }

    /// Zeroed memory that another library reserved, and that `owner` releases when it is dropped.
    ///
    /// # Safety
    /// `len_bytes` from `base` are readable and writable until `owner` is dropped, and no other
    /// code accesses them; both are multiples of 2 MiB.
    pub unsafe fn lent(
        base: NonNull<u8>,
        len_bytes: usize,
        kind: PageKind,
        owner: Box<dyn Send + Sync>,
    ) -> Self {
        Self {
            base,
            len_bytes,
            kind,
            mapping: PageMapping::Lent { _owner: owner },
        }
    }

    fn map(len_bytes: usize, flags: libc::c_int, kind: PageKind) -> io::Result<Self> {
        // Ordinary mappings are aligned to 4 KiB only: reserve one step more and use the aligned
        // part.
        let slack = if flags == 0 { HUGE_PAGE_BYTES } else { 0 };
        let reserved = len_bytes
            .checked_add(slack)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing
        // memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start: NonNull<u8> =
            NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let skip = start.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: skip < 2 MiB of slack, or 0 for hugepages (aligned by the kernel), so it stays
        // inside.
        let base = unsafe { start.add(skip) };
        let pages = Self {
            base,
            len_bytes,
            kind,
            mapping: PageMapping::Own {
                start,
                len_bytes: reserved,
            },
        };
        pages.keep_from_children();
        Ok(pages)
    }

    /// Faults in every page for writing. `mmap` only reserves hugepages; a hugetlb control group is
    /// charged at the fault, and a fault that it refuses is SIGBUS. `MAP_POPULATE` ignores such a
    /// failure, `MADV_POPULATE_WRITE` (Linux 5.14) reports it as `EFAULT`. Earlier kernels do not
    /// know it: there nothing is faulted in.
    fn populate(&self) -> io::Result<()> {
        let again = [libc::EINTR, libc::EAGAIN].map(Some);
        loop {
            // SAFETY: the range is a mapping of ours, of exactly this length; its content stays the
            // same.
            let result = unsafe {
                libc::madvise(
                    self.base.as_ptr().cast(),
                    self.len_bytes,
                    libc::MADV_POPULATE_WRITE,
                )
            };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINVAL) => return Ok(()),
                errno if again.contains(&errno) => {}
                _ => return Err(error),
            }
        }
    }

    /// A forked child must not share (and by copy-on-write move away) memory that a device writes
    /// to.
    fn keep_from_children(&self) {
        // SAFETY: the range is a mapping of ours, of exactly this length; a failure changes
        // nothing.
        unsafe {
            libc::madvise(
                self.base.as_ptr().cast(),
                self.len_bytes,
                libc::MADV_DONTFORK,
            )
        };
    }

    /// The first byte, aligned to 2 MiB.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The length in bytes, a multiple of 2 MiB.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// What stands behind the memory.
    pub fn kind(&self) -> PageKind {
        self.kind
    }

    /// The file behind the memory, from its first byte on, when it was made to be shared. It cannot
    /// be cut short.
    pub(crate) fn file(&self) -> Option<&File> {
        match &self.mapping {
            PageMapping::Shared { file, .. } => Some(file),
            PageMapping::HugepageRs(_) | PageMapping::Own { .. } | PageMapping::Lent { .. } => None,
        }
    }
}

/// Puts what memory of ordinary pages it can behind a large table into transparent huge pages, so
/// that looking things up in it misses the TLB less. Where the kernel has none to spare, or does
/// not know how (before 6.1), all stays as it is.
pub fn prefer_huge_pages<T>(table: &[T]) {
    /// `MADV_COLLAPSE`, which the libc crate does not name on every target.
    const COLLAPSE: libc::c_int = 25;
    let start = table.as_ptr().addr().next_multiple_of(HUGE_PAGE_BYTES);
    let end = table.as_ptr_range().end.addr() & !(HUGE_PAGE_BYTES - 1);
    if start < end {
        let at = table.as_ptr().with_addr(start).cast_mut();
        // SAFETY: inside of a borrowed slice; MADV_COLLAPSE changes neither its content nor its
        // addresses.
        unsafe { libc::madvise(at.cast(), end - start, COLLAPSE) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        match &self.mapping {
            PageMapping::HugepageRs(layout) => {
                // SAFETY: allocated by `hugepage_rs::alloc` with this very layout, and given back
                // once.
                unsafe { hugepage_rs::dealloc(self.base.as_ptr(), *layout) };
            }
            PageMapping::Own { start, len_bytes }
            | PageMapping::Shared {
                start, len_bytes, ..
            } => {
                // SAFETY: the whole reservation that was made; nothing refers to it once its owner
                // drops.
                unsafe { libc::munmap(start.as_ptr().cast(), *len_bytes) };
            }
            PageMapping::Lent { .. } => {}
        }
    }
}

/// The kernel's default hugepage size in bytes, if it has any.
fn default_huge_page_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_pages_are_aligned_and_rounded() {
        let pages = Pages::ordinary(1).unwrap();
        assert_eq!(pages.len_bytes(), HUGE_PAGE_BYTES);
        assert_eq!(pages.base().as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        assert_ne!(pages.kind(), PageKind::Huge);
    }

    #[test]
    fn shared_pages_are_seen_through_their_file() {
        use std::os::unix::fs::FileExt;
        let pages = Pages::shared(1, false).unwrap();
        assert_eq!(pages.base().as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        let file = pages.file().unwrap();
        file.write_all_at(&[7], 4097).unwrap();
        // SAFETY: inside of the mapping, which no other code reads or writes.
        let at = unsafe { pages.base().add(4097) };
        // SAFETY: as above.
        assert_eq!(unsafe { at.read_volatile() }, 7);
        file.set_len(0).expect_err("the file must not be cut short");
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Pages::huge(1 << 60).is_err());
        assert!(Pages::ordinary(1 << 60).is_err());
    }
}

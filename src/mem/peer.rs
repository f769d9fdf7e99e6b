//! Memory of another process, as it hands it to a device that is served here.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

use crate::sys::{Cover, Guard, is_memory, memory_page_bytes};
use crate::units::Iova;

/// Why memory of another process cannot be mapped.
#[derive(Debug)]
pub enum PeerFault {
    /// The request is malformed, or names something unsupported.
    Invalid(&'static str),
    /// A system call failed.
    System(io::Error),
}

impl From<io::Error> for PeerFault {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// A range of device addresses with memory of another process behind it, mapped here until dropped.
///
/// The other process can change the bytes at any time, and can even take the memory away, so it is
/// reached only by copies and atomic words (through [`super::DmaSpace`]). Memory that was taken
/// away reads as zeroes from then on.
#[derive(Debug)]
pub struct PeerMemory {
    base: NonNull<u8>,
    len_bytes: usize,
    iova: Iova,
    /// Bytes that can be charged to this process.
    chargeable_bytes: u64,
    missing_bytes: u64,
    /// `None` only while the memory is being unmapped.
    guard: Option<Guard>,
}

// SAFETY: the mapping is owned; access is by copies and atomics, which any thread may do.
unsafe impl Send for PeerMemory {}
// SAFETY: as above.
unsafe impl Sync for PeerMemory {}

impl PeerMemory {
    /// Maps `len_bytes` from `offset_bytes` of a file that another process shares, to stand behind
    /// `iova`. Only files in memory are taken (`memfd`, tmpfs, hugetlbfs): an access to any other
    /// could block.
    ///
    /// # Errors
    /// [`PeerFault::Invalid`] for another kind of file, a range that is not in whole pages, runs
    /// past the file's end or past the last address; [`PeerFault::System`] when it cannot be
    /// mapped.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset_bytes: u64,
        iova: Iova,
        len_bytes: u64,
    ) -> Result<Self, PeerFault> {
        let bad = PeerFault::Invalid;
        let not_memory = bad("the file is not memory (memfd, tmpfs or hugetlbfs)");
        // Before any other call: on a file of another filesystem each may block.
        if !is_memory(fd) {
            return Err(not_memory);
        }
        let file = File::from(fd.try_clone_to_owned()?);
        let page = memory_page_bytes(&file)?.ok_or(not_memory)?;
        let whole = |n: u64| n.is_multiple_of(page);
        if len_bytes == 0
            || !whole(offset_bytes)
            || !whole(len_bytes)
            || !iova.0.is_multiple_of(4096)
        {
            return Err(bad("the range is not in whole pages"));
        }
        let about = file.metadata()?;
        let size = about.len();
        if offset_bytes
            .checked_add(len_bytes)
            .is_none_or(|end| end > size)
        {
            return Err(bad("the range runs past the end of the file"));
        }
        if iova.0.checked_add(len_bytes).is_none() {
            return Err(bad("the range runs past the last device address"));
        }
        let len = usize::try_from(len_bytes).map_err(|_| bad("the range is too long"))?;
        let offset =
            libc::off_t::try_from(offset_bytes).map_err(|_| bad("the offset is too large"))?;
        let mut memory = Self::map_checked(&file, offset, iova, len)?;
        // Hugepages are the file's own reservation.
        if page == 4096 {
            memory.chargeable_bytes = len_bytes;
            // Blocks of 512 bytes, of the whole file.
            memory.missing_bytes = len_bytes.saturating_sub(about.blocks().saturating_mul(512));
        }
        Ok(memory)
    }

    fn map_checked(
        file: &File,
        offset: libc::off_t,
        iova: Iova,
        len_bytes: usize,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base: NonNull<u8> = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // A forked child has no business with it; should this fail, nothing worse happens.
        // SAFETY: the mapping made above, of this length.
        unsafe { libc::madvise(base.as_ptr().cast(), len_bytes, libc::MADV_DONTFORK) };
        let mut memory = Self {
            base,
            len_bytes,
            iova,
            chargeable_bytes: 0,
            missing_bytes: 0,
            guard: None,
        };
        // SAFETY: whole pages that `memory` owns; it drops its guard before it unmaps, and is
        // accessed only by copies through raw pointers, by system calls and by atomics.
        memory.guard = Some(unsafe { Guard::new(base, len_bytes, Cover::Zeroes) }?);
        Ok(memory)
    }

    /// The first byte here.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The first device address.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// The length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Bytes whose memory is charged to the process that touches them first, should the file have
    /// none for them, now or later.
    pub fn chargeable_bytes(&self) -> u64 {
        self.chargeable_bytes
    }

    /// Bytes that the file had no memory for when they were mapped, at least.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }

    /// The other process has taken the memory away, and an access has met that.
    pub fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::tripped)
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the mapping that `map` made (or its replacement); every accessor keeps `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use super::super::{DmaSpace, Mapper};
    use super::*;
    use crate::sys::memory_file;

    #[test]
    fn only_memory_in_whole_pages_is_mapped() {
        let file = memory_file(0x4000, false).unwrap();
        let map = |offset, iova, len| PeerMemory::map(file.as_fd(), offset, Iova(iova), len);
        let memory = map(0x1000, 0x8000, 0x3000).unwrap();
        assert_eq!((memory.iova(), memory.len_bytes()), (Iova(0x8000), 0x3000));
        for (offset, iova, len) in [
            (0, 0, 0),
            (1, 0, 0x1000),
            (0, 8, 0x1000),
            (0, 0, 0x800),
            (0, 0, 0x5000),
            (0x4000, 0, 0x1000),
            (u64::MAX - 0xfff, 0, 0x1000),
            (0, 0, u64::MAX - 0xfff),
            (0, u64::MAX - 0xfff, 0x2000),
        ] {
            let fault = map(offset, iova, len).unwrap_err();
            assert!(
                matches!(fault, PeerFault::Invalid(_)),
                "{offset:x} {iova:x} {len:x}: {fault:?}"
            );
        }
        let other = File::open("/proc/self/exe").unwrap();
        assert!(PeerMemory::map(other.as_fd(), 0, Iova(0), 4096).is_err());
    }

    #[test]
    fn peers_memory_is_reached_where_it_is_mapped_and_may_vanish() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x2000).unwrap();
        let space = DmaSpace::default();
        let memory = PeerMemory::map(file.as_fd(), 0, Iova(0x1_0000), 0x2000).unwrap();
        space.map_peer(memory).unwrap();
        assert!(!space.lost_peer_memory());
        let overlapping = PeerMemory::map(file.as_fd(), 0, Iova(0x1_1000), 0x1000).unwrap();
        assert!(space.map_peer(overlapping).is_err());
        space
            .translate(Iova(0x1_1ffc), 4)
            .unwrap()
            .copy_from(&[1, 2, 3, 4]);
        assert!(space.translate(Iova(0x1_1ffd), 4).is_err());
        let mut bytes = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0x1ffc).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        let edge = |at, len| space.edge_within(Iova(at), len);
        assert_eq!(
            (edge(0xf000, 0x1000), edge(0xf000, 0x1001)),
            (None, Some(0x1000))
        );
        assert_eq!(edge(0x1_0000, u64::MAX), None);
        assert!(space.is_edge(Iova(0x1_0000)) && !space.is_edge(Iova(0x1_1000)));
        let arena = Arc::new(super::super::Arena::ordinary(1).unwrap());
        space.map(&arena).unwrap();
        file.set_len(0).unwrap();
        let range = space.translate(Iova(0x1_1ffc), 4).unwrap();
        range.copy_to(&mut bytes);
        assert!(space.lost_peer_memory());
        assert_eq!(bytes, [0; 4]);
        assert!(!space.unmap_peer(Iova(0x1_0000), 0x1000));
        assert!(space.unmap_peer(Iova(0x1_0000), 0x2000));
        assert!(space.translate(Iova(0x1_0000), 1).is_err());
    }
}

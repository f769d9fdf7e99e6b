//! Memory whose allocation may fail.

use std::alloc::{Layout, alloc_zeroed};
use std::ptr::NonNull;

/// Address space that stays free for allocations that may not fail.
const SPARE_BYTES: usize = 8 << 20;

/// `len_bytes` bytes of zeroes, backed page by page as they are touched. `None` when there is no
/// memory or address space for them, where `vec![0; n]` ends the process, or when they would leave
/// too little for the program's other allocations.
pub fn zeroed_bytes(len_bytes: usize) -> Option<Box<[u8]>> {
    let layout = Layout::array::<u8>(len_bytes).ok()?;
    if !has_room(len_bytes.checked_add(SPARE_BYTES)?) {
        return None;
    }
    if layout.size() == 0 {
        return Some(Box::default());
    }
    // SAFETY: the layout's size is not zero.
    let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
    let bytes = NonNull::slice_from_raw_parts(base, len_bytes);
    // SAFETY: just allocated by the global allocator with the layout of `[u8; len_bytes]`,
    // initialised, and owned by nothing else.
    Some(unsafe { Box::from_raw(bytes.as_ptr()) })
}

/// Whether this much address space is available (RLIMIT_AS less the mapped size).
fn has_room(len_bytes: usize) -> bool {
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the mapping made above, which nothing uses.
    unsafe { libc::munmap(base, len_bytes) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_memory_or_none() {
        assert_eq!(zeroed_bytes(5000).unwrap().iter().max(), Some(&0));
        assert!(zeroed_bytes(0).unwrap().is_empty());
        assert!(zeroed_bytes(isize::MAX.unsigned_abs()).is_none());
        assert!(zeroed_bytes(usize::MAX).is_none());
    }
}

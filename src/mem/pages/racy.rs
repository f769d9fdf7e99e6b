//! Copies out of pages that another thread may be writing to, and into pages that are being read.

/// Copies `len` bytes as fast as memcpy does. Bytes that are written meanwhile come out old, new
/// or mixed: the caller looks at the page's word and version again, and then discards them all.
///
/// Rust has no plain loads that may race with stores of another thread, and its atomic loads do
/// not copy at the speed of memory. So the copy is memcpy, called from assembly. Both sides:
///
/// **The reader.** The compiler cannot look into the assembly. For it the block is a function that
/// reads memory by means of its own, as relaxed atomic loads of bytes would: it assumes neither
/// that the bytes stay the same nor anything about their values, and it has no `undef` to spread,
/// which is all that a racing load produces (LLVM language reference, "Memory Model for Concurrent
/// Operations"). The destination belongs to the reader alone.
///
/// **The writer.** It stores through `&mut [u8]`, by [`copy_in`] or through a view, and only
/// between locking the page's word (acquire) and unlocking it (release, with another version). A
/// racing load does not change what a store does: in LLVM's model only the load's result is
/// undefined, and no load of the abstract machine takes part here. The compiler may add, split or
/// repeat stores of its own, since the reference is exclusive, but can move none of them before
/// the lock or behind the unlock; so everything that a reader can see of them lies between two
/// changes of the word, and the reader's second look finds one of these (see [`super::place`]).
///
/// # Safety
/// `from` is good for reads of `len` bytes; `to` is good for writes, and no other thread touches it
/// meanwhile. The bytes at `from` are written to only between changes of a word or version that the
/// caller compares after the copy.
#[inline(always)]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: a call by the C ABI: everything that it may clobber is said, and without `nostack`
    // the stack is aligned. That the ranges are good is the caller's promise.
    unsafe {
        std::arch::asm!(
            "call qword ptr [rip + {memcpy}@GOTPCREL]",
            memcpy = sym libc::memcpy,
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rdx") len => _,
            clobber_abi("C"),
        );
    }
}

/// From so many bytes on a copy is faster when the lines that it writes to are fetched before.
const WORTH_FETCHING: usize = 1024;

/// Copies into a page that no other thread accesses. False, without copying, if the lengths differ.
/// Prefetches the destination lines: plain memcpy fetches them one after the other and takes a
/// fifth longer where they are in the last-level cache or in memory.
///
/// Not inlined, so that `benches/cost.rs` can separate it from the cost of a hit.
#[inline(never)]
pub(super) fn copy_in(page: &mut [u8], bytes: &[u8]) -> bool {
    if page.len() != bytes.len() {
        return false;
    }
    if bytes.len() >= WORTH_FETCHING {
        for line in page.chunks(64) {
            // SAFETY: a hint, which faults nowhere; where a processor does not know it, it does
            // nothing.
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) line.as_ptr(), options(nostack, preserves_flags));
            }
        }
    }
    page.copy_from_slice(bytes);
    true
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_length_is_copied_and_not_a_byte_more() {
        let from: Vec<u8> = (0..=255).cycle().take(9000).collect();
        for len in (0..300).chain([4095, 4096, 8191]) {
            let mut to = vec![0xee; 9000];
            // SAFETY: both vectors have 9000 bytes.
            unsafe { super::copy(from.as_ptr().wrapping_add(3), to.as_mut_ptr(), len) };
            assert_eq!(to[..len], from[3..3 + len]);
            assert!(to[len..].iter().all(|b| *b == 0xee));
        }
    }
}

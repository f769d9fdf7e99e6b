//! Copying out of pages, whose bytes somebody else may be writing to, and into them.

/// Copies `len` bytes, as fast as memcpy does. Bytes that are written meanwhile come out old or new, or, where a device or
/// a wide store writes them, any mixture of both: the caller throws all of them away then.
///
/// Rust has no plain loads that may meet stores of another thread, and its atomic ones make no copy at the speed of
/// memory. So the copy is memcpy called out of assembly. The compiler takes that for a sequence of relaxed atomic loads of
/// bytes that it cannot look into: it neither knows that the bytes do not change, nor derives anything from what came
/// out, which is all that goes wrong with a racing load. The stores that it meets are not affected by being
/// looked at; they are ordered against it by the word and the version of the page, which are atomic (see
/// [`super::place`]).
///
/// # Safety
/// `from` is good for reads of `len` bytes, `to` for writes, and nobody else touches the latter meanwhile. What is at
/// `from` may only be written to by who lets readers find out.
#[inline(always)]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a call by the C ABI: everything that it may clobber is said, and without `nostack` the stack is aligned.
    // That the ranges are good is the caller's promise.
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
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "bl {memcpy}",
            memcpy = sym libc::memcpy,
            inout("x0") to => _,
            inout("x1") from => _,
            inout("x2") len => _,
            clobber_abi("C"),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    for at in 0..len {
        use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
        // SAFETY: inside of the range that is good for reads.
        let byte = unsafe { AtomicU8::from_ptr(from.add(at).cast_mut()) }.load(Relaxed);
        // SAFETY: inside of the range that is good for writes.
        unsafe { to.add(at).write(byte) };
    }
}

/// From so many bytes on a copy is faster when the lines that it writes to are fetched before.
#[cfg(target_arch = "x86_64")]
const WORTH_FETCHING: usize = 1024;

/// Copies into a page that nobody else touches; false, and nothing, when the lengths are not the same. The lines to be written
/// to are fetched all at once: memcpy alone asks for them one after the other, as it comes to them, and takes a fifth longer
/// where they are in the last cache or in memory.
///
/// Not inline, so that it can be told from what a hit costs (`benches/cost.rs`).
#[inline(never)]
pub(super) fn copy_in(page: &mut [u8], bytes: &[u8]) -> bool {
    if page.len() != bytes.len() {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= WORTH_FETCHING {
        for line in page.chunks(64) {
            // SAFETY: a hint, which faults nowhere; where a processor does not know it, it does nothing.
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

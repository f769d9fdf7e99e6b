//! Memory shared with a device while it runs: rings and PRP lists.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::buf::DmaBuf;
use crate::units::Iova;

/// A buffer that a device reads and writes at any time, touched only by atomic loads and stores of
/// 32 and 64 bits (little-endian on the wire; the caller converts).
///
/// All offsets are in bytes, must be multiples of the access size and inside the buffer: the
/// accessors panic otherwise, as indexing does. Offsets come from the driver's own arithmetic,
/// never from a device.
#[derive(Debug)]
pub struct SharedWords {
    base: NonNull<u8>,
    len_bytes: usize,
    /// Kept for its memory; its bytes are never borrowed.
    buf: DmaBuf,
}

// SAFETY: the buffer is owned, and every access through `base` is an atomic one.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Shares `buf`, whose length must be a multiple of 8 bytes (it is aligned to 64).
    pub fn new(buf: DmaBuf) -> Self {
        assert_eq!(
            buf.len() % 8,
            0,
            "the length of shared memory must be a multiple of 8 bytes"
        );
        Self {
            base: buf.base(),
            len_bytes: buf.len(),
            buf,
        }
    }

    /// The device address of the first byte.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.buf.iova()
    }

    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `base` is the start of the buffer kept in `self`: aligned to 64 bytes,
        // `len_bytes` long, and initialised. AtomicU64 has the layout of u64, any bytes are a valid
        // value, and all access while `self` lives, ours and a device's, is atomic: the buffer's
        // own bytes are never borrowed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len_bytes / 8) }
    }

    #[inline]
    fn halves(&self) -> &[AtomicU32] {
        // SAFETY: as in `words`, for 32 bits.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len_bytes / 4) }
    }

    /// Loads 32 bits with acquire: what the device wrote before them is visible after.
    #[inline]
    pub fn load_u32_acquire(&self, offset_bytes: usize) -> u32 {
        u32::from_le(self.halves()[offset_bytes / 4].load(Ordering::Acquire))
    }

    /// Loads 32 bits.
    #[inline]
    pub fn load_u32(&self, offset_bytes: usize) -> u32 {
        u32::from_le(self.halves()[offset_bytes / 4].load(Ordering::Relaxed))
    }

    /// Stores 32 bits with release: who sees them sees what was stored before.
    #[inline]
    pub fn store_u32_release(&self, offset_bytes: usize, value: u32) {
        self.halves()[offset_bytes / 4].store(value.to_le(), Ordering::Release);
    }

    /// Stores 64 bits.
    #[inline]
    pub fn store_u64(&self, offset_bytes: usize, value: u64) {
        self.words()[offset_bytes / 8].store(value.to_le(), Ordering::Relaxed);
    }

    /// Stores eight words (a submission queue entry) at a multiple of 64 bytes.
    // Not left to the compiler: a call takes longer than the stores.
    #[inline(always)]
    pub fn store_64_bytes(&self, offset_bytes: usize, value: &[u64; 8]) {
        let at = offset_bytes / 8;
        let words: &[AtomicU64] = &self.words()[at..at + 8];
        for (word, value) in words.iter().zip(value) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// CLDEMOTE hint: push the line at this offset to the shared cache level, for another CPU that
    /// needs it next. It changes no data, and does nothing on processors without the instruction.
    #[inline]
    pub fn demote_line(&self, offset_bytes: usize) {
        let line = &raw const self.words()[offset_bytes / 8];
        // SAFETY: the address is inside of the buffer; the instruction neither reads nor writes,
        // and is one that does nothing on a processor without it.
        unsafe {
            std::arch::asm!("cldemote [{}]", in(reg) line, options(nostack, preserves_flags));
        }
    }

    /// Zeroes the whole buffer.
    pub fn clear(&self) {
        for word in self.words() {
            word.store(0, Ordering::Relaxed);
        }
        fence(Ordering::Release);
    }
}

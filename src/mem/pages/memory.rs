//! The frames' bytes: one piece of DMA memory.

#[cfg(not(loom))]
pub(super) use real::Memory;

#[cfg(loom)]
pub(super) use model::Memory;

#[cfg(not(loom))]
mod real {
    use std::ptr::NonNull;

    use super::super::word::PAGE_BYTES;
    use crate::error::Result;
    use crate::mem::{DmaBuf, Heap};
    use crate::units::Iova;

    /// Frames side by side, from 2 MiB boundaries on.
    #[derive(Debug)]
    pub(in super::super) struct Memory {
        base: NonNull<u8>,
        frames: u32,
        iova: Iova,
        /// Kept for its memory; its bytes are never borrowed. `None` when it must not be given
        /// back.
        buf: Option<DmaBuf>,
    }

    // SAFETY: the memory is owned, and the callers of `bytes` and `bytes_mut` exclude conflicting
    // access.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    impl Memory {
        pub(in super::super) fn new(heap: &Heap, frames: u32) -> Result<Self> {
            let buf = heap.alloc(frames as usize * PAGE_BYTES, 2 << 20)?;
            Ok(Self {
                base: buf.base(),
                frames,
                iova: buf.iova(),
                buf: Some(buf),
            })
        }

        /// The device address of a frame.
        pub(in super::super) fn iova(&self, frame: u32) -> Iova {
            self.iova.offset(u64::from(frame) * PAGE_BYTES as u64)
        }

        #[inline]
        fn at(&self, frame: u32) -> NonNull<u8> {
            debug_assert!(frame < self.frames);
            // SAFETY: frames come from tokens and from words that a token was put into; the table
            // makes each token once, and all of them below `frames`: the offset is inside the
            // buffer.
            unsafe { self.base.add(frame as usize * PAGE_BYTES) }
        }

        /// The bytes of `count` frames.
        ///
        /// # Safety
        /// No thread and no device writes to them while the slice lives.
        #[inline]
        pub(in super::super) unsafe fn bytes(&self, frame: u32, count: u32) -> &[u8] {
            let len = count as usize * PAGE_BYTES;
            // SAFETY: the frames are inside the buffer (see `at`), initialised (zeroed when it was
            // cut), alive with `self`, and not written to (the caller's promise).
            unsafe { std::slice::from_raw_parts(self.at(frame).as_ptr(), len) }
        }

        /// The bytes of `count` frames, to be written to.
        ///
        /// # Safety
        /// No other thread and no device accesses them while the slice lives.
        #[inline(always)]
        #[expect(
            clippy::mut_from_ref,
            reason = "tokens and locks give exclusive access to a frame"
        )]
        pub(in super::super) unsafe fn bytes_mut(&self, frame: u32, count: u32) -> &mut [u8] {
            let len = count as usize * PAGE_BYTES;
            // SAFETY: as in `bytes`, and the caller promises exclusive access.
            unsafe { std::slice::from_raw_parts_mut(self.at(frame).as_ptr(), len) }
        }

        /// `len` bytes from byte `start` of the frames from `frame` on, to be written to.
        ///
        /// # Safety
        /// As [`Memory::bytes_mut`], for this part; and it is inside frames of the memory.
        #[expect(clippy::mut_from_ref, reason = "as above")]
        pub(in super::super) unsafe fn part_mut(
            &self,
            frame: u32,
            start: usize,
            len: usize,
        ) -> &mut [u8] {
            debug_assert!(
                frame as usize * PAGE_BYTES + start + len <= self.frames as usize * PAGE_BYTES
            );
            // SAFETY: inside the buffer (the caller's promise).
            let at = unsafe { self.at(frame).add(start) };
            // SAFETY: as in `bytes_mut`.
            unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) }
        }

        /// Copies from byte `from` of a frame on, while others may be writing to it: see
        /// [`super::super::racy`].
        ///
        /// # Safety
        /// The range and its successors lie inside the frame. The copy is valid only if no thread
        /// wrote to the range during the call.
        #[inline(always)]
        pub(in super::super) unsafe fn copy_out(&self, frame: u32, from: usize, buf: &mut [u8]) {
            // SAFETY: inside of the memory (the caller's promise).
            let at = unsafe { self.at(frame).add(from) };
            // SAFETY: the range is good for reads, and the buffer, which is borrowed, for writes.
            unsafe { super::super::racy::copy(at.as_ptr(), buf.as_mut_ptr(), buf.len()) };
        }

        /// Where a frame's bytes from `from` on are, if there is such a frame.
        #[inline(always)]
        pub(in super::super) fn guess(&self, frame: u32, from: usize) -> *const u8 {
            let at = frame as usize * PAGE_BYTES + from;
            self.base.as_ptr().wrapping_add(at).cast_const()
        }

        /// Prefetches two cache lines of a frame; the hardware prefetcher continues from there.
        #[inline(always)]
        pub(in super::super) fn prefetch(&self, frame: u32, from: usize) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let at = self.guess(frame, from);
            // SAFETY: a hint, which faults nowhere; every x86-64 processor has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64).cast()) };
        }

        /// Keeps the memory for ever: a device may still touch it.
        pub(in super::super) fn leak(&mut self) {
            std::mem::forget(self.buf.take());
        }
    }
}

/// Under loom a frame is a few bytes in a cell that notices every access that is not ordered.
#[cfg(loom)]
mod model {
    use crate::error::Result;
    use crate::mem::Heap;
    use crate::units::Iova;
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicU8, Ordering::Relaxed};

    pub(in super::super) const MODEL_BYTES: usize = 2;

    /// The cells detect every access that is not ordered. Unpinned reads load from atomics beside
    /// the cells, which every write updates too.
    #[derive(Debug)]
    pub(in super::super) struct Memory {
        cells: Vec<UnsafeCell<[u8; MODEL_BYTES]>>,
        shadows: Vec<[AtomicU8; MODEL_BYTES]>,
    }

    impl Memory {
        pub(in super::super) fn new(_: &Heap, frames: u32) -> Result<Self> {
            Ok(Self {
                cells: (0..frames)
                    .map(|_| UnsafeCell::new([0; MODEL_BYTES]))
                    .collect(),
                shadows: (0..frames)
                    .map(|_| std::array::from_fn(|_| AtomicU8::new(0)))
                    .collect(),
            })
        }

        pub(in super::super) fn iova(&self, frame: u32) -> Iova {
            Iova(frame.into())
        }

        pub(in super::super) fn read(&self, frame: u32) -> [u8; MODEL_BYTES] {
            // SAFETY: the cell checks that there is no concurrent writer.
            self.cells[frame as usize].with(|bytes| unsafe { *bytes })
        }

        pub(in super::super) fn write(&self, frame: u32, value: [u8; MODEL_BYTES]) {
            // SAFETY: the cell checks that there is no concurrent access.
            self.cells[frame as usize].with_mut(|bytes| unsafe { *bytes = value });
            for (shadow, value) in self.shadows[frame as usize].iter().zip(value) {
                shadow.store(value, Relaxed);
            }
        }

        /// As it comes, while others may be writing to it.
        pub(in super::super) fn read_racy(&self, frame: u32) -> [u8; MODEL_BYTES] {
            std::array::from_fn(|at| self.shadows[frame as usize][at].load(Relaxed))
        }

        pub(in super::super) fn prefetch(&self, _: u32, _: usize) {}

        pub(in super::super) fn leak(&mut self) {}
    }
}

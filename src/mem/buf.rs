//! DMA buffers, and their ownership.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use super::arena::Arena;
use super::heap_state::HeapInner;
use crate::units::Iova;

/// A contiguous piece of device-visible memory, as a command names it.
///
/// It stands for memory that is with a device: [`Lent::segment`] makes it, and only code of this
/// crate that saw the last command end takes that memory back. So submitting one, however often,
/// lets a device write to no byte that the program can borrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    iova: Iova,
    len_bytes: u32,
}

impl Segment {
    /// A piece of memory at a device address. The caller sees to it that the memory is with a
    /// device, or mapped in none.
    pub(crate) const fn new(iova: Iova, len_bytes: u32) -> Self {
        Self { iova, len_bytes }
    }

    /// A piece at any device address, for tests of how wrong addresses are refused.
    ///
    /// # Safety
    /// No `DmaBuf` lies there while a command on the segment may run, nor other memory that the
    /// program borrows.
    pub const unsafe fn anywhere(iova: Iova, len_bytes: u32) -> Self {
        Self { iova, len_bytes }
    }

    /// The first device address.
    #[inline]
    pub const fn iova(&self) -> Iova {
        self.iova
    }

    /// Length in bytes.
    #[inline]
    pub const fn len_bytes(&self) -> u32 {
        self.len_bytes
    }

    /// Appends a segment that begins where this one ends; false when it does not, or when both
    /// together are 4 GiB or more.
    pub(crate) fn append(&mut self, next: &Self) -> bool {
        let follows = self.iova.offset(self.len_bytes.into()) == next.iova;
        let sum = self.len_bytes.checked_add(next.len_bytes);
        match sum {
            Some(sum) if follows => {
                self.len_bytes = sum;
                true
            }
            _ => false,
        }
    }
}

/// A buffer for DMA: reads and writes like a `Box<[u8]>`, at a fixed device address. One pointer
/// wide: it is handed through every layer with each operation.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let file = volume.open_file(&mut io, "/data")?;
/// let mut buf = io.alloc(4096)?;
/// let bytes = file.read_dma_at(&mut io, &mut buf, 0)?;
/// println!("{:?}", &buf[..bytes]);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct DmaBuf(Option<Box<BufRange>>);

struct BufRange {
    base: NonNull<u8>,
    len_bytes: usize,
    iova: Iova,
    offset: usize,
    reserved_bytes: usize,
    arena: Arc<Arena>,
    heap: Arc<HeapInner>,
}

// SAFETY: a `BufRange` is the only owner of its range of the arena (the heap hands each range out
// once), and the arena stays mapped while the `Arc` lives; so moving it to another thread is moving
// a Box<[u8]>.
unsafe impl Send for BufRange {}
// SAFETY: `&BufRange` gives only `&[u8]` and plain values.
unsafe impl Sync for BufRange {}

impl DmaBuf {
    /// The buffer over `reserved_bytes` at `offset` of `arena`, which the heap just cut for it
    /// alone.
    pub(super) fn cut(
        heap: Arc<HeapInner>,
        arena: Arc<Arena>,
        offset: usize,
        reserved_bytes: usize,
        len_bytes: usize,
    ) -> Self {
        assert!(len_bytes <= reserved_bytes && offset + reserved_bytes <= arena.len_bytes());
        // SAFETY: offset is inside the arena's one mapping, asserted above.
        let base = unsafe { arena.base().add(offset) };
        // SAFETY: len_bytes bytes from base lie inside the mapping (asserted), and belong to this
        // cut alone.
        unsafe { base.write_bytes(0, len_bytes) };
        let iova = arena.iova().offset(offset as u64);
        Self(Some(Box::new(BufRange {
            base,
            len_bytes,
            iova,
            offset,
            reserved_bytes,
            arena,
            heap,
        })))
    }

    /// The device address of the first byte; 0 for an empty buffer.
    #[inline]
    #[doc(hidden)]
    pub fn iova(&self) -> Iova {
        self.0.as_ref().map_or(Iova(0), |cut| cut.iova)
    }

    /// The device address of the first byte, and the length in bytes; `None` for an empty buffer.
    #[inline]
    pub(crate) fn place(&self) -> Option<(Iova, usize)> {
        self.0.as_ref().map(|cut| (cut.iova, cut.len_bytes))
    }

    /// The first byte in host memory; dangling for an empty buffer.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.0.as_ref().map_or(NonNull::dangling(), |cut| cut.base)
    }

    /// Gives the buffer to a device: no more access to its bytes until it is taken back.
    #[inline]
    #[doc(hidden)]
    pub fn lend(self) -> Lent {
        Lent(std::mem::ManuallyDrop::new(self))
    }

    #[inline]
    pub(super) fn belongs_to(&self, heap: &Arc<HeapInner>) -> bool {
        self.0
            .as_ref()
            .is_none_or(|cut| Arc::ptr_eq(&cut.heap, heap))
    }
}

impl Deref for DmaBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: base..base+len_bytes is initialised (zeroed when cut), owned by this buffer
            // alone, and no device writes to it: it is not lent.
            Some(cut) => unsafe { std::slice::from_raw_parts(cut.base.as_ptr(), cut.len_bytes) },
            None => &[],
        }
    }
}

impl DerefMut for DmaBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
            Some(cut) => unsafe {
                std::slice::from_raw_parts_mut(cut.base.as_ptr(), cut.len_bytes)
            },
            None => &mut [],
        }
    }
}

impl Drop for BufRange {
    fn drop(&mut self) {
        self.heap
            .give_back(&self.arena, self.offset, self.reserved_bytes);
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({} bytes at {})", self.len(), self.iova())
    }
}

/// A buffer lent to a device. It gives no access to its bytes.
///
/// Dropping it leaks the memory on purpose: the device may still access it.
pub struct Lent(std::mem::ManuallyDrop<DmaBuf>);

impl Lent {
    /// No memory.
    #[inline]
    pub(crate) fn none() -> Self {
        DmaBuf::default().lend()
    }

    /// Takes it, and leaves no memory in its place.
    #[inline]
    pub(crate) fn replace_by_none(&mut self) -> Self {
        std::mem::replace(self, Self::none())
    }

    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.0.0.as_ref().map_or(0, |cut| cut.len_bytes)
    }

    /// The device address of the first byte; 0 for an empty buffer.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.0.iova()
    }

    /// The device's name for a range of the buffer; `None` when the range is not inside it.
    #[inline]
    pub fn segment(&self, range: Range<usize>) -> Option<Segment> {
        if range.start > range.end || range.end > self.len_bytes() {
            return None;
        }
        let len_bytes = u32::try_from(range.end - range.start).ok()?;
        Some(Segment::new(
            self.0.iova().offset(range.start as u64),
            len_bytes,
        ))
    }

    /// Zeroes a range that no command in flight covers (a hole that was read). Out of range:
    /// nothing.
    pub(crate) fn zero(&mut self, range: Range<usize>) {
        let Some(cut) = &self.0.0 else { return };
        if range.start > range.end || range.end > cut.len_bytes {
            return;
        }
        // SAFETY: range.start <= len_bytes, checked above.
        let start = unsafe { cut.base.add(range.start) };
        // SAFETY: the range lies inside the buffer (checked above); the memory is ours, and no
        // device writes to this part of it (the caller's promise).
        unsafe { start.write_bytes(0, range.end - range.start) };
    }

    /// Copies `bytes` to `start`, where no command in flight covers the range (inline data that was
    /// read). Out of range: nothing.
    pub(crate) fn fill(&mut self, start: usize, bytes: &[u8]) {
        let Some(cut) = &self.0.0 else { return };
        if start
            .checked_add(bytes.len())
            .is_none_or(|end| end > cut.len_bytes)
        {
            return;
        }
        // SAFETY: start <= len_bytes, checked above.
        let to = unsafe { cut.base.add(start) };
        // SAFETY: the range lies inside the buffer (checked above); the memory is ours and not
        // borrowed, so `bytes` is elsewhere, and no device writes to this part of it (the caller's
        // promise).
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Takes the buffer back. The caller has seen every command on it end, or the device stopped.
    #[inline]
    pub(crate) fn take_back(self) -> DmaBuf {
        std::mem::ManuallyDrop::into_inner(self.0)
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} bytes at {})", self.len_bytes(), self.0.iova())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Heap, HeapConfig, HugePages};

    #[test]
    fn a_lent_buffer_comes_back_with_its_bytes() {
        let heap = Heap::new(HeapConfig {
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let mut buf = heap.alloc(8192, 4096).unwrap();
        buf[4096] = 7;
        let iova = buf.iova();
        let mut lent = buf.lend();
        assert_eq!(lent.segment(4096..8192).unwrap().iova(), iova.offset(4096));
        assert!(lent.segment(4096..8193).is_none());
        lent.zero(0..4096);
        lent.zero(4096..9000);
        lent.fill(8, &[3, 4]);
        lent.fill(8191, &[9, 9]);
        let back = lent.take_back();
        assert_eq!(
            (back[4096], back[8191], &back[7..11]),
            (7, 0, &[0, 3, 4, 0][..])
        );
    }
}

//! Units that must not be mixed: namespace blocks and device addresses.
//!
//! Layer 0. Byte offsets and lengths are plain `u64`/`usize` with `_bytes` in the name where the
//! type alone does not say it.

use std::fmt;

/// A logical block address of an NVMe namespace, in units of that namespace's LBA size (512 or 4096
/// bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

impl Lba {
    /// The address `blocks` further on; `None` past the end of 64 bits.
    #[inline]
    pub fn checked_add(self, blocks: u64) -> Option<Self> {
        self.0.checked_add(blocks).map(Self)
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LBA {}", self.0)
    }
}

/// An address as the device sees it (I/O virtual address), in bytes.
///
/// Unique within the process: every arena gets a range of its own, and is mapped at that range in
/// every device that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Iova(pub u64);

impl Iova {
    /// The address `bytes` further on. Wraps: an address from device input must not panic, and is
    /// checked where it is translated.
    #[inline]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IOVA {:#x}", self.0)
    }
}

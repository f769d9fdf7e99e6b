//! XFS version 5, on disk.
//!
//! Layer 5, safe code throughout. Disk content is hostile input: every block's checksum, uuid, owner and
//! address is checked before use, and nothing on disk can make this code panic, hang or grow without bound.
#![forbid(unsafe_code)]

use crate::error::Result;

/// How metadata reaches this layer: whole sectors, read synchronously. Implemented by a volume's per-thread
/// handle, and by plain files in tests.
pub trait MetaIo {
    /// Fills `buf` from the device at a byte address. Both are multiples of the device's block size.
    ///
    /// # Errors
    /// The device's, with its name and the offset.
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()>;

    /// Bytes in the device: what lies beyond is refused before it is read.
    fn capacity_bytes(&self) -> u64;
}

//! What a block device holds, found by its content as libblkid does: partition tables, and the
//! signatures of other filesystems, volume managers, disk image formats and archives.
//!
//! Layer 1. Everything that is read is hostile: the number of reads and the memory are bounded.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod contents;
mod gpt;
mod mbr;
mod partitions;
mod raid;
mod signatures;
mod source;
mod table;

pub use partitions::read_table;
pub use raid::{RaidMember, raid_at_end};
pub use signatures::{Content, identify, identify_bytes};
pub use source::ProbeSource;
pub use table::{Partition, PartitionTable, TableKind};

#[cfg(test)]
pub(crate) mod testing {
    use super::ProbeSource;
    use crate::error::Result;

    /// A device in memory.
    pub(crate) struct Bytes(pub(crate) Vec<u8>, pub(crate) u32);

    impl ProbeSource for Bytes {
        fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
            let start = usize::try_from(offset_bytes).unwrap();
            assert!(
                start.is_multiple_of(self.1 as usize) && buf.len().is_multiple_of(self.1 as usize)
            );
            let end = start + buf.len();
            buf.copy_from_slice(&self.0[start..end]);
            Ok(())
        }

        fn len_bytes(&self) -> u64 {
            (self.0.len() / self.1 as usize * self.1 as usize) as u64
        }

        fn block_bytes(&self) -> u32 {
            self.1
        }
    }
}

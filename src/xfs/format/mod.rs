//! The layouts of XFS version 5: what the bytes on disk are, and nothing else.
//!
//! Layer 0. Every structure is big-endian (checksums alone are little-endian), without alignment,
//! its size and the offsets of its fields asserted where it is declared. Follows "XFS Algorithms &
//! Data Structures".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod acl;
pub mod ag;
pub mod attr;
pub mod attr_leaf;
pub mod btree;
pub mod buffer;
pub(crate) mod crc;
pub mod dir;
pub mod dir_short;
pub mod inode;
pub mod log;
pub mod log_items;
pub mod superblock;
pub mod symlink;

/// Bytes of a basic block: the unit of disk addresses in metadata and of the log.
pub const BASIC_BLOCK_BYTES: u64 = 512;

/// The CRC32C of a whole metadata buffer, the four bytes of the checksum itself at `crc_offset`
/// counted as zero. `None` when the buffer is too short to hold the field.
pub fn checksum(buf: &[u8], crc_offset: usize) -> Option<u32> {
    let (before, rest) = buf.split_at_checked(crc_offset)?;
    let (_, after) = rest.split_at_checked(4)?;
    let crc = crc::append(0, before);
    let crc = crc::append(crc, &[0; 4]);
    Some(crc::append(crc, after))
}

/// Whether the buffer's checksum at `crc_offset` (little-endian) is right.
pub fn checksum_ok(buf: &[u8], crc_offset: usize) -> bool {
    let stored = buf
        .get(crc_offset..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map(|bytes| u32::from_le_bytes(*bytes));
    stored.is_some() && stored == checksum(buf, crc_offset)
}

/// Writes the right checksum at `crc_offset`; false when the buffer is too short. For tests and
/// fuzzers that must get past the checksum, and for writers.
pub fn set_checksum(buf: &mut [u8], crc_offset: usize) -> bool {
    let Some(crc) = checksum(buf, crc_offset) else {
        return false;
    };
    let Some(field) = buf
        .get_mut(crc_offset..)
        .and_then(|rest| rest.first_chunk_mut::<4>())
    else {
        return false;
    };
    *field = crc.to_le_bytes();
    true
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_little_endian_over_the_whole_buffer() {
        let mut buf = vec![7_u8; 512];
        assert!(set_checksum(&mut buf, 224));
        assert!(checksum_ok(&buf, 224));
        buf[511] ^= 1;
        assert!(!checksum_ok(&buf, 224));
        buf[511] ^= 1;
        buf[224..228].reverse();
        assert!(!checksum_ok(&buf, 224));
    }

    #[test]
    fn short_buffers_are_no_panic() {
        assert!(!checksum_ok(&[0; 3], 0));
        assert!(!checksum_ok(&[0; 8], 5));
        assert!(!set_checksum(&mut [0; 8], 5));
        assert_eq!(checksum(&[], usize::MAX), None);
    }
}

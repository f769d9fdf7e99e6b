//! CRC-32C (Castagnoli), the checksum of XFS metadata and of log records.

use crc::{CRC_32_ISCSI, Crc, Table};

/// Slicing by 16: there are 16 KiB of tables.
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The checksum of what was summed up before, with these bytes after it; that of no bytes is 0.
pub(crate) fn append(checksum: u32, bytes: &[u8]) -> u32 {
    // The register before the last step: not inverted, and its lowest bit first.
    let mut digest = CRC32C.digest_with_initial((!checksum).reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::append;

    #[test]
    fn parts_sum_up_as_the_whole() {
        // The check value of the algorithm.
        assert_eq!(append(0, b"123456789"), 0xe306_9283);
        let bytes: Vec<u8> = (0..1000_u32).map(|n| (n * 7 % 251) as u8).collect();
        for cut in [0, 1, 15, 16, 500, 1000] {
            let (before, after) = bytes.split_at(cut);
            assert_eq!(append(append(0, before), after), crc32c::crc32c(&bytes));
        }
    }
}

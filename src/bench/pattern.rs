//! The pattern of `--verify`: each block has its offset and a checksum.
//!
//! 32 bytes of header, little-endian: magic (8), byte offset in the file (8), seed (8), length in
//! bytes (4), CRC32C of the block without this field (4); then bytes that follow from offset and
//! seed.

use super::mix::mix;

const MAGIC: &[u8; 8] = b"xtentpat";
const CRC_AT: usize = 28;
const HEADER_BYTES: usize = 32;

/// Fills a block (512 bytes or more) for this place.
pub(crate) fn fill(block: &mut [u8], offset_bytes: u64, seed: u64) {
    fill_random(&mut block[HEADER_BYTES..], offset_bytes ^ mix(seed));
    block[..8].copy_from_slice(MAGIC);
    block[8..16].copy_from_slice(&offset_bytes.to_le_bytes());
    block[16..24].copy_from_slice(&seed.to_le_bytes());
    let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
    block[24..28].copy_from_slice(&len.to_le_bytes());
    let crc = crc(block);
    block[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes that do not compress, by seed.
pub(crate) fn fill_random(bytes: &mut [u8], seed: u64) {
    let mut state = mix(seed) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// Checks a block that should have been filled for this place; the error says what differs.
pub(crate) fn check(block: &[u8], offset_bytes: u64, seed: u64) -> Result<(), String> {
    let field = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if &block[..8] != MAGIC {
        return Err(format!(
            "no pattern here: it begins with {}",
            block[..8].escape_ascii()
        ));
    }
    if field(8) != offset_bytes {
        return Err(format!("the pattern of byte {} instead", field(8)));
    }
    if field(16) != seed {
        return Err(format!("written with seed {}, not {seed}", field(16)));
    }
    let len = field(24) & u64::from(u32::MAX);
    if len != block.len() as u64 {
        return Err(format!(
            "written in blocks of {len} bytes, not {}",
            block.len()
        ));
    }
    let (stored, computed) = (block[CRC_AT..HEADER_BYTES].to_vec(), crc(block));
    if stored != computed.to_le_bytes() {
        return Err("the checksum does not match: torn or damaged".into());
    }
    Ok(())
}

fn crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..CRC_AT]), &block[HEADER_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_bit_flip_and_misplacement_is_found() {
        let mut block = vec![0; 512];
        fill(&mut block, 8192, 3);
        check(&block, 8192, 3).unwrap();
        assert!(check(&block, 8704, 3).is_err());
        assert!(check(&block, 8192, 4).is_err());
        assert!(check(&[0; 512], 8192, 3).is_err());
        for bit in 0..512 * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&block, 8192, 3).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

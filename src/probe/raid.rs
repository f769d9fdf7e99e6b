//! Superblocks of Linux RAID (md) at the end of a device, formats 0.90 and 1.0: what they describe
//! begins at the first byte, so a filesystem of a mirror looks as if it were the member's own.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::source::{ProbeSource, read};
use crate::error::Result;

const MAGIC: u32 = 0xa92b_4efc;
/// `MD_RESERVED_BYTES`: a superblock of format 0.90 begins so far before the end, in units of it.
const OLD_BYTES: u64 = 64 << 10;

/// What a member is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaidMember {
    /// The format of the superblock.
    pub format: &'static str,
    /// Where it lies.
    pub at_bytes: u64,
}

/// The start of `mdp_super_t` (format 0.90), in the order of bytes of the machine that made it.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Old {
    magic: U32,
    major: U32,
    minor: U32,
    patch: U32,
    valid_words: U32,
    uuid0: U32,
}
const _: () = assert!(size_of::<Old>() == 24);

/// The start of `mdp_superblock_1`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct New {
    magic: U32,
    major: U32,
    features: U32,
    pad: U32,
    uuid: [u8; 16],
    name: [u8; 32],
    other: [u8; 80],
    super_sector: U64,
}
const _: () = assert!(offset_of!(New, super_sector) == 144);

/// The superblock at the end of a device, if it has one.
///
/// # Errors
/// The device's.
pub fn raid_at_end(source: &mut impl ProbeSource) -> Result<Option<RaidMember>> {
    let sectors = source.len_bytes() / 512;
    // As `super_1_load`: at least 8 KiB before the end, and at most 12.
    let at = sectors.saturating_sub(16) & !7;
    let bytes = read(source, at.saturating_mul(512), size_of::<New>() as u64)?;
    if let Ok((found, _)) = New::ref_from_prefix(&bytes)
        && found.magic.get() == MAGIC
        && found.major.get() == 1
        && found.super_sector.get() == at
    {
        return Ok(Some(RaidMember {
            format: "1.0",
            at_bytes: at.saturating_mul(512),
        }));
    }
    // `MD_NEW_SIZE_SECTORS`.
    let len = sectors.saturating_mul(512);
    let Some(at) = (len & !OLD_BYTES.wrapping_sub(1)).checked_sub(OLD_BYTES) else {
        return Ok(None);
    };
    let bytes = read(source, at, size_of::<Old>() as u64)?;
    let found = Old::ref_from_prefix(&bytes).ok();
    let found = found.map(|(found, _)| found);
    Ok(found
        .filter(|old| old.magic.get() == MAGIC && old.major.get() == 0)
        .map(|_| RaidMember {
            format: "0.90",
            at_bytes: at,
        }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bytes;
    use super::*;

    #[test]
    fn both_formats_are_found_at_their_places() {
        let mut device = vec![0; (1 << 20) + 512 * 3];
        assert_eq!(raid_at_end(&mut Bytes(device.clone(), 512)).unwrap(), None);
        let old = (1 << 20) - (64 << 10);
        device[old..old + 4].copy_from_slice(&MAGIC.to_le_bytes());
        let found = raid_at_end(&mut Bytes(device.clone(), 512)).unwrap();
        let wanted = |format, at: usize| {
            let at_bytes = at as u64;
            Some(RaidMember { format, at_bytes })
        };
        assert_eq!(found, wanted("0.90", old));
        // ((2051 - 16) & !7) sectors.
        let new = 2032 * 512;
        device[new..new + 4].copy_from_slice(&MAGIC.to_le_bytes());
        device[new + 4] = 1;
        let of_another_place = raid_at_end(&mut Bytes(device.clone(), 512)).unwrap();
        assert_eq!(of_another_place, wanted("0.90", old));
        device[new + 144..new + 152].copy_from_slice(&2032u64.to_le_bytes());
        assert_eq!(
            raid_at_end(&mut Bytes(device, 512)).unwrap(),
            wanted("1.0", new)
        );
        assert_eq!(raid_at_end(&mut Bytes(vec![0; 512], 512)).unwrap(), None);
    }
}

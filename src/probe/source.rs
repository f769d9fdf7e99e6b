//! The probed device, and bounded reads of it.

use crate::error::Result;

/// Bytes that are probed.
pub trait ProbeSource {
    /// Fills `buf` from the byte `offset_bytes`; both are multiples of
    /// [`ProbeSource::block_bytes`].
    ///
    /// # Errors
    /// The device's.
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()>;

    /// Bytes of the device, in whole blocks.
    fn len_bytes(&self) -> u64;

    /// Bytes of a block.
    fn block_bytes(&self) -> u32;

    /// Bytes of the sectors that an MBR counts in, which it does not say itself: the device's
    /// logical blocks. `None` where they are not known.
    fn mbr_sector_bytes(&self) -> Option<u32> {
        Some(self.block_bytes().max(512))
    }
}

/// The most bytes that one read of a probe takes.
const MOST_BYTES: u64 = 2 << 20;

/// `len` bytes from any byte on; fewer where the device ends before, or where `len` is beyond
/// [`MOST_BYTES`].
pub(super) fn read(source: &mut impl ProbeSource, offset_bytes: u64, len: u64) -> Result<Vec<u8>> {
    let block = u64::from(source.block_bytes()).max(1);
    let end = offset_bytes.saturating_add(len.min(MOST_BYTES));
    let end = end.min(source.len_bytes());
    let start = offset_bytes.saturating_sub(offset_bytes.checked_rem(block).unwrap_or(0));
    if end <= offset_bytes {
        return Ok(Vec::new());
    }
    let whole = end.saturating_sub(start).next_multiple_of(block);
    let mut bytes = vec![0; usize::try_from(whole).unwrap_or(0)];
    source.read_at(start, &mut bytes)?;
    let skip = usize::try_from(offset_bytes.saturating_sub(start)).unwrap_or(usize::MAX);
    let keep = usize::try_from(end.saturating_sub(offset_bytes)).unwrap_or(0);
    Ok(bytes.into_iter().skip(skip).take(keep).collect())
}

/// A size for a message: `320 MiB`, `1.5 GiB`, `512 bytes`.
pub(super) fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = None;
    let mut tenths = u128::from(bytes).saturating_mul(10);
    for name in UNITS {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = Some(name);
    }
    let (whole, tenth) = (tenths / 10, tenths % 10);
    match (unit, tenth) {
        (None, _) => format!("{bytes} bytes"),
        (Some(unit), 0) => format!("{whole} {unit}"),
        (Some(unit), tenth) => format!("{whole}.{tenth} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bytes;
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (320 << 20, "320 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
    }

    #[test]
    fn reads_are_cut_at_the_end_and_aligned() {
        let mut device = Bytes((0..=255).cycle().take(4096 + 100).collect(), 512);
        assert_eq!(read(&mut device, 510, 4).unwrap(), [254, 255, 0, 1]);
        assert_eq!(read(&mut device, 4094, 4).unwrap(), [254, 255]);
        assert!(read(&mut device, 4096, 4).unwrap().is_empty());
        assert!(read(&mut device, u64::MAX, u64::MAX).unwrap().is_empty());
    }
}

//! What partitions hold.

use super::signatures::{Content, identify};
use super::source::ProbeSource;
use super::table::PartitionTable;
use crate::error::Result;

/// Partitions whose content is looked for.
const MOST_IDENTIFIED: usize = 16;

impl PartitionTable {
    /// Looks for what the first of its partitions hold.
    ///
    /// # Errors
    /// The device's.
    pub fn identify_contents(&mut self, source: &mut impl ProbeSource) -> Result<()> {
        let device = source.len_bytes();
        for partition in self.partitions.iter_mut().take(MOST_IDENTIFIED) {
            let Some(range) = partition.range_on(device).ok().filter(|range| range.1 > 0) else {
                continue;
            };
            let mut part = SourcePart { source, range };
            // One that does not begin at a block of the device cannot be opened.
            if part.range.0.checked_rem(part.block_bytes().into()) == Some(0) {
                partition.content = match identify(&mut part)? {
                    Content::Xfs => Some("XFS".into()),
                    Content::Known { name, .. } => Some(name.into()),
                    Content::Partitions | Content::Zeroes | Content::Unknown => None,
                };
            }
        }
        Ok(())
    }
}

/// A part of a source.
struct SourcePart<'a, S> {
    source: &'a mut S,
    range: (u64, u64),
}

impl<S: ProbeSource> ProbeSource for SourcePart<'_, S> {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.source
            .read_at(self.range.0.saturating_add(offset_bytes), buf)
    }

    fn len_bytes(&self) -> u64 {
        let block = u64::from(self.block_bytes()).max(1);
        let rest = self.range.1.checked_rem(block).unwrap_or(0);
        self.range.1.saturating_sub(rest)
    }

    fn block_bytes(&self) -> u32 {
        self.source.block_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bytes;
    use super::super::{gpt, read_table};

    #[test]
    fn contents_are_named() {
        let mut device = gpt::tests::device(512);
        device[40 * 512..40 * 512 + 4].copy_from_slice(b"XFSB");
        let mut device = Bytes(device, 512);
        let mut table = read_table(&mut device).unwrap().unwrap();
        table.identify_contents(&mut device).unwrap();
        assert!(
            table.list().contains("XFS, named daten"),
            "{}",
            table.list()
        );
    }
}

//! The parts of a measured file that have no data on the device: reads of them measure no device.

use xtent::volume::{FiemapFlags, File, Io};

use super::failure::Failure;
use super::output::size_text;

/// Bytes of a range without blocks, and with blocks that were never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Unbacked {
    pub(super) hole_bytes: u64,
    pub(super) unwritten_bytes: u64,
}

impl Unbacked {
    /// Of `len_bytes` of a file from `start_bytes` on.
    pub(super) fn of(
        file: &File,
        io: &mut Io,
        start_bytes: u64,
        len_bytes: u64,
    ) -> Result<Self, Failure> {
        let mut found = Self::default();
        let mut at = start_bytes;
        let range_end = start_bytes.saturating_add(len_bytes);
        for extent in file.fiemap(io, start_bytes, len_bytes)? {
            let start = extent.logical_bytes.clamp(at, range_end);
            let end = extent.logical_bytes.saturating_add(extent.length_bytes);
            let end = end.clamp(start, range_end);
            found.hole_bytes += start - at;
            if extent.flags.contains(FiemapFlags::UNWRITTEN) {
                found.unwritten_bytes += end - start;
            }
            at = end;
        }
        found.hole_bytes += range_end - at;
        Ok(found)
    }

    /// A warning, where reads get zeroes from no device.
    pub(super) fn warning(&self, len_bytes: u64) -> Option<String> {
        let part =
            |bytes: u64, what: &str| (bytes > 0).then(|| format!("{} {what}", size_text(bytes)));
        let parts = [
            part(self.hole_bytes, "are holes"),
            part(
                self.unwritten_bytes,
                "are preallocated and were never written",
            ),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            return None;
        }
        Some(format!(
            "warning: of the {} that are measured {}: reads of those return zeroes and reach no device \
             (write the file first)",
            size_text(len_bytes),
            parts.join(" and ")
        ))
    }
}

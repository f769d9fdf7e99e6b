//! Which device addresses an IOMMU can translate.

use std::fmt::Write;

use crate::error::{Error, ErrorKind, Result};

/// Device addresses from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IovaRange {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl IovaRange {
    /// Ranges from the kernel's pairs, sorted; adjacent ones are merged, invalid ones skipped.
    pub(super) fn list(pairs: &[(u64, u64)]) -> Vec<Self> {
        let mut ranges: Vec<Self> = pairs
            .iter()
            .filter(|(first, last)| first <= last)
            .map(|&(first, last)| Self { first, last })
            .collect();
        ranges.sort_by_key(|range| range.first);
        ranges.dedup_by(|next, range| {
            let touches = next.first <= range.last.saturating_add(1);
            if touches {
                range.last = range.last.max(next.last);
            }
            touches
        });
        ranges
    }
}

/// What an IOMMU can map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IovaLimits {
    /// `None` when the kernel does not say (before 5.4).
    ranges: Option<Vec<IovaRange>>,
    page_bytes: u64,
}

impl IovaLimits {
    /// Limits with a smallest page; 0 where the kernel does not say, which means 4 KiB.
    pub(super) fn new(ranges: Option<Vec<IovaRange>>, page_bytes: u64) -> Self {
        Self {
            ranges,
            page_bytes: if page_bytes.is_power_of_two() {
                page_bytes
            } else {
                4096
            },
        }
    }

    /// Whether `len_bytes` from `iova` can be mapped.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] with the ranges there are.
    pub(super) fn check(&self, iova: u64, len_bytes: u64) -> Result<()> {
        if (iova | len_bytes) & (self.page_bytes - 1) != 0 || len_bytes == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{len_bytes} bytes at device address {iova:#x} are not whole pages of {} bytes, \
                     the IOMMU's smallest",
                    self.page_bytes
                ),
            ));
        }
        let last = iova.checked_add(len_bytes - 1);
        let inside =
            |range: &IovaRange| range.first <= iova && last.is_some_and(|l| l <= range.last);
        let Some(ranges) = &self.ranges else {
            return Ok(());
        };
        if ranges.iter().any(inside) {
            return Ok(());
        }
        let mut text = String::new();
        for range in ranges {
            let _ = write!(text, " {:#x}-{:#x}", range.first, range.last);
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the IOMMU cannot translate {len_bytes} bytes at device address {iova:#x}; it can:{text}"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_merged_and_freed_of_nonsense() {
        let ranges = IovaRange::list(&[
            (0x10_0000, 0x1f_ffff),
            (0, 0xf_ffff),
            (5, 4),
            (0x40_0000, 0x4f_ffff),
            (u64::MAX - 1, u64::MAX),
        ]);
        let pairs: Vec<_> = ranges.iter().map(|r| (r.first, r.last)).collect();
        let expected = [
            (0, 0x1f_ffff),
            (0x40_0000, 0x4f_ffff),
            (u64::MAX - 1, u64::MAX),
        ];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn holes_ends_and_overflows_are_refused_with_the_ranges() {
        let ranges = IovaRange::list(&[(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)]);
        let limits = IovaLimits::new(Some(ranges), 4096);
        let mib2 = 2 << 20;
        assert!(limits.check(1 << 32, mib2).is_ok());
        assert!(limits.check((1 << 39) - mib2, mib2).is_ok());
        let error = limits.check(0xfec0_0000, 4 << 20).unwrap_err();
        assert!(error.to_string().contains("0x0-0xfedfffff"), "{error}");
        assert!(limits.check(0xfed0_0000, mib2).is_err());
        assert!(limits.check((1 << 39) - mib2, 2 * mib2).is_err());
        assert!(limits.check(u64::MAX - 4095, 8192).is_err());
        assert!(limits.check(1 << 32, 0).is_err());
        assert!(limits.check(4096 + 512, 4096).is_err());
    }

    #[test]
    fn without_ranges_only_the_page_counts() {
        let limits = IovaLimits::new(None, 0);
        assert!(limits.check(1 << 50, 4096).is_ok());
        assert!(limits.check(1 << 50, 100).is_err());
        let limits = IovaLimits::new(Some(Vec::new()), 65536);
        assert!(limits.check(0, 65536).is_err());
    }
}

//! Ranges of bytes.

use std::ops::Range;

/// The units of so many bytes that have any byte of a range, as bytes.
pub(super) fn outward(range: &Range<u64>, unit: u64) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(unit);
    range.start - range.start % unit..end.unwrap_or(u64::MAX)
}

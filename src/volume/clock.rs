//! The time of changes.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::xfs::format::inode::InodeTimestamp;

/// The time of a change.
pub(super) fn now() -> InodeTimestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default();
    InodeTimestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: since.subsec_nanos(),
    }
}

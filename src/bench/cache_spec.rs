//! The page cache of xtent's side of a comparison.

use xtent::volume::MountOptions;

/// The page cache of xtent's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheSpec {
    pub(crate) bytes: usize,
    /// The share of it that may be dirty.
    pub(crate) dirty_percent: u8,
}

/// The options to open a volume with such a cache, or without one.
pub(super) fn mount_options(cache: Option<CacheSpec>) -> MountOptions {
    match cache {
        Some(cache) => MountOptions::new()
            .cache_bytes(cache.bytes)
            .cache_dirty_percent(cache.dirty_percent),
        None => MountOptions::new(),
    }
}

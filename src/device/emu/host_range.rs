//! Ranges of host memory as commands name them.

use crate::units::Iova;

/// A contiguous range of device addresses that a command named. Nothing is known of it yet: an
/// access goes through [`crate::mem::DmaSpace`], which refuses what is not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostRange {
    pub(super) iova: Iova,
    pub(super) len_bytes: u32,
}

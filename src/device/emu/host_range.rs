//! Ranges of host memory as commands name them.

use crate::units::Iova;

/// A contiguous range of device addresses that a command named. It is not validated: an access goes
/// through [`crate::mem::DmaSpace`], which refuses unmapped addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostRange {
    pub(super) iova: Iova,
    pub(super) len_bytes: u32,
}

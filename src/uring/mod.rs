//! The kernel's block layer as an engine: [`Queue`](crate::block::Queue) over io_uring, with direct
//! I/O and registered memory.
//!
//! Layer 3, beside [`crate::nvme`]. For a disk that stays with the kernel's driver, for files, and
//! as the kernel's side of comparisons of engines. The kernel looks after deadlines, retries and
//! resets itself; what it gives up comes back as an error of the operation.
#![forbid(unsafe_code)]

mod medium;
mod queue;
#[cfg(test)]
mod tests;

pub use medium::{DiskInfo, UringDisk};
pub use queue::{RingOptions, RingQueue};

//! A target: the device below a filesystem. What it is, who owns it, and how it is driven.
//!
//! Layer 6. A [`Target`] is a namespace of an NVMe controller (PCI, vfio-user, SPDK, or the
//! controller embedded in this process over an image file or memory), or a block device through
//! io_uring. It needs no filesystem; [`Volume::on`](crate::volume::Volume::on) mounts one on it.
//!
//! ```
//! use xtent::target::{Target, TargetOptions};
//! # fn main() -> xtent::Result<()> {
//! let target = Target::open("ram:64M", &TargetOptions::new())?;
//! println!("{}: {} bytes", target.info().model, target.info().capacity_bytes);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub(crate) mod claims;
pub(crate) mod drive;
pub(crate) mod engine;
mod image;
mod info;
pub(crate) mod open;
mod options;
mod part;
pub(crate) mod raw;
pub(crate) mod shared;
mod sigbus;
mod spdk;
#[cfg(feature = "spdk")]
mod spdk_info;
pub(crate) mod spec;
mod uring;

pub use crate::block::Wait;
pub use crate::mem::HugePages;
pub use crate::nvme::Event;
pub use crate::sys::handle_sigbus;
pub use info::TargetInfo;
pub use options::{ControllerMode, TargetOptions};
pub use shared::Target;
pub use sigbus::leave_sigbus_to_program;
pub(crate) use spec::{TargetKind, TargetSpec};

/// Alignment of DMA buffers in bytes: whole PRP entries, and at least any device's block.
pub(crate) const BUFFER_ALIGN_BYTES: usize = 4096;

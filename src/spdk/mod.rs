//! SPDK's NVMe driver as an engine: PCIe, NVMe over TCP and RDMA, and vfio-user.
//!
//! Layer 3, an unsafe island, and without the cargo feature `spdk` only the names of targets
//! ([`TransportId`]). With it: `SpdkController::open` attaches a controller,
//! `SpdkController::queue` makes one `SpdkQueue` for each thread, which is a
//! [`crate::block::Queue`] over one SPDK queue pair.
//!
//! Ownership: a queue pair belongs to the thread that has its `SpdkQueue`, and everything of the
//! controller to the controller's keeper, a thread that polls the admin queue (keep-alive, events),
//! resets and reconnects. For a reset the keeper needs the queue pairs as well; `gate.rs` describes
//! how it gets them without a lock in the hot path.
#![cfg_attr(
    feature = "spdk",
    expect(
        unsafe_code,
        reason = "SPDK is a C library: its functions are called here"
    )
)]

#[cfg(feature = "spdk")]
mod attach;
#[cfg(feature = "spdk")]
mod calls;
#[cfg(feature = "spdk")]
mod controller;
#[cfg(feature = "spdk")]
mod core;
#[cfg(feature = "spdk")]
mod describe;
#[cfg(feature = "spdk")]
mod discover;
#[cfg(feature = "spdk")]
mod env;
#[cfg(feature = "spdk")]
mod gate;
#[cfg(feature = "spdk")]
mod keeper;
#[cfg(feature = "spdk")]
mod memory;
#[cfg(feature = "spdk")]
mod options;
#[cfg(feature = "spdk")]
mod queue;
#[cfg(feature = "spdk")]
mod shared;
#[cfg(feature = "spdk")]
mod slots;
mod transport;

#[cfg(feature = "spdk")]
pub use controller::{SpdkController, SpdkStats};
#[cfg(feature = "spdk")]
pub use describe::SpdkControllerInfo;
#[cfg(feature = "spdk")]
pub use discover::{DiscoveryEntry, discover};
#[cfg(feature = "spdk")]
pub use env::{EnvironmentOptions, HugePageUse, SpdkEnvironment};
#[cfg(feature = "spdk")]
pub use options::{SpdkControllerOptions, SpdkQueueOptions};
#[cfg(feature = "spdk")]
pub use queue::SpdkQueue;
/// The error of `spdk:` targets in a build without SPDK.
#[cfg(not(feature = "spdk"))]
pub fn not_built() -> crate::Error {
    crate::Error::new(
        crate::ErrorKind::Unsupported,
        "this xtent was built without SPDK: install SPDK (https://spdk.io/doc/getting_started.html) and build with \
         `cargo build --release --features spdk`",
    )
}

pub use transport::{AddressFamily, Transport, TransportId};

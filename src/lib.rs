//! **xtent**: a storage stack that bypasses the kernel on the I/O path, but keeps your XFS files.
//!
//! A file range becomes mappings (`iomap`), each mapping one chain of NVMe commands (`block`,
//! `nvme`) on a controller that is reached over `device` from memory of `mem`; underneath is real
//! XFS (`xfs`). The API is [`volume`] and the error type; ARCHITECTURE.md has the design.

mod block;
#[cfg(not(loom))]
mod cache;
// Under loom only what it checks is compiled: the cache's index and flusher wakeup, and the pages
// beneath (`mem::pages`); and nothing that uses the cache.
#[cfg(loom)]
#[expect(dead_code, reason = "its users are not compiled")]
mod cache {
    mod alarm;
    mod index;
    #[cfg(test)]
    mod loom_tests;
}
mod device;
mod error;
mod iomap;
mod mem;
mod nvme;
mod spdk;
mod sys;
mod units;
mod uring;
#[cfg(not(loom))]
pub mod volume;
mod xfs;

pub use error::{Error, ErrorKind, Result};

/// The modules below `volume`, for the project's own command, tests, benches and fuzz targets.
///
/// Not part of the API: anything here may change in any release, and its functions rely on
/// callers that keep the contracts between the layers.
#[doc(hidden)]
pub mod internals {
    /// Re-exports one module of the crate.
    macro_rules! export {
        ($($name:ident)*) => {
            $(
                #[allow(missing_docs, reason = "documented at the module itself")]
                pub mod $name {
                    pub use crate::$name::*;
                }
            )*
        };
    }
    #[cfg(not(loom))]
    export!(cache);
    export!(block device iomap mem nvme spdk sys units uring xfs);
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

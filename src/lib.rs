//! **xtent**: a storage stack that takes the kernel out of the hot path and keeps the files.
//!
//! A file range becomes mappings ([`iomap`]), each mapping one chain of NVMe commands ([`block`],
//! [`nvme`]), on a controller that is reached over [`device`] from memory of [`mem`]; underneath is real
//! XFS ([`xfs`]). Programs start at [`volume`]. ARCHITECTURE.md draws the house.

pub mod block;
#[cfg(not(loom))]
pub mod cache;
// Under loom only what it checks is compiled: of the cache its index and what wakes who writes back, and the pages beneath
// (`mem::pages`); and nothing that uses the cache.
#[cfg(loom)]
#[expect(dead_code, reason = "what uses them is not compiled")]
mod cache {
    mod alarm;
    mod index;
    #[cfg(test)]
    mod loom_tests;
}
pub mod device;
pub mod error;
pub mod iomap;
pub mod mem;
pub mod nvme;
pub mod spdk;
pub mod sys;
pub mod units;
pub mod uring;
#[cfg(not(loom))]
pub mod volume;
pub mod xfs;

pub use error::{Error, ErrorKind, Result};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

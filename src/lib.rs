//! **xtent**: a storage stack that takes the kernel out of the hot path and keeps the files.
//!
//! A file range becomes mappings ([`iomap`]), each mapping one chain of NVMe commands ([`block`],
//! [`nvme`]), on a controller that is reached over [`device`] from memory of [`mem`]; underneath is real
//! XFS ([`xfs`]). Programs start at [`volume`]. ARCHITECTURE.md draws the house.

pub mod block;
// Under loom only what it checks is compiled, the pages beneath (`mem::pages`), and nothing that uses the cache.
#[cfg(not(loom))]
pub mod cache;
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

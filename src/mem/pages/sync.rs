//! The atomics of the page table and of the cache over it: those of std, or loom's under its model checker.

#[cfg(loom)]
pub(crate) use loom::sync::atomic;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic;

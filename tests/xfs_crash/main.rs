//! Losses of power: every border between two commands of a workload, with any of the writes that
//! were not flushed, whole or in part. Everything promised is there after a replay, and no change
//! is there in part.
//!
//! `XTENT_RUNS` disks of each test from `XTENT_SEED`, with `XTENT_OPS` operations of each thread
//! and `XTENT_IMAGES` images for each command; `XTENT_KERNEL` images of each disk are replayed by
//! the kernel as well. A failure prints the seed.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

#[path = "../common/mod.rs"]
mod common;

mod attributes;
mod between;
mod space;

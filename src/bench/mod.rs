//! Load on a file, and what came of it: workloads in fio's words, engines, histograms, reports.
//!
//! Layer 7. One [`runner`] drives every [`Engine`], so that two engines are measured by the same
//! clock, in the same loop, at the same offsets: xtent's own ([`xtent_engine`],
//! [`buffered_engine`]) and the kernel's ([`kernel`]).
#![forbid(unsafe_code)]

pub(crate) mod budget;
pub(crate) mod buffered_engine;
mod cache_spec;
pub(crate) mod calendar;
pub(crate) mod cgroup;
pub(crate) mod chart;
pub(crate) mod compare;
mod compare_checks;
pub(crate) mod compare_plan;
pub(crate) mod compare_run;
pub(crate) mod compare_workloads;
pub(crate) mod disk;
pub(crate) mod engine_name;
pub(crate) mod engines;
pub(crate) mod environment;
mod figures;
pub(crate) mod fio_json;
pub(crate) mod handover;
pub(crate) mod hist;
pub(crate) mod hist_log;
pub(crate) mod image;
mod job;
pub(crate) mod kernel;
pub(crate) mod latency;
pub(crate) mod layout;
pub(crate) mod medium;
mod mix;
pub(crate) mod nvme_sysfs;
pub(crate) mod outcome;
pub(crate) mod page;
pub(crate) mod pattern;
pub(crate) mod plat;
pub(crate) mod progress;
pub(crate) mod raw_engine;
pub(crate) mod report;
pub(crate) mod rounds;
pub(crate) mod runner;
pub(crate) mod terminal;
pub(crate) mod timeline;
pub(crate) mod usage;
pub(crate) mod workload;
pub(crate) mod xtent_engine;

use xtent::internals::sys::{ProcessLimit, interrupted, limit_error};
use xtent::{Error, ErrorKind, Result};

/// The direction of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LoadOp {
    Read,
    Write,
}

/// What a sync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncKind {
    /// As fdatasync(2).
    Data,
    /// As fsync(2).
    All,
}

/// Zeroes of ordinary memory; an error that names the limit where it cannot be had.
pub(crate) fn zeroed<T: Default + Clone>(count: usize) -> Result<Vec<T>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(count).map_err(|_| {
        let bytes = count.saturating_mul(size_of::<T>());
        let out_of_memory = std::io::Error::from_raw_os_error(libc::ENOMEM);
        let what = format!("cannot allocate {bytes} bytes");
        limit_error(what, out_of_memory, ProcessLimit::Addresses)
    })?;
    memory.resize(count, T::default());
    Ok(memory)
}

/// The error when the user interrupted.
pub(crate) fn check_interrupted() -> Result<()> {
    match interrupted() {
        Some(_) => Err(Error::new(ErrorKind::System, "interrupted")),
        None => Ok(()),
    }
}

/// One thread's way to do I/O on the file under load, in slots: each has a buffer of one block.
pub(crate) trait Engine {
    /// The buffer of a slot that is not in flight.
    fn slot_mut(&mut self, slot: usize) -> &mut [u8];

    /// Starts an operation on the whole buffer of a slot that is not in flight.
    fn submit(&mut self, slot: usize, op: LoadOp, offset_bytes: u64) -> Result<()>;

    /// Hands over the operations that have ended: slot, and bytes or error. May wait for one; may
    /// return without any. Called in a loop while something is in flight.
    fn poll(&mut self, done: &mut impl FnMut(usize, Result<usize>)) -> Result<()>;

    /// Makes all that was written durable. Nothing is in flight.
    fn sync(&mut self, kind: SyncKind) -> Result<()>;

    /// Sets the time of modification of the file. Nothing is in flight.
    fn touch(&mut self) -> Result<()>;
}

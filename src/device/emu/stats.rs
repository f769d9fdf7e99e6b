//! What an embedded controller counted.

use std::collections::BTreeMap;

/// Counters of an embedded controller since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmuStats {
    /// Commands fetched, admin and I/O.
    pub commands: u64,
    /// Admin commands among them.
    pub admin_commands: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Commands that named their memory by a scatter-gather list.
    pub sgl_commands: u64,
    /// Bytes read by the host.
    pub read_bytes: u64,
    /// Bytes written by the host.
    pub written_bytes: u64,
    /// Completions posted, the faulty ones included.
    pub completions: u64,
    /// Doorbell values seen; several writes between two looks count once.
    pub doorbell_writes: u64,
    /// Doorbell values that were refused: past the queue's end, or consuming what was never posted.
    pub invalid_doorbells: u64,
    /// Register writes that woke a queue with a shadow doorbell.
    pub wakeups: u64,
    /// Commands that named host memory that is not mapped.
    pub dma_faults: u64,
    /// Controller resets: by CC.EN, NSSR or [`crate::device::Device::stop_dma`].
    pub resets: u64,
    /// Times the power was cut while the host had not shut the controller down.
    pub unsafe_shutdowns: u64,
    /// Abort commands that aborted something.
    pub aborts: u64,
    /// Abort commands that did not.
    pub aborts_refused: u64,
    /// Faults injected, by [`super::Fault::name`].
    pub faults: BTreeMap<&'static str, u64>,
}

impl EmuStats {
    /// Faults injected of one name.
    pub fn fault(&self, name: &str) -> u64 {
        self.faults.get(name).copied().unwrap_or(0)
    }

    /// Faults injected of all kinds.
    pub fn faults_total(&self) -> u64 {
        self.faults.values().sum()
    }
}

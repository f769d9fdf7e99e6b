//! A controller: bring-up, identify, features, reset, shutdown (sections 3.5 and 3.6).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::info::ControllerInfo;
use super::pair::QueuePair;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Heap;

/// How a controller is driven.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// I/O queue pairs to ask for; the controller may grant fewer.
    pub queues: u16,
    /// Deadline of one admin command.
    pub admin_timeout: Duration,
    /// Deadline of an orderly shutdown.
    pub shutdown_timeout: Duration,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            queues: 128,
            admin_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(5),
        }
    }
}

/// How a queue pair is made.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// Chains, and commands, that can be outstanding at once; 1 to 4095. The controller may allow fewer:
    /// see [`crate::block::Limits::depth`].
    pub depth: usize,
    /// Most segments in one chain.
    pub max_segments: usize,
    /// Deadline of one command, after which it is aborted and, if that does not help, the controller reset.
    pub timeout: Duration,
    /// How often one command is sent again, after a reset or an error that may pass.
    pub retries: u8,
    /// Refuse whatever would change the namespace.
    pub read_only: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            depth: 128,
            max_segments: 16,
            timeout: Duration::from_secs(30),
            retries: 4,
            read_only: false,
        }
    }
}

/// What went wrong so far, all queues together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Controller resets.
    pub resets: u64,
    /// Abort commands sent.
    pub aborts: u64,
    /// Commands sent again.
    pub retries: u64,
    /// Completions that belonged to no outstanding command, or named a wrong queue.
    pub stale_completions: u64,
    /// Commands that missed their deadline, admin commands included.
    pub timeouts: u64,
    /// Bytes of rings never given back, because the device could not be kept from using them.
    pub leaked_bytes: u64,
}

/// An NVMe controller, up and running. Shared by the threads that have queues on it.
pub struct Controller {
    info: ControllerInfo,
}

impl Controller {
    /// Brings `device` up: maps `heap` in it, resets and enables it, identifies it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] or [`ErrorKind::DeviceGone`] saying what did not happen,
    /// [`ErrorKind::Unsupported`] or [`ErrorKind::Corrupt`] for a controller that cannot be driven, by name
    /// of the reason.
    pub fn open(
        device: Arc<dyn Device>,
        heap: &Heap,
        options: ControllerOptions,
    ) -> Result<Arc<Self>> {
        let _ = (heap, options);
        Err(
            Error::new(ErrorKind::Unsupported, "the driver is being built")
                .on_device(device.name()),
        )
    }

    /// What the controller says of itself.
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// What went wrong so far.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// A queue pair on a namespace, for one thread.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a namespace that is not there, [`ErrorKind::Unsupported`] for one that
    /// cannot be used, [`ErrorKind::InvalidInput`] for options, [`ErrorKind::OutOfMemory`] when the
    /// controller has no queue left or the heap no memory.
    pub fn queue(self: &Arc<Self>, nsid: u32, options: QueueOptions) -> Result<QueuePair> {
        let _ = (nsid, options);
        Err(Error::new(
            ErrorKind::Unsupported,
            "the driver is being built",
        ))
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("device", &self.info.device)
            .finish_non_exhaustive()
    }
}

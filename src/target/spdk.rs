//! `spdk:` targets: controllers that SPDK drives.

use super::engine::TargetEngine;
use crate::block::Wait;
use crate::error::Result;
use crate::mem::{Heap, HeapConfig};
use crate::spdk::TransportId;

/// Attaches the controller, and makes a heap that it can reach.
#[cfg(feature = "spdk")]
pub(crate) fn open(
    id: &TransportId,
    nsid: Option<u32>,
    config: HeapConfig,
    wait: Wait,
) -> Result<(TargetEngine, Heap)> {
    use crate::error::{Error, ErrorKind};
    use crate::spdk::{SpdkController, SpdkControllerOptions};
    if wait != Wait::Poll {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "SPDK's queues are polled: leave the option `wait` out",
        ));
    }
    let controller = SpdkController::open(id, nsid, SpdkControllerOptions::default())?;
    let heap = Heap::with_source(config, controller.arena_source());
    controller.attach(&heap)?;
    Ok((TargetEngine::Spdk(controller), heap))
}

/// The installation hint for a missing part.
#[cfg(not(feature = "spdk"))]
pub(crate) fn open(
    _: &TransportId,
    _: Option<u32>,
    _: HeapConfig,
    _: Wait,
) -> Result<(TargetEngine, Heap)> {
    Err(crate::spdk::not_built())
}

//! `spdk:` targets: controllers that SPDK drives.

use super::engine::Engine;
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
) -> Result<(Engine, Heap)> {
    use crate::error::{Error, ErrorKind};
    use crate::spdk::{Controller, ControllerOptions};
    if wait != Wait::Poll {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "SPDK's queues are polled: leave the option `wait` out",
        ));
    }
    let controller = Controller::open(id, nsid, ControllerOptions::default())?;
    let heap = Heap::with_source(config, controller.arena_source());
    controller.attach(&heap)?;
    Ok((Engine::Spdk(controller), heap))
}

/// What stands behind it.
#[cfg(feature = "spdk")]
pub(crate) fn info(controller: &crate::spdk::ControllerInfo) -> super::TargetInfo {
    super::TargetInfo {
        target: String::new(),
        engine: format!("SPDK's NVMe driver, on the subsystem {}", controller.subnqn),
        model: controller.model.clone(),
        serial: controller.serial.clone(),
        firmware: controller.firmware.clone(),
        nvme_version: controller.version.clone(),
        nsid: controller.nsid,
        lba_bytes: controller.block_bytes,
        capacity_bytes: controller
            .blocks
            .saturating_mul(controller.block_bytes.into()),
        max_transfer_bytes: Some(controller.max_transfer_bytes),
        boundary_blocks: controller.boundary_blocks,
        volatile_write_cache: controller.volatile_write_cache,
        read_only: controller.read_only,
        max_queue_pairs: controller.queues.into(),
        queue_depth: 0,
        wait: String::new(),
        controller: String::new(),
        memory: String::new(),
    }
}

/// Says how to get what is missing.
#[cfg(not(feature = "spdk"))]
pub(crate) fn open(
    _: &TransportId,
    _: Option<u32>,
    _: HeapConfig,
    _: Wait,
) -> Result<(Engine, Heap)> {
    Err(crate::spdk::not_built())
}

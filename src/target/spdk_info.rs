//! The properties of `spdk:` targets.

use super::TargetInfo;

/// The properties of a target that SPDK drives.
pub(crate) fn info(controller: &crate::spdk::SpdkControllerInfo) -> TargetInfo {
    TargetInfo {
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
        start_bytes: 0,
        partition: None,
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

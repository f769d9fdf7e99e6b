//! Controller registers (section 3.1.3).

/// Controller capabilities, 64 bits.
pub const REG_CAP: u32 = 0x00;
/// Version.
pub const REG_VS: u32 = 0x08;
/// Interrupt mask set.
pub const REG_INTMS: u32 = 0x0c;
/// Interrupt mask clear.
pub const REG_INTMC: u32 = 0x10;
/// Controller configuration.
pub const REG_CC: u32 = 0x14;
/// Controller status.
pub const REG_CSTS: u32 = 0x1c;
/// NVM subsystem reset.
pub const REG_NSSR: u32 = 0x20;
/// Admin queue attributes.
pub const REG_AQA: u32 = 0x24;
/// Admin submission queue base address, 64 bits.
pub const REG_ASQ: u32 = 0x28;
/// Admin completion queue base address, 64 bits.
pub const REG_ACQ: u32 = 0x30;
/// First doorbell.
pub const REG_DOORBELLS: u32 = 0x1000;

/// Controller enable (CC).
pub const CC_EN: u32 = 1;
/// Shutdown notification (CC), two bits: 01b asks for a normal shutdown.
pub const CC_SHN_SHIFT: u32 = 14;
/// Mask of the shutdown notification (CC).
pub const CC_SHN_MASK: u32 = 3 << CC_SHN_SHIFT;
/// I/O submission queue entry size as a power of two (CC).
pub const CC_IOSQES_SHIFT: u32 = 16;
/// I/O completion queue entry size as a power of two (CC).
pub const CC_IOCQES_SHIFT: u32 = 20;
/// Memory page size, `2^(12 + MPS)` (CC).
pub const CC_MPS_SHIFT: u32 = 7;
/// Command set selected (CC).
pub const CC_CSS_SHIFT: u32 = 4;

/// Ready (CSTS).
pub const CSTS_RDY: u32 = 1;
/// Controller fatal status (CSTS).
pub const CSTS_CFS: u32 = 2;
/// Shutdown status (CSTS), two bits: 10b is complete.
pub const CSTS_SHST_SHIFT: u32 = 2;
/// Mask of the shutdown status (CSTS).
pub const CSTS_SHST_MASK: u32 = 3 << CSTS_SHST_SHIFT;
/// Shutdown status: complete.
pub const CSTS_SHST_COMPLETE: u32 = 2 << CSTS_SHST_SHIFT;

/// The controller capabilities register, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Most entries of a queue (MQES is 0's based).
    pub fn max_queue_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// Queues must be physically contiguous.
    pub fn contiguous_queues_required(self) -> bool {
        self.0 >> 16 & 1 == 1
    }

    /// Worst time for CC.EN to show in CSTS.RDY, in milliseconds (TO counts 500 ms).
    pub fn timeout_ms(self) -> u64 {
        (self.0 >> 24 & 0xff) * 500
    }

    /// Bytes between two doorbells.
    pub fn doorbell_stride_bytes(self) -> u32 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// The NVM command set is offered (CSS bit 0).
    pub fn nvm_command_set(self) -> bool {
        self.0 >> 37 & 1 == 1
    }

    /// Smallest memory page in bytes, as a power of two.
    pub fn min_page_shift(self) -> u32 {
        12 + (self.0 >> 48 & 0xf) as u32
    }

    /// Largest memory page in bytes, as a power of two.
    pub fn max_page_shift(self) -> u32 {
        12 + (self.0 >> 52 & 0xf) as u32
    }
}

/// The register offset of a queue's submission tail doorbell (section 3.1.3.24 of the PCIe
/// transport).
pub fn sq_doorbell_offset(queue_id: u16, stride_bytes: u32) -> u32 {
    REG_DOORBELLS + 2 * u32::from(queue_id) * stride_bytes
}

/// The register offset of a queue's completion head doorbell.
pub fn cq_doorbell_offset(queue_id: u16, stride_bytes: u32) -> u32 {
    REG_DOORBELLS + (2 * u32::from(queue_id) + 1) * stride_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_known_controller() {
        // QEMU 7.2's nvme device.
        let cap = Capabilities(0x0040_1820_0f01_07ff);
        assert_eq!(cap.max_queue_entries(), 2048);
        assert!(cap.contiguous_queues_required());
        assert_eq!(cap.timeout_ms(), 7500);
        assert_eq!(cap.doorbell_stride_bytes(), 4);
        assert!(cap.nvm_command_set());
        assert_eq!(cap.min_page_shift(), 12);
        assert_eq!(cap.max_page_shift(), 16);
        assert_eq!(sq_doorbell_offset(1, 4), 0x1008);
        assert_eq!(cq_doorbell_offset(1, 4), 0x100c);
    }
}

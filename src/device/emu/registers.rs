//! The controller's registers as both sides see them (section 3.1.3).
//!
//! They are read without the controller's lock; they are changed under it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::config::EmuConfig;
use crate::nvme::spec::{
    REG_ACQ, REG_AQA, REG_ASQ, REG_CAP, REG_CC, REG_CSTS, REG_INTMC, REG_INTMS, REG_NSSR, REG_VS,
};

/// Version 1.4.
pub(super) const VERSION: u32 = 0x0001_0400;
/// What NSSR must be written with to reset the subsystem ("NVMe").
pub(super) const NSSR_MAGIC: u32 = 0x4e56_4d65;
/// CSTS: a subsystem reset occurred; cleared by writing 1.
pub(super) const CSTS_NSSRO: u32 = 1 << 4;

#[derive(Debug)]
pub(super) struct EmuRegisters {
    cap: u64,
    pub(super) cc: AtomicU32,
    pub(super) csts: AtomicU32,
    pub(super) aqa: AtomicU32,
    pub(super) asq: AtomicU64,
    pub(super) acq: AtomicU64,
    pub(super) interrupt_mask: AtomicU32,
    pub(super) gone: AtomicBool,
}

impl EmuRegisters {
    pub(super) fn new(config: &EmuConfig) -> Self {
        let contiguous = 1 << 16;
        let subsystem_reset = 1 << 36;
        let nvm_command_set = 1 << 37;
        Self {
            cap: u64::from(config.max_queue_entries - 1)
                | contiguous
                | u64::from(config.cap_to) << 24
                | u64::from(config.doorbell_stride_shift) << 32
                | subsystem_reset
                | nvm_command_set,
            cc: AtomicU32::new(0),
            csts: AtomicU32::new(0),
            aqa: AtomicU32::new(0),
            asq: AtomicU64::new(0),
            acq: AtomicU64::new(0),
            interrupt_mask: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    pub(super) fn read64(&self, offset: u32) -> u64 {
        if self.gone.load(Ordering::Acquire) {
            return u64::MAX;
        }
        match offset {
            REG_CAP => self.cap,
            REG_ASQ => self.asq.load(Ordering::Relaxed),
            REG_ACQ => self.acq.load(Ordering::Relaxed),
            _ => {
                let high = u64::from(self.read32(offset.wrapping_add(4)));
                u64::from(self.read32(offset)) | high << 32
            }
        }
    }

    pub(super) fn read32(&self, offset: u32) -> u32 {
        if self.gone.load(Ordering::Acquire) {
            return u32::MAX;
        }
        match offset {
            REG_CAP => low(self.cap),
            0x04 => high(self.cap),
            REG_VS => VERSION,
            REG_INTMS | REG_INTMC => self.interrupt_mask.load(Ordering::Relaxed),
            REG_CC => self.cc.load(Ordering::Relaxed),
            REG_CSTS => self.csts.load(Ordering::Acquire),
            REG_AQA => self.aqa.load(Ordering::Relaxed),
            REG_ASQ => low(self.asq.load(Ordering::Relaxed)),
            0x2c => high(self.asq.load(Ordering::Relaxed)),
            REG_ACQ => low(self.acq.load(Ordering::Relaxed)),
            0x34 => high(self.acq.load(Ordering::Relaxed)),
            // NSSR and reserved registers read as 0; doorbells are write-only.
            REG_NSSR => 0,
            _ => 0,
        }
    }

    pub(super) fn csts(&self) -> u32 {
        self.csts.load(Ordering::Relaxed)
    }

    pub(super) fn set_csts(&self, value: u32) {
        self.csts.store(value, Ordering::Release);
    }

    /// Changes the half of a 64-bit register.
    pub(super) fn write_half(register: &AtomicU64, upper: bool, value: u32) {
        let old = register.load(Ordering::Relaxed);
        let new = if upper {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        // Queues are aligned to pages; the low bits are reserved.
        register.store(new & !0xfff, Ordering::Relaxed);
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

//! The controller's registers: enable, disable, shut down, each with a deadline (sections 3.5 and
//! 3.6).

use std::sync::Arc;
use std::time::Duration;

use super::spec::{
    CC_CSS_SHIFT, CC_EN, CC_IOCQES_SHIFT, CC_IOSQES_SHIFT, CC_MPS_SHIFT, CC_SHN_MASK, CC_SHN_SHIFT,
    CSTS_CFS, CSTS_RDY, CSTS_SHST_COMPLETE, CSTS_SHST_MASK, Capabilities, REG_ACQ, REG_AQA,
    REG_ASQ, REG_CAP, REG_CC, REG_CSTS, REG_VS,
};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Iova;

/// What a read of a device that is gone gives.
pub(super) const ALL_ONES: u32 = u32::MAX;

/// A device and the capabilities that it was opened with.
pub(super) struct Port {
    pub(super) device: Arc<dyn Device>,
    pub(super) cap: Capabilities,
}

impl Port {
    /// Reads and checks the capabilities.
    pub(super) fn new(device: Arc<dyn Device>) -> Result<Self> {
        let raw = device.read64(REG_CAP);
        if raw == u64::MAX {
            return Err(gone());
        }
        let cap = Capabilities(raw);
        let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
        if cap.max_queue_entries() < 2 {
            return unsupported(
                "the controller's queues have less than 2 entries (CAP.MQES)".into(),
            );
        }
        if !cap.nvm_command_set() {
            return unsupported(
                "the controller does not offer the NVM command set (CAP.CSS)".into(),
            );
        }
        if cap.min_page_shift() != 12 {
            return unsupported(format!(
                "the controller's smallest memory page is 2^{} bytes (CAP.MPSMIN); 4096 are supported",
                cap.min_page_shift()
            ));
        }
        Ok(Self { device, cap })
    }

    pub(super) fn version(&self) -> u32 {
        self.device.read32(REG_VS)
    }

    /// Disables the controller and waits until it is; on return it touches host memory no more.
    pub(super) fn disable(&self) -> Result<()> {
        let cc = self.device.read32(REG_CC);
        if cc == ALL_ONES {
            return Err(gone());
        }
        self.device.write32(REG_CC, cc & !(CC_EN | CC_SHN_MASK));
        self.wait_ready(false)
    }

    /// Enables the (disabled) controller with these admin queues and waits until it is ready.
    pub(super) fn enable(&self, asq: Iova, acq: Iova, entries: u32) -> Result<()> {
        let size = entries - 1;
        self.device.write32(REG_AQA, size << 16 | size);
        self.device.write64(REG_ASQ, asq.0);
        self.device.write64(REG_ACQ, acq.0);
        let cc =
            6 << CC_IOSQES_SHIFT | 4 << CC_IOCQES_SHIFT | 0 << CC_MPS_SHIFT | 0 << CC_CSS_SHIFT;
        self.device.write32(REG_CC, cc | CC_EN);
        self.wait_ready(true)
    }

    fn wait_ready(&self, want: bool) -> Result<()> {
        // CAP.TO of 0 says nothing; half a second is its unit.
        let timeout_ms = self.cap.timeout_ms().max(500);
        let deadline = Deadline::after(&*self.device, Duration::from_millis(timeout_ms));
        let mut silent = 0u32;
        loop {
            let late = deadline.passed(&*self.device);
            let csts = self.device.read32(REG_CSTS);
            if csts == ALL_ONES {
                return Err(gone());
            }
            if (csts & CSTS_RDY != 0) == want {
                return Ok(());
            }
            if want && csts & CSTS_CFS != 0 {
                return Err(Error::new(
                    ErrorKind::DeviceGone,
                    "the controller reported a fatal error (CSTS.CFS) while it was being enabled",
                ));
            }
            if want && self.device.read32(REG_CC) & CC_EN == 0 {
                return Err(Error::new(
                    ErrorKind::Io,
                    "something else disabled or reset the controller while it was being enabled",
                ));
            }
            if late {
                let (action, flag) = if want {
                    ("enabled", 1)
                } else {
                    ("disabled", 0)
                };
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "the controller was {action}, but CSTS.RDY did not become {flag} within its \
                         {timeout_ms} ms (CAP.TO); CSTS is {csts:#x}"
                    ),
                ));
            }
            self.device.relax(silent, 0);
            silent = silent.wrapping_add(1);
        }
    }

    /// Asks for a normal shutdown and waits until it is complete (section 3.6.1).
    pub(super) fn shut_down(&self, timeout: Duration) -> Result<()> {
        let csts = self.device.read32(REG_CSTS);
        if csts == ALL_ONES {
            return Err(gone());
        }
        if csts & CSTS_RDY == 0 || csts & CSTS_CFS != 0 {
            return Ok(());
        }
        let cc = self.device.read32(REG_CC);
        self.device
            .write32(REG_CC, cc & !CC_SHN_MASK | 1 << CC_SHN_SHIFT);
        let deadline = Deadline::after(&*self.device, timeout);
        let mut silent = 0u32;
        loop {
            let late = deadline.passed(&*self.device);
            let csts = self.device.read32(REG_CSTS);
            if csts == ALL_ONES {
                return Err(gone());
            }
            if csts & CSTS_SHST_MASK == CSTS_SHST_COMPLETE {
                return Ok(());
            }
            if late {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "the controller did not finish its shutdown within {} ms; CSTS is {csts:#x}",
                        timeout.as_millis()
                    ),
                ));
            }
            self.device.relax(silent, 0);
            silent = silent.wrapping_add(1);
        }
    }
}

/// A time on the device's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(u64);

impl Deadline {
    pub(super) fn after(device: &dyn Device, timeout: Duration) -> Self {
        Self(device.now_ns().saturating_add(nanoseconds(timeout)))
    }

    pub(super) fn passed(self, device: &dyn Device) -> bool {
        device.now_ns() >= self.0
    }
}

/// A duration as nanoseconds; five centuries where it is longer.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn gone() -> Error {
    Error::new(
        ErrorKind::DeviceGone,
        "the device is gone: its registers read as all ones",
    )
}

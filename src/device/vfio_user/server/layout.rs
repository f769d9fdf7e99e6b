//! Where things lie in BAR 0: registers, a page or more of doorbells, the table of MSI-X, its
//! pending bits.

use super::config_space::{ConfigSpace, Msix};
use crate::device::Device;
use crate::device::emu::{EmuConfig, EmuDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::DoorbellArray;
use crate::nvme::spec::REG_DOORBELLS;

/// Bytes of an entry of the MSI-X table.
pub(super) const MSIX_ENTRY_BYTES: u32 = 16;
/// The most that doorbells may take.
const MOST_DOORBELL_BYTES: u32 = 1 << 20;

/// Offsets and lengths in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RegionLayout {
    pub(super) doorbell_bytes: u32,
    pub(super) msix: u32,
    pending: u32,
    pub(super) bar0_bytes: u32,
    pub(super) vectors: u16,
}

impl RegionLayout {
    /// Sees that a controller has room.
    pub(super) fn check(config: &EmuConfig) -> Result<()> {
        let shift = config.doorbell_stride_shift.min(10);
        let words = (2 * (u64::from(config.max_io_queues) + 1)) << shift;
        if Self::with(words, 0).is_some() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            "the doorbells of so many queues, so far apart, have no room in a BAR",
        ))
    }

    pub(super) fn of_device(device: &EmuDevice, doorbells: &DoorbellArray) -> Option<Self> {
        let words = u64::try_from(doorbells.len()).ok()?;
        Self::with(words, device.interrupt_vectors())
    }

    fn with(words: u64, vectors: u16) -> Option<Self> {
        let bytes = words.checked_mul(4)?.checked_next_multiple_of(4096)?;
        let doorbell_bytes = u32::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes <= MOST_DOORBELL_BYTES)?;
        let msix = REG_DOORBELLS + doorbell_bytes;
        let table = u32::from(vectors) * MSIX_ENTRY_BYTES;
        let pending = msix + table.next_multiple_of(4096).max(4096);
        Some(Self {
            doorbell_bytes,
            msix,
            pending,
            bar0_bytes: (pending + 4096).next_power_of_two(),
            vectors,
        })
    }

    pub(super) fn config_space(&self) -> ConfigSpace {
        let msix = (self.vectors > 0).then_some(Msix {
            vectors: self.vectors,
            table: self.msix,
            pending: self.pending,
        });
        ConfigSpace::new(self.bar0_bytes, msix)
    }
}

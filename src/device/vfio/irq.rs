//! Interrupts: MSI-X vectors as event counters.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX;

use super::uapi;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::EventFd;

/// The MSI-X vectors of a device: none is on until the first is asked for.
#[derive(Debug)]
pub(super) struct VfioVectors {
    /// How many the device has and the options allow.
    count: u16,
    /// Empty while MSI-X is off.
    events: Vec<Option<Arc<EventFd>>>,
}

impl VfioVectors {
    pub(super) fn new(device: &File, most: u16) -> Self {
        let has = uapi::irq_count(device, VFIO_PCI_MSIX_IRQ_INDEX).unwrap_or(0);
        Self {
            count: u16::try_from(has).unwrap_or(u16::MAX).min(most),
            events: Vec::new(),
        }
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// The counter that `vector` raises, connected at the first call.
    pub(super) fn get(&mut self, device: &File, vector: u16) -> Result<Arc<EventFd>> {
        if self.events.is_empty() {
            self.switch_on(device)?;
        }
        let count = self.count;
        let Some(slot) = self.events.get_mut(usize::from(vector)) else {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("there is no interrupt vector {vector}: there are {count}"),
            ));
        };
        if let Some(event) = slot {
            return Ok(Arc::clone(event));
        }
        let event = EventFd::new().map_err(|e| Error::system("cannot make an eventfd", e))?;
        let events = [Some(event.as_fd())];
        uapi::set_irqs(device, VFIO_PCI_MSIX_IRQ_INDEX, u32::from(vector), &events)
            .map_err(|e| Error::system(format!("cannot connect interrupt vector {vector}"), e))?;
        let event = Arc::new(event);
        *slot = Some(Arc::clone(&event));
        Ok(event)
    }

    /// Wakes all sleeping threads: a removed device raises no interrupt.
    fn raise_all(&self) {
        for event in self.events.iter().flatten() {
            event.raise();
        }
    }

    /// All vectors at once, connected to nothing yet: older kernels cannot add any later.
    fn switch_on(&mut self, device: &File) -> Result<()> {
        while self.count > 0 {
            let none = vec![None; usize::from(self.count)];
            let fewer = uapi::set_irqs(device, VFIO_PCI_MSIX_IRQ_INDEX, 0, &none)
                .map_err(|e| Error::system("cannot switch MSI-X on", e))?;
            match fewer.map(|n| u16::try_from(n).unwrap_or(u16::MAX)) {
                None => {
                    self.events = vec![None; usize::from(self.count)];
                    return Ok(());
                }
                Some(fewer) => self.count = fewer.min(self.count - 1),
            }
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "the device has no MSI-X interrupts",
        ))
    }
}

impl Drop for VfioVectors {
    /// The device is given back; what waits for it is to see that.
    fn drop(&mut self) {
        self.raise_all();
    }
}

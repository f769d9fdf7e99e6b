//! PCI NVMe controllers over VFIO: registers by `mmap`, DMA through the IOMMU, interrupts by
//! eventfd.
//!
//! Layer 1, an unsafe island. The interface is that of `linux/vfio.h` and `linux/iommufd.h`; the
//! registers are those of the NVMe over PCIe transport specification 1.0c, section 3.1.
//!
//! A controller can go away at any time: the kernel asks for it back (unplug, unbind), a read of
//! all ones shows that it is absent, or an access faults. From then on the [`VfioDevice`] is
//! *gone*: it reads as all ones and ignores writes, and a late doorbell write does no harm. When
//! the kernel asks, everything is given back at once, so that the removal continues while the
//! program still has the device.
#![expect(
    unsafe_code,
    reason = "device memory and the calls of VFIO are handled here"
)]

mod address;
mod bar;
mod caps;
mod iommu;
mod iova;
mod irq;
mod state;
mod uapi;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

pub use address::PciAddress;
pub(in crate::device) use bar::Bar;
pub(in crate::device) use caps::VfioRegion;

use self::address::{FoundDevice, SYSFS};
use self::state::VfioShared;
use super::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Doorbell, Mapper};
use crate::sys::{EventFd, spawn_small_thread};

/// Which interface of the kernel is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VfioBackend {
    /// The group and its container where the host has them, otherwise iommufd.
    #[default]
    Auto,
    /// The device's group in a container of its own (`/dev/vfio/N`).
    Group,
    /// The device's character device and iommufd (`/dev/vfio/devices/vfioN`, `/dev/iommu`).
    Iommufd,
}

/// How a device is opened.
#[derive(Debug, Clone)]
pub struct VfioOptions {
    /// Which interface of the kernel is used.
    pub backend: VfioBackend,
    /// The most interrupt vectors to take from the host, should any be asked for.
    pub interrupt_vectors: u16,
}

impl Default for VfioOptions {
    fn default() -> Self {
        Self {
            backend: VfioBackend::default(),
            interrupt_vectors: 129,
        }
    }
}

/// An NVMe controller on the PCI bus that this process drives.
///
/// Dropping it gives it back to VFIO, which stops and resets it, whatever it was doing.
pub struct VfioDevice {
    name: String,
    shared: Arc<VfioShared>,
    epoch: Instant,
    /// Wakes the watcher to end.
    stop: Arc<EventFd>,
    watcher: Option<JoinHandle<()>>,
}

impl VfioDevice {
    /// Opens the controller at a PCI address (`0000:01:00.0` or `01:00.0`) that `vfio-pci` has.
    ///
    /// # Errors
    /// The obstacle and the remedy: [`ErrorKind::NotFound`] without such a device,
    /// [`ErrorKind::Busy`] while another driver or process has it or its group,
    /// [`ErrorKind::PermissionDenied`] when the group belongs to another user,
    /// [`ErrorKind::Unsupported`] without an IOMMU, without the vfio modules or for a device that
    /// is not an NVMe controller.
    pub fn open(address: &str, options: &VfioOptions) -> Result<Arc<Self>> {
        let name = format!("pci:{address}");
        Self::open_named(&name, address, options).map_err(|e| e.during("open").on_device(name))
    }

    fn open_named(name: &str, address: &str, options: &VfioOptions) -> Result<Arc<Self>> {
        let found = FoundDevice::look_up(Path::new(SYSFS), address.parse()?)?;
        let shared = Arc::new(VfioShared::open(&found, options)?);
        let stop = EventFd::new().map_err(|e| Error::system("cannot make an eventfd", e))?;
        let mut device = Self {
            name: name.to_owned(),
            shared,
            epoch: Instant::now(),
            stop: Arc::new(stop),
            watcher: None,
        };
        device.watcher = device.watch(&found)?;
        Ok(Arc::new(device))
    }

    /// A thread that sleeps until the kernel asks for the device, and then gives it back.
    fn watch(&self, found: &FoundDevice) -> Result<Option<JoinHandle<()>>> {
        let Some(request) = self.shared.removal_request()? else {
            return Ok(None);
        };
        let shared = Arc::clone(&self.shared);
        let stop = Arc::clone(&self.stop);
        let work = move || {
            loop {
                match EventFd::wait_any([&request, &stop], None) {
                    Ok([_, true]) | Err(_) => return,
                    Ok([true, _]) if shared.release().is_ok() => return,
                    // A signal; or it could not be let go, and the kernel will ask again.
                    Ok(_) => {}
                }
            }
        };
        spawn_small_thread(format!("vfio {}", found.address), 128 << 10, work).map(Some)
    }

    /// Whether the device is gone, for good.
    pub fn is_gone(&self) -> bool {
        self.shared.is_gone()
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        // Should the BAR not be let go, its last doorbell does it.
        let _ = self.shared.release();
    }
}

impl Device for VfioDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn read32(&self, offset: u32) -> u32 {
        self.shared.read32(offset)
    }

    /// Two reads, the low half first: not every controller takes 64-bit accesses.
    fn read64(&self, offset: u32) -> u64 {
        let low = self.shared.read32(offset);
        let high = self.shared.read32(offset.saturating_add(4));
        u64::from(high) << 32 | u64::from(low)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.shared.write32(offset, value);
    }

    /// Two writes, the low half first.
    fn write64(&self, offset: u32, value: u64) {
        let [low, high] =
            [value & 0xffff_ffff, value >> 32].map(|half| half.try_into().unwrap_or(0));
        self.shared.write32(offset, low);
        self.shared.write32(offset.saturating_add(4), high);
    }

    fn doorbell(&self, offset: u32) -> Result<Doorbell> {
        self.shared.bar().doorbell(offset).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("the doorbell at {offset:#x} lies outside of what can be mapped of BAR 0"),
            )
            .on_device(self.name.as_str())
        })
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        Arc::<VfioShared>::clone(&self.shared)
    }

    fn stop_dma(&self) -> Result<()> {
        self.shared
            .stop_dma()
            .map_err(|e| e.during("reset").on_device(self.name.as_str()))
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Nothing: the queue's head is in this processor's cache until the device writes to it, and a
    /// pause would only let the answer lie (140 cycles on a late Intel; under an emulator it leaves
    /// the processor altogether).
    #[inline]
    fn relax(&self, _silent: u32, _outstanding: u32) {}

    fn is_gone(&self) -> bool {
        // The one that the type itself has.
        Self::is_gone(self)
    }

    fn interrupt_vectors(&self) -> u16 {
        self.shared.interrupt_vectors()
    }

    fn interrupt(&self, vector: u16) -> Result<Arc<EventFd>> {
        self.shared
            .interrupt(vector)
            .map_err(|e| e.on_device(self.name.as_str()))
    }
}

impl fmt::Debug for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDevice")
            .field("name", &self.name)
            .field("gone", &self.is_gone())
            .finish_non_exhaustive()
    }
}

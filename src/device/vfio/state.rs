//! What a device's users share: the mapped registers, the open descriptors, the arenas that are
//! mapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};

use super::VfioOptions;
use super::address::FoundDevice;
use super::bar::Bar;
use super::caps::VfioRegion;
use super::iommu::Iommu;
use super::irq::VfioVectors;
use super::uapi::{self, VfioMapping};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Arena, Mapper};
use crate::nvme::spec::{CC_EN, CSTS_RDY, Capabilities, REG_CAP, REG_CC, REG_CSTS};
use crate::sys::EventFd;

/// Offset of the command register in the configuration space.
const PCI_COMMAND: u64 = 4;
/// The device answers to accesses of its BARs.
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
/// The device may access memory.
const PCI_COMMAND_MASTER: u16 = 1 << 2;
/// Revision and class code, in configuration space.
const PCI_CLASS_REVISION: u64 = 0x08;

/// The shared part of a [`super::VfioDevice`]: it is also the mapper that heaps hold.
pub(super) struct VfioShared {
    bar: Arc<Bar>,
    /// Known to be absent. Set once, for good.
    gone: AtomicBool,
    /// It left the bus before it was released. A link that goes down resets the devices behind it
    /// (PCI Express, hot reset), so that it accesses no memory in any case.
    off_the_bus: AtomicBool,
    /// The device may access memory; changed under the lock of `open`.
    master: AtomicBool,
    vectors: u16,
    /// `None` once everything was given back.
    open: Mutex<Option<Open>>,
}

/// The open device. Fields go in this order: closing the device stops it, closing the IOMMU unmaps
/// all memory, and then the memory may go.
struct Open {
    device: File,
    iommu: Iommu,
    arenas: BTreeMap<u64, Arc<Arena>>,
    vectors: VfioVectors,
    config: VfioRegion,
    bar0: VfioRegion,
    can_reset: bool,
}

impl VfioShared {
    pub(super) fn open(found: &FoundDevice, options: &VfioOptions) -> Result<Self> {
        let (iommu, device) = Iommu::open(found, options.backend)?;
        let ask = |what: &str, e| Error::system(format!("VFIO: cannot ask for {what}"), e);
        let flags = uapi::device_flags(&device).map_err(|e| ask("the device's kind", e))?;
        if flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            let detail = "VFIO does not call this a PCI device";
            return Err(Error::new(ErrorKind::Unsupported, detail));
        }
        let region = |index| uapi::region(&device, index).map_err(|e| ask("a region", e));
        let bar0 = region(VFIO_PCI_BAR0_REGION_INDEX)?;
        let config = region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        let bar = Bar::map(&device, &bar0).map_err(|e| Error::system("cannot map BAR 0", e))?;
        let vectors = VfioVectors::new(&device, options.interrupt_vectors);
        let open = Open {
            device,
            iommu,
            arenas: BTreeMap::new(),
            config,
            bar0,
            can_reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            vectors,
        };
        open.set_command(PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER)
            .map_err(|e| Error::system("cannot write the configuration space", e))?;
        Ok(Self {
            bar: Arc::new(bar),
            gone: AtomicBool::new(false),
            off_the_bus: AtomicBool::new(false),
            // Only with CC.EN: a controller that VFIO could not reset may still run a previous
            // owner's queues.
            master: AtomicBool::new(false),
            vectors: open.vectors.count(),
            open: Mutex::new(Some(open)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        // Nothing in here is left half-changed by a panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bar(&self) -> &Arc<Bar> {
        &self.bar
    }

    pub(super) fn is_gone(&self) -> bool {
        if self.bar.vanished() {
            self.gone.store(true, Ordering::Release);
        }
        self.gone.load(Ordering::Acquire)
    }

    pub(super) fn read32(&self, offset: u32) -> u32 {
        if self.is_gone() {
            return u32::MAX;
        }
        let value = self
            .bar
            .read32(offset)
            .or_else(|| self.read_unmapped(offset))
            .unwrap_or(u32::MAX);
        // Few registers may be all ones; the status never is, unless the device is absent.
        let gone = match value {
            u32::MAX => self.bar.read32(REG_CSTS) == Some(u32::MAX),
            // Some host bridges answer zeroes in its place. It was enabled; CC has the sizes of the
            // queues' entries.
            0 if offset == REG_CSTS && self.master.load(Ordering::Acquire) => {
                self.bar.read32(REG_CC) == Some(0) && !self.is_on_the_bus()
            }
            _ => false,
        };
        if gone {
            self.gone.store(true, Ordering::Release);
            return u32::MAX;
        }
        value
    }

    /// Whether the device answers in configuration space.
    #[cold]
    fn is_on_the_bus(&self) -> bool {
        self.lock().as_ref().is_some_and(Open::is_on_the_bus)
    }

    pub(super) fn write32(&self, offset: u32, value: u32) {
        if self.is_gone() {
            return;
        }
        if offset == REG_CC && value & CC_EN != 0 && !self.master.load(Ordering::Acquire) {
            self.let_master();
        }
        if self.bar.write32(offset, value).is_none() {
            self.write_unmapped(offset, value);
        }
    }

    /// Registers that cannot be mapped are reached through the descriptor.
    #[cold]
    fn read_unmapped(&self, offset: u32) -> Option<u32> {
        let open = self.lock();
        let open = open.as_ref()?;
        let bytes = uapi::read_region(&open.device, &open.bar0, u64::from(offset)).ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    #[cold]
    fn write_unmapped(&self, offset: u32, value: u32) {
        if let Some(open) = self.lock().as_ref() {
            // A register that does not take the write shows in what the controller does next.
            let bytes = value.to_le_bytes();
            let _ = uapi::write_region(&open.device, &open.bar0, u64::from(offset), &bytes);
        }
    }

    /// Lets the device access memory. When that fails, the device does not come up, which the
    /// driver sees.
    #[cold]
    fn let_master(&self) {
        if let Some(open) = self.lock().as_ref() {
            let done = open.set_command(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 0);
            self.master.store(done.is_ok(), Ordering::Release);
        }
    }

    /// Cuts the device off from memory: no bus mastering, and a reset that makes it forget its
    /// queues. When that fails, the device is given up altogether.
    pub(super) fn stop_dma(&self) -> Result<()> {
        if self.is_gone() {
            return self.release_unless_absent();
        }
        let stopped = {
            let open = self.lock();
            let Some(open) = open.as_ref() else {
                return Ok(());
            };
            self.master.store(false, Ordering::Release);
            open.set_command(0, PCI_COMMAND_MASTER)
                .and_then(|()| self.reset(open))
        };
        match stopped {
            Ok(()) if !self.is_gone() => Ok(()),
            _ => self.release_unless_absent(),
        }
    }

    /// Releases the device, unless it is off the bus: the kernel may take more than a minute to
    /// release such a device, and no request should wait for that. It is released when the device
    /// is dropped.
    fn release_unless_absent(&self) -> Result<()> {
        loop {
            if self.off_the_bus.load(Ordering::Acquire) {
                return Ok(());
            }
            // The lock's owner may be releasing it, and then checks first whether it is absent.
            let open = match self.open.try_lock() {
                Ok(open) => open,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            if open.as_ref().is_some_and(|open| !open.is_on_the_bus()) {
                self.off_the_bus.store(true, Ordering::Release);
                self.gone.store(true, Ordering::Release);
                return Ok(());
            }
            drop(open);
            return self.release();
        }
    }

    fn reset(&self, open: &Open) -> io::Result<()> {
        if open.can_reset && uapi::reset(&open.device).is_ok() {
            // The reset may have put the command register back to what VFIO remembers of it.
            return open.set_command(PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER);
        }
        self.disable()
    }

    /// The controller's own reset, where the function has none: CC.EN to 0, until CSTS.RDY follows.
    fn disable(&self) -> io::Result<()> {
        let read = |offset| self.bar.read32(offset).unwrap_or(u32::MAX);
        let limit = Capabilities(u64::from(read(REG_CAP))).timeout_ms();
        let deadline = Instant::now() + Duration::from_millis(limit.clamp(500, 127_500));
        self.bar.write32(REG_CC, read(REG_CC) & !CC_EN);
        while read(REG_CSTS) & CSTS_RDY != 0 {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Gives everything back: the kernel stops the device, the IOMMU forgets all memory. The device
    /// is gone afterwards.
    pub(super) fn release(&self) -> Result<()> {
        self.gone.store(true, Ordering::Release);
        let mut slot = self.lock();
        let Some(open) = slot.as_ref() else {
            return Ok(());
        };
        if !open.is_on_the_bus() {
            self.off_the_bus.store(true, Ordering::Release);
        }
        // The mapping keeps the device open as a descriptor does.
        self.bar
            .let_go()
            .map_err(|e| Error::system("cannot unmap BAR 0", e))?;
        drop(slot.take());
        Ok(())
    }

    pub(super) fn interrupt_vectors(&self) -> u16 {
        self.vectors
    }

    pub(super) fn interrupt(&self, vector: u16) -> Result<Arc<EventFd>> {
        let mut open = self.lock();
        let open = open.as_mut().ok_or_else(gone)?;
        open.vectors.get(&open.device, vector)
    }

    /// A counter that the kernel raises when it wants the device back; `None` when it never says.
    pub(super) fn removal_request(&self) -> Result<Option<EventFd>> {
        let open = self.lock();
        let open = open.as_ref().ok_or_else(gone)?;
        if uapi::irq_count(&open.device, VFIO_PCI_REQ_IRQ_INDEX).unwrap_or(0) == 0 {
            return Ok(None);
        }
        let failed = |e| Error::system("cannot ask to be told of the device's removal", e);
        let event = EventFd::new().map_err(failed)?;
        let events = [Some(event.as_fd())];
        uapi::set_irqs(&open.device, VFIO_PCI_REQ_IRQ_INDEX, 0, &events).map_err(failed)?;
        Ok(Some(event))
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::DeviceGone, "the device is gone")
}

impl Open {
    fn is_on_the_bus(&self) -> bool {
        // Not the vendor: VFIO remembers that. When the kernel does not say, nothing is concluded.
        !uapi::read_region(&self.device, &self.config, PCI_CLASS_REVISION)
            .is_ok_and(|class: [u8; 4]| class == [0xff; 4])
    }

    /// Sets and clears bits of the command register, and sees that they are.
    fn set_command(&self, set: u16, clear: u16) -> io::Result<()> {
        let read = || uapi::read_region(&self.device, &self.config, PCI_COMMAND);
        let command = (u16::from_le_bytes(read()?) | set) & !clear;
        let bytes = command.to_le_bytes();
        uapi::write_region(&self.device, &self.config, PCI_COMMAND, &bytes)?;
        // The read also waits for what the device sent to memory before.
        let now = u16::from_le_bytes(read()?);
        if now & (set | clear) == set {
            Ok(())
        } else {
            Err(io::Error::other(
                "the command register does not take the value",
            ))
        }
    }
}

impl Mapper for VfioShared {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut open = self.lock();
        let open = open.as_mut().ok_or_else(gone)?;
        let mapping = VfioMapping {
            base: arena.base(),
            iova: arena.iova().0,
            len_bytes: arena.len_bytes() as u64,
        };
        open.iommu.limits().check(mapping.iova, mapping.len_bytes)?;
        // SAFETY: the arena is memory for DMA, whose bytes are handed out only under the rules of
        // `crate::mem`; it is kept in `arenas` until it is unmapped, or the whole address space is
        // gone.
        unsafe { open.iommu.map(mapping) }?;
        open.arenas.insert(mapping.iova, Arc::clone(arena));
        Ok(())
    }

    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut open = self.lock();
        // Given back: the IOMMU has forgotten all memory of this device.
        let Some(open) = open.as_mut() else {
            return Ok(());
        };
        let iova = arena.iova().0;
        if !open.arenas.contains_key(&iova) {
            return Ok(());
        }
        open.iommu.unmap(iova, arena.len_bytes() as u64)?;
        open.arenas.remove(&iova);
        Ok(())
    }
}

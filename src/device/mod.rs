//! The seam between the driver and a controller: registers, doorbells, DMA.
//!
//! Layer 1. The driver in [`crate::nvme`] is written against [`Device`] and cannot tell hardware
//! from the embedded controller in [`emu`], nor either from one in another process ([`vfio_user`]).
//! Register offsets and meanings are those of the NVMe base specification 2.0c, section 3.1
//! (controller registers). The one unsafe island here is [`vfio`].

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Doorbell, Mapper};
use crate::sys::EventFd;

pub mod emu;
pub mod vfio;
pub mod vfio_user;

/// An NVMe controller as its host reaches it.
///
/// Registers are for bring-up, reset and shutdown; the hot path touches only memory and
/// [`Doorbell`]s.
pub trait Device: Send + Sync {
    /// A name for messages, such as the target it was opened by.
    fn name(&self) -> &str;

    /// Reads a 32-bit register. A device that is gone reads as all ones, as PCI does.
    fn read32(&self, offset: u32) -> u32;

    /// Reads a 64-bit register. A device that is gone reads as all ones.
    fn read64(&self, offset: u32) -> u64;

    /// Writes a 32-bit register. A device that is gone ignores it.
    fn write32(&self, offset: u32, value: u32);

    /// Writes a 64-bit register.
    fn write64(&self, offset: u32, value: u64);

    /// The doorbell register at `offset` (0x1000 and up, according to CAP.DSTRD).
    ///
    /// # Errors
    /// When the device has no such register.
    fn doorbell(&self, offset: u32) -> Result<Doorbell>;

    /// What makes arenas reachable for this device; to be attached to a [`crate::mem::Heap`].
    fn mapper(&self) -> Arc<dyn Mapper>;

    /// Cuts the device off from host memory, whatever state it is in (function-level reset, bus
    /// mastering off). When it returns without error the device touches host memory no more until
    /// it is enabled again by CC.EN.
    ///
    /// # Errors
    /// When even that fails; the memory lent to the device must then never be reused.
    fn stop_dma(&self) -> Result<()>;

    /// Nanoseconds since some fixed point: the clock that deadlines are measured by. Monotonic; a
    /// stepped device has its own, that moves only when it is stepped.
    fn now_ns(&self) -> u64;

    /// Called repeatedly by a thread that waits for this device and is otherwise idle. Hardware
    /// needs nothing (a spin hint); an embedded controller without a thread of its own works here.
    /// `silent`: consecutive rounds without progress, so that a device implemented by a program can
    /// yield the processor to it after a while. `outstanding`: in-flight requests of the queue that
    /// the caller waits for; 0 where it waits for something else.
    fn relax(&self, silent: u32, outstanding: u32);

    /// Work for a caller that polls and never calls [`Device::relax`]: called now and then, while
    /// operations are outstanding. Only a device without a thread of its own has something to do
    /// there.
    fn work_for_pollers(&self) {}

    /// Whether it is a program that runs on another processor, and finds the entries of queues in
    /// its caches.
    fn is_another_processor(&self) -> bool {
        false
    }

    /// Whether the device is known to be gone permanently. Cheap: waiting threads call it
    /// repeatedly.
    fn is_gone(&self) -> bool {
        false
    }

    /// How many interrupt vectors the device has; 0 when it can only be polled.
    fn interrupt_vectors(&self) -> u16 {
        0
    }

    /// The counter that interrupt `vector` raises, for waits that may sleep. Connected at the first
    /// call; the same one afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a device without interrupts, [`ErrorKind::InvalidInput`] for
    /// a vector that it does not have, [`ErrorKind::DeviceGone`].
    fn interrupt(&self, vector: u16) -> Result<Arc<EventFd>> {
        let _ = vector;
        Err(Error::new(
            ErrorKind::Unsupported,
            "this device has no interrupts; it can only be polled",
        )
        .on_device(self.name()))
    }
}

//! Interrupts of a client: event counters that it hands over, one for each vector of MSI-X.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::reply::{Errno, Reply};
use crate::device::Device;
use crate::device::emu::EmuDevice;
use crate::device::vfio_user::wire;
use crate::sys::EventFd;

/// Connects, disconnects or raises interrupts. Masks are the client's own business, as with VFIO.
pub(super) fn set(device: &EmuDevice, payload: &[u8], fds: &[OwnedFd]) -> Result<Reply, Errno> {
    let (asked, data) = wire::split::<wire::IrqSet>(payload).ok_or(libc::EINVAL)?;
    let (start, count) = (asked.start.get(), asked.count.get());
    let vectors = match asked.index.get() {
        wire::IRQ_MSIX => device.interrupt_vectors(),
        index if index < wire::IRQS => 0,
        _ => return Err(libc::EINVAL),
    };
    let end = start.checked_add(count).ok_or(libc::EINVAL)?;
    if end > u32::from(vectors) {
        return Err(libc::EINVAL);
    }
    // Both ends are at most `vectors`.
    let narrow = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let range = narrow(start)..narrow(end);
    let what = asked.flags.get() & !wire::IRQ_ACTION_TRIGGER;
    if what == asked.flags.get() {
        // To mask and unmask is not offered (`IrqInfo::flags`).
        return Err(libc::EINVAL);
    }
    let without = fds.is_empty();
    match what {
        wire::IRQ_DATA_NONE if without && count == 0 => disconnect_all(device),
        wire::IRQ_DATA_NONE if without => range.for_each(|v| device.raise_interrupt(v)),
        wire::IRQ_DATA_BOOL if without && data.len() == range.len() => {
            let asked = range.zip(data).filter(|(_, raise)| **raise != 0);
            asked.for_each(|(vector, _)| device.raise_interrupt(vector));
        }
        wire::IRQ_DATA_EVENTFD if without => range.for_each(|v| device.set_interrupt(v, None)),
        wire::IRQ_DATA_EVENTFD if fds.len() == range.len() => {
            let events = fds
                .iter()
                .map(|fd| EventFd::of_peer(fd.as_fd()))
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL))?;
            for (vector, event) in range.zip(events) {
                device.set_interrupt(vector, Some(Arc::new(event)));
            }
        }
        _ => return Err(libc::EINVAL),
    }
    Ok(Reply::default())
}

fn disconnect_all(device: &EmuDevice) {
    for vector in 0..device.interrupt_vectors() {
        device.set_interrupt(vector, None);
    }
}

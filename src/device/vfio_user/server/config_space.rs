//! The PCI configuration space of a served controller (PCI 3.0, section 6; PCI Express 2.0, section
//! 7).
//!
//! What a host expects of an NVMe function: class, a 64-bit BAR 0, power management, MSI-X and PCI
//! Express capabilities. Only what a host may change changes; nothing here moves the device, whose
//! client reaches it by region and offset, wherever its BAR lies.

/// Bytes of the whole space.
pub(super) const BYTES: usize = 4096;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const POWER: usize = 0x40;
const EXPRESS: usize = 0x50;
const MSIX: usize = 0x90;

/// Device control in the PCI Express capability, and its bit that resets the function.
const DEVICE_CONTROL: usize = EXPRESS + 8;
const INITIATE_RESET: u8 = 0x80;

/// No vendor has assigned an id to this device.
const VENDOR_AND_DEVICE: u32 = 0x0001_0000;

/// The bytes, and which of their bits a host may change.
#[derive(Debug)]
pub(super) struct ConfigSpace {
    bytes: Box<[u8; BYTES]>,
    writable: Box<[u8; BYTES]>,
}

/// Where the tables of MSI-X lie in BAR 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Msix {
    pub(super) vectors: u16,
    pub(super) table: u32,
    pub(super) pending: u32,
}

impl ConfigSpace {
    /// As after power-on. `bar0_bytes` is a power of two.
    pub(super) fn new(bar0_bytes: u32, msix: Option<Msix>) -> Self {
        let mut space = Self {
            bytes: Box::new([0; BYTES]),
            writable: Box::new([0; BYTES]),
        };
        space.set(0, &VENDOR_AND_DEVICE.to_le_bytes());
        space.set(SUBSYSTEM, &VENDOR_AND_DEVICE.to_le_bytes());
        // I/O, memory, master, parity, system errors, no interrupt pin.
        space.allow(COMMAND, &0x0547_u16.to_le_bytes());
        // There is a list of capabilities.
        space.set(STATUS, &[0x10, 0]);
        space.set(CLASS, &[0x02, 0x08, 0x01]);
        space.allow(CACHE_LINE, &[0xff]);
        // Memory of 64-bit addresses.
        space.set(BAR0, &4_u32.to_le_bytes());
        let address = !u64::from(bar0_bytes.wrapping_sub(1));
        space.allow(BAR0, &address.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space.add_capabilities(msix);
        space
    }

    fn add_capabilities(&mut self, msix: Option<Msix>) {
        self.set(CAPABILITIES, &[byte(POWER)]);
        // Version 3; going to D0 resets nothing.
        self.set(POWER, &[0x01, byte(EXPRESS), 0x03, 0, 0x08]);
        self.allow(POWER + 4, &[0x03]);
        let next = msix.map_or(0, |_| byte(MSIX));
        // Version 2, an endpoint; errors by role, and a function-level reset.
        self.set(EXPRESS, &[0x10, next, 0x02, 0]);
        self.set(EXPRESS + 4, &0x1000_8000_u32.to_le_bytes());
        self.allow(DEVICE_CONTROL, &[0xff, 0x7f]);
        // A link of one lane at 2.5 GT/s, up.
        self.set(EXPRESS + 0x0c, &0x11_u32.to_le_bytes());
        self.set(EXPRESS + 0x12, &0x11_u16.to_le_bytes());
        // Completion time-outs can be switched off.
        self.set(EXPRESS + 0x24, &[0x10]);
        let Some(msix) = msix else { return };
        let [low, high] = msix.vectors.wrapping_sub(1).to_le_bytes();
        self.set(MSIX, &[0x11, 0, low, high]);
        // Enable, and mask all.
        self.allow(MSIX + 3, &[0xc0]);
        self.set(MSIX + 4, &msix.table.to_le_bytes());
        self.set(MSIX + 8, &msix.pending.to_le_bytes());
    }

    fn set(&mut self, at: usize, value: &[u8]) {
        if let Some(bytes) = self.bytes.get_mut(at..at + value.len()) {
            bytes.copy_from_slice(value);
        }
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        if let Some(bytes) = self.writable.get_mut(at..at + bits.len()) {
            bytes.copy_from_slice(bits);
        }
    }

    /// The bytes of a range; `None` past the end.
    pub(super) fn read(&self, offset: u64, count: usize) -> Option<&[u8]> {
        let at = usize::try_from(offset).ok()?;
        self.bytes.get(at..at.checked_add(count)?)
    }

    /// Writes what may be written; whether the host asked for a reset of the function. `None` past
    /// the end.
    pub(super) fn write(&mut self, offset: u64, value: &[u8]) -> Option<bool> {
        let at = usize::try_from(offset).ok()?;
        let range = at..at.checked_add(value.len())?;
        let bytes = self.bytes.get_mut(range.clone())?;
        let writable = self.writable.get(range.clone())?;
        for ((byte, bits), value) in bytes.iter_mut().zip(writable).zip(value) {
            *byte = *byte & !bits | value & bits;
        }
        let control = DEVICE_CONTROL + 1;
        let asked = control
            .checked_sub(at)
            .and_then(|i| value.get(i))
            .is_some_and(|value| value & INITIATE_RESET != 0);
        Some(asked)
    }
}

/// An offset below 256.
fn byte(offset: usize) -> u8 {
    u8::try_from(offset).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSIX_AT: Msix = Msix {
        vectors: 64,
        table: 0x2000,
        pending: 0x3000,
    };

    /// Ids of the capabilities, as a host walks them.
    fn walk(space: &ConfigSpace) -> Vec<u8> {
        let mut ids = Vec::new();
        let mut at = space.bytes[CAPABILITIES];
        while at != 0 && ids.len() < 48 {
            ids.push(space.bytes[usize::from(at)]);
            at = space.bytes[usize::from(at) + 1];
        }
        ids
    }

    #[test]
    fn a_host_finds_class_bars_and_capabilities() {
        let mut space = ConfigSpace::new(0x4000, Some(MSIX_AT));
        assert_eq!(space.read(8, 4).unwrap(), [0, 0x02, 0x08, 0x01]);
        assert_eq!(walk(&space), [0x01, 0x10, 0x11]);
        assert_eq!(walk(&ConfigSpace::new(0x4000, None)), [0x01, 0x10]);
        assert_eq!(space.write(0x10, &[0xff; 8]), Some(false));
        let bar = space.read(0x10, 8).unwrap();
        assert_eq!(bar, 0xffff_ffff_ffff_c004_u64.to_le_bytes());
    }

    #[test]
    fn only_what_may_change_changes() {
        let mut space = ConfigSpace::new(0x4000, Some(MSIX_AT));
        let before = space.bytes.clone();
        space.write(0, &[0xff; BYTES]).unwrap();
        assert_eq!(space.bytes[..4], before[..4]);
        assert_eq!(space.bytes[0x100..], before[0x100..]);
        assert_eq!(space.bytes[4..6], [0x47, 0x05]);
        assert_eq!(space.bytes[MSIX + 2..MSIX + 4], [63, 0xc0]);
    }

    #[test]
    fn a_reset_of_the_function_is_heard() {
        let mut space = ConfigSpace::new(0x4000, None);
        assert_eq!(space.write(DEVICE_CONTROL as u64, &[0, 0x80]), Some(true));
        assert_eq!(space.write(DEVICE_CONTROL as u64 + 1, &[0x80]), Some(true));
        assert_eq!(space.write(DEVICE_CONTROL as u64, &[0, 0x7f]), Some(false));
        let control = space.read(DEVICE_CONTROL as u64, 2).unwrap();
        assert_eq!(control, [0, 0x7f]);
    }

    #[test]
    fn nothing_is_outside() {
        let mut space = ConfigSpace::new(0x4000, None);
        assert_eq!(space.write(BYTES as u64 - 1, &[1, 2]), None);
        assert_eq!(space.write(u64::MAX, &[1]), None);
        assert!(space.read(BYTES as u64 - 3, 4).is_none());
        assert!(space.read(u64::MAX, usize::MAX).is_none());
    }
}

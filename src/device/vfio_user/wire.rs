//! vfio-user on the wire: the header, the commands and their structures (vfio-user specification
//! 0.9, "Protocol Specification"; the information structures are those of `linux/vfio.h`).
//!
//! All numbers are in the host's byte order. What comes from a peer is hostile: it is taken apart
//! here, with every length checked, and nothing else of the crate looks at its bytes.

use std::mem::offset_of;

use tinyjson::JsonValue;
use zerocopy::byteorder::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The protocol's version that is spoken here.
pub(super) const MAJOR: u16 = 0;
/// The minor version that is proposed, and the highest that is accepted.
pub(super) const MINOR: u16 = 1;

/// Negotiates version and capabilities; the first message.
pub(super) const VERSION: u16 = 1;
/// Makes memory of the client reachable for the device.
pub(super) const DMA_MAP: u16 = 2;
/// Makes it unreachable.
pub(super) const DMA_UNMAP: u16 = 3;
/// What the device is.
pub(super) const GET_INFO: u16 = 4;
/// What one of its regions is.
pub(super) const GET_REGION_INFO: u16 = 5;
/// What one kind of its interrupts is.
pub(super) const GET_IRQ_INFO: u16 = 7;
/// Connects interrupts.
pub(super) const SET_IRQS: u16 = 8;
/// Reads a region.
pub(super) const REGION_READ: u16 = 9;
/// Writes a region.
pub(super) const REGION_WRITE: u16 = 10;
/// Resets the device.
pub(super) const RESET: u16 = 13;

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 16;

/// The header's type bits.
const FLAGS_TYPE: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
/// Flag of a command without a reply.
const FLAG_NO_REPLY: u32 = 1 << 4;
/// Of a reply: the command failed; the header's last field may say how.
const FLAG_ERROR: u32 = 1 << 5;

/// Before every message.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MessageHeader {
    pub(super) id: U16,
    pub(super) command: U16,
    /// Of the whole message, this header included.
    pub(super) size_bytes: U32,
    pub(super) flags: U32,
    /// A UNIX errno, in a reply with an error.
    pub(super) error: U32,
}
const _: () =
    assert!(size_of::<MessageHeader>() == HEADER_BYTES && offset_of!(MessageHeader, flags) == 8);

impl MessageHeader {
    pub(super) fn command(id: u16, command: u16, payload_bytes: u32) -> Self {
        Self::new(id, command, payload_bytes, TYPE_COMMAND, 0)
    }

    pub(super) fn reply(id: u16, command: u16, payload_bytes: u32) -> Self {
        Self::new(id, command, payload_bytes, TYPE_REPLY, 0)
    }

    pub(super) fn error_reply(id: u16, command: u16, errno: u32) -> Self {
        Self::new(id, command, 0, TYPE_REPLY | FLAG_ERROR, errno)
    }

    fn new(id: u16, command: u16, payload_bytes: u32, flags: u32, error: u32) -> Self {
        Self {
            id: U16::new(id),
            command: U16::new(command),
            size_bytes: U32::new(payload_bytes.saturating_add(16)),
            flags: U32::new(flags),
            error: U32::new(error),
        }
    }

    pub(super) fn is_command(&self) -> bool {
        self.flags.get() & FLAGS_TYPE == TYPE_COMMAND
    }

    pub(super) fn is_reply(&self) -> bool {
        self.flags.get() & FLAGS_TYPE == TYPE_REPLY
    }

    pub(super) fn wants_no_reply(&self) -> bool {
        self.flags.get() & FLAG_NO_REPLY != 0
    }

    /// The error of a reply, if it has one: a UNIX errno, 0 when it does not say.
    pub(super) fn failure(&self) -> Option<u32> {
        (self.flags.get() & FLAG_ERROR != 0).then(|| self.error.get())
    }

    /// Bytes behind the header; `None` for a size that cannot be, or more than `limit_bytes`.
    pub(super) fn payload_bytes(&self, limit_bytes: usize) -> Option<usize> {
        let size = usize::try_from(self.size_bytes.get()).ok()?;
        size.checked_sub(HEADER_BYTES).filter(|n| *n <= limit_bytes)
    }
}

/// `VFIO_USER_VERSION`; the capabilities follow as text.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VersionMessage {
    pub(super) major: U16,
    pub(super) minor: U16,
}
const _: () = assert!(size_of::<VersionMessage>() == 4);

/// `VFIO_USER_DMA_MAP`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DmaMap {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    /// In the file that comes along.
    pub(super) offset_bytes: U64,
    pub(super) address: U64,
    pub(super) len_bytes: U64,
}
const _: () = assert!(size_of::<DmaMap>() == 32 && offset_of!(DmaMap, address) == 16);

/// [`DmaMap::flags`]: the device may read and write.
pub(super) const DMA_READ_WRITE: u32 = 3;

/// `VFIO_USER_DMA_UNMAP`, and its reply.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DmaUnmap {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) address: U64,
    pub(super) len_bytes: U64,
}
const _: () = assert!(size_of::<DmaUnmap>() == 24 && offset_of!(DmaUnmap, address) == 8);

/// [`DmaUnmap::flags`]: everything at once; address and length are 0.
pub(super) const UNMAP_ALL: u32 = 1 << 1;

/// `VFIO_USER_DEVICE_GET_INFO`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) regions: U32,
    pub(super) irqs: U32,
}
const _: () = assert!(size_of::<DeviceInfo>() == 16);

/// [`DeviceInfo::flags`]: there is a reset.
pub(super) const DEVICE_RESET: u32 = 1;
/// [`DeviceInfo::flags`]: a PCI device.
pub(super) const DEVICE_PCI: u32 = 1 << 1;

/// `VFIO_USER_DEVICE_GET_REGION_INFO`; capabilities follow.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RegionInfo {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) index: U32,
    pub(super) cap_offset: U32,
    pub(super) len_bytes: U64,
    pub(super) offset_bytes: U64,
}
const _: () = assert!(size_of::<RegionInfo>() == 32 && offset_of!(RegionInfo, len_bytes) == 16);

/// [`RegionInfo::flags`]: it can be read and written by message.
pub(super) const REGION_READ_WRITE: u32 = 3;
/// [`RegionInfo::flags`]: (parts of) it can be mapped.
pub(super) const REGION_MMAP: u32 = 1 << 2;
/// [`RegionInfo::flags`]: there are capabilities.
pub(super) const REGION_CAPS: u32 = 1 << 3;

/// The capability of [`RegionInfo`] that names the one part that can be mapped.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SparseArea {
    pub(super) id: U16,
    pub(super) version: U16,
    pub(super) next: U32,
    pub(super) areas: U32,
    pub(super) reserved: U32,
    pub(super) offset_bytes: U64,
    pub(super) len_bytes: U64,
}
const _: () = assert!(size_of::<SparseArea>() == 32 && offset_of!(SparseArea, offset_bytes) == 16);

/// [`SparseArea::id`].
pub(super) const CAP_SPARSE_MMAP: u16 = 1;

/// `VFIO_USER_DEVICE_GET_IRQ_INFO`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct IrqInfo {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) index: U32,
    pub(super) count: U32,
}
const _: () = assert!(size_of::<IrqInfo>() == 16);

/// [`IrqInfo::flags`]: event counters can be connected.
pub(super) const IRQ_EVENTFD: u32 = 1;

/// `VFIO_USER_DEVICE_SET_IRQS`; data may follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct IrqSet {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) index: U32,
    pub(super) start: U32,
    pub(super) count: U32,
}
const _: () = assert!(size_of::<IrqSet>() == 20);

/// [`IrqSet::flags`]: no data; a byte for each interrupt; event counters come along. What to do is
/// to trigger.
pub(super) const IRQ_DATA_NONE: u32 = 1;
pub(super) const IRQ_DATA_BOOL: u32 = 1 << 1;
pub(super) const IRQ_DATA_EVENTFD: u32 = 1 << 2;
pub(super) const IRQ_ACTION_TRIGGER: u32 = 1 << 5;

/// `VFIO_USER_REGION_READ` and `_WRITE`, and their replies; data follows.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RegionAccess {
    pub(super) offset_bytes: U64,
    pub(super) region: U32,
    pub(super) count_bytes: U32,
}
const _: () = assert!(size_of::<RegionAccess>() == 16);

/// Indices of a PCI device's regions and interrupts.
pub(super) const REGION_BAR0: u32 = 0;
pub(super) const REGION_CONFIG: u32 = 7;
pub(super) const REGIONS: u32 = 9;
pub(super) const IRQ_MSIX: u32 = 2;
pub(super) const IRQS: u32 = 5;

/// The structure at the start of a payload, and what follows it.
pub(super) fn split<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    payload: &[u8],
) -> Option<(&T, &[u8])> {
    T::ref_from_prefix(payload).ok()
}

/// What a peer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerCapabilities {
    /// Descriptors that it takes with one message.
    pub(super) max_msg_fds: u64,
    /// Bytes that it takes or gives with one access of a region.
    pub(super) max_data_xfer_size: u64,
    /// Mappings of memory that it keeps at a time.
    pub(super) max_dma_maps: u64,
}

impl Default for PeerCapabilities {
    /// What holds for a peer that says nothing.
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
            max_dma_maps: 65_535,
        }
    }
}

/// The longest text of capabilities that is looked at.
const CAPABILITIES_BYTES: usize = 4096;
/// Most brackets and braces in them.
const CAPABILITIES_BRACKETS: usize = 64;

impl PeerCapabilities {
    /// Parses the text behind [`VersionMessage`], which may be missing. Unknown capabilities are
    /// ignored (a server with migration announces it to every client).
    ///
    /// # Errors
    /// A description of the fault.
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let mut found = Self::default();
        if text.is_empty() {
            return Ok(found);
        }
        let Some((0, text)) = text.split_last().map(|(last, rest)| (*last, rest)) else {
            return Err("the capabilities do not end with a zero byte");
        };
        if text.len() > CAPABILITIES_BYTES {
            return Err("the capabilities are longer than 4096 bytes");
        }
        // The parser recurses.
        if text.iter().filter(|byte| b"[{".contains(byte)).count() > CAPABILITIES_BRACKETS {
            return Err("the capabilities have too many parts");
        }
        let text = std::str::from_utf8(text).map_err(|_| "the capabilities are not UTF-8")?;
        let json: JsonValue = text.parse().map_err(|_| "the capabilities are not JSON")?;
        let JsonValue::Object(top) = json else {
            return Err("the capabilities are not a JSON object");
        };
        let capabilities = match top.get("capabilities") {
            None => return Ok(found),
            Some(JsonValue::Object(capabilities)) => capabilities,
            Some(_) => return Err("`capabilities` is not a JSON object"),
        };
        for (name, value, least) in [
            ("max_msg_fds", &mut found.max_msg_fds, 1),
            ("max_data_xfer_size", &mut found.max_data_xfer_size, 8),
            ("max_dma_maps", &mut found.max_dma_maps, 1),
        ] {
            if let Some(said) = capabilities.get(name) {
                *value = said
                    .get::<f64>()
                    .and_then(|&number| whole(number))
                    .filter(|n| (least..=1 << 40).contains(n))
                    .ok_or("a capability is not a number, or makes no sense")?;
            }
        }
        Ok(found)
    }

    /// The text to send, with its zero byte.
    pub(super) fn text(&self) -> Vec<u8> {
        let text = format!(
            "{{\"capabilities\":{{\"max_msg_fds\":{},\"max_data_xfer_size\":{},\"max_dma_maps\":{}}}}}\0",
            self.max_msg_fds, self.max_data_xfer_size, self.max_dma_maps
        );
        text.into_bytes()
    }
}

/// A JSON number that is an integer from 0 to 2^53.
fn whole(number: f64) -> Option<u64> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let is_whole = number.fract() == 0.0 && (0.0..=EXACT).contains(&number);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is an integer in the range, as was just asked"
    )]
    is_whole.then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_messages_are_bounded() {
        let header = |size| {
            let mut header = MessageHeader::command(1, VERSION, 0);
            header.size_bytes = U32::new(size);
            header.payload_bytes(100)
        };
        assert_eq!(header(15), None);
        assert_eq!(header(0), None);
        assert_eq!(header(16), Some(0));
        assert_eq!(header(116), Some(100));
        assert_eq!(header(117), None);
        assert_eq!(header(u32::MAX), None);
    }

    #[test]
    fn capabilities_are_read_and_nonsense_is_refused() {
        let parse = |text: &str| PeerCapabilities::parse(format!("{text}\0").as_bytes());
        assert_eq!(
            PeerCapabilities::parse(b""),
            Ok(PeerCapabilities::default())
        );
        assert_eq!(parse("{}"), Ok(PeerCapabilities::default()));
        let spdk = r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,
            "migration":{"pgsize":4096},"twin_socket":{"supported":false}}}"#;
        assert_eq!(parse(spdk).unwrap().max_msg_fds, 8);
        let own = PeerCapabilities {
            max_msg_fds: 3,
            max_data_xfer_size: 4096,
            max_dma_maps: 7,
        };
        assert_eq!(PeerCapabilities::parse(&own.text()), Ok(own));
        for bad in [
            "",
            "{",
            "[]",
            "7",
            r#"{"capabilities":[]}"#,
            r#"{"capabilities":{"max_msg_fds":0}}"#,
            r#"{"capabilities":{"max_msg_fds":-1}}"#,
            r#"{"capabilities":{"max_msg_fds":"8"}}"#,
            r#"{"capabilities":{"max_data_xfer_size":1e300}}"#,
            r#"{"capabilities":{"max_dma_maps":18446744073709551615}}"#,
            &"[".repeat(4000),
            &" ".repeat(5000),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(PeerCapabilities::parse(b"{}").is_err());
        assert!(PeerCapabilities::parse(b"\xff\xfe\0").is_err());
    }
}

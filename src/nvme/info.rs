//! What a controller says of itself (identify, section 5.17), checked before anything is built on
//! it.

use std::fmt;

use super::abilities::AtomicLimits;
use super::dataset::{DatasetLimits, grain_of};
use super::spec::{
    CSI_NVM, Capabilities, IdentifyController, IdentifyNamespace, LPA_EXTENDED, NIDT_COMMAND_SET,
    ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES, SGLS_ANY_ALIGNMENT, SGLS_DWORD_ALIGNMENT,
    SGLS_SUPPORT, VWC_PRESENT,
};
use crate::error::{Error, ErrorKind, Result};

/// A controller, as it described itself last: at bring-up, after a reset, or when it said that a
/// namespace changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControllerInfo {
    /// The device's name for messages.
    pub device: String,
    /// PCI vendor id.
    pub vendor_id: u16,
    /// Model number, without padding.
    pub model: String,
    /// Serial number, without padding.
    pub serial: String,
    /// Firmware revision, without padding.
    pub firmware: String,
    /// Version of the specification that the controller follows.
    pub version: NvmeVersion,
    /// Controller id, unique in its subsystem (CNTLID).
    pub controller_id: u16,
    /// The subsystem's qualified name; empty where it is not said.
    pub subsystem_nqn: String,
    /// Optional admin commands (OACS); [`super::admin_command_names`] has their names.
    pub admin_commands: u16,
    /// Optional NVM commands (ONCS); [`super::nvm_command_names`] has their names.
    pub nvm_commands: u16,
    /// Support of scatter gather lists (SGLS); 0 for none.
    pub sgl_support: u32,
    /// Writes that are all or nothing, unless a namespace says otherwise.
    pub atomic: AtomicLimits,
    /// Optional asynchronous events that it reports (OAES).
    pub optional_events: u32,
    /// Asynchronous event requests that may be outstanding (AERL).
    pub event_requests: u16,
    /// Entries of the error log (ELPE).
    pub error_log_entries: u16,
    /// Firmware slots.
    pub firmware_slots: u8,
    /// Get log page takes offsets and long lengths.
    pub extended_log_pages: bool,
    /// Temperature in kelvins from which it warns (WCTEMP); `None` where it is not said.
    pub warning_temperature_k: Option<u16>,
    /// Temperature in kelvins from which it may fail (CCTEMP); `None` where it is not said.
    pub critical_temperature_k: Option<u16>,
    /// Bytes of NVM in the subsystem (TNVMCAP); `None` where it is not said.
    pub total_bytes: Option<u128>,
    /// Bytes of NVM that no namespace has (UNVMCAP); `None` where the total is not said.
    pub unallocated_bytes: Option<u128>,
    /// Most data of one command in bytes (MDTS); `None` where the controller sets no limit.
    pub max_transfer_bytes: Option<u32>,
    /// Most entries of an I/O queue.
    pub max_queue_entries: u32,
    /// I/O queue pairs that the controller granted.
    pub queues: u16,
    /// There is a volatile write cache, and it is on.
    pub volatile_write_cache: bool,
    /// Doorbells have shadows in memory, which spares an emulated controller the traps of register
    /// writes.
    pub shadow_doorbells: bool,
    /// Scatter-gather lists are offered.
    pub sgl: bool,
    /// Write zeroes is offered.
    pub write_zeroes: bool,
    /// Dataset management (deallocate) is offered.
    pub deallocate: bool,
    /// What one such command may cover.
    pub dataset: DatasetLimits,
    /// The active namespaces, in order of their ids.
    pub namespaces: Vec<NamespaceInfo>,
    /// There are more active namespaces than are looked at, and `namespaces` has the first of them.
    pub more_namespaces: bool,
}

impl ControllerInfo {
    /// Before identify has answered.
    pub(super) fn unknown(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            ..Self::default()
        }
    }

    /// The namespace of this id.
    pub fn namespace(&self, nsid: u32) -> Option<&NamespaceInfo> {
        let at = self
            .namespaces
            .binary_search_by_key(&nsid, |namespace| namespace.nsid)
            .ok()?;
        self.namespaces.get(at)
    }
}

/// A version of the NVMe specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct NvmeVersion(pub u32);

impl fmt::Display for NvmeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, tertiary) = (self.0 >> 16, self.0 >> 8 & 0xff, self.0 & 0xff);
        write!(f, "{major}.{minor}.{tertiary}")
    }
}

/// A format that a namespace can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatInfo {
    /// Block size in bytes; 0 when the format is unavailable or outside the supported range.
    pub block_bytes: u32,
    /// Metadata bytes of a block.
    pub metadata_bytes: u16,
    /// Relative performance: 0 is best, 3 is degraded.
    pub performance: u8,
}

/// A namespace, as the controller describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Namespace id.
    pub nsid: u32,
    /// Size in blocks.
    pub blocks: u64,
    /// Blocks that can be allocated (NCAP): less than the size when thinly provisioned.
    pub capacity_blocks: u64,
    /// Blocks that are allocated (NUSE).
    pub used_blocks: u64,
    /// The formats that it can have.
    pub formats: Vec<FormatInfo>,
    /// Index of the one in use.
    pub format: usize,
    /// Type of the protection information it is formatted with; 0 for none.
    pub protection: u8,
    /// Writes that are all or nothing.
    pub atomic: AtomicLimits,
    /// Globally unique identifier; `None` where there is none.
    pub nguid: Option<[u8; 16]>,
    /// IEEE extended unique identifier; `None` where there is none.
    pub eui64: Option<[u8; 8]>,
    /// Bytes of a block; 0 when the controller names no usable format.
    pub block_bytes: u32,
    /// Metadata bytes of a block.
    pub metadata_bytes: u16,
    /// Optimal I/O boundary in blocks (NOIOB); 0 for none.
    pub optimal_boundary_blocks: u16,
    /// Ranges of multiples of so many blocks are deallocated at best (NPDG).
    pub deallocate_granularity_blocks: u32,
    /// They begin at a multiple of so many blocks at best (NPDA).
    pub deallocate_alignment_blocks: u32,
    /// The namespace is write protected.
    pub read_only: bool,
    /// Why no queue can be opened on it; `None` when one can.
    pub unusable: Option<String>,
}

impl NamespaceInfo {
    /// Size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_bytes))
    }

    /// Whether commands made for `self` mean the same on `now`: the same namespace, in the same
    /// format. Its size may differ.
    pub(super) fn is_still(&self, now: &Self) -> bool {
        self.nsid == now.nsid
            && self.block_bytes == now.block_bytes
            && self.metadata_bytes == now.metadata_bytes
            && self.protection == now.protection
            && self.nguid == now.nguid
            && self.eui64 == now.eui64
    }
}

/// The largest MDTS shift, in bytes, that is believed: a limit of 2 GiB.
const MAX_TRANSFER_SHIFT: u32 = 31;

/// Checks identify controller. What depends on features (queues, write cache) and on namespaces is
/// filled in by the caller.
pub(super) fn parse_controller(
    device: &str,
    cap: Capabilities,
    version: u32,
    data: &IdentifyController,
) -> Result<ControllerInfo> {
    let garbage = |what: String| {
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("identify controller makes no sense: {what}"),
        ))
    };
    if data.sqes & 0xf > 6 || data.sqes >> 4 < 6 {
        return garbage(format!(
            "submission queue entries of 64 bytes are not offered (SQES {:#04x})",
            data.sqes
        ));
    }
    if data.cqes & 0xf > 4 || data.cqes >> 4 < 4 {
        return garbage(format!(
            "completion queue entries of 16 bytes are not offered (CQES {:#04x})",
            data.cqes
        ));
    }
    if data.nn.get() == 0 {
        return garbage("it has no namespaces (NN 0)".into());
    }
    let max_transfer_bytes = match u32::from(data.mdts) {
        0 => None,
        mdts if mdts + cap.min_page_shift() <= MAX_TRANSFER_SHIFT => {
            Some(1 << (mdts + cap.min_page_shift()))
        }
        mdts => return garbage(format!("MDTS is {mdts}")),
    };
    Ok(ControllerInfo {
        device: device.to_owned(),
        vendor_id: data.vid.get(),
        model: text(&data.mn),
        serial: text(&data.sn),
        firmware: text(&data.fr),
        version: NvmeVersion(version),
        controller_id: data.cntlid.get(),
        subsystem_nqn: text(&data.subnqn),
        admin_commands: data.oacs.get(),
        nvm_commands: data.oncs.get(),
        sgl_support: data.sgls.get(),
        atomic: AtomicLimits::of_controller(data),
        optional_events: data.oaes.get(),
        event_requests: u16::from(data.aerl) + 1,
        error_log_entries: u16::from(data.elpe) + 1,
        firmware_slots: data.frmw >> 1 & 7,
        extended_log_pages: data.lpa & LPA_EXTENDED != 0,
        warning_temperature_k: said(data.wctemp.get()),
        critical_temperature_k: said(data.cctemp.get()),
        total_bytes: said(data.tnvmcap.get()),
        unallocated_bytes: said(data.tnvmcap.get()).map(|_| data.unvmcap.get()),
        max_transfer_bytes,
        max_queue_entries: cap.max_queue_entries(),
        queues: 0,
        volatile_write_cache: data.vwc & VWC_PRESENT != 0,
        shadow_doorbells: false,
        // Another value is reserved.
        sgl: matches!(
            data.sgls.get() & SGLS_SUPPORT,
            SGLS_ANY_ALIGNMENT | SGLS_DWORD_ALIGNMENT
        ),
        write_zeroes: data.oncs.get() & ONCS_WRITE_ZEROES != 0,
        deallocate: data.oncs.get() & ONCS_DATASET_MANAGEMENT != 0,
        dataset: DatasetLimits::default(),
        namespaces: Vec::new(),
        more_namespaces: false,
    })
}

/// A field in which 0 says nothing.
fn said<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// Block size in bytes from its power of two; 0 outside the supported range (512 B to 64 KiB).
fn block_bytes(shift: u8) -> u32 {
    1u32.checked_shl(shift.into())
        .filter(|_| shift >= 9)
        .unwrap_or(0)
}

/// Describes a namespace, with the reason when it cannot be used. `atomic` are the controller's
/// limits.
pub(super) fn parse_namespace(
    nsid: u32,
    data: &IdentifyNamespace,
    atomic: AtomicLimits,
) -> NamespaceInfo {
    let index = data.format_index();
    let format = data.lbaf.get(index).copied().unwrap_or_default();
    let listed = data.lbaf.iter().take(usize::from(data.nlbaf) + 1);
    let (granularity, alignment) = grain_of(data);
    let mut info = NamespaceInfo {
        nsid,
        blocks: data.nsze.get(),
        capacity_blocks: data.ncap.get(),
        used_blocks: data.nuse.get(),
        formats: listed
            .map(|format| FormatInfo {
                block_bytes: block_bytes(format.data_shift),
                metadata_bytes: format.metadata_bytes.get(),
                performance: format.performance & 3,
            })
            .collect(),
        format: index,
        protection: data.dps & 7,
        atomic: AtomicLimits::of_namespace(data, atomic),
        nguid: said(data.nguid),
        eui64: said(data.eui64),
        block_bytes: block_bytes(format.data_shift),
        metadata_bytes: format.metadata_bytes.get(),
        optimal_boundary_blocks: data.noiob.get(),
        deallocate_granularity_blocks: granularity,
        deallocate_alignment_blocks: alignment,
        read_only: data.nsattr & 1 != 0,
        unusable: None,
    };
    info.unusable = reason_against(&info, data);
    info
}

fn reason_against(info: &NamespaceInfo, data: &IdentifyNamespace) -> Option<String> {
    if info.blocks == 0 {
        return Some("it has no blocks (NSZE 0)".into());
    }
    if data.format_index() > usize::from(data.nlbaf) {
        return Some(format!(
            "its LBA format {} is not among the {} it lists",
            data.format_index(),
            u16::from(data.nlbaf) + 1
        ));
    }
    if !matches!(info.block_bytes, 512 | 4096) {
        return Some(format!(
            "its block size is 2^{} bytes; 512 and 4096 are supported",
            data.lbaf
                .get(data.format_index())
                .map_or(0, |format| format.data_shift)
        ));
    }
    if data.dps & 7 != 0 {
        return Some(format!(
            "it is formatted with protection information type {}, which is not supported",
            data.dps & 7
        ));
    }
    if info.metadata_bytes != 0 {
        return Some(format!(
            "it is formatted with {} bytes of metadata a block, which is not supported",
            info.metadata_bytes
        ));
    }
    if info.blocks > u64::MAX / u64::from(info.block_bytes) {
        return Some(format!(
            "its size of {} blocks is more than 64 bits of bytes",
            info.blocks
        ));
    }
    None
}

/// The command set in a namespace's list of identification descriptors; the NVM command set when
/// none is named. A descriptor is its type, its length, two reserved bytes, and as many bytes as
/// the length says; a length of 0 ends the list.
pub(super) fn parse_command_set(list: &[u8]) -> u8 {
    let mut rest = list;
    while let [kind, len, _, _, behind @ ..] = rest
        && *len > 0
    {
        let Some((id, next)) = behind.split_at_checked(usize::from(*len)) else {
            break;
        };
        if *kind == NIDT_COMMAND_SET {
            return id[0];
        }
        rest = next;
    }
    CSI_NVM
}

/// Why a namespace of a command set that is not the NVM command set cannot be used.
pub(super) fn other_command_set(set: u8) -> String {
    match set {
        1 => "it is a key value namespace, which has no blocks".into(),
        2 => "it is a zoned namespace, which is not supported".into(),
        other => format!("its command set {other:#04x} is not supported"),
    }
}

/// An ASCII field, space padded; whatever is not printable becomes a question mark.
pub(super) fn text(field: &[u8]) -> String {
    let text: String = field
        .iter()
        .map(|&byte| {
            if (0x20..0x7f).contains(&byte) {
                char::from(byte)
            } else if byte == 0 {
                ' '
            } else {
                '?'
            }
        })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::spec::NSFEAT_ATOMIC;
    use super::*;
    use zerocopy::FromZeros;

    const NONE: AtomicLimits = AtomicLimits {
        normal_blocks: 1,
        power_fail_blocks: 1,
        compare_and_write_blocks: 1,
        boundary_blocks: 0,
        boundary_offset_blocks: 0,
        power_fail_boundary_blocks: 0,
    };

    fn controller() -> IdentifyController {
        let mut data = IdentifyController::new_zeroed();
        data.sqes = 0x66;
        data.cqes = 0x44;
        data.nn.set(1);
        data.mn[..4].copy_from_slice(b"a\x01b ");
        data
    }

    fn namespace(shift: u8) -> IdentifyNamespace {
        let mut data = IdentifyNamespace::new_zeroed();
        data.nsze.set(1000);
        data.lbaf[0].data_shift = shift;
        data
    }

    #[test]
    fn the_command_set_is_found_among_descriptors() {
        let uuid = [&[3, 16, 0, 0][..], &[7; 16]].concat();
        let list = [&uuid[..], &[4, 1, 0, 0, 2], &[0; 32]].concat();
        assert_eq!(parse_command_set(&list), 2);
        // None named, a list that ends in a descriptor, a length that goes beyond the end.
        assert_eq!(parse_command_set(&uuid), CSI_NVM);
        assert_eq!(parse_command_set(&uuid[..12]), CSI_NVM);
        assert_eq!(parse_command_set(&[3, 255, 0, 0, 4, 1, 0, 0, 2]), CSI_NVM);
        assert_eq!(parse_command_set(&[0, 0, 0, 0, 4, 1, 0, 0, 2]), CSI_NVM);
        assert_eq!(parse_command_set(&[]), CSI_NVM);
    }

    #[test]
    fn a_sane_controller_is_taken_and_garbage_is_named() {
        let cap = Capabilities(0x0040_1820_0f01_07ff);
        let info = parse_controller("x", cap, 0x0001_0400, &controller()).unwrap();
        assert_eq!(
            (info.model.as_str(), info.max_transfer_bytes),
            ("a?b", None)
        );
        assert_eq!(info.version.to_string(), "1.4.0");
        type Change = fn(&mut IdentifyController);
        let cases: [(Change, &str); 5] = [
            (|d| d.sqes = 0x77, "SQES"),
            (|d| d.sqes = 0x55, "SQES"),
            (|d| d.cqes = 0xff, "CQES"),
            (|d| d.nn.set(0), "NN 0"),
            (|d| d.mdts = 20, "MDTS is 20"),
        ];
        for (change, word) in cases {
            let mut data = controller();
            change(&mut data);
            let error = parse_controller("x", cap, 0, &data).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let mut data = controller();
        data.mdts = 5;
        let info = parse_controller("x", cap, 0, &data).unwrap();
        assert_eq!(info.max_transfer_bytes, Some(128 << 10));
    }

    #[test]
    fn namespaces_that_cannot_be_used_say_why() {
        assert_eq!(parse_namespace(1, &namespace(9), NONE).unusable, None);
        assert_eq!(parse_namespace(1, &namespace(12), NONE).block_bytes, 4096);
        type Change = fn(&mut IdentifyNamespace);
        let cases: [(Change, &str); 7] = [
            (|d| d.nsze.set(0), "NSZE 0"),
            (|d| d.lbaf[0].data_shift = 13, "2^13"),
            (|d| d.lbaf[0].data_shift = 255, "2^255"),
            (|d| d.flbas = 3, "LBA format 3"),
            (|d| d.dps = 1, "protection information type 1"),
            (|d| d.lbaf[0].metadata_bytes.set(8), "8 bytes of metadata"),
            (|d| d.nsze.set(u64::MAX), "more than 64 bits"),
        ];
        for (change, word) in cases {
            let mut data = namespace(9);
            change(&mut data);
            let why = parse_namespace(1, &data, NONE).unusable.unwrap_or_default();
            assert!(why.contains(word), "{word}: {why}");
        }
    }

    #[test]
    fn extended_format_indices_and_identities_are_read() {
        let mut data = namespace(9);
        data.nlbaf = 39;
        // Index 0x25: the low nibble, and bits 5 and 6 above it.
        data.flbas = 5 | 2 << 5;
        data.lbaf[0x25].data_shift = 12;
        data.nguid[3] = 7;
        data.nsfeat = NSFEAT_ATOMIC;
        data.nawupf.set(7);
        data.nabsn.set(15);
        let info = parse_namespace(1, &data, NONE);
        assert_eq!((info.format, info.block_bytes), (0x25, 4096));
        assert_eq!(info.formats.len(), 40);
        assert_eq!(info.unusable, None);
        assert_eq!(info.nguid.unwrap()[3], 7);
        assert_eq!(info.eui64, None);
        assert_eq!(
            (info.atomic.power_fail_blocks, info.atomic.boundary_blocks),
            (8, 16)
        );
        let mut larger = info.clone();
        larger.blocks += 1;
        assert!(info.is_still(&larger));
        larger.nguid = None;
        assert!(!info.is_still(&larger));
    }
}

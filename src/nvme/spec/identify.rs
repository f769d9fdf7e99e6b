//! Identify data structures (section 5.17.2; NVM 4.1.5).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of every identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// Identify controller, 4096 bytes (figure 275), with the fields that are used here by name.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor id.
    pub vid: U16,
    /// PCI subsystem vendor id.
    pub ssvid: U16,
    /// Serial number, ASCII, space padded.
    pub sn: [u8; 20],
    /// Model number, ASCII, space padded.
    pub mn: [u8; 40],
    /// Firmware revision, ASCII, space padded.
    pub fr: [u8; 8],
    /// Recommended arbitration burst.
    pub rab: u8,
    /// IEEE OUI.
    pub ieee: [u8; 3],
    /// Multi-path and namespace sharing.
    pub cmic: u8,
    /// Maximum data transfer size, `2^n` smallest pages; 0 for no limit.
    pub mdts: u8,
    /// Controller id.
    pub cntlid: U16,
    /// Version.
    pub ver: U32,
    reserved_84: [u8; 8],
    /// Optional asynchronous events (bit 8: namespace attributes, bit 9: firmware activation).
    pub oaes: U32,
    reserved_96: [u8; 15],
    /// Controller type: 0 not said, 1 I/O, 2 discovery, 3 administrative.
    pub cntrltype: u8,
    reserved_112: [u8; 144],
    /// Optional admin commands (bit 8: doorbell buffer config).
    pub oacs: U16,
    /// Abort command limit, 0's based.
    pub acl: u8,
    /// Asynchronous event request limit, 0's based.
    pub aerl: u8,
    /// Firmware updates (bits 1 to 3: slots, bit 0: the first is read-only).
    pub frmw: u8,
    /// Log page attributes.
    pub lpa: u8,
    /// Error log entries, 0's based.
    pub elpe: u8,
    /// Power states, 0's based.
    pub npss: u8,
    reserved_264: [u8; 2],
    /// Warning composite temperature in kelvins; 0 for none.
    pub wctemp: U16,
    /// Critical composite temperature in kelvins; 0 for none.
    pub cctemp: U16,
    reserved_270: [u8; 10],
    /// Bytes of the subsystem's NVM; 0 where it is not said.
    pub tnvmcap: U128,
    /// Bytes of it that no namespace has.
    pub unvmcap: U128,
    reserved_312: [u8; 200],
    /// Submission queue entry sizes, smallest in the low and largest in the high nibble.
    pub sqes: u8,
    /// Completion queue entry sizes.
    pub cqes: u8,
    /// Maximum outstanding commands (fabrics).
    pub maxcmd: U16,
    /// Number of namespaces.
    pub nn: U32,
    /// Optional NVM commands (bit 2: dataset management, bit 3: write zeroes).
    pub oncs: U16,
    /// Fused operations.
    pub fuses: U16,
    /// Format attributes.
    pub fna: u8,
    /// Volatile write cache (bit 0: present).
    pub vwc: u8,
    /// Atomic write unit, normal, 0's based, in blocks.
    pub awun: U16,
    /// Atomic write unit, power fail, 0's based, in blocks.
    pub awupf: U16,
    reserved_530: [u8; 2],
    /// Atomic compare and write unit, 0's based, in blocks.
    pub acwu: U16,
    reserved_534: [u8; 2],
    /// SGL support.
    pub sgls: U32,
    reserved_540: [u8; 228],
    /// NVM subsystem's qualified name, UTF-8, padded with zeroes.
    pub subnqn: [u8; 256],
    reserved_1024: [u8; 3072],
}
const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(IdentifyController, mdts) == 77);
const _: () = assert!(std::mem::offset_of!(IdentifyController, oaes) == 92);
const _: () = assert!(std::mem::offset_of!(IdentifyController, cntrltype) == 111);
const _: () = assert!(std::mem::offset_of!(IdentifyController, oacs) == 256);
const _: () = assert!(std::mem::offset_of!(IdentifyController, elpe) == 262);
const _: () = assert!(std::mem::offset_of!(IdentifyController, wctemp) == 266);
const _: () = assert!(std::mem::offset_of!(IdentifyController, tnvmcap) == 280);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(std::mem::offset_of!(IdentifyController, nn) == 516);
const _: () = assert!(std::mem::offset_of!(IdentifyController, oncs) == 520);
const _: () = assert!(std::mem::offset_of!(IdentifyController, vwc) == 525);
const _: () = assert!(std::mem::offset_of!(IdentifyController, acwu) == 532);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sgls) == 536);
const _: () = assert!(std::mem::offset_of!(IdentifyController, subnqn) == 768);

/// SGLS: how scatter-gather lists are offered for data (0: not at all).
pub const SGLS_SUPPORT: u32 = 3;
/// SGLS: with any address and length.
pub const SGLS_ANY_ALIGNMENT: u32 = 1;
/// SGLS: with addresses and lengths of dwords.
pub const SGLS_DWORD_ALIGNMENT: u32 = 2;
/// OACS: doorbell buffer config.
pub const OACS_DOORBELL_BUFFER_CONFIG: u16 = 1 << 8;
/// ONCS: dataset management.
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS: write zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// NSFEAT: the namespace has atomic limits of its own.
pub const NSFEAT_ATOMIC: u8 = 1 << 1;
/// LPA: get log page takes offsets and lengths of 32 bits.
pub const LPA_EXTENDED: u8 = 1 << 2;
/// VWC: a volatile write cache is present.
pub const VWC_PRESENT: u8 = 1;

/// NSFEAT: optimal sizes and alignments are said, those of deallocation among them.
pub const NSFEAT_OPTIMAL: u8 = 1 << 4;

/// Identify controller of the NVM command set, 4096 bytes (NVM, figure 100).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNvmController {
    /// Most data of a verify, `2^n` smallest pages; 0 for no limit.
    pub vsl: u8,
    /// Most data of write zeroes.
    pub wzsl: u8,
    /// Most data of write uncorrectable.
    pub wusl: u8,
    /// Most ranges of one dataset management command; 0 for no limit.
    pub dmrl: u8,
    /// Most blocks of one of its ranges; 0 for no limit.
    pub dmrsl: U32,
    /// Most blocks of all its ranges together; 0 for no limit.
    pub dmsl: U64,
    reserved_16: [u8; 4080],
}
const _: () = assert!(size_of::<IdentifyNvmController>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(IdentifyNvmController, dmrl) == 3);
const _: () = assert!(std::mem::offset_of!(IdentifyNvmController, dmrsl) == 4);
const _: () = assert!(std::mem::offset_of!(IdentifyNvmController, dmsl) == 8);

/// One LBA format, 4 bytes (NVM, figure 98).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata bytes per block.
    pub metadata_bytes: U16,
    /// Block size as a power of two.
    pub data_shift: u8,
    /// Relative performance.
    pub performance: u8,
}
const _: () = assert!(size_of::<LbaFormat>() == 4);

/// Identify namespace, 4096 bytes (NVM, figure 97), with the fields that are used here by name.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in blocks.
    pub nsze: U64,
    /// Capacity in blocks.
    pub ncap: U64,
    /// Utilisation in blocks.
    pub nuse: U64,
    /// Features (bit 0: thin provisioning, bit 1: the atomic limits here are of the namespace, bit
    /// 4: optimal sizes and alignments are said).
    pub nsfeat: u8,
    /// Number of LBA formats, 0's based.
    pub nlbaf: u8,
    /// Format in use: low nibble (and bits 5..6 as its upper bits), bit 4: metadata inline.
    pub flbas: u8,
    /// Metadata capabilities.
    pub mc: u8,
    /// Protection capabilities.
    pub dpc: u8,
    /// Protection settings in use.
    pub dps: u8,
    /// Multi-path and sharing.
    pub nmic: u8,
    /// Reservations.
    pub rescap: u8,
    /// Format progress.
    pub fpi: u8,
    /// Deallocate behaviour (bits 0..2: what a deallocated block reads as; 1 is zeroes).
    pub dlfeat: u8,
    /// Atomic write unit, normal, 0's based, in blocks; with bit 1 of NSFEAT.
    pub nawun: U16,
    /// Atomic write unit, power fail, 0's based, in blocks; with bit 1 of NSFEAT.
    pub nawupf: U16,
    /// Atomic compare and write unit, 0's based, in blocks; with bit 1 of NSFEAT.
    pub nacwu: U16,
    /// Atomic boundary size, normal, 0's based, in blocks; 0 for none.
    pub nabsn: U16,
    /// Atomic boundary offset: the first block after a boundary.
    pub nabo: U16,
    /// Atomic boundary size, power fail, 0's based, in blocks; 0 for none.
    pub nabspf: U16,
    /// Optimal I/O boundary in blocks; 0 for none.
    pub noiob: U16,
    /// Bytes of media that the namespace has; 0 where it is not said.
    pub nvmcap: U128,
    /// Preferred write granularity, 0's based, in blocks; with bit 4 of NSFEAT, as what follows.
    pub npwg: U16,
    /// Preferred write alignment, 0's based, in blocks.
    pub npwa: U16,
    /// Preferred deallocate granularity, 0's based, in blocks.
    pub npdg: U16,
    /// Preferred deallocate alignment, 0's based, in blocks.
    pub npda: U16,
    /// Optimal write size, 0's based, in blocks.
    pub nows: U16,
    reserved_74: [u8; 25],
    /// Namespace attributes (bit 0: write protected).
    pub nsattr: u8,
    reserved_100: [u8; 4],
    /// Globally unique identifier; zeroes for none.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier; zeroes for none.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    reserved_384: [u8; 3712],
}
const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, flbas) == 26);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, noiob) == 46);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, npdg) == 68);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nsattr) == 99);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, lbaf) == 128);

impl IdentifyNamespace {
    /// Index of the LBA format in use.
    pub fn format_index(&self) -> usize {
        usize::from(self.flbas & 0xf | (self.flbas >> 5 & 3) << 4)
    }
}

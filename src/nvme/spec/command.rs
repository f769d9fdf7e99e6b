//! Submission queue entries (section 3.3.3.1) and opcodes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A submission queue entry, 64 bytes (figure 88, "common command format").
///
/// ```text
///  0 opcode | flags | command id      4 NSID
///  8 CDW2, CDW3                      16 MPTR
/// 24 PRP1                            32 PRP2
/// 40 CDW10 .. CDW15
/// ```
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Command {
    /// What to do: an `OPC_` or `ADM_` constant.
    pub opcode: u8,
    /// Fused operation and PRP/SGL choice; 0 for a plain command with PRPs.
    pub flags: u8,
    /// Command id, unique among the queue's outstanding commands.
    pub cid: U16,
    /// Namespace.
    pub nsid: U32,
    /// Command dwords 2 and 3.
    pub cdw2_3: [U32; 2],
    /// Metadata pointer.
    pub mptr: U64,
    /// First physical region page.
    pub prp1: U64,
    /// Second physical region page, or the list's address.
    pub prp2: U64,
    /// Command dwords 10 to 15.
    pub cdw10_15: [U32; 6],
}
const _: () = assert!(size_of::<Command>() == 64);
const _: () = assert!(std::mem::offset_of!(Command, prp1) == 24);
const _: () = assert!(std::mem::offset_of!(Command, cdw10_15) == 40);

/// Bytes of a submission queue entry.
pub const SQE_BYTES: usize = 64;

/// Admin: delete I/O submission queue (5.5).
pub const ADM_DELETE_SQ: u8 = 0x00;
/// Admin: create I/O submission queue (5.4).
pub const ADM_CREATE_SQ: u8 = 0x01;
/// Admin: get log page (5.16).
pub const ADM_GET_LOG_PAGE: u8 = 0x02;
/// Admin: delete I/O completion queue (5.4).
pub const ADM_DELETE_CQ: u8 = 0x04;
/// Admin: create I/O completion queue (5.3).
pub const ADM_CREATE_CQ: u8 = 0x05;
/// Admin: identify (5.17).
pub const ADM_IDENTIFY: u8 = 0x06;
/// Admin: abort (5.1).
pub const ADM_ABORT: u8 = 0x08;
/// Admin: set features (5.27).
pub const ADM_SET_FEATURES: u8 = 0x09;
/// Admin: get features (5.15).
pub const ADM_GET_FEATURES: u8 = 0x0a;
/// Admin: asynchronous event request (5.2).
pub const ADM_ASYNC_EVENT: u8 = 0x0c;
/// Admin: doorbell buffer config (5.8).
pub const ADM_DOORBELL_BUFFER_CONFIG: u8 = 0x7c;

/// NVM: flush (NVM 3.2.2, base 7.1).
pub const OPC_FLUSH: u8 = 0x00;
/// NVM: write (NVM 3.2.6).
pub const OPC_WRITE: u8 = 0x01;
/// NVM: read (NVM 3.2.4).
pub const OPC_READ: u8 = 0x02;
/// NVM: write zeroes (NVM 3.2.8).
pub const OPC_WRITE_ZEROES: u8 = 0x08;
/// NVM: dataset management (NVM 3.2.3).
pub const OPC_DATASET_MANAGEMENT: u8 = 0x09;

/// Force unit access, in CDW12 of read, write and write zeroes.
pub const CDW12_FUA: u32 = 1 << 30;
/// Deallocate may be used, in CDW12 of write zeroes.
pub const CDW12_DEAC: u32 = 1 << 25;
/// Deallocate attribute, in CDW11 of dataset management.
pub const DSM_DEALLOCATE: u32 = 1 << 2;

/// Identify a namespace (CNS).
pub const CNS_NAMESPACE: u32 = 0;
/// Identify the controller (CNS).
pub const CNS_CONTROLLER: u32 = 1;
/// List the active namespaces (CNS).
pub const CNS_ACTIVE_NAMESPACES: u32 = 2;
/// List the identification descriptors of a namespace (CNS), since version 1.3.
pub const CNS_DESCRIPTORS: u32 = 3;
/// Identify the controller, as a command set describes it (CNS; CSI in the upper byte of CDW11).
pub const CNS_COMMAND_SET_CONTROLLER: u32 = 6;
/// Type of the identification descriptor that names the namespace's command set (5.17.2.3).
pub const NIDT_COMMAND_SET: u8 = 4;
/// The NVM command set, by its identifier.
pub const CSI_NVM: u8 = 0;

/// Feature: volatile write cache (5.27.1.4).
pub const FEAT_VOLATILE_WRITE_CACHE: u32 = 0x06;
/// Feature: number of queues (5.27.1.5).
pub const FEAT_NUMBER_OF_QUEUES: u32 = 0x07;

/// Create queue, CDW11: the queue is physically contiguous.
pub const QUEUE_CONTIGUOUS: u32 = 1;
/// Create completion queue, CDW11: completions interrupt.
pub const QUEUE_INTERRUPTS: u32 = 1 << 1;
/// Create completion queue, CDW11: where the interrupt vector is.
pub const QUEUE_VECTOR_SHIFT: u32 = 16;

/// Command flags: the data pointer is a scatter-gather list (PSDT 01b).
pub const FLAGS_SGL: u8 = 1 << 6;

/// Bytes of a scatter-gather descriptor: an address, a length of 32 bits, three reserved bytes, and
/// its type and subtype (4.1.2.1).
pub const SGL_DESCRIPTOR_BYTES: usize = 16;
/// Where type and subtype are in a descriptor's second word.
pub const SGL_TYPE_SHIFT: u32 = 56;
/// A descriptor of a data block, by address.
pub const SGL_DATA_BLOCK: u8 = 0x00;
/// A descriptor of a segment that another one follows.
pub const SGL_SEGMENT: u8 = 0x20;
/// A descriptor of the last segment.
pub const SGL_LAST_SEGMENT: u8 = 0x30;

/// One range of a dataset management command, 16 bytes (NVM, figure 40).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DatasetRange {
    /// Context attributes.
    pub attributes: U32,
    /// Length in blocks.
    pub blocks: U32,
    /// First block.
    pub lba: U64,
}
const _: () = assert!(size_of::<DatasetRange>() == 16);

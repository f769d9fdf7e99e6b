//! Log records ("Journaling Log"): a header of one basic block, further ones for long records, the
//! payload with the cycle number in the first four bytes of each basic block.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U32, U64};
use zerocopy::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of a record.
pub const RECORD_MAGIC: u32 = 0xfeed_babe;
/// Version bit of records that may have extended headers.
pub const RECORD_VERSION_2: u32 = 2;
/// Payload bytes whose displaced words fit in one header block.
pub const HEADER_COVERS_BYTES: u32 = 32 * 1024;
/// Bytes of the largest record's payload.
pub const MAX_RECORD_BYTES: u32 = 256 * 1024;
/// Bytes of the kernel's log buffers, unless a mount option or the log's stripe unit says
/// otherwise.
pub const MIN_BUFFER_BYTES: u32 = 32 * 1024;
/// Records of the largest size that can be in flight at once.
pub const MAX_IN_FLIGHT: u32 = 8;
/// `RecordHeader::fmt`: items are little-endian.
pub const FORMAT_LITTLE_ENDIAN: u32 = 1;
/// The log sequence number of metadata that was never logged.
pub const NULL_LSN: u64 = u64::MAX;

/// Header of a record.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct RecordHeader {
    pub magicno: U32,
    pub cycle: U32,
    pub version: U32,
    pub len: U32,
    pub lsn: U64,
    pub tail_lsn: U64,
    pub crc: little_endian::U32,
    pub prev_block: U32,
    pub num_logops: U32,
    pub cycle_data: [U32; 64],
    pub fmt: U32,
    pub fs_uuid: [u8; 16],
    pub size: U32,
}

impl RecordHeader {
    /// Basic blocks of the record's headers.
    pub fn header_blocks(&self) -> u64 {
        header_blocks(self.version.get(), self.size.get())
    }

    /// Whether it is one of a record of at most `size` bytes of payload, as the kernel's
    /// xlog_valid_rec_header().
    pub fn is_valid(&self, size: u32) -> bool {
        let version = self.version.get();
        let len = self.len.get();
        self.magicno.get() == RECORD_MAGIC
            && version != 0
            && version & !(RECORD_VERSION_2 | 1) == 0
            && len != 0
            && len <= size
    }

    /// Basic blocks of the record.
    pub fn blocks(&self) -> u64 {
        let payload = u64::from(self.len.get()).div_ceil(super::BASIC_BLOCK_BYTES);
        self.header_blocks().saturating_add(payload)
    }
}

/// Basic blocks of the headers of a record that was written from a buffer of `size` bytes, as the
/// kernel's xlog_logrec_hblks().
pub fn header_blocks(version: u32, size: u32) -> u64 {
    let extended = version & RECORD_VERSION_2 != 0 && i32::try_from(size).is_ok();
    if extended && size > HEADER_COVERS_BYTES {
        size.div_ceil(HEADER_COVERS_BYTES).into()
    } else {
        1
    }
}

/// Where a record's checksum lies in its header.
pub const RECORD_CRC_OFFSET: usize = 32;
/// Bytes of the header that the checksum covers, as 64-bit kernels write it; 32-bit x86 kernels
/// leave the last four out, which are padding.
pub const RECORD_CRC_BYTES: usize = 328;
/// Bytes of an extended header that the checksum covers.
pub const EXTENDED_CRC_BYTES: usize = 260;

/// Where the words that cycle numbers displace in the payload lie in the first header block.
pub const CYCLE_DATA_OFFSET: usize = offset_of!(RecordHeader, cycle_data);
/// In the other header blocks, which begin with the cycle number.
pub const EXTENDED_CYCLE_DATA_OFFSET: usize = 4;

const _: () = {
    assert!(size_of::<RecordHeader>() == 324);
    assert!(CYCLE_DATA_OFFSET == 44);
    assert!(offset_of!(RecordHeader, lsn) == 16);
    assert!(offset_of!(RecordHeader, crc) == RECORD_CRC_OFFSET);
    assert!(offset_of!(RecordHeader, num_logops) == 40);
    assert!(offset_of!(RecordHeader, fmt) == 300);
    assert!(offset_of!(RecordHeader, fs_uuid) == 304);
    assert!(offset_of!(RecordHeader, size) == 320);
};

/// Header of an operation inside a record.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct OpHeader {
    pub tid: U32,
    pub len: U32,
    pub clientid: u8,
    pub flags: u8,
    res2: [u8; 2],
}

impl OpHeader {
    /// The header of an operation on `len` bytes that belongs to no transaction.
    pub fn new(clientid: u8, flags: u8, len: usize) -> Self {
        Self {
            tid: U32::ZERO,
            len: u32::try_from(len).unwrap_or(u32::MAX).into(),
            clientid,
            flags,
            res2: [0; 2],
        }
    }
}

const _: () = assert!(size_of::<OpHeader>() == 12);

/// `OpHeader::flags`: the log was left in order.
pub const OP_UNMOUNT: u8 = 0x20;

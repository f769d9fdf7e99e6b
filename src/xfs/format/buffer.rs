//! What kinds of metadata buffers there are, and where each has its checksum, log sequence number,
//! uuid and address.

use std::mem::offset_of;

use super::{ag, attr, btree, dir, inode, superblock, symlink};

/// Where a buffer says what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Magic {
    /// In the first four bytes.
    Word(u32),
    /// In two bytes at offset 8, behind the links of a block of a hash index.
    Index(u16),
}

/// Where fields lie in a buffer of one kind, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferLayout {
    magic: Magic,
    /// The checksum of the buffer.
    pub crc: usize,
    /// The log sequence number of its last change.
    pub lsn: usize,
    /// The filesystem's uuid; for superblocks, see [`BufferLayout::is_superblock`].
    pub uuid: usize,
    /// Its own address in basic blocks, if it has that.
    pub blkno: Option<usize>,
}

const fn short(magic: u32) -> BufferLayout {
    BufferLayout {
        magic: Magic::Word(magic),
        crc: btree::SHORT_CRC_OFFSET,
        lsn: offset_of!(btree::BtreeShortHeader, lsn),
        uuid: offset_of!(btree::BtreeShortHeader, uuid),
        blkno: Some(offset_of!(btree::BtreeShortHeader, blkno)),
    }
}

const fn dir_data(magic: u32) -> BufferLayout {
    BufferLayout {
        magic: Magic::Word(magic),
        crc: dir::BLOCK_CRC_OFFSET,
        lsn: offset_of!(dir::BlockHeader, lsn),
        uuid: offset_of!(dir::BlockHeader, uuid),
        blkno: Some(offset_of!(dir::BlockHeader, daddr)),
    }
}

const fn index(magic: u16) -> BufferLayout {
    BufferLayout {
        magic: Magic::Index(magic),
        crc: dir::DA_CRC_OFFSET,
        lsn: offset_of!(dir::DaHeader, lsn),
        uuid: offset_of!(dir::DaHeader, uuid),
        blkno: Some(offset_of!(dir::DaHeader, daddr)),
    }
}

const BTREES: [BufferLayout; 7] = [
    short(btree::BNOBT_MAGIC),
    short(btree::CNTBT_MAGIC),
    short(btree::INOBT_MAGIC),
    short(btree::FINOBT_MAGIC),
    short(btree::REFCOUNT_MAGIC),
    short(btree::RMAPBT_MAGIC),
    BufferLayout {
        magic: Magic::Word(btree::BMBT_MAGIC),
        crc: btree::LONG_CRC_OFFSET,
        lsn: offset_of!(btree::LongHeader, lsn),
        uuid: offset_of!(btree::LongHeader, uuid),
        blkno: Some(offset_of!(btree::LongHeader, blkno)),
    },
];
const AGF: BufferLayout = BufferLayout {
    magic: Magic::Word(ag::AGF_MAGIC),
    crc: ag::AGF_CRC_OFFSET,
    lsn: offset_of!(ag::Agf, lsn),
    uuid: offset_of!(ag::Agf, uuid),
    blkno: None,
};
const AGFL: BufferLayout = BufferLayout {
    magic: Magic::Word(ag::AGFL_MAGIC),
    crc: ag::AGFL_CRC_OFFSET,
    lsn: offset_of!(ag::AgflHeader, lsn),
    uuid: offset_of!(ag::AgflHeader, uuid),
    blkno: None,
};
const AGI: BufferLayout = BufferLayout {
    magic: Magic::Word(ag::AGI_MAGIC),
    crc: ag::AGI_CRC_OFFSET,
    lsn: offset_of!(ag::Agi, lsn),
    uuid: offset_of!(ag::Agi, uuid),
    blkno: None,
};
const SYMLINK: BufferLayout = BufferLayout {
    magic: Magic::Word(symlink::MAGIC),
    crc: symlink::CRC_OFFSET,
    lsn: offset_of!(symlink::SymlinkHeader, lsn),
    uuid: offset_of!(symlink::SymlinkHeader, uuid),
    blkno: Some(offset_of!(symlink::SymlinkHeader, daddr)),
};
const SUPERBLOCK: BufferLayout = BufferLayout {
    magic: Magic::Word(superblock::MAGIC),
    crc: superblock::CRC_OFFSET,
    lsn: offset_of!(superblock::SuperblockLayout, lsn),
    uuid: offset_of!(superblock::SuperblockLayout, meta_uuid),
    blkno: None,
};

/// Type of a buffer in the log, as its item gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferType {
    /// One whose type was not given; it has no checksum that is known.
    Unknown,
    /// Quota records.
    Dquot,
    /// Inodes, each with a checksum of its own.
    Inodes,
    /// One value of an extended attribute, which is not logged but written.
    AttributeValue,
    /// Bitmap or summary of the realtime section.
    Realtime,
    /// One of these layouts.
    Sealed(&'static [BufferLayout]),
}

impl BufferType {
    /// The type of this number; `None` for one that does not exist.
    pub fn of(number: u16) -> Option<Self> {
        const DIR_BLOCK: [BufferLayout; 1] = [dir_data(dir::MAGIC_BLOCK)];
        const DIR_DATA: [BufferLayout; 1] = [dir_data(dir::MAGIC_DATA)];
        const DIR_FREE: [BufferLayout; 1] = [dir_data(dir::MAGIC_FREE)];
        const LEAF1: [BufferLayout; 1] = [index(dir::MAGIC_LEAF1)];
        const LEAFN: [BufferLayout; 1] = [index(dir::MAGIC_LEAFN)];
        const NODE: [BufferLayout; 1] = [index(dir::MAGIC_NODE)];
        const ATTR_LEAF: [BufferLayout; 1] = [index(attr::MAGIC_LEAF)];
        Some(match number {
            0 => Self::Unknown,
            1..=3 => Self::Dquot,
            4 => Self::Sealed(&BTREES),
            5 => Self::Sealed(&[AGF]),
            6 => Self::Sealed(&[AGFL]),
            7 => Self::Sealed(&[AGI]),
            8 => Self::Inodes,
            9 => Self::Sealed(&[SYMLINK]),
            10 => Self::Sealed(&DIR_BLOCK),
            11 => Self::Sealed(&DIR_DATA),
            12 => Self::Sealed(&DIR_FREE),
            13 => Self::Sealed(&LEAF1),
            14 => Self::Sealed(&LEAFN),
            15 => Self::Sealed(&NODE),
            16 => Self::Sealed(&ATTR_LEAF),
            17 => Self::AttributeValue,
            18 => Self::Sealed(&[SUPERBLOCK]),
            19 | 20 => Self::Realtime,
            _ => return None,
        })
    }

    /// Whether it is a block of a directory or of the hash index of one.
    pub fn is_directory(number: u16) -> bool {
        matches!(number, 10..=15)
    }
}

impl BufferLayout {
    /// That of a leaf of attributes.
    pub fn attr_leaf() -> Self {
        index(attr::MAGIC_LEAF)
    }

    /// That of an inner block of a hash index.
    pub fn index_node() -> Self {
        index(dir::MAGIC_NODE)
    }

    /// Whether a buffer has this kind's magic number.
    pub fn fits(&self, buf: &[u8]) -> bool {
        match self.magic {
            Magic::Word(magic) => be32(buf, 0) == Some(magic),
            Magic::Index(magic) => be16(buf, 8) == Some(magic),
        }
    }

    /// Whether it is a superblock, whose `meta_uuid` counts only with a feature.
    pub fn is_superblock(&self) -> bool {
        *self == SUPERBLOCK
    }
}

/// The layout of a buffer that may hold anything, by its magic number. As
/// xlog_recover_get_buf_lsn().
pub fn recognise(buf: &[u8]) -> Option<BufferLayout> {
    const OTHERS: [BufferLayout; 11] = [
        AGF,
        AGFL,
        AGI,
        SYMLINK,
        SUPERBLOCK,
        dir_data(dir::MAGIC_BLOCK),
        dir_data(dir::MAGIC_DATA),
        dir_data(dir::MAGIC_FREE),
        index(dir::MAGIC_LEAF1),
        index(dir::MAGIC_LEAFN),
        index(dir::MAGIC_NODE),
    ];
    let attr_leaf = index(attr::MAGIC_LEAF);
    let mut all = BTREES.iter().chain(&OTHERS).copied().chain([attr_leaf]);
    all.find(|layout| layout.fits(buf))
}

/// Whether a buffer begins as one of inodes does.
pub fn holds_inodes(buf: &[u8]) -> bool {
    be16(buf, 0) == Some(inode::MAGIC)
}

fn be16(buf: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*buf.get(at..)?.first_chunk()?))
}

fn be32(buf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*buf.get(at..)?.first_chunk()?))
}

/// The little-endian 32-bit number at an offset.
pub fn le32(buf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*buf.get(at..)?.first_chunk()?))
}

/// The 64-bit number at an offset.
pub fn be64(buf: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*buf.get(at..)?.first_chunk()?))
}

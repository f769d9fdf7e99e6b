//! Directories as they lie on disk: short form, data blocks, leaf, node and free index blocks.
//!
//! Layer 0: pure layouts and walkers over one block, no I/O. Follows "Directories" and "Hashed
//! Directories" of the XFS Algorithms & Data Structures document, version 5 forms only. All
//! integers are big-endian but the checksum.
//!
//! A directory file is cut in three: names from byte 0, the hash index from 32 GiB, the free index
//! from 64 GiB. Everything here takes blocks as hostile input; errors are [`ErrorKind::Corrupt`]
//! without an address, which the reader of the block adds.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, ErrorKind, Result};

/// First byte of the hash index in a directory file.
pub const LEAF_SPACE_BYTES: u64 = 1 << 35;
/// First byte of the free index in a directory file.
pub const FREE_SPACE_BYTES: u64 = 1 << 36;
/// The longest name in bytes.
pub const NAME_MAX_BYTES: usize = 255;
/// Directory blocks are 4 KiB to this.
pub const DIR_BLOCK_MAX_BYTES: usize = 65536;
/// The tallest hash tree, levels of node blocks included.
pub const MAX_TREE_LEVELS: u16 = 5;
/// `XDB3`: the only block of a single-block directory.
pub const MAGIC_BLOCK: u32 = 0x5844_4233;
/// `XDD3`: a data block of a directory of several.
pub const MAGIC_DATA: u32 = 0x5844_4433;
/// `XDF3`: a free index block.
pub const MAGIC_FREE: u32 = 0x5844_4633;
/// The only index block of a leaf directory.
pub const MAGIC_LEAF1: u16 = 0x3df1;
/// A leaf of a node directory.
pub const MAGIC_LEAFN: u16 = 0x3dff;
/// An inner block of the hash tree.
pub const MAGIC_NODE: u16 = 0x3ebe;
/// What begins an unused range of a data block.
pub const FREE_TAG: u16 = 0xffff;
/// Entries lie at multiples of this many bytes.
pub const DATA_ALIGN: usize = 8;

/// Byte offset of the checksum in [`BlockHeader`].
pub const BLOCK_CRC_OFFSET: usize = offset_of!(BlockHeader, crc);
/// Byte offset of the checksum in [`DaHeader`].
pub const DA_CRC_OFFSET: usize = offset_of!(DaHeader, crc);

/// `xfs_dir3_blk_hdr`: what begins data and free index blocks.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockHeader {
    /// [`MAGIC_BLOCK`], [`MAGIC_DATA`] or [`MAGIC_FREE`].
    pub magic: U32,
    /// CRC32C of the whole directory block, little-endian.
    pub crc: [u8; 4],
    /// Address of the block in 512-byte units.
    pub daddr: U64,
    /// Last write's log sequence number.
    pub lsn: U64,
    /// The filesystem's metadata uuid.
    pub uuid: [u8; 16],
    /// The directory's inode number.
    pub owner: U64,
}
const _: () = assert!(size_of::<BlockHeader>() == 48);
const _: () = assert!(offset_of!(BlockHeader, crc) == 4);
const _: () = assert!(offset_of!(BlockHeader, uuid) == 24);
const _: () = assert!(offset_of!(BlockHeader, owner) == 40);

/// `xfs_dir2_data_free`: one of the three largest unused ranges of a data block.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BestFree {
    /// Byte offset in the block.
    pub offset: U16,
    /// Length in bytes.
    pub length: U16,
}

/// `xfs_dir3_data_hdr`: what begins a block of names.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DataHeader {
    /// Identity of the block.
    pub block: BlockHeader,
    /// The largest unused ranges.
    pub best_free: [BestFree; 3],
    /// Zero.
    pub pad: [u8; 4],
}
const _: () = assert!(size_of::<DataHeader>() == 64);
const _: () = assert!(offset_of!(DataHeader, best_free) == 48);

/// Bytes before the first entry of a data block.
pub const DATA_HEADER_BYTES: usize = size_of::<DataHeader>();
/// Where `.` lies in a single-block directory, hence its cookie in a short one.
pub const DOT_OFFSET: u64 = 64;
/// Where `..` lies in a single-block directory, hence its cookie in a short one.
pub const DOT_DOT_OFFSET: u64 = 80;

/// `xfs_dir2_block_tail`: the last bytes of a single-block directory; its leaf entries lie right
/// before.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockTail {
    /// Leaf entries, stale ones included.
    pub count: U32,
    /// Stale leaf entries.
    pub stale: U32,
}
const _: () = assert!(size_of::<BlockTail>() == 8);

/// `xfs_da3_blkinfo`: what begins every block of the hash index.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DaHeader {
    /// Next block of this level, in filesystem blocks of the file; 0 for none.
    pub forw: U32,
    /// Previous block of this level; 0 for none.
    pub back: U32,
    /// [`MAGIC_LEAF1`], [`MAGIC_LEAFN`] or [`MAGIC_NODE`].
    pub magic: U16,
    /// Zero.
    pub pad: U16,
    /// CRC32C of the whole directory block, little-endian.
    pub crc: [u8; 4],
    /// Address of the block in 512-byte units.
    pub daddr: U64,
    /// Last write's log sequence number.
    pub lsn: U64,
    /// The filesystem's metadata uuid.
    pub uuid: [u8; 16],
    /// The directory's inode number.
    pub owner: U64,
}
const _: () = assert!(size_of::<DaHeader>() == 56);
const _: () = assert!(offset_of!(DaHeader, magic) == 8);
const _: () = assert!(offset_of!(DaHeader, crc) == 12);
const _: () = assert!(offset_of!(DaHeader, uuid) == 32);

/// `xfs_dir3_leaf_hdr`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirLeafHeader {
    /// Identity and siblings.
    pub info: DaHeader,
    /// Entries, stale ones included.
    pub count: U16,
    /// Stale entries.
    pub stale: U16,
    /// Zero.
    pub pad: U32,
}
const _: () = assert!(size_of::<DirLeafHeader>() == 64);

/// The last bytes of the only index block of a leaf directory: the longest unused range of each
/// data block lies right before, as 16-bit numbers.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirLeafTail {
    /// Data blocks.
    pub best_count: U32,
}
const _: () = assert!(size_of::<DirLeafTail>() == 4);

/// `xfs_dir3_free_hdr`: what begins a free index block. The longest unused range of each data block
/// follows, as 16-bit numbers.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirFreeHeader {
    /// Identity of the block.
    pub block: BlockHeader,
    /// The data block that the first number is of.
    pub first_data: U32,
    /// Numbers.
    pub valid: U32,
    /// Those of them that are not [`NO_DATA_BLOCK`].
    pub used: U32,
    /// Zero.
    pub pad: U32,
}
const _: () = assert!(size_of::<DirFreeHeader>() == 64);
const _: () = assert!(offset_of!(DirFreeHeader, first_data) == 48);

/// The longest unused range of a data block that does not exist.
pub const NO_DATA_BLOCK: u16 = 0xffff;

/// `xfs_da3_node_hdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NodeHeader {
    /// Identity and siblings.
    pub info: DaHeader,
    /// Entries.
    pub count: U16,
    /// Height above the leaves: 1 stands right above them.
    pub level: U16,
    /// Zero.
    pub pad: U32,
}
const _: () = assert!(size_of::<NodeHeader>() == 64);

/// `xfs_dir2_leaf_entry`: the hash of a name and where the name lies.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DirLeafEntry {
    /// [`hash_name`] of the name.
    pub hash: U32,
    /// Byte offset of the data entry in the directory file, in units of 8 bytes; 0 for a stale
    /// entry.
    pub address: U32,
}
const _: () = assert!(size_of::<DirLeafEntry>() == 8);

/// `xfs_da_node_entry`: the greatest hash below a child and where the child lies.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NodeEntry {
    /// The greatest hash in the child.
    pub hash: U32,
    /// The child, in filesystem blocks of the file.
    pub before: U32,
}
const _: () = assert!(size_of::<NodeEntry>() == 8);

/// What a directory entry says it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryType {
    /// Not told.
    Unknown,
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
    /// An overlay's mark for a removed name.
    Whiteout,
}

impl EntryType {
    /// From the byte on disk; `None` for values that no version of the format defines.
    pub fn from_disk(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Unknown,
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            8 => Self::Whiteout,
            _ => return None,
        })
    }
}

/// The hash by which names are indexed: each byte folded in after a rotation by 7 bits.
pub fn hash_name(name: &[u8]) -> u32 {
    name.iter()
        .fold(0u32, |hash, &byte| hash.rotate_left(7) ^ u32::from(byte))
}

/// Shorthand for what this module finds.
pub(crate) fn corrupt(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, detail)
}

/// Checks a name as a disk or a caller gives it: 1 to 255 bytes without `/` and NUL.
pub fn name_is_valid(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX_BYTES
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

/// One name in a data block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataEntry<'a> {
    /// Inode number, unchecked.
    pub ino: u64,
    /// The name.
    pub name: &'a [u8],
    /// What it names.
    pub file_type: EntryType,
    /// Byte offset of the entry in its block.
    pub offset: usize,
}

/// What lies at an offset of a data block.
#[derive(Debug, Clone, Copy)]
pub enum DataItem<'a> {
    /// A name.
    Entry(DataEntry<'a>),
    /// An unused range.
    Unused,
}

/// Bytes that an entry with a name of this length takes: inode number, length, name, type, tag,
/// rounded up.
pub fn data_entry_bytes(name_bytes: usize) -> usize {
    (8usize + 1 + 1 + 2)
        .saturating_add(name_bytes)
        .next_multiple_of(DATA_ALIGN)
}

fn get_u16(block: &[u8], at: usize) -> Option<u16> {
    let bytes = block.get(at..at.checked_add(2)?)?;
    Some(U16::ref_from_bytes(bytes).ok()?.get())
}

fn get_u64(block: &[u8], at: usize) -> Option<u64> {
    let bytes = block.get(at..at.checked_add(8)?)?;
    Some(U64::ref_from_bytes(bytes).ok()?.get())
}

/// The item at byte `at` of a data block whose items end at byte `end`, and its length in bytes (at
/// least 8, never beyond `end`).
///
/// # Errors
/// Corrupt: a length, tag or name that cannot be.
pub fn data_item(block: &[u8], at: usize, end: usize) -> Result<(DataItem<'_>, usize)> {
    let bad = |what: &str| corrupt(format!("directory data at {at:#x} of its block: {what}"));
    let area = block
        .get(..end)
        .ok_or_else(|| bad("the entries end beyond the block"))?;
    let tag = get_u16(area, at).ok_or_else(|| bad("cut off"))?;
    let fits = |length: usize| {
        length >= DATA_ALIGN
            && length.is_multiple_of(DATA_ALIGN)
            && at.checked_add(length).is_some_and(|next| next <= end)
    };
    let tag_is_right = |length: usize| {
        let found = get_u16(area, at.saturating_add(length).saturating_sub(2));
        found.map(usize::from) == Some(at)
    };
    if tag == FREE_TAG {
        let length = get_u16(area, at.saturating_add(2)).map_or(0, usize::from);
        if !fits(length) {
            return Err(bad("an unused range of a length that cannot be"));
        }
        if !tag_is_right(length) {
            return Err(bad("an unused range whose tag points elsewhere"));
        }
        return Ok((DataItem::Unused, length));
    }
    let ino = get_u64(area, at).ok_or_else(|| bad("an entry that is cut off"))?;
    let name_at = at.saturating_add(9);
    let name_bytes = area
        .get(at.saturating_add(8))
        .map_or(0, |&n| usize::from(n));
    let length = data_entry_bytes(name_bytes);
    if name_bytes == 0 || !fits(length) {
        return Err(bad("an entry of a length that cannot be"));
    }
    if !tag_is_right(length) {
        return Err(bad("an entry whose tag points elsewhere"));
    }
    let type_at = name_at.saturating_add(name_bytes);
    let name = area
        .get(name_at..type_at)
        .ok_or_else(|| bad("an entry that is cut off"))?;
    if !name_is_valid(name) {
        return Err(bad("a name with a slash or a NUL in it"));
    }
    let file_type = area
        .get(type_at)
        .and_then(|&value| EntryType::from_disk(value))
        .ok_or_else(|| bad("an entry of a type that does not exist"))?;
    let entry = DataEntry {
        ino,
        name,
        file_type,
        offset: at,
    };
    Ok((DataItem::Entry(entry), length))
}

/// The leaf entries of a single-block directory, and the byte at which its data entries end. Their
/// order is for [`check_leaf_entries`], once per block.
///
/// # Errors
/// Corrupt.
pub fn block_leaf(block: &[u8]) -> Result<(&[DirLeafEntry], usize)> {
    let (rest, tail) = BlockTail::ref_from_suffix(block)
        .map_err(|_| corrupt("a directory block without a tail"))?;
    let count = usize::try_from(tail.count.get()).unwrap_or(usize::MAX);
    let data_end = count
        .checked_mul(size_of::<DirLeafEntry>())
        .and_then(|bytes| rest.len().checked_sub(bytes))
        .filter(|&end| end >= DATA_HEADER_BYTES)
        .ok_or_else(|| {
            corrupt(format!(
                "a directory block with {count} leaf entries in its tail"
            ))
        })?;
    let entries = <[DirLeafEntry]>::ref_from_bytes(rest.get(data_end..).unwrap_or_default())
        .map_err(|_| corrupt("a directory block whose leaf entries are cut off"))?;
    Ok((entries, data_end))
}

/// The stale entries that the tail of a single-block directory counts.
pub fn block_stale(block: &[u8]) -> u32 {
    BlockTail::ref_from_suffix(block).map_or(0, |(_, tail)| tail.stale.get())
}

/// The entries of a leaf block ([`MAGIC_LEAF1`] or [`MAGIC_LEAFN`]). Their order is for
/// [`check_leaf_entries`], once per block.
///
/// # Errors
/// Corrupt.
pub fn leaf(block: &[u8]) -> Result<(&DirLeafHeader, &[DirLeafEntry])> {
    let (header, rest) = DirLeafHeader::ref_from_prefix(block)
        .map_err(|_| corrupt("a leaf block that is cut off"))?;
    let count = usize::from(header.count.get());
    let (entries, _) = <[DirLeafEntry]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| corrupt(format!("a leaf block of {count} entries, more than fit")))?;
    Ok((header, entries))
}

/// Checks that leaf entries are in the order of their hashes and as many of them stale as they say.
///
/// # Errors
/// Corrupt.
pub fn check_leaf_entries(entries: &[DirLeafEntry], stale: u32) -> Result<()> {
    let found_stale = entries
        .iter()
        .filter(|entry| entry.address.get() == 0)
        .count();
    if usize::try_from(stale) != Ok(found_stale) {
        return Err(corrupt(format!(
            "a leaf that counts {stale} stale entries and has {found_stale}"
        )));
    }
    if !entries.is_sorted_by_key(|entry| entry.hash.get()) {
        return Err(corrupt("a leaf whose hashes are out of order"));
    }
    Ok(())
}

/// The entries of an inner block of the hash tree, at least one. Their order is for
/// [`check_node_entries`], once per block.
///
/// # Errors
/// Corrupt.
pub fn node(block: &[u8]) -> Result<(&NodeHeader, &[NodeEntry])> {
    let (header, rest) =
        NodeHeader::ref_from_prefix(block).map_err(|_| corrupt("a node block that is cut off"))?;
    let count = usize::from(header.count.get());
    let level = header.level.get();
    if level == 0 || level >= MAX_TREE_LEVELS {
        return Err(corrupt(format!("a node block of level {level}")));
    }
    let (entries, _) = <[NodeEntry]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| corrupt(format!("a node block of {count} entries, more than fit")))?;
    if entries.is_empty() {
        return Err(corrupt("a node block without entries"));
    }
    Ok((header, entries))
}

/// Checks that node entries are in the order of their hashes.
///
/// # Errors
/// Corrupt.
pub fn check_node_entries(entries: &[NodeEntry]) -> Result<()> {
    if entries.is_sorted_by_key(|entry| entry.hash.get()) {
        Ok(())
    } else {
        Err(corrupt("a node block whose hashes are out of order"))
    }
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "test data of known size"
)]
mod tests {
    use super::*;

    /// The hash as the format document writes it down: four bytes at a time.
    fn hash_by_the_book(mut name: &[u8]) -> u32 {
        let mut hash = 0u32;
        while let [a, b, c, d, rest @ ..] = name {
            hash = (u32::from(*a) << 21)
                ^ (u32::from(*b) << 14)
                ^ (u32::from(*c) << 7)
                ^ u32::from(*d)
                ^ hash.rotate_left(28);
            name = rest;
        }
        match name {
            [a, b, c] => {
                (u32::from(*a) << 14) ^ (u32::from(*b) << 7) ^ u32::from(*c) ^ hash.rotate_left(21)
            }
            [a, b] => (u32::from(*a) << 7) ^ u32::from(*b) ^ hash.rotate_left(14),
            [a] => u32::from(*a) ^ hash.rotate_left(7),
            _ => hash,
        }
    }

    #[test]
    fn hash_is_that_of_the_format() {
        assert_eq!(hash_name(b"."), 0x2e);
        assert_eq!(hash_name(b".."), 0x172e);
        for length in 0..=255u8 {
            let name: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37) ^ 0xa5).collect();
            assert_eq!(hash_name(&name), hash_by_the_book(&name), "{length} bytes");
        }
    }

    fn data_block(name: &[u8]) -> Vec<u8> {
        let mut block = vec![0u8; DATA_HEADER_BYTES];
        block.extend_from_slice(&77u64.to_be_bytes());
        block.push(u8::try_from(name.len()).unwrap());
        block.extend_from_slice(name);
        block.push(1);
        block.resize(DATA_HEADER_BYTES + data_entry_bytes(name.len()) - 2, 0);
        block.extend_from_slice(&64u16.to_be_bytes());
        let at = u16::try_from(block.len()).unwrap();
        block.extend_from_slice(&[0xff, 0xff, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        block.extend_from_slice(&at.to_be_bytes());
        block
    }

    #[test]
    fn data_items_and_every_flip_of_their_frame() {
        let block = data_block(b"name");
        let (item, length) = data_item(&block, 64, block.len()).unwrap();
        let DataItem::Entry(entry) = item else {
            panic!("{item:?}")
        };
        assert_eq!(
            (entry.ino, entry.name, length),
            (77, b"name".as_slice(), 16)
        );
        let (item, length) = data_item(&block, 80, block.len()).unwrap();
        assert!(matches!(item, DataItem::Unused) && length == 16);
        for end in 64..block.len() {
            let whole = data_item(&block, 64, end).is_ok();
            assert_eq!(whole, end >= 80, "end {end}");
            assert!(data_item(&block, 80, end).is_err(), "end {end}");
        }
        for at in [72, 78, 79, 82, 83, 94, 95] {
            for bit in 0..8 {
                let mut flipped = block.clone();
                flipped[at] ^= 1 << bit;
                let broken = data_item(&flipped, 64, block.len()).is_err()
                    || data_item(&flipped, 80, block.len()).is_err();
                assert!(broken, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn block_tail_must_fit_and_be_ordered() {
        let mut block = data_block(b"name");
        let data_end = block.len();
        for (hash, address) in [(1u32, 8u32), (2, 0), (2, 10)] {
            block.extend_from_slice(&hash.to_be_bytes());
            block.extend_from_slice(&address.to_be_bytes());
        }
        block.extend_from_slice(&[0, 0, 0, 3, 0, 0, 0, 1]);
        let (entries, end) = block_leaf(&block).unwrap();
        assert_eq!((entries.len(), end), (3, data_end));
        check_leaf_entries(entries, block_stale(&block)).unwrap();
        let len = block.len();
        for (at, value) in [
            (len - 5, 200),
            (len - 8, 255),
            (len - 1, 0),
            (data_end + 3, 9),
        ] {
            let mut broken = block.clone();
            broken[at] = value;
            let fine = block_leaf(&broken)
                .and_then(|(entries, _)| check_leaf_entries(entries, block_stale(&broken)));
            assert!(fine.is_err(), "byte {at}");
        }
    }
}

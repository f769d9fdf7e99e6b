//! Extended attributes as they lie on disk: short form and leaf blocks ("Extended Attributes"). The
//! nodes above the leaves are those of directories ([`super::dir`]).
//!
//! Layer 0. Everything here takes bytes as hostile input.

use std::mem::{offset_of, size_of};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::dir::DaHeader;

/// A leaf block of attributes.
pub const MAGIC_LEAF: u16 = 0x3bee;
/// A block of a remote value: `XARM`.
pub const MAGIC_REMOTE: u32 = 0x5841_524d;
/// The longest name in bytes.
pub const NAME_MAX_BYTES: usize = 255;
/// The longest value in bytes.
pub const VALUE_MAX_BYTES: u32 = 64 << 10;

/// Entry flag: the value is in the leaf.
pub const FLAG_LOCAL: u8 = 1;
/// Entry flag: a name of `trusted.*`.
pub const FLAG_ROOT: u8 = 1 << 1;
/// Entry flag: a name of `security.*`.
pub const FLAG_SECURE: u8 = 1 << 2;
/// Entry flag: a parent pointer.
pub const FLAG_PARENT: u8 = 1 << 3;
/// Entry flag: being made or removed; lookups do not see it.
pub const FLAG_INCOMPLETE: u8 = 1 << 7;
/// The entry flags that make up the namespace.
pub const NAMESPACE: u8 = FLAG_ROOT | FLAG_SECURE | FLAG_PARENT;

/// `xfs_attr_sf_hdr`: what begins an attribute fork in short form.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AttrShortHeader {
    /// Bytes of the whole, this header included.
    pub total_bytes: U16,
    /// Entries.
    pub count: u8,
    /// Zero.
    pub pad: u8,
}
const _: () = assert!(size_of::<AttrShortHeader>() == 4);

/// `xfs_attr_sf_entry`: name and value follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AttrShortEntry {
    /// Bytes of the name.
    pub name_bytes: u8,
    /// Bytes of the value.
    pub value_bytes: u8,
    /// `FLAG_*`.
    pub flags: u8,
}
const _: () = assert!(size_of::<AttrShortEntry>() == 3);

/// `xfs_attr_leaf_map`: an unused range of a leaf.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FreeRange {
    /// Byte offset in the block.
    pub base: U16,
    /// Length in bytes.
    pub bytes: U16,
}

/// `xfs_attr3_leaf_hdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AttrLeafHeader {
    /// Identity and siblings.
    pub info: DaHeader,
    /// Entries.
    pub count: U16,
    /// Bytes of names and values.
    pub used_bytes: U16,
    /// Byte offset of the first name.
    pub first_used: U16,
    /// Whether compaction would gain space.
    pub holes: u8,
    /// Zero.
    pub pad1: u8,
    /// The largest unused ranges.
    pub free: [FreeRange; 3],
    /// Zero.
    pub pad2: U32,
}
const _: () = assert!(size_of::<AttrLeafHeader>() == 80);
const _: () = assert!(offset_of!(AttrLeafHeader, count) == 56);
const _: () = assert!(offset_of!(AttrLeafHeader, free) == 64);

/// `xfs_attr_leaf_entry`: sorted by hash.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AttrLeafEntry {
    /// Hash of the name.
    pub hash: U32,
    /// Byte offset of the name in the block.
    pub name_offset: U16,
    /// `FLAG_*`.
    pub flags: u8,
    /// Zero.
    pub pad: u8,
}
const _: () = assert!(size_of::<AttrLeafEntry>() == 8);

/// `xfs_attr_leaf_name_local`: name and value follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LocalName {
    /// Bytes of the value.
    pub value_bytes: U16,
    /// Bytes of the name.
    pub name_bytes: u8,
}
const _: () = assert!(size_of::<LocalName>() == 3);

/// `xfs_attr_leaf_name_remote`: the name follows.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RemoteName {
    /// First block of the value in the attribute fork.
    pub value_block: U32,
    /// Bytes of the value.
    pub value_bytes: U32,
    /// Bytes of the name.
    pub name_bytes: u8,
}
const _: () = assert!(size_of::<RemoteName>() == 9);

/// `xfs_attr3_rmt_hdr`: what begins each block of a remote value.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RemoteHeader {
    /// [`MAGIC_REMOTE`].
    pub magic: U32,
    /// Where in the value this block's part begins, in bytes.
    pub offset: U32,
    /// Bytes of the value in this block.
    pub bytes: U32,
    /// CRC32C of the block, little-endian.
    pub crc: [u8; 4],
    /// The filesystem's metadata uuid.
    pub uuid: [u8; 16],
    /// Inode number of the file.
    pub owner: U64,
    /// Address of the block in 512-byte units.
    pub daddr: U64,
    /// Last write's log sequence number.
    pub lsn: U64,
}
const _: () = assert!(size_of::<RemoteHeader>() == 56);
const _: () = assert!(offset_of!(RemoteHeader, crc) == 12);
const _: () = assert!(offset_of!(RemoteHeader, owner) == 32);

/// Byte offset of the checksum in [`RemoteHeader`].
pub const REMOTE_CRC_OFFSET: usize = offset_of!(RemoteHeader, crc);

/// An attribute as its entry has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// `FLAG_*`.
    pub flags: u8,
    /// The name, without the namespace.
    pub name: &'a [u8],
    /// The value, or where it lies.
    pub value: Value<'a>,
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// It stands behind the name.
    Here(&'a [u8]),
    /// It lies in blocks of its own.
    Remote {
        /// First block of the value in the attribute fork.
        block: u32,
        /// Bytes of the value.
        bytes: u32,
    },
}

/// Each entry of a short form, in order.
///
/// # Errors
/// A description of the fault.
pub fn short_entries(fork: &[u8]) -> Result<Vec<Attribute<'_>>, &'static str> {
    let (header, _) = AttrShortHeader::ref_from_prefix(fork).map_err(|_| "too short")?;
    let mut rest = fork
        .get(size_of::<AttrShortHeader>()..usize::from(header.total_bytes.get()))
        .ok_or("its length is impossible")?;
    let mut entries = Vec::with_capacity(header.count.into());
    for _ in 0..header.count {
        let (entry, after) = AttrShortEntry::ref_from_prefix(rest).map_err(|_| "cut off")?;
        let (name, after) = after
            .split_at_checked(entry.name_bytes.into())
            .ok_or("cut off")?;
        let (value, after) = after
            .split_at_checked(entry.value_bytes.into())
            .ok_or("cut off")?;
        rest = after;
        if name.is_empty() {
            return Err("a name without length");
        }
        entries.push(Attribute {
            flags: entry.flags,
            name,
            value: Value::Here(value),
        });
    }
    Ok(entries)
}

/// The entries of a leaf block, in order of their hashes.
///
/// # Errors
/// A description of the fault.
pub fn leaf_entries(block: &[u8]) -> Result<&[AttrLeafEntry], &'static str> {
    let (header, rest) = AttrLeafHeader::ref_from_prefix(block).map_err(|_| "too short")?;
    let count = usize::from(header.count.get());
    let (entries, _) = <[AttrLeafEntry]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| "more entries than fit")?;
    if entries.is_sorted_by_key(|entry| entry.hash.get()) {
        Ok(entries)
    } else {
        Err("hashes out of order")
    }
}

/// The name and value of an entry of a leaf block.
///
/// # Errors
/// A description of the fault.
pub fn leaf_entry<'a>(
    block: &'a [u8],
    entry: &AttrLeafEntry,
) -> Result<Attribute<'a>, &'static str> {
    let at = block
        .get(usize::from(entry.name_offset.get())..)
        .ok_or("a name outside the block")?;
    let take = |rest: &'a [u8], length: u8| match length {
        0 => Err("a name without length"),
        _ => rest.split_at_checked(length.into()).ok_or("a name cut off"),
    };
    let (name, value) = if entry.flags & FLAG_LOCAL != 0 {
        let (local, rest) = LocalName::ref_from_prefix(at).map_err(|_| "a name cut off")?;
        let (name, rest) = take(rest, local.name_bytes)?;
        let value = rest
            .get(..local.value_bytes.get().into())
            .ok_or("a value cut off")?;
        (name, Value::Here(value))
    } else {
        let (remote, rest) = RemoteName::ref_from_prefix(at).map_err(|_| "a name cut off")?;
        let (name, _) = take(rest, remote.name_bytes)?;
        let value = Value::Remote {
            block: remote.value_block.get(),
            bytes: remote.value_bytes.get(),
        };
        (name, value)
    };
    Ok(Attribute {
        flags: entry.flags,
        name,
        value,
    })
}

/// The entries of a leaf block with their names and values, in order of their hashes. Different
/// entries share no bytes: without that check a block could hold more than a hundred times its own
/// size.
///
/// # Errors
/// A description of the fault, also from the iterator.
pub fn leaf_attributes(
    block: &[u8],
) -> Result<impl Iterator<Item = Result<Attribute<'_>, &'static str>>, &'static str> {
    let entries = leaf_entries(block)?;
    let mut left_bytes = block.len();
    Ok(entries.iter().map(move |entry| {
        let attribute = leaf_entry(block, entry)?;
        let value_bytes = match attribute.value {
            Value::Here(value) => value.len(),
            Value::Remote { .. } => 0,
        };
        left_bytes = left_bytes
            .checked_sub(attribute.name.len())
            .and_then(|left| left.checked_sub(value_bytes))
            .ok_or("names and values that overlap")?;
        Ok(attribute)
    }))
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_read_to_their_end_and_no_further() {
        let mut fork = vec![0, 0, 2, 0];
        fork.extend(b"\x03\x02\x00onexx\x0a\x00\x04capability");
        let length = u8::try_from(fork.len()).unwrap();
        fork[1] = length;
        fork.extend([7; 20]);
        let entry = |flags, name, value| Attribute {
            flags,
            name,
            value: Value::Here(value),
        };
        let expected = [
            entry(0, &b"one"[..], &b"xx"[..]),
            entry(FLAG_SECURE, b"capability", b""),
        ];
        assert_eq!(short_entries(&fork).unwrap(), expected);
        for (at, value) in [(1, length - 1), (1, 3), (2, 3), (4, 200), (5, 255), (4, 0)] {
            let mut broken = fork.clone();
            broken[at] = value;
            assert!(short_entries(&broken).is_err(), "byte {at} {value}");
        }
        assert!(short_entries(&[]).is_err());
    }

    #[test]
    fn leaves_are_checked_before_use() {
        let mut block = vec![0; 512];
        block[57] = 2;
        let entries = [
            [0, 0, 0, 1, 1, 0, FLAG_LOCAL, 0],
            [0, 0, 0, 2, 1, 0xf8, 0, 0],
        ];
        block[80..96].copy_from_slice(&entries.concat());
        block[256..262].copy_from_slice(b"\x00\x01\x02abv");
        block[504..512].copy_from_slice(&[0; 8]);
        let found = leaf_entries(&block).unwrap();
        let first = leaf_entry(&block, &found[0]).unwrap();
        assert_eq!((first.name, first.value), (&b"ab"[..], Value::Here(b"v")));
        assert!(leaf_entry(&block, &found[1]).is_err(), "cut off");
        block[256] = 1;
        assert!(leaf_entry(&block, &leaf_entries(&block).unwrap()[0]).is_err());
        block[256] = 0;
        let swapped = [entries[1], entries[0]].concat();
        block[80..96].copy_from_slice(&swapped);
        assert!(leaf_entries(&block).is_err());
        block[56] = 1;
        assert!(leaf_entries(&block).is_err(), "too many");
    }

    #[test]
    fn entries_that_share_a_value_hold_no_more_than_the_block() {
        let mut block = vec![0; 512];
        block[57] = 9;
        for entry in block[80..152].chunks_mut(8) {
            entry[4] = 1; // The name is at byte 256.
            entry[6] = FLAG_LOCAL;
        }
        block[256..260].copy_from_slice(b"\x00\x62\x02a");
        let bytes = |block: &[u8]| {
            let mut total = 0;
            for attribute in leaf_attributes(block)? {
                let Value::Here(value) = attribute?.value else {
                    panic!("a value elsewhere")
                };
                total += 2 + value.len();
            }
            Ok::<_, &str>(total)
        };
        assert!(bytes(&block).unwrap_err().contains("overlap"));
        block[57] = 5;
        assert_eq!(bytes(&block), Ok(500));
    }
}

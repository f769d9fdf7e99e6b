//! What checkpoints in the log consist of ("Journaling Log", "Log Operations"): operations, the
//! regions of their items, and the items themselves.
//!
//! Records and operation headers are big-endian; items are in the byte order of the machine that
//! wrote them, which here is little-endian, except ICREATE, which is big-endian.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{I32, I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian};

use super::inode::CORE_BYTES;

/// `OpHeader::clientid`: an operation of a transaction.
pub const CLIENT_TRANSACTION: u8 = 0x69;
/// `OpHeader::clientid`: the unmount record.
pub const CLIENT_LOG: u8 = 0xaa;

/// `OpHeader::flags`: a transaction begins.
pub const OP_START: u8 = 0x01;
/// `OpHeader::flags`: it is complete.
pub const OP_COMMIT: u8 = 0x02;
/// `OpHeader::flags`: the region continues in the next record.
pub const OP_CONTINUE: u8 = 0x04;
/// `OpHeader::flags`: the region was begun in an earlier record.
pub const OP_WAS_CONTINUED: u8 = 0x08;
/// `OpHeader::flags`: the last part of such a region.
pub const OP_END: u8 = 0x10;

/// What the first region of a transaction begins with: `NART`.
pub const TRANSACTION_MAGIC: u32 = 0x5452_414e;
/// `TransactionHeader::transaction_type`: a checkpoint, as all kernels since 2.6.39 write it.
pub const TRANSACTION_CHECKPOINT: u32 = 40;

/// The first region of a transaction.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct TransactionHeader {
    pub magic: U32,
    pub transaction_type: U32,
    pub tid: I32,
    pub num_items: U32,
}

const _: () = assert!(size_of::<TransactionHeader>() == 16);

/// How the first region of every item begins.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ItemHeader {
    /// One of the types below.
    pub item_type: U16,
    /// Regions of the item, this one included.
    pub regions: U16,
}

const _: () = assert!(size_of::<ItemHeader>() == 4);

/// Most regions of an item: every second chunk of the largest buffer, and the header.
pub const MAX_REGIONS: u16 = 257;

/// Item type: extents to be freed.
pub const EFI: u16 = 0x1236;
/// Item type: they were freed.
pub const EFD: u16 = 0x1237;
/// Item type: an inode.
pub const INODE: u16 = 0x123b;
/// Item type: a buffer.
pub const BUF: u16 = 0x123c;
/// Item type: a quota record.
pub const DQUOT: u16 = 0x123d;
/// Item type: quotas were switched off.
pub const QUOTAOFF: u16 = 0x123e;
/// Item type: a new chunk of inodes.
pub const ICREATE: u16 = 0x123f;
/// Item type: changes of the reverse mapping to be made.
pub const RUI: u16 = 0x1240;
/// Item type: they were made.
pub const RUD: u16 = 0x1241;
/// Item type: changes of reference counts to be made.
pub const CUI: u16 = 0x1242;
/// Item type: they were made.
pub const CUD: u16 = 0x1243;
/// Item type: changes of a file's mappings to be made.
pub const BUI: u16 = 0x1244;
/// Item type: they were made.
pub const BUD: u16 = 0x1245;
/// Item type: a change of an extended attribute to be made.
pub const ATTRI: u16 = 0x1246;
/// Item type: it was made.
pub const ATTRD: u16 = 0x1247;
/// Item type: an exchange of mappings to be made.
pub const XMI: u16 = 0x1248;
/// Item type: it was made.
pub const XMD: u16 = 0x1249;

/// Where the identifier of an intent lies in its first region; in the region of the item that says
/// that it was done, too.
pub const INTENT_ID_OFFSET: usize = 8;

/// Bytes of a chunk of a buffer, the unit of its dirty map.
pub const CHUNK_BYTES: usize = 128;

/// The first region of a buffer; words of the dirty map follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct BufItem {
    pub item_type: U16,
    pub regions: U16,
    pub flags: U16,
    /// Length in basic blocks.
    pub len: U16,
    /// Address on the device in basic blocks.
    pub blkno: I64,
    /// Words of the dirty map, of 32 chunks each.
    pub map_words: U32,
}

const _: () = {
    assert!(size_of::<BufItem>() == 20);
    assert!(offset_of!(BufItem, blkno) == 8);
};

/// `BufItem::flags`: inodes, of which only the links of the unlinked lists are to be replayed.
pub const BUF_INODES: u16 = 1;
/// `BufItem::flags`: the buffer was freed: nothing of it that was logged before is to be replayed.
pub const BUF_CANCEL: u16 = 1 << 1;
/// `BufItem::flags`: quota records of users, projects and groups.
pub const BUF_DQUOTS: u16 = 1 << 2 | 1 << 3 | 1 << 4;
/// Where the type of a buffer lies in `BufItem::flags`.
pub const BUF_TYPE_SHIFT: u32 = 11;

/// Type of a buffer: a btree, of a group or of a fork.
pub const TYPE_BTREE: u16 = 4;
/// Type of a buffer: the header of a group's free space.
pub const TYPE_AGF: u16 = 5;
/// Type of a buffer: a group's list of blocks for its btrees.
pub const TYPE_AGFL: u16 = 6;
/// Type of a buffer: the header of a group's inodes.
pub const TYPE_AGI: u16 = 7;
/// Type of a buffer: inodes.
pub const TYPE_INODES: u16 = 8;
/// Type of a buffer: the target of a symbolic link.
pub const TYPE_SYMLINK: u16 = 9;
/// Type of a buffer: a directory of one block.
pub const TYPE_DIR_BLOCK: u16 = 10;
/// Type of a buffer: entries of a larger directory.
pub const TYPE_DIR_DATA: u16 = 11;
/// Type of a buffer: free space of a directory's blocks.
pub const TYPE_DIR_FREE: u16 = 12;
/// Type of a buffer: the hash index of a directory, when it is one block.
pub const TYPE_DIR_LEAF1: u16 = 13;
/// Type of a buffer: a leaf of a larger hash index of a directory.
pub const TYPE_DIR_LEAFN: u16 = 14;
/// Type of a buffer: an inner block of a hash index of a directory or of attributes.
pub const TYPE_INDEX_NODE: u16 = 15;
/// Type of a buffer: a leaf of attributes.
pub const TYPE_ATTR_LEAF: u16 = 16;
/// Type of a buffer: the value of an attribute.
pub const TYPE_ATTR_VALUE: u16 = 17;
/// Type of a buffer: the superblock.
pub const TYPE_SUPERBLOCK: u16 = 18;

/// The first region of an inode.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct InodeItem {
    pub item_type: U16,
    pub regions: U16,
    pub fields: U32,
    pub asize: U16,
    pub dsize: U16,
    pad: U32,
    pub ino: U64,
    /// The device number of a special file in the form on disk, in the byte order of the machine.
    pub rdev: U32,
    rdev_pad: [u8; 12],
    /// Address of the buffer of inodes, in basic blocks.
    pub blkno: I64,
    /// Its length in basic blocks.
    pub len: I32,
    /// Where the inode lies in it, in bytes.
    pub boffset: I32,
}

const _: () = {
    assert!(size_of::<InodeItem>() == 56);
    assert!(offset_of!(InodeItem, asize) == 8);
    assert!(offset_of!(InodeItem, ino) == 16);
    assert!(offset_of!(InodeItem, rdev) == 24);
    assert!(offset_of!(InodeItem, blkno) == 40);
};

/// `InodeItem::fields`: the core.
pub const LOG_CORE: u32 = 0x001;
/// `InodeItem::fields`: the data fork's content.
pub const LOG_DDATA: u32 = 0x002;
/// `InodeItem::fields`: the data fork's extents.
pub const LOG_DEXT: u32 = 0x004;
/// `InodeItem::fields`: the root of the data fork's btree.
pub const LOG_DBROOT: u32 = 0x008;
/// `InodeItem::fields`: the device number.
pub const LOG_DEV: u32 = 0x010;
/// `InodeItem::fields`: the attribute fork's content.
pub const LOG_ADATA: u32 = 0x040;
/// `InodeItem::fields`: the attribute fork's extents.
pub const LOG_AEXT: u32 = 0x080;
/// `InodeItem::fields`: the root of the attribute fork's btree.
pub const LOG_ABROOT: u32 = 0x100;
/// `InodeItem::fields`: the blocks of the data fork's btree have a new owner.
pub const LOG_DOWNER: u32 = 0x200;
/// `InodeItem::fields`: the blocks of the attribute fork's btree have a new owner.
pub const LOG_AOWNER: u32 = 0x400;

/// Extents to be freed, or those that were; as many [`LoggedExtent`] follow as there are.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct FreeItem {
    pub item_type: U16,
    pub regions: U16,
    pub nextents: U32,
    /// The number of the intent, also in the item that says that it was done.
    pub id: U64,
}

const _: () = {
    assert!(size_of::<FreeItem>() == 16);
    assert!(offset_of!(FreeItem, id) == INTENT_ID_OFFSET);
};

/// An extent of a [`FreeItem`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct LoggedExtent {
    pub start: U64,
    pub len: U32,
    pub pad: U32,
}

const _: () = assert!(size_of::<LoggedExtent>() == 16);

/// A mapping of an item [`RUI`] or [`BUI`]. Those of [`EFI`] and [`CUI`] are [`LoggedExtent`], with
/// the change of the reference count in `pad`; the headers of all of them are those of a
/// [`FreeItem`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct LoggedMapping {
    pub owner: U64,
    pub startblock: U64,
    pub startoff: U64,
    pub len: U32,
    pub flags: U32,
}

const _: () = {
    assert!(size_of::<LoggedMapping>() == 32);
    assert!(offset_of!(LoggedMapping, len) == 24);
};

/// A change of an attribute of an item [`ATTRI`]. The name follows, a new name where the change
/// replaces a parent pointer, the value, and then a new one: each a region.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct AttrItem {
    pub item_type: U16,
    pub regions: U16,
    /// Generation of the inode, for parent pointers.
    pub generation: U32,
    pub id: U64,
    pub ino: U64,
    /// `ATTRI_*`.
    pub op_flags: U32,
    /// Bytes of the name; where a parent pointer is replaced, in the lower half, and those of the
    /// new name in the upper one.
    pub name_len: U32,
    pub value_len: U32,
    /// `FLAG_*` of [`super::attr`].
    pub attr_filter: U32,
}

const _: () = {
    assert!(size_of::<AttrItem>() == 40);
    assert!(offset_of!(AttrItem, id) == INTENT_ID_OFFSET);
    assert!(offset_of!(AttrItem, op_flags) == 24);
    assert!(offset_of!(AttrItem, attr_filter) == 36);
};

/// Change of an [`ATTRI`]: an attribute is set that is not there.
pub const ATTRI_SET: u32 = 1;
/// Change of an [`ATTRI`]: an attribute is removed.
pub const ATTRI_REMOVE: u32 = 2;
/// Change of an [`ATTRI`]: an attribute gets another value.
pub const ATTRI_REPLACE: u32 = 3;
/// Change of an [`ATTRI`]: a parent pointer is added.
pub const ATTRI_PARENT_SET: u32 = 4;
/// Change of an [`ATTRI`]: a parent pointer is removed.
pub const ATTRI_PARENT_REMOVE: u32 = 5;
/// Change of an [`ATTRI`]: a parent pointer becomes another one.
pub const ATTRI_PARENT_REPLACE: u32 = 6;
/// The feature `log_incompat` of logs with an [`ATTRI`] of other attributes than parent pointers.
pub const LOG_INCOMPAT_ATTRI: u32 = 1;

/// An item that says that an intent other than [`EFI`] was done: its only region.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct DoneItem {
    pub item_type: U16,
    pub regions: U16,
    pub pad: U32,
    pub id: U64,
}

const _: () = {
    assert!(size_of::<DoneItem>() == 16);
    assert!(offset_of!(DoneItem, id) == INTENT_ID_OFFSET);
};

/// An intent to exchange mappings of two files, [`XMI`]: its only region.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct ExchangeItem {
    pub item_type: U16,
    pub regions: U16,
    /// Must be 0.
    pub pad: U32,
    pub id: U64,
    pub inode1: U64,
    pub inode2: U64,
    pub igen1: U32,
    pub igen2: U32,
    /// Block of the first file.
    pub startoff1: U64,
    /// Block of the second file.
    pub startoff2: U64,
    /// Blocks of each file that are still to be exchanged.
    pub blockcount: U64,
    /// `XMI_...`
    pub flags: U64,
    /// Size of the first file in bytes after the exchange; `u64::MAX` without [`XMI_SET_SIZES`].
    pub isize1: U64,
    /// Size of the second file in bytes.
    pub isize2: U64,
}

const _: () = {
    assert!(size_of::<ExchangeItem>() == 88);
    assert!(offset_of!(ExchangeItem, id) == INTENT_ID_OFFSET);
    assert!(offset_of!(ExchangeItem, igen1) == 32);
    assert!(offset_of!(ExchangeItem, startoff1) == 40);
    assert!(offset_of!(ExchangeItem, isize2) == 80);
};

/// `ExchangeItem::flags`: of the attribute forks.
pub const XMI_ATTR_FORK: u64 = 1;
/// `ExchangeItem::flags`: the files get the sizes of the item at the end.
pub const XMI_SET_SIZES: u64 = 1 << 1;
/// `ExchangeItem::flags`: holes and unwritten blocks of the first file are omitted.
pub const XMI_INO1_WRITTEN: u64 = 1 << 2;
/// `ExchangeItem::flags`: the first file shares no blocks afterwards.
pub const XMI_CLEAR_INO1_REFLINK: u64 = 1 << 3;
/// `ExchangeItem::flags`: the second file shares no blocks afterwards.
pub const XMI_CLEAR_INO2_REFLINK: u64 = 1 << 4;

/// The change that a part of an intent stands for, in its flags.
pub const INTENT_CHANGE: u32 = 0xff;

/// Change of an [`RUI`]: blocks got an owner.
pub const RUI_MAP: u32 = 1;
/// The same, of blocks that have others, too.
pub const RUI_MAP_SHARED: u32 = 2;
/// Change of an [`RUI`]: blocks lost an owner.
pub const RUI_UNMAP: u32 = 3;
/// The same, of blocks that have others, too.
pub const RUI_UNMAP_SHARED: u32 = 4;
/// Change of an [`RUI`]: blocks became written or unwritten; the flags have the new state.
pub const RUI_CONVERT: u32 = 5;
/// The same, of blocks that have other owners, too.
pub const RUI_CONVERT_SHARED: u32 = 6;
/// Change of an [`RUI`]: blocks were allocated for an owner that is no inode.
pub const RUI_ALLOC: u32 = 7;
/// Change of an [`RUI`]: blocks of such an owner were freed.
pub const RUI_FREE: u32 = 8;
/// Flag of an [`RUI`]: of the attribute fork.
pub const RUI_ATTR_FORK: u32 = 1 << 31;
/// Flag of an [`RUI`]: a block of the btree of a fork.
pub const RUI_BMBT_BLOCK: u32 = 1 << 30;
/// Flag of an [`RUI`]: unwritten.
pub const RUI_UNWRITTEN: u32 = 1 << 29;

/// Change of a [`CUI`]: blocks have one owner more.
pub const CUI_INCREASE: u32 = 1;
/// Change of a [`CUI`]: they have one less.
pub const CUI_DECREASE: u32 = 2;
/// Change of a [`CUI`]: they are staged for copy-on-write.
pub const CUI_STAGE: u32 = 3;
/// Change of a [`CUI`]: they are so no longer.
pub const CUI_UNSTAGE: u32 = 4;

/// Change of a [`BUI`]: a file got blocks.
pub const BUI_MAP: u32 = 1;
/// Change of a [`BUI`]: it lost blocks.
pub const BUI_UNMAP: u32 = 2;
/// Flag of a [`BUI`]: of the attribute fork.
pub const BUI_ATTR_FORK: u32 = 1 << 31;
/// Flag of a [`BUI`]: unwritten.
pub const BUI_UNWRITTEN: u32 = 1 << 30;

/// The inode's core as it is logged: the fields of
/// [`InodeCore`](super::inode::InodeCore) at the same places, little-endian.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct LoggedCore {
    pub magic: U16,
    pub mode: U16,
    pub version: u8,
    pub format: u8,
    pub metatype: U16,
    pub uid: U32,
    pub gid: U32,
    pub nlink: U32,
    pub projid_lo: U16,
    pub projid_hi: U16,
    pub big_nextents: U64,
    pub atime: U64,
    pub mtime: U64,
    pub ctime: U64,
    pub size: U64,
    pub nblocks: U64,
    pub extsize: U32,
    pub nextents: U32,
    pub anextents: U16,
    pub forkoff: u8,
    pub aformat: u8,
    pub dmevmask: U32,
    pub dmstate: U16,
    pub flags: U16,
    pub generation: U32,
    pub next_unlinked: U32,
    pub crc: U32,
    pub changecount: U64,
    pub lsn: U64,
    pub flags2: U64,
    pub cowextsize: U32,
    pub pad2: [u8; 12],
    pub crtime: U64,
    pub ino: U64,
    pub uuid: [u8; 16],
}

const _: () = {
    assert!(size_of::<LoggedCore>() == CORE_BYTES);
    assert!(offset_of!(LoggedCore, size) == 56);
    assert!(offset_of!(LoggedCore, forkoff) == 82);
    assert!(offset_of!(LoggedCore, crc) == 100);
    assert!(offset_of!(LoggedCore, flags2) == 120);
    assert!(offset_of!(LoggedCore, ino) == 152);
};

/// A new chunk of inodes: its only region.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields bear the names of the format's document"
)]
pub struct IcreateItem {
    pub item_type: U16,
    pub regions: U16,
    pub ag: big_endian::U32,
    pub ag_block: big_endian::U32,
    pub count: big_endian::U32,
    pub inode_bytes: big_endian::U32,
    /// Blocks.
    pub length: big_endian::U32,
    pub generation: big_endian::U32,
}

const _: () = assert!(size_of::<IcreateItem>() == 28);

//! What distinguishes one btree from another: sizes, order of keys, magic number.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::buf::BufKind;
use super::super::format::btree::{
    AllocRecord, BmbtRecord, BtreeShortHeader, InobtRecord, LongHeader, RMAP_BMBT_BLOCK,
    RMAP_UNWRITTEN, RefcountRecord, RmapKey, RmapRecord,
};

/// A key as numbers that compare as the keys do.
pub(in super::super) type KeyOrder = [u64; 3];

/// Bytes of the longest entry of a node without its pointer.
const MOST_KEY_BYTES: usize = 2 * size_of::<RmapKey>();

/// What a node says of a child: its least key, and where extents overlap its greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyBytes {
    bytes: [u8; MOST_KEY_BYTES],
    len: usize,
}

impl KeyBytes {
    /// No bytes.
    pub(super) const NONE: Self = Self {
        bytes: [0; MOST_KEY_BYTES],
        len: 0,
    };

    fn of(key: &[u8]) -> Self {
        Self::NONE.then(key)
    }

    /// These bytes, then those of `more`.
    pub(super) fn then(mut self, more: &[u8]) -> Self {
        let rest = self.bytes.get_mut(self.len..);
        if let Some(to) = rest.and_then(|rest| rest.get_mut(..more.len())) {
            to.copy_from_slice(more);
            self.len = self.len.saturating_add(more.len());
        }
        self
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The form of one kind of btree.
#[derive(Debug)]
pub(in super::super) struct TreeShape {
    pub(super) kind: BufKind,
    pub(super) header_bytes: usize,
    pub(super) record_bytes: usize,
    /// Of one key; a node has two for each child where extents overlap.
    pub(super) key_bytes: usize,
    pub(super) pointer_bytes: usize,
    pub(super) record_order: fn(&[u8]) -> KeyOrder,
    pub(super) key_order: fn(&[u8]) -> KeyOrder,
    /// The key of a record.
    pub(super) low: fn(&[u8]) -> KeyBytes,
    /// The key of the last block of a record, where extents overlap.
    pub(super) high: Option<fn(&[u8]) -> KeyBytes>,
}

impl TreeShape {
    /// Bytes of an entry of a node without its pointer.
    pub(super) fn node_key_bytes(&self) -> usize {
        let keys = if self.high.is_some() { 2 } else { 1 };
        self.key_bytes.saturating_mul(keys)
    }

    /// Whether blocks are numbered across the filesystem, not inside a group.
    pub(super) fn is_long(&self) -> bool {
        self.pointer_bytes == LONG_POINTER_BYTES
    }
}

const SHORT_POINTER_BYTES: usize = 4;
const LONG_POINTER_BYTES: usize = 8;

/// A kind of btree with the types of its records and keys.
pub(in super::super) trait TreeKind {
    /// Its form.
    const SHAPE: &'static TreeShape;
    /// A record as on disk.
    type Record: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy;
    /// A key.
    type Key: Copy;

    /// The order of a key.
    fn order(key: Self::Key) -> KeyOrder;
}

fn be32(raw: &[u8], at: usize) -> u64 {
    let bytes = raw.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes).into())
}

fn be64(raw: &[u8], at: usize) -> u64 {
    let bytes = raw.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The order of what begins with a block or inode number.
fn by_number(raw: &[u8]) -> KeyOrder {
    [be32(raw, 0), 0, 0]
}

/// The order of free extents by length.
fn by_length(raw: &[u8]) -> KeyOrder {
    [be32(raw, 4), be32(raw, 0), 0]
}

fn first_bytes<const BYTES: usize>(raw: &[u8]) -> KeyBytes {
    KeyBytes::of(raw.get(..BYTES).unwrap_or_default())
}

fn rmap_key_order(raw: &[u8]) -> KeyOrder {
    match RmapKey::read_from_prefix(raw) {
        Ok((key, _)) => Rmapbt::order(key),
        Err(_) => KeyOrder::default(),
    }
}

fn rmap_key(raw: &[u8], into: impl FnOnce(&RmapRecord, &mut RmapKey)) -> KeyBytes {
    let Ok((record, _)) = RmapRecord::read_from_prefix(raw) else {
        return KeyBytes::of(&[]);
    };
    let mut key = RmapKey {
        startblock: record.startblock,
        owner: record.owner,
        offset: (record.offset.get() & !RMAP_UNWRITTEN).into(),
    };
    into(&record, &mut key);
    KeyBytes::of(key.as_bytes())
}

fn rmap_low(raw: &[u8]) -> KeyBytes {
    rmap_key(raw, |_, _| {})
}

/// As xfs_rmapbt_init_high_key_from_rec(): the offset of the last block, where the owner has
/// offsets.
fn rmap_high(raw: &[u8]) -> KeyBytes {
    /// The bits of an offset that are not flags.
    const OFFSET: u64 = (1 << 54) - 1;
    /// Owners from here on are no inodes.
    const NO_INODE: u64 = 1 << 63;
    rmap_key(raw, |record, key| {
        let more = record.blockcount.get().saturating_sub(1);
        let last = key.startblock.get().wrapping_add(more);
        key.startblock = last.into();
        let offset = key.offset.get();
        if record.owner.get() & NO_INODE == 0 && offset & RMAP_BMBT_BLOCK == 0 {
            let end = (offset & OFFSET).wrapping_add(more.into());
            key.offset = (end | (offset & !OFFSET)).into();
        }
    })
}

fn rmap_record_order(raw: &[u8]) -> KeyOrder {
    rmap_key_order(rmap_low(raw).as_slice())
}

/// A record of the extent btree of a fork begins with a flag, and 54 bits of offset.
fn bmbt_record_order(raw: &[u8]) -> KeyOrder {
    match BmbtRecord::ref_from_prefix(raw) {
        Ok((record, _)) => [record.offset_blocks(), 0, 0],
        Err(_) => KeyOrder::default(),
    }
}

fn bmbt_key_order(raw: &[u8]) -> KeyOrder {
    [be64(raw, 0), 0, 0]
}

fn bmbt_key(raw: &[u8]) -> KeyBytes {
    let [offset, ..] = bmbt_record_order(raw);
    KeyBytes::of(&offset.to_be_bytes())
}

/// Sizes and order of a tree with keys that are the first `KEY` bytes of a record.
const fn group_tree<const RECORD: usize, const KEY: usize>(
    kind: BufKind,
    order: fn(&[u8]) -> KeyOrder,
) -> TreeShape {
    TreeShape {
        kind,
        header_bytes: size_of::<BtreeShortHeader>(),
        record_bytes: RECORD,
        key_bytes: KEY,
        pointer_bytes: SHORT_POINTER_BYTES,
        record_order: order,
        key_order: order,
        low: first_bytes::<KEY>,
        high: None,
    }
}

/// Free space by block number.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Bnobt;
/// Free space by length.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Cntbt;
/// Inode chunks.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Inobt;
/// Inode chunks with free inodes.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Finobt;
/// Owners of blocks.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Rmapbt;
/// Blocks with several owners, and those staged for copy-on-write.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Refcountbt;
/// Extents of a fork.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Bmbt;

impl TreeKind for Bnobt {
    const SHAPE: &'static TreeShape = &group_tree::<8, 8>(BufKind::Bnobt, by_number);
    type Record = AllocRecord;
    type Key = u32;

    fn order(block: u32) -> KeyOrder {
        [block.into(), 0, 0]
    }
}

impl TreeKind for Cntbt {
    const SHAPE: &'static TreeShape = &group_tree::<8, 8>(BufKind::Cntbt, by_length);
    type Record = AllocRecord;
    /// Length, then first block.
    type Key = (u32, u32);

    fn order((blocks, start): (u32, u32)) -> KeyOrder {
        [blocks.into(), start.into(), 0]
    }
}

impl TreeKind for Inobt {
    const SHAPE: &'static TreeShape = &group_tree::<16, 4>(BufKind::Inobt, by_number);
    type Record = InobtRecord;
    type Key = u32;

    fn order(first: u32) -> KeyOrder {
        [first.into(), 0, 0]
    }
}

impl TreeKind for Finobt {
    const SHAPE: &'static TreeShape = &group_tree::<16, 4>(BufKind::Finobt, by_number);
    type Record = InobtRecord;
    type Key = u32;

    fn order(first: u32) -> KeyOrder {
        [first.into(), 0, 0]
    }
}

impl TreeKind for Refcountbt {
    const SHAPE: &'static TreeShape = &group_tree::<12, 4>(BufKind::Refcountbt, by_number);
    type Record = RefcountRecord;
    /// First block, with the flag of staged ones.
    type Key = u32;

    fn order(start: u32) -> KeyOrder {
        [start.into(), 0, 0]
    }
}

impl TreeKind for Rmapbt {
    const SHAPE: &'static TreeShape = &TreeShape {
        record_order: rmap_record_order,
        key_order: rmap_key_order,
        low: rmap_low,
        high: Some(rmap_high),
        ..group_tree::<24, 20>(BufKind::Rmapbt, by_number)
    };
    type Record = RmapRecord;
    type Key = RmapKey;

    fn order(key: RmapKey) -> KeyOrder {
        [
            key.startblock.get().into(),
            key.owner.get(),
            key.offset.get() & !RMAP_UNWRITTEN,
        ]
    }
}

impl TreeKind for Bmbt {
    const SHAPE: &'static TreeShape = &TreeShape {
        kind: BufKind::Bmbt,
        header_bytes: size_of::<LongHeader>(),
        record_bytes: size_of::<BmbtRecord>(),
        key_bytes: 8,
        pointer_bytes: LONG_POINTER_BYTES,
        record_order: bmbt_record_order,
        key_order: bmbt_key_order,
        low: bmbt_key,
        high: None,
    };
    type Record = BmbtRecord;
    type Key = u64;

    fn order(offset_blocks: u64) -> KeyOrder {
        [offset_blocks, 0, 0]
    }
}

//! Metadata buffers of a filesystem that is written: blocks in memory, in the form that they have
//! on disk.
//!
//! There is no second representation. An inode in core is its bytes inside the buffer of its
//! cluster; the extents of a file are the records in its inode or in the blocks of its btree. A
//! buffer knows which 128-byte chunks of it were changed since it was last written in place, and by
//! which checkpoint of the log they were logged last.
//!
//! Checksums and log sequence numbers are stamped into copies, when a buffer is written in place or
//! shown to a reader: in memory these fields are stale.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::format::buffer::{BufferLayout, BufferType, be64};
use super::format::log::NULL_LSN;
use super::format::log_items::{self, CHUNK_BYTES};
use super::format::{self, BASIC_BLOCK_BYTES, ag, btree, inode, superblock};
use super::{MetaIo, corrupt};
use crate::error::Result;

mod chunks;
mod old;
mod slots;
mod table;

pub(super) use chunks::ChunkMap;
pub(super) use old::{OldContent, SpareContents};
pub(super) use slots::InodeSlot;
pub(super) use table::{Buffers, MetaBuffer};

/// Where a buffer lies on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct BufPlace {
    pub(super) addr_bytes: u64,
    pub(super) len_bytes: usize,
}

impl BufPlace {
    /// The address in basic blocks, as headers and log items have it.
    pub(super) fn basic_block(&self) -> u64 {
        self.addr_bytes / BASIC_BLOCK_BYTES
    }
}

/// What a buffer holds. Decides how it is checked, sealed and logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum BufKind {
    /// The primary superblock.
    Superblock,
    /// Header of the free space of a group.
    Agf,
    /// List of a group's blocks for its btrees.
    Agfl,
    /// Header of the inodes of a group.
    Agi,
    /// Btree block: free space by block number.
    Bnobt,
    /// Btree block: free space by length.
    Cntbt,
    /// Btree block: inode chunks.
    Inobt,
    /// Btree block: inode chunks with free inodes.
    Finobt,
    /// Btree block: owners of blocks.
    Rmapbt,
    /// Btree block: blocks with several owners.
    Refcountbt,
    /// Btree block: extents of a fork.
    Bmbt,
    /// Block of the index of attributes: a leaf, or a node above leaves.
    AttrIndex,
    /// A cluster of inodes.
    Inodes,
}

impl BufKind {
    /// The type number in the flags of a log item (`blf_flags`), for a buffer with this content.
    pub(super) fn log_type(self, bytes: &[u8]) -> u16 {
        match self {
            Self::AttrIndex if BufferLayout::attr_leaf().fits(bytes) => log_items::TYPE_ATTR_LEAF,
            Self::AttrIndex => log_items::TYPE_INDEX_NODE,
            Self::Superblock => log_items::TYPE_SUPERBLOCK,
            Self::Agf => log_items::TYPE_AGF,
            Self::Agfl => log_items::TYPE_AGFL,
            Self::Agi => log_items::TYPE_AGI,
            Self::Inodes => log_items::TYPE_INODES,
            Self::Bnobt
            | Self::Cntbt
            | Self::Inobt
            | Self::Finobt
            | Self::Rmapbt
            | Self::Refcountbt
            | Self::Bmbt => log_items::TYPE_BTREE,
        }
    }

    /// The first word of the buffer; `None` for inodes, which have magic numbers of their own, and
    /// for an index of attributes, which has them elsewhere.
    pub(super) fn magic(self) -> Option<u32> {
        Some(match self {
            Self::Superblock => superblock::MAGIC,
            Self::Agf => ag::AGF_MAGIC,
            Self::Agfl => ag::AGFL_MAGIC,
            Self::Agi => ag::AGI_MAGIC,
            Self::Bnobt => btree::BNOBT_MAGIC,
            Self::Cntbt => btree::CNTBT_MAGIC,
            Self::Inobt => btree::INOBT_MAGIC,
            Self::Finobt => btree::FINOBT_MAGIC,
            Self::Rmapbt => btree::RMAPBT_MAGIC,
            Self::Refcountbt => btree::REFCOUNT_MAGIC,
            Self::Bmbt => btree::BMBT_MAGIC,
            Self::Inodes | Self::AttrIndex => return None,
        })
    }

    /// Where the fields lie that all such buffers have, for one with this content.
    fn layout(self, bytes: &[u8]) -> Option<BufferLayout> {
        if self == Self::AttrIndex {
            return Some(attr_index(bytes));
        }
        let magic = self.magic()?.to_be_bytes();
        match BufferType::of(self.log_type(bytes))? {
            BufferType::Sealed(layouts) => {
                layouts.iter().find(|layout| layout.fits(&magic)).copied()
            }
            _ => None,
        }
    }

    /// What it is, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Agf => "AGF",
            Self::Agfl => "AGFL",
            Self::Agi => "AGI",
            Self::Bnobt => "btree block of free space by block",
            Self::Cntbt => "btree block of free space by length",
            Self::Inobt => "inode btree block",
            Self::Finobt => "free inode btree block",
            Self::Rmapbt => "reverse mapping btree block",
            Self::Refcountbt => "refcount btree block",
            Self::Bmbt => "extent btree block",
            Self::AttrIndex => "attribute block",
            Self::Inodes => "inode cluster",
        }
    }
}

/// What a buffer that comes from the device is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    /// The uuid that metadata carries.
    pub(super) meta_uuid: [u8; 16],
    /// The log sequence number of the next record: no metadata is newer.
    pub(super) head_lsn: u64,
    /// Bytes of an inode.
    pub(super) inode_bytes: usize,
}

/// The layout of a block of an index of attributes: that of a node unless it is a leaf.
fn attr_index(bytes: &[u8]) -> BufferLayout {
    let leaf = BufferLayout::attr_leaf();
    match leaf.fits(bytes) {
        true => leaf,
        false => BufferLayout::index_node(),
    }
}

/// Reads a buffer from the device and checks magic number, checksum, uuid, address and log sequence
/// number. Which owner a btree block must have is for the caller to check.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt), naming the fault; the device's.
pub(super) fn load(
    io: &mut dyn MetaIo,
    place: BufPlace,
    kind: BufKind,
    identity: &Identity,
) -> Result<MetaBuffer> {
    let addr = place.addr_bytes;
    if addr.saturating_add(place.len_bytes as u64) > io.capacity_bytes() {
        return Err(corrupt(addr, "metadata beyond the end of the device"));
    }
    let mut bytes = vec![0; place.len_bytes].into_boxed_slice();
    io.read_at(addr, &mut bytes)?;
    match kind.layout(&bytes) {
        None => Ok(MetaBuffer::of_inodes(bytes, identity)),
        Some(layout) => {
            check(&bytes, kind, &layout, place, identity)
                .map_err(|what| corrupt(addr, format!("{}: {what}", kind.name())))?;
            Ok(MetaBuffer::new(bytes, kind))
        }
    }
}

fn check(
    bytes: &[u8],
    kind: BufKind,
    layout: &BufferLayout,
    place: BufPlace,
    identity: &Identity,
) -> Result<(), &'static str> {
    if !layout.fits(bytes) {
        return Err("no magic");
    }
    if !format::checksum_ok(bytes, layout.crc) {
        return Err("the checksum is wrong");
    }
    let uuid = bytes.get(layout.uuid..).and_then(|rest| rest.get(..16));
    if kind != BufKind::Superblock && uuid != Some(&identity.meta_uuid[..]) {
        return Err("of another filesystem (uuid)");
    }
    if let Some(blkno) = layout.blkno
        && be64(bytes, blkno) != Some(place.basic_block())
    {
        return Err("its address is another one");
    }
    match be64(bytes, layout.lsn) {
        Some(NULL_LSN) => Ok(()),
        Some(lsn) if lsn <= identity.head_lsn => Ok(()),
        _ => Err("newer than the log"),
    }
}

/// Stamps log sequence numbers and checksums into an image that is written in place. Of inodes only
/// those that were logged are stamped.
pub(super) fn seal(image: &mut [u8], kind: BufKind, lsn: u64, slots: &[InodeSlot]) {
    let Some(layout) = kind.layout(image) else {
        return slots::seal(image, slots);
    };
    let field = image.get_mut(layout.lsn..);
    if let Some(field) = field.and_then(|rest| rest.first_chunk_mut::<8>()) {
        *field = lsn.to_be_bytes();
    }
    // Every kind is longer than its header.
    format::set_checksum(image, layout.crc);
}

/// Whether an inode's bytes are whole and of this filesystem.
fn inode_is_whole(raw: &[u8], identity: &Identity) -> bool {
    inode_core(raw).is_some_and(|core| {
        let lsn = core.lsn.get();
        core.uuid == identity.meta_uuid
            && (lsn == NULL_LSN || lsn <= identity.head_lsn)
            && format::checksum_ok(raw, inode::CRC_OFFSET)
    })
}

/// The core, of bytes that begin as an inode does, in use or not.
fn inode_core(raw: &[u8]) -> Option<&inode::InodeCore> {
    let (core, _) = inode::InodeCore::ref_from_prefix(raw).ok()?;
    let is_inode = core.magic.get() == inode::MAGIC && core.version == inode::VERSION;
    is_inode.then_some(core)
}

/// The chunks of two images of a buffer that differ.
pub(super) fn changed_chunks(before: &[u8], after: &[u8]) -> ChunkMap {
    let mut map = ChunkMap::default();
    let pairs = before.chunks(CHUNK_BYTES).zip(after.chunks(CHUNK_BYTES));
    for (index, (before, after)) in pairs.enumerate() {
        if before != after {
            map.set(index);
        }
    }
    map
}

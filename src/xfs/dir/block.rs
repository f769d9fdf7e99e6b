//! One block of a directory: gathered from its extents and checked.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::Arc;

use zerocopy::FromBytes;

use crate::error::Result;
use crate::xfs::extents::FoundExtent;
use crate::xfs::format::dir::{self as layout, BlockHeader, DaHeader, DirLeafEntry, DirLeafHeader};
use crate::xfs::format::{BASIC_BLOCK_BYTES, checksum_ok};
use crate::xfs::{Fs, Geometry, Inode, MetaIo};

/// Which block is wanted, hence which magic numbers are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// The block of a single-block directory.
    Single,
    /// A block of names of a larger one.
    Data,
    /// The hash block of a leaf directory.
    Leaf1,
    /// A node or leaf of a hash tree.
    Tree,
}

/// A checked directory block.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) bytes: Arc<[u8]>,
    /// Byte address on the device of its beginning.
    pub(super) addr_bytes: u64,
}

impl Block {
    /// Gives an error of the layouts this block's address.
    pub(super) fn checked<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.at_offset(self.addr_bytes))
    }

    pub(super) fn corrupt<T>(&self, detail: impl Into<String>) -> Result<T> {
        Err(super::super::corrupt(self.addr_bytes, detail))
    }
}

/// The fork block at which the hash index begins.
pub(super) fn leaf_space_start(geometry: &Geometry) -> u64 {
    layout::LEAF_SPACE_BYTES
        .checked_shr(geometry.block_log)
        .unwrap_or(0)
}

/// The fork block at which the free index begins.
pub(super) fn free_space_start(geometry: &Geometry) -> u64 {
    layout::FREE_SPACE_BYTES
        .checked_shr(geometry.block_log)
        .unwrap_or(0)
}

/// The first mapped directory block at or behind a fork block, and before `end`.
pub(super) fn next_mapped(
    fs: &Fs,
    io: &mut impl MetaIo,
    dir: &Inode,
    from: u64,
    end: u64,
) -> Result<Option<u64>> {
    let found = match fs.find_extent(io, dir, from)? {
        FoundExtent::Extent(_) => from,
        FoundExtent::Hole { end_blocks, .. } => end_blocks,
    };
    // Directory blocks are a power of two of blocks.
    let aligned = found & !u64::from(fs.geometry().dir_block_blocks).saturating_sub(1);
    let aligned = aligned.max(from);
    Ok((aligned < end).then_some(aligned))
}

/// Reads the directory block that begins at a fork block; a hole there is corruption.
pub(super) fn read(
    fs: &Fs,
    io: &mut impl MetaIo,
    dir: &Inode,
    fork_block: u64,
    want: Want,
) -> Result<Block> {
    let found = fs.read_dir_block(io, dir, fork_block, |block| {
        check(fs, dir, &block.data, block.addr_bytes)
            .map_err(|error| error.at_offset(block.addr_bytes))
    })?;
    let Some(found) = found else {
        return Err(super::corrupt(dir, "its index points to a hole"));
    };
    let tree_magic = tree_magic(&found.data);
    let right = match want {
        Want::Single => name_magic(&found.data) == layout::MAGIC_BLOCK,
        Want::Data => name_magic(&found.data) == layout::MAGIC_DATA,
        Want::Leaf1 => tree_magic == layout::MAGIC_LEAF1,
        Want::Tree => tree_magic == layout::MAGIC_LEAFN || tree_magic == layout::MAGIC_NODE,
    };
    let block = Block {
        bytes: found.data,
        addr_bytes: found.addr_bytes,
    };
    if !right {
        return block.corrupt(format!("{}: not a block of the kind {want:?}", dir.ino));
    }
    Ok(block)
}

fn name_magic(bytes: &[u8]) -> u32 {
    BlockHeader::ref_from_prefix(bytes).map_or(0, |(header, _)| header.magic.get())
}

/// The magic number of a block of the hash index.
pub(super) fn tree_magic(bytes: &[u8]) -> u16 {
    DaHeader::ref_from_prefix(bytes).map_or(0, |(header, _)| header.magic.get())
}

/// Checks made once, when a block comes from the device: identity, checksum, order of the hashes.
fn check(fs: &Fs, dir: &Inode, bytes: &[u8], addr_bytes: u64) -> Result<()> {
    let bad = |what: &str| {
        Err(layout::corrupt(format!(
            "block of directory {}: {what}",
            dir.ino
        )))
    };
    let (Ok((names, _)), Ok((tree, _))) = (
        BlockHeader::ref_from_prefix(bytes),
        DaHeader::ref_from_prefix(bytes),
    ) else {
        return bad("too short");
    };
    let (crc_offset, uuid, owner, daddr) = match (names.magic.get(), tree.magic.get()) {
        (layout::MAGIC_BLOCK | layout::MAGIC_DATA, _) => (
            layout::BLOCK_CRC_OFFSET,
            names.uuid,
            names.owner,
            names.daddr,
        ),
        (_, layout::MAGIC_LEAF1 | layout::MAGIC_LEAFN | layout::MAGIC_NODE) => {
            (layout::DA_CRC_OFFSET, tree.uuid, tree.owner, tree.daddr)
        }
        _ => return bad("no magic"),
    };
    if !checksum_ok(bytes, crc_offset) {
        return bad("the checksum is wrong");
    }
    if uuid != *fs.meta_uuid() {
        return bad("of another filesystem (uuid)");
    }
    if owner.get() != dir.ino.0 {
        return bad("of another owner");
    }
    if daddr.get().checked_mul(BASIC_BLOCK_BYTES) != Some(addr_bytes) {
        return bad("of another address");
    }
    if names.magic.get() == layout::MAGIC_BLOCK {
        let (entries, _) = layout::block_leaf(bytes)?;
        return layout::check_leaf_entries(entries, layout::block_stale(bytes));
    }
    match tree.magic.get() {
        _ if names.magic.get() == layout::MAGIC_DATA => Ok(()),
        layout::MAGIC_NODE => layout::check_node_entries(layout::node(bytes)?.1),
        _ => {
            let (header, entries) = layout::leaf(bytes)?;
            layout::check_leaf_entries(entries, header.stale.get().into())
        }
    }
}

/// The header and entries of a leaf block.
pub(super) fn leaf_of(block: &Block) -> Result<(&DirLeafHeader, &[DirLeafEntry])> {
    block.checked(layout::leaf(&block.bytes))
}

//! Symbolic links, inside the inode and remote.
//!
//! Layer 5; the layout is [`super::format::symlink`].
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::format::symlink::{self as layout, SymlinkHeader};
use super::format::{BASIC_BLOCK_BYTES, checksum_ok};
use super::{BlockKind, Fork, FoundExtent, Fs, Inode, InodeType, MetaIo, corrupt};
use crate::error::{Error, ErrorKind, Result};

/// The target of a symbolic link: 1 to 1024 bytes, any but NUL.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for an inode of another type, [`ErrorKind::Corrupt`] with the
/// address, and what the device reports.
pub fn read_link(fs: &Fs, io: &mut impl MetaIo, link: &Inode) -> Result<Vec<u8>> {
    if link.file_type != InodeType::Symlink {
        let detail = format!("{} is not a symbolic link", link.ino);
        return Err(Error::new(ErrorKind::InvalidInput, detail));
    }
    let bad = |what: &str| {
        corrupt(
            link.addr_bytes,
            format!("symbolic link {}: {what}", link.ino),
        )
    };
    let size = usize::try_from(link.size)
        .ok()
        .filter(|size| (1..=layout::TARGET_MAX_BYTES).contains(size))
        .ok_or_else(|| bad("a target of a length that cannot be"))?;
    let mut target = match &link.data {
        Fork::Local(target) => target.to_vec(),
        Fork::Extents(_) | Fork::Btree(_) => read_remote(fs, io, link, size)?,
        Fork::Special => return Err(bad("no target")),
    };
    if target.len() != size {
        return Err(bad("a target of another length than its inode says"));
    }
    // As readlink(), which shows a string.
    let len = target.iter().position(|byte| *byte == 0);
    target.truncate(len.unwrap_or(target.len()));
    if target.is_empty() {
        return Err(bad("a target that begins with NUL"));
    }
    Ok(target)
}

/// Each extent holds a header and a piece of the target.
fn read_remote(fs: &Fs, io: &mut impl MetaIo, link: &Inode, size: usize) -> Result<Vec<u8>> {
    let bad = |what: &str| {
        corrupt(
            link.addr_bytes,
            format!("symbolic link {}: {what}", link.ino),
        )
    };
    let header_bytes = size_of::<SymlinkHeader>();
    let block_bytes = usize::try_from(fs.geometry().block_bytes).unwrap_or(usize::MAX);
    // As many blocks as if each had a header of its own, though only each extent has one.
    let mut blocks_left = size.div_ceil(block_bytes.saturating_sub(header_bytes).max(1)) as u64;
    let mut target = Vec::with_capacity(size);
    let mut at = 0;
    while target.len() < size && blocks_left > 0 {
        let extent = match fs.find_extent(io, link, at)? {
            FoundExtent::Extent(extent) => extent,
            FoundExtent::Hole { end_blocks, .. } if end_blocks < u64::MAX => {
                at = end_blocks;
                continue;
            }
            FoundExtent::Hole { .. } => break,
        };
        at = extent.end_blocks();
        let blocks = extent.blocks.min(blocks_left);
        blocks_left = blocks_left.saturating_sub(blocks);
        let range = (extent.offset_blocks, blocks);
        let start = target.len();
        let piece = fs
            .read_fork(io, link, range, BlockKind::Symlink, |block| {
                check_piece(fs, link, &block.data, block.addr_bytes)
                    .map_err(|what| corrupt(block.addr_bytes, format!("{}: {what}", link.ino)))
            })?
            .ok_or_else(|| bad("its target lies in a hole"))?;
        let (header, rest) = SymlinkHeader::ref_from_prefix(&piece.data)
            .map_err(|_| bad("a piece of the target is cut off"))?;
        let bytes = size.saturating_sub(start).min(rest.len());
        if usize::try_from(header.offset.get()) != Ok(start)
            || usize::try_from(header.bytes.get()) != Ok(bytes)
        {
            let detail = format!("{}: a piece of another place of the target", link.ino);
            return Err(corrupt(piece.addr_bytes, detail));
        }
        target.extend_from_slice(rest.get(..bytes).unwrap_or_default());
    }
    Ok(target)
}

fn check_piece(fs: &Fs, link: &Inode, bytes: &[u8], addr_bytes: u64) -> Result<(), &'static str> {
    let (header, _) = SymlinkHeader::ref_from_prefix(bytes).map_err(|_| "cut off")?;
    if header.magic.get() != layout::MAGIC {
        return Err("a piece of the target without magic");
    }
    if !checksum_ok(bytes, layout::CRC_OFFSET) {
        return Err("a piece of the target whose checksum is wrong");
    }
    if header.uuid != *fs.meta_uuid() {
        return Err("a piece of the target of another filesystem (uuid)");
    }
    if header.owner.get() != link.ino.0 {
        return Err("a piece of the target of another owner");
    }
    if header.daddr.get().checked_mul(BASIC_BLOCK_BYTES) != Some(addr_bytes) {
        return Err("a piece of the target of another address");
    }
    Ok(())
}

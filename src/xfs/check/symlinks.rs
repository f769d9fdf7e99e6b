//! The targets of symbolic links.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::forks::ForkExtent;
use super::state::{At, Checker};
use crate::error::Result;
use crate::xfs::format::BASIC_BLOCK_BYTES;
use crate::xfs::format::symlink::{self as layout, SymlinkHeader};

impl Checker<'_> {
    /// A target inside the inode.
    pub(super) fn check_short_target(&mut self, at: At, target: &[u8]) {
        if target.contains(&0) {
            self.finding(at, "the target of the symbolic link has a NUL");
        }
    }

    /// A target of this size in blocks of its own: each extent has a header and a piece.
    pub(super) fn check_target_blocks(
        &mut self,
        (at, ino): (At, u64),
        size: u64,
        extents: &[ForkExtent],
    ) -> Result<()> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let head_bytes = size_of::<SymlinkHeader>();
        let room = self.block_bytes().saturating_sub(head_bytes).max(1);
        // As if each block had a header, as the kernel reckons.
        let most = u64::try_from(size.div_ceil(room)).unwrap_or(u64::MAX);
        let (mut done, mut blocks) = (0_usize, 0_u64);
        for extent in extents {
            if extent.offset != blocks || blocks.saturating_add(extent.blocks) > most {
                self.finding(at, "the extents of the target are not those of its size");
                return Ok(());
            }
            blocks = blocks.saturating_add(extent.blocks);
            let addr = self.geometry.block_addr(extent.start);
            let len = usize::try_from(self.geometry.bytes(extent.blocks)).unwrap_or(usize::MAX);
            let raw = self.read(addr, len)?;
            let at = At::inode(ino, addr);
            let Ok((header, rest)) = SymlinkHeader::ref_from_prefix(&raw) else {
                return Ok(());
            };
            let part = rest.len().min(size.saturating_sub(done));
            let is_piece = header.magic.get() == layout::MAGIC
                && header.owner.get() == ino
                && header.daddr.get() == addr / BASIC_BLOCK_BYTES
                && usize::try_from(header.offset.get()) == Ok(done)
                && usize::try_from(header.bytes.get()) == Ok(part);
            if !is_piece {
                self.finding(at, "a block that is not of the target of its link");
                return Ok(());
            }
            let seal = (layout::CRC_OFFSET, &header.uuid, header.lsn.get());
            self.check_seal(at, "target of a symbolic link", &raw, seal);
            self.check_short_target(at, rest.get(..part).unwrap_or_default());
            done = done.saturating_add(part);
        }
        if done < size {
            self.finding(at, format!("a target of {done} bytes, expected {size}"));
        }
        Ok(())
    }
}

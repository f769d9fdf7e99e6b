//! Values in blocks of their own.
//!
//! They are not logged: their blocks are written before the transaction that allocates them is
//! committed, which makes them durable with its checkpoint. Such blocks are not taken from those
//! whose freeing is not durable, which a crash would bring back.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::IntoBytes;

use super::blocks::AttrTree;
use super::layout::{self, RemoteHeader};
use super::short::bad_attributes;
use crate::error::Result;
use crate::xfs::bmap;
use crate::xfs::format::log::NULL_LSN;
use crate::xfs::format::{BASIC_BLOCK_BYTES, set_checksum};
use crate::xfs::trans::Trans;

const HEADER_BYTES: usize = size_of::<RemoteHeader>();

/// Blocks that a value takes: xfs_attr3_rmt_blocks().
fn blocks_of_value(t: &Trans<'_>, bytes: usize) -> u64 {
    let block = usize::try_from(t.geometry().block_bytes).unwrap_or(0);
    let each = block.saturating_sub(HEADER_BYTES).max(1);
    bytes.div_ceil(each) as u64
}

impl AttrTree {
    /// Allocates blocks for a value, in the first hole that is large enough, and has them written.
    /// The first of them.
    pub(super) fn put_value(self, t: &mut Trans<'_>, value: &[u8]) -> Result<u32> {
        let blocks = blocks_of_value(t, value.len());
        let first = self.first_unused(t, blocks)?;
        let end = first.saturating_add(blocks);
        let block_bytes = usize::try_from(t.geometry().block_bytes).unwrap_or(0);
        let part_bytes = block_bytes.saturating_sub(HEADER_BYTES).max(1);
        let mut parts = value.chunks(part_bytes).enumerate();
        let (mut at, mut last) = (first, None);
        while at < end {
            let most = u32::try_from(end.saturating_sub(at)).unwrap_or(u32::MAX);
            let extent = self.allocate(t, at, most, last.as_ref(), false)?;
            bmap::add(t, self.id(), &extent)?;
            let addr = t.geometry().block_addr(extent.start_block);
            let mut content = Vec::new();
            let count = usize::try_from(extent.blocks).unwrap_or(0);
            for (number, part) in parts.by_ref().take(count) {
                let offset = number.saturating_mul(part_bytes);
                let addr = addr.saturating_add(content.len() as u64);
                content.extend(self.value_block(t, addr, (offset, part), block_bytes));
            }
            t.write_unlogged(addr, content.into_boxed_slice());
            at = extent.end_blocks();
            last = Some(extent);
        }
        u32::try_from(first).map_err(|_| bad_attributes(t, self.ino, "too many blocks"))
    }

    /// A block with a part of a value, as xfs_attr3_rmt_hdr_set().
    fn value_block(
        self,
        t: &Trans<'_>,
        addr_bytes: u64,
        (offset, part): (usize, &[u8]),
        block_bytes: usize,
    ) -> Vec<u8> {
        let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).into();
        let header = RemoteHeader {
            magic: layout::MAGIC_REMOTE.into(),
            offset: word(offset),
            bytes: word(part.len()),
            crc: [0; 4],
            uuid: t.meta_uuid(),
            owner: self.ino.0.into(),
            daddr: (addr_bytes / BASIC_BLOCK_BYTES).into(),
            lsn: NULL_LSN.into(),
        };
        let mut block = [header.as_bytes(), part].concat();
        block.resize(block_bytes, 0);
        set_checksum(&mut block, layout::REMOTE_CRC_OFFSET);
        block
    }

    /// Frees the blocks of a value.
    pub(super) fn free_value(self, t: &mut Trans<'_>, block: u32, bytes: u32) -> Result<()> {
        if bytes == 0 {
            // Of an entry that is incomplete because its value was not written.
            return Ok(());
        }
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let first = u64::from(block);
        let end = first.saturating_add(blocks_of_value(t, len));
        if bytes > layout::VALUE_MAX_BYTES {
            return Err(bad_attributes(
                t,
                self.ino,
                "a value of an impossible length",
            ));
        }
        let mut at = first;
        for extent in bmap::parts_in(t, self.id(), &(first..end))? {
            if extent.offset_blocks != at || extent.unwritten {
                break;
            }
            at = extent.end_blocks();
            let addr = t.geometry().block_addr(extent.start_block);
            for number in 0..extent.blocks {
                // A block of the index that is a value, too, would be changed after it was freed.
                if t.has_buffer(addr.saturating_add(t.geometry().bytes(number))) {
                    return Err(bad_attributes(t, self.ino, "a value in the index"));
                }
            }
        }
        if at != end {
            return Err(bad_attributes(t, self.ino, "a value lies in a hole"));
        }
        self.free(t, first..end)
    }
}

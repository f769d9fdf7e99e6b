//! New chunks of inodes in a checkpoint: the kernel's xlog_recover_icreate_commit_pass2().

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::super::super::format::ag::NULL_AG;
use super::super::super::format::btree::CHUNK_INODES;
use super::super::super::format::inode::{self as layout, InodeCore};
use super::super::super::format::log_items::IcreateItem;
use super::super::super::format::{self, BASIC_BLOCK_BYTES};
use super::super::super::geometry::Ino;
use super::checkpoints::Item;
use super::{Replay, bad_item};
use crate::error::Result;

impl Replay<'_> {
    pub(super) fn chunk(&mut self, item: &Item) -> Result<()> {
        let (chunk, _) = IcreateItem::ref_from_prefix(item.region(0))
            .map_err(|_| bad_item("the item of new inodes is too short"))?;
        self.check_chunk(chunk).map_err(bad_item)?;
        let geometry = &self.geometry;
        let (ag, first) = (chunk.ag.get(), chunk.ag_block.get());
        let cluster = geometry.cluster_blocks();
        let basic = |bytes: u64| bytes / BASIC_BLOCK_BYTES;
        let addr = |block: u32| basic(geometry.ag_block_addr(ag, block));
        let len = basic(geometry.bytes(cluster.into()));
        let clusters: Vec<_> = (first..first.saturating_add(chunk.length.get()))
            .step_by(usize::try_from(cluster).unwrap_or(1).max(1))
            .map(|block| (block, (addr(block), len)))
            .collect();
        // The kernel allocates a chunk at a time: all of its buffers were freed, or none.
        if clusters.iter().any(|(_, place)| self.is_cancelled(*place)) {
            return Ok(());
        }
        let inodes_of_block = 1_u32.checked_shl(geometry.inopb_log).unwrap_or(1);
        for (block, place) in clusters {
            let (at, bytes) = self.check_place(place)?;
            let number = u64::from(block).saturating_mul(inodes_of_block.into());
            let content = self.new_inodes(ag, number, bytes, chunk.generation.get())?;
            self.put(at, &content, None)?;
        }
        Ok(())
    }

    fn check_chunk(&self, chunk: &IcreateItem) -> Result<(), &'static str> {
        let geometry = &self.geometry;
        let (ag, first, length) = (chunk.ag.get(), chunk.ag_block.get(), chunk.length.get());
        if chunk.regions.get() != 1 {
            return Err("the item of new inodes has an impossible number of regions");
        }
        let end = first.checked_add(length);
        if first == 0 || length == 0 || end.is_none_or(|end| end > geometry.ag_length(ag)) {
            return Err("new inodes outside of every allocation group");
        }
        if chunk.inode_bytes.get() != geometry.inode_bytes {
            return Err("new inodes of a wrong size");
        }
        let count = u64::from(length).wrapping_shl(geometry.inopb_log);
        let whole = u64::from(CHUNK_INODES.max(1_u32.wrapping_shl(geometry.inopb_log)));
        if u64::from(chunk.count.get()) != count || count > whole {
            return Err("a wrong number of new inodes");
        }
        if length.checked_rem(geometry.cluster_blocks()) != Some(0) {
            return Err("new inodes that are not of whole clusters");
        }
        Ok(())
    }

    /// A buffer of free inodes, as xfs_ialloc_inode_init() makes it.
    fn new_inodes(&self, ag: u32, first: u64, bytes: usize, generation: u32) -> Result<Vec<u8>> {
        let geometry = &self.geometry;
        let size = usize::try_from(geometry.inode_bytes).unwrap_or(usize::MAX);
        let ag_bits = geometry.ag_block_log.saturating_add(geometry.inopb_log);
        let mut content = vec![0; bytes];
        for (index, inode) in content.chunks_exact_mut(size.max(1)).enumerate() {
            let in_ag = first.saturating_add(index as u64);
            let ino = Ino(u64::from(ag).wrapping_shl(ag_bits) | in_ag);
            let mut core = InodeCore::new_zeroed();
            core.magic = layout::MAGIC.into();
            core.version = layout::VERSION;
            core.generation = generation.into();
            core.next_unlinked = NULL_AG.into();
            core.ino = ino.0.into();
            core.uuid = self.superblock.meta_uuid;
            let head = inode.get_mut(..layout::CORE_BYTES);
            head.ok_or_else(|| bad_item("an inode is too short"))?
                .copy_from_slice(core.as_bytes());
            if !format::set_checksum(inode, layout::CRC_OFFSET) {
                return Err(bad_item("an inode is too short"));
            }
        }
        Ok(content)
    }
}

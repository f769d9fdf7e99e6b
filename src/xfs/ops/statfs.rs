//! Space and inodes of the filesystem: the kernel's xfs_fs_statfs().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::alloc;
use super::super::{Fs, MetaIo};
use crate::error::Result;

/// Space of a filesystem, and its inodes, as statfs(2) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsUsage {
    /// Blocks of the data section without the log.
    pub blocks: u64,
    /// Blocks that users can allocate.
    pub free_blocks: u64,
    /// Inodes that exist, and those that the free blocks have room for.
    pub inodes: u64,
    /// Those of them that are not in use.
    pub free_inodes: u64,
}

impl Fs {
    /// Blocks and inodes as they are now. Where metadata may not be changed, what the kernel
    /// withholds for the btrees of the groups and in its pool counts as free, and the numbers are
    /// those of the superblock.
    ///
    /// # Errors
    /// Those of reading the headers of the groups.
    pub fn usage(&self, io: &mut impl MetaIo) -> Result<FsUsage> {
        let (blocks, free, inodes, free_inodes) = match self.check_changeable() {
            Ok(()) => self.look(io, |trans| {
                let count = alloc::count_space(trans)?;
                let (inodes, free_inodes) = trans.inode_counts();
                Ok((count.blocks, count.free, inodes, free_inodes))
            })?,
            Err(_) => {
                let info = self.info();
                let geometry = self.geometry();
                let blocks = geometry.data_blocks;
                let set_aside = alloc::SET_ASIDE.saturating_mul(geometry.ag_count.into());
                let free = info.free_bytes >> geometry.block_log;
                (
                    blocks.saturating_sub(geometry.log_blocks.into()),
                    free.saturating_sub(set_aside),
                    info.inodes,
                    info.free_inodes,
                )
            }
        };
        let free = free.min(blocks);
        let more = free.checked_shl(self.geometry().inopb_log).unwrap_or(free);
        let most = match self.info().most_inodes {
            0 => u64::MAX,
            most => most.max(inodes),
        };
        let total = inodes.saturating_add(more).min(most);
        let used = inodes.saturating_sub(free_inodes);
        Ok(FsUsage {
            blocks,
            free_blocks: free,
            inodes: total,
            free_inodes: total.saturating_sub(used),
        })
    }
}

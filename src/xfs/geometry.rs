//! The shape of a filesystem: sizes, and where numbers point.
//!
//! All fields were checked against each other when the superblock was read; numbers that come from
//! elsewhere on the disk go through [`Geometry::check_extent`] or [`Geometry::locate_inode`] before
//! they are used.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

/// A block of the filesystem, as metadata numbers it: the allocation group's number above, the
/// block inside the group in the low bits. Not linear on the device: see [`Geometry::block_addr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FsBlock(pub u64);

/// An inode number: group, block inside it, inode inside that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Ino(pub u64);

impl fmt::Display for FsBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {:#x}", self.0)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {}", self.0)
    }
}

/// Sizes and places, of a superblock that passed its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Geometry {
    /// Bytes of a block: 1 KiB to 64 KiB.
    pub block_bytes: u32,
    /// Its logarithm.
    pub block_log: u32,
    /// Bytes of a sector: 512 to 32 KiB, at most a block.
    pub sector_bytes: u32,
    /// Bytes of an inode: 512 to 2048.
    pub inode_bytes: u32,
    /// Its logarithm.
    pub inode_log: u32,
    /// Logarithm of the inodes in a block.
    pub inopb_log: u32,
    /// Bytes of a directory block: a block to 64 KiB.
    pub dir_block_bytes: u32,
    /// Blocks of a directory block.
    pub dir_block_blocks: u32,
    /// Blocks of the data section.
    pub data_blocks: u64,
    /// Blocks of an allocation group; the last one may be shorter.
    pub ag_blocks: u32,
    /// Logarithm of the blocks of an allocation group, rounded up: bits of the block number in a
    /// group.
    pub ag_block_log: u32,
    /// Allocation groups.
    pub ag_count: u32,
    /// First block of the internal log.
    pub log_start: FsBlock,
    /// Blocks of the internal log.
    pub log_blocks: u32,
    /// Bytes of the log's sectors.
    pub log_sector_bytes: u32,
    /// Whether the log does not count, as the mount option `norecovery` says: not even where it
    /// lies was checked.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) log_ignored: bool,
    /// Stripe unit of the log in bytes; 0 without.
    pub log_stripe_bytes: u32,
    /// The root directory.
    pub root_ino: Ino,
    /// Stripe unit of the data in blocks; 0 without.
    pub stripe_unit_blocks: u32,
    /// Stripe width of the data in blocks; 0 without.
    pub stripe_width_blocks: u32,
    /// Alignment of inode chunks in blocks.
    pub inode_align_blocks: u32,
}

/// Where an inode lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InodePlace {
    /// Its allocation group.
    pub(crate) ag: u32,
    /// Its number inside the group.
    pub(crate) ag_ino: u32,
    /// The block inside the group.
    pub(crate) ag_block: u32,
    /// Bytes from the start of the block.
    pub(crate) offset_bytes: u32,
}

impl Geometry {
    /// Blocks of a group; 0 for a group that does not exist.
    #[inline]
    pub fn ag_length(&self, ag: u32) -> u32 {
        let before = u64::from(ag).saturating_mul(u64::from(self.ag_blocks));
        if ag >= self.ag_count {
            return 0;
        }
        let rest = self.data_blocks.saturating_sub(before);
        u32::try_from(rest).map_or(self.ag_blocks, |rest| rest.min(self.ag_blocks))
    }

    /// The block `ag_block` of group `ag`.
    #[inline]
    pub fn fs_block(&self, ag: u32, ag_block: u32) -> FsBlock {
        FsBlock(u64::from(ag).wrapping_shl(self.ag_block_log) | u64::from(ag_block))
    }

    /// Group and block inside the group. The group is `u32::MAX` when the number has more bits than
    /// any group number.
    #[inline]
    pub fn split(&self, block: FsBlock) -> (u32, u32) {
        let ag = u32::try_from(block.0.wrapping_shr(self.ag_block_log)).unwrap_or(u32::MAX);
        let mask = 1_u64.wrapping_shl(self.ag_block_log).wrapping_sub(1);
        // At most 31 bits are left: groups are smaller than 1 TiB.
        let ag_block = u32::try_from(block.0 & mask).unwrap_or(u32::MAX);
        (ag, ag_block)
    }

    /// Byte address on the device of a block inside a group.
    #[inline]
    pub fn ag_block_addr(&self, ag: u32, ag_block: u32) -> u64 {
        u64::from(ag)
            .wrapping_mul(u64::from(self.ag_blocks))
            .wrapping_add(u64::from(ag_block))
            .wrapping_shl(self.block_log)
    }

    /// Byte address on the device of a block that was checked.
    #[inline]
    pub fn block_addr(&self, block: FsBlock) -> u64 {
        let (ag, ag_block) = self.split(block);
        self.ag_block_addr(ag, ag_block)
    }

    /// The block that begins at or contains a byte address of the device.
    pub fn block_at_addr(&self, addr_bytes: u64) -> FsBlock {
        let linear = addr_bytes.wrapping_shr(self.block_log);
        let per_ag = u64::from(self.ag_blocks.max(1));
        let ag = linear.checked_div(per_ag).unwrap_or(0);
        let ag_block = linear.checked_rem(per_ag).unwrap_or(0);
        FsBlock(ag.wrapping_shl(self.ag_block_log) | ag_block)
    }

    /// Bytes of `blocks` blocks.
    #[inline]
    pub fn bytes(&self, blocks: u64) -> u64 {
        blocks.wrapping_shl(self.block_log)
    }

    /// First block of a group that can hold anything but the group's headers.
    pub fn first_data_ag_block(&self) -> u32 {
        let headers = self.sector_bytes.saturating_mul(4);
        headers.div_ceil(self.block_bytes.max(1))
    }

    /// Whether `blocks` blocks from `start` exist, lie in one group, and touch neither group
    /// headers nor the log. The text names the fault.
    ///
    /// # Errors
    /// A description of the fault.
    pub fn check_extent(&self, start: FsBlock, blocks: u64) -> Result<(), &'static str> {
        let (ag, ag_block) = self.split(start);
        let length = self.ag_length(ag);
        if length == 0 {
            return Err("in an allocation group that does not exist");
        }
        let end = u64::from(ag_block)
            .checked_add(blocks)
            .ok_or("longer than an allocation group")?;
        if blocks == 0 {
            return Err("without length");
        }
        if end > u64::from(length) {
            return Err("beyond the end of its allocation group");
        }
        if ag_block < self.first_data_ag_block() {
            return Err("in the headers of an allocation group");
        }
        let (log_ag, log_block) = self.split(self.log_start);
        let log_end = u64::from(log_block).saturating_add(u64::from(self.log_blocks));
        let in_log = !self.log_ignored && ag == log_ag;
        if in_log && u64::from(ag_block) < log_end && end > u64::from(log_block) {
            return Err("in the log");
        }
        Ok(())
    }

    /// Where an inode lies, if there is room for one of that number.
    pub(crate) fn locate_inode(&self, ino: Ino) -> Option<InodePlace> {
        let bits = self.ag_block_log.checked_add(self.inopb_log)?;
        let ag = u32::try_from(ino.0.checked_shr(bits)?).ok()?;
        let mask = 1_u64.checked_shl(bits)?.checked_sub(1)?;
        let ag_ino = u32::try_from(ino.0 & mask).ok()?;
        let ag_block = ag_ino.checked_shr(self.inopb_log)?;
        let first = self.first_data_ag_block();
        if ag_block < first || ag_block >= self.ag_length(ag) {
            return None;
        }
        let index_mask = 1_u32.checked_shl(self.inopb_log)?.checked_sub(1)?;
        Some(InodePlace {
            ag,
            ag_ino,
            ag_block,
            offset_bytes: (ag_ino & index_mask).checked_shl(self.inode_log)?,
        })
    }

    /// The group and the number inside the group, as used in inode btrees; `None` for a number that
    /// cannot exist.
    pub fn split_inode(&self, ino: Ino) -> Option<(u32, u32)> {
        self.locate_inode(ino).map(|place| (place.ag, place.ag_ino))
    }

    /// Blocks of a buffer of inodes, as xfs_ialloc_setup_geometry().
    pub(crate) fn cluster_blocks(&self) -> u32 {
        const SMALL_BYTES: u32 = 8192;
        let blocks = |bytes: u32| bytes.checked_shr(self.block_log).unwrap_or(0);
        let large = self.inode_bytes.saturating_mul(32);
        let bytes = if self.inode_align_blocks >= blocks(large) {
            large
        } else {
            SMALL_BYTES
        };
        blocks(bytes).max(1)
    }

    /// Largest size of a file in bytes: what a signed 64-bit offset can say.
    pub const MAX_FILE_BYTES: u64 = i64::MAX.unsigned_abs();

    /// The first block behind every file.
    pub fn limit_blocks(&self) -> u64 {
        let most = Self::MAX_FILE_BYTES.checked_shr(self.block_log);
        most.unwrap_or(0).saturating_add(1)
    }
}

//! The properties of an opened volume.

use crate::target::TargetInfo;
use crate::xfs::Fs;

/// The filesystem on it.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let info = volume.info().filesystem;
/// println!("{}: {} of {} blocks are free", info.uuid, info.free_blocks, info.blocks);
/// # drop(io);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FilesystemInfo {
    /// Always `xfs` today.
    pub kind: String,
    /// Label; empty when there is none. Bytes that are not UTF-8 are replaced.
    pub label: String,
    /// UUID in the usual notation.
    pub uuid: String,
    /// Bytes in a filesystem block.
    pub block_bytes: u32,
    /// Bytes in a sector.
    pub sector_bytes: u32,
    /// Bytes in an inode.
    pub inode_bytes: u32,
    /// Bytes in a directory block.
    pub dir_block_bytes: u32,
    /// Allocation groups.
    pub ag_count: u32,
    /// Blocks in an allocation group.
    pub ag_blocks: u32,
    /// Blocks in the filesystem.
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Allocated inodes.
    pub inodes: u64,
    /// Free ones among them.
    pub free_inodes: u64,
    /// Inodes that may exist at most (mkfs.xfs -i maxpct); 0 for no limit.
    pub most_inodes: u64,
    /// Blocks of the log.
    pub log_blocks: u32,
    /// The log on the device holds changes: they were replayed into memory, or, without recovery,
    /// not at all.
    pub log_dirty: bool,
    /// Features by name.
    pub features: Vec<String>,
    /// Why the filesystem may only be read; `None` when it may be written.
    pub read_only_reason: Option<String>,
}

/// Space and inodes of a filesystem at one time, as statvfs(3) has them.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let now = volume.statfs(&mut io)?;
/// println!("{} bytes are free", now.free_blocks * u64::from(now.block_bytes));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Statfs {
    /// Bytes in a block.
    pub block_bytes: u32,
    /// Blocks of the filesystem, without the log.
    pub blocks: u64,
    /// Blocks that files can have.
    pub free_blocks: u64,
    /// Inodes that exist, and those that the free blocks have room for.
    pub inodes: u64,
    /// Inodes that are not in use.
    pub free_inodes: u64,
}

impl FilesystemInfo {
    pub(super) fn of(fs: &Fs, read_only: Option<&str>) -> Self {
        let info = fs.info();
        let geometry = info.geometry;
        Self {
            kind: "xfs".to_owned(),
            label: info.label,
            uuid: info.uuid,
            block_bytes: geometry.block_bytes,
            sector_bytes: geometry.sector_bytes,
            inode_bytes: geometry.inode_bytes,
            dir_block_bytes: geometry.dir_block_bytes,
            ag_count: geometry.ag_count,
            ag_blocks: geometry.ag_blocks,
            blocks: geometry.data_blocks,
            free_blocks: info.free_bytes / u64::from(geometry.block_bytes.max(1)),
            inodes: info.inodes,
            free_inodes: info.free_inodes,
            most_inodes: info.most_inodes,
            log_blocks: geometry.log_blocks,
            log_dirty: info.log_dirty,
            features: info.features,
            read_only_reason: info.read_only.or(read_only.map(str::to_owned)),
        }
    }
}

/// All of it.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// let info = volume.info();
/// println!("{} on {}", info.filesystem.kind, info.target.model);
/// # drop(io);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VolumeInfo {
    /// The controller and namespace.
    pub target: TargetInfo,
    /// The filesystem.
    pub filesystem: FilesystemInfo,
}

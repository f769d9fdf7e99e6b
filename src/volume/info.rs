//! What a volume stands on, for people and reports.

use serde::Serialize;

use crate::xfs::Fs;

/// The controller and namespace behind a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetInfo {
    /// The target as it was opened.
    pub target: String,
    /// What stands behind it, in words: never mistake the embedded controller for a disk.
    pub engine: String,
    /// Model string.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
    /// NVMe version of the controller, like `1.4.0`.
    pub nvme_version: String,
    /// Namespace.
    pub nsid: u32,
    /// Bytes in a logical block.
    pub lba_bytes: u32,
    /// Bytes in the namespace.
    pub capacity_bytes: u64,
    /// Largest single command in bytes; `None` when the controller sets no limit.
    pub max_transfer_bytes: Option<u32>,
    /// Blocks between boundaries that commands do not cross; 0 when there are none.
    pub boundary_blocks: u32,
    /// Completed writes may be lost with power until a flush.
    pub volatile_write_cache: bool,
    /// Writes are refused by the device or by how it was opened.
    pub read_only: bool,
    /// Queue pairs that can exist at once.
    pub max_queue_pairs: u32,
    /// Operations in flight per queue pair, as opened.
    pub queue_depth: u32,
    /// How threads wait for the device: `poll`, `interrupt` or `adaptive`.
    pub wait: String,
    /// How an embedded controller runs: `inline`, on the thread that waits, or `threaded`, on one of its
    /// own; `none` where a device does the work.
    pub controller: String,
    /// What the DMA memory is made of: `hugepages`, `locked pages` or `pageable memory`.
    pub memory: String,
}

/// The filesystem on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    /// Blocks of the log.
    pub log_blocks: u32,
    /// The log holds changes (opened without recovery, for reading).
    pub log_dirty: bool,
    /// Features by name.
    pub features: Vec<String>,
    /// Why the filesystem may only be read; `None` when it may be written.
    pub read_only_reason: Option<String>,
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
            log_blocks: geometry.log_blocks,
            log_dirty: info.log_dirty,
            features: info.features,
            read_only_reason: info.read_only.or(read_only.map(str::to_owned)),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeInfo {
    /// The controller and namespace.
    pub target: TargetInfo,
    /// The filesystem.
    pub filesystem: FilesystemInfo,
}

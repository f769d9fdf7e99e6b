//! The properties of an opened target.

/// The controller and namespace behind a target.
///
/// ```
/// # use xtent::target::{Target, TargetOptions};
/// # fn main() -> xtent::Result<()> {
/// let target = Target::open("ram:64M", &TargetOptions::new())?;
/// let info = target.info();
/// assert_eq!(info.capacity_bytes, 64 << 20);
/// println!("{}, blocks of {} bytes", info.engine, info.lba_bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    /// Bytes that can be accessed: those of the namespace or block device, or of the part of it
    /// that the options `part` or `offset` name.
    pub capacity_bytes: u64,
    /// The byte of the namespace or block device where they begin; 0 without those options.
    pub start_bytes: u64,
    /// Number of the partition that the option `part` names.
    pub partition: Option<u32>,
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
    /// How an embedded controller runs: `inline`, on the thread that waits, or `threaded`, on one
    /// of its own; `none` where a device does the work.
    pub controller: String,
    /// What the DMA memory is made of: `hugepages`, `locked pages` or `pageable memory`.
    pub memory: String,
}

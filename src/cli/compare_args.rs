//! The arguments of `xtent compare`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::LocalPath;
use super::values::{size, time};
use crate::bench::compare_plan::WorkloadSet;
use crate::bench::engine_name::EngineName;
use crate::bench::image;

const AFTER_HELP: &str = "\
The same list of workloads runs on the kernel's XFS (O_DIRECT; psync at depth 1 and io_uring above)
and on xtent, in alternating rounds, on the same files at the same offsets. The report describes the
method of each side. Afterwards each side checks what the other wrote, the file that is only read
must be unchanged, and xfs_repair -n must find the filesystem clean.

With --image (or neither): a loop mount for the kernel, the embedded controller for xtent. Neither
is a disk: both end in the page cache. The kernel's side needs root; otherwise it is skipped with a
notice.

With --device: an NVMe disk, which is ERASED. It must be bound to the kernel's driver, not in use,
behind an IOMMU; needs root. The kernel's rounds use its own driver, xtent's use VFIO on the same
controller. At the end, after an error and when interrupted the disk goes back to the kernel's
driver; after a SIGKILL the next comparison gives it back, or: vfio-setup.sh reset ADDRESS.

--workloads sync has overwrites that are durable at once: O_DSYNC, and fsync after each write, where
a new time of modification makes both sides write their logs. --workloads grow has writes that
allocate, to a file that each run lays out anew.

Figures and ratios are of all rounds together. Where the rounds differ widely their range is shown:
no stable difference. Ctrl-C ends the comparison and shows the results so far, marked as
interrupted; the exit status is 130.

Mounts are private to the process and end with it, even when it is killed.

Examples:
  xtent compare --image disk.img --report report.html
  xtent compare --device 0000:01:00.0 --i-may-erase S5GXNX0R --report report.html
  xtent compare --engines native,spdk --target pci:0000:01:00.0";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CompareArgs {
    /// An XFS image that is not in use [default: a temporary one, made by mkfs.xfs]
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<LocalPath>,
    /// The PCI address of an NVMe disk, with a namespace where there are several; it is ERASED
    #[arg(long, value_name = "ADDRESS[/NSID]", requires = "i_may_erase")]
    #[arg(conflicts_with_all = ["image", "read_file", "write_file", "grow_file", "no_kernel"])]
    #[arg(conflicts_with_all = ["loop_direct_io", "loop_sector_size", "controller"])]
    pub(super) device: Option<String>,
    /// The serial number of that disk, or of the target of --engines, which confirms that it may
    /// be erased
    #[arg(long, value_name = "SERIAL", conflicts_with = "image")]
    pub(super) i_may_erase: Option<String>,
    /// Compare engines on the blocks of one target, without a filesystem; it is only read, unless
    /// --i-may-erase names its serial number
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        requires = "target"
    )]
    pub(super) engines: Vec<EngineName>,
    /// The target of --engines (see `xtent --help`)
    #[arg(long, value_name = "TARGET", requires = "engines")]
    #[arg(conflicts_with_all = ["image", "device", "read_file", "write_file", "grow_file", "report"])]
    #[arg(conflicts_with = "no_kernel")]
    #[arg(conflicts_with_all = ["loop_direct_io", "loop_sector_size", "controller", "target_options"])]
    pub(super) target: Option<String>,
    /// Bytes of each of the two files made on that disk [default: 1g, less on a small disk]
    #[arg(long, value_name = "SIZE", requires = "device", value_parser = size)]
    pub(super) file_size: Option<u64>,
    /// The file of the image that is read
    #[arg(long, value_name = "PATH", default_value = image::READ_FILE)]
    pub(super) read_file: String,
    /// The file of the image that is OVERWRITTEN
    #[arg(long, value_name = "PATH", default_value = image::WRITE_FILE)]
    pub(super) write_file: String,
    /// The file of the image that --workloads grow EMPTIES and writes again and again
    #[arg(long, value_name = "PATH", default_value = image::GROW_FILE)]
    pub(super) grow_file: String,
    /// The workloads: reads and overwrites, overwrites that are durable at once, writes that
    /// allocate
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        default_value = "overwrite"
    )]
    #[arg(conflicts_with_all = ["engines", "buffered"])]
    pub(super) workloads: Vec<WorkloadSet>,
    /// Write a report as one HTML page
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<LocalPath>,
    /// Write all results as JSON (`-` for standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<LocalPath>,
    /// The number of rounds of each side
    #[arg(long, visible_alias = "alternate", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(super) rounds: u16,
    /// The measured time of each workload in each round
    #[arg(long, default_value = "2", value_parser = time)]
    pub(super) runtime: Duration,
    /// Run for this long before measuring
    #[arg(long, default_value = "0.2", value_parser = time)]
    pub(super) ramp_time: Duration,
    /// Use the page caches of both sides: pread and pwrite without O_DIRECT, and xtent's own cache.
    /// Both files are cached completely before anything is measured, unless --memory limits it
    #[arg(long, conflicts_with = "engines")]
    pub(super) buffered: bool,
    /// Make written data durable after every N writes, on both sides
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        conflicts_with = "engines"
    )]
    pub(super) fsync: u64,
    /// The memory for caching on each side: the size of xtent's page cache, and the limit of a
    /// cgroup (v2) for the kernel's side, which includes what the loop device caches of the image
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "buffered")]
    pub(super) memory: Option<u64>,
    /// The seed of the offsets
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Skip the kernel's side
    #[arg(long)]
    pub(super) no_kernel: bool,
    /// Let the loop device bypass the page cache
    #[arg(long)]
    pub(super) loop_direct_io: bool,
    /// The loop device's sector size in bytes
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(512..=4096))]
    pub(super) loop_sector_size: u32,
    /// The thread that runs the embedded controller: the one that waits (inline), as the kernel's
    /// loop device does where it can, or one of its own (threaded), which needs another CPU
    #[arg(long, value_enum, default_value = "inline")]
    pub(super) controller: Controlled,
    /// Options for xtent's target, such as lba=4096,mdts=5 (`inline` and `threaded` by
    /// --controller)
    #[arg(long, value_name = "OPTIONS")]
    pub(super) target_options: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Controlled {
    Inline,
    Threaded,
}

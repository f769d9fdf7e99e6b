//! The options of `xtent bench`, and the workload that they describe.

use std::time::Duration;

use clap::{Args, ValueEnum};
use xtent::target::Wait;

use super::failure::{Failure, USAGE};
use super::output::size_text;
use super::values::{
    CpuList, PercentileList, Share, cpus, flag, percentiles, share, size, time, wait,
};
use super::{LocalPath, TargetArg, VolumePath};
use crate::bench::hist::Percentiles;
use crate::bench::layout::{Fallocate, Layout};
use crate::bench::workload::{Measure, Rw, Workload, WriteSync};

/// Differences from fio. Everything else that has fio's name means what it means to
/// fio.
const DIFFERENCES: &str = "\
Options have fio's names and meanings, with - or _ between words, and flags as --FLAG or
--FLAG=0|1. Differences from fio:
  - TARGET and PATH take the place of --filename; the target chooses the engine: there is no
    --ioengine.
  - The defaults are --direct=1, --group-reporting=1 and --clat-percentiles=1; --name is `bench`.
  - --iodepth is the number of operations in flight, also where fio's psync engine ignores it;
    with --buffered it is 1.
  - --fsync and --fdatasync wait for the operations in flight, and exclude each other. A
    workload that writes also syncs at its end, which is not measured.
  - Without --fallocate or --file-append a --size past the end of the file is an error: a file
    is not made longer by mistake. --touch is xtent's own.
  - --verify is a flag: xtent's own pattern, with the offset and --seed in it. After a workload
    that writes, all blocks that it wrote are read back, which is not measured. With --verify,
    --runtime implies --time-based.
  - slat ends when the engine has the command. With --buffered, submission and completion are
    one call: there is no slat.
  - JSON always has the bins of json+. Percentiles have three significant digits (fio: two).
  - Percentiles of fewer operations than they need are marked with *, in JSON by
    percentile_too_few_samples.
  - Not there: job files, rates (--rate), distributions (--random_distribution), splits
    (--bssplit), --trim, --zonemode and the rest of fio's options. They are rejected with a
    message: run fio itself for them.";

const EXAMPLES: &str = "\
I/O is direct, from DMA memory, without copies. With --buffered it goes through xtent's page cache,
one operation at a time, of any size. A workload that writes OVERWRITES THE FILE. With --raw the
load goes to the blocks of the target; one that writes DESTROYS ALL DATA ON IT.

Ctrl-C ends the run and prints the results so far, marked as interrupted; the exit status is 130.

Examples:
  xtent bench disk.img /data --rw=randread --iodepth=32 --runtime=10 --time_based
  xtent bench disk.img /data --rw=randrw --numjobs=4 --output-format=json+ --output=result.json
  xtent bench --raw pci:0000:01:00.0 --rw=randread --bs=512 --iodepth=128 --runtime=10 --time_based";

fn after_help() -> String {
    format!("{DIFFERENCES}\n\n{EXAMPLES}")
}

/// fio's `--output-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Text
    Normal,
    /// JSON
    Json,
    /// JSON with the buckets of latencies
    #[value(name = "json+")]
    JsonPlus,
}

#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub(super) target: TargetArg,
    /// The file; workloads that write overwrite it
    #[arg(
        value_name = "PATH",
        required_unless_present = "raw",
        conflicts_with = "raw"
    )]
    pub(super) path: Option<VolumePath>,
    /// Use the target's own blocks instead of a file, and look for no filesystem
    #[arg(long)]
    raw: bool,
    /// With --raw and a workload that writes: the serial number of the target, which is OVERWRITTEN
    /// (`xtent info` shows it)
    #[arg(long, value_name = "SERIAL", conflicts_with = "path")]
    pub(super) i_may_erase: Option<String>,
    /// The name of the job in the results
    #[arg(long, default_value = "bench", hide_default_value = true)]
    name: String,
    /// The type of I/O
    #[arg(long, alias = "readwrite", value_enum, default_value = "read")]
    pub(super) rw: Rw,
    /// Percent of reads in a mixed workload
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixread: u8,
    /// Percent of writes in a mixed workload, instead
    #[arg(long, conflicts_with = "rwmixread", value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixwrite: Option<u8>,
    /// Bytes of an operation
    #[arg(long, alias = "blocksize", default_value = "4k", value_parser = size)]
    bs: u64,
    /// Operations in flight per job
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) iodepth: u32,
    /// Threads, each with a queue pair of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    numjobs: u32,
    /// Bytes that each job does, or a percentage of the file as in 50% [default: up to the file's
    /// end]
    #[arg(long, value_parser = share)]
    size: Option<Share>,
    /// Where in the file jobs begin, in bytes or as a percentage
    #[arg(long, value_parser = share)]
    offset: Option<Share>,
    /// End after this long, if not before by having done every block once
    #[arg(long, value_parser = time)]
    runtime: Option<Duration>,
    /// Run for all of the runtime, looping over the blocks
    #[arg(long, alias = "time_based", value_name = "BOOL", requires = "runtime", value_parser = flag)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "1")]
    #[arg(hide_default_value = true)]
    time_based: bool,
    /// Run for this long before measuring
    #[arg(long, alias = "ramp_time", value_parser = time)]
    ramp_time: Option<Duration>,
    /// The most operations of each job; 0 for no limit
    #[arg(long, alias = "number_ios")]
    number_ios: Option<u64>,
    /// Go through the page cache instead of direct I/O
    #[arg(long, value_name = "BOOL", value_parser = flag)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "1")]
    #[arg(hide_default_value = true)]
    buffered: bool,
    /// Use direct I/O; --direct=0 is --buffered
    #[arg(long, value_name = "BOOL", value_parser = flag)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "1", default_missing_value = "1")]
    #[arg(hide_default_value = true)]
    direct: bool,
    /// The size of that page cache [default: an eighth of the free hugepages, or 64m]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "buffered")]
    pub(super) memory: Option<u64>,
    /// Show the counters of the page cache: hits, misses, read-ahead, reclaim
    #[arg(long, requires = "buffered")]
    pub(super) cache_stats: bool,
    /// Sync data and metadata after every N writes of a job
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    fsync: u64,
    /// Sync data, and the metadata that is needed to read it, after every N writes of a job
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    #[arg(conflicts_with = "fsync")]
    fdatasync: u64,
    /// Set the file's time of modification before each of these syncs, so that they write the log
    #[arg(long)]
    touch: bool,
    /// Whether writes are durable when they end
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    sync: WriteSync,
    /// Allow writes past the end of the file, and lay it out like this first
    #[arg(long, value_enum, conflicts_with = "raw")]
    fallocate: Option<Fallocate>,
    /// Write behind the end of the file: --offset is its length
    #[arg(long, alias = "file_append", value_name = "BOOL", value_parser = flag)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "1")]
    #[arg(hide_default_value = true, conflicts_with_all = ["raw", "offset"], requires = "size")]
    file_append: bool,
    /// How threads wait: poll, sleep until the device interrupts, or poll for a while and then
    /// sleep; the target's own option `wait=` goes before this one
    #[arg(long, value_parser = wait, value_name = "poll|interrupt|adaptive", default_value = "poll")]
    pub(super) wait: Wait,
    /// Run jobs on these CPUs only, as in 0-3,6
    #[arg(long, alias = "cpus_allowed", value_name = "LIST", value_parser = cpus)]
    cpus_allowed: Option<CpuList>,
    /// Write a pattern and read it back; a workload that only reads checks a pattern written before
    /// with the same seed and block size
    #[arg(long)]
    verify: bool,
    /// The seed of random order and pattern
    #[arg(long, default_value_t = 0x1db7_1064, visible_alias = "randseed")]
    seed: u64,
    /// Show all jobs as one group; with 0 each job by itself
    #[arg(long, alias = "group_reporting", value_name = "BOOL", value_parser = flag)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "1", default_missing_value = "1")]
    #[arg(hide_default_value = true)]
    pub(super) group_reporting: bool,
    /// The percentiles to show, up to 99.9999, as in 50:99:99.9999
    #[arg(long, alias = "percentile_list", value_name = "LIST", value_parser = percentiles)]
    pub(super) percentile_list: Option<PercentileList>,
    /// Show percentiles of the time from before an operation's submission to its completion
    #[arg(long, alias = "lat_percentiles", value_name = "BOOL", value_parser = flag)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "1")]
    #[arg(hide_default_value = true)]
    pub(super) lat_percentiles: bool,
    /// Show percentiles of the time that submissions take
    #[arg(long, alias = "slat_percentiles", value_name = "BOOL", value_parser = flag)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "1")]
    #[arg(hide_default_value = true)]
    pub(super) slat_percentiles: bool,
    /// Write fio's log of completion latencies over time to PREFIX_clat_hist.N.log for each job
    #[arg(long, alias = "write_hist_log", value_name = "PREFIX")]
    pub(super) write_hist_log: Option<LocalPath>,
    /// Write the same to one file in HdrHistogram's format
    #[arg(long, alias = "write_hlog", value_name = "FILE.hlog")]
    pub(super) write_hlog: Option<LocalPath>,
    /// The interval of these logs in milliseconds
    #[arg(
        long,
        alias = "log_hist_msec",
        value_name = "MS",
        default_value_t = 1000
    )]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    log_hist_msec: u64,
    /// Write the results to this file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<LocalPath>,
    /// The form of the results; --json is json+
    #[arg(long, alias = "output_format", value_enum, default_value = "normal")]
    output_format: Format,
    /// Print JSON, with names as in fio's
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    pub(super) fn is_buffered(&self) -> bool {
        self.buffered || !self.direct
    }

    pub(super) fn format(&self) -> Format {
        if self.json {
            Format::JsonPlus
        } else {
            self.output_format
        }
    }

    /// Offset and size of the load on a file of this length.
    fn range(&self, len_bytes: u64) -> Result<(u64, u64), Failure> {
        let usage = |text: String| Failure::new(USAGE, text);
        if self.raw && self.is_buffered() {
            return Err(usage(
                "--raw is always direct: leave out --buffered and --direct=0".into(),
            ));
        }
        if self.raw && (self.touch || self.sync != WriteSync::None) {
            return Err(usage(
                "--touch and --sync are for files, not for --raw".into(),
            ));
        }
        let offset_bytes = match self.file_append {
            true => len_bytes,
            false => self.offset.map_or(0, |offset| offset.start(len_bytes)),
        };
        let may_grow = self.file_append || self.fallocate.is_some();
        let rest = len_bytes.checked_sub(offset_bytes).ok_or_else(|| {
            let len = size_text(len_bytes);
            usage(format!(
                "--offset {offset_bytes} exceeds the file size ({len})"
            ))
        })?;
        let size_bytes = match self.size {
            None | Some(Share::Bytes(0)) => rest,
            Some(size) => size.of(len_bytes),
        };
        if size_bytes > rest && !may_grow {
            return Err(usage(format!(
                "{}--size {size_bytes} exceeds the file size ({len_bytes} bytes)",
                if offset_bytes > 0 {
                    "--offset and "
                } else {
                    ""
                },
            )));
        }
        Ok((offset_bytes, size_bytes))
    }

    /// The load on a file of this length.
    pub(super) fn workload(&self, len_bytes: u64) -> Result<Workload, Failure> {
        let (offset_bytes, size_bytes) = self.range(len_bytes)?;
        // Zero is no limit, as for fio.
        let runtime = self.runtime.filter(|runtime| !runtime.is_zero());
        let log = self.write_hist_log.is_some() || self.write_hlog.is_some();
        let workload = Workload {
            name: self.name.clone(),
            rw: self.rw,
            rwmixread: self.rwmixwrite.map_or(self.rwmixread, |write| 100 - write),
            block_bytes: usize::try_from(self.bs).unwrap_or(usize::MAX),
            iodepth: self.iodepth as usize,
            numjobs: self.numjobs as usize,
            size_bytes,
            runtime,
            time_based: (self.time_based || self.verify) && runtime.is_some(),
            ramp_time: self.ramp_time.filter(|ramp| !ramp.is_zero()),
            number_ios: self.number_ios.filter(|&number| number > 0),
            verify: self.verify,
            seed: self.seed,
            buffered: self.is_buffered(),
            fsync: self.fsync,
            fdatasync: self.fdatasync,
            touch: self.touch,
            sync: self.sync,
            fallocate: self.fallocate,
            file_append: self.file_append,
            layout: Layout::Found,
            offset_bytes,
            measure: Measure {
                split: !self.is_buffered(),
                percentiles: Percentiles {
                    slat: self.slat_percentiles,
                    lat: self.lat_percentiles,
                },
                log: log.then(|| Duration::from_millis(self.log_hist_msec)),
                cpus: self.cpus_allowed.clone().unwrap_or_default().0,
                ..Measure::default()
            },
        };
        workload.check()?;
        Ok(workload)
    }
}

//! A workload with fio's parameters, and its sequence of operations.
//!
//! The sequence follows from the workload alone (seed included): every engine gets the same
//! operations at the same offsets in the same order.

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use xtent::{Error, ErrorKind, Result};

use super::hist::Percentiles;
use super::layout::{Fallocate, Layout};
use super::mix::mix;
use super::{LoadOp, SyncKind};

/// fio's `rw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rw {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Random reads and writes, mixed by --rwmixread
    Randrw,
    /// Sequential reads and writes, mixed by --rwmixread
    #[value(alias = "rw")]
    Readwrite,
}

impl Rw {
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Randread)
    }

    pub(crate) fn reads(self) -> bool {
        !matches!(self, Self::Write | Self::Randwrite)
    }

    pub(crate) fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite | Self::Randrw)
    }

    /// As fio writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Randrw => "randrw",
            Self::Readwrite => "readwrite",
        }
    }
}

/// fio's `sync`: whether a write is durable when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WriteSync {
    /// Not before a sync
    #[default]
    #[value(alias = "0")]
    None,
    /// Data and metadata: the file is opened with O_SYNC
    #[value(alias = "1")]
    Sync,
    /// Data, and the metadata that is needed to read it: the file is opened with O_DSYNC
    Dsync,
}

impl WriteSync {
    /// The flag of open(2).
    pub(crate) fn open_flag(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Sync => libc::O_SYNC,
            Self::Dsync => libc::O_DSYNC,
        }
    }
}

/// A load on one file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) rw: Rw,
    /// Percent of operations that read, for mixed workloads.
    pub(crate) rwmixread: u8,
    #[serde(rename = "bs")]
    pub(crate) block_bytes: usize,
    pub(crate) iodepth: usize,
    pub(crate) numjobs: usize,
    /// The bytes from the offset on: each job does all of them.
    #[serde(rename = "size")]
    pub(crate) size_bytes: u64,
    /// The longest that is measured; without it, until every block was done once.
    #[serde(serialize_with = "seconds")]
    pub(crate) runtime: Option<Duration>,
    /// Loops over the data until the runtime is over.
    pub(crate) time_based: bool,
    /// The time to run before measuring.
    #[serde(serialize_with = "seconds")]
    pub(crate) ramp_time: Option<Duration>,
    /// The most operations each job does.
    pub(crate) number_ios: Option<u64>,
    pub(crate) verify: bool,
    pub(crate) seed: u64,
    /// Through the page cache, by calls that return when they are done.
    pub(crate) buffered: bool,
    /// Syncs data and metadata after so many writes of a job; 0 for never before the end.
    pub(crate) fsync: u64,
    /// The same for data, with the metadata that is needed to read it. Only one of both is not 0.
    pub(crate) fdatasync: u64,
    /// Sets the time of modification before each of these syncs.
    pub(crate) touch: bool,
    pub(crate) sync: WriteSync,
    /// Space for writes past the end of the file, and whether there may be any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fallocate: Option<Fallocate>,
    /// The offset is the end of the file.
    pub(crate) file_append: bool,
    #[serde(skip)]
    pub(crate) layout: Layout,
    /// The offset of the first block in the file.
    #[serde(rename = "offset")]
    pub(crate) offset_bytes: u64,
    #[serde(skip)]
    pub(crate) measure: Measure,
}

impl Default for Workload {
    /// fio's defaults, but without a size; direct.
    fn default() -> Self {
        Self {
            name: String::new(),
            rw: Rw::Read,
            rwmixread: 50,
            block_bytes: 4096,
            iodepth: 1,
            numjobs: 1,
            size_bytes: 0,
            runtime: None,
            time_based: false,
            ramp_time: None,
            number_ios: None,
            verify: false,
            seed: 0,
            buffered: false,
            fsync: 0,
            fdatasync: 0,
            touch: false,
            sync: WriteSync::None,
            fallocate: None,
            file_append: false,
            layout: Layout::Found,
            offset_bytes: 0,
            measure: Measure::default(),
        }
    }
}

/// Parameters of the measurement. None of them changes the operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Whether submission and completion are told apart: where one call is both they cannot be.
    pub(crate) split: bool,
    pub(crate) percentiles: Percentiles,
    /// The intervals of figures over time.
    pub(crate) interval: Duration,
    /// The intervals of a histogram log; `None` for no log.
    pub(crate) log: Option<Duration>,
    /// The CPUs that jobs run on; all that the process may use, where there are none.
    pub(crate) cpus: Vec<usize>,
}

impl Default for Measure {
    fn default() -> Self {
        Self {
            split: false,
            percentiles: Percentiles::default(),
            // As fio's bwavgtime and iopsavgtime.
            interval: Duration::from_millis(500),
            log: None,
            cpus: Vec::new(),
        }
    }
}

fn seconds<S: serde::Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => to.serialize_f64(time.as_secs_f64()),
        None => to.serialize_none(),
    }
}

impl Workload {
    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::new(ErrorKind::InvalidInput, text));
        if self.buffered && (self.block_bytes == 0 || self.verify && self.block_bytes < 512) {
            return wrong(format!(
                "--bs {}: at least a byte, and with --verify 512",
                self.block_bytes
            ));
        }
        if self.buffered && self.iodepth != 1 {
            return wrong(format!(
                "--iodepth {}: buffered I/O is done when its call returns, so there is one operation at a time",
                self.iodepth
            ));
        }
        if !self.buffered && (self.block_bytes < 512 || !self.block_bytes.is_multiple_of(512)) {
            return wrong(format!(
                "--bs {}: direct I/O needs a multiple of 512 bytes (of 4096 on some devices)",
                self.block_bytes
            ));
        }
        if self.block_bytes > 64 << 20 {
            return wrong(format!("--bs {}: at most 64 MiB", self.block_bytes));
        }
        if !(1..=1024).contains(&self.iodepth) || !(1..=64).contains(&self.numjobs) {
            return wrong("--iodepth must be 1 to 1024, --numjobs 1 to 64".into());
        }
        if self.rwmixread > 100 {
            return wrong("--rwmixread is a percentage".into());
        }
        if !self.buffered && !self.offset_bytes.is_multiple_of(512) {
            let option = if self.file_append {
                "--file-append: the file ends at byte"
            } else {
                "--offset"
            };
            return wrong(format!(
                "{option} {}: direct I/O needs a multiple of 512 bytes (of 4096 on some devices)",
                self.offset_bytes
            ));
        }
        self.check_writes()?;
        if self.time_based && self.runtime.is_none() {
            return wrong("--time-based needs --runtime".into());
        }
        if self.blocks_per_job() == 0 {
            return wrong(format!(
                "{} bytes are less than one block of {}: the file or --size is too small",
                self.size_bytes, self.block_bytes
            ));
        }
        Ok(())
    }

    fn check_writes(&self) -> Result<()> {
        let wrong = |text: &str| Err(Error::new(ErrorKind::InvalidInput, text));
        if !self.rw.writes() && self.sync != WriteSync::None {
            return wrong("--sync is for workloads that write");
        }
        if self.rw.reads() && (self.file_append || self.fallocate.is_some()) {
            return wrong("--file-append and --fallocate are for workloads that only write");
        }
        if self.rw.is_random() && self.file_append {
            return wrong("--file-append is for sequential writes: --rw=write");
        }
        if self.touch && self.sync_every() == 0 {
            return wrong("--touch goes with --fsync or --fdatasync");
        }
        if self.fsync > 0 && self.fdatasync > 0 {
            return wrong("--fsync and --fdatasync exclude each other");
        }
        Ok(())
    }

    /// Writes between two syncs of a job; 0 for no sync before the end.
    pub(crate) fn sync_every(&self) -> u64 {
        self.fsync.max(self.fdatasync)
    }

    /// What these syncs make durable.
    pub(crate) fn sync_kind(&self) -> SyncKind {
        if self.fdatasync > 0 {
            SyncKind::Data
        } else {
            SyncKind::All
        }
    }

    /// Whole blocks that one job does in a pass.
    pub(crate) fn blocks_per_job(&self) -> u64 {
        self.size_bytes / self.block_bytes.max(1) as u64
    }

    /// The operations of one job; `None` where only time ends it.
    pub(crate) fn operations_per_job(&self) -> Option<u64> {
        let pass = (!self.time_based).then(|| self.blocks_per_job());
        pass.into_iter().chain(self.number_ios).min()
    }

    /// The operations of a job, without end.
    pub(crate) fn steps(&self, job: usize) -> Steps {
        let seed = mix(self.seed ^ mix(job as u64));
        let blocks = self.blocks_per_job().max(1);
        Steps {
            rw: self.rw,
            rwmixread: u32::from(self.rwmixread),
            block_bytes: self.block_bytes as u64,
            start_bytes: self.offset_bytes,
            blocks,
            next: 0,
            pass: 0,
            seed,
            shuffle: Shuffle::new(blocks, seed),
            mix: SmallRng::seed_from_u64(seed),
        }
    }
}

/// One operation of a workload, on one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkloadStep {
    pub(crate) op: LoadOp,
    pub(crate) offset_bytes: u64,
}

/// The operations of one job. Random ones, too, touch every block once before any twice, as fio's
/// do.
#[derive(Debug)]
pub(crate) struct Steps {
    rw: Rw,
    rwmixread: u32,
    block_bytes: u64,
    start_bytes: u64,
    blocks: u64,
    next: u64,
    pass: u64,
    seed: u64,
    shuffle: Shuffle,
    mix: SmallRng,
}

impl Steps {
    /// The number of the block at a byte offset.
    pub(crate) fn block_at(&self, offset_bytes: u64) -> u64 {
        (offset_bytes - self.start_bytes) / self.block_bytes
    }

    /// The byte offset of a block.
    pub(crate) fn offset_of(&self, block: u64) -> u64 {
        self.start_bytes + block * self.block_bytes
    }

    #[inline]
    pub(crate) fn next_step(&mut self) -> WorkloadStep {
        if self.next == self.blocks {
            self.next = 0;
            self.pass += 1;
            self.shuffle = Shuffle::new(self.blocks, mix(self.seed ^ mix(self.pass)));
        }
        let block = if self.rw.is_random() {
            self.shuffle.at(self.next)
        } else {
            self.next
        };
        self.next += 1;
        let op = match self.rw {
            Rw::Read | Rw::Randread => LoadOp::Read,
            Rw::Write | Rw::Randwrite => LoadOp::Write,
            Rw::Readwrite | Rw::Randrw => {
                if self.mix.random_range(0..100) < self.rwmixread {
                    LoadOp::Read
                } else {
                    LoadOp::Write
                }
            }
        };
        WorkloadStep {
            op,
            offset_bytes: self.offset_of(block),
        }
    }
}

/// A random order of `0..n` without memory: a Feistel network over the next power of four, walked
/// until it falls inside.
#[derive(Debug)]
struct Shuffle {
    n: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Shuffle {
    fn new(n: u64, seed: u64) -> Self {
        let bits = (64 - n.saturating_sub(1).leading_zeros()).max(2);
        let key = |round: u64| mix(seed.wrapping_add(round));
        Self {
            n,
            half_bits: bits.div_ceil(2),
            keys: [key(1), key(2), key(3), key(4)],
        }
    }

    #[inline]
    fn at(&self, index: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right ^ key) & mask));
            }
            value = (left << self.half_bits) | right;
            if value < self.n {
                return value;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn workload(rw: Rw) -> Workload {
        Workload {
            name: "test".into(),
            rw,
            rwmixread: 70,
            iodepth: 4,
            numjobs: 3,
            size_bytes: 1000 * 4096,
            seed: 42,
            ..Workload::default()
        }
    }

    #[test]
    fn random_order_touches_every_block_once_a_pass() {
        for n in [1, 2, 3, 5, 64, 333, 1000] {
            let shuffle = Shuffle::new(n, 7);
            let mut seen: Vec<u64> = (0..n).map(|i| shuffle.at(i)).collect();
            if n == 1000 {
                assert!(
                    seen.windows(2).any(|pair| pair[0] > pair[1]),
                    "not shuffled"
                );
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "n = {n}");
        }
    }

    #[test]
    fn each_job_does_every_block_in_an_order_of_its_own_that_repeats_by_seed() {
        let workload = workload(Rw::Randrw);
        workload.check().unwrap();
        let mut orders = Vec::new();
        for job in 0..3 {
            let mut steps = workload.steps(job);
            let mut again = workload.steps(job);
            let mut all = Vec::new();
            for _ in 0..1000 {
                let step = steps.next_step();
                assert_eq!(step, again.next_step());
                assert_eq!(
                    steps.offset_of(steps.block_at(step.offset_bytes)),
                    step.offset_bytes
                );
                all.push(step.offset_bytes / 4096);
            }
            orders.push(all.clone());
            all.sort_unstable();
            assert!(all.into_iter().eq(0..1000));
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn a_pass_a_number_and_time_end_a_job_as_in_fio() {
        let mut some = workload(Rw::Read);
        assert_eq!(some.operations_per_job(), Some(1000));
        some.number_ios = Some(2000);
        assert_eq!(some.operations_per_job(), Some(1000));
        some.runtime = Some(Duration::from_secs(1));
        assert_eq!(some.operations_per_job(), Some(1000));
        some.time_based = true;
        assert_eq!(some.operations_per_job(), Some(2000));
        some.number_ios = None;
        assert_eq!(some.operations_per_job(), None);
        some.runtime = None;
        assert!(some.check().is_err());
    }

    #[test]
    fn the_mix_is_about_what_was_asked() {
        let mut steps = workload(Rw::Readwrite).steps(0);
        let reads = (0..10_000)
            .filter(|_| steps.next_step().op == LoadOp::Read)
            .count();
        assert!(
            (6_700..7_300).contains(&reads),
            "{reads} of 10000 are reads"
        );
    }

    #[test]
    fn impossible_workloads_are_refused() {
        let wrong: [fn(&mut Workload); 13] = [
            |w| w.offset_bytes = 100,
            |w| w.block_bytes = 100,
            |w| w.block_bytes = 0,
            |w| w.iodepth = 0,
            |w| w.numjobs = 0,
            |w| w.rwmixread = 101,
            |w| w.size_bytes = 4095,
            |w| w.buffered = true,
            |w| w.sync = WriteSync::Dsync,
            |w| w.fallocate = Some(Fallocate::None),
            |w| (w.rw, w.file_append) = (Rw::Randwrite, true),
            |w| (w.rw, w.touch) = (Rw::Write, true),
            |w| (w.rw, w.fsync, w.fdatasync) = (Rw::Write, 1, 1),
        ];
        for spoil in wrong {
            let mut workload = workload(Rw::Read);
            spoil(&mut workload);
            assert!(workload.check().is_err(), "{workload:?}");
        }
        let mut odd = workload(Rw::Read);
        (odd.block_bytes, odd.iodepth, odd.buffered) = (77, 1, true);
        odd.check().unwrap();
        let mut append = workload(Rw::Write);
        (append.file_append, append.fallocate) = (true, Some(Fallocate::Keep));
        (append.fsync, append.touch, append.sync) = (1, true, WriteSync::Sync);
        append.check().unwrap();
    }
}

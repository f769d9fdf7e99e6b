//! Configuration of an embedded controller.

use super::fault::FaultPlan;
use super::medium::Medium;
use crate::error::{Error, ErrorKind, Result};

/// The thread that does the controller's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// A thread of its own (`xtent-emu`) polls the doorbells, like hardware does. For benches, and
    /// for products without hardware.
    #[default]
    Threaded,
    /// No thread: the thread that waits ([`crate::device::Device::relax`]) or writes a register
    /// does the work. For small tools.
    Inline,
    /// No thread and no real clock: the controller works only when it is stepped. For deterministic
    /// tests.
    Stepped,
}

/// Writes that are all or nothing, in blocks, as the controller says it. What it says changes
/// nothing of what it does: a block is never torn, and a write of several may be, by a fault or by
/// a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtomicOffer {
    /// Against other commands, 1 to 65,536.
    pub write_blocks: u32,
    /// Against loss of power, 1 to 65,536.
    pub power_fail_blocks: u32,
    /// Writes across multiples of so many blocks are not atomic: 2 to 65,536, or 0 for no
    /// boundaries.
    pub boundary_blocks: u32,
}

impl Default for AtomicOffer {
    fn default() -> Self {
        Self {
            write_blocks: 1,
            power_fail_blocks: 1,
            boundary_blocks: 0,
        }
    }
}

/// Limits of dataset management. Commands beyond them are rejected; the granularity and the
/// alignment are only told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatasetOffer {
    /// Most ranges of a command (DMRL); 0 for no limit.
    pub ranges: u8,
    /// Most blocks of a range (DMRSL); 0 for no limit.
    pub range_blocks: u32,
    /// Most blocks of a command (DMSL); 0 for no limit.
    pub blocks: u64,
    /// Preferred granularity of deallocation in blocks (NPDG), 1 to 65,536; 0 when nothing is said.
    pub granularity_blocks: u32,
    /// Preferred alignment in blocks (NPDA), 1 to 65,536; 0 as 1.
    pub alignment_blocks: u32,
}

/// What the SMART log has from before the controller was powered on. Its own start is one more
/// power cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Past {
    /// Times the power came on.
    pub power_cycles: u64,
    /// Hours of power.
    pub power_on_hours: u64,
    /// Times the power went without a shutdown; see [`super::EmuStats::unsafe_shutdowns`].
    pub unsafe_shutdowns: u64,
}

/// An embedded controller's capabilities, medium, faults and way of working. Start from
/// [`EmuConfig::default`] (64 MiB of memory, 512-byte blocks, a volatile write cache, no faults,
/// threaded):
///
/// ```
/// use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
/// let device = EmuDevice::start(EmuConfig {
///     medium: Medium::memory(1 << 20),
///     lba_bytes: 4096,
///     mode: Mode::Inline,
///     ..EmuConfig::default()
/// })?;
/// # Ok::<(), xtent::Error>(())
/// ```
#[derive(Debug)]
pub struct EmuConfig {
    /// The device's name in messages.
    pub name: String,
    /// Where the one namespace (id 1) keeps its blocks.
    pub medium: Medium,
    /// Bytes of a logical block: 512 or 4096.
    pub lba_bytes: u32,
    /// Maximum data transfer size, `2^mdts` pages of 4 KiB; 0 for no limit.
    pub mdts: u8,
    /// Optimal I/O boundary in blocks; 0 for none.
    pub noiob_blocks: u16,
    /// A volatile write cache is present: writes are durable only when flushed or written with FUA.
    /// Without it every write is durable when it completes (on a file: `fdatasync` after each).
    pub volatile_write_cache: bool,
    /// Keeps unflushed writes in an overlay, so that [`super::EmuDevice::power_cut`] can lose any
    /// part of them. Costs memory and a copy; for tests. No effect without a volatile write cache.
    pub cache_model: bool,
    /// The namespace is write protected.
    pub read_only: bool,
    /// Most I/O queue pairs, 1 to 4095.
    pub max_io_queues: u16,
    /// Most entries of a queue, 2 to 65536.
    pub max_queue_entries: u32,
    /// Scatter-gather lists are offered, of dwords.
    pub sgl: bool,
    /// Shadow doorbells (Doorbell Buffer Config) are offered.
    pub shadow_doorbells: bool,
    /// Interrupt vectors, 0 to 2048; vector 0 is the admin queue's. An [inline](Mode::Inline)
    /// controller has none: a thread that sleeps on one would not do its work.
    pub interrupt_vectors: u16,
    /// CAP.DSTRD: doorbells are `4 << shift` bytes apart, 0 to 10. The default, 3, gives each queue
    /// pair a cache line of its own.
    pub doorbell_stride_shift: u8,
    /// CAP.TO: the longest time to become ready or not ready, in units of 500 ms.
    pub cap_to: u8,
    /// How long the controller takes from CC.EN to CSTS.RDY, in nanoseconds.
    pub ready_delay_ns: u64,
    /// Write zeroes is offered.
    pub write_zeroes: bool,
    /// Dataset management (deallocate) is offered.
    pub dataset_management: bool,
    /// Its limits.
    pub dataset: DatasetOffer,
    /// Most abort commands at a time, 1 to 256. They are executed at once, so the limit is only
    /// told.
    pub abort_limit: u16,
    /// What identify says of atomic writes.
    pub atomic: AtomicOffer,
    /// What the SMART log begins with.
    pub past: Past,
    /// Model, printable ASCII of at most 40 characters.
    pub model: String,
    /// Serial number, printable ASCII of at most 20 characters.
    pub serial: String,
    /// Firmware revision, printable ASCII of at most 8 characters.
    pub firmware: String,
    /// What goes wrong.
    pub faults: FaultPlan,
    /// The thread that does the work.
    pub mode: Mode,
    /// Threaded: how long the thread spins after the last work before it begins to back off, in
    /// nanoseconds.
    pub spin_ns: u64,
    /// Stepped: how far the clock moves for each step, in nanoseconds.
    pub tick_ns: u64,
    /// Stepped: `relax()` does one step. When false, `relax()` only moves the clock by a tick.
    pub auto_relax: bool,
}

impl Default for EmuConfig {
    fn default() -> Self {
        Self {
            name: "embedded controller".to_owned(),
            medium: Medium::memory(64 << 20),
            lba_bytes: 512,
            mdts: 5,
            noiob_blocks: 0,
            volatile_write_cache: true,
            cache_model: false,
            read_only: false,
            max_io_queues: 64,
            max_queue_entries: 1024,
            sgl: true,
            shadow_doorbells: false,
            interrupt_vectors: 129,
            doorbell_stride_shift: 3,
            cap_to: 4,
            ready_delay_ns: 0,
            write_zeroes: true,
            dataset_management: true,
            dataset: DatasetOffer::default(),
            abort_limit: 8,
            atomic: AtomicOffer::default(),
            past: Past::default(),
            model: "xtent embedded controller".to_owned(),
            serial: "XTENT0001".to_owned(),
            firmware: "1.0".to_owned(),
            faults: FaultPlan::default(),
            mode: Mode::Threaded,
            spin_ns: 500_000,
            tick_ns: 1_000,
            auto_relax: true,
        }
    }
}

impl EmuConfig {
    /// Checks the configuration; the error names the fault.
    pub(super) fn check(&self) -> Result<()> {
        let within = |what: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(bad(format!(
                "{what} is {value}, and must be {low} to {high}"
            )))
        };
        if self.lba_bytes != 512 && self.lba_bytes != 4096 {
            return Err(bad(format!(
                "the block size is {}, and must be 512 or 4096",
                self.lba_bytes
            )));
        }
        if self.medium.len_bytes() < u64::from(self.lba_bytes) {
            let len = self.medium.len_bytes();
            return Err(bad(format!("too small to be a disk image ({len} bytes)")));
        }
        within("mdts", self.mdts.into(), 0, 16)?;
        within("max_io_queues", self.max_io_queues.into(), 1, 4095)?;
        within("max_queue_entries", self.max_queue_entries.into(), 2, 65536)?;
        within("interrupt_vectors", self.interrupt_vectors.into(), 0, 2048)?;
        let shift = self.doorbell_stride_shift.into();
        within("doorbell_stride_shift", shift, 0, 10)?;
        within("abort_limit", self.abort_limit.into(), 1, 256)?;
        let atomic = &self.atomic;
        within("atomic.write_blocks", atomic.write_blocks.into(), 1, 65_536)?;
        let power_fail = atomic.power_fail_blocks.into();
        within("atomic.power_fail_blocks", power_fail, 1, 65_536)?;
        if atomic.boundary_blocks != 0 {
            let boundary = atomic.boundary_blocks.into();
            within("atomic.boundary_blocks", boundary, 2, 65_536)?;
        }
        let dataset = &self.dataset;
        for (what, blocks) in [
            ("dataset.granularity_blocks", dataset.granularity_blocks),
            ("dataset.alignment_blocks", dataset.alignment_blocks),
        ] {
            within(what, blocks.into(), 0, 65_536)?;
        }
        within("tick_ns", self.tick_ns, 1, 1 << 40)?;
        for (what, text, longest) in [
            ("model", &self.model, 40),
            ("serial", &self.serial, 20),
            ("firmware", &self.firmware, 8),
        ] {
            let printable = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            if text.len() > longest || !printable {
                return Err(bad(format!(
                    "the {what} {text:?} must be printable ASCII of at most {longest} characters"
                )));
            }
        }
        Ok(())
    }
}

fn bad(detail: String) -> Error {
    Error::new(ErrorKind::InvalidInput, detail).during("start the embedded controller")
}

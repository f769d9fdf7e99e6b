//! What a controller offers to its host.

use super::config::{AtomicOffer, DatasetOffer};

/// Most asynchronous event requests outstanding.
pub(super) const EVENT_REQUESTS: u8 = 4;
/// Entries that the error log keeps.
pub(super) const ERROR_LOG_ENTRIES: u8 = 64;
/// Kelvin; above it the device warns, unless the host sets another threshold.
pub(super) const WARNING_TEMPERATURE_K: u16 = 343;
/// Kelvin; above it the device would fail.
pub(super) const CRITICAL_TEMPERATURE_K: u16 = 353;

/// What a controller offers, from its configuration.
#[derive(Debug)]
pub(super) struct ControllerOffer {
    pub(super) mdts: u8,
    pub(super) noiob_blocks: u16,
    pub(super) volatile_write_cache: bool,
    pub(super) max_io_queues: u16,
    pub(super) max_queue_entries: u32,
    pub(super) stride_shift: u8,
    pub(super) ready_delay_ns: u64,
    pub(super) write_zeroes: bool,
    pub(super) dataset_management: bool,
    pub(super) dataset: DatasetOffer,
    pub(super) abort_limit: u16,
    pub(super) sgl: bool,
    pub(super) shadow_doorbells: bool,
    pub(super) atomic: AtomicOffer,
    pub(super) model: String,
    pub(super) serial: String,
    pub(super) firmware: String,
}

//! The controller's condition, and the events that wait for the host.

use std::collections::{BTreeSet, VecDeque};

use super::config::Past;
use crate::nvme::spec::{CriticalWarning, ErrorLogEntry, EventWord};

/// Kelvin: 27 degrees Celsius.
const ROOM_TEMPERATURE_K: u16 = 300;

/// Asynchronous events and the requests that wait for them (section 5.2).
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) requests: VecDeque<u16>,
    pub(super) waiting: VecDeque<EventWord>,
    /// Log pages whose events were told: not again before the host has read them.
    pub(super) masked: BTreeSet<u8>,
}

/// What outlives a reset.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) past: Past,
    pub(super) temperature_k: u16,
    /// The threshold below which there is a warning; 0 for none.
    pub(super) under_k: u16,
    pub(super) warning: CriticalWarning,
    pub(super) media_errors: u64,
    pub(super) errors: VecDeque<ErrorLogEntry>,
    pub(super) error_count: u64,
    /// Ids of namespaces that changed since the host looked.
    pub(super) changed: BTreeSet<u32>,
}

impl Health {
    pub(super) fn new(past: Past) -> Self {
        Self {
            past,
            temperature_k: ROOM_TEMPERATURE_K,
            under_k: 0,
            warning: CriticalWarning::empty(),
            media_errors: 0,
            errors: VecDeque::new(),
            error_count: 0,
            changed: BTreeSet::new(),
        }
    }
}

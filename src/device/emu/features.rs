//! The values of features (section 5.27).

use super::offer::WARNING_TEMPERATURE_K;
use crate::nvme::spec::{
    FEAT_ASYNC_EVENTS, FEAT_NUMBER_OF_QUEUES, FEAT_TEMPERATURE_THRESHOLD, FEAT_VOLATILE_WRITE_CACHE,
};

/// Features by identifier, 0 to 0x0f.
const FEATURES: usize = 16;
const FEAT_ARBITRATION: u32 = 0x01;

/// Feature values.
#[derive(Debug)]
pub(super) struct FeatureValues {
    pub(super) current: [u32; FEATURES],
    pub(super) default: [u32; FEATURES],
    /// I/O queues of each kind that may be created.
    pub(super) queues: u16,
}

impl FeatureValues {
    pub(super) fn new(max_io_queues: u16, volatile_write_cache: bool) -> Self {
        let mut default = [0; FEATURES];
        // No limit to a burst.
        default[FEAT_ARBITRATION as usize] = 7;
        default[FEAT_TEMPERATURE_THRESHOLD as usize] = WARNING_TEMPERATURE_K.into();
        default[FEAT_VOLATILE_WRITE_CACHE as usize] = u32::from(volatile_write_cache);
        let queues = u32::from(max_io_queues) - 1;
        default[FEAT_NUMBER_OF_QUEUES as usize] = queues | queues << 16;
        Self {
            current: default,
            default,
            queues: max_io_queues,
        }
    }

    /// Writes may stay in the volatile cache.
    #[inline]
    pub(super) fn write_cache(&self) -> bool {
        self.current[FEAT_VOLATILE_WRITE_CACHE as usize] & 1 == 1
    }

    /// The current value of a feature that there is.
    pub(super) fn value(&self, id: u32) -> u32 {
        self.current.get(id as usize).copied().unwrap_or(0)
    }

    pub(super) fn index(id: u32) -> Option<usize> {
        // 1 to 0x0b but the LBA range type, which is optional.
        let known = (FEAT_ARBITRATION..=FEAT_ASYNC_EVENTS).contains(&id) && id != 3;
        known.then_some(id as usize)
    }
}

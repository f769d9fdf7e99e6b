//! The shadows of doorbells in host memory.

use std::sync::atomic::Ordering;

use crate::mem::{DmaRange, DmaSpace};
use crate::nvme::spec::{PAGE_BYTES, SC_DATA_TRANSFER, SC_INVALID_FIELD, StatusField};
use crate::units::Iova;

/// A page of host memory.
#[derive(Debug)]
pub(super) struct ShadowPage {
    base: Iova,
    memory: Option<DmaRange>,
}

impl ShadowPage {
    pub(super) fn new(base: u64, space: &DmaSpace) -> Result<Self, StatusField> {
        if !base.is_multiple_of(PAGE_BYTES as u64) {
            return Err(SC_INVALID_FIELD.do_not_retry());
        }
        let base = Iova(base);
        let memory = space.translate(base, PAGE_BYTES);
        let memory = Some(memory.map_err(|_| SC_DATA_TRANSFER)?);
        Ok(Self { base, memory })
    }

    #[inline]
    pub(super) fn load(&self, at: usize) -> Option<u32> {
        self.memory.as_ref()?.load_u32(at, Ordering::Acquire)
    }

    #[inline]
    pub(super) fn store(&self, at: usize, value: u32) -> Option<()> {
        let memory = self.memory.as_ref()?;
        memory.store_u32(at, value, Ordering::Release).then_some(())
    }
}

/// The two pages of Doorbell Buffer Config.
#[derive(Debug)]
pub(super) struct EmuShadows {
    pub(super) values: ShadowPage,
    pub(super) events: ShadowPage,
}

impl EmuShadows {
    pub(super) fn remap(&mut self, space: &DmaSpace) {
        for page in [&mut self.values, &mut self.events] {
            page.memory = space.translate(page.base, PAGE_BYTES).ok();
        }
    }
}

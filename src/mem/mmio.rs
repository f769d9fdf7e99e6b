//! The doorbell: one 32-bit register that the hot path writes.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One 32-bit doorbell register, in a device's BAR or in the embedded controller's memory. Ringing it is
/// a store: no call, no dispatch.
pub struct Doorbell {
    register: NonNull<AtomicU32>,
    /// Whatever must live so that the register stays mapped.
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the register is an atomic, kept alive by `_keep`, and written by atomic stores only.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl Doorbell {
    /// The doorbell at `index` of an array in memory; `None` past its end.
    pub fn in_memory(array: &Arc<[AtomicU32]>, index: usize) -> Option<Self> {
        let register = NonNull::from(array.get(index)?);
        Some(Self {
            register,
            _keep: Arc::new(Arc::clone(array)),
        })
    }

    /// The doorbell at an address of mapped device memory.
    ///
    /// # Safety
    /// `register` is aligned to 4 bytes and stays a valid, mapped 32-bit register while `keep` lives.
    pub unsafe fn at(register: NonNull<AtomicU32>, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            register,
            _keep: keep,
        }
    }

    /// Writes the register. Everything stored before is visible to the device when it sees the value.
    #[inline]
    pub fn ring(&self, value: u32) {
        // SAFETY: the register is valid while `_keep` lives (both constructors).
        let register = unsafe { self.register.as_ref() };
        register.store(value.to_le(), Ordering::Release);
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Doorbell({:p})", self.register)
    }
}

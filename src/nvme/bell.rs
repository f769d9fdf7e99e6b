//! A queue's doorbell: the register, and its shadow in memory where the controller wants one
//! (section 5.8, Doorbell Buffer Config, and annex B.5).
//!
//! A register write costs an emulated controller a trap. With shadow doorbells the host writes the
//! value to memory, where the controller looks while it is awake; before it sleeps it says in an
//! event index from which value on it wants to hear of it by the register.
//!
//! No call is lost between the two. The host stores the value, then a full barrier, then loads the
//! event index; the controller stores the event index, then a full barrier, then looks at the value
//! once more. Of two such pairs at least one load sees the other's store: either the host sees the
//! new index, and writes the register, or the controller sees the new value, and does not sleep. A
//! controller that does not keep to it (emulators have not always) is called again by the watch
//! ([`Bell::insist`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::spec::{PAGE_BYTES, REG_DOORBELLS};
use crate::device::Device;
use crate::error::Result;
use crate::mem::{Doorbell, Heap, SharedWords};
use crate::units::Iova;

/// The two pages that a controller with shadow doorbells looks at. Each is laid out as the doorbell
/// registers are.
#[derive(Debug)]
pub(super) struct ShadowDoorbells {
    values: SharedWords,
    events: SharedWords,
}

impl ShadowDoorbells {
    pub(super) const BYTES: usize = 2 * PAGE_BYTES;

    pub(super) fn new(heap: &Heap) -> Result<Arc<Self>> {
        let page = || heap.alloc(PAGE_BYTES, PAGE_BYTES).map(SharedWords::new);
        Ok(Arc::new(Self {
            values: page()?,
            events: page()?,
        }))
    }

    /// The pages of the values and of the event indexes.
    pub(super) fn iovas(&self) -> (Iova, Iova) {
        (self.values.iova(), self.events.iova())
    }
}

/// A queue's doorbell.
pub(super) struct Bell {
    register: Doorbell,
    /// Where its shadow is in both pages, in bytes; `None` for one that the pages have no room for.
    place: Option<usize>,
    shadow: Option<Shadow>,
    through_caches: bool,
    /// A store to the register is all that it takes.
    plain: bool,
}

struct Shadow {
    pages: Arc<ShadowDoorbells>,
    place: usize,
    /// The register is written as well, whatever the event index says.
    always: bool,
}

impl Bell {
    /// The doorbell at a register offset, without a shadow.
    pub(super) fn new(device: &dyn Device, offset: u32) -> Result<Self> {
        let place = usize::try_from(offset.saturating_sub(REG_DOORBELLS)).ok();
        Ok(Self {
            place: place.filter(|place| place + 4 <= PAGE_BYTES),
            through_caches: device.is_another_processor(),
            plain: !device.is_another_processor(),
            ..Self::from(device.doorbell(offset)?)
        })
    }

    /// Goes by these shadows from now on, or by the register alone. The shadow starts at `value`.
    pub(super) fn shadow_by(
        &mut self,
        pages: Option<&Arc<ShadowDoorbells>>,
        value: u32,
        always: bool,
    ) {
        self.shadow = pages.zip(self.place).map(|(pages, place)| Shadow {
            pages: Arc::clone(pages),
            place,
            always,
        });
        self.plain = self.shadow.is_none() && !self.through_caches;
        if let Some(Shadow { pages, place, .. }) = &self.shadow {
            pages.events.store_u32_release(*place, 0);
            pages.values.store_u32_release(*place, value);
        }
    }

    pub(super) fn is_shadowed(&self) -> bool {
        self.shadow.is_some()
    }

    /// The doorbell is polled by another CPU (shadow doorbells): demote the cache lines after the
    /// stores.
    #[inline]
    pub(super) fn is_heard_through_caches(&self) -> bool {
        self.through_caches
    }

    /// Tells the device that `old` has become `new`.
    #[inline]
    pub(super) fn ring(&self, old: u32, new: u32) {
        match &self.shadow {
            None => self.register.ring(new),
            Some(shadow) => self.ring_in_memory(shadow, old, new),
        }
    }

    /// Rings a doorbell that is nothing but a register; false, and nothing done, for another.
    #[inline(always)]
    pub(super) fn ring_register(&self, new: u32) -> bool {
        if self.plain {
            self.register.ring(new);
        }
        self.plain
    }

    #[inline(never)]
    fn ring_in_memory(&self, shadow: &Shadow, old: u32, new: u32) {
        let Shadow {
            pages,
            place,
            always,
        } = shadow;
        // Release: a device that sees the value sees the entries.
        pages.values.store_u32_release(*place, new);
        fence(Ordering::SeqCst);
        let event = pages.events.load_u32(*place);
        if *always || is_wanted(event, old, new) {
            self.register.ring(new);
        }
    }

    /// Writes the register of a shadowed doorbell, asked or not: for a controller that seems not to
    /// have heard.
    #[cold]
    pub(super) fn insist(&self, value: u32) {
        if self.is_shadowed() {
            self.register.ring(value);
        }
    }
}

impl From<Doorbell> for Bell {
    fn from(register: Doorbell) -> Self {
        Self {
            register,
            place: None,
            shadow: None,
            through_caches: false,
            plain: true,
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell")
            .field("register", &self.register)
            .field("shadowed", &self.is_shadowed())
            .finish_non_exhaustive()
    }
}

/// Whether going from `old` to `new` passes the event index. Modulo 65,536, as the specification
/// has it: for a ring that wraps, the way from `old` to its end and on from 0 is all of the values
/// outside of it too.
fn is_wanted(event: u32, old: u32, new: u32) -> bool {
    let way = |from: u32| new.wrapping_sub(from) & 0xffff;
    way(event.wrapping_add(1)) < way(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{HeapConfig, HugePages};
    use std::sync::atomic::AtomicU32;

    #[test]
    fn the_register_is_wanted_when_the_event_index_is_passed() {
        // As `vring_need_event`: from `old` up to but without `new`.
        for (event, old, new, wanted) in [
            (0, 0, 1, true),
            (5, 5, 6, true),
            (4, 5, 6, false),
            (6, 5, 6, false),
            (7, 5, 9, true),
            (9, 5, 9, false),
            (60, 60, 2, true),
            (63, 60, 2, true),
            (1, 60, 2, true),
            (2, 60, 2, false),
            (30, 60, 2, false),
            (0xffff_0005, 5, 6, true),
        ] {
            assert_eq!(
                is_wanted(event, old, new),
                wanted,
                "{event}: {old} to {new}"
            );
        }
    }

    #[test]
    fn a_shadowed_bell_spares_the_register() {
        let heap = Heap::new(HeapConfig {
            arena_bytes: 2 << 20,
            huge_pages: HugePages::Never,
            ..Default::default()
        });
        let array: Arc<[AtomicU32]> = (0..4).map(|_| AtomicU32::new(77)).collect();
        let pages = ShadowDoorbells::new(&heap).unwrap();
        let mut bell = Bell::from(Doorbell::in_memory(&array, 0).unwrap());
        bell.place = Some(8);
        let register = || array[0].swap(77, Ordering::Relaxed);
        bell.ring(0, 3);
        assert_eq!(register(), 3);
        bell.insist(3);
        assert_eq!(register(), 77, "nothing to insist on");
        bell.shadow_by(Some(&pages), 0, false);
        bell.ring(0, 2);
        assert_eq!(register(), 2, "the event index starts at 0");
        bell.ring(2, 5);
        assert_eq!((register(), pages.values.load_u32(8)), (77, 5));
        bell.insist(5);
        assert_eq!(register(), 5);
        pages.events.store_u32_release(8, 5);
        bell.ring(5, 6);
        assert_eq!(register(), 6);
        bell.shadow_by(Some(&pages), 9, true);
        assert_eq!(pages.values.load_u32(8), 9);
        pages.events.store_u32_release(8, 1000);
        bell.ring(9, 10);
        assert_eq!((register(), pages.values.load_u32(8)), (10, 10));
        bell.shadow_by(None, 0, false);
        bell.ring(10, 11);
        assert_eq!((register(), pages.values.load_u32(8)), (11, 10));
    }
}

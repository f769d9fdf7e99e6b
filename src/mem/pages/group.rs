//! Eight slots and what belongs to them: two cache lines side by side, which are fetched as a pair.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Slots of a group.
pub const GROUP_SLOTS: u32 = 8;
/// What a page's uses are counted to.
const MOST_USES: u8 = 3;

/// ```text
///   0.. 64  words, one a slot
///  64.. 96  versions, one a slot: changed by each write to the page and by each new page
///  96..104  uses since the page came, one byte a slot, saturating at 3: a relaxed hint
/// 104..128  tag
/// ```
#[derive(Debug)]
#[cfg_attr(not(loom), repr(C, align(128)))]
pub(super) struct Group {
    pub(super) words: [AtomicU64; 8],
    pub(super) versions: [AtomicU32; 8],
    uses: [AtomicU8; 8],
    pub(super) tag: Tag,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Group>() == 128);

/// The slot owner's data of a group, which this module does not use. It shares the cache line with
/// the words, which the owner loads anyway.
#[derive(Debug)]
pub(crate) struct Tag {
    /// Which group of the file it is.
    pub(crate) no: AtomicU64,
    /// Whose it is.
    pub(crate) file: AtomicU32,
    /// The next one of a chain.
    pub(crate) next: AtomicU32,
    /// What keeps it from becoming another's.
    pub(crate) live: AtomicU32,
    /// 1 while it is in a list of those with dirty pages.
    pub(crate) listed: AtomicU32,
}

impl Tag {
    /// Whether it is this group of this file.
    #[inline(always)]
    pub(crate) fn is(&self, file: u32, no: u64) -> bool {
        self.file.load(Acquire) == file && self.no.load(Acquire) == no
    }
}

impl Group {
    fn new() -> Self {
        Self {
            words: std::array::from_fn(|_| AtomicU64::new(0)),
            versions: std::array::from_fn(|_| AtomicU32::new(0)),
            uses: std::array::from_fn(|_| AtomicU8::new(0)),
            tag: Tag {
                no: AtomicU64::new(0),
                file: AtomicU32::new(u32::MAX),
                next: AtomicU32::new(u32::MAX),
                live: AtomicU32::new(0),
                listed: AtomicU32::new(0),
            },
        }
    }

    /// Counts a use, up to a limit. A frequently used page is not written to, so that its cache
    /// line stays shared by all readers.
    #[inline(always)]
    pub(super) fn used(&self, slot: usize) {
        let uses = self.uses[slot].load(Relaxed);
        if uses < MOST_USES {
            self.uses[slot].store(uses + 1, Relaxed);
        }
    }

    pub(super) fn uses(&self, slot: usize) -> u8 {
        self.uses[slot].load(Relaxed)
    }

    pub(super) fn set_uses(&self, slot: usize, uses: u8) {
        self.uses[slot].store(uses.min(MOST_USES), Relaxed);
    }

    /// Changes the version, so that concurrent reads of the page fail. Only for the thread that
    /// locked the slot.
    #[inline(always)]
    pub(super) fn next_version(&self, slot: usize) {
        let version = &self.versions[slot];
        version.store(version.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// All groups of a table. Cheap to clone: the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Groups(pub(super) Arc<[Group]>);

impl Groups {
    pub(super) fn new(slots: u32) -> Self {
        let groups: Arc<[Group]> = (0..slots.div_ceil(GROUP_SLOTS))
            .map(|_| Group::new())
            .collect();
        #[cfg(not(loom))]
        crate::sys::prefer_huge_pages(&groups);
        Self(groups)
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// A group's tag; a number that is too large panics, as an index does.
    #[inline]
    pub(crate) fn tag(&self, group: u32) -> &Tag {
        &self.0[group as usize].tag
    }

    /// A group's tag, where there is such a group.
    #[inline]
    pub(crate) fn get(&self, group: u32) -> Option<&Tag> {
        self.0.get(group as usize).map(|group| &group.tag)
    }
}

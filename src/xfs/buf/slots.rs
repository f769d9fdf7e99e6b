//! The inodes of a cluster: what of each was changed, and by which checkpoint it was logged.

use std::mem::offset_of;
use std::ops::Range;

use super::super::format::inode::{self as layout, InodeCore};
use super::super::format::{self};

/// Where the link of the unlinked list lies in an inode; it is logged with the buffer.
const NEXT_UNLINKED: usize = offset_of!(InodeCore, next_unlinked);

/// One inode of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct InodeSlot {
    /// Anything was changed since the inode was last written in place, but for the link.
    pub(in super::super) is_changed: bool,
    /// The data fork was changed since then.
    pub(in super::super) data: bool,
    /// The attribute fork was changed since then.
    pub(in super::super) attributes: bool,
    /// Its link of the unlinked list was changed since then.
    pub(in super::super) relinked: bool,
    /// The changes are not in the log yet.
    pub(in super::super) in_cil: bool,
    /// The start of the last checkpoint that logged it, while it is not in place.
    pub(in super::super) lsn: Option<u64>,
    /// The start of the last checkpoint that logged it since it was read: what it is stamped with,
    /// also when it is in place by now and the cluster is written for the sake of another inode.
    pub(in super::super) stamp: Option<u64>,
    /// Its checksum in memory is stale.
    pub(super) is_unsealed: bool,
    /// There was no inode at all: the cluster lies where the kernel would not look for it.
    pub(in super::super) is_foreign: bool,
    /// It was damaged when it was read: it may be neither used nor changed.
    pub(in super::super) is_bad: bool,
}

/// The form of an inode's data fork and of its attribute fork.
fn forms(raw: &[u8]) -> (u8, u8) {
    let byte = |at: usize| raw.get(at).copied().unwrap_or(0);
    (
        byte(offset_of!(InodeCore, format)),
        byte(offset_of!(InodeCore, aformat)),
    )
}

/// The bytes of the data fork and of the attribute fork in an inode.
fn forks(raw: &[u8]) -> (Range<usize>, Range<usize>) {
    let forkoff = raw.get(offset_of!(InodeCore, forkoff)).copied();
    let split = match forkoff.unwrap_or(0) {
        0 => raw.len(),
        units => layout::CORE_BYTES
            .saturating_add(usize::from(units).saturating_mul(8))
            .min(raw.len()),
    };
    (layout::CORE_BYTES..split, split..raw.len())
}

/// Whether two cores are the same but for the fields that are stamped when they are written in
/// place, and for the link.
fn is_same_core(before: &[u8], after: &[u8]) -> bool {
    // The link and the checksum behind it; the log sequence number.
    const LSN: usize = offset_of!(InodeCore, lsn);
    [
        0..NEXT_UNLINKED,
        NEXT_UNLINKED + 8..LSN,
        LSN + 8..layout::CORE_BYTES,
    ]
    .into_iter()
    .all(|range| before.get(range.clone()) == after.get(range))
}

impl InodeSlot {
    /// Notes what differs between two images of the inode. Returns whether anything does.
    pub(super) fn note_changes(&mut self, before: &[u8], after: &[u8]) -> bool {
        if before == after {
            return false;
        }
        let link = NEXT_UNLINKED..NEXT_UNLINKED + 4;
        let relinked = before.get(link.clone()) != after.get(link);
        let (old_data, old_attributes) = forks(before);
        let (data, attributes) = forks(after);
        let moved = old_data != data || forms(before) != forms(after);
        let data = moved || before.get(old_data) != after.get(data);
        let attributes = moved || before.get(old_attributes) != after.get(attributes);
        let core = !is_same_core(before, after);
        self.data |= data;
        self.attributes |= attributes;
        self.is_changed |= core || data || attributes;
        self.relinked |= relinked;
        self.in_cil |= core || data || attributes || relinked;
        self.is_unsealed = true;
        true
    }

    /// It is in place as it is in memory.
    pub(super) fn forget_changes(&mut self) {
        *self = Self {
            is_bad: self.is_bad,
            is_foreign: self.is_foreign,
            stamp: self.stamp,
            is_unsealed: self.is_unsealed,
            ..Self::default()
        };
    }
}

/// Stamps those inodes of a cluster that were changed since it was read.
pub(super) fn seal(image: &mut [u8], slots: &[InodeSlot]) {
    let bytes = image.len().checked_div(slots.len()).unwrap_or(0);
    if bytes == 0 {
        return;
    }
    for (raw, slot) in image.chunks_mut(bytes).zip(slots) {
        if slot.is_bad || !slot.is_unsealed {
            continue;
        }
        // A link of the unlinked list alone changes no sequence number, as in
        // xfs_iunlink_item_precommit().
        if let Some(lsn) = slot.stamp
            && let Some(field) = raw.get_mut(offset_of!(InodeCore, lsn)..)
            && let Some(field) = field.first_chunk_mut::<8>()
        {
            *field = lsn.to_be_bytes();
        }
        format::set_checksum(raw, layout::CRC_OFFSET);
    }
}

//! FIEMAP: a file's extents, as the kernel's ioctl reports them.
//!
//! As `iomap_fiemap` of Linux: extents beyond the end of the file too, cut to the range asked for
//! (rounded out to filesystem blocks), the last one of the range marked [`FiemapFlags::LAST`].

use bitflags::bitflags;

use super::{Iter, IterFlags, MapFlags, MappingKind, Ops, Span};
use crate::error::Result;

bitflags! {
    /// What FIEMAP says of an extent; the values are those of `linux/fiemap.h`.
    ///
    /// ```no_run
    /// # use xtent::volume::Volume;
    /// # fn main() -> xtent::Result<()> {
    /// # let volume = Volume::open("image:disk.img")?;
    /// # let mut io = volume.io()?;
    /// # let file = volume.open_file(&mut io, "/data")?;
    /// use xtent::volume::FiemapFlags;
    /// let extents = file.fiemap(&mut io, 0, u64::MAX)?;
    /// let shared = extents.iter().filter(|extent| extent.flags.contains(FiemapFlags::SHARED));
    /// println!("{} shared extents", shared.count());
    /// # Ok(())
    /// # }
    /// ```
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct FiemapFlags: u32 {
        /// The last extent of the range.
        const LAST = 0x1;
        /// Its place is not known yet.
        const UNKNOWN = 0x2;
        /// Promised, not allocated.
        const DELALLOC = 0x4;
        /// Not aligned to blocks.
        const NOT_ALIGNED = 0x100;
        /// Data inside the inode.
        const DATA_INLINE = 0x200;
        /// Allocated, reads as zeroes.
        const UNWRITTEN = 0x800;
        /// Made of several extents.
        const MERGED = 0x1000;
        /// Shared with another file.
        const SHARED = 0x2000;
    }
}

/// One extent.
///
/// ```no_run
/// # use xtent::volume::Volume;
/// # fn main() -> xtent::Result<()> {
/// # let volume = Volume::open("image:disk.img")?;
/// # let mut io = volume.io()?;
/// # let file = volume.open_file(&mut io, "/data")?;
/// for extent in file.fiemap(&mut io, 0, u64::MAX)? {
///     println!("{} bytes at {}", extent.length_bytes, extent.physical_bytes);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiemapExtent {
    /// First file byte.
    pub logical_bytes: u64,
    /// First byte on the device; 0 where there is none.
    pub physical_bytes: u64,
    /// Length in bytes.
    pub length_bytes: u64,
    /// Properties of the extent.
    pub flags: FiemapFlags,
}

/// Offsets end here, as the kernel's do (`loff_t`).
const MAX_OFFSET: u64 = i64::MAX.cast_unsigned();

/// Hands the extents that touch `len` bytes from `pos` to `each`, in order. `block_bytes` is the
/// filesystem's block size, a power of two.
///
/// # Errors
/// The filesystem's.
pub fn fiemap<O: Ops>(
    ops: &mut O,
    pos: u64,
    len: u64,
    block_bytes: u32,
    mut each: impl FnMut(FiemapExtent),
) -> Result<()> {
    let block_mask = u64::from(block_bytes.max(1)) - 1;
    let start = pos.min(MAX_OFFSET) & !block_mask;
    let end = match pos.saturating_add(len).checked_add(block_mask) {
        Some(end) => (end & !block_mask).min(MAX_OFFSET),
        None => MAX_OFFSET,
    };
    if len == 0 {
        return Ok(());
    }
    // One behind, so that the last one can be marked.
    let mut held: Option<FiemapExtent> = None;
    let mut iter = Iter::new(start, end.saturating_sub(start), IterFlags::REPORT);
    iter.run(ops, |_, span| {
        if let Some(extent) = extent_of(&span)
            && let Some(before) = held.replace(extent)
        {
            each(before);
        }
        Ok(span.len)
    })?;
    if let Some(mut last) = held {
        last.flags |= FiemapFlags::LAST;
        each(last);
    }
    Ok(())
}

fn extent_of(span: &Span<'_>) -> Option<FiemapExtent> {
    let mapping = span.mapping;
    let mut flags = match mapping.kind {
        MappingKind::Hole => return None,
        MappingKind::Delalloc => FiemapFlags::DELALLOC | FiemapFlags::UNKNOWN,
        MappingKind::Mapped => FiemapFlags::empty(),
        MappingKind::Unwritten => FiemapFlags::UNWRITTEN,
        MappingKind::Inline => FiemapFlags::DATA_INLINE | FiemapFlags::NOT_ALIGNED,
    };
    if mapping.flags.contains(MapFlags::MERGED) {
        flags |= FiemapFlags::MERGED;
    }
    if mapping.flags.contains(MapFlags::SHARED) {
        flags |= FiemapFlags::SHARED;
    }
    let has_place = matches!(mapping.kind, MappingKind::Mapped | MappingKind::Unwritten);
    Some(FiemapExtent {
        logical_bytes: span.pos,
        physical_bytes: if has_place {
            mapping.addr_at(span.pos)
        } else {
            0
        },
        length_bytes: span.len,
        flags,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestLayout;
    use super::*;

    fn all(layout: &mut TestLayout, pos: u64, len: u64) -> Vec<FiemapExtent> {
        let mut extents = Vec::new();
        fiemap(layout, pos, len, 4096, |extent| extents.push(extent)).unwrap();
        extents
    }

    #[test]
    fn flags_follow_kinds_and_the_last_is_marked() {
        let mut layout = TestLayout::new(&[
            (MappingKind::Mapped, 4096),
            (MappingKind::Hole, 4096),
            (MappingKind::Unwritten, 8192),
            (MappingKind::Mapped, 4096),
            (MappingKind::Delalloc, 4096),
        ]);
        layout.mappings[3].flags = MapFlags::SHARED | MapFlags::MERGED;
        let extents = all(&mut layout, 0, u64::MAX);
        let flags: Vec<_> = extents.iter().map(|e| e.flags.bits()).collect();
        assert_eq!(flags, [0, 0x800, 0x3000, 0x7]);
        assert_eq!(extents[1].logical_bytes, 8192);
        assert_eq!(extents[1].physical_bytes, layout.mappings[2].addr);
        assert_eq!(extents[1].length_bytes, 8192);
    }

    #[test]
    fn a_range_cuts_extents_at_blocks() {
        let mut layout =
            TestLayout::new(&[(MappingKind::Mapped, 40_960), (MappingKind::Mapped, 40_960)]);
        let extents = all(&mut layout, 5000, 1);
        assert_eq!(extents.len(), 1);
        assert_eq!(extents[0].logical_bytes, 4096);
        assert_eq!(extents[0].length_bytes, 4096);
        assert_eq!(extents[0].physical_bytes, layout.mappings[0].addr + 4096);
        assert_eq!(extents[0].flags, FiemapFlags::LAST);
        assert!(all(&mut layout, 81_920, u64::MAX).is_empty());
        assert!(all(&mut layout, 0, 0).is_empty());
        assert!(all(&mut layout, u64::MAX, u64::MAX).is_empty());
    }
}

//! SEEK_HOLE and SEEK_DATA.
//!
//! As `iomap_seek_hole` and `iomap_seek_data` of Linux. Preallocated space counts as a hole: only a
//! page cache could hold data over it, and there is none.

use super::{Iter, IterFlags, MappingKind, Ops};
use crate::error::Result;

/// The first hole at or after `pos` of a file of `size_bytes`; the file's end counts as one. `None`
/// at or beyond the end.
///
/// # Errors
/// The filesystem's.
pub fn seek_hole<O: Ops>(ops: &mut O, pos: u64, size_bytes: u64) -> Result<Option<u64>> {
    let is_hole = |kind| matches!(kind, MappingKind::Hole | MappingKind::Unwritten);
    let found = first(ops, pos, size_bytes, is_hole)?;
    Ok(found.or((pos < size_bytes).then_some(size_bytes)))
}

/// The first byte with data at or after `pos` of a file of `size_bytes`; `None` when there is none.
///
/// # Errors
/// The filesystem's.
pub fn seek_data<O: Ops>(ops: &mut O, pos: u64, size_bytes: u64) -> Result<Option<u64>> {
    let is_data = |kind| {
        matches!(
            kind,
            MappingKind::Mapped | MappingKind::Delalloc | MappingKind::Inline
        )
    };
    first(ops, pos, size_bytes, is_data)
}

fn first<O: Ops>(
    ops: &mut O,
    pos: u64,
    size_bytes: u64,
    wanted: impl Fn(MappingKind) -> bool,
) -> Result<Option<u64>> {
    let mut found = None;
    let len = size_bytes.saturating_sub(pos);
    Iter::new(pos, len, IterFlags::REPORT).run(ops, |_, span| {
        if wanted(span.mapping.kind) {
            found = Some(span.pos);
            return Ok(0);
        }
        Ok(span.len)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestLayout;
    use super::*;

    #[test]
    fn holes_and_data_in_turn() {
        let mut layout = TestLayout::new(&[
            (MappingKind::Mapped, 4096),
            (MappingKind::Unwritten, 4096),
            (MappingKind::Hole, 4096),
            (MappingKind::Mapped, 4096),
        ]);
        let size = 16_000;
        let hole = |pos, layout: &mut TestLayout| seek_hole(layout, pos, size).unwrap();
        let data = |pos, layout: &mut TestLayout| seek_data(layout, pos, size).unwrap();
        assert_eq!(hole(0, &mut layout), Some(4096));
        assert_eq!(hole(5000, &mut layout), Some(5000));
        assert_eq!(hole(12_288, &mut layout), Some(size));
        assert_eq!(hole(size, &mut layout), None);
        assert_eq!(data(10, &mut layout), Some(10));
        assert_eq!(data(4096, &mut layout), Some(12_288));
        assert_eq!(data(15_999, &mut layout), Some(15_999));
        assert_eq!(data(size, &mut layout), None);
        assert_eq!(data(u64::MAX, &mut layout), None);
        assert_eq!(seek_data(&mut layout, 4096, 9000).unwrap(), None);
    }

    #[test]
    fn an_empty_file_has_neither() {
        let mut layout = TestLayout::default();
        assert_eq!(seek_hole(&mut layout, 0, 0).unwrap(), None);
        assert_eq!(seek_data(&mut layout, 0, 0).unwrap(), None);
        assert_eq!(seek_hole(&mut layout, 0, 1).unwrap(), Some(0));
    }
}

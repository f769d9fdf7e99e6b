//! iomap's view of a file: byte ranges to device addresses.
//!
//! A [`FileMap`] is made once when a file is opened, with everything that [`FileOps::begin`] needs
//! in bytes, so that a lookup is a comparison or two. Where blocks are shared, the map for writing
//! and reporting is cut at the borders of shared extents, as the kernel's answers are.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::MetaIo;
use super::extents::Extent;
use super::fs::Fs;
use super::geometry::Geometry;
use super::inode::{Fork, Inode};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::{IterFlags, MapFlags, Mapping, MappingKind, Ops};

mod load;
mod patch;
mod runs;

pub use load::{MapPart, needs_extents};
pub use patch::{FileState, MapChange};
pub(super) use runs::Runs;

use load::not_loaded;

/// A run of a file's bytes that lie side by side on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First byte of the file.
    pub(super) offset: u64,
    /// First byte behind it.
    pub(super) end: u64,
    /// Byte address on the device.
    pub(super) addr: u64,
    pub(super) kind: MappingKind,
    pub(super) flags: MapFlags,
}

/// Where the bytes of a file lie.
#[derive(Debug)]
pub struct FileMap {
    /// It grows while the map is in use; a shorter file has another map.
    size_bytes: AtomicU64,
    pub(super) runs: Runs,
    /// Whether blocks may be shared: then `cut` must be there before a write or a report.
    pub(super) may_share: bool,
    /// `runs`, cut where shared and unshared blocks meet.
    pub(super) cut: OnceLock<Runs>,
}

/// Where the last lookup ended; the next one looks there first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hint(usize);

impl Fs {
    /// The map of a file's data fork. Before writing or reporting, [`Fs::learn_sharing`].
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the extents are broken, [`ErrorKind::InvalidInput`] for a pipe,
    /// socket or device.
    pub fn file_map(&self, io: &mut impl MetaIo, inode: &Inode) -> Result<FileMap> {
        let runs = if let Fork::Local(content) = &inode.data {
            let run = Run {
                offset: 0,
                end: content.len() as u64,
                addr: 0,
                kind: MappingKind::Inline,
                flags: MapFlags::empty(),
            };
            vec![run]
        } else {
            let geometry = self.geometry();
            self.extents(io, inode)?
                .as_slice()
                .iter()
                .map(|extent| Run::of(geometry, extent))
                .collect()
        };
        Ok(FileMap {
            size_bytes: inode.size.into(),
            runs: runs.into(),
            may_share: self.features().reflink() && inode.may_share(),
            cut: OnceLock::new(),
        })
    }
}

impl Run {
    /// A part of a file whose extents are not loaded.
    fn unloaded(range: Range<u64>) -> Self {
        Self {
            offset: range.start,
            end: range.end,
            addr: 0,
            kind: MappingKind::Hole,
            flags: MapFlags::UNLOADED,
        }
    }

    #[inline]
    fn is_unloaded(&self) -> bool {
        self.flags.contains(MapFlags::UNLOADED)
    }

    fn of(geometry: &Geometry, extent: &Extent) -> Self {
        Self {
            offset: geometry.bytes(extent.offset_blocks),
            end: geometry.bytes(extent.end_blocks()),
            addr: geometry.block_addr(extent.start_block),
            kind: if extent.unwritten {
                MappingKind::Unwritten
            } else {
                MappingKind::Mapped
            },
            flags: MapFlags::empty(),
        }
    }

    /// The parts before and from a file position.
    pub(super) fn split(self, at: u64) -> (Self, Self) {
        let at = at.clamp(self.offset, self.end);
        let before = Self { end: at, ..self };
        let after = Self {
            offset: at,
            addr: self.addr + (at - self.offset),
            ..self
        };
        (before, after)
    }

    /// The address of a position before its end, where it has written blocks of the file's own for
    /// the whole length.
    #[inline(always)]
    fn plain_addr(&self, pos: u64, len: u64) -> Option<u64> {
        if self.kind != MappingKind::Mapped || !self.flags.is_empty() {
            return None;
        }
        let from = pos.checked_sub(self.offset)?;
        if self.end.saturating_sub(pos) < len {
            return None;
        }
        Some(self.addr + from)
    }

    #[inline]
    fn mapping(&self) -> Mapping {
        Mapping {
            addr: self.addr,
            offset: self.offset,
            length: self.end - self.offset,
            kind: self.kind,
            flags: self.flags,
            cookie: 0,
        }
    }
}

impl FileMap {
    /// The map of an empty file.
    pub fn empty() -> Self {
        Self {
            size_bytes: AtomicU64::new(0),
            runs: Runs::default(),
            may_share: false,
            cut: OnceLock::new(),
        }
    }

    /// Bytes of the file.
    #[inline]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The file has become longer; its blocks are in the map already.
    pub fn grow(&self, size_bytes: u64) {
        self.size_bytes.fetch_max(size_bytes, Ordering::Release);
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether the file is nothing but a hole.
    pub fn is_empty(&self) -> bool {
        self.runs.len() == 0
    }

    /// The runs for writing and reporting.
    #[inline]
    fn cut_runs(&self) -> Result<&Runs> {
        if !self.may_share {
            return Ok(&self.runs);
        }
        match self.cut.get() {
            Some(runs) => Ok(runs),
            None => Err(sharing_unknown()),
        }
    }
}

#[cold]
fn sharing_unknown() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "the file may share blocks with others, and its sharing is not loaded: open it for writing",
    )
}

/// [`Ops`] of a file whose map is loaded. Made for one operation; costs nothing to make.
#[derive(Debug)]
pub struct FileOps<'a> {
    map: &'a FileMap,
    hint: Hint,
}

impl<'a> FileOps<'a> {
    /// For one operation on a file.
    #[inline]
    pub fn new(map: &'a FileMap) -> Self {
        Self::with_hint(map, Hint(0))
    }

    /// The same, beginning where an operation before ended.
    #[inline]
    pub fn with_hint(map: &'a FileMap, hint: Hint) -> Self {
        Self { map, hint }
    }

    /// Where the last lookup ended.
    #[inline]
    pub fn hint(&self) -> Hint {
        self.hint
    }
}

impl Ops for FileOps<'_> {
    #[inline(always)]
    fn whole(&self, pos: u64, len: u64, flags: IterFlags) -> Option<u64> {
        let runs = if flags.contains(IterFlags::WRITE) {
            self.map.cut_runs().ok()?
        } else {
            &self.map.runs
        };
        let few = runs.few();
        let Some(first) = few.first() else {
            return runs.plain_addr(pos, len);
        };
        if pos < first.end {
            return first.plain_addr(pos, len);
        }
        let run = few.get(few.partition_point(|run| run.end <= pos))?;
        run.plain_addr(pos, len)
    }

    #[inline]
    fn begin(
        &mut self,
        pos: u64,
        len: u64,
        flags: IterFlags,
    ) -> Result<(Mapping, Option<Mapping>)> {
        let special = IterFlags::WRITE
            .union(IterFlags::ZERO)
            .union(IterFlags::REPORT)
            .union(IterFlags::XATTR);
        if !flags.intersects(special) {
            let found = self.map.runs.find(pos, &mut self.hint);
            return match found.flags.contains(MapFlags::UNLOADED) {
                true => Err(not_loaded(pos)),
                false => Ok((found, None)),
            };
        }
        if flags.intersects(IterFlags::REPORT.union(IterFlags::XATTR)) {
            return self.report(pos, len, flags);
        }
        let mapping = self.map.cut_runs()?.find(pos, &mut self.hint);
        if flags.contains(IterFlags::ALLOCATED)
            && matches!(mapping.kind, MappingKind::Mapped | MappingKind::Unwritten)
            && mapping.flags.is_empty()
        {
            return Ok((mapping, None));
        }
        let plain = mapping.kind == MappingKind::Mapped && mapping.flags.is_empty();
        let inside = pos
            .checked_add(len)
            .is_some_and(|end| end <= self.map.size_bytes());
        if plain && inside {
            Ok((mapping, None))
        } else {
            Err(self.no_overwrite(pos, len, &mapping))
        }
    }
}

impl FileOps<'_> {
    /// A mapping to be shown: no further than asked, as the kernel's are.
    #[cold]
    fn report(
        &mut self,
        pos: u64,
        len: u64,
        flags: IterFlags,
    ) -> Result<(Mapping, Option<Mapping>)> {
        if flags.contains(IterFlags::XATTR) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "mappings of extended attributes",
            ));
        }
        let found = self.map.cut_runs()?.find(pos, &mut self.hint);
        if found.flags.contains(MapFlags::UNLOADED) {
            return Err(not_loaded(pos));
        }
        Ok((found, None)).map(|(mut mapping, source)| {
            let into = pos.saturating_sub(mapping.offset).min(mapping.length);
            if mapping.kind != MappingKind::Hole && mapping.kind != MappingKind::Inline {
                mapping.addr = mapping.addr.saturating_add(into);
            }
            mapping.offset = mapping.offset.saturating_add(into);
            mapping.length = mapping.length.saturating_sub(into).min(len);
            (mapping, source)
        })
    }

    /// Why a write is no overwrite.
    #[cold]
    fn no_overwrite(&self, pos: u64, len: u64, mapping: &Mapping) -> Error {
        if mapping.flags.contains(MapFlags::UNLOADED) {
            return not_loaded(pos);
        }
        let end = pos.saturating_add(len);
        let size = self.map.size_bytes();
        let (at, why) = if end > size && pos >= size {
            (
                pos,
                format!(
                    "is beyond the end of the file ({size} bytes): growing a file needs allocation"
                ),
            )
        } else if mapping.flags.contains(MapFlags::SHARED) {
            (
                pos,
                "is in blocks shared with another file: it needs copy-on-write".to_owned(),
            )
        } else if mapping.kind == MappingKind::Hole {
            (pos, "is in a hole: it needs allocation".to_owned())
        } else if mapping.kind == MappingKind::Unwritten {
            (
                pos,
                "is preallocated but was never written: it needs conversion".to_owned(),
            )
        } else if mapping.kind == MappingKind::Inline {
            (pos, "is inside the inode: it needs the journal".to_owned())
        } else {
            (
                size,
                format!(
                    "is beyond the end of the file ({size} bytes): growing a file needs allocation"
                ),
            )
        };
        Error::new(
            ErrorKind::NotOverwrite,
            format!("byte {at} {why}, which xtent cannot do yet"),
        )
        .at_offset(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4096;

    fn run(offset: u64, blocks: u64, addr: u64, kind: MappingKind, flags: MapFlags) -> Run {
        Run {
            offset: offset * BLOCK,
            end: (offset + blocks) * BLOCK,
            addr: addr * BLOCK,
            kind,
            flags,
        }
    }

    /// Blocks 0-3 written, 4-5 hole, 6-7 unwritten, 8 written, 9-10 shared, then a hole; size 10.5
    /// blocks.
    fn map() -> FileMap {
        let plain = MapFlags::empty();
        let whole = [
            run(0, 4, 100, MappingKind::Mapped, plain),
            run(6, 2, 200, MappingKind::Unwritten, plain),
            run(8, 3, 300, MappingKind::Mapped, plain),
        ];
        let cut = [
            whole[0],
            whole[1],
            run(8, 1, 300, MappingKind::Mapped, plain),
            run(9, 2, 301, MappingKind::Mapped, MapFlags::SHARED),
        ];
        FileMap {
            size_bytes: (10 * BLOCK + BLOCK / 2).into(),
            runs: whole.to_vec().into(),
            may_share: true,
            cut: OnceLock::from(Runs::from(cut.to_vec())),
        }
    }

    #[test]
    fn every_position_from_every_hint() {
        let map = map();
        let expected = |block: u64| match block {
            0..4 => (MappingKind::Mapped, 0, 4, 100),
            4..6 => (MappingKind::Hole, 4, 2, 0),
            6..8 => (MappingKind::Unwritten, 6, 2, 200),
            8..11 => (MappingKind::Mapped, 8, 3, 300),
            _ => (MappingKind::Hole, 11, 0, 0),
        };
        for hint in 0..5 {
            for block in 0..13 {
                let mut ops = FileOps::with_hint(&map, Hint(hint));
                let pos = block * BLOCK + 17;
                let (found, source) = ops.begin(pos, 1, IterFlags::DIRECT).unwrap();
                let (kind, offset, blocks, addr) = expected(block);
                assert_eq!((found.kind, found.offset), (kind, offset * BLOCK));
                assert!(found.end() > pos && source.is_none());
                if kind != MappingKind::Hole {
                    assert_eq!((found.length, found.addr), (blocks * BLOCK, addr * BLOCK));
                }
                // The hint that is left gives the same answer.
                let again = FileOps::with_hint(&map, ops.hint()).begin(pos, 1, IterFlags::DIRECT);
                assert_eq!(again.unwrap().0, found);
            }
        }
    }

    #[test]
    fn only_overwrites_are_written_and_the_reason_is_given() {
        let map = map();
        let flags = IterFlags::WRITE | IterFlags::OVERWRITE_ONLY | IterFlags::DIRECT;
        let write = |block: u64| FileOps::new(&map).begin(block * BLOCK, BLOCK, flags);
        for block in [0, 3, 8] {
            let (found, _) = write(block).unwrap();
            assert_eq!(
                (found.kind, found.flags),
                (MappingKind::Mapped, MapFlags::empty())
            );
        }
        for (block, why) in [
            (4, "hole"),
            (7, "never written"),
            (9, "shared"),
            (11, "beyond the end"),
        ] {
            let error = write(block).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotOverwrite);
            assert!(error.to_string().contains(why), "{error}");
        }
        let error = FileOps::new(&map).begin(u64::MAX, 4096, flags).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotOverwrite);
    }

    #[test]
    fn the_hole_behind_all_extents_ends_with_the_last_block() {
        let map = map();
        let last = Geometry::MAX_FILE_BYTES - 4095;
        let (hole, _) = FileOps::new(&map)
            .begin(last, 4096, IterFlags::REPORT)
            .unwrap();
        assert_eq!((hole.kind, hole.end()), (MappingKind::Hole, 1 << 63));
    }

    #[test]
    fn reports_are_cut_to_what_was_asked_and_at_shared_blocks() {
        let map = map();
        let mut ops = FileOps::new(&map);
        let (found, _) = ops.begin(BLOCK, BLOCK, IterFlags::REPORT).unwrap();
        let cut = (found.addr, found.offset, found.length);
        assert_eq!(cut, (101 * BLOCK, BLOCK, BLOCK));
        let (found, _) = ops.begin(8 * BLOCK, 1 << 40, IterFlags::REPORT).unwrap();
        assert_eq!((found.length, found.flags), (BLOCK, MapFlags::empty()));
        let (found, _) = ops.begin(9 * BLOCK, 1 << 40, IterFlags::REPORT).unwrap();
        assert_eq!((found.length, found.flags), (2 * BLOCK, MapFlags::SHARED));
        let unknown = FileMap {
            cut: OnceLock::new(),
            ..map
        };
        let refused = FileOps::new(&unknown).begin(0, 1, IterFlags::REPORT);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

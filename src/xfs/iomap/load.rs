//! Maps of files with many extents: those of a part of the file are loaded when they are needed.
//!
//! A part that is not loaded is a run of its own in the map, marked with
//! [`MapFlags::UNLOADED`](crate::iomap::MapFlags::UNLOADED). A lookup that meets it fails with an
//! error that [`needs_extents`] knows, and is to be tried again after [`Fs::read_map_part`] and
//! [`FileMap::loaded`].
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;
use std::sync::OnceLock;

use super::super::MetaIo;
use super::super::fs::Fs;
use super::super::geometry::Geometry;
use super::super::inode::{Fork, Inode};
use super::super::ops::InodeId;
use super::{FileMap, Run};
use crate::error::{Error, ErrorKind, Result};

/// Most extents that are loaded when a file is opened.
const MOST_AT_OPEN: u64 = 1024;

/// The detail of the error that says that extents have to be loaded.
const NOT_LOADED: &str = "the extents of this part of the file are not loaded";

/// Says that extents have to be loaded, and the operation is to be tried again then.
#[cold]
pub(super) fn not_loaded(pos: u64) -> Error {
    Error::new(ErrorKind::WouldBlock, NOT_LOADED).at_offset(pos)
}

/// Whether an operation failed because extents of the file are not loaded.
pub fn needs_extents(error: &Error) -> bool {
    error.kind() == ErrorKind::WouldBlock && error.detail() == NOT_LOADED
}

/// All extents of a part of a file, for [`FileMap::loaded`].
#[derive(Debug)]
pub struct MapPart {
    range: Range<u64>,
    runs: Vec<Run>,
}

impl Fs {
    /// As [`Fs::file_map`], for a file that is opened: of one with many extents nothing is loaded.
    ///
    /// # Errors
    /// As [`Fs::file_map`].
    pub fn file_map_at_open(&self, io: &mut impl MetaIo, inode: &Inode) -> Result<FileMap> {
        let is_large = matches!(inode.data, Fork::Btree(_)) && inode.nextents > MOST_AT_OPEN;
        if !is_large || inode.extents_loaded().is_some() {
            return self.file_map(io, inode);
        }
        let may_share = self.features().reflink() && inode.may_share();
        Ok(FileMap {
            may_share,
            ..FileMap::unloaded(inode)
        })
    }

    /// Reads the extents of a part of a file in btree form, and those beside them in the same
    /// blocks of the btree. The file must not change meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is not the same file any more; [`ErrorKind::Corrupt`] when
    /// its extents are broken; those of reading.
    pub fn read_map_part(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        range: &Range<u64>,
    ) -> Result<MapPart> {
        let inode = self.read_inode(io, file.ino)?;
        if inode.generation != file.generation {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the file was removed meanwhile",
            ));
        }
        let geometry = self.geometry();
        let limit = geometry.limit_blocks();
        let log = geometry.block_log;
        let block_end = range.end.saturating_sub(1).wrapping_shr(log);
        let blocks = range.start.wrapping_shr(log)..block_end.saturating_add(1).min(limit);
        let loaded;
        let (blocks, extents) = match &inode.data {
            Fork::Btree(root) => {
                loaded = self.load_bmbt_part(io, &inode, root, blocks)?;
                (loaded.0.clone(), loaded.1.as_slice())
            }
            // It has become small meanwhile.
            _ => (0..limit, self.extents(io, &inode)?.as_slice()),
        };
        Ok(MapPart {
            range: geometry.bytes(blocks.start)..geometry.bytes(blocks.end.min(limit)),
            runs: extents
                .iter()
                .map(|extent| Run::of(geometry, extent))
                .collect(),
        })
    }
}

impl FileMap {
    /// A map of which nothing is loaded, of a file that shares no blocks.
    pub fn unloaded(inode: &Inode) -> Self {
        let all = Run::unloaded(0..Geometry::MAX_FILE_BYTES.saturating_add(1));
        Self {
            size_bytes: inode.size.into(),
            runs: vec![all].into(),
            may_share: false,
            cut: OnceLock::new(),
        }
    }

    /// Whether extents of a part of the file are not loaded.
    pub fn is_partial(&self) -> bool {
        self.runs.is_partial()
    }

    /// The first part of a range whose extents are not loaded.
    pub fn unloaded_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if !self.runs.is_partial() {
            return None;
        }
        let mut runs = self.runs.overlapping(range);
        let run = runs.find(|run| run.is_unloaded())?;
        Some(run.offset.max(range.start)..run.end.min(range.end))
    }

    /// Whether all extents of a range are loaded.
    ///
    /// # Errors
    /// One that [`needs_extents`] knows, where they are not.
    #[inline]
    pub fn check_loaded(&self, range: &Range<u64>) -> Result<()> {
        if !self.runs.is_partial() {
            return Ok(());
        }
        match self.unloaded_in(range) {
            Some(part) => Err(not_loaded(part.start)),
            None => Ok(()),
        }
    }

    /// The map with the extents of a part that was not loaded as a whole.
    pub fn loaded(&self, part: MapPart) -> Self {
        let MapPart { range, runs } = part;
        Self {
            size_bytes: self.size_bytes().into(),
            runs: self.runs.replaced(&range, |_| runs),
            may_share: self.may_share,
            // It is learned of whole maps.
            cut: OnceLock::new(),
        }
    }

    /// Whether a write or a report needs [`Fs::learn_sharing`] first.
    pub fn needs_sharing(&self) -> bool {
        self.may_share && self.cut.get().is_none()
    }
}

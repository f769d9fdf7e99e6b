//! The core of an inode, as xfs_dinode_verify() and what xfs_repair checks beyond.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::xfs::Geometry;
use crate::xfs::InodeType;
use crate::xfs::format::btree::{BmbtRecord, MAX_EXTENT_BLOCKS};
use crate::xfs::format::inode::{self as layout, InodeCore};
use crate::xfs::superblock::Features;

/// Bytes of an extent.
const EXTENT_BYTES: usize = size_of::<BmbtRecord>();

const FORK_DATA: u32 = 0;
const FORK_ATTRIBUTES: u32 = 1;

/// A core with the filesystem that it is of.
pub(super) struct CheckedCore<'a> {
    pub(super) core: &'a InodeCore,
    /// Bytes behind the core.
    pub(super) literal: &'a [u8],
    pub(super) geometry: &'a Geometry,
    pub(super) features: &'a Features,
    /// It is of the filesystem itself.
    pub(super) is_internal: bool,
}

impl<'a> CheckedCore<'a> {
    pub(super) fn has_large_counters(&self) -> bool {
        self.core.flags2.get() & layout::FLAG2_NREXT64 != 0
    }

    /// Extents of the data fork and of the attribute fork.
    pub(super) fn extents(&self) -> (u64, u64) {
        match self.has_large_counters() {
            true => (
                self.core.big_nextents.get(),
                self.core.nextents.get().into(),
            ),
            false => (
                self.core.nextents.get().into(),
                self.core.anextents.get().into(),
            ),
        }
    }

    /// Both forks; the second is empty where there is none.
    pub(super) fn forks(&self) -> (&'a [u8], &'a [u8]) {
        let at = usize::from(self.core.forkoff).saturating_mul(8);
        match (at, self.literal.split_at_checked(at)) {
            (1.., Some(forks)) => forks,
            _ => (self.literal, &[]),
        }
    }

    fn file_type(&self) -> Option<InodeType> {
        InodeType::from_mode(self.core.mode.get())
    }

    fn is_directory(&self) -> bool {
        self.file_type() == Some(InodeType::Directory)
    }

    fn is_regular(&self) -> bool {
        self.file_type() == Some(InodeType::Regular)
    }

    /// All faults.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        self.check_numbers(&mut faults);
        self.check_forks(&mut faults);
        self.check_hints(&mut faults);
        self.check_flags(&mut faults);
        if self.core.mode.get() != 0 {
            self.check_times(&mut faults);
            self.check_size(&mut faults);
        }
        faults
    }

    fn check_numbers(&self, faults: &mut Vec<String>) {
        let core = self.core;
        let mode = core.mode.get();
        if mode != 0 && self.file_type().is_none() {
            faults.push(format!("unknown file type (mode {mode:o})"));
        }
        if core.size.get() > Geometry::MAX_FILE_BYTES {
            faults.push(format!("impossible size {}", core.size.get()));
        }
        if core.onlink.get() != 0 {
            faults.push(format!("old link count {}, expected 0", core.onlink.get()));
        }
        let (data, attributes) = self.extents();
        let (extents, blocks) = (data.saturating_add(attributes), core.nblocks.get());
        if mode != 0 && extents > blocks {
            faults.push(format!("{extents} extents, but only {blocks} blocks"));
        }
        if extents == 0 && blocks != 0 {
            faults.push(format!("{blocks} blocks, but no extents"));
        }
        if blocks > self.geometry.data_blocks {
            faults.push(format!("{blocks} blocks, more than the filesystem has"));
        }
        if self.has_large_counters() {
            if core.anextents.get() != 0 {
                faults.push("the padding behind the extent counters is not zero".to_owned());
            }
        } else if core.big_nextents.get() != 0 {
            faults.push("the padding before the extent counters is not zero".to_owned());
        }
        if mode == 0 && (core.nlink.get() != 0) {
            faults.push(format!("is free, but has {} links", core.nlink.get()));
        }
    }

    fn check_forks(&self, faults: &mut Vec<String>) {
        let core = self.core;
        let offset = usize::from(core.forkoff).saturating_mul(8);
        let fits = match core.format {
            layout::FORMAT_DEV => matches!(core.forkoff, 0 | 1),
            _ => offset < self.literal.len(),
        };
        if core.format > layout::FORMAT_BTREE {
            faults.push(format!("unknown form {} of the data fork", core.format));
            return;
        }
        if !fits {
            faults.push(format!("impossible attribute fork offset {}", core.forkoff));
            return;
        }
        let has_format = match self.file_type() {
            Some(InodeType::Regular) => {
                matches!(core.format, layout::FORMAT_EXTENTS | layout::FORMAT_BTREE)
            }
            Some(InodeType::Directory | InodeType::Symlink) => core.format != layout::FORMAT_DEV,
            Some(_) => core.format == layout::FORMAT_DEV,
            None => true,
        };
        if !has_format {
            faults.push(format!(
                "its type cannot have a data fork of form {}",
                core.format
            ));
        }
        let (data, attributes) = self.extents();
        let (data_fork, attribute_fork) = self.forks();
        if core.mode.get() != 0 {
            let fork = (core.format, data, data_fork.len());
            self.check_fork(FORK_DATA, fork, faults);
        }
        if core.forkoff != 0 {
            let fork = (core.aformat, attributes, attribute_fork.len());
            self.check_fork(FORK_ATTRIBUTES, fork, faults);
        } else {
            if !matches!(core.aformat, 0 | layout::FORMAT_EXTENTS) {
                faults.push(format!(
                    "no attribute fork, but its form is {}",
                    core.aformat
                ));
            }
            if attributes != 0 {
                faults.push(format!(
                    "no attribute fork, but it has {attributes} extents"
                ));
            }
        }
    }

    fn check_fork(
        &self,
        which: u32,
        (format, extents, bytes): (u8, u64, usize),
        faults: &mut Vec<String>,
    ) {
        let name = if which == FORK_DATA {
            "data"
        } else {
            "attribute"
        };
        let room = u64::try_from(bytes / EXTENT_BYTES).unwrap_or(0);
        let size = self.core.size.get();
        match format {
            layout::FORMAT_DEV if which == FORK_DATA => {
                if extents != 0 {
                    faults.push(format!("a special file with {extents} extents"));
                }
            }
            layout::FORMAT_LOCAL => {
                if extents != 0 {
                    faults.push(format!(
                        "{name} fork inside the inode, with {extents} extents"
                    ));
                }
                if which == FORK_DATA && size > bytes as u64 {
                    faults.push(format!("{size} bytes inside the inode, where {bytes} fit"));
                }
            }
            layout::FORMAT_EXTENTS => {
                if extents > room {
                    faults.push(format!("{name} fork: {extents} extents, {room} fit"));
                }
            }
            layout::FORMAT_BTREE => {
                if extents <= room {
                    faults.push(format!(
                        "{name} fork: a btree of {extents} extents, which would fit into the inode"
                    ));
                }
            }
            _ => faults.push(format!("unknown form {format} of the {name} fork")),
        }
        let may_be_small = matches!(format, layout::FORMAT_LOCAL);
        if which == FORK_DATA
            && self.is_directory()
            && size != 0
            && size <= bytes as u64
            && !may_be_small
        {
            faults.push("a directory that would fit into the inode".to_owned());
        }
    }

    /// Extent size hints, as xfs_inode_validate_extsize() and _cowextsize().
    fn check_hints(&self, faults: &mut Vec<String>) {
        let core = self.core;
        let flags = core.flags.get();
        let mode = core.mode.get();
        let (hint, inherit) = (
            flags & layout::FLAG_EXTSIZE != 0,
            flags & layout::FLAG_EXTSZINHERIT != 0,
        );
        let most = MAX_EXTENT_BLOCKS.min(u64::from(self.geometry.ag_blocks / 2));
        let size = core.extsize.get();
        let wrong = hint && !self.is_regular()
            || inherit && !self.is_directory()
            || (hint || inherit) && size == 0
            || mode != 0 && !hint && !inherit && size != 0
            || u64::from(size) > most;
        if wrong {
            faults.push(format!("impossible extent size hint {size}"));
        }
        let hint = core.flags2.get() & layout::FLAG2_COWEXTSIZE != 0;
        let size = core.cowextsize.get();
        let wrong = hint && !self.features.reflink()
            || hint && !self.is_regular() && !self.is_directory()
            || hint && size == 0
            || mode != 0 && !hint && size != 0
            || u64::from(size) > most;
        if wrong {
            faults.push(format!(
                "impossible extent size hint for copy-on-write {size}"
            ));
        }
    }

    fn check_flags(&self, faults: &mut Vec<String>) {
        let (flags, flags2) = (self.core.flags.get(), self.core.flags2.get());
        let has_mode = self.core.mode.get() != 0;
        let of_directories =
            layout::FLAG_RTINHERIT | layout::FLAG_PROJINHERIT | layout::FLAG_NOSYMLINKS;
        let of_bitmap = flags & layout::FLAG_NEWRTBM != 0 && !self.is_internal;
        if flags & !layout::FLAGS_KNOWN != 0 || of_bitmap {
            faults.push(format!("unknown flags {flags:#x}"));
        }
        if flags & layout::FLAG_REALTIME != 0 && has_mode {
            faults.push("a file of the realtime section, and there is none".to_owned());
        }
        if has_mode && flags & of_directories != 0 && !self.is_directory() {
            faults.push(format!("flags of a directory ({flags:#x})"));
        }
        let known = layout::FLAG2_DAX
            | layout::FLAG2_REFLINK
            | layout::FLAG2_COWEXTSIZE
            | layout::FLAG2_BIGTIME
            | layout::FLAG2_NREXT64;
        if flags2 & !known != 0 {
            faults.push(format!("unknown flags {flags2:#x} in the second word"));
        }
        let lacks = |flag: u64, feature: bool| flags2 & flag != 0 && !feature;
        if lacks(layout::FLAG2_BIGTIME, self.features.bigtime())
            || lacks(layout::FLAG2_NREXT64, self.features.nrext64())
            || lacks(layout::FLAG2_REFLINK, self.features.reflink())
        {
            faults.push(format!(
                "flags of features that the filesystem has not ({flags2:#x})"
            ));
        }
        if flags2 & layout::FLAG2_REFLINK != 0 && !self.is_regular() {
            faults.push("may have shared blocks, but is no regular file".to_owned());
        }
        if has_mode && flags2 & layout::FLAG2_DAX != 0 && !self.is_regular() && !self.is_directory()
        {
            faults.push("the flag dax, but is no file or directory".to_owned());
        }
    }

    fn check_times(&self, faults: &mut Vec<String>) {
        let core = self.core;
        if core.flags2.get() & layout::FLAG2_BIGTIME != 0 {
            return;
        }
        let times = [
            ("access", core.atime),
            ("modification", core.mtime),
            ("change", core.ctime),
            ("creation", core.crtime),
        ];
        for (name, time) in times {
            let nanoseconds = time.get() & u64::from(u32::MAX);
            if nanoseconds >= 1_000_000_000 {
                faults.push(format!("{nanoseconds} nanoseconds in its {name} time"));
            }
        }
    }

    fn check_size(&self, faults: &mut Vec<String>) {
        const MAX_DIRECTORY_BYTES: u64 = 32 << 30;
        const MAX_SYMLINK_BYTES: u64 = 1024;
        let size = self.core.size.get();
        let is_removed = self.core.nlink.get() == 0;
        let most = match self.file_type() {
            Some(InodeType::Directory) => MAX_DIRECTORY_BYTES,
            Some(InodeType::Symlink) => MAX_SYMLINK_BYTES,
            Some(InodeType::Regular) | None => return,
            Some(_) => {
                if size != 0 {
                    faults.push(format!("a special file of {size} bytes"));
                }
                return;
            }
        };
        if size == 0 && !is_removed || size > most {
            faults.push(format!("impossible size {size}"));
        }
    }
}

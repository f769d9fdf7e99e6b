//! The mappings of a cached file: each one is looked up in the current version of the file's map.
//!
//! Blocks past the end of the file as the disk has it may have old data. Here they read as zeroes,
//! as those that were never written do; when their data is written back, the end moves behind them.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use super::super::core::IoCore;
use super::super::inodes::CoreInode;
use super::super::noting::note_written_back;
use crate::cache::BoundedWait;
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::buffered::{CachedOps, Validity};
use crate::iomap::{IterFlags, MapFlags, Mapping, MappingKind, Ops};
use crate::target::shared::TargetShared;
use crate::xfs::{FileMap, FileOps, Fs, Hint, MetaIo, needs_extents};

/// How long writing back waits for a change of the file's blocks to end.
const CHANGE_LIMIT: Duration = Duration::from_secs(2);
/// How long writing back waits for another thread's to end, which ends by the device's deadlines.
const HOLD_LIMIT: Duration = Duration::from_secs(120);

/// A thread's way to metadata.
#[derive(Debug)]
pub(in super::super) enum MetaCore<'a> {
    Here(&'a mut IoCore),
    /// Made when it is needed, and kept.
    Made(&'a Arc<TargetShared>, &'a mut Option<Box<IoCore>>),
}

impl MetaCore<'_> {
    pub(super) fn get(&mut self) -> Result<&mut IoCore> {
        match self {
            Self::Here(core) => Ok(core),
            Self::Made(target, slot) => {
                let core = match slot.take() {
                    Some(core) => core,
                    None => Box::new(IoCore::new(target)?),
                };
                Ok(slot.insert(core))
            }
        }
    }
}

/// [`Ops`] of a file in core, for one call. Takes the map when it is asked first, so it costs
/// nothing where the page cache has all that is needed.
#[derive(Debug)]
pub(in super::super) struct InodeOps<'a> {
    inode: &'a Arc<CoreInode>,
    fs: &'a Fs,
    core: MetaCore<'a>,
    map: Option<Arc<FileMap>>,
    /// Of the map.
    number: u64,
    hint: Hint,
    /// No other thread writes data to blocks of the file without data. Not given up by a drop,
    /// which reads and hits would pay for.
    is_held: bool,
}

impl<'a> InodeOps<'a> {
    #[inline]
    pub(in super::super) fn new(inode: &'a Arc<CoreInode>, fs: &'a Fs, core: MetaCore<'a>) -> Self {
        Self {
            inode,
            fs,
            core,
            map: None,
            number: 0,
            hint: Hint::default(),
            is_held: false,
        }
    }

    /// The current map.
    fn map(&mut self) -> &FileMap {
        if self.number != self.inode.number() {
            self.map = None;
        }
        let Self {
            inode, map, number, ..
        } = self;
        map.get_or_insert_with(|| {
            let (now, of_now) = inode.maps().now();
            *number = of_now;
            now
        })
    }

    /// Of a mapping that covers `pos`, the part on the same side of the end of the file on disk.
    fn cut(&mut self, pos: u64, mapping: Mapping) -> Mapping {
        if mapping.kind != MappingKind::Mapped {
            return mapping;
        }
        let block = self.block_bytes();
        let end = self.map().size_bytes().next_multiple_of(block);
        if mapping.end() <= end {
            return mapping;
        }
        if pos < end {
            return Mapping {
                length: end - mapping.offset,
                ..mapping
            };
        }
        let skip = end.saturating_sub(mapping.offset);
        Mapping {
            addr: mapping.addr.saturating_add(skip),
            offset: mapping.offset.saturating_add(skip),
            length: mapping.length - skip,
            kind: MappingKind::Unwritten,
            flags: mapping.flags.union(MapFlags::NEW),
            ..mapping
        }
    }

    fn block_bytes(&self) -> u64 {
        u64::from(self.fs.geometry().block_bytes).max(1)
    }

    /// Loads the extent of a dirty page. Its blocks are not being changed, so the space of the file
    /// need not be locked to read it in a transaction.
    #[cold]
    fn load(&mut self, pos: u64) -> Result<()> {
        let Self {
            inode, fs, core, ..
        } = self;
        let core = core.get()?;
        inode.update(false, || {
            fs.file_state(core, inode.id(), &(pos..pos.saturating_add(1)))
        })
    }

    /// Whether a range is inside of the file on disk.
    fn is_inside(&mut self, pos: u64, len: u64) -> bool {
        let size = self.map().size_bytes();
        pos.checked_add(len).is_some_and(|end| end <= size)
    }
}

impl Ops for InodeOps<'_> {
    /// A write may go to blocks that the file has, written or not; for all else it is
    /// [`ErrorKind::NotOverwrite`].
    fn begin(
        &mut self,
        pos: u64,
        len: u64,
        flags: IterFlags,
    ) -> Result<(Mapping, Option<Mapping>)> {
        let is_write = flags.contains(IterFlags::WRITE);
        let flags = match is_write {
            true => IterFlags::WRITE.union(IterFlags::ALLOCATED),
            // Before a range is zeroed, its mappings are looked at.
            false => flags.difference(IterFlags::ZERO),
        };
        let hint = self.hint;
        let mut ops = FileOps::with_hint(self.map(), hint);
        let found = ops.begin(pos, len, flags);
        self.hint = ops.hint();
        let (mapping, source) = found?;
        let cookie = self.number;
        let mapping = self.cut(pos, Mapping { cookie, ..mapping });
        let part = len.min(mapping.end().saturating_sub(pos));
        if is_write && (mapping.kind == MappingKind::Unwritten || !self.is_inside(pos, part)) {
            check_growth(self.fs).map_err(|error| error.at_offset(pos))?;
            self.inode.note_needs_metadata();
        }
        Ok((mapping, source.map(|source| Mapping { cookie, ..source })))
    }
}

impl CachedOps for InodeOps<'_> {
    #[inline]
    fn is_current(&self, mapping: &Mapping) -> bool {
        is_current(self.inode, self.block_bytes(), mapping)
    }

    fn validity(&self) -> Validity {
        let (inode, block) = (Arc::clone(self.inode), self.block_bytes());
        Validity::new(move |mapping| is_current(&inode, block, mapping))
    }

    /// Blocks that the file has; [`ErrorKind::NotOverwrite`] for all else, which no write let
    /// through. No page is dirty where blocks are taken away or moved, so the space is not locked.
    fn map_writeback(&mut self, pos: u64, len: u64) -> Result<Mapping> {
        let mut patience = BoundedWait::new(CHANGE_LIMIT);
        loop {
            match self.begin(pos, len, IterFlags::WRITE) {
                Ok((mapping, _)) => return Ok(mapping),
                Err(error) if error.kind() == ErrorKind::NotOverwrite && patience.wait() => {}
                Err(error) if needs_extents(&error) && patience.wait() => self.load(pos)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn hold_unwritten(&mut self) -> Result<()> {
        let mut patience = BoundedWait::new(HOLD_LIMIT);
        while !self.is_held {
            let before = self.inode.unwritten.swap(true, Acquire);
            self.is_held = !before;
            if before && !patience.wait() {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "another thread writes pages of the file back, and does not get on",
                ));
            }
        }
        Ok(())
    }

    fn release_unwritten(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.inode.unwritten.store(false, Release);
        }
    }

    fn zero_unwritten(&mut self, addr_bytes: u64, len_bytes: u64) -> Result<()> {
        let zeroes = vec![0; usize::try_from(len_bytes).unwrap_or(0)];
        self.core.get()?.write_at(addr_bytes, &zeroes)
    }

    /// Blocks without data become written ones, and the file as long as its data.
    fn written_back(&mut self, pos: u64, len: u64, mapping: &Mapping) -> Result<()> {
        let range = pos..pos.saturating_add(len);
        let is_overwrite = mapping.kind == MappingKind::Mapped && self.is_inside(pos, len);
        if range.is_empty() || is_overwrite {
            return Ok(());
        }
        let Self {
            inode, fs, core, ..
        } = self;
        note_written_back(fs, core.get()?, inode, &range).map(drop)
    }

    fn commit(&mut self, flush: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        match self.inode.newest_change() {
            Some(ticket) => self.fs.force_with_data(self.core.get()?, ticket),
            None => flush(),
        }
    }
}

/// Whether a mapping still holds: the map is the same, and what was past the end of the file on
/// disk still is.
#[inline]
fn is_current(inode: &CoreInode, block_bytes: u64, mapping: &Mapping) -> bool {
    let is_past_end = || mapping.offset >= inode.disk_bytes().next_multiple_of(block_bytes);
    inode.is_valid(mapping.cookie) && (!mapping.flags.contains(MapFlags::NEW) || is_past_end())
}

/// Whether files may get blocks or become longer when their pages are written back.
///
/// # Errors
/// [`ErrorKind::NotOverwrite`] with the reason.
pub(super) fn check_growth(fs: &Fs) -> Result<()> {
    fs.check_changeable().map_err(|error| {
        let why = error.detail();
        let detail = format!("the write needs blocks, or makes the file longer: {why}");
        Error::new(ErrorKind::NotOverwrite, detail)
    })
}

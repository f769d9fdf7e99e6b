//! Maps of files that change: a part of a map replaced by what the filesystem has there now.

use std::ops::Range;
use std::sync::OnceLock;

use super::super::extents::Extent;
use super::super::format::inode::{self as layout, InodeCore, InodeTimestamp};
use super::super::geometry::Geometry;
use super::{FileMap, Run, Runs};
use crate::error::{Error, ErrorKind, Result};
use crate::iomap::{MapFlags, MappingKind};

/// A part of a file after a change.
#[derive(Debug)]
pub struct FileState {
    /// Length of the file in bytes.
    pub size_bytes: u64,
    /// Space in use in units of 512 bytes.
    pub blocks_512: u64,
    /// Last change of the content.
    pub mtime: InodeTimestamp,
    /// Last change of the inode.
    pub ctime: InodeTimestamp,
    /// The part, in bytes: at least what was asked for.
    range: Range<u64>,
    /// All extents of the part.
    runs: Vec<Run>,
}

impl FileState {
    /// From the core of the inode and the extents that have any byte of a range of blocks.
    pub(in super::super) fn new(
        geometry: &Geometry,
        core: &InodeCore,
        blocks: &Range<u64>,
        extents: &[Extent],
    ) -> Self {
        let first = extents
            .first()
            .map_or(u64::MAX, |first| first.offset_blocks);
        let end = extents.last().map_or(0, Extent::end_blocks);
        let bigtime = core.flags2.get() & layout::FLAG2_BIGTIME != 0;
        let range = blocks.start.min(first)..blocks.end.max(end);
        Self {
            size_bytes: core.size.get(),
            blocks_512: geometry.bytes(core.nblocks.get()) / 512,
            mtime: InodeTimestamp::decode(core.mtime.get(), bigtime),
            ctime: InodeTimestamp::decode(core.ctime.get(), bigtime),
            range: geometry.bytes(range.start)..geometry.bytes(range.end),
            runs: extents
                .iter()
                .map(|extent| Run::of(geometry, extent))
                .collect(),
        }
    }

    /// With the marks of the part of the file that is being changed.
    pub fn mark(&mut self, change: &MapChange) {
        self.runs = change.marked(&self.runs);
    }
}

/// A part of a file whose blocks are being changed.
#[derive(Debug, Clone)]
pub struct MapChange {
    /// Writes of this part have to wait.
    pub frozen: Range<u64>,
    /// The blocks of this part go: it is a hole already.
    pub gone: Range<u64>,
}

impl MapChange {
    /// All that it changes.
    fn range(&self) -> Range<u64> {
        match (self.frozen.is_empty(), self.gone.is_empty()) {
            (true, _) => self.gone.clone(),
            (_, true) => self.frozen.clone(),
            _ => {
                let start = self.frozen.start.min(self.gone.start);
                start..self.frozen.end.max(self.gone.end)
            }
        }
    }

    fn marked(&self, runs: &[Run]) -> Vec<Run> {
        let parts = runs.iter().flat_map(|run| {
            let (before, rest) = run.split(self.gone.start);
            let (_, after) = rest.split(self.gone.end);
            [before, after]
        });
        let parts = parts.flat_map(|run| {
            let (before, rest) = run.split(self.frozen.start);
            let (mut frozen, after) = rest.split(self.frozen.end);
            frozen.flags |= MapFlags::FROZEN;
            [before, frozen, after]
        });
        parts.filter(|run| run.offset < run.end).collect()
    }
}

impl FileMap {
    /// The same map, marked for a change.
    pub fn changing(&self, change: &MapChange) -> Self {
        let range = change.range();
        let marked = |runs: &Runs| runs.replaced(&range, |inside| change.marked(inside));
        let cut = OnceLock::new();
        if let Some(runs) = self.cut.get() {
            let _ = cut.set(marked(runs));
        }
        Self {
            size_bytes: self.size_bytes().into(),
            runs: marked(&self.runs),
            may_share: self.may_share,
            cut,
        }
    }

    /// Whether the map, but for its length, has this state already.
    pub fn has(&self, state: &FileState) -> bool {
        // A length that grew inside of written blocks.
        if state.range.is_empty() {
            return true;
        }
        let mut inside = self.runs.overlapping(&state.range);
        state.runs.iter().all(|run| inside.next() == Some(run)) && inside.next().is_none()
    }

    /// The map with this state.
    pub fn with(&self, state: &FileState) -> Self {
        let (range, new) = (&state.range, &state.runs);
        let cut = OnceLock::new();
        if let Some(old) = self.cut.get() {
            let _ = cut.set(old.replaced(range, |old| keep_shared(old, new)));
        }
        Self {
            size_bytes: state.size_bytes.into(),
            runs: self.runs.replaced(range, |_| new.clone()),
            may_share: self.may_share,
            cut,
        }
    }

    /// Whether a range has blocks for all of it that a write may go to, written or not, and may not
    /// yet have data of the file where it begins or ends inside a block.
    pub fn is_allocated(&self, range: &Range<u64>, block_bytes: u64) -> bool {
        let Ok(runs) = self.cut_runs() else {
            return false;
        };
        let size = self.size_bytes().next_multiple_of(block_bytes);
        let has_data = |at: u64| {
            at.is_multiple_of(block_bytes)
                || (at < size
                    && runs
                        .at(at)
                        .is_some_and(|run| run.kind == MappingKind::Mapped))
        };
        all_writable(runs, range) && has_data(range.start) && has_data(range.end)
    }

    /// Whether a range has blocks for all of it that a write may go to, written or not.
    pub fn has_blocks(&self, range: &Range<u64>) -> bool {
        self.cut_runs().is_ok_and(|runs| all_writable(runs, range))
    }

    /// Whether a range has written blocks of the file's own for all of it, in one piece.
    pub fn is_written(&self, range: &Range<u64>) -> bool {
        let Ok(runs) = self.cut_runs() else {
            return false;
        };
        runs.at(range.start).is_some_and(|run| {
            run.kind == MappingKind::Mapped && run.flags.is_empty() && range.end <= run.end
        })
    }

    /// Whether a write of a range is seen at one look to be no overwrite.
    pub fn is_no_overwrite(&self, offset: u64, len: u64) -> bool {
        let is_inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.size_bytes());
        // One that is not loaded is looked at more closely.
        let is_plain = |runs: &Runs| {
            runs.at(offset).is_some_and(|run| {
                (run.kind == MappingKind::Mapped && run.flags.is_empty()) || run.is_unloaded()
            })
        };
        !is_inside || !self.cut_runs().is_ok_and(is_plain)
    }

    /// Checks that no block of a range is shared with another file.
    ///
    /// # Errors
    /// [`ErrorKind::NotOverwrite`] with the first byte that is.
    pub fn check_unshared(&self, range: &Range<u64>) -> Result<()> {
        let mut runs = self.cut_runs()?.overlapping(range);
        match runs.find(|run| run.flags.contains(MapFlags::SHARED)) {
            Some(run) => Err(shared_at(run.offset.max(range.start))),
            None => Ok(()),
        }
    }
}

#[cold]
fn shared_at(at: u64) -> Error {
    Error::new(
        ErrorKind::NotOverwrite,
        format!(
            "byte {at} is in blocks shared with another file: it needs copy-on-write, which xtent \
             cannot do yet"
        ),
    )
    .at_offset(at)
}

fn all_writable(runs: &Runs, range: &Range<u64>) -> bool {
    let mut at = range.start;
    while at < range.end {
        match runs.at(at) {
            Some(run) if is_writable(run) => at = run.end,
            _ => return false,
        }
    }
    true
}

fn is_writable(run: &Run) -> bool {
    matches!(run.kind, MappingKind::Mapped | MappingKind::Unwritten) && run.flags.is_empty()
}

/// New runs, cut where the old ones are shared: a change that adds blocks or data to a file shares
/// none, and leaves those that are shared as they are.
fn keep_shared(old: &[Run], new: &[Run]) -> Vec<Run> {
    let shared = |run: &&Run| run.flags.contains(MapFlags::SHARED);
    let mut all = Vec::with_capacity(new.len());
    for run in new {
        let mut rest = *run;
        for shared in old.iter().filter(shared) {
            let same = shared.offset.max(rest.offset) < shared.end.min(rest.end);
            if !same {
                continue;
            }
            let (before, from) = rest.split(shared.offset);
            let (inside, after) = from.split(shared.end);
            all.extend((before.offset < before.end).then_some(before));
            all.push(Run {
                flags: inside.flags | MapFlags::SHARED,
                ..inside
            });
            rest = after;
        }
        all.extend((rest.offset < rest.end).then_some(rest));
    }
    all
}

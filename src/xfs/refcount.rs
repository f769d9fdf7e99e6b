//! Which blocks are shared, by the refcount btree ("Reference Count B+Tree").
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::Cell;
use std::ops::{ControlFlow, Range};

use zerocopy::FromBytes;

use super::btree::{Tree, first_u32};
use super::cache::BlockKind;
use super::format::btree::{REFCOUNT_COW, REFCOUNT_MAGIC, RefcountRecord};
use super::fs::Fs;
use super::geometry::FsBlock;
use super::{MetaIo, corrupt};
use crate::error::{Error, ErrorKind, Result};

const TREE: Tree = Tree {
    kind: BlockKind::Refcount,
    magic: REFCOUNT_MAGIC,
    record_bytes: size_of::<RefcountRecord>(),
    key_bytes: 4,
    key: first_u32,
    siblings: false,
};

impl Fs {
    /// The first run of blocks among `blocks` from `start` that have several owners; `None` when
    /// there is none. The range must lie in one allocation group.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a range that does not exist, [`ErrorKind::Corrupt`] when the
    /// tree is broken.
    pub fn shared_in(
        &self,
        io: &mut impl MetaIo,
        start: FsBlock,
        blocks: u64,
    ) -> Result<Option<(FsBlock, u64)>> {
        let mut first = None;
        self.for_each_shared(io, start, blocks, |run| {
            first = Some(run);
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// Whether a group has blocks that were allocated for copy-on-write and belong to no file yet.
    /// Their records come last.
    pub(super) fn has_staging_blocks(&self, io: &mut impl MetaIo, ag: u32) -> Result<bool> {
        if !self.features().reflink() {
            return Ok(false);
        }
        let root = self.refcount_root(io, ag)?;
        let keys = u64::from(REFCOUNT_COW)..1 << u32::BITS;
        let mut found = false;
        self.walk_tree(io, &TREE, (ag, root), &keys, &mut |raw, _| {
            found = first_u32(raw).is_some_and(|start| start >= u64::from(REFCOUNT_COW));
            Ok(match found {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        Ok(found)
    }

    /// Calls `visit` with each run of shared blocks in a range, in order, runs that touch made one.
    pub(super) fn for_each_shared(
        &self,
        io: &mut impl MetaIo,
        start: FsBlock,
        blocks: u64,
        mut visit: impl FnMut((FsBlock, u64)) -> ControlFlow<()>,
    ) -> Result<()> {
        if !self.features().reflink() {
            return Ok(());
        }
        let geometry = self.geometry();
        geometry.check_extent(start, blocks).map_err(|what| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("{blocks} blocks at {start} are {what}"),
            )
        })?;
        let (ag, ag_block) = geometry.split(start);
        // Both fit: the range lies in the group.
        let end = ag_block.saturating_add(u32::try_from(blocks).unwrap_or(u32::MAX));
        let root = self.refcount_root(io, ag)?;
        let mut run: Option<Range<u32>> = None;
        let mut last_end = 0;
        let broke = Cell::new(false);
        let mut emit = |run: Range<u32>| {
            let flow = visit((
                geometry.fs_block(ag, run.start),
                run.end.saturating_sub(run.start).into(),
            ));
            broke.set(flow.is_break());
            flow
        };
        let keys = u64::from(ag_block)..u64::from(end);
        self.walk_tree(io, &TREE, (ag, root), &keys, &mut |raw, addr| {
            let record = check_record(raw, geometry.ag_length(ag), &mut last_end)
                .map_err(|what| corrupt(addr, format!("refcount btree: {what}")))?;
            let clipped = record.start.max(ag_block)..record.end.min(end);
            if clipped.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
            match &mut run {
                Some(run) if run.end == clipped.start => run.end = clipped.end,
                slot => {
                    if let Some(done) = slot.replace(clipped) {
                        return Ok(emit(done));
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(run) = run
            && !broke.get()
        {
            let _ = emit(run);
        }
        Ok(())
    }
}

/// The shared blocks of a record, empty when they have one owner only.
fn check_record(
    raw: &[u8],
    ag_length: u32,
    last_end: &mut u32,
) -> Result<Range<u32>, &'static str> {
    let (record, _) = RefcountRecord::ref_from_prefix(raw).map_err(|_| "too short")?;
    let start = record.startblock.get();
    if start & REFCOUNT_COW != 0 {
        return Ok(0..0);
    }
    let end = start
        .checked_add(record.blockcount.get())
        .filter(|end| *end <= ag_length)
        .ok_or("a record reaches beyond its group")?;
    if end == start || record.refcount.get() < 2 {
        return Err("an impossible record");
    }
    if start < *last_end {
        return Err("records overlap");
    }
    *last_end = end;
    Ok(start..end)
}

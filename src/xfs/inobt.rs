//! The inode btree ("Inode B+Tree"): which inodes exist, and which of them are in use.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::ControlFlow;
use std::sync::Arc;

use zerocopy::FromBytes;

use super::btree::{Tree, first_u32};
use super::cache::BlockKind;
use super::format::btree::{CHUNK_INODES, HOLE_BIT_INODES, INOBT_MAGIC, InobtRecord};
use super::fs::Fs;
use super::geometry::{Ino, InodePlace};
use super::{MetaIo, corrupt};
use crate::error::{Error, ErrorKind, Result};

const TREE: Tree = Tree {
    kind: BlockKind::Inobt,
    magic: INOBT_MAGIC,
    record_bytes: size_of::<InobtRecord>(),
    key_bytes: 4,
    key: first_u32,
    siblings: false,
};

impl Fs {
    /// The first inode number of the chunk that an inode in use lies in.
    pub(super) fn find_chunk(
        &self,
        io: &mut impl MetaIo,
        ino: Ino,
        place: &InodePlace,
    ) -> Result<u32> {
        let free = || Error::new(ErrorKind::NotFound, format!("{ino} is not in use"));
        let (record, addr) = self.chunk_record(io, place)?.ok_or_else(free)?;
        let start = record.startino.get();
        let index = place.ag_ino.checked_sub(start).ok_or_else(free)?;
        if index >= CHUNK_INODES {
            return Err(free());
        }
        if self.features().sparse() {
            let bad = |what: &str| corrupt(addr, format!("inode btree: {what}"));
            let holes = record.holemask.get();
            let in_holes = holes.count_ones().saturating_mul(HOLE_BIT_INODES);
            if u32::from(record.count) != CHUNK_INODES.saturating_sub(in_holes) {
                return Err(bad("hole mask and number of inodes contradict each other"));
            }
            if holes.wrapping_shr(index.wrapping_div(HOLE_BIT_INODES)) & 1 == 1 {
                return Err(free());
            }
        }
        if record.free.get().wrapping_shr(index) & 1 == 1 {
            return Err(free());
        }
        Ok(start)
    }

    /// The record of the chunk that an inode lies in or behind, and where it was found. Files of
    /// one directory often lie in one chunk: the last record is looked at first.
    fn chunk_record(
        &self,
        io: &mut impl MetaIo,
        place: &InodePlace,
    ) -> Result<Option<(InobtRecord, u64)>> {
        let covers = |record: &InobtRecord| {
            let index = place.ag_ino.checked_sub(record.startino.get());
            index.is_some_and(|index| index < CHUNK_INODES)
        };
        // A thread that finds it locked does not wait.
        if let Ok(last) = self.last_chunk.try_lock()
            && let Some((ag, record, addr)) = *last
            && ag == place.ag
            && covers(&record)
        {
            return Ok(Some((record, addr)));
        }
        let root = self.inobt_root(io, place.ag)?;
        let mut found = None;
        let ag_ino = u64::from(place.ag_ino);
        let keys = ag_ino..ag_ino.saturating_add(1);
        self.walk_tree(io, &TREE, (place.ag, root), &keys, &mut |raw, addr| {
            found = InobtRecord::read_from_prefix(raw)
                .ok()
                .map(|(record, _)| (record, addr));
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some((record, addr)) = found
            && covers(&record)
            && let Ok(mut last) = self.last_chunk.try_lock()
        {
            *last = Some((place.ag, record, addr));
        }
        Ok(found)
    }

    /// Reads the inodes around a place: its address and the bytes.
    pub(super) fn read_cluster(
        &self,
        io: &mut impl MetaIo,
        place: &InodePlace,
        chunk: u32,
    ) -> Result<(u64, Arc<[u8]>)> {
        let geometry = self.geometry();
        let chunk_block = chunk.wrapping_shr(geometry.inopb_log);
        let chunk_blocks = CHUNK_INODES.wrapping_shr(geometry.inopb_log).max(1);
        let cluster = geometry.cluster_blocks();
        let into = place.ag_block.saturating_sub(chunk_block);
        let skipped = into.checked_rem(cluster).unwrap_or(0);
        let first = place.ag_block.saturating_sub(skipped);
        let chunk_end = chunk_block.saturating_add(chunk_blocks);
        let end = first
            .saturating_add(cluster)
            .min(chunk_end.max(place.ag_block.saturating_add(1)))
            .min(geometry.ag_length(place.ag));
        let addr = geometry.ag_block_addr(place.ag, first);
        let bytes = geometry.bytes(end.saturating_sub(first).into());
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        // Each inode is checked when it is used: one that is broken must not hide the others.
        let data = self.read_block(io, (addr, len), BlockKind::Inodes, 0, |_| Ok(()))?;
        Ok((addr, data))
    }
}

//! All inodes that the inode btrees have, and what was seen of them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::xfs::{Geometry, InodeType};

/// A chunk of 64 inodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct InodeChunk {
    pub(super) group: u32,
    /// Number inside the group of the first inode.
    pub(super) start: u32,
    /// Inodes that have blocks.
    pub(super) present: u64,
    /// Inodes that are in use.
    pub(super) used: u64,
}

/// What was seen of an inode.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InodeState {
    /// Its type; `None` for one that is free or cannot be read.
    pub(super) file_type: Option<InodeType>,
    /// It is in use, and could not be read.
    pub(super) is_broken: bool,
    /// It is on an unlinked list.
    pub(super) is_unlinked: bool,
    /// The inode is one after it on an unlinked list, as its own field has it.
    pub(super) next_unlinked: u32,
    pub(super) nlink: u32,
    /// Names that lead to it; for a directory also its `.` and the `..` of those in it.
    pub(super) names: u32,
    /// Sum of a hash of all names, less that of all parent pointers.
    pub(super) parents: u64,
    /// A directory has a name that leads to it.
    pub(super) is_named: bool,
    /// Its blocks may be shared.
    pub(super) may_share: bool,
}

/// The place of a directory among the others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DirParents {
    /// What its `..` says.
    pub(super) dot_dot: Option<u64>,
    /// The directory that has its name.
    pub(super) parent: Option<u64>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct InodeTable {
    chunks: Vec<InodeChunk>,
    states: Vec<InodeState>,
    pub(super) places: HashMap<u64, DirParents>,
    /// A directory could not be read: inodes without names mean nothing.
    pub(super) has_unread_names: bool,
}

const CHUNK: usize = 64;

impl InodeTable {
    /// Adds a chunk. Call [`InodeTable::sort`] after the last one.
    pub(super) fn push(&mut self, chunk: InodeChunk) {
        self.chunks.push(chunk);
    }

    /// Makes it searchable.
    pub(super) fn sort(&mut self) {
        self.chunks.sort_by_key(|chunk| (chunk.group, chunk.start));
        self.chunks.dedup_by_key(|chunk| (chunk.group, chunk.start));
        let states = self.chunks.len().saturating_mul(CHUNK);
        self.states = vec![InodeState::default(); states];
    }

    pub(super) fn chunks(&self) -> &[InodeChunk] {
        &self.chunks
    }

    /// The chunk and the place in it of an inode.
    fn find(&self, geometry: &Geometry, ino: u64) -> Option<(usize, u32)> {
        let (group, ag_ino) = geometry.split_inode(crate::xfs::Ino(ino))?;
        let behind = self
            .chunks
            .partition_point(|chunk| (chunk.group, chunk.start) <= (group, ag_ino));
        let index = behind.checked_sub(1)?;
        let chunk = self.chunks.get(index)?;
        let into = ag_ino.checked_sub(chunk.start)?;
        (chunk.group == group && into < 64).then_some((index, into))
    }

    /// Whether an inode is in use, by the inode btree.
    pub(super) fn is_used(&self, geometry: &Geometry, ino: u64) -> bool {
        let found = self.find(geometry, ino);
        found.is_some_and(|(index, into)| {
            let chunk = self.chunks.get(index);
            chunk.is_some_and(|chunk| chunk.used.wrapping_shr(into) & 1 == 1)
        })
    }

    pub(super) fn state(&mut self, geometry: &Geometry, ino: u64) -> Option<&mut InodeState> {
        let (index, into) = self.find(geometry, ino)?;
        let at = index.checked_mul(CHUNK)?;
        self.states
            .get_mut(at.checked_add(usize::try_from(into).ok()?)?)
    }

    /// Each inode in use, and what was seen of it.
    pub(super) fn used(&self, geometry: &Geometry) -> impl Iterator<Item = (u64, &InodeState)> {
        let all = self.chunks.iter().zip(self.states.chunks(CHUNK));
        let bits = geometry.ag_block_log.saturating_add(geometry.inopb_log);
        all.flat_map(move |(chunk, states)| {
            let first = u64::from(chunk.group).wrapping_shl(bits) | u64::from(chunk.start);
            let used = chunk.used;
            let numbered = (0_u64..).zip(states);
            numbered
                .filter(move |(into, _)| {
                    used.checked_shr(u32::try_from(*into).unwrap_or(64))
                        .unwrap_or(0)
                        & 1
                        == 1
                })
                .map(move |(into, state)| (first.saturating_add(into), state))
        })
    }
}

/// A number for a name in a directory, by which names and parent pointers are compared.
pub(super) fn name_print(parent: u64, generation: u32, name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent, generation, name).hash(&mut hasher);
    hasher.finish()
}

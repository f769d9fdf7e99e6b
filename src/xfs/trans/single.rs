//! Transactions that change one inode alone, as each append to a file does: without the bookkeeping
//! of the others, and without an allocation.

use std::ops::Range;

use super::super::buf::BufKind;
use super::super::geometry::Ino;
use super::super::superblock::Features;
use super::super::{MetaIo, corrupt};
use super::{BufPlace, CommitTicket, MetaState, buffer_of, check_inode, place_of_inode};
use crate::error::Result;

impl MetaState {
    /// Where an inode lies; that of the last one is known.
    pub(super) fn place_of(&mut self, ino: Ino) -> Result<(BufPlace, Range<usize>)> {
        if let Some((last, place, range)) = &self.last_inode
            && *last == ino
        {
            return Ok((*place, range.clone()));
        }
        let (place, range) = place_of_inode(&self.superblock.geometry, ino)?;
        self.last_inode = Some((ino, place, range.clone()));
        Ok((place, range))
    }

    /// Changes the bytes of one inode, by `change`. They stay as they are when that fails. The
    /// place is that of the buffer, if it was changed.
    ///
    /// # Errors
    /// Those of `change`; those of `Trans::begin` and `Trans::edit_inode`.
    pub(in super::super) fn change_inode<T>(
        &mut self,
        io: &mut dyn MetaIo,
        ino: Ino,
        change: impl FnOnce(&mut [u8], &Features) -> Result<T>,
    ) -> Result<(T, CommitTicket, Option<BufPlace>)> {
        self.check_running()?;
        let (place, range) = self.place_of(ino)?;
        let features = self.superblock.features;
        let mut old = std::mem::take(&mut self.old_inode);
        let mut counted = (0, 0);
        let changed = (|| {
            let buffer = buffer_of(self, io, place, BufKind::Inodes)?;
            check_inode(buffer, ino, place, &range)?;
            counted.0 = if buffer.in_cil { buffer.log_bytes() } else { 0 };
            let raw = buffer.bytes.get_mut(range.clone());
            let raw =
                raw.ok_or_else(|| corrupt(place.addr_bytes, "an inode outside its cluster"))?;
            old.clear();
            old.extend_from_slice(raw);
            let value = match change(raw, &features) {
                Ok(value) => value,
                Err(error) => {
                    raw.copy_from_slice(&old);
                    return Err(error);
                }
            };
            let was_in_cil = buffer.in_cil;
            let is_changed = buffer.note_inode(range.start, &old);
            counted.1 = buffer.log_bytes();
            Ok((value, is_changed, was_in_cil))
        })();
        self.old_inode = old;
        let (value, is_changed, was_in_cil) = changed?;
        if is_changed {
            let more = counted.1.saturating_sub(counted.0);
            self.cil_bytes = self.cil_bytes.saturating_add(more);
            if !was_in_cil {
                self.cil.insert(place.addr_bytes);
            }
        }
        let ticket = CommitTicket(self.checkpoint);
        Ok((value, ticket, is_changed.then_some(place)))
    }

    /// The bytes of an inode whose cluster is in memory, sealed.
    pub(in super::super) fn inode_in_memory(&self, ino: Ino) -> Option<Box<[u8]>> {
        let (place, range) = place_of_inode(&self.superblock.geometry, ino).ok()?;
        let buffer = self.buffers.get(place.addr_bytes)?;
        let is_cluster = buffer.kind == BufKind::Inodes && buffer.bytes.len() == place.len_bytes;
        is_cluster.then(|| buffer.newest_inode(range)).flatten()
    }
}

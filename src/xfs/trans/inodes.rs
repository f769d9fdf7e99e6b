//! Inodes in a transaction.

use std::ops::Range;

use super::super::buf::{BufKind, OldContent};
use super::super::corrupt;
use super::super::geometry::Ino;
use super::{Before, BufPlace, Trans, buffer_of, check_inode, place_of_inode};
use crate::error::Result;

impl Trans<'_> {
    /// The buffer of an inode's cluster, and where the inode lies in it. Whether the inode exists
    /// is not looked up.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a number that no inode can have; [`ErrorKind::Unsupported`] for
    /// a filesystem whose inode chunks are not aligned.
    pub(in super::super) fn inode_place(&self, ino: Ino) -> Result<(BufPlace, Range<usize>)> {
        place_of_inode(self.geometry(), ino)
    }

    /// The bytes of an inode. That it is allocated is for the caller to know.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it was damaged on disk; those of [`Trans::read`] and
    /// [`Trans::inode_place`].
    pub(in super::super) fn inode(&mut self, ino: Ino) -> Result<&[u8]> {
        let (place, range) = self.state.place_of(ino)?;
        let buffer = self.buffer(place, BufKind::Inodes)?;
        check_inode(buffer, ino, place, &range)?;
        let raw = buffer.bytes.get(range);
        raw.ok_or_else(|| corrupt(place.addr_bytes, format!("{ino} lies outside its cluster")))
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// As [`Trans::inode`].
    pub(in super::super) fn edit_inode(&mut self, ino: Ino) -> Result<&mut [u8]> {
        let (place, range) = self.state.place_of(ino)?;
        let buffer = buffer_of(self.state, self.io, place, BufKind::Inodes)?;
        check_inode(buffer, ino, place, &range)?;
        let before = self.before.entry(place.addr_bytes);
        let none = || Before::Content(OldContent::Inodes(Vec::new()));
        if let Before::Content(content) = before.or_insert_with(none) {
            content.keep(&buffer.bytes, range.clone());
        }
        let raw = buffer.bytes.get_mut(range);
        raw.ok_or_else(|| corrupt(place.addr_bytes, format!("{ino} lies outside its cluster")))
    }
}

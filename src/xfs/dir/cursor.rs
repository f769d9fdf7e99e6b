//! A directory entry by entry, one block in memory at a time.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::block::{self, Block, Want};
use super::{DirContent, DirForm, XfsDirEntry, checked_entry, content};
use crate::error::{Error, Result};
use crate::xfs::format::dir::{self as layout, DataItem, EntryType};
use crate::xfs::format::dir_short::ShortForm;
use crate::xfs::{Fs, Ino, Inode, MetaIo, corrupt};

/// A position in a directory. Goes through the names in the order of their place in the directory,
/// as getdents does: names that stay while others come and go are seen exactly once.
#[derive(Debug, Clone, Default)]
pub struct DirCursor {
    /// Byte of the directory file at which the next item is looked for.
    at: u64,
    with_dots: bool,
    loaded: Option<Loaded>,
    /// The form of the directory with this number: found out once.
    form: Option<(Ino, DirForm)>,
}

/// The block of names that the cursor stands in.
#[derive(Debug, Clone)]
struct Loaded {
    block: Block,
    /// Byte of the directory file at which it begins.
    start: u64,
    /// Byte of the block at which its names end.
    end: usize,
    /// Byte of the block of the next item.
    next: usize,
}

impl DirCursor {
    /// At the beginning. `.` and `..` are skipped, as std does.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `.` and `..` too, as getdents does.
    #[must_use]
    pub fn with_dots(mut self) -> Self {
        self.with_dots = true;
        self
    }

    /// Goes on where a cursor stood when it said [`DirCursor::cookie`]. Any number is allowed.
    #[must_use]
    pub fn at_cookie(mut self, cookie: u64) -> Self {
        self.at = cookie.saturating_mul(8);
        self.loaded = None;
        self
    }

    /// The position of the next name, in units of 8 bytes of the directory file: at most 2^32.
    pub fn cookie(&self) -> u64 {
        let at = match &self.loaded {
            Some(loaded) => loaded.start.saturating_add(loaded.next as u64),
            None => self.at,
        };
        at.div_ceil(8)
    }

    /// The next name; `None` at the end.
    ///
    /// # Errors
    /// [`NotADirectory`](crate::ErrorKind::NotADirectory), [`Corrupt`](crate::ErrorKind::Corrupt)
    /// with the block's address, and what the device reports. After an error the cursor stands at
    /// the end.
    pub fn next_entry(
        &mut self,
        fs: &Fs,
        io: &mut impl MetaIo,
        dir: &Inode,
    ) -> Result<Option<XfsDirEntry>> {
        let next = match self.form {
            Some((ino, form)) if ino == dir.ino => self.next_in_blocks(fs, io, dir, form),
            _ => match content(fs, io, dir) {
                Ok(DirContent::Short(form)) => self.next_short(fs, dir, &form),
                Ok(DirContent::Blocks(form)) => {
                    self.form = Some((dir.ino, form));
                    self.next_in_blocks(fs, io, dir, form)
                }
                Err(error) => Err(error),
            },
        };
        if next.is_err() {
            self.loaded = None;
            self.at = u64::MAX;
        }
        next
    }

    /// All names from here, as an iterator.
    pub fn entries<'a, M: MetaIo>(
        self,
        fs: &'a Fs,
        io: &'a mut M,
        dir: &'a Inode,
    ) -> XfsDirEntries<'a, M> {
        XfsDirEntries {
            cursor: self,
            fs,
            io,
            dir,
        }
    }

    fn next_short(
        &mut self,
        fs: &Fs,
        dir: &Inode,
        form: &ShortForm<'_>,
    ) -> Result<Option<XfsDirEntry>> {
        if self.with_dots {
            let dots = [
                (layout::DOT_OFFSET, dir.ino.0, b".".as_slice()),
                (layout::DOT_DOT_OFFSET, form.parent, b"..".as_slice()),
            ];
            for (offset, ino, name) in dots {
                if self.at <= offset {
                    self.at = offset.saturating_add(8);
                    let kind = EntryType::Directory;
                    return checked_entry(fs, dir.addr_bytes, ino, name, kind).map(Some);
                }
            }
        }
        for entry in form.entries() {
            let entry = entry.map_err(|error| error.at_offset(dir.addr_bytes))?;
            let offset = u64::from(entry.offset);
            if is_dot(entry.name) {
                return Err(second_dot(dir, dir.addr_bytes));
            }
            if offset >= self.at {
                self.at = offset.saturating_add(8);
                let addr = dir.addr_bytes;
                return checked_entry(fs, addr, entry.ino, entry.name, entry.file_type).map(Some);
            }
        }
        Ok(None)
    }

    fn next_in_blocks(
        &mut self,
        fs: &Fs,
        io: &mut impl MetaIo,
        dir: &Inode,
        form: DirForm,
    ) -> Result<Option<XfsDirEntry>> {
        loop {
            let Some(loaded) = &mut self.loaded else {
                self.loaded = self.load(fs, io, dir, form)?;
                if self.loaded.is_none() {
                    return Ok(None);
                }
                continue;
            };
            if loaded.next >= loaded.end {
                self.at = loaded.start.saturating_add(loaded.block.bytes.len() as u64);
                self.loaded = None;
                continue;
            }
            let block = &loaded.block;
            let item = layout::data_item(&block.bytes, loaded.next, loaded.end);
            let (item, length) = block.checked(item)?;
            let place = loaded.start.saturating_add(loaded.next as u64);
            loaded.next = loaded.next.saturating_add(length);
            let DataItem::Entry(entry) = item else {
                continue;
            };
            let is_dot = is_dot(entry.name);
            // Both are the first entries of the first block, always (xfs_dir2_sf_to_block()):
            // others of these names would be skipped silently.
            let is_in_place = (place, entry.name) == (layout::DOT_OFFSET, b".")
                || (place, entry.name) == (layout::DOT_DOT_OFFSET, b"..");
            if is_dot && !is_in_place {
                return Err(second_dot(dir, block.addr_bytes));
            }
            if place < self.at || (is_dot && !self.with_dots) {
                continue;
            }
            let (addr, kind) = (block.addr_bytes, entry.file_type);
            return checked_entry(fs, addr, entry.ino, entry.name, kind).map(Some);
        }
    }

    /// The block of names at or behind the position. A block is walked from its beginning, since a
    /// cookie may point into the middle of anything.
    fn load(
        &self,
        fs: &Fs,
        io: &mut impl MetaIo,
        dir: &Inode,
        form: DirForm,
    ) -> Result<Option<Loaded>> {
        let geometry = fs.geometry();
        let dir_block_bytes = u64::from(geometry.dir_block_bytes);
        let first = self.at & !dir_block_bytes.saturating_sub(1);
        let from = first.checked_shr(geometry.block_log).unwrap_or(u64::MAX);
        let end = dir.size.checked_shr(geometry.block_log).unwrap_or(0);
        let Some(fork_block) = block::next_mapped(fs, io, dir, from, end)? else {
            return Ok(None);
        };
        let want = match form {
            DirForm::Block => Want::Single,
            DirForm::Leaf | DirForm::Node => Want::Data,
        };
        let block = block::read(fs, io, dir, fork_block, want)?;
        let end = match form {
            DirForm::Block => block.checked(layout::block_leaf(&block.bytes))?.1,
            DirForm::Leaf | DirForm::Node => block.bytes.len(),
        };
        Ok(Some(Loaded {
            block,
            start: geometry.bytes(fork_block),
            end,
            next: layout::DATA_HEADER_BYTES,
        }))
    }
}

/// Iterates the names of a directory.
#[derive(Debug)]
pub struct XfsDirEntries<'a, M> {
    cursor: DirCursor,
    fs: &'a Fs,
    io: &'a mut M,
    dir: &'a Inode,
}

impl<M: MetaIo> Iterator for XfsDirEntries<'_, M> {
    type Item = Result<XfsDirEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.cursor
            .next_entry(self.fs, self.io, self.dir)
            .transpose()
    }
}
fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

#[cold]
fn second_dot(dir: &Inode, addr_bytes: u64) -> Error {
    corrupt(
        addr_bytes,
        format!("directory inode {}: a second entry `.` or `..`", dir.ino.0),
    )
}

//! A name to an inode number: by the hash index, collisions followed.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::block::{self, Block, Want};
use super::{DirContent, DirForm, checked_ino, content, file_type};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::circle::Circle;
use crate::xfs::format::dir::{self as layout, DataItem, DirLeafEntry, EntryType, hash_name};
use crate::xfs::{Fs, Ino, Inode, InodeType, MetaIo};

/// What a name stands for: the inode's number, and its type where the entry tells.
pub type FoundName = (Ino, Option<InodeType>);

/// Finds a name in a directory. `.` and `..` are names like any other.
///
/// # Errors
/// [`ErrorKind::NameTooLong`] and [`ErrorKind::InvalidInput`] for what cannot be a name,
/// [`ErrorKind::NotADirectory`], [`ErrorKind::Corrupt`] with the block's address, and what the
/// device reports.
pub fn lookup(
    fs: &Fs,
    io: &mut impl MetaIo,
    dir: &Inode,
    name: &[u8],
) -> Result<Option<FoundName>> {
    if name.len() > layout::NAME_MAX_BYTES {
        let detail = format!("a name of {} bytes; the most is 255", name.len());
        return Err(Error::new(ErrorKind::NameTooLong, detail));
    }
    if !layout::name_is_valid(name) {
        let detail = "a name must have at least one byte and neither slash nor NUL";
        return Err(Error::new(ErrorKind::InvalidInput, detail));
    }
    let content = content(fs, io, dir)?;
    if name == b"." {
        return Ok(Some((dir.ino, Some(InodeType::Directory))));
    }
    let form = match content {
        DirContent::Short(form) => {
            if name == b".." {
                let parent = checked_ino(fs, dir.addr_bytes, form.parent)?;
                return Ok(Some((parent, Some(InodeType::Directory))));
            }
            for entry in form.entries() {
                let entry = entry.map_err(|error| error.at_offset(dir.addr_bytes))?;
                if entry.name == name {
                    let ino = checked_ino(fs, dir.addr_bytes, entry.ino)?;
                    return Ok(Some((ino, file_type(entry.file_type))));
                }
            }
            return Ok(None);
        }
        DirContent::Blocks(form) => form,
    };
    let mut search = DirSearch {
        fs,
        dir,
        name,
        hash: hash_name(name),
        data: None,
        form,
    };
    match form {
        DirForm::Block => {
            let block = block::read(fs, io, dir, 0, Want::Single)?;
            let (entries, _) = block.checked(layout::block_leaf(&block.bytes))?;
            search.data = Some((0, block.clone()));
            search.in_entries(io, &block, entries)
        }
        DirForm::Leaf => {
            let at = block::leaf_space_start(fs.geometry());
            let leaf = block::read(fs, io, dir, at, Want::Leaf1)?;
            let (_, entries) = block::leaf_of(&leaf)?;
            search.in_entries(io, &leaf, entries)
        }
        DirForm::Node => search.in_tree(io),
    }
}

/// Checks that a directory which was found in the directory `from` has it as its parent (`..`): a
/// directory has one name only, or the number of paths grows exponentially with their depth.
///
/// # Errors
/// [`ErrorKind::Corrupt`] with both inode numbers; those of [`lookup`].
pub fn check_parent(fs: &Fs, io: &mut impl MetaIo, dir: &Inode, from: Ino) -> Result<()> {
    if dir.ino == fs.root() {
        let detail = format!("is the root directory, but has a name in {from}: run xfs_repair");
        return Err(super::corrupt(dir, detail));
    }
    match lookup(fs, io, dir, b"..")? {
        Some((parent, _)) if parent == from => Ok(()),
        Some((parent, _)) => {
            let detail =
                format!("has a name in {from}, but its parent (..) is {parent}: run xfs_repair");
            Err(super::corrupt(dir, detail))
        }
        None => Err(super::corrupt(dir, "has no entry `..`: run xfs_repair")),
    }
}

struct DirSearch<'a> {
    fs: &'a Fs,
    dir: &'a Inode,
    name: &'a [u8],
    hash: u32,
    /// The block of names looked at last, by its first fork block: collisions often share it.
    data: Option<(u64, Block)>,
    form: DirForm,
}

impl DirSearch<'_> {
    /// Looks at every entry of this hash in one leaf.
    fn in_entries(
        &mut self,
        io: &mut impl MetaIo,
        leaf: &Block,
        entries: &[DirLeafEntry],
    ) -> Result<Option<FoundName>> {
        let first = entries.partition_point(|entry| entry.hash.get() < self.hash);
        for entry in entries.iter().skip(first) {
            if entry.hash.get() != self.hash {
                break;
            }
            // 0 marks a stale entry.
            let address = entry.address.get();
            if address != 0
                && let Some(found) = self.at_address(io, leaf, address)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Compares the name that a leaf entry points to.
    fn at_address(
        &mut self,
        io: &mut impl MetaIo,
        leaf: &Block,
        address: u32,
    ) -> Result<Option<FoundName>> {
        let byte = u64::from(address).wrapping_mul(8);
        // Directory blocks are a power of two of bytes.
        let mask = u64::from(self.fs.geometry().dir_block_bytes).saturating_sub(1);
        let within = usize::try_from(byte & mask).unwrap_or(usize::MAX);
        let fork_block = (byte & !mask)
            .checked_shr(self.fs.geometry().block_log)
            .unwrap_or(u64::MAX);
        if byte >= self.dir.size || within < layout::DATA_HEADER_BYTES {
            return leaf.corrupt(format!(
                "a hash entry points to byte {byte:#x} of {}",
                self.dir.ino
            ));
        }
        if self.data.as_ref().is_none_or(|(at, _)| *at != fork_block) {
            let block = block::read(self.fs, io, self.dir, fork_block, Want::Data)?;
            self.data = Some((fork_block, block));
        }
        let Some((_, block)) = &self.data else {
            return Ok(None);
        };
        let end = match self.form {
            DirForm::Block => block.checked(layout::block_leaf(&block.bytes))?.1,
            DirForm::Leaf | DirForm::Node => block.bytes.len(),
        };
        let (item, _) = block.checked(layout::data_item(&block.bytes, within, end))?;
        let DataItem::Entry(entry) = item else {
            return leaf.corrupt(format!(
                "a hash entry points to unused bytes of {}",
                self.dir.ino
            ));
        };
        if entry.name != self.name {
            if hash_name(entry.name) != self.hash {
                return leaf.corrupt(format!(
                    "a hash entry of {} of a name of another hash",
                    self.dir.ino
                ));
            }
            return Ok(None);
        }
        let ino = checked_ino(self.fs, block.addr_bytes, entry.ino)?;
        let kind = match entry.file_type {
            EntryType::Unknown => None,
            known => file_type(known),
        };
        Ok(Some((ino, kind)))
    }

    /// Walks the tree down to the first leaf that can have the hash, and on along the leaves while
    /// it goes on. Each level is one below the last, and leaves that form a circle are found out.
    fn in_tree(&mut self, io: &mut impl MetaIo) -> Result<Option<FoundName>> {
        let root = block::leaf_space_start(self.fs.geometry());
        let (mut leaf_at, mut leaf) = self.first_leaf(io, root)?;
        let mut circle = Circle::new(leaf_at);
        loop {
            let (header, entries) = block::leaf_of(&leaf)?;
            if let Some(found) = self.in_entries(io, &leaf, entries)? {
                return Ok(Some(found));
            }
            let goes_on = entries
                .last()
                .is_none_or(|entry| entry.hash.get() <= self.hash);
            let next_at = u64::from(header.info.forw.get());
            if !goes_on || next_at == 0 {
                return Ok(None);
            }
            if circle.closes_at(next_at) {
                return leaf.corrupt(format!("the leaves of {} go in a circle", self.dir.ino));
            }
            let last_hash = entries.last().map_or(0, |entry| entry.hash.get());
            let next = self.tree_block(io, &leaf, next_at)?;
            if block::tree_magic(&next.bytes) != layout::MAGIC_LEAFN {
                return leaf.corrupt("a leaf's neighbour is no leaf");
            }
            let (next_header, next_entries) = block::leaf_of(&next)?;
            if u64::from(next_header.info.back.get()) != leaf_at {
                return next.corrupt("a leaf that does not point back to its neighbour");
            }
            if next_entries
                .first()
                .is_some_and(|entry| entry.hash.get() < last_hash)
            {
                return next.corrupt("leaves whose hashes are out of order");
            }
            leaf_at = next_at;
            leaf = next;
        }
    }

    fn first_leaf(&self, io: &mut impl MetaIo, root: u64) -> Result<(u64, Block)> {
        let mut at = root;
        let mut block = block::read(self.fs, io, self.dir, at, Want::Tree)?;
        let mut level_above = None;
        let mut greatest = u32::MAX;
        loop {
            if block::tree_magic(&block.bytes) == layout::MAGIC_LEAFN {
                let (_, entries) = block::leaf_of(&block)?;
                if level_above.is_some_and(|level| level != 1) {
                    return block.corrupt("a leaf at the height of a node");
                }
                if entries
                    .last()
                    .is_some_and(|entry| entry.hash.get() > greatest)
                {
                    return block.corrupt("a leaf with a greater hash than its node says");
                }
                return Ok((at, block));
            }
            let (header, entries) = block.checked(layout::node(&block.bytes))?;
            let level = header.level.get();
            if level_above.is_some_and(|above: u16| above != level.saturating_add(1)) {
                return block.corrupt("a node at the height of another");
            }
            if entries
                .last()
                .is_some_and(|entry| entry.hash.get() > greatest)
            {
                return block.corrupt("a node with a greater hash than the node above it says");
            }
            let child = entries.partition_point(|entry| entry.hash.get() < self.hash);
            // Beyond the greatest hash the last child answers.
            let Some(child) = entries.get(child).or(entries.last()) else {
                return block.corrupt("a node without entries");
            };
            greatest = child.hash.get();
            level_above = Some(level);
            at = u64::from(child.before.get());
            let below = self.tree_block(io, &block, at)?;
            block = below;
        }
    }

    /// A block of the hash index that `from` points to.
    fn tree_block(&self, io: &mut impl MetaIo, from: &Block, at: u64) -> Result<Block> {
        let geometry = self.fs.geometry();
        let space = block::leaf_space_start(geometry)..block::free_space_start(geometry);
        let blocks = u64::from(geometry.dir_block_blocks).max(1);
        if !space.contains(&at) || !at.is_multiple_of(blocks) {
            return from.corrupt(format!(
                "points to block {at:#x}, outside of the hash index"
            ));
        }
        block::read(self.fs, io, self.dir, at, Want::Tree)
    }
}

//! Directories: each name leads to an inode of the right type, `.` and `..` are right.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;

use zerocopy::FromBytes;

use super::core::CheckedCore;
use super::dir_block::names_block;
use super::fork_read::ForkBlocks;
use super::forks::ForkExtent;
use super::state::{At, Checker};
use super::table::name_print;
use crate::error::Result;
use crate::xfs::format::dir::{self as layout, EntryType};
use crate::xfs::format::dir_short::ShortForm;
use crate::xfs::format::inode::{self, InodeCore};
use crate::xfs::{Ino, InodeType};

/// A name as the hash index must have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DirPrint {
    pub(super) hash: u32,
    /// In units of 8 bytes of the directory.
    pub(super) address: u32,
    /// By which names are compared.
    pub(super) print: u64,
}

/// A directory that is being checked.
pub(super) struct CheckedDir<'a> {
    pub(super) ino: u64,
    pub(super) at: At,
    pub(super) generation: u32,
    pub(super) fork: ForkBlocks<'a>,
    pub(super) names: Vec<DirPrint>,
    /// The longest unused range of each block of names.
    pub(super) longest: Vec<u16>,
    /// All names could be read.
    pub(super) is_whole: bool,
}

/// What an entry says that its inode is.
fn type_of(entry: EntryType) -> Option<InodeType> {
    Some(match entry {
        EntryType::Regular => InodeType::Regular,
        EntryType::Directory => InodeType::Directory,
        EntryType::CharDevice | EntryType::Whiteout => InodeType::CharDevice,
        EntryType::BlockDevice => InodeType::BlockDevice,
        EntryType::Fifo => InodeType::Fifo,
        EntryType::Socket => InodeType::Socket,
        EntryType::Symlink => InodeType::Symlink,
        EntryType::Unknown => return None,
    })
}

impl Checker<'_> {
    /// Checks all directories.
    pub(super) fn check_directories(&mut self) -> Result<()> {
        for ino in std::mem::take(&mut self.directories) {
            let (addr, raw) = self.read_one_inode(ino)?;
            let at = At::inode(ino, addr);
            let geometry = self.geometry.clone();
            let is_broken = self
                .inodes
                .state(&geometry, ino)
                .is_none_or(|state| state.is_broken);
            let Ok((core, literal)) = InodeCore::ref_from_prefix(&raw) else {
                continue;
            };
            let features = *self.fs.features();
            let checked = CheckedCore {
                core,
                literal,
                geometry: &geometry,
                features: &features,
                is_internal: self.fs.is_internal(Ino(ino)),
            };
            // A removed directory that is still open may be empty.
            if is_broken || core.size.get() == 0 {
                self.inodes.has_unread_names |= is_broken;
                continue;
            }
            if core.format == inode::FORMAT_LOCAL {
                let size = usize::try_from(core.size.get()).unwrap_or(usize::MAX);
                let fork = checked.forks().0.get(..size).unwrap_or_default();
                self.check_short_dir(at, ino, core.generation.get(), fork);
                continue;
            }
            let forks = self.data_extents(at, ino, &checked)?;
            self.check_block_dir(at, core, ino, &forks.data)?;
        }
        Ok(())
    }

    fn check_short_dir(&mut self, at: At, ino: u64, generation: u32, fork: &[u8]) {
        let form = match ShortForm::parse(fork) {
            Ok(form) => form,
            Err(error) => {
                self.finding(at, error.detail());
                self.inodes.has_unread_names = true;
                return;
            }
        };
        let mut names = HashSet::new();
        let (mut count, mut end) = (0_usize, layout::DOT_DOT_OFFSET.saturating_add(16));
        for entry in form.entries().map_while(Result::ok) {
            if !names.insert(entry.name) {
                let name = entry.name.escape_ascii();
                self.finding(at, format!("has the name {name} twice"));
            }
            count = count.saturating_add(1);
            let bytes = layout::data_entry_bytes(entry.name.len());
            end = u64::from(entry.offset).saturating_add(bytes as u64);
            if entry.name == b"." || entry.name == b".." {
                self.finding(at, "has an entry `.` or `..` among its names");
                continue;
            }
            let kind = entry.file_type;
            self.dir_entry((ino, generation), at, entry.name, (entry.ino, kind));
        }
        // As a single block it would have a leaf entry for each name, `.`, `..`, and a tail.
        let leaf = (count as u64).saturating_add(3).saturating_mul(8);
        if end.saturating_add(leaf) > self.geometry.dir_block_bytes.into() {
            self.finding(at, "the offsets of its names are too high");
        }
        self.dot(ino);
        self.dot_dot(at, ino, form.parent);
    }

    fn check_block_dir(
        &mut self,
        at: At,
        core: &InodeCore,
        ino: u64,
        extents: &[ForkExtent],
    ) -> Result<()> {
        let block_log = self.geometry.block_log;
        let blocks = |bytes: u64| bytes.checked_shr(block_log).unwrap_or(0);
        let step = u64::from(self.geometry.dir_block_blocks.max(1));
        let leaf_start = blocks(layout::LEAF_SPACE_BYTES);
        let size = core.size.get();
        let end = extents
            .iter()
            .rfind(|extent| extent.offset < leaf_start)
            .map_or(0, ForkExtent::end);
        if !size.is_multiple_of(self.geometry.dir_block_bytes.into())
            || size > layout::LEAF_SPACE_BYTES
            || end.next_multiple_of(step) != blocks(size)
        {
            let expected = self.geometry.bytes(end.next_multiple_of(step));
            self.finding(at, format!("{size} bytes, expected {expected}"));
        }
        let last = extents.last().map_or(0, ForkExtent::end);
        let is_single = last == step;
        let mut dir = CheckedDir {
            ino,
            at,
            generation: core.generation.get(),
            fork: ForkBlocks {
                ino,
                extents,
                step,
                leaf_magic: layout::MAGIC_LEAFN,
                name: "directory index",
            },
            names: Vec::new(),
            longest: Vec::new(),
            is_whole: true,
        };
        let mut next = 0;
        for extent in extents {
            let end = extent.end().min(leaf_start);
            // Blocks that several extents make up are read once.
            let mut block = next.max(extent.offset & !step.saturating_sub(1));
            // The names behind a block that cannot be read are not counted either.
            while block < end && dir.is_whole {
                self.check_names(&mut dir, block, is_single)?;
                block = block.saturating_add(step);
                next = block;
            }
        }
        if !dir.is_whole {
            self.inodes.has_unread_names = true;
            return Ok(());
        }
        dir.names.sort_unstable();
        self.check_twice(&dir);
        if is_single {
            return self.check_block_index(&dir);
        }
        self.check_index(&mut dir, last)
    }

    /// Checks a block of names.
    fn check_names(&mut self, dir: &mut CheckedDir<'_>, block: u64, is_single: bool) -> Result<()> {
        let number = block.checked_div(dir.fork.step).unwrap_or(0);
        let Some((at, raw)) = self.fork_block(&dir.fork, block)? else {
            self.finding(
                dir.at,
                format!("block {number} of its names is partly a hole"),
            );
            dir.is_whole = false;
            return Ok(());
        };
        let magic = match is_single {
            true => layout::MAGIC_BLOCK,
            false => layout::MAGIC_DATA,
        };
        if !self.check_block_head((at, dir.ino), "directory block", &raw, magic) {
            dir.is_whole = false;
            return Ok(());
        }
        let end = match is_single {
            true => layout::block_leaf(&raw).map(|(_, end)| end),
            false => Ok(raw.len()),
        };
        let Some(end) = self.or_finding(at, end)? else {
            dir.is_whole = false;
            return Ok(());
        };
        let found = names_block(&raw, end);
        for fault in &found.faults {
            self.finding(at, format!("directory block: {fault}"));
        }
        dir.is_whole &= found.is_whole;
        if !is_single && found.entries.is_empty() && found.is_whole {
            self.finding(at, "directory block: without names");
        }
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        if index >= dir.longest.len() {
            dir.longest
                .resize(index.saturating_add(1), layout::NO_DATA_BLOCK);
        }
        if let Some(longest) = dir.longest.get_mut(index) {
            *longest = found.longest;
        }
        let base = self.geometry.bytes(block);
        let mut dots = 0_u32;
        for entry in &found.entries {
            let place = base.saturating_add(entry.offset as u64);
            dir.names.push(DirPrint {
                hash: layout::hash_name(entry.name),
                // Names lie below 32 GiB.
                address: u32::try_from(place / 8).unwrap_or(0),
                print: name_print(0, 0, entry.name),
            });
            let is_dot = entry.name == b".";
            if is_dot || entry.name == b".." {
                let expected = match is_dot {
                    true => layout::DOT_OFFSET,
                    false => layout::DOT_DOT_OFFSET,
                };
                dots = dots.saturating_add(1);
                self.dot_entry(dir, at, (place, expected), entry);
                continue;
            }
            let target = (entry.ino, entry.file_type);
            self.dir_entry((dir.ino, dir.generation), at, entry.name, target);
        }
        if block == 0 && dots < 2 {
            self.finding(at, "directory block: no entry `.` or `..`");
        }
        Ok(())
    }

    /// An entry `.` or `..` in a block.
    fn dot_entry(
        &mut self,
        dir: &CheckedDir<'_>,
        at: At,
        (place, expected): (u64, u64),
        entry: &layout::DataEntry<'_>,
    ) {
        let name = entry.name.escape_ascii();
        if place != expected {
            self.finding(at, format!("directory block: `{name}` at byte {place}"));
            return;
        }
        if entry.file_type != EntryType::Directory {
            self.finding(at, format!("directory block: `{name}` is no directory"));
        }
        if entry.name == b".." {
            self.dot_dot(at, dir.ino, entry.ino);
            return;
        }
        if entry.ino != dir.ino {
            self.finding(at, format!("directory block: `.` is inode {}", entry.ino));
        }
        self.dot(dir.ino);
    }

    /// A directory has a link from itself.
    fn dot(&mut self, ino: u64) {
        let geometry = &self.geometry;
        if let Some(state) = self.inodes.state(geometry, ino) {
            state.names = state.names.saturating_add(1);
        }
    }

    /// A directory has a link from each directory in it.
    fn dot_dot(&mut self, at: At, ino: u64, parent: u64) {
        let geometry = &self.geometry;
        match self.inodes.state(geometry, parent) {
            Some(state) if state.file_type == Some(InodeType::Directory) => {
                state.names = state.names.saturating_add(1);
            }
            Some(state) if state.is_broken => {}
            _ => self.finding(at, format!("`..` is inode {parent}, which is no directory")),
        }
        let place = self.inodes.places.entry(ino).or_default();
        place.dot_dot = Some(parent);
    }

    /// A name of a directory.
    fn dir_entry(
        &mut self,
        (dir, generation): (u64, u32),
        at: At,
        name: &[u8],
        (ino, kind): (u64, EntryType),
    ) {
        let shown = name.escape_ascii();
        let geometry = &self.geometry;
        if geometry.split_inode(Ino(ino)).is_none() || !self.inodes.is_used(geometry, ino) {
            let detail = format!("the name {shown} leads to inode {ino}, which is not in use");
            self.finding(at, detail);
            return;
        }
        if self.fs.is_internal(Ino(ino)) || ino == dir || ino == geometry.root_ino.0 {
            let detail = format!("the name {shown} leads to inode {ino}, which has no names");
            self.finding(at, detail);
            return;
        }
        let has_parents = self.has_parents();
        let Some(state) = self.inodes.state(&self.geometry, ino) else {
            return;
        };
        state.names = state.names.saturating_add(1);
        state.is_named = true;
        if has_parents {
            let print = name_print(dir, generation, name);
            state.parents = state.parents.wrapping_add(print);
        }
        let file_type = state.file_type;
        if let Some(file_type) = file_type
            && type_of(kind) != Some(file_type)
        {
            let detail = format!(
                "the name {shown} says that inode {ino} is a {kind:?}, it is a {file_type:?}"
            );
            self.finding(at, detail);
        }
        if file_type == Some(InodeType::Directory) {
            let place = self.inodes.places.entry(ino).or_default();
            if let Some(other) = place.parent.replace(dir) {
                let detail = format!(
                    "the name {shown} leads to directory {ino}, which has a name in directory {other}"
                );
                self.finding(at, detail);
            }
        }
    }

    /// No name is there twice.
    fn check_twice(&mut self, dir: &CheckedDir<'_>) {
        let mut prints: Vec<_> = dir
            .names
            .iter()
            .map(|name| (name.hash, name.print))
            .collect();
        prints.sort_unstable();
        let twice = prints.windows(2).any(|pair| pair.first() == pair.last());
        if twice {
            self.finding(dir.at, "has a name twice");
        }
    }
}

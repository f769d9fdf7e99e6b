//! A walk down the trees of a volume, for `du`, `find` and `tree`: any depth needs the same stack
//! and few open blocks.

use std::os::unix::ffi::OsStrExt;

use xtent::volume::{DirEntry, Io, Metadata, ReadDir, Volume};

use super::failure::{Failure, Failures, check_interrupted};
use super::tree::{Children, TreeNode};

/// A file of the tree.
pub(super) struct WalkEntry<'a> {
    pub(super) node: TreeNode<'a>,
    /// Its name; of the start of the walk the path that was given.
    pub(super) name: &'a [u8],
    pub(super) metadata: &'a Metadata,
    /// 0 for the start of the walk.
    pub(super) depth: usize,
    /// A directory that is left: its entries were visited before, as far as they can be read. Each
    /// directory for which the answer was [`Go::Down`] is visited so once.
    pub(super) after: bool,
    /// Nothing follows in its directory. Known only in sorted walks.
    pub(super) last: bool,
}

/// Whether the walk enters a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    /// Its entries are visited.
    Down,
    /// They are not.
    On,
}

enum Entries {
    Unsorted(Box<ReadDir>),
    Sorted(std::vec::IntoIter<DirEntry>),
}

struct WalkLevel {
    /// `None` for the start of the walk.
    entry: Option<DirEntry>,
    metadata: Metadata,
    last: bool,
    entries: Entries,
    children: Children,
}

/// A walk.
pub(super) struct TreeWalk<'a> {
    pub(super) volume: &'a Volume,
    pub(super) io: Io,
    pub(super) failures: Failures,
    /// By name, without those that begin with a dot unless `hidden`.
    pub(super) sorted: bool,
    pub(super) hidden: bool,
    /// Without all that are no directories. For sorted walks.
    pub(super) directories: bool,
}

impl<'a> TreeWalk<'a> {
    /// A walk of all files, in the directories' own order.
    pub(super) fn new(volume: &'a Volume) -> Result<Self, Failure> {
        Ok(Self {
            io: volume.io()?,
            volume,
            failures: Failures::default(),
            sorted: false,
            hidden: true,
            directories: false,
        })
    }
}

impl TreeWalk<'_> {
    /// Visits a file and the tree below it. A file that cannot be read is a failure, and the walk
    /// goes on. `visit` notes failures of that kind in the list that it gets; an error of it ends
    /// the walk.
    pub(super) fn tree(
        &mut self,
        start: &[u8],
        visit: &mut impl FnMut(&mut Io, &mut Failures, &WalkEntry<'_>) -> Result<Go, Failure>,
    ) -> Result<(), Failure> {
        let path = std::ffi::OsStr::from_bytes(start);
        let metadata = match self.volume.symlink_metadata(&mut self.io, path) {
            Ok(metadata) => metadata,
            Err(error) => return self.failures.note(error),
        };
        let mut stack = Vec::new();
        stack.extend(self.visit(start, None, metadata, (0, true), visit)?);
        while let Some(mut level) = stack.pop() {
            check_interrupted()?;
            let (next, last) = self.next(&mut level)?;
            let Some(entry) = next else {
                let name = level
                    .entry
                    .as_ref()
                    .map_or(start, |e| e.file_name().as_bytes());
                let done = WalkEntry {
                    node: level
                        .entry
                        .as_ref()
                        .map_or(TreeNode::Path(start), TreeNode::Entry),
                    name,
                    metadata: &level.metadata,
                    depth: stack.len(),
                    after: true,
                    last: level.last,
                };
                visit(&mut self.io, &mut self.failures, &done)?;
                continue;
            };
            let metadata = match entry.metadata(&mut self.io) {
                Ok(metadata) => metadata,
                Err(error) => {
                    self.failures.note(error)?;
                    stack.push(level);
                    continue;
                }
            };
            if metadata.is_dir()
                && let Err(failure) = level.children.add(&entry)
            {
                self.failures.note(failure)?;
                stack.push(level);
                continue;
            }
            if let Entries::Unsorted(dir) = &mut level.entries
                && metadata.is_dir()
            {
                dir.release();
            }
            stack.push(level);
            let depth = stack.len();
            let below = self.visit(start, Some(entry), metadata, (depth, last), visit)?;
            stack.extend(below);
        }
        Ok(())
    }

    fn visit(
        &mut self,
        start: &[u8],
        entry: Option<DirEntry>,
        metadata: Metadata,
        (depth, last): (usize, bool),
        visit: &mut impl FnMut(&mut Io, &mut Failures, &WalkEntry<'_>) -> Result<Go, Failure>,
    ) -> Result<Option<WalkLevel>, Failure> {
        let node = entry
            .as_ref()
            .map_or(TreeNode::Path(start), TreeNode::Entry);
        let file = WalkEntry {
            node,
            name: entry.as_ref().map_or(start, |e| e.file_name().as_bytes()),
            metadata: &metadata,
            depth,
            after: false,
            last,
        };
        if visit(&mut self.io, &mut self.failures, &file)? == Go::On || !metadata.is_dir() {
            return Ok(None);
        }
        let mut dir = match node.read_dir(self.volume, &mut self.io) {
            Ok(dir) => dir,
            Err(error) => {
                self.failures.note(error)?;
                let left = WalkEntry {
                    after: true,
                    ..file
                };
                visit(&mut self.io, &mut self.failures, &left)?;
                return Ok(None);
            }
        };
        let entries = if self.sorted {
            let mut list = Vec::new();
            while let Some(entry) = self.entry_of(&mut dir)? {
                if self.is_listed(&entry) {
                    list.push(entry);
                }
            }
            list.sort_by(|a, b| a.file_name().cmp(b.file_name()));
            Entries::Sorted(list.into_iter())
        } else {
            Entries::Unsorted(Box::new(dir))
        };
        Ok(Some(WalkLevel {
            entry,
            metadata,
            last,
            entries,
            children: Children::default(),
        }))
    }

    /// Whether an entry is in the list of a sorted walk.
    fn is_listed(&mut self, entry: &DirEntry) -> bool {
        if !self.hidden && entry.file_name().as_bytes().starts_with(b".") {
            return false;
        }
        // An inode that cannot be read is a failure when its turn comes.
        !self.directories
            || entry
                .metadata(&mut self.io)
                .map_or(true, |metadata| metadata.is_dir())
    }

    /// The next entry; an error ends the directory.
    fn entry_of(&mut self, dir: &mut ReadDir) -> Result<Option<DirEntry>, Failure> {
        check_interrupted()?;
        match dir.next_entry(&mut self.io) {
            Ok(entry) => Ok(entry),
            Err(error) => self.failures.note(error).map(|()| None),
        }
    }

    fn next(&mut self, level: &mut WalkLevel) -> Result<(Option<DirEntry>, bool), Failure> {
        match &mut level.entries {
            Entries::Unsorted(dir) => Ok((self.entry_of(dir)?, false)),
            Entries::Sorted(list) => {
                let next = list.next();
                Ok((next, list.len() == 0))
            }
        }
    }
}

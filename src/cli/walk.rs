//! A walk down the trees of a volume, for `du`, `find`, `tree`, `chmod` and others: any depth needs
//! the same stack and few open blocks.

use std::collections::HashSet;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use xtent::ErrorKind;
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

/// Symbolic links that a walk follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    Never,
    /// One where the walk starts.
    Start,
    /// All. A directory is then entered once, however many links lead to it.
    All,
}

enum Entries {
    Unsorted(Box<ReadDir>),
    Sorted(std::vec::IntoIter<DirEntry>),
}

struct WalkLevel {
    /// `None` for the start of the walk.
    entry: Option<DirEntry>,
    /// The path, where the entry is a symbolic link that was followed.
    followed: Option<Vec<u8>>,
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
    pub(super) follow: Follow,
    /// Directories that were entered; kept only where all links are followed.
    pub(super) entered: HashSet<u64>,
}

/// Whether the target of a symbolic link is missing. The link itself is then visited, as by fts(3).
fn leads_nowhere(error: &xtent::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::TooManyLinks
    )
}

fn node<'a>(
    start: &'a [u8],
    entry: Option<&'a DirEntry>,
    followed: Option<&'a [u8]>,
) -> TreeNode<'a> {
    match (entry, followed) {
        (None, _) => TreeNode::Path(start),
        (Some(_), Some(path)) => TreeNode::Path(path),
        (Some(entry), None) => TreeNode::Entry(entry),
    }
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
            follow: Follow::Never,
            entered: HashSet::new(),
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
        let mut metadata = self.volume.symlink_metadata(&mut self.io, path);
        if self.follow != Follow::Never && metadata.as_ref().is_ok_and(Metadata::is_symlink) {
            metadata = match self.volume.metadata(&mut self.io, path) {
                Err(error) if leads_nowhere(&error) => metadata,
                followed => followed,
            };
        }
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => return self.failures.note(error),
        };
        let mut stack = Vec::new();
        stack.extend(self.visit(start, (None, None), metadata, (0, true), visit)?);
        while let Some(mut level) = stack.pop() {
            check_interrupted()?;
            let (next, last) = self.next(&mut level)?;
            let Some(entry) = next else {
                let name = level
                    .entry
                    .as_ref()
                    .map_or(start, |e| e.file_name().as_bytes());
                let done = WalkEntry {
                    node: node(start, level.entry.as_ref(), level.followed.as_deref()),
                    name,
                    metadata: &level.metadata,
                    depth: stack.len(),
                    after: true,
                    last: level.last,
                };
                visit(&mut self.io, &mut self.failures, &done)?;
                continue;
            };
            let (metadata, followed) = match self.metadata(&entry) {
                Ok(found) => found,
                Err(error) => {
                    self.failures.note(error)?;
                    stack.push(level);
                    continue;
                }
            };
            if metadata.is_dir()
                && followed.is_none()
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
            let below = self.visit(
                start,
                (Some(entry), followed),
                metadata,
                (depth, last),
                visit,
            )?;
            stack.extend(below);
        }
        Ok(())
    }

    /// Metadata of an entry; of what a symbolic link leads to, with its path, where links are
    /// followed and it leads somewhere.
    fn metadata(&mut self, entry: &DirEntry) -> xtent::Result<(Metadata, Option<Vec<u8>>)> {
        let metadata = entry.metadata(&mut self.io)?;
        if self.follow == Follow::All && metadata.is_symlink() {
            let path = entry.path();
            match self.volume.metadata(&mut self.io, &path) {
                Ok(metadata) => return Ok((metadata, Some(path.into_os_string().into_vec()))),
                Err(error) if leads_nowhere(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((metadata, None))
    }

    /// Whether a directory is entered for the first time, where that is kept.
    fn enters(&mut self, metadata: &Metadata) -> bool {
        self.follow != Follow::All || self.entered.insert(metadata.ino)
    }

    fn visit(
        &mut self,
        start: &[u8],
        (entry, followed): (Option<DirEntry>, Option<Vec<u8>>),
        metadata: Metadata,
        (depth, last): (usize, bool),
        visit: &mut impl FnMut(&mut Io, &mut Failures, &WalkEntry<'_>) -> Result<Go, Failure>,
    ) -> Result<Option<WalkLevel>, Failure> {
        let node = node(start, entry.as_ref(), followed.as_deref());
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
        let dir = match self.enters(&metadata) {
            true => node.read_dir(self.volume, &mut self.io).map(Some),
            false => Ok(None),
        };
        let mut dir = match self.failures.value_of(dir)?.flatten() {
            Some(dir) => dir,
            None => {
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
            followed,
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

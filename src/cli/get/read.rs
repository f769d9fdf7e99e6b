//! The side that reads the volume.

use std::collections::HashSet;
use std::io::{BufRead, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use xtent::volume::{DirEntry, File, FileType, Io, Metadata, ReadDir, Volume};

use super::SharedFailures;
use super::attributes::{self, PathOf};
use super::host::CopyHost;
use super::job::{Attributes, CopyJob, Entered, KEPT_MODE};
use crate::bench::progress::Progress;
use crate::cli::failure::{Failure, OPERATION, check_interrupted, complain};
use crate::cli::output::type_word;
use crate::cli::tree::{Children, TreeNode};

/// Data in longer pieces is read ahead; shorter ones are not worth it.
pub(super) const READ_AHEAD_BYTES: u64 = 4 << 20;
/// Bytes of a piece of a longer file.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

pub(super) struct Copy<'a> {
    volume: &'a Volume,
    io: Io,
    archive: bool,
    host: CopyHost,
    failures: SharedFailures,
    progress: Progress,
    /// Files in pieces so far.
    pieces: u64,
    /// Inodes with several names that were copied.
    linked: HashSet<u64>,
    /// Files with an access control list that is not copied, and the first one.
    acls: u64,
    first_acl: Vec<u8>,
    /// Device nodes, fifos and sockets.
    skipped: u64,
}

/// A directory that is being copied.
struct ReadLevel {
    entries: ReadDir,
    /// It was made here, and gets the mode and times of the one in the volume.
    finish: bool,
    /// There was nothing in it before.
    is_new: bool,
    children: Children,
}

impl<'a> Copy<'a> {
    pub(super) fn new(
        volume: &'a Volume,
        io: Io,
        archive: bool,
        host: CopyHost,
        failures: SharedFailures,
        metadata: &Metadata,
    ) -> Self {
        let progress = if metadata.is_dir() {
            Progress::endless()
        } else {
            Progress::bytes(metadata.len_bytes)
        };
        Self {
            volume,
            io,
            archive,
            host,
            failures,
            progress,
            pieces: 0,
            linked: HashSet::new(),
            acls: 0,
            first_acl: Vec::new(),
            skipped: 0,
        }
    }

    /// Copies to `name`; without one the entries of a directory.
    pub(super) fn start(
        &mut self,
        node: TreeNode<'_>,
        metadata: &Metadata,
        name: Option<&[u8]>,
    ) -> Result<(), Failure> {
        let level = match name {
            Some(name) => self.one(node, metadata, name, false)?,
            None => Some(ReadLevel {
                entries: node.read_dir(self.volume, &mut self.io)?,
                finish: self.archive,
                is_new: false,
                children: Children::default(),
            }),
        };
        level.map_or(Ok(()), |level| self.fill(level))
    }

    /// Waits for the other side, and says what was not copied.
    pub(super) fn finish(self, result: Result<(), Failure>) -> Result<(), Failure> {
        let written = match &result {
            Ok(()) => self.host.finish().map(Some),
            Err(_) => {
                drop(self.host);
                Ok(None)
            }
        };
        if self.acls > 0 {
            complain(&format!(
                "note: access control lists are not copied: the group has no rights to {} of the copies, \
                 first to {}",
                self.acls,
                self.first_acl.escape_ascii()
            ));
        }
        result?;
        if let Some(writer) = written? {
            for failure in writer.lost.failures() {
                self.failures.note(failure)?;
            }
        }
        if self.skipped > 1 {
            let text = format!(
                "skipped {} device nodes, fifos and sockets: -a copies them",
                self.skipped
            );
            self.failures.note(Failure::new(OPERATION, text))?;
        }
        Ok(())
    }

    /// Copies a file of any type to `name`. For a directory that is empty so far: the other side is
    /// then inside, and the work to do there is returned.
    fn one(
        &mut self,
        node: TreeNode<'_>,
        metadata: &Metadata,
        name: &[u8],
        in_new: bool,
    ) -> Result<Option<ReadLevel>, Failure> {
        check_interrupted()?;
        if self.progress.is_shown() {
            self.progress.message(String::from_utf8_lossy(&node.path()));
        }
        let file_type = metadata.file_type();
        if file_type == FileType::Directory {
            return self.directory(node, name, in_new);
        }
        let has_links = self.archive && metadata.nlink > 1;
        if has_links && !self.linked.insert(metadata.ino) && self.host.link(name, metadata.ino)? {
            return Ok(None);
        }
        match file_type {
            FileType::Regular => self.regular(node, metadata, name)?,
            FileType::Symlink => {
                let target = node.read_link(self.volume, &mut self.io)?;
                let attributes = self.attributes(metadata, &|| node.path().into_owned())?;
                self.host.send(CopyJob::Symlink {
                    name: name.to_vec(),
                    target,
                    attributes,
                })?;
            }
            _ if self.archive => {
                let attributes = self.attributes(metadata, &|| node.path().into_owned())?;
                self.host.send(CopyJob::Node {
                    name: name.to_vec(),
                    file_type: metadata.mode & libc::S_IFMT,
                    device: metadata.rdev,
                    attributes,
                })?;
            }
            other => {
                self.skipped += 1;
                let kind = type_word(other);
                let text = format!("skipped {}: a {kind}", node.path().escape_ascii());
                self.failures.note(Failure::new(OPERATION, text))?;
            }
        }
        Ok(None)
    }

    /// Makes a directory and goes down into it.
    fn directory(
        &mut self,
        node: TreeNode<'_>,
        name: &[u8],
        in_new: bool,
    ) -> Result<Option<ReadLevel>, Failure> {
        // Read first: a directory that is corrupt leaves nothing behind.
        let entries = node.read_dir(self.volume, &mut self.io)?;
        let is_new = if in_new {
            // Nothing can be in the way: no need to wait for an answer.
            self.host.send(CopyJob::Enter(name.to_vec()))?;
            true
        } else {
            match self.host.enter(name)? {
                Entered::New => true,
                Entered::Existing => false,
                Entered::Refused => return Ok(None),
            }
        };
        Ok(Some(ReadLevel {
            entries,
            finish: true,
            is_new,
            children: Children::default(),
        }))
    }

    /// Fills a directory, and those below it. Iterative, so that any depth needs the same stack.
    fn fill(&mut self, first: ReadLevel) -> Result<(), Failure> {
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            check_interrupted()?;
            match level.entries.next_entry(&mut self.io) {
                Ok(Some(entry)) => match self.entry(&entry, level) {
                    Ok(Some(below)) => {
                        level.entries.release();
                        levels.push(below);
                    }
                    Ok(None) => {}
                    Err(failure) => self.failures.note(failure)?,
                },
                ended => {
                    // This directory is over; its siblings are not.
                    if let Err(error) = ended {
                        self.failures.note(error)?;
                    }
                    if let Some(level) = levels.pop()
                        && level.finish
                    {
                        let metadata = level.entries.metadata();
                        let attributes = self.attributes(&metadata, &|| {
                            level.entries.path().into_os_string().into_vec()
                        })?;
                        self.host.send(CopyJob::Leave(attributes))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &DirEntry,
        level: &mut ReadLevel,
    ) -> Result<Option<ReadLevel>, Failure> {
        let metadata = entry.metadata(&mut self.io)?;
        if metadata.is_dir() {
            level.children.add(entry)?;
        }
        self.one(
            TreeNode::Entry(entry),
            &metadata,
            entry.file_name().as_bytes(),
            level.is_new,
        )
    }

    fn regular(
        &mut self,
        node: TreeNode<'_>,
        metadata: &Metadata,
        name: &[u8],
    ) -> Result<(), Failure> {
        let file = node.open(self.volume, &mut self.io)?;
        let len_bytes = file.len();
        let first = file.seek_data(&mut self.io, 0)?;
        let end = match first {
            Some(data) => file.seek_hole(&mut self.io, data)?.unwrap_or(len_bytes),
            None => 0,
        };
        let end = usize::try_from(end.min(len_bytes)).unwrap_or(usize::MAX);
        let rest = match first {
            // Short, and data from its first byte on: in one go.
            Some(0) if end <= CHUNK_BYTES => file.seek_data(&mut self.io, end as u64)?,
            None => None,
            first => first,
        };
        if rest.is_some() {
            return self.pieces(&file, metadata, &node, name);
        }
        let mut data = vec![0; end];
        let mut done = 0;
        while done < end {
            let n = file.read_at(&mut self.io, &mut data[done..], done as u64)?;
            if n == 0 {
                return Err(ended_early(&file));
            }
            done += n;
        }
        self.progress.add(end as u64);
        let attributes = self.attributes(metadata, &|| node.path().into_owned())?;
        self.host.send(CopyJob::Whole {
            name: name.to_vec(),
            data,
            len_bytes,
            attributes,
        })
    }

    /// Copies a file that is long or has holes before data.
    fn pieces(
        &mut self,
        file: &File,
        metadata: &Metadata,
        node: &TreeNode<'_>,
        name: &[u8],
    ) -> Result<(), Failure> {
        self.pieces += 1;
        self.host.send(CopyJob::Begin {
            name: name.to_vec(),
            len_bytes: file.len(),
            id: self.pieces,
        })?;
        let result = self
            .content(file)
            .and_then(|()| self.attributes(metadata, &|| node.path().into_owned()));
        match result {
            Ok(attributes) => self.host.send(CopyJob::End(attributes)),
            Err(failure) => {
                self.host.send(CopyJob::Abandon)?;
                Err(failure)
            }
        }
    }

    fn content(&mut self, file: &File) -> Result<(), Failure> {
        let len_bytes = file.len();
        let mut at = 0;
        while let Some(data) = file.seek_data(&mut self.io, at)? {
            let end = file.seek_hole(&mut self.io, data)?.unwrap_or(len_bytes);
            let end = end.min(len_bytes);
            if end <= data || self.host.refuses(self.pieces) {
                break;
            }
            self.piece(file, data..end)?;
            at = end;
        }
        Ok(())
    }

    /// Copies one piece of data.
    fn piece(&mut self, file: &File, range: Range<u64>) -> Result<(), Failure> {
        if range.end - range.start >= READ_AHEAD_BYTES {
            self.piece_ahead(file, range)
        } else {
            self.piece_by_piece(file, range)
        }
    }

    fn piece_ahead(&mut self, file: &File, range: Range<u64>) -> Result<(), Failure> {
        let Self {
            io,
            host,
            progress,
            pieces,
            ..
        } = self;
        let mut reader = file.reader(io)?;
        reader.seek(SeekFrom::Start(range.start))?;
        let mut at = range.start;
        while at < range.end && !host.refuses(*pieces) {
            check_interrupted()?;
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let bytes = reader.fill_buf()?;
            let n = bytes.len().min(left);
            if n == 0 {
                return Err(ended_early(file));
            }
            let data = bytes[..n].to_vec();
            host.send(CopyJob::Data { at, data })?;
            reader.consume(n);
            at += n as u64;
            progress.add(n as u64);
        }
        Ok(())
    }

    fn piece_by_piece(&mut self, file: &File, range: Range<u64>) -> Result<(), Failure> {
        let mut at = range.start;
        while at < range.end && !self.host.refuses(self.pieces) {
            check_interrupted()?;
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let mut data = vec![0; left.min(CHUNK_BYTES)];
            let n = file.read_at(&mut self.io, &mut data, at)?;
            if n == 0 {
                return Err(ended_early(file));
            }
            data.truncate(n);
            self.host.send(CopyJob::Data { at, data })?;
            at += n as u64;
            self.progress.add(n as u64);
        }
        Ok(())
    }
}

/// Attributes.
impl Copy<'_> {
    /// What the copy gets besides its content.
    fn attributes(&mut self, metadata: &Metadata, path: PathOf<'_>) -> Result<Attributes, Failure> {
        if !self.archive {
            let mode = self.kept_mode(metadata, path)?;
            return Ok(Attributes::plain(metadata, mode));
        }
        let failures = &self.failures;
        let note = &mut |failure| failures.note(failure);
        attributes::archived(self.volume, &mut self.io, metadata, path, note)
    }

    /// The permissions of a copy: never more than the file itself gives. With an access control
    /// list the mode's group bits are the list's mask, which may be more than its group has.
    fn kept_mode(&mut self, metadata: &Metadata, path: PathOf<'_>) -> Result<u32, Failure> {
        let mode = metadata.permissions() & KEPT_MODE;
        if mode & 0o070 == 0 || metadata.is_symlink() {
            return Ok(mode);
        }
        let has_acl = match self.volume.has_access_acl(&mut self.io, metadata) {
            Ok(has_acl) => has_acl,
            // Its attributes are corrupt: the content is not.
            Err(error) => {
                self.failures.note(error.at_path(path()))?;
                true
            }
        };
        if !has_acl {
            return Ok(mode);
        }
        if self.acls == 0 {
            self.first_acl = path();
        }
        self.acls += 1;
        Ok(mode & !0o070)
    }
}

#[cold]
pub(super) fn ended_early(file: &File) -> Failure {
    let path = file.path().as_os_str().as_bytes().escape_ascii();
    Failure::new(OPERATION, format!("{path}: ended before its length"))
}

//! `xtent get --tar`: a tree as a tar archive, in pax format.

mod content;
mod links;
mod member;
mod output;

use std::path::Path;

use ::tar::EntryType;
use xtent::volume::{FileType, Io, Metadata, Volume};

use self::content::{Stop, TarContent};
use self::links::Links;
use self::member::{BLOCK_BYTES, Member};
use self::output::Output;
use super::apply::LostCount;
use super::attributes;
use super::job::{Archived, Attributes};
use crate::bench::progress::Progress;
use crate::cli::failure::{CORRUPT, Failure, Failures, OPERATION};
use crate::cli::walk::{Go, TreeWalk, WalkEntry};

/// Most bytes of a member's path. A member of a tree of this depth is as long as its path: an image
/// could otherwise make an archive of any length.
const MOST_PATH_BYTES: usize = 64 << 10;

/// An archive that is being written.
struct Archive<'a> {
    volume: &'a Volume,
    out: Output,
    /// The path of the current member, and its length before each of its names.
    path: Vec<u8>,
    levels: Vec<Level>,
    links: Links,
    progress: Progress,
    sockets: LostCount,
    /// A piece of a file.
    chunk: Vec<u8>,
}

struct Level {
    /// Bytes of the path of the directory.
    path_len: usize,
    /// Its place in `links`, when it is there.
    place: Option<usize>,
}

/// Writes the file or tree at `path`, which is called `name` in the archive.
pub(super) fn run(
    volume: &Volume,
    path: &[u8],
    name: Option<&[u8]>,
    place: &Path,
    force: bool,
) -> Result<(), Failure> {
    let mut walk = TreeWalk::new(volume)?;
    let mut archive = Archive {
        volume,
        out: Output::open(place, force)?,
        path: name.unwrap_or(b".").to_vec(),
        levels: Vec::new(),
        links: Links::default(),
        progress: Progress::endless(),
        sockets: LostCount::default(),
        chunk: Vec::new(),
    };
    let result = walk.tree(path, &mut |io, failures, visit| {
        archive.visit(io, failures, visit)
    });
    crate::cli::events::tell(volume);
    result?;
    archive.out.finish()?;
    if let Some(failure) = archive
        .sockets
        .failure("sockets, which an archive cannot have:")
    {
        walk.failures.note(failure)?;
    }
    walk.failures.result()
}

impl Archive<'_> {
    fn visit(
        &mut self,
        io: &mut Io,
        failures: &mut Failures,
        visit: &WalkEntry<'_>,
    ) -> Result<Go, Failure> {
        if visit.after {
            return Ok(Go::On);
        }
        if !self.descend(visit.depth, visit.name) {
            let path = visit.node.path();
            let text = match visit.name {
                name if is_name(name) => format!(
                    "{}: the path is longer than {MOST_PATH_BYTES} bytes: skipped",
                    path[..MOST_PATH_BYTES.min(100)].escape_ascii()
                ),
                _ => format!("{}: not a file's name", path.escape_ascii()),
            };
            let status = if is_name(visit.name) {
                OPERATION
            } else {
                CORRUPT
            };
            failures.note(Failure::new(status, text))?;
            return Ok(Go::On);
        }
        if self.progress.is_shown() {
            self.progress.message(String::from_utf8_lossy(&self.path));
        }
        let written = self.member(io, failures, visit)?;
        if written && visit.metadata.is_dir() {
            let path_len = self.path.len();
            self.levels.push(Level {
                path_len,
                place: None,
            });
            return Ok(Go::Down);
        }
        Ok(Go::On)
    }

    /// Makes `path` that of an entry of the directory at the depth above; false when it cannot be.
    fn descend(&mut self, depth: usize, name: &[u8]) -> bool {
        self.levels.truncate(depth);
        let Some(level) = self.levels.last() else {
            // The start has its name already.
            return true;
        };
        self.path.truncate(level.path_len);
        if !is_name(name) || self.path.len() + name.len() + 2 > MOST_PATH_BYTES {
            return false;
        }
        self.path.push(b'/');
        self.path.extend_from_slice(name);
        true
    }

    /// Writes a member; false when it was skipped.
    fn member(
        &mut self,
        io: &mut Io,
        failures: &mut Failures,
        visit: &WalkEntry<'_>,
    ) -> Result<bool, Failure> {
        let metadata = visit.metadata;
        let has_links = metadata.nlink > 1 && !metadata.is_dir();
        if has_links && let Some(first) = self.links.first(metadata.ino) {
            self.link(metadata, &first)?;
            return Ok(true);
        }
        let file_type = metadata.file_type();
        if file_type == FileType::Socket {
            self.sockets.add(&|| visit.node.path().into_owned(), &"");
            return Ok(false);
        }
        let path = || visit.node.path().into_owned();
        let note = &mut |failure| failures.note(failure);
        let attributes = attributes::archived(self.volume, io, metadata, &path, note)?;
        let mut link = Vec::new();
        let kind = match file_type {
            FileType::Regular => {
                let content = self.regular(io, failures, visit, &attributes)?;
                if content && has_links {
                    self.keep(metadata);
                }
                return Ok(content);
            }
            FileType::Symlink => {
                let target = visit.node.read_link(self.volume, io);
                let Some(target) = failures.value_of(target)? else {
                    return Ok(false);
                };
                link = target;
                EntryType::Symlink
            }
            FileType::Directory => EntryType::Directory,
            FileType::BlockDevice => EntryType::Block,
            FileType::CharDevice => EntryType::Char,
            FileType::Fifo | FileType::Socket => EntryType::Fifo,
        };
        if kind == EntryType::Directory {
            self.path.push(b'/');
        }
        let headers = Member {
            path: &self.path,
            kind,
            attributes: &attributes,
            link: &link,
            device: metadata.rdev,
            size: 0,
            sparse_len: None,
        }
        .headers()?;
        if kind == EntryType::Directory {
            self.path.pop();
        }
        self.out.write(&headers)?;
        if has_links {
            self.keep(metadata);
        }
        Ok(true)
    }

    /// Writes one more name of a member.
    fn link(&mut self, metadata: &Metadata, first: &[u8]) -> Result<(), Failure> {
        let mut attributes = Attributes::plain(metadata, metadata.permissions());
        attributes.archive = Some(Box::new(Archived {
            uid: metadata.uid,
            gid: metadata.gid,
            xattrs: Vec::new(),
            linked: None,
        }));
        let headers = Member {
            path: &self.path,
            kind: EntryType::Link,
            attributes: &attributes,
            link: first,
            device: 0,
            size: 0,
            sparse_len: None,
        }
        .headers()?;
        self.out.write(&headers)
    }

    /// Keeps the path of a member that has more names.
    fn keep(&mut self, metadata: &Metadata) {
        let mut above = None;
        let mut start = 0;
        for level in &mut self.levels {
            let name = &self.path[start..level.path_len];
            let place = level
                .place
                .unwrap_or_else(|| self.links.add_place(above, name));
            level.place = Some(place);
            above = Some(place);
            start = level.path_len + 1;
        }
        let name = &self.path[start..];
        self.links.keep(metadata.ino, metadata.nlink, above, name);
    }

    /// Writes a regular file; false when it was skipped. Its length comes before its content: a
    /// longer file that cannot be read to its end has zeroes instead, as GNU tar does it.
    fn regular(
        &mut self,
        io: &mut Io,
        failures: &mut Failures,
        visit: &WalkEntry<'_>,
        attributes: &Attributes,
    ) -> Result<bool, Failure> {
        let file = visit.node.open(self.volume, io);
        let Some(file) = failures.value_of(file)? else {
            return Ok(false);
        };
        let content = TarContent::of(&file, io, &mut self.chunk);
        let Some(content) = failures.value_of(content)? else {
            return Ok(false);
        };
        let size = content.archived_bytes();
        let headers = Member {
            path: &self.path,
            kind: EntryType::Regular,
            attributes,
            link: b"",
            device: 0,
            size,
            sparse_len: content.has_holes().then_some(file.len()),
        }
        .headers()?;
        self.out.write(&headers)?;
        let mut left = size;
        let Self {
            out,
            chunk,
            progress,
            ..
        } = self;
        let mut put = |bytes: &[u8]| {
            left = left
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| content::changed(&file))?;
            progress.add(bytes.len() as u64);
            out.write(bytes).map_err(Stop::Write)
        };
        match content.write(&file, io, chunk, &mut put) {
            Ok(()) => {}
            Err(Stop::Write(failure)) => return Err(failure),
            Err(Stop::Read(failure)) => {
                failures.note(failure)?;
                let path = visit.node.path();
                let text = format!(
                    "{}: the archive has zeroes instead of its last {left} bytes",
                    path.escape_ascii()
                );
                failures.note(Failure::new(OPERATION, text))?;
            }
        }
        self.out.zeroes(left)?;
        self.out.fill(BLOCK_BYTES as u64)?;
        Ok(true)
    }
}

/// Whether this can be the name of a file: nothing else may become part of a path.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

//! `xtent get`: copying out.
//!
//! Everything is made relative to directories that are held open, under a temporary name, and renamed when
//! it is whole: no name on the disk leads outside, and nothing half-written has its final name.

use std::ffi::OsStr;
use std::fs::File as HostFile;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use xtent::internals::sys::{HostDir, HostPath, HostTime};
use xtent::volume::{
    DirEntry, File, FileReader, FileType, Io, Metadata, MountOptions, ReadDir, Timestamp, Volume,
};

use super::failure::{Failure, Failures, OPERATION, check_interrupted, complain};
use super::tree::{Children, Node};
use super::{LocalPath, TargetArg, VolumePath};
use crate::bench::progress::Progress;

/// Data in longer pieces is read ahead; shorter ones are not worth it.
const READ_AHEAD_BYTES: u64 = 4 << 20;
const CHUNK_BYTES: usize = 1 << 20;
/// Permissions that a copy keeps: not set-user-id and set-group-id, as the owner is another one. The sticky
/// bit limits rights.
const KEPT_MODE: u32 = 0o1777;

#[derive(Debug, Args)]
#[command(
    after_help = "Permissions (without set-user-id and the like) and times are kept, owners are not; \
    holes stay holes. Access control lists are not copied: where there is one, the group gets no rights. Device nodes, sockets and fifos are skipped, and said so."
)]
pub(super) struct GetArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The file or, with -r, directory in the volume
    #[arg(value_name = "PATH")]
    path: VolumePath,
    /// Where to put it; inside of it, when it is a directory
    #[arg(value_name = "LOCAL")]
    local: LocalPath,
    /// Copies directories with all that is below
    #[arg(short, long)]
    recursive: bool,
    /// Replaces files that are there, and copies into directories that are there
    #[arg(short, long)]
    force: bool,
}

struct Copy<'a> {
    args: &'a GetArgs,
    volume: &'a Volume,
    io: Io,
    chunk: Vec<u8>,
    failures: Failures,
    progress: Progress,
    temporary: u64,
    /// Files with an access control list, and the first one.
    acls: u64,
    first_acl: Vec<u8>,
}

pub(super) fn run(args: &GetArgs) -> Result<(), Failure> {
    let volume = args.target.open(&super::reading(), &MountOptions::new())?;
    let mut io = volume.io()?;
    let path = args.path.as_encoded_bytes();
    let metadata = volume.metadata(&mut io, OsStr::from_bytes(path))?;
    if metadata.is_dir() && !args.recursive {
        let text = format!("{} is a directory: give -r to copy it", path.escape_ascii());
        return Err(Failure::new(OPERATION, text));
    }
    let progress = if metadata.is_dir() {
        Progress::endless()
    } else {
        Progress::bytes(metadata.len_bytes)
    };
    let mut copy = Copy {
        args,
        volume: &volume,
        io,
        chunk: vec![0; CHUNK_BYTES],
        failures: Failures::default(),
        progress,
        temporary: 0,
        acls: 0,
        first_acl: Vec::new(),
    };
    let result = copy.start(path, &metadata);
    super::events::tell(&volume);
    copy.tell_acls();
    result?;
    copy.failures.result()
}

/// A directory that is being copied.
struct Level {
    entries: ReadDir,
    /// Its name on the host, where it gets the mode and times of the one in the volume.
    made: Option<Vec<u8>>,
    children: Children,
}

impl Level {
    fn new(entries: ReadDir, made: Option<Vec<u8>>) -> Self {
        Self {
            entries,
            made,
            children: Children::default(),
        }
    }
}

/// How a piece of a file is read.
enum Source<'io> {
    Ahead(FileReader<'io>),
    Piecewise(&'io mut Io),
}

/// The name under which something ends up: the last component of its path, if it has one.
fn base_name(path: &[u8]) -> Option<&[u8]> {
    path.split(|&byte| byte == b'/')
        .rfind(|part| !part.is_empty())
        .filter(|name| *name != b"." && *name != b"..")
}

/// Nanoseconds of a second or more mean something else to utimensat().
fn host_time(time: Timestamp) -> HostTime {
    const SECOND: u32 = 1_000_000_000;
    let more = i64::from(time.nanoseconds / SECOND);
    (time.seconds.saturating_add(more), time.nanoseconds % SECOND)
}

impl Copy<'_> {
    fn start(&mut self, path: &[u8], metadata: &Metadata) -> Result<(), Failure> {
        let local = self.args.local.as_path();
        let failed = |error| Failure::local("cannot open the directory", local, error);
        let into_dir = local.is_dir();
        let (dir, name) = match (into_dir, base_name(path)) {
            (true, Some(name)) => (HostDir::open(local).map_err(failed)?, name.to_vec()),
            // The root of the volume, into a directory that is there.
            (true, None) => {
                let dir = HostDir::open(local).map_err(failed)?;
                let entries = self
                    .volume
                    .read_dir(&mut self.io, OsStr::from_bytes(path))?;
                return self.fill(Level::new(entries, None), &mut HostPath::new(dir));
            }
            (false, _) => {
                let parent = match local.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
                let no_directory =
                    || Failure::new(OPERATION, format!("{}: no such directory", local.display()));
                let name = local.file_name().ok_or_else(no_directory)?;
                // As cp: a slash at the end demands a directory, which only a directory can become.
                let demands_dir = local.as_os_str().as_bytes().ends_with(b"/");
                if demands_dir && !metadata.is_dir() {
                    return Err(no_directory());
                }
                let failed = |error| Failure::local("cannot open the directory", parent, error);
                (
                    HostDir::open(parent).map_err(failed)?,
                    name.as_bytes().to_vec(),
                )
            }
        };
        let mut host = HostPath::new(dir);
        match self.one(Node::Path(path), metadata, &mut host, &name)? {
            Some(level) => self.fill(level, &mut host),
            None => Ok(()),
        }
    }

    /// Copies a file of any type to `name` in the directory where `host` is. For a directory that is
    /// empty so far: `host` is then inside, and what is to be done there is returned.
    fn one(
        &mut self,
        node: Node<'_>,
        metadata: &Metadata,
        host: &mut HostPath,
        name: &[u8],
    ) -> Result<Option<Level>, Failure> {
        check_interrupted()?;
        if self.progress.is_shown() {
            self.progress.message(String::from_utf8_lossy(&node.path()));
        }
        match metadata.file_type() {
            FileType::Regular => self.regular(node, metadata, host.here(), name)?,
            FileType::Directory => return self.directory(node, host, name).map(Some),
            FileType::Symlink => self.symlink(node, metadata, host.here(), name)?,
            other => {
                let kind = super::output::type_word(other);
                complain(&format!("skipped {}: a {kind}", node.path().escape_ascii()));
            }
        }
        Ok(None)
    }

    /// Makes a directory and goes down into it.
    fn directory(
        &mut self,
        node: Node<'_>,
        host: &mut HostPath,
        name: &[u8],
    ) -> Result<Level, Failure> {
        // Read first: a directory that is corrupt leaves nothing behind.
        let entries = node.read_dir(self.volume, &mut self.io)?;
        let failed = |error| local(name, "cannot make the directory", error);
        match host.here().make_dir(name) {
            Err(error) if self.args.force && error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed)?,
        }
        host.down(name).map_err(failed)?;
        Ok(Level::new(entries, Some(name.to_vec())))
    }

    /// Fills a directory, and those below it. Iterative, so that any depth needs the same stack.
    fn fill(&mut self, first: Level, host: &mut HostPath) -> Result<(), Failure> {
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            check_interrupted()?;
            match level.entries.next_entry(&mut self.io) {
                Ok(Some(entry)) => match self.entry(&entry, &mut level.children, host) {
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
                    if let Some(level) = levels.pop() {
                        self.leave(&level, host)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &DirEntry,
        children: &mut Children,
        host: &mut HostPath,
    ) -> Result<Option<Level>, Failure> {
        let metadata = entry.metadata(&mut self.io)?;
        if metadata.is_dir() {
            children.add(entry)?;
        }
        self.one(
            Node::Entry(entry),
            &metadata,
            host,
            entry.file_name().as_bytes(),
        )
    }

    /// Goes up from a directory that is whole. Its mode comes last, because that may forbid filling
    /// it, and then its times, because filling changes them.
    fn leave(&mut self, level: &Level, host: &mut HostPath) -> Result<(), Failure> {
        let Some(name) = &level.made else {
            return Ok(());
        };
        let failed = |error| local(name, "cannot finish the directory", error);
        let Some(dir) = host.up().map_err(failed)? else {
            return Ok(());
        };
        let metadata = level.entries.metadata();
        let mode = self.kept_mode(&metadata, name)?;
        let (atime, mtime) = (host_time(metadata.atime), host_time(metadata.mtime));
        let finished = dir
            .set_mode(mode)
            .and_then(|()| dir.set_times(atime, mtime));
        match finished {
            Ok(()) => Ok(()),
            Err(error) => self.failures.note(failed(error)),
        }
    }

    fn symlink(
        &mut self,
        node: Node<'_>,
        metadata: &Metadata,
        dir: &HostDir,
        name: &[u8],
    ) -> Result<(), Failure> {
        self.check_place(dir, name)?;
        let target = node.read_link(self.volume, &mut self.io)?;
        let part = self.part_name();
        let made = dir.make_symlink(&target, &part).and_then(|()| {
            let (atime, mtime) = (host_time(metadata.atime), host_time(metadata.mtime));
            dir.set_times_of(&part, atime, mtime)?;
            dir.rename(&part, name, self.args.force)
        });
        made.map_err(|error| {
            let _ = dir.remove_file(&part);
            local(name, "cannot make the symbolic link", error)
        })
    }

    /// Refuses, before anything is copied, to replace what must stay: without --force anything, with it
    /// all but regular files and symbolic links.
    fn check_place(&self, dir: &HostDir, name: &[u8]) -> Result<(), Failure> {
        let failed = |error| local(name, "cannot look at", error);
        let refuse = |why: &str| {
            let name = String::from_utf8_lossy(name);
            Err(Failure::new(OPERATION, format!("{name} {why}")))
        };
        let Some(kind) = dir.kind_of(name).map_err(failed)? else {
            return Ok(());
        };
        if !self.args.force {
            return refuse("is there already: give --force to replace it");
        }
        match kind {
            libc::S_IFREG => Ok(()),
            // /dev/stdout and the like, in a directory of the system.
            libc::S_IFLNK if dir.read_link(name).map_err(failed)?.starts_with(b"/proc/") => {
                refuse("leads to a descriptor of this process: use `xtent cat` to write to it")
            }
            libc::S_IFLNK => Ok(()),
            libc::S_IFDIR => refuse("is a directory: --force replaces no directory by a file"),
            _ => refuse(
                "is a device node, fifo or socket: --force replaces regular files and symbolic links only",
            ),
        }
    }

    fn regular(
        &mut self,
        node: Node<'_>,
        metadata: &Metadata,
        dir: &HostDir,
        name: &[u8],
    ) -> Result<(), Failure> {
        self.check_place(dir, name)?;
        let file = node.open(self.volume, &mut self.io)?;
        let part = self.part_name();
        let to = dir
            .create_file(&part)
            .map_err(|error| local(name, "cannot make the file", error))?;
        let result = self.content(&file, to, name).and_then(|()| {
            let (atime, mtime) = (host_time(metadata.atime), host_time(metadata.mtime));
            dir.set_times_of(&part, atime, mtime)
                .and_then(|()| dir.rename(&part, name, self.args.force))
                .map_err(|error| local(name, "cannot finish the file", error))
        });
        if result.is_err() {
            let _ = dir.remove_file(&part);
        }
        result
    }

    fn content(&mut self, file: &File, mut to: HostFile, name: &[u8]) -> Result<(), Failure> {
        use std::os::unix::fs::PermissionsExt;
        let failed = |error| local(name, "cannot write the file", error);
        let len_bytes = file.len();
        to.set_len(len_bytes).map_err(failed)?;
        let mut at = 0;
        while let Some(data) = file.seek_data(&mut self.io, at)? {
            let end = file.seek_hole(&mut self.io, data)?.unwrap_or(len_bytes);
            let end = end.min(len_bytes);
            if end <= data {
                break;
            }
            to.seek(SeekFrom::Start(data)).map_err(failed)?;
            self.piece(file, &mut to, name, data..end)?;
            at = end;
        }
        let mode = self.kept_mode(&file.metadata(), file.path().as_os_str().as_bytes())?;
        to.set_permissions(std::fs::Permissions::from_mode(mode))
            .map_err(failed)
    }

    /// The permissions of a copy: never more than the file itself gives. With an access control list the
    /// mode's group bits are the list's mask, which may be more than its group has.
    fn kept_mode(&mut self, metadata: &Metadata, path: &[u8]) -> Result<u32, Failure> {
        let mode = metadata.permissions() & KEPT_MODE;
        if mode & 0o070 == 0 {
            return Ok(mode);
        }
        let has_acl = match self.volume.has_access_acl(&mut self.io, metadata) {
            Ok(has_acl) => has_acl,
            // Its attributes are corrupt: the content is not.
            Err(error) => {
                self.failures.note(error.at_path(path))?;
                true
            }
        };
        if !has_acl {
            return Ok(mode);
        }
        if self.acls == 0 {
            self.first_acl = path.to_vec();
        }
        self.acls += 1;
        Ok(mode & !0o070)
    }

    fn tell_acls(&self) {
        if self.acls > 0 {
            complain(&format!(
                "note: access control lists are not copied: the group has no rights to {} of the copies, \
                 first to {}",
                self.acls,
                self.first_acl.escape_ascii()
            ));
        }
    }

    /// Copies one piece of data, `to` standing at its start.
    fn piece(
        &mut self,
        file: &File,
        to: &mut HostFile,
        name: &[u8],
        range: std::ops::Range<u64>,
    ) -> Result<(), Failure> {
        let long = range.end - range.start >= READ_AHEAD_BYTES;
        let mut source = if long {
            let mut reader = file.reader(&mut self.io)?;
            reader.seek(SeekFrom::Start(range.start))?;
            Source::Ahead(reader)
        } else {
            Source::Piecewise(&mut self.io)
        };
        let mut at = range.start;
        while at < range.end {
            check_interrupted()?;
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let chunk = &mut self.chunk[..left.min(CHUNK_BYTES)];
            let n = match &mut source {
                Source::Ahead(reader) => reader.read(chunk)?,
                Source::Piecewise(io) => file.read_at(io, chunk, at)?,
            };
            if n == 0 {
                let path = file.path().as_os_str().as_bytes().escape_ascii();
                let text = format!("{path}: ended before its length");
                return Err(Failure::new(OPERATION, text));
            }
            to.write_all(&chunk[..n])
                .map_err(|error| local(name, "cannot write the file", error))?;
            at += n as u64;
            self.progress.add(n as u64);
        }
        Ok(())
    }

    /// A name that nothing of the disk will have.
    fn part_name(&mut self) -> Vec<u8> {
        self.temporary += 1;
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .subsec_nanos();
        let (pid, count) = (std::process::id(), self.temporary);
        format!(".xtent-part-{pid}-{clock}-{count}").into_bytes()
    }
}

fn local(name: &[u8], what: &str, error: std::io::Error) -> Failure {
    Failure::local(what, Path::new(OsStr::from_bytes(name)), error)
}

#[cfg(test)]
mod tests {
    use super::base_name;

    #[test]
    fn the_last_component_names_the_copy() {
        assert_eq!(base_name(b"/a/b"), Some(&b"b"[..]));
        assert_eq!(base_name(b"a/b//"), Some(&b"b"[..]));
        assert_eq!(base_name(b"/"), None);
        assert_eq!(base_name(b"/a/.."), None);
        assert_eq!(base_name(b""), None);
    }
}

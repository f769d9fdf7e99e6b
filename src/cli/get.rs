//! `xtent get`: copying out.
//!
//! Everything is made relative to directories that are held open, under a temporary name, and renamed when
//! it is whole: no name on the disk leads outside, and nothing half-written has its final name.

use std::fs::File as HostFile;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use xtent::internals::sys::{HostDir, HostTime};
use xtent::volume::{DirEntry, File, FileReader, FileType, Io, Metadata, Timestamp, Volume};

use super::failure::{Failure, Failures, OPERATION, check_interrupted, complain};
use super::tree::Ancestors;
use super::{LocalPath, TargetArg, VolumePath};
use crate::bench::progress::Progress;

/// Data in longer pieces is read ahead; shorter ones are not worth it.
const READ_AHEAD_BYTES: u64 = 4 << 20;
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "Permissions (without set-user-id and the like) and times are kept, owners are not; \
    holes stay holes. Device nodes, sockets and fifos are skipped, and said so."
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
    ancestors: Ancestors,
    failures: Failures,
    progress: Progress,
    temporary: u64,
}

pub(super) fn run(args: &GetArgs) -> Result<(), Failure> {
    let volume = args.target.open(&super::reading())?;
    let mut io = volume.io()?;
    let path = args.path.as_encoded_bytes();
    let metadata = volume.metadata(&mut io, path)?;
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
        ancestors: Ancestors::default(),
        failures: Failures::default(),
        progress,
        temporary: 0,
    };
    let result = copy.start(path, &metadata);
    super::events::tell(&volume);
    result?;
    copy.failures.result()
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

fn host_time(time: Timestamp) -> HostTime {
    (time.seconds, time.nanoseconds)
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
                return self.dir_content(path, metadata, &dir);
            }
            (false, _) => {
                let parent = match local.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
                let name = local.file_name().ok_or_else(|| {
                    Failure::new(OPERATION, format!("{}: no such directory", local.display()))
                })?;
                let failed = |error| Failure::local("cannot open the directory", parent, error);
                (
                    HostDir::open(parent).map_err(failed)?,
                    name.as_bytes().to_vec(),
                )
            }
        };
        self.one(path, metadata, &dir, &name)
    }

    /// Copies whatever it is to `name` in `dir`.
    fn one(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        dir: &HostDir,
        name: &[u8],
    ) -> Result<(), Failure> {
        check_interrupted()?;
        self.progress.message(String::from_utf8_lossy(path));
        match metadata.file_type() {
            FileType::Regular => self.regular(path, metadata, dir, name),
            FileType::Directory => self.directory(path, metadata, dir, name),
            FileType::Symlink => self.symlink(path, metadata, dir, name),
            other => {
                let kind = super::output::type_word(other);
                complain(&format!("skipped {}: a {kind}", path.escape_ascii()));
                Ok(())
            }
        }
    }

    fn directory(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        dir: &HostDir,
        name: &[u8],
    ) -> Result<(), Failure> {
        let failed = |error| local(name, "cannot make the directory", error);
        match dir.make_dir(name) {
            Err(error) if self.args.force && error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed)?,
        }
        let inner = dir.open_dir(name).map_err(failed)?;
        self.dir_content(path, metadata, &inner)?;
        // Last, because a directory may forbid its own filling, and filling changes its times.
        inner
            .set_mode(metadata.permissions() & 0o777)
            .map_err(failed)?;
        let (atime, mtime) = (host_time(metadata.atime), host_time(metadata.mtime));
        inner.set_times(atime, mtime).map_err(failed)
    }

    fn dir_content(&mut self, path: &[u8], of: &Metadata, to: &HostDir) -> Result<(), Failure> {
        self.ancestors.enter(of.ino, path)?;
        let result = self.entries(path, to);
        self.ancestors.leave();
        result
    }

    fn entries(&mut self, path: &[u8], to: &HostDir) -> Result<(), Failure> {
        let mut entries = self.volume.read_dir(&mut self.io, path)?;
        loop {
            check_interrupted()?;
            let entry = match entries.next_entry(&mut self.io) {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                // The directory is over; its siblings are not.
                Err(error) => return self.failures.note(error),
            };
            if let Err(failure) = self.entry(&entry, to) {
                self.failures.note(failure)?;
            }
        }
    }

    fn entry(&mut self, entry: &DirEntry, to: &HostDir) -> Result<(), Failure> {
        let metadata = entry.metadata(&mut self.io)?;
        self.one(&entry.path(), &metadata, to, entry.name())
    }

    fn symlink(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        dir: &HostDir,
        name: &[u8],
    ) -> Result<(), Failure> {
        let target = self.volume.read_link(&mut self.io, path)?;
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

    fn regular(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        dir: &HostDir,
        name: &[u8],
    ) -> Result<(), Failure> {
        // Said before the copying; the rename would refuse it afterwards.
        let there = dir
            .kind_of(name)
            .map_err(|e| local(name, "cannot look at", e))?;
        if there.is_some() && !self.args.force {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(local(name, "will not replace without --force", exists));
        }
        let file = self.volume.open_file(&mut self.io, path)?;
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
        let len_bytes = file.len_bytes();
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
        let mode = file.metadata().permissions() & 0o777;
        to.set_permissions(std::fs::Permissions::from_mode(mode))
            .map_err(failed)
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
                Source::Piecewise(io) => file.read_into(io, chunk, at)?,
            };
            if n == 0 {
                let path = file.path().escape_ascii();
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
    Failure::local(what, Path::new(std::ffi::OsStr::from_bytes(name)), error)
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

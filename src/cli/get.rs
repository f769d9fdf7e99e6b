//! `xtent get`: copying out. One side reads the volume, and tells the other one, which writes to
//! the host.

mod apply;
mod attributes;
mod host;
mod job;
mod read;
mod tar;
mod writer;

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clap::Args;
use xtent::internals::sys::HostDir;
use xtent::volume::{Io, Metadata, MountOptions, Volume};

use self::host::CopyHost;
use self::read::Copy;
use self::writer::Writer;
use super::failure::{Failure, Failures, OPERATION, USAGE};
use super::tree::TreeNode;
use super::{LocalPath, TargetArg, VolumePath};

/// A file of at least this length is worth a thread that writes while another one reads.
const THREAD_BYTES: u64 = 4 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "Permissions (without set-user-ID and the like) and times are kept, owners are not; \
    holes stay holes. Access control lists are not copied: where there is one, the group gets no rights. \
    Lists that copies inherit from a directory of the host are removed. \
    Device nodes, sockets and fifos are skipped.\n\n\
    With -a owners and groups (by number), all permissions, times, extended attributes, access control \
    lists, hard links, device nodes, sockets and fifos are kept, too. Creation times, project IDs and \
    inode flags (chattr) are not. What was skipped or could not be kept is counted at the end; the exit \
    status is then 1.\n\n\
    With --tar the file or tree is written as an archive in pax format, which GNU tar and bsdtar read: what -a \
    keeps is kept, except sockets, and holes stay holes. `tar -x --xattrs --xattrs-include='*' --acls` restores \
    it. A file that cannot be read is skipped; one of more than 256 KiB that cannot be read to its end has zeroes \
    from there on. Paths of more than 64 KiB are skipped. The exit status is then not 0."
)]
pub(super) struct GetArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The file or, with -r, directory in the volume
    #[arg(value_name = "PATH")]
    path: VolumePath,
    /// Where to put it; inside of it, when it is a directory; - for standard output
    #[arg(
        value_name = "LOCAL",
        required_unless_present = "tar",
        conflicts_with = "tar"
    )]
    local: Option<LocalPath>,
    /// Write a tar archive to this file instead, with -a and -r; - for standard output
    #[arg(long, value_name = "FILE")]
    tar: Option<LocalPath>,
    /// Copies directories with all that is below
    #[arg(short, long)]
    recursive: bool,
    /// Keeps owners, all permissions, extended attributes, access control lists, hard links and
    /// special files
    #[arg(short, long)]
    archive: bool,
    /// Replaces files that are there, and copies into directories that are there
    #[arg(short, long)]
    force: bool,
}

/// The failures of both sides.
#[derive(Debug, Clone, Default)]
struct SharedFailures(Arc<Mutex<Failures>>);

impl SharedFailures {
    fn lock(&self) -> MutexGuard<'_, Failures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Failures::note`].
    fn note(&self, failure: impl Into<Failure>) -> Result<(), Failure> {
        self.lock().note(failure)
    }

    fn result(&self) -> Result<(), Failure> {
        std::mem::take(&mut *self.lock()).result()
    }
}

pub(super) fn run(args: &GetArgs) -> Result<(), Failure> {
    let volume = args.target.open(&super::reading(), &MountOptions::new())?;
    let mut io = volume.io()?;
    let path = args.path.as_encoded_bytes();
    let metadata = match args.archive || args.tar.is_some() {
        // As cp -a: the link itself.
        true => volume.symlink_metadata(&mut io, &args.path)?,
        false => volume.metadata(&mut io, &args.path)?,
    };
    if let Some(place) = &args.tar {
        drop(io);
        return tar::run(&volume, path, base_name(path), place, args.force);
    }
    let local = args.local.as_deref().unwrap_or(Path::new("."));
    if metadata.is_dir() && !args.recursive {
        let text = format!("{} is a directory: give -r to copy it", path.escape_ascii());
        return Err(Failure::new(OPERATION, text));
    }
    if local.as_os_str() == "-" {
        return to_stdout(args, &volume, &mut io, &metadata);
    }
    let (dir, name) = place(local, path, &metadata)?;
    let failures = SharedFailures::default();
    let writer = Writer::new(dir, args.force, failures.clone())
        .map_err(|error| Failure::local("cannot open the directory", local, error))?;
    let with_thread = metadata.is_dir() || metadata.len_bytes >= THREAD_BYTES;
    let host = CopyHost::new(writer, with_thread);
    let mut copy = Copy::new(&volume, io, args.archive, host, failures.clone(), &metadata);
    let result = copy.start(TreeNode::Path(path), &metadata, name.as_deref());
    super::events::tell(&volume);
    copy.finish(result)?;
    failures.result()
}

/// As `cat`: the content of one file.
fn to_stdout(
    args: &GetArgs,
    volume: &Volume,
    io: &mut Io,
    metadata: &Metadata,
) -> Result<(), Failure> {
    if metadata.is_dir() || args.archive {
        let text = "standard output takes the content of one file: leave -r and -a out, or name a directory";
        return Err(Failure::new(USAGE, text));
    }
    let mut out = super::output::raw_stdout()?;
    super::cat::one(volume, io, &args.path, &mut vec![0; 1 << 20], &mut out)?;
    out.flush()?;
    Ok(())
}

/// The name under which something ends up: the last component of its path, if it has one.
fn base_name(path: &[u8]) -> Option<&[u8]> {
    path.split(|&byte| byte == b'/')
        .rfind(|part| !part.is_empty())
        .filter(|name| *name != b"." && *name != b"..")
}

/// The directory of the host, and the name in it; none for the root of the volume that goes into a
/// directory that is there.
fn place(
    local: &Path,
    path: &[u8],
    metadata: &Metadata,
) -> Result<(HostDir, Option<Vec<u8>>), Failure> {
    let open = |path: &Path| {
        HostDir::open(path)
            .map_err(|error| Failure::local("cannot open the directory", path, error))
    };
    if local.is_dir() {
        return Ok((open(local)?, base_name(path).map(<[u8]>::to_vec)));
    }
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
    Ok((open(parent)?, Some(name.as_bytes().to_vec())))
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

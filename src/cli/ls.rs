//! `xtent ls`.

use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde_json::Value;
use xtent::volume::{DirEntry, FileType, Io, Metadata, Volume};

use super::failure::{Failure, Failures, check_interrupted};
use super::output::{
    NameStyle, RawOut, device_numbers, human_size, metadata_json, mode_text, put_name, put_version,
    short_time,
};
use super::tree::{Children, TreeNode};
use super::{TargetArg, VolumePath};
use crate::bench::terminal;

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Times are UTC, owners are numbers. On a terminal, names with control characters or \
    not in UTF-8 are escaped; elsewhere they are the bytes that they are. With --json a name that is not \
    UTF-8 comes with its bytes in `name_hex`. A + behind the mode says that there is an access control list \
    (`xtent xattr --acl` shows it)."
)]
pub(super) struct LsArgs {
    #[command(flatten)]
    target: TargetArg,
    /// What to list; a directory's entries, or a file itself [default: /]
    #[arg(value_name = "PATH")]
    paths: Vec<VolumePath>,
    /// Shows mode, links, owner, group, size and time of change
    #[arg(short)]
    long: bool,
    /// Goes down into directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Shows names that begin with a dot
    #[arg(short, long, visible_short_alias = 'A')]
    all: bool,
    /// Keeps the directory's own order instead of sorting by name: starts at once, however many
    /// entries
    #[arg(short = 'U')]
    unsorted: bool,
    /// Sort by time of change, newest first
    #[arg(short = 't', conflicts_with_all = ["unsorted", "by_size"])]
    by_time: bool,
    /// Sort by size, largest first
    #[arg(short = 'S', conflicts_with = "unsorted")]
    by_size: bool,
    /// Sort in reverse
    #[arg(short, long)]
    reverse: bool,
    /// Print sizes with a unit: 1.5G
    #[arg(short, long)]
    human_readable: bool,
    /// Print inode numbers
    #[arg(short, long)]
    inode: bool,
    /// One name on a line, as always
    #[arg(short = '1')]
    one: bool,
    /// Shows a directory itself instead of its entries
    #[arg(short, long)]
    directory: bool,
    /// Prints JSON: an array with one object an entry
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

struct Listing<'a> {
    args: &'a LsArgs,
    volume: &'a Volume,
    io: Io,
    out: BufWriter<RawOut>,
    names: NameStyle,
    failures: Failures,
    /// No heading was printed yet.
    first: bool,
    /// An object was printed.
    printed: bool,
}

/// The directories in a directory.
#[derive(Default)]
struct Below {
    entries: Vec<DirEntry>,
    names: Children,
}

pub(super) fn run(args: &LsArgs) -> Result<(), Failure> {
    let volume = args.target.open_to_read()?;
    let mut listing = Listing {
        args,
        volume: &volume,
        io: volume.io()?,
        out: BufWriter::with_capacity(64 << 10, super::output::raw_stdout()?),
        names: NameStyle::for_stdout(),
        failures: Failures::default(),
        first: true,
        printed: false,
    };
    let root = [VolumePath::from("/")];
    let paths = if args.paths.is_empty() {
        &root
    } else {
        &args.paths[..]
    };
    if args.json {
        listing.out.write_all(b"[")?;
    }
    for path in paths {
        let path = path.as_encoded_bytes();
        if let Err(failure) = listing.start(path, paths.len() > 1 || args.recursive) {
            listing.failures.note(failure)?;
        }
    }
    if args.json {
        listing.out.write_all(b"\n]\n")?;
    }
    listing.out.flush()?;
    listing.failures.result()
}

impl Listing<'_> {
    fn start(&mut self, path: &[u8], with_heading: bool) -> Result<(), Failure> {
        let node = TreeNode::Path(path);
        let metadata = if self.args.long || self.args.directory {
            self.volume
                .symlink_metadata(&mut self.io, OsStr::from_bytes(path))?
        } else {
            self.volume
                .metadata(&mut self.io, OsStr::from_bytes(path))?
        };
        if !metadata.is_dir() || self.args.directory {
            return self.entry(node, path, Some(metadata), None);
        }
        // Those below that are still to be listed, the next one last. Iterative, so that any depth
        // needs the same stack.
        let mut waiting = self.directory(node, with_heading)?;
        while let Some(entry) = waiting.pop() {
            match self.directory(TreeNode::Entry(&entry), true) {
                Ok(mut below) => waiting.append(&mut below),
                Err(failure) => self.failures.note(failure)?,
            }
        }
        Ok(())
    }

    /// Lists a directory; with -R returns the directories in it, the first one last.
    fn directory(
        &mut self,
        node: TreeNode<'_>,
        with_heading: bool,
    ) -> Result<Vec<DirEntry>, Failure> {
        let mut dir = node.read_dir(self.volume, &mut self.io)?;
        if with_heading && !self.args.json {
            if !self.first {
                self.out.write_all(b"\n")?;
            }
            let heading = self.names.print(&node.path());
            self.out.write_all(&heading)?;
            self.out.write_all(b":\n")?;
        }
        self.first = false;
        let mut below = Below::default();
        let mut entries = Vec::new();
        // What was read before an error is still shown.
        let ended = loop {
            check_interrupted()?;
            match dir.next_entry(&mut self.io) {
                Ok(Some(entry)) if self.is_hidden(&entry) => {}
                Ok(Some(entry)) if self.args.unsorted => {
                    let metadata = self.metadata_of(&entry)?;
                    self.child(entry, metadata, &mut below)?;
                }
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        entries.sort_by(|a, b| a.file_name().cmp(b.file_name()));
        if self.args.by_time || self.args.by_size {
            self.children_by_metadata(entries, &mut below)?;
        } else {
            if self.args.reverse {
                entries.reverse();
            }
            for entry in entries {
                let metadata = self.metadata_of(&entry)?;
                self.child(entry, metadata, &mut below)?;
            }
        }
        if let Err(error) = ended {
            self.failures.note(error)?;
        }
        below.entries.reverse();
        Ok(below.entries)
    }

    fn is_hidden(&self, entry: &DirEntry) -> bool {
        !self.args.all && entry.file_name().as_bytes().starts_with(b".")
    }

    /// By time or size; those that have the same, and those that cannot be read, by name.
    fn children_by_metadata(
        &mut self,
        entries: Vec<DirEntry>,
        below: &mut Below,
    ) -> Result<(), Failure> {
        let mut list = Vec::with_capacity(entries.len());
        for entry in entries {
            let metadata = self.metadata_of(&entry)?;
            list.push((entry, metadata));
        }
        let by_size = self.args.by_size;
        list.sort_by_key(|(_, metadata)| {
            let key = metadata.map(|m| match by_size {
                true => (i128::from(m.len_bytes), 0),
                false => (m.mtime.seconds.into(), m.mtime.nanoseconds),
            });
            std::cmp::Reverse(key)
        });
        if self.args.reverse {
            list.reverse();
        }
        for (entry, metadata) in list {
            self.child(entry, metadata, below)?;
        }
        Ok(())
    }

    /// The metadata of an entry, where it is shown or sorted by.
    fn metadata_of(&mut self, entry: &DirEntry) -> Result<Option<Metadata>, Failure> {
        check_interrupted()?;
        let args = self.args;
        let sorted = args.by_time || args.by_size;
        if !args.long && !args.json && !sorted && entry.file_type().is_some() {
            return Ok(None);
        }
        match entry.metadata(&mut self.io) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) => {
                self.failures.note(error)?;
                Ok(None)
            }
        }
    }

    fn child(
        &mut self,
        entry: DirEntry,
        metadata: Option<Metadata>,
        below: &mut Below,
    ) -> Result<(), Failure> {
        let file_type = metadata.map(|m| m.file_type()).or(entry.file_type());
        self.entry(
            TreeNode::Entry(&entry),
            entry.file_name().as_bytes(),
            metadata,
            file_type,
        )?;
        if self.args.recursive && file_type == Some(FileType::Directory) {
            match below.names.add(&entry) {
                Ok(()) => below.entries.push(entry),
                Err(failure) => self.failures.note(failure)?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        node: TreeNode<'_>,
        name: &[u8],
        metadata: Option<Metadata>,
        file_type: Option<FileType>,
    ) -> Result<(), Failure> {
        let is_link = metadata.is_some_and(|m| m.is_symlink());
        let link = if is_link && (self.args.long || self.args.json) {
            match node.read_link(self.volume, &mut self.io) {
                Ok(link) => Some(link),
                Err(error) => {
                    self.failures.note(error)?;
                    None
                }
            }
        } else {
            None
        };
        if self.args.json {
            return self.json_entry(name, &node.path(), metadata, link.as_deref());
        }
        if self.args.inode {
            let ino = match node {
                TreeNode::Entry(entry) => Some(entry.ino()),
                TreeNode::Path(_) => metadata.map(|m| m.ino),
            };
            write!(self.out, "{:>10} ", ino.unwrap_or(0))?;
        }
        if self.args.long {
            match &metadata {
                Some(metadata) => self.long_columns(metadata)?,
                None => {
                    let letter = file_type.map_or('?', FileType::letter);
                    write!(
                        self.out,
                        "{letter}?????????   ?      ?      ?            ? {:16} ",
                        "?"
                    )?;
                }
            }
        }
        let printed = self.names.print(name);
        self.out.write_all(&printed)?;
        if let Some(link) = link {
            self.out.write_all(b" -> ")?;
            let printed = self.names.print(&link);
            self.out.write_all(&printed)?;
        }
        self.out.write_all(b"\n")?;
        Ok(())
    }

    fn long_columns(&mut self, metadata: &Metadata) -> Result<(), Failure> {
        let size = match metadata.file_type() {
            FileType::BlockDevice | FileType::CharDevice => {
                let (major, minor) = device_numbers(metadata.rdev);
                format!("{major}, {minor}")
            }
            _ if self.args.human_readable => human_size(metadata.len_bytes),
            _ => metadata.len_bytes.to_string(),
        };
        let has_acl = match self.volume.has_access_acl(&mut self.io, metadata) {
            Ok(has_acl) => has_acl,
            Err(error) => {
                self.failures.note(error)?;
                false
            }
        };
        write!(
            self.out,
            "{}{}{:>3} {:>6} {:>6} {size:>12} {} ",
            mode_text(metadata),
            match (has_acl, metadata.nlink) {
                (false, _) => " ",
                (true, ..100) => "+",
                (true, _) => "+ ",
            },
            metadata.nlink,
            metadata.uid,
            metadata.gid,
            short_time(metadata.mtime)
        )?;
        Ok(())
    }

    fn json_entry(
        &mut self,
        name: &[u8],
        path: &[u8],
        metadata: Option<Metadata>,
        link: Option<&[u8]>,
    ) -> Result<(), Failure> {
        let mut object = serde_json::Map::new();
        put_name(&mut object, "name", name);
        put_name(&mut object, "path", path);
        if let Some(link) = link {
            put_name(&mut object, "target", link);
        }
        if let Some(metadata) = &metadata {
            object.extend(metadata_json(metadata));
        }
        let separator: &[u8] = if self.first_object() { b"\n" } else { b",\n" };
        self.out.write_all(separator)?;
        let mut object = Value::Object(object);
        put_version(&mut object);
        let text = object.to_string();
        self.out.write_all(terminal::json(&text).as_bytes())?;
        Ok(())
    }

    fn first_object(&mut self) -> bool {
        !std::mem::replace(&mut self.printed, true)
    }
}

//! `xtent stat`.

use std::io::Write;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use serde_json::Value;
use xtent::volume::{CacheStats, FileType, Io, Metadata, OpenOptions, Volume};

use super::failure::{Failure, Failures, check_interrupted};
use super::output::{
    NameStyle, device_numbers, long_time, metadata_json, mode_text, put_name, type_word,
};
use super::{TargetArg, VolumePath, cache_table};

#[derive(Debug, Args)]
pub(super) struct StatArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The files; a symbolic link is shown itself
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<VolumePath>,
    /// Follows a symbolic link in the last place
    #[arg(short = 'L', long)]
    dereference: bool,
    /// Reads each ordinary file once through a page cache, and shows how that fared: hits, misses,
    /// read-ahead
    #[arg(long)]
    cache: bool,
    /// Prints JSON: an array with one object a file
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatArgs) -> Result<(), Failure> {
    let volume = args.target.open_to_read()?;
    let mut io = volume.io()?;
    let mut failures = Failures::default();
    let mut objects = Vec::new();
    let mut out = super::output::text_stdout()?;
    for path in &args.paths {
        match look(args, &volume, &mut io, path) {
            Ok((metadata, _)) if args.cache && metadata.is_file() => {
                match through_the_cache(args, path) {
                    Ok(stats) if args.json => {
                        let mut object = serde_json::Map::new();
                        put_name(&mut object, "path", path.as_encoded_bytes());
                        object.extend(metadata_json(&metadata));
                        object.insert("cache".into(), cache_table::json(stats.as_ref()));
                        objects.push(Value::Object(object));
                    }
                    Ok(stats) => {
                        print(&mut out, path, &metadata, None)?;
                        if let Some(stats) = stats {
                            cache_table::print(&mut out, &stats)?;
                        }
                    }
                    Err(failure) => failures.note(failure)?,
                }
            }
            Ok((metadata, link)) if args.json => {
                let mut object = serde_json::Map::new();
                put_name(&mut object, "path", path.as_encoded_bytes());
                if let Some(link) = link {
                    put_name(&mut object, "target", &link);
                }
                object.extend(metadata_json(&metadata));
                objects.push(Value::Object(object));
            }
            Ok((metadata, link)) => print(&mut out, path, &metadata, link.as_deref())?,
            Err(failure) => failures.note(failure)?,
        }
    }
    if args.json {
        super::output::print_json(&Value::Array(objects))?;
    }
    out.flush()?;
    failures.result()
}

fn look(
    args: &StatArgs,
    volume: &Volume,
    io: &mut Io,
    path: &VolumePath,
) -> Result<(Metadata, Option<Vec<u8>>), Failure> {
    let metadata = if args.dereference {
        volume.metadata(io, path)?
    } else {
        volume.symlink_metadata(io, path)?
    };
    let link = if metadata.is_symlink() {
        Some(volume.read_link(io, path)?.into_os_string().into_vec())
    } else {
        None
    };
    Ok((metadata, link))
}

/// Reads a file once, in pieces of 128 KiB, through a cache that has seen nothing before.
fn through_the_cache(args: &StatArgs, path: &VolumePath) -> Result<Option<CacheStats>, Failure> {
    let volume = args.target.open_to_read()?;
    let mut io = volume.io()?;
    let options = OpenOptions::new().read(true).buffered(true);
    let file = options.open(&volume, &mut io, path)?;
    let mut piece = vec![0; 128 << 10];
    let mut offset = 0;
    loop {
        check_interrupted()?;
        match file.read_at(&mut io, &mut piece, offset)? {
            0 => return Ok(io.cache_stats()),
            n => offset += n as u64,
        }
    }
}

fn print(
    out: &mut impl Write,
    path: &VolumePath,
    metadata: &Metadata,
    link: Option<&[u8]>,
) -> std::io::Result<()> {
    let names = NameStyle::for_stdout();
    out.write_all(b"  File: ")?;
    out.write_all(&names.print(path.as_encoded_bytes()))?;
    if let Some(link) = link {
        out.write_all(b" -> ")?;
        out.write_all(&names.print(link))?;
    }
    let kind = match (metadata.file_type(), metadata.len_bytes) {
        (FileType::Regular, 0) => "regular empty file",
        (file_type, _) => type_word(file_type),
    };
    writeln!(
        out,
        "\n  Size: {:<15} Blocks: {:<10} IO Block: {:<6} {kind}",
        metadata.len_bytes, metadata.blocks_512, metadata.block_bytes
    )?;
    write!(
        out,
        " Inode: {:<15} Links: {:<11}",
        metadata.ino, metadata.nlink
    )?;
    if matches!(
        metadata.file_type(),
        FileType::BlockDevice | FileType::CharDevice
    ) {
        let (major, minor) = device_numbers(metadata.rdev);
        write!(out, " Device type: {major},{minor}")?;
    }
    writeln!(
        out,
        "\nAccess: ({:04o}/{})  Uid: {:<8} Gid: {:<8} Project: {}",
        metadata.permissions(),
        mode_text(metadata),
        metadata.uid,
        metadata.gid,
        metadata.project
    )?;
    writeln!(out, "Access: {}", long_time(metadata.atime))?;
    writeln!(out, "Modify: {}", long_time(metadata.mtime))?;
    writeln!(out, "Change: {}", long_time(metadata.ctime))?;
    writeln!(out, " Birth: {}", long_time(metadata.btime))
}

//! `xtent find`.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::time::SystemTime;

use clap::Args;
use serde_json::Value;
use xtent::volume::{Io, Timestamp, Volume};

use super::TargetArg;
use super::failure::Failure;
use super::find_expr::{Candidate, Expression};
use super::output::{NameStyle, metadata_json, put_name};
use super::walk::{Go, TreeWalk, WalkEntry};

#[derive(Debug, Args)]
#[command(
    after_help = "Tests, all of which a file must pass (-not or ! before one turns it round):
  -name PATTERN, -iname PATTERN    the name; * ? [a-z] as in the shell
  -path PATTERN, -ipath PATTERN    the whole path
  -type f,d,l,b,c,p,s              the type
  -size [+-]N[cwbkMG]              the length, in units that are rounded up [unit: 512 bytes]
  -mtime [+-]DAYS, -mmin [+-]N     the age of the content; -newer PATH: changed after that file of the volume
  -perm MODE, -MODE, /MODE         exactly these permission bits (octal), all of them, any of them
  -inum N -links N -uid N -gid N   as find has them
  -empty                           a file without content, a directory without entries
and -maxdepth N, -mindepth N, -print0. Other words of find are rejected.

Example: xtent find disk.img /var/log -name '*.log' -size +1M"
)]
pub(super) struct FindArgs {
    /// Print JSON: an array with one object for each file (to be given before TARGET)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArg,
    /// Where to begin [default: /], and what to find
    #[arg(
        value_name = "PATH... EXPRESSION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<OsString>,
}

pub(super) fn run(args: &FindArgs) -> Result<(), Failure> {
    let is_expression = |word: &OsString| {
        let bytes = word.as_encoded_bytes();
        bytes.starts_with(b"-") || bytes == b"!" || bytes == b"("
    };
    let paths = args
        .words
        .iter()
        .take_while(|word| !is_expression(word))
        .count();
    let (paths, words) = args.words.split_at(paths);
    let expression = Expression::parse(words)?;
    let volume = args.target.open_to_read()?;
    let mut walk = TreeWalk::new(&volume)?;
    let newer = expression.newer();
    let newer: Vec<_> = newer
        .iter()
        .map(|path| Ok(volume.metadata(&mut walk.io, path)?.mtime))
        .collect::<Result<_, Failure>>()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let root = [OsString::from("/")];
    let paths = if paths.is_empty() { &root[..] } else { paths };
    let mut out = BufWriter::new(super::output::raw_stdout()?);
    let names = NameStyle::for_stdout();
    let end: &[u8] = if expression.print0 { b"\0" } else { b"\n" };
    let mut objects = Vec::new();
    for path in paths {
        walk.tree(path.as_encoded_bytes(), &mut |io, failures, file| {
            if file.after {
                return Ok(Go::On);
            }
            let tested = file.depth >= expression.min_depth;
            let found = tested.then(|| fits(&expression, &volume, io, file, (&newer, now)));
            // As find does: a file that cannot be tested does not pass, and the search goes on.
            if failures.value_of(found.transpose())?.flatten() == Some(true) {
                let path = file.node.path();
                if args.json {
                    let mut object = serde_json::Map::new();
                    put_name(&mut object, "path", &path);
                    object.extend(metadata_json(file.metadata));
                    objects.push(Value::Object(object));
                } else {
                    let path = match expression.print0 {
                        true => path.into_owned(),
                        false => names.print(&path),
                    };
                    out.write_all(&path)?;
                    out.write_all(end)?;
                }
            }
            let deeper = expression.max_depth.is_none_or(|most| file.depth < most);
            Ok(if deeper { Go::Down } else { Go::On })
        })?;
    }
    if args.json {
        super::output::print_json(&Value::Array(objects))?;
    }
    out.flush()?;
    walk.failures.result()
}

fn fits(
    expression: &Expression,
    volume: &Volume,
    io: &mut Io,
    file: &WalkEntry<'_>,
    (newer, now): (&[Timestamp], i64),
) -> xtent::Result<bool> {
    let path = file.node.path();
    let name = match file.depth {
        // Of the start: the last component of its path.
        0 => file
            .name
            .rsplit(|byte| *byte == b'/')
            .find(|name| !name.is_empty()),
        _ => Some(file.name),
    };
    let candidate = Candidate {
        name: name.unwrap_or(b"/"),
        path: &path,
        metadata: file.metadata,
        now,
    };
    expression.fits(&candidate, newer, || {
        if file.metadata.is_file() {
            return Ok(file.metadata.len_bytes == 0);
        }
        if !file.metadata.is_dir() {
            return Ok(false);
        }
        let mut dir = file.node.read_dir(volume, io)?;
        Ok(dir.next_entry(io)?.is_none())
    })
}

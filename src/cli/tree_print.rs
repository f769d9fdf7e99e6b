//! `xtent tree`.

use std::io::{BufWriter, Write};

use clap::Args;

use super::failure::Failure;
use super::output::{NameStyle, human_size};
use super::walk::{Go, TreeWalk};
use super::{TargetArg, VolumePath};

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct TreeArgs {
    #[command(flatten)]
    target: TargetArg,
    /// Where to begin [default: /]
    #[arg(value_name = "PATH")]
    path: Option<VolumePath>,
    /// Show names that begin with a dot
    #[arg(short)]
    all: bool,
    /// Show directories only
    #[arg(short)]
    directories: bool,
    /// Show at most so many levels
    #[arg(short = 'L', value_name = "LEVELS", value_parser = clap::value_parser!(u32).range(1..))]
    levels: Option<u32>,
    /// Print the size of each file, in bytes
    #[arg(short)]
    size: bool,
    /// Print the size of each file with a unit
    #[arg(short)]
    human_readable: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// The lines from the directories above to an entry.
fn write_lines(out: &mut impl Write, follows: &[bool], last: bool) -> std::io::Result<()> {
    for more in follows {
        out.write_all(if *more { "│   " } else { "    " }.as_bytes())?;
    }
    out.write_all(if last { "└── " } else { "├── " }.as_bytes())
}

pub(super) fn run(args: &TreeArgs) -> Result<(), Failure> {
    let volume = args.target.open_to_read()?;
    let mut walk = TreeWalk {
        sorted: true,
        hidden: args.all,
        directories: args.directories,
        ..TreeWalk::new(&volume)?
    };
    let mut out = BufWriter::new(super::output::raw_stdout()?);
    let names = NameStyle::for_stdout();
    let levels = args.levels.map_or(usize::MAX, |levels| levels as usize);
    let (mut directories, mut files) = (0_u64, 0_u64);
    // Whether something follows in each of the directories above.
    let mut follows: Vec<bool> = Vec::new();
    let start = args.path.clone().unwrap_or_else(|| "/".into());
    walk.tree(start.as_encoded_bytes(), &mut |io, failures, file| {
        if file.after {
            return Ok(Go::On);
        }
        let is_dir = file.metadata.is_dir();
        if file.depth > 0 {
            match is_dir {
                true => directories += 1,
                false if args.directories => return Ok(Go::On),
                false => files += 1,
            }
        }
        // Before the line begins: it is whole also when this fails.
        let target = match file.metadata.is_symlink() {
            true => failures.value_of(file.node.read_link(&volume, io))?,
            false => None,
        };
        if file.depth > 0 {
            follows.truncate(file.depth - 1);
            write_lines(&mut out, &follows, file.last)?;
            follows.push(!file.last);
        }
        if args.human_readable {
            write!(out, "[{:>5}]  ", human_size(file.metadata.len_bytes))?;
        } else if args.size {
            write!(out, "[{:>11}]  ", file.metadata.len_bytes)?;
        }
        out.write_all(&names.print(file.name))?;
        if let Some(target) = target {
            out.write_all(b" -> ")?;
            out.write_all(&names.print(&target))?;
        }
        out.write_all(b"\n")?;
        Ok(if file.depth < levels {
            Go::Down
        } else {
            Go::On
        })
    })?;
    let plural = |count: u64, one: &'static str, many: &'static str| {
        format!("{count} {}", if count == 1 { one } else { many })
    };
    let summary = plural(directories, "directory", "directories");
    match args.directories {
        true => writeln!(out, "\n{summary}")?,
        false => writeln!(out, "\n{summary}, {}", plural(files, "file", "files"))?,
    }
    out.flush()?;
    walk.failures.result()
}

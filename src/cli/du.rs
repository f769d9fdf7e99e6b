//! `xtent du`.

use std::collections::HashSet;
use std::io::{BufWriter, Write};

use clap::Args;
use serde_json::Value;
use xtent::volume::Metadata;

use super::failure::Failure;
use super::output::{NameStyle, RawOut, human_size, put_name};
use super::walk::{Go, TreeWalk, WalkEntry};
use super::{TargetArg, VolumePath};

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Sizes are in KiB, as du prints them: the space in use, with --apparent-size the lengths. A file \
    with several names counts once, under the first of them."
)]
pub(super) struct DuArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The files and directories [default: /]
    #[arg(value_name = "PATH")]
    paths: Vec<VolumePath>,
    /// Show only a total for each PATH
    #[arg(short, long, conflicts_with_all = ["all", "max_depth"])]
    summarize: bool,
    /// Show files, not only directories
    #[arg(short, long)]
    all: bool,
    /// Print sizes with a unit: 1.5G
    #[arg(short, long)]
    human_readable: bool,
    /// Print the lengths of files, not the space that they use
    #[arg(long)]
    apparent_size: bool,
    /// Print bytes; with --apparent-size, as du -b
    #[arg(long)]
    bytes: bool,
    /// Show a grand total
    #[arg(short = 'c', long)]
    total: bool,
    /// Show at most this many levels below a PATH
    #[arg(short = 'd', long, value_name = "N")]
    max_depth: Option<usize>,
    /// Print JSON: an array with one object for each line
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

struct Report<'a> {
    args: &'a DuArgs,
    out: BufWriter<RawOut>,
    names: NameStyle,
    objects: Vec<Value>,
    /// Files with several names that were counted.
    counted: HashSet<u64>,
    /// Of the directories from the start of the walk down to here.
    sums: Vec<u64>,
    total: u64,
}

pub(super) fn run(args: &DuArgs) -> Result<(), Failure> {
    let volume = args.target.open_to_read()?;
    let mut walk = TreeWalk::new(&volume)?;
    let mut report = Report {
        args,
        out: BufWriter::new(super::output::raw_stdout()?),
        names: NameStyle::for_stdout(),
        objects: Vec::new(),
        counted: HashSet::new(),
        sums: Vec::new(),
        total: 0,
    };
    let root = [VolumePath::from("/")];
    let paths = if args.paths.is_empty() {
        &root[..]
    } else {
        &args.paths
    };
    for path in paths {
        walk.tree(path.as_encoded_bytes(), &mut |_, _, file| {
            report.visit(file)
        })?;
    }
    if args.total {
        let total = report.total;
        report.line(b"total", total)?;
    }
    if args.json {
        super::output::print_json(&Value::Array(report.objects))?;
    }
    report.out.flush()?;
    walk.failures.result()
}

impl Report<'_> {
    fn visit(&mut self, file: &WalkEntry<'_>) -> Result<Go, Failure> {
        let is_dir = file.metadata.is_dir();
        if file.after {
            let sum = self.sums.pop().unwrap_or(0);
            self.add(sum);
            if self.is_shown(file, true) {
                self.line(&file.node.path(), sum)?;
            }
            return Ok(Go::On);
        }
        // A directory that can be reached from two of the paths counts once, too.
        let linked = file.metadata.nlink > 1 || is_dir;
        if linked && !self.counted.insert(file.metadata.ino) {
            return Ok(Go::On);
        }
        let bytes = self.bytes_of(file.metadata);
        if is_dir {
            self.sums.push(bytes);
            return Ok(Go::Down);
        }
        self.add(bytes);
        if self.is_shown(file, false) {
            self.line(&file.node.path(), bytes)?;
        }
        Ok(Go::On)
    }

    fn add(&mut self, bytes: u64) {
        let sum = self.sums.last_mut().unwrap_or(&mut self.total);
        *sum = sum.saturating_add(bytes);
    }

    fn is_shown(&self, file: &WalkEntry<'_>, is_dir: bool) -> bool {
        let most = match self.args.summarize {
            true => 0,
            false => self.args.max_depth.unwrap_or(usize::MAX),
        };
        file.depth <= most && (is_dir || self.args.all || file.depth == 0)
    }

    fn bytes_of(&self, metadata: &Metadata) -> u64 {
        match self.args.apparent_size {
            true => metadata.len_bytes,
            false => metadata.blocks_512.saturating_mul(512),
        }
    }

    fn line(&mut self, path: &[u8], bytes: u64) -> Result<(), Failure> {
        if self.args.json {
            let mut object = serde_json::Map::new();
            put_name(&mut object, "path", path);
            object.insert("bytes".into(), bytes.into());
            self.objects.push(Value::Object(object));
            return Ok(());
        }
        let size = if self.args.human_readable {
            human_size(bytes)
        } else if self.args.bytes {
            bytes.to_string()
        } else {
            bytes.div_ceil(1024).to_string()
        };
        write!(self.out, "{size}\t")?;
        self.out.write_all(&self.names.print(path))?;
        Ok(self.out.write_all(b"\n")?)
    }
}

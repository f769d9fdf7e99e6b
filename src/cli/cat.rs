//! `xtent cat`.

use std::io::{Read, Write};

use clap::Args;
use xtent::volume::{Io, MountOptions, OpenOptions, Volume};

use super::failure::{Failure, Failures, check_interrupted};
use super::{TargetArg, VolumePath, cache_table};

#[derive(Debug, Args)]
pub(super) struct CatArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The files, written one after the other
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<VolumePath>,
    /// Through the page cache instead of direct I/O
    #[arg(long)]
    buffered: bool,
    /// Shows at the end, on standard error, how the page cache fared
    #[arg(long, requires = "buffered")]
    cache_stats: bool,
}

pub(super) fn run(args: &CatArgs) -> Result<(), Failure> {
    let volume = args.target.open(&super::reading(), &MountOptions::new())?;
    let mut io = volume.io()?;
    let mut out = super::output::raw_stdout()?;
    let mut chunk = vec![0; 1 << 20];
    let mut failures = Failures::default();
    for path in &args.paths {
        let done = if args.buffered {
            one_buffered(&volume, &mut io, path, &mut chunk, &mut out)
        } else {
            one(&volume, &mut io, path, &mut chunk, &mut out)
        };
        if let Err(failure) = done {
            failures.note(failure)?;
        }
    }
    if let Some(stats) = io.cache_stats().filter(|_| args.cache_stats) {
        out.flush()?;
        cache_table::print(&mut std::io::stderr(), &stats)?;
    }
    failures.result()
}

/// Writes a file out.
pub(super) fn one(
    volume: &Volume,
    io: &mut Io,
    path: &VolumePath,
    chunk: &mut [u8],
    out: &mut impl Write,
) -> Result<(), Failure> {
    let file = volume.open_file(io, path)?;
    let mut reader = file.reader(io)?;
    pour(chunk, out, |chunk| Ok(reader.read(chunk)?))
}

fn one_buffered(
    volume: &Volume,
    io: &mut Io,
    path: &VolumePath,
    chunk: &mut [u8],
    out: &mut impl Write,
) -> Result<(), Failure> {
    let options = OpenOptions::new().read(true).buffered(true);
    let file = options.open(volume, io, path)?;
    let mut offset = 0;
    pour(chunk, out, |chunk| {
        let n = file.read_at(io, chunk, offset)?;
        offset += n as u64;
        Ok(n)
    })
}

/// Writes the bytes read, until the end of the file.
fn pour(
    chunk: &mut [u8],
    out: &mut impl Write,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Failure>,
) -> Result<(), Failure> {
    loop {
        check_interrupted()?;
        let n = read(chunk)?;
        if n == 0 {
            return Ok(());
        }
        out.write_all(&chunk[..n])?;
    }
}

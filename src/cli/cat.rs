//! `xtent cat`.

use std::io::{Read, Write};

use clap::Args;
use xtent::volume::{Io, Volume};

use super::failure::{Failure, Failures, check_interrupted};
use super::{TargetArg, VolumePath};

#[derive(Debug, Args)]
pub(super) struct CatArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The files, written one after the other
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<VolumePath>,
}

pub(super) fn run(args: &CatArgs) -> Result<(), Failure> {
    let volume = args.target.open(&super::reading())?;
    let mut io = volume.io()?;
    let mut out = super::output::raw_stdout()?;
    let mut chunk = vec![0; 1 << 20];
    let mut failures = Failures::default();
    for path in &args.paths {
        if let Err(failure) = one(&volume, &mut io, path, &mut chunk, &mut out) {
            failures.note(failure)?;
        }
    }
    failures.result()
}

fn one(
    volume: &Volume,
    io: &mut Io,
    path: &VolumePath,
    chunk: &mut [u8],
    out: &mut impl Write,
) -> Result<(), Failure> {
    let file = volume.open_file(io, path)?;
    let mut reader = file.reader(io)?;
    loop {
        check_interrupted()?;
        let n = reader.read(chunk)?;
        if n == 0 {
            return Ok(());
        }
        out.write_all(&chunk[..n])?;
    }
}

//! `xtent fallocate`.

use clap::Args;
use xtent::volume::OpenOptions;

use super::changing::with_volume;
use super::failure::Failure;
use super::{TargetArg, VolumePath};

#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("mode").args(["punch_hole", "zero_range", "collapse_range", "insert_range"]),
    after_help = "OFFSET and LENGTH are numbers of bytes, with K, M, G, ... for powers of 1024 or KB, MB, ... for powers \
    of 1000. Without a mode the holes of the range are allocated. The file must exist. The change is durable when \
    xtent ends.\n\n\
    Examples: xtent fallocate -l 1G disk.img /data/file\n          \
    xtent fallocate -p -o 4K -l 64K disk.img /data/file"
)]
pub(super) struct FallocateArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The file in the volume
    #[arg(value_name = "PATH")]
    path: VolumePath,
    /// The first byte of the range
    #[arg(short = 'o', long, value_name = "OFFSET", default_value = "0", value_parser = super::sizes::bytes)]
    offset: u64,
    /// The length of the range
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = super::sizes::bytes)]
    length: u64,
    /// Keep the length of the file, also where the range ends behind it
    #[arg(short = 'n', long, conflicts_with_all = ["collapse_range", "insert_range"])]
    keep_size: bool,
    /// Free the blocks of the range: a hole
    #[arg(short = 'p', long)]
    punch_hole: bool,
    /// Make the range read as zeroes, with blocks for all of it
    #[arg(short = 'z', long)]
    zero_range: bool,
    /// Remove the range from the file
    #[arg(short = 'c', long)]
    collapse_range: bool,
    /// Make a hole of the range, which moves the data behind it
    #[arg(short = 'i', long)]
    insert_range: bool,
}

pub(super) fn run(args: &FallocateArgs) -> Result<(), Failure> {
    let range = args.offset..args.offset.saturating_add(args.length);
    with_volume(&args.target, |volume| {
        let mut io = volume.io()?;
        let io = &mut io;
        let file = OpenOptions::new()
            .write(true)
            .open(volume, io, &args.path)?;
        if args.punch_hole {
            file.punch_hole(io, range)?;
        } else if args.zero_range {
            file.zero_range(io, range, args.keep_size)?;
        } else if args.collapse_range {
            file.collapse_range(io, range)?;
        } else if args.insert_range {
            file.insert_range(io, range)?;
        } else {
            file.allocate(io, range, args.keep_size)?;
        }
        Ok(())
    })
}

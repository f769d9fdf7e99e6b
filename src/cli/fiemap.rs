//! `xtent fiemap`.

use std::io::Write;

use clap::Args;
use serde_json::json;
use xtent::volume::{FiemapExtent, FiemapFlags};

use super::failure::Failure;
use super::output::{NameStyle, put_name};
use super::values::size;
use super::{TargetArg, VolumePath};

#[derive(Debug, Args)]
#[command(
    after_help = "Offsets and lengths are in filesystem blocks, as filefrag -v prints them; with \
    --bytes, and in JSON, in bytes. Physical places are on the device."
)]
pub(super) struct FiemapArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The file
    #[arg(value_name = "PATH")]
    path: VolumePath,
    /// The first byte of the range
    #[arg(long, default_value = "0", value_parser = size)]
    offset: u64,
    /// The length of the range [default: all, also beyond the end of the file]
    #[arg(long, value_parser = size)]
    length: Option<u64>,
    /// Prints bytes instead of blocks
    #[arg(long)]
    bytes: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &FiemapArgs) -> Result<(), Failure> {
    let volume = args.target.open_to_read()?;
    let mut io = volume.io()?;
    let file = volume.open_file(&mut io, &args.path)?;
    let extents = file.fiemap(&mut io, args.offset, args.length.unwrap_or(u64::MAX))?;
    let block_bytes = u64::from(volume.info().filesystem.block_bytes.max(1));
    let mut out = std::io::BufWriter::new(super::output::raw_stdout()?);
    if args.json {
        let mut object = serde_json::Map::new();
        put_name(&mut object, "path", args.path.as_encoded_bytes());
        object.insert("size".into(), file.len().into());
        object.insert("block_size".into(), block_bytes.into());
        let list: Vec<_> = extents
            .iter()
            .map(|e| {
                json!({
                    "logical": e.logical_bytes,
                    "physical": e.physical_bytes,
                    "length": e.length_bytes,
                    "flags": e.flags.bits(),
                    "flag_names": flag_names(e.flags),
                })
            })
            .collect();
        object.insert("extents".into(), list.into());
        return Ok(super::output::print_json(&object.into())?);
    }
    let unit = if args.bytes { 1 } else { block_bytes };
    let name = NameStyle::for_stdout().print(args.path.as_encoded_bytes());
    out.write_all(b"File size of ")?;
    out.write_all(&name)?;
    let blocks = file.len().div_ceil(block_bytes);
    writeln!(
        out,
        " is {} ({blocks} blocks of {block_bytes} bytes)",
        file.len()
    )?;
    print(&mut out, &extents, unit)?;
    out.write_all(&name)?;
    let count = extents.len();
    writeln!(
        out,
        ": {count} extent{} found",
        if count == 1 { "" } else { "s" }
    )?;
    out.flush()?;
    Ok(())
}

fn print(out: &mut impl Write, extents: &[FiemapExtent], unit: u64) -> std::io::Result<()> {
    let last = |start: u64, len: u64| (start + len.max(1)).saturating_sub(1);
    let largest = extents
        .iter()
        .map(|e| {
            let logical = e.logical_bytes.saturating_add(e.length_bytes);
            logical.max(e.physical_bytes.saturating_add(e.length_bytes)) / unit
        })
        .max();
    let w = largest.unwrap_or(0).to_string().len().max(7);
    let span = 2 * w + 3;
    let (logical, physical) = ("logical_offset", "physical_offset");
    writeln!(
        out,
        " ext: {logical:>span$} {physical:>span$} {:>w$} flags:",
        "length:"
    )?;
    for (index, extent) in extents.iter().enumerate() {
        let [logical, physical, length] = [
            extent.logical_bytes,
            extent.physical_bytes,
            extent.length_bytes,
        ]
        .map(|b| b / unit);
        writeln!(
            out,
            "{index:>4}: {logical:>w$}..{:>w$}: {physical:>w$}..{:>w$}: {length:>w$} {}",
            last(logical, length),
            last(physical, length),
            flag_names(extent.flags).join(",")
        )?;
    }
    Ok(())
}

fn flag_names(flags: FiemapFlags) -> Vec<String> {
    flags
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect()
}

//! `xtent info`.

use std::io::Write;

use clap::Args;
use serde_json::json;
use xtent::volume::{ControllerMode, FilesystemInfo, Target, TargetInfo, Volume, VolumeOptions};

use super::TargetArg;
use super::failure::Failure;
use super::output::size_text;

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    target: TargetArg,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let options = VolumeOptions {
        controller: ControllerMode::Inline,
        ..super::reading()
    };
    args.target.check()?;
    let target = Target::open(&args.target.target, &options).map_err(Failure::target)?;
    let target_info = target.info().clone();
    // What can be said of the controller is said even when the filesystem cannot be opened.
    let volume = Volume::on(target, &options).map_err(Failure::target);
    let filesystem = volume.as_ref().ok().map(|volume| volume.info().filesystem);
    let mut out = std::io::stdout().lock();
    if args.json {
        let error = volume.as_ref().err().and_then(Failure::text);
        let mut value = json!({
            "target": target_info,
            "filesystem": filesystem,
            "filesystem_error": error,
        });
        // It says how `info` opened it, which is of no interest.
        if let Some(target) = value["target"].as_object_mut() {
            target.remove("read_only");
        }
        writeln!(out, "{value:#}")?;
    } else {
        print_target(&mut out, &target_info)?;
        if let Some(filesystem) = &filesystem {
            print_filesystem(&mut out, filesystem)?;
        }
    }
    out.flush()?;
    volume.map(drop)
}

fn print_target(out: &mut impl Write, info: &TargetInfo) -> std::io::Result<()> {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let transfer = info
        .max_transfer_bytes
        .map_or("no limit".into(), |bytes| size_text(u64::from(bytes)));
    let boundary = match info.boundary_blocks {
        0 => "none".into(),
        blocks => format!("every {blocks} blocks"),
    };
    writeln!(out, "target      {}", info.target)?;
    writeln!(out, "  behind it {}", info.engine)?;
    writeln!(out, "  memory    {}", info.memory)?;
    writeln!(
        out,
        "controller  {} serial {} firmware {}",
        info.model, info.serial, info.firmware
    )?;
    writeln!(out, "  NVMe      {}", info.nvme_version)?;
    writeln!(out, "  transfer  {transfer}")?;
    writeln!(
        out,
        "  queues    {} pairs, {} operations each, waited for by {}",
        info.max_queue_pairs,
        info.queue_depth,
        super::output::waiting(&info.wait)
    )?;
    writeln!(
        out,
        "  volatile write cache  {}",
        yes_no(info.volatile_write_cache)
    )?;
    writeln!(
        out,
        "namespace   {}: {} ({} bytes), LBA of {} bytes, boundaries {boundary}",
        info.nsid,
        size_text(info.capacity_bytes),
        info.capacity_bytes,
        info.lba_bytes,
    )
}

fn print_filesystem(out: &mut impl Write, info: &FilesystemInfo) -> std::io::Result<()> {
    let block = u64::from(info.block_bytes);
    let label = if info.label.is_empty() {
        "none"
    } else {
        &info.label
    };
    writeln!(
        out,
        "filesystem  {} uuid {} label {label}",
        info.kind, info.uuid
    )?;
    writeln!(
        out,
        "  blocks    {} of {} bytes ({}), {} free ({})",
        info.blocks,
        info.block_bytes,
        size_text(info.blocks.saturating_mul(block)),
        info.free_blocks,
        size_text(info.free_blocks.saturating_mul(block))
    )?;
    writeln!(
        out,
        "  groups    {} of {} blocks; sectors of {} bytes, directory blocks of {} bytes",
        info.ag_count, info.ag_blocks, info.sector_bytes, info.dir_block_bytes
    )?;
    writeln!(
        out,
        "  inodes    {} of {} bytes, {} free; log of {} blocks",
        info.inodes, info.inode_bytes, info.free_inodes, info.log_blocks
    )?;
    writeln!(out, "  features  {}", info.features.join(" "))?;
    if info.log_dirty {
        writeln!(out, "  log       holds changes that were not replayed")?;
    }
    match &info.read_only_reason {
        // `info` itself opens read-only; a reason of the filesystem's own is worth a line.
        Some(reason) if reason != "the target is read-only" => {
            writeln!(out, "  read-only {reason}")
        }
        _ => Ok(()),
    }
}

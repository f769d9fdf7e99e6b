//! `xtent df`.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::TargetArg;
use super::failure::Failure;
use super::output::human_size;

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Sizes are in KiB, as df prints them. The log does not count as space. What a mounted filesystem \
    reserves for its own metadata counts as available here, and as used for the kernel's df."
)]
pub(super) struct DfArgs {
    #[command(flatten)]
    target: TargetArg,
    /// Print sizes with a unit: 1.5G
    #[arg(short, long)]
    human_readable: bool,
    /// Show inodes instead of blocks
    #[arg(short, long)]
    inodes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

struct DfUsage {
    total: u64,
    used: u64,
    free: u64,
}

impl DfUsage {
    fn of(total: u64, free: u64) -> Self {
        let free = free.min(total);
        Self {
            total,
            used: total - free,
            free,
        }
    }

    /// As df: rounded up.
    fn percent(&self) -> u64 {
        let (used, all) = (u128::from(self.used), u128::from(self.total));
        let percent = (used * 100).div_ceil(all.max(1));
        u64::try_from(percent).unwrap_or(100)
    }
}

pub(super) fn run(args: &DfArgs) -> Result<(), Failure> {
    let volume = args.target.open_to_read()?;
    let info = volume.info();
    let filesystem = &info.filesystem;
    let block = u64::from(filesystem.block_bytes);
    let now = volume.statfs(&mut volume.io()?)?;
    let blocks = DfUsage::of(now.blocks, now.free_blocks);
    let inodes = DfUsage::of(now.inodes, now.free_inodes);
    let mut out = super::output::text_stdout()?;
    if args.json {
        let bytes = |count: u64| count.saturating_mul(block);
        let value = json!({
            "target": info.target.target,
            "type": filesystem.kind,
            "block_bytes": block,
            "size_bytes": bytes(blocks.total),
            "used_bytes": bytes(blocks.used),
            "available_bytes": bytes(blocks.free),
            "used_percent": blocks.percent(),
            "inodes": inodes.total,
            "inodes_used": inodes.used,
            "inodes_free": inodes.free,
            "inodes_used_percent": inodes.percent(),
        });
        return Ok(super::output::print_json(&value)?);
    }
    let (shown, heads) = if args.inodes {
        (&inodes, ["Inodes", "IUsed", "IFree", "IUse%"])
    } else {
        (&blocks, ["1K-blocks", "Used", "Available", "Use%"])
    };
    let heads = match (args.human_readable, args.inodes) {
        (true, false) => ["Size", "Used", "Avail", "Use%"],
        _ => heads,
    };
    let figure = |count: u64| match (args.inodes, args.human_readable) {
        (true, false) => count.to_string(),
        (true, true) => human_size(count),
        (false, true) => human_size(count.saturating_mul(block)),
        (false, false) => (count.saturating_mul(block) / 1024).to_string(),
    };
    let columns = [shown.total, shown.used, shown.free].map(figure);
    let name = crate::bench::terminal::escape(&info.target.target);
    let width = name.chars().count().max("Filesystem".len());
    let percent = format!("{}%", shown.percent());
    writeln!(
        out,
        "{:<width$} {:>10} {:>10} {:>10} {:>5}",
        "Filesystem", heads[0], heads[1], heads[2], heads[3]
    )?;
    writeln!(
        out,
        "{name:<width$} {:>10} {:>10} {:>10} {percent:>5}",
        columns[0], columns[1], columns[2]
    )?;
    Ok(out.flush()?)
}

//! `xtent info`.

use std::io::Write;

use clap::Args;
use serde_json::json;
use xtent::internals::mem::HugePages;
use xtent::internals::probe::PartitionTable;
use xtent::internals::target::{Drive, DriveInfo, NamespaceSummary};
use xtent::internals::target::{TargetKind, TargetSpec};
use xtent::target::{ControllerMode, Target, TargetInfo};
use xtent::volume::{FilesystemInfo, MountOptions, Volume};
use xtent::{Error, ErrorKind};

use super::TargetArg;
use super::failure::{Failure, complain};
use super::output::{celsius, size_text};

/// A look needs no more memory.
const MEMORY_BYTES: usize = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    target: TargetArg,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let options = super::reading()
        .controller(ControllerMode::Inline)
        .huge_pages(HugePages::IfFree)
        .memory_limit_bytes(MEMORY_BYTES);
    args.target.check()?;
    let spec = TargetSpec::parse(&args.target.target)?;
    let (drive, target) = if matches!(spec.kind, TargetKind::Uring(_) | TargetKind::Spdk { .. }) {
        // The kernel has the controller, or SPDK.
        (None, Target::open_spec(&spec, &options))
    } else {
        let drive = Drive::open(&args.target.target, &options).map_err(Failure::target)?;
        let target = drive.target();
        (Some(drive.info()), target)
    };
    let target_info = target.as_ref().ok().map(|target| target.info().clone());
    let table = target.as_ref().map_or(Ok(None), Target::partition_table);
    // What can be said of the controller is said even when the filesystem cannot be opened.
    let volume = target.and_then(|target| Volume::on(target, &MountOptions::new()));
    let volume = volume.map_err(Failure::target);
    let table = table.unwrap_or_else(|error| {
        complain_of_table(&error, volume.as_ref().err().and_then(Failure::text));
        None
    });
    let filesystem = volume.as_ref().ok().map(|volume| volume.info().filesystem);
    let mut out = super::output::text_stdout()?;
    if args.json {
        let error = volume.as_ref().err().and_then(Failure::text);
        let mut value = json!({
            "target": target_info,
            "controller": drive,
            "partition_table": table,
            "filesystem": filesystem,
            "filesystem_error": error,
        });
        // It says how `info` opened it, which is of no interest.
        if let Some(target) = value["target"].as_object_mut() {
            target.remove("read_only");
        }
        super::output::print_json(&value)?;
    } else {
        match (&drive, &target_info) {
            (Some(drive), target) => print_drive(&mut out, drive, target.as_ref())?,
            (None, Some(target)) => print_disk(&mut out, target)?,
            (None, None) => {}
        }
        if let Some(table) = &table {
            let chosen = target_info.as_ref().and_then(|target| target.partition);
            print_partitions(&mut out, table, chosen)?;
        }
        if let Some(filesystem) = &filesystem {
            print_filesystem(&mut out, filesystem)?;
        }
    }
    out.flush()?;
    volume.map(drop)
}

/// Tells why the partition table cannot be read, except where the error of the filesystem does.
/// Remains of a damaged table on a device that is an XFS filesystem mean nothing.
fn complain_of_table(error: &Error, filesystem_error: Option<&str>) {
    let told = filesystem_error.is_some_and(|text| text.contains(error.detail()));
    if !told && error.kind() != ErrorKind::Corrupt {
        complain(&format!("note: {error}"));
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// A disk that the kernel has.
fn print_disk(out: &mut impl Write, info: &TargetInfo) -> std::io::Result<()> {
    writeln!(out, "target      {}", info.target)?;
    writeln!(out, "  behind it {}", info.engine)?;
    writeln!(out, "  memory    {}", info.memory)?;
    writeln!(
        out,
        "disk        {} serial {} firmware {}",
        info.model, info.serial, info.firmware
    )?;
    writeln!(
        out,
        "  size      {} ({} bytes), LBA of {} bytes; volatile write cache {}",
        size_text(info.capacity_bytes),
        info.capacity_bytes,
        info.lba_bytes,
        yes_no(info.volatile_write_cache)
    )
}

fn print_drive(
    out: &mut impl Write,
    info: &DriveInfo,
    target: Option<&TargetInfo>,
) -> std::io::Result<()> {
    writeln!(out, "target      {}", info.target)?;
    writeln!(out, "  behind it {}", info.engine)?;
    let pages = info.huge_pages.map_or(String::new(), |pages| {
        format!(
            "; {} of {} hugepages of 2 MiB are free",
            pages.free, pages.total
        )
    });
    writeln!(out, "  memory    {}{pages}", info.memory)?;
    if let Some(address) = &info.pci_address {
        let or_none = |number: Option<u32>| number.map_or("none".into(), |n| n.to_string());
        writeln!(
            out,
            "  PCI       {address}, NUMA node {}, IOMMU group {}",
            or_none(info.numa_node),
            or_none(info.iommu_group)
        )?;
    }
    print_controller(out, info)?;
    for namespace in &info.namespaces {
        // Thousands are for --json.
        if target.is_some_and(|target| target.nsid != namespace.nsid) {
            continue;
        }
        print_namespace(out, namespace)?;
    }
    let others = info.namespaces.len().saturating_sub(1);
    match target {
        Some(_) if others > 0 => writeln!(out, "  {others} more namespaces: --json has them"),
        _ => Ok(()),
    }
}

fn print_controller(out: &mut impl Write, info: &DriveInfo) -> std::io::Result<()> {
    let transfer = info
        .max_transfer_bytes
        .map_or("no limit".into(), |bytes| size_text(u64::from(bytes)));
    let names = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join(" "),
    };
    writeln!(
        out,
        "controller  {} serial {} firmware {}",
        info.model, info.serial, info.firmware
    )?;
    writeln!(
        out,
        "  NVMe      {}, controller {}, {}",
        info.nvme_version,
        info.controller_id,
        if info.subsystem_nqn.is_empty() {
            "no subsystem name"
        } else {
            &info.subsystem_nqn
        }
    )?;
    writeln!(out, "  transfer  {transfer}")?;
    writeln!(
        out,
        "  queues    {} pairs of at most {} entries; shadow doorbells {}",
        info.max_queue_pairs,
        info.max_queue_entries,
        yes_no(info.shadow_doorbells)
    )?;
    writeln!(
        out,
        "  volatile write cache  {}",
        yes_no(info.volatile_write_cache)
    )?;
    writeln!(out, "  admin commands  {}", names(&info.admin_commands))?;
    writeln!(out, "  NVM commands    {}", names(&info.nvm_commands))?;
    writeln!(out, "  SGL             {}", names(&info.sgl))?;
    let degrees = |kelvins: Option<u16>| match kelvins {
        Some(kelvins) => celsius(kelvins),
        None => "not said".into(),
    };
    writeln!(
        out,
        "  temperature     {}; warns from {}, critical from {}",
        degrees(info.temperature_k),
        degrees(info.warning_temperature_k),
        degrees(info.critical_temperature_k)
    )?;
    writeln!(
        out,
        "  logs            {} error entries, {} firmware slots (see `xtent smart`)",
        info.error_log_entries, info.firmware_slots
    )
}

fn print_namespace(out: &mut impl Write, info: &NamespaceSummary) -> std::io::Result<()> {
    let boundary = match info.boundary_blocks {
        0 => "none".into(),
        blocks => format!("every {blocks} blocks"),
    };
    writeln!(
        out,
        "namespace   {}: {} ({} bytes), LBA of {} bytes, boundaries {boundary}",
        info.nsid,
        size_text(info.size_bytes),
        info.size_bytes,
        info.lba_bytes,
    )?;
    let formats: Vec<_> = info
        .formats
        .iter()
        .enumerate()
        .map(|(index, format)| {
            let mark = if index == info.format { "*" } else { "" };
            format!("{}+{}{mark}", format.lba_bytes, format.metadata_bytes)
        })
        .collect();
    writeln!(
        out,
        "  formats   {} (bytes of data + metadata; * in use)",
        formats.join(" ")
    )?;
    let atomic = &info.atomic;
    let boundary = match atomic.boundary_blocks {
        0 => String::new(),
        blocks => format!(
            ", not across multiples of {blocks} from {}",
            atomic.boundary_offset_blocks
        ),
    };
    writeln!(
        out,
        "  atomic    writes of {} blocks, of {} when the power fails{boundary}",
        atomic.normal_blocks, atomic.power_fail_blocks
    )?;
    let identities = [("NGUID", &info.nguid), ("EUI64", &info.eui64)];
    for (name, value) in identities {
        if let Some(value) = value {
            writeln!(out, "  {name}     {value}")?;
        }
    }
    if info.write_protected {
        writeln!(out, "  write protected")?;
    }
    match &info.unusable {
        Some(why) => writeln!(out, "  cannot be used: {why}"),
        None => Ok(()),
    }
}

fn print_partitions(
    out: &mut impl Write,
    table: &PartitionTable,
    chosen: Option<u32>,
) -> std::io::Result<()> {
    let count = table.partitions.len();
    writeln!(
        out,
        "partitions  {}, sectors of {} bytes, {count} partition{}",
        table.kind_name(),
        table.sector_bytes,
        if count == 1 { "" } else { "s" }
    )?;
    if let Some(damage) = &table.damage {
        writeln!(out, "  warning   {damage}")?;
    }
    for partition in &table.partitions {
        let mark = if chosen == Some(partition.number) {
            "*"
        } else {
            ""
        };
        let content = partition.content.as_deref().unwrap_or("content not known");
        writeln!(
            out,
            "  {:<9} {} from byte {}; {}; {content}{}",
            format!("{}{mark}", partition.number),
            size_text(partition.len_bytes),
            partition.start_bytes,
            partition.kind,
            match &*partition.name {
                "" => String::new(),
                name => format!("; named {}", crate::bench::terminal::escape(name)),
            }
        )?;
    }
    match (chosen, table.partitions.first()) {
        (None, Some(first)) => writeln!(
            out,
            "            open one with the option part={}, or by its name",
            first.number
        ),
        _ => Ok(()),
    }
}

fn print_filesystem(out: &mut impl Write, info: &FilesystemInfo) -> std::io::Result<()> {
    let block = u64::from(info.block_bytes);
    let label = if info.label.is_empty() {
        "none".into()
    } else {
        crate::bench::terminal::escape(&info.label)
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
        writeln!(out, "  log       holds changes")?;
    }
    match &info.read_only_reason {
        // `info` itself opens read-only; a reason of the filesystem's own is worth a line.
        Some(reason) if reason != "the target is read-only" => {
            writeln!(out, "  read-only {reason}")
        }
        _ => Ok(()),
    }
}

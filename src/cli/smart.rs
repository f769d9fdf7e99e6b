//! `xtent smart`: what nvme-cli's smart-log, error-log and fw-log show, for a disk that the kernel
//! does not have.

use std::io::Write;

use clap::Args;
use serde_json::{Map, Value, json};
use xtent::internals::mem::HugePages;
use xtent::internals::nvme::spec::status_name;
use xtent::internals::nvme::{DATA_UNIT_BYTES, critical_warning_names};
use xtent::internals::target::{Drive, DriveInfo, ErrorEntry, FirmwareSlots, SmartInfo};
use xtent::target::ControllerMode;

use super::TargetArg;
use super::failure::{Failure, OPERATION, complain};
use super::output::{celsius, size_text};

#[derive(Debug, Args)]
#[command(
    after_help = "The namespace of a target does not matter here: the logs are the controller's.\n\n\
    --json prints an object with `target`, `model`, `serial`, `firmware`, and `smart` and `errors` with the \
    names of nvme-cli (`nvme smart-log -o json`, `nvme error-log -o json`), and `firmware_slots`. Counters \
    that need more than 64 bits are strings of digits.\n\n\
    Exit status: 0 when the logs could be read, whatever they say; with --check 1 when they hold a critical \
    warning; otherwise as for every command (see `xtent --help`).\n\n\
    Example: xtent smart pci:0000:01:00.0 --errors 16"
)]
pub(super) struct SmartArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The most entries of the error log to show, newest first
    #[arg(long, default_value_t = 8, value_name = "N")]
    errors: usize,
    /// Ends with status 1 when there is a critical warning
    #[arg(long)]
    check: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SmartArgs) -> Result<(), Failure> {
    let options = super::reading()
        .controller(ControllerMode::Inline)
        .huge_pages(HugePages::IfFree)
        .memory_limit_bytes(MEMORY_BYTES);
    args.target.check()?;
    let drive = Drive::open(&args.target.target, &options).map_err(Failure::target)?;
    let smart = drive.smart()?;
    // Not every controller keeps these; a missing one is skipped with a notice.
    let errors = match args.errors {
        0 => None,
        most => left_out("the error log", drive.error_log(most))?,
    };
    let slots = left_out("the firmware slots", drive.firmware_slots())?;
    let info = drive.info();
    for what in smart.implausible() {
        complain(&format!("warning: the device claims {what}"));
    }
    let mut out = super::output::text_stdout()?;
    if args.json {
        let value = json_of(&info, &smart, errors.as_deref(), slots.as_ref());
        super::output::print_json(&value)?;
    } else {
        print(&mut out, &info, &smart)?;
        if let Some(slots) = &slots {
            print_slots(&mut out, slots)?;
        }
        if let Some(errors) = &errors {
            print_errors(&mut out, errors)?;
        }
    }
    out.flush()?;
    if args.check && !smart.critical_warning.is_empty() {
        let names = critical_warning_names(smart.critical_warning.bits()).join(", ");
        return Err(Failure::new(
            OPERATION,
            format!("{}: critical warning: {names}", info.target),
        ));
    }
    Ok(())
}

/// The log pages need a page of memory.
const MEMORY_BYTES: usize = 16 << 20;

/// Skips, with a notice, a log that the controller refuses.
fn left_out<T>(what: &str, result: xtent::Result<T>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == xtent::ErrorKind::Io => {
            complain(&format!("warning: without {what}: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A count of any size: a number where JSON readers can take it.
fn count(value: u128) -> Value {
    match u64::try_from(value) {
        Ok(value) => value.into(),
        Err(_) => value.to_string().into(),
    }
}

fn json_of(
    info: &DriveInfo,
    smart: &SmartInfo,
    errors: Option<&[ErrorEntry]>,
    slots: Option<&FirmwareSlots>,
) -> Value {
    json!({
        "target": info.target,
        "model": info.model,
        "serial": info.serial,
        "firmware": info.firmware,
        "smart": smart_json(smart),
        "critical_warnings": critical_warning_names(smart.critical_warning.bits()),
        "errors": errors.map(|errors| errors.iter().map(error_json).collect::<Vec<_>>()),
        "firmware_slots": slots.map(|slots| json!({
            "active": slots.active,
            "next": slots.next,
            "revisions": slots
                .revisions
                .iter()
                .map(|(slot, revision)| json!({ "slot": slot, "revision": revision }))
                .collect::<Vec<_>>(),
        })),
    })
}

/// With the names of nvme-cli.
fn smart_json(smart: &SmartInfo) -> Value {
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| all.insert(name.to_owned(), value);
    put("critical_warning", smart.critical_warning.bits().into());
    put("temperature", smart.temperature_k.into());
    put("avail_spare", smart.available_spare.into());
    put("spare_thresh", smart.spare_threshold.into());
    put("percent_used", smart.percentage_used.into());
    let endurance = smart.endurance_warnings.into();
    put("endurance_grp_critical_warning_summary", endurance);
    put("data_units_read", count(smart.data_units_read));
    put("data_units_written", count(smart.data_units_written));
    put("host_read_commands", count(smart.host_reads));
    put("host_write_commands", count(smart.host_writes));
    put("controller_busy_time", count(smart.busy_minutes));
    put("power_cycles", count(smart.power_cycles));
    put("power_on_hours", count(smart.power_on_hours));
    put("unsafe_shutdowns", count(smart.unsafe_shutdowns));
    put("media_errors", count(smart.media_errors));
    put("num_err_log_entries", count(smart.error_entries));
    put("warning_temp_time", smart.warning_minutes.into());
    put("critical_comp_time", smart.critical_minutes.into());
    for (n, kelvins) in (1..).zip(smart.sensors_k) {
        if kelvins != 0 {
            put(&format!("temperature_sensor_{n}"), kelvins.into());
        }
    }
    for (n, (times, seconds)) in
        (1..).zip(smart.thermal_transitions.iter().zip(smart.thermal_seconds))
    {
        put(&format!("thm_temp{n}_trans_count"), (*times).into());
        put(&format!("thm_temp{n}_total_time"), seconds.into());
    }
    Value::Object(all)
}

/// With the names of nvme-cli.
fn error_json(error: &ErrorEntry) -> Value {
    json!({
        "error_count": error.error_count,
        "sqid": error.queue,
        "cmdid": error.command_id.unwrap_or(u16::MAX),
        "status_field": error.status.0,
        "phase_tag": u8::from(error.phase),
        "parm_error_location": error.parameter_location.unwrap_or(u16::MAX),
        "lba": error.lba,
        "nsid": error.nsid,
        "vs": error.vendor_log,
        "trtype": error.transport,
        "cs": error.command_specific,
        "trtype_spec_info": error.transport_specific,
    })
}

fn print(out: &mut impl Write, info: &DriveInfo, smart: &SmartInfo) -> std::io::Result<()> {
    writeln!(
        out,
        "{}: {} serial {} firmware {}",
        info.target, info.model, info.serial, info.firmware
    )?;
    let mut line = |name: &str, value: String| writeln!(out, "{name:<28}{value}");
    let warnings = critical_warning_names(smart.critical_warning.bits());
    let warnings = match warnings.is_empty() {
        true => "none".to_owned(),
        false => warnings.join(", "),
    };
    line("critical warning", warnings)?;
    let limit = |what: &str, kelvins: Option<u16>| {
        kelvins.map_or(String::new(), |k| format!(", {what} from {}", celsius(k)))
    };
    line(
        "temperature",
        format!(
            "{} ({} K{}{})",
            celsius(smart.temperature_k),
            smart.temperature_k,
            limit("warns", info.warning_temperature_k),
            limit("critical", info.critical_temperature_k)
        ),
    )?;
    line(
        "available spare",
        format!(
            "{} % (warns below {} %)",
            smart.available_spare, smart.spare_threshold
        ),
    )?;
    line("percentage used", format!("{} %", smart.percentage_used))?;
    if smart.endurance_warnings != 0 {
        let warnings = format!("{:#04x}", smart.endurance_warnings);
        line("endurance group warnings", warnings)?;
    }
    let data = |units: u128| {
        let bytes = units.saturating_mul(DATA_UNIT_BYTES);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        format!("{units} ({})", size_text(bytes))
    };
    line("data units read", data(smart.data_units_read))?;
    line("data units written", data(smart.data_units_written))?;
    line("host read commands", smart.host_reads.to_string())?;
    line("host write commands", smart.host_writes.to_string())?;
    line("controller busy", format!("{} min", smart.busy_minutes))?;
    line("power cycles", smart.power_cycles.to_string())?;
    line("power on", format!("{} h", smart.power_on_hours))?;
    line("unsafe shutdowns", smart.unsafe_shutdowns.to_string())?;
    line("media and integrity errors", smart.media_errors.to_string())?;
    line("error log entries", smart.error_entries.to_string())?;
    print_heat(out, smart)
}

/// What the controller counts and measures of its temperature.
fn print_heat(out: &mut impl Write, smart: &SmartInfo) -> std::io::Result<()> {
    let mut line = |name: &str, value: String| writeln!(out, "{name:<28}{value}");
    let minutes = |minutes: u32| format!("{minutes} min");
    line("above warning temperature", minutes(smart.warning_minutes))?;
    line(
        "above critical temperature",
        minutes(smart.critical_minutes),
    )?;
    for (n, kelvins) in (1..).zip(smart.sensors_k) {
        if kelvins != 0 {
            line(&format!("temperature sensor {n}"), celsius(kelvins))?;
        }
    }
    let throttled = smart.thermal_transitions.iter().zip(smart.thermal_seconds);
    for (n, (times, seconds)) in (1..).zip(throttled) {
        if *times != 0 || seconds != 0 {
            let name = format!("thermal throttling {n}");
            line(&name, format!("{times} times, {seconds} s"))?;
        }
    }
    Ok(())
}

fn print_slots(out: &mut impl Write, slots: &FirmwareSlots) -> std::io::Result<()> {
    for (slot, revision) in &slots.revisions {
        let mark = if *slot == slots.active {
            " (active)"
        } else if Some(*slot) == slots.next {
            " (active after the next reset)"
        } else {
            ""
        };
        writeln!(
            out,
            "{:<28}{revision}{mark}",
            format!("firmware slot {slot}")
        )?;
    }
    Ok(())
}

fn print_errors(out: &mut impl Write, errors: &[ErrorEntry]) -> std::io::Result<()> {
    if errors.is_empty() {
        return writeln!(out, "no entries in the error log");
    }
    writeln!(out, "error log, newest first:")?;
    writeln!(
        out,
        "  {:>8} {:>5} {:>7} {:>12} {:>9}  status",
        "count", "queue", "command", "LBA", "namespace"
    )?;
    for error in errors {
        let command = error.command_id.map_or("-".to_owned(), |id| id.to_string());
        let (sct, sc) = (error.status.sct(), error.status.sc());
        writeln!(
            out,
            "  {:>8} {:>5} {command:>7} {:>12} {:>9}  {sct:#x}/{sc:#04x}: {}",
            error.error_count,
            error.queue,
            error.lba,
            error.nsid,
            status_name(sct, sc)
        )?;
    }
    Ok(())
}

//! A comparison as one page of HTML that needs nothing else.

use std::fmt::Write as _;

use plotters::style::RGBColor;
use xtent::Result;

use super::calendar::minute_text;
use super::chart::{KERNEL_COLOR, Line, XTENT_COLOR, iops_svg, percentile_svg};
use super::compare::{Comparison, Side};
use super::figures::{Figure, IOPS, P50, P99, P99_9, advantage};
use super::hist::{bytes_text, count_text, three_digits};
use super::medium::MediumSpec;
use super::outcome::Outcome;
use super::report::{behind, meaning};
use super::rounds::{Figures, Ratio, Rounds, RoundsRow};

/// The page.
pub(crate) fn html(comparison: &Comparison) -> Result<String> {
    let mut page = format!(
        "{HEAD}{}</style></head><body><main>\n",
        include_str!("report.css")
    );
    page.push_str(&summary_html(comparison));
    page.push_str(&table_html(comparison));
    page.push_str(&charts_html(comparison)?);
    page.push_str(&behind_html(comparison));
    page.push_str(&checks_html(comparison));
    page.push_str(&conditions_html(comparison));
    page.push_str("</main></body></html>\n");
    Ok(page)
}

fn sides(row: &RoundsRow) -> [(&'static str, RGBColor, &Rounds); 2] {
    [
        ("kernel", KERNEL_COLOR, &row.kernel),
        ("xtent", XTENT_COLOR, &row.xtent),
    ]
}

fn charts_html(comparison: &Comparison) -> Result<String> {
    let mut text = String::from(
        "<h2>Latency and operations over time</h2><p class=\"note\">Left: the latency that a share of the \
         operations did not exceed. The axis is 1 − 1/x: each step to the right is a tenth of the operations \
         before. Reads and writes of a mix are taken together, and so are all rounds. Right: operations per \
         second within each round, one line a round.</p>",
    );
    for row in &comparison.rows {
        let (mut latency, mut iops) = (Vec::new(), Vec::new());
        for (_, color, rounds) in sides(row) {
            if rounds.outcomes.is_empty() {
                continue;
            }
            latency.push(Line {
                color,
                points: rounds.together().clat.curve(),
            });
            iops.extend(rounds.outcomes.iter().map(|outcome| Line {
                color,
                points: over_time(outcome),
            }));
        }
        let name = escape(&row.workload.name);
        let legend = legend_html(comparison.has_kernel());
        let _ = write!(
            text,
            "<div class=\"charts\"><figure><figcaption>{name}: latency{legend}</figcaption>{}</figure>\
             <figure><figcaption>{name}: IOPS{legend}</figcaption>{}</figure></div>",
            percentile_svg(&latency)?,
            iops_svg(&iops)?
        );
    }
    Ok(text)
}

/// `(middle of an interval in s, operations per second)`.
fn over_time(outcome: &Outcome) -> Vec<(f64, f64)> {
    let timeline = &outcome.timeline;
    let interval = timeline.interval.as_secs_f64();
    let rates = timeline.rates(|interval| interval.read_ios + interval.write_ios);
    let mut at = -interval / 2.0;
    rates
        .into_iter()
        .map(|rate| {
            at += interval;
            (at, rate)
        })
        .collect()
}

fn legend_html(both: bool) -> &'static str {
    if both {
        "<span class=\"legend\"><i class=\"k\"></i>kernel <i class=\"x\"></i>xtent</span>"
    } else {
        "<span class=\"legend\"><i class=\"x\"></i>xtent</span>"
    }
}

fn summary_html(comparison: &Comparison) -> String {
    let on = match &comparison.plan.on {
        MediumSpec::Image(_) => "of the same XFS image",
        MediumSpec::Disk(_) => "of the XFS on the same disk",
    };
    let env = &comparison.environment;
    let date = minute_text(i64::try_from(env.timestamp).unwrap_or(i64::MAX));
    let mut text = format!(
        "<h1>Kernel XFS and xtent</h1><p class=\"lead\">The same files {on}, read and overwritten by the same \
         operations at the same offsets, in alternating rounds. {date}, host {}.</p>",
        escape(&env.host)
    );
    if comparison.interrupted {
        text.push_str(
            "<p class=\"warn\">INTERRUPTED: these are the results so far. Rounds are missing or cut short, and \
             not all contents were checked.</p>",
        );
    }
    if comparison.has_kernel() {
        text.push_str("<div class=\"cards\">");
        for row in comparison.rows.iter().take(4) {
            text.push_str(&card_html(row));
        }
        text.push_str("</div>");
    } else if let Some(reason) = &comparison.plan.leave_kernel_out {
        let _ = write!(
            text,
            "<p class=\"warn\">The kernel's side was skipped: {}</p>",
            escape(reason)
        );
    }
    let warnings = [env.warning(), comparison.load().warning(env.cpus)];
    for warning in warnings.iter().flatten() {
        let _ = write!(text, "<p class=\"warn\">Warning: {}.</p>", escape(warning));
    }
    if !comparison.good() {
        text.push_str("<p class=\"warn\">A check of the contents FAILED: see below.</p>");
    }
    let _ = write!(
        text,
        "<p class=\"note\">{}</p>",
        escape(&meaning(comparison))
    );
    text
}

/// The headline of a workload, from the same distributions as its chart.
fn card_html(row: &RoundsRow) -> String {
    let figure = if row.workload.iodepth == 1 { P50 } else { IOPS };
    let Some(ratio) = advantage(&figure, row) else {
        return String::new();
    };
    let (number, what) = if !ratio.is_stable() {
        let range = format!(
            "{} to {}×",
            three_digits(ratio.lowest()),
            three_digits(ratio.highest())
        );
        let of = if figure.more_is_better {
            "IOPS"
        } else {
            "median latency"
        };
        (
            range,
            format!("{of}, xtent against the kernel: no stable difference shown"),
        )
    } else {
        let (times, ahead) = if ratio.all >= 1.0 {
            (ratio.all, "xtent")
        } else {
            (1.0 / ratio.all, "the kernel")
        };
        let what = if figure.more_is_better {
            "more operations per second with"
        } else {
            "shorter median latency with"
        };
        (
            format!("{}×", three_digits(times)),
            format!("{what} {ahead}"),
        )
    };
    format!(
        "<div><b>{number}</b><span>{what}</span><small>{}</small></div>",
        escape(&row.workload.name)
    )
}

/// Microseconds in a few digits: `0.831`, `54.1`, `10523`, `123k`.
fn us_digits(ns: f64) -> String {
    match ns / 1e3 {
        us if us < 1.0 => format!("{us:.3}"),
        us if us < 99_999.5 => three_digits(us),
        us => count_text(us),
    }
}

/// A column of the table: its head, and the figure of a side.
struct Column {
    head: &'static str,
    unit: &'static str,
    figure: Figure,
    /// The percentile, which needs enough operations.
    percent: Option<f64>,
    has_ratio: bool,
}

fn columns() -> [Column; 8] {
    let latency = |head, figure, percent| Column {
        head,
        unit: "µs",
        figure: Figure {
            text: us_digits,
            ..figure
        },
        percent: Some(percent),
        has_ratio: true,
    };
    let rate = |head, unit, figure, has_ratio| Column {
        head,
        unit,
        figure,
        percent: None,
        has_ratio,
    };
    let cpus = |of: fn(&Rounds) -> Figures, all: fn(&Rounds) -> f64| Figure {
        name: "CPUs",
        of,
        all,
        text: |cpus| format!("{cpus:.2}"),
        more_is_better: false,
    };
    let tail = Figure {
        name: "p99.99",
        of: |rounds| rounds.percentile_ns(99.99),
        all: |rounds| rounds.all_percentile_ns(99.99),
        ..P50
    };
    let bandwidth = Figure {
        name: "bandwidth",
        of: Rounds::bytes_per_second,
        all: Rounds::all_bytes_per_second,
        text: |bytes| three_digits(bytes / f64::from(1 << 20)),
        more_is_better: true,
    };
    let process = cpus(Rounds::process_cpus, |rounds| rounds.cpus().process);
    let machine = cpus(Rounds::machine_cpus, |rounds| rounds.cpus().machine);
    [
        latency("p50", P50, 50.0),
        latency("p99", P99, 99.0),
        latency("p99.9", P99_9, 99.9),
        latency("p99.99", tail, 99.99),
        rate("IOPS", "1/s", IOPS, true),
        rate("Bandwidth", "MiB/s", bandwidth, true),
        rate("CPUs", "process", process, false),
        rate("CPUs", "machine", machine, false),
    ]
}

fn table_html(comparison: &Comparison) -> String {
    let columns = columns();
    let mut text = String::from("<h2>Figures</h2><table class=\"figures\"><thead><tr><th></th>");
    for column in &columns {
        let _ = write!(
            text,
            "<th>{}<small>{}</small></th>",
            column.head, column.unit
        );
    }
    text.push_str("</tr></thead>");
    let mut marked = false;
    for row in &comparison.rows {
        let _ = write!(
            text,
            "<tbody><tr class=\"w\"><th colspan={}>{}</th></tr>",
            columns.len() + 1,
            escape(&row.workload.name)
        );
        for (name, _, rounds) in sides(row) {
            if rounds.outcomes.is_empty() {
                continue;
            }
            let class = &name[..1];
            let _ = write!(text, "<tr><th><i class=\"{class}\"></i>{name}</th>");
            for column in &columns {
                let few = column
                    .percent
                    .is_some_and(|percent| !rounds.together().clat.supports(percent));
                marked |= few;
                let _ = write!(text, "<td>{}</td>", cell(&column.figure, rounds, few));
            }
            text.push_str("</tr>");
        }
        if comparison.has_kernel() {
            text.push_str("<tr class=\"r\"><th>ratio</th>");
            for column in &columns {
                let ratio = advantage(&column.figure, row).filter(|_| column.has_ratio);
                let _ = write!(text, "<td>{}</td>", ratio.map_or(String::new(), ratio_html));
            }
            text.push_str("</tr>");
        }
        text.push_str("</tbody>");
    }
    text.push_str("</table>");
    text.push_str(&table_note(comparison, marked));
    text
}

fn ratio_html(ratio: Ratio) -> String {
    if ratio.is_stable() {
        return format!("{}×", three_digits(ratio.all));
    }
    let [lowest, highest] = [ratio.lowest(), ratio.highest()].map(three_digits);
    format!("{lowest}–<wbr>{highest}×<small>not stable</small>")
}

fn table_note(comparison: &Comparison, marked: bool) -> String {
    let plan = &comparison.plan;
    let mut text = format!(
        "<p class=\"note\">All of {} rounds of {} s each together, after {} s of warming up; in small the lowest \
         and the highest round. CPUs in use: by this process, and by the whole machine with the kernel's threads \
         and other programs; from /proc, in steps of 10 ms.",
        plan.rounds,
        plan.runtime.as_secs_f64(),
        plan.ramp_time.as_secs_f64(),
    );
    if comparison.has_kernel() {
        text.push_str(
            " Ratio: how many times better xtent is (latency shorter, more operations or bytes); below 1 the \
             kernel is ahead. A range is that of the rounds, where they differ by more than a quarter: no stable \
             difference shown.",
        );
    }
    if marked {
        text.push_str(
            " * Too few operations for this percentile: near the maximum of those measured.",
        );
    }
    text.push_str("</p>");
    text
}

/// All rounds together, and in small how far they lie apart.
fn cell(figure: &Figure, rounds: &Rounds, too_few: bool) -> String {
    let figures = (figure.of)(rounds);
    let all = (figure.text)((figure.all)(rounds));
    let mark = if too_few { "*" } else { "" };
    if figures.0.len() < 2 {
        return format!("{all}{mark}");
    }
    let (lowest, highest) = figures.spread();
    let [lowest, highest] = [lowest, highest].map(figure.text);
    format!("{all}{mark}<small>{lowest}–{highest}</small>")
}

fn behind_html(comparison: &Comparison) -> String {
    let mut text = String::from("<h2>Method of each side</h2><dl>");
    if comparison.has_kernel() {
        let _ = write!(
            text,
            "<dt><i class=\"k\"></i>kernel</dt><dd>{}</dd>",
            escape(&behind(comparison, Side::Kernel))
        );
    }
    let _ = write!(
        text,
        "<dt><i class=\"x\"></i>xtent</dt><dd>{}</dd></dl>",
        escape(&behind(comparison, Side::Xtent))
    );
    text
}

fn checks_html(comparison: &Comparison) -> String {
    let mut text = String::from("<h2>Contents</h2><ul class=\"checks\">");
    for check in &comparison.checks {
        let (class, mark) = if check.good {
            ("ok", "✓")
        } else {
            ("bad", "✗")
        };
        let _ = write!(
            text,
            "<li class=\"{class}\"><b>{mark}</b> {}<small>{}</small></li>",
            escape(&check.what),
            escape(&check.result)
        );
    }
    text.push_str("</ul>");
    text
}

fn conditions_html(comparison: &Comparison) -> String {
    let (plan, env, volume) = (
        &comparison.plan,
        &comparison.environment,
        &comparison.volume,
    );
    let (target, fs) = (&volume.target, &volume.filesystem);
    let transfer = target
        .max_transfer_bytes
        .map_or("no limit".into(), |bytes| bytes_text(f64::from(bytes)));
    let rows = [
        ("Date", minute_text(i64::try_from(env.timestamp).unwrap_or(i64::MAX))),
        ("Host", env.host.clone()),
        ("Command line", env.command_text()),
        ("Processor", format!("{} ({} CPUs{})", env.cpu, env.cpus, if env.virtual_machine { ", a virtual machine" } else { "" })),
        ("Load of other programs", format!("{:.2} CPUs on average during xtent's rounds", comparison.load().others())),
        ("Frequency governor", env.governor.clone().unwrap_or_else(|| "not readable".into())),
        ("Memory", format!("{}; hugepages of 2 MiB: {} free of {}", size(env.memory_bytes), env.hugepages_2m_free, env.hugepages_2m_total)),
        ("Kernel", format!("Linux {}", env.kernel)),
        ("xtent", format!("{}, {} build, {}", env.xtent, env.profile, env.compiler)),
        medium_row(comparison),
        ("Filesystem", format!("{}, blocks of {}, {} allocation groups, {}", fs.kind, fs.block_bytes, fs.ag_count, fs.features.join(" "))),
        ("Controller", format!("{}, serial {}, firmware {}; {}; LBA of {} bytes, largest command {transfer}", target.model, target.serial, target.firmware, target.engine, target.lba_bytes)),
        ("Mode", format!("controller: {}; waiting: {}; memory: {}, {}", target.controller, target.wait, target.memory, if target.memory == "hugepages" { "hugepages used" } else { "no hugepages used" })),
        ("Files", format!("{} ({}) is read; {} ({}) is overwritten, and read in the mix", plan.read_file, size(comparison.read_file_bytes), plan.write_file, size(comparison.write_file_bytes))),
        ("Order", format!("{} rounds: kernel, xtent, kernel, xtent…; seed {}", plan.rounds, plan.seed)),
        ("Latency", "from just before an operation is handed to the engine until it is reaped, every operation, same loop for both sides; flush after each write workload, outside the measured time".into()),
    ];
    let mut text = String::from("<h2>Conditions</h2><table class=\"plain\"><tbody>");
    for (name, value) in rows {
        let _ = write!(text, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
    }
    text.push_str("</tbody></table>");
    text
}

fn medium_row(comparison: &Comparison) -> (&'static str, String) {
    let medium = &comparison.medium;
    let text = format!("{}, {}", medium.name, size(medium.bytes));
    match (&comparison.plan.on, medium.cached) {
        (MediumSpec::Disk(disk), _) => ("Disk model", format!("{text}, at {}", disk.address)),
        (_, true) => (
            "Disk model",
            format!("none: the file {text}, read into the page cache before"),
        ),
        (_, false) => (
            "Disk model",
            format!("none: the file {text}, too large to stay in the page cache"),
        ),
    }
}

fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    bytes_text(bytes as f64)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const HEAD: &str = r##"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Kernel XFS and xtent</title><style>
"##;

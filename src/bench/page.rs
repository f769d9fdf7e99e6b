//! A comparison as one page of HTML that needs nothing else.

use std::fmt::Write as _;

use xtent::Result;

use super::chart::{Curve, KERNEL_COLOR, XTENT_COLOR, cdf_svg};
use super::compare::{Comparison, Rounds, Side};
use super::hist::bytes_text;
use super::medium::MediumSpec;
use super::report::{FIGURES, Figure, advantage, behind, meaning, times};

/// The page.
pub(crate) fn html(comparison: &Comparison) -> Result<String> {
    let mut page = String::from(HEAD);
    page.push_str(&summary_html(comparison));
    page.push_str(&table_html(comparison));
    page.push_str("<h2>Latency</h2><p class=\"note\">The share of operations that took no longer than the \
                   time below, on a logarithmic scale: further left is faster. Dots mark the medians. Reads \
                   and writes of a mix are taken together, and so are all rounds.</p><div class=\"charts\">");
    for row in &comparison.rows {
        let mut curves = Vec::new();
        for (rounds, color) in [(&row.kernel, KERNEL_COLOR), (&row.xtent, XTENT_COLOR)] {
            if !rounds.outcomes.is_empty() {
                let points = rounds.together().cdf();
                curves.push(Curve { color, points });
            }
        }
        let name = escape(&row.workload.name);
        let svg = cdf_svg(&curves)?;
        let legend = legend_html(comparison.has_kernel());
        let _ = write!(
            page,
            "<figure><figcaption>{name}{legend}</figcaption>{svg}</figure>"
        );
    }
    page.push_str("</div>");
    page.push_str(&behind_html(comparison));
    page.push_str(&checks_html(comparison));
    page.push_str(&conditions_html(comparison));
    page.push_str("</main></body></html>\n");
    Ok(page)
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
    let mut text = format!(
        "<h1>xtent <span>beside the kernel's xfs</span></h1>\
         <p class=\"lead\">The same files {on}, read and overwritten by the same operations at the same \
         offsets, turn and turn about.",
    );
    if comparison.has_kernel() {
        text.push_str("</p><div class=\"cards\">");
        for row in comparison.rows.iter().take(4) {
            let figure = if row.workload.iodepth == 1 {
                &FIGURES[0]
            } else {
                &FIGURES[2]
            };
            let Some(ratio) = advantage(figure, row) else {
                continue;
            };
            let (class, times_text, what) = match (ratio >= 1.0, figure.more_is_better) {
                (true, true) => ("", times(ratio), "more operations per second"),
                (true, false) => ("", times(ratio), "shorter median latency"),
                (false, true) => ("worse", times(1.0 / ratio), "fewer operations per second"),
                (false, false) => ("worse", times(1.0 / ratio), "longer median latency"),
            };
            let _ = write!(
                text,
                "<div><b class=\"{class}\">{}</b><span>{what}</span><small>{}</small></div>",
                times_text.replace('x', "×"),
                escape(&row.workload.name)
            );
        }
        text.push_str("</div>");
    } else if let Some(reason) = &comparison.plan.leave_kernel_out {
        let _ = write!(
            text,
            "</p><p class=\"warn\">The kernel's side was left out: {}</p>",
            escape(reason)
        );
    }
    if let Some(warning) = comparison.environment.warning() {
        let _ = write!(text, "<p class=\"warn\">Mind: {}.</p>", escape(&warning));
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

fn table_html(comparison: &Comparison) -> String {
    let both = comparison.has_kernel();
    let mut text =
        String::from("<h2>Figures</h2><div class=\"scroll\"><table><thead><tr><th></th>");
    let columns = if both { 3 } else { 1 };
    for name in ["median latency", "99th percentile", "operations per second"] {
        let _ = write!(text, "<th colspan={columns} class=\"g\">{name}</th>");
    }
    text.push_str("</tr><tr><th></th>");
    for _ in &FIGURES {
        if both {
            text.push_str("<th class=\"g\">kernel</th><th>xtent</th><th>better</th>");
        } else {
            text.push_str("<th class=\"g\">xtent</th>");
        }
    }
    text.push_str("</tr></thead><tbody>");
    for row in &comparison.rows {
        let _ = write!(text, "<tr><th>{}</th>", escape(&row.workload.name));
        for figure in &FIGURES {
            let xtent = cell(figure, &row.xtent);
            if both {
                let kernel = cell(figure, &row.kernel);
                let ratio = advantage(figure, row);
                let class = if ratio.is_some_and(|r| r < 1.0) {
                    "worse"
                } else {
                    "better"
                };
                let ratio = ratio.map_or("–".into(), |r| times(r).replace('x', "×"));
                let _ = write!(
                    text,
                    "<td class=\"g\">{kernel}</td><td>{xtent}</td><td class=\"{class}\">{ratio}</td>"
                );
            } else {
                let _ = write!(text, "<td class=\"g\">{xtent}</td>");
            }
        }
        text.push_str("</tr>");
    }
    let _ = write!(
        text,
        "</tbody></table></div><p class=\"note\">Medians of {} rounds of {} s each, after {} s of warming \
         up; in small the lowest and the highest.{}</p>",
        comparison.plan.rounds,
        comparison.plan.runtime.as_secs_f64(),
        comparison.plan.ramp_time.as_secs_f64(),
        if both {
            " “Better” says how many times: latency by how much shorter, operations by how many more; \
             below 1 the kernel is ahead."
        } else {
            ""
        }
    );
    text
}

/// The median, and in small how far the rounds lie apart.
fn cell(figure: &Figure, rounds: &Rounds) -> String {
    let figures = (figure.of)(rounds);
    let median = (figure.text)(figures.median());
    if figures.0.len() < 2 {
        return median;
    }
    let (lowest, highest) = figures.spread();
    let [lowest, highest] = [lowest, highest].map(figure.text);
    format!("{median}<small>{lowest} – {highest}</small>")
}

fn behind_html(comparison: &Comparison) -> String {
    let mut text = String::from("<h2>What stands behind each side</h2><dl>");
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
        ("Processor", format!("{} ({} CPUs{})", env.cpu, env.cpus, if env.virtual_machine { ", a virtual machine" } else { "" })),
        ("Load", format!("{:.2} running or waiting on average in the minute before", env.load_average)),
        ("Frequency governor", env.governor.clone().unwrap_or_else(|| "not readable".into())),
        ("Memory", format!("{}; hugepages of 2 MiB: {} free of {}", size(env.memory_bytes), env.hugepages_2m_free, env.hugepages_2m_total)),
        ("Kernel", format!("Linux {}", env.kernel)),
        ("xtent", format!("{}, {} build, {}", env.xtent, env.profile, env.compiler)),
        medium_row(comparison),
        ("Filesystem", format!("{}, blocks of {}, {} allocation groups, {}", fs.kind, fs.block_bytes, fs.ag_count, fs.features.join(" "))),
        ("Controller", format!("{}, {}, LBA of {} bytes, largest command {transfer}", target.model, target.engine, target.lba_bytes)),
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
        (MediumSpec::Disk(disk), _) => ("Disk", format!("{text}, at {}", disk.address)),
        (_, true) => ("Image", text + ", read into the page cache before"),
        (_, false) => ("Image", text + ", too large to stay in the page cache"),
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
<title>xtent beside the kernel's xfs</title><style>
:root{--ink:#111827;--soft:#6b7280;--line:#e5e7eb;--x:#0b7a75;--k:#8a8f98}
*{box-sizing:border-box}body{margin:0;background:#f9fafb;color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:34px;margin:0 0 8px;letter-spacing:-.02em}h1 span{color:var(--soft);font-weight:400}
h2{font-size:19px;margin:40px 0 10px}.lead{font-size:17px;margin:0 0 20px;max-width:50em}.note{color:var(--soft);max-width:64em;font-size:14px}
.warn{background:#fef3c7;border-left:4px solid #d97706;padding:10px 14px;border-radius:4px;max-width:64em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:14px;margin:22px 0}
.cards div{background:#fff;border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.cards b{display:block;font-size:32px;line-height:1.1;color:var(--x);font-variant-numeric:tabular-nums}.cards b.worse{color:#b45309}.cards span,.cards small{display:block}.cards small{color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse;background:#fff;border:1px solid var(--line);border-radius:10px;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:8px 12px;text-align:right;border-top:1px solid var(--line);white-space:nowrap}thead th{color:var(--soft);font-weight:500;border-top:0}
tbody th{text-align:left;font-weight:500}.g{border-left:1px solid var(--line)}thead th[colspan]{text-align:center;color:var(--ink)}
td small{display:block;color:var(--soft);font-size:11px}.better{color:var(--x);font-weight:600}.worse{color:#b45309;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px}figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:10px;padding:12px}
figcaption{font-weight:600;padding:2px 8px 6px;display:flex;justify-content:space-between}svg{width:100%;height:auto;display:block}
.legend{font-weight:400;color:var(--soft);font-size:13px}i.k,i.x{display:inline-block;width:12px;height:12px;border-radius:3px;margin:0 5px 0 10px;vertical-align:-1px;background:var(--k)}i.x{background:var(--x)}
dl{display:grid;grid-template-columns:110px 1fr;gap:12px 8px;max-width:64em;margin:0}dt{font-weight:600}dt i{margin-left:0!important}dd{margin:0}
.checks{list-style:none;padding:0;margin:0}.checks li{padding:3px 0}.checks small{color:var(--soft);margin-left:10px;white-space:pre-wrap}.ok b{color:var(--x)}.bad b{color:#b91c1c}
.plain th{text-align:left;color:var(--soft);font-weight:500;width:170px;vertical-align:top}.plain td{text-align:left;white-space:normal;overflow-wrap:anywhere}.plain tr:first-child th,.plain tr:first-child td{border-top:0}
@media(max-width:520px){.charts{grid-template-columns:1fr}main{padding:24px 12px}}
</style></head><body><main>
"##;

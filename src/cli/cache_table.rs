//! How a page cache fared, as a table and as JSON.

use std::io::Write;

use serde_json::Value;
use xtent::volume::CacheStats;

use super::output::size_text;

/// A share in percent; a dash of nothing.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let percent = part as f64 * 100.0 / whole as f64;
    format!("{percent:.1} %")
}

pub(super) fn print(out: &mut impl Write, stats: &CacheStats) -> std::io::Result<()> {
    writeln!(
        out,
        "  Page cache: {}, {} pages of 4 KiB, {} in use, {} dirty",
        size_text(stats.limit_bytes as u64),
        stats.pages,
        stats.used_pages,
        stats.dirty_pages
    )?;
    let asked = stats.hits + stats.misses;
    writeln!(
        out,
        "    hits {} ({}), misses {}",
        stats.hits,
        share(stats.hits, asked),
        stats.misses
    )?;
    writeln!(
        out,
        "    read ahead {}, used {} ({}), reclaimed unused {}",
        stats.ahead,
        stats.ahead_used,
        share(stats.ahead_used, stats.ahead),
        stats.ahead_wasted
    )?;
    writeln!(
        out,
        "    reclaimed {}, written back {} ({} in the background, {} failed), copied on write {}",
        stats.evicted,
        stats.written_back,
        stats.background,
        stats.write_errors,
        stats.copied_on_write
    )
}

pub(super) fn json(stats: Option<&CacheStats>) -> Value {
    serde_json::to_value(stats).unwrap_or_default()
}

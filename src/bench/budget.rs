//! Whether the buffers of a workload fit into memory, asked before any is taken: Linux promises
//! more memory than it has, and ends processes that use it.

use std::fs;

use xtent::internals::sys::{HUGE_PAGE_BYTES, address_space_left};
use xtent::{Error, ErrorKind, Result};

use super::hist::bytes_text;
use super::workload::Workload;

/// Refuses a workload whose buffers need more than this process can have, and names the limit.
pub(crate) fn check(workload: &Workload) -> Result<()> {
    let limits = [
        ("`ulimit -v` leaves", address_space_left()),
        ("this machine has available", available()),
        (
            "the control group's memory.max leaves",
            control_group_left(),
        ),
    ];
    check_against(workload, &limits)
}

fn check_against(workload: &Workload, limits: &[(&str, Option<u64>)]) -> Result<()> {
    let each = workload.block_bytes as u64 * workload.iodepth as u64;
    let needed = each.saturating_mul(workload.numjobs as u64);
    let least = limits
        .iter()
        .filter_map(|(words, left)| left.map(|left| (left, *words)))
        .min();
    match least {
        Some((left, words)) if needed > left => Err(Error::new(
            ErrorKind::OutOfMemory,
            format!(
                "the buffers need {} (--bs {} x --iodepth {} x --numjobs {}), and {words} {}: ask for less",
                text(needed),
                workload.block_bytes,
                workload.iodepth,
                workload.numjobs,
                text(left)
            ),
        )),
        _ => Ok(()),
    }
}

fn text(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    bytes_text(bytes as f64)
}

/// Ordinary memory that can be had without swapping, and free hugepages.
fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    let huge = field("HugePages_Free:").unwrap_or(0) * HUGE_PAGE_BYTES as u64;
    Some(field("MemAvailable:")? * 1024 + huge)
}

/// The memory that a memory controller of version 2 leaves to this process's own group. Groups
/// reclaimable page cache, are not considered.
fn control_group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let dir = std::path::Path::new("/sys/fs/cgroup").join(own);
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(dir.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let cached = fs::read_to_string(dir.join("memory.stat")).ok();
    let cached = cached.and_then(|stat| {
        let line = stat.lines().find_map(|line| line.strip_prefix("file "))?;
        line.trim().parse::<u64>().ok()
    });
    let used = number("memory.current")?.saturating_sub(cached.unwrap_or(0));
    Some(number("memory.max")?.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::{Rw, tests::workload};

    #[test]
    fn buffers_are_added_up_and_the_smallest_limit_is_named() {
        let mut huge = workload(Rw::Randread);
        (huge.block_bytes, huge.iodepth, huge.numjobs) = (1 << 20, 1024, 8);
        let limits = [("A leaves", None), ("B leaves", Some(8 << 30))];
        check_against(&huge, &limits).unwrap();
        let limits = [
            ("A leaves", Some((8 << 30) - 1)),
            ("B leaves", Some(9 << 30)),
        ];
        let error = check_against(&huge, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let text = error.to_string();
        assert!(
            text.contains("A leaves") && text.contains("--numjobs 8"),
            "{text}"
        );
    }
}

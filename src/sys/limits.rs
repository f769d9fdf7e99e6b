//! How much memory this process may use.

use std::fs;
use std::io;
use std::path::Path;

/// Bytes of memory that this process may use: the machine's, or less by the limits of its control groups (v1 and v2)
/// and by RLIMIT_AS.
pub fn memory_limit_bytes() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().filter_map(group_limit).min();
    let limits = [physical_bytes(), address_space_bytes(), groups];
    limits.into_iter().flatten().min().unwrap_or(u64::MAX)
}

fn physical_bytes() -> Option<u64> {
    // SAFETY: plain integers.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: plain integers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(pages)
        .ok()?
        .checked_mul(u64::try_from(page).ok()?)
}

fn address_space_bytes() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a structure that the kernel may fill.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    (got == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// The least limit of a line of `/proc/self/cgroup`, its ancestors' included.
fn group_limit(line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (roots, file) = match controllers {
        "" => (["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], "memory.max"),
        v1 if v1.split(',').any(|name| name == "memory") => (
            ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"],
            "memory.limit_in_bytes",
        ),
        _ => return None,
    };
    let path = Path::new(path.trim_start_matches('/'));
    let of = |group: &Path| {
        roots.iter().find_map(|root| {
            let text: io::Result<String> =
                fs::read_to_string(Path::new(root).join(group).join(file));
            text.ok()?.trim().parse().ok()
        })
    };
    path.ancestors().filter_map(of).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_at_most_what_the_machine_has() {
        let limit = memory_limit_bytes();
        assert!(limit > 16 << 20 && Some(limit) <= physical_bytes());
        assert_eq!(group_limit("3:cpuset:/"), None);
        assert_eq!(group_limit("nonsense"), None);
    }
}

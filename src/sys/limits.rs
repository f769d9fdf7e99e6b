//! How much memory this process may use.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that this process may use: the machine's, or less by the limits of its control
/// groups (v1 and v2) and by RLIMIT_AS.
pub fn memory_limit_bytes() -> u64 {
    let groups = groups(|group| Some(group.limit_bytes)).min();
    let limits = [physical_bytes(), address_space_bytes(), groups];
    limits.into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Bytes that may still be charged to this process's control groups before one of them is at its
/// limit and has no page cache left to reclaim.
pub fn charge_room_bytes() -> u64 {
    groups(|group| group.room_bytes()).min().unwrap_or(u64::MAX)
}

/// Bytes of memory that the machine can still give without swapping (`MemAvailable`).
pub fn available_bytes() -> u64 {
    let about = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = about
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib.saturating_mul(1024))
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

/// A control group with a limit on memory.
struct ControlGroup {
    dir: PathBuf,
    limit_bytes: u64,
    names: &'static GroupFileNames,
}

/// How a version of control groups names what it tells.
struct GroupFileNames {
    roots: [&'static str; 2],
    limit: &'static str,
    usage: &'static str,
    /// Of `memory.stat`: page cache of files, which is reclaimed before a limit is exceeded.
    reclaimable: [&'static str; 2],
}

static V1: GroupFileNames = GroupFileNames {
    roots: ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"],
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_active_file", "total_inactive_file"],
};
static V2: GroupFileNames = GroupFileNames {
    roots: ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["active_file", "inactive_file"],
};

/// What `ask` finds of this process's groups and their ancestors, as far as they have a limit.
fn groups<T>(ask: impl Fn(&ControlGroup) -> Option<T>) -> impl Iterator<Item = T> {
    let lines = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let found: Vec<T> = lines
        .lines()
        .flat_map(groups_of)
        .filter_map(|group| ask(&group))
        .collect();
    found.into_iter()
}

/// The groups of a line of `/proc/self/cgroup`: `ID:CONTROLLERS:PATH`.
fn groups_of(line: &str) -> Vec<ControlGroup> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
        return Vec::new();
    };
    let names = match controllers {
        "" => &V2,
        v1 if v1.split(',').any(|name| name == "memory") => &V1,
        _ => return Vec::new(),
    };
    let path = Path::new(path.trim_start_matches('/'));
    let group = |path: &Path| {
        names.roots.iter().find_map(|root| {
            let dir = Path::new(root).join(path);
            let limit_bytes = number(&dir.join(names.limit))?;
            Some(ControlGroup {
                dir,
                limit_bytes,
                names,
            })
        })
    };
    path.ancestors().filter_map(group).collect()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl ControlGroup {
    fn room_bytes(&self) -> Option<u64> {
        let usage = number(&self.dir.join(self.names.usage))?;
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let reclaimable: u64 = stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| self.names.reclaimable.contains(name))
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .fold(0, u64::saturating_add);
        let charged = usage.saturating_sub(reclaimable);
        Some(self.limit_bytes.saturating_sub(charged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_at_most_what_the_machine_has() {
        let limit = memory_limit_bytes();
        assert!(limit > 16 << 20 && Some(limit) <= physical_bytes());
        assert!(available_bytes() < u64::MAX && charge_room_bytes() > 0);
        assert!(groups_of("3:cpuset:/").is_empty());
        assert!(groups_of("nonsense").is_empty());
    }

    #[test]
    fn page_cache_leaves_room_and_other_memory_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let group = ControlGroup {
            dir: dir.path().to_owned(),
            limit_bytes: 1000,
            names: &V2,
        };
        assert_eq!(group.room_bytes(), None);
        fs::write(dir.path().join("memory.current"), "900\n").unwrap();
        assert_eq!(group.room_bytes(), Some(100));
        let stat = "anon 300\nfile 600\nshmem 350\nactive_file 150\ninactive_file 100\n";
        fs::write(dir.path().join("memory.stat"), stat).unwrap();
        assert_eq!(group.room_bytes(), Some(350));
    }
}

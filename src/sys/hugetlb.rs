//! The system's hugepages, which programs share: free counts, and files that ended programs left
//! behind.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Hugepages of 2 MiB that are free and not promised: those that another process has mapped and not
/// yet touched count as free in `free_hugepages`, but are reserved for it.
pub fn unreserved_huge_pages() -> u64 {
    unreserved_in(Path::new(POOL))
}

fn unreserved_in(pool: &Path) -> u64 {
    let count = |name| {
        let text = fs::read_to_string(pool.join(name)).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    count("free_hugepages").saturating_sub(count("resv_hugepages"))
}

/// Where hugetlbfs is mounted.
pub fn hugetlbfs_mounts() -> Vec<PathBuf> {
    mounts_in(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

fn mounts_in(text: &str) -> Vec<PathBuf> {
    let mounts = text.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let dir = words.next()?;
        // Blanks are written as \040.
        (words.next()? == "hugetlbfs").then(|| PathBuf::from(dir.replace("\\040", " ")))
    });
    mounts.collect()
}

/// Removes the files `PREFIX<pid>map_<number>` below the mounts of hugetlbfs whose process is gone
/// and that no process holds a lock on, as DPDK does while it uses them. Returns how many.
pub fn remove_stale_huge_files(prefix: &str) -> usize {
    let mounts = hugetlbfs_mounts();
    let count = |dir: &PathBuf| remove_stale_in(dir, prefix, Path::new("/proc"));
    mounts.iter().map(count).sum()
}

fn remove_stale_in(dir: &Path, prefix: &str, processes: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let stale = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| owner_of(name, prefix));
        owner.is_some_and(|pid| !processes.join(pid).exists()) && remove_unlocked(&entry.path())
    });
    stale.count()
}

/// The process number in `PREFIX<pid>map_<number>`.
fn owner_of<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (pid, index) = name.strip_prefix(prefix)?.split_once("map_")?;
    (number(pid) && number(index)).then_some(pid)
}

/// Its process may live in another PID namespace: then it has a lock.
fn remove_unlocked(path: &Path) -> bool {
    let open = || -> std::io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
    };
    match open() {
        Ok(file) => file.try_lock().is_ok() && fs::remove_file(path).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_promised_to_others_are_not_free() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("free_hugepages"), "128\n").unwrap();
        assert_eq!(unreserved_in(dir.path()), 128);
        fs::write(dir.path().join("resv_hugepages"), "100\n").unwrap();
        assert_eq!(unreserved_in(dir.path()), 28);
        fs::write(dir.path().join("resv_hugepages"), "200\n").unwrap();
        assert_eq!(unreserved_in(dir.path()), 0);
        assert_eq!(unreserved_in(&dir.path().join("none")), 0);
    }

    #[test]
    fn mounts_are_found() {
        let text = "proc /proc proc rw 0 0\nnone /mnt/huge\\040pages hugetlbfs rw,pagesize=2M 0 0\n\
                    hugetlbfs /data ext4 rw 0 0\n";
        assert_eq!(mounts_in(text), [Path::new("/mnt/huge pages")]);
    }

    #[test]
    fn files_of_ended_processes_are_removed_and_no_others() {
        let (dir, processes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(processes.path().join("7")).unwrap();
        let names = [
            "spdk_pid6map_0",
            "spdk_pid6map_12",
            "spdk_pid8map_0",
            "spdk_pid7map_0",
            "spdk_pid6map_",
            "spdk_pid6map_0.txt",
            "spdk0map_0",
            "spdk_pidmap_0",
            "other",
        ];
        for name in names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("other", dir.path().join("spdk_pid6map_3")).unwrap();
        let used = File::open(dir.path().join("spdk_pid8map_0")).unwrap();
        used.lock_shared().unwrap();
        assert_eq!(remove_stale_in(dir.path(), "spdk_pid", processes.path()), 2);
        for name in &names[2..] {
            assert!(dir.path().join(name).exists(), "{name}");
        }
        assert!(dir.path().join("spdk_pid6map_3").is_symlink());
        drop(used);
        assert_eq!(remove_stale_in(dir.path(), "spdk_pid", processes.path()), 1);
        assert_eq!(
            remove_stale_in(&dir.path().join("none"), "", processes.path()),
            0
        );
    }
}

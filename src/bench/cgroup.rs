//! A limit for the kernel's page cache: this process in a cgroup (v2) of its own for a while. What
//! the kernel caches is charged to the cgroup of the process that first has it read or written.

use std::fs;
use std::path::{Path, PathBuf};

/// Mount points of cgroups of version 2, alone or together with version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The process is in a cgroup of its own until this is dropped.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    dir: PathBuf,
    /// The group to go back to.
    home: PathBuf,
}

impl MemoryLimit {
    /// Limits this process, its threads and what the kernel caches for it.
    ///
    /// # Errors
    /// Why that cannot be, in words.
    pub(crate) fn enter(bytes: u64) -> Result<Self, String> {
        let has_memory = |root: &&&str| {
            let controllers = fs::read_to_string(Path::new(root).join("cgroup.controllers"));
            controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "memory"))
        };
        let root = ROOTS
            .iter()
            .find(has_memory)
            .ok_or("this machine has no cgroup v2 with the memory controller")?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        Self::enter_in(Path::new(root), own.unwrap_or_default(), bytes)
    }

    fn enter_in(root: &Path, own: &str, bytes: u64) -> Result<Self, String> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        // A cgroup with processes has no children with limits, but for the root.
        let control = root.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).map_err(failed(&control))?;
        if !enabled.split_whitespace().any(|name| name == "memory") {
            fs::write(&control, "+memory").map_err(failed(&control))?;
        }
        let dir = root.join(format!("xtent-compare-{}", std::process::id()));
        fs::create_dir(&dir).map_err(failed(&dir))?;
        // From here on dropping the value cleans up.
        let limit = Self {
            home: root.join(own).join("cgroup.procs"),
            dir,
        };
        let most = limit.dir.join("memory.max");
        fs::write(&most, bytes.to_string()).map_err(failed(&most))?;
        let procs = limit.dir.join("cgroup.procs");
        fs::write(&procs, std::process::id().to_string()).map_err(failed(&procs))?;
        Ok(limit)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // In the worst case an empty cgroup stays behind until the machine restarts.
        let _ = fs::write(&self.home, std::process::id().to_string());
        let _ = fs::remove_dir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_in_with_a_limit_and_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
        fs::write(root.path().join("cgroup.subtree_control"), "cpu io").unwrap();
        fs::create_dir_all(root.path().join("user/session")).unwrap();
        let limit = MemoryLimit::enter_in(root.path(), "user/session", 64 << 20).unwrap();
        let pid = std::process::id().to_string();
        let dir = format!("xtent-compare-{pid}");
        assert_eq!(read("cgroup.subtree_control"), "+memory");
        assert_eq!(read(&format!("{dir}/memory.max")), "67108864");
        assert_eq!(read(&format!("{dir}/cgroup.procs")), pid);
        drop(limit);
        assert_eq!(read("user/session/cgroup.procs"), pid);
        let nowhere = root.path().join("nowhere");
        let error = MemoryLimit::enter_in(&nowhere, "", 1).unwrap_err();
        assert!(error.contains("subtree_control"), "{error}");
    }
}

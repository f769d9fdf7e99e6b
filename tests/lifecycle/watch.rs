//! Ends the process when a run hangs, and says whether runs leave something behind.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::stand::status;

/// The run, and since when.
static RUN: Mutex<Option<(u64, Instant)>> = Mutex::new(None);

/// A run that takes longer hangs.
fn hang_limit() -> Duration {
    Duration::from_secs(super::common::number("XTENT_HANG_LIMIT", 10))
}

/// Watches a run while it lives, and prints its seed should it panic.
pub(crate) struct Watched(u64);

impl Watched {
    pub(crate) fn new(seed: u64) -> Self {
        static START: std::sync::Once = std::sync::Once::new();
        START.call_once(|| drop(std::thread::spawn(watch)));
        *RUN.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, Instant::now()));
        Self(seed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        *RUN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if std::thread::panicking() {
            eprintln!("failed with XTENT_SEED={} XTENT_RUNS=1", self.0);
        }
    }
}

/// Prints the seed of the run.
pub(crate) fn say_seed() {
    let run = *RUN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((seed, _)) = run {
        eprintln!("failed with XTENT_SEED={seed} XTENT_RUNS=1");
    }
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let run = *RUN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seed, start)) = run
            && start.elapsed() > hang_limit()
        {
            eprintln!("hangs with XTENT_SEED={seed} XTENT_RUNS=1");
            let pid = std::process::id().to_string();
            let _ = std::process::Command::new("gdb")
                .args(["-p", &pid, "-batch", "-ex", "thread apply all bt 25"])
                .status();
            std::process::abort();
        }
    }
}

/// What the process has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Level {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    locked_kib: u64,
    resident_kib: u64,
}

impl Level {
    pub(crate) fn now() -> Self {
        let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            mappings: maps.lines().count(),
            locked_kib: status("VmLck:"),
            resident_kib: status("VmRSS:"),
        }
    }

    /// Panics where more is there than before. The allocator keeps some for itself, by thread.
    pub(crate) fn assert_no_more_than(&self, before: &Self) {
        let more = self.descriptors > before.descriptors
            || self.threads > before.threads
            || self.mappings > before.mappings + 64
            || self.locked_kib > before.locked_kib
            || self.resident_kib > before.resident_kib + (64 << 10);
        assert!(!more, "{self:?}, before: {before:?}");
    }
}

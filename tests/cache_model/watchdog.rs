//! Says where every thread stands, and ends the run, when nothing gets on any more.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// Steps that all threads did.
static STEPS: AtomicU64 = AtomicU64::new(0);
/// What failed to get on, for the message.
static WHAT: RwLock<String> = RwLock::new(String::new());
/// Looks in a row without a step. They are counted, not timed: a process that stood still as a
/// whole is not stuck.
const PATIENCE: u32 = 120;

/// A thread did something.
pub(crate) fn step() {
    STEPS.fetch_add(1, Relaxed);
}

/// Watches while it lives.
pub(crate) struct Watchdog {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn new(what: String) -> Self {
        *WHAT.write().unwrap_or_else(PoisonError::into_inner) = what;
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = std::thread::spawn(move || watch(&ended));
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn watch(over: &AtomicBool) {
    let (mut before, mut looks) = (STEPS.load(Relaxed), 0);
    while !over.load(Relaxed) {
        std::thread::park_timeout(Duration::from_secs(1));
        let now = STEPS.load(Relaxed);
        looks = if now == before { looks + 1 } else { 0 };
        before = now;
        if looks > PATIENCE {
            let what = WHAT.read().unwrap_or_else(PoisonError::into_inner).clone();
            eprintln!("nothing gets on after {now} steps: {what}");
            print_stacks();
            std::process::abort();
        }
    }
}

/// With gdb, where it is installed; else what the kernel knows of each thread.
fn print_stacks() {
    let pid = std::process::id().to_string();
    let gdb = Command::new("gdb")
        .args(["-p", &pid, "-batch", "-ex", "thread apply all bt 30"])
        .status();
    if gdb.is_ok_and(|status| status.success()) {
        return;
    }
    for task in std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        for file in ["comm", "stat", "syscall", "wchan"] {
            let text = std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            eprintln!("{} {file}: {}", task.path().display(), text.trim());
        }
    }
}

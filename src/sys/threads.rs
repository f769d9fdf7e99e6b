//! Threads of the library and the command: one that cannot be started is an error, never a panic.

use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use super::process_limit::{ProcessLimit, limit_error};
use crate::error::{Error, Result};

/// Starts a thread with this name. `std::thread::spawn` panics where a limit forbids another
/// thread.
///
/// # Errors
/// An error that names the limit (`ulimit -u`, `pids.max`).
pub fn spawn_thread<T: Send + 'static>(
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let name = name.into();
    let builder = Builder::new().name(name.clone());
    without_signals(|| builder.spawn(work)).map_err(|error| cannot_start(&name, error))
}

/// The same for a thread that lends what the scope lends.
///
/// # Errors
/// As [`spawn_thread`].
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    let name = name.into();
    let builder = Builder::new().name(name.clone());
    without_signals(|| builder.spawn_scoped(scope, work))
        .map_err(|error| cannot_start(&name, error))
}

/// Starts a thread with all signals blocked, but for those that report a fault of the thread
/// itself: a signal for the process goes to a thread of the program, which may expect it
/// (`signalfd(2)`, `sigwait(3)`).
fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    const FAULTS: [libc::c_int; 7] = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGABRT,
    ];
    // SAFETY: all-zero bytes are a valid `sigset_t`.
    let mut blocked: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut before = blocked;
    // SAFETY: a set of this function.
    unsafe { libc::sigfillset(&raw mut blocked) };
    for fault in FAULTS {
        // SAFETY: a set of this function, and a signal that exists.
        unsafe { libc::sigdelset(&raw mut blocked, fault) };
    }
    // SAFETY: two sets of this function. A new thread inherits the mask.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before) };
    let started = start();
    if error == 0 {
        // SAFETY: the set that the call above filled.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut())
        };
    }
    started
}

/// The error of a thread that could not be started.
#[cold]
pub(crate) fn cannot_start(name: &str, error: std::io::Error) -> Error {
    let what = format!("cannot start the thread `{name}`");
    limit_error(what, error, ProcessLimit::Threads)
}

/// Starts a small service thread, with a stack of its own size.
///
/// # Errors
/// As [`spawn_thread`].
pub fn spawn_small_thread<T: Send + 'static>(
    name: impl Into<String>,
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let name = name.into();
    let builder = Builder::new().name(name.clone()).stack_size(stack_bytes);
    without_signals(|| builder.spawn(work)).map_err(|error| cannot_start(&name, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `SigBlk` line of this thread's status, as a bit mask.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
    }

    #[test]
    fn threads_leave_the_signals_of_the_program_alone() {
        let bit = |signal: libc::c_int| 1_u64 << (signal - 1);
        let before = blocked();
        let small = spawn_small_thread("test", 128 << 10, blocked).unwrap();
        let plain = spawn_thread("test", blocked).unwrap();
        for mask in [small.join().unwrap(), plain.join().unwrap()] {
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1] {
                assert_ne!(mask & bit(signal), 0, "{signal} in {mask:x}");
            }
            for fault in [libc::SIGSEGV, libc::SIGBUS] {
                assert_eq!(mask & bit(fault), 0, "{fault} in {mask:x}");
            }
        }
        assert_eq!(blocked(), before);
    }
}

//! Threads of the library and the command: one that cannot be started is an error, never a panic.

use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use super::process_limit::{ProcessLimit, limit_error};
use crate::error::{Error, Result};

/// Starts a thread with this name. `std::thread::spawn` panics where a limit forbids another thread.
///
/// # Errors
/// An error that names the limit (`ulimit -u`, `pids.max`).
pub fn spawn_thread<T: Send + 'static>(
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let name = name.into();
    Builder::new()
        .name(name.clone())
        .spawn(work)
        .map_err(|error| cannot_start(&name, error))
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
    Builder::new()
        .name(name.clone())
        .spawn_scoped(scope, work)
        .map_err(|error| cannot_start(&name, error))
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
    Builder::new()
        .name(name.clone())
        .stack_size(stack_bytes)
        .spawn(work)
        .map_err(|error| cannot_start(&name, error))
}

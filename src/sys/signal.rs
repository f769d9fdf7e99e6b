//! Interruption by the user: a flag that SIGINT, SIGTERM and SIGHUP set, and a deadline for those
//! who do not look at it.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

static SEEN: AtomicI32 = AtomicI32::new(0);
/// The process must undo something before it may end.
static HELD: AtomicBool = AtomicBool::new(false);

/// Seconds from the first signal until the process is ended from the handler.
static GRACE_SECONDS: AtomicU32 = AtomicU32::new(1);

extern "C" fn note(signal: libc::c_int) {
    SEEN.store(signal, Ordering::Relaxed);
    if !HELD.load(Ordering::Relaxed) {
        // SAFETY: async-signal-safe (signal-safety(7)).
        unsafe { libc::alarm(GRACE_SECONDS.load(Ordering::Relaxed)) };
    }
}

/// The process is still there: something waits that does not look at the flag (a write to a full
/// pipe, a device or server that is silent).
extern "C" fn end(_: libc::c_int) {
    let signal = SEEN.load(Ordering::Relaxed);
    if signal != 0 && !HELD.load(Ordering::Relaxed) {
        // SAFETY: async-signal-safe (signal-safety(7)); nothing of this process is used any more.
        unsafe { libc::_exit(128 + signal) };
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP set a flag, and end the process a second later in case it
/// does not look at the flag. A second signal of a kind ends it at once.
pub fn catch_interrupts() {
    HELD.store(false, Ordering::Relaxed);
    catch(libc::SA_RESETHAND);
}

/// As [`catch_interrupts`], and no signal ends anything: for work that must be undone before the
/// process may end, and that looks at the flag.
pub fn hold_interrupts() {
    HELD.store(true, Ordering::Relaxed);
    catch(0);
}

/// Gives work that leaves something behind when it is cut off (a mount, a scratch file) this many
/// seconds after the first signal, instead of one.
pub fn end_within(seconds: u32) {
    GRACE_SECONDS.store(seconds, Ordering::Relaxed);
}

/// A write beyond `ulimit -f` fails with `EFBIG` instead of ending the process by SIGXFSZ. For
/// programs; a library leaves signals alone.
pub fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn catch(flags: libc::c_int) {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        handle(signal, note, flags);
    }
    handle(libc::SIGALRM, end, 0);
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) {
    // SAFETY: all-zero bytes are a valid `sigaction` (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = flags;
    // SAFETY: the handlers use atomics and async-signal-safe calls only; the old action is not
    // asked for.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

/// The signal that asked to stop, if one came since [`catch_interrupts`].
#[inline]
pub fn interrupted() -> Option<i32> {
    match SEEN.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

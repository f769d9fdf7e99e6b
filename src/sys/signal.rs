//! Interruption by the user: a flag that SIGINT, SIGTERM and SIGHUP set.

use std::sync::atomic::{AtomicI32, Ordering};

static SEEN: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    SEEN.store(signal, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP set a flag, once each: the second one of a kind ends the process
/// as usual, in case nobody looks at the flag.
pub fn catch_interrupts() {
    catch(libc::SA_RESETHAND);
}

/// As [`catch_interrupts`], and the second signal ends nothing either: for work that must be undone before the
/// process may end, and that looks at the flag.
pub fn hold_interrupts() {
    catch(0);
}

fn catch(flags: libc::c_int) {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: all-zero bytes are a valid `sigaction` (no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int) = note;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = flags;
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe; the old action is not asked for.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// The signal that asked to stop, if one came since [`catch_interrupts`].
#[inline]
pub fn interrupted() -> Option<i32> {
    match SEEN.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

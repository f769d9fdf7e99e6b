//! A program with a SIGBUS handler of its own, which the crate leaves alone.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]
#![expect(unsafe_code, reason = "installs a signal handler")]

use std::ffi::c_void;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use xtent::internals::mem::PeerMemory;
use xtent::internals::units::Iova;
use xtent::target;

static FAULTS: AtomicU32 = AtomicU32::new(0);

extern "C" fn own_handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the siginfo of this thread's fault.
    if !unsafe { target::handle_sigbus(info.cast_const().cast()) } {
        // SAFETY: ends the process.
        unsafe { libc::_exit(7) };
    }
}

fn install() {
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) = own_handler;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler calls only async-signal-safe functions.
    let installed =
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    assert_eq!(installed, 0);
}

fn installed() -> libc::sighandler_t {
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only for the present action.
    unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut action) };
    action.sa_sigaction
}

// The only test of this program: signals belong to the whole process.
#[test]
fn a_program_keeps_its_own_handler_and_passes_faults_on() {
    install();
    let own = installed();
    target::leave_sigbus_to_program().unwrap();
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(8192).unwrap();
    let memory = PeerMemory::map(file.as_fd(), 0, Iova(0x10000), 8192).unwrap();
    assert_eq!(installed(), own);
    let space = xtent::internals::mem::DmaSpace::default();
    space.map_peer(memory).unwrap();
    file.set_len(0).unwrap();
    let mut bytes = [1; 8];
    // SAFETY: nothing else uses the memory.
    let range = unsafe { space.reach(Iova(0x10000), 8) }.unwrap();
    range.copy_to(&mut bytes);
    assert_eq!((bytes, FAULTS.load(Ordering::Relaxed)), ([0; 8], 1));
    assert!(space.lost_peer_memory());
    // Said again it is still so.
    target::leave_sigbus_to_program().unwrap();
}

//! Accesses to mapped memory that is no longer there.
//!
//! When the object behind a mapping goes away (a BAR's device is unplugged, or its memory decoding
//! is switched off; a peer truncates the file that it shares), the kernel sends SIGBUS to the
//! thread that accesses it. The handler here maps other memory in its place, records that, and
//! restarts the access: all ones for a BAR, as reads of an absent PCI device return, and zeroes for
//! shared memory. The owner of the mapping then sees that its peer is gone. All other faults go to
//! the previous handler.
//!
//! The handler is installed with the first guarded mapping, so by `pci:` and `vfio-user:` targets
//! and a vfio-user server only. A program that has a SIGBUS handler of its own disables this one
//! ([`leave_out_handler`]) and may call [`handle_sigbus`] from its own. Without either, memory that
//! went away is not replaced: the access faults repeatedly, or ends the process, depending on the
//! program's own disposition of SIGBUS.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};

/// Mappings that can be guarded at once, in the whole process.
const SLOTS: usize = 1024;

/// Bytes of all ones in the file that replaces a BAR: a multiple of any page size in use.
const ONES_BYTES: usize = 64 << 10;

/// What takes the place of memory that went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// All ones: an absent PCI device.
    Ones,
    /// Private memory, all zeroes.
    Zeroes,
}

impl Cover {
    const fn code(self) -> u8 {
        match self {
            Self::Ones => 0,
            Self::Zeroes => 1,
        }
    }

    const fn of_code(code: u8) -> Self {
        match code {
            0 => Self::Ones,
            _ => Self::Zeroes,
        }
    }
}

/// One guarded mapping. The handler reads it while other threads change it, so it is a sequence
/// lock: an odd `sequence` says that it is being changed.
struct GuardSlot {
    taken: AtomicBool,
    sequence: AtomicU32,
    start: AtomicUsize,
    len_bytes: AtomicUsize,
    /// A [`Cover`]'s code; set while the range is empty.
    cover: AtomicU8,
    /// The mapping was replaced after a fault.
    tripped: AtomicBool,
}

impl GuardSlot {
    const fn empty() -> Self {
        Self {
            taken: AtomicBool::new(false),
            sequence: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            len_bytes: AtomicUsize::new(0),
            cover: AtomicU8::new(0),
            tripped: AtomicBool::new(false),
        }
    }

    /// Changes the range. Only for the thread that has `taken` the slot.
    fn set(&self, start: usize, len_bytes: usize) {
        self.sequence.fetch_add(1, Ordering::Acquire);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len_bytes.store(len_bytes, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    /// The range, if `address` lies in it. A slot that changes meanwhile is not the one of
    /// `address`: that one's mapping is in use, so its slot stays.
    fn range_with(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.sequence.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let len_bytes = self.len_bytes.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        let stable = before == after && before.is_multiple_of(2);
        let inside = address.checked_sub(start).is_some_and(|at| at < len_bytes);
        (stable && inside).then_some((start, len_bytes))
    }
}

static TABLE: [GuardSlot; SLOTS] = [const { GuardSlot::empty() }; SLOTS];

/// What the handler needs, ready before it is installed.
struct Handler {
    /// A file of [`ONES_BYTES`] bytes of all ones.
    ones: OwnedFd,
    previous: libc::sigaction,
}

/// The program has a handler of its own.
static LEFT_OUT: AtomicBool = AtomicBool::new(false);
static HANDLER: OnceLock<Handler> = OnceLock::new();
/// Makes one of several first guards install the handler.
static INSTALL: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Leaves SIGBUS to the program: no handler is installed from now on. Whether that is so: false
/// when one is installed already.
pub fn leave_out_handler() -> bool {
    let _one = INSTALL
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if HANDLER.get().is_none() {
        LEFT_OUT.store(true, Ordering::Relaxed);
    }
    LEFT_OUT.load(Ordering::Relaxed)
}

/// Covers the guarded mapping that a fault was met in, from a program's own SIGBUS handler; false
/// for any other fault. Async-signal-safe.
///
/// # Safety
/// `info` is the `siginfo_t` that the kernel has passed to a handler with SA_SIGINFO, for a fault
/// of this thread.
pub unsafe fn handle_sigbus(info: *const c_void) -> bool {
    // `OnceLock::get` is one atomic load once it is set, and it is set before anything is guarded.
    let Some(handler) = HANDLER.get() else {
        return false;
    };
    // SAFETY: a valid siginfo, by the contract.
    let told = unsafe { &*info.cast::<libc::siginfo_t>() };
    let code = told.si_code;
    // SAFETY: a fault's siginfo has an address; of another one it is a number that is not looked
    // at.
    let address = unsafe { told.si_addr() }.addr();
    // Codes above zero come from the kernel; only those carry an address.
    let found = TABLE
        .iter()
        .filter(|_| code > 0)
        .find_map(|slot| Some((slot, slot.range_with(address)?)));
    let Some((slot, (start, len_bytes))) = found else {
        return false;
    };
    let with = Cover::of_code(slot.cover.load(Ordering::Relaxed));
    // SAFETY: the location of this thread's errno is valid while the thread runs.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let kept = unsafe { errno.read() };
    // SAFETY: the slot's mapping is guarded, hence ours and in whole pages (`Guard::new`); it is in
    // use by the faulting access, so that it is not unmapped meanwhile.
    let covered = unsafe { cover(handler, start, len_bytes, with) };
    // SAFETY: as above.
    unsafe { errno.write(kept) };
    if covered {
        slot.tripped.store(true, Ordering::Release);
    }
    covered
}

/// A guarded mapping, until dropped.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
    start: NonNull<u8>,
    len_bytes: usize,
    with: Cover,
}

// SAFETY: the address is only used for mmap, which any thread may call; the rest are numbers.
unsafe impl Send for Guard {}
// SAFETY: as above; `cover` may be called by several threads, each of which puts the same in place.
unsafe impl Sync for Guard {}

impl Guard {
    /// Guards a mapping; the first guard installs the process-wide handler, unless it is disabled.
    ///
    /// # Safety
    /// `start` and `len_bytes` are whole pages of one mapping of the caller's, which stays mapped
    /// while the guard lives and is accessed only through raw pointers or atomics: its content may
    /// change at any time.
    ///
    /// # Errors
    /// When the handler cannot be installed, or too many mappings are guarded.
    pub unsafe fn new(start: NonNull<u8>, len_bytes: usize, with: Cover) -> io::Result<Self> {
        install()?;
        let free = |slot: &GuardSlot| !slot.taken.swap(true, Ordering::Acquire);
        let slot = TABLE
            .iter()
            .position(free)
            .ok_or_else(|| io::Error::other("too many device mappings in this process"))?;
        TABLE[slot].tripped.store(false, Ordering::Relaxed);
        TABLE[slot].cover.store(with.code(), Ordering::Relaxed);
        // The handler makes a pointer of the address.
        let address = start.as_ptr().expose_provenance();
        TABLE[slot].set(address, len_bytes);
        Ok(Self {
            slot,
            start,
            len_bytes,
            with,
        })
    }

    /// Whether a fault has replaced the mapping.
    #[inline]
    pub fn tripped(&self) -> bool {
        TABLE[self.slot].tripped.load(Ordering::Acquire)
    }

    /// Puts the cover in the mapping's place, before any fault. What was mapped there is let go.
    ///
    /// # Errors
    /// The errno of `mmap`.
    pub fn cover(&self) -> io::Result<()> {
        let handler = HANDLER.get().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: whole pages of a mapping that is ours while the guard lives (`new`).
        if unsafe { cover(handler, self.start.addr().get(), self.len_bytes, self.with) } {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.slot].set(0, 0);
        TABLE[self.slot].taken.store(false, Ordering::Release);
    }
}

/// Maps the cover over whole pages. Async-signal-safe: system calls only.
///
/// # Safety
/// The range is the caller's, in whole pages, and its content may change.
unsafe fn cover(handler: &Handler, start: usize, len_bytes: usize, with: Cover) -> bool {
    if with == Cover::Zeroes {
        // SAFETY: replaces pages that are the caller's by private memory, all at once.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut::<c_void>(start),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        return mapped != libc::MAP_FAILED;
    }
    let mut at = 0;
    while at < len_bytes {
        // SAFETY: replaces pages that are the caller's by private pages of a file; the length stays
        // inside of both. A concurrent reader sees the old or the new page.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut::<c_void>(start + at),
                ONES_BYTES.min(len_bytes - at),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                handler.ones.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        at += ONES_BYTES;
    }
    true
}

/// Installs the handler, once in the process.
fn install() -> io::Result<()> {
    let _one = INSTALL
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if HANDLER.get().is_some() {
        return Ok(());
    }
    let ones = file_of_ones()?;
    // SAFETY: all-zero bytes are a valid `sigaction`; the call below fills it in.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only for the present action.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Known before the handler runs for the first time.
    let _ = HANDLER.set(Handler { ones, previous });
    if LEFT_OUT.load(Ordering::Relaxed) {
        return Ok(());
    }
    // SAFETY: all-zero bytes are a valid `sigaction` (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler keeps to async-signal-safe calls and atomics (see there).
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn file_of_ones() -> io::Result<OwnedFd> {
    use std::io::Write;
    // SAFETY: a name that ends in a zero byte, and flags.
    let fd = unsafe { libc::memfd_create(c"xtent-absent-bar".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(&[0xff; ONES_BYTES])?;
    Ok(file.into())
}

/// The handler. Async-signal-safe: atomics, `mmap`, `sigaction`, `raise`; errno is left as it was.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo, this thread's own, to a handler with SA_SIGINFO.
    if unsafe { handle_sigbus(info.cast_const().cast()) } {
        return;
    }
    // Set before the handler is installed.
    if let Some(handler) = HANDLER.get() {
        pass_on(&handler.previous, signal, info, context);
    }
}

/// Does what would have been done without this handler.
fn pass_on(
    previous: &libc::sigaction,
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    type Plain = extern "C" fn(c_int);
    type WithInfo = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
    match previous.sa_sigaction {
        // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
        libc::SIG_IGN if unsafe { (*info).si_code } <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // A fault cannot be ignored: the access would fault for ever. Back to the default
            // action, then raise: that comes through when this handler returns.
            // SAFETY: all-zero bytes are a valid `sigaction`: SIG_DFL, no flags, empty mask.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: async-signal-safe; the action is a valid one.
            unsafe { libc::sigaction(signal, &raw const default, std::ptr::null_mut()) };
            // SAFETY: async-signal-safe, no memory involved.
            unsafe { libc::raise(signal) };
        }
        address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO this is the address of a function with three arguments,
            // installed before.
            let handler = unsafe { std::mem::transmute::<libc::sighandler_t, WithInfo>(address) };
            handler(signal, info, context);
        }
        address => {
            // SAFETY: without SA_SIGINFO this is the address of a function with one argument.
            let handler = unsafe { std::mem::transmute::<libc::sighandler_t, Plain>(address) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// A mapping of a file that was then truncated: touching it faults, as an absent BAR does.
    struct Vanished {
        start: NonNull<u8>,
        len_bytes: usize,
    }

    impl Vanished {
        fn new(pages: usize) -> Self {
            let file = tempfile::tempfile().unwrap();
            let len_bytes = pages * PAGE;
            file.set_len(len_bytes as u64).unwrap();
            // SAFETY: a new mapping at an address of the kernel's choice.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len_bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                )
            };
            assert_ne!(start, libc::MAP_FAILED);
            file.set_len(0).unwrap();
            Self {
                start: NonNull::new(start.cast()).unwrap(),
                len_bytes,
            }
        }

        fn read(&self, at: usize) -> u32 {
            assert!(at + 4 <= self.len_bytes);
            // SAFETY: inside of the mapping.
            let register = unsafe { self.start.add(at) }.cast::<u32>();
            // SAFETY: aligned; the test needs the fault.
            unsafe { register.read_volatile() }
        }

        fn write(&self, at: usize, value: u32) {
            assert!(at + 4 <= self.len_bytes);
            // SAFETY: as in `read`.
            let register = unsafe { self.start.add(at) }.cast::<u32>();
            // SAFETY: as in `read`.
            unsafe { register.write_volatile(value) };
        }
    }

    impl Drop for Vanished {
        fn drop(&mut self) {
            // SAFETY: the mapping that `new` made.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
        }
    }

    #[test]
    fn a_vanished_mapping_reads_as_all_ones_and_takes_writes() {
        // More than one piece of ones, and not a whole number of them.
        let memory = Vanished::new(37);
        // SAFETY: whole pages of a mapping that outlives the guard; volatile accesses only.
        let guard = unsafe { Guard::new(memory.start, memory.len_bytes, Cover::Ones) }.unwrap();
        assert!(!guard.tripped());
        memory.write(0x1000, 7);
        assert!(guard.tripped());
        for at in (0..memory.len_bytes).step_by(PAGE) {
            assert_eq!(memory.read(at + 0x1c), u32::MAX, "at {at}");
        }
        drop(guard);
    }

    #[test]
    fn many_threads_and_mappings_fault_at_once() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let memory = Vanished::new(1);
                        // SAFETY: as above.
                        let guard = unsafe { Guard::new(memory.start, PAGE, Cover::Ones) }.unwrap();
                        assert_eq!(memory.read(8), u32::MAX);
                        assert!(guard.tripped());
                    }
                });
            }
        });
    }

    #[test]
    fn covering_works_without_a_fault() {
        let memory = Vanished::new(2);
        // SAFETY: as above.
        let guard = unsafe { Guard::new(memory.start, memory.len_bytes, Cover::Ones) }.unwrap();
        guard.cover().unwrap();
        assert_eq!(memory.read(PAGE), u32::MAX);
        assert!(!guard.tripped());
    }

    #[test]
    fn shared_memory_is_covered_with_zeroes() {
        let memory = Vanished::new(3);
        // SAFETY: as above.
        let guard = unsafe { Guard::new(memory.start, memory.len_bytes, Cover::Zeroes) }.unwrap();
        assert_eq!(memory.read(2 * PAGE), 0);
        assert!(guard.tripped());
        assert_eq!(memory.read(0), 0);
    }

    #[test]
    fn other_faults_still_end_the_process() {
        let guarded = Vanished::new(1);
        // SAFETY: as above. It installs the handler.
        let guard = unsafe { Guard::new(guarded.start, PAGE, Cover::Ones) }.unwrap();
        let other = Vanished::new(1);
        // SAFETY: the child only reads memory and ends; it takes no lock and allocates nothing.
        let child = unsafe { libc::fork() };
        if child == 0 {
            other.read(0);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        if libc::WIFSIGNALED(status) {
            assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
        } else {
            // A sanitizer was here before, and has ended the child in its own way.
            assert_ne!(libc::WEXITSTATUS(status), 0, "the fault was swallowed");
        }
        drop(guard);
    }
}

//! File leases (`fcntl(2)`, `F_SETLEASE`): the kernel holds up another opener until the holder of
//! the lease has agreed.
//!
//! A break is announced by a signal. It is sent to one thread, with `SIGURG`, which that thread has
//! blocked and takes with `sigtimedwait(2)`: no handler is installed, and no other thread or signal
//! of the process is concerned. `SIGURG` is ignored by default, so nothing is lost when it comes
//! too late.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// From `linux/fcntl.h` and `asm-generic/fcntl.h`.
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

const NOTICE: libc::c_int = libc::SIGURG;

#[repr(C)]
struct OwnerEx {
    kind: libc::c_int,
    id: libc::pid_t,
}

/// What a lease keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// Opening for writing; the file must not be open for writing.
    Read,
    /// Opening for anything; the file must not be open elsewhere at all.
    Write,
}

/// Takes a lease on an open file. Notice of a break goes to the thread named by
/// `BreakNotice::direct`, and before that is named, as an ignored signal, to the process.
///
/// # Errors
/// `EAGAIN` while the file is open elsewhere; `EACCES` without the right to (not the owner, and no
/// `CAP_LEASE`); `EINVAL` where the filesystem has no leases.
pub fn take_lease(file: &File, kind: LeaseKind) -> io::Result<()> {
    // Before the lease, for the default signal (SIGIO) would end the process.
    // SAFETY: plain integers.
    if unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, NOTICE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    set_lease(
        file,
        match kind {
            LeaseKind::Read => libc::F_RDLCK,
            LeaseKind::Write => libc::F_WRLCK,
        },
    )
}

/// Gives a lease back: an opener that waits for it continues.
///
/// # Errors
/// The errno of `fcntl`.
pub fn give_lease_back(file: &File) -> io::Result<()> {
    set_lease(file, libc::F_UNLCK)
}

fn set_lease(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The held lease or, while it is being broken, the lease to downgrade to.
///
/// # Errors
/// The errno of `fcntl`.
pub(super) fn lease_of(file: &File) -> io::Result<Option<LeaseKind>> {
    // SAFETY: no argument.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) } {
        libc::F_RDLCK => Ok(Some(LeaseKind::Read)),
        libc::F_WRLCK => Ok(Some(LeaseKind::Write)),
        libc::F_UNLCK => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How long the kernel holds an opener up before it breaks the lease by force; `None` for no limit.
pub(super) fn lease_break_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap_or_default();
    match text.trim().parse() {
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // The kernel's default.
        Err(_) => Some(Duration::from_secs(45)),
    }
}

/// The calling thread takes notice of breaks.
#[derive(Debug)]
pub(super) struct BreakNotice {
    set: libc::sigset_t,
    /// It is for one thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl BreakNotice {
    /// Blocks the signal in the calling thread.
    ///
    /// # Errors
    /// The errno of `pthread_sigmask`.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: all-zero bytes are a valid `sigset_t`.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: a set of ours.
        unsafe { libc::sigemptyset(&raw mut set) };
        // SAFETY: as above.
        unsafe { libc::sigaddset(&raw mut set, NOTICE) };
        // SAFETY: a set of ours; the old one is not asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Self {
            set,
            _thread: std::marker::PhantomData,
        })
    }

    /// Breaks of this file's lease are announced to the calling thread.
    ///
    /// # Errors
    /// The errno of `fcntl`.
    pub(super) fn direct(&self, file: &File) -> io::Result<()> {
        let owner = OwnerEx {
            kind: F_OWNER_TID,
            // SAFETY: no argument.
            id: unsafe { libc::gettid() },
        };
        // SAFETY: a structure as the kernel reads it, alive during the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Sleeps until there was a break or a call of [`wake`], at most for so long.
    pub(super) fn wait(&self, timeout: Duration) {
        let timeout = libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: a set and a time of ours; what came with the signal is not asked for.
        unsafe {
            libc::sigtimedwait(
                &raw const self.set,
                std::ptr::null_mut(),
                &raw const timeout,
            )
        };
    }
}

/// Ends the [`BreakNotice::wait`] of a thread, or its next one.
pub(super) fn wake<T>(thread: &JoinHandle<T>) {
    // SAFETY: a thread that was not joined, for its handle is there. The signal is ignored where it
    // is not blocked.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), NOTICE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;
    use std::time::Instant;

    #[test]
    fn a_break_is_noticed_by_one_thread_and_holds_the_opener_up() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        if let Err(error) = take_lease(&file, LeaseKind::Write) {
            println!("SKIPPED: no leases here: {error}");
            return;
        }
        let noticed = std::thread::scope(|scope| {
            let (ready, go) = std::sync::mpsc::channel();
            let (file, path) = (&file, &path);
            let watcher = scope.spawn(move || {
                let notice = BreakNotice::new().unwrap();
                notice.direct(file).unwrap();
                assert_eq!(lease_of(file).unwrap(), Some(LeaseKind::Write));
                ready.send(()).unwrap();
                let start = Instant::now();
                while lease_of(file).unwrap() == Some(LeaseKind::Write) {
                    notice.wait(Duration::from_secs(60));
                    assert!(start.elapsed() < Duration::from_secs(60), "no notice");
                }
                let left = lease_of(file).unwrap();
                give_lease_back(file).unwrap();
                left
            });
            go.recv().unwrap();
            let polite = File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path);
            let error = polite.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            watcher.join().unwrap()
        });
        assert_eq!(noticed, Some(LeaseKind::Read));
        take_lease(&file, LeaseKind::Write).unwrap();
        let other = File::open("/proc/self/exe").unwrap();
        drop(other);
        give_lease_back(&file).unwrap();
        let _reader = File::open(&path).unwrap();
        let error = take_lease(&file, LeaseKind::Write).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

//! A file of the host that this process holds: locked, leased, and looked after while it is open.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::bytelock::unlock_bytes;
use super::gate::{GateState, WriteGate};
use super::lease::{
    BreakNotice, LeaseKind, give_lease_back, lease_break_time, lease_of, take_lease, wake,
};
use super::loopstat::{FileId, loop_device_of};
use crate::error::{Error, ErrorKind, Result};

/// How long writes wait for another opener to close the file again, before they are refused for
/// good: one that may write, and one that only reads (`file`, a short `cp`).
const WRITER_GRACE: Duration = Duration::from_secs(2);
/// See [`WRITER_GRACE`]. Shorter than the default deadline of a command.
const READER_GRACE: Duration = Duration::from_secs(10);
/// How often the lease is asked for meanwhile.
const RETRY: Duration = Duration::from_millis(5);
/// Longer than the step of the clock that file times are taken from (a jiffy, 10 ms at most).
const CLOCK_STEP: Duration = Duration::from_millis(20);
/// Writes under way get so long, or less where the kernel breaks leases earlier.
const LONGEST_DRAIN: Duration = Duration::from_secs(30);
/// How often a file without a lease is looked at, besides each sync: a program may never sync.
const LOOK_WITHOUT_LEASE: Duration = Duration::from_secs(5);
/// The watcher checks the lease this often even without a notice, or more often where the kernel
/// breaks leases early ([`look_interval`]).
const LOOK: Duration = Duration::from_secs(60);

/// Why a file may not be written any more.
#[derive(Debug, Clone, PartialEq, Eq)]
enum LostReason {
    /// Another process opened it and keeps it open; the loop device, if it is one.
    Opened(Option<String>),
    /// Another process changed it.
    Changed,
    /// It had so many bytes, and has so many now.
    Shorter(u64, u64),
    /// Another process was let in before writing had stopped.
    Forced,
    /// This process is a child of the one that has it.
    Inherited,
}

impl LostReason {
    fn error(&self) -> Error {
        let stopped = "writing has stopped: close it, and check it before it is used again";
        match self {
            Self::Opened(Some(device)) => Error::new(
                ErrorKind::Busy,
                format!("the image was attached to {device} while it was open here, and {stopped}"),
            ),
            Self::Opened(None) => Error::new(
                ErrorKind::Busy,
                format!(
                    "another process opened the image while it was open here (fuser -v FILE), and {stopped}"
                ),
            ),
            Self::Changed => Error::new(
                ErrorKind::Busy,
                format!("another process changed the image while it was open here, and {stopped}"),
            ),
            Self::Shorter(was, is) => Error::new(
                ErrorKind::Io,
                format!(
                    "the image was cut from {was} to {is} bytes while it was open here, and {stopped}"
                ),
            ),
            Self::Forced => Error::new(
                ErrorKind::Busy,
                format!(
                    "the kernel let another process open the image before this one had answered \
                     (/proc/sys/fs/lease-break-time), and {stopped}"
                ),
            ),
            Self::Inherited => Error::new(
                ErrorKind::Busy,
                "the image was opened before fork, and belongs to the parent process: open it again here",
            ),
        }
    }
}

/// How far a file is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeldWatch {
    /// Not at all: it is only read, or is a device that the kernel keeps from others.
    None,
    /// No other process can open it unnoticed.
    Lease,
    /// By looking again at each sync and before each write, for there is no lease to be had.
    Looks,
}

/// An open file with its locks. They go when this is dropped, not when the last descriptor is
/// closed: a child of another thread has a copy of it between fork and exec.
#[derive(Debug)]
pub struct HeldFile {
    shared: Arc<HeldShared>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct HeldShared {
    file: Arc<File>,
    gate: Arc<WriteGate>,
    watch: HeldWatch,
    len_bytes: u64,
    id: FileId,
    lost: OnceLock<LostReason>,
    stop: AtomicBool,
    /// The process that opened it.
    pid: u32,
}

/// What shows that a file was changed.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    len_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            len_bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl HeldFile {
    /// A file that is not looked after: for reading, or a device.
    ///
    /// # Errors
    /// The errno of `fstat`.
    pub fn unwatched(file: File) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(HeldShared::new(file, HeldWatch::None)?),
            watcher: None,
        })
    }

    /// A file to be written, without a lease: it is looked at again at each sync and each write,
    /// and by a thread every few seconds.
    ///
    /// # Errors
    /// The errno of `fstat`, or that of starting the thread.
    pub fn looked_at(file: File) -> io::Result<Self> {
        let shared = Arc::new(HeldShared::new(file, HeldWatch::Looks)?);
        let for_watcher = Arc::clone(&shared);
        let watcher = super::spawn_thread("xtent-look", move || for_watcher.look_now_and_then())?;
        Ok(Self {
            shared,
            watcher: Some(watcher),
        })
    }

    /// A file to be written, with a write lease ([`take_lease`]) that was just taken on it. A
    /// thread notices when it is broken.
    ///
    /// # Errors
    /// The errno of `fstat`, or that of starting the thread.
    pub fn leased(file: File) -> io::Result<Self> {
        let shared = Arc::new(HeldShared::new(file, HeldWatch::Lease)?);
        let for_watcher = Arc::clone(&shared);
        let watcher = super::spawn_thread("xtent-lease", move || for_watcher.watch())?;
        Ok(Self {
            shared,
            watcher: Some(watcher),
        })
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.shared.file
    }

    /// The gate that every write to it passes.
    pub fn gate(&self) -> &Arc<WriteGate> {
        &self.shared.gate
    }

    /// Device and inode number.
    pub fn id(&self) -> FileId {
        self.shared.id
    }

    /// Before a write that ends at this byte, where there is no lease that would tell of a file
    /// that is cut short: whether it is still that long.
    #[inline]
    pub fn has(&self, end_bytes: u64) -> bool {
        self.shared.watch != HeldWatch::Looks || self.shared.look_at_len(end_bytes)
    }

    /// Looks again: whether the file is still this process's alone, and as long as it was.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another process has it or changed it, [`ErrorKind::Io`] when it was
    /// cut short. Writing has stopped then.
    pub fn look_again(&self) -> Result<()> {
        self.shared.look_again();
        match self.lost() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Why writing has stopped, if it has.
    pub fn lost(&self) -> Option<Error> {
        match self.shared.lost.get() {
            Some(lost) => Some(lost.error()),
            None if self.shared.is_inherited() => Some(LostReason::Inherited.error()),
            None => None,
        }
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        if self.shared.is_inherited() {
            // Lease and locks are the parent's, which are given up through any descriptor of the
            // file, and so is the thread.
            std::mem::forget(self.watcher.take());
            return;
        }
        self.shared.stop.store(true, Ordering::Release);
        if let Some(watcher) = self.watcher.take() {
            wake(&watcher);
            watcher.thread().unpark();
            // It does not panic; were it to, there would be nothing to add.
            let _ = watcher.join();
        }
        // What was not held is given up without effect.
        let file = &*self.shared.file;
        let _ = give_lease_back(file);
        let _ = unlock_bytes(file);
        let _ = file.unlock();
    }
}

impl HeldShared {
    fn new(file: File, watch: HeldWatch) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            file: Arc::new(file),
            gate: Arc::default(),
            watch,
            len_bytes: meta.len(),
            id: FileId::of(&meta),
            lost: OnceLock::new(),
            stop: AtomicBool::new(false),
            pid: std::process::id(),
        })
    }

    /// Whether this is a child, by `fork(2)`, of the process that opened it.
    fn is_inherited(&self) -> bool {
        self.pid != std::process::id()
    }

    /// Refuses every write from now on.
    fn lose(&self, lost: LostReason) {
        if self.lost.set(lost).is_ok() {
            self.gate.set(GateState::Closed);
            if let Some(lost) = self.lost.get() {
                // Each later write and sync returns it, but a controller that is served has no such
                // caller.
                tracing::warn!("{}", lost.error());
            }
        }
    }

    #[cold]
    fn look_at_len(&self, end_bytes: u64) -> bool {
        match self.file.metadata() {
            Ok(meta) if meta.len() >= end_bytes.min(self.len_bytes) => true,
            Ok(meta) => {
                self.lose(LostReason::Shorter(self.len_bytes, meta.len()));
                false
            }
            Err(_) => false,
        }
    }

    fn look_again(&self) {
        if self.watch == HeldWatch::None || !self.look_at_len(self.len_bytes) {
            return;
        }
        if self.watch == HeldWatch::Looks
            && let Some(name) = loop_device_of(self.id)
        {
            self.lose(LostReason::Opened(Some(format!("/dev/{name}"))));
        }
    }

    /// The thread of a file without a lease.
    fn look_now_and_then(&self) {
        while !self.stop.load(Ordering::Acquire) && self.lost.get().is_none() {
            std::thread::park_timeout(LOOK_WITHOUT_LEASE);
            self.look_again();
        }
    }

    /// The watcher's thread.
    fn watch(&self) {
        let notice = BreakNotice::new().and_then(|notice| {
            notice.direct(&self.file)?;
            Ok(notice)
        });
        let Ok(notice) = notice else {
            // Plain calls with right arguments. Without notice there is no safe way to go on.
            self.lose(LostReason::Forced);
            return;
        };
        while !self.stop.load(Ordering::Acquire) {
            let grace = match lease_of(&self.file) {
                Ok(Some(LeaseKind::Write)) => {
                    notice.wait(look_interval());
                    continue;
                }
                Ok(Some(LeaseKind::Read)) => READER_GRACE,
                _ => WRITER_GRACE,
            };
            if !self.answer_break(&notice, grace) {
                return;
            }
        }
    }

    /// Another opener waits. Stops writing, lets it in, and resumes writing once no other
    /// descriptor of the file exists and the file is unchanged: so it is when the opener only
    /// probed it, or found the locks. False when writing has stopped permanently.
    fn answer_break(&self, notice: &BreakNotice, grace: Duration) -> bool {
        self.gate.set(GateState::Paused);
        let time = lease_break_time().map_or(LONGEST_DRAIN, |time| LONGEST_DRAIN.min(time / 2));
        let drained = self.gate.drain(Instant::now() + time);
        if !drained {
            self.lose(LostReason::Forced);
        }
        // What the opener changes gets another time than what was written here.
        std::thread::sleep(CLOCK_STEP);
        let before = Stamp::of(&self.file);
        if give_lease_back(&self.file).is_err() {
            self.lose(LostReason::Forced);
        }
        let (Ok(before), true) = (before, drained) else {
            self.lose(LostReason::Forced);
            return false;
        };
        let until = Instant::now() + grace;
        while self.lost.get().is_none() && !self.stop.load(Ordering::Acquire) {
            match take_lease(&self.file, LeaseKind::Write) {
                // A lease that was given back took the owner of its signal with it
                // (`lease_modify()`).
                Ok(()) if notice.direct(&self.file).is_ok() => return self.go_on(&before),
                Ok(()) => self.lose(LostReason::Forced),
                Err(_) if Instant::now() > until => self.lose(LostReason::Opened(None)),
                Err(_) => {
                    if let Some(name) = loop_device_of(self.id) {
                        self.lose(LostReason::Opened(Some(format!("/dev/{name}"))));
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
        false
    }

    /// The lease is back: writes pass again if nothing was changed.
    fn go_on(&self, before: &Stamp) -> bool {
        match Stamp::of(&self.file) {
            Ok(now) if now == *before => {
                self.gate.set(GateState::Open);
                return true;
            }
            Ok(now) if now.len_bytes < self.len_bytes => {
                self.lose(LostReason::Shorter(self.len_bytes, now.len_bytes));
            }
            _ => self.lose(LostReason::Changed),
        }
        false
    }
}

/// How often the lease is checked: a missed notice leaves time for the drain before the kernel's
/// deadline.
fn look_interval() -> Duration {
    lease_break_time().map_or(LOOK, |time| LOOK.min(time / 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn leased(len_bytes: u64) -> Option<(tempfile::TempPath, HeldFile)> {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = open(&path);
        file.set_len(len_bytes).unwrap();
        if let Err(error) = take_lease(&file, LeaseKind::Write) {
            println!("SKIPPED: no leases here: {error}");
            return None;
        }
        Some((path, HeldFile::leased(file).unwrap()))
    }

    fn settled(held: &HeldFile) -> GateState {
        let start = Instant::now();
        loop {
            let state = held.gate().state();
            if state == GateState::Closed || start.elapsed() > Duration::from_secs(60) {
                return state;
            }
            if state == GateState::Open && start.elapsed() > WRITER_GRACE {
                return state;
            }
            std::thread::sleep(RETRY);
        }
    }

    #[test]
    fn an_opener_that_stays_stops_writing_for_good() {
        let Some((path, held)) = leased(8192) else {
            return;
        };
        let mut writer = held.gate().writer();
        writer.enter().unwrap();
        std::thread::scope(|scope| {
            let opener = scope.spawn(|| open(&path));
            std::thread::sleep(Duration::from_millis(200));
            assert!(!opener.is_finished(), "a write is under way");
            writer.leave();
            let other = opener.join().unwrap();
            assert_eq!(writer.enter(), Err(GateState::Paused));
            assert!(!writer.enter_waiting());
            drop(other);
        });
        let error = held.look_again().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert_eq!(settled(&held), GateState::Closed, "for good");
    }

    #[test]
    fn one_that_only_asks_or_closes_it_unchanged_does_not() {
        let Some((path, held)) = leased(8192) else {
            return;
        };
        let polite = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        // It may meet the moment in which the lease is taken back, and be let in.
        drop(polite);
        drop(File::open(&path).unwrap());
        drop(open(&path));
        assert_eq!(settled(&held), GateState::Open);
        held.look_again().unwrap();
        assert_eq!(lease_of(held.file()).unwrap(), Some(LeaseKind::Write));
        // The lease that was taken again announces its break, too. Without a notice the kernel lets
        // this one in by force, while the gate is open.
        let other = File::open(&path).unwrap();
        assert_ne!(held.gate().state(), GateState::Open);
        drop(other);
    }

    #[test]
    fn a_change_or_a_cut_is_noticed() {
        use std::os::unix::fs::FileExt;
        let Some((path, held)) = leased(8192) else {
            return;
        };
        open(&path).write_all_at(b"x", 100).unwrap();
        assert_eq!(settled(&held), GateState::Closed);
        assert_eq!(held.lost().unwrap().kind(), ErrorKind::Busy);

        let Some((path, held)) = leased(8192) else {
            return;
        };
        open(&path).set_len(4096).unwrap();
        assert_eq!(settled(&held), GateState::Closed);
        let error = held.look_again().unwrap_err();
        assert!(error.to_string().contains("8192 to 4096"), "{error}");
    }

    #[test]
    fn without_a_lease_a_cut_is_noticed_by_the_next_write_beyond_it() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = open(&path);
        file.set_len(8192).unwrap();
        let held = HeldFile::looked_at(file).unwrap();
        assert!(held.has(8192));
        held.look_again().unwrap();
        open(&path).set_len(4096).unwrap();
        assert!(held.has(4096) && !held.has(8192));
        assert_eq!(held.look_again().unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(held.gate().state(), GateState::Closed);
    }

    #[test]
    fn a_forked_child_neither_writes_nor_gives_the_lease_away() {
        let Some((_path, held)) = leased(8192) else {
            return;
        };
        let mut writer = held.gate().writer();
        writer.enter().unwrap();
        writer.leave();
        // SAFETY: the child runs only the code below and exits without returning to the test
        // harness.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = writer.enter() == Err(GateState::Closed) && !writer.enter_waiting();
            drop(held);
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!refused)) };
        }
        let mut status = -1;
        // SAFETY: a child of this process that is not waited for elsewhere, and an integer.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!((ended, status), (child, 0));
        assert_eq!(lease_of(held.file()).unwrap(), Some(LeaseKind::Write));
        writer.enter().unwrap();
        held.look_again().unwrap();
    }

    #[test]
    fn what_a_child_inherited_holds_nothing() {
        let Some((path, held)) = leased(8192) else {
            return;
        };
        held.file().try_lock().unwrap();
        let inherited = held.file().try_clone().unwrap();
        drop(held);
        open(&path).try_lock().unwrap();
        drop(inherited);
    }
}

//! Descriptors that another process has sent, and how they are closed.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::memfd::{is_eventfd, is_memory};

/// Descriptors waiting to be closed from which on no more are taken of any peer.
const MOST_UNCLOSED: usize = 128;
/// The longest wait for the closing thread to close one more, before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(2);

/// Descriptors that came with a message. Nothing is known of them: any use but [`is_memory`] or
/// [`is_eventfd`] may block, `close` included, which a FUSE filesystem may keep waiting
/// (`fuse_flush()`). So a drop closes memory and event counters, and leaves the rest to a thread
/// that does nothing else.
///
/// A process that holds a descriptor whose `close` never returns ends, but is not reaped before the
/// filesystem answers or is unmounted (`umount -f`).
#[derive(Debug, Default)]
pub struct PeerFds(pub Vec<OwnedFd>);

impl Deref for PeerFds {
    type Target = [OwnedFd];

    fn deref(&self) -> &[OwnedFd] {
        &self.0
    }
}

impl Drop for PeerFds {
    fn drop(&mut self) {
        for fd in self.0.drain(..) {
            if is_memory(&fd) || is_eventfd(&fd) {
                drop(fd);
            } else {
                CLOSER.close(fd);
            }
        }
    }
}

/// Whether so many descriptors of peers cannot be closed that no more may be taken. Waits a little
/// for a thread that is only behind.
pub(super) fn are_stuck() -> bool {
    CLOSER.is_stuck(MOST_UNCLOSED, PATIENCE)
}

static CLOSER: Closer = Closer::new();

/// The closing thread, started with the first descriptor.
struct Closer {
    work: Mutex<Work>,
    progress: Condvar,
    /// The way to the thread; `None` when it could not be started.
    give: OnceLock<Option<Mutex<Sender<OwnedFd>>>>,
}

struct Work {
    /// Descriptors that were given and are not closed.
    unclosed: usize,
    /// Descriptors that were closed so far.
    closed: u64,
    /// A wait for the thread to close one more was in vain, and it has closed none since.
    stuck: bool,
}

impl Closer {
    const fn new() -> Self {
        Self {
            work: Mutex::new(Work {
                unclosed: 0,
                closed: 0,
                stuck: false,
            }),
            progress: Condvar::new(),
            give: OnceLock::new(),
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stuck(&self, most: usize, patience: Duration) -> bool {
        let mut work = self.work();
        while work.unclosed >= most && !work.stuck {
            let before = work.closed;
            let waited = self
                .progress
                .wait_timeout_while(work, patience, |work| work.closed == before);
            work = waited.unwrap_or_else(PoisonError::into_inner).0;
            work.stuck = work.closed == before;
        }
        work.unclosed >= most
    }

    fn close(&'static self, fd: OwnedFd) {
        self.work().unclosed += 1;
        let give = self.give.get_or_init(|| {
            let (give, take) = channel::<OwnedFd>();
            let close = move || take.into_iter().for_each(|fd| self.close_here(fd));
            let thread = super::spawn_small_thread("xtent closer", 64 << 10, close);
            thread.ok().map(|_| Mutex::new(give))
        });
        let unsent = match give {
            Some(give) => {
                let give = give.lock().unwrap_or_else(PoisonError::into_inner);
                give.send(fd).err().map(|unsent| unsent.0)
            }
            None => Some(fd),
        };
        // Without the thread it stays open, and counts.
        if let Some(fd) = unsent {
            std::mem::forget(fd);
        }
    }

    fn close_here(&self, fd: OwnedFd) {
        drop(fd);
        let mut work = self.work();
        work.unclosed -= 1;
        work.closed += 1;
        work.stuck = false;
        drop(work);
        self.progress.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_of_every_kind_are_closed() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let memory = super::super::memory_file(4096, false).unwrap();
        drop(PeerFds(vec![null.into(), there.into(), memory.into()]));
        // The other end is seen to be closed, before long.
        let mut byte = [0];
        match here.read(&mut byte) {
            Ok(0) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_thread_that_is_behind_is_waited_for_and_one_that_is_stuck_is_not() {
        static BEHIND: Closer = Closer::new();
        BEHIND.work().unclosed = 3;
        let slow = std::thread::spawn(|| {
            for _ in 0..2 {
                let null = File::open("/dev/null").unwrap();
                BEHIND.close_here(null.into());
            }
        });
        assert!(!BEHIND.is_stuck(2, Duration::from_secs(60)));
        slow.join().unwrap();
        assert!(BEHIND.is_stuck(1, Duration::from_millis(1)));
        // Known by now.
        assert!(BEHIND.is_stuck(1, Duration::from_secs(3600)));
        BEHIND.close_here(File::open("/dev/null").unwrap().into());
        assert!(!BEHIND.is_stuck(1, Duration::from_secs(3600)));
    }
}

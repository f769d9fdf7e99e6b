//! Event counters: how the kernel tells of an interrupt or a request, and how threads wake each
//! other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::aio;

/// A kernel counter (`eventfd`) that one side raises and the other waits for.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    /// Another process has it too, and may clear O_NONBLOCK, fill the counter and drain it at any
    /// time.
    shared: bool,
}

impl EventFd {
    /// A counter at zero, closed on exec.
    ///
    /// # Errors
    /// The errno of `eventfd`, usually `EMFILE`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes two plain integers and touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, shared: false })
    }

    /// As [`EventFd::new`], for a counter that is sent to another process: no call of this type
    /// blocks on it, whatever the peer does to the counter and its flags.
    ///
    /// # Errors
    /// As for [`EventFd::new`].
    pub fn shared() -> io::Result<Self> {
        Self::new().map(|event| Self {
            shared: true,
            ..event
        })
    }

    /// The counter that another process has sent, to be raised. As for [`EventFd::shared`], nothing
    /// that the peer does to it makes a call block.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for any other kind of descriptor; the errno of `io_setup` or
    /// `fcntl`.
    pub fn of_peer(fd: BorrowedFd<'_>) -> io::Result<Self> {
        // First: a copy of another kind of descriptor could not be closed safely (see `PeerFds`).
        if !super::is_eventfd(fd) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        aio::prepare()?;
        let fd = fd.try_clone_to_owned()?;
        Ok(Self { fd, shared: true })
    }

    /// Adds one and wakes the waiters.
    pub fn raise(&self) {
        if self.shared {
            return aio::signal(self.fd.as_fd());
        }
        let one = 1_u64;
        // SAFETY: eight readable bytes. It fails only when the counter is full, and then it wakes
        // as well.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Sets the counter back to zero; whether it was above.
    #[must_use]
    pub fn take(&self) -> bool {
        let mut count = 0_u64;
        if self.shared {
            let place = libc::iovec {
                iov_base: (&raw mut count).cast(),
                iov_len: 8,
            };
            // SAFETY: one range of eight writable bytes; RWF_NOWAIT keeps the call from blocking
            // even where the peer has cleared O_NONBLOCK.
            let got = unsafe {
                libc::preadv2(
                    self.fd.as_raw_fd(),
                    &raw const place,
                    1,
                    -1,
                    libc::RWF_NOWAIT,
                )
            };
            return got == 8 && count > 0;
        }
        // SAFETY: eight writable bytes; the descriptor does not block.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        got == 8 && count > 0
    }

    /// Sleeps until the counter is above zero, for `timeout` at most (`None` for ever; rounded up
    /// to a millisecond), and sets it back. Says whether it was raised. A signal ends the sleep
    /// early, as "no".
    ///
    /// # Errors
    /// The errno of `poll`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let [raised] = Self::wait_any([self], timeout)?;
        Ok(raised)
    }

    /// As [`EventFd::wait`], for several counters: which of them were raised. They are set back.
    ///
    /// # Errors
    /// The errno of `poll`.
    pub fn wait_any<const N: usize>(
        events: [&Self; N],
        timeout: Option<Duration>,
    ) -> io::Result<[bool; N]> {
        let mut polled = events.map(|event| libc::pollfd {
            fd: event.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        let milliseconds = timeout.map_or(-1, |t| {
            i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: `polled` is an array of this many initialised entries that the kernel may write
        // to.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, milliseconds) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok([false; N]),
                _ => Err(error),
            };
        }
        Ok(events.map(Self::take))
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raise_is_seen_once() {
        let event = EventFd::new().unwrap();
        assert!(!event.wait(Some(Duration::ZERO)).unwrap());
        event.raise();
        event.raise();
        assert!(event.wait(None).unwrap());
        assert!(!event.take());
    }

    #[test]
    fn a_shared_counter_never_blocks() {
        let event = EventFd::new().unwrap();
        let copy = || event.fd.try_clone().unwrap();
        let peers = EventFd::of_peer(event.as_fd()).unwrap();
        peers.raise();
        assert!(event.take());
        // The peer makes it block, and fills it: a `write` of one would wait forever.
        // SAFETY: plain integers.
        unsafe { libc::fcntl(event.fd.as_raw_fd(), libc::F_SETFL, 0) };
        let full = u64::MAX - 1;
        // SAFETY: eight readable bytes.
        unsafe { libc::write(event.fd.as_raw_fd(), (&raw const full).cast(), 8) };
        for _ in 0..200 {
            peers.raise();
        }
        let mut shared = EventFd::shared().unwrap();
        shared.fd = copy();
        assert!(shared.take());
        // Empty, and blocking: a `read` would wait forever.
        assert!(!shared.take());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(EventFd::of_peer(file.as_fd()).is_err());
    }

    #[test]
    fn a_peer_that_fills_the_counter_at_any_moment_blocks_nothing() {
        let event = EventFd::new().unwrap();
        let copy = || event.fd.try_clone().unwrap();
        let peers = EventFd::of_peer(event.as_fd()).unwrap();
        let mut shared = EventFd::shared().unwrap();
        shared.fd = copy();
        let filler = copy();
        // The peer fills the counter as soon as there is room. It is left behind when the test
        // ends.
        std::thread::spawn(move || {
            let full = u64::MAX - 1;
            loop {
                // SAFETY: plain integers.
                unsafe { libc::fcntl(filler.as_raw_fd(), libc::F_SETFL, 0) };
                // SAFETY: eight readable bytes.
                let written =
                    unsafe { libc::write(filler.as_raw_fd(), (&raw const full).cast(), 8) };
                if written < 0 {
                    return;
                }
            }
        });
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..20_000 {
                peers.raise();
                let _ = shared.take();
            }
            tell.send(())
        });
        let limit = Duration::from_secs(120);
        told.recv_timeout(limit)
            .expect("the raiser or the reader waits");
    }

    #[test]
    fn waiting_for_several_tells_them_apart() {
        let events = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        events[1].raise();
        let raised = EventFd::wait_any([&events[0], &events[1]], None).unwrap();
        assert_eq!(raised, [false, true]);
    }
}

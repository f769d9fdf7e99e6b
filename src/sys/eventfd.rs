//! Event counters: how the kernel tells of an interrupt or a request, and how threads wake each other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A kernel counter (`eventfd`) that one side raises and the other waits for.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    /// Another process has it too, and may have made it block.
    foreign: bool,
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
        Ok(Self { fd, foreign: false })
    }

    /// The counter that another process hands over, to be raised. It is made not to block, for whoever has
    /// it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for any other kind of descriptor; the errno of `fcntl`.
    pub fn of_peer(fd: OwnedFd) -> io::Result<Self> {
        if !super::is_eventfd(&fd) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: plain integers.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: as above.
        let set = |flags: libc::c_int| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) };
        if flags < 0 || set(flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, foreign: true })
    }

    /// Adds one and wakes whoever waits.
    pub fn raise(&self) {
        if self.foreign && !self.has_room() {
            return;
        }
        let one = 1_u64;
        // SAFETY: eight readable bytes. It fails only when the counter is full, and then it wakes as well.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Whether a raise would not block, even if it might: a counter that is full wakes as well.
    fn has_room(&self) -> bool {
        let mut polled = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one initialised entry that the kernel may write to.
        unsafe { libc::poll(&raw mut polled, 1, 0) > 0 }
    }

    /// Sets the counter back to zero; whether it was above.
    #[must_use]
    pub fn take(&self) -> bool {
        let mut count = 0_u64;
        // SAFETY: eight writable bytes; the descriptor does not block.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        got == 8 && count > 0
    }

    /// Sleeps until the counter is above zero, for `timeout` at most (`None` for ever; rounded up to a
    /// millisecond), and sets it back. Says whether it was raised. A signal ends the sleep early, as "no".
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
        // SAFETY: `polled` is an array of this many initialised entries that the kernel may write to.
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
    fn a_peers_counter_is_raised_and_never_blocks() {
        let event = EventFd::new().unwrap();
        let peers = EventFd::of_peer(event.fd.try_clone().unwrap()).unwrap();
        peers.raise();
        assert!(event.take());
        let full = u64::MAX - 1;
        // SAFETY: eight readable bytes.
        unsafe { libc::write(event.fd.as_raw_fd(), (&raw const full).cast(), 8) };
        // SAFETY: plain integers.
        unsafe { libc::fcntl(event.fd.as_raw_fd(), libc::F_SETFL, 0) };
        peers.raise();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(EventFd::of_peer(file.into()).is_err());
    }

    #[test]
    fn waiting_for_several_tells_them_apart() {
        let events = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        events[1].raise();
        let raised = EventFd::wait_any([&events[0], &events[1]], None).unwrap();
        assert_eq!(raised, [false, true]);
    }
}

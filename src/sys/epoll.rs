//! Several descriptors as one that polls readable when one of them does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A set of descriptors (`epoll`), for a caller that is given one descriptor to wait for.
#[derive(Debug)]
pub struct EpollSet(OwnedFd);

impl EpollSet {
    /// A set of these. A descriptor leaves it when it is closed.
    ///
    /// # Errors
    /// The errno of `epoll_create1` (usually `EMFILE`) or `epoll_ctl`.
    pub fn new(members: &[BorrowedFd<'_>]) -> io::Result<Self> {
        // SAFETY: the call takes a plain integer and touches no memory of ours.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us alone.
        let set = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        for member in members {
            let mut event = libc::epoll_event {
                events: libc::EPOLLIN.cast_unsigned(),
                u64: 0,
            };
            // SAFETY: `event` outlives the call, which copies it; both descriptors are open.
            let added = unsafe {
                libc::epoll_ctl(
                    set.0.as_raw_fd(),
                    libc::EPOLL_CTL_ADD,
                    member.as_raw_fd(),
                    &raw mut event,
                )
            };
            if added < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(set)
    }
}

impl AsFd for EpollSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::EventFd;

    fn is_readable(set: &EpollSet) -> bool {
        let mut polled = libc::pollfd {
            fd: set.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one initialised entry that the kernel may write to.
        unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
    }

    #[test]
    fn a_set_is_readable_when_a_member_is() {
        let events = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        let set = EpollSet::new(&[events[0].as_fd(), events[1].as_fd()]).unwrap();
        assert!(!is_readable(&set));
        for event in &events {
            event.raise();
            assert!(is_readable(&set));
            assert!(event.take());
            assert!(!is_readable(&set));
        }
    }
}

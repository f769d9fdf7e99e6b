//! Waiting for an [`Io`] by its file descriptor, with epoll or an async runtime.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use super::Io;
use crate::block::Queue;
use crate::error::{Error, Result};
use crate::sys::EventFd;

/// A descriptor that always polls readable, one for the process: that of an [`Io`] whose
/// completions only polling finds.
///
/// # Errors
/// The process has no descriptor left.
pub(super) fn always_ready() -> Result<BorrowedFd<'static>> {
    static EVENT: OnceLock<EventFd> = OnceLock::new();
    if let Some(event) = EVENT.get() {
        return Ok(event.as_fd());
    }
    let event = EventFd::new().map_err(|e| Error::system("cannot make an eventfd", e))?;
    event.raise();
    Ok(EVENT.get_or_init(|| event).as_fd())
}

impl Io {
    /// Prepares for a wait for this handle's descriptor ([`AsFd`]): starts what was submitted, and
    /// makes the descriptor unreadable until another operation ends. Returns false when operations
    /// may have ended already: then poll instead of waiting. Does not wait.
    ///
    /// The order is: [`Io::poll`] until it returns 0, `arm`, and, if that returned true, wait until
    /// the descriptor is readable. Poll at least once a second while operations are in flight,
    /// readable or not: that is how a device that does not answer is noticed.
    ///
    /// With [`Wait::Poll`](crate::target::Wait::Poll), and for `spdk:` targets, the device does not
    /// report completions: `arm` returns false, and the descriptor is always readable.
    ///
    /// ```
    /// # use std::os::fd::{AsFd, AsRawFd};
    /// # use xtent::volume::{File, Io};
    /// # fn wait_for(fd: impl AsFd, milliseconds: i32) {}
    /// # fn read(mut io: Io, file: &File) -> xtent::Result<()> {
    /// let buf = io.alloc(4096)?;
    /// io.submit_read(file, 0, buf, 1)?;
    /// while io.outstanding() > 0 {
    ///     let ended = io.poll(32, |done| println!("{:?}", done.result));
    ///     if ended == 0 && io.arm() {
    ///         wait_for(io.as_fd(), 1000); // epoll, poll(2), tokio's AsyncFd
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn arm(&mut self) -> bool {
        if self.core.direct.has_more() {
            return false;
        }
        self.core.queue.arm() && self.core.queue.outstanding() > 0
    }
}

/// Polls readable when operations have ended since [`Io::arm`].
impl AsFd for Io {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.queue.event_fd().unwrap_or(self.always_ready)
    }
}

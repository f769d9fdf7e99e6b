//! Descriptors that another process has sent, and how they are closed.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::memfd::{is_eventfd, is_memory};

/// Descriptors waiting to be closed from which on no more are taken of any peer.
const MOST_UNCLOSED: usize = 128;

/// Descriptors that came with a message. Nothing is known of them: any use but [`is_memory`] or [`is_eventfd`] may
/// block, `close` included, which a FUSE filesystem may keep waiting (`fuse_flush()`). So a drop closes memory and
/// event counters, and leaves the rest to a thread that does nothing else.
///
/// A process that holds a descriptor whose `close` never returns ends, but is not reaped before the filesystem
/// answers or is unmounted (`umount -f`).
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
                close_elsewhere(fd);
            }
        }
    }
}

/// Descriptors handed to the closing thread that are not closed yet.
static UNCLOSED: AtomicUsize = AtomicUsize::new(0);
/// The way to the closing thread; `None` when it could not be started.
static CLOSER: OnceLock<Option<Mutex<Sender<OwnedFd>>>> = OnceLock::new();

/// Whether so many descriptors of peers cannot be closed that no more may be taken.
pub(super) fn are_stuck() -> bool {
    UNCLOSED.load(Ordering::Relaxed) >= MOST_UNCLOSED
}

fn close_elsewhere(fd: OwnedFd) {
    UNCLOSED.fetch_add(1, Ordering::Relaxed);
    let closer = CLOSER.get_or_init(|| {
        let (give, take) = channel::<OwnedFd>();
        let work = move || {
            for fd in take {
                drop(fd);
                UNCLOSED.fetch_sub(1, Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new()
            .name("xtent closer".to_owned())
            .stack_size(64 << 10);
        thread.spawn(work).ok().map(|_| Mutex::new(give))
    });
    let unsent = match closer {
        Some(closer) => {
            let closer = closer.lock().unwrap_or_else(PoisonError::into_inner);
            closer.send(fd).err().map(|unsent| unsent.0)
        }
        None => Some(fd),
    };
    // Without the thread it stays open, and counts.
    if let Some(fd) = unsent {
        std::mem::forget(fd);
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
}

//! Messages over the socket, whole: what comes is bounded in size, descriptors and time.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zerocopy::{FromZeros, IntoBytes};

use super::wire::{HEADER_BYTES, MessageHeader};
use crate::sys::{PeerFds, receive_with_fds, send_with_fds};

/// How long a receive or a send sleeps before it asks whether to go on.
pub(super) const NAP: Duration = Duration::from_millis(100);

/// One message, as it came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: MessageHeader,
    pub(super) payload: Vec<u8>,
    pub(super) fds: PeerFds,
}

/// Limits of messages from a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes behind a header.
    pub(super) payload_bytes: usize,
    /// Descriptors with a message.
    pub(super) fds: usize,
    /// From a message's first byte to its last, and until it takes a message.
    pub(super) patience: Duration,
}

/// Why a connection cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disconnected {
    /// The peer closed it, between two messages.
    Closed,
    /// The caller asked to stop.
    Stopped,
    /// The peer broke it, or the protocol.
    Broken(&'static str),
}

impl Disconnected {
    /// In words, of the peer.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Closed => "the connection was closed",
            Self::Stopped => "the connection was given up",
            Self::Broken(why) => why,
        }
    }
}

/// Sets the time-outs that [`receive`] and [`send`] count on.
pub(super) fn prepare(socket: &UnixStream) -> io::Result<()> {
    socket.set_read_timeout(Some(NAP))?;
    socket.set_write_timeout(Some(NAP))
}

/// Waits for a message; asks `go_on` again and again while none is there.
pub(super) fn receive(
    socket: &UnixStream,
    bounds: &Bounds,
    mut go_on: impl FnMut() -> bool,
) -> Result<Message, Disconnected> {
    let mut receiver = Receiver {
        socket,
        bounds,
        fds: PeerFds::default(),
        since: None,
    };
    let mut header = MessageHeader::new_zeroed();
    receiver.fill(header.as_mut_bytes(), &mut go_on)?;
    let len = header
        .payload_bytes(bounds.payload_bytes)
        .ok_or(Disconnected::Broken("a message has a size that cannot be"))?;
    let mut payload = vec![0; len];
    receiver.fill(&mut payload, &mut go_on)?;
    Ok(Message {
        header,
        payload,
        fds: receiver.fds,
    })
}

/// A message under way.
struct Receiver<'a> {
    socket: &'a UnixStream,
    bounds: &'a Bounds,
    fds: PeerFds,
    /// When the first byte came.
    since: Option<Instant>,
}

impl Receiver<'_> {
    fn fill(
        &mut self,
        bytes: &mut [u8],
        go_on: &mut impl FnMut() -> bool,
    ) -> Result<(), Disconnected> {
        let mut got = 0;
        while got < bytes.len() {
            match receive_with_fds(self.socket, &mut bytes[got..], &mut self.fds.0) {
                Ok(0) if self.since.is_none() => return Err(Disconnected::Closed),
                Ok(0) => {
                    return Err(Disconnected::Broken(
                        "the connection was cut within a message",
                    ));
                }
                Ok(n) => {
                    got += n;
                    self.since.get_or_insert_with(Instant::now);
                }
                Err(e) if is_a_pause(&e) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    return Err(Disconnected::Broken(
                        "a message has too many file descriptors",
                    ));
                }
                // It left without reading all that was sent to it.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset && self.since.is_none() => {
                    return Err(Disconnected::Closed);
                }
                Err(_) => return Err(Disconnected::Broken("the connection failed")),
            }
            if self.fds.len() > self.bounds.fds {
                return Err(Disconnected::Broken(
                    "a message has too many file descriptors",
                ));
            }
            if !go_on() {
                return Err(Disconnected::Stopped);
            }
            let late = |since: Instant| since.elapsed() > self.bounds.patience;
            if got < bytes.len() && self.since.is_some_and(late) {
                return Err(Disconnected::Broken("a message did not come to its end"));
            }
        }
        Ok(())
    }
}

fn is_a_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Sends a message, all of it; asks `go_on` again and again while the peer takes nothing.
pub(super) fn send(
    socket: &UnixStream,
    message: (&MessageHeader, &[&[u8]], &[BorrowedFd<'_>]),
    patience: Duration,
    go_on: impl Fn() -> bool,
) -> Result<(), Disconnected> {
    let (header, payload, mut fds) = message;
    let since = Instant::now();
    let len = HEADER_BYTES + payload.iter().map(|part| part.len()).sum::<usize>();
    let mut message = Vec::with_capacity(len);
    message.extend_from_slice(header.as_bytes());
    for part in payload {
        message.extend_from_slice(part);
    }
    let mut rest = &message[..];
    while !rest.is_empty() {
        match send_with_fds(socket, rest, fds) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                // They went with the first byte.
                fds = &[];
            }
            Err(e) if is_a_pause(&e) => {
                if !go_on() {
                    return Err(Disconnected::Stopped);
                }
                if since.elapsed() > patience {
                    return Err(Disconnected::Broken("the peer does not read its messages"));
                }
            }
            Err(_) => return Err(Disconnected::Closed),
        }
    }
    Ok(())
}

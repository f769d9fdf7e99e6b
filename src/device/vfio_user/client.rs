//! The client's side of a connection: one request at a time, each with its time-out and its reply
//! checked.
//!
//! A thread receives all the time: it hands replies to the waiting thread, refuses what the server
//! asks for, and notices at once when the connection is cut. After that, and after anything that
//! breaks the protocol, the connection is *gone* for good.

use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::stream::{self, Bounds, Disconnected, Message};
use super::wire::{self, MAJOR, MINOR, MessageHeader, PeerCapabilities};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::spawn_small_thread;

/// The most that is taken behind a header: an access of a region, or its capabilities.
pub(super) const MOST_PAYLOAD_BYTES: usize = 64 << 10;

/// Descriptors that are taken with one message: one for each mappable part of a region.
pub(super) const MOST_REPLY_FDS: usize = 8;

/// A request, and the limits of its reply.
pub(super) struct VfioUserRequest<'a> {
    pub(super) command: u16,
    pub(super) payload: &'a [&'a [u8]],
    pub(super) fds: &'a [BorrowedFd<'a>],
    /// Bytes behind the reply's header.
    pub(super) reply_bytes: std::ops::RangeInclusive<usize>,
    /// Descriptors with the reply, at most.
    pub(super) reply_fds: usize,
}

impl Default for VfioUserRequest<'_> {
    fn default() -> Self {
        Self {
            command: 0,
            payload: &[],
            fds: &[],
            reply_bytes: 0..=0,
            reply_fds: 0,
        }
    }
}

/// A connection to a server, until dropped.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<ClientShared>,
    /// The id of the next request; held while a request is under way.
    turn: Mutex<u16>,
    receiver: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct ClientShared {
    socket: UnixStream,
    /// Held while a message goes out.
    sending: Mutex<()>,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    gone: AtomicBool,
    timeout: Duration,
    /// The device's name, from when it is open on: the loss of its connection is reported then.
    name: OnceLock<String>,
}

/// The one request that may be under way.
#[derive(Debug, Default)]
enum Waiting {
    #[default]
    Idle,
    For {
        id: u16,
        command: u16,
    },
    Arrived(Message),
    Gone(Disconnected),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks is left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Connects, and agrees on a version; what the server says of itself.
    pub(super) fn open(socket: UnixStream, timeout: Duration) -> Result<(Self, PeerCapabilities)> {
        let failed = |e| Error::system("cannot set the socket up", e);
        stream::prepare(&socket).map_err(failed)?;
        let shared = Arc::new(ClientShared {
            socket,
            sending: Mutex::default(),
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            gone: AtomicBool::new(false),
            timeout,
            name: OnceLock::new(),
        });
        let receiver = {
            let shared = Arc::clone(&shared);
            spawn_small_thread("vfio-user", 256 << 10, move || shared.receive())?
        };
        let connection = Self {
            shared,
            turn: Mutex::default(),
            receiver: Some(receiver),
        };
        let capabilities = connection.negotiate()?;
        Ok((connection, capabilities))
    }

    fn negotiate(&self) -> Result<PeerCapabilities> {
        let version = wire::VersionMessage {
            major: MAJOR.into(),
            minor: MINOR.into(),
        };
        let own = PeerCapabilities {
            max_msg_fds: MOST_REPLY_FDS as u64,
            max_data_xfer_size: MOST_PAYLOAD_BYTES as u64 - 64,
            ..PeerCapabilities::default()
        };
        let reply = self.request(&VfioUserRequest {
            command: wire::VERSION,
            payload: &[version.as_bytes(), &own.text()],
            reply_bytes: size_of::<wire::VersionMessage>()..=8192,
            ..VfioUserRequest::default()
        })?;
        let bad = |detail: String| Err(Error::new(ErrorKind::Unsupported, detail));
        let Some((said, text)) = wire::split::<wire::VersionMessage>(&reply.payload) else {
            return bad("the server's version is too short".to_owned());
        };
        let (major, minor) = (said.major.get(), said.minor.get());
        if major != MAJOR || minor > MINOR {
            return bad(format!(
                "the server speaks vfio-user {major}.{minor}, and this client {MAJOR}.{MINOR}"
            ));
        }
        PeerCapabilities::parse(text).or_else(|why| bad(why.to_owned()))
    }

    /// Known to be cut.
    pub(super) fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Acquire)
    }

    /// Cuts it, for something that the server did.
    pub(super) fn cut(&self, why: &'static str) {
        self.shared.cut(Disconnected::Broken(why));
    }

    /// The device is open, with this name: its loss is reported from now on.
    pub(super) fn established(&self, name: &str) {
        let _ = self.shared.name.set(name.to_owned());
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// What the server answered; [`ErrorKind::Timeout`] and [`ErrorKind::DeviceGone`] for a
    /// connection that is of no use any more.
    pub(super) fn request(&self, request: &VfioUserRequest<'_>) -> Result<Message> {
        let mut turn = lock(&self.turn);
        *turn = turn.wrapping_add(1);
        let (id, command) = (*turn, request.command);
        let payload_bytes = request.payload.iter().map(|part| part.len()).sum::<usize>();
        let payload_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        {
            let mut waiting = lock(&self.shared.waiting);
            if let Waiting::Gone(cut) = &*waiting {
                return Err(gone(*cut));
            }
            *waiting = Waiting::For { id, command };
        }
        let header = MessageHeader::command(id, command, payload_bytes);
        let sent = self.shared.send(&header, request.payload, request.fds);
        if let Err(cut) = sent {
            self.shared.cut(cut);
            return Err(gone(cut));
        }
        let reply = self.shared.wait()?;
        self.check(request, reply)
    }

    fn check(&self, request: &VfioUserRequest<'_>, reply: Message) -> Result<Message> {
        let broken = |why| {
            self.shared.cut(Disconnected::Broken(why));
            Err(gone(Disconnected::Broken(why)))
        };
        if let Some(errno) = reply.header.failure() {
            if !reply.payload.is_empty() || !reply.fds.is_empty() {
                return broken("an error came with more than its header");
            }
            let errno = i32::try_from(errno).unwrap_or(0);
            return Err(if (1..4096).contains(&errno) {
                Error::system("the server refused", io::Error::from_raw_os_error(errno))
            } else {
                Error::new(
                    ErrorKind::System,
                    "the server refused, and does not say why",
                )
            });
        }
        if !request.reply_bytes.contains(&reply.payload.len()) {
            return broken("a reply is not as long as it must be");
        }
        if reply.fds.len() > request.reply_fds {
            return broken("a reply has too many file descriptors");
        }
        Ok(reply)
    }
}

impl ClientShared {
    fn send(
        &self,
        header: &MessageHeader,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Disconnected> {
        let _one = lock(&self.sending);
        let go_on = || !self.gone.load(Ordering::Acquire);
        stream::send(&self.socket, (header, payload, fds), self.timeout, go_on)
    }

    fn wait(&self) -> Result<Message> {
        let deadline = Instant::now() + self.timeout;
        let mut waiting = lock(&self.waiting);
        loop {
            match &*waiting {
                Waiting::Arrived(_) => {
                    if let Waiting::Arrived(message) = std::mem::take(&mut *waiting) {
                        return Ok(message);
                    }
                }
                Waiting::Gone(cut) => return Err(gone(*cut)),
                Waiting::For { .. } | Waiting::Idle => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(waiting);
                self.cut(Disconnected::Broken("the server did not answer"));
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "the server did not answer within {} ms",
                        self.timeout.as_millis()
                    ),
                ));
            }
            waiting = self
                .arrived
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The receiving thread.
    fn receive(&self) {
        let bounds = Bounds {
            payload_bytes: MOST_PAYLOAD_BYTES,
            fds: MOST_REPLY_FDS,
            patience: self.timeout,
        };
        let go_on = || !self.gone.load(Ordering::Acquire);
        loop {
            match stream::receive(&self.socket, &bounds, go_on).and_then(|m| self.dispatch(m)) {
                Ok(()) => {}
                Err(cut) => return self.cut(cut),
            }
        }
    }

    fn dispatch(&self, message: Message) -> Result<(), Disconnected> {
        let header = message.header;
        if header.is_command() {
            // All memory is handed over as files; nothing is served by message.
            if header.wants_no_reply() {
                return Ok(());
            }
            let refusal = MessageHeader::error_reply(
                header.id.get(),
                header.command.get(),
                libc::EOPNOTSUPP.unsigned_abs(),
            );
            return self.send(&refusal, &[], &[]);
        }
        if !header.is_reply() {
            return Err(Disconnected::Broken(
                "a message is neither a command nor a reply",
            ));
        }
        let mut waiting = lock(&self.waiting);
        match &*waiting {
            Waiting::For { id, command }
                if *id == header.id.get() && *command == header.command.get() =>
            {
                *waiting = Waiting::Arrived(message);
                self.arrived.notify_all();
                Ok(())
            }
            _ => Err(Disconnected::Broken("a reply belongs to no request")),
        }
    }

    fn cut(&self, cut: Disconnected) {
        self.gone.store(true, Ordering::Release);
        let first = {
            let mut waiting = lock(&self.waiting);
            let first = !matches!(&*waiting, Waiting::Gone(_));
            if first {
                *waiting = Waiting::Gone(cut);
            }
            first
        };
        if first
            && cut != Disconnected::Stopped
            && let Some(name) = self.name.get()
        {
            let reason = cut.words();
            tracing::warn!(device = %name, reason, "the connection to the controller's server is lost");
        }
        self.arrived.notify_all();
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.cut(Disconnected::Stopped);
        if let Some(receiver) = self.receiver.take() {
            // A thread that panicked has nothing more to say.
            let _ = receiver.join();
        }
    }
}

#[cold]
fn gone(cut: Disconnected) -> Error {
    Error::new(ErrorKind::DeviceGone, cut.words())
}

//! The embedded controller on a socket: what SPDK's host, QEMU's `vfio-user-pci` or this crate's
//! own client drive.
//!
//! One thread (the caller's) listens, and talks to one client at a time; the controller's own
//! thread polls the doorbells, which are a page that the client maps, and reads and writes the
//! memory that the client shared. What a client sends is hostile: it can make its own device fail
//! and lose its own connection, and nothing else. Whatever it leaves behind, the next client finds
//! the controller reset, and the blocks as they were written.

mod config_space;
mod irq;
mod layout;
mod memory;
mod reply;
mod session;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::layout::RegionLayout;
use self::session::Session;
use super::stream::{Disconnected, NAP};
use crate::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{connect_unix, listen_unix, memory_limit_bytes, wait_readable};

/// How clients are treated.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The longest time that a message may take from its first byte to its last, and that a new
    /// client may take to say something.
    pub patience: Duration,
    /// Clients may map the doorbells. Without that they write them by message, and the controller
    /// can sleep.
    pub map_doorbells: bool,
    /// The permission bits of the socket, whatever the umask: to connect takes the right to write.
    pub socket_mode: u32,
    /// The most memory that a client may lend at a time, in bytes; `None` for three quarters of
    /// what this process may use ([`memory_limit_bytes`]), and of what its control group has left
    /// and the machine has available at the time. Pages that a client lends without having touched
    /// them are charged to this process once the device touches them, and stay charged while a
    /// client that has left keeps them.
    pub most_lent_bytes: Option<u64>,
}

impl ServerOptions {
    /// [`ServerOptions::most_lent_bytes`], or its default.
    pub fn lent_bytes(&self) -> u64 {
        self.most_lent_bytes
            .unwrap_or_else(|| part(memory_limit_bytes()))
    }
}

/// The part of memory that clients may have.
fn part(bytes: u64) -> u64 {
    bytes / 4 * 3
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(10),
            map_doorbells: true,
            socket_mode: 0o600,
            most_lent_bytes: None,
        }
    }
}

/// What happens while a server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerEvent {
    /// A client has come.
    Connected,
    /// It has closed the connection.
    Left,
    /// It broke the protocol, the connection or its own memory, and was cut off.
    CutOff(&'static str),
    /// Memory that it wanted to lend was refused: commands that use it will fail. Of each client
    /// the first few are told.
    MapRefused {
        /// The device address.
        address: u64,
        /// The length in bytes.
        len_bytes: u64,
        /// The reason.
        why: &'static str,
        /// The errno that the client got.
        errno: i32,
    },
}

/// An embedded controller behind a socket. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode of the socket, to remove no other one.
    identity: (u64, u64),
    listener: UnixListener,
    device: Arc<EmuDevice>,
    options: ServerOptions,
    /// Held while a client is served.
    client: Mutex<()>,
}

impl Server {
    /// Powers a controller on and listens at `socket`; in a directory, at the socket `cntrl` in it
    /// (as SPDK's host looks for it). A stale socket without a listener is replaced.
    ///
    /// # Errors
    /// Those of [`EmuDevice::start`]; [`ErrorKind::InvalidInput`] for more doorbells than a BAR has
    /// room for; [`ErrorKind::Busy`] when another server has the socket; [`ErrorKind::System`] when
    /// it cannot be made.
    pub fn bind(
        socket: impl AsRef<Path>,
        config: EmuConfig,
        options: &ServerOptions,
    ) -> Result<Self> {
        let socket = socket.as_ref();
        let path = if socket.is_dir() {
            socket.join("cntrl")
        } else {
            socket.to_owned()
        };
        Self::bind_at(path, config, options).map_err(|e| {
            e.during("serve")
                .at_path(socket.as_os_str().as_encoded_bytes())
        })
    }

    fn bind_at(path: PathBuf, config: EmuConfig, options: &ServerOptions) -> Result<Self> {
        if config.mode != Mode::Threaded {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a controller that is served needs a thread of its own",
            ));
        }
        RegionLayout::check(&config)?;
        let device = EmuDevice::start(config)?;
        make_room(&path)?;
        let system = |e| Error::system("cannot listen at the socket", e);
        let listener = listen_unix(&path, options.socket_mode).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let identity = identity(&path).map_err(system)?;
        Ok(Self {
            path,
            identity,
            listener,
            device,
            options: options.clone(),
            client: Mutex::default(),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether users besides this one and root can put another socket in its place: by a directory
    /// of its path that they own, or may write to without the sticky bit.
    pub fn is_replaceable(&self) -> bool {
        let Ok(user) = fs::symlink_metadata(&self.path).map(|socket| socket.uid()) else {
            return true;
        };
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        };
        let Ok(directory) = directory.canonicalize() else {
            return true;
        };
        !directory.ancestors().all(|directory| {
            fs::metadata(directory).is_ok_and(|found| {
                let writable = found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0;
                !writable && (found.uid() == 0 || found.uid() == user)
            })
        })
    }

    /// The controller that it serves.
    pub fn device(&self) -> &Arc<EmuDevice> {
        &self.device
    }

    /// Serves one client after the other while `go_on` says so (it is asked about ten times a
    /// second), and tells what happens.
    ///
    /// # Errors
    /// When no client can be accepted any more.
    pub fn serve(&self, go_on: impl Fn() -> bool, mut tell: impl FnMut(ServerEvent)) -> Result<()> {
        while go_on() {
            let Some(socket) = self.accept()? else {
                continue;
            };
            tell(ServerEvent::Connected);
            let ended = self.serve_connection(&socket, &go_on, &mut tell);
            tell(ended);
        }
        Ok(())
    }

    /// Serves the client at the other end of a connection that the caller has, while `go_on` says
    /// so, and tells what happens; how it ended. While another client is served, it waits.
    pub fn serve_connection(
        &self,
        socket: &UnixStream,
        go_on: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(ServerEvent),
    ) -> ServerEvent {
        let _one = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        match self.talk(socket, go_on, tell) {
            Disconnected::Closed | Disconnected::Stopped => ServerEvent::Left,
            Disconnected::Broken(why) => ServerEvent::CutOff(why),
        }
    }

    fn accept(&self) -> Result<Option<UnixStream>> {
        let system = |e| Error::system("cannot accept a client", e).during("serve");
        if !wait_readable(self.listener.as_fd(), NAP).map_err(system)? {
            return Ok(None);
        }
        match self.listener.accept() {
            Ok((socket, _)) => Ok(Some(socket)),
            // The client went away meanwhile, or descriptors are short for the moment.
            Err(e) if is_of_the_moment(&e) => {
                std::thread::sleep(NAP / 10);
                Ok(None)
            }
            Err(e) => Err(system(e)),
        }
    }

    fn talk(
        &self,
        socket: &UnixStream,
        go_on: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(ServerEvent),
    ) -> Disconnected {
        let session = Session::new(&self.device, socket, &self.options, go_on, tell);
        match session {
            Ok(mut session) => session.run(),
            Err(cut) => cut,
        }
    }

    /// Ends the controller orderly: everything written is made durable. The medium may be used
    /// again.
    ///
    /// # Errors
    /// Those of [`EmuDevice::power_off`].
    pub fn finish(self) -> Result<Medium> {
        self.device.power_off()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_of_the_moment(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    let passing = [
        libc::EAGAIN,
        libc::EINTR,
        libc::ECONNABORTED,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EPERM,
    ];
    passing.iter().any(|e| Some(*e) == errno)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Removes a socket that a server left behind; anything else is in the way.
fn make_room(path: &Path) -> Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::system("cannot look at the socket's place", e)),
        Ok(found) => found,
    };
    let busy = |detail: &str| Err(Error::new(ErrorKind::Busy, detail));
    if !found.file_type().is_socket() {
        return busy("there is a file in the socket's place");
    }
    match connect_unix(path, NAP) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|e| Error::system("cannot remove the socket that was left behind", e)),
        _ => busy("another server has this socket"),
    }
}

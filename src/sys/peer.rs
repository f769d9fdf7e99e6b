//! The process at the other end of a Unix socket that a library of this process has connected.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::wait_readable;

/// A connection of this process to a socket, found by the socket's path, and the process that
/// serves it.
#[derive(Debug)]
pub struct SocketPeer {
    /// Another descriptor of the same connection: the other end sees it closed when both are.
    socket: UnixStream,
    /// A descriptor of the process; `None` where it is not known.
    process: Option<OwnedFd>,
}

impl SocketPeer {
    /// The connection of this process to the socket at `path`; `None` when there is none.
    pub fn find(path: &Path) -> Option<Self> {
        let entries = fs::read_dir("/proc/self/fd").ok()?;
        entries.flatten().find_map(|entry| {
            let fd: RawFd = entry.file_name().to_str()?.parse().ok()?;
            leads_to(fd, path).then(|| Self::of(fd)).flatten()
        })
    }

    fn of(fd: RawFd) -> Option<Self> {
        // SAFETY: takes a number, and makes a new descriptor of whatever it names.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return None;
        }
        // SAFETY: the kernel has just made this descriptor for us alone.
        let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(copy) });
        let process = process_of(&socket)
            // A number may be given to another process once the first has ended: it has not, if it
            // still serves.
            .filter(|_| !has_hung_up(&socket));
        Some(Self { socket, process })
    }

    /// Whether the process has ended, and with it its access to memory. False where that is not
    /// known.
    pub fn has_ended(&self) -> bool {
        let process = self.process.as_ref();
        process
            .is_some_and(|process| wait_readable(process.as_fd(), Duration::ZERO).unwrap_or(false))
    }

    /// Whether unread data is in the socket.
    pub fn has_unread(&self) -> bool {
        wait_readable(self.socket.as_fd(), Duration::ZERO).unwrap_or(true)
    }

    /// Sets how long calls on the connection wait for the other end.
    ///
    /// # Errors
    /// Those of `setsockopt`.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(timeout))?;
        self.socket.set_write_timeout(Some(timeout))
    }

    /// Shuts the connection down for all of its users.
    pub fn hang_up(&self) {
        // It may have ended already.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// Whether a descriptor is a connection to the socket at `path`.
fn leads_to(fd: RawFd, path: &Path) -> bool {
    // SAFETY: all-zero bytes are a valid address.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).unwrap_or(0);
    // SAFETY: room for an address of that length; a descriptor that is no socket is an error.
    let rc = unsafe { libc::getpeername(fd, (&raw mut address).cast(), &raw mut len) };
    if rc != 0 || i32::from(address.sun_family) != libc::AF_UNIX {
        return false;
    }
    let given = (len as usize).saturating_sub(offset_of!(libc::sockaddr_un, sun_path));
    let name = address.sun_path.iter().take(given);
    let name = name.map(|c| c.cast_unsigned()).take_while(|&c| c != 0);
    let name: Vec<u8> = name.collect();
    // The server may have given it another name, so it is the file that counts.
    let file = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let theirs = file(Path::new(OsStr::from_bytes(&name)));
    theirs.is_some() && theirs == file(path)
}

/// A descriptor of the process that listened for this connection.
fn process_of(socket: &UnixStream) -> Option<OwnedFd> {
    // SAFETY: plain numbers.
    let mut who: libc::ucred = unsafe { zeroed() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: room for a ucred of that length.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut len,
        )
    };
    // 0 is a process that this one does not see.
    if rc != 0 || who.pid <= 0 {
        return None;
    }
    // SAFETY: takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, who.pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn has_hung_up(socket: &UnixStream) -> bool {
    let mut polled = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one initialised entry that the kernel may write to.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
    ready != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_connection_is_found_by_its_path_and_its_server_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(SocketPeer::find(&path).is_none());
        let _client = UnixStream::connect(&path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let peer = SocketPeer::find(&path).unwrap();
        assert!(SocketPeer::find(&dir.path().join("other")).is_none());
        assert!(peer.process.is_some(), "pidfd_open");
        // It is this very process.
        assert!(!peer.has_ended());
        assert!(!peer.has_unread());
        server.write_all(b"x").unwrap();
        assert!(peer.has_unread());
        peer.hang_up();
        assert!(server.write_all(b"x").is_err());
    }

    #[test]
    fn a_process_that_has_ended_is_known_to_have() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        // SAFETY: takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
        let fd = RawFd::try_from(fd).unwrap();
        assert!(fd >= 0);
        let (socket, _other) = UnixStream::pair().unwrap();
        let peer = SocketPeer {
            socket,
            // SAFETY: just made.
            process: Some(unsafe { OwnedFd::from_raw_fd(fd) }),
        };
        assert!(!peer.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(peer.has_ended());
    }
}

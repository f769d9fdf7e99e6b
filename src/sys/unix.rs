//! Messages with file descriptors over a Unix stream socket (`SCM_RIGHTS`).

use std::fs::{File, Permissions};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::peerfds::{self, PeerFds};

/// The most descriptors that are sent or received at once.
pub const MOST_FDS: usize = 64;

/// Connections that wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// Bytes of one descriptor in a control message.
const FD_BYTES: usize = size_of::<RawFd>();

/// Room for a control message with [`MOST_FDS`] descriptors, aligned as its header.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);
// SAFETY: arithmetic on a constant; no memory is involved.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE(64 * 4) } as usize;
const _: () = assert!(MOST_FDS * FD_BYTES == 64 * 4);

/// Connects to a socket, waiting no longer than `timeout` for a server that is busy.
///
/// # Errors
/// The errno of `socket` or `connect`; [`io::ErrorKind::WouldBlock`] when the time is over;
/// [`io::ErrorKind::InvalidInput`] for a path that is too long for a socket.
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = address_of(path)?;
    let socket = UnixStream::from(new_socket()?);
    socket.set_write_timeout(Some(timeout))?;
    let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: an initialised address of this length.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if done == 0 {
        Ok(socket)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn address_of(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: all-zero bytes are a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    let path = path.as_os_str().as_bytes();
    // One byte stays zero.
    if path.is_empty() || path.len() >= address.sun_path.len() || path.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a socket's path has 1 to 107 bytes",
        ));
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    Ok(address)
}

fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Listens at a new socket with these permission bits, whatever the umask. At no time has the
/// socket more than these.
///
/// # Errors
/// The errno of `socket`, `fchmod`, `bind`, `chmod` or `listen`; [`io::ErrorKind::InvalidInput`]
/// for a path that is too long for a socket. No socket is left behind.
pub fn listen_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let address = address_of(path)?;
    let socket = new_socket()?;
    // The file takes its bits from the socket's own inode, less the umask (unix_bind_bsd() in
    // net/unix/af_unix.c).
    // SAFETY: plain integers.
    if unsafe { libc::fchmod(socket.as_raw_fd(), mode & 0o777) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: an initialised address of this length.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let listen = || {
        allow(path, mode & 0o777)?;
        // SAFETY: plain integers.
        match unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    if let Err(error) = listen() {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(UnixListener::from(socket))
}

/// Gives a socket of this user the bits that the umask has taken from it.
fn allow(path: &Path, mode: u32) -> io::Result<()> {
    let place = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let found = place.metadata()?;
    // SAFETY: no memory is involved.
    let user = unsafe { libc::geteuid() };
    if !found.file_type().is_socket() || found.uid() != user {
        return Err(io::Error::other("another file took the socket's place"));
    }
    if found.mode() & 0o777 == mode {
        return Ok(());
    }
    let name = format!("/proc/self/fd/{}", place.as_raw_fd());
    std::fs::set_permissions(name, Permissions::from_mode(mode))
}

/// Waits until a descriptor can be read from (or accepted from), for `timeout` at most; whether it
/// can. A signal ends the wait early, as "no".
///
/// # Errors
/// The errno of `poll`.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut polled = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one initialised entry that the kernel may write to.
    let ready = unsafe { libc::poll(&raw mut polled, 1, milliseconds) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok(false),
            _ => Err(error),
        };
    }
    Ok(ready > 0)
}

/// Sends bytes, and descriptors with the first of them; how many bytes went out. The socket's own
/// time-out holds; a closed peer is an error, not a signal.
///
/// # Errors
/// The errno of `sendmsg`; [`io::ErrorKind::InvalidInput`] for more than [`MOST_FDS`] descriptors,
/// or for descriptors without a byte to go with.
pub fn send_with_fds(
    socket: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if fds.len() > MOST_FDS || bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut slice = [IoSlice::new(bytes)];
    let mut control = Control([0; CONTROL_BYTES]);
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // An `IoSlice` has the layout of an `iovec`.
    message.msg_iov = slice.as_mut_ptr().cast();
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = u32::try_from(fds.len() * FD_BYTES).map_err(io::Error::other)?;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: arithmetic; at most MOST_FDS descriptors, so it fits `control`.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as usize;
        // SAFETY: the control buffer is aligned and long enough for one header.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: not null, since the buffer holds a header; it is ours alone.
        let header = unsafe { header.as_mut() }.ok_or(io::ErrorKind::InvalidInput)?;
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: arithmetic.
        header.cmsg_len = unsafe { libc::CMSG_LEN(payload) } as usize;
        // SAFETY: the header lies in `control`, with room for the descriptors behind it.
        let data = unsafe { libc::CMSG_DATA(header) };
        for (at, fd) in fds.iter().enumerate() {
            // SAFETY: inside of the room computed above.
            let place = unsafe { data.add(at * FD_BYTES) };
            // SAFETY: as above; a control message promises no alignment for its data.
            unsafe { place.cast::<RawFd>().write_unaligned(fd.as_raw_fd()) };
        }
    }
    loop {
        // SAFETY: the message points to the slice and the control buffer, both alive and
        // initialised.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Receives bytes, 0 at the stream's end, and adds the descriptors that came with them to `fds`,
/// closed on exec. The socket's own time-out holds; a signal is [`io::ErrorKind::Interrupted`].
///
/// # Errors
/// The errno of `recvmsg`; [`io::ErrorKind::InvalidData`] when there were more descriptors than
/// [`MOST_FDS`], or any while too many that peers have sent cannot be closed ([`PeerFds`]). All of
/// this message are closed then.
pub fn receive_with_fds(
    socket: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut slice = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; CONTROL_BYTES]);
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // Without room the kernel keeps the descriptors.
    message.msg_controllen = if peerfds::are_stuck() {
        0
    } else {
        CONTROL_BYTES
    };
    // SAFETY: the message points to the slice over `bytes` and to the control buffer, both
    // writable.
    let got =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let mut received = PeerFds::default();
    // SAFETY: the kernel has filled the message in.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null, or a header that lies in the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: arithmetic.
            let before = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = header.cmsg_len.saturating_sub(before) / FD_BYTES;
            // SAFETY: the header is one of the kernel's, with its data behind it.
            let data = unsafe { libc::CMSG_DATA(header) };
            for at in 0..count {
                // SAFETY: `cmsg_len` counts the bytes that the kernel wrote.
                let place = unsafe { data.add(at * FD_BYTES) };
                // SAFETY: as above.
                let fd = unsafe { place.cast::<RawFd>().read_unaligned() };
                // SAFETY: the kernel has installed this descriptor for us alone.
                received.0.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: the message is unchanged, and the header one of its own.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more file descriptors came with a message than can be taken",
        ));
    }
    fds.append(&mut received.0);
    Ok(got)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_travel_with_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let sent = send_with_fds(&here, b"abcd", &[file.as_fd(), file.as_fd()]).unwrap();
        assert_eq!(sent, 4);
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(receive_with_fds(&there, &mut bytes, &mut fds).unwrap(), 4);
        assert_eq!((&bytes[..4], fds.len()), (&b"abcd"[..], 2));
        File::from(fds.remove(0)).write_all(b"x").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1);
        assert_eq!(send_with_fds(&here, b"z", &[]).unwrap(), 1);
        assert_eq!(receive_with_fds(&there, &mut bytes, &mut fds).unwrap(), 1);
        assert_eq!(fds.len(), 1);
        drop(here);
        assert_eq!(receive_with_fds(&there, &mut bytes, &mut fds).unwrap(), 0);
        assert!(send_with_fds(&there, b"z", &[]).is_err());
    }

    #[test]
    fn connecting_waits_no_longer_than_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let timeout = Duration::from_millis(20);
        let kind = |path: &Path| connect_unix(path, timeout).unwrap_err().kind();
        assert_eq!(kind(&path), io::ErrorKind::NotFound);
        assert_eq!(
            kind(Path::new(&"x".repeat(108))),
            io::ErrorKind::InvalidInput
        );
        let listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        let full = (0..10_000).find_map(|_| match connect_unix(&path, timeout) {
            Ok(socket) => {
                waiting.push(socket);
                None
            }
            Err(error) => Some(error.kind()),
        });
        assert_eq!(full, Some(io::ErrorKind::WouldBlock));
        drop(listener);
        assert_eq!(kind(&path), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_socket_has_the_bits_that_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o666, 0o777] {
            let path = dir.path().join(format!("{mode:o}"));
            let listener = listen_unix(&path, mode).unwrap();
            let found = path.symlink_metadata().unwrap();
            assert_eq!(found.mode() & 0o7777, mode, "{mode:o}");
            connect_unix(&path, Duration::from_secs(10)).unwrap();
            listener.accept().unwrap();
            let again = listen_unix(&path, mode).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
            assert!(path.exists());
        }
        let no_dir = dir.path().join("no").join("s");
        assert!(listen_unix(&no_dir, 0o600).is_err());
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many = vec![file.as_fd(); MOST_FDS + 1];
        assert!(send_with_fds(&here, b"a", &many).is_err());
        send_with_fds(&here, b"a", &many[..MOST_FDS]).unwrap();
        let (mut bytes, mut fds) = ([0; 1], Vec::new());
        assert_eq!(receive_with_fds(&there, &mut bytes, &mut fds).unwrap(), 1);
        assert_eq!(fds.len(), MOST_FDS);
    }
}

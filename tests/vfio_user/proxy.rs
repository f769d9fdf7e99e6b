//! A proxy between client and server that alters messages.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use xtent::internals::sys::{PeerFds, receive_with_fds, send_with_fds, wait_readable};

/// One message.
pub(crate) struct Packet {
    /// Header and payload.
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Packet {
    /// A 32-bit number at an offset.
    pub(crate) fn set(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    pub(crate) fn get(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn command(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[2], self.bytes[3]])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Pass,
    Twice,
    Nothing,
    /// The connection ends after so many of its bytes.
    CutAfter(usize),
}

type Tamper = Box<dyn FnMut(Way, &mut Packet) -> Then + Send>;

/// Listens at a socket of its own, and passes on to a server.
pub(crate) struct Proxy {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const NAP: Duration = Duration::from_millis(20);

impl Proxy {
    pub(crate) fn start(
        server: &Path,
        tamper: impl FnMut(Way, &mut Packet) -> Then + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("cntrl")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (server, asked) = (server.to_owned(), Arc::clone(&stop));
        let tamper: Mutex<Tamper> = Mutex::new(Box::new(tamper));
        let work = move || {
            while !asked.load(Ordering::Relaxed) {
                if wait_readable(listener.as_fd(), NAP).unwrap() {
                    let client = listener.accept().unwrap().0;
                    relay(
                        &client,
                        &UnixStream::connect(&server).unwrap(),
                        &tamper,
                        &asked,
                    );
                }
            }
        };
        Self {
            dir,
            stop,
            thread: Some(std::thread::spawn(work)),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("cntrl")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn relay(client: &UnixStream, server: &UnixStream, tamper: &Mutex<Tamper>, stop: &AtomicBool) {
    let over = AtomicBool::new(false);
    let one_way = |way, from: &UnixStream, to: &UnixStream| {
        let _ = pass_on(way, from, to, tamper, &|| {
            over.load(Ordering::Relaxed) || stop.load(Ordering::Relaxed)
        });
        over.store(true, Ordering::Relaxed);
        for socket in [from, to] {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| one_way(Way::ToServer, client, server));
        one_way(Way::ToClient, server, client);
    });
}

fn pass_on(
    way: Way,
    from: &UnixStream,
    to: &UnixStream,
    tamper: &Mutex<Tamper>,
    over: &dyn Fn() -> bool,
) -> io::Result<()> {
    from.set_read_timeout(Some(NAP))?;
    to.set_write_timeout(Some(Duration::from_secs(1)))?;
    loop {
        let mut packet = Packet {
            bytes: vec![0; 16],
            fds: Vec::new(),
        };
        fill(from, &mut packet, 0, over)?;
        let size = packet.get(4) as usize;
        packet.bytes.resize(size.clamp(16, 1 << 20), 0);
        fill(from, &mut packet, 16, over)?;
        let then = (tamper.lock().unwrap())(way, &mut packet);
        let times = match then {
            Then::Nothing => 0,
            Then::Pass | Then::CutAfter(_) => 1,
            Then::Twice => 2,
        };
        if let Then::CutAfter(len) = then {
            packet.bytes.truncate(len);
        }
        for _ in 0..times {
            let fds: Vec<_> = packet.fds.iter().map(AsFd::as_fd).collect();
            let (mut rest, mut fds) = (&packet.bytes[..], &fds[..]);
            while !rest.is_empty() {
                rest = &rest[send_with_fds(to, rest, fds)?..];
                fds = &[];
            }
        }
        drop(PeerFds(packet.fds));
        if matches!(then, Then::CutAfter(_)) {
            return Ok(());
        }
    }
}

fn fill(
    from: &UnixStream,
    packet: &mut Packet,
    start: usize,
    over: &dyn Fn() -> bool,
) -> io::Result<()> {
    let mut at = start;
    while at < packet.bytes.len() {
        match receive_with_fds(from, &mut packet.bytes[at..], &mut packet.fds) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !over() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

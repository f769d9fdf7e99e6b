//! A vfio-user server and a client that sends descriptors of every kind, changes them behind the
//! server's back, drives the controller and leaves; and then the next client, which must find
//! nothing of it.
//!
//! An input is a program: each byte chooses what the client does next, the bytes behind it are its
//! numbers.
#![no_main]

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use xtent::internals::device::emu::{EmuConfig, Medium};
use xtent::internals::device::vfio_user::{Server, ServerEvent, ServerOptions};
use xtent::internals::sys::{is_eventfd, memory_file, receive_with_fds, send_with_fds};

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_REGION_INFO: u16 = 5;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const RESET: u16 = 13;

/// Where most memory is mapped, and how much of it.
const BASE: u64 = 0x1_0000_0000;
const MEMORY_BYTES: u64 = 0x2_0000;
/// Steps of one program.
const MOST_STEPS: usize = 40;

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let name = format!("xtent-fuzz-server-{}", std::process::id());
        let config = EmuConfig {
            medium: Medium::memory(1 << 20),
            max_io_queues: 4,
            interrupt_vectors: 5,
            spin_ns: 0,
            ..EmuConfig::default()
        };
        let options = ServerOptions {
            patience: Duration::from_secs(10),
            most_lent_bytes: Some(16 << 20),
            ..ServerOptions::default()
        };
        Server::bind(std::env::temp_dir().join(name), config, &options).expect("a server")
    })
}

/// The program.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        let bytes = [(); 8].map(|()| self.byte());
        u64::from_le_bytes(bytes)
    }

    /// One of these values, or any.
    fn one_of(&mut self, values: &[u64]) -> u64 {
        let at = usize::from(self.byte());
        match values.get(at % (values.len() + 1)) {
            Some(value) => *value,
            None => self.number(),
        }
    }
}

fn memfd(len: u64, flags: libc::c_uint) -> File {
    // SAFETY: a name that ends in a zero byte, and flags.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), flags) };
    assert!(fd >= 0);
    // SAFETY: made just now, for us alone.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len).expect("a length");
    file
}

fn eventfd(start: u32, flags: libc::c_int) -> File {
    // SAFETY: plain integers.
    let fd = unsafe { libc::eventfd(start, flags) };
    assert!(fd >= 0);
    // SAFETY: made just now, for us alone.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of some kind.
fn descriptor(kind: u8) -> OwnedFd {
    let full = || {
        let mut event = eventfd(0, libc::EFD_NONBLOCK);
        event
            .write_all(&(u64::MAX - 1).to_ne_bytes())
            .expect("a full counter");
        // SAFETY: plain integers.
        unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) };
        event
    };
    let file: File = match kind % 14 {
        0 | 1 => memory_file(MEMORY_BYTES as usize, false).expect("memory"),
        2 => memfd(MEMORY_BYTES, libc::MFD_ALLOW_SEALING),
        3 => memfd(4096, 0),
        4 => memfd(0, 0),
        5 => memfd(100, 0),
        6 => eventfd(0, libc::EFD_NONBLOCK),
        7 => eventfd(7, libc::EFD_SEMAPHORE),
        8 => full(),
        9 => return std::io::pipe().expect("a pipe").1.into(),
        10 => return std::io::pipe().expect("a pipe").0.into(),
        11 => return UnixStream::pair().expect("sockets").0.into(),
        12 => File::open("/proc/self/exe").expect("itself"),
        _ => File::options()
            .write(true)
            .open("/dev/null")
            .expect("/dev/null"),
    };
    file.into()
}

/// A client.
struct Client {
    socket: UnixStream,
    id: u16,
    gone: bool,
    /// What it has sent, and still holds.
    held: Vec<File>,
    doorbells: Option<File>,
}

impl Client {
    fn new(socket: UnixStream) -> Self {
        let patience = Some(Duration::from_secs(10));
        socket.set_read_timeout(patience).expect("a time-out");
        socket.set_write_timeout(patience).expect("a time-out");
        Self {
            socket,
            id: 0,
            gone: false,
            held: Vec::new(),
            doorbells: None,
        }
    }

    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let (mut rest, mut fds) = (bytes, fds);
        while !rest.is_empty() && !self.gone {
            match send_with_fds(&self.socket, rest, fds) {
                Ok(n) => (rest, fds) = (&rest[n..], &[]),
                Err(_) => self.gone = true,
            }
        }
    }

    /// Sends a request. Returns the bytes behind the reply's header, unless it is an error.
    fn call(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Vec<u8>> {
        self.id = self.id.wrapping_add(1);
        let size = 16 + payload.len() as u32;
        let mut message = [self.id.to_ne_bytes(), command.to_ne_bytes()].concat();
        message.extend([size, 0, 0].map(u32::to_ne_bytes).concat());
        message.extend_from_slice(payload);
        self.send(&message, fds);
        self.reply()
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        let mut fds = Vec::new();
        let head = self.take(16, &mut fds)?;
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four"));
        let payload = self.take(word(4) as usize - 16, &mut fds)?;
        if let Some(fd) = fds.pop() {
            self.doorbells = Some(File::from(fd));
        }
        (word(8) & 0x20 == 0).then_some(payload)
    }

    fn take(&mut self, len: usize, fds: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
        let (mut bytes, mut got) = (vec![0; len], 0);
        while got < len && !self.gone {
            match receive_with_fds(&self.socket, &mut bytes[got..], fds) {
                Ok(0) => self.gone = true,
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::ConnectionReset => self.gone = true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => panic!("the server says nothing: {e}"),
            }
        }
        (got == len).then_some(bytes)
    }

    fn greet(&mut self) {
        self.call(VERSION, &[0, 0, 1, 0], &[]);
    }

    fn map(&mut self, fd: Option<&OwnedFd>, flags: u32, offset: u64, at: u64, len: u64) -> bool {
        let payload = [
            [32, flags].map(u32::to_ne_bytes).concat(),
            [offset, at, len].map(u64::to_ne_bytes).concat(),
        ];
        let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
        self.call(DMA_MAP, &payload.concat(), &fds).is_some()
    }

    fn write(&mut self, region: u32, offset: u64, value: &[u8]) -> bool {
        let mut payload = offset.to_ne_bytes().to_vec();
        payload.extend([region, value.len() as u32].map(u32::to_ne_bytes).concat());
        payload.extend_from_slice(value);
        self.call(REGION_WRITE, &payload, &[]).is_some()
    }

    fn read(&mut self, region: u32, offset: u64, len: u32) -> Option<Vec<u8>> {
        let mut payload = offset.to_ne_bytes().to_vec();
        payload.extend([region, len].map(u32::to_ne_bytes).concat());
        let reply = self.call(REGION_READ, &payload, &[])?;
        Some(reply[16..].to_vec())
    }

    fn bar0(&mut self) {
        let mut request = [4096, 0, 0, 0].map(u32::to_ne_bytes).concat();
        request.extend([0; 16]);
        self.call(GET_REGION_INFO, &request, &[]);
    }

    /// The controller up, with an admin queue of 8 entries in memory mapped at [`BASE`].
    fn enable(&mut self) {
        let memory: OwnedFd = descriptor(0);
        self.map(Some(&memory), 3, 0, BASE, MEMORY_BYTES);
        self.held.push(File::from(memory));
        self.write(0, 0x14, &0_u32.to_le_bytes());
        self.write(0, 0x24, &(7_u32 << 16 | 7).to_le_bytes());
        self.write(0, 0x28, &BASE.to_le_bytes());
        self.write(0, 0x30, &(BASE + 0x1000).to_le_bytes());
        self.write(0, 0x14, &(4_u32 << 20 | 6 << 16 | 1).to_le_bytes());
        self.bar0();
    }

    /// A command's 64 bytes, in memory at [`BASE`], and the doorbell of its queue.
    fn command(&mut self, input: &mut Input<'_>) {
        let mut entry = [0; 64];
        entry[0] = input.byte();
        entry[2..4].copy_from_slice(&u16::from(input.byte()).to_le_bytes());
        entry[4] = input.byte() % 3;
        let places = [BASE + 0x2000, BASE + 0x3000, BASE + 0x1_0000, 0, BASE];
        entry[24..32].copy_from_slice(&input.one_of(&places).to_le_bytes());
        entry[32..40].copy_from_slice(&input.one_of(&places).to_le_bytes());
        entry[40..48].copy_from_slice(&input.one_of(&[1, 0x7_0001, 0x7_0002, 7]).to_le_bytes());
        entry[44..52].copy_from_slice(&input.one_of(&[1, 3, 0x1_0001, 0x1_0003]).to_le_bytes());
        let (queue, slot) = (u64::from(input.byte() % 3), u64::from(input.byte() % 8));
        let ring = [0, 0x4000, 0x5000][queue as usize];
        if let Some(memory) = self.held.last() {
            let _ = memory.write_at(&entry, ring + slot * 64);
        }
        self.ring(2 * queue, slot as u32 + 1);
    }

    /// By the page that the server sent, or by message.
    fn ring(&mut self, index: u64, value: u32) {
        let at = 0x1000 + index * 4;
        match &self.doorbells {
            Some(doorbells) => drop(doorbells.write_at(&value.to_le_bytes(), at)),
            None => drop(self.write(0, at, &value.to_le_bytes())),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 | 1 => self.enable(),
            2 | 3 => self.command(input),
            4 => {
                let fd = descriptor(input.byte());
                let at = input.one_of(&[BASE, BASE + MEMORY_BYTES, BASE - 4096, 0, !0xfff]);
                let len = input.one_of(&[MEMORY_BYTES, 4096, 8192, 1 << 24, 1 << 40, 0]);
                let offset = input.one_of(&[0, 0, 4096, 1 << 40]);
                let flags = input.one_of(&[3, 3, 3, 1]) as u32;
                self.map(Some(&fd), flags, offset, at, len);
                self.held.push(File::from(fd));
            }
            5 => {
                let at = input.one_of(&[BASE, BASE + MEMORY_BYTES, 0]);
                let len = input.one_of(&[MEMORY_BYTES, 4096, 0]);
                let flags = input.one_of(&[0, 0, 2]) as u32;
                let payload = [
                    [24, flags].map(u32::to_ne_bytes).concat(),
                    [at, len].map(u64::to_ne_bytes).concat(),
                ];
                self.call(DMA_UNMAP, &payload.concat(), &[]);
            }
            6 => self.set_irqs(input),
            // What was sent is changed behind the server's back.
            7 => {
                let number = usize::from(input.byte());
                let len = input.one_of(&[0, 4096, 1 << 20]);
                if let Some(file) = self.held.get(number % self.held.len().max(1)) {
                    let _ = file.set_len(len.min(1 << 24));
                }
            }
            8 => {
                if let Some(file) = self.held.last_mut()
                    && is_eventfd(&*file)
                {
                    // SAFETY: plain integers.
                    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
                    let _ = file.write(&(u64::MAX - 1).to_ne_bytes());
                    // SAFETY: plain integers.
                    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) };
                }
            }
            9 => {
                let index = input.byte().into();
                let value = input.number() as u32;
                self.ring(index, value);
            }
            10 => {
                let offset = input.one_of(&[0x14, 0x24, 0x28, 0x30, 0x20, 0x1004, 4]);
                let region = if input.byte() % 8 == 0 { 7 } else { 0 };
                let value = input.number().to_le_bytes();
                let len = [1, 2, 4, 8][usize::from(input.byte() % 4)];
                self.write(region, offset, &value[..len]);
            }
            11 => {
                let offset = input.one_of(&[0x1c, 0, 8]);
                self.read(0, offset, 1 << (input.byte() % 4));
            }
            12 => drop(self.call(RESET, &[], &[])),
            13 => self.bar0(),
            // Any message, with any descriptors.
            14 => {
                let command = u16::from(input.byte() % 20);
                let fds: Vec<_> = (0..input.byte() % 20)
                    .map(|_| descriptor(input.byte()))
                    .collect();
                let len = usize::from(input.byte());
                let payload: Vec<u8> = (0..len).map(|_| input.byte()).collect();
                let lent: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                self.call(command, &payload, &lent);
            }
            // Half a message, and no more.
            _ => {
                let fd = descriptor(input.byte());
                let half = [&[1, 0, 2, 0, 48, 0, 0, 0][..], &[0; 8]].concat();
                let len = usize::from(input.byte() % 16) + 1;
                self.send(&half[..len], &[fd.as_fd()]);
                self.gone = true;
            }
        }
    }

    fn set_irqs(&mut self, input: &mut Input<'_>) {
        let flags = input.one_of(&[0x24, 0x24, 0x21, 0x22]) as u32;
        let start = input.one_of(&[0, 1, 4]) as u32;
        let fds: Vec<_> = (0..input.byte() % 4)
            .map(|_| descriptor(input.one_of(&[6, 7, 8]) as u8))
            .collect();
        let count = input.one_of(&[fds.len() as u64, 0]) as u32;
        let payload = [20, flags, 2, start, count].map(u32::to_ne_bytes).concat();
        let lent: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.call(SET_IRQS, &payload, &lent);
        self.held.extend(fds.into_iter().map(File::from));
    }
}

/// One session: `client` talks, the server serves it until it has left.
fn session(talk: impl FnOnce(&mut Client) + Send) -> (Client, ServerEvent) {
    let (here, there) = UnixStream::pair().expect("a pair of sockets");
    std::thread::scope(|scope| {
        let client = scope.spawn(move || {
            let mut client = Client::new(here);
            client.greet();
            talk(&mut client);
            let _ = client.socket.shutdown(std::net::Shutdown::Both);
            client
        });
        let ended = server().serve_connection(&there, &|| true, &mut |_| {});
        drop(there);
        (
            client
                .join()
                .unwrap_or_else(|_| panic!("the session has {ended:?}")),
            ended,
        )
    })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (mut left, _) = session(|client| {
        for _ in 0..MOST_STEPS {
            if client.gone || input.0.is_empty() {
                break;
            }
            client.step(&mut input);
        }
    });
    // The next client, with memory of its own in the same place.
    let (_, ended) = session(|client| {
        let csts = client.read(0, 0x1c, 4).expect("the next client is served");
        assert_eq!(csts, [0; 4], "the controller is as after power-on");
        client.enable();
        let memory = client.held.last().expect("its memory");
        let canary = vec![0x5a; MEMORY_BYTES as usize];
        memory.write_all_at(&canary, 0).expect("memory");
        // The one that has left rings all that it has.
        if let Some(doorbells) = left.doorbells.take() {
            for word in 0..64 {
                let _ = doorbells.write_at(&[1, 0, 0, 0], 0x1000 + word * 4);
            }
        }
        for event in left.held.iter_mut().take(4) {
            let _ = event.write_at(&[1; 8], 0);
        }
        let csts = client.read(0, 0x1c, 4).expect("an answer");
        assert_eq!(csts, [1, 0, 0, 0], "up");
        client.write(0, 0x14, &[0; 4]);
        let mut found = vec![0; canary.len()];
        client
            .held
            .last()
            .expect("its memory")
            .read_exact_at(&mut found, 0)
            .expect("memory");
        assert!(
            found == canary,
            "another client's doorbells reached this one's memory"
        );
    });
    assert_eq!(ended, ServerEvent::Left);
});

//! A client that says whatever it is told to, byte by byte.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use xtent::internals::sys::{memory_file, receive_with_fds, send_with_fds};

pub(crate) const VERSION: u16 = 1;
pub(crate) const DMA_MAP: u16 = 2;
pub(crate) const DMA_UNMAP: u16 = 3;
pub(crate) const GET_INFO: u16 = 4;
pub(crate) const GET_REGION_INFO: u16 = 5;
pub(crate) const GET_IRQ_INFO: u16 = 7;
pub(crate) const SET_IRQS: u16 = 8;
pub(crate) const REGION_READ: u16 = 9;
pub(crate) const REGION_WRITE: u16 = 10;
pub(crate) const RESET: u16 = 13;

/// A connection.
pub(crate) struct Raw {
    pub(crate) socket: UnixStream,
    id: u16,
}

/// The answer to one request: data and descriptors, or an errno.
pub(crate) type Answer = Result<(Vec<u8>, Vec<OwnedFd>), i32>;

/// Numbers of 32 and 64 bits in a row.
pub(crate) fn words(words: &[u32], longs: &[u64]) -> Vec<u8> {
    let words = words.iter().flat_map(|word| word.to_ne_bytes());
    words
        .chain(longs.iter().flat_map(|long| long.to_ne_bytes()))
        .collect()
}

pub(crate) fn header(id: u16, command: u16, size: u32, flags: u32) -> Vec<u8> {
    let mut bytes = [id.to_ne_bytes(), command.to_ne_bytes()].concat();
    bytes.extend(words(&[size, flags, 0], &[]));
    bytes
}

impl Raw {
    pub(crate) fn connect(socket: &Path) -> Self {
        let socket = UnixStream::connect(socket).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self { socket, id: 100 }
    }

    /// Connected, with the version agreed on.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        raw.call(VERSION, &words(&[1 << 16], &[]), &[]).unwrap();
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let sent = send_with_fds(&self.socket, bytes, fds).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// Sends bytes; false when the server does not take them within the socket's time-out.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        send_with_fds(&self.socket, bytes, &[]).is_ok_and(|sent| sent == bytes.len())
    }

    /// A request and its answer. Panics when the server closes the connection instead.
    pub(crate) fn call(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        self.id += 1;
        let size = u32::try_from(16 + payload.len()).unwrap();
        let mut message = header(self.id, command, size, 0);
        message.extend_from_slice(payload);
        self.send(&message, fds);
        self.answer().expect("the server closed the connection")
    }

    /// The next answer, whatever it belongs to; `None` when the server has closed the connection.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut fds = Vec::new();
        let head = self.exactly(16, &mut fds)?;
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let payload = self.exactly(word(4) as usize - 16, &mut fds)?;
        assert_eq!(word(8) & 0xf, 1, "a reply");
        if word(8) & 0x20 != 0 {
            return Some(Err(word(12).cast_signed()));
        }
        assert_eq!(u16::from_ne_bytes([head[0], head[1]]), self.id);
        Some(Ok((payload, fds)))
    }

    fn exactly(&mut self, len: usize, fds: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut got = 0;
        while got < len {
            match receive_with_fds(&self.socket, &mut bytes[got..], fds) {
                Ok(0) => return None,
                Ok(n) => got += n,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("the server says nothing: {e}"),
            }
        }
        Some(bytes)
    }

    /// Whether the server has closed the connection, as it does before long.
    pub(crate) fn ends(mut self) -> bool {
        while let Some(answer) = self.answer() {
            drop(answer);
        }
        true
    }

    pub(crate) fn map(&mut self, fd: Option<BorrowedFd<'_>>, at: u64, len: u64) -> Result<(), i32> {
        let fds: Vec<_> = fd.into_iter().collect();
        let payload = words(&[32, 3], &[0, at, len]);
        self.call(DMA_MAP, &payload, &fds).map(drop)
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        let mut payload = words(&[], &[offset]);
        payload.extend(words(&[0, u32::try_from(bytes.len()).unwrap()], &[]));
        payload.extend_from_slice(bytes);
        self.call(REGION_WRITE, &payload, &[]).map(drop)
    }

    pub(crate) fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, i32> {
        let mut payload = words(&[], &[offset]);
        payload.extend(words(&[region, count], &[]));
        let (answer, _) = self.call(REGION_READ, &payload, &[])?;
        Ok(answer[16..].to_vec())
    }
}

/// Memory to share.
pub(crate) fn memory(len: usize) -> OwnedFd {
    memory_file(len, false).unwrap().into()
}

/// The same descriptor, many times.
pub(crate) fn many(fd: &OwnedFd, count: usize) -> Vec<BorrowedFd<'_>> {
    vec![fd.as_fd(); count]
}

//! A file of a filesystem whose server answers until the file is open, and nothing more: each call
//! that asks the filesystem, `close` included, waits forever.
#![expect(unsafe_code, reason = "system calls of hostile peers")]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use super::common::{is_root, skipped};

/// `linux/fuse.h`.
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;

/// The mounted filesystem, until dropped: then the calls that wait end.
pub(crate) struct Mute {
    dir: tempfile::TempDir,
    /// Closed when the filesystem is gone.
    file: File,
}

impl Mute {
    /// `None` where it cannot be had, with a notice.
    pub(crate) fn mount() -> Option<Self> {
        if !is_root() {
            skipped("mounting a filesystem needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let mounted = device.and_then(|device| mount(&dir, &device).map(|()| device));
        match mounted {
            Ok(device) => {
                std::thread::spawn(move || serve(device));
                // Nothing is answered from here on.
                let path = dir.path().join("f");
                let file = File::options().read(true).write(true).open(path).unwrap();
                Some(Self { dir, file })
            }
            Err(e) => {
                skipped(&format!("a FUSE filesystem cannot be mounted: {e}"));
                None
            }
        }
    }

    /// The file, open.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Ends the filesystem: what waits for it fails.
    pub(crate) fn end(&self) {
        let path = CString::new(self.dir.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: a path that ends in a zero byte, and flags.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.end();
    }
}

fn mount(dir: &tempfile::TempDir, device: &File) -> io::Result<()> {
    let path = CString::new(dir.path().as_os_str().as_bytes())?;
    let fd = device.as_raw_fd();
    let options = format!("fd={fd},rootmode=40755,user_id=0,group_id=0,allow_other");
    let options = CString::new(options)?;
    // SAFETY: texts that end in a zero byte, and flags.
    let mounted = unsafe {
        libc::mount(
            c"mute".as_ptr(),
            path.as_ptr(),
            c"fuse.mute".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            options.as_ptr().cast(),
        )
    };
    match mounted {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `fuse_attr` of a directory or a file of 4 MiB.
fn attributes(inode: u32) -> Vec<u8> {
    let mode = if inode == 1 { 0o40_755 } else { 0o100_666 };
    let size = if inode == 1 { 0 } else { 4 << 20 };
    let mut bytes = words(&[inode, 0, size, 0, 8, 0]);
    bytes.resize(60, 0);
    bytes.extend(words(&[mode, 1, 0, 0, 0, 4096, 0]));
    bytes
}

fn serve(mut device: File) {
    let mut open = false;
    let mut request = vec![0; 1 << 17];
    while device.read(&mut request).is_ok() {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let (opcode, node) = (word(4), word(16));
        let reply = match opcode {
            INIT => words(&[7, 31, 1 << 16, 0, 0, 1 << 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            _ if open => continue,
            LOOKUP => [words(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]), attributes(2)].concat(),
            GETATTR => [words(&[1, 0, 0, 0]), attributes(node)].concat(),
            OPEN => {
                open = true;
                words(&[1, 0, 0, 0])
            }
            _ => continue,
        };
        let size = u32::try_from(16 + reply.len()).unwrap();
        let unique = &request[8..16];
        let message = [&words(&[size, 0])[..], unique, &reply[..]].concat();
        // The request may have been given up meanwhile.
        let _ = device.write(&message);
    }
}

/// Makes a counter block its writers, and leaves room for none.
pub(crate) fn fill_and_block(event: RawFd) {
    let full = u64::MAX - 1;
    // SAFETY: eight readable bytes.
    let written = unsafe { libc::write(event, (&raw const full).cast(), 8) };
    assert_eq!(written, 8);
    // SAFETY: plain integers.
    unsafe { libc::fcntl(event, libc::F_SETFL, 0) };
}

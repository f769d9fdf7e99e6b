//! Signals of event counters that another process holds as well.
//!
//! A `write` to an `eventfd` whose counter is full blocks unless O_NONBLOCK is set. The flag
//! belongs to the open file description, which the peer shares: it can clear the flag, and fill the
//! counter, between any check and the write. The kernel's `eventfd_signal()` never blocks: a full
//! counter stays full. Linux AIO calls it when a request with IOCB_FLAG_RESFD completes
//! (`aio_complete()` in fs/aio.c), so each signal is a read of no bytes from `/dev/null`, which
//! completes inside `io_submit`. The kernel refuses an `aio_resfd` that is no eventfd.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Requests that the context has room for.
const ROOM: usize = 64;
/// Signals after which completions are reaped: fewer than [`ROOM`], so that the ring never fills.
const REAP_EVERY: u32 = 32;
/// `IOCB_CMD_PREAD` and `IOCB_FLAG_RESFD` of `linux/aio_abi.h`.
const PREAD: u16 = 0;
const FLAG_RESFD: u32 = 1;

const _: () = assert!(size_of::<libc::iocb>() == 64);
const _: () = assert!(size_of::<AioEvent>() == 32);

/// `struct io_event` of `linux/aio_abi.h`; not looked at.
#[repr(C)]
#[derive(Clone, Copy)]
struct AioEvent([u64; 4]);

/// An AIO context of this process, until the process ends.
#[derive(Debug)]
struct Context {
    id: libc::c_ulong,
    null: File,
    /// Signals since completions were reaped.
    unreaped: u32,
}

/// `Err` with the errno when the context could not be made.
static CONTEXT: OnceLock<Result<Mutex<Context>, i32>> = OnceLock::new();

fn context() -> io::Result<&'static Mutex<Context>> {
    let made = CONTEXT.get_or_init(|| {
        let errno = |e: io::Error| e.raw_os_error().unwrap_or(libc::EIO);
        Context::new().map(Mutex::new).map_err(errno)
    });
    made.as_ref().map_err(|&e| io::Error::from_raw_os_error(e))
}

/// Whether [`signal`] works here.
///
/// # Errors
/// The errno of `io_setup`: ENOSYS for a kernel without AIO, EAGAIN when `/proc/sys/fs/aio-max-nr`
/// is reached.
pub(super) fn prepare() -> io::Result<()> {
    context().map(drop)
}

/// Adds one to an eventfd's counter, unless it is full, and wakes its waiters. Never blocks on the
/// counter.
pub(super) fn signal(event: BorrowedFd<'_>) {
    if let Ok(context) = context() {
        let mut context = context.lock().unwrap_or_else(PoisonError::into_inner);
        context.signal(event);
    }
}

impl Context {
    fn new() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: a number, and a place for another one, zero as the call wants it.
        if unsafe { libc::syscall(libc::SYS_io_setup, ROOM, &raw mut id) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            id,
            null,
            unreaped: 0,
        })
    }

    fn signal(&mut self, event: BorrowedFd<'_>) {
        if self.unreaped >= REAP_EVERY {
            self.reap();
        }
        // SAFETY: all-zero bytes are a valid `iocb`.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = PREAD;
        // Descriptors are not negative.
        request.aio_fildes = self.null.as_raw_fd().cast_unsigned();
        request.aio_flags = FLAG_RESFD;
        request.aio_resfd = event.as_raw_fd().cast_unsigned();
        let mut requests = [&raw mut request];
        // SAFETY: one pointer to one initialised request, which reads no bytes into a null buffer;
        // it completes before the call returns, and the kernel keeps neither pointer.
        unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.id,
                1 as libc::c_long,
                requests.as_mut_ptr(),
            )
        };
        self.unreaped += 1;
    }

    /// Takes completions out of the ring, to make room.
    fn reap(&mut self) {
        let mut completions = [AioEvent([0; 4]); ROOM];
        let mut at_once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: room for as many completions as are asked for, and a timeout; it waits for none.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0 as libc::c_long,
                ROOM,
                completions.as_mut_ptr(),
                &raw mut at_once,
            )
        };
        self.unreaped = 0;
    }
}

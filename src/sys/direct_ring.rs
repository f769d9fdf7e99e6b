//! The kernel's asynchronous direct I/O between one file and memory that stays where it is.

use std::any::Any;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};

/// Most pieces of memory that a ring registers; the rest goes by address.
const MOST_REGISTERED: u32 = 64;

/// How long a ring that is dropped waits for the kernel to be done with its memory.
const PATIENCE: Duration = Duration::from_secs(40);

/// Memory that the kernel may read and write at any time, kept mapped.
#[derive(Debug, Clone)]
pub struct PinnedMemory {
    base: NonNull<u8>,
    len_bytes: usize,
    _keep: Arc<dyn Pinned>,
}

/// Whatever keeps memory mapped while it lives.
pub trait Pinned: Any + Send + Sync + std::fmt::Debug {}

// SAFETY: a mapping that any thread may use, kept alive by `_keep`; only its address is handed out.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Names memory.
    ///
    /// # Safety
    /// `len_bytes` from `base` on stay mapped while `keep` lives, and no code relies on the content
    /// of a part that an operation of a ring is to fill.
    pub unsafe fn new(base: NonNull<u8>, len_bytes: usize, keep: Arc<dyn Pinned>) -> Self {
        Self {
            base,
            len_bytes,
            _keep: keep,
        }
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

/// A part of the memory that a ring knows.
#[derive(Debug, Clone, Copy)]
pub struct RingMemory {
    /// As [`DirectRing::add_memory`] numbered it.
    pub region: usize,
    /// The first byte in it.
    pub offset_bytes: usize,
    /// How many.
    pub len_bytes: u32,
}

/// What a ring is to do with its file.
#[derive(Debug, Clone, Copy)]
pub enum RingOp {
    /// File to memory.
    Read(RingMemory, u64),
    /// Memory to file, at a byte offset; durable when it ends, if so wanted.
    Write(RingMemory, u64, bool),
    /// What was written becomes durable.
    Sync,
    /// So many bytes from an offset read as zeroes.
    ZeroRange(u64, u64),
    /// The same, and the space may be given back. Fewer filesystems lack it.
    PunchHole(u64, u64),
}

/// An io_uring over one file and pieces of [`PinnedMemory`].
pub struct DirectRing {
    /// Leaked, with the memory, when the kernel might still write there.
    inner: ManuallyDrop<RingInner>,
}

struct RingInner {
    ring: IoUring,
    regions: Vec<RingRegion>,
    in_flight: usize,
    /// The submission queue has entries that the kernel has not consumed.
    unsaid: bool,
    /// The kernel is told of nothing more.
    silent: bool,
    /// The kernel may still use the memory, and is not waited for any more.
    abandoned: bool,
    /// The process that made it.
    pid: u32,
    registers: bool,
    /// Held open: the ring refers to it by number.
    _file: Arc<File>,
}

struct RingRegion {
    memory: PinnedMemory,
    /// Its number among the registered buffers.
    registered: Option<u16>,
}

impl std::fmt::Debug for DirectRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectRing")
            .field("in_flight", &self.inner.in_flight)
            .field("regions", &self.inner.regions.len())
            .finish_non_exhaustive()
    }
}

impl DirectRing {
    /// A ring for at least `depth` operations at once. It may be used by any one thread at a time.
    ///
    /// # Errors
    /// The errno of `io_uring_setup`: `ENOSYS`, or `EPERM` where it is disabled.
    pub fn new(file: Arc<File>, depth: u32) -> io::Result<Self> {
        let entries = depth.max(2).next_power_of_two();
        // Completions wait until this thread asks for them instead of interrupting it (since 5.19).
        let modern = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries);
        let ring = match modern {
            Ok(ring) => ring,
            Err(_) => IoUring::new(entries)?,
        };
        let submitter = ring.submitter();
        let registers = submitter.register_buffers_sparse(MOST_REGISTERED).is_ok();
        submitter.register_files(&[file.as_raw_fd()])?;
        Ok(Self {
            inner: ManuallyDrop::new(RingInner {
                ring,
                regions: Vec::new(),
                in_flight: 0,
                unsaid: false,
                silent: false,
                abandoned: false,
                pid: std::process::id(),
                registers,
                _file: file,
            }),
        })
    }

    /// Makes memory known, and registers it where the limits allow; its number.
    pub fn add_memory(&mut self, memory: PinnedMemory) -> usize {
        let inner = &mut *self.inner;
        let number = inner.regions.len();
        let registered = u16::try_from(number)
            .ok()
            .filter(|&n| inner.registers && u32::from(n) < MOST_REGISTERED);
        let registered = registered.filter(|&number| {
            let vector = libc::iovec {
                iov_base: memory.base.as_ptr().cast(),
                iov_len: memory.len_bytes,
            };
            // SAFETY: the memory stays mapped while the ring has it: `Drop` gives it up after the
            // ring, or leaks both.
            unsafe {
                inner
                    .ring
                    .submitter()
                    .register_buffers_update(u32::from(number), &[vector], None)
            }
            .is_ok()
        });
        inner.regions.push(RingRegion { memory, registered });
        number
    }

    /// Puts an operation into the submission queue; [`DirectRing::tell`] tells the kernel.
    ///
    /// # Errors
    /// `EBUSY` without room, `EINVAL` for memory that the ring does not know, `ECANCELED` after
    /// [`DirectRing::silence`].
    #[inline]
    pub fn push(&mut self, op: RingOp, user_data: u64) -> io::Result<()> {
        let inner = &mut *self.inner;
        if inner.silent {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        let entry = inner
            .entry(op)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?
            .user_data(user_data);
        // SAFETY: the entry names the ring's own file, and memory inside of a region (`entry`
        // looked), which stays mapped until its completion was reaped (`Drop`).
        unsafe { inner.ring.submission().push(&entry) }
            .map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
        inner.in_flight += 1;
        inner.unsaid = true;
        Ok(())
    }

    /// Tells the kernel of all that was pushed, and lets it finish what waits for this thread.
    /// Never waits.
    ///
    /// # Errors
    /// The errno of `io_uring_enter`.
    #[inline]
    pub fn tell(&mut self) -> io::Result<()> {
        let inner = &mut *self.inner;
        if inner.unsaid && !inner.silent {
            inner.ring.submitter().submit()?;
            inner.unsaid = !inner.ring.submission().is_empty();
        }
        Ok(())
    }

    /// Operations pushed last that the kernel has not consumed: those between head and tail of the
    /// submission queue. It consumes them in order.
    #[inline]
    pub fn untold(&mut self) -> usize {
        let inner = &mut *self.inner;
        if inner.unsaid && !inner.silent {
            inner.ring.submission().len()
        } else {
            0
        }
    }

    /// The kernel is never told of the [`DirectRing::untold`] operations, which do not end then,
    /// nor of any other one: it only ends what it has.
    ///
    /// In a child, after `fork(2)`, nothing is in flight: the queues are those of the parent, and
    /// the kernel uses the parent's memory.
    pub fn silence(&mut self) {
        let untold = if self.is_inherited() {
            self.inner.in_flight
        } else {
            self.untold()
        };
        self.inner.silent = true;
        self.inner.in_flight -= untold;
    }

    /// Whether this is a child, by `fork(2)`, of the process that made the ring.
    pub fn is_inherited(&self) -> bool {
        self.inner.pid != std::process::id()
    }

    /// Waits until the kernel is done with all that it was told of. False when it is not, after a
    /// long time: it may still write to the file and the memory, which stay open and mapped for
    /// good.
    pub fn finish(&mut self) -> bool {
        if self.is_inherited() {
            self.inner.abandoned = true;
        }
        let start = Instant::now();
        while self.inner.in_flight > 0 && !self.inner.abandoned {
            if self.wait(Duration::from_millis(100)).is_err() || start.elapsed() > PATIENCE {
                self.inner.abandoned = true;
            }
            while self.reap().is_some() {}
        }
        !self.inner.abandoned
    }

    /// Lets the kernel run what it has kept for this thread, if there is something.
    ///
    /// # Errors
    /// The errno of `io_uring_enter`.
    #[inline]
    pub fn nudge(&mut self) -> io::Result<()> {
        const GETEVENTS: u32 = 1;
        let ring = &mut self.inner.ring;
        if !ring.submission().taskrun() && !ring.submission().cq_overflow() {
            return Ok(());
        }
        // SAFETY: no argument: nothing is read or written but the ring itself.
        unsafe {
            ring.submitter()
                .enter::<libc::sigset_t>(0, 0, GETEVENTS, None)
        }?;
        Ok(())
    }

    /// Tells the kernel of all that was pushed, and sleeps until something has ended, or for so
    /// long.
    ///
    /// # Errors
    /// The errno of `io_uring_enter`, except those that say that nothing ended.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let inner = &mut *self.inner;
        if inner.in_flight == 0 {
            return Ok(());
        }
        if inner.silent {
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
            return Ok(());
        }
        let timeout = types::Timespec::from(timeout);
        let args = types::SubmitArgs::new().timespec(&timeout);
        let waited = inner.ring.submitter().submit_with_args(1, &args);
        inner.unsaid = !inner.ring.submission().is_empty();
        match waited {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Takes the end of one operation: its user data, and what the kernel returned (bytes, or minus
    /// an errno).
    #[inline]
    pub fn reap(&mut self) -> Option<(u64, i32)> {
        let inner = &mut *self.inner;
        if inner.in_flight == 0 {
            return None;
        }
        let entry = inner.ring.completion().next()?;
        inner.in_flight -= 1;
        Some((entry.user_data(), entry.result()))
    }

    /// Whether an operation has ended that was not reaped.
    pub fn has_ended(&mut self) -> bool {
        let inner = &mut *self.inner;
        inner.in_flight > 0 && !inner.ring.completion().is_empty()
    }

    /// The ring itself: it polls readable when an operation has ended.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor, and is borrowed for as long as the result.
        unsafe { BorrowedFd::borrow_raw(self.inner.ring.as_raw_fd()) }
    }

    /// Operations pushed and not reaped.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight
    }

    /// Whether all of its memory is registered.
    pub fn is_registered(&self) -> bool {
        self.inner
            .regions
            .iter()
            .all(|region| region.registered.is_some())
    }
}

impl RingInner {
    #[inline]
    fn entry(&self, op: RingOp) -> Option<squeue::Entry> {
        let fd = types::Fixed(0);
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        Some(match op {
            RingOp::Read(memory, offset) => {
                let (at, registered) = self.memory(memory)?;
                match registered {
                    Some(number) => opcode::ReadFixed::new(fd, at, memory.len_bytes, number)
                        .offset(offset)
                        .build(),
                    None => opcode::Read::new(fd, at, memory.len_bytes)
                        .offset(offset)
                        .build(),
                }
            }
            RingOp::Write(memory, offset, durable) => {
                let (at, registered) = self.memory(memory)?;
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                match registered {
                    Some(number) => opcode::WriteFixed::new(fd, at, memory.len_bytes, number)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Write::new(fd, at, memory.len_bytes)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            RingOp::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            RingOp::ZeroRange(offset, len) => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(ZERO)
                .build(),
            RingOp::PunchHole(offset, len) => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(PUNCH)
                .build(),
        })
    }

    /// The address of a part of a region, and the region's number among the registered buffers.
    #[inline]
    fn memory(&self, part: RingMemory) -> Option<(*mut u8, Option<u16>)> {
        let region = self.regions.get(part.region)?;
        let end = part.offset_bytes.checked_add(part.len_bytes as usize)?;
        if end > region.memory.len_bytes {
            return None;
        }
        // SAFETY: the offset lies inside of the region, checked above.
        let start = unsafe { region.memory.base.as_ptr().add(part.offset_bytes) };
        Some((start, region.registered))
    }
}

impl Drop for DirectRing {
    fn drop(&mut self) {
        if !self.finish() {
            // The kernel may still write to the memory: leak it.
            return;
        }
        // The kernel tears a ring down later, on a worker of its own; until then a registered file
        // would keep its filesystem busy.
        let _ = self.inner.ring.submitter().unregister_files();
        let _ = self.inner.ring.submitter().unregister_buffers();
        // SAFETY: nothing is in flight, and `inner` is not used after this.
        unsafe { ManuallyDrop::drop(&mut self.inner) };
    }
}

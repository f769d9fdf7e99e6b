//! The kernel's asynchronous I/O on one file, with registered buffers, as a safe interface.
//!
//! Used as the other side of a comparison: it gives the kernel what it is best at (registered file
//! and buffers, one `io_uring_enter` for all that was pushed, completions run by the waiting task).

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::{HUGE_PAGE_BYTES, PageKind, Pages};

/// Memory cut into equal slots, aligned for direct I/O: to 4 KiB, from hugepages where there are
/// some.
#[derive(Debug)]
pub struct Slots {
    pages: Pages,
    slot_bytes: usize,
    stride_bytes: usize,
    count: usize,
}

impl Slots {
    /// Reserves `count` slots of `slot_bytes`.
    ///
    /// # Errors
    /// The errno of `mmap`; `EINVAL` when the sizes make no sense.
    pub fn new(count: usize, slot_bytes: usize) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let stride_bytes = slot_bytes.checked_next_multiple_of(4096);
        let stride_bytes = stride_bytes.filter(|&b| b > 0).ok_or_else(invalid)?;
        let total = stride_bytes.checked_mul(count).filter(|&b| b > 0);
        let total = total
            .and_then(|b| b.checked_next_multiple_of(HUGE_PAGE_BYTES))
            .ok_or_else(invalid)?;
        let pages = Pages::huge(total).or_else(|_| Pages::ordinary(total))?;
        Ok(Self {
            pages,
            slot_bytes,
            stride_bytes,
            count,
        })
    }

    /// What stands behind the memory.
    pub fn kind(&self) -> PageKind {
        self.pages.kind()
    }

    /// The number of slots.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The bytes of a slot.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn slot(&self, index: usize) -> &[u8] {
        // SAFETY: `start` checks the index; the slot lies inside the mapping, which is zeroed when
        // made, and `&self` keeps it from being written: a ring that lends slots to the kernel
        // hides them meanwhile.
        unsafe { std::slice::from_raw_parts(self.start(index), self.slot_bytes) }
    }

    /// The bytes of a slot, to be written.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn slot_mut(&mut self, index: usize) -> &mut [u8] {
        // SAFETY: as in `slot`; slots do not overlap, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start(index), self.slot_bytes) }
    }

    fn start(&self, index: usize) -> *mut u8 {
        assert!(index < self.count, "slot {index} of {}", self.count);
        // SAFETY: index < count and count * stride fits into the mapping (checked when made).
        unsafe { self.pages.base().as_ptr().add(index * self.stride_bytes) }
    }
}

/// What a slot is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UringOp {
    /// File to slot.
    Read,
    /// Slot to file.
    Write,
}

/// An io_uring over one file and a set of slots; a slot is hidden while the kernel has it.
pub struct Uring {
    ring: IoUring,
    /// Leaked rather than freed when the kernel might still write to it.
    slots: ManuallyDrop<Slots>,
    busy: Vec<bool>,
    in_flight: usize,
    /// Held open: the ring refers to it by number.
    _file: File,
    settings: &'static str,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("settings", &self.settings)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// Makes a ring of `count` slots of `slot_bytes` over `file`. To be used by the thread that
    /// made it.
    ///
    /// # Errors
    /// The errno of `io_uring_setup` (`EPERM` where it is disabled), `io_uring_register` or `mmap`.
    pub fn new(file: File, count: u32, slot_bytes: usize) -> io::Result<Self> {
        let entries = count.max(1).next_power_of_two();
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries);
        let (ring, settings) = match modern {
            Ok(ring) => (
                ring,
                "registered file and buffers, single issuer, deferred task run",
            ),
            // Kernels before 6.1 do not know those two.
            Err(_) => (IoUring::new(entries)?, "registered file and buffers"),
        };
        let slots = Slots::new(count as usize, slot_bytes)?;
        let vectors: Vec<libc::iovec> = (0..slots.count())
            .map(|index| libc::iovec {
                iov_base: slots.start(index).cast(),
                iov_len: slot_bytes,
            })
            .collect();
        // SAFETY: the vectors name slots of a mapping that outlives the ring: `Drop` ends every
        // operation before it frees the mapping, or leaks it.
        unsafe { ring.submitter().register_buffers(&vectors) }?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self {
            ring,
            busy: vec![false; slots.count()],
            slots: ManuallyDrop::new(slots),
            in_flight: 0,
            _file: file,
            settings,
        })
    }

    /// What of io_uring is in use, for reports.
    pub fn settings(&self) -> &'static str {
        self.settings
    }

    /// What stands behind the slots' memory.
    pub fn kind(&self) -> PageKind {
        self.slots.kind()
    }

    /// The file under the ring.
    pub fn file(&self) -> &File {
        &self._file
    }

    /// A slot's bytes, unless the kernel has them or there is no such slot.
    pub fn slot_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        match self.busy.get(index) {
            Some(false) => Some(self.slots.slot_mut(index)),
            _ => None,
        }
    }

    /// Puts an operation on the whole slot into the submission queue; [`Uring::enter`] tells the
    /// kernel.
    ///
    /// # Errors
    /// `EBUSY` when the slot is in flight, `EINVAL` when there is no such slot.
    pub fn push(&mut self, index: usize, op: UringOp, offset_bytes: u64) -> io::Result<()> {
        match self.busy.get(index) {
            Some(false) => {}
            Some(true) => return Err(io::Error::from_raw_os_error(libc::EBUSY)),
            None => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
        let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
        let len = u32::try_from(self.slots.slot_bytes).map_err(invalid)?;
        let buffer = u16::try_from(index).map_err(invalid)?;
        let start = self.slots.start(index);
        let entry: squeue::Entry = match op {
            UringOp::Read => opcode::ReadFixed::new(types::Fixed(0), start, len, buffer)
                .offset(offset_bytes)
                .build(),
            UringOp::Write => opcode::WriteFixed::new(types::Fixed(0), start, len, buffer)
                .offset(offset_bytes)
                .build(),
        };
        let entry = entry.user_data(index as u64);
        // SAFETY: the entry names registered slot memory that stays mapped until its completion was
        // reaped (`Drop`), that no other code accesses (`busy` hides it), and the registered file.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
        if let Some(busy) = self.busy.get_mut(index) {
            *busy = true;
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Hands everything pushed to the kernel and waits until at least one operation has ended (if
    /// any is in flight), in one system call.
    ///
    /// # Errors
    /// The errno of `io_uring_enter`; `EINTR` when a signal came.
    pub fn enter(&mut self) -> io::Result<()> {
        let want = usize::from(self.in_flight > 0);
        self.ring.submit_and_wait(want).map(|_| ())
    }

    /// Hands each operation that has ended to `done`: slot, and bytes or error.
    pub fn reap(&mut self, mut done: impl FnMut(usize, io::Result<u32>)) -> usize {
        let mut count = 0;
        for entry in self.ring.completion() {
            let Ok(index) = usize::try_from(entry.user_data()) else {
                continue;
            };
            if let Some(busy) = self.busy.get_mut(index) {
                *busy = false;
            }
            self.in_flight -= 1;
            count += 1;
            let result = u32::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            done(index, result);
        }
        count
    }

    /// Operations pushed and not reaped.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            match self.enter() {
                Ok(()) => {
                    self.reap(|_, _| {});
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel may still write to the slots: leak them.
                Err(_) => return,
            }
        }
        // The kernel tears a ring down later, on a worker of its own; until then a registered file
        // would keep its filesystem busy.
        let _ = self.ring.submitter().unregister_files();
        let _ = self.ring.submitter().unregister_buffers();
        // SAFETY: nothing is in flight, and `slots` is not used after this.
        unsafe { ManuallyDrop::drop(&mut self.slots) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn writes_and_reads_through_slots() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut ring = match Uring::new(file.try_clone().unwrap(), 4, 4096) {
            Ok(ring) => ring,
            Err(error) => {
                println!("SKIPPED: io_uring is not to be had: {error}");
                return;
            }
        };
        for slot in 0..4 {
            let fill = u8::try_from(slot + 1).unwrap();
            ring.slot_mut(slot).unwrap().fill(fill);
            ring.push(slot, UringOp::Write, slot as u64 * 4096).unwrap();
            assert!(ring.slot_mut(slot).is_none(), "in flight, and not hidden");
        }
        assert!(ring.push(0, UringOp::Read, 0).is_err());
        while ring.in_flight() > 0 {
            ring.enter().unwrap();
            ring.reap(|_, result| assert_eq!(result.unwrap(), 4096));
        }
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, 2 * 4096).unwrap();
        assert_eq!(block, [3; 4096]);
        ring.push(0, UringOp::Read, 3 * 4096).unwrap();
        ring.enter().unwrap();
        ring.reap(|slot, _| assert_eq!(slot, 0));
        assert_eq!(ring.slot_mut(0).unwrap()[..], [4; 4096]);
        ring.push(1, UringOp::Read, 0).unwrap();
    }
}

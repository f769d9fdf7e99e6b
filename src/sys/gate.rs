//! The gate that every write to a file passes, so that writes can be stopped from another thread,
//! and those under way waited for.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::membarrier::{heavy_barrier, light_barrier};

/// Whether writes may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GateState {
    /// They are refused, for good. What a child finds after `fork(2)` (`StateWord`).
    Closed = 0,
    /// They pass.
    Open = 1,
    /// They are to wait: it is being found out who else opened the file.
    Paused = 2,
}

impl GateState {
    fn of(raw: u8) -> Self {
        match raw {
            1 => Self::Open,
            2 => Self::Paused,
            _ => Self::Closed,
        }
    }
}

/// The state of a gate, in a page of its own that is zeroes in a child after `fork(2)`: the file is
/// its parent's.
#[derive(Debug)]
struct StateWord {
    word: NonNull<AtomicU8>,
    /// Of the page; 0 where there was none to be had.
    len_bytes: usize,
}

// SAFETY: an atomic integer that lives as long as this.
unsafe impl Send for StateWord {}
// SAFETY: as above.
unsafe impl Sync for StateWord {}

impl StateWord {
    fn new(state: GateState) -> Self {
        const LEN_BYTES: usize = 4096;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let mapped = NonNull::new(base).filter(|base| base.as_ptr() != libc::MAP_FAILED);
        let word = match mapped {
            Some(base) => {
                // Since Linux 4.14; without it a child may write as its parent does.
                // SAFETY: the mapping made above.
                unsafe { libc::madvise(base.as_ptr(), LEN_BYTES, libc::MADV_WIPEONFORK) };
                Self {
                    word: base.cast(),
                    len_bytes: LEN_BYTES,
                }
            }
            None => Self {
                word: NonNull::from(Box::leak(Box::new(AtomicU8::new(0)))),
                len_bytes: 0,
            },
        };
        word.store(state as u8, Ordering::Release);
        word
    }
}

impl std::ops::Deref for StateWord {
    type Target = AtomicU8;

    #[inline]
    fn deref(&self) -> &AtomicU8 {
        // SAFETY: a zeroed page or a box, either valid for an `AtomicU8`, until this is dropped.
        unsafe { self.word.as_ref() }
    }
}

impl Drop for StateWord {
    fn drop(&mut self) {
        if self.len_bytes == 0 {
            // SAFETY: the box that `new` leaked.
            drop(unsafe { Box::from_raw(self.word.as_ptr()) });
        } else {
            // SAFETY: the mapping that `new` made, which nothing else refers to.
            unsafe { libc::munmap(self.word.as_ptr().cast(), self.len_bytes) };
        }
    }
}

type Mark = CachePadded<AtomicU32>;

/// Stops the writes of all its [`GateWriter`]s.
#[derive(Debug)]
pub struct WriteGate {
    state: StateWord,
    writers: Mutex<Vec<Arc<Mark>>>,
    changed: Condvar,
}

impl Default for WriteGate {
    fn default() -> Self {
        Self {
            state: StateWord::new(GateState::Open),
            writers: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl WriteGate {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Mark>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is now.
    pub fn state(&self) -> GateState {
        GateState::of(self.state.load(Ordering::Acquire))
    }

    /// Opens, pauses or closes it. A closed gate stays closed.
    pub fn set(&self, state: GateState) {
        let writers = self.lock();
        if self.state() != GateState::Closed {
            self.state.store(state as u8, Ordering::Release);
        }
        drop(writers);
        self.changed.notify_all();
        // A writer that did not see the new state has its mark seen by `is_idle`.
        heavy_barrier();
    }

    /// Waits until no write is under way, after the gate was paused or closed. False when the
    /// deadline comes first.
    pub fn drain(&self, deadline: Instant) -> bool {
        while !self.is_idle() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    fn is_idle(&self) -> bool {
        let idle = |mark: &Arc<Mark>| mark.load(Ordering::Acquire) == 0;
        self.lock().iter().all(idle)
    }

    /// A writer of its own for one queue or medium.
    pub fn writer(self: &Arc<Self>) -> GateWriter {
        let mark = Arc::<Mark>::default();
        self.lock().push(Arc::clone(&mark));
        GateWriter {
            gate: Arc::clone(self),
            mark,
        }
    }

    #[cold]
    fn wait_while_paused(&self) {
        let mut writers = self.lock();
        while self.state() == GateState::Paused {
            writers = self
                .changed
                .wait(writers)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Counts the writes of one queue or medium that are under way.
#[derive(Debug)]
pub struct GateWriter {
    gate: Arc<WriteGate>,
    mark: Arc<Mark>,
}

impl GateWriter {
    /// Counts a write as under way, until [`GateWriter::leave`].
    ///
    /// # Errors
    /// The state of a gate that is not open; nothing was counted then.
    #[inline]
    pub fn enter(&mut self) -> Result<(), GateState> {
        // No other thread stores to the mark: a plain addition.
        let count = self.mark.load(Ordering::Relaxed);
        self.mark.store(count + 1, Ordering::Relaxed);
        light_barrier();
        match GateState::of(self.gate.state.load(Ordering::Relaxed)) {
            GateState::Open => Ok(()),
            state => {
                self.leave();
                Err(state)
            }
        }
    }

    /// As [`GateWriter::enter`]; waits where the gate is paused. False when it is closed.
    #[inline]
    pub fn enter_waiting(&mut self) -> bool {
        loop {
            match self.enter() {
                Ok(()) => return true,
                Err(GateState::Closed) => return false,
                Err(_) => self.gate.wait_while_paused(),
            }
        }
    }

    /// A write has ended.
    #[inline]
    pub fn leave(&mut self) {
        let count = self.mark.load(Ordering::Relaxed);
        self.mark.store(count.saturating_sub(1), Ordering::Release);
    }

    /// How the gate is now.
    pub fn state(&self) -> GateState {
        self.gate.state()
    }
}

impl Drop for GateWriter {
    fn drop(&mut self) {
        self.gate
            .lock()
            .retain(|mark| !Arc::ptr_eq(mark, &self.mark));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn after_a_drain_nothing_is_written_until_it_opens() {
        let gate = Arc::new(WriteGate::default());
        let writing = [const { AtomicBool::new(false) }; 2];
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for flag in &writing {
                let (gate, stop) = (&gate, &stop);
                scope.spawn(move || {
                    let mut writer = gate.writer();
                    while !stop.load(Ordering::Relaxed) && writer.enter_waiting() {
                        flag.store(true, Ordering::Relaxed);
                        std::hint::spin_loop();
                        flag.store(false, Ordering::Relaxed);
                        writer.leave();
                    }
                });
            }
            for _ in 0..2_000 {
                gate.set(GateState::Paused);
                assert!(gate.drain(Instant::now() + Duration::from_secs(60)));
                for _ in 0..20 {
                    assert!(writing.iter().all(|flag| !flag.load(Ordering::Relaxed)));
                }
                gate.set(GateState::Open);
            }
            gate.set(GateState::Closed);
            gate.set(GateState::Open);
            assert_eq!(gate.state(), GateState::Closed);
            stop.store(true, Ordering::Relaxed);
        });
        assert!(gate.lock().is_empty(), "writers are forgotten");
    }

    #[test]
    fn a_write_under_way_is_waited_for() {
        let gate = Arc::new(WriteGate::default());
        let mut writer = gate.writer();
        writer.enter().unwrap();
        gate.set(GateState::Paused);
        assert!(!gate.drain(Instant::now()));
        assert_eq!(writer.enter(), Err(GateState::Paused));
        writer.leave();
        assert!(gate.drain(Instant::now()));
        gate.set(GateState::Closed);
        assert!(!writer.enter_waiting());
    }
}

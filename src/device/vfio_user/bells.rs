//! Doorbells that cannot be mapped: kept in memory here, and written to the server by message.
//!
//! A [`Doorbell`] is a plain store, so the stored values have to be polled: the thread that waits
//! for the device does that, and so does a thread for programs that submit and do not poll.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::region::VfioUserRegisters;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Doorbell;
use crate::nvme::spec::REG_DOORBELLS;
use crate::sys::spawn_small_thread;

/// Doorbells at most, in words.
const WORDS: usize = 16 << 10;
/// What a word holds once its value was taken: no doorbell is ever rung with it. So each ring is
/// seen, even one with the value of the ring before, as happens when a queue is made anew.
const TAKEN: u32 = u32::MAX;
/// Between two looks of the thread.
const LOOK: Duration = Duration::from_micros(200);

/// The doorbells of one device.
#[derive(Debug)]
pub(super) struct Bells {
    shared: Arc<BellsShared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct BellsShared {
    words: Arc<[AtomicU32]>,
    registers: Arc<VfioUserRegisters>,
    /// The indices of those handed out.
    known: Mutex<Vec<usize>>,
}

impl Bells {
    pub(super) fn new(registers: &Arc<VfioUserRegisters>) -> Result<Self> {
        let shared = Arc::new(BellsShared {
            words: (0..WORDS).map(|_| AtomicU32::new(TAKEN)).collect(),
            registers: Arc::clone(registers),
            known: Mutex::default(),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (shared, stop) = (Arc::downgrade(&shared), Arc::clone(&stop));
            spawn_small_thread("vfio-user bells", 128 << 10, move || {
                look_again_and_again(&shared, &stop);
            })?
        };
        Ok(Self {
            shared,
            stop,
            thread: Some(thread),
        })
    }

    /// The doorbell at a register offset.
    pub(super) fn doorbell(&self, offset: u32) -> Result<Doorbell> {
        let index = offset
            .checked_sub(REG_DOORBELLS)
            .filter(|from| from.is_multiple_of(4))
            .and_then(|from| usize::try_from(from / 4).ok());
        let found = index.and_then(|at| Some((at, Doorbell::in_memory(&self.shared.words, at)?)));
        let Some((index, doorbell)) = found else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the doorbell at {offset:#x} lies too far off to be written by message"),
            ));
        };
        let known = self.shared.known.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&index) {
            known.push(index);
        }
        Ok(doorbell)
    }

    /// The controller was reset: what was rung before is of no concern.
    pub(super) fn reset(&self) {
        let known = self.shared.known.lock();
        for index in &*known.unwrap_or_else(PoisonError::into_inner) {
            if let Some(word) = self.shared.words.get(*index) {
                word.store(TAKEN, Ordering::Relaxed);
            }
        }
    }

    /// Tells the server what was rung; whether there was anything.
    pub(super) fn look(&self) -> bool {
        self.shared.look()
    }
}

impl BellsShared {
    fn look(&self) -> bool {
        let known = match self.known.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another thread is at it.
            Err(TryLockError::WouldBlock) => return false,
        };
        let mut any = false;
        for index in &*known {
            let Some(word) = self.words.get(*index) else {
                continue;
            };
            if word.load(Ordering::Relaxed) == TAKEN {
                continue;
            }
            // What was stored before the doorbell is in memory before the message goes out.
            let value = u32::from_le(word.swap(TAKEN, Ordering::Acquire));
            any = true;
            let at = u32::try_from(index * 4).unwrap_or(u32::MAX);
            let offset = REG_DOORBELLS.saturating_add(at);
            self.registers.write32(offset, value);
        }
        any
    }
}

fn look_again_and_again(shared: &Weak<BellsShared>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match shared.upgrade() {
            Some(shared) => shared.look(),
            None => return,
        };
        std::thread::park_timeout(LOOK);
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

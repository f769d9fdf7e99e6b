//! The mappings of a file, in versions: threads use the current one without a lock, and another
//! thread may replace it.
//!
//! A version has a number. A thread that keeps a version compares numbers before each use, which is
//! one load. The operations that use a version are counted: while one of them may read or write
//! blocks that a newer version does not have, those are not used for anything else
//! ([`Versions::is_quiet`]). As `inode_dio_begin` and `inode_dio_wait` of Linux, but counted by
//! version and by thread: an operation writes to no cache line that another thread writes to, and a
//! change waits for none of the operations that begin after it.

use std::sync::atomic::AtomicU64 as PlainAtomicU64;
use std::sync::{Arc, PoisonError};

use crate::mem::pages::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::mem::pages::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use crate::sys::heavy_barrier;

/// Users that are known before those that are gone are looked for.
const FEW: usize = 16;

/// Numbers are not used twice in the process: they tell files apart as well.
static NEXT: PlainAtomicU64 = PlainAtomicU64::new(1);

#[cfg(loom)]
fn heavy_barrier() {
    loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
}

/// A value that is replaced as a whole.
#[derive(Debug)]
pub struct Versions<V> {
    /// Of the current version.
    number: AtomicU64,
    state: Mutex<VersionsState<V>>,
}

#[derive(Debug)]
struct VersionsState<V> {
    now: Arc<V>,
    /// Those of all versions that may be in use.
    users: Vec<Arc<VersionUser<V>>>,
    /// Number of users at which those that are gone are removed.
    prune_at: usize,
}

/// One thread's use of one version. It counts the operations in flight.
#[derive(Debug)]
// Its own cache lines: each operation writes to it.
#[repr(align(128))]
pub struct VersionUser<V> {
    number: u64,
    version: Arc<V>,
    /// Only the thread whose it is stores to it.
    operations: AtomicU32,
}

impl<V> Versions<V> {
    /// The first version.
    pub fn new(version: V) -> Self {
        Self {
            number: AtomicU64::new(NEXT.fetch_add(1, Relaxed)),
            state: Mutex::new(VersionsState {
                now: Arc::new(version),
                users: Vec::new(),
                prune_at: FEW,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, VersionsState<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the current version. It is larger than those of the versions before.
    #[inline]
    pub fn number(&self) -> u64 {
        self.number.load(Acquire)
    }

    /// The current version, and its number.
    pub fn now(&self) -> (Arc<V>, u64) {
        let state = self.state();
        (Arc::clone(&state.now), self.number())
    }

    /// Makes this the current version, and returns its number: [`Versions::is_quiet`] with it tells
    /// when the versions before are not in use any more. Operations that begin after this call use
    /// the new one.
    pub fn replace(&self, version: V) -> u64 {
        let mut state = self.state();
        let old = std::mem::replace(&mut state.now, Arc::new(version));
        // Under the lock, so that numbers grow.
        let number = NEXT.fetch_add(1, Relaxed);
        self.number.store(number, Release);
        drop(state);
        // Perhaps the last reference to something large: not under the lock.
        drop(old);
        number
    }

    /// Registers the calling thread as a user of the current version. The reference must not be
    /// used by two threads at the same time.
    pub fn register(&self) -> Arc<VersionUser<V>> {
        let mut state = self.state();
        if state.users.len() >= state.prune_at {
            // What its thread gave up, unless an operation may still be in flight.
            let is_there =
                |user: &Arc<VersionUser<V>>| Arc::strong_count(user) > 1 || user.operations() != 0;
            state.users.retain(is_there);
            state.prune_at = (2 * state.users.len()).max(FEW);
        }
        let user = Arc::new(VersionUser {
            number: self.number(),
            version: Arc::clone(&state.now),
            operations: AtomicU32::new(0),
        });
        state.users.push(Arc::clone(&user));
        user
    }

    /// Whether operations are in flight, of those that began before a lock was given up that the
    /// caller has taken since. Of others some may be missed.
    pub fn has_operations(&self) -> bool {
        let state = self.state();
        state.users.iter().any(|user| user.operations() != 0)
    }

    /// Whether no operation is in flight that uses a version from before the one with this number.
    /// Once true it stays true.
    pub fn is_quiet(&self, number: u64) -> bool {
        let mut state = self.state();
        let is_old = |user: &Arc<VersionUser<V>>| user.number < number;
        if !state.users.iter().any(is_old) {
            return true;
        }
        // An operation counts itself, passes the light barrier and then compares numbers. So either
        // its count is seen below, or it finds the number that was stored before, and does not use
        // the old version. The number was stored by this thread or before the lock was taken.
        heavy_barrier();
        state
            .users
            .retain(|user| !is_old(user) || user.operations() != 0);
        !state.users.iter().any(is_old)
    }
}

impl<V> VersionUser<V> {
    /// The version, for an operation that was counted.
    #[inline(always)]
    pub fn version(&self) -> &V {
        &self.version
    }

    /// Counts an operation that is about to use the version, and says whether it is the current one
    /// of `versions`. If it is not, the operation does not use it, and is not counted. `barrier` is
    /// [`light_barrier`](crate::sys::light_barrier) or equal to it.
    #[inline(always)]
    pub fn begin(&self, versions: &Versions<V>, barrier: impl FnOnce()) -> bool {
        // No other thread stores to it: a plain addition.
        self.operations
            .store(self.operations.load(Relaxed).wrapping_add(1), Relaxed);
        barrier();
        let is_current = versions.number() == self.number;
        if !is_current {
            self.end();
        }
        is_current
    }

    /// An operation is not in flight any more.
    #[inline(always)]
    pub fn end(&self) {
        // Release: what it did to memory and device is before whatever follows from its end.
        self.operations
            .store(self.operations.load(Relaxed).wrapping_sub(1), Release);
    }

    /// Operations in flight.
    #[inline]
    pub fn operations(&self) -> u32 {
        self.operations.load(Acquire)
    }
}

//! What threads meet by in the page table and in the cache over it: that of std and crossbeam, or
//! loom's under its model checker.

#[cfg(not(loom))]
pub(crate) use crossbeam_queue::ArrayQueue;
#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};
#[cfg(loom)]
pub(crate) use model::ArrayQueue;
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};

#[cfg(loom)]
mod model {
    use std::collections::VecDeque;
    use std::sync::PoisonError;

    use super::Mutex;

    /// As crossbeam's, whose own insides are not looked into.
    #[derive(Debug)]
    pub(crate) struct ArrayQueue<T>(Mutex<VecDeque<T>>);

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(_: usize) -> Self {
            Self(Mutex::new(VecDeque::new()))
        }

        fn with<R>(&self, change: impl FnOnce(&mut VecDeque<T>) -> R) -> R {
            change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }

        #[expect(clippy::unnecessary_wraps, reason = "as crossbeam's")]
        pub(crate) fn push(&self, value: T) -> Result<(), T> {
            self.with(|queue| queue.push_back(value));
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.with(VecDeque::pop_front)
        }

        pub(crate) fn len(&self) -> usize {
            self.with(|queue| queue.len())
        }
    }
}

//! Reads and writes as futures, for any async runtime (feature `futures`).
//!
//! An [`AsyncIo`] wraps an [`Io`]; its clones are for any number of tasks, on any thread. One task
//! runs [`AsyncIo::drive`], which completes the operations of all of them. It waits by what the
//! runtime has for file descriptors: tokio's `AsyncFd`, async-io's `Async`.
//!
//! A future owns the buffer, and the [`Io`] has it while the device uses it: a future that is
//! dropped, or leaked, lets the operation go on, and its buffer goes back to the volume's memory
//! when it has ended.
//!
//! ```
//! # use std::time::Duration;
//! # use xtent::volume::{Volume, aio::AsyncIo};
//! # use std::os::fd::AsFd;
//! # async fn wait_for(fd: impl AsFd, most: Duration) -> std::io::Result<()> { Ok(()) }
//! # async fn read(volume: &Volume) -> xtent::Result<()> {
//! let mut io = volume.io()?;
//! let file = volume.open_file(&mut io, "/data")?;
//! let io = AsyncIo::new(io)?;
//! let read = async {
//!     let done = io.read_at(&file, io.alloc(4096)?, 0).await;
//!     println!("{} bytes: {:?}", done.result?, &done.buf[..4]);
//!     Ok(())
//! };
//! // Both in one task, by select!() of tokio or futures; or the driver in a task of its own.
//! let drive = io.drive(|| wait_for(&io, Duration::from_secs(1)));
//! # drop(drive);
//! # read.await
//! # }
//! ```

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{DmaBuf, Done, File, Io, SubmitError, SubmitReason};
use crate::block::Wait;
use crate::error::{Error, Result};

/// An [`Io`] for async tasks. Clones share it.
///
/// ```no_run
/// # use xtent::volume::{Volume, aio::AsyncIo};
/// # async fn read(volume: &Volume) -> xtent::Result<()> {
/// let mut io = volume.io()?;
/// let file = volume.open_file(&mut io, "/data")?;
/// let io = AsyncIo::new(io)?;
/// // Beside this, one task runs `io.drive(..)`.
/// let done = io.read_at(&file, io.alloc(4096)?, 0).await;
/// println!("{} bytes", done.result?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncIo(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// A second descriptor of that of the `Io`: the same event.
    event: OwnedFd,
}

struct State {
    io: Io,
    /// By the operation's user data.
    slots: Vec<AsyncSlot>,
    free: Vec<usize>,
    /// Tasks with an operation that found no room.
    waiting: Vec<Waker>,
    driver: Option<Waker>,
    /// An operation was started since the driver looked.
    is_started: bool,
}

/// What became of an operation.
enum AsyncSlot {
    Free,
    /// In flight; the task that waits for it.
    InFlight(Waker),
    /// In flight; its future is gone.
    Dropped,
    Ended(Done),
}

impl AsyncIo {
    /// Takes an `Io`, on which no operation is in flight.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidInput`] when operations are in flight;
    /// [`crate::ErrorKind::System`] when the process has no file descriptor left.
    pub fn new(io: Io) -> Result<Self> {
        if io.outstanding() > 0 {
            let text = "operations of this Io are in flight: poll them to their end first";
            return Err(Error::new(crate::ErrorKind::InvalidInput, text));
        }
        let event = io.as_fd().try_clone_to_owned();
        let event = event.map_err(|e| Error::system("cannot duplicate the event descriptor", e))?;
        let state = State {
            io,
            slots: Vec::new(),
            free: Vec::new(),
            waiting: Vec::new(),
            driver: None,
            is_started: false,
        };
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(state),
            event,
        })))
    }

    /// As [`Io::alloc`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfMemory`].
    pub fn alloc(&self, len_bytes: usize) -> Result<DmaBuf> {
        self.0.lock().io.alloc(len_bytes)
    }

    /// Reads `buf.len()` bytes at `offset`, as [`Io::submit_read`]. The output has the buffer, also
    /// after an error.
    pub fn read_at(&self, file: &File, buf: DmaBuf, offset: u64) -> Operation {
        self.operation(Kind::Read, file, buf, offset)
    }

    /// Writes `buf.len()` bytes at `offset`, as [`Io::submit_write`]. The output has the buffer,
    /// also after an error.
    pub fn write_at(&self, file: &File, buf: DmaBuf, offset: u64) -> Operation {
        self.operation(Kind::Write, file, buf, offset)
    }

    /// Makes durable what was completed before, as [`Io::submit_sync`].
    pub fn sync(&self, file: &File) -> Operation {
        self.operation(Kind::Sync, file, DmaBuf::default(), 0)
    }

    fn operation(&self, kind: Kind, file: &File, buf: DmaBuf, offset: u64) -> Operation {
        let stage = Stage::New {
            kind,
            file: file.clone(),
            buf,
            offset,
        };
        Operation {
            shared: Arc::clone(&self.0),
            stage,
        }
    }

    /// Completes operations, until `readable` fails or the future is dropped. One is to run at a
    /// time, or no operation ends.
    ///
    /// `readable` waits until the descriptor of this handle ([`AsFd`]) is readable, and at most a
    /// second: that is how a device that does not answer is noticed. It may return early, and is
    /// dropped when another operation was started meanwhile. It is not called while nothing is in
    /// flight, nor with [`Wait::Poll`](crate::target::Wait::Poll) (the default): then the driver
    /// polls whenever the executor lets it run.
    ///
    /// # Errors
    /// That of `readable`.
    pub async fn drive<R, E>(&self, mut readable: impl FnMut() -> R) -> Result<Infallible, E>
    where
        R: Future<Output = Result<(), E>>,
    {
        let mut wakers = Vec::new();
        loop {
            let next = self.0.lock().turn(&mut wakers);
            // Without the lock: a waker may run anything.
            wakers.drain(..).for_each(Waker::wake);
            match next {
                DriverStep::Again => again().await,
                DriverStep::Start => self.0.started().await,
                DriverStep::Event => {
                    let mut readable = pin!(readable());
                    let mut started = pin!(self.0.started());
                    poll_fn(|context| match started.as_mut().poll(context) {
                        Poll::Ready(()) => Poll::Ready(Ok(())),
                        Poll::Pending => readable.as_mut().poll(context),
                    })
                    .await?;
                }
            }
        }
    }
}

impl fmt::Debug for AsyncIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncIo").finish_non_exhaustive()
    }
}

/// Polls readable when operations have ended, for the `readable` of [`AsyncIo::drive`].
impl AsFd for AsyncIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

/// As `as_fd`, for tokio.
impl AsRawFd for AsyncIo {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

/// Lets other tasks run.
async fn again() {
    let mut was_polled = false;
    poll_fn(|context| {
        if std::mem::replace(&mut was_polled, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What the driver waits for.
enum DriverStep {
    /// Nothing.
    Again,
    /// Another operation.
    Start,
    /// The device, or another operation.
    Event,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until an operation was started.
    async fn started(&self) {
        poll_fn(|context| {
            let mut state = self.lock();
            if std::mem::take(&mut state.is_started) {
                return Poll::Ready(());
            }
            let before = state.driver.replace(context.waker().clone());
            // A waker may run anything when it is dropped, too.
            drop(state);
            drop(before);
            Poll::Pending
        })
        .await;
    }
}

impl State {
    /// Polls once, and adds the tasks to be woken.
    fn turn(&mut self, wakers: &mut Vec<Waker>) -> DriverStep {
        self.is_started = false;
        let Self {
            io, slots, free, ..
        } = self;
        let ended = io.poll(usize::MAX, |done| {
            let Some((index, slot)) = usize::try_from(done.user_data)
                .ok()
                .and_then(|index| Some((index, slots.get_mut(index)?)))
            else {
                return;
            };
            match std::mem::replace(slot, AsyncSlot::Ended(done)) {
                AsyncSlot::InFlight(waker) => wakers.push(waker),
                AsyncSlot::Dropped | AsyncSlot::Free | AsyncSlot::Ended(_) => {
                    *slot = AsyncSlot::Free;
                    free.push(index);
                }
            }
        });
        if ended > 0 {
            wakers.append(&mut self.waiting);
            return DriverStep::Again;
        }
        if self.io.outstanding() == 0 {
            return DriverStep::Start;
        }
        if self.io.arm() {
            return DriverStep::Event;
        }
        // Where the device reports nothing, a controller without a thread of its own works here.
        // Otherwise this might sleep.
        if self.io.core.target.wait == Wait::Poll {
            self.io.relax();
        }
        DriverStep::Again
    }

    /// Starts an operation.
    fn start(
        &mut self,
        (kind, file, offset): (Kind, &File, u64),
        buf: DmaBuf,
        waker: &Waker,
    ) -> Result<usize, SubmitError> {
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(AsyncSlot::Free);
        }
        let io = &mut self.io;
        let started = match kind {
            Kind::Read => io.submit_read(file, offset, buf, index as u64),
            Kind::Write => io.submit_write(file, offset, buf, index as u64),
            Kind::Sync => io.submit_sync(file, index as u64),
        };
        match started {
            Ok(()) => {
                self.slots[index] = AsyncSlot::InFlight(waker.clone());
                self.is_started = true;
                Ok(index)
            }
            Err(error) => {
                self.free.push(index);
                Err(error)
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Write,
    Sync,
}

/// An operation of an [`AsyncIo`]. It starts when it is polled first; where as many are in flight
/// as there is room for, it waits. When it is dropped afterwards, the operation goes on without it.
///
/// ```no_run
/// # use xtent::volume::{Volume, aio::AsyncIo};
/// # async fn read(volume: &Volume) -> xtent::Result<()> {
/// let mut io = volume.io()?;
/// let file = volume.open_file(&mut io, "/data")?;
/// let io = AsyncIo::new(io)?;
/// let sync = io.sync(&file);
/// sync.await.result?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a future does nothing until it is polled"]
pub struct Operation {
    shared: Arc<Shared>,
    stage: Stage,
}

enum Stage {
    New {
        kind: Kind,
        file: File,
        buf: DmaBuf,
        offset: u64,
    },
    InFlight(usize),
    Ended,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").finish_non_exhaustive()
    }
}

impl Operation {
    fn start(&mut self, waker: &Waker) -> Poll<Done> {
        let Stage::New {
            kind,
            file,
            buf,
            offset,
        } = &mut self.stage
        else {
            return Poll::Pending;
        };
        let mut state = self.shared.lock();
        match state.start((*kind, file, *offset), std::mem::take(buf), waker) {
            Ok(index) => {
                self.stage = Stage::InFlight(index);
                let driver = state.driver.take();
                drop(state);
                driver.into_iter().for_each(Waker::wake);
                Poll::Pending
            }
            Err(SubmitError {
                buf: back,
                reason: SubmitReason::Full,
            }) => {
                *buf = back;
                // Once for each task, however often it is polled.
                if !state.waiting.iter().any(|other| other.will_wake(waker)) {
                    state.waiting.push(waker.clone());
                }
                Poll::Pending
            }
            Err(SubmitError {
                buf,
                reason: SubmitReason::Error(error),
            }) => {
                drop(state);
                self.stage = Stage::Ended;
                Poll::Ready(Done {
                    user_data: 0,
                    buf,
                    result: Err(error),
                })
            }
        }
    }
}

impl Future for Operation {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done> {
        let index = match &self.stage {
            Stage::New { .. } => return self.start(context.waker()),
            Stage::InFlight(index) => *index,
            Stage::Ended => panic!("an operation is polled after its end"),
        };
        let mut state = self.shared.lock();
        match std::mem::replace(&mut state.slots[index], AsyncSlot::Free) {
            AsyncSlot::Ended(done) => {
                state.free.push(index);
                drop(state);
                self.stage = Stage::Ended;
                Poll::Ready(Done {
                    user_data: 0,
                    ..done
                })
            }
            before => {
                state.slots[index] = AsyncSlot::InFlight(context.waker().clone());
                drop(state);
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let Stage::InFlight(index) = self.stage else {
            return;
        };
        let mut state = self.shared.lock();
        let before = std::mem::replace(&mut state.slots[index], AsyncSlot::Dropped);
        if let AsyncSlot::Ended(_) = before {
            state.slots[index] = AsyncSlot::Free;
            state.free.push(index);
        }
        // A buffer, or a waker: without the lock, as its drop may run anything.
        drop(state);
        drop(before);
    }
}

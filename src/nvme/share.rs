//! A queue pair that several handles use, by a lock: for a controller that has no more of them.
//!
//! Every chain has a number in the pair, by which its end finds the handle that submitted it,
//! whichever handle polls. The callback of a poll runs without the lock: a panic in it, or a long
//! one, concerns its own handle only.
//!
//! There is always room for one chain of every handle that has none in flight: a caller may wait
//! for its chains, but never for another caller to poll. Beyond that each has an equal part.
//!
//! A handle that sleeps or was armed waits for the device and for an event of its own. The thread
//! that resets the device's event looks at the completion queue next, under the lock, and raises
//! the events of the handles whose chains have ended; so no wakeup is lost. The lock is never held
//! during a sleep.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::controller::{Controller, QueueOptions};
use super::pair_state::QueuePair;
use super::port::Deadline;
use crate::block::{Chain, Completion, Limits, Queue, Refused, Token, Wait};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{EpollSet, EventFd};

/// Chains of a shared pair, where the controller allows them.
const SHARED_DEPTH: usize = 256;

/// The shared pair of a namespace, while there is one.
#[derive(Debug, Default)]
pub(crate) struct PairShare(Mutex<Option<Arc<SharedPair>>>);

#[derive(Debug)]
struct SharedPair {
    state: Mutex<SharedState>,
    /// The device's, of a pair that waits by interrupts.
    event: Option<Arc<EventFd>>,
}

struct SharedState {
    pair: QueuePair,
    /// By their tokens in the pair.
    chains: Box<[SharedChain]>,
    /// The first free one.
    free_chain: usize,
    in_flight: usize,
    users: Vec<User>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SharedChain {
    /// Of a free one: the next free one.
    user: usize,
    /// The submitter's.
    token: Token,
}

/// A handle, as the others see it.
#[derive(Debug, Default)]
struct User {
    is_here: bool,
    /// Chains in the pair; those of a handle that is gone, too.
    in_flight: usize,
    /// Chains that have ended and that the handle did not take yet.
    ended: VecDeque<Completion>,
    /// Raised when one has ended, once, where it waits for that.
    event: Option<Arc<EventFd>>,
    is_waiting: bool,
}

/// A handle of a shared queue pair: for one thread, as a queue pair of its own.
///
/// Dropping it waits for its requests in flight, bounded by the deadline of a command.
pub(crate) struct SharedQueue {
    /// `None` while it is dropped.
    shared: Option<Arc<SharedPair>>,
    share: Arc<PairShare>,
    user: usize,
    limits: Limits,
    outstanding: usize,
    /// Chains that have ended and were not handed over.
    ended: VecDeque<Completion>,
    event: Option<WakeUp>,
}

/// How a handle waits by interrupts.
#[derive(Debug)]
struct WakeUp {
    own: Arc<EventFd>,
    device: Arc<EventFd>,
    /// Either of them.
    either: EpollSet,
}

/// A queue of its own where the controller has another one to spare, or a handle of the shared one.
#[derive(Debug)]
pub(crate) enum OwnOrShared {
    Own(Box<QueuePair>),
    Shared(Box<SharedQueue>),
}

impl PairShare {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<SharedPair>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue for one thread. The last queue of the controller is the one that is shared.
    ///
    /// # Errors
    /// As [`Controller::queue`]; [`ErrorKind::OutOfMemory`] also when the shared queue has as many
    /// handles as there can be chains in flight.
    pub(crate) fn queue(
        self: &Arc<Self>,
        controller: &Arc<Controller>,
        nsid: u32,
        options: QueueOptions,
        shared_segments: usize,
    ) -> Result<OwnOrShared> {
        let mut shared = self.lock();
        let spare = usize::from(shared.is_none());
        if controller.has_queues(options.wait, spare) {
            match controller.queue(nsid, options.clone()) {
                Err(error) if error.kind() == ErrorKind::OutOfMemory && shared.is_some() => {}
                made => return made.map(|pair| OwnOrShared::Own(Box::new(pair))),
            }
        }
        let pair = match &*shared {
            Some(pair) => Arc::clone(pair),
            None => {
                let options = QueueOptions {
                    depth: options.depth.max(SHARED_DEPTH),
                    max_segments: options.max_segments.max(shared_segments),
                    ..options
                };
                let pair = Arc::new(SharedPair::new(controller.queue(nsid, options)?));
                Arc::clone(shared.insert(pair))
            }
        };
        let joined = SharedQueue::join(Arc::clone(&pair), Arc::clone(self));
        if joined.is_err() && Arc::strong_count(&pair) == 2 {
            *shared = None;
        }
        joined.map(|queue| OwnOrShared::Shared(Box::new(queue)))
    }
}

impl SharedPair {
    fn new(pair: QueuePair) -> Self {
        let depth = pair.limits().depth;
        let event = pair.device_event();
        let chain = |next| SharedChain {
            user: next,
            token: 0,
        };
        Self {
            event,
            state: Mutex::new(SharedState {
                pair,
                chains: (1..=depth).map(chain).collect(),
                free_chain: 0,
                in_flight: 0,
                users: Vec::new(),
            }),
        }
    }

    /// Nothing panics under the lock, so what it guards is whole.
    fn lock(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedState {
    fn handles(&self) -> usize {
        self.users.iter().filter(|user| user.is_here).count()
    }

    /// Handles without a chain in flight: each has a place in the pair all the same.
    fn idle(&self) -> usize {
        let is_idle = |user: &&User| user.is_here && user.in_flight == 0;
        self.users.iter().filter(is_idle).count()
    }

    /// Whether another chain leaves a place to every handle without one. In a pair, too, a chain
    /// counts until it is handed over.
    fn has_room(&self) -> bool {
        self.in_flight + self.idle() < self.chains.len()
    }

    fn submit(
        &mut self,
        user: usize,
        outstanding: usize,
        chain: &Chain<'_>,
    ) -> Result<(), Refused> {
        if self.users[user].in_flight > 0 {
            let part = self.chains.len() / self.handles().max(1);
            if outstanding >= part.max(1) || !self.has_room() {
                return Err(Refused::Full);
            }
        }
        let index = self.free_chain;
        let Some(place) = self.chains.get_mut(index) else {
            return Err(Refused::Full);
        };
        self.pair.submit(&Chain {
            token: index as Token,
            ..*chain
        })?;
        self.free_chain = place.user;
        *place = SharedChain {
            user,
            token: chain.token,
        };
        self.in_flight += 1;
        self.users[user].in_flight += 1;
        Ok(())
    }

    /// Polls the pair, and gives each chain that has ended to the handle that submitted it.
    fn route(&mut self) {
        let Self {
            pair,
            chains,
            free_chain,
            in_flight,
            users,
        } = self;
        let others_sleep = users.iter().any(|user| user.is_waiting);
        pair.poll(usize::MAX, &mut |end| {
            let index = usize::try_from(end.token).unwrap_or(usize::MAX);
            let Some(chain) = chains.get_mut(index) else {
                return;
            };
            let Some(user) = users.get_mut(chain.user) else {
                return;
            };
            let token = std::mem::take(&mut chain.token);
            chain.user = std::mem::replace(free_chain, index);
            *in_flight -= 1;
            user.in_flight -= 1;
            if !user.is_here {
                return;
            }
            user.ended.push_back(Completion { token, ..end });
            if let Some(event) = &user.event
                && std::mem::take(&mut user.is_waiting)
            {
                event.raise();
            }
        });
        if others_sleep {
            pair.give_all_back();
        }
    }
}

impl SharedQueue {
    fn join(shared: Arc<SharedPair>, share: Arc<PairShare>) -> Result<Self> {
        let event = shared.event.as_ref().map(WakeUp::new).transpose();
        let event =
            event.map_err(|error| Error::system("cannot make an event for the queue", error))?;
        let mut state = shared.lock();
        let depth = state.chains.len();
        if state.handles() >= depth {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("{depth} handles use the last I/O queue of the controller: no more can"),
            ));
        }
        // The others' chains end, by their deadlines, whether they poll or not.
        while !state.has_room() {
            state.pair.relax_awake();
            state.route();
            drop(state);
            std::thread::yield_now();
            state = shared.lock();
        }
        let new = User {
            is_here: true,
            ended: VecDeque::with_capacity(depth),
            event: event.as_ref().map(|event| Arc::clone(&event.own)),
            ..User::default()
        };
        let is_free = |user: &User| !user.is_here && user.in_flight == 0;
        let user = match state.users.iter().position(is_free) {
            Some(user) => {
                state.users[user] = new;
                user
            }
            None => {
                state.users.push(new);
                state.users.len() - 1
            }
        };
        let limits = *state.pair.limits();
        drop(state);
        Ok(Self {
            shared: Some(shared),
            share,
            user,
            limits,
            outstanding: 0,
            ended: VecDeque::with_capacity(depth),
            event,
        })
    }

    /// As [`QueuePair::event_fd`].
    pub(crate) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(|event| event.either.as_fd())
    }

    /// As [`QueuePair::arm`].
    pub(crate) fn arm(&mut self) -> bool {
        let (Some(event), Some(shared)) = (&self.event, &self.shared) else {
            return false;
        };
        let mut state = shared.lock();
        let _ = event.own.take();
        let is_quiet = state.pair.arm();
        // The event that was reset may have been for others.
        state.route();
        let user = &mut state.users[self.user];
        user.is_waiting = true;
        is_quiet && user.ended.is_empty() && self.ended.is_empty()
    }

    /// Sleeps, where the pair says that there is nothing to poll.
    fn doze(&mut self) {
        let (Some(event), Some(shared)) = (&self.event, &self.shared) else {
            return;
        };
        let mut state = shared.lock();
        if self.outstanding == 0 || !self.ended.is_empty() {
            return;
        }
        if !state.users[self.user].ended.is_empty() {
            return;
        }
        let Some(longest) = state.pair.sleep_limit() else {
            return;
        };
        state.users[self.user].is_waiting = true;
        drop(state);
        // A failed sleep is no sleep: the caller continues as if it polled.
        let _ = EventFd::wait_any([&*event.own, &*event.device], Some(longest));
        let mut state = shared.lock();
        state.users[self.user].is_waiting = false;
        state.pair.look_at_clock();
        // The device's event, which was reset, may have been for others.
        state.route();
    }
}

impl WakeUp {
    fn new(device: &Arc<EventFd>) -> std::io::Result<Self> {
        let own = Arc::new(EventFd::new()?);
        Ok(Self {
            either: EpollSet::new(&[own.as_fd(), device.as_fd()])?,
            own,
            device: Arc::clone(device),
        })
    }
}

impl Queue for SharedQueue {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    // Not a part of the code for a queue that is not shared.
    #[cold]
    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        let Some(shared) = &self.shared else {
            return Err(Refused::Gone);
        };
        let mut state = shared.lock();
        state.submit(self.user, self.outstanding, chain)?;
        drop(state);
        self.outstanding += 1;
        Ok(())
    }

    #[cold]
    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        if let Some(shared) = &self.shared {
            let mut state = shared.lock();
            state.route();
            self.limits = *state.pair.limits();
            let user = &mut state.users[self.user];
            user.is_waiting = false;
            self.ended.append(&mut user.ended);
        }
        let mut count = 0;
        while count < budget
            && let Some(completion) = self.ended.pop_front()
        {
            count += 1;
            self.outstanding -= 1;
            done(completion);
        }
        count
    }

    fn outstanding(&self) -> usize {
        self.outstanding
    }

    fn relax(&mut self) {
        if let Some(shared) = &self.shared {
            shared.lock().pair.relax_awake();
        }
        if self.event.is_some() {
            self.doze();
        }
    }
}

impl Drop for SharedQueue {
    fn drop(&mut self) {
        let Some(shared) = self.shared.clone() else {
            return;
        };
        let (controller, timeout) = shared.lock().pair.deadline();
        let device = &*controller.port.device;
        let patience = Deadline::after(device, timeout);
        while self.outstanding > 0 && !patience.passed(device) {
            if self.poll(usize::MAX, &mut |_| {}) == 0 {
                self.relax();
            }
        }
        let mut state = shared.lock();
        let user = &mut state.users[self.user];
        // Its chains that are still in flight end without it.
        user.is_here = false;
        user.event = None;
        user.ended = VecDeque::new();
        drop(state);
        // Under the lock of the share: a new handle finds the pair, or its number free again.
        let mut share = self.share.lock();
        self.shared = None;
        drop(shared);
        if share
            .as_ref()
            .is_some_and(|pair| Arc::strong_count(pair) == 1)
        {
            *share = None;
        }
    }
}

impl fmt::Debug for SharedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedState")
            .field("pair", &self.pair)
            .field("in_flight", &self.in_flight)
            .field("handles", &self.handles())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SharedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedQueue")
            .field("user", &self.user)
            .field("outstanding", &self.outstanding)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// Whether more than `spare` queues are left, and interrupt vectors where they take one.
    fn has_queues(&self, wait: Wait, spare: usize) -> bool {
        let admin = self.admin();
        let vectors = admin.free_vectors.len();
        admin.free_ids.len() > spare && (wait == Wait::Poll || vectors > spare)
    }
}

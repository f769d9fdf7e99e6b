//! Writing back in the background: a thread of its own for each volume with buffered files that are
//! written to.
//!
//! As the kernel's flusher, it writes a file back when it has been dirty for `dirty_expire`, and
//! the longest dirty files when more than the background share of the cache is dirty, until it is
//! not. It sleeps while nothing is dirty, looks every `writeback_interval` else, and is woken when
//! the share is reached. How long a file has been dirty it only knows from when it looked, so that
//! no write reads a clock. Its queue is its own and given back when nothing is dirty, or when a
//! thread of the program finds none left.
//!
//! What fails is kept in the file's log for those who sync. Where it has no queue, or gets nothing
//! written, it says so to the cache, and writers write back themselves, as they do where there is
//! no such thread.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_utils::sync::{Parker, Unparker};

use super::super::MountOptions;
use super::super::core::IoCore;
use super::super::inodes::{CoreInode, Inodes, locked};
use super::buffered::BufferedIo;
use super::{InodeOps, MetaCore};
use crate::cache::{Cache, Pressure};
use crate::error::{Error, Result};
use crate::target::engine::TargetEngine;
use crate::target::shared::TargetShared;
use crate::xfs::Fs;

/// The thread's name.
const NAME: &str = "xtent-writeback";
/// How often one looks whether the other one is done.
const LOOK_AGAIN: Duration = Duration::from_micros(200);
/// How often the flusher checks a file whose syncs wait for its writeback to end, before it starts
/// on it.
const SYNC_CHECKS: u32 = 50;
/// The longest loan of the queue to another thread.
const LONGEST_LOAN: Duration = Duration::from_secs(60);

/// The thread, when it is there.
#[derive(Debug)]
pub(in super::super) struct Background {
    times: Times,
    running: Mutex<Option<Running>>,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    expire: Duration,
    interval: Duration,
}

#[derive(Debug)]
struct Running {
    shared: Arc<FlusherShared>,
    unparker: Unparker,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct FlusherShared {
    /// The volume closes.
    over: AtomicBool,
    /// It has a queue.
    has_queue: AtomicBool,
    /// Another thread needs it.
    wanted: AtomicBool,
}

impl Background {
    pub(in super::super) fn new(options: &MountOptions) -> Self {
        Self {
            times: Times {
                expire: options.dirty_expire,
                interval: options.writeback_interval,
            },
            running: Mutex::new(None),
        }
    }

    /// Starts it, unless it runs: a file was opened to be written to through the cache.
    pub(in super::super) fn start(
        &self,
        inodes: &Arc<Inodes>,
        fs: &Arc<Fs>,
        target: &Arc<TargetShared>,
    ) {
        if self.times.interval.is_zero() {
            return;
        }
        let mut running = locked(&self.running);
        let (None, Some(cache)) = (&*running, inodes.cache()) else {
            return;
        };
        let parker = Parker::new();
        let unparker = parker.unparker().clone();
        let shared = Arc::<FlusherShared>::default();
        let flusher = Flusher {
            times: self.times,
            inodes: Arc::clone(inodes),
            fs: Arc::clone(fs),
            target: Arc::clone(target),
            cache: cache.clone(),
            shared: Arc::clone(&shared),
            parker,
            io: None,
            core: None,
            since: BTreeMap::new(),
            no_queue_until: None,
            has_warned: false,
        };
        match crate::sys::spawn_thread(NAME, || flusher.run()) {
            Ok(thread) => {
                let waker = unparker.clone();
                cache.when_dirty(move || waker.unpark());
                // Whatever became dirty before that.
                unparker.unpark();
                *running = Some(Running {
                    shared,
                    unparker,
                    thread,
                });
            }
            Err(error) => warn(target, &error),
        }
    }

    /// Makes something that takes a queue. Where that fails, and the thread has one, it is given
    /// back for it. Tried once more even where the thread has none: it may have given it back
    /// meanwhile.
    pub(in super::super) fn yield_to<T>(&self, mut make: impl FnMut() -> Result<T>) -> Result<T> {
        make().or_else(|error| {
            if self.take_queue() {
                make()
            } else {
                Err(error)
            }
        })
    }

    /// Has the thread give its queue back, if it has one; false when there is no thread.
    #[cold]
    fn take_queue(&self) -> bool {
        let running = locked(&self.running);
        let Some(Running {
            shared, unparker, ..
        }) = &*running
        else {
            return false;
        };
        if shared.has_queue.load(Acquire) {
            shared.wanted.store(true, Release);
            unparker.unpark();
        }
        // What it has begun ends, by the deadlines of its commands.
        while shared.has_queue.load(Acquire) {
            std::thread::sleep(LOOK_AGAIN);
        }
        true
    }

    /// Ends the thread after its current file. Dirty pages are left to the caller.
    pub(in super::super) fn end(&self) {
        let Some(running) = locked(&self.running).take() else {
            return;
        };
        running.shared.over.store(true, Release);
        running.unparker.unpark();
        // Should it have panicked, there is nothing to add to what it said.
        let _ = running.thread.join();
    }
}

#[cold]
fn warn(target: &TargetShared, error: &dyn std::fmt::Display) {
    tracing::warn!(
        target_name = &*target.name,
        %error,
        "dirty pages are not written back in the background, only by syncs, by writers when too much of the page cache \
         is dirty, and when the volume is closed"
    );
}

/// What the thread has.
struct Flusher {
    times: Times,
    inodes: Arc<Inodes>,
    target: Arc<TargetShared>,
    cache: Cache,
    shared: Arc<FlusherShared>,
    parker: Parker,
    fs: Arc<Fs>,
    io: Option<Box<BufferedIo>>,
    /// For metadata of files that grow.
    core: Option<Box<IoCore>>,
    /// Since when files are dirty, by their inode numbers: when it was seen first.
    since: BTreeMap<u64, Instant>,
    /// The queue was given to another thread.
    no_queue_until: Option<Instant>,
    has_warned: bool,
}

/// What to do after a round.
enum Next {
    /// Too much is dirty still, and some was written back.
    GoOn,
    /// Nothing, for a while.
    Wait,
    /// Nothing is dirty.
    Sleep,
}

impl Flusher {
    fn run(mut self) {
        self.cache.set_background(true);
        while !self.shared.over.load(Acquire) {
            let next = self.round();
            if self.shared.wanted.swap(false, AcqRel) {
                self.give_queue_back();
                // So that who asked for it gets it.
                let loan = self.times.interval.min(LONGEST_LOAN);
                self.no_queue_until = Some(Instant::now() + loan);
            }
            match next {
                Next::GoOn => {}
                Next::Wait => self.parker.park_timeout(self.times.interval),
                Next::Sleep => {
                    self.give_queue_back();
                    if self.cache.is_all_clean() {
                        self.parker.park();
                    }
                }
            }
        }
    }

    /// One pass over the dirty files: writes back those that are due.
    fn round(&mut self) -> Next {
        if self.cache.stats().dirty_pages == 0 {
            self.since.clear();
            return Next::Sleep;
        }
        let mut wrote = 0;
        for (since, file) in self.dirty() {
            let is_due = since.elapsed() >= self.times.expire;
            if !is_due && self.cache.pressure() == Pressure::None {
                break;
            }
            if self.is_called_off() {
                return self.step_back();
            }
            match self.write_out(&file) {
                Some(pages) => wrote += pages,
                None => return self.step_back(),
            }
        }
        if self.cache.pressure() == Pressure::None {
            // Whatever it was, it is over.
            self.cache.set_background(true);
            return Next::Wait;
        }
        if wrote == 0 {
            return self.step_back();
        }
        self.cache.set_background(true);
        Next::GoOn
    }

    fn is_called_off(&self) -> bool {
        self.shared.over.load(Acquire) || self.shared.wanted.load(Acquire)
    }

    /// The dirty files, the longest dirty first.
    fn dirty(&mut self) -> Vec<(Instant, Arc<CoreInode>)> {
        let now = Instant::now();
        let files = self.inodes.dirty();
        let since: BTreeMap<u64, Instant> = files
            .iter()
            .map(|file| file.ino)
            .map(|ino| (ino, self.since.get(&ino).copied().unwrap_or(now)))
            .collect();
        self.since = since;
        let since = |file: &CoreInode| self.since.get(&file.ino).copied();
        let mut files: Vec<_> = files
            .into_iter()
            .map(|file| (since(&file).unwrap_or(now), file))
            .collect();
        files.sort_by_key(|(since, _)| *since);
        files
    }

    /// Writes a file back, from front to back: how many pages. `None` where that failed, or cannot
    /// be done at all.
    fn write_out(&mut self, file: &Arc<CoreInode>) -> Option<usize> {
        let pages = file.pages()?;
        for _ in 0..SYNC_CHECKS {
            if !pages.is_waited_for() || self.is_called_off() {
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        self.take_queue()?;
        let mut core = MetaCore::Made(&self.target, &mut self.core);
        if file.needs_metadata()
            && let Err(error) = core.get()
        {
            self.warn_once(&error);
            return None;
        }
        let buffered = self.io.as_deref_mut()?;
        let mut ops = InodeOps::new(file, &self.fs, core);
        // What fails is in the file's log.
        let wrote = buffered
            .inner
            .write_out(pages, &mut ops, 0..u64::MAX, usize::MAX);
        // The age of pages that are dirty now, or still, starts anew.
        self.since.insert(file.ino, Instant::now());
        let wrote = wrote.ok()?;
        self.cache.count_background(wrote);
        Some(wrote)
    }

    /// It is for writers to write back, until this gets on again.
    fn step_back(&self) -> Next {
        self.cache.set_background(false);
        Next::Wait
    }

    fn take_queue(&mut self) -> Option<()> {
        if self.io.is_some() {
            return Some(());
        }
        if self
            .no_queue_until
            .is_some_and(|then| Instant::now() < then)
        {
            return None;
        }
        // Before it has it: who finds none left now is to ask for this one.
        self.shared.has_queue.store(true, Release);
        match BufferedIo::on(&self.target, &self.cache, TargetEngine::queue) {
            Ok(mut io) => {
                io.inner.wait_for_nobody();
                self.io = Some(Box::new(io));
                Some(())
            }
            Err(error) => {
                self.shared.has_queue.store(false, Release);
                self.warn_once(&error);
                None
            }
        }
    }

    fn warn_once(&mut self, error: &Error) {
        if !self.has_warned {
            self.has_warned = true;
            warn(&self.target, error);
        }
    }

    fn give_queue_back(&mut self) {
        self.io = None;
        self.core = None;
        self.shared.has_queue.store(false, Release);
    }
}

impl Drop for Flusher {
    /// Also after a panic: writers must not wait for it, and other threads not for its queue.
    fn drop(&mut self) {
        self.cache.set_background(false);
        self.give_queue_back();
    }
}

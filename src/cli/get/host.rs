//! The side that writes to the host, on a thread of its own where there is much to copy: reading
//! and writing go on at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use xtent::internals::sys::spawn_thread;

use super::job::{CopyJob, Entered};
use super::writer::Writer;
use crate::cli::failure::{Failure, OPERATION, check_interrupted};

/// Jobs and bytes that are sent together: waking a thread for each small file would take longer
/// than the file. A batch exceeds the bytes by one job at most.
const BATCH_JOBS: usize = 64;
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait to be written.
const WAITING_BATCHES: usize = 8;

/// Where jobs go.
pub(super) enum CopyHost {
    /// To this thread.
    Here(Box<Writer>),
    /// To another one.
    Thread(Remote),
}

/// The other thread.
pub(super) struct Remote {
    jobs: Option<SyncSender<Vec<CopyJob>>>,
    thread: Option<JoinHandle<Result<Writer, Failure>>>,
    batch: Vec<CopyJob>,
    batch_bytes: usize,
    refused: Arc<AtomicU64>,
}

impl CopyHost {
    /// With a thread, if one is wanted and to be had.
    pub(super) fn new(writer: Writer, with_thread: bool) -> Self {
        if !with_thread {
            return Self::Here(Box::new(writer));
        }
        let refused = writer.refused_file();
        let (jobs, waiting) = sync_channel(WAITING_BATCHES);
        // The writer goes over by a channel, so that it is still here when there is no thread for
        // it.
        let (hand_over, handed) = sync_channel::<Writer>(1);
        match spawn_thread("xtent-write", move || work(handed.recv().ok(), &waiting)) {
            Ok(thread) => {
                // The thread waits for it; if it did not, joining it says so.
                let _ = hand_over.send(writer);
                Self::Thread(Remote {
                    jobs: Some(jobs),
                    thread: Some(thread),
                    batch: Vec::new(),
                    batch_bytes: 0,
                    refused,
                })
            }
            Err(_) => Self::Here(Box::new(writer)),
        }
    }

    /// Does something, now or later.
    pub(super) fn send(&mut self, job: CopyJob) -> Result<(), Failure> {
        match self {
            Self::Here(writer) => writer.handle(job),
            Self::Thread(remote) => remote.send(job),
        }
    }

    fn ask<T>(&mut self, job: impl FnOnce(SyncSender<T>) -> CopyJob) -> Result<T, Failure> {
        let (answer, answered) = sync_channel(1);
        self.send(job(answer))?;
        if let Self::Thread(remote) = self {
            remote.flush()?;
        }
        match answered.recv() {
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.ended()),
        }
    }

    /// Makes a directory and goes down into it.
    pub(super) fn enter(&mut self, name: &[u8]) -> Result<Entered, Failure> {
        self.ask(|answer| CopyJob::AskEnter(name.to_vec(), answer))
    }

    /// Makes a hard link to the copy of an inode; false when there is none that can be linked.
    pub(super) fn link(&mut self, name: &[u8], ino: u64) -> Result<bool, Failure> {
        self.ask(|done| CopyJob::AskLink {
            name: name.to_vec(),
            ino,
            done,
        })
    }

    /// Whether the file that is coming in pieces is not wanted any more.
    pub(super) fn refuses(&self, id: u64) -> bool {
        let refused = match self {
            Self::Here(writer) => writer.refused_file(),
            Self::Thread(remote) => Arc::clone(&remote.refused),
        };
        refused.load(Ordering::Relaxed) == id
    }

    /// Why the other thread takes nothing any more.
    fn ended(&mut self) -> Failure {
        if let Self::Thread(remote) = self
            && let Err(failure) = remote.join()
        {
            return failure;
        }
        Failure::silent(OPERATION)
    }

    /// Waits until everything is done.
    pub(super) fn finish(mut self) -> Result<Writer, Failure> {
        match &mut self {
            Self::Here(_) => {}
            Self::Thread(remote) => {
                remote.flush()?;
                return remote.join();
            }
        }
        match self {
            Self::Here(writer) => Ok(*writer),
            Self::Thread(_) => Err(Failure::silent(OPERATION)),
        }
    }
}

/// The other thread's work: until there is nothing more, or nothing more makes sense.
fn work(writer: Option<Writer>, waiting: &Receiver<Vec<CopyJob>>) -> Result<Writer, Failure> {
    let mut writer = writer.ok_or_else(|| Failure::silent(OPERATION))?;
    while let Ok(batch) = waiting.recv() {
        for job in batch {
            check_interrupted()?;
            writer.handle(job)?;
        }
    }
    Ok(writer)
}

impl Remote {
    fn send(&mut self, job: CopyJob) -> Result<(), Failure> {
        self.batch_bytes += job.heap_bytes();
        self.batch.push(job);
        if self.batch.len() >= BATCH_JOBS || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(batch).is_ok());
        if sent {
            return Ok(());
        }
        // It has ended before its time: it says why.
        self.join().and(Err(Failure::silent(OPERATION)))
    }

    /// Lets the other thread come to its end; what was not sent is not done.
    fn join(&mut self) -> Result<Writer, Failure> {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(Failure::silent(OPERATION)),
        }
    }
}

impl Drop for Remote {
    /// Nothing is left behind half-written: the writer removes it when it is dropped.
    fn drop(&mut self) {
        if self.thread.is_some() {
            drop(self.join());
        }
    }
}

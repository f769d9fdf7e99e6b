//! Chains in flight, counted by task, and waiting for them.

use crate::block::{Chain, ChainFlags, Completion, Limits, Op, Queue, Refused, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Segment;
use crate::units::Lba;

/// A queue and its chains in flight.
#[derive(Debug)]
pub(super) struct ChainRing<Q> {
    queue: Q,
    tasks: Tasks,
}

/// Names a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TaskId(usize);

#[derive(Debug, Default)]
struct Tasks {
    tasks: Vec<Task>,
    free: Vec<usize>,
}

/// Chains that are waited for together.
#[derive(Debug, Default)]
struct Task {
    left: usize,
    failed: Option<Status>,
    /// The device may still write to the memory.
    lost: bool,
}

/// How a task ended.
#[derive(Debug)]
pub(super) struct TaskEnd {
    pub(super) result: Result<()>,
    pub(super) lost: bool,
}

impl Tasks {
    fn completed(&mut self, completion: Completion) {
        let index = usize::try_from(completion.token).unwrap_or(usize::MAX);
        let Some(task) = self.tasks.get_mut(index) else {
            return;
        };
        task.left = task.left.saturating_sub(1);
        if !completion.status.is_success() {
            task.failed.get_or_insert(completion.status);
            task.lost |= completion.status == Status::Unfenced;
        }
    }
}

impl<Q: Queue> ChainRing<Q> {
    pub(super) fn new(queue: Q) -> Self {
        Self {
            queue,
            tasks: Tasks::default(),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        self.queue.limits()
    }

    /// A task without chains yet.
    pub(super) fn task(&mut self) -> TaskId {
        if let Some(free) = self.tasks.free.pop() {
            return TaskId(free);
        }
        self.tasks.tasks.push(Task::default());
        TaskId(self.tasks.tasks.len() - 1)
    }

    /// Submits whole blocks of the device; waits for room where there is none.
    pub(super) fn submit(
        &mut self,
        task: TaskId,
        op: Op,
        addr: u64,
        segments: &[Segment],
    ) -> Result<()> {
        let block = u64::from(self.limits().block_bytes);
        let len: u64 = segments.iter().map(|s| u64::from(s.len_bytes())).sum();
        if !addr.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the mapping of {len} bytes at device byte {addr} splits a block of the device"
                ),
            ));
        }
        let chain = Chain {
            op,
            flags: ChainFlags::empty(),
            lba: Lba(addr / block),
            blocks: len / block,
            segments,
            token: task.0 as u64,
        };
        self.submit_chain(task, &chain)
    }

    fn submit_chain(&mut self, task: TaskId, chain: &Chain<'_>) -> Result<()> {
        loop {
            match self.queue.submit(chain) {
                Ok(()) => {
                    self.tasks.tasks[task.0].left += 1;
                    return Ok(());
                }
                Err(Refused::Full) => self.step(),
                Err(refused) => return Err(refused.of_mapping()),
            }
        }
    }

    /// Polls, and relaxes when that brought nothing.
    fn step(&mut self) {
        if self.poll() == 0 {
            self.queue.relax();
        }
    }

    pub(super) fn poll(&mut self) -> usize {
        let tasks = &mut self.tasks;
        self.queue
            .poll(usize::MAX, &mut |completion| tasks.completed(completion))
    }

    /// Whether nothing of a task is in flight any more.
    pub(super) fn is_over(&self, task: TaskId) -> bool {
        self.tasks.tasks[task.0].left == 0
    }

    /// Waits for a task's chains, without ending it.
    pub(super) fn finish(&mut self, task: TaskId) {
        while !self.is_over(task) {
            self.step();
        }
    }

    /// Waits for a task's chains. The engine's deadlines see to it that they end.
    pub(super) fn wait(&mut self, task: TaskId) -> TaskEnd {
        self.finish(task);
        self.end(task)
    }

    /// The end of a task that is over.
    pub(super) fn end(&mut self, task: TaskId) -> TaskEnd {
        let ended = std::mem::take(&mut self.tasks.tasks[task.0]);
        self.tasks.free.push(task.0);
        TaskEnd {
            result: ended.failed.and_then(Status::error).map_or(Ok(()), Err),
            lost: ended.lost,
        }
    }

    /// Makes durable what has completed. The queue knows whether the device does so by itself: what
    /// it said before others wrote, or before a reset, need not hold.
    pub(super) fn flush(&mut self) -> Result<()> {
        let task = self.task();
        let chain = Chain {
            op: Op::Flush,
            flags: ChainFlags::empty(),
            lba: Lba(0),
            blocks: 0,
            segments: &[],
            token: task.0 as u64,
        };
        let submitted = self.submit_chain(task, &chain);
        let end = self.wait(task);
        submitted.and(end.result)
    }
}

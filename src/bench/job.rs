//! One job of a workload: a thread that keeps its engine busy and measures each operation.
//!
//! The clock is read before an operation is handed to the engine, after that (where submission and
//! completion are told apart; this is also the start of the next operation of a batch), and after
//! each poll that reaped something. Buffers are filled before and checked after that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use xtent::internals::sys::Ticks;
use xtent::{Error, ErrorKind, Result};

use super::hist_log::{HistogramLog, LogWindow};
use super::mix::mix;
use super::outcome::Outcome;
use super::pattern;
use super::timeline::Interval;
use super::usage::{Meter, Usage};
use super::workload::{Rw, Steps, Workload};
use super::{Engine, LoadOp, SyncKind};

#[derive(Debug, Clone, Copy)]
struct JobSlot {
    started: Ticks,
    /// When the engine had it; `started` where that is not told apart.
    issued: Ticks,
    op: LoadOp,
    offset_bytes: u64,
}

pub(super) struct BenchJob<'a, E> {
    workload: &'a Workload,
    number: usize,
    engine: E,
    steps: Steps,
    free: Vec<usize>,
    slots: Vec<JobSlot>,
    ended: Vec<(usize, Result<usize>)>,
    /// Blocks written, one bit each; empty without `--verify`.
    written: Vec<u64>,
    ios: &'a AtomicU64,
    /// Writes that ended since the last sync.
    unsynced: u64,
    /// As [`Workload::sync_every`].
    sync_every: u64,
    outcome: Outcome,
    log: Option<HistogramLog>,
    /// When the next interval of the timeline or of the log ends.
    next_mark: Ticks,
    failure: Option<Error>,
}

/// Processor time used before the measurement.
struct UsageBefore {
    at: Ticks,
    usage: Usage,
    /// Of the first job only: it stands for the whole process.
    meter: Option<Meter>,
}

impl UsageBefore {
    fn read(number: usize) -> Self {
        Self {
            at: Ticks::now(),
            usage: Usage::of_thread(),
            meter: (number == 0).then(Meter::start),
        }
    }
}

impl<'a, E: Engine> BenchJob<'a, E> {
    pub(super) fn new(
        workload: &'a Workload,
        mut engine: E,
        number: usize,
        ios: &'a AtomicU64,
        windows: Option<Sender<LogWindow>>,
    ) -> Result<Self> {
        let depth = workload.iodepth;
        if workload.rw.writes() {
            for slot in 0..depth {
                pattern::fill_random(engine.slot_mut(slot), mix(workload.seed) ^ slot as u64);
            }
        }
        let bitmap = workload.verify && workload.rw.writes();
        let words = if bitmap {
            usize::try_from(workload.blocks_per_job().div_ceil(64)).unwrap_or(usize::MAX)
        } else {
            0
        };
        let now = Ticks::now();
        let idle = JobSlot {
            started: now,
            issued: now,
            op: LoadOp::Read,
            offset_bytes: 0,
        };
        let log = workload.measure.log.zip(windows);
        Ok(Self {
            steps: workload.steps(number),
            workload,
            number,
            engine,
            free: (0..depth).rev().collect(),
            slots: vec![idle; depth],
            ended: Vec::with_capacity(depth),
            written: super::zeroed(words)?,
            ios,
            unsynced: 0,
            sync_every: workload.sync_every(),
            outcome: Outcome::new(&workload.measure),
            log: log.map(|(interval, windows)| HistogramLog::new(number, interval, windows)),
            next_mark: now,
            failure: None,
        })
    }

    pub(super) fn run(mut self) -> Result<Outcome> {
        self.load();
        self.drain();
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if self.workload.rw.writes() {
            self.engine.sync(SyncKind::All)?;
        }
        if !self.written.is_empty() && !self.outcome.interrupted {
            self.read_back();
            self.drain();
        }
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.outcome),
        }
    }

    /// The measured part.
    fn load(&mut self) {
        let workload = self.workload;
        let start = Ticks::now();
        let measure_from = start.after(workload.ramp_time.unwrap_or_default());
        let end = workload.runtime.map(|runtime| measure_from.after(runtime));
        let mut left = workload.operations_per_job().unwrap_or(u64::MAX);
        let mut count = 0;
        // As fio's ramp_time: what was before counts for nothing, unless nothing came after.
        let mut in_ramp = workload.ramp_time.is_some();
        let mut begun = start;
        let mut before = UsageBefore::read(self.number);
        // Reading /proc takes long enough to be seen in the latency of operations in flight: it is
        // done again before the ramp time is over.
        let mut read_before_at = workload.ramp_time.map(|ramp| start.after(ramp / 4 * 3));
        self.next_mark = self.next_mark_after(begun, in_ramp);
        loop {
            let mut clock = None;
            while left > 0
                && self.failure.is_none()
                && !self.sync_is_due()
                && let Some(slot) = self.free.pop()
            {
                left -= 1;
                let step = self.steps.next_step();
                clock = self.start(slot, step.op, step.offset_bytes, clock);
            }
            if self.free.len() == self.slots.len() {
                if self.sync_is_due() && self.failure.is_none() {
                    self.sync_now(begun);
                    continue;
                }
                break;
            }
            let Some(now) = self.reap() else { continue };
            if in_ramp {
                if read_before_at.take_if(|at| now >= *at).is_some() {
                    before = UsageBefore::read(self.number);
                }
                if now >= measure_from {
                    in_ramp = false;
                    begun = measure_from;
                    self.begin_to_measure(begun);
                }
            }
            while let Some((slot, result)) = self.ended.pop() {
                count += 1;
                self.finish(slot, result, now);
            }
            self.ios.store(count, Ordering::Relaxed);
            self.outcome.elapsed = Duration::from_nanos(now.nanoseconds_since(begun));
            if now >= self.next_mark {
                self.mark(begun, in_ramp);
            }
            let interrupted = left > 0 && xtent::internals::sys::interrupted().is_some();
            self.outcome.interrupted |= interrupted;
            if interrupted || end.is_some_and(|end| now >= end) || self.failure.is_some() {
                left = 0;
            }
        }
        self.end_of_load(in_ramp, &before);
    }

    /// Forgets what was done within the ramp time.
    #[cold]
    fn begin_to_measure(&mut self, from: Ticks) {
        self.outcome = Outcome {
            verified_blocks: self.outcome.verified_blocks,
            ..Outcome::new(&self.workload.measure)
        };
        self.next_mark = self.next_mark_after(from, false);
    }

    #[cold]
    fn end_of_load(&mut self, in_ramp: bool, before: &UsageBefore) {
        self.outcome.only_ramp = in_ramp;
        self.outcome.usage = Usage::of_thread().since(&before.usage);
        let usage_ns = Ticks::now().nanoseconds_since(before.at);
        self.outcome.usage_time = Duration::from_nanos(usage_ns);
        self.outcome.cpus = before.meter.map(|meter| meter.read()).unwrap_or_default();
        self.outcome.job_time = self.outcome.elapsed;
        let elapsed = self.outcome.elapsed;
        if let Some(log) = &mut self.log {
            log.end(elapsed, &self.outcome);
        }
    }

    /// The log has nothing of the ramp time.
    fn next_mark_after(&self, begun: Ticks, in_ramp: bool) -> Ticks {
        let timeline = self.outcome.timeline.next_end();
        let log = self.log.as_ref().filter(|_| !in_ramp);
        let log = log.map(HistogramLog::next_end);
        begun.after(log.map_or(timeline, |log| log.min(timeline)))
    }

    /// An interval is over.
    #[cold]
    fn mark(&mut self, begun: Ticks, in_ramp: bool) {
        let (elapsed, outcome) = (self.outcome.elapsed, &mut self.outcome);
        let so_far = Interval {
            read_ios: outcome.read.ios(),
            read_bytes: outcome.read.bytes,
            write_ios: outcome.write.ios(),
            write_bytes: outcome.write.bytes,
        };
        outcome.timeline.mark(elapsed, so_far);
        if let Some(log) = self.log.as_mut().filter(|_| !in_ramp) {
            log.mark(elapsed, outcome);
        }
        self.next_mark = self.next_mark_after(begun, in_ramp);
    }

    /// After so many writes nothing more is begun, and when nothing is in flight, all of it is made
    /// durable.
    #[inline]
    fn sync_is_due(&self) -> bool {
        self.sync_every > 0 && self.unsynced >= self.sync_every
    }

    #[cold]
    fn sync_now(&mut self, begun: Ticks) {
        self.unsynced = 0;
        let started = Ticks::now();
        let touched = match self.workload.touch {
            true => self.engine.touch(),
            false => Ok(()),
        };
        let kind = self.workload.sync_kind();
        if let Err(error) = touched.and_then(|()| self.engine.sync(kind)) {
            self.fail(error);
        }
        let now = Ticks::now();
        self.outcome.sync.record(now.nanoseconds_since(started));
        // It belongs to what was measured.
        self.outcome.elapsed = Duration::from_nanos(now.nanoseconds_since(begun));
    }

    /// Hands an operation to the engine. `clock` is the time at which the operation before was
    /// handed over, if that was just now; returned is the time of this one.
    #[inline]
    fn start(
        &mut self,
        slot: usize,
        op: LoadOp,
        offset_bytes: u64,
        clock: Option<Ticks>,
    ) -> Option<Ticks> {
        let fills = op == LoadOp::Write && self.workload.verify;
        if fills {
            pattern::fill(self.engine.slot_mut(slot), offset_bytes, self.workload.seed);
        }
        let started = clock.filter(|_| !fills).unwrap_or_else(Ticks::now);
        self.slots[slot] = JobSlot {
            started,
            issued: started,
            op,
            offset_bytes,
        };
        if let Err(error) = self.engine.submit(slot, op, offset_bytes) {
            self.free.push(slot);
            self.fail(error);
            return None;
        }
        if !self.workload.measure.split {
            return None;
        }
        let issued = Ticks::now();
        self.slots[slot].issued = issued;
        Some(issued)
    }

    /// Polls; the time, when something has ended.
    #[inline]
    fn reap(&mut self) -> Option<Ticks> {
        let ended = &mut self.ended;
        let polled = self
            .engine
            .poll(&mut |slot, result| ended.push((slot, result)));
        if let Err(error) = polled {
            // The engine is broken: operations in flight will never be reaped.
            self.fail(error);
            self.free = (0..self.slots.len()).collect();
            return None;
        }
        (!self.ended.is_empty()).then(Ticks::now)
    }

    #[inline]
    fn finish(&mut self, slot: usize, result: Result<usize>, now: Ticks) {
        let JobSlot {
            started,
            issued,
            op,
            offset_bytes,
        } = self.slots[slot];
        self.free.push(slot);
        match result {
            Ok(bytes) if bytes == self.workload.block_bytes => {
                self.unsynced += u64::from(op == LoadOp::Write);
                let direction = match op {
                    LoadOp::Read => &mut self.outcome.read,
                    LoadOp::Write => &mut self.outcome.write,
                };
                if self.workload.measure.split {
                    let submission_ns = issued.nanoseconds_since(started);
                    direction.record_parts(submission_ns, now.nanoseconds_since(issued), bytes);
                } else {
                    direction.record_ns(now.nanoseconds_since(started), bytes);
                }
                if self.workload.verify {
                    self.verify(slot, op, offset_bytes);
                }
            }
            Ok(bytes) => self.fail(
                Error::new(
                    ErrorKind::Io,
                    format!("{bytes} bytes instead of {}", self.workload.block_bytes),
                )
                .at_offset(offset_bytes),
            ),
            Err(error) => self.fail(error.at_offset(offset_bytes)),
        }
    }

    fn verify(&mut self, slot: usize, op: LoadOp, offset_bytes: u64) {
        match op {
            LoadOp::Write => {
                let block = self.steps.block_at(offset_bytes);
                let (word, bit) = (usize::try_from(block / 64).unwrap_or(0), block % 64);
                if let Some(word) = self.written.get_mut(word) {
                    *word |= 1 << bit;
                }
            }
            // What a mixed workload reads may not have been written yet; it is read back in the
            // end.
            LoadOp::Read if matches!(self.workload.rw, Rw::Read | Rw::Randread) => {
                self.check_pattern(slot, offset_bytes);
            }
            LoadOp::Read => {}
        }
    }

    fn check_pattern(&mut self, slot: usize, offset_bytes: u64) {
        let block = self.engine.slot_mut(slot);
        match pattern::check(block, offset_bytes, self.workload.seed) {
            Ok(()) => self.outcome.verified_blocks += 1,
            Err(text) => self.fail(
                Error::new(ErrorKind::Corrupt, text)
                    .during("verify")
                    .at_offset(offset_bytes),
            ),
        }
    }

    /// Reads every block that was written and checks its pattern.
    fn read_back(&mut self) {
        let mut next = 0;
        let blocks = self.workload.blocks_per_job();
        loop {
            let interrupted = next < blocks && xtent::internals::sys::interrupted().is_some();
            self.outcome.interrupted |= interrupted;
            let stop = self.failure.is_some() || interrupted;
            while !stop && next < blocks {
                let word = self.written[usize::try_from(next / 64).unwrap_or(0)];
                if word >> (next % 64) & 1 == 0 {
                    next += 1;
                    continue;
                }
                let Some(slot) = self.free.pop() else { break };
                // Stale content must not pass for what was read.
                self.engine.slot_mut(slot).fill(0);
                self.start(slot, LoadOp::Read, self.steps.offset_of(next), None);
                next += 1;
            }
            if self.free.len() == self.slots.len() {
                return;
            }
            if self.reap().is_none() {
                continue;
            }
            while let Some((slot, result)) = self.ended.pop() {
                let offset_bytes = self.slots[slot].offset_bytes;
                self.free.push(slot);
                match result {
                    Ok(_) => self.check_pattern(slot, offset_bytes),
                    Err(error) => self.fail(error.at_offset(offset_bytes)),
                }
            }
        }
    }

    /// Waits for what a failure left in flight.
    fn drain(&mut self) {
        while self.free.len() < self.slots.len() {
            self.reap();
            while let Some((slot, _)) = self.ended.pop() {
                self.free.push(slot);
            }
        }
    }

    /// Keeps the first error.
    #[cold]
    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }
}
